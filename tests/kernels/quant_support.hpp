#pragma once
/// @file What the tests of quantization kernels share: a backend with a stream, and layers quantized panel by panel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/matrix.hpp"
#include "tests/reference/random.hpp"

namespace gptqd::test {

using reference::Matrix;

/// body.operator()<T>() with T = float, then double.
template <class Body>
void with_real_types(const Body& body) {
  body.template operator()<float>();
  body.template operator()<double>();
}

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

/// Factors the panels, right-looking. @return the status of the first panel that fails, counted in h, or 0
template <class T>
std::int64_t factor_panels(DeviceTensors& on, std::vector<Panel<T>>& panels) {
  std::vector<DeviceMatrix<T>> device;
  for (const auto& panel : panels) {
    device.push_back(on.upload(panel.values));
  }
  auto status = on.upload(std::vector<std::int32_t>{-1});
  for (std::size_t k = 0; k < panels.size(); ++k) {
    on.backend->factor_panel(*on.stream, {.panel = device[k].view, .status = flat(status)});
    if (const auto minor = on.download(status)(0, 0); minor != 0) {
      return panels[k].first + minor;
    }
    for (std::size_t j = k + 1; j < panels.size(); ++j) {
      const auto& target = panels[j];
      const auto rows = device[k].view.slice_rows(target.first - panels[k].first, target.values.rows);
      on.backend->update_panel(*on.stream,
                               {.rows = rows, .top = rows.slice_rows(0, target.values.cols), .target = device[j].view});
    }
  }
  for (std::size_t k = 0; k < panels.size(); ++k) {
    panels[k].values = on.download(device[k]);
  }
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

/// A layer in a device's memory.
template <class T>
struct DeviceLayer {
  DeviceLayer(DeviceTensors& on, const Layer<T>& layer)
      : weights(on.upload(layer.weights)),
        group(on.upload(layer.group)),
        member(on.upload(layer.member)),
        scales(on.upload(layer.scales)),
        zeros(on.upload(layer.zeros)),
        delta(on.upload(layer.delta)),
        codes(on.upload(layer.codes)),
        row_loss(on.upload(layer.row_loss)) {}
  /// What operations write.
  void download(DeviceTensors& on, Layer<T>& layer) const {
    layer.scales = on.download(scales);
    layer.zeros = on.download(zeros);
    layer.delta = on.download(delta);
    layer.codes = on.download(codes);
    layer.row_loss = on.download(row_loss).data;
  }

  DeviceMatrix<T> weights;
  DeviceMatrix<std::int32_t> group;
  DeviceMatrix<std::int32_t> member;
  DeviceMatrix<float> scales;
  DeviceMatrix<std::uint8_t> zeros;
  DeviceMatrix<T> delta;
  DeviceMatrix<std::uint8_t> codes;
  DeviceMatrix<double> row_loss;
};

/// Solves rows [first_row, first_row + rows) by all panels.
/// @param blocks  on the device; only for dynamic grids with Clip::hessian
template <class T>
void solve_rows(DeviceTensors& on, const std::vector<Panel<T>>& panels, Layer<T>& layer, const SolveSettings& settings,
                std::int64_t first_row, std::int64_t rows, ConstTensorView<float, 3> blocks = {}) {
  const DeviceLayer<T> device(on, layer);
  for (auto panel = panels.rbegin(); panel != panels.rend(); ++panel) {
    const auto factor = on.upload(panel->values);
    on.backend->solve_panel(*on.stream, {.grid = settings.grid,
                                         .dynamic_grids = settings.dynamic_grids,
                                         .block = settings.block,
                                         .first = panel->first,
                                         .factor = factor.view,
                                         .weights = device.weights.view.slice_rows(first_row, rows),
                                         .delta = device.delta.view.slice_rows(first_row, rows),
                                         .codes = device.codes.view.slice_rows(first_row, rows),
                                         .group = flat(device.group),
                                         .member = flat(device.member),
                                         .scales = device.scales.view.slice_rows(first_row, rows),
                                         .zeros = device.zeros.view.slice_rows(first_row, rows),
                                         .blocks = blocks,
                                         .row_loss = flat(device.row_loss).slice_rows(first_row, rows),
                                         .row_tile = settings.row_tile});
  }
  device.download(on, layer);
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
/// @param blocks  on the device; only for Clip::hessian
template <class T>
void find_layer_grids(DeviceTensors& on, Layer<T>& layer, const GridSpec& spec, ConstTensorView<float, 3> blocks = {}) {
  const DeviceLayer<T> device(on, layer);
  on.backend->find_grids(*on.stream, {.spec = spec,
                                      .weights = device.weights.view,
                                      .group = flat(device.group),
                                      .member = flat(device.member),
                                      .scales = device.scales.view,
                                      .zeros = device.zeros.view,
                                      .blocks = blocks});
  layer.scales = on.download(device.scales);
  layer.zeros = on.download(device.zeros);
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
