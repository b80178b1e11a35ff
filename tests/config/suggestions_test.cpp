#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdio>
#include <random>
#include <shardwise/config.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fixtures.hpp"

using namespace shardwise;
using namespace shardwise::test;
using namespace shardwise::detail;

namespace {

// One edit of every kind, at a place and with a letter that the generator chooses.
std::string edited(std::string word, std::mt19937& random) {
  const auto below = [&](std::size_t count) { return static_cast<std::size_t>(random() % count); };
  const auto letter = [&] { return "abcdefghijklmnopqrstuvwxyz_"[below(27)]; };
  switch (below(4)) {
    case 0:
      word.insert(below(word.size() + 1), 1, letter());
      return word;
    case 1:
      if (word.size() > 1) word.erase(below(word.size()), 1);
      return word;
    case 2:
      word[below(word.size())] = letter();
      return word;
    default:
      if (word.size() > 1) {
        const std::size_t at = below(word.size() - 1);
        std::swap(word[at], word[at + 1]);
      }
      return word;
  }
}

// The key that the message offers; empty: none.
std::string offered(const std::string& message) {
  const std::size_t begin = message.find("did you mean \"");
  if (begin == std::string::npos) return {};
  return message.substr(begin + 14, message.rfind('"') - begin - 14);
}

struct Score {
  std::size_t right = 0;
  std::size_t all = 0;
  [[nodiscard]] double share() const {
    return static_cast<double>(right) / static_cast<double>(all);
  }
};

Score score_of(ConfigForm form, int edits, int samples, std::mt19937& random) {
  Score score;
  for (const ConfigKey& key : keys_of(form)) {
    const std::size_t dot = key.path.rfind('.');
    const std::string word(key.path.substr(dot == std::string_view::npos ? 0 : dot + 1));
    const std::string parent(key.path.substr(0, dot == std::string_view::npos ? 0 : dot));
    for (int sample = 0; sample < samples; ++sample) {
      std::string typo = word;
      for (int i = 0; i < edits; ++i) typo = edited(typo, random);
      bool is_key = typo.starts_with("x-");
      for (const ConfigKey& other : keys_of(form)) {
        is_key = is_key || other.path == joined_path(parent, typo);
      }
      if (is_key) continue;
      std::string text = "{\"" + typo + "\": 1}";
      for (std::string rest = parent; !rest.empty();) {
        const std::size_t at = rest.rfind('.');
        text.insert(0, "{\"" + rest.substr(at == std::string::npos ? 0 : at + 1) + "\": ");
        text += '}';
        rest = rest.substr(0, at == std::string::npos ? 0 : at);
      }
      std::string message;
      for (const ConfigProblem& problem : problems_of(text, all_hints(), {.form = form})) {
        if (problem.path == joined_path(parent, typo)) message = problem.message;
      }
      INFO(text);
      CHECK(message.starts_with("unknown key"));
      ++score.all;
      if (offered(message) == word) ++score.right;
    }
  }
  return score;
}

}  // namespace

TEST_CASE("a typo of one or two edits finds its key in 95 % of cases") {
  std::mt19937 random(20260727);
  Score all;
  for (const ConfigForm form :
       {ConfigForm::shardwise, ConfigForm::deepspeed, ConfigForm::accelerate}) {
    for (const int edits : {1, 2}) {
      const Score score = score_of(form, edits, 20, random);
      std::printf("%s, %d edit(s): %zu of %zu typos find their key (%.1f %%)\n",
                  std::string(name_of(form)).c_str(), edits, score.right, score.all,
                  100 * score.share());
      all.right += score.right;
      all.all += score.all;
      INFO(name_of(form) << ", " << edits << " edit(s)");
      CHECK(score.share() >= 0.95);
    }
  }
  std::printf("in all: %.1f %% of %zu\n", 100 * all.share(), all.all);
  CHECK(all.all > 5000);
}

TEST_CASE("distances count insertions, removals, exchanges and swaps") {
  CHECK(edit_distance("stage", "stage") == 0);
  CHECK(edit_distance("stge", "stage") == 1);
  CHECK(edit_distance("satge", "stage") == 1);
  CHECK(edit_distance("stqge", "stage") == 1);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("Zero-Optimization", "zero_optimization") == 0);
  CHECK(nearest_word("xyz", {"stage", "overlap_comm"}).empty());
  CHECK(nearest_word("fp", {"fp16", "bf16"}) == "fp16");
}
