#include <bit>
#include <cmath>
#include <type_traits>

#include "kernels/cpu/conversions.hpp"
#include "kernels/elementwise.hpp"
#include "tests/kernels/device_tensors.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<std::array<std::int64_t, 2>> shapes{{1, 1}, {63, 65}, {64, 64}, {257, 300}, {3, 40000}};

Matrix<double> as_double(const Matrix<float>& from) {
  return converted<double>(from, [](float value) { return static_cast<double>(value); });
}

class Elementwise : public OnDevice {
 protected:
  template <class T>
  void check_add(const Matrix<T>& a, const Matrix<T>& b) {
    const auto x = upload(a, 1);
    const auto y = upload(b, 4);

    backend->add(*stream, {.x = x.view, .y = y.view});

    auto expected = b;
    for (std::size_t i = 0; i < expected.data.size(); ++i) {
      expected.data[i] += a.data[i];
    }
    expect_identical(download(y), expected);
  }

  template <class To, class From>
  Matrix<To> convert(const Matrix<From>& from, std::int64_t gap = 0) {
    const auto x = upload(from, gap);
    const auto y = upload(Matrix<To>(from.rows, from.cols), gap);
    backend->convert(*stream, {.x = x.view, .y = y.view});
    return download(y);
  }

  template <class To, class From>
  Matrix<To> gather(const Matrix<From>& from, const std::vector<std::int32_t>& index) {
    const auto x = upload(from, 3);
    const auto columns = upload(index);
    const auto y = upload(Matrix<To>(from.rows, static_cast<std::int64_t>(index.size())), 2);
    backend->gather_columns(*stream, {.x = x.view, .index = flat(columns), .y = y.view});
    return download(y);
  }
};

TEST_P(Elementwise, AddIsIeeeAddition) {
  for (const auto& [rows, cols] : shapes) {
    const auto a = normal(rows, cols, 1);
    const auto b = normal(rows, cols, 2);
    check_add(a, b);
    check_add(as_double(a), as_double(b));
  }
}

TEST_P(Elementwise, AddToItselfDoubles) {
  const auto both = upload(filled(3, 7, 1.5f));

  backend->add(*stream, {.x = both.view, .y = both.view});

  EXPECT_THAT(download(both).data, ::testing::Each(3.0f));
}

TEST_P(Elementwise, ConvertsBetweenFloatAndDouble) {
  for (const auto& [rows, cols] : shapes) {
    const auto floats = normal(rows, cols, 1);
    const auto doubles = convert<double>(floats, 1);
    expect_identical(doubles, as_double(floats));
    expect_identical(convert<float>(doubles, 2), floats);
  }
  Matrix<double> thirds(1, 1);
  thirds(0, 0) = 1.0 / 3.0;
  EXPECT_EQ(convert<float>(thirds)(0, 0), static_cast<float>(1.0 / 3.0));
}

TEST_P(Elementwise, ConvertsEveryHalf) {
  Matrix<Half> halves(256, 256);
  Matrix<BFloat16> brains(256, 256);
  for (std::size_t i = 0; i < 65536; ++i) {
    halves.data[i].bits = brains.data[i].bits = static_cast<std::uint16_t>(i);
  }

  const auto from_halves = convert<float>(halves);
  const auto from_brains = convert<float>(brains);
  const auto doubles = convert<double>(halves);
  const auto halves_again = convert<Half>(from_halves);
  const auto brains_again = convert<BFloat16>(from_brains);
  const auto halves_from_doubles = convert<Half>(doubles);

  for (std::size_t i = 0; i < 65536; ++i) {
    const float half = to_float(halves.data[i]);
    const float brain = to_float(brains.data[i]);
    if (!std::isnan(half)) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(from_halves.data[i]), std::bit_cast<std::uint32_t>(half));
      ASSERT_EQ(halves_again.data[i].bits, halves.data[i].bits);
      ASSERT_EQ(halves_from_doubles.data[i].bits, halves.data[i].bits);
    } else {
      ASSERT_TRUE(std::isnan(from_halves.data[i]) && std::isnan(to_float(halves_again.data[i])));
    }
    if (!std::isnan(brain)) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(from_brains.data[i]), std::bit_cast<std::uint32_t>(brain));
      ASSERT_EQ(brains_again.data[i].bits, brains.data[i].bits);
    } else {
      ASSERT_TRUE(std::isnan(from_brains.data[i]) && std::isnan(to_float(brains_again.data[i])));
    }
  }
}

TEST_P(Elementwise, RoundsToHalvesAsTheScalarFunctionsDo) {
  // All magnitudes that either type has, below and above its range as well.
  std::mt19937 random(3);
  Matrix<float> floats(300, 333);
  for (auto& value : floats.data) {
    do {
      value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    } while (std::isnan(value));
  }

  const auto halves = convert<Half>(floats, 5);
  const auto brains = convert<BFloat16>(floats, 5);
  const auto from_doubles = convert<Half>(as_double(floats));

  for (std::size_t i = 0; i < floats.data.size(); ++i) {
    ASSERT_EQ(halves.data[i].bits, to_half(floats.data[i]).bits) << floats.data[i];
    ASSERT_EQ(from_doubles.data[i].bits, to_half(floats.data[i]).bits) << floats.data[i];
    ASSERT_EQ(brains.data[i].bits, to_bfloat16(floats.data[i]).bits) << floats.data[i];
  }
}

TEST_P(Elementwise, ConvertsBetweenTheHalfTypes) {
  const auto halves = converted<Half>(normal(20, 30, 1), to_half);

  const auto brains = convert<BFloat16>(halves);

  for (std::size_t i = 0; i < halves.data.size(); ++i) {
    ASSERT_EQ(brains.data[i].bits, to_bfloat16(to_float(halves.data[i])).bits);
  }
}

TEST_P(Elementwise, GathersColumns) {
  for (const auto& [rows, cols] : shapes) {
    const auto x = normal(rows, cols, 1);
    std::vector<std::int32_t> index;
    for (std::int64_t c = 0; c < cols + 5; ++c) {
      index.push_back(static_cast<std::int32_t>((c * 7919 + cols - 1) % cols));
    }

    const auto got = gather<float>(x, index);
    const auto widened = gather<double>(x, index);
    const auto doubles = gather<double>(as_double(x), index);

    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < got.cols; ++c) {
        ASSERT_EQ(got(r, c), x(r, index[static_cast<std::size_t>(c)]));
      }
    }
    expect_identical(widened, as_double(got));
    expect_identical(doubles, as_double(got));
  }
}

TEST_P(Elementwise, GathersColumnsInPlace) {
  for (const auto& [rows, cols] : std::vector<std::array<std::int64_t, 2>>{{1, 1}, {70, 33}, {33, 4096}, {3, 60001}}) {
    const auto x = normal(rows, cols, 1);
    std::vector<std::int32_t> index;
    for (std::int64_t c = 0; c < cols; ++c) {
      index.push_back(static_cast<std::int32_t>(cols - 1 - c));
    }
    const auto device = upload(x, 3);
    const auto columns = upload(index);

    backend->gather_columns(*stream, {.x = device.view, .index = flat(columns), .y = device.view});

    const auto got = download(device);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(got(r, c), x(r, cols - 1 - c)) << r << ", " << c;
      }
    }
  }
}

TEST_P(Elementwise, AnIndexOutsideXIsThrownByTheStream) {
  EXPECT_THAT(error_message([&] {
                gather<float>(normal(2, 4, 1), {0, 4});
              }),
              AllOf(HasSubstr("index[1] = 4"), HasSubstr("[0, 4)")));
  stream = backend->create_stream();
  EXPECT_THAT(error_message([&] { gather<float>(normal(2, 4, 1), {-1}); }), HasSubstr("index[0] = -1"));
}

TEST_P(Elementwise, RefusesWhatDoesNotFit) {
  const auto a = upload(normal(2, 3, 1));
  const auto b = upload(normal(3, 2, 1));
  const auto integers = upload(Matrix<std::int32_t>(2, 3));
  const auto index = upload(std::vector<std::int32_t>{0, 1});
  EXPECT_THAT(error_message([&] { backend->add(*stream, {.x = a.view, .y = b.view}); }),
              AllOf(HasSubstr("add: y is [3, 2]"), HasSubstr("expected [2, 3]")));
  EXPECT_THAT(error_message([&] { backend->convert(*stream, {.x = integers.view, .y = a.view}); }),
              AllOf(HasSubstr("convert: x is I32"), HasSubstr("BF16")));
  EXPECT_THAT(error_message([&] { backend->convert(*stream, {.x = a.view, .y = a.view}); }), HasSubstr("overlaps"));
  EXPECT_THAT(
      error_message([&] { backend->gather_columns(*stream, {.x = a.view, .index = flat(index), .y = b.view}); }),
      AllOf(HasSubstr("gather_columns: y is [3, 2]"), HasSubstr("expected [2, 2]")));
}

INSTANTIATE_TEST_SUITE_P(, Elementwise, ::testing::ValuesIn(available_devices()), device_name);

class GatherOfActivations : public OnDevice {};
INSTANTIATE_TEST_SUITE_P(, GatherOfActivations, ::testing::ValuesIn(compute_devices()), device_name);

TEST_P(GatherOfActivations, MovesEveryColumn) {
  struct Case {
    std::int64_t rows, cols, gathered, gap;
  };
  // Many rows in a GPU's on-chip memory; a few; two; one at most; more columns than there are, and fewer.
  for (const auto& [rows, cols, gathered, gap] :
       {Case{203, 96, 96, 8}, Case{70, 4096, 4096, 0}, Case{9, 14336, 14336, 0}, Case{3, 57344, 57344, 8},
        Case{2, 60000, 60000, 0}, Case{33, 1000, 4096, 8}, Case{33, 4096, 1000, 0}}) {
    const auto x = rounded(normal(rows, cols, 1));
    std::vector<std::int32_t> index;
    for (std::int64_t c = 0; c < gathered; ++c) {
      index.push_back(static_cast<std::int32_t>(c % cols));
    }
    std::shuffle(index.begin(), index.end(), std::mt19937(7));
    const auto columns = upload(index);
    const auto from = upload_rounded(x, gap);
    const auto other = unset_compute(rows, gathered, gap);
    const auto& to = gathered == cols ? from : other;

    backend->gather_columns(*stream, {.x = from.view, .index = flat(columns), .y = to.view});

    const auto got = download(to);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < gathered; ++c) {
        ASSERT_EQ(got(r, c), x(r, index[static_cast<std::size_t>(c)])) << cols << " columns: " << r << ", " << c;
      }
    }
  }
}

}  // namespace
}  // namespace gptqd::test
