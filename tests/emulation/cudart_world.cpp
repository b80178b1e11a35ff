#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "world.hpp"

namespace emulation {
namespace {

void print(const char* kind, const char* format, std::va_list arguments) {
  char text[2048];
  std::vsnprintf(text, sizeof text, format, arguments);
  // one call: lines of several threads do not mix
  std::fprintf(stderr, "[emulation] %s: %s\n", kind, text);
}

std::string environment_name(std::string_view name) {
  std::string result = "SHARDWISE_EMULATION_";
  for (const char c : name) {
    result += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return result;
}

/// "name:k:status", separated by commas.
std::vector<Fault> parse_faults(const std::string& text) {
  std::vector<Fault> faults;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    char name[128] = "";
    Fault fault;
    if (std::sscanf(part.c_str(), "%127[^:]:%ld:%d", name, &fault.countdown, &fault.status) != 3 ||
        fault.countdown < 1) {
      fatal("option fail: expected name:k:status with k >= 1, found '%s'", part.c_str());
    }
    fault.name = name;
    faults.push_back(fault);
    begin = end + 1;
  }
  return faults;
}

int count_down(std::vector<Fault>& faults, std::string_view name, bool prefix) {
  for (Fault& fault : faults) {
    const bool matches = prefix ? name.substr(0, fault.name.size()) == fault.name
                                : fault.name == "*" || name == fault.name;
    if (matches && fault.countdown > 0 && --fault.countdown == 0) return fault.status;
  }
  return 0;
}

__attribute__((constructor)) void start() {
  (void)world();
  (void)is_reserved(nullptr);  // its table is there before a signal's handler looks into it
  install_access();
  install_fault_handler();
}

/// What the program did not give back. Runs after the program's own static destructors.
__attribute__((destructor)) void finish() {
  World& w = world();
  std::size_t streams = 0, events = 0, allocations = 0, ranges = 0;
  std::string first, leaks;
  {
    const Guard guard(w.lock);
    for (const Stream* stream : w.streams) streams += stream->legacy ? 0 : 1;
    events = w.events.size();
    for (const auto& [base, allocation] : w.allocations) {
      if (allocation.freed || allocation.is_mapping) continue;
      if (allocations++ == 0) first = std::to_string(allocation.bytes);
    }
    ranges = virtual_leaks();
    leaks = w.options.leaks;
  }
  if (leaks != "off" && ranges > 0) {
    (leaks == "error" ? report : note)(
        "at exit %zu reserved address ranges and pieces of memory for them are not given back",
        ranges);
  }
  if (leaks != "off" && streams + events + allocations > 0) {
    (leaks == "error" ? report : note)(
        "at exit %zu streams, %zu events and %zu allocations (the first of %s bytes) are not given "
        "back",
        streams, events, allocations, allocations > 0 ? first.c_str() : "0");
  }
  const int errors = w.errors.load();
  if (errors == 0) return;
  std::fprintf(stderr, "[emulation] %d error(s) were reported: status 66\n", errors);
  std::fflush(nullptr);
  _exit(66);
}

}  // namespace

World::World() { read_options(); }

void World::read_options() {
  const auto look_up = [this](const char* name) -> const char* {
    const auto found = set_options.find(std::string_view(name));
    if (found != set_options.end()) return found->second.c_str();
    return std::getenv(environment_name(name).c_str());
  };
  const auto number = [&](const char* name, double otherwise) {
    const char* const text = look_up(name);
    if (text == nullptr) return otherwise;
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end != '\0' || value < 0) {
      fatal("option %s: expected a number, found '%s'", name, text);
    }
    return value;
  };
  const auto word = [&](const char* name, std::initializer_list<const char*> words) {
    const char* const text = look_up(name);
    if (text == nullptr) return std::string(*words.begin());
    if (std::find(words.begin(), words.end(), std::string_view(text)) == words.end()) {
      fatal("option %s: '%s' is none of its words (the first is '%s')", name, text, *words.begin());
    }
    return std::string(text);
  };
  if (devices.empty()) devices.resize(static_cast<std::size_t>(number("devices", 8)));
  options.jitter_us = static_cast<int>(number("jitter_us", 0));
  options.seed = static_cast<std::uint64_t>(number("seed", 1));
  options.watchdog_ms = std::max(1, static_cast<int>(number("watchdog_ms", 10000)));
  options.device_bytes = static_cast<std::size_t>(number("device_mb", 1024)) << 20;
  options.legacy_stream_is_error = word("legacy_stream", {"allow", "error"}) == "error";
  options.pageable_is_error = word("pageable", {"allow", "error"}) == "error";
  options.unrecorded_wait_is_error = word("unrecorded_wait", {"note", "error"}) == "error";
  options.leaks = word("leaks", {"note", "off", "error"});
  options.kernel_us = number("kernel_us", 5);
  options.threads_per_us = number("threads_per_us", 100e3);
  options.copy_bytes_per_us = number("copy_bytes_per_us", 25e3);
  options.memory_bytes_per_us = number("memory_bytes_per_us", 1e6);
  const auto faults = [&](const char* name, std::vector<Fault>& into) {
    const char* const text = look_up(name);
    into = parse_faults(text == nullptr ? "" : text);
  };
  faults("fail", call_faults);
  faults("fail_task", task_faults);
}

World& world() {
  static World* const instance = new World;  // never destroyed: workers may outlive the program
  return *instance;
}

Lock& big_lock() { return world().lock; }
Condition& changed() { return world().changed; }
int watchdog() { return world().options.watchdog_ms; }

ThreadState& this_thread() {
  static thread_local ThreadState state;
  return state;
}

cudaError_t status(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) this_thread().last_error = error;
  return error;
}

cudaError_t entry(const char* api) {
  World& w = world();
  const Guard guard(w.lock);
  if (const int injected = count_down(w.call_faults, api, false); injected != 0) {
    return status(static_cast<cudaError_t>(injected));
  }
  if (w.devices.empty()) return status(cudaErrorNoDevice);
  return device_status(this_thread().device);
}

cudaError_t device_status(int device) {
  return status(world().devices.at(static_cast<std::size_t>(device)).sticky);
}

int injected_failure(const char* api) {
  const Guard guard(big_lock());
  return count_down(world().call_faults, api, false);
}

int injected_task_failure(const std::string& label) {
  return count_down(world().task_faults, label, true);
}

void fatal(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  print("fatal", format, arguments);
  va_end(arguments);
  std::fflush(nullptr);
  // not _exit: ThreadSanitizer would complain that its accesses are ignored under a held lock
  syscall(SYS_exit_group, 66);
  __builtin_unreachable();
}

void report(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  print("error", format, arguments);
  va_end(arguments);
  world().errors.fetch_add(1);
}

void note(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  print("note", format, arguments);
  va_end(arguments);
  world().notes.fetch_add(1);
}

std::string option(std::string_view name, std::string_view otherwise) {
  World& w = world();
  const Guard guard(w.lock);
  const auto found = w.set_options.find(name);
  if (found != w.set_options.end()) return found->second;
  const char* const text = std::getenv(environment_name(name).c_str());
  return text != nullptr ? std::string(text) : std::string(otherwise);
}

long option(std::string_view name, long otherwise) {
  const std::string text = option(name, std::string_view());
  if (text.empty()) return otherwise;
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (*end != '\0') {
    fatal("option %s: expected a whole number, found '%s'", std::string(name).c_str(),
          text.c_str());
  }
  return value;
}

int Patience::slice() { return std::clamp(watchdog() / 4, 1, 200); }

namespace {
/// By all threads of the process together.
std::chrono::nanoseconds computed() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}
}  // namespace

void Patience::restart() {
  progress_ = world().progress;
  computed_ = computed();
  last_ = std::chrono::steady_clock::now();
}

void Patience::check() {
  const auto now = std::chrono::steady_clock::now();
  const std::chrono::milliseconds limit(watchdog());
  if (now - begin_ < 10 * limit) {
    if (world().progress != progress_) return restart();
    if (now - last_ < limit) return;
    // a long kernel, not a deadlock: what only polls computes far less
    if (computed() - computed_ > (now - last_) / 4) return restart();
  }
  std::fprintf(stderr, "[emulation] watchdog: %s, for %lld ms\n", what_.c_str(),
               static_cast<long long>(
                   std::chrono::duration_cast<std::chrono::milliseconds>(now - begin_).count()));
  dump_state();
  fatal("deadlock: no task ended for %d ms", watchdog());
}

void dump_state() {
  for (const Stream* stream : world().streams) {
    if (!stream->running && stream->queue.empty()) continue;
    std::fprintf(stderr, "[emulation]   device %d stream %llu: %s '%s'%s%s, %zu queued%s%s\n",
                 stream->device, static_cast<unsigned long long>(stream->number),
                 stream->running ? "runs" : "is between tasks", stream->current.c_str(),
                 stream->blocked.empty() ? "" : ", waits for ", stream->blocked.c_str(),
                 stream->queue.size(), stream->queue.empty() ? "" : ", next ",
                 stream->queue.empty() ? "" : stream->queue.front()->label.c_str());
  }
}

}  // namespace emulation
