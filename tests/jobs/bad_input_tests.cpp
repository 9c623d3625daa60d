/// @file Input that is wrong: the exit code tells what kind, one line says what and where, nothing is left
/// half-written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <sstream>

#include "io/safetensors.hpp"
#include "tests/jobs/gptq_dist.hpp"
#include "tests/support/host_model.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using gptqd::test::HostModel;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int usage = 64;
constexpr int input = 65;
constexpr int io_error = 74;

/// What is wrong with a run: options that differ from those of a quick run. Files are made below `folder`.
using Mistake = std::function<Options(const fs::path& folder)>;

struct Row {
  std::string name;
  Mistake mistake;
  int code;
  std::vector<std::string> words;  ///< all in the one line
  std::vector<int> ranks{1};
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

/// Our own lines of a job's stderr, among the launcher's.
std::vector<std::string> our_lines(const std::string& err) {
  std::vector<std::string> lines;
  std::istringstream text(err);
  for (std::string line; std::getline(text, line);) {
    if (line.find("gptq-dist:") != std::string::npos) {
      lines.push_back(line);
    }
  }
  return lines;
}

class BadInput : public ::testing::TestWithParam<Row> {};

TEST_P(BadInput, EndsWithItsCodeAndOneLineAndLeavesNothing) {
  const auto& row = GetParam();
  for (const int ranks : row.ranks) {
    const TemporaryFolder folder;
    const auto out = folder / "out";
    const auto options = quick_run(out, row.mistake(folder.path()));

    const auto result = gptq_dist(ranks, options);

    EXPECT_EQ(result.code, row.code) << ranks << " rank(s)\n" << result.err;
    const auto lines = our_lines(result.err);
    ASSERT_EQ(lines.size(), 1u) << ranks << " rank(s)\n" << result.err;
    for (const auto& word : row.words) {
      EXPECT_THAT(lines.front(), HasSubstr(word));
    }
    EXPECT_FALSE(fs::exists(out));
    EXPECT_THAT(half_written(folder.path()), IsEmpty());
    EXPECT_THAT(result.out, IsEmpty());
  }
}

Mistake option(const std::string& name, const std::string& value) {
  return [=](const fs::path&) { return Options{{name, value}}; };
}

/// A copy of the demo's folder, changed.
Mistake changed_files(const std::function<void(const fs::path& model)>& change) {
  return [=](const fs::path& folder) {
    fs::copy(demo_model(), folder / "model");
    change(folder / "model");
    return Options{{"--model", folder / "model"}};
  };
}

/// A copy of the demo model with other tensors or another config.json.
Mistake changed_model(const std::function<void(HostModel& model)>& change) {
  return changed_files([=](const fs::path& folder) {
    auto model = HostModel::read(folder);
    change(model);
    model.write(folder);
  });
}

/// A model whose one file has this header and this many bytes behind it.
Mistake header(const std::string& text, std::size_t data_bytes, std::optional<std::uint64_t> length = std::nullopt) {
  return changed_files([=](const fs::path& model) {
    std::string file(8, '\0');
    const std::uint64_t bytes = length.value_or(text.size());
    std::memcpy(file.data(), &bytes, sizeof(bytes));
    write_text(model / "model.safetensors", file + text + std::string(data_bytes, '\0'));
  });
}

Mistake calibration(const std::string& name, const std::string& text) {
  return [=](const fs::path& folder) {
    write_text(folder / name, text);
    return Options{{"--calibration", folder / name}};
  };
}

/// A token file of 16 windows of 128 tokens, one of them replaced.
Mistake token(std::int32_t value) {
  return [=](const fs::path& folder) {
    std::vector<std::int32_t> ids(16 * 128, 5);
    ids[3 * 128 + 17] = value;
    io::SafetensorsWriter writer(folder / "tokens.safetensors",
                                 {{.name = "input_ids", .dtype = DType::i32, .shape = {16, 128}}});
    writer.append("input_ids", std::as_bytes(std::span(ids)));
    writer.commit();
    return Options{{"--calibration", folder / "tokens.safetensors"}};
  };
}

const std::string fc1 = "model.decoder.layers.1.fc1.weight";

const std::vector<Row> rows{
    // Usage.
    {"bits_5", option("--bits", "5"), usage, {"--bits", "5"}, {1, 2}},
    {"bits_in_words", option("--bits", "four"), usage, {"bits", "four"}},
    {"unknown_option", option("--bitz", "4"), usage, {"--bitz", "--help"}, {1, 2}},
    {"abbreviated_option", option("--hessian-l", "4"), usage, {"--hessian-l"}},
    {"no_samples", option("--samples", "0"), usage, {"--samples", "0"}},
    {"negative_seqlen", option("--seqlen", "-1"), usage, {"--seqlen", "-1"}},
    {"group_size_that_does_not_divide", option("--group-size", "96"), usage, {"96", "256"}, {1, 2}},
    {"group_size_zero", option("--group-size", "0"), usage, {"--group-size"}},
    {"leaves_no_power_of_two", option("--hessian-leaves", "6"), usage, {"--hessian-leaves", "6", "power of two"}},
    {"damping_zero", option("--damping", "0"), usage, {"--damping"}},
    {"unknown_order", option("--act-order", "sideways"), usage, {"--act-order", "sideways", "static"}},
    {"unknown_clip", option("--clip", "hard"), usage, {"--clip", "hard", "mse"}},
    {"unknown_method", option("--method", "magic"), usage, {"--method", "magic", "gptq"}},
    {"unknown_device", option("--device", "tpu"), usage, {"--device", "tpu"}},
    {"unknown_precision", option("--solver-precision", "f16"), usage, {"--solver-precision", "f16"}},
    {"unknown_activations", option("--activations", "disk"), usage, {"--activations", "disk", "parked"}},
    {"sym_and_asym",
     [](const fs::path&) {
       return Options{{"--sym", ""}, {"--asym", ""}};
     },
     usage,
     {"--sym", "--asym"}},
    {"no_stall_seconds", option("--stall-seconds", "0"), usage, {"--stall-seconds", "0"}, {1, 2}},
    {"negative_threads", option("--threads", "-1"), usage, {"--threads", "-1"}},
    {"stages_that_do_not_divide_the_ranks", option("--stages", "3"), usage, {"3", "2", "stages"}, {2}},
    {"more_stages_than_blocks",
     [](const fs::path&) {
       return Options{{"--stages", "7"}};
     },
     usage,
     {"stages", "7"},
     {1}},
    {"windows_longer_than_the_positions",
     [](const fs::path&) {
       return Options{{"--seqlen", "4096"}, {"--calibration", source_path("jobs/demo/calib.txt")}};
     },
     usage,
     {"4096", "2048 positions", "--seqlen"},
     {1, 2}},
    {"a_config_file_that_is_missing", option("--config", "absent.ini"), usage, {"--config", "absent.ini"}},

    // The model.
    {"missing_model",
     [](const fs::path& folder) {
       return Options{{"--model", folder / "absent"}};
     },
     input,
     {"absent"},
     {1, 2}},
    {"folder_without_a_model",
     [](const fs::path& folder) {
       return Options{{"--model", folder}};
     },
     input,
     {"config.json"}},
    {"config_that_is_no_json",
     changed_files([](const fs::path& model) { write_text(model / "config.json", "{\"model_type\": "); }),
     input,
     {"config.json", "JSON"}},
    {"no_weights",
     changed_files([](const fs::path& model) { fs::remove(model / "model.safetensors"); }),
     input,
     {"model.safetensors"}},
    {"truncated_weights",
     changed_files([](const fs::path& model) { fs::resize_file(model / "model.safetensors", 5'000'000); }),
     input,
     {"model.safetensors"},
     {1, 2}},
    {"empty_weights",
     changed_files([](const fs::path& model) { fs::resize_file(model / "model.safetensors", 0); }),
     input,
     {"model.safetensors"}},
    {"header_larger_than_the_file", header("{}", 0, 1'000'000), input, {"model.safetensors", "header"}},
    {"header_of_an_absurd_length", header("{}", 0, std::uint64_t{1} << 63), input, {"model.safetensors", "header"}},
    {"header_that_is_no_json", header("{\"a\": [", 0), input, {"model.safetensors"}},
    {"overlapping_tensors",
     header(
         R"({"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[4],"data_offsets":[4,12]}})",
         12),
     input,
     {"model.safetensors", "b"}},
    {"missing_tensor", changed_model([](HostModel& model) { model.remove(fc1); }), input, {fc1}, {1, 2}},
    {"wrong_shape",
     changed_model([](HostModel& model) {
       model.at(fc1).shape = {256, 1024};
     }),
     input,
     {fc1, "[256, 1024]", "[1024, 256]"}},
    {"unsupported_family",
     changed_model([](HostModel& model) { model.config["model_type"] = "mamba"; }),
     input,
     {"mamba", "llama, mistral, opt"}},
    {"unsupported_activation",
     changed_model([](HostModel& model) { model.config["activation_function"] = "gelu"; }),
     input,
     {"gelu"}},
    {"quantized_already",
     changed_model([](HostModel& model) {
       model.config["quantization_config"] = {{"quant_method", "gptq"}};
     }),
     input,
     {"quantized already"}},
    // Block 1 is read by rank 1 where there are two.
    {"weight_that_is_no_number",
     changed_model(
         [](HostModel& model) { model.at(fc1).set(300 * 256 + 41, std::numeric_limits<float>::quiet_NaN()); }),
     input,
     {fc1, "row 300, column 41", "block 1"},
     {1, 2}},
    {"infinite_embedding",
     changed_model([](HostModel& model) {
       model.at("model.decoder.embed_tokens.weight").set(7, std::numeric_limits<float>::infinity());
     }),
     input,
     {"embed_tokens.weight", "row 0, column 7"},
     {1, 2}},
    {"activations_that_overflow",
     changed_model([](HostModel& model) {
       for (auto& tensor : model.tensors) {
         tensor = to_dtype(tensor, DType::f32);
       }
       model.at("model.decoder.layers.1.final_layer_norm.weight").set(9, 3e38f);
     }),
     input,
     {"layers.1.fc1", "sample", "channel 9"},
     {1, 2}},

    // The calibration.
    {"missing_calibration",
     [](const fs::path& folder) {
       return Options{{"--calibration", folder / "absent.txt"}};
     },
     input,
     {"absent.txt"},
     {1, 2}},
    {"folder_as_calibration",
     [](const fs::path& folder) {
       return Options{{"--calibration", folder}};
     },
     input,
     {"gptqd-test"}},
    {"empty_calibration", calibration("empty.txt", ""), input, {"empty.txt", "empty"}},
    {"short_calibration", calibration("short.txt", "A text of a few words."), input, {"short.txt", "128"}, {1, 2}},
    {"token_file_that_is_none", calibration("tokens.safetensors", "not tokens"), input, {"tokens.safetensors"}},
    {"more_samples_than_the_token_file_has",
     option("--samples", "129"),
     input,
     {"calib_tokens.safetensors", "129", "128"}},
    {"longer_windows_than_the_token_file_has",
     option("--seqlen", "513"),
     input,
     {"calib_tokens.safetensors", "513", "512"}},
    {"token_outside_the_vocabulary", token(8192), input, {"8192", "3", "17"}, {1, 2}},
    {"negative_token", token(-1), input, {"-1"}},

    // Places to write to.
    {"out_below_a_file",
     [](const fs::path& folder) {
       write_text(folder / "file", "");
       return Options{{"--out", folder / "file/out"}};
     },
     io_error,
     {"--out", "file/out"},
     {1, 2}},
    {"work_folder_of_something_else",
     [](const fs::path& folder) {
       fs::create_directories(folder / "thesis");
       write_text(folder / "thesis/thesis.tex", "");
       return Options{{"--work", folder / "thesis"}};
     },
     usage,
     {"thesis.tex", "--work"}},
};

INSTANTIATE_TEST_SUITE_P(All, BadInput, ::testing::ValuesIn(rows), [](const auto& info) { return info.param.name; });

TEST(BadInputOfQuantize, AnOutThatHoldsSomethingElseIsRefusedAndLeftAlone) {
  for (const int ranks : {1, 2}) {
    const TemporaryFolder folder;
    fs::create_directories(folder / "out");
    write_text(folder / "out/thesis.tex", "years of work");

    const auto result = gptq_dist(ranks, quick_run(folder / "out"));

    EXPECT_EQ(result.code, usage);
    EXPECT_THAT(our_lines(result.err), ElementsAre(HasSubstr("choose another --out"))) << result.err;
    EXPECT_EQ(checksums(folder / "out").size(), 1u);
    EXPECT_EQ(read_text(folder / "out/thesis.tex"), "years of work");
    EXPECT_THAT(half_written(folder.path()), IsEmpty());
  }
}

TEST(BadInputOfQuantize, AnOutThatCannotBeWrittenIsNoticedBeforeTheWork) {
  const TemporaryFolder folder;
  write_text(folder / "file", "");

  const auto result = gptq_dist(1, quick_run(folder / "file/out", {{"--work", folder / "work"}}));

  EXPECT_EQ(result.code, io_error);
  EXPECT_THAT(our_lines(result.err), ElementsAre(HasSubstr("file/out"))) << result.err;
  EXPECT_THAT(result.err, ::testing::Not(HasSubstr("block 1 of 6")));
}

TEST(BadInputOfQuantize, AReportThatCannotBeWrittenIsNoticedBeforeTheWork) {
  const TemporaryFolder folder;
  write_text(folder / "file", "");

  const auto result = gptq_dist(1, quick_run(folder / "out", {{"--report", folder / "file/report.json"}}));

  EXPECT_EQ(result.code, io_error);
  EXPECT_THAT(our_lines(result.err), ElementsAre(HasSubstr("file/report.json"))) << result.err;
  EXPECT_THAT(result.err, ::testing::Not(HasSubstr("block 1 of 6")));
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(BadInputOfQuantize, NoModelIsSaid) {
  const auto result = gptq_dist(1, Words{"quantize"});

  EXPECT_EQ(result.code, usage);
  EXPECT_THAT(our_lines(result.err), ElementsAre(HasSubstr("--model")));
}

TEST(BadInputOfQuantize, AnUnknownCommandIsRefusedByName) {
  for (const int ranks : {1, 2}) {
    const auto result = gptq_dist(ranks, Words{"quantise", "--model", demo_model()});

    EXPECT_EQ(result.code, usage);
    EXPECT_THAT(our_lines(result.err),
                ElementsAre(::testing::AllOf(HasSubstr("quantise"), HasSubstr("quantize, plan, status, merge"))));
  }
}

TEST(BadInputOfEval, EndsWithItsCodeAndOneLine) {
  const TemporaryFolder folder;
  const std::string text = source_path("jobs/demo/eval.txt");
  write_text(folder / "short.txt", "A few words.");
  const std::vector<std::tuple<Words, int, std::string>> cases{
      {{"eval", "--model", demo_model()}, usage, "--text is missing"},
      {{"eval", "--text", text}, usage, "--model is missing"},
      {{"eval", "--model", folder / "absent", "--text", text}, input, "absent"},
      {{"eval", "--model", demo_model(), "--text", folder / "absent.txt"}, input, "absent.txt"},
      {{"eval", "--model", demo_model(), "--text", folder / "short.txt"}, input, "short.txt"},
      {{"eval", "--model", demo_model(), "--text", text, "--seqlen", "1"}, usage, "--seqlen"},
      {{"eval", "--model", demo_model(), "--text", text, "--seqlen", "4096"}, usage, "2048 positions"},
      {{"eval", "--model", demo_model(), "--text", text, "--windows", "-1"}, usage, "--windows"},
  };
  for (const auto& [words, code, message] : cases) {
    const auto result = gptq_dist(1, words);

    EXPECT_EQ(result.code, code) << message;
    EXPECT_THAT(our_lines(result.err), ElementsAre(HasSubstr(message))) << result.err;
  }
}

TEST(BadInputOfMerge, EndsWithItsCodeAndOneLine) {
  const TemporaryFolder folder;
  const std::vector<std::tuple<Words, int, std::string>> cases{
      {{"merge"}, usage, "--work is missing"},
      {{"merge", folder / "work"}, usage, "--out is missing"},
      {{"merge", folder / "work", "--out", folder / "out"}, input, "run.json"},
      {{"merge", folder / "work", folder / "more", "--out", folder / "out"}, usage, "merge --help"},
      {{"merge", folder / "work", "--out", folder / "out", "--max-shard-size", "0"}, usage, "--max-shard-size"},
  };
  for (const auto& [words, code, message] : cases) {
    const auto result = gptq_dist(1, words);

    EXPECT_EQ(result.code, code) << message;
    EXPECT_THAT(our_lines(result.err), ElementsAre(HasSubstr(message))) << result.err;
    EXPECT_TRUE(fs::is_empty(folder.path()));
  }
}

}  // namespace
}  // namespace gptqd::jobs::test
