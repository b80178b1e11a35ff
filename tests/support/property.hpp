#pragma once

#include <rapidcheck.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <sstream>
#include <string>
#include <utility>

#include "sanitized.hpp"

namespace shardwise::test {

/// Runs a RapidCheck property within a Catch2 test case: what falsifies it fails the case, with the
/// shrunk counterexample and the line that repeats the run. Inside `property` use RC_ASSERT and its
/// kin: Catch2's assertions do not shrink. `cases` 0 is RapidCheck's own count (RC_PARAMS, or 100);
/// under a sanitizer a quarter.
template <class Property>
void check_property(const std::string& name, Property&& property, int cases = 0) {
  auto parameters = rc::detail::configuration().testParams;
  if (cases > 0) parameters.maxSuccess = cases;
  if (sanitized) parameters.maxSuccess = std::max(parameters.maxSuccess / 4, 10);
  rc::detail::TestMetadata metadata;
  metadata.id = name;
  metadata.description = name;
  const auto result =
      rc::detail::checkTestable(std::forward<Property>(property), metadata, parameters);
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  INFO("property: " << name);
  INFO(text.str());
  INFO("repeat with: RC_PARAMS=\"seed=" << parameters.seed
                                        << " max_success=" << parameters.maxSuccess << '"');
  CHECK(result.template is<rc::detail::SuccessResult>());
}

}  // namespace shardwise::test
