#include <gmock/gmock.h>

#include <map>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "io/gptq_checkpoint.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using nlohmann::json;
using test::bytes_of;
using test::error_of;
using test::expect_same_layer;
using test::random_linear;
using test::read_text;
using test::write_text;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr std::int64_t group_size = 16;

/// The tiny OPT model (hidden 48, feed-forward 112, 3 blocks) with random codes for the linears of all blocks.
class OptArtifact : public testing::Test {
 protected:
  OptArtifact() : source_folder_(folder_ / "source"), out_(folder_ / "out") {
    fs::create_directory(source_folder_);
    for (const char* name : {"config.json", "model.safetensors"}) {
      fs::copy_file(source_path("tests/golden/models/opt-pre") / name, source_folder_ / name);
    }
    for (const char* name : {"tokenizer.json", "merges.txt", "chat_template.jinja", "modeling_opt.py", "LICENSE.md",
                             "expected.json", "README.md"}) {
      write_text(source_folder_ / name, std::string("content of ") + name);
    }
    source_ = CheckpointReader::open(source_folder_);
    for (int block = 0; block < 3; ++block) {
      std::vector<std::string> modules;
      for (const char* module :
           {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"}) {
        modules.push_back(fmt::format("model.decoder.layers.{}.{}", block, module));
      }
      block_linears_.push_back(modules);
    }
  }

  static PackedLinear layer_of(const CheckpointReader& source, const std::string& module, int bits, bool sym) {
    const auto& shape = source.at(module + ".weight").shape;
    return random_linear(module, shape[0], shape[1], bits, group_size, sym, static_cast<unsigned>(module.size()));
  }

  BlockShard block(std::int64_t index) const {
    BlockShard shard;
    shard.block = index;
    for (const auto& module : block_linears_[static_cast<std::size_t>(index)]) {
      shard.linears.push_back(layer_of(*source_, module, bits_, sym_));
    }
    return shard;
  }

  ArtifactRequest request() const {
    ArtifactRequest result;
    result.source = source_.get();
    result.source_folder = source_folder_;
    result.out = out_;
    result.v1 = sym_;
    result.quantization_config = {{"quant_method", "gptq"},
                                  {"bits", bits_},
                                  {"group_size", group_size},
                                  {"desc_act", false},
                                  {"sym", sym_},
                                  {"lm_head", false},
                                  {"checkpoint_format", sym_ ? "gptq" : "gptq_v2"},
                                  {"pack_dtype", "int32"},
                                  {"meta", {{"quantizer", {"gptq-dist:test"}}}}};
    result.block_linears = block_linears_;
    result.read_block = [this](std::int64_t index) { return block(index); };
    return result;
  }

  Error refusal(const ArtifactRequest& bad) const {
    Error error = error_of([&] { write_gptq_checkpoint(bad); });
    EXPECT_FALSE(fs::exists(out_));
    EXPECT_FALSE(fs::exists(folder_ / "out.partial"));
    return error;
  }

  /// Every tensor that was not quantized has its bytes, and every quantized one its codes.
  void expect_whole_artifact() const {
    const auto artifact = GptqArtifact::open(out_);
    std::size_t expected_names = 0;
    for (const auto& name : source_->names()) {
      const std::string module = name.substr(0, name.rfind('.'));
      const bool quantized = name.ends_with(".weight") && artifact.has_linear(module);
      expected_names += quantized ? 4 : 1;
      if (quantized) {
        expect_same_layer(artifact.read_linear(module), layer_of(*source_, module, bits_, sym_));
        EXPECT_EQ(artifact.tensors().find(name), nullptr);
      } else {
        const TensorInfo& info = source_->at(name);
        const TensorInfo& copy = artifact.tensors().at(name);
        EXPECT_EQ(copy.dtype, info.dtype);
        EXPECT_EQ(copy.shape, info.shape);
        std::vector<std::byte> original(static_cast<std::size_t>(info.bytes));
        std::vector<std::byte> copied(original.size());
        source_->read(info, original);
        artifact.tensors().read(copy, copied);
        EXPECT_EQ(copied, original) << name;
      }
    }
    EXPECT_EQ(artifact.linear_names().size(), 18u);
    EXPECT_EQ(artifact.tensors().names().size(), expected_names);
  }

  TemporaryFolder folder_;
  fs::path source_folder_;
  fs::path out_;
  std::unique_ptr<CheckpointReader> source_;
  std::vector<std::vector<std::string>> block_linears_;
  int bits_ = 4;
  bool sym_ = true;
};

TEST_F(OptArtifact, SymmetricV1ComesBack) {
  write_gptq_checkpoint(request());

  const auto artifact = GptqArtifact::open(out_);
  EXPECT_EQ(artifact.bits(), 4);
  EXPECT_EQ(artifact.group_size(), group_size);
  EXPECT_TRUE(artifact.sym());
  EXPECT_FALSE(artifact.desc_act());
  EXPECT_EQ(artifact.zero_format(), ZeroFormat::v1);
  EXPECT_TRUE(GptqArtifact::is_artifact(out_));
  EXPECT_FALSE(GptqArtifact::is_artifact(source_folder_));
  expect_whole_artifact();
}

TEST_F(OptArtifact, AsymmetricV2ComesBackAtTwoAndEightBits) {
  sym_ = false;
  for (const int bits : {2, 8}) {
    bits_ = bits;
    write_gptq_checkpoint(request());

    expect_whole_artifact();
    fs::remove_all(out_);
  }
}

TEST_F(OptArtifact, HasTheFormatsTensorsTypesAndShapes) {
  write_gptq_checkpoint(request());

  const SafetensorsFile file(out_ / "model.safetensors");
  const std::string module = "model.decoder.layers.1.fc1";  // [112, 48]
  EXPECT_EQ(file.at(module + ".qweight").dtype, DType::i32);
  EXPECT_THAT(file.at(module + ".qweight").shape, ElementsAre(6, 112));
  EXPECT_EQ(file.at(module + ".qzeros").dtype, DType::i32);
  EXPECT_THAT(file.at(module + ".qzeros").shape, ElementsAre(3, 14));
  EXPECT_EQ(file.at(module + ".scales").dtype, DType::f16);
  EXPECT_THAT(file.at(module + ".scales").shape, ElementsAre(3, 112));
  EXPECT_EQ(file.at(module + ".g_idx").dtype, DType::i32);
  EXPECT_THAT(file.at(module + ".g_idx").shape, ElementsAre(48));
  EXPECT_NE(file.find(module + ".bias"), nullptr);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  std::vector<std::uint32_t> qzeros(3 * 14);
  file.read(file.at(module + ".qzeros"), std::as_writable_bytes(std::span(qzeros)));
  EXPECT_THAT(qzeros, testing::Each(0x77777777u));
}

TEST_F(OptArtifact, OrdersTensorsOutsideTheBlocksFirstThenBlockByBlock) {
  write_gptq_checkpoint(request());

  const auto names = CheckpointReader::open(out_)->names();

  const std::vector<std::string> first(names.begin(), names.begin() + 10);
  EXPECT_THAT(first, ElementsAre("model.decoder.embed_positions.weight", "model.decoder.embed_tokens.weight",
                                 "model.decoder.final_layer_norm.bias", "model.decoder.final_layer_norm.weight",
                                 "model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc1.qweight",
                                 "model.decoder.layers.0.fc1.qzeros", "model.decoder.layers.0.fc1.scales",
                                 "model.decoder.layers.0.fc1.g_idx", "model.decoder.layers.0.fc2.bias"));
  EXPECT_TRUE(
      std::is_sorted(names.begin() + 4, names.end(), [](const auto& a, const auto& b) { return a[21] < b[21]; }));
}

TEST_F(OptArtifact, ReadsEachBlockOnceInOrder) {
  auto counted = request();
  std::vector<std::int64_t> blocks;
  std::vector<std::string> lines;
  counted.read_block = [&](std::int64_t index) {
    blocks.push_back(index);
    return block(index);
  };
  counted.progress = [&](const std::string& line) { lines.push_back(line); };

  write_gptq_checkpoint(counted);

  EXPECT_THAT(blocks, ElementsAre(0, 1, 2));
  EXPECT_THAT(lines, ElementsAre("block 1 of 3", "block 2 of 3", "block 3 of 3", "wrote model.safetensors (1 of 1)"));
}

TEST_F(OptArtifact, WritesTheConfiguration) {
  write_gptq_checkpoint(request());

  const auto source = read_ordered_json(source_folder_ / "config.json");
  auto config = read_ordered_json(out_ / "config.json");
  EXPECT_EQ(json(config.at("quantization_config")), request().quantization_config);
  config.erase("quantization_config");
  EXPECT_EQ(config.dump(), source.dump());  // every key of the source, in its order
  auto expected = request().quantization_config;
  expected["format"] = "gptq";
  EXPECT_EQ(read_json(out_ / "quantize_config.json"), expected);
}

TEST_F(OptArtifact, TakesTheSourcesCompanionFilesAlong) {
  write_gptq_checkpoint(request());

  for (const char* name : {"tokenizer.json", "merges.txt", "chat_template.jinja", "modeling_opt.py", "LICENSE.md"}) {
    EXPECT_EQ(read_text(out_ / name), std::string("content of ") + name);
  }
  EXPECT_FALSE(fs::exists(out_ / "expected.json"));
  EXPECT_FALSE(fs::exists(out_ / "README.md"));
  EXPECT_EQ(std::distance(fs::directory_iterator(out_), fs::directory_iterator()), 8);
}

TEST_F(OptArtifact, TheSummaryListsEveryFile) {
  const auto summary = write_gptq_checkpoint(request());

  std::int64_t bytes = 0;
  for (const auto& file : summary.files) {
    const std::string content = read_text(out_ / file.name);
    EXPECT_EQ(file.bytes, std::ssize(content)) << file.name;
    EXPECT_EQ(file.xxh3_128, xxh3_128_hex(bytes_of(content))) << file.name;
    bytes += file.bytes;
  }
  EXPECT_EQ(summary.files.size(), 8u);
  EXPECT_EQ(summary.bytes, bytes);
  EXPECT_EQ(summary.files.front().name, "model.safetensors");
}

TEST_F(OptArtifact, GivesTheSameBytesAgain) {
  write_gptq_checkpoint(request());
  auto again = request();
  again.out = folder_ / "again";

  write_gptq_checkpoint(again);

  for (const auto& entry : fs::directory_iterator(out_)) {
    EXPECT_EQ(read_text(entry.path()), read_text(folder_ / "again" / entry.path().filename().string())) << entry.path();
  }
}

TEST_F(OptArtifact, IsCutIntoFilesWithAnIndex) {
  auto small = request();
  small.max_shard_bytes = 20'000;

  const auto summary = write_gptq_checkpoint(small);

  expect_whole_artifact();
  EXPECT_FALSE(fs::exists(out_ / "model.safetensors"));
  const auto index = read_json(out_ / "model.safetensors.index.json");
  std::map<std::string, std::int64_t> data_bytes;
  std::int64_t total = 0;
  const auto artifact = CheckpointReader::open(out_);
  const auto files = artifact->files();
  for (const auto& name : artifact->names()) {
    const auto& info = artifact->at(name);
    EXPECT_EQ(index.at("weight_map").at(name), files[static_cast<std::size_t>(info.file_index)].name);
    data_bytes[files[static_cast<std::size_t>(info.file_index)].name] += info.bytes;
    total += info.bytes;
  }
  EXPECT_EQ(index.at("metadata"), (json{{"total_size", total}}));
  EXPECT_EQ(index.at("weight_map").size(), artifact->names().size());
  ASSERT_GE(files.size(), 3u);
  EXPECT_EQ(files.front().name, fmt::format("model-00001-of-{:05}.safetensors", files.size()));
  for (const auto& [name, bytes] : data_bytes) {
    EXPECT_LE(bytes, 20'000) << name;
  }
  EXPECT_EQ(summary.files[files.size()].name, "model.safetensors.index.json");
}

TEST_F(OptArtifact, ATensorLargerThanTheLimitHasAFileOfItsOwn) {
  auto tiny = request();
  tiny.max_shard_bytes = 1;

  write_gptq_checkpoint(tiny);

  expect_whole_artifact();
  EXPECT_EQ(CheckpointReader::open(out_)->files().size(), CheckpointReader::open(out_)->names().size());
}

TEST_F(OptArtifact, KeepsEveryTensorAlignedToItsElement) {
  const std::vector<TensorDeclaration> extra{{"odd", DType::u8, {3}},
                                             {"half", DType::f16, {5}},
                                             {"m.weight", DType::f16, {8, 8}},
                                             {"norm", DType::f32, {3}},
                                             {"steps", DType::i64, {1}}};
  SafetensorsWriter writer(source_folder_ / "model.safetensors", extra);
  for (const auto& tensor : extra) {
    writer.append(tensor.name, std::vector<std::byte>(static_cast<std::size_t>(tensor.bytes())));
  }
  writer.commit();
  source_ = CheckpointReader::open(source_folder_);
  auto own = request();
  own.block_linears = {{"m"}};
  own.quantization_config["group_size"] = 8;
  own.read_block = [](std::int64_t) {
    BlockShard shard;
    shard.linears.push_back(random_linear("m", 8, 8, 4, 8, true, 1));
    return shard;
  };

  write_gptq_checkpoint(own);

  const auto artifact = CheckpointReader::open(out_);
  EXPECT_THAT(artifact->names(),
              ElementsAre("steps", "norm", "m.qweight", "m.qzeros", "m.scales", "m.g_idx", "half", "odd"));
  for (const auto& name : artifact->names()) {
    EXPECT_EQ(artifact->at(name).offset % size_of(artifact->at(name).dtype), 0) << name;
  }
}

TEST_F(OptArtifact, AFailureLeavesNothing) {
  auto failing = request();
  failing.read_block = [this](std::int64_t index) {
    if (index == 1) {
      throw Error(ErrorKind::input, "block_00001.h5: the shard is damaged");
    }
    return block(index);
  };

  const Error error = refusal(failing);

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.one_line(),
              HasSubstr("while reading block 1 for the artifact: block_00001.h5: the shard is damaged"));
}

TEST_F(OptArtifact, AnExistingOutputIsRefusedAndKept) {
  fs::create_directory(out_);
  write_text(out_ / "precious", "kept");

  const Error error = error_of([&] { write_gptq_checkpoint(request()); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_EQ(read_text(out_ / "precious"), "kept");
}

TEST_F(OptArtifact, RefusesAsymmetricZerosInV1) {
  auto bad = request();
  bad.quantization_config["sym"] = false;

  const Error error = refusal(bad);

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("gptq_v2"), HasSubstr("compressed-tensors")));
}

TEST_F(OptArtifact, RefusesRequestsThatContradictThemselves) {
  auto format = request();
  format.v1 = false;
  auto twice = request();
  twice.block_linears[2].push_back(twice.block_linears[0][0]);
  auto no_bits = request();
  no_bits.quantization_config.erase("bits");

  EXPECT_THAT(refusal(format).message(), HasSubstr("checkpoint_format contradicts v1"));
  EXPECT_THAT(refusal(twice).message(), HasSubstr("in the list of two blocks"));
  EXPECT_THAT(refusal(no_bits).message(), HasSubstr("quantization_config: the key \"bits\" is missing"));
}

TEST_F(OptArtifact, RefusesSourcesThatDoNotFit) {
  auto unknown = request();
  unknown.block_linears[0][0] = "model.decoder.layers.0.self_attn.query";
  auto vector = request();
  vector.block_linears[0][0] = "model.decoder.layers.0.final_layer_norm";
  auto groups = request();
  groups.quantization_config["group_size"] = 32;

  EXPECT_THAT(refusal(unknown).message(),
              AllOf(HasSubstr("no tensor \"model.decoder.layers.0.self_attn.query.weight\""), HasSubstr("closest")));
  EXPECT_THAT(refusal(vector).message(), HasSubstr("expected a matrix, got 1 dimensions"));
  EXPECT_THAT(refusal(groups).message(), HasSubstr("48 input features are not a multiple of the group size 32"));
}

TEST_F(OptArtifact, RefusesAModelThatIsQuantizedAlready) {
  write_gptq_checkpoint(request());
  auto again = request();
  again.source_folder = out_;
  again.out = folder_ / "again";

  EXPECT_THAT(error_of([&] { write_gptq_checkpoint(again); }).message(), HasSubstr("quantized already"));
  EXPECT_FALSE(fs::exists(folder_ / "again"));
}

TEST_F(OptArtifact, RefusesBlocksThatAreNotWhatThePlanExpects) {
  const auto with = [this](auto spoil) {
    auto bad = request();
    bad.read_block = [this, spoil](std::int64_t index) {
      BlockShard shard = block(index);
      spoil(shard);
      return shard;
    };
    const Error error = refusal(bad);
    EXPECT_EQ(error.kind(), ErrorKind::input);
    return error.message();
  };

  EXPECT_THAT(with([](BlockShard& shard) { shard.block = 7; }), HasSubstr("got block 7, expected 0"));
  EXPECT_THAT(with([](BlockShard& shard) { shard.linears.pop_back(); }),
              HasSubstr("has 5 quantized modules, expected 6"));
  EXPECT_THAT(with([](BlockShard& shard) { shard.linears[4].name = "other"; }),
              HasSubstr("block 0 lacks the module model.decoder.layers.0.fc1"));
  EXPECT_THAT(with([](BlockShard& shard) { std::swap(shard.linears[4].name, shard.linears[5].name); }),
              HasSubstr("quantized as [48, 112], but the source's weight is [112, 48]"));
  EXPECT_THAT(
      with([](BlockShard& shard) { shard.linears[4] = random_linear(shard.linears[4].name, 112, 48, 8, 16, true, 1); }),
      HasSubstr("has 8 bits"));
  EXPECT_THAT(with([](BlockShard& shard) { shard.linears[4].scales.clear(); }), HasSubstr("scales has 0 numbers"));
  EXPECT_THAT(with([](BlockShard& shard) { std::swap(shard.linears[4].g_idx[0], shard.linears[4].g_idx[47]); }),
              HasSubstr("desc_act false"));
}

TEST_F(OptArtifact, DynamicActOrderKeepsItsGroups) {
  auto dynamic = request();
  dynamic.quantization_config["desc_act"] = true;
  dynamic.read_block = [this](std::int64_t index) {
    BlockShard shard = block(index);
    for (auto& linear : shard.linears) {
      std::reverse(linear.g_idx.begin(), linear.g_idx.end());
    }
    return shard;
  };

  write_gptq_checkpoint(dynamic);

  const auto linear = GptqArtifact::open(out_).read_linear("model.decoder.layers.0.fc1");
  EXPECT_EQ(linear.g_idx.front(), 2);
  EXPECT_EQ(linear.g_idx.back(), 0);
}

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

  GptqArtifact open() {
    SafetensorsWriter writer(folder_ / "model.safetensors", tensors_);
    for (const auto& tensor : tensors_) {
      writer.append(tensor.name, bytes_of(data_[tensor.name]).first(static_cast<std::size_t>(tensor.bytes())));
    }
    writer.commit();
    write_text(folder_ / "config.json", json{{"quantization_config", config_}}.dump());
    return GptqArtifact::open(folder_.path());
  }

  std::string refusal() {
    const Error error = error_of([&] { open().read_linear("m"); });
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

  expect_same_layer(open().read_linear("m"), layer_);
}

TEST_F(ForeignArtifact, OneGroupMayBeWrittenAsNull) {
  config_["group_size"] = nullptr;
  tensors_[1].shape = {1, 1};
  tensors_[2].shape = {1, 8};
  tensors_.pop_back();

  const auto linear = open().read_linear("m");

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
  EXPECT_THAT(with(2, {"m.scales", DType::bf16, {2, 8}}), HasSubstr("m.scales: BF16 [2, 8], expected F16 [2, 8]"));
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

  EXPECT_THAT(with("quant_method", "awq"), HasSubstr("quant_method is \"awq\", expected \"gptq\""));
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

TEST(IsArtifact, FollowsConfigJson) {
  const TemporaryFolder folder;
  EXPECT_FALSE(GptqArtifact::is_artifact(folder.path()));
  write_text(folder / "config.json", R"({"quantization_config": {"quant_method": "awq"}})");
  EXPECT_FALSE(GptqArtifact::is_artifact(folder.path()));
  write_text(folder / "config.json", R"({"quantization_config": {"quant_method": "gptq"}})");
  EXPECT_TRUE(GptqArtifact::is_artifact(folder.path()));
  write_text(folder / "config.json", "{");
  EXPECT_EQ(error_of([&] { GptqArtifact::is_artifact(folder.path()); }).kind(), ErrorKind::input);
}

}  // namespace
}  // namespace gptqd::io
