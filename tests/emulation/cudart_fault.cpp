#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>

#include "world.hpp"

// Names what a faulting address was, then lets the fault take its course: the handler that was
// there before, or death by the signal.
namespace emulation {
namespace {

struct sigaction before;  ///< who had the signal when this took it last

/// The allocation whose pages or guard pages hold the address. With the big lock held.
const Allocation* owner_of(std::uintptr_t address) {
  const auto& allocations = world().allocations;
  if (is_reserved(reinterpret_cast<const void*>(address))) {
    return find_allocation(reinterpret_cast<const void*>(address));
  }
  // a mapping starts below its base, by at most its guard and slack
  auto candidate = allocations.upper_bound(address);
  for (int i = 0; i < 2; ++i) {
    if (candidate != allocations.end()) {
      const Allocation& a = candidate->second;
      if (!a.registered && a.map <= address && address < a.map + a.map_bytes) return &a;
    }
    if (candidate == allocations.begin()) break;
    --candidate;
  }
  return nullptr;
}

/// Who faulted.
void describe_thread(char* text, std::size_t size) {
  const Stream* const worker = this_thread().worker_of;
  if (worker == nullptr) {
    std::snprintf(text, size, "the host");
  } else {
    std::snprintf(text, size, "'%.100s' on stream %llu of device %d", worker->current.c_str(),
                  static_cast<unsigned long long>(worker->number), worker->device);
  }
}

void describe(std::uintptr_t address) {
  // others hold the lock for a moment; a fault inside the emulation may hold it itself, and then
  // there is no name
  bool is_locked = big_lock().try_lock();
  for (int tries = 0; !is_locked && tries < 200; ++tries) {
    usleep(1000);
    is_locked = big_lock().try_lock();
  }
  if (!is_locked) return;
  char text[512] = "";
  if (const Allocation* const a = owner_of(address)) {
    const long offset = static_cast<long>(address) - static_cast<long>(a->base);
    char memory[128];
    std::snprintf(memory, sizeof memory, "byte %ld of an allocation of %zu bytes%s%d", offset,
                  a->bytes, a->kind == Memory::device ? " of device " : ", pinned under device ",
                  a->device);
    char who[160];
    describe_thread(who, sizeof who);
    const bool outside = offset < 0 || static_cast<std::size_t>(offset) >= a->bytes;
    std::snprintf(text, sizeof text, "[emulation] fault: %s touched %s%s%s\n", who, memory,
                  a->freed          ? ", which was freed before by "
                  : outside         ? ", outside of it"
                  : a->is_read_only ? ", which may only be read"
                                    : ", to which it has no access",
                  a->freed ? a->freed_by.c_str() : "");
  } else if (is_reserved(reinterpret_cast<const void*>(address))) {
    char who[160];
    describe_thread(who, sizeof who);
    std::snprintf(text, sizeof text,
                  "[emulation] fault: %s touched a reserved address without memory\n", who);
  }
  big_lock().unlock();
  if (text[0] != '\0') (void)!write(STDERR_FILENO, text, std::strlen(text));
}

void die_by(int signal) {
  struct sigaction fall = {};
  fall.sa_handler = SIG_DFL;
  sigaction(signal, &fall, nullptr);
}

thread_local bool is_handling = false;

void handle(int signal, siginfo_t* info, void* context) {
  // a handler further down raised the signal again, or has this one as its own next: the access
  // runs again and ends the process
  if (is_handling) return die_by(signal);
  is_handling = true;
  describe(reinterpret_cast<std::uintptr_t>(info->si_addr));
  const struct sigaction& next = before;
  if ((next.sa_flags & SA_SIGINFO) != 0 && next.sa_sigaction != nullptr) {
    next.sa_sigaction(signal, info, context);
  } else if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN) {
    next.sa_handler(signal);
  } else {
    die_by(signal);
  }
  is_handling = false;
}

}  // namespace

void install_fault_handler() {
  struct sigaction action = {};
  struct sigaction found = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &found);
  if (found.sa_sigaction != handle) before = found;
}

}  // namespace emulation
