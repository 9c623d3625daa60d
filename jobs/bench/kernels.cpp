/// @file Each GPU operation on the shapes of real models, against what this GPU can do at best: measured in one
/// process.
#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.hpp"

namespace {

using namespace gptqd;

/// About normal deviates, the same on every machine: sums of four 16-bit numbers.
class Normal {
 public:
  explicit Normal(std::uint64_t seed) : state_(seed * 2 + 1) {}
  float next() {
    // SplitMix64.
    std::uint64_t bits = state_ += 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    const auto sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    return (static_cast<float>(sum) - 131070.0f) * (1.7320508f / 65536.0f);
  }

 private:
  std::uint64_t state_;
};

/// A matrix in the GPU's memory.
struct DeviceMatrix {
  Buffer buffer;
  AnyView<2> view;
};

struct Measured {
  std::string operation;
  std::string shape;
  double seconds = 0;
  double rate = 0;  // of `unit`
  std::string unit;
  double ceiling = 0;  // of the same unit; 0: none
};

class Bench {
 public:
  Bench(int device, int repeats)
      : backend_(make_cuda_backend({.device = device, .progress = nullptr})),
        stream_(backend_->create_stream()),
        repeats_(repeats) {}

  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }

  DeviceMatrix make(DType dtype, std::int64_t rows, std::int64_t cols) {
    DeviceMatrix matrix{backend_->allocate(rows * cols * size_of(dtype)), {}};
    matrix.view = matrix.buffer.any_view<2>(dtype, {rows, cols});
    return matrix;
  }
  DeviceMatrix upload(const std::vector<float>& values, std::int64_t rows, std::int64_t cols, DType dtype) {
    const auto wide = make(DType::f32, rows, cols);
    backend_->copy_to_device(*stream_, wide.view.data, values.data(), wide.view.bytes());
    auto matrix = make(dtype, rows, cols);
    backend_->convert(*stream_, {.x = wide.view, .y = matrix.view});
    stream_->synchronize();
    return matrix;
  }
  /// Neighbouring columns correlate by `correlation`.
  DeviceMatrix random(DType dtype, std::int64_t rows, std::int64_t cols, std::uint64_t seed, float deviation = 1,
                      float correlation = 0) {
    Normal normal(seed);
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    float last = 0;
    for (auto& value : values) {
      last = deviation * normal.next() + correlation * last;
      value = last;
    }
    return upload(values, rows, cols, dtype);
  }
  template <class T>
  DeviceMatrix upload_list(const std::vector<T>& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    DeviceMatrix list{backend_->allocate(count * size_of(dtype_of<T>)), {}};
    list.view = list.buffer.any_view<2>(dtype_of<T>, {1, count});
    backend_->copy_to_device(*stream_, list.buffer.data(), values.data(), list.buffer.bytes());
    stream_->synchronize();
    return list;
  }
  template <class T>
  std::vector<T> download(const DeviceMatrix& matrix) {
    std::vector<T> values(static_cast<std::size_t>(matrix.view.size()));
    backend_->copy_to_host(*stream_, values.data(), matrix.view.data, matrix.view.bytes());
    stream_->synchronize();
    return values;
  }

  /// The median time of `work`, after `prepare`, which is not counted.
  double seconds(const std::function<void()>& work, const std::function<void()>& prepare = {}) {
    std::vector<double> times;
    for (int i = 0; i <= repeats_; ++i) {
      if (prepare) {
        prepare();
      }
      stream_->synchronize();
      const auto start = std::chrono::steady_clock::now();
      work();
      stream_->synchronize();
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      if (i > 0) {  // the first one warms up
        times.push_back(time.count());
      }
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void report(Measured measured) {
    std::cout << fmt::format("{:<22} {:<40} {:>10.3f} ms {:>9.1f} {}", measured.operation, measured.shape,
                             1e3 * measured.seconds, measured.rate, measured.unit);
    if (measured.ceiling > 0) {
      std::cout << fmt::format(" {:>5.0f} %", 100 * measured.rate / measured.ceiling);
    }
    std::cout << std::endl;
    rows_.push_back({{"operation", measured.operation},
                     {"shape", measured.shape},
                     {"seconds", measured.seconds},
                     {"rate", measured.rate},
                     {"unit", measured.unit},
                     {"ceiling", measured.ceiling}});
  }
  void report_number(const std::string& name, const std::string& shape, double value) {
    std::cout << fmt::format("{:<22} {:<40} {:>13.2e}", name, shape, value) << std::endl;
    rows_.push_back({{"operation", name}, {"shape", shape}, {"value", value}});
  }
  nlohmann::json json() const { return {{"backend", backend_->describe()}, {"results", rows_}}; }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  int repeats_;
  nlohmann::json rows_ = nlohmann::json::array();
};

template <class T>
TensorView<T, 1> flat(const DeviceMatrix& list) {
  return {static_cast<T*>(list.view.data), {list.view.cols()}};
}

struct Ceilings {
  double bf16 = 0;  // TF/s
  double f32 = 0;   // TF/s
  double copy = 0;  // TB/s, bytes read and written
};

/// y = x wᵀ.
double measure_linear(Bench& bench, DType dtype, std::int64_t tokens, std::int64_t in, std::int64_t out) {
  const auto x = bench.random(dtype, tokens, in, 1);
  const auto w = bench.random(dtype, out, in, 2);
  const auto y = bench.make(dtype, tokens, out);
  return bench.seconds([&] {
    bench.backend().linear(bench.stream(), {.x = x.view, .weight = w.view, .bias = std::nullopt, .y = y.view});
  });
}

double teraflops(double operations, double seconds) { return operations / seconds / 1e12; }
double linear_operations(std::int64_t tokens, std::int64_t in, std::int64_t out) {
  return 2.0 * static_cast<double>(tokens) * static_cast<double>(in) * static_cast<double>(out);
}

Ceilings measure_ceilings(Bench& bench) {
  Ceilings ceilings;
  for (const auto& [dtype, n, ceiling] :
       {std::tuple{DType::bf16, std::int64_t{8192}, &ceilings.bf16}, {DType::f32, std::int64_t{8192}, &ceilings.f32}}) {
    const double seconds = measure_linear(bench, dtype, n, n, n);
    *ceiling = teraflops(linear_operations(n, n, n), seconds);
    bench.report({.operation = fmt::format("ceiling: {} GEMM", name_of(dtype)),
                  .shape = fmt::format("{} x {} x {}", n, n, n),
                  .seconds = seconds,
                  .rate = *ceiling,
                  .unit = "TF/s"});
  }
  const std::int64_t bytes = std::int64_t{4} << 30;
  const Buffer from = bench.backend().allocate(bytes);
  const Buffer to = bench.backend().allocate(bytes);
  bench.backend().fill_zero(bench.stream(), from.data(), bytes);
  const double seconds = bench.seconds([&] { bench.backend().copy(bench.stream(), to.data(), from.data(), bytes); });
  ceilings.copy = 2.0 * static_cast<double>(bytes) / seconds / 1e12;
  bench.report(
      {.operation = "ceiling: copy", .shape = "4 GiB", .seconds = seconds, .rate = ceilings.copy, .unit = "TB/s"});
  return ceilings;
}

void measure_linears(Bench& bench, const Ceilings& ceilings) {
  const std::int64_t tokens = 16384;
  for (const auto& [in, out] : {std::pair<std::int64_t, std::int64_t>{4096, 4096}, {4096, 14336}, {14336, 4096}}) {
    const double seconds = measure_linear(bench, DType::bf16, tokens, in, out);
    bench.report({.operation = "linear, bf16",
                  .shape = fmt::format("{} tokens, {} -> {}", tokens, in, out),
                  .seconds = seconds,
                  .rate = teraflops(linear_operations(tokens, in, out), seconds),
                  .unit = "TF/s",
                  .ceiling = ceilings.bf16});
  }
}

struct AttentionShape {
  std::string name;
  std::int64_t samples;
  std::int64_t seqlen;
  std::int64_t heads;
  std::int64_t kv_heads;
  bool alibi;
};

/// The causal half of 4·T·S·heads·128.
void measure_attention(Bench& bench, const Ceilings& ceilings, const AttentionShape& shape) {
  constexpr std::int64_t width = 128;
  const std::int64_t tokens = shape.samples * shape.seqlen;
  const auto q = bench.random(DType::bf16, tokens, shape.heads * width, 11);
  const auto k = bench.random(DType::bf16, tokens, shape.kv_heads * width, 12);
  const auto v = bench.random(DType::bf16, tokens, shape.kv_heads * width, 13);
  const auto out = bench.make(DType::bf16, tokens, shape.heads * width);
  const auto slopes = bench.upload_list(std::vector<float>(static_cast<std::size_t>(shape.heads), 0.01f));
  AttentionArgs args{.q = q.view,
                     .k = k.view,
                     .v = v.view,
                     .out = out.view,
                     .tokens_per_sample = shape.seqlen,
                     .heads = shape.heads,
                     .kv_heads = shape.kv_heads,
                     .head_dim = width,
                     .scale = 0.088f,
                     .alibi_slopes = {}};
  if (shape.alibi) {
    args.alibi_slopes = flat<float>(slopes);
  }
  const double seconds = bench.seconds([&] { bench.backend().attention(bench.stream(), args); });
  const double operations = 2.0 * static_cast<double>(tokens * shape.seqlen) * static_cast<double>(shape.heads * width);
  bench.report({.operation = "attention, bf16",
                .shape = fmt::format("{}: {} x {} tokens, {}/{} heads", shape.name, shape.samples, shape.seqlen,
                                     shape.heads, shape.kv_heads),
                .seconds = seconds,
                .rate = teraflops(operations, seconds),
                .unit = "TF/s",
                .ceiling = ceilings.bf16});
}

/// What stands between products, by the bytes that it has to move.
void measure_elementwise(Bench& bench, const Ceilings& ceilings, std::int64_t tokens) {
  Backend& backend = bench.backend();
  Stream& stream = bench.stream();
  const auto measure = [&](std::string_view operation, std::int64_t cols, double bytes, const auto& work) {
    const double seconds = bench.seconds(work);
    bench.report({.operation = std::string(operation),
                  .shape = fmt::format("{} tokens, {} columns", tokens, cols),
                  .seconds = seconds,
                  .rate = bytes * static_cast<double>(tokens * cols) / seconds / 1e12,
                  .unit = "TB/s",
                  .ceiling = ceilings.copy});
  };
  constexpr std::int64_t hidden = 4096;
  constexpr std::int64_t inner = 14336;
  const auto x = bench.random(DType::bf16, tokens, hidden, 21);
  const auto y = bench.make(DType::bf16, tokens, hidden);
  const auto weight = bench.upload_list(std::vector<float>(hidden, 1.0f));
  const auto bias = bench.upload_list(std::vector<float>(hidden, 0.0f));
  measure("rms_norm, bf16", hidden, 4, [&] {
    backend.rms_norm(stream, {.x = x.view, .weight = flat<float>(weight), .epsilon = 1e-5f, .y = y.view});
  });
  measure("layer_norm, bf16", hidden, 4, [&] {
    backend.layer_norm(
        stream, {.x = x.view, .weight = flat<float>(weight), .bias = flat<float>(bias), .epsilon = 1e-5f, .y = y.view});
  });
  const auto gate = bench.random(DType::bf16, tokens, inner, 22);
  const auto product = bench.make(DType::bf16, tokens, inner);
  measure("gated_activation, bf16", inner, 6,
          [&] { backend.gated_activation(stream, {.gate = gate.view, .up = gate.view, .y = product.view}); });
}

/// Panels of a lower triangular matrix in factor order, in ascending order of columns.
class Panels {
 public:
  Panels(Bench& bench, std::int64_t n, std::int64_t width, DType dtype) : n_(n) {
    for (std::int64_t first = 0; first < n;) {
      const std::int64_t cols = first == 0 ? (n - 1) % width + 1 : width;
      first_.push_back(first);
      panels_.push_back(bench.make(dtype, n - first, cols));
      first += cols;
    }
  }
  std::size_t count() const { return panels_.size(); }
  std::int64_t first(std::size_t k) const { return first_[k]; }
  std::int64_t n() const { return n_; }
  const AnyView<2>& view(std::size_t k) const { return panels_[k].view; }

 private:
  std::int64_t n_;
  std::vector<std::int64_t> first_;
  std::vector<DeviceMatrix> panels_;
};

void add_gram(Bench& bench, const ConstAnyView<2>& x, const Panels& h, bool accumulate) {
  for (std::size_t k = 0; k < h.count(); ++k) {
    bench.backend().gram_panel(
        bench.stream(),
        {.x = x.slice_cols(h.first(k), h.n() - h.first(k)), .panel = h.view(k), .accumulate = accumulate});
  }
}

void factor(Bench& bench, const Panels& panels, const TensorView<std::int32_t, 1>& status) {
  for (std::size_t k = 0; k < panels.count(); ++k) {
    bench.backend().factor_panel(
        bench.stream(), {.panel = panels.view(k), .status = status.slice_rows(static_cast<std::int64_t>(k), 1)});
    for (std::size_t j = k + 1; j < panels.count(); ++j) {
      const ConstAnyView<2> factored = panels.view(k);
      const auto rows = factored.slice_rows(panels.first(j) - panels.first(k), panels.view(j).rows());
      bench.backend().update_panel(
          bench.stream(), {.rows = rows, .top = rows.slice_rows(0, panels.view(j).cols()), .target = panels.view(j)});
    }
  }
}

/// Adds `damping` times the mean of the diagonal to it.
void damp(Bench& bench, const Panels& panels, double damping) {
  std::vector<double> all(static_cast<std::size_t>(panels.n()));
  const auto device = bench.upload_list(all);
  for (std::size_t k = 0; k < panels.count(); ++k) {
    bench.backend().get_diagonal(
        bench.stream(),
        {.panel = panels.view(k), .diagonal = flat<double>(device).slice_rows(panels.first(k), panels.view(k).cols())});
  }
  all = bench.download<double>(device);
  double mean = 0;
  for (const double value : all) {
    mean += value / static_cast<double>(all.size());
  }
  for (double& value : all) {
    value += damping * mean;
  }
  const auto damped = bench.upload_list(all);
  for (std::size_t k = 0; k < panels.count(); ++k) {
    bench.backend().set_diagonal(
        bench.stream(),
        {.diagonal = flat<double>(damped).slice_rows(panels.first(k), panels.view(k).cols()), .panel = panels.view(k)});
  }
  bench.stream().synchronize();
}

/// The search for grids of 4 bits by H, groups of 128.
void measure_grids(Bench& bench, const Panels& h, FindGridsArgs args) {
  constexpr std::int64_t size = 128;
  const std::int64_t groups = args.scales.cols();
  const Buffer blocks = bench.backend().allocate(groups * size * size * size_of(DType::f32));
  bench.backend().fill_zero(bench.stream(), blocks.data(), blocks.bytes());
  for (std::size_t k = 0; k < h.count(); ++k) {
    bench.backend().gather_group_blocks(bench.stream(), {.panel = h.view(k),
                                                         .first = h.first(k),
                                                         .group = args.group,
                                                         .member = args.member,
                                                         .blocks = blocks.view<float, 3>({groups, size, size})});
  }
  args.blocks = blocks.view<const float, 3>({groups, size, size});
  const double seconds = bench.seconds([&] { bench.backend().find_grids(bench.stream(), args); });
  bench.report({.operation = "find_grids, hessian",
                .shape = fmt::format("{} rows, {} columns", args.weights.rows(), h.n()),
                .seconds = seconds,
                .rate = static_cast<double>(args.weights.size()) / seconds / 1e9,
                .unit = "Gw/s"});
}

/// XᵀX, its factor, the grids of [rows, n], and their solve with it.
void measure_layer(Bench& bench, const Ceilings& ceilings, std::int64_t rows, std::int64_t n, std::int64_t width,
                   const std::vector<std::int64_t>& token_counts) {
  Backend& backend = bench.backend();
  Stream& stream = bench.stream();
  const auto square = static_cast<double>(n) * static_cast<double>(n);
  const auto most = *std::max_element(token_counts.begin(), token_counts.end());
  const auto x = bench.random(DType::bf16, most, n, 3, 1, 0.5f);
  const Panels h(bench, n, width, DType::f32);
  for (const auto tokens : token_counts) {
    const double seconds = bench.seconds([&] { add_gram(bench, x.view.slice_rows(0, tokens), h, true); },
                                         [&] { add_gram(bench, x.view.slice_rows(0, tokens), h, false); });
    bench.report({.operation = "gram_panel, bf16",
                  .shape = fmt::format("{} tokens, {} columns by {}", tokens, n, width),
                  .seconds = seconds,
                  .rate = teraflops(2.0 * static_cast<double>(tokens) * square, seconds),
                  .unit = "TF/s",
                  .ceiling = ceilings.bf16});
  }
  const auto sums = bench.upload_list(std::vector<double>(static_cast<std::size_t>(n)));
  for (const auto tokens : token_counts) {
    const ConstAnyView<2> some = x.view.slice_rows(0, tokens);
    const double seconds =
        bench.seconds([&] { backend.column_square_sums(stream, {.x = some, .sums = flat<double>(sums)}); });
    bench.report({.operation = "column_square_sums",
                  .shape = fmt::format("{} tokens, {} columns", tokens, n),
                  .seconds = seconds,
                  .rate = static_cast<double>(some.bytes()) / seconds / 1e12,
                  .unit = "TB/s",
                  .ceiling = ceilings.copy});
  }
  {
    std::vector<std::int32_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(6));
    const auto index = bench.upload_list(order);
    const double seconds = bench.seconds(
        [&] { backend.gather_columns(stream, {.x = x.view, .index = flat<std::int32_t>(index), .y = x.view}); });
    bench.report({.operation = "gather_columns",
                  .shape = fmt::format("{} tokens, {} columns, in place", most, n),
                  .seconds = seconds,
                  .rate = 2.0 * static_cast<double>(x.view.bytes()) / seconds / 1e12,
                  .unit = "TB/s",
                  .ceiling = ceilings.copy});
  }

  add_gram(bench, x.view, h, false);
  damp(bench, h, 0.01);
  const Panels l(bench, n, width, DType::f32);
  const auto status = bench.upload_list(std::vector<std::int32_t>(l.count()));
  const double factor_seconds =
      bench.seconds([&] { factor(bench, l, flat<std::int32_t>(status)); },
                    [&] {
                      for (std::size_t k = 0; k < l.count(); ++k) {
                        backend.copy(stream, l.view(k).data, h.view(k).data, h.view(k).bytes());
                      }
                    });
  for (const auto value : bench.download<std::int32_t>(status)) {
    require(value == 0, fmt::format("the factorization failed at minor {}", value));
  }
  bench.report({.operation = "factor and update",
                .shape = fmt::format("{} columns by {}", n, width),
                .seconds = factor_seconds,
                .rate = teraflops(square * static_cast<double>(n) / 3, factor_seconds),
                .unit = "TF/s",
                .ceiling = ceilings.f32});

  // The parts of the widest panel's step: its diagonal block, the whole of it, one trailing update.
  const auto restore = [&] { backend.copy(stream, l.view(0).data, h.view(0).data, h.view(0).bytes()); };
  const std::int64_t wide = l.view(0).cols();
  const auto part = [&](const std::string& name, const AnyView<2>& panel) {
    const double seconds = bench.seconds(
        [&] { backend.factor_panel(stream, {.panel = panel, .status = flat<std::int32_t>(status).slice_rows(0, 1)}); },
        restore);
    const auto w = static_cast<double>(wide);
    bench.report({.operation = name,
                  .shape = fmt::format("{} x {}", panel.rows(), wide),
                  .seconds = seconds,
                  .rate = teraflops(w * w * (w / 3 + static_cast<double>(panel.rows() - wide)), seconds),
                  .unit = "TF/s",
                  .ceiling = ceilings.f32});
  };
  part("factor_panel, block", l.view(0).slice_rows(0, wide));
  part("factor_panel", l.view(0));
  if (l.count() > 1) {
    const ConstAnyView<2> factored = l.view(0);
    const auto rows = factored.slice_rows(wide, l.view(1).rows());
    const double seconds = bench.seconds([&] {
      backend.update_panel(stream, {.rows = rows, .top = rows.slice_rows(0, l.view(1).cols()), .target = l.view(1)});
    });
    const auto w = static_cast<double>(l.view(1).cols());
    bench.report(
        {.operation = "update_panel",
         .shape = fmt::format("{} x {}", rows.rows(), wide),
         .seconds = seconds,
         .rate = teraflops(2 * static_cast<double>(wide) * w * (static_cast<double>(rows.rows()) - w / 2), seconds),
         .unit = "TF/s",
         .ceiling = ceilings.f32});
  }
  for (std::size_t k = 0; k < l.count(); ++k) {
    backend.copy(stream, l.view(k).data, h.view(k).data, h.view(k).bytes());
  }
  factor(bench, l, flat<std::int32_t>(status));

  const std::int64_t groups = (n + 127) / 128;
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  for (std::int64_t c = 0; c < n; ++c) {  // dealt out like cards: what act-order with static groups looks like
    group.push_back(static_cast<std::int32_t>(c % groups));
    member.push_back(static_cast<std::int32_t>(c / groups));
  }
  const auto device_group = bench.upload_list(group);
  const auto device_member = bench.upload_list(member);
  const auto weights = bench.random(DType::f32, rows, n, 4, 0.02f);
  const auto delta = bench.make(DType::f32, rows, n);
  const auto codes = bench.make(DType::u8, rows, n);
  const auto scales = bench.make(DType::f32, rows, groups);
  const auto zeros = bench.make(DType::u8, rows, groups);
  const auto loss = bench.upload_list(std::vector<double>(static_cast<std::size_t>(rows)));
  const GridSpec grid{.clip = Clip::none};
  backend.find_grids(stream, {.spec = grid,
                              .weights = weights.view,
                              .group = flat<std::int32_t>(device_group),
                              .member = flat<std::int32_t>(device_member),
                              .scales = scales.view.as<float>(),
                              .zeros = zeros.view.as<std::uint8_t>()});
  measure_grids(bench, h,
                {.spec = {.clip = Clip::hessian},
                 .weights = weights.view,
                 .group = flat<std::int32_t>(device_group),
                 .member = flat<std::int32_t>(device_member),
                 .scales = scales.view.as<float>(),
                 .zeros = zeros.view.as<std::uint8_t>()});
  const double solve_seconds = bench.seconds([&] {
    for (std::size_t k = l.count(); k-- > 0;) {
      backend.solve_panel(stream, {.grid = grid,
                                   .block = 128,
                                   .first = l.first(k),
                                   .factor = l.view(k),
                                   .weights = weights.view,
                                   .delta = delta.view,
                                   .codes = codes.view.as<std::uint8_t>(),
                                   .group = flat<std::int32_t>(device_group),
                                   .member = flat<std::int32_t>(device_member),
                                   .scales = scales.view.as<float>(),
                                   .zeros = zeros.view.as<std::uint8_t>(),
                                   .row_loss = flat<double>(loss)});
    }
  });
  bench.report({.operation = "solve",
                .shape = fmt::format("{} rows, {} columns by {}", rows, n, width),
                .seconds = solve_seconds,
                .rate = teraflops(static_cast<double>(rows) * square, solve_seconds),
                .unit = "TF/s",
                .ceiling = ceilings.f32});

  // Of the weights and of an error, as a walk over the panels measures them.
  const auto extra = bench.upload_list(std::vector<double>(static_cast<std::size_t>(n)));
  const auto weight_norms = bench.upload_list(std::vector<double>(static_cast<std::size_t>(rows)));
  const double norm_seconds = bench.seconds([&] {
    for (std::size_t k = l.count(); k-- > 0;) {
      backend.weighted_norms(stream,
                             {.factor = l.view(k),
                              .first = l.first(k),
                              .rows = {{weights.view, flat<double>(weight_norms)}, {delta.view, flat<double>(loss)}},
                              .extra = flat<double>(extra)});
    }
  });
  bench.report({.operation = "losses",
                .shape = fmt::format("2 x {} rows, {} columns by {}", rows, n, width),
                .seconds = norm_seconds,
                .rate = teraflops(2 * static_cast<double>(rows) * square, norm_seconds),
                .unit = "TF/s",
                .ceiling = ceilings.bf16});
}

/// ‖H − H64‖/‖H64‖ over the lower part, and of one channel, the last, the error of its energy and of its Schur
/// complement; with `massive`, the first token of each window has 1500 there.
void measure_accuracy(Bench& bench, bool massive) {
  const std::int64_t tokens = 65536;
  const std::int64_t chunk = bench.backend().preferred_pieces().gram_tokens;
  const std::int64_t window = 2048;
  const std::int64_t n = 1024;
  const float massive_value = 1500;
  const float deviation = massive ? 0.16f : 1.0f;
  Normal normal(5);
  const Panels h(bench, n, n, DType::f32);
  const Panels exact(bench, n, n, DType::f64);
  double energy = 0;
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    std::vector<float> values(static_cast<std::size_t>(chunk * n));
    for (auto& value : values) {
      value = to_float(to_bfloat16(deviation * normal.next()));
    }
    for (std::int64_t t = 0; t < chunk; ++t) {
      auto& value = values[static_cast<std::size_t>(t * n + n - 1)];
      if (massive && (first + t) % window == 0) {
        value = to_float(to_bfloat16(massive_value));
      } else {
        energy += static_cast<double>(value) * static_cast<double>(value);
      }
    }
    const auto x = bench.upload(values, chunk, n, DType::bf16);
    const auto wide = bench.upload(values, chunk, n, DType::f64);
    add_gram(bench, x.view, h, first > 0);
    add_gram(bench, wide.view, exact, first > 0);
    bench.stream().synchronize();
  }
  const auto read = [&](const AnyView<2>& view) {
    auto copy = bench.make(DType::f64, n, n);
    bench.backend().convert(bench.stream(), {.x = view, .y = copy.view});
    return bench.download<double>(copy);
  };
  const auto got = read(h.view(0));
  const auto expected = read(exact.view(0));
  double difference = 0;
  double norm = 0;
  double bias = 0;
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) {
      const auto i = static_cast<std::size_t>(r * n + c);
      difference += std::pow(got[i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    const auto i = static_cast<std::size_t>(r * n + r);
    bias += (got[i] / expected[i] - 1) / static_cast<double>(n);
  }
  const std::string shape = fmt::format("{} tokens, {} columns{}", tokens, n, massive ? ", massive" : "");
  bench.report_number("||H - H64|| / ||H64||", shape, std::sqrt(difference / norm));
  bench.report_number("bias of diag(H)", shape, bias);
  if (!massive) {
    return;
  }
  const auto last = static_cast<std::size_t>(n * n - 1);
  bench.report_number("its energy's error", shape, (got[last] - expected[last]) / energy);
  // The Schur complement of the last column is the square of the factor's last entry.
  const auto status = bench.upload_list(std::vector<std::int32_t>(1));
  const auto schur = [&](const AnyView<2>& view) {
    const Panels l(bench, n, n, DType::f64);
    bench.backend().convert(bench.stream(), {.x = view, .y = l.view(0)});
    factor(bench, l, flat<std::int32_t>(status));
    return std::pow(read(l.view(0))[last], 2);
  };
  const double expected_schur = schur(exact.view(0));
  bench.report_number("its Schur complement's", shape, schur(h.view(0)) / expected_schur - 1);
}

int run(int argc, char** argv) {
  namespace po = boost::program_options;
  po::options_description options("gptqd_kernel_bench: GPU operations against this GPU's ceilings");
  auto add = options.add_options();
  add("help", "show this");
  add("device", po::value<int>()->default_value(0), "the GPU");
  add("repeats", po::value<int>()->default_value(7), "timed runs, of which the median counts");
  add("panel-columns", po::value<std::int64_t>(), "width of H's panels (default: what the backend prefers)");
  add("columns", po::value<std::vector<std::int64_t>>()->multitoken()->default_value({4096, 14336}, "4096 14336"),
      "columns of the layers that are factored and solved, with 4096 rows");
  add("layers-only", "leave out the forward pass and the accuracy");
  add("json", po::value<std::string>(), "write the results to this file");
  po::variables_map given;
  po::store(po::parse_command_line(argc, argv, options), given);
  po::notify(given);
  if (given.contains("help")) {
    std::cout << options;
    return 0;
  }
  Bench bench(given["device"].as<int>(), given["repeats"].as<int>());
  const auto width = given.contains("panel-columns") ? given["panel-columns"].as<std::int64_t>()
                                                     : bench.backend().preferred_pieces().panel_columns;
  std::cout << bench.backend().describe() << std::endl;
  const auto ceilings = measure_ceilings(bench);
  if (!given.contains("layers-only")) {
    measure_linears(bench, ceilings);
    for (const auto& shape :
         {AttentionShape{"Llama-3-8B", 8, 2048, 32, 8, false}, AttentionShape{"Llama-3-8B", 1, 16384, 32, 8, false},
          AttentionShape{"BLOOM-176B", 2, 2048, 112, 112, true}}) {
      measure_attention(bench, ceilings, shape);
    }
    measure_elementwise(bench, ceilings, 16384);
    measure_accuracy(bench, false);
    measure_accuracy(bench, true);
  }
  for (const auto columns : given["columns"].as<std::vector<std::int64_t>>()) {
    // A micro-batch, and what a run gives to gram_panel at once.
    const auto chunk = std::max<std::int64_t>(16384, bench.backend().preferred_pieces().gram_tokens);
    measure_layer(bench, ceilings, 4096, columns, width, {4096, chunk});
  }
  if (given.contains("json")) {
    const auto file = given["json"].as<std::string>();
    std::ofstream out(file);
    out << bench.json().dump(1) << "\n";
    if (!out.flush()) {
      throw Error(ErrorKind::io, fmt::format("cannot write {}", file));
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
