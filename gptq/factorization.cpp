#include "gptq/factorization.hpp"

#include <algorithm>
#include <utility>

#include "gptq/column_order.hpp"

namespace gptqd::gptq {

namespace {

/// L's columns `source` act on panel `target`, which holds later columns of the factor order.
void update(Team& team, const PanelLayout& layout, int source, ConstAnyView<2> factored, int target, AnyView<2> panel) {
  const auto shape = layout.at(target);
  const auto rows = factored.slice_rows(shape.first - layout.at(source).first, shape.rows);
  team.backend.update_panel(team.stream, {.rows = rows, .top = rows.slice_rows(0, shape.cols), .target = panel});
}

/// True on all ranks if every panel could be factored. `factor` is overwritten.
bool factor_panels(Team& team, const Panels& hessian, std::span<const double> diagonal, Panels& factor) {
  Backend& backend = team.backend;
  Stream& stream = team.stream;
  const auto& layout = factor.layout();
  const Buffer device_diagonal = upload(backend, stream, diagonal);
  const auto damped = device_diagonal.view<const double, 1>({layout.columns()});
  std::vector<std::int32_t> status(static_cast<std::size_t>(layout.count()), 0);
  const Buffer device_status = upload(backend, stream, std::span<const std::int32_t>(status));
  for (int k = 0; k < layout.count(); ++k) {
    if (factor.owns(k)) {
      const auto shape = layout.at(k);
      backend.convert(stream, {.x = hessian.view(k), .y = factor.view(k)});
      backend.set_diagonal(stream, {.diagonal = damped.slice_rows(shape.first, shape.cols), .panel = factor.view(k)});
    }
  }

  PanelExchange exchange(team, factor, "panel of the Hessian's factor");
  const auto factor_and_send = [&](int k) {
    if (factor.owns(k)) {
      backend.factor_panel(stream, {.panel = factor.view(k),
                                    .status = device_status.view<std::int32_t, 1>({layout.count()}).slice_rows(k, 1)});
    }
    if (k > 0) {
      exchange.start(k);
    }
  };
  factor_and_send(layout.count() - 1);
  for (int k = layout.count() - 1; k > 0; --k) {
    const auto factored = exchange.finish(k);
    for (int target = k - 1; target >= 0; --target) {
      if (factor.owns(target)) {
        update(team, layout, k, factored, target, factor.view(target));
      }
      if (target == k - 1) {
        factor_and_send(target);
      }
    }
  }

  exchange.drain();
  backend.copy_to_host(stream, status.data(), device_status.data(), layout.count() * size_of(DType::i32));
  stream.synchronize();
  const bool failed = std::any_of(status.begin(), status.end(), [](std::int32_t value) { return value != 0; });
  return team.group.all_max(failed ? 1 : 0, "outcome of the factorization") == 0;
}

}  // namespace

std::vector<std::int32_t> dead_columns(std::span<const double> diagonal) {
  std::vector<std::int32_t> dead;
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    if (diagonal[i] == 0) {
      dead.push_back(static_cast<std::int32_t>(i));
    }
  }
  return dead;
}

DampedDiagonal damp(std::span<const double> diagonal, double damping, const QuantSpec& spec) {
  double sum = 0;
  std::int64_t count = 0;
  for (const double value : diagonal) {
    if (value != 0 || spec.reference) {
      sum += value == 0 ? spec.dead_diagonal : value;
      ++count;
    }
  }
  const double mean = count > 0 ? sum / static_cast<double>(count) : 1.0;
  const double dead_value = spec.reference ? spec.dead_diagonal : mean;
  DampedDiagonal result;
  for (const double value : diagonal) {
    const double damped = (value == 0 ? dead_value : value) + damping * mean;
    result.values.push_back(spec.solver == DType::f32 ? static_cast<double>(static_cast<float>(damped)) : damped);
    result.extra.push_back(result.values.back() - value);
  }
  return result;
}

Factorization factorize(Team& team, const Panels& hessian, std::span<const double> diagonal, const QuantSpec& spec) {
  Factorization result;
  Panels factor(team, hessian, spec.solver);
  for (result.damping = spec.damping;; result.damping = std::min(1.0, 10 * result.damping)) {
    result.diagonal = damp(diagonal, result.damping, spec);
    if (factor_panels(team, hessian, result.diagonal.values, factor)) {
      result.factor = std::move(factor);
      return result;
    }
    if (result.damping >= 1) {
      return result;
    }
    ++result.retries;
  }
}

}  // namespace gptqd::gptq
