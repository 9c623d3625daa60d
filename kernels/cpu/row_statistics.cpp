#include "kernels/row_statistics.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/lane_sums.hpp"
#include "kernels/cpu/tiles.hpp"

namespace gptqd {

namespace {

template <class T>
void measure_row(const RowStatisticsArgs& args, std::int64_t r) {
  const auto delta = args.delta.as<T>();
  const T* errors = delta.row(r);
  const std::uint8_t* codes = args.codes.row(r);
  const float* scales = args.scales.row(r);
  const int last = (1 << args.bits) - 1;
  std::int32_t saturated = 0;
  std::int32_t non_finite = 0;
  for (std::int64_t a = 0; a < delta.cols(); ++a) {
    const auto error = static_cast<double>(errors[a]);
    if (codes[a] == 0 || codes[a] == last) {
      const double half_step = 0.5 * static_cast<double>(scales[args.group.data[a]]);
      saturated += std::abs(error) > half_step * (1 + 1e-6) ? 1 : 0;
    }
    non_finite += std::isfinite(error) ? 0 : 1;
  }
  double share = 0;
  if (args.extra) {
    const double* extra = args.extra->data;
    share = cpu::lane_sum(delta.cols(), [=](std::int64_t a) {
      const auto error = static_cast<double>(errors[a]);
      return extra[a] * error * error;
    });
  }
  args.saturated.data[r] = saturated;
  args.non_finite.data[r] = non_finite;
  args.damping_share.data[r] = share;
  const auto [least, largest] = std::minmax_element(scales, scales + args.scales.cols());
  args.min_scale.data[r] = *least;
  args.max_scale.data[r] = *largest;
}

}  // namespace

void CpuBackend::run(Stream& stream, const RowStatisticsArgs& args) {
  enqueue(stream, [this, args] {
    cpu::check_indices(args.group, args.scales.cols(), "row_statistics", "group");
    cpu::with_real_type(args.delta.dtype, "row_statistics", [&]<class T>(T) {
      cpu::for_row_tiles(pool_, args.delta.rows(), args.delta.cols(), [&](std::int64_t first, std::int64_t count) {
        for (std::int64_t r = first; r < first + count; ++r) {
          measure_row<T>(args, r);
        }
      });
    });
  });
}

}  // namespace gptqd
