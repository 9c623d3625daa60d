#include <gmock/gmock.h>

#include <map>
#include <mutex>
#include <set>

#include "io/artifact/artifact_reader.hpp"
#include "io/artifact/artifact_writer.hpp"
#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
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

  LayerSettings settings() const { return {.bits = bits_, .group_size = group_size, .sym = sym_}; }

  ArtifactContent content() const {
    ArtifactContent result;
    result.folder = source_folder_;
    result.config = read_ordered_json(source_folder_ / "config.json");
    result.tensors = source_.get();
    result.settings = settings();
    std::set<std::string> quantized;
    for (const auto& modules : block_linears_) {
      auto& layers = result.blocks.emplace_back();
      for (const auto& module : modules) {
        const auto& shape = source_->at(module + ".weight").shape;
        layers.push_back({.module = module, .rows = shape[0], .cols = shape[1], .settings = settings()});
        quantized.insert(module + ".weight");
      }
    }
    for (const auto& name : source_->names()) {
      if (!quantized.contains(name)) {
        result.passing.push_back(name);
      }
    }
    result.read_layer = [this](std::int64_t block, std::int64_t layer) {
      return layer_of(*source_, block_linears_.at(static_cast<std::size_t>(block)).at(static_cast<std::size_t>(layer)),
                      bits_, sym_);
    };
    result.float_linears = {"lm_head"};
    result.groups_of_block = {
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"self_attn.out_proj"}, {"fc1"}, {"fc2"}};
    result.facts = {{"damp_percent", 0.01}, {"meta", {{"quantizer", {"gptq-dist:test"}}}}};
    return result;
  }

  static ArtifactSummary write(const ArtifactContent& content, ArtifactFormat format, const fs::path& out,
                               const ArtifactOptions& options = {}) {
    const auto writer = make_folder_writer(format, content, options);
    AtomicFolder folder(out);
    auto summary = write_artifact(*writer, folder);
    folder.commit();
    return summary;
  }
  ArtifactSummary write(const ArtifactOptions& options = {}) const {
    return write(content(), sym_ ? ArtifactFormat::gptq : ArtifactFormat::gptq_v2, out_, options);
  }

  Error refusal(const ArtifactContent& bad, ArtifactFormat format = ArtifactFormat::gptq) const {
    Error error = error_of([&] { write(bad, format, out_); });
    EXPECT_FALSE(fs::exists(out_));
    EXPECT_FALSE(fs::exists(folder_ / "out.partial"));
    return error;
  }

  /// Every tensor that was not quantized has its bytes, and every quantized one its codes.
  void expect_whole_artifact() const {
    const auto reader = ArtifactReader::open(out_);
    const auto& artifact = *reader;
    const std::size_t tensors_of_layer = artifact.format() == ArtifactFormat::compressed_tensors ? (sym_ ? 3 : 4) : 4;
    std::size_t expected_names = 0;
    for (const auto& name : source_->names()) {
      const std::string module = name.substr(0, name.rfind('.'));
      const bool quantized = name.ends_with(".weight") && artifact.has_linear(module);
      expected_names += quantized ? tensors_of_layer : 1;
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
  write();

  const auto artifact = ArtifactReader::open(out_);
  EXPECT_EQ(artifact->format(), ArtifactFormat::gptq);
  EXPECT_EQ(artifact->settings("model.decoder.layers.0.fc1"), settings());
  EXPECT_TRUE(ArtifactReader::is_artifact(out_));
  EXPECT_FALSE(ArtifactReader::is_artifact(source_folder_));
  expect_whole_artifact();
}

TEST_F(OptArtifact, EveryPackedFormatComesBackAtEveryWidth) {
  for (const bool sym : {true, false}) {
    for (const int bits : {2, 4, 8}) {
      for (const auto format : {ArtifactFormat::gptq_v2, ArtifactFormat::compressed_tensors}) {
        SCOPED_TRACE(fmt::format("{} {} {}", sym, bits, name_of(format)));
        sym_ = sym;
        bits_ = bits;
        write(content(), format, out_);

        EXPECT_EQ(ArtifactReader::open(out_)->format(), format);
        expect_whole_artifact();
        fs::remove_all(out_);
      }
    }
  }
}

TEST_F(OptArtifact, DequantizedWeightsAreTheProductsRoundedOnce) {
  write(content(), ArtifactFormat::safetensors_float, out_);

  EXPECT_FALSE(ArtifactReader::is_artifact(out_));
  const auto artifact = CheckpointReader::open(out_);
  EXPECT_EQ(artifact->names().size(), source_->names().size());
  const std::string module = "model.decoder.layers.2.fc2";  // [48, 112]
  const auto layer = layer_of(*source_, module, 4, true);
  const auto codes = unpack_qweight(layer.qweight, 48, 112, 4);
  const TensorInfo& info = artifact->at(module + ".weight");
  EXPECT_EQ(info.dtype, DType::f16);
  ASSERT_THAT(info.shape, ElementsAre(48, 112));
  std::vector<Half> weights(48 * 112);
  artifact->read(info, std::as_writable_bytes(std::span(weights)));
  for (std::size_t row : {0u, 31u, 47u}) {
    for (std::size_t col : {0u, 16u, 111u}) {
      const float scale = to_float(layer.scales[col / 16 * 48 + row]);
      EXPECT_EQ(weights[row * 112 + col].bits, to_half(scale * static_cast<float>(codes[row * 112 + col] - 8)).bits);
    }
  }
}

TEST_F(OptArtifact, OfBfloat16ModelsKeepsScalesThatFitAndRefusesOthers) {
  auto bf16 = content();
  bf16.dtype = DType::bf16;
  bf16.read_layer = [this](std::int64_t block, std::int64_t layer) {
    auto linear = content().read_layer(block, layer);
    for (auto& scale : linear.scales) {
      scale = to_half(to_float(to_bfloat16(to_float(scale))));
    }
    return linear;
  };
  write(bf16, ArtifactFormat::compressed_tensors, out_);
  EXPECT_EQ(CheckpointReader::open(out_)->at("model.decoder.layers.0.fc1.weight_scale").dtype, DType::bf16);
  EXPECT_EQ(ArtifactReader::open(out_)->read_linear("model.decoder.layers.0.fc1").scales.size(), 112u * 3);
  fs::remove_all(out_);

  bf16.read_layer = content().read_layer;
  EXPECT_THAT(refusal(bf16, ArtifactFormat::compressed_tensors).message(), HasSubstr("is no bfloat16 number"));
}

TEST_F(OptArtifact, HasTheFormatsTensorsTypesAndShapes) {
  write();

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
  write();

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

TEST_F(OptArtifact, ReadsEachLayerOnce) {
  auto counted = content();
  std::mutex mutex;
  std::map<std::pair<std::int64_t, std::int64_t>, int> reads;
  counted.read_layer = [&](std::int64_t block, std::int64_t layer) {
    const std::lock_guard lock(mutex);
    ++reads[{block, layer}];
    return content().read_layer(block, layer);
  };
  std::vector<std::string> lines;

  write(counted, ArtifactFormat::compressed_tensors, out_,
        {.threads = 3, .progress = [&](const std::string& line) { lines.push_back(line); }});

  EXPECT_EQ(reads.size(), 18u);
  EXPECT_THAT(reads, testing::Each(testing::Pair(testing::_, 1)));
  EXPECT_THAT(lines, ElementsAre("wrote model.safetensors (1 of 1)"));
}

TEST_F(OptArtifact, WritesTheConfiguration) {
  write();

  const auto source = read_ordered_json(source_folder_ / "config.json");
  auto config = read_ordered_json(out_ / "config.json");
  json expected = {
      {"quant_method", "gptq"},
      {"bits", 4},
      {"group_size", group_size},
      {"desc_act", false},
      {"sym", true},
      {"lm_head", false},
      {"checkpoint_format", "gptq"},
      {"pack_dtype", "int32"},
      {"damp_percent", 0.01},
      {"modules_in_block_to_quantize",
       {{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"self_attn.out_proj"}, {"fc1"}, {"fc2"}}},
      {"meta", {{"quantizer", {"gptq-dist:test"}}}}};
  EXPECT_EQ(json(config.at("quantization_config")), expected);
  config.erase("quantization_config");
  EXPECT_EQ(config.dump(), source.dump());  // every key of the source, in its order
  expected["format"] = "gptq";
  EXPECT_EQ(read_json(out_ / "quantize_config.json"), expected);
  EXPECT_EQ(read_json(out_ / "gptq_dist.json"), (json{{"format", "gptq"}, {"facts", content().facts}}));
}

TEST_F(OptArtifact, WritesTheConfigurationOfCompressedTensors) {
  write(content(), ArtifactFormat::compressed_tensors, out_);

  const json config = read_json(out_ / "config.json").at("quantization_config");
  EXPECT_EQ(config.at("format"), "pack-quantized");
  EXPECT_EQ(config.at("quantization_status"), "compressed");
  EXPECT_EQ(config.at("ignore"), json{"lm_head"});
  const json& group = config.at("config_groups").at("group_0");
  EXPECT_EQ(group.at("targets"), json{"Linear"});
  EXPECT_EQ(group.at("weights").at("num_bits"), 4);
  EXPECT_EQ(group.at("weights").at("strategy"), "group");
  EXPECT_EQ(group.at("weights").at("group_size"), group_size);
  EXPECT_EQ(group.at("weights").at("actorder"), nullptr);
  EXPECT_FALSE(fs::exists(out_ / "quantize_config.json"));
}

TEST_F(OptArtifact, TakesTheSourcesCompanionFilesAlong) {
  write();

  for (const char* name : {"tokenizer.json", "merges.txt", "chat_template.jinja", "modeling_opt.py", "LICENSE.md"}) {
    EXPECT_EQ(read_text(out_ / name), std::string("content of ") + name);
  }
  EXPECT_FALSE(fs::exists(out_ / "expected.json"));
  EXPECT_FALSE(fs::exists(out_ / "README.md"));
  EXPECT_EQ(std::distance(fs::directory_iterator(out_), fs::directory_iterator()), 9);
}

TEST_F(OptArtifact, TheSummaryListsEveryFile) {
  const auto summary = write();

  std::int64_t bytes = 0;
  for (const auto& file : summary.files) {
    const std::string content = read_text(out_ / file.name);
    EXPECT_EQ(file.bytes, std::ssize(content)) << file.name;
    EXPECT_EQ(file.xxh3_128, xxh3_128_hex(bytes_of(content))) << file.name;
    bytes += file.bytes;
  }
  EXPECT_EQ(summary.files.size(), 9u);
  EXPECT_EQ(summary.bytes, bytes);
  EXPECT_EQ(summary.files.front().name, "model.safetensors");
}

TEST_F(OptArtifact, GivesTheSameBytesAgain) {
  write();

  write(content(), ArtifactFormat::gptq, folder_ / "again", {.threads = 1});

  for (const auto& entry : fs::directory_iterator(out_)) {
    EXPECT_EQ(read_text(entry.path()), read_text(folder_ / "again" / entry.path().filename().string())) << entry.path();
  }
}

TEST_F(OptArtifact, IsCutIntoFilesWithAnIndex) {
  const auto summary = write({.max_shard_bytes = 20'000});

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
  write({.max_shard_bytes = 1});

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
  block_linears_ = {{"m"}};
  auto own = content();
  own.settings.group_size = 8;
  own.blocks[0][0].settings.group_size = 8;
  own.read_layer = [](std::int64_t, std::int64_t) { return random_linear("m", 8, 8, 4, 8, true, 1); };

  write(own, ArtifactFormat::gptq, out_);

  const auto artifact = CheckpointReader::open(out_);
  EXPECT_THAT(artifact->names(),
              ElementsAre("steps", "norm", "m.qweight", "m.qzeros", "m.scales", "m.g_idx", "half", "odd"));
  for (const auto& name : artifact->names()) {
    EXPECT_EQ(artifact->at(name).offset % size_of(artifact->at(name).dtype), 0) << name;
  }
  fs::remove_all(out_);

  write(own, ArtifactFormat::compressed_tensors, out_);

  EXPECT_THAT(CheckpointReader::open(out_)->names(),
              ElementsAre("steps", "m.weight_shape", "norm", "m.weight_packed", "m.weight_scale", "half", "odd"));
}

TEST_F(OptArtifact, AFailureLeavesNothing) {
  auto failing = content();
  failing.read_layer = [this](std::int64_t block, std::int64_t layer) {
    if (block == 1) {
      throw Error(ErrorKind::input, "block_00001.h5: the shard is damaged");
    }
    return content().read_layer(block, layer);
  };

  const Error error = refusal(failing);

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.one_line(),
              HasSubstr("while reading block 1 for the artifact: block_00001.h5: the shard is damaged"));
}

TEST_F(OptArtifact, AnExistingOutputIsRefusedAndKept) {
  fs::create_directory(out_);
  write_text(out_ / "precious", "kept");

  const Error error = error_of([&] { write(); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_EQ(read_text(out_ / "precious"), "kept");
}

TEST_F(OptArtifact, RefusesWhatAFormatCannotHold) {
  sym_ = false;
  const Error zeros = refusal(content(), ArtifactFormat::gptq);
  EXPECT_EQ(zeros.kind(), ErrorKind::usage);
  EXPECT_THAT(zeros.message(), AllOf(HasSubstr("gptq_v2"), HasSubstr("compressed-tensors")));

  sym_ = true;
  auto reordered = content();
  reordered.settings.reordered = true;
  for (auto& block : reordered.blocks) {
    for (auto& layer : block) {
      layer.settings.reordered = true;
    }
  }
  EXPECT_THAT(refusal(reordered, ArtifactFormat::compressed_tensors).message(), HasSubstr("dynamic act-order"));

  auto groups = content();
  groups.blocks[0][0].settings.group_size = 32;
  groups.settings.group_size = 32;
  for (auto& block : groups.blocks) {
    for (auto& layer : block) {
      layer.settings.group_size = 32;
    }
  }
  EXPECT_THAT(refusal(groups).message(), HasSubstr("48 input features are not a multiple of the group size 32"));
}

TEST_F(OptArtifact, RefusesContentThatContradictsItself) {
  auto twice = content();
  twice.blocks[2].push_back(twice.blocks[0][0]);
  auto unknown = content();
  unknown.blocks[0][0].module = "model.decoder.layers.0.self_attn.query";
  auto missing = content();
  missing.passing.push_back("no.such.tensor");

  EXPECT_THAT(refusal(twice).message(), HasSubstr("in the list of two blocks"));
  EXPECT_THAT(refusal(unknown).message(),
              AllOf(HasSubstr("no tensor \"model.decoder.layers.0.self_attn.query.weight\""), HasSubstr("closest")));
  EXPECT_THAT(refusal(missing).message(), HasSubstr("lacks 1 of"));
}

TEST_F(OptArtifact, RefusesLayersThatAreNotWhatWasDeclared) {
  const auto with = [this](auto spoil) {
    auto bad = content();
    bad.read_layer = [this, spoil](std::int64_t block, std::int64_t layer) {
      auto linear = content().read_layer(block, layer);
      spoil(linear);
      return linear;
    };
    const Error error = refusal(bad);
    EXPECT_EQ(error.kind(), ErrorKind::input);
    return error.message();
  };

  EXPECT_THAT(with([](PackedLinear& linear) { linear.name = "other"; }), HasSubstr("got the layer other, expected"));
  EXPECT_THAT(with([&](PackedLinear& linear) { linear = random_linear(linear.name, 16, 16, 4, 16, true, 1); }),
              HasSubstr("quantized as [16, 16], but the source's weight is ["));
  EXPECT_THAT(with([&](PackedLinear& linear) {
                linear = random_linear(linear.name, linear.rows, linear.cols, 8, 16, true, 1);
              }),
              HasSubstr("has 8 bits, groups of 16, symmetric, expected 4 bits"));
  EXPECT_THAT(with([](PackedLinear& linear) { linear.scales.clear(); }), HasSubstr("scales has 0 numbers"));
  EXPECT_THAT(with([](PackedLinear& linear) { std::swap(linear.g_idx.front(), linear.g_idx.back()); }),
              HasSubstr("dynamic act-order, expected"));
}

TEST_F(OptArtifact, DynamicActOrderKeepsItsGroups) {
  auto dynamic = content();
  dynamic.settings.reordered = true;
  for (auto& block : dynamic.blocks) {
    for (auto& layer : block) {
      layer.settings.reordered = true;
    }
  }
  dynamic.read_layer = [this](std::int64_t block, std::int64_t layer) {
    auto linear = content().read_layer(block, layer);
    std::reverse(linear.g_idx.begin(), linear.g_idx.end());
    return linear;
  };

  write(dynamic, ArtifactFormat::gptq, out_);

  const auto reader = ArtifactReader::open(out_);
  const auto linear = reader->read_linear("model.decoder.layers.0.fc1");
  EXPECT_EQ(linear.g_idx.front(), 2);
  EXPECT_EQ(linear.g_idx.back(), 0);
  EXPECT_TRUE(reader->settings("model.decoder.layers.0.fc1")->reordered);
}

}  // namespace
}  // namespace gptqd::io
