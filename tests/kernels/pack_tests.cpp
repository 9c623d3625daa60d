#include <cmath>
#include <numeric>
#include <random>

#include "kernels/pack.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/pack.hpp"

namespace gptqd {
namespace {

using test::available_devices;
using test::Device;
using test::device_name;
using test::DeviceTensors;
using test::flat;
using test::Matrix;
using test::message_of;
using test::OnDevice;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ValuesIn;

std::vector<std::int32_t> iota(std::int64_t n) {
  std::vector<std::int32_t> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

Matrix<std::uint8_t> random_codes(std::int64_t rows, std::int64_t n, int bits, std::uint32_t seed) {
  std::mt19937 generator(seed);
  Matrix<std::uint8_t> codes(rows, n);
  for (auto& code : codes.data) {
    code = static_cast<std::uint8_t>(generator() & ((1u << bits) - 1));
  }
  return codes;
}

Matrix<std::uint32_t> pack(DeviceTensors& on, const Matrix<std::uint8_t>& codes,
                           const std::vector<std::int32_t>& position, int bits, std::int64_t gap = 0) {
  const auto device_codes = on.upload(codes, gap);
  const auto device_position = on.upload(position);
  const auto packed = on.upload(Matrix<std::uint32_t>(codes.rows, codes.cols * bits / 32, 0xdeadbeefu), gap);
  on.backend->pack_rows(
      *on.stream, {.bits = bits, .codes = device_codes.view, .position = flat(device_position), .packed = packed.view});
  return on.download(packed);
}

class PackRows : public OnDevice {};
INSTANTIATE_TEST_SUITE_P(, PackRows, ValuesIn(available_devices()), device_name);

TEST_P(PackRows, FourBitsLowestFirst) {
  Matrix<std::uint8_t> codes(1, 8);
  codes.data = {1, 2, 3, 4, 5, 6, 7, 15};
  EXPECT_THAT(pack(*this, codes, iota(8), 4).data, ElementsAre(0xf7654321u));
}

TEST_P(PackRows, ThreeBitsStraddleWords) {
  Matrix<std::uint8_t> codes(1, 32);
  codes(0, 10) = 7;  // bits 30 to 32
  codes(0, 21) = 5;  // bits 63 to 65
  EXPECT_THAT(pack(*this, codes, iota(32), 3).data, ElementsAre(0xc0000000u, 0x80000001u, 0x00000002u));
}

TEST_P(PackRows, AreTransposedForFiles) {
  for (const auto& [rows, words] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {33, 7}, {64, 100}, {5, 129}}) {
    Matrix<std::uint32_t> packed(rows, words);
    std::iota(packed.data.begin(), packed.data.end(), 7u);
    const auto x = upload(packed, 3);
    const auto y = upload(Matrix<std::uint32_t>(words, rows), 2);

    backend->transpose_words(*stream, {.x = x.view, .y = y.view});

    const auto got = download(y);  // checks what lies between the rows
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t word = 0; word < words; ++word) {
        ASSERT_EQ(got(word, r), packed(r, word)) << rows << " x " << words;
      }
    }
  }
}

TEST_P(PackRows, AreTransposedIntoTheRightShapeOnly) {
  const auto x = upload(Matrix<std::uint32_t>(2, 3));
  EXPECT_THAT(message_of([&] { backend->transpose_words(*stream, {.x = x.view, .y = x.view}); }),
              HasSubstr("transpose_words: y is [2, 3], expected [3, 2]"));
}

TEST_P(PackRows, RefusesAPositionOutsideTheRow) {
  auto position = iota(8);
  position[3] = 8;
  EXPECT_THAT(message_of([&] { pack(*this, Matrix<std::uint8_t>(1, 8), position, 4); }),
              HasSubstr("position[3] = 8, expected an index in [0, 8)"));
}

TEST_P(PackRows, RefusesOtherWidths) {
  EXPECT_THAT(message_of([&] { pack(*this, Matrix<std::uint8_t>(1, 32), iota(32), 5); }),
              HasSubstr("bits = 5, expected 2, 3, 4 or 8"));
}

class PackBits : public ::testing::TestWithParam<std::tuple<Device, int>> {
 protected:
  DeviceTensors on{std::get<Device>(GetParam())};
  int bits = std::get<int>(GetParam());
};
INSTANTIATE_TEST_SUITE_P(, PackBits, ::testing::Combine(ValuesIn(available_devices()), ::testing::Values(2, 3, 4, 8)),
                         [](const auto& info) {
                           return fmt::format("{}_{}bits", std::get<Device>(info.param).name,
                                              std::get<int>(info.param));
                         });

TEST_P(PackBits, MatchesReferenceWithPermutedColumns) {
  // Rows that a device may keep together, rows that fill what it has for that, and rows longer than that.
  for (const auto& [rows, n, gap] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{33, 96, 0},
                                     {33, 96, 5},
                                     {3, 24576 + 32, 0},
                                     {9, 49152 + 32, 0}}) {
    const auto codes = random_codes(rows, n, bits, 1);
    auto position = iota(n);
    std::shuffle(position.begin(), position.end(), std::mt19937(2));

    const auto packed = pack(on, codes, position, bits, gap);

    for (std::int64_t r = 0; r < codes.rows; ++r) {
      std::vector<std::uint8_t> row;
      for (const auto column : position) {
        row.push_back(codes(r, column));
      }
      const auto* words = packed.view().row(r);
      ASSERT_EQ(std::vector<std::uint32_t>(words, words + packed.cols), reference::pack(row, bits)) << r;
    }
  }
}

TEST_P(PackBits, RowsThatAreNotWholeWordsAreRefused) {
  const Matrix<std::uint8_t> codes(1, 33);
  EXPECT_THAT(message_of([&] { pack(on, codes, iota(33), bits); }),
              HasSubstr(fmt::format("pack_rows: rows of 33 codes of {} bits, expected whole words", bits)));
}

/// x rounded to nearest even with `bits` significant bits; below 2^lowest with constant spacing; infinity above
/// `largest`.
double rounded(double x, int bits, int lowest, double largest) {
  if (x == 0) {
    return 0;
  }
  int exponent = 0;
  std::frexp(x, &exponent);
  const double spacing = std::ldexp(1.0, std::max(exponent - 1, lowest) - (bits - 1));
  const double result = std::nearbyint(x / spacing) * spacing;
  return std::abs(result) > largest ? std::copysign(HUGE_VAL, result) : result;
}

struct Stored {
  DType dtype;
  int bits;
  int lowest;
  double largest;
};

std::ostream& operator<<(std::ostream& out, const Stored& stored) { return out << name_of(stored.dtype); }

/// How columns are put into groups.
enum class Grouping { few, many, runs };
std::string name_of(Grouping grouping) {
  return grouping == Grouping::few ? "large_groups" : grouping == Grouping::many ? "small_groups" : "runs";
}
std::ostream& operator<<(std::ostream& out, Grouping grouping) { return out << name_of(grouping); }

using DequantizeParam = std::tuple<Device, int, Stored, Grouping>;

std::string dequantize_name(const ::testing::TestParamInfo<DequantizeParam>& info) {
  const auto& [device, bits, stored, grouping] = info.param;
  return fmt::format("{}_{}bits_{}_{}", device.name, bits, name_of(stored.dtype), name_of(grouping));
}

class Dequantize : public ::testing::TestWithParam<DequantizeParam> {
 protected:
  template <class Weight>
  void check(std::int64_t gap = 0) {
    DeviceTensors on(std::get<Device>(GetParam()));
    const auto& [device, bits, stored, grouping] = GetParam();
    // Few groups take the way over a table, many do not; of runs a device reads the scale once for neighbours.
    const std::int64_t n = 1024;
    const std::int64_t groups = grouping == Grouping::few ? 2 : grouping == Grouping::many ? n / 2 : n / 32;
    const auto codes = random_codes(19, n, bits, 3);
    const auto packed = pack(on, codes, iota(n), bits);
    const auto zeros = random_codes(19, groups, bits, 4);
    std::mt19937 generator(5);
    Matrix<float> scales(19, groups);
    for (auto& scale : scales.data) {
      const auto significand = static_cast<float>(1024 + generator() % 1024);
      scale = std::ldexp(significand, static_cast<int>(generator() % 14) - 24);
    }
    scales(0, 0) = 65504.0f;
    scales(1, 0) = 0x1p-24f;
    std::vector<std::int32_t> group(static_cast<std::size_t>(n));
    for (std::size_t c = 0; c < group.size(); ++c) {
      group[c] = static_cast<std::int32_t>(
          grouping == Grouping::runs ? c / 32 : generator() % static_cast<std::uint32_t>(groups));
    }
    const auto device_packed = on.upload(packed, gap);
    const auto device_scales = on.upload(scales, gap);
    const auto device_zeros = on.upload(zeros, gap);
    const auto device_group = on.upload(group);
    const auto device_weight = on.upload(Matrix<Weight>(19, n), gap);

    on.backend->dequantize(*on.stream, {.bits = bits,
                                        .packed = device_packed.view,
                                        .scales = device_scales.view,
                                        .zeros = device_zeros.view,
                                        .group = flat(device_group),
                                        .stored = stored.dtype,
                                        .weight = device_weight.view});
    const auto weight = on.download(device_weight);

    for (std::int64_t r = 0; r < 19; ++r) {
      for (std::int64_t c = 0; c < n; ++c) {
        const auto g = group[static_cast<std::size_t>(c)];
        const double exact = static_cast<double>(scales(r, g)) * (codes(r, c) - zeros(r, g));
        double got = 0;
        if constexpr (std::is_floating_point_v<Weight>) {
          got = static_cast<double>(weight(r, c));
        } else {
          got = static_cast<double>(to_float(weight(r, c)));
        }
        ASSERT_EQ(got, rounded(exact, stored.bits, stored.lowest, stored.largest)) << r << ", " << c;
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(, Dequantize,
                         ::testing::Combine(ValuesIn(available_devices()), ::testing::Values(2, 3, 4, 8),
                                            ::testing::Values(Stored{DType::f16, 11, -14, 65504},
                                                              Stored{DType::bf16, 8, -126, 3.3e38},
                                                              Stored{DType::f32, 24, -126, 3.4e38}),
                                            ::testing::Values(Grouping::few, Grouping::many, Grouping::runs)),
                         dequantize_name);

TEST_P(Dequantize, RoundsOnceIntoWiderTypes) {
  check<float>();
  check<double>();
}

TEST_P(Dequantize, RoundsOnceIntoTheStoredType) {
  for (const std::int64_t gap : {0, 1}) {
    switch (std::get<Stored>(GetParam()).dtype) {
      case DType::f16:
        check<Half>(gap);
        break;
      case DType::bf16:
        check<BFloat16>(gap);
        break;
      default:
        check<float>(gap);
    }
  }
}

class DequantizeArguments : public OnDevice {
 protected:
  /// Eight codes of four bits.
  template <class Weight>
  void dequantize(const std::vector<std::int32_t>& groups) {
    const auto packed = upload(Matrix<std::uint32_t>(1, 1));
    const auto scales = upload(Matrix<float>(1, 1, 1.0f));
    const auto zeros = upload(Matrix<std::uint8_t>(1, 1));
    const auto group = upload(groups);
    const auto weight = upload(Matrix<Weight>(1, 8));
    backend->dequantize(*stream, {.bits = 4,
                                  .packed = packed.view,
                                  .scales = scales.view,
                                  .zeros = zeros.view,
                                  .group = flat(group),
                                  .stored = DType::f16,
                                  .weight = weight.view});
    stream->synchronize();
  }
};
INSTANTIATE_TEST_SUITE_P(, DequantizeArguments, ValuesIn(available_devices()), device_name);

TEST_P(DequantizeArguments, RefuseAGroupWithoutScale) {
  EXPECT_THAT(message_of([&] {
                dequantize<float>({0, 0, 0, 0, 0, 0, 0, 1});
              }),
              HasSubstr("group[7] = 1, expected an index in [0, 1)"));
}

TEST_P(DequantizeArguments, RefuseAnotherHalfTypeThanTheStoredOne) {
  EXPECT_THAT(message_of([&] { dequantize<BFloat16>(std::vector<std::int32_t>(8)); }),
              HasSubstr("weight is BF16, expected F64 or F32 or F16"));
}

}  // namespace
}  // namespace gptqd
