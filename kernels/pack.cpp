#include "kernels/pack.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

using checks::expect;
using checks::expect_bits;
using checks::expect_tensor;

namespace {

void expect_whole_words(std::int64_t n, int bits, std::string_view operation) {
  expect(n * bits % 32 == 0, operation, [&] {
    return fmt::format("rows of {} codes of {} bits, expected whole words of 32 bits: a multiple of {} codes", n, bits,
                       bits == 3 ? 32 : 32 / bits);
  });
}

}  // namespace

void validate(const PackRowsArgs& args) {
  constexpr auto operation = "pack_rows";
  expect_bits(args.bits, operation);
  const auto rows = args.codes.rows();
  const auto n = args.codes.cols();
  expect_whole_words(n, args.bits, operation);
  expect_tensor(args.codes, Shape<2>{rows, n}, operation, "codes");
  expect_tensor(args.position, Shape<1>{n}, operation, "position");
  expect_tensor(args.packed, Shape<2>{rows, n * args.bits / 32}, operation, "packed");
}

void validate(const TransposeWordsArgs& args) {
  constexpr auto operation = "transpose_words";
  expect_tensor(args.x, Shape<2>{args.x.rows(), args.x.cols()}, operation, "x");
  expect_tensor(args.y, Shape<2>{args.x.cols(), args.x.rows()}, operation, "y");
}

void validate(const DequantizeArgs& args) {
  constexpr auto operation = "dequantize";
  expect_bits(args.bits, operation);
  const auto rows = args.weight.rows();
  const auto n = args.weight.cols();
  const auto groups = args.scales.cols();
  expect_whole_words(n, args.bits, operation);
  expect(args.stored == DType::f16 || args.stored == DType::bf16 || args.stored == DType::f32, operation,
         [&] { return fmt::format("weights stored as {}, expected F16, BF16 or F32", name_of(args.stored)); });
  expect_tensor(args.packed, Shape<2>{rows, n * args.bits / 32}, operation, "packed");
  expect_tensor(args.scales, Shape<2>{rows, groups}, operation, "scales");
  expect_tensor(args.zeros, Shape<2>{rows, groups}, operation, "zeros");
  expect_tensor(args.group, Shape<1>{n}, operation, "group");
  expect_tensor(args.weight, Shape<2>{rows, n}, {DType::f64, DType::f32, args.stored}, operation, "weight");
}

}  // namespace gptqd
