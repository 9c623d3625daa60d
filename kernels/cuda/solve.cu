#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/grid_search.cuh"
#include "kernels/cuda/half_scaling.cuh"
#include "kernels/cuda/ordered_product.cuh"
#include "kernels/cuda/split_product.cuh"
#include "kernels/solve.hpp"

namespace gptqd::cuda {

namespace {

/// Rows of one block of threads: one lane each while columns are solved one after another, by its first warp. The
/// other warps meanwhile do what the columns further on need.
constexpr int tile_rows = 32;
constexpr int solve_warps = 4;
constexpr int solve_threads = 32 * solve_warps;
/// Columns that a thread keeps in registers.
constexpr int step_columns = 32;
/// Columns of one launch, and its steps.
constexpr int piece_columns = 128;
constexpr int most_steps = piece_columns / step_columns;
/// Columns whose corrections a thread adds up together.
constexpr int together = 4;
/// An odd pitch: a warp's lanes, one row each, read different banks.
constexpr int row_pitch = piece_columns + 1;
/// Memory for the corrections of one strip of rows, and terms of one product that adds to them.
constexpr std::int64_t strip_bytes = std::int64_t{64} << 20;
constexpr std::int64_t most_terms = 4096;
constexpr int inverse_threads = 1024;

/// One block: 1/L_aa of a panel's columns, and the lowest column with a zero there.
template <class T>
__global__ void __launch_bounds__(inverse_threads)
    invert_diagonal(Rows<const T> factor, std::int64_t w, std::int64_t first, T* inverses, Finding* finding) {
  std::int64_t zero = w;
  for (std::int64_t c = threadIdx.x; c < w; c += inverse_threads) {
    const T value = factor.row(c)[c];
    inverses[c] = T{1} / value;
    if (value == 0 && zero == w) {
      zero = c;
    }
  }
  zero = reduce<inverse_threads>(zero, Minimum{});
  if (threadIdx.x == 0 && zero < w) {
    finding->position = first + zero;
  }
}

/// Columns [low, high) of a panel, at most piece_columns, counted inside it. All pointers are those of the whole panel.
template <class T>
struct Piece {
  std::int64_t rows;
  std::int64_t low;
  std::int64_t high;
  Rows<const T> factor;
  bool packs;                 // whether rows of the factor begin at 16 bytes, from `low` on as well
  const T* inverses;          // 1/L_aa
  Rows<const T> corrections;  // delta·L of all columns behind the piece
  Rows<const T> weights;
  Rows<T> delta;  // out
  const std::int32_t* group;
  SplitParts parts;  // out: delta once more, rows as columns, unless null; only where T is float
};

/// What rounding to grids needs and gives.
template <class T>
struct Grids {
  static constexpr bool rounds = true;
  Rows<const float> scales;
  Rows<const std::uint8_t> zeros;
  std::int64_t groups;
  T highest;
  Rows<std::uint8_t> codes;  // out, like the weights
  double* row_loss;          // added to
};

/// Nothing is rounded: W̃ is what the weights would be if the columns down to each were left as they are updated.
template <class T>
struct Unrounded {
  static constexpr bool rounds = false;
  std::int32_t wanted;         // the group whose W̃ is asked for
  const std::int32_t* member;  // like the group
  Rows<T> updated;             // out: [rows, members]
};

/// All that a tile of rows needs of one piece. Its columns end at piece_columns: where there are fewer, the first ones
/// do not exist.
template <class T>
struct Shared {
  /// L's rows of each step, up to the step's last column: [step][row][column], rows of a step as long as each other.
  alignas(16) T factor[step_columns * step_columns * most_steps * (most_steps + 1) / 2];
  T inverses[piece_columns];
  T weights[tile_rows][row_pitch];  // then delta
  T corrections[tile_rows][row_pitch];
  T scales[tile_rows][row_pitch];       // W̃ where nothing is rounded
  T reciprocals[tile_rows][row_pitch];  // of the scales
  std::uint8_t zeros[tile_rows][piece_columns + 4];  // then codes
  std::int32_t groups[piece_columns];

  /// Row `a` of a step, to be indexed by column.
  __device__ T* factor_row(int step, int a) {
    return factor + step_columns * step_columns * (step * (step + 1) / 2) + a * step_columns * (step + 1);
  }
};

/// rint(weight/scale), with the bits of that division: see GridRounder in quantizer.cuh for why.
__device__ float rounded_quotient(float weight, float scale, float reciprocal) {
  const float near = weight * reciprocal;
  return round_half_even(__fmaf_rn(__fmaf_rn(-near, scale, weight), reciprocal, near));
}
__device__ double rounded_quotient(double weight, double scale, double) { return round_half_even(weight / scale); }

/// One block's work on its rows.
template <class T, class Target>
class TileSolver {
 public:
  __device__ TileSolver(const Piece<T>& piece, const Target& target, Shared<T>& shared)
      : piece_(piece),
        target_(target),
        shared_(shared),
        row_(std::int64_t{blockIdx.x} * tile_rows),
        rows_(static_cast<int>(min(std::int64_t{tile_rows}, piece.rows - row_))),
        missing_(piece_columns - static_cast<int>(piece.high - piece.low)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {}

  __device__ void run() {
    const int first = missing_ / step_columns;
    find_group(static_cast<int>(threadIdx.x));
    __syncthreads();
    std::uint8_t zeros[most_steps][tile_rows / solve_warps];
    load_zeros(zeros);
#pragma unroll 1  // the code is long, and run once: it must come from memory
    for (int step = most_steps - 1; step >= first; --step) {
      fetch(step);
      if (step == most_steps - 1 || step == first) {
        end_group_of_copies();
      }
    }
    store_zeros(zeros);
    if (first == most_steps - 1) {
      wait_for_groups_of_copies<0>();
    } else {
      wait_for_groups_of_copies<1>();
    }
    __syncthreads();
    prepare(most_steps - 1, warp_, solve_warps);
    __syncthreads();
#pragma unroll 1  // the code of a step is long
    for (int step = most_steps - 1; step >= first; --step) {
      const bool begins = step == most_steps - 1;
      if (warp_ == 0) {
        solve_step(step);
      } else if (!begins) {
        correct(step + 1, step_columns * first, step_columns * step, warp_ - 1, solve_warps - 1);
        store(step + 1, warp_ - 1, solve_warps - 1);
        if (step > first) {
          prepare(step - 1, warp_ - 1, solve_warps - 1);
        }
      }
      wait_for_groups_of_copies<0>();
      __syncthreads();
      if (step > first) {
        correct(step, step_columns * (step - 1), step_columns * step, warp_, solve_warps);
        if (begins) {
          prepare(step - 1, warp_, solve_warps);
        }
        __syncthreads();
      }
    }
    store(first, warp_, solve_warps);
    if constexpr (std::is_same_v<T, float>) {
      if (piece_.parts.units != nullptr) {
        store_parts();
      }
    }
    if constexpr (Target::rounds) {
      if (warp_ == 0 && lane_ < rows_) {
        target_.row_loss[row_ + lane_] += loss_;
      }
    }
  }

 private:
  /// This lane's column of a step in the panel; below the piece's first one where there is none.
  __device__ std::int64_t column_of(int step) const {
    return piece_.low + step_columns * step + lane_ - missing_;
  }
  __device__ bool exists(int step) const { return step_columns * step + lane_ >= missing_; }
  __device__ void find_group(int c) {
    static_assert(solve_threads == piece_columns);
    if constexpr (Target::rounds) {
      const std::int64_t group = c >= missing_ ? piece_.group[piece_.low + c - missing_] : 0;
      shared_.groups[c] = static_cast<std::int32_t>(max(std::int64_t{0}, min(target_.groups - 1, group)));
    }
  }

  __device__ void load_zeros(std::uint8_t (&zeros)[most_steps][tile_rows / solve_warps]) const {
    if constexpr (Target::rounds) {
#pragma unroll
      for (int i = 0; i < tile_rows / solve_warps; ++i) {
        const int r = min(rows_ - 1, warp_ + i * solve_warps);
        const std::uint8_t* const row = target_.zeros.row(row_ + r);
#pragma unroll
        for (int step = 0; step < most_steps; ++step) {
          zeros[step][i] = exists(step) ? row[shared_.groups[step_columns * step + lane_]] : std::uint8_t{0};
        }
      }
    }
  }
  __device__ void store_zeros(const std::uint8_t (&zeros)[most_steps][tile_rows / solve_warps]) {
    if constexpr (Target::rounds) {
#pragma unroll
      for (int i = 0; i < tile_rows / solve_warps; ++i) {
#pragma unroll
        for (int step = 0; step < most_steps; ++step) {
          shared_.zeros[warp_ + i * solve_warps][step_columns * step + lane_] = zeros[step][i];
        }
      }
    }
  }

  /// Begins to bring what a step needs. Columns that do not exist get what leaves no trace.
  __device__ void fetch(int step) {
    const int c = step_columns * step + lane_;
    std::int32_t group = 0;
    if constexpr (Target::rounds) {
      group = shared_.groups[c];
    }
    const bool there = exists(step);
    const std::int64_t column = there ? column_of(step) : piece_.low;
    if (warp_ == 0) {
      copy_in_background(&shared_.inverses[c], piece_.inverses + column, there);
    }
    for (int r = warp_; r < rows_; r += solve_warps) {
      copy_in_background(&shared_.weights[r][c], piece_.weights.row(row_ + r) + column, there);
      copy_in_background(&shared_.corrections[r][c], piece_.corrections.row(row_ + r) + column, there);
      if constexpr (Target::rounds) {
        if constexpr (std::is_same_v<T, float>) {
          copy_in_background(&shared_.scales[r][c], target_.scales.row(row_ + r) + group, there);
        } else {
          shared_.scales[r][c] = there ? static_cast<T>(target_.scales.row(row_ + r)[group]) : T{0};
        }
      }
    }
    const int columns = step_columns * (step + 1);
    constexpr int width = full_width<T>;
    for (int a = warp_; a < step_columns; a += solve_warps) {
      const int row = step_columns * step + a - missing_;
      const T* const from = piece_.factor.row(piece_.low + max(0, row)) + piece_.low;
      T* const to = shared_.factor_row(step, a);
      if (piece_.packs && missing_ == 0) {
        for (int k = lane_ * width; k < columns; k += 32 * width) {
          copy_in_background(reinterpret_cast<Pack<T, width>*>(to + k),
                             reinterpret_cast<const Pack<T, width>*>(from + k));
        }
      } else {
        for (int k = lane_; k < columns; k += 32) {
          copy_in_background(to + k, from + max(0, k - missing_), row >= 0 && k >= missing_);
        }
      }
    }
  }

  /// By `count` warps, of which this is number `index`.
  __device__ void prepare(int step, int index, int count) {
    if constexpr (Target::rounds) {
      const int c = step_columns * step + lane_;
      for (int r = index; r < rows_; r += count) {
        const T scale = exists(step) ? shared_.scales[r][c] : T{1};
        shared_.scales[r][c] = scale;
        shared_.reciprocals[r][c] = T{1} / scale;
      }
    }
  }

  /// One lane a row; lanes without a row compute on what there is. Nothing is stored before the last column is done:
  /// loads could not run ahead of stores.
  __device__ void solve_step(int step) {
    const int first = step_columns * step;
    T corrections[step_columns];  // then delta
    T steps[step_columns];        // rounded: q − z; else W̃
    T errors[step_columns];
#pragma unroll
    for (int j = 0; j < step_columns; ++j) {
      corrections[j] = shared_.corrections[lane_][first + j];
    }
#pragma unroll
    for (int a = step_columns - 1; a >= 0; --a) {
      const T* const factor = shared_.factor_row(step, a) + first;
      const T original = shared_.weights[lane_][first + a];
      const T updated = fma(-corrections[a], shared_.inverses[first + a], original);
      T delta;
      if constexpr (Target::rounds) {
        const T scale = shared_.scales[lane_][first + a];
        const T zero = static_cast<T>(shared_.zeros[lane_][first + a]);
        // Clamping rint(w/s) to [−z, highest − z] is clamping the code; s·(q − z) is exact.
        const T quotient = rounded_quotient(updated, scale, shared_.reciprocals[lane_][first + a]);
        steps[a] = min(max(quotient, -zero), target_.highest - zero);
        delta = fma(scale, steps[a], -original);
        errors[a] = fma(scale, steps[a], -updated) * factor[a];
      } else {
        steps[a] = updated;
        delta = updated - original;
      }
      corrections[a] = delta;
#pragma unroll
      for (int b = 0; b < a; ++b) {
        corrections[b] = fma(delta, factor[b], corrections[b]);
      }
    }
#pragma unroll
    for (int a = step_columns - 1; a >= 0; --a) {
      shared_.weights[lane_][first + a] = corrections[a];
      if constexpr (Target::rounds) {
        auto& code = shared_.zeros[lane_][first + a];
        code = static_cast<std::uint8_t>(static_cast<std::int32_t>(steps[a]) + code);
        const auto error = static_cast<double>(errors[a]);
        loss_ = fma(error, error, loss_);
      } else {
        shared_.scales[lane_][first + a] = steps[a];
      }
    }
  }

  /// The corrections of the columns [begin, end), which lie before the step's, by `count` warps.
  __device__ void correct(int step, int begin, int end, int index, int count) {
    begin += together * index;
    if (begin >= end) {
      return;
    }
    T delta[step_columns];
#pragma unroll
    for (int a = 0; a < step_columns; ++a) {
      delta[a] = shared_.weights[lane_][step_columns * step + a];
    }
    const T* const factor = shared_.factor_row(step, 0);
    for (int c = begin; c < end; c += together * count) {
      T sums[together];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        sums[i] = shared_.corrections[lane_][c + i];
      }
#pragma unroll
      for (int a = step_columns - 1; a >= 0; --a) {
        const auto factors =
            *reinterpret_cast<const Pack<T, together>*>(factor + a * step_columns * (step + 1) + c);
#pragma unroll
        for (int i = 0; i < together; ++i) {
          sums[i] = fma(delta[a], factors.values[i], sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < together; ++i) {
        shared_.corrections[lane_][c + i] = sums[i];
      }
    }
  }

  /// The results of a step.
  __device__ void store(int step, int index, int count) {
    const int c = step_columns * step + lane_;
    const std::int64_t column = column_of(step);
    if (!exists(step)) {
      return;
    }
    for (int r = index; r < rows_; r += count) {
      piece_.delta.row(row_ + r)[column] = shared_.weights[r][c];
      if constexpr (Target::rounds) {
        target_.codes.row(row_ + r)[column] = shared_.zeros[r][c];
      } else if (piece_.group[column] == target_.wanted) {
        target_.updated.row(row_ + r)[target_.member[column]] = shared_.scales[r][c];
      }
    }
  }

  /// Delta of whole pieces as operand of a product: each row scaled by a power of two.
  __device__ void store_parts() {
    for (int i = 0; i < tile_rows / solve_warps; ++i) {
      const int r = warp_ + i * solve_warps;
      float peak = 0;
#pragma unroll
      for (int k = 0; k < most_steps; ++k) {
        peak = fmaxf(peak, fabsf(shared_.weights[r][step_columns * k + lane_]));
      }
      peak = reduce<32>(peak, Maximum{});
      if (lane_ == 0) {
        shared_.corrections[r][0] = half_scaling(peak);
      }
    }
    __syncthreads();
    if (lane_ >= rows_) {
      return;
    }
    const float scaling = shared_.corrections[lane_][0];
    const SplitParts& parts = piece_.parts;
    if (warp_ == 0) {
      parts.units[row_ + lane_] = 1.0f / scaling;
    }
#pragma unroll 4
    for (int c = warp_; c < piece_columns; c += solve_warps) {
      parts.store(c, row_ + lane_, shared_.weights[lane_][c] * scaling);
    }
  }

  const Piece<T>& piece_;
  const Target& target_;
  Shared<T>& shared_;
  std::int64_t row_;
  int rows_;
  int missing_;  // columns that do not exist
  int lane_;
  int warp_;
  double loss_ = 0;
};

/// Left-looking inside: T = delta·L grows column by column, W̃_a = W_a − T_a/L_aa, delta_a = Q(W̃_a) − W_a, and
/// e_a = (W̃_a − Q(W̃_a))·L_aa = −(delta·L)_a. Each row's arithmetic is the same wherever it lies.
template <class T, class Target>
__global__ void __launch_bounds__(solve_threads)
    solve_piece(const __grid_constant__ Piece<T> piece, const __grid_constant__ Target target) {
  extern __shared__ __align__(16) std::byte memory[];
  TileSolver<T, Target>(piece, target, *reinterpret_cast<Shared<T>*>(memory)).run();
}

template <class T, class Target>
void launch_piece(CudaStream& stream, const Piece<T>& piece, const Target& target) {
  constexpr auto bytes = sizeof(Shared<T>);
  check(cudaFuncSetAttribute(solve_piece<T, Target>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "giving a kernel its shared memory");
  solve_piece<T, Target>
      <<<grid_size(divide_up(piece.rows, tile_rows)), solve_threads, bytes, stream.stream()>>>(piece, target);
}

/// The groups of a panel's columns, at the host: only dynamic grids need them there.
class PanelGroups {
 public:
  struct Group {
    std::int64_t lowest = std::numeric_limits<std::int64_t>::max();
    std::int64_t highest = -1;
    std::int64_t columns = 0;
  };

  /// @param group  [n]
  PanelGroups(const std::vector<std::int32_t>& group, const std::vector<std::int32_t>& member, std::int64_t groups)
      : group_(group), groups_(static_cast<std::size_t>(groups)) {
    for (std::size_t c = 0; c < group.size(); ++c) {
      check_index("group", c, group[c], groups);
      auto& of = groups_[static_cast<std::size_t>(group[c])];
      of.lowest = std::min(of.lowest, static_cast<std::int64_t>(c));
      of.highest = static_cast<std::int64_t>(c);
      ++of.columns;
    }
    for (std::size_t c = 0; c < member.size(); ++c) {
      check_index("member", c, member[c], groups_[static_cast<std::size_t>(group[c])].columns);
    }
  }

  std::int32_t group_of(std::int64_t column) const { return group_[static_cast<std::size_t>(column)]; }
  const Group& at(std::int32_t group) const { return groups_[static_cast<std::size_t>(group)]; }
  /// The group whose first column to be reached is this one, or −1.
  std::int32_t due_at(std::int64_t column) const {
    return at(group_of(column)).highest == column ? group_of(column) : -1;
  }

 private:
  static void check_index(std::string_view name, std::size_t position, std::int32_t value, std::int64_t end) {
    if (value < 0 || value >= end) {
      throw Error(ErrorKind::internal,
                  fmt::format("solve_panel: {}[{}] = {}, expected an index in [0, {})", name, position, value, end));
    }
  }

  const std::vector<std::int32_t>& group_;
  std::vector<Group> groups_;
};

/// Finds the grid of group g of some rows from their weights [rows, members], members in order.
using FindGrid = std::function<void(std::int64_t row, const ConstAnyView<2>& weights, std::int32_t g)>;

/// Solves one panel.
template <class T>
class PanelSolver {
 public:
  PanelSolver(CudaStream& stream, CudaArena& arena, const SolvePanelArgs& args)
      : stream_(stream),
        arena_(arena),
        args_(args),
        factor_(args.factor.as<T>()),
        width_(factor_.cols()),
        behind_(args.weights.cols() - args.first - width_),
        inverses_memory_(arena.allocate(width_ * size_of(dtype_of<T>))),
        inverses_(inverses_memory_.view<T, 1>({width_})) {
    Finding* const finding = stream.expect_no_finding([](const Finding& found) {
      return fmt::format(
          "solve_panel: the factor's diagonal is 0 at column {}, expected what factor_panel made with status 0",
          found.position);
    });
    invert_diagonal<T><<<1, inverse_threads, 0, stream.stream()>>>(Rows<const T>(factor_), width_, args.first,
                                                                   inverses_.data, finding);
  }

  /// @param groups  null where grids are given
  void run(const PanelGroups* groups, const FindGrid& find_grid) {
    const std::int64_t all = args_.weights.rows();
    const std::int64_t pitch = divide_up(width_, 2) * 2;
    const std::int64_t step =
        std::max<std::int64_t>(tile_rows, strip_bytes / (pitch * size_of(dtype_of<T>)) / tile_rows * tile_rows);
    const std::int64_t most = std::min(step, all);
    const auto corrections_of = [&](const Buffer& memory, std::int64_t rows) {
      return TensorView<T, 2>(static_cast<T*>(memory.data()), {rows, width_}, pitch);
    };
    const Buffer corrections_memory = arena_.allocate(most * pitch * size_of(dtype_of<T>));
    prepare_products(corrections_of(corrections_memory, most));
    for (row_ = 0; row_ < all; row_ += step) {
      rows_ = std::min(step, all - row_);
      weights_ = args_.weights.slice_rows(row_, rows_).slice_cols(args_.first, width_).template as<T>();
      delta_ = args_.delta.slice_rows(row_, rows_).slice_cols(args_.first, width_).template as<T>();
      corrections_ = corrections_of(corrections_memory, rows_);
      solve_strip(groups, find_grid);
    }
  }

 private:
  void solve_strip(const PanelGroups* groups, const FindGrid& find_grid) {
    check(cudaMemsetAsync(corrections_.data, 0, bytes(rows_ * corrections_.stride), stream_.stream()),
          "clearing corrections");
    const auto solved = args_.delta.slice_rows(row_, rows_).slice_cols(args_.first + width_, behind_).template as<T>();
    // Cut at the same terms whatever the rows.
    for (std::int64_t first = 0; first < behind_; first += most_terms) {
      const std::int64_t terms = std::min(most_terms, behind_ - first);
      add_product(solved.slice_cols(first, terms), factor_.slice_rows(width_ + first, terms), corrections_);
    }
    for (std::int64_t high = width_; high > 0; high -= std::min(high, args_.block)) {
      const std::int64_t low = std::max<std::int64_t>(0, high - args_.block);
      for (std::int64_t from = high; from > low;) {
        std::int64_t to = low;
        if (groups != nullptr) {
          if (const auto g = groups->due_at(args_.first + from - 1); g >= 0) {
            find_grid(row_, updated_weights(*groups, g), g);
          }
          to = from - 1;
          while (to > low && groups->due_at(args_.first + to - 1) < 0) {
            --to;
          }
        }
        walk(corrections_, delta_, to, from, low, grids());
        from = to;
      }
      correct_before(low, high);
    }
  }

  /// Whether one launch solves a whole block that others depend on, so that it may leave what their products take.
  bool is_piece(std::int64_t low, std::int64_t high) const {
    return splits_ && low > 0 && high - low == piece_columns && args_.block == piece_columns && !args_.dynamic_grids;
  }

  /// Decides how products are formed, by the GPU alone: what a row gets must not depend on which rows it comes with.
  void prepare_products(const TensorView<T, 2>& corrections) {
    if constexpr (std::is_same_v<T, float>) {
      splits_ = allows_split_product(stream_, corrections);
      if (splits_) {
        left_memory_ = arena_.allocate(split_bytes(
            std::min(std::max(behind_, args_.block), std::max(most_terms, args_.block)), corrections.rows()));
        right_memory_ = arena_.allocate(split_bytes(std::min(behind_, most_terms), width_));
        own_memory_ = arena_.allocate(split_bytes(width_, width_));
        own_ = split(stream_, factor_.slice_rows(0, width_), false, own_memory_.data());
      }
    }
  }

  /// sums += delta·factor.
  void add_product(const ConstTensorView<T, 2>& delta, const ConstTensorView<T, 2>& factor,
                   const TensorView<T, 2>& sums) {
    if constexpr (std::is_same_v<T, float>) {
      if (splits_) {
        const auto left = split(stream_, delta, true, left_memory_.data());
        const auto right = split(stream_, factor, false, right_memory_.data());
        return split_product(stream_, {.left = left, .right = right, .result = sums});
      }
    }
    ordered_product<T>(stream_, delta, factor, sums, true);
  }

  /// The corrections of all of the panel's columns before `low`, of a whole block [low, high).
  void correct_before(std::int64_t low, std::int64_t high) {
    if (low == 0) {
      return;
    }
    if constexpr (std::is_same_v<T, float>) {
      if (splits_) {
        const auto left = is_piece(low, high)
                              ? split_memory(piece_columns, rows_, left_memory_.data()).matrix()
                              : split(stream_, delta_.slice_cols(low, high - low), true, left_memory_.data());
        return split_product(stream_, {.left = left,
                                       .right = own_.slice_cols(0, low),
                                       .right_first = low,
                                       .result = corrections_.slice_cols(0, low)});
      }
    }
    correct(corrections_, delta_, low, high, 0);
  }

  /// Columns [low, high) from the last to the first; `corrections` of the columns in [until, low) then count them.
  template <class Target>
  void walk(const TensorView<T, 2>& corrections, const TensorView<T, 2>& delta, std::int64_t low, std::int64_t high,
            std::int64_t until, const Target& target) {
    for (std::int64_t to = high; to > low;) {
      const std::int64_t from = std::max(low, to - piece_columns);
      Piece<T> piece{.rows = rows_,
                     .low = from,
                     .high = to,
                     .factor = Rows<const T>(factor_),
                     .packs = from % full_width<T> == 0 && allows_packs(full_width<T>, ConstAnyView<2>(factor_)),
                     .inverses = inverses_.data,
                     .corrections = Rows<const T>(corrections),
                     .weights = Rows<const T>(weights_),
                     .delta = Rows<T>(delta),
                     .group = args_.group.data + args_.first,
                     .parts = {}};
      if (is_piece(from, to)) {
        piece.parts = SplitParts(split_memory(piece_columns, rows_, left_memory_.data()));
      }
      launch_piece<T, Target>(stream_, piece, target);
      correct(corrections, delta, from, to, until);
      to = from;
    }
  }

  /// corrections += delta·L for the columns [until, low), of the columns [low, high).
  void correct(const TensorView<T, 2>& corrections, const TensorView<T, 2>& delta, std::int64_t low, std::int64_t high,
               std::int64_t until) {
    ordered_product<T>(stream_, delta.slice_cols(low, high - low),
                       factor_.slice_rows(low, high - low).slice_cols(until, low - until),
                       corrections.slice_cols(until, low - until), true);
  }

  Grids<T> grids() const {
    return {.scales = Rows<const float>(args_.scales.slice_rows(row_, rows_)),
            .zeros = Rows<const std::uint8_t>(args_.zeros.slice_rows(row_, rows_)),
            .groups = args_.scales.cols(),
            .highest = static_cast<T>((1 << args_.grid.bits) - 1),
            .codes = Rows<std::uint8_t>(args_.codes.slice_rows(row_, rows_).slice_cols(args_.first, width_)),
            .row_loss = args_.row_loss.data + row_};
  }

  /// W̃ of group g over all its columns, nothing of it being rounded yet: [rows, columns of the group].
  ConstAnyView<2> updated_weights(const PanelGroups& groups, std::int32_t g) {
    const auto& group = groups.at(g);
    const std::int64_t low = group.lowest - args_.first;
    const std::int64_t high = group.highest - args_.first + 1;
    const auto make = [&](Buffer& memory, std::int64_t columns) {
      if (memory.bytes() < rows_ * columns * size_of(dtype_of<T>)) {
        memory = arena_.allocate(rows_ * columns * size_of(dtype_of<T>));
      }
      return memory.view<T, 2>({rows_, columns});
    };
    const auto corrections = make(trial_corrections_, width_);
    const auto delta = make(trial_delta_, width_);
    const auto updated = make(updated_, group.columns);
    check(cudaMemcpy2DAsync(corrections.data + low, bytes(corrections.stride), corrections_.data + low,
                            bytes(corrections_.stride), bytes(high - low), static_cast<std::size_t>(rows_),
                            cudaMemcpyDeviceToDevice, stream_.stream()),
          "copying corrections");
    walk(corrections, delta, low, high, low,
         Unrounded<T>{.wanted = g, .member = args_.member.data + args_.first, .updated = Rows<T>(updated)});
    return TensorView<const T, 2>(updated);
  }

  static std::size_t bytes(std::int64_t elements) { return static_cast<std::size_t>(elements * size_of(dtype_of<T>)); }

  CudaStream& stream_;
  CudaArena& arena_;
  const SolvePanelArgs& args_;
  TensorView<const T, 2> factor_;
  std::int64_t width_;
  std::int64_t behind_;  // columns behind the panel
  Buffer inverses_memory_;
  TensorView<T, 1> inverses_;
  // Of products on tensor cores.
  bool splits_ = false;
  Buffer left_memory_;
  Buffer right_memory_;
  Buffer own_memory_;
  SplitMatrix own_;  // the factor's rows of the panel's own columns
  // Of dynamic grids.
  Buffer trial_corrections_;
  Buffer trial_delta_;
  Buffer updated_;
  // The strip of rows at work, the panel's columns.
  std::int64_t row_ = 0;
  std::int64_t rows_ = 0;
  TensorView<const T, 2> weights_;
  TensorView<T, 2> delta_;
  TensorView<T, 2> corrections_;  // delta·L of what is solved
};

/// Every group of the panel's columns must lie inside one block.
void expect_whole_groups(const PanelGroups& groups, const SolvePanelArgs& args) {
  for (std::int64_t high = args.factor.cols(); high > 0; high -= std::min(high, args.block)) {
    const std::int64_t low = std::max<std::int64_t>(0, high - args.block);
    for (std::int64_t c = low; c < high; ++c) {
      const auto g = groups.group_of(args.first + c);
      const auto& group = groups.at(g);
      if (group.lowest - args.first < low || group.highest - args.first >= high) {
        throw Error(ErrorKind::internal,
                    fmt::format("solve_panel: group {} has columns from {} to {}, expected all of them in the block "
                                "[{}, {}); dynamic grids need blocks of whole groups (block = {})",
                                g, group.lowest, group.highest, args.first + low, args.first + high, args.block));
      }
    }
  }
}

}  // namespace

/// Given grids need nothing of the host. Dynamic grids are found between the columns by find_grids(), group by group:
/// the host then waits for the stream, once, to learn which columns each group has.
void CudaBackend::run(Stream& stream, const SolvePanelArgs& args) {
  enqueue(stream, "solve_panel", [&](CudaStream& own) {
    if (args.weights.rows() == 0) {
      return;
    }
    std::vector<std::int32_t> group;
    std::vector<std::int32_t> member;
    std::optional<PanelGroups> groups;
    Buffer search_memory;
    if (args.dynamic_grids) {
      const auto download = [&](const ConstTensorView<std::int32_t, 1>& from, std::vector<std::int32_t>& to) {
        to.resize(static_cast<std::size_t>(from.rows()));
        copy_to_host(own, to.data(), from.data, from.rows() * size_of(DType::i32));
      };
      download(args.group, group);
      download(args.member, member);
      own.synchronize();
      groups.emplace(group, member, args.scales.cols());
      expect_whole_groups(*groups, args);
      search_memory = allocate(args.block * size_of(DType::i32));
      fill_zero(own, search_memory.data(), search_memory.bytes());
    } else {
      const std::int64_t count = args.scales.cols();
      expect_inside(own, args.group, 0, count, [count](const Finding& found) {
        return fmt::format("solve_panel: group[{}] = {}, expected an index in [0, {})", found.position, found.value,
                           count);
      });
    }
    const auto find_grid = [&](std::int64_t row, const ConstAnyView<2>& weights, std::int32_t g) {
      FindGridsArgs search{.spec = args.grid,
                           .weights = weights,
                           .group = search_memory.view<const std::int32_t, 1>({weights.cols()}),
                           .member = {},
                           .scales = args.scales.slice_rows(row, weights.rows()).slice_cols(g, 1),
                           .zeros = args.zeros.slice_rows(row, weights.rows()).slice_cols(g, 1)};
      if (args.grid.clip == Clip::hessian) {
        search.blocks = args.blocks.slice_rows(g, 1);
      }
      cuda::find_grids(own, search, "solve_panel", own.scratch(find_grids_bytes(search)));
    };
    const auto solve = [&]<class T>() {
      PanelSolver<T>(own, arena_, args).run(groups ? &*groups : nullptr, find_grid);
    };
    args.factor.dtype == DType::f64 ? solve.template operator()<double>() : solve.template operator()<float>();
  });
}

}  // namespace gptqd::cuda
