#pragma once

#include <string>

#include "comparison.hpp"

namespace compare_strategies {

/// For a terminal: the table, what it means, the choice, what tuning gave.
[[nodiscard]] std::string table(const Comparison& comparison);

/// As JSON; bytes have the names of train_gpt's report.
[[nodiscard]] std::string to_json(const Comparison& comparison);

/// One HTML file that needs nothing else; follows the reader's light or dark scheme.
[[nodiscard]] std::string to_html(const Comparison& comparison);

/// The configuration to take, with the reason as a comment.
[[nodiscard]] std::string config_of(const Comparison& comparison);

}  // namespace compare_strategies
