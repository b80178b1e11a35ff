// exchange export|import|export-one|import-one FOLDER RANKS: what check_exchange.py reads with the
// safetensors package of PyPI, or has written with it; one of them alone for
// check_exchange_faults.py.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <shardwise/checkpoint/hugging_face.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <string_view>

namespace {

using namespace shardwise;

// Exact in every floating type.
float value_of(std::string_view name, std::size_t element) {
  std::size_t sum = 0;
  for (const char letter : name) sum += static_cast<unsigned char>(letter);
  return (static_cast<float>((sum * 31 + element * 7) % 251) - 125.0f) / 8.0f;
}

struct Model {
  explicit Model(Context<>& context)
      : embedding(context, {{"wte.weight", {37, 12}}, {"odd \"name\" \\ \xc3\xa9", {3}}}),
        block(context, {{"weight", {12, 5, 2}}, {"bias", {12}}, {"none", {0, 4}}, {"scale", {}}}),
        wide(context, {{"wide", {9, 9}}}),
        head(context, {{"head", {19}}}),
        tensors(context) {
    tensors.add(embedding);
    tensors.add(block, [](std::string_view name) { return "h.0." + std::string(name); });
    tensors.add(wide);
    tensors.add(head);
  }

  // f(parameter, what comes before its names in files) for each.
  template <class F>
  void for_each(F&& f) {
    f(embedding, "");
    f(block, "h.0.");
    f(wide, "");
    f(head, "");
  }

  ShardedParameter<float> embedding;
  ShardedParameter<float> block;
  ShardedParameter<double> wide;
  ShardedParameter<bf16> head;
  ModelTensors<> tensors;
};

void initialize(Model& model) {
  model.for_each([](auto& parameter, const std::string& prefix) {
    parameter.initialize([&](const Layout::Tensor& tensor, std::size_t element) {
      return value_of(prefix + tensor.name, element);
    });
  });
}

void export_one(Context<>& context, const std::string& folder) {
  Model model(context);
  initialize(model);
  (void)export_hugging_face(model.tensors, folder, {.max_file_bytes = 1800});
}

void export_all(Context<>& context, const std::string& folder) {
  Model model(context);
  initialize(model);
  (void)export_hugging_face(model.tensors, folder + "/single");
  (void)export_hugging_face(model.tensors, folder + "/sharded", {.max_file_bytes = 600});
  for (const DType type : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    (void)export_hugging_face(model.tensors, folder + '/' + std::string(name_of(type)),
                              {.dtype = type});
  }
  (void)export_flat(model.tensors, folder + "/flat", "weights", {.dtype = DType::f32});
}

void import_one(Context<>& context, const std::string& folder) {
  Model model(context);
  (void)import_hugging_face(model.tensors, folder, {.conversion = Conversion::rounding});
  std::size_t elements = 0;
  model.for_each([&](auto& parameter, const std::string& prefix) {
    parameter.read([&](const Layout::Tensor& tensor, std::size_t first, auto values) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float expected = value_of(prefix + tensor.name, first + i);
        if (static_cast<float>(values[i]) == expected) {
          ++elements;
          continue;
        }
        raise<FileError>("{}: element {} of '{}{}' is {}, expected {}", folder, first + i, prefix,
                         tensor.name, static_cast<float>(values[i]), expected);
      }
    });
  });
  if (elements != 444 + 3 + 120 + 12 + 1 + 81 + 19) raise<FileError>("elements are missing");
}

void import_all(Context<>& context, const std::string& folder) {
  for (const std::string name : {"/f32", "/mixed", "/sharded"}) import_one(context, folder + name);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 4)
      raise<ConfigError>("usage: exchange export|import|export-one|import-one FOLDER RANKS");
    const std::string_view what = argv[1];
    const std::string folder = argv[2];
    run_ranks(std::atoi(argv[3]), [&](Communicator& communicator) {
      Context context(communicator, Strategy::zero3());
      if (what == "export") return export_all(context, folder);
      if (what == "import") return import_all(context, folder);
      if (what == "export-one") return export_one(context, folder);
      if (what == "import-one") return import_one(context, folder);
      raise<ConfigError>("there is no {}", what);
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "exchange: %s\n", error.what());
    return 1;
  }
  return 0;
}
