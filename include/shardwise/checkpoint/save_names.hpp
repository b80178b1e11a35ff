#pragma once

#include <algorithm>
#include <cerrno>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "checksum.hpp"
#include "file.hpp"
#include "file_system.hpp"

/// @file
/// A folder of saves, as rank 0 sees it:
///
///     latest                        name and id of the newest save
///     step-000100/manifest.json     what makes it a save: it is there when all else is
///     step-000100/rank-00000.safetensors ...
///     step-000120.1/...             step 120 a second time, after a run went back
///
/// Files are `<name>.partial` until they are whole. A directory without a manifest is what a dead
/// save, or a removal, has left.
namespace shardwise::inline v0_1::detail {

inline constexpr std::string_view manifest_name = "manifest.json";
inline constexpr std::string_view latest_name = "latest";

/// The directory of one save; in order of steps, then of attempts.
struct SaveName {
  std::uint64_t step = 0;
  std::uint64_t attempt = 0;  ///< so many of this step were there before

  [[nodiscard]] auto operator<=>(const SaveName&) const = default;

  [[nodiscard]] std::string text() const {
    const std::string name = format("step-{:06d}", step);
    return attempt == 0 ? name : name + format(".{}", attempt);
  }

  /// None where `name` is not what text() gives.
  [[nodiscard]] static std::optional<SaveName> parse(std::string_view name) {
    constexpr std::string_view prefix = "step-";
    if (!name.starts_with(prefix)) return std::nullopt;
    SaveName result;
    std::uint64_t* number = &result.step;
    std::size_t digits = 0;
    for (const char c : name.substr(prefix.size())) {
      if (c == '.' && number == &result.step && digits > 0) {
        number = &result.attempt;
        digits = 0;
        continue;
      }
      ++digits;
      if (c < '0' || c > '9' || (number == &result.attempt && digits > 18) ||
          __builtin_mul_overflow(*number, std::uint64_t{10}, number) ||
          __builtin_add_overflow(*number, static_cast<std::uint64_t>(c - '0'), number)) {
        return std::nullopt;
      }
    }
    return result.text() == name ? std::optional(result) : std::nullopt;
  }
};

[[nodiscard]] inline std::string join(const std::string& folder, std::string_view name) {
  std::string path = folder;
  if (!path.ends_with('/')) path += '/';
  return path += name;
}

/// The directory that holds `path`.
[[nodiscard]] inline std::string parent_of(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Makes `path` and what is missing above it, for good.
inline void make_directories(FileSystem& files, const std::string& path) {
  auto status = files.make_directory(path);
  const std::string parent = parent_of(path);
  if (status == -ENOENT && parent != path && parent != ".") {
    make_directories(files, parent);
    status = files.make_directory(path);
  }
  const bool was_there = status == -EEXIST;
  if (!was_there) expect_file(status, "cannot make the directory", path);
  // Also where it was there: who made it may not have come to that.
  const auto synced = files.sync_directory(parent);
  if (was_there && synced == -EACCES) return;  // not ours to read, so it was not a run's to make
  expect_file(synced, "fsync of the directory failed", parent);
}

/// What the pointer says.
struct Latest {
  std::string name;
  std::string save;  ///< its id
};

/// What is in the folder.
struct SaveList {
  std::vector<SaveName> saves;      ///< with a manifest, in order
  std::vector<SaveName> leftovers;  ///< without
  std::optional<Latest> latest;
  std::string problem;  ///< why there is no pointer where there should be one
  bool has_partial_latest = false;
};

/// The pointer's text: name, id and a checksum of both.
[[nodiscard]] inline std::string format_latest(const Latest& latest) {
  const std::string text = latest.name + ' ' + latest.save;
  return text + ' ' + hex(checksum(text)) + '\n';
}

inline void read_latest(FileSystem& files, const std::string& folder, SaveList& list) {
  const std::string path = join(folder, latest_name);
  try {
    const std::string text = read_whole(files, path, 4096);
    const std::size_t space = std::min(text.find(' '), text.size());
    Latest latest{text.substr(0, space), text.substr(std::min(space + 1, text.size()), 32)};
    if (SaveName::parse(latest.name) && text == format_latest(latest)) {
      list.latest = std::move(latest);
      return;
    }
    list.problem = format("{}: it does not name a save (its checksum does not fit its {} bytes)",
                          path, text.size());
  } catch (const FileError& error) {
    list.problem = error.what();
  }
}

/// FileError where the folder cannot be read; one that is not there is empty.
[[nodiscard]] inline SaveList list_saves(FileSystem& files, const std::string& folder) {
  SaveList result;
  std::vector<std::string> names;
  const auto status = files.list(folder, names);
  if (status == -ENOENT) return result;
  expect_file(status, "cannot list the directory", folder);
  for (const std::string& name : names) {
    if (name == latest_name) read_latest(files, folder, result);
    if (name == partial_name(std::string(latest_name))) result.has_partial_latest = true;
    const auto save = SaveName::parse(name);
    if (!save) continue;
    std::vector<std::string> inside;
    const std::string path = join(folder, name);
    const auto opened = files.list(path, inside);
    if (opened == -ENOTDIR) continue;  // a file of somebody's
    if (opened == -ENOENT) continue;   // removed meanwhile, by the training that we look at
    expect_file(opened, "cannot list the directory", path);
    const bool whole = std::find(inside.begin(), inside.end(), manifest_name) != inside.end();
    (whole ? result.saves : result.leftovers).push_back(*save);
  }
  std::sort(result.saves.begin(), result.saves.end());
  std::sort(result.leftovers.begin(), result.leftovers.end());
  return result;
}

/// The name of a file that a save of ours makes, whole or not.
[[nodiscard]] inline bool is_own_file(std::string_view name) {
  constexpr std::string_view partial = ".partial";
  if (name.ends_with(partial)) name.remove_suffix(partial.size());
  return name == manifest_name || (name.starts_with("rank-") && name.ends_with(".safetensors"));
}

/// Removes a save. Its manifest goes first, for good: at every moment the directory is a whole save
/// or none. Files that no save has made stay, and so does the directory then; a link that somebody
/// has put there stays with what it leads to.
inline void remove_save(FileSystem& files, const std::string& path) {
  const auto status = files.remove_directory(path);  // what is not empty stays, and tells its kind
  if (status >= 0 || status == -ENOTDIR) return;
  if (status != -ENOTEMPTY && status != -EEXIST) expect_file(status, "cannot remove it", path);
  std::vector<std::string> names;
  expect_file(files.list(path, names), "cannot list the directory", path);
  const auto remove = [&](const std::string& name) {
    const std::string file = join(path, name);
    expect_file(files.remove(file), "cannot remove it", file);
  };
  if (std::find(names.begin(), names.end(), manifest_name) != names.end()) {
    remove(std::string(manifest_name));
    sync_directory(files, path);
  }
  bool strangers = false;
  for (const std::string& name : names) {
    if (name == manifest_name) continue;
    if (is_own_file(name)) {
      remove(name);
    } else {
      strangers = true;
    }
  }
  if (!strangers) expect_file(files.remove_directory(path), "cannot remove it", path);
}

/// Removes what dead saves have left. What the pointer names is never touched: a save that has lost
/// its manifest is damaged, not left over.
inline void remove_leftovers(FileSystem& files, const std::string& folder, const SaveList& list) {
  if (list.has_partial_latest) {
    const std::string path = join(folder, partial_name(std::string(latest_name)));
    expect_file(files.remove(path), "cannot remove it", path);
  }
  for (const SaveName& leftover : list.leftovers) {
    if (list.latest && list.latest->name == leftover.text()) continue;
    remove_save(files, join(folder, leftover.text()));
  }
}

/// Removes the saves before `newest`, but for the last `keep` - 1; of a step that was saved more
/// than once only the last counts, and none between `base`, which `newest` continues, and it: the
/// run has gone back on those, for damage perhaps. `keep` 0: none is removed. Later saves, of a run
/// that this one does not continue, are left alone.
inline void retain(FileSystem& files, const std::string& folder, const SaveName& newest,
                   const std::optional<SaveName>& base, std::size_t keep) {
  if (keep == 0) return;
  const SaveList list = list_saves(files, folder);
  std::size_t kept = 1;
  std::uint64_t step = newest.step;
  std::vector<SaveName> removed;
  for (auto save = list.saves.rbegin(); save != list.saves.rend(); ++save) {
    if (*save >= newest) continue;
    const bool is_ours = !base || *save <= *base;
    if (is_ours && save->step != step && kept < keep) {
      ++kept;
      step = save->step;
    } else {
      removed.push_back(*save);
    }
  }
  std::reverse(removed.begin(), removed.end());  // the oldest first
  for (const SaveName& save : removed) remove_save(files, join(folder, save.text()));
}

}  // namespace shardwise::inline v0_1::detail
