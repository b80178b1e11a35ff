#include "report.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "random.hpp"

namespace train_gpt {
namespace {

// Members in the order in which they are written here.
using Json = nlohmann::ordered_json;

Json json_of(const Bytes& bytes) {
  return {{"parameters", bytes.parameters},
          {"gradients", bytes.gradients},
          {"optimizer_state", bytes.optimizer_state},
          {"slots", bytes.slots},
          {"peak", bytes.peak}};
}

Json json_of(const Traffic& traffic) {
  return {{"all_gather", traffic.all_gather.bytes},
          {"reduce_scatter", traffic.reduce_scatter.bytes},
          {"all_reduce", traffic.all_reduce.bytes},
          {"calls",
           {{"all_gather", traffic.all_gather.calls},
            {"reduce_scatter", traffic.reduce_scatter.calls},
            {"all_reduce", traffic.all_reduce.calls}}}};
}

// The first step also touches memory for the first time.
double median_after_first(std::vector<double> values) {
  if (values.size() > 1) values.erase(values.begin());
  if (values.empty()) return 0;
  const std::size_t middle = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double milliseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace

std::string to_json(const Report& report) {
  const Json json = {{"world", report.world},
                     {"strategy", report.strategy},
                     {"residency", report.residency},
                     {"parameters", report.parameters},
                     {"loss", report.loss},
                     {"grad_norm", report.grad_norm},
                     {"step_ms", report.step_ms},
                     {"compute_ms", report.compute_ms},
                     {"wait_ms", report.wait_ms},
                     {"bytes_per_rank", json_of(report.bytes_per_rank)},
                     {"planned_bytes_per_rank", json_of(report.planned_bytes_per_rank)},
                     {"traffic_per_step", json_of(report.traffic_per_step)},
                     {"bytes_moved_per_step", report.bytes_moved_per_step},
                     {"scalars_per_step", report.scalars_per_step},
                     {"parameters_hash", report.parameters_hash}};
  return json.dump(2) + '\n';
}

void write_json(const Report& report, const std::string& file) {
  std::ofstream stream(file, std::ios::binary);
  stream << to_json(report) << std::flush;
  if (!stream) throw std::runtime_error(fmt::format("cannot write the report {}", file));
}

std::string summary(const Report& report) {
  const std::string_view other_bits =
      report.same_bits ? ""
                       : "groups that are no power of two add in an order of their own: these are "
                         "not the bits of other strategies\n";
  if (report.loss.empty()) {
    return fmt::format("{}, world {}: all steps are done already, parameters {}\n", report.strategy,
                       report.world, report.parameters_hash);
  }
  const std::string_view residency = report.residency == "shared" ? " (shared)" : "";
  return fmt::format(
      "{}{}, world {}: {} parameters, {} steps of {:.1f} ms, peak {:.2f} MiB per rank\n"
      "loss {:.4f} -> {:.4f}, parameters {}\n{}",
      report.strategy, residency, report.world, report.parameters, report.loss.size(),
      report.step_ms, static_cast<double>(report.bytes_per_rank.peak) / (1 << 20),
      report.loss.front(), report.loss.back(), report.parameters_hash, other_bits);
}

Recorder::Recorder(const Options& options, bool speaks)
    : options_(options),
      speaks_(speaks && !options.quiet && isatty(STDOUT_FILENO) == 1),
      start_(Clock::now()) {
  for (auto* values : {&report_.loss, &report_.grad_norm, &step_ms_, &compute_ms_, &wait_ms_}) {
    values->reserve(options.steps);  // nothing is allocated in a step
  }
}

Report Recorder::finish() {
  report_.step_ms = median_after_first(step_ms_);
  report_.compute_ms = median_after_first(compute_ms_);
  report_.wait_ms = median_after_first(wait_ms_);
  if (speaks_ && !step_ms_.empty()) std::fputc('\n', stdout);
  return std::move(report_);
}

void Recorder::begin_step() { step_start_ = Clock::now(); }

void Recorder::end_compute(std::chrono::nanoseconds waited) {
  compute_ms_.push_back(milliseconds(Clock::now() - step_start_) - milliseconds(waited));
}

void Recorder::end_step(double loss, double grad_norm, std::chrono::nanoseconds waited) {
  report_.loss.push_back(loss);
  report_.grad_norm.push_back(grad_norm);
  step_ms_.push_back(milliseconds(Clock::now() - step_start_));
  wait_ms_.push_back(milliseconds(waited));
  if (speaks_) show_progress();
}

void Recorder::show_progress() const {
  const double seconds = milliseconds(Clock::now() - start_) / 1000;
  const double done = static_cast<double>(step_ms_.size());
  const double left = static_cast<double>(options_.steps) - done;
  const double tokens = static_cast<double>(options_.batch * options_.sequence);
  fmt::print("\rstep {}/{}  loss {:.4f}  {:.0f} tokens/s  {:.0f} s left ", step_ms_.size(),
             options_.steps, report_.loss.back(), tokens * done / seconds, seconds / done * left);
  std::fflush(stdout);
}

void ParametersHash::add(std::span<const float> elements) {
  for (const std::byte byte : std::as_bytes(elements)) {
    state_ = (state_ ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3u;
  }
  if (kept_ != nullptr) kept_->insert(kept_->end(), elements.begin(), elements.end());
}

std::string ParametersHash::hex() const { return fmt::format("{:016x}", state_); }

std::string generate(
    const Options& options,
    const std::function<std::span<const float>(std::span<const std::uint8_t>)>& logits) {
  constexpr std::size_t vocabulary = 256;
  constexpr double temperature = 0.8;
  std::string text = "\n";
  std::vector<std::uint8_t> window(options.sequence);
  std::vector<double> weights(vocabulary);
  while (text.size() <= options.sample) {
    const std::size_t length = std::min(text.size(), window.size());
    std::fill(
        std::copy(text.end() - static_cast<std::ptrdiff_t>(length), text.end(), window.begin()),
        window.end(), std::uint8_t{0});
    const std::span<const float> row =
        logits(window).subspan((length - 1) * vocabulary, vocabulary);
    const double largest = static_cast<double>(*std::max_element(row.begin(), row.end()));
    double sum = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) {
      weights[i] = std::exp((static_cast<double>(row[i]) - largest) / temperature);
      sum += weights[i];
    }
    double drawn = sum * to_unit_interval(random_bits(options.seed, key_of("sample"), text.size()));
    std::size_t next = 0;
    while (next + 1 < vocabulary && (drawn -= weights[next]) > 0) ++next;
    text.push_back(static_cast<char>(next));
  }
  return text.substr(1);
}

}  // namespace train_gpt
