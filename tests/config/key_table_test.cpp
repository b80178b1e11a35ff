#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <set>
#include <shardwise/config/key_table.hpp>
#include <string>
#include <string_view>

#include "fixtures.hpp"

using namespace shardwise;
using namespace shardwise::test;

namespace {

// examples/configuration.md with the tables that the code gives, between its marks.
std::string up_to_date(std::string text) {
  for (const auto& [form, name] : {std::pair{ConfigForm::shardwise, "shardwise"},
                                   {ConfigForm::deepspeed, "deepspeed"},
                                   {ConfigForm::accelerate, "accelerate"}}) {
    const std::string begin = "<!-- keys: " + std::string(name) + " -->\n";
    const std::size_t at = text.find(begin);
    REQUIRE(at != std::string::npos);
    const std::size_t end = text.find("<!-- end -->", at);
    REQUIRE(end != std::string::npos);
    text.replace(at + begin.size(), end - at - begin.size(), config_key_table(form));
  }
  return text;
}

}  // namespace

// SHARDWISE_WRITE_DOCS=1 test_config "the documentation has every key" writes them.
TEST_CASE("the documentation has every key with its outcome, as the code has it") {
  const std::string file = project_file("examples/configuration.md");
  const std::string text = read_text(file);
  const std::string expected = up_to_date(text);
  if (std::getenv("SHARDWISE_WRITE_DOCS") != nullptr) {
    std::ofstream(file) << expected;
    return;
  }
  CHECK((text == expected));  // where it differs: see above
}

TEST_CASE("no table has a key twice, and every key lies in a group of its table") {
  for (const ConfigForm form :
       {ConfigForm::shardwise, ConfigForm::deepspeed, ConfigForm::accelerate}) {
    std::set<std::string_view> paths;
    for (const ConfigKey& key : detail::keys_of(form)) {
      INFO(key.path);
      CHECK(paths.insert(key.path).second);
      CHECK_FALSE(key.note.empty());
    }
    for (const ConfigKey& key : detail::keys_of(form)) {
      INFO(key.path);
      const std::size_t dot = key.path.rfind('.');
      if (dot != std::string_view::npos) CHECK(paths.contains(key.path.substr(0, dot)));
      if (!key.means.empty()) CHECK(paths.contains(key.means));
      if (key.kind == ConfigKind::word) CHECK_FALSE(key.domain.empty());
    }
  }
}
