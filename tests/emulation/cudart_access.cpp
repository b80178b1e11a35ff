#include <sys/mman.h>

#include <algorithm>

#include "world.hpp"

// The host cannot touch a device's memory. Two ways to say so to the CPU:
// keys: pages carry a protection key of their device; a task's thread holds that of its device (and
//   of enabled peers), a host thread none. Exact.
// lockout: where the CPU has no keys, pages are inaccessible while no task of their device runs.
//   What the host touches meanwhile passes, and each task costs two calls of mprotect an
//   allocation.
namespace emulation {
namespace {

enum class Kind { none, keys, lockout };

struct Access {
  Lock lock;  ///< taken with or without the big lock held, never the other way round
  Kind kind = Kind::none;
  std::vector<int> keys;  ///< of device d: keys[d % size]
  std::vector<int> open;  ///< lockout: tasks that have the device open
  std::vector<std::map<std::uintptr_t, std::size_t>> pages;  ///< lockout: of each device

  Access() {
    const std::string wish = option("host_access", std::string_view("allow"));
    const std::size_t devices = world().devices.size();
    if (wish == "allow") return;
    if (wish != "fault" && wish != "keys" && wish != "lockout") {
      fatal("option host_access: expected allow, fault, keys or lockout, found '%s'", wish.c_str());
    }
    if (wish != "lockout") {
      while (keys.size() < devices) {
        const int key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
        if (key < 0) break;
        keys.push_back(key);
      }
      if (!keys.empty()) kind = Kind::keys;
    }
    if (kind == Kind::none && wish == "keys") {
      note("host_access: the CPU has no protection keys; the host may touch device memory");
      return;
    }
    if (kind == Kind::none) {
      kind = Kind::lockout;
      open.resize(devices);
      pages.resize(devices);
    }
  }

  void protect(std::size_t device, int protection) const {
    for (const auto& [begin, bytes] : pages[device]) {
      mprotect(reinterpret_cast<void*>(begin), bytes, protection);
    }
  }
};

Access& access() {
  static Access* const instance = new Access;
  return *instance;
}

std::vector<std::size_t> reachable(int device) {
  const Guard guard(big_lock());
  std::vector<std::size_t> result{static_cast<std::size_t>(device)};
  for (const int peer : world().devices.at(static_cast<std::size_t>(device)).peers) {
    result.push_back(static_cast<std::size_t>(peer));
  }
  return result;
}

std::vector<std::size_t> all_devices() {
  std::vector<std::size_t> result(world().devices.size());
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = i;
  return result;
}

/// Gives the calling thread these keys and no other.
void hold_keys(const std::vector<std::size_t>& devices) {
  const Access& a = access();
  for (std::size_t k = 0; k < a.keys.size(); ++k) {
    const bool held = std::any_of(devices.begin(), devices.end(),
                                  [&](std::size_t d) { return d % a.keys.size() == k; });
    pkey_set(a.keys[k], held ? 0 : PKEY_DISABLE_ACCESS);
  }
}

void open_devices(const std::vector<std::size_t>& devices) {
  Access& a = access();
  const Guard guard(a.lock);
  for (const std::size_t d : devices) {
    if (a.open[d]++ == 0) a.protect(d, PROT_READ | PROT_WRITE);
  }
}

void close_devices(const std::vector<std::size_t>& devices) {
  Access& a = access();
  const Guard guard(a.lock);
  for (const std::size_t d : devices) {
    if (--a.open[d] == 0) a.protect(d, PROT_NONE);
  }
}

thread_local std::vector<std::size_t> opened;

}  // namespace

void access_begin_task(int device) {
  if (access().kind == Kind::keys) hold_keys(reachable(device));
  if (access().kind == Kind::lockout) {
    opened = reachable(device);
    open_devices(opened);
  }
}

void access_end_task() {
  if (access().kind == Kind::keys) hold_keys({});
  if (access().kind == Kind::lockout) close_devices(opened);
}

void all_device_access(bool on) {
  const Stream* const stream = this_thread().worker_of;
  if (access().kind == Kind::keys) {
    hold_keys(on                  ? all_devices()
              : stream != nullptr ? reachable(stream->device)
                                  : std::vector<std::size_t>());
  }
  if (access().kind == Kind::lockout) (on ? open_devices : close_devices)(all_devices());
}

void access_protect(const Allocation& a) {
  Access& state = access();
  void* const begin = reinterpret_cast<void*>(a.pages());
  const auto device = static_cast<std::size_t>(a.device);
  if (state.kind == Kind::keys) {
    pkey_mprotect(begin, a.page_bytes(), PROT_READ | PROT_WRITE,
                  state.keys[device % state.keys.size()]);
  }
  if (state.kind == Kind::lockout) {
    const Guard guard(state.lock);
    state.pages[device].emplace(a.pages(), a.page_bytes());
    if (state.open[device] == 0) mprotect(begin, a.page_bytes(), PROT_NONE);
  }
}

void access_open(const Allocation& a) {
  Access& state = access();
  void* const begin = reinterpret_cast<void*>(a.pages());
  if (a.kind != Memory::device) return;
  if (state.kind == Kind::keys) pkey_mprotect(begin, a.page_bytes(), PROT_READ | PROT_WRITE, 0);
  if (state.kind == Kind::lockout) {
    const Guard guard(state.lock);
    state.pages[static_cast<std::size_t>(a.device)].erase(a.pages());
    mprotect(begin, a.page_bytes(), PROT_READ | PROT_WRITE);
  }
}

const char* access_kind() {
  return access().kind == Kind::keys ? "keys" : access().kind == Kind::lockout ? "lockout" : "none";
}

void install_access() { (void)access(); }

}  // namespace emulation
