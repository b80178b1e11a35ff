#include "world.hpp"

namespace emulation {
void access_start_worker(int) {}
void access_begin_task(int) {}
void access_end_task(int) {}
void access_protect(const Allocation&) {}
void access_open(const Allocation&) {}
const char* access_kind() { return "none"; }
void all_device_access(bool) {}
void install_fault_handler() {}
}  // namespace emulation
