#include "kernels/row_statistics.hpp"

#include <algorithm>

#include "kernels/checks.hpp"

namespace gptqd {

void validate(const RowStatisticsArgs& args) {
  constexpr auto operation = "row_statistics";
  const std::int64_t rows = args.delta.rows();
  checks::expect_bits(args.bits, operation);
  checks::expect_tensor(args.delta, args.delta.shape, {DType::f32, DType::f64}, operation, "delta");
  checks::expect_tensor(args.codes, args.delta.shape, operation, "codes");
  checks::expect_tensor(args.group, Shape<1>{args.delta.cols()}, operation, "group");
  checks::expect_tensor(args.scales, Shape<2>{rows, std::max<std::int64_t>(1, args.scales.cols())}, operation,
                        "scales");
  if (args.extra) {
    checks::expect_tensor(*args.extra, Shape<1>{args.delta.cols()}, operation, "extra");
  }
  checks::expect_tensor(args.damping_share, Shape<1>{rows}, operation, "damping_share");
  checks::expect_tensor(args.saturated, Shape<1>{rows}, operation, "saturated");
  checks::expect_tensor(args.non_finite, Shape<1>{rows}, operation, "non_finite");
  checks::expect_tensor(args.min_scale, Shape<1>{rows}, operation, "min_scale");
  checks::expect_tensor(args.max_scale, Shape<1>{rows}, operation, "max_scale");
}

}  // namespace gptqd
