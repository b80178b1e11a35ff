// What a folder of saves holds, and whether every byte of it is as it was written.
//
//   checkpoint_inspect DIR

#include <fmt/core.h>

#include <cstdio>
#include <exception>
#include <map>
#include <shardwise/checkpoint.hpp>
#include <shardwise/checkpoint/inspect.hpp>
#include <string>
#include <type_traits>
#include <variant>

namespace {

std::string shape_of(const shardwise::Manifest::Tensor& tensor) {
  std::string text;
  for (const auto extent : tensor.shape)
    text += fmt::format("{}{}", text.empty() ? "" : "x", extent);
  return text.empty() ? "scalar" : text;
}

std::string text_of(const shardwise::CheckpointValue& value) {
  return std::visit(
      [](const auto& held) -> std::string {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, shardwise::CheckpointValue::Bytes>) {
          return fmt::format("{} bytes", held.size());
        } else {
          return fmt::format("{}", held);
        }
      },
      value.held());
}

void print(const shardwise::InspectedSave& save) {
  fmt::print("{}{}\n", save.name, save.is_latest ? " (latest)" : "");
  if (save.manifest) {
    const shardwise::Manifest& manifest = *save.manifest;
    std::size_t bytes = 0;
    for (const auto& file : manifest.files) bytes += file.bytes;
    fmt::print("  step {}, saved by {} ranks: {} tensors in {} files, {:.2f} MiB; id {}\n",
               manifest.step, manifest.world, manifest.tensors.size(), manifest.files.size(),
               static_cast<double>(bytes) / (1 << 20), manifest.save);
    std::map<std::string, std::size_t> optimizers;
    for (const auto& optimizer : manifest.optimizers) {
      std::string text = fmt::format("{} after {} steps", optimizer.kind, optimizer.steps);
      for (const auto& [name, value] : optimizer.hyperparameters) {
        text += fmt::format(", {} {}", name, text_of(value));
      }
      ++optimizers[text];
    }
    for (const auto& [text, count] : optimizers) {
      fmt::print("  optimizer of {} parameters: {}\n", count, text);
    }
    if (manifest.loss_scaler) fmt::print("  loss scale {}\n", manifest.loss_scaler->scale);
    for (const auto& [name, value] : manifest.values) {
      fmt::print("  value {} = {}\n", name, text_of(value));
    }
    for (const auto& tensor : manifest.tensors) {
      fmt::print("  {:<5} {:>12}  {}  ({} parts)\n", shardwise::name_of(tensor.dtype),
                 shape_of(tensor), tensor.name, tensor.parts.size());
    }
  }
  for (const std::string& problem : save.problems) fmt::print("  DAMAGED: {}\n", problem);
  if (save.problems.empty()) fmt::print("  whole: every chunk has its checksum\n");
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 2) {
    fmt::print(stderr, "usage: checkpoint_inspect DIR\n");
    return 2;
  }
  shardwise::PosixFileSystem files;
  const shardwise::InspectedFolder folder = shardwise::inspect_folder(files, arguments[1]);
  for (const shardwise::InspectedSave& save : folder.saves) print(save);
  for (const std::string& name : folder.leftovers) {
    fmt::print("{}: left over by a save that died; the next save removes it\n", name);
  }
  for (const std::string& problem : folder.problems) fmt::print("DAMAGED: {}\n", problem);
  if (folder.saves.empty()) fmt::print("{} has no save\n", arguments[1]);
  return folder.whole() && !folder.saves.empty() ? 0 : 1;
} catch (const std::exception& error) {
  fmt::print(stderr, "checkpoint_inspect: {}\n", error.what());
  return 1;
}
