#include "options.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace flat_host {

const char* const help =
    "Trains a byte-level GPT, written in plain C style on one flat allocation, with its state\n"
    "sharded over ranks in place.\n"
    "  --ranks N --strategy S   who shares what: ddp, zero1, zero2, zero3, zero3-no-reshard (2,\n"
    "                           zero3)\n"
    "  --plain                  without the library, in one rank\n"
    "  --shared                 one memory of parameters for all ranks; not for ddp\n"
    "  --debug                  the library's debug mode\n"
    "  --steps N --batch N      steps, and sequences of each over all ranks (20, 12)\n"
    "  --layers N --channels N --heads N --seq N   the model (4, 64, 4, 64)\n"
    "  --seed N                 of the initial values and of the order of the text (1)\n"
    "  --lr X                   learning rate (0.001)\n"
    "  --text FILE              what to learn (the licence texts of the system)\n"
    "  --quiet                  no line for each step\n";

namespace {

bool read_count(const char* text, std::size_t* value) {
  char* end = nullptr;
  errno = 0;
  *value = std::strtoull(text, &end, 10);
  return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
}

bool read_positive(const char* text, double* value) {
  char* end = nullptr;
  *value = std::strtod(text, &end);
  return end != text && *end == '\0' && *value > 0 && *value < 1e9;
}

}  // namespace

const char* parse_options(Options* options, int count, const char* const* arguments) {
  Config* const config = &options->config;
  const struct {
    const char* name;
    std::size_t* value;
  } counts[] = {
      {"--ranks", &options->ranks},      {"--steps", &options->steps},
      {"--batch", &options->batch},      {"--layers", &config->layers},
      {"--channels", &config->channels}, {"--heads", &config->heads},
      {"--seq", &config->sequence},      {"--seed", &options->seed},
  };
  const struct {
    const char* name;
    const char** value;
  } words[] = {{"--strategy", &options->strategy}, {"--text", &options->text}};
  const struct {
    const char* name;
    bool* value;
  } flags[] = {{"--plain", &options->plain},
               {"--shared", &options->shared},
               {"--debug", &options->debug},
               {"--quiet", &options->quiet}};

  for (int i = 1; i < count; ++i) {
    const char* const name = arguments[i];
    const char* const value = i + 1 < count ? arguments[i + 1] : nullptr;
    bool known = false, has_value = true;
    for (const auto& flag : flags) {
      if (std::strcmp(name, flag.name) != 0) continue;
      *flag.value = known = true;
      has_value = false;
    }
    for (const auto& option : counts) {
      if (std::strcmp(name, option.name) != 0) continue;
      if (value == nullptr || !read_count(value, option.value)) return "a count is missing or bad";
      known = true;
    }
    for (const auto& option : words) {
      if (std::strcmp(name, option.name) != 0) continue;
      if (value == nullptr) return "a value is missing";
      *option.value = value;
      known = true;
    }
    if (std::strcmp(name, "--lr") == 0) {
      if (value == nullptr || !read_positive(value, &options->learning_rate)) {
        return "--lr needs a number above 0";
      }
      known = true;
    }
    if (!known) return "an option is not known";
    if (has_value) ++i;
  }
  return check_options(options);
}

const char* check_options(const Options* options) {
  const Config& config = options->config;
  if (config.layers == 0 || config.channels == 0 || config.heads == 0 || config.sequence == 0) {
    return "the model needs at least one layer, channel, head and token";
  }
  if (config.channels % config.heads != 0) return "--heads must divide --channels";
  if (options->ranks == 0 || options->steps == 0 || options->batch == 0) {
    return "--ranks, --steps and --batch must be at least 1";
  }
  if (options->batch % options->ranks != 0) return "--ranks must divide --batch";
  return nullptr;
}

}  // namespace flat_host
