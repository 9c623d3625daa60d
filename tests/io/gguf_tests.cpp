#include <gmock/gmock.h>

#include "io/gguf/blocks.hpp"
#include "io/gguf/gguf_file.hpp"
#include "io/gguf/tokenizer_metadata.hpp"
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
using test::error_of;
using test::random_linear;
using test::read_text;
using test::write_text;
using testing::HasSubstr;

/// GPTQ grids in ggml's blocks, which gguf.quants dequantizes exactly (tests/golden/packing/gguf.json).
class GgufGolden : public testing::Test {
 protected:
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const TensorInfo& info = file_.at(name);
    std::vector<T> data(static_cast<std::size_t>(info.bytes) / sizeof(T));
    file_.read(info, std::as_writable_bytes(std::span(data)));
    return data;
  }

  PackedLinear linear(const json& entry) const {
    const auto name = entry.at("name").get<std::string>();
    PackedLinear linear;
    linear.name = name;
    linear.bits = entry.at("bits");
    linear.group_size = entry.at("group_size");
    linear.sym = entry.at("sym");
    linear.rows = entry.at("N");
    linear.cols = entry.at("K");
    const auto codes = read<std::uint8_t>(name + ".codes");
    linear.qweight = pack_qweight({codes.data(), {linear.rows, linear.cols}}, linear.bits);
    const auto scales = read<std::uint16_t>(name + ".scales");
    const auto zeros = read<std::uint8_t>(name + ".zeros");
    for (std::int64_t group = 0; group < linear.groups(); ++group) {
      for (std::int64_t row = 0; row < linear.rows; ++row) {
        const auto place = static_cast<std::size_t>(row * linear.groups() + group);
        linear.scales.push_back({scales[place]});
        linear.zeros.push_back(zeros[place]);
      }
    }
    linear.g_idx = read<std::int32_t>(name + ".g_idx");
    return linear;
  }

  json cases_ = read_json(source_path("tests/golden/packing/gguf.json")).at("cases");
  SafetensorsFile file_{source_path("tests/golden/packing/gguf.safetensors")};
};

TEST_F(GgufGolden, BlocksEqualByteForByte) {
  int grids = 0;
  for (const auto& entry : cases_) {
    if (!entry.contains("bits")) {
      continue;
    }
    const auto name = entry.at("name").get<std::string>();
    SCOPED_TRACE(name);
    const auto layer = linear(entry);
    validate(layer);

    EXPECT_EQ(block_obstacle({.module = name,
                              .rows = layer.rows,
                              .cols = layer.cols,
                              .settings = {.bits = layer.bits, .group_size = layer.group_size, .sym = layer.sym}}),
              std::nullopt);
    EXPECT_EQ(to_blocks(layer, {}), read<std::byte>(name + ".data"));
    ++grids;
  }
  EXPECT_GE(grids, 11);
}

TEST_F(GgufGolden, RowsComeInTheOrderAskedFor) {
  const auto layer = linear(cases_.back());
  const auto plain = to_blocks(layer, {});
  std::vector<std::int64_t> backwards(static_cast<std::size_t>(layer.rows));
  for (std::size_t i = 0; i < backwards.size(); ++i) {
    backwards[i] = layer.rows - 1 - static_cast<std::int64_t>(i);
  }

  const auto turned = to_blocks(layer, backwards);

  const std::size_t row_bytes = plain.size() / backwards.size();
  EXPECT_TRUE(std::equal(turned.begin(), turned.begin() + static_cast<std::ptrdiff_t>(row_bytes),
                         plain.end() - static_cast<std::ptrdiff_t>(row_bytes)));
}

TEST(BlockObstacle, SaysWhatNoBlockHolds) {
  const auto obstacle = [](int bits, bool sym, std::int64_t group, std::int64_t cols, bool reordered) {
    return block_obstacle({.module = "m",
                           .rows = 64,
                           .cols = cols,
                           .settings = {.bits = bits, .group_size = group, .sym = sym, .reordered = reordered}})
        .value_or("none");
  };

  EXPECT_EQ(obstacle(2, false, 32, 64, false), "none");
  EXPECT_EQ(obstacle(8, true, -1, 64, false), "none");
  EXPECT_THAT(obstacle(8, false, 32, 64, false), HasSubstr("8 bits, asymmetric"));
  EXPECT_THAT(obstacle(4, true, 16, 64, false), HasSubstr("blocks of 32 columns"));
  EXPECT_THAT(obstacle(4, true, -1, 48, false), HasSubstr("48 columns"));
  EXPECT_THAT(obstacle(4, true, 32, 64, true), HasSubstr("dynamic act-order"));
}

TEST(GgufWriter, WritesTheSpecifiedBytes) {
  const TemporaryFolder folder;
  const std::vector<float> numbers{1.5f, -2.0f};
  {
    GgufWriter writer(folder / "m.gguf", {{"a", std::uint32_t{7}}, {"b", std::string("xy")}, {"c", true}},
                      {{.name = "t", .type = GgmlType::f32, .shape = {2, 1}}, {.name = "u", .shape = {1}}});
    writer.append(0, std::as_bytes(std::span(numbers)).first(4));
    writer.append(0, std::as_bytes(std::span(numbers)).subspan(4));
    writer.append(1, std::as_bytes(std::span(numbers)).first(4));
    writer.commit();
    EXPECT_EQ(writer.bytes(), 224);
  }

  const std::string file = read_text(folder / "m.gguf");

  const auto u32 = [](std::uint32_t value) { return std::string(reinterpret_cast<const char*>(&value), 4); };
  const auto u64 = [](std::uint64_t value) { return std::string(reinterpret_cast<const char*>(&value), 8); };
  std::string expected = "GGUF" + u32(3) + u64(2) + u64(3);
  expected += u64(1) + "a" + u32(4) + u32(7);
  expected += u64(1) + "b" + u32(8) + u64(2) + "xy";
  expected += u64(1) + "c" + u32(7) + std::string(1, '\1');
  expected += u64(1) + "t" + u32(2) + u64(1) + u64(2) + u32(0) + u64(0);
  expected += u64(1) + "u" + u32(1) + u64(1) + u32(0) + u64(32);
  expected.resize(160);
  std::string data(reinterpret_cast<const char*>(numbers.data()), 8);
  data.resize(32);
  data += std::string(reinterpret_cast<const char*>(numbers.data()), 4);
  data.resize(64);
  EXPECT_EQ(file, expected + data);
}

TEST(GgufWriter, RefusesBytesThatAreNotDueAndFilesThatAreNotFull) {
  const TemporaryFolder folder;
  GgufWriter writer(folder / "m.gguf", {}, {{.name = "t", .shape = {2}}});
  const std::vector<std::byte> bytes(12);

  EXPECT_EQ(error_of([&] { writer.append(1, bytes); }).kind(), ErrorKind::internal);
  EXPECT_EQ(error_of([&] { writer.append(0, bytes); }).kind(), ErrorKind::internal);
  EXPECT_EQ(error_of([&] { writer.commit(); }).kind(), ErrorKind::internal);
  EXPECT_EQ(error_of([&] {
              GgufWriter(folder / "n.gguf", {}, {{.name = "t", .type = GgmlType::q4_0, .shape = {31}}});
            }).kind(),
            ErrorKind::internal);
}

/// Metadata of the tokenizers in tests/golden/tokenizers.
class TokenizerMetadata : public testing::Test {
 protected:
  static GgufMetadata of(const std::string& name) {
    return tokenizer_metadata(source_path("tests/golden/tokenizers") / name, json::object(), 4000);
  }
  template <class T>
  static T value(const GgufMetadata& metadata, const std::string& key) {
    for (const auto& [name, content] : metadata) {
      if (name == "tokenizer.ggml." + key) {
        return std::get<T>(content);
      }
    }
    ADD_FAILURE() << key << " is missing";
    return {};
  }
};

TEST_F(TokenizerMetadata, NamesThePreTokenizersThatLlamaCppKnows) {
  for (const auto& [folder, name] :
       {std::pair("gpt2-style", "gpt-2"), std::pair("bloom-style", "bloom"), std::pair("llama3-style", "llama-bpe"),
        std::pair("qwen2-style", "qwen2"), std::pair("smollm-style", "smollm")}) {
    SCOPED_TRACE(folder);
    const auto metadata = of(folder);
    EXPECT_EQ(value<std::string>(metadata, "model"), "gpt2");
    EXPECT_EQ(value<std::string>(metadata, "pre"), name);
    EXPECT_GT(value<std::vector<std::string>>(metadata, "merges").size(), 1000u);
  }
}

TEST_F(TokenizerMetadata, HasOneTokenForEachRowOfTheEmbedding) {
  const auto metadata = of("llama3-style");
  const auto tokens = value<std::vector<std::string>>(metadata, "tokens");
  const auto kinds = value<std::vector<std::int32_t>>(metadata, "token_type");

  ASSERT_EQ(tokens.size(), 4000u);
  ASSERT_EQ(kinds.size(), 4000u);
  EXPECT_EQ(tokens[2828], "<|begin_of_text|>");
  EXPECT_EQ(kinds[2828], 3);
  EXPECT_EQ(kinds[100], 1);
  EXPECT_EQ(tokens[3999], "[PAD3999]");
  EXPECT_EQ(kinds[3999], 5);
  EXPECT_TRUE(value<bool>(metadata, "add_bos_token"));
  EXPECT_FALSE(value<bool>(metadata, "add_eos_token"));
  EXPECT_EQ(value<std::uint32_t>(metadata, "bos_token_id"), 2828u);
}

TEST_F(TokenizerMetadata, ByteFallbackBecomesSentencePieceWithScoresFromTheMerges) {
  for (const char* folder : {"llama2-style", "mistral-style"}) {
    SCOPED_TRACE(folder);
    const auto metadata = of(folder);
    EXPECT_EQ(value<std::string>(metadata, "model"), "llama");
    EXPECT_TRUE(value<bool>(metadata, "add_space_prefix"));
    const auto tokens = value<std::vector<std::string>>(metadata, "tokens");
    const auto scores = value<std::vector<float>>(metadata, "scores");
    const auto kinds = value<std::vector<std::int32_t>>(metadata, "token_type");
    const auto tokenizer = read_json(source_path("tests/golden/tokenizers") / folder / "tokenizer.json");
    const auto merge = tokenizer.at("model").at("merges").at(5);
    const std::string result = merge.is_string() ? [&] {
      auto text = merge.get<std::string>();
      return text.erase(text.find(' '), 1);
    }() : merge[0].get<std::string>() + merge[1].get<std::string>();
    const auto place = static_cast<std::size_t>(std::find(tokens.begin(), tokens.end(), result) - tokens.begin());
    EXPECT_EQ(scores.at(place), -5.0f);
    EXPECT_EQ(kinds[0], 2);
    EXPECT_EQ(kinds[static_cast<std::size_t>(std::find(tokens.begin(), tokens.end(), "<0x0A>") - tokens.begin())], 6);
  }
}

TEST_F(TokenizerMetadata, RefusesWhatLlamaCppDoesNotKnow) {
  const TemporaryFolder folder;
  const auto refusal = [&] {
    const Error error = error_of([&] { tokenizer_metadata(folder.path(), json::object(), 4000); });
    return error.message();
  };
  auto tokenizer = read_json(source_path("tests/golden/tokenizers/qwen2-style/tokenizer.json"));
  const auto with = [&](const json::json_pointer& place, const json& value) {
    json changed = tokenizer;
    changed[place] = value;
    write_text(folder / "tokenizer.json", changed.dump());
    return refusal();
  };

  EXPECT_THAT(refusal(), HasSubstr("neither tokenizer.model nor tokenizer.json"));
  EXPECT_THAT(with("/pre_tokenizer/pretokenizers/0/pattern/Regex"_json_pointer, "a+"),
              HasSubstr("no name that we know for the pre-tokenizer (Split, ByteLevel: a+)"));
  EXPECT_THAT(with("/model/type"_json_pointer, "Unigram"), HasSubstr("a model of type \"Unigram\""));
  EXPECT_THAT(with("/model/vocab/!"_json_pointer, "x"), HasSubstr("the id of token \"!\" is no integer"));
  EXPECT_THAT(with("/model/vocab/!"_json_pointer, std::int64_t{1} << 40), HasSubstr("has the id 1099511627776"));
  EXPECT_THAT(with("/model/merges/3"_json_pointer, 7), HasSubstr("merge 3 is no pair of tokens"));
  EXPECT_THAT(with("/pre_tokenizer/pretokenizers/1/add_prefix_space"_json_pointer, true),
              HasSubstr("add_prefix_space"));
  write_text(folder / "tokenizer.json", tokenizer.dump());
  EXPECT_THAT(error_of([&] { tokenizer_metadata(folder.path(), json::object(), 100); }).message(),
              HasSubstr("tokens, the model's embedding has 100"));
}

}  // namespace
}  // namespace gptqd::io
