#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <optional>
#include <shardwise/config/document.hpp>
#include <shardwise/config/json_syntax.hpp>
#include <shardwise/config/load.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "fixtures.hpp"

using namespace shardwise;
using namespace shardwise::detail;
using test::complaints;

namespace {

// "line:column: path: message" of what is wrong with a text of JSON.
std::string wrong_json(const std::string& text) {
  std::string blanked = text;
  const auto problem = JsonSyntax(text, blanked).check();
  if (!problem) return {};
  const TextPosition position = position_of(text, problem->offset);
  return std::to_string(position.line) + ":" + std::to_string(position.column) + ": " +
         problem->path + ": " + problem->message;
}

std::string blanked(std::string text) {
  const std::string original = text;
  CHECK_FALSE(JsonSyntax(original, text).check());
  return text;
}

}  // namespace

TEST_CASE("comments and commas of JSON become blanks in place") {
  CHECK(blanked("{\"a\": 1} // x\n") == "{\"a\": 1}     \n");
  CHECK(blanked("{/*\n*/\"a\":\t[1, 2,],}") == "{  \n  \"a\": [1, 2 ] }");
  CHECK(blanked("# x\n{\"a\": \"# // /* , ]\"}") == "   \n{\"a\": \"# // /* , ]\"}");
  CHECK(blanked("{\"a\": \"\\\" // \\\\\"}") == "{\"a\": \"\\\" // \\\\\"}");
}

TEST_CASE("the first thing that is no JSON is said, with its place and path") {
  CHECK(wrong_json("{\"a\": 1\n \"b\": 2}") == "2:2: : expected a comma or }");
  CHECK(wrong_json("{\"a\": {\"b\": [1, 2}}") == "1:18: a.b: expected a comma or ]");
  CHECK(wrong_json("{\"a\": {\"b\": [1, {\"c\" 1}]}}") ==
        "1:22: a.b[1].c: expected a colon behind the key");
  CHECK(wrong_json("{\"a\": 1,, \"b\": 2}") == "1:9: : one comma too many");
  CHECK(wrong_json("{a: 1}") == "1:2: : expected a key in double quotes");
  CHECK(wrong_json("{'a': 1}") == "1:2: : expected a key in double quotes");
  CHECK(wrong_json("{\"a\": 'b'}") == "1:7: a: strings of JSON have double quotes");
  CHECK(wrong_json("{\"a\": True}") == "1:7: a: True is Python; JSON has true, false and null");
  CHECK(wrong_json("{\"a\": yes}") == "1:7: a: yes is no value of JSON; words have double quotes");
  for (const char* number : {"01", "1.", ".5", "+1", "1e", "0x1", "1_0", "NaN", "-"}) {
    INFO(number);
    CHECK(wrong_json("{\"a\": " + std::string(number) + "}").starts_with("1:7: a: "));
  }
  CHECK(wrong_json("{\"a\": \"x\n\"}") == "1:7: a: the string does not end on its line");
  CHECK(wrong_json("{\"a\": \"x") == "1:7: a: the string does not end on its line");
  CHECK(wrong_json("{\"a\": \"\\x\"}").starts_with("1:8: a: unknown escape"));
  CHECK(wrong_json("{\"a\": \"\x01\"}").starts_with("1:8: a: a control character"));
  CHECK(wrong_json("{\"a\": {\n\"b\": 1") == "2:7: a: the file ends within the { of 1:7");
  CHECK(wrong_json("{\"a\":") == "1:6: a: expected a value, found the end of the file");
  CHECK(wrong_json("{\"a\": 1}}") == "1:9: : expected nothing more behind the last }");
  CHECK(wrong_json("{} /* x").ends_with("the comment that begins here does not end"));
  CHECK(wrong_json("[1]") == "1:1: : expected { , a file of JSON is one object");
  CHECK(wrong_json("{\"a\"\n: 1}") == "2:1: a: the colon belongs on the line of its key");
  CHECK(wrong_json(std::string(100, '[').insert(0, "{\"a\":")).find("more than 64 levels") !=
        std::string::npos);
  CHECK(wrong_json("{\"" + std::string(1001, 'k') + "\": 1}").find("a key of more than 1000") !=
        std::string::npos);
}

TEST_CASE("positions are of characters, behind comments, tabs and letters of several bytes") {
  const std::string text =
      "{\r\n\t/* gr\u00fc\u00dfe */ \"x-\u00e4\": \"\U0001F680\", \"stge\": 1}\n";
  const std::vector<std::string> found = complaints("{\"zero_optimization\": " + text + "}");
  REQUIRE(found.size() == 1);
  CHECK(found[0] == "f:2:26: zero_optimization.stge: unknown key; did you mean \"stage\"?");
}

TEST_CASE("a mark of byte order is no character") {
  CHECK(complaints("\xef\xbb\xbf{\"zero_optimization\": {\"stage\": 2}}").empty());
  CHECK(complaints("\xef\xbb\xbfstratgy: zero3")[0].starts_with("f:1:1: stratgy: "));
}

TEST_CASE("YAML is refused where it is not what it looks like") {
  const auto first = [](const std::string& text) {
    const auto all = complaints(text);
    return all.empty() ? std::string() : all[0];
  };
  CHECK(first("prefetch: &a 1\n").find("1:11: prefetch: anchors are not read") !=
        std::string::npos);
  CHECK(first("prefetch: *a\n").starts_with("f:1:11: prefetch: "));
  CHECK(first("a: &a {b: 1}\nstrategy: *a\n").starts_with("f:1:4: a: anchors"));
  CHECK(first("prefetch: !!int 1\n").find("the tag") != std::string::npos);
  CHECK(first("strategy: ddp\n---\nstrategy: ddp\n").find("f:2:1: a second document") == 0);
  CHECK(first("strategy: ddp\n  prefetch: 1\n").starts_with("f:2:11: "));
  CHECK(first("strategy: [ddp\n").starts_with("f:2:1: strategy: "));
  CHECK(first("? [a]\n: 1\n").find("a key is one word") != std::string::npos);
  CHECK(first("strategy: 'zero3\n") == "f:1:11: strategy: the quotes that begin here do not end");
  CHECK(first("strategy: \"zero3\\\"\nprefetch: 1\n") ==
        "f:1:11: strategy: the quotes that begin here do not end");
  CHECK(first("strategy: 'zero3'''\n").find("one of") != std::string::npos);
  CHECK(first("strategy: 'zero3'\nprefetch: \"1\"\n").find("an integer") != std::string::npos);
  CHECK(first("strategy: |\n  zero3\n").find("one of") != std::string::npos);
  CHECK(first("").find("an empty file says nothing") != std::string::npos);
  CHECK(first("# only a comment\n").find("an empty file says nothing") != std::string::npos);
  CHECK(first("zero3\n").starts_with("f:1:1: expected keys and values"));
  CHECK(first("- strategy\n").starts_with("f:1:1: expected keys and values"));
}

TEST_CASE("a text that is not UTF-8, has a NUL or is huge is no configuration") {
  const std::string start = "strategy: zero3 # ";
  for (const std::string& bad :
       {std::string("\xff"), std::string("\xc0\xaf"), std::string("\xed\xa0\x80"),
        std::string("\xf4\x90\x80\x80"), std::string("\xe2\x82"), std::string(1, '\0'),
        std::string("\x80")}) {
    const auto found = complaints(start + bad);
    REQUIRE(found.size() == 1);
    CHECK(found[0] == "f:1:19: the file is not UTF-8 text here");
  }
  CHECK(complaints(start + "\u00e4\u20ac\U0001F680\n").empty());
  CHECK(complaints(start + std::string(1 << 18, ' '))[0].find("are no configuration") !=
        std::string::npos);
  // Depth costs no stack: it is refused.
  CHECK_FALSE(complaints("a: " + std::string(100000, '[')).empty());
  CHECK_FALSE(complaints("{\"a\": " + std::string(100000, '[')).empty());
}
