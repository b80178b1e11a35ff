#include "nccl_model.hpp"

#include <cstdlib>

#include "internal.hpp"

namespace emulation {

namespace {

struct Model {
  double bytes_per_us = 50e3;
  double latency_us = 5;
  bool symmetric = true;
  bool parallel = false;
  Fault fault = Fault::none;
  int fault_rank = 0;
  std::uint64_t fault_number = 0;
  std::string fault_communicator;
};

// Guarded by big_lock() where it is written; operations of communicators made before may see
// either.
Model& model() {
  static auto* const values = new Model;
  return *values;
}

double positive(const char* name, double otherwise) {
  const std::string text = option(name, std::string_view());
  if (text.empty()) {
    return otherwise;
  }
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (*end != '\0' || !(value > 0)) {
    fatal("option %s: expected a number above 0, found '%s'", name, text.c_str());
  }
  return value;
}

void parse_fault(const std::string& text, Model& into) {
  into.fault = Fault::none;
  if (text.empty()) {
    return;
  }
  const auto fail = [&] {
    fatal("option nccl_fault: expected fail|lose|die:RANK:NUMBER[:COMMUNICATOR], found '%s'",
          text.c_str());
  };
  const std::size_t kind = text.find(':');
  if (kind == std::string::npos) {
    fail();
  }
  const std::string word = text.substr(0, kind);
  char* end = nullptr;
  into.fault_rank = static_cast<int>(std::strtol(text.c_str() + kind + 1, &end, 10));
  if (*end != ':') {
    fail();
  }
  into.fault_number = std::strtoull(end + 1, &end, 10);
  if (*end != '\0' && *end != ':') {
    fail();
  }
  into.fault_communicator = *end == ':' ? end + 1 : "";
  if (word == "fail") {
    into.fault = Fault::fail;
  } else if (word == "lose") {
    into.fault = Fault::lose;
  } else if (word == "die") {
    into.fault = Fault::die;
  } else {
    fail();
  }
}

}  // namespace

void read_nccl_options() {
  Model read;
  read.bytes_per_us = positive("link_gbps", 50) * 1e3;
  read.latency_us = positive("link_us", 5);
  read.symmetric = option("nccl_symmetric", 1) != 0;
  read.parallel = option("nccl_parallel", 0) != 0;
  parse_fault(option("nccl_fault", std::string_view()), read);
  const Guard guard(big_lock());
  model() = read;
}

double duration(const Call& call, int ranks) {
  return model().latency_us +
         static_cast<double>(bytes_on_link(call, ranks)) / model().bytes_per_us;
}

bool symmetric_supported() { return model().symmetric; }

bool launches_serialised() { return !model().parallel; }

Fault fault_of(int rank, std::uint64_t number, const std::string& communicator) {
  const Guard guard(big_lock());
  const Model& values = model();
  const bool meant =
      values.fault != Fault::none && values.fault_rank == rank && values.fault_number == number &&
      (values.fault_communicator.empty() || values.fault_communicator == communicator);
  return meant ? values.fault : Fault::none;
}

}  // namespace emulation
