#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../comm/collectives.hpp"
#include "../comm/communicator.hpp"
#include "../core/error.hpp"
#include "../core/format.hpp"
#include "configuration.hpp"
#include "field.hpp"
#include "load.hpp"
#include "loaded_configuration.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Every rank's text, on all ranks.
[[nodiscard]] inline std::vector<std::string> gather_texts(Communicator& comm,
                                                           std::string_view text,
                                                           std::string_view name) {
  const std::size_t ranks = ranks_of(comm);
  const std::int64_t mine[] = {static_cast<std::int64_t>(text.size())};
  std::vector<std::int64_t> sizes(ranks);
  all_gather(comm, mine, sizes, {.name = name});
  const auto longest = static_cast<std::size_t>(*std::max_element(sizes.begin(), sizes.end()));
  std::vector<std::string> texts(ranks);
  if (longest == 0) return texts;
  std::vector<std::uint8_t> part(longest);
  std::copy(text.begin(), text.end(), part.begin());
  std::vector<std::uint8_t> all(longest * ranks);
  all_gather(comm, part, all, {.name = name});
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(rank * longest);
    texts[rank].assign(begin, begin + static_cast<std::ptrdiff_t>(sizes[rank]));
  }
  return texts;
}

}  // namespace detail

/// Collective: returns where all ranks have equal values. Else ConfigError on all of them, the same
/// one: it names the first field that differs, with the values of rank 0 and of the first rank that
/// has another, and where both come from. Hashes travel; texts only where they differ.
inline void agree(Communicator& comm, const LoadedConfiguration& loaded,
                  std::string_view name = "configuration") {
  const std::size_t ranks = detail::ranks_of(comm);
  const std::int64_t mine[] = {static_cast<std::int64_t>(loaded.hash())};
  std::vector<std::int64_t> hashes(ranks);
  all_gather(comm, mine, hashes, {.name = name});
  if (std::all_of(hashes.begin(), hashes.end(),
                  [&](std::int64_t hash) { return hash == hashes[0]; })) {
    return;
  }
  for (std::size_t i = 0; i < config_field_count; ++i) {
    const auto field = static_cast<ConfigField>(i);
    const std::vector<std::string> values =
        detail::gather_texts(comm, text_of(loaded.values(), field), name);
    const auto other = std::find_if(values.begin(), values.end(),
                                    [&](const std::string& value) { return value != values[0]; });
    if (other == values.end()) continue;
    const auto rank = static_cast<std::size_t>(other - values.begin());
    const std::vector<std::string> sources = detail::gather_texts(comm, loaded.source(field), name);
    const auto shown = [](const std::string& text) { return text.empty() ? "not set" : text; };
    raise<ConfigError>(
        "the ranks' configurations differ: {} is {} on rank 0 ({}) and {} on rank {} ({}); start "
        "all ranks with one file and equal options",
        name_of(field), shown(values[0]), sources[0], shown(*other), rank, sources[rank]);
  }
}

/// Collective: each rank reads its file, and all agree. Where a rank cannot, or its file is for
/// another number of ranks, all throw the ConfigError of the first one. The hint `world` is the
/// communicator's size, if none is given.
[[nodiscard]] inline LoadedConfiguration load_config(Communicator& comm, const std::string& file,
                                                     Hints hints = {},
                                                     const ConfigOptions& options = {}) {
  if (!hints.world) hints.world = detail::ranks_of(comm);
  std::optional<LoadedConfiguration> loaded;
  std::string failure;
  try {
    loaded = load_config(file, hints, options);
    const std::optional<std::size_t>& ranks = loaded->values().ranks;
    if (ranks && *ranks != detail::ranks_of(comm)) {
      raise<ConfigError>("{}: it is for {} ranks, and there are {}; start so many, or change it",
                         loaded->source(ConfigField::ranks), *ranks, comm.size());
    }
  } catch (const ConfigError& error) {
    failure = error.what();
    if (failure.empty()) failure = "the configuration cannot be read";
  }
  const std::vector<std::string> failures =
      detail::gather_texts(comm, failure, "load configuration");
  for (std::size_t rank = 0; rank < failures.size(); ++rank) {
    if (failures[rank].empty()) continue;
    raise<ConfigError>("on rank {}: {}", rank, failures[rank]);
  }
  agree(comm, *loaded);
  return *std::move(loaded);
}

}  // namespace shardwise::inline v0_1
