#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "mpi_memory_file.hpp"
#include "shared_block.hpp"

namespace shardwise::inline v0_1 {

/// Of processes on one machine: a file in memory that all of them have mapped. Its pages come when
/// they are touched, near to who touches them first.
class MpiSharedBlock final : public SharedBlock {
 public:
  /// `exchange` gathers one text of each rank. Null, on all ranks, where not all can map it.
  template <class Exchange>
  [[nodiscard]] static std::unique_ptr<MpiSharedBlock> make(int rank, std::size_t bytes,
                                                            const std::string& machine,
                                                            const Exchange& exchange) {
    using detail::mpi::MemoryFile;
    std::optional<MemoryFile> file;  // of the first rank, until all have mapped it
    if (rank == 0) file.emplace(MemoryFile::make(bytes));
    // The machine's name is the rest of the line.
    const std::vector<std::string> texts = exchange(
        detail::format("{} {}\n{}", file ? file->address() : std::string(), bytes, machine));
    const std::string& first = texts.front();
    const std::size_t line = first.find('\n');
    const bool here = first.substr(line + 1) == machine;
    if (rank != 0 && here) file.emplace(MemoryFile::at(first.substr(0, line), bytes));
    std::unique_ptr<MpiSharedBlock> block;
    if (file) block.reset(new MpiSharedBlock(file->map(), bytes));
    const bool good = block != nullptr && block->data_ != nullptr;
    for (const std::string& verdict : exchange(good ? "yes" : "no")) {
      if (verdict != "yes") return nullptr;
    }
    return block;
  }
  ~MpiSharedBlock() override {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }

  [[nodiscard]] std::byte* data() const noexcept override { return data_; }

 private:
  MpiSharedBlock(std::byte* data, std::size_t bytes) noexcept : data_(data), bytes_(bytes) {}

  std::byte* data_;
  std::size_t bytes_;
};

}  // namespace shardwise::inline v0_1
