#include "shardwise/checkpoint/hugging_face.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <shardwise/shardwise.hpp>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"
#include "temporary_folder.hpp"

namespace {

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using test::TemporaryFolder;
using Context = shardwise::Context<test::Device>;

// Groups of 1 and 2 ranks too, where the ranks can be grouped so.
std::vector<Strategy> strategies_of(int world) {
  std::vector<Strategy> all{Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                            Strategy::zero3(), Strategy::hybrid(1)};
  if (world % 2 == 0) all.push_back(Strategy::hybrid(2));
  return all;
}

float value_of(std::string_view name, std::size_t element) {
  std::size_t hash = 17;
  for (const char letter : name) hash = hash * 31 + static_cast<unsigned char>(letter);
  return static_cast<float>(std::sin(static_cast<double>(hash % 1000 + element) * 0.7) * 3);
}

std::string block_name(int block, std::string_view name) {
  return "h." + std::to_string(block) + "." + std::string(name);
}

// Uneven, tiny, empty and scalar tensors, two storage types, names that only files tell apart.
struct Model {
  explicit Model(Context& context)
      : embedding(context, {{"wte", {7, 5}}, {"wpe", {3, 5}}}, {.tied = true}), tensors(context) {
    for (int i = 0; i < 2; ++i) {
      blocks.push_back(std::make_unique<test::Parameter<float>>(
          context, std::vector<TensorSpec>{
                       {"attn.weight", {13, 11}}, {"none", {0, 4}}, {"scale", {}}, {"b", {1}}}));
    }
    head =
        std::make_unique<test::Parameter<bf16>>(context, std::vector<TensorSpec>{{"norm", {70}}});
    tensors.add(embedding);
    for (int i = 0; i < 2; ++i) {
      tensors.add(*blocks[static_cast<std::size_t>(i)],
                  [i](std::string_view name) { return block_name(i, name); });
    }
    tensors.add(*head);
  }

  void initialize() {
    const auto value = [](const Layout::Tensor& tensor, std::size_t element) {
      return value_of(tensor.name, element);
    };
    embedding.initialize(value);
    for (int i = 0; i < 2; ++i) {
      blocks[static_cast<std::size_t>(i)]->initialize(
          [i](const Layout::Tensor& tensor, std::size_t element) {
            return value_of(block_name(i, tensor.name), element);
          });
    }
    head->initialize(value);
  }

  // By name in files.
  std::map<std::string, std::vector<double>> read() {
    std::map<std::string, std::vector<double>> all;
    const auto sink = [&](const std::string& prefix) {
      return [&all, prefix](const Layout::Tensor& tensor, std::size_t, auto elements) {
        auto& values = all[prefix + tensor.name];
        for (const auto element : elements) values.push_back(static_cast<double>(element));
      };
    };
    embedding.read(sink(""));
    blocks[0]->read(sink("h.0."));
    blocks[1]->read(sink("h.1."));
    head->read(sink(""));
    return all;
  }

  test::Parameter<float> embedding;
  std::vector<std::unique_ptr<test::Parameter<float>>> blocks;
  std::unique_ptr<test::Parameter<bf16>> head;
  ModelTensors<test::Device> tensors;
};

struct Expected {
  std::string name;
  std::vector<std::uint64_t> shape;
  DType dtype;
};
const std::vector<Expected> expected{{"wte", {7, 5}, DType::f32},
                                     {"wpe", {3, 5}, DType::f32},
                                     {"h.0.attn.weight", {13, 11}, DType::f32},
                                     {"h.0.none", {0, 4}, DType::f32},
                                     {"h.0.scale", {}, DType::f32},
                                     {"h.0.b", {1}, DType::f32},
                                     {"h.1.attn.weight", {13, 11}, DType::f32},
                                     {"h.1.none", {0, 4}, DType::f32},
                                     {"h.1.scale", {}, DType::f32},
                                     {"h.1.b", {1}, DType::f32},
                                     {"norm", {70}, DType::bf16}};

std::size_t count_of(const Expected& tensor) {
  std::size_t count = 1;
  for (const std::uint64_t extent : tensor.shape) count *= static_cast<std::size_t>(extent);
  return count;
}

// Values as the parameter holds them, then as `type`.
std::string bytes_of(const Expected& tensor, DType type) {
  std::string bytes;
  for (std::size_t i = 0; i < count_of(tensor); ++i) {
    const float exact = value_of(tensor.name, i);
    dispatch_floating(tensor.dtype, [&]<class T>() {
      const T held = static_cast<T>(exact);
      dispatch_floating(type, [&]<class To>() {
        const To value = cast_element<To>(held);
        bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
      });
    });
  }
  return bytes;
}

std::map<std::string, std::vector<double>> expected_values() {
  std::map<std::string, std::vector<double>> all;
  for (const Expected& tensor : expected) {
    if (count_of(tensor) == 0) continue;
    auto& values = all[tensor.name];
    for (std::size_t i = 0; i < count_of(tensor); ++i) {
      const float single = value_of(tensor.name, i);
      values.push_back(tensor.dtype == DType::bf16
                           ? static_cast<double>(static_cast<float>(bf16(single)))
                           : static_cast<double>(single));
    }
  }
  return all;
}

// One file of these tensors, built without the exporter.
std::string file_of(const std::vector<Expected>& list, std::optional<DType> type = std::nullopt) {
  std::vector<SafetensorsTensor> entries;
  std::string data;
  for (const Expected& tensor : list) {
    const DType written = type.value_or(tensor.dtype);
    const std::string bytes = bytes_of(tensor, written);
    entries.push_back({tensor.name, safetensors_dtype(written), tensor.shape, data.size(),
                       data.size() + bytes.size()});
    data += bytes;
  }
  const std::pair<std::string, std::string> metadata[] = {{"format", "pt"}};
  return format_safetensors_header(entries, metadata) + data;
}

std::vector<std::string> names_in(const TemporaryFolder& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST_CASE("the bytes of an export depend on no number of ranks and no strategy") {
  for (const int world : test::worlds) {
    for (const Strategy& strategy : strategies_of(world)) {
      for (const Writers writers : {Writers::all_ranks, Writers::one_rank}) {
        const TemporaryFolder folder;
        const auto reports = test::on_ranks(world, [&](Communicator& comm) {
          Context context(comm, strategy);
          Model model(context);
          model.initialize();
          return export_hugging_face(model.tensors, folder.name(), {.writers = writers});
        });
        INFO(strategy.name() << ", " << world << " ranks");
        REQUIRE(names_in(folder) == std::vector<std::string>{"model.safetensors"});
        REQUIRE(folder.read("model.safetensors") == file_of(expected));
        std::uint64_t written = 0;
        for (const ExportReport& report : reports) {
          CHECK(report.files == std::vector<std::string>{"model.safetensors"});
          written += report.bytes_written;
          // Nobody writes more than a shard of each parameter.
          if (writers == Writers::all_ranks && world >= 7) CHECK(report.bytes_written <= 560);
        }
        CHECK(written == reports[0].total_bytes);
      }
    }
  }
}

TEST_CASE("an import fills any number of ranks under any strategy, and reads what they hold") {
  const TemporaryFolder folder;
  folder.write("model.safetensors", file_of(expected));
  const auto values = expected_values();
  for (const int world : test::worlds) {
    for (const Strategy& strategy : strategies_of(world)) {
      std::vector<ImportReport> reports(static_cast<std::size_t>(world));
      const auto all = test::on_ranks(world, [&](Communicator& comm) {
        Context context(comm, strategy);
        Model model(context);
        reports[static_cast<std::size_t>(comm.rank())] =
            import_hugging_face(model.tensors, folder.name());
        return model.read();
      });
      INFO(strategy.name() << ", " << world << " ranks");
      for (const auto& found : all) REQUIRE(found == values);
      std::uint64_t read = 0;
      for (const ImportReport& report : reports) read += report.bytes_read;
      const std::uint64_t once = 4 * (35 + 15 + 2 * 145) + 2 * 70;
      const bool sharded = strategy.parameters == Placement::sharded;
      const int group = strategy.shard_group > 0 ? strategy.shard_group : world;
      const auto copies = static_cast<std::uint64_t>(sharded ? world / group : world);
      CHECK(read == once * copies);
    }
  }
}

TEST_CASE("an export in several files is read back at another number of ranks") {
  const TemporaryFolder folder;
  const auto report = test::on_ranks(3, [&](Communicator& comm) {
    Context context(comm, Strategy::zero3());
    Model model(context);
    model.initialize();
    return export_hugging_face(model.tensors, folder.name(), {.max_file_bytes = 580});
  })[0];
  const std::vector<std::string> files{
      "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
      "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
      "model.safetensors.index.json"};
  CHECK(report.files == files);
  CHECK(names_in(folder) == files);
  CHECK(folder.read(files[0]) == file_of({expected[0], expected[1]}));
  CHECK(folder.read(files[1]) == file_of({expected[2], expected[3], expected[4], expected[5]}));
  CHECK(folder.read(files[2]) == file_of({expected[6], expected[7], expected[8], expected[9]}));
  CHECK(folder.read(files[3]) == file_of({expected[10]}));
  const std::string index = folder.read(files[4]);
  CHECK_THAT(index, ContainsSubstring("\"total_size\": 1500"));
  CHECK_THAT(index, ContainsSubstring("\"h.1.b\": \"model-00003-of-00004.safetensors\""));
  const auto values = expected_values();
  for (const int world : {1, 2, 4, 7}) {
    for (const auto& found : test::on_ranks(world, [&](Communicator& comm) {
           Context context(comm, Strategy::zero3());
           Model model(context);
           (void)import_hugging_face(model.tensors, folder.name());
           return model.read();
         })) {
      REQUIRE(found == values);
    }
  }
  // A tensor larger than a file may be has one of its own.
  const TemporaryFolder one_each;
  test::on_ranks(3, [&](Communicator& comm) {
    Context context(comm, Strategy::zero3());
    Model model(context);
    model.initialize();
    return export_hugging_face(model.tensors, one_each.name(), {.max_file_bytes = 1});
  });
  CHECK(one_each.read("model-00001-of-00009.safetensors") == file_of({expected[0]}));
  CHECK(names_in(one_each).size() == 10);
}

TEST_CASE("types are converted where that is asked for, and rounded once") {
  for (const DType type : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    const TemporaryFolder folder;
    test::on_ranks(2, [&](Communicator& comm) {
      Context context(comm, Strategy::zero3());
      Model model(context);
      model.initialize();
      (void)export_hugging_face(model.tensors, folder.name(), {.dtype = type});
      return 0;
    });
    CHECK(folder.read("model.safetensors") == file_of(expected, type));

    const auto import = [&](Conversion conversion) {
      return test::on_ranks(3, [&](Communicator& comm) {
        Context context(comm, Strategy::zero3());
        Model model(context);
        try {
          (void)import_hugging_face(model.tensors, folder.name(), {.conversion = conversion});
        } catch (const FileError& error) {
          return std::pair(std::string(error.what()), model.read());
        }
        return std::pair(std::string(), model.read());
      })[0];
    };
    const auto [strict, untouched] = import(Conversion::none);
    CHECK_THAT(strict,
               ContainsSubstring("is of type " + std::string(name_of(safetensors_dtype(type)))));
    for (const auto& [name, values] : untouched) {
      CHECK(std::all_of(values.begin(), values.end(), [](double value) { return value == 0; }));
    }
    const auto [exact, ignored] = import(Conversion::exact);
    // The head is of bf16: nothing but bf16 goes there exactly.
    CHECK(exact.empty() == (type == DType::bf16));
    if (type != DType::bf16) CHECK_THAT(exact, ContainsSubstring("Conversion::rounding"));
    const auto [rounding, values] = import(Conversion::rounding);
    CHECK(rounding.empty());
    for (const Expected& tensor : expected) {
      if (count_of(tensor) == 0) continue;
      for (std::size_t i = 0; i < count_of(tensor); ++i) {
        const float held = value_of(tensor.name, i);
        double result = static_cast<double>(held);
        if (tensor.dtype == DType::bf16)
          result = static_cast<double>(static_cast<float>(bf16(held)));
        if (type == DType::bf16) result = static_cast<double>(static_cast<float>(bf16(held)));
        if (type == DType::f16) {
          result = static_cast<double>(static_cast<float>(f16(static_cast<float>(result))));
          if (tensor.dtype == DType::bf16) {
            result = static_cast<double>(static_cast<float>(bf16(static_cast<float>(result))));
          }
        }
        REQUIRE(values.at(tensor.name)[i] == result);
      }
    }
  }
}

TEST_CASE("conversions pass through a buffer that ends within tensors") {
  const TemporaryFolder folder;
  constexpr std::size_t count = (std::size_t{1} << 21) + 12345;  // more than a buffer of any type
  const auto value = [](const Layout::Tensor&, std::size_t element) {
    return static_cast<float>(element % 251);
  };
  test::on_ranks(2, [&](Communicator& comm) {
    Context context(comm, Strategy::zero3());
    test::Parameter<float> large(context, {{"large", {count}}});
    large.initialize(value);
    ModelTensors model(context);
    model.add(large);
    (void)export_hugging_face(model, folder.name(), {.dtype = DType::f64});
    return 0;
  });
  const auto wrong = test::on_ranks(1, [&](Communicator& comm) {
    Context context(comm, Strategy::zero3());
    test::Parameter<float> large(context, {{"large", {count}}});
    ModelTensors model(context);
    model.add(large);
    (void)import_hugging_face(model, folder.name(), {.conversion = Conversion::rounding});
    std::size_t differ = 0;
    large.read([&](const Layout::Tensor& tensor, std::size_t first, std::span<const float> part) {
      for (std::size_t i = 0; i < part.size(); ++i) {
        if (part[i] != value(tensor, first + i)) ++differ;
      }
    });
    return differ;
  });
  CHECK(wrong[0] == 0);
}

#ifndef SHARDWISE_TEST_CUDA
TEST_CASE("parameters in place: in the host's own memory where they are replicated") {
  constexpr std::size_t rows = 300;
  constexpr std::size_t columns = 70;  // more than the pages of a piece that moves
  const auto value = [](const Layout::Tensor& tensor, std::size_t element) {
    return value_of(tensor.name, element);
  };
  std::string first_bytes;
  for (const int world : test::worlds) {
    for (const Strategy& strategy : strategies_of(world)) {
      const TemporaryFolder folder;
      const auto wrong = test::on_ranks(world, [&](Communicator& comm) {
        Context context(comm, strategy);
        Arena arena(context, (rows * columns + columns) * sizeof(float), "weights");
        auto* const weights = arena.as<float>();
        ShardedParameter<float> layer(
            context, std::vector<HostTensor>{{"w", weights, {rows, columns}},
                                             {"b", weights + rows * columns, {columns}}});
        ModelTensors model(context);
        model.add(layer);
        layer.initialize(value);
        (void)export_hugging_face(model, folder.name());
        layer.initialize([](const Layout::Tensor&, std::size_t) { return 1.0f; });
        (void)import_hugging_face(model, folder.name());
        const auto lease = layer.gather();
        std::size_t differ = 0;
        for (std::size_t i = 0; i < rows * columns; ++i) {
          if (weights[i] != value_of("w", i)) ++differ;
        }
        for (std::size_t i = 0; i < columns; ++i) {
          if (weights[rows * columns + i] != value_of("b", i)) ++differ;
        }
        return differ;
      });
      INFO(strategy.name() << ", " << world << " ranks");
      for (const std::size_t differ : wrong) CHECK(differ == 0);
      const std::string bytes = folder.read("model.safetensors");
      if (first_bytes.empty()) first_bytes = bytes;
      CHECK(bytes == first_bytes);
    }
  }
}
#endif

// What every rank was told, which is the same; empty: nothing.
std::string refusal(int world, const std::function<void(Communicator&)>& body) {
  const auto messages = test::on_ranks(world, [&](Communicator& comm) {
    try {
      body(comm);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  });
  for (const std::string& message : messages) CHECK(message == messages[0]);
  return messages[0];
}

std::string refused_import(const std::string& directory, const ImportOptions& options = {}) {
  return refusal(3, [&](Communicator& comm) {
    Context context(comm, Strategy::zero3());
    Model model(context);
    (void)import_hugging_face(model.tensors, directory, options);
  });
}

TEST_CASE("missing, extra and mis-shaped tensors are errors by name, unless asked for otherwise") {
  std::vector<Expected> list = expected;
  list.erase(list.begin() + 1);  // wpe
  list.push_back({"lm_head.weight", {7, 5}, DType::f32});
  const TemporaryFolder folder;
  folder.write("model.safetensors", file_of(list));
  const std::string message = refused_import(folder.name());
  CHECK_THAT(message, ContainsSubstring("model.safetensors") &&
                          ContainsSubstring("(2 differences)") &&
                          ContainsSubstring("'wpe' is missing") &&
                          ContainsSubstring("'lm_head.weight' is not in the model"));
  const auto only = [](std::string_view wanted) {
    return [wanted](std::string_view name) { return name == wanted; };
  };
  CHECK_THAT(refused_import(folder.name(), {.may_be_missing = only("wpe")}),
             ContainsSubstring("(1 differences)") && ContainsSubstring("'lm_head.weight'"));
  CHECK_THAT(refused_import(folder.name(), {.may_be_extra = only("lm_head.weight")}),
             ContainsSubstring("(1 differences)") && ContainsSubstring("'wpe'"));

  for (const Strategy& strategy : strategies_of(3)) {
    std::vector<ImportReport> reports(3);
    const auto found = test::on_ranks(3, [&](Communicator& comm) {
      Context context(comm, strategy);
      Model model(context);
      model.initialize();
      model.embedding.initialize(
          [](const auto&, std::size_t i) { return 100.0f + static_cast<float>(i); });
      reports[static_cast<std::size_t>(comm.rank())] = import_hugging_face(
          model.tensors, folder.name(),
          {.may_be_missing = only("wpe"), .may_be_extra = only("lm_head.weight")});
      return model.read();
    });
    for (const ImportReport& report : reports) {
      CHECK(report.missing == std::vector<std::string>{"wpe"});
      CHECK(report.extra == std::vector<std::string>{"lm_head.weight"});
    }
    auto values = expected_values();
    for (std::size_t i = 0; i < 15; ++i) values["wpe"][i] = 100.0 + static_cast<double>(i);
    for (const auto& rank : found) CHECK(rank == values);
  }

  list = expected;
  list[0].shape = {5, 7};
  folder.write("model.safetensors", file_of(list));
  CHECK_THAT(refused_import(folder.name()),
             ContainsSubstring("'wte' has the shape [5, 7] in the file and [7, 5] in the model"));
}

TEST_CASE("a rank that sees no file, or another one, is an error on all ranks") {
  const TemporaryFolder folder;
  folder.write("a/model.safetensors", file_of(expected));
  std::vector<Expected> turned = expected;
  std::swap(turned[0], turned[1]);
  folder.write("b/model.safetensors", file_of(turned));
  const auto import = [&](const std::string& first, const std::string& last) {
    return refusal(3, [&](Communicator& comm) {
      Context context(comm, Strategy::zero3());
      Model model(context);
      (void)import_hugging_face(model.tensors, folder.name() + (comm.rank() == 2 ? last : first));
    });
  };
  CHECK_THAT(import("/a", "/c"), ContainsSubstring("rank 2: ") &&
                                     ContainsSubstring("/c: there is neither model.safetensors"));
  CHECK_THAT(import("/c", "/a"), ContainsSubstring("rank 0: "));
  CHECK_THAT(
      refusal(3,
              [&](Communicator& comm) {
                Context context(comm, Strategy::zero3());
                Model model(context);
                const std::string place = comm.rank() == 1 ? "/b" : "/a";
                try {
                  (void)import_hugging_face(model.tensors, folder.name() + place);
                } catch (const FileError& error) {
                  throw FileError(std::string(error.what()).substr(folder.name().size() + 2));
                }
              }),
      ContainsSubstring("rank 1 sees other files there than rank 0"));
  CHECK(import("/a", "/a").empty());
}

TEST_CASE("a rank that cannot read what is there any more ends the import on all ranks") {
  const TemporaryFolder folder;
  std::vector<Expected> list = expected;
  list.insert(list.begin(), {"extra", {1}, DType::f32});
  const std::string bytes = file_of(list);
  folder.write("model.safetensors", bytes);
  // The last elements of the file are the last rank's alone.
  const std::string message = refusal(3, [&](Communicator& comm) {
    Context context(comm, Strategy::zero3());
    Model model(context);
    const auto shorten = [&](std::string_view) {
      barrier(comm);  // all have opened it
      if (comm.rank() == 0) {
        std::filesystem::resize_file(folder.path() / "model.safetensors", bytes.size() - 1);
      }
      barrier(comm);
      return true;
    };
    (void)import_hugging_face(model.tensors, folder.name(), {.may_be_extra = shorten});
  });
  CHECK_THAT(message, ContainsSubstring("rank 2: ") && ContainsSubstring("made it shorter") &&
                          ContainsSubstring("the parameters are partly written"));
}

TEST_CASE("index and files that disagree are refused") {
  const TemporaryFolder folder;
  folder.write("one.safetensors", file_of({expected[0]}));
  folder.write("two.safetensors", file_of({expected[1]}));
  const auto refused = [&](const std::string& index) {
    folder.write("model.safetensors.index.json", index);
    try {
      const HuggingFaceFiles files(folder.name());
    } catch (const FileError& error) {
      return std::string(error.what());
    }
    return std::string("it was opened");
  };
  const std::string map = R"("weight_map": {"wte": "one.safetensors", "wpe": "two.safetensors"})";
  CHECK(refused("{" + map + "}") == "it was opened");
  CHECK(refused(R"({"metadata": {"total_size": 200}, )" + map + "}") == "it was opened");
  CHECK_THAT(refused(R"({"metadata": {"total_size": 201}, )" + map + "}"),
             ContainsSubstring("metadata.total_size: 201, but the tensors have 200 bytes"));
  CHECK_NOTHROW(HuggingFaceFiles(folder.name(), "model", false));
  CHECK_THAT(refused(R"({"weight_map": {"wte": "one.safetensors", "wpe": "one.safetensors"}})"),
             ContainsSubstring("weight_map.'wpe': 'one.safetensors' has no such tensor"));
  folder.write("two.safetensors", file_of({expected[1], expected[2]}));
  CHECK_THAT(refused("{" + map + "}"),
             ContainsSubstring("tensor 'h.0.attn.weight' of 'two.safetensors' is not listed"));
  folder.write("two.safetensors", file_of({expected[1], expected[0]}));
  CHECK_THAT(refused("{" + map + "}"),
             ContainsSubstring("tensor 'wte' of 'two.safetensors' is listed as another file's"));
  CHECK_THAT(refused(R"({"weight_map": {}})"), ContainsSubstring("weight_map: it names no file"));
  for (const std::string path : {"../x", "/etc/passwd", "a/../one.safetensors", "absent"}) {
    CHECK_THAT(refused(R"({"weight_map": {"wte": ")" + path + R"("}})"),
               ContainsSubstring(folder.name()));
  }
  std::filesystem::create_symlink("one.safetensors", folder.path() / "link.safetensors");
  CHECK_THAT(refused(R"({"weight_map": {"wte": "link.safetensors"}})"),
             ContainsSubstring("'link.safetensors' is a symbolic link"));
  std::filesystem::create_symlink("one.safetensors", folder.path() / "model.safetensors");
  CHECK_THAT(refused("{}"), ContainsSubstring("'model.safetensors' is a symbolic link"));
}

TEST_CASE("nothing is overwritten, and a failed export leaves nothing") {
  const auto export_to = [](int world, const std::function<std::string(int)>& directory,
                            ExportOptions options = {}) {
    return refusal(world, [&](Communicator& comm) {
      Context context(comm, Strategy::zero3());
      Model model(context);
      model.initialize();
      (void)export_hugging_face(model.tensors, directory(comm.rank()), options);
    });
  };
  for (const std::string name :
       {"model.safetensors", "model.safetensors.index.json", "model-00002-of-00003.safetensors"}) {
    const TemporaryFolder folder;
    folder.write(name, "precious");
    CHECK_THAT(export_to(3, [&](int) { return folder.name(); }),
               ContainsSubstring(folder.name() + ": there is " + name + " already"));
    CHECK(folder.read(name) == "precious");
    CHECK(names_in(folder).size() == 1);
  }
  const TemporaryFolder folder;
  for (const std::string name :
       {"other.safetensors", "model-of-.safetensors", "model-1-of-x.safetensors", "model"}) {
    folder.write(name, "others'");
  }
  const TemporaryFolder elsewhere;
  const std::string message = export_to(4, [&](int rank) {
    return (rank == 2 ? elsewhere : folder).name();  // as where directories are not shared
  });
  CHECK_THAT(message, ContainsSubstring("rank 2: " + elsewhere.name()) &&
                          ContainsSubstring("Writers::one_rank"));
  CHECK(names_in(folder).size() == 4);
  CHECK(names_in(elsewhere).empty());
  // There that is no error.
  CHECK(export_to(4, [&](int rank) { return (rank == 2 ? elsewhere : folder).name(); },
                  {.writers = Writers::one_rank})
            .empty());
  CHECK(folder.read("model.safetensors") == file_of(expected));
  CHECK(names_in(elsewhere).empty());
  folder.write("file", "");
  CHECK_THAT(export_to(2, [&](int) { return folder.name() + "/file/x"; }),
             ContainsSubstring("rank 0: ") && ContainsSubstring("cannot make the directory"));
}

TEST_CASE("a flat export has the order that the host wants") {
  for (const bool backwards : {false, true}) {
    const TemporaryFolder folder;
    FlatExportOptions options;
    options.dtype = DType::f32;
    std::vector<Expected> list = expected;
    if (backwards) {
      std::reverse(list.begin(), list.end());
      for (const Expected& tensor : list) options.order.push_back(tensor.name);
    }
    test::on_ranks(3, [&](Communicator& comm) {
      Context context(comm, Strategy::zero3());
      Model model(context);
      model.initialize();
      (void)export_flat(model.tensors, folder.name(), "weights", options);
      return 0;
    });
    std::string bytes;
    for (const Expected& tensor : list) bytes += bytes_of(tensor, DType::f32);
    CHECK(names_in(folder) == std::vector<std::string>{"weights.bin", "weights.json"});
    CHECK(folder.read("weights.bin") == bytes);
    const std::string description = folder.read("weights.json");
    CHECK_THAT(description, ContainsSubstring(R"("bytes": 1640)"));
    CHECK_THAT(
        description,
        ContainsSubstring(
            backwards ? R"({"name": "norm", "dtype": "F32", "shape": [70], "offset": 0})"
                      : R"({"name": "wpe", "dtype": "F32", "shape": [3, 5], "offset": 140})"));
  }
}

TEST_CASE("wrong use is an error on all ranks") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::function<void(Context&, Model&)>& use) {
    return refusal(2, [&](Communicator& comm) {
      Context context(comm, Strategy::zero3());
      Model model(context);
      use(context, model);
    });
  };
  CHECK_THAT(refused([](Context&, Model& model) { model.tensors.add(model.embedding); }),
             ContainsSubstring("'wte'") && ContainsSubstring("unique"));
  CHECK_THAT(refused([](Context&, Model& model) {
               model.tensors.add(*model.blocks[0], [](auto) { return std::string(); });
             }),
             ContainsSubstring("empty name"));
  CHECK_THAT(refused([&](Context&, Model& model) {
               (void)export_hugging_face(model.tensors, folder.name(), {.dtype = DType::i32});
             }),
             ContainsSubstring("i32"));
  CHECK_THAT(refused([&](Context&, Model& model) {
               (void)export_flat(model.tensors, folder.name(), "x", {.order = {"wte"}});
             }),
             ContainsSubstring("'wpe' is missing"));
  CHECK_THAT(refused([&](Context&, Model& model) {
               (void)export_flat(model.tensors, folder.name(), "x", {.order = {"wte", "wte"}});
             }),
             ContainsSubstring("'wte' is there twice"));
  CHECK_THAT(refused([&](Context& context, Model& model) {
               const std::string stem = context.rank() == 1 ? "a" : "b";
               (void)export_hugging_face(model.tensors, folder.name(), {.stem = stem});
             }),
             ContainsSubstring("rank 1 has other tensors, or options, than rank 0"));
  folder.write("model.safetensors", file_of(expected));
  CHECK_THAT(refused([&](Context&, Model& model) {
               const auto lease = model.embedding.gather();
               (void)import_hugging_face(model.tensors, folder.name());
             }),
             ContainsSubstring("lease(s) of it are open"));
}

}  // namespace
