# Readers and writers of files that others make, or read.
shardwise_add_test(NAME safetensors SOURCES checkpoint/regular_file_test.cpp checkpoint/safetensors_test.cpp
                   LINK shardwise::checkpoint LABELS quick full sanitize)
