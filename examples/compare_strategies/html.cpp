#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "output.hpp"

namespace compare_strategies {
namespace {

constexpr std::string_view style = R"(<style>
:root{color-scheme:light dark;--ink:#1d2430;--dim:#5b6675;--page:#fbfbf9;--line:#d8dbe0;
--a:#2f6fab;--b:#c9772b;--c:#3f8f63;--d:#8c6bb1}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ea;--dim:#9aa5b1;--page:#16191d;--line:#363c44;
--a:#6ba8de;--b:#e59b58;--c:#74c295;--d:#b79be0}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:68rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}p.say{font-size:1.1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td{white-space:nowrap}td,th{text-align:right;padding:.25rem .5rem;border-bottom:1px solid var(--line)}
td:first-child,th:first-child{text-align:left}tr.taken td{font-weight:600}
svg{width:100%;height:auto}text{fill:var(--ink);font:12px system-ui,sans-serif}
text.dim{fill:var(--dim)}.key i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
.scroll{overflow-x:auto}
</style>)";

std::string escape(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else if (c == '>') {
      result += "&gt;";
    } else {
      result += c;
    }
  }
  return result;
}

constexpr double left = 130, right = 130, width = 820, row_height = 30;

std::string bar(double x, double y, double length, double height, const char* color,
                const std::string& title) {
  return fmt::format(
      R"svg(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="var(--{})"><title>{}</title></rect>)svg",
      x, y, std::max(0.0, length), height, color, escape(title));
}

std::string label(double x, double y, std::string_view text, std::string_view more = {}) {
  return fmt::format(R"(<text x="{:.1f}" y="{:.1f}" {}>{}</text>)", x, y, more, escape(text));
}

std::string svg(std::size_t rows, std::string_view name, const std::string& inside) {
  return fmt::format(R"(<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>)",
                     width, static_cast<double>(rows) * row_height + 6, name, inside);
}

std::string memory_plot(const Comparison& comparison) {
  double most = 1;
  for (const Trial& trial : comparison.trials) {
    most = std::max(most, static_cast<double>(trial.report.bytes_per_rank.peak));
  }
  std::string inside;
  double y = 4;
  for (const Trial& trial : comparison.trials) {
    const auto& held = trial.report.bytes_per_rank;
    inside += label(0, y + 16, trial.name);
    double x = left;
    const std::array<std::pair<const char*, std::size_t>, 4> kinds{
        {{"parameters", held.parameters},
         {"gradients", held.gradients},
         {"optimizer state", held.optimizer_state},
         {"slots", held.slots}}};
    const char* colors[] = {"a", "b", "c", "d"};
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      const double length = static_cast<double>(kinds[i].second) / most * (width - left - right);
      inside += bar(x, y, length, row_height - 10, colors[i],
                    fmt::format("{}: {:.0f} KiB", kinds[i].first,
                                static_cast<double>(kinds[i].second) / 1024));
      x += length;
    }
    inside += label(x + 6, y + 16, fmt::format("{:.0f} KiB", static_cast<double>(held.peak) / 1024),
                    R"(class="dim")");
    y += row_height;
  }
  return svg(comparison.trials.size(), "memory per rank by kind", inside);
}

std::string time_plot(const Comparison& comparison) {
  double most = 1e-9;
  for (const Trial& trial : comparison.trials) {
    most = std::max({most, trial.measured_ms(), trial.predicted_ms()});
  }
  const double scale = (width - left - right) / most;
  std::string inside;
  double y = 4;
  for (const Trial& trial : comparison.trials) {
    inside += label(0, y + 16, trial.name);
    inside += bar(left, y, trial.measured_ms() * scale, 10, "a",
                  fmt::format("measured: {:.2f} ms", trial.measured_ms()));
    inside += bar(left, y + 11, trial.predicted_ms() * scale, 10, "b",
                  fmt::format("predicted: {:.2f} ms", trial.predicted_ms()));
    inside += label(left + std::max(trial.measured_ms(), trial.predicted_ms()) * scale + 6, y + 16,
                    fmt::format("{:.1f} / {:.1f} ms", trial.measured_ms(), trial.predicted_ms()),
                    R"(class="dim")");
    y += row_height;
  }
  return svg(comparison.trials.size(), "step time, measured and predicted", inside);
}

std::string rows(const Comparison& comparison) {
  std::string text =
      "<div class=scroll><table><tr><th>strategy<th>parameters<th>gradients<th>optimizer state"
      "<th>slots<th>peak, KiB<th>sent, KiB/step<th>step, ms<th>predicted<th>error<th>last "
      "loss</tr>";
  const auto kib = [](std::size_t bytes) { return static_cast<double>(bytes) / 1024; };
  for (std::size_t i = 0; i < comparison.trials.size(); ++i) {
    const Trial& trial = comparison.trials[i];
    const auto& held = trial.report.bytes_per_rank;
    text += fmt::format(
        "<tr{}><td>{}<td>{:.0f}<td>{:.0f}<td>{:.0f}<td>{:.0f}<td>{:.0f}<td>{:.0f}<td>{:.1f}<td>{:."
        "1f}"
        "<td>{:+.0f} %<td>{:.5f}</tr>",
        i == comparison.chosen ? " class=taken" : "", trial.name, kib(held.parameters),
        kib(held.gradients), kib(held.optimizer_state), kib(held.slots), kib(held.peak),
        kib(trial.sent()), trial.measured_ms(), trial.predicted_ms(),
        100 * (trial.predicted_ms() / trial.measured_ms() - 1), trial.report.loss.back());
  }
  return text + "</table></div>";
}

std::string tuning(const Comparison& comparison) {
  if (comparison.untuned_ms == 0) return {};
  std::string text = fmt::format(
      "<h2>Tuning</h2><p>{:.1f} ms before, {:.1f} ms after; rounds of the same differ by {:.1f} "
      "ms.</p><table><tr><th>setting<th>value"
      "<th>step, ms<th>change<th>predicted</tr>",
      comparison.untuned_ms, comparison.tuned_ms, comparison.noise_ms);
  for (const TunedValue& tried : comparison.tuning) {
    text += fmt::format("<tr{}><td>{}<td>{}<td>{:.1f}<td>{:+.1f} %<td>{:.1f}</tr>",
                        tried.taken ? " class=taken" : "", tried.setting, tried.value,
                        tried.measured_ms, 100 * (tried.measured_ms / comparison.untuned_ms - 1),
                        tried.predicted_ms);
  }
  return text + "</table>";
}

}  // namespace

std::string to_html(const Comparison& comparison) {
  const auto& options = comparison.options;
  std::string text =
      "<!doctype html><html lang=en><meta charset=utf-8>"
      "<meta name=viewport content=\"width=device-width,initial-scale=1\">"
      "<title>Strategies compared</title>";
  text += style;
  text += fmt::format(
      "<h1>Strategies compared</h1><p class=say>Take <b>{}</b>: {}.</p>"
      "<p>GPT of {} parameters, {} ranks ({}), leases {}, {} steps. {} Planned bytes {}.</p>",
      comparison.trials[comparison.chosen].name, escape(comparison.reason),
      comparison.trials[0].report.parameters, options.ranks, options.backend, options.lease,
      options.steps,
      comparison.same_bits() ? "Every strategy gave the same bits."
                             : "Strategies gave DIFFERENT bits, which is a bug.",
      comparison.planned_right() ? "equal the held ones" : "DIFFER from the held ones");
  text +=
      "<h2>Memory per rank</h2><p class=key><i style=\"background:var(--a)\"></i>parameters"
      "<i style=\"background:var(--b)\"></i>gradients<i "
      "style=\"background:var(--c)\"></i>optimizer "
      "state<i style=\"background:var(--d)\"></i>slots</p>";
  text += memory_plot(comparison);
  text +=
      "<h2>Step time</h2><p class=key><i style=\"background:var(--a)\"></i>measured"
      "<i style=\"background:var(--b)\"></i>predicted</p>";
  text += time_plot(comparison);
  text += "<h2>Numbers</h2>" + rows(comparison) + tuning(comparison);
  return text + "</html>\n";
}

}  // namespace compare_strategies
