# Saves of a training and what comes back of them.
shardwise_add_test(NAME checkpoint_crash SOURCES checkpoint/crash_test.cpp checkpoint/faults_test.cpp
                   LINK shardwise::checkpoint LABELS quick full)
shardwise_add_test(NAME checkpoint_resharding SOURCES checkpoint/resharding_test.cpp
                   LINK shardwise::checkpoint LABELS quick full)
