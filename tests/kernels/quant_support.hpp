#pragma once
/// @file What the tests of quantization kernels share: a backend with a stream, and layers quantized panel by panel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "tests/reference/matrix.hpp"
#include "tests/reference/random.hpp"

namespace gptqd::test {

using reference::Matrix;

/// A CPU backend and one stream on it.
struct Cpu {
  explicit Cpu(int threads = 2) : backend(make_cpu_backend({.threads = threads})), stream(backend->create_stream()) {}
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

template <class T>
TensorView<T, 1> view_of(std::vector<T>& values) {
  return {values.data(), {static_cast<std::int64_t>(values.size())}};
}
template <class T>
ConstTensorView<T, 1> view_of(const std::vector<T>& values) {
  return {values.data(), {static_cast<std::int64_t>(values.size())}};
}

/// The message of the Error (internal) that `body` throws.
template <class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::internal);
    return error.message();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

/// Columns [first, first + cols) of a factor, or of H before: rows [first, n).
template <class T>
struct Panel {
  std::int64_t first = 0;
  Matrix<T> values;
};

/// The lower part of h [n, n], cut into panels of `width` columns aligned at n, in ascending order; NaN above.
template <class T>
std::vector<Panel<T>> cut_panels(const Matrix<double>& h, std::int64_t width) {
  const auto n = h.rows;
  std::vector<Panel<T>> panels;
  const auto lowest = (n - 1) % width + 1;
  for (std::int64_t first = 0; first < n;) {
    const auto w = first == 0 ? lowest : width;
    Panel<T> panel{first, Matrix<T>(n - first, w, std::numeric_limits<T>::quiet_NaN())};
    for (std::int64_t r = 0; r < n - first; ++r) {
      for (std::int64_t c = 0; c < w && c <= r; ++c) {
        panel.values(r, c) = static_cast<T>(h(first + r, first + c));
      }
    }
    panels.push_back(std::move(panel));
    first += w;
  }
  return panels;
}

/// Factors the panels in place, right-looking. @return the status of the first panel that fails, counted in h, or 0
template <class T>
std::int64_t factor_panels(Cpu& cpu, std::vector<Panel<T>>& panels) {
  std::vector<std::int32_t> status{-1};
  for (std::size_t k = 0; k < panels.size(); ++k) {
    auto& done = panels[k];
    cpu.backend->factor_panel(*cpu.stream, {.panel = done.values.view(), .status = view_of(status)});
    cpu.stream->synchronize();
    if (status[0] != 0) {
      return done.first + status[0];
    }
    for (std::size_t j = k + 1; j < panels.size(); ++j) {
      auto& target = panels[j];
      const auto rows = std::as_const(done.values).view().slice_rows(target.first - done.first, target.values.rows);
      cpu.backend->update_panel(
          *cpu.stream, {.rows = rows, .top = rows.slice_rows(0, target.values.cols), .target = target.values.view()});
    }
  }
  cpu.stream->synchronize();
  return 0;
}

/// The panels as one lower triangular matrix.
template <class T>
Matrix<double> joined(const std::vector<Panel<T>>& panels) {
  const auto n = panels.front().values.rows;
  Matrix<double> l(n, n);
  for (const auto& panel : panels) {
    for (std::int64_t r = 0; r < panel.values.rows; ++r) {
      for (std::int64_t c = 0; c < panel.values.cols; ++c) {
        l(panel.first + r, panel.first + c) = static_cast<double>(panel.values(r, c));
      }
    }
  }
  return l;
}

/// What a solve is given and gives, in factor order.
template <class T>
struct Layer {
  Matrix<T> weights;
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  Matrix<float> scales;
  Matrix<std::uint8_t> zeros;
  Matrix<T> delta;
  Matrix<std::uint8_t> codes;
  std::vector<double> row_loss;
};

struct SolveSettings {
  GridSpec grid{};
  bool dynamic_grids = false;
  std::int64_t block = 128;
  std::int64_t row_tile = 64;
};

/// Solves rows [first_row, first_row + rows) by all panels.
template <class T>
void solve_rows(Cpu& cpu, const std::vector<Panel<T>>& panels, Layer<T>& layer, const SolveSettings& settings,
                std::int64_t first_row, std::int64_t rows) {
  for (auto panel = panels.rbegin(); panel != panels.rend(); ++panel) {
    cpu.backend->solve_panel(*cpu.stream, {.grid = settings.grid,
                                           .dynamic_grids = settings.dynamic_grids,
                                           .block = settings.block,
                                           .first = panel->first,
                                           .factor = panel->values.view(),
                                           .weights = std::as_const(layer.weights).view().slice_rows(first_row, rows),
                                           .delta = layer.delta.view().slice_rows(first_row, rows),
                                           .codes = layer.codes.view().slice_rows(first_row, rows),
                                           .group = view_of(std::as_const(layer.group)),
                                           .member = view_of(std::as_const(layer.member)),
                                           .scales = layer.scales.view().slice_rows(first_row, rows),
                                           .zeros = layer.zeros.view().slice_rows(first_row, rows),
                                           .row_loss = view_of(layer.row_loss).slice_rows(first_row, rows),
                                           .row_tile = settings.row_tile});
  }
  cpu.stream->synchronize();
}

/// A layer ready for solve_rows: outputs hold values that are wrong everywhere.
template <class T>
Layer<T> make_layer(const Matrix<double>& weights, std::vector<std::int32_t> group, std::vector<std::int32_t> member,
                    std::int64_t groups) {
  Layer<T> layer;
  layer.weights = weights.as<T>();
  layer.group = std::move(group);
  layer.member = std::move(member);
  layer.scales = Matrix<float>(weights.rows, groups, -1.0f);
  layer.zeros = Matrix<std::uint8_t>(weights.rows, groups, 255);
  layer.delta = Matrix<T>(weights.rows, weights.cols, std::numeric_limits<T>::quiet_NaN());
  layer.codes = Matrix<std::uint8_t>(weights.rows, weights.cols, 255);
  layer.row_loss.assign(static_cast<std::size_t>(weights.rows), 0.0);
  return layer;
}

/// Grids of a layer from its weights.
template <class T>
void find_layer_grids(Cpu& cpu, Layer<T>& layer, const GridSpec& spec) {
  cpu.backend->find_grids(*cpu.stream, {.spec = spec,
                                        .weights = std::as_const(layer.weights).view(),
                                        .group = view_of(std::as_const(layer.group)),
                                        .member = view_of(std::as_const(layer.member)),
                                        .scales = layer.scales.view(),
                                        .zeros = layer.zeros.view(),
                                        .blocks = {}});
  cpu.stream->synchronize();
}

/// Groups of `size` columns counted from the last column (the first that is quantized), members from their own end.
inline void group_from_end(std::int64_t n, std::int64_t size, std::vector<std::int32_t>& group,
                           std::vector<std::int32_t>& member) {
  group.resize(static_cast<std::size_t>(n));
  member.resize(static_cast<std::size_t>(n));
  for (std::int64_t a = 0; a < n; ++a) {
    const auto i = n - 1 - a;
    group[static_cast<std::size_t>(a)] = static_cast<std::int32_t>(i / size);
    member[static_cast<std::size_t>(a)] = static_cast<std::int32_t>(i % size);
  }
}

}  // namespace gptqd::test
