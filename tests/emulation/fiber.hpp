#pragma once

#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* stack,
                                                          std::size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* save, const void** stack,
                                                           std::size_t* bytes);
}

// What nvcc has built in, as far as this library's kernels use it.
inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

/// Runs kernels' own bodies on the host: each CUDA thread of a block is a fiber, and the fibers of
/// a block take turns at barriers and shuffles. Slow, and blind to what a device reorders: for the
/// launchers' indexing, tails, shuffles and barriers alone.
namespace emulation_fiber {

inline constexpr unsigned warp = 32;

enum class Wait { none, block_barrier, warp_barrier, shuffle };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  bool is_finished = false;
  Wait wait = Wait::none;
  unsigned mask = 0;        ///< lanes that a warp's barrier is for
  unsigned source = 0;      ///< shuffle: the lane whose value it gets
  std::uint64_t value = 0;  ///< shuffle: given, then got
};

/// One launch; made for each block anew but for the stacks.
class Machine {
 public:
  Machine(dim3 grid, dim3 block, std::function<void()> body)
      : grid_(grid), block_(block), body_(std::move(body)), threads_(block.x) {
    if (block.y != 1 || block.z != 1 || grid.y != 1 || grid.z != 1) {
      throw std::logic_error("fibers run launches of one dimension");
    }
    for (Thread& thread : threads_) {
      thread.stack = std::make_unique_for_overwrite<char[]>(stack_bytes);
    }
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  /// `backwards`: threads take turns from the last to the first, which shows what a missing barrier
  /// hides.
  void run(bool backwards) {
    current() = this;
    for (unsigned block = 0; block < grid_.x; ++block) {
      block_index_ = block;
      start_block();
      while (run_turn(backwards)) {
      }
    }
    current() = nullptr;
  }

  static Machine*& current() {
    static thread_local Machine* machine = nullptr;
    return machine;
  }

  /// From a fiber: waits until all whom it concerns are there.
  void wait_at(Wait wait, unsigned mask) {
    Thread& thread = threads_[running_];
    if (wait != Wait::block_barrier && (mask & 1u << running_ % warp) == 0) {
      problem_ = "a lane is not in the mask that it gives to a barrier of its warp";
    }
    thread.wait = wait;
    thread.mask = mask;
    leave(thread);
  }
  [[nodiscard]] Thread& running_thread() { return threads_[running_]; }

 private:
  static constexpr std::size_t stack_bytes = 64 << 10;

  void start_block() {
    for (Thread& thread : threads_) {
      thread.is_finished = false;
      thread.wait = Wait::none;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = stack_bytes;
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, &Machine::enter, 0);
    }
  }

  /// Runs each thread up to its next barrier, then opens what barriers can be. False: all ended.
  bool run_turn(bool backwards) {
    const unsigned count = static_cast<unsigned>(threads_.size());
    for (unsigned i = 0; i < count; ++i) {
      running_ = backwards ? count - 1 - i : i;
      if (!threads_[running_].is_finished && threads_[running_].wait == Wait::none) resume();
      if (!problem_.empty()) fail(problem_);
    }
    unsigned finished = 0;
    unsigned at_block = 0;
    for (const Thread& thread : threads_) {
      finished += thread.is_finished ? 1 : 0;
      at_block += !thread.is_finished && thread.wait == Wait::block_barrier ? 1 : 0;
    }
    if (finished == count) return false;
    bool opened = finished + at_block == count;
    if (opened) {
      for (Thread& thread : threads_) thread.wait = Wait::none;
    }
    for (unsigned first = 0; first < count; first += warp) opened = open_warp(first) || opened;
    if (!opened) {
      fail("divergent barrier in block " + std::to_string(block_index_) + ": of " +
           std::to_string(count) + " threads " + std::to_string(at_block) +
           " wait for the block, " + std::to_string(finished) +
           " have ended, the others wait for lanes that do not come");
    }
    return true;
  }

  /// Opens the barriers of a warp whose lanes are all there.
  bool open_warp(unsigned first) {
    const unsigned end = std::min<unsigned>(first + warp, static_cast<unsigned>(threads_.size()));
    bool opened = false;
    for (unsigned lane = first; lane < end; ++lane) {
      const Wait wait = threads_[lane].wait;
      const unsigned mask = threads_[lane].mask;
      if (wait != Wait::warp_barrier && wait != Wait::shuffle) continue;
      bool all = true;
      for (unsigned other = first; other < first + warp; ++other) {
        if ((mask & 1u << (other - first)) == 0) continue;
        all = all && other < end && !threads_[other].is_finished && threads_[other].wait == wait &&
              threads_[other].mask == mask;
      }
      if (!all) continue;
      open(first, end, mask);
      opened = true;
    }
    return opened;
  }

  void open(unsigned first, unsigned end, unsigned mask) {
    std::uint64_t given[warp] = {};
    for (unsigned lane = first; lane < end; ++lane) given[lane - first] = threads_[lane].value;
    for (unsigned lane = first; lane < end; ++lane) {
      Thread& thread = threads_[lane];
      if ((mask & 1u << (lane - first)) == 0) continue;
      if (thread.wait == Wait::shuffle) thread.value = given[thread.source];
      thread.wait = Wait::none;
    }
  }

  [[noreturn]] void fail(const std::string& what) {
    current() = nullptr;
    throw std::logic_error(what);
  }

  void resume() {
    Thread& thread = threads_[running_];
    threadIdx = {running_, 0, 0};
    blockIdx = {block_index_, 0, 0};
    blockDim = block_;
    gridDim = grid_;
    if (__sanitizer_start_switch_fiber != nullptr) {
      __sanitizer_start_switch_fiber(&fake_stack_, thread.stack.get(), stack_bytes);
    }
    swapcontext(&context_, &thread.context);
    if (__sanitizer_finish_switch_fiber != nullptr) {
      __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
    }
  }

  void leave(Thread& thread) {
    if (__sanitizer_start_switch_fiber != nullptr) {
      __sanitizer_start_switch_fiber(thread.is_finished ? nullptr : &thread.fake_stack, stack_,
                                     host_stack_bytes_);
    }
    swapcontext(&thread.context, &context_);
    if (__sanitizer_finish_switch_fiber != nullptr) {
      __sanitizer_finish_switch_fiber(thread.fake_stack, nullptr, nullptr);
    }
  }

  static void enter() {
    Machine& machine = *current();
    if (__sanitizer_finish_switch_fiber != nullptr) {
      __sanitizer_finish_switch_fiber(nullptr, &machine.stack_, &machine.host_stack_bytes_);
    }
    machine.body_();
    Thread& thread = machine.running_thread();
    thread.is_finished = true;
    machine.leave(thread);
  }

  dim3 grid_, block_;
  std::function<void()> body_;
  std::vector<Thread> threads_;
  unsigned running_ = 0;
  unsigned block_index_ = 0;
  std::string problem_;
  ucontext_t context_;
  void* fake_stack_ = nullptr;
  const void* stack_ = nullptr;
  std::size_t host_stack_bytes_ = 0;
};

/// How kernels are run on this thread, and how many were.
struct Settings {
  bool backwards = false;
  std::size_t launches = 0;
};
inline Settings& settings() {
  static thread_local Settings state;
  return state;
}

/// cudaLaunchKernel, with the kernel's type: runs all blocks before it returns. std::logic_error
/// where threads wait for what never comes.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                   std::size_t /*shared*/, cudaStream_t /*stream*/) {
  const auto call = [&]<std::size_t... Index>(std::index_sequence<Index...>) {
    kernel(*static_cast<std::remove_cvref_t<Parameters>*>(arguments[Index])...);
  };
  Machine machine(grid, block, [&] { call(std::index_sequence_for<Parameters...>()); });
  ++settings().launches;
  machine.run(settings().backwards);
  return cudaSuccess;
}

/// What another lane gave, all lanes of `mask` being there.
template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
  Machine& machine = *Machine::current();
  Thread& thread = machine.running_thread();
  thread.value = 0;
  std::memcpy(&thread.value, &value, sizeof value);
  thread.source = source % warp;
  machine.wait_at(Wait::shuffle, mask);
  std::memcpy(&value, &thread.value, sizeof value);
  return value;
}

}  // namespace emulation_fiber

inline void __syncthreads() {
  emulation_fiber::Machine::current()->wait_at(emulation_fiber::Wait::block_barrier, 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation_fiber::Machine::current()->wait_at(emulation_fiber::Wait::warp_barrier, mask);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
  return emulation_fiber::shuffle(mask, value, threadIdx.x % emulation_fiber::warp ^ bits);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % emulation_fiber::warp;
  const unsigned source = lane + delta;
  return emulation_fiber::shuffle(mask, value, source < emulation_fiber::warp ? source : lane);
}

// Of the keywords those that the headers for the host's compiler leave in.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static thread_local
