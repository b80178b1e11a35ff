#The communicator over NCCL, and the real libraries without a device.
shardwise_add_cuda_test(
    NAME nccl SOURCES nccl_test.cpp nccl_pieces_test.cpp KERNELS host LABELS full sanitize)
    shardwise_add_cuda_test(
        NAME nccl_failures SOURCES nccl_failure_test.cpp KERNELS host LABELS full sanitize)
        shardwise_add_cuda_test(
            NAME nccl_processes SOURCES nccl_process_test.cpp KERNELS host LABELS full)
