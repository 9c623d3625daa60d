#include <gmock/gmock.h>

#include "io/json_file.hpp"
#include "io/packed_linear.hpp"
#include "io/safetensors.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using test::error_of;
using test::random_codes;
using test::random_linear;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct GoldenCase {
  std::string name;
  int bits = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t group_size = 0;
  bool has_zero0 = false;  ///< zeros of 0, which v1 cannot hold field by field

  std::int64_t groups() const { return group_size == -1 ? 1 : cols / group_size; }
};

/// The packed tensors that GPTQModel wrote (tests/golden/packing/gptq.json lists them).
class Golden : public testing::Test {
 protected:
  template <class T>
  std::vector<T> read(const GoldenCase& golden, const char* tensor) const {
    const TensorInfo& info = file_.at(golden.name + "." + tensor);
    std::vector<T> data(static_cast<std::size_t>(info.bytes) / sizeof(T));
    file_.read(info, std::as_writable_bytes(std::span(data)));
    return data;
  }

  static std::vector<GoldenCase> cases() {
    std::vector<GoldenCase> result;
    const auto list = read_json(source_path("tests/golden/packing/gptq.json"));
    for (const auto& entry : list.at("cases")) {
      result.push_back({.name = get<std::string>(entry, "name", "gptq.json"),
                        .bits = get<int>(entry, "bits", "gptq.json"),
                        .rows = get<std::int64_t>(entry, "N", "gptq.json"),
                        .cols = get<std::int64_t>(entry, "K", "gptq.json"),
                        .group_size = get<std::int64_t>(entry, "group_size", "gptq.json"),
                        .has_zero0 = get<int>(entry, "min_zero", "gptq.json") == 0});
    }
    return result;
  }

  SafetensorsFile file_{source_path("tests/golden/packing/gptq.safetensors")};
};

TEST_F(Golden, QweightEqualsByteForByteAndBack) {
  ASSERT_EQ(cases().size(), 44u);
  for (const auto& golden : cases()) {
    SCOPED_TRACE(golden.name);
    const auto codes = read<std::uint8_t>(golden, "codes");
    const auto expected = read<std::uint32_t>(golden, "qweight");

    EXPECT_EQ(pack_qweight({codes.data(), {golden.rows, golden.cols}}, golden.bits), expected);
    EXPECT_EQ(unpack_qweight(expected, golden.rows, golden.cols, golden.bits), codes);
  }
}

TEST_F(Golden, QzerosEqualByteForByteAndBack) {
  int zero0_cases = 0;
  for (const auto& golden : cases()) {
    SCOPED_TRACE(golden.name);
    // The checkpoint's order is [G, N]; the file's zeros are [N, G].
    const auto by_row = read<std::uint8_t>(golden, "zeros");
    const std::int64_t groups = golden.groups();
    std::vector<std::uint8_t> zeros(by_row.size());
    for (std::int64_t n = 0; n < golden.rows; ++n) {
      for (std::int64_t g = 0; g < groups; ++g) {
        zeros[static_cast<std::size_t>(g * golden.rows + n)] = by_row[static_cast<std::size_t>(n * groups + g)];
      }
    }
    const ConstTensorView<std::uint8_t, 2> view(zeros.data(), {groups, golden.rows});
    const auto v1 = read<std::uint32_t>(golden, "qzeros_v1");
    const auto v2 = read<std::uint32_t>(golden, "qzeros_v2");

    EXPECT_EQ(pack_qzeros(view, golden.bits, ZeroFormat::v2), v2);
    EXPECT_EQ(unpack_qzeros(v2, groups, golden.rows, golden.bits, ZeroFormat::v2), zeros);
    if (golden.has_zero0) {
      // GPTQModel subtracts ones from whole words here, and the borrows spoil the neighbours: the reason why v1 is
      // refused for asymmetric grids. What we write comes back at least from our own reader.
      ++zero0_cases;
      const auto own = pack_qzeros(view, golden.bits, ZeroFormat::v1);
      EXPECT_EQ(unpack_qzeros(own, groups, golden.rows, golden.bits, ZeroFormat::v1), zeros);
      continue;
    }
    EXPECT_EQ(pack_qzeros(view, golden.bits, ZeroFormat::v1), v1);
    EXPECT_EQ(unpack_qzeros(v1, groups, golden.rows, golden.bits, ZeroFormat::v1), zeros);
  }
  EXPECT_EQ(zero0_cases, 4);
}

TEST(PackRows, ThreeBitsStraddleWords) {
  std::vector<std::uint8_t> codes(32, 0);
  codes[0] = 1;
  codes[10] = 7;  // bits 30, 31 and 32
  codes[21] = 5;  // bits 63, 64 and 65

  const auto words = pack_rows({codes.data(), {1, 32}}, 3);

  EXPECT_THAT(words, ElementsAre(0xc0000001u, 0x80000001u, 0x2u));
}

TEST(PackRows, SymmetricZerosOfV1GiveTheKnownWords) {
  const auto words = [](int bits) {
    const std::vector<std::uint8_t> zeros(32, static_cast<std::uint8_t>(1 << (bits - 1)));
    return pack_qzeros({zeros.data(), {1, 32}}, bits, ZeroFormat::v1);
  };

  EXPECT_THAT(words(2), testing::Each(0x55555555u));
  EXPECT_THAT(words(3), ElementsAre(0xdb6db6dbu, 0xb6db6db6u, 0x6db6db6du));
  EXPECT_THAT(words(4), testing::Each(0x77777777u));
  EXPECT_THAT(words(8), testing::Each(0x7f7f7f7fu));
}

TEST(PackRows, ComeBackForEveryWidthOnStridedViews) {
  for (const int bits : {2, 3, 4, 8}) {
    const auto storage = random_codes(5 * 100, bits, 11);
    const ConstTensorView<std::uint8_t, 2> view(storage.data(), {5, 96}, 100);

    const auto back = unpack_rows(pack_rows(view, bits), 5, 96, bits);

    for (std::int64_t i = 0; i < 5; ++i) {
      EXPECT_TRUE(std::equal(view.row(i), view.row(i) + 96, back.begin() + i * 96)) << bits << " bits, row " << i;
    }
  }
}

TEST(PackRows, RefusesWhatDoesNotFit) {
  const std::vector<std::uint8_t> codes(32, 4);
  const std::vector<std::uint32_t> words(3);

  EXPECT_THAT(error_of([&] {
                pack_rows({codes.data(), {1, 32}}, 2);
              }).message(),
              HasSubstr("a code does not fit its bits"));
  EXPECT_THAT(error_of([&] { pack_rows({codes.data(), {1, 31}}, 4); }).message(), HasSubstr("31 elements of 4 bits"));
  EXPECT_THAT(error_of([&] { pack_rows({codes.data(), {1, 32}}, 5); }).message(), HasSubstr("5 bits; expected"));
  EXPECT_THAT(error_of([&] { unpack_rows(words, 1, 32, 4); }).message(), HasSubstr("number of words"));
  EXPECT_THAT(error_of([&] { unpack_qweight(words, 1, 32, 4); }).message(), HasSubstr("number of words"));
}

TEST(TransposeWords, IsItsOwnInverseOnOddSizes) {
  std::vector<std::uint32_t> words(37 * 53);
  for (std::size_t i = 0; i < words.size(); ++i) {
    words[i] = static_cast<std::uint32_t>(i);
  }

  const auto transposed = transpose_words({words.data(), {37, 53}});

  EXPECT_EQ(transposed[36 + 2 * 37], 36u * 53 + 2);
  EXPECT_EQ(transpose_words({transposed.data(), {53, 37}}), words);
}

TEST(FormatObstacle, SaysWhatDoesNotFit) {
  EXPECT_EQ(format_obstacle(64, 128, 4, 128), std::nullopt);
  EXPECT_EQ(format_obstacle(8, 8, 4, -1), std::nullopt);
  EXPECT_EQ(format_obstacle(32, 96, 3, 32), std::nullopt);
  EXPECT_THAT(format_obstacle(64, 128, 5, 128).value_or(""), HasSubstr("5 bits"));
  EXPECT_THAT(format_obstacle(64, 130, 4, -1).value_or(""), HasSubstr("130 input features are not a multiple of 8"));
  EXPECT_THAT(format_obstacle(60, 128, 4, -1).value_or(""), HasSubstr("60 output features are not a multiple of 8"));
  EXPECT_THAT(format_obstacle(64, 48, 3, -1).value_or(""), HasSubstr("48 input features are not a multiple of 32"));
  EXPECT_THAT(format_obstacle(64, 192, 4, 128).value_or(""),
              HasSubstr("192 input features are not a multiple of the group size 128"));
  EXPECT_THAT(format_obstacle(64, 128, 4, 0).value_or(""), HasSubstr("group size 0"));
  EXPECT_THAT(format_obstacle(0, 128, 4, 128).value_or(""), HasSubstr("[0, 128] is empty"));
  EXPECT_THAT(format_obstacle(std::int64_t{1} << 60, 128, 4, 128).value_or(""), HasSubstr("an extent above"));
}

struct BadLinear {
  const char* name;
  void (*spoil)(PackedLinear&);
  const char* offence;
};
void PrintTo(const BadLinear& value, std::ostream* out) { *out << value.name; }

class ValidateRefuses : public testing::TestWithParam<BadLinear> {};

TEST_P(ValidateRefuses, NamesTheLayerAndTheOffence) {
  PackedLinear linear = random_linear("block.fc1", 16, 64, 4, 32, true, 3);
  ASSERT_NO_THROW(validate(linear));

  GetParam().spoil(linear);

  const Error error = error_of([&] { validate(linear); });
  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("block.fc1: "), HasSubstr(GetParam().offence)));
  EXPECT_EQ(error_of([&] { validate(linear, ErrorKind::internal); }).kind(), ErrorKind::internal);
}

INSTANTIATE_TEST_SUITE_P(
    , ValidateRefuses,
    testing::Values(
        BadLinear{"bits", [](PackedLinear& l) { l.bits = 6; }, "6 bits"},
        BadLinear{"qweight", [](PackedLinear& l) { l.qweight.pop_back(); }, "qweight has 127 words, expected [8, 16]"},
        BadLinear{"scales", [](PackedLinear& l) { l.scales.pop_back(); }, "scales has 31 numbers, expected [2, 16]"},
        BadLinear{"zeros", [](PackedLinear& l) { l.zeros.push_back(8); }, "zeros has 33 numbers, expected [2, 16]"},
        BadLinear{"g_idx", [](PackedLinear& l) { l.g_idx.clear(); }, "g_idx has 0 numbers, expected 64"},
        BadLinear{"group_too_large", [](PackedLinear& l) { l.g_idx[5] = 2; },
                  "g_idx[5] is 2, expected a group from 0 to 1"},
        BadLinear{"group_negative", [](PackedLinear& l) { l.g_idx[6] = -1; }, "g_idx[6] is -1"},
        BadLinear{"symmetric_zero", [](PackedLinear& l) { l.zeros[7] = 7; }, "zeros[7] is 7, expected 8 to 8"},
        BadLinear{"large_zero", [](PackedLinear& l) { l.sym = false, l.zeros[7] = 16; },
                  "zeros[7] is 16, expected 0 to 15"},
        BadLinear{"scale_infinite", [](PackedLinear& l) { l.scales[2] = {0xfc00}; }, "scales[2] is -inf"},
        BadLinear{"scale_nan", [](PackedLinear& l) { l.scales[2] = {0x7e00}; }, "scales[2] is nan"}),
    [](const auto& info) { return info.param.name; });

TEST(IsTrivialGIdx, ComparesWithTheGroupsInOrder) {
  EXPECT_TRUE(is_trivial_g_idx(std::vector<std::int32_t>{0, 0, 1, 1}, 2));
  EXPECT_FALSE(is_trivial_g_idx(std::vector<std::int32_t>{0, 1, 0, 1}, 2));
  EXPECT_TRUE(is_trivial_g_idx(std::vector<std::int32_t>{0, 0, 0}, -1));
  EXPECT_FALSE(is_trivial_g_idx(std::vector<std::int32_t>{0, 1, 0}, -1));
}

}  // namespace
}  // namespace gptqd::io
