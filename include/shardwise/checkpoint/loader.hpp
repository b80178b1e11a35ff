#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "agreement.hpp"
#include "load.hpp"
#include "manifest_reader.hpp"
#include "save_names.hpp"

namespace shardwise::inline v0_1::detail {

/// What a load fills on this rank.
struct LoadTarget {
  const std::vector<StateTensor>& tensors;
  const std::vector<StateOptimizer>& optimizers;
  std::function<void(const LossScalerState&)> restore_scaler;  ///< null: there is none
  Upload upload;
  std::function<void()> begin_write;
  std::function<void()> end_write;
};

/// Finds the newest save that is whole and loads it: all ranks the same one. Collective.
class Loader {
 public:
  static constexpr std::uint64_t largest_manifest = std::uint64_t{1} << 30;

  Loader(const CheckpointGroup& group, FileSystem& files, const std::string& folder,
         const LoadOptions& options)
      : group_(group), files_(files), folder_(folder), options_(options) {}

  /// None where the folder has no save at all. FileError where all are damaged.
  [[nodiscard]] std::optional<LoadedCheckpoint> load(const LoadTarget& target) {
    LoadedCheckpoint result;
    std::vector<std::string> candidates = list_candidates(result.passed_over);
    for (const std::string& name : candidates) {
      try {
        load_one(join(folder_, name), target, result);
        return result;
      } catch (const FileError& error) {  // the same one on all ranks
        result.passed_over.emplace_back(error.what());
      }
    }
    if (result.passed_over.empty()) return std::nullopt;
    std::string reasons;
    for (const std::string& reason : result.passed_over) reasons += "\n  " + reason;
    raise<FileError>("{}: no save in it can be loaded:{}", folder_, reasons);
  }

 private:
  // The names to try, in order. What is wrong with the pointer is the first reason.
  [[nodiscard]] std::vector<std::string> list_candidates(std::vector<std::string>& reasons) const {
    std::string text;
    Outcome outcome;
    if (group_.rank() == 0) outcome.run([&] { text = candidates(); });
    outcome.agree(group_, "load: folder", "");
    group_.share(text, 0, "load: candidates");
    std::vector<std::string> lines;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = text.find('\n', begin);
      lines.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    if (!lines.empty() && !lines.front().empty()) reasons.push_back(lines.front());
    if (!lines.empty()) lines.erase(lines.begin());
    return lines;
  }

  // Lines: what is wrong with the pointer, then names. The pointer names the newest save of this
  // run; what is later belongs to a run that it has gone back on.
  [[nodiscard]] std::string candidates() const {
    if (!options_.name.empty()) {
      if (!SaveName::parse(options_.name)) {
        raise("'{}' is not the name of a save; such names are step-000120", options_.name);
      }
      return '\n' + options_.name + '\n';
    }
    const SaveList list = list_saves(files_, folder_);
    std::string problem = list.problem;
    std::optional<SaveName> newest;
    if (list.latest) {
      newest = SaveName::parse(list.latest->name);
      if (!std::binary_search(list.saves.begin(), list.saves.end(), *newest)) {
        problem = format("{}: it names {}, which has no {}", join(folder_, latest_name),
                         list.latest->name, manifest_name);
        newest.reset();
      }
    }
    std::replace(problem.begin(), problem.end(), '\n', ' ');
    std::string text = problem + '\n';
    for (auto save = list.saves.rbegin(); save != list.saves.rend(); ++save) {
      if (!newest || *save <= *newest) text += save->text() + '\n';
    }
    return text;
  }

  void load_one(const std::string& directory, const LoadTarget& target, LoadedCheckpoint& result) {
    const Manifest manifest = read_manifest(directory);
    const LoadMatch match(manifest, directory, options_, group_.rank());
    Outcome outcome;
    outcome.run([&] {
      match.check(target.tensors, target.optimizers, target.restore_scaler != nullptr);
      require_untouched(directory, manifest, target);
    });
    outcome.agree(group_, "load: match", "");
    for (const StateTensor& tensor : target.tensors) {
      if (manifest.find(tensor.name) != nullptr) touched_[tensor.name] = directory;
    }
    target.begin_write();
    outcome.run([&] { read_data(directory, manifest, target); });
    target.end_write();
    outcome.agree(group_, "load: data", "");
    for (std::size_t i = 0; i < target.optimizers.size(); ++i) {
      const StateOptimizer& optimizer = target.optimizers[i];
      const auto* const saved = match.optimizer(target.tensors, optimizer, i);
      if (saved == nullptr) continue;
      optimizer.restore_steps(saved->steps);
      if (options_.hyperparameters) optimizer.restore_hyperparameters(saved->hyperparameters);
    }
    if (target.restore_scaler && manifest.loss_scaler) {
      target.restore_scaler(*manifest.loss_scaler);
    }
    result.directory = directory;
    result.step = manifest.step;
    result.world = manifest.world;
    result.values = manifest.values;
  }

  // A tensor that this save does not have is to keep what it held, which is gone where a damaged
  // one was read before.
  void require_untouched(const std::string& directory, const Manifest& manifest,
                         const LoadTarget& target) const {
    if (touched_.empty()) return;
    for (const StateTensor& tensor : target.tensors) {
      const auto found = touched_.find(tensor.name);
      if (found == touched_.end() || manifest.find(tensor.name) != nullptr) continue;
      raise<FileError>(
          "{}: it has no tensor '{}', which {} has overwritten before it was found damaged: load "
          "it by its name into a state that is as it was",
          directory, tensor.name, found->second);
    }
  }

  // Rank 0 reads it for all.
  [[nodiscard]] Manifest read_manifest(const std::string& directory) const {
    const std::string path = join(directory, manifest_name);
    const bool reads = group_.rank() == 0;
    std::string text;
    Manifest manifest;
    Outcome outcome;
    if (reads) {
      outcome.run([&] {
        text = read_whole(files_, path, largest_manifest);
        manifest = parse_manifest(text, path);
      });
    }
    outcome.agree(group_, "load: manifest", "");
    group_.share(text, 0, "load: manifest");
    return reads ? manifest : parse_manifest(text, path);  // what rank 0 could, all can
  }

  void read_data(const std::string& directory, const Manifest& manifest,
                 const LoadTarget& target) const {
    const std::vector<LoadPiece> pieces = plan_load(manifest, target.tensors);
    std::vector<std::byte> buffer;
    for (std::size_t begin = 0; begin < pieces.size();) {
      std::size_t end = begin;
      while (end < pieces.size() && pieces[end].file == pieces[begin].file) ++end;
      load_file(files_, directory, manifest, std::span(pieces).subspan(begin, end - begin),
                target.upload, buffer);
      begin = end;
    }
  }

  CheckpointGroup group_;
  FileSystem& files_;
  const std::string& folder_;
  const LoadOptions& options_;
  std::map<std::string, std::string, std::less<>> touched_;  // tensors, and the save read last
};

}  // namespace shardwise::inline v0_1::detail
