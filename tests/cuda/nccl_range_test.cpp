#include <cstdint>

// This program is its own profiler: NVTX asks for one by this symbol.
extern "C" int (*InitializeInjectionNvtx2_fnptr)(const void* (*)(std::uint32_t));
#define NVTX_STATIC_INJECTION_IMPL
#include <nvtx3/nvToolsExt.h>

#include <catch2/catch_test_macros.hpp>
#include <mutex>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>
#include <string>
#include <vector>

namespace {

std::mutex mutex;
std::vector<std::string> pushed;
int depth = 0;

int push(const char* text) {
  const std::lock_guard lock(mutex);
  pushed.emplace_back(text);
  return depth++;
}

int pop() {
  const std::lock_guard lock(mutex);
  return --depth;
}

int attach(NvtxGetExportTableFunc_t table_of) {
  const auto* const callbacks =
      static_cast<const NvtxExportTableCallbacks*>(table_of(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks == nullptr ||
      callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size) == 0) {
    return 0;
  }
  *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push);
  *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}

}  // namespace

int (*InitializeInjectionNvtx2_fnptr)(const void* (*)(std::uint32_t)) = attach;

TEST_CASE("profilers see each call as a range with its name") {
  shardwise::run_cuda_ranks(1, [](shardwise::Communicator& comm) {
    shardwise::barrier(comm, {.name = "epoch"});
    try {
      const shardwise::BroadcastItem item{nullptr, 0, shardwise::DType::f32};
      comm.broadcast({&item, 1}, 0, {.name = std::string(100, 'x')}, {});
    } catch (const shardwise::Error&) {
      pushed.emplace_back("refused");
    }
  });
  CHECK(pushed == std::vector<std::string>{"barrier epoch", "broadcast " + std::string(64, 'x')});
  CHECK(depth == 0);
}
