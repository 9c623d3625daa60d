#include "gptq/obq_inverse.hpp"

#include <vector>

#include "gptq/column_order.hpp"

namespace gptqd::gptq {

namespace {

/// The lower triangle of H from its panels, in the first n rows of [2n, n]; the identity below it.
Buffer stack_on_identity(Team& team, const Panels& hessian) {
  Backend& backend = team.backend;
  const std::int64_t n = hessian.layout().columns();
  std::vector<double> identity(static_cast<std::size_t>(n * n), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    identity[static_cast<std::size_t>(i * (n + 1))] = 1.0;
  }
  Buffer stack = backend.allocate(2 * n * n * size_of(DType::f64));
  const auto whole = stack.any_view<2>(DType::f64, {2 * n, n});
  backend.fill_zero(team.stream, stack.data(), n * n * size_of(DType::f64));
  backend.copy_to_device(team.stream, whole.slice_rows(n, n).data, identity.data(), n * n * size_of(DType::f64));
  PanelExchange exchange(team, hessian, "panel of the Hessian");
  exchange.start(0);
  for (int k = 0; k < hessian.count(); ++k) {
    const auto panel = exchange.finish(k);
    if (k + 1 < hessian.count()) {
      exchange.start(k + 1);
    }
    const auto shape = hessian.layout().at(k);
    backend.convert(team.stream,
                    {.x = panel, .y = whole.slice_rows(shape.first, shape.rows).slice_cols(shape.first, shape.cols)});
  }
  exchange.drain();
  team.stream.synchronize();
  return stack;
}

}  // namespace

Buffer invert_hessian(Team& team, const Panels& hessian, std::span<const double> diagonal, std::string_view layer) {
  Backend& backend = team.backend;
  Stream& stream = team.stream;
  const std::int64_t n = hessian.layout().columns();
  const auto count = static_cast<std::size_t>(n * n);
  const std::int64_t bytes = n * n * size_of(DType::f64);
  Buffer stack = stack_on_identity(team, hessian);
  const auto whole = stack.any_view<2>(DType::f64, {2 * n, n});
  const Buffer device_diagonal = upload(backend, stream, diagonal);
  backend.set_diagonal(stream, {.diagonal = device_diagonal.view<const double, 1>({n}), .panel = whole});
  std::int32_t status = 0;
  const Buffer device_status = upload(backend, stream, std::span<const std::int32_t>(&status, 1));
  // [H; I] becomes [L; L⁻ᵀ], and H⁻¹ = L⁻ᵀ·L⁻¹: the trailing update of a zero panel by L⁻ᵀ is −H⁻¹.
  backend.factor_panel(stream, {.panel = whole, .status = device_status.view<std::int32_t, 1>({1})});
  Buffer inverse = backend.allocate(bytes);
  backend.fill_zero(stream, inverse.data(), bytes);
  const auto rows = whole.slice_rows(n, n);
  backend.update_panel(stream, {.rows = rows, .top = rows, .target = inverse.any_view<2>(DType::f64, {n, n})});
  std::vector<double> values(count);
  backend.copy_to_host(stream, values.data(), inverse.data(), bytes);
  backend.copy_to_host(stream, &status, device_status.data(), size_of(DType::i32));
  stream.synchronize();
  if (status != 0) {
    throw Error(
        ErrorKind::input,
        fmt::format("Hessian of {}: leading minor {} of [{}, {}] is not positive definite in F64, though its factor "
                    "exists in panels; raise --damping, or use --method gptq",
                    layer, status, n, n));
  }
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) {
      const double value = -values[static_cast<std::size_t>(r * n + c)];
      values[static_cast<std::size_t>(r * n + c)] = value;
      values[static_cast<std::size_t>(c * n + r)] = value;
    }
  }
  backend.copy_to_device(stream, inverse.data(), values.data(), bytes);
  stream.synchronize();
  return inverse;
}

}  // namespace gptqd::gptq
