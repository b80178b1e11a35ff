#include "shardwise/checkpoint/regular_file.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "temporary_folder.hpp"

namespace {

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

std::string content(RegularFile& file, std::uint64_t offset, std::size_t count) {
  std::string text(count, '\0');
  file.read(offset, std::as_writable_bytes(std::span(text)));
  return text;
}

std::string refusal(const test::TemporaryFolder& folder, const std::string& path) {
  try {
    const RegularFile file(folder.name(), path);
  } catch (const FileError& error) {
    const std::string message = error.what();
    CHECK_THAT(message, ContainsSubstring(folder.name()));
    return message;
  }
  return "it was opened";
}

TEST_CASE("a regular file below a directory is read at any offset") {
  const test::TemporaryFolder folder;
  folder.write("a/b/file.bin", "0123456789");
  RegularFile file(folder.name(), "a/b/file.bin");
  CHECK(file.size() == 10);
  CHECK(file.name() == folder.name() + "/a/b/file.bin");
  CHECK(content(file, 0, 10) == "0123456789");
  CHECK(content(file, 7, 3) == "789");
  CHECK(content(file, 10, 0).empty());
  CHECK_THROWS_WITH(content(file, 8, 3),
                    ContainsSubstring("3 bytes at offset 8") && ContainsSubstring("has 10 bytes"));
  CHECK_THROWS_AS(content(file, 11, 0), FileError);
  CHECK_THROWS_AS(content(file, ~std::uint64_t{0}, 1), FileError);

  folder.write("..a", "dots");
  RegularFile dots(folder.name(), "..a");
  CHECK(content(dots, 0, 4) == "dots");
}

TEST_CASE("no path leads out of the directory, and nothing but regular files is opened") {
  const test::TemporaryFolder folder;
  folder.write("inside/file.bin", "secret");
  folder.write("outside.bin", "secret");
  fs::create_symlink("file.bin", folder.path() / "inside/link.bin");
  fs::create_directory_symlink("inside", folder.path() / "shortcut");
  REQUIRE(::mkfifo((folder.path() / "fifo").c_str(), 0600) == 0);

  CHECK_THAT(refusal(folder, ""), ContainsSubstring("empty"));
  CHECK_THAT(refusal(folder, (folder.path() / "outside.bin").string()),
             ContainsSubstring("absolute"));
  CHECK_THAT(refusal(folder, "/etc/passwd"), ContainsSubstring("absolute"));
  CHECK_THAT(refusal(folder, "inside/../outside.bin"), ContainsSubstring("'..' leads out"));
  CHECK_THAT(refusal(folder, ".."), ContainsSubstring("'..' leads out"));
  CHECK_THAT(refusal(folder, "inside/.."), ContainsSubstring("'..' leads out"));
  CHECK_THAT(refusal(folder, "./outside.bin"), ContainsSubstring("'.'"));
  CHECK_THAT(refusal(folder, "inside//file.bin"), ContainsSubstring("empty component"));
  CHECK_THAT(refusal(folder, "outside.bin/"),
             ContainsSubstring("'outside.bin' is not a directory"));
  CHECK_THAT(refusal(folder, std::string("outside.bin\0x", 13)), ContainsSubstring("NUL"));
  CHECK_THAT(refusal(folder, "inside/link.bin"),
             ContainsSubstring("'link.bin' is a symbolic link"));
  CHECK_THAT(refusal(folder, "shortcut/file.bin"),
             ContainsSubstring("'shortcut' is a symbolic link"));
  CHECK_THAT(refusal(folder, "inside"), ContainsSubstring("'inside' is a directory"));
  CHECK_THAT(refusal(folder, "fifo"), ContainsSubstring("is a FIFO"));  // and does not hang
  CHECK_THAT(refusal(folder, "absent.bin"), ContainsSubstring("'absent.bin' does not exist"));
  CHECK_THAT(refusal(folder, "absent/file.bin"), ContainsSubstring("'absent' does not exist"));
  CHECK_THAT(refusal(folder, "outside.bin/file.bin"), ContainsSubstring("is not a directory"));
  CHECK_THROWS_WITH(RegularFile("/dev", "null"), ContainsSubstring("is a device or a socket"));
  CHECK_THROWS_WITH(RegularFile(folder.name() + "/nowhere", "x"),
                    ContainsSubstring("cannot open the directory"));
  CHECK_THROWS_WITH(RegularFile(folder.name() + "/outside.bin", "x"),
                    ContainsSubstring("cannot open the directory"));
  CHECK_THAT(refusal(folder, std::string(300, 'x')), ContainsSubstring("name too long"));
  CHECK_THAT(refusal(folder, "evil\nname"), ContainsSubstring("'evil?name' does not exist"));

  // The caller's own directory may be reached through links.
  RegularFile file(folder.name() + "/shortcut", "file.bin");
  CHECK(content(file, 0, 6) == "secret");
}

TEST_CASE("a file that shrinks while it is read is an error") {
  const test::TemporaryFolder folder;
  folder.write("file.bin", std::string(100, 'x'));
  RegularFile file(folder.name(), "file.bin");
  fs::resize_file(folder.path() / "file.bin", 60);
  CHECK(content(file, 0, 60) == std::string(60, 'x'));
  CHECK_THROWS_WITH(content(file, 50, 20),
                    ContainsSubstring("ends at byte 60") && ContainsSubstring("had 100 bytes"));
}

TEST_CASE("interrupted and short reads go on, and what fails says why") {
  class Stubborn : public RegularFile {
   public:
    using RegularFile::RegularFile;
    std::size_t calls = 0;
    bool broken = false;

   protected:
    ssize_t read_some(std::uint64_t offset, std::span<std::byte> into) override {
      ++calls;
      if (broken) {
        errno = EIO;
        return -1;
      }
      if (calls % 2 == 0) {
        errno = EINTR;
        return -1;
      }
      return RegularFile::read_some(offset, into.first(std::min<std::size_t>(into.size(), 3)));
    }
  };
  const test::TemporaryFolder folder;
  folder.write("file.bin", "0123456789");
  Stubborn file(folder.name(), "file.bin");
  CHECK(content(file, 1, 8) == "12345678");
  CHECK(file.calls == 5);
  file.broken = true;
  CHECK_THROWS_WITH(content(file, 2, 5), ContainsSubstring("file.bin") &&
                                             ContainsSubstring("5 bytes at offset 2") &&
                                             ContainsSubstring("Input/output error"));
}

}  // namespace
