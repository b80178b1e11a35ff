# Readers and writers of files that others make, or read.
shardwise_add_test(NAME safetensors SOURCES checkpoint/malformed_index_test.cpp checkpoint/malformed_safetensors_test.cpp
                   checkpoint/regular_file_test.cpp checkpoint/safetensors_test.cpp
                   LINK shardwise::checkpoint LABELS quick full sanitize)
shardwise_add_test(NAME hugging_face SOURCES checkpoint/hugging_face_test.cpp
                   LINK shardwise::checkpoint LABELS quick full sanitize)
