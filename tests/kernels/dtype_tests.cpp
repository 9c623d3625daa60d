#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "kernels/base/dtype.hpp"
#include "kernels/cpu/conversions.hpp"

namespace gptqd {
namespace {

/// The value of a format with `exponent_bits` and `fraction_bits`, by the definition of IEEE 754.
double value_of(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias - fraction_bits)
                       : sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}
double value_of(Half half) { return value_of(half.bits, 5, 10); }
double value_of(BFloat16 half) { return value_of(half.bits, 8, 7); }

/// True when `got` is `value` rounded to nearest, ties to an even last bit: checked against both neighbours.
template <class T>
bool is_nearest_even(double value, T got) {
  if (std::isnan(value)) {
    return std::isnan(value_of(got));
  }
  if (std::signbit(value) != ((got.bits & 0x8000u) != 0)) {
    return false;
  }
  const auto magnitude = static_cast<std::uint16_t>(got.bits & 0x7fffu);
  // Infinity stands for the power of two that would come next; what rounds to it overflows.
  const auto as_number = [](std::uint16_t bits) {
    const double number = value_of(T{bits});
    return std::isinf(number) ? 2.0 * value_of(T{static_cast<std::uint16_t>(bits - 1)}) -
                                    value_of(T{static_cast<std::uint16_t>(bits - 2)})
                              : number;
  };
  const double target = std::abs(value);
  const bool is_infinite = std::isinf(value_of(T{magnitude}));
  if (std::isinf(target)) {
    return is_infinite;
  }
  const double here = as_number(magnitude);
  const bool even = (magnitude & 1u) == 0;
  const bool above_lower = [&] {
    if (magnitude == 0) {
      return true;
    }
    const double middle = (here + as_number(static_cast<std::uint16_t>(magnitude - 1))) / 2.0;
    return target > middle || (target == middle && even);
  }();
  const bool below_upper = [&] {
    if (is_infinite) {
      return true;
    }
    const double middle = (here + as_number(static_cast<std::uint16_t>(magnitude + 1))) / 2.0;
    return target < middle || (target == middle && even);
  }();
  return above_lower && below_upper;
}

template <class T>
T rounded(float value);
template <>
Half rounded<Half>(float value) {
  return to_half(value);
}
template <>
BFloat16 rounded<BFloat16>(float value) {
  return to_bfloat16(value);
}

template <class T>
class HalfTypes : public ::testing::Test {};
using BothHalfTypes = ::testing::Types<Half, BFloat16>;
TYPED_TEST_SUITE(HalfTypes, BothHalfTypes);

TYPED_TEST(HalfTypes, EveryPatternHasItsValueAndComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xffffu; ++bits) {
    const TypeParam half{static_cast<std::uint16_t>(bits)};
    const float value = to_float(half);
    const double expected = value_of(half);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(value_of(rounded<TypeParam>(value)))) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(value), expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      ASSERT_EQ(rounded<TypeParam>(value).bits, half.bits);
    }
  }
}

TYPED_TEST(HalfTypes, RandomFloatsRoundToNearestEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 400000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    ASSERT_TRUE(is_nearest_even(static_cast<double>(value), rounded<TypeParam>(value))) << value;
  }
}

TYPED_TEST(HalfTypes, MiddlesAndTheirNeighboursRoundToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7fffu; ++bits) {
    const double low = value_of(TypeParam{static_cast<std::uint16_t>(bits)});
    const double high = value_of(TypeParam{static_cast<std::uint16_t>(bits + 1)});
    if (!std::isfinite(low) || !std::isfinite(high)) {
      continue;
    }
    const auto middle = static_cast<float>((low + high) / 2.0);  // exact: one bit more than the format has
    for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e38f)}) {
      ASSERT_TRUE(is_nearest_even(static_cast<double>(value), rounded<TypeParam>(value))) << value;
      ASSERT_TRUE(is_nearest_even(-static_cast<double>(value), rounded<TypeParam>(-value))) << value;
    }
  }
}

TYPED_TEST(HalfTypes, DoublesAreRoundedOnce) {
  // A double just beside the middle of two halves becomes that middle when it is rounded to float first.
  for (std::uint32_t bits = 1; bits < 0x7bffu; bits += 3) {
    const double low = value_of(TypeParam{static_cast<std::uint16_t>(bits)});
    const double high = value_of(TypeParam{static_cast<std::uint16_t>(bits + 1)});
    if (!std::isfinite(high)) {
      continue;
    }
    const double middle = (low + high) / 2.0;
    for (const double value : {middle, middle * (1.0 - 0x1p-50), middle * (1.0 + 0x1p-50), -middle * (1.0 + 0x1p-50)}) {
      ASSERT_TRUE(is_nearest_even(value, cpu::convert_element<TypeParam>(value))) << value;
    }
  }
}

TYPED_TEST(HalfTypes, DoublesOutsideTheFloatsRange) {
  EXPECT_TRUE(is_nearest_even(1e300, cpu::convert_element<TypeParam>(1e300)));
  EXPECT_TRUE(is_nearest_even(-1e300, cpu::convert_element<TypeParam>(-1e300)));
  EXPECT_TRUE(is_nearest_even(1e-300, cpu::convert_element<TypeParam>(1e-300)));
  EXPECT_TRUE(is_nearest_even(0.0, cpu::convert_element<TypeParam>(0.0)));
  EXPECT_TRUE(std::isnan(value_of(cpu::convert_element<TypeParam>(std::nan("")))));
  EXPECT_TRUE(std::isinf(value_of(cpu::convert_element<TypeParam>(-std::numeric_limits<double>::infinity()))));
}

TEST(DTypeNames, ComeBack) {
  for (const auto dtype : {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::i16,
                           DType::i8, DType::u64, DType::u32, DType::u16, DType::u8, DType::boolean}) {
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  }
  EXPECT_EQ(dtype_from_name("F8_E4M3"), std::nullopt);
}

}  // namespace
}  // namespace gptqd
