#include <gmock/gmock.h>

#include <map>
#include <utility>

#include "io/artifact/artifact_reader.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using nlohmann::json;
using test::bytes_of;
using test::error_of;
using test::expect_same_layer;
using test::random_linear;
using test::write_text;
using testing::AllOf;
using testing::HasSubstr;

/// A folder with one quantized module "m" [8, 16] at 4 bits, group size 8, whose tensors a test may change.
class ForeignArtifact : public testing::Test {
 protected:
  ForeignArtifact() {
    layer_ = random_linear("m", 8, 16, 4, 8, true, 5);
    tensors_ = {{"m.qweight", DType::i32, {2, 8}},
                {"m.qzeros", DType::i32, {2, 1}},
                {"m.scales", DType::f16, {2, 8}},
                {"m.g_idx", DType::i32, {16}}};
    const auto qzeros = pack_qzeros({layer_.zeros.data(), {2, 8}}, 4, ZeroFormat::v1);
    data_["m.qweight"] = text_of(layer_.qweight);
    data_["m.qzeros"] = text_of(qzeros);
    data_["m.scales"] = text_of(layer_.scales);
    data_["m.g_idx"] = text_of(layer_.g_idx);
    config_ = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 8}};
  }

  static std::string text_of(const auto& numbers) {
    const auto bytes = std::as_bytes(std::span(numbers));
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  std::unique_ptr<ArtifactReader> open() {
    SafetensorsWriter writer(folder_ / "model.safetensors", tensors_);
    for (const auto& tensor : tensors_) {
      writer.append(tensor.name, bytes_of(data_[tensor.name]).first(static_cast<std::size_t>(tensor.bytes())));
    }
    writer.commit();
    write_text(folder_ / "config.json", json{{"quantization_config", config_}}.dump());
    return ArtifactReader::open(folder_.path());
  }

  std::string refusal() {
    const Error error = error_of([&] { open()->read_linear("m"); });
    EXPECT_EQ(error.kind(), ErrorKind::input);
    return error.message();
  }

  TemporaryFolder folder_;
  PackedLinear layer_;
  std::vector<TensorDeclaration> tensors_;
  std::map<std::string, std::string> data_;
  json config_;
};

TEST_F(ForeignArtifact, OldFilesWithoutGIdxAndFormatAreRead) {
  tensors_.pop_back();

  expect_same_layer(open()->read_linear("m"), layer_);
}

TEST_F(ForeignArtifact, OneGroupMayBeWrittenAsNull) {
  config_["group_size"] = nullptr;
  tensors_[1].shape = {1, 1};
  tensors_[2].shape = {1, 8};
  tensors_.pop_back();

  const auto linear = open()->read_linear("m");

  EXPECT_EQ(linear.groups(), 1);
  EXPECT_THAT(linear.g_idx, testing::Each(0));
}

TEST_F(ForeignArtifact, WrongTypesAndShapesAreRefused) {
  const auto with = [this](std::size_t tensor, TensorDeclaration declaration) {
    auto kept = std::exchange(tensors_[tensor], std::move(declaration));
    const std::string message = refusal();
    tensors_[tensor] = std::move(kept);
    return message;
  };

  EXPECT_THAT(with(0, {"m.qweight", DType::f32, {2, 8}}),
              HasSubstr("m.qweight: F32 with 2 dimensions, expected I32 with 2"));
  EXPECT_THAT(with(0, {"m.qweight", DType::i32, {16}}), HasSubstr("I32 with 1 dimensions"));
  EXPECT_THAT(with(0, {"m.qweight", DType::i32, {2, 7}}), HasSubstr("7 output features are not a multiple of 8"));
  EXPECT_THAT(with(1, {"m.qzeros", DType::i32, {1, 2}}), HasSubstr("m.qzeros: I32 [1, 2], expected I32 [2, 1]"));
  EXPECT_THAT(with(2, {"m.scales", DType::i16, {2, 8}}), HasSubstr("m.scales: I16 [2, 8], expected F16 [2, 8]"));
  EXPECT_THAT(with(3, {"m.g_idx", DType::i32, {15}}), HasSubstr("m.g_idx: I32 [15], expected I32 [16]"));
  EXPECT_THAT(with(1, {"m.other", DType::i32, {0}}), HasSubstr("no tensor \"m.qzeros\""));
}

TEST_F(ForeignArtifact, ValuesOutOfRangeAreRefused) {
  layer_.g_idx[3] = 2;
  data_["m.g_idx"] = text_of(layer_.g_idx);

  EXPECT_THAT(refusal(), HasSubstr("m: g_idx[3] is 2, expected a group from 0 to 1"));
}

TEST_F(ForeignArtifact, SettingsThatWeCannotReadAreRefused) {
  const auto with = [this](const char* key, const json& value) {
    const json kept = config_;
    config_[key] = value;
    const std::string message = refusal();
    config_ = kept;
    return message;
  };

  EXPECT_THAT(with("quant_method", "awq"),
              HasSubstr("quant_method is \"awq\"; known are \"gptq\" and \"compressed-tensors\""));
  EXPECT_THAT(with("bits", 5), HasSubstr("5 bits"));
  EXPECT_THAT(with("bits", "4"), HasSubstr("expected an integer, got \"4\""));
  EXPECT_THAT(with("group_size", 0), HasSubstr("group_size is 0"));
  EXPECT_THAT(with("checkpoint_format", "marlin"), HasSubstr("checkpoint_format is \"marlin\""));
  EXPECT_THAT(with("group_size", std::int64_t{1} << 60),
              HasSubstr("not a multiple of the group size 1152921504606846976"));
}

TEST_F(ForeignArtifact, DynamicActOrderNeedsGIdx) {
  config_["desc_act"] = true;
  tensors_.pop_back();

  EXPECT_THAT(refusal(), HasSubstr("no tensor \"m.g_idx\""));
}

TEST_F(ForeignArtifact, ScalesOfOtherTypesAreReadWhereTheyAreFloat16Numbers) {
  std::vector<float> scales;
  for (const auto scale : layer_.scales) {
    scales.push_back(to_float(scale));
  }
  tensors_[2].dtype = DType::f32;
  data_["m.scales"] = text_of(scales);

  expect_same_layer(open()->read_linear("m"), layer_);

  scales[5] += 1e-7f;
  data_["m.scales"] = text_of(scales);
  EXPECT_THAT(refusal(), HasSubstr("is no float16 number"));
}

TEST_F(ForeignArtifact, SaysWhatAModuleIsWithoutItsCodes) {
  config_["desc_act"] = true;

  const auto natural = open()->layer("m");
  EXPECT_EQ(natural.rows, 8);
  EXPECT_EQ(natural.cols, 16);
  EXPECT_EQ(natural.settings, (LayerSettings{.bits = 4, .group_size = 8, .sym = true, .reordered = false}));

  std::swap(layer_.g_idx[0], layer_.g_idx[15]);
  data_["m.g_idx"] = text_of(layer_.g_idx);
  EXPECT_TRUE(open()->layer("m").settings.reordered);
}

TEST_F(ForeignArtifact, TensorsOfNoPackedModulePass) {
  tensors_.push_back({"m.bias", DType::f16, {8}});
  tensors_.push_back({"n.scales", DType::f16, {1}});
  data_["m.bias"] = std::string(16, 'x');
  data_["n.scales"] = "yy";

  const auto reader = open();

  EXPECT_THAT(reader->passing_names(), testing::ElementsAre("m.bias", "n.scales"));
  EXPECT_THAT(reader->linear_names(), testing::ElementsAre("m"));
}

/// What compressed-tensors packed (tests/golden/packing), as a folder of one of its cases.
class CompressedTensorsGolden : public testing::TestWithParam<const char*> {
 protected:
  struct Case {
    json entry;
    TemporaryFolder folder;
  };

  template <class T>
  std::vector<T> read(const std::string& name) const {
    const TensorInfo& info = file_.at(name);
    std::vector<T> data(static_cast<std::size_t>(info.bytes) / sizeof(T));
    file_.read(info, std::as_writable_bytes(std::span(data)));
    return data;
  }

  /// Module "block.m" with the case's tensors.
  std::unique_ptr<ArtifactReader> open(const json& entry, const TemporaryFolder& folder, json targets = {"Linear"}) {
    const auto name = entry.at("name").get<std::string>();
    std::vector<TensorDeclaration> tensors;
    for (const auto& [tensor, description] : entry.at("stored").items()) {
      const TensorInfo& info = file_.at(name + "." + tensor);
      tensors.push_back({"block.m." + tensor, info.dtype, info.shape});
    }
    SafetensorsWriter writer(folder / "model.safetensors", tensors);
    for (const auto& tensor : tensors) {
      writer.append(tensor.name, read<std::byte>(name + tensor.name.substr(std::string("block.m").size())));
    }
    writer.commit();
    const json config = {
        {"quant_method", "compressed-tensors"},
        {"format", "pack-quantized"},
        {"config_groups", {{"group_0", {{"targets", targets}, {"weights", entry.at("weights_args")}}}}}};
    write_text(folder / "config.json", json{{"quantization_config", config}}.dump());
    return ArtifactReader::open(folder.path());
  }

  json cases_ = read_json(source_path("tests/golden/packing") / (std::string(GetParam()) + ".json")).at("cases");
  SafetensorsFile file_{source_path("tests/golden/packing") / (std::string(GetParam()) + ".safetensors")};
};

/// [rows, cols] to [cols, rows].
template <class T>
std::vector<T> turned(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
  std::vector<T> result;
  for (std::int64_t col = 0; col < cols; ++col) {
    for (std::int64_t row = 0; row < rows; ++row) {
      result.push_back(values[static_cast<std::size_t>(row * cols + col)]);
    }
  }
  return result;
}

TEST_P(CompressedTensorsGolden, IsReadAndWrittenByteForByte) {
  ASSERT_GE(cases_.size(), 8u);
  for (const auto& entry : cases_) {
    const auto name = entry.at("name").get<std::string>();
    SCOPED_TRACE(name);
    const TemporaryFolder folder;
    const auto reader = open(entry, folder);
    const auto rows = entry.at("N").get<std::int64_t>();
    const auto cols = entry.at("K").get<std::int64_t>();

    const PackedLinear linear = reader->read_linear("block.m");

    EXPECT_EQ(linear.bits, entry.at("bits").get<int>());
    EXPECT_EQ(linear.sym, entry.at("sym").get<bool>());
    EXPECT_EQ(unpack_qweight(linear.qweight, rows, cols, linear.bits), read<std::uint8_t>(name + ".codes"));
    EXPECT_EQ(linear.zeros, turned(read<std::uint8_t>(name + ".zeros"), rows, linear.groups()));
    EXPECT_EQ(test::bits_of(linear.scales), turned(read<std::uint16_t>(name + ".scales"), rows, linear.groups()));
    if (file_.find(name + ".g_idx") != nullptr) {
      EXPECT_EQ(linear.g_idx, read<std::int32_t>(name + ".g_idx"));
    }
    EXPECT_EQ(reader->layer("block.m").settings.reordered, !entry.at("actorder").is_null());

    const auto format = make_tensor_format(ArtifactFormat::compressed_tensors, DType::f16);
    const LayerFormat layer = reader->layer("block.m");
    EXPECT_EQ(format->obstacle(layer).has_value(), layer.settings.reordered);
    const auto tensors = format->tensors(layer);
    const auto parts = format->bytes(linear);
    std::size_t part = 0;
    std::size_t known = 0;
    for (const auto& tensor : tensors) {
      const auto stored = name + tensor.declaration.name.substr(std::string("block.m").size());
      const auto expected = read<std::byte>(stored);
      EXPECT_EQ(file_.at(stored).shape, tensor.declaration.shape);
      EXPECT_EQ(file_.at(stored).dtype, tensor.declaration.dtype);
      if (tensor.fixed.empty()) {
        const auto bytes = parts.at(part++).bytes;
        EXPECT_EQ(std::vector<std::byte>(bytes.begin(), bytes.end()), expected) << stored;
      } else {
        EXPECT_EQ(tensor.fixed, expected) << stored;
      }
      ++known;
    }
    EXPECT_EQ(part, parts.size());
    EXPECT_EQ(known, entry.at("stored").size() - (layer.settings.reordered ? 1 : 0));
  }
}

TEST_P(CompressedTensorsGolden, DequantizesToTheSameNumbers) {
  for (const auto& entry : cases_) {
    const auto name = entry.at("name").get<std::string>();
    SCOPED_TRACE(name);
    const TemporaryFolder folder;

    const auto parts = make_tensor_format(ArtifactFormat::safetensors_float, DType::f16)
                           ->bytes(open(entry, folder)->read_linear("block.m"));

    const auto expected = read<std::byte>(name + ".dequantized_f16");
    ASSERT_EQ(parts.size(), 1u);
    EXPECT_TRUE(std::equal(parts[0].bytes.begin(), parts[0].bytes.end(), expected.begin(), expected.end()));
  }
}

INSTANTIATE_TEST_SUITE_P(, CompressedTensorsGolden, testing::Values("compressed_tensors", "compressed_tensors_g_idx"),
                         [](const auto& instance) { return std::string(instance.param); });

/// Module "block.m" of 4 bits in groups of 8, packed as compressed-tensors does, whose configuration a test may change.
class CompressedTensorsFolder : public testing::Test {
 protected:
  CompressedTensorsFolder() {
    const auto format = make_tensor_format(ArtifactFormat::compressed_tensors, DType::f16);
    std::size_t part = 0;
    auto parts = format->bytes(layer_);
    for (auto& tensor : format->tensors(
             {.module = "block.m", .rows = 8, .cols = 16, .settings = {.bits = 4, .group_size = 8, .sym = false}})) {
      tensors_.push_back(tensor.declaration);
      const auto bytes = tensor.fixed.empty() ? parts[part++].bytes : std::span<const std::byte>(tensor.fixed);
      data_[tensor.declaration.name] = {bytes.begin(), bytes.end()};
    }
  }

  std::unique_ptr<ArtifactReader> open() {
    SafetensorsWriter writer(folder_ / "model.safetensors", tensors_);
    for (const auto& tensor : tensors_) {
      writer.append(tensor.name, data_[tensor.name]);
    }
    writer.commit();
    write_text(folder_ / "config.json", json{{"quantization_config", config_}}.dump());
    return ArtifactReader::open(folder_.path());
  }
  std::string refusal() {
    const Error error = error_of([&] { open()->read_linear("block.m"); });
    EXPECT_EQ(error.kind(), ErrorKind::input);
    return error.message();
  }
  json& weights() { return config_["config_groups"]["group_0"]["weights"]; }

  TemporaryFolder folder_;
  PackedLinear layer_ = random_linear("block.m", 8, 16, 4, 8, false, 7);
  std::vector<TensorDeclaration> tensors_;
  std::map<std::string, std::vector<std::byte>> data_;
  json config_ = json::parse(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
    {"group_0": {"targets": ["Linear"], "input_activations": null,
                 "weights": {"num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 8, "type": "int"}}}})");
};

TEST_F(CompressedTensorsFolder, TakesTheGroupOfTheNameThenOfThePatternThenOfTheClass) {
  auto other = config_["config_groups"]["group_0"];
  other["weights"]["group_size"] = 4;
  const auto with_target = [&](const char* target) {
    other["targets"] = {target};
    config_["config_groups"]["group_1"] = other;
    return open()->settings("block.m")->group_size;
  };

  EXPECT_EQ(with_target("block.m"), 4);
  EXPECT_EQ(with_target("re:blo.*m$"), 4);
  EXPECT_EQ(with_target("re:lock"), 8) << "Python's re.match begins at the start";
  EXPECT_EQ(with_target("block"), 8);
  config_["config_groups"].erase("group_1");
  config_["config_groups"]["group_0"]["targets"] = {"re:other"};
  EXPECT_THAT(refusal(), HasSubstr("leaves it unquantized"));
}

TEST_F(CompressedTensorsFolder, ReadsZerosOfInt8AndShapesOfInt32) {
  std::vector<std::int8_t> zeros;
  for (std::size_t row = 0; row < 8; ++row) {
    for (std::size_t group = 0; group < 2; ++group) {
      zeros.push_back(static_cast<std::int8_t>(layer_.zeros[group * 8 + row] - 8));
    }
  }
  const std::vector<std::int32_t> shape{8, 16};
  const auto replace = [&](const std::string& name, DType dtype, std::vector<std::int64_t> extents, auto& values) {
    for (auto& tensor : tensors_) {
      if (tensor.name == name) {
        tensor = {name, dtype, std::move(extents)};
      }
    }
    const auto bytes = std::as_bytes(std::span(values));
    data_[name] = {bytes.begin(), bytes.end()};
  };
  replace("block.m.weight_zero_point", DType::i8, {8, 2}, zeros);
  replace("block.m.weight_shape", DType::i32, {2}, shape);

  expect_same_layer(open()->read_linear("block.m"), layer_);
}

TEST_F(CompressedTensorsFolder, WhatItCannotReadIsRefused) {
  const auto with = [this](auto change) {
    const json kept = config_;
    change();
    const std::string message = refusal();
    config_ = kept;
    return message;
  };

  EXPECT_THAT(with([&] { config_["format"] = "float-quantized"; }), HasSubstr("format \"float-quantized\""));
  EXPECT_THAT(with([&] {
                config_["config_groups"]["group_0"]["input_activations"] = {{"num_bits", 8}};
              }),
              HasSubstr("quantization of activations"));
  EXPECT_THAT(with([&] { weights()["num_bits"] = 5; }), HasSubstr("5 bits"));
  EXPECT_THAT(with([&] { weights()["type"] = "float"; }), HasSubstr("type \"float\""));
  EXPECT_THAT(with([&] { weights()["strategy"] = "block"; }), HasSubstr("strategy \"block\""));
  EXPECT_THAT(with([&] { weights()["group_size"] = 0; }), HasSubstr("group_size 0"));
  EXPECT_THAT(with([&] { weights()["group_size"] = 16; }),
              HasSubstr("m.weight_scale: F16 [8, 2], expected F16 [8, 1]"));
  EXPECT_THAT(with([&] { weights()["num_bits"] = 8; }), HasSubstr("weight_packed: I32 [8, 2], expected I32 [8, 4]"));
  EXPECT_THAT(with([&] { weights()["actorder"] = "group"; }), HasSubstr("no tensor \"block.m.weight_g_idx\""));
  EXPECT_THAT(with([&] { config_["config_groups"] = json::array(); }), HasSubstr("expected an object of groups"));
  EXPECT_THAT(with([&] { config_["config_groups"]["group_0"]["targets"] = {"re:("}; }), HasSubstr("re:("));
  const auto huge = std::vector<std::int64_t>{std::int64_t{1} << 40, 16};
  const auto bytes = std::as_bytes(std::span(huge));
  data_["block.m.weight_shape"] = {bytes.begin(), bytes.end()};
  EXPECT_THAT(refusal(), HasSubstr("has an extent above"));
}

TEST(IsArtifact, FollowsConfigJson) {
  const TemporaryFolder folder;
  EXPECT_FALSE(ArtifactReader::is_artifact(folder.path()));
  write_text(folder / "config.json", R"({"quantization_config": null})");
  EXPECT_FALSE(ArtifactReader::is_artifact(folder.path()));
  write_text(folder / "config.json", R"({"quantization_config": {"quant_method": "gptq"}})");
  EXPECT_TRUE(ArtifactReader::is_artifact(folder.path()));
  write_text(folder / "config.json", "{");
  EXPECT_EQ(error_of([&] { ArtifactReader::is_artifact(folder.path()); }).kind(), ErrorKind::input);
}

}  // namespace
}  // namespace gptqd::io
