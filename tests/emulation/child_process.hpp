#pragma once

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <stdexcept>
#include <string>

/// What a command ended with and what it wrote to both of its outputs.
struct Finished {
  int status = -1;
  std::string output;

  bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

/// A command that the shell runs beside this process, for at most a minute.
class Child {
 public:
  explicit Child(const std::string& command)
      : pipe_(popen(("exec timeout 60 " + command + " 2>&1").c_str(), "r")) {
    if (pipe_ == nullptr) throw std::runtime_error("popen failed for: " + command);
  }
  ~Child() {
    if (pipe_ != nullptr) pclose(pipe_);
  }
  Child(Child&& other) noexcept : pipe_(other.pipe_) { other.pipe_ = nullptr; }
  Child& operator=(Child&&) = delete;

  /// Waits for its end.
  Finished finish() {
    Finished finished;
    std::array<char, 4096> chunk{};
    for (std::size_t read = 1; read > 0;) {
      read = std::fread(chunk.data(), 1, chunk.size(), pipe_);
      finished.output.append(chunk.data(), read);
    }
    const int status = pclose(pipe_);
    pipe_ = nullptr;
    finished.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return finished;
  }

 private:
  FILE* pipe_;
};
