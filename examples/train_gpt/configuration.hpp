#pragma once

#include <functional>
#include <string_view>

#include "options.hpp"

namespace train_gpt {

/// Reads the file that the options name: what was not given on the command line becomes the file's,
/// where it says so, and options.strategy_of_file all that it says of the strategy.
/// options.effective is the text that says what holds, and where it comes from. `given` tells
/// whether an option ("--ranks") is on the command line: those have the last word.
/// shardwise::ConfigError where the file is refused; std::invalid_argument where it asks for what
/// this trainer does not have.
void apply_configuration(Options& options, const std::function<bool(std::string_view)>& given);

}  // namespace train_gpt
