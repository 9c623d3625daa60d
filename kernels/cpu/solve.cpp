#include "kernels/solve.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/grid_search.hpp"
#include "kernels/cpu/group_blocks.hpp"

namespace gptqd {

namespace {

// Tiles are held transposed, a column's rows side by side, padded to whole vectors: loops then run over rows.
constexpr std::int64_t row_padding = 16;

// Columns whose updates are applied together to the columns before them: one pass over memory instead of eight. Each
// element still has its products subtracted one after another, so the bits are those of single updates.
constexpr std::int64_t columns_together = 8;

constexpr std::int64_t padded(std::int64_t rows) { return cpu::tile_count(rows, row_padding) * row_padding; }

/// Columns [low, high) of a panel, counted inside it; `inverse` is L[G, G]⁻¹, row stride `block`.
template <class T>
struct Block {
  std::int64_t low;
  std::int64_t high;
  const T* inverse;
};

/// One tile's memory: [columns, stride] each.
template <class T>
struct Tile {
  std::int64_t stride;
  T* correction;        // panel: T = delta·L of what lies behind, then used up block by block
  T* delta;             // panel
  T* weights;           // block: W̃
  T* original;          // block: W
  T* scales;            // local groups
  T* zeros;             // local groups
  T* error;             // columns_together: e
  T* gathered;          // one row of one group
  double* loss;         // one column: Σ e²
  std::uint8_t* codes;  // block
};

/// Quantizes the columns [to, from] of a block, from the last to the first, and updates all columns before each.
template <class T>
struct SolveColumns {
  [[gnu::always_inline]] static inline void run(const Tile<T>* tile, const Block<T>* block,
                                                const std::int32_t* local_group, std::int64_t inverse_stride, T highest,
                                                std::int64_t from, std::int64_t to) {
    for (auto a = from; a >= to;) {
      const auto low = a - columns_together + 1;
      const bool together = low >= to;
      const auto last = together ? low : to;
      for (auto k = a; k >= last; --k) {
        const T* const inverse_row = block->inverse + k * inverse_stride;
        T* const error = tile->error + (a - k) * tile->stride;
        quantize(*tile, *block, local_group[block->low + k], k, inverse_row[k], highest, error);
        for (auto b = together ? low : 0; b < k; ++b) {
          subtract(tile->weights + b * tile->stride, error, inverse_row[b], tile->stride);
        }
      }
      for (std::int64_t b = 0; together && b < low; ++b) {
        subtract_together(tile->weights + b * tile->stride, tile->error, block->inverse + a * inverse_stride + b,
                          inverse_stride, tile->stride);
      }
      a = last - 1;
    }
  }

 private:
  /// Column a of the block: codes, delta, error = e and the loss.
  [[gnu::always_inline]] static inline void quantize(const Tile<T>& tile, const Block<T>& block, std::int32_t group,
                                                     std::int64_t a, T pivot, T highest, T* __restrict__ error) {
    const auto stride = tile.stride;
    const T* __restrict__ const scale = tile.scales + group * stride;
    const T* __restrict__ const zero = tile.zeros + group * stride;
    const T* __restrict__ const updated = tile.weights + a * stride;
    const T* __restrict__ const original = tile.original + a * stride;
    T* __restrict__ const delta = tile.delta + (block.low + a) * stride;
    std::uint8_t* __restrict__ const codes = tile.codes + a * stride;
    double* __restrict__ const loss = tile.loss;
    for (std::int64_t r = 0; r < stride; ++r) {
      const T code = vectorized::code_of(updated[r], scale[r], zero[r], highest);
      const T rounded = scale[r] * (code - zero[r]);
      codes[r] = static_cast<std::uint8_t>(static_cast<std::int32_t>(code));
      error[r] = (updated[r] - rounded) / pivot;
      delta[r] = rounded - original[r];
    }
    for (std::int64_t r = 0; r < stride; ++r) {
      loss[r] += static_cast<double>(error[r]) * static_cast<double>(error[r]);
    }
  }

  [[gnu::always_inline]] static inline void subtract(T* __restrict__ weights, const T* __restrict__ error, T factor,
                                                     std::int64_t stride) {
    for (std::int64_t r = 0; r < stride; ++r) {
      weights[r] -= error[r] * factor;
    }
  }

  /// `factors`: that of the first of the columns; the others lie one row before each.
  [[gnu::always_inline]] static inline void subtract_together(T* __restrict__ weights, const T* __restrict__ errors,
                                                              const T* factors, std::int64_t factor_stride,
                                                              std::int64_t stride) {
    static_assert(columns_together == 8);
    const T f0 = factors[0];
    const T f1 = factors[-factor_stride];
    const T f2 = factors[-2 * factor_stride];
    const T f3 = factors[-3 * factor_stride];
    const T f4 = factors[-4 * factor_stride];
    const T f5 = factors[-5 * factor_stride];
    const T f6 = factors[-6 * factor_stride];
    const T f7 = factors[-7 * factor_stride];
    for (std::int64_t r = 0; r < stride; ++r) {
      const T* const e = errors + r;
      T w = weights[r] - e[0] * f0;
      w -= e[stride] * f1;
      w -= e[2 * stride] * f2;
      w -= e[3 * stride] * f3;
      w -= e[4 * stride] * f4;
      w -= e[5 * stride] * f5;
      w -= e[6 * stride] * f6;
      weights[r] = w - e[7 * stride] * f7;
    }
  }
};

/// to[c][r] = from[r][c], a few columns at a time so that their cache lines stay.
template <class T>
void transpose(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t cols, T* to,
               std::int64_t to_stride) {
  constexpr std::int64_t columns_at_once = 16;
  for (std::int64_t first = 0; first < cols; first += columns_at_once) {
    const auto last = std::min(cols, first + columns_at_once);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (auto c = first; c < last; ++c) {
        to[c * to_stride + r] = from[r * from_stride + c];
      }
    }
  }
}

/// Solves one panel: what its tiles share, and the work on one tile.
template <class T>
class PanelSolver {
 public:
  PanelSolver(ThreadPool& pool, const SolvePanelArgs& args)
      : pool_(pool),
        args_(args),
        factor_(args.factor.as<T>()),
        weights_(args.weights.as<T>()),
        delta_(args.delta.as<T>()),
        width_(factor_.cols()),
        behind_(weights_.cols() - args.first - width_) {
    find_blocks();
    find_groups();
    invert_blocks();
  }

  void run() {
    pool_.parallel_for(cpu::tile_count(weights_.rows(), args_.row_tile), [&](std::int64_t index, int worker) {
      const auto row = index * args_.row_tile;
      solve_tile(row, std::min(args_.row_tile, weights_.rows() - row), worker);
    });
  }

 private:
  void find_blocks() {
    const auto count = cpu::tile_count(width_, args_.block);
    inverses_.resize(static_cast<std::size_t>(count * args_.block * args_.block));
    for (std::int64_t i = 0; i < count; ++i) {
      const auto high = width_ - i * args_.block;
      blocks_.push_back(
          {std::max(std::int64_t{0}, high - args_.block), high, inverses_.data() + i * args_.block * args_.block});
    }
  }

  /// Numbers the groups of this panel's columns; with dynamic grids also finds where each group begins.
  void find_groups() {
    cpu::check_indices(args_.group, args_.scales.cols(), "solve_panel", "group");
    std::vector<std::int32_t> number(static_cast<std::size_t>(args_.scales.cols()), -1);
    local_group_.resize(static_cast<std::size_t>(width_));
    for (std::int64_t c = 0; c < width_; ++c) {
      auto& local = number[static_cast<std::size_t>(args_.group(args_.first + c))];
      if (local < 0) {
        local = static_cast<std::int32_t>(groups_.size());
        groups_.push_back(args_.group(args_.first + c));
      }
      local_group_[static_cast<std::size_t>(c)] = local;
    }
    if (!args_.dynamic_grids) {
      return;
    }
    columns_.emplace(args_.group, args_.member, args_.scales.cols(), "solve_panel");
    hessian_blocks_.emplace(args_.grid.clip == Clip::hessian ? args_.blocks : ConstTensorView<float, 3>{}, *columns_,
                            "solve_panel");
    begins_.assign(static_cast<std::size_t>(width_), -1);
    for (const auto& block : blocks_) {
      for (auto c = block.low; c < block.high; ++c) {
        const auto g = groups_[static_cast<std::size_t>(local_group_[static_cast<std::size_t>(c)])];
        const auto columns = columns_->columns(g);
        const auto [lowest, highest] = std::minmax_element(columns.begin(), columns.end());
        if (*lowest - args_.first < block.low || *highest - args_.first >= block.high) {
          throw Error(
              ErrorKind::internal,
              fmt::format(
                  "solve_panel: group {} has columns from {} to {}, expected all of them in the block [{}, {}); "
                  "dynamic grids need blocks of whole groups (block = {})",
                  g, *lowest, *highest, args_.first + block.low, args_.first + block.high, args_.block));
        }
        begins_[static_cast<std::size_t>(*highest - args_.first)] = g;
      }
    }
  }

  void invert_blocks() {
    pool_.parallel_for(static_cast<std::int64_t>(blocks_.size()), [&](std::int64_t index, int) {
      const auto& block = blocks_[static_cast<std::size_t>(index)];
      const auto size = block.high - block.low;
      T* const inverse = inverses_.data() + index * args_.block * args_.block;
      for (std::int64_t r = 0; r < size; ++r) {
        const T* const row = &factor_(block.low + r, block.low);
        std::copy_n(row, r + 1, inverse + r * args_.block);
        std::fill_n(inverse + r * args_.block + r + 1, size - r - 1, T{0});
      }
      const auto status = blas::trtri(blas::Triangle::lower, size, inverse, args_.block);
      if (status != 0) {
        throw Error(ErrorKind::internal,
                    fmt::format("solve_panel: the factor's diagonal is 0 at column {}, expected what "
                                "factor_panel made with status 0",
                                args_.first + block.low + status - 1));
      }
    });
  }

  /// The tile's memory. What no loop writes before it reads is zero: padding rows, loss, correction.
  Tile<T> make_tile(std::int64_t rows, int worker) {
    const auto stride = padded(rows);
    const auto groups = static_cast<std::int64_t>(groups_.size());
    const auto gathered = columns_ ? padded(columns_->largest()) : 0;
    const auto reals = (2 * width_ + 2 * args_.block + 2 * groups + columns_together) * stride + gathered;
    // Doubles first, bytes last: every part is aligned for its type.
    const auto bytes = stride * static_cast<std::int64_t>(sizeof(double)) +
                       reals * static_cast<std::int64_t>(sizeof(T)) + args_.block * stride;
    auto* const memory = pool_.scratch<std::byte>(worker, bytes);
    if (rows < stride) {
      std::fill_n(memory, bytes, std::byte{0});
    }
    Tile<T> tile{};
    tile.stride = stride;
    tile.loss = reinterpret_cast<double*>(memory);
    tile.correction = reinterpret_cast<T*>(tile.loss + stride);
    tile.delta = tile.correction + width_ * stride;
    tile.weights = tile.delta + width_ * stride;
    tile.original = tile.weights + args_.block * stride;
    tile.scales = tile.original + args_.block * stride;
    tile.zeros = tile.scales + groups * stride;
    tile.error = tile.zeros + groups * stride;
    tile.gathered = tile.error + columns_together * stride;
    tile.codes = reinterpret_cast<std::uint8_t*>(tile.gathered + gathered);
    std::fill_n(tile.loss, stride, 0.0);
    std::fill_n(tile.correction, width_ * stride, T{0});
    std::fill_n(tile.scales, groups * stride, T{1});  // padding rows divide by it
    return tile;
  }

  void load_grids(const Tile<T>& tile, std::int64_t row, std::int64_t rows) const {
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      const auto place = static_cast<std::int64_t>(i) * tile.stride;
      for (std::int64_t r = 0; r < rows; ++r) {
        tile.scales[place + r] = static_cast<T>(args_.scales(row + r, groups_[i]));
        tile.zeros[place + r] = static_cast<T>(args_.zeros(row + r, groups_[i]));
      }
    }
  }

  /// The grid of group `g` for each row, from the weights as updated so far.
  void find_grids(const Tile<T>& tile, const Block<T>& block, std::int32_t g, cpu::GridSearch<T>& search,
                  std::int64_t row, std::int64_t rows) const {
    const auto columns = columns_->columns(g);
    const auto place = local_group_[static_cast<std::size_t>(columns.front() - args_.first)] * tile.stride;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::size_t k = 0; k < columns.size(); ++k) {
        tile.gathered[k] = tile.weights[(columns[k] - args_.first - block.low) * tile.stride + r];
      }
      const auto grid = search.find(tile.gathered, static_cast<std::int64_t>(columns.size()), hessian_blocks_->of(g),
                                    hessian_blocks_->stride());
      args_.scales(row + r, g) = grid.scale;
      args_.zeros(row + r, g) = grid.zero;
      tile.scales[place + r] = static_cast<T>(grid.scale);
      tile.zeros[place + r] = static_cast<T>(grid.zero);
    }
  }

  /// tile.original = W and tile.weights = W̃ of the block.
  void load_weights(const Tile<T>& tile, const Block<T>& block, std::int64_t row, std::int64_t rows) const {
    const auto size = block.high - block.low;
    const auto done = width_ - block.high;
    if (done > 0) {
      blas::gemm(blas::Op::transpose, blas::Op::none, size, rows, done, T{1}, &factor_(block.high, block.low),
                 factor_.stride, tile.delta + block.high * tile.stride, tile.stride, T{1},
                 tile.correction + block.low * tile.stride, tile.stride);
    }
    transpose(&weights_(row, args_.first + block.low), weights_.stride, rows, size, tile.original, tile.stride);
    std::copy_n(tile.original, size * tile.stride, tile.weights);
    if (behind_ + done > 0) {
      blas::gemm(blas::Op::transpose, blas::Op::none, size, rows, size, T{-1}, block.inverse, args_.block,
                 tile.correction + block.low * tile.stride, tile.stride, T{1}, tile.weights, tile.stride);
    }
  }

  void store_block(const Tile<T>& tile, const Block<T>& block, std::int64_t row, std::int64_t rows) const {
    const auto size = block.high - block.low;
    const auto column = args_.first + block.low;
    transpose(tile.delta + block.low * tile.stride, tile.stride, size, rows, &delta_(row, column), delta_.stride);
    transpose(tile.codes, tile.stride, size, rows, &args_.codes(row, column), args_.codes.stride);
  }

  void solve_tile(std::int64_t row, std::int64_t rows, int worker) {
    const auto tile = make_tile(rows, worker);
    cpu::GridSearch<T> search(args_.grid);
    load_grids(tile, row, rows);
    if (behind_ > 0) {
      blas::gemm(blas::Op::transpose, blas::Op::transpose, width_, rows, behind_, T{1}, factor_.row(width_),
                 factor_.stride, &delta_(row, args_.first + width_), delta_.stride, T{0}, tile.correction, tile.stride);
    }
    for (const auto& block : blocks_) {
      load_weights(tile, block, row, rows);
      for (auto from = block.high - block.low - 1; from >= 0;) {
        if (const auto g = due_group(block.low + from); g >= 0) {
          find_grids(tile, block, g, search, row, rows);
        }
        auto to = from;
        while (to > 0 && due_group(block.low + to - 1) < 0) {
          --to;
        }
        vectorized::call<SolveColumns<T>>(level_, &tile, &block, local_group_.data(), args_.block, highest_, from, to);
        from = to - 1;
      }
      store_block(tile, block, row, rows);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      args_.row_loss(row + r) += tile.loss[r];
    }
  }

  /// The group whose grid is to be found when the panel's column `c` is reached, or −1.
  std::int32_t due_group(std::int64_t c) const { return begins_.empty() ? -1 : begins_[static_cast<std::size_t>(c)]; }

  ThreadPool& pool_;
  const SolvePanelArgs& args_;
  const vectorized::Level level_ = vectorized::best_level();
  const T highest_ = static_cast<T>((1 << args_.grid.bits) - 1);
  TensorView<const T, 2> factor_;
  TensorView<const T, 2> weights_;
  TensorView<T, 2> delta_;
  std::int64_t width_;
  std::int64_t behind_;           // columns behind the panel
  std::vector<Block<T>> blocks_;  // from the last to the first
  std::vector<T> inverses_;
  std::vector<std::int32_t> groups_;       // groups of the panel's columns
  std::vector<std::int32_t> local_group_;  // [width], index into groups_
  std::optional<cpu::GroupColumns> columns_;
  std::optional<cpu::GroupBlocks<T>> hessian_blocks_;
  std::vector<std::int32_t> begins_;  // [width], the group whose grid is due at this column, or −1; empty: none is
};

template <class T>
void add_norms(ThreadPool& pool, const WeightedNormsArgs& args, const NormRows& matrix) {
  const auto factor = args.factor.as<T>();
  const auto delta = matrix.delta.as<T>();
  const auto w = factor.cols();
  pool.parallel_for(cpu::tile_count(delta.rows(), args.row_tile), [&](std::int64_t tile, int worker) {
    const auto row = tile * args.row_tile;
    const auto rows = std::min(args.row_tile, delta.rows() - row);
    T* const product = pool.scratch<T>(worker, rows * w);
    blas::gemm(blas::Op::none, blas::Op::none, rows, w, factor.rows(), T{1}, &delta(row, args.first), delta.stride,
               factor.data, factor.stride, T{0}, product, w);
    for (std::int64_t r = 0; r < rows; ++r) {
      double norm = 0;
      for (std::int64_t c = 0; c < w; ++c) {
        const auto weighted = static_cast<double>(product[r * w + c]);
        const auto plain = static_cast<double>(delta(row + r, args.first + c));
        norm += weighted * weighted - args.extra(args.first + c) * plain * plain;
      }
      matrix.norms(row + r) += norm;
    }
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const SolvePanelArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.factor.dtype, "solve_panel",
                        [&](auto type) { PanelSolver<decltype(type)>(pool(), args).run(); });
  });
}

void CpuBackend::run(Stream& stream, const WeightedNormsArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.factor.dtype, "weighted_norms", [&](auto type) {
      for (const auto& matrix : args.rows) {
        add_norms<decltype(type)>(pool(), args, matrix);
      }
    });
  });
}

}  // namespace gptqd
