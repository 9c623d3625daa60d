#include <cmath>
#include <numeric>
#include <random>

#include "kernels/pack.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/pack.hpp"

namespace gptqd {
namespace {

using test::Cpu;
using test::Matrix;
using test::message_of;
using test::view_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

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

Matrix<std::uint32_t> pack(Cpu& cpu, const Matrix<std::uint8_t>& codes, const std::vector<std::int32_t>& position,
                           int bits) {
  Matrix<std::uint32_t> packed(codes.rows, codes.cols * bits / 32, 0xdeadbeefu);
  cpu.backend->pack_rows(*cpu.stream,
                         {.bits = bits, .codes = codes.view(), .position = view_of(position), .packed = packed.view()});
  cpu.stream->synchronize();
  return packed;
}

TEST(PackRows, FourBitsLowestFirst) {
  Cpu cpu;
  Matrix<std::uint8_t> codes(1, 8);
  codes.data = {1, 2, 3, 4, 5, 6, 7, 15};
  EXPECT_THAT(pack(cpu, codes, iota(8), 4).data, ElementsAre(0xf7654321u));
}

TEST(PackRows, ThreeBitsStraddleWords) {
  Cpu cpu;
  Matrix<std::uint8_t> codes(1, 32);
  codes(0, 10) = 7;  // bits 30 to 32
  codes(0, 21) = 5;  // bits 63 to 65
  EXPECT_THAT(pack(cpu, codes, iota(32), 3).data, ElementsAre(0xc0000000u, 0x80000001u, 0x00000002u));
}

class PackBits : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, PackBits, ::testing::Values(2, 3, 4, 8));

TEST_P(PackBits, MatchesReferenceWithPermutedColumns) {
  Cpu cpu;
  const int bits = GetParam();
  const auto codes = random_codes(33, 96, bits, 1);
  auto position = iota(96);
  std::shuffle(position.begin(), position.end(), std::mt19937(2));

  const auto packed = pack(cpu, codes, position, bits);

  for (std::int64_t r = 0; r < codes.rows; ++r) {
    std::vector<std::uint8_t> row;
    for (const auto column : position) {
      row.push_back(codes(r, column));
    }
    const auto* words = packed.view().row(r);
    EXPECT_EQ(std::vector<std::uint32_t>(words, words + packed.cols), reference::pack(row, bits)) << r;
  }
}

TEST_P(PackBits, RowsThatAreNotWholeWordsAreRefused) {
  Cpu cpu;
  const Matrix<std::uint8_t> codes(1, 33);
  EXPECT_THAT(message_of([&] { pack(cpu, codes, iota(33), GetParam()); }),
              HasSubstr(fmt::format("pack_rows: rows of 33 codes of {} bits, expected whole words", GetParam())));
}

TEST(PackRows, RefusesAPositionOutsideTheRow) {
  Cpu cpu;
  auto position = iota(8);
  position[3] = 8;
  EXPECT_THAT(message_of([&] { pack(cpu, Matrix<std::uint8_t>(1, 8), position, 4); }),
              HasSubstr("position[3] = 8, expected an index in [0, 8)"));
}

TEST(PackRows, RefusesOtherWidths) {
  Cpu cpu;
  EXPECT_THAT(message_of([&] { pack(cpu, Matrix<std::uint8_t>(1, 32), iota(32), 5); }),
              HasSubstr("bits = 5, expected 2, 3, 4 or 8"));
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

std::string dequantize_name(const ::testing::TestParamInfo<std::tuple<int, Stored, bool>>& info) {
  const auto& [bits, stored, many_groups] = info.param;
  return fmt::format("{}bits_{}_{}", bits, name_of(stored.dtype), many_groups ? "small_groups" : "large_groups");
}

class Dequantize : public ::testing::TestWithParam<std::tuple<int, Stored, bool>> {
 protected:
  template <class Weight>
  void check(DType weight_dtype) {
    Cpu cpu;
    const auto [bits, stored, many_groups] = GetParam();
    // Few groups take the way over a table, many do not.
    const std::int64_t n = 1024;
    const std::int64_t groups = many_groups ? n / 2 : 2;
    const auto codes = random_codes(19, n, bits, 3);
    const auto packed = pack(cpu, codes, iota(n), bits);
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
    for (auto& g : group) {
      g = static_cast<std::int32_t>(generator() % static_cast<std::uint32_t>(groups));
    }
    Matrix<Weight> weight(19, n);

    cpu.backend->dequantize(*cpu.stream, {.bits = bits,
                                          .packed = packed.view(),
                                          .scales = scales.view(),
                                          .zeros = zeros.view(),
                                          .group = view_of(group),
                                          .stored = stored.dtype,
                                          .weight = AnyView<2>(weight.data.data(), weight_dtype, {19, n})});
    cpu.stream->synchronize();

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
                         ::testing::Combine(::testing::Values(2, 3, 4, 8),
                                            ::testing::Values(Stored{DType::f16, 11, -14, 65504},
                                                              Stored{DType::bf16, 8, -126, 3.3e38},
                                                              Stored{DType::f32, 24, -126, 3.4e38}),
                                            ::testing::Bool()),
                         dequantize_name);

TEST_P(Dequantize, RoundsOnceIntoWiderTypes) {
  check<float>(DType::f32);
  check<double>(DType::f64);
}

TEST_P(Dequantize, RoundsOnceIntoTheStoredType) {
  switch (std::get<1>(GetParam()).dtype) {
    case DType::f16:
      return check<Half>(DType::f16);
    case DType::bf16:
      return check<BFloat16>(DType::bf16);
    default:
      return check<float>(DType::f32);
  }
}

TEST(DequantizeArgs, RefuseAGroupWithoutScale) {
  Cpu cpu;
  const Matrix<std::uint32_t> packed(1, 1);
  const Matrix<float> scales(1, 1, 1.0f);
  const Matrix<std::uint8_t> zeros(1, 1);
  const std::vector<std::int32_t> group{0, 0, 0, 0, 0, 0, 0, 1};
  Matrix<float> weight(1, 8);

  cpu.backend->dequantize(*cpu.stream, {.bits = 4,
                                        .packed = packed.view(),
                                        .scales = scales.view(),
                                        .zeros = zeros.view(),
                                        .group = view_of(group),
                                        .weight = weight.view()});

  EXPECT_THAT(message_of([&] { cpu.stream->synchronize(); }), HasSubstr("group[7] = 1, expected an index in [0, 1)"));
}

TEST(DequantizeArgs, RefuseAnotherHalfTypeThanTheStoredOne) {
  Cpu cpu;
  const Matrix<std::uint32_t> packed(1, 1);
  const Matrix<float> scales(1, 1, 1.0f);
  const Matrix<std::uint8_t> zeros(1, 1);
  const std::vector<std::int32_t> group(8);
  Matrix<BFloat16> weight(1, 8);
  EXPECT_THAT(message_of([&] {
                cpu.backend->dequantize(*cpu.stream, {.bits = 4,
                                                      .packed = packed.view(),
                                                      .scales = scales.view(),
                                                      .zeros = zeros.view(),
                                                      .group = view_of(group),
                                                      .stored = DType::f16,
                                                      .weight = weight.view()});
              }),
              HasSubstr("weight is BF16, expected F64 or F32 or F16"));
}

}  // namespace
}  // namespace gptqd
