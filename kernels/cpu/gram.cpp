#include "kernels/gram.hpp"

#include <algorithm>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"

namespace gptqd {

namespace {

constexpr std::int64_t largest_tile = 384;  // rows and columns of H: GEMMs of this size run near the peak
constexpr std::int64_t token_chunk = 2048;  // terms of one GEMM
constexpr std::int64_t columns_of_a_tile = 256;

template <class T>
void run_column_square_sums(ThreadPool& pool, const ColumnSquareSumsArgs& args) {
  const auto x = args.x.as<T>();
  pool.parallel_for(cpu::tile_count(x.cols(), columns_of_a_tile), [&](std::int64_t tile, int) {
    const auto begin = tile * columns_of_a_tile;
    const auto end = std::min(x.cols(), begin + columns_of_a_tile);
    double* const sums = args.sums.data;
    if (!args.accumulate) {
      std::fill(sums + begin, sums + end, 0.0);
    }
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      const T* const row = x.row(t);
      for (auto c = begin; c < end; ++c) {
        const auto value = static_cast<double>(row[c]);
        sums[c] += value * value;
      }
    }
  });
}

/// A tile of the panel: rows [row, row + rows), columns [col, col + cols).
struct Tile {
  std::int64_t row;
  std::int64_t rows;
  std::int64_t col;
  std::int64_t cols;
};

/// [begin, end) in as few pieces as largest_tile allows, of nearly equal size: small rests would run slowly.
std::vector<std::int64_t> piece_begins(std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t multiple = 16;
  std::vector<std::int64_t> begins;
  if (const auto count = cpu::tile_count(end - begin, largest_tile); count > 0) {
    const auto size = cpu::tile_count(cpu::tile_count(end - begin, count), multiple) * multiple;
    for (auto piece = begin; piece < end; piece += size) {
      begins.push_back(piece);
    }
  }
  begins.push_back(end);
  return begins;
}

/// Tiles that cover the lower part of a panel [m, w]. Its first w rows are cut like its columns, so that tiles on the
/// diagonal are square.
std::vector<Tile> lower_tiles(std::int64_t m, std::int64_t w) {
  std::vector<Tile> tiles;
  const auto cols = piece_begins(0, w);
  for (const auto& rows : {cols, piece_begins(w, m)}) {
    for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
      for (std::size_t j = 0; j + 1 < cols.size() && cols[j] <= rows[i]; ++j) {
        tiles.push_back({rows[i], rows[i + 1] - rows[i], cols[j], cols[j + 1] - cols[j]});
      }
    }
  }
  return tiles;
}

template <class T>
void run_gram_panel(ThreadPool& pool, const GramPanelArgs& args) {
  const auto x = args.x.as<T>();
  const auto panel = args.panel.as<T>();
  const auto tiles = lower_tiles(panel.rows(), panel.cols());
  pool.parallel_for(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int) {
    const auto tile = tiles[static_cast<std::size_t>(index)];
    T* const target = &panel(tile.row, tile.col);
    if (x.rows() == 0 && !args.accumulate) {
      for (std::int64_t r = 0; r < tile.rows; ++r) {
        std::fill_n(target + r * panel.stride, tile.cols, T{0});
      }
    }
    for (std::int64_t token = 0; token < x.rows(); token += token_chunk) {
      const auto tokens = std::min(token_chunk, x.rows() - token);
      const T beta = token > 0 || args.accumulate ? T{1} : T{0};
      const T* const left = &x(token, tile.row);
      if (tile.row == tile.col) {
        blas::syrk(blas::Triangle::lower, blas::Op::transpose, tile.cols, tokens, T{1}, left, x.stride, beta, target,
                   panel.stride);
      } else {
        blas::gemm(blas::Op::transpose, blas::Op::none, tile.rows, tile.cols, tokens, T{1}, left, x.stride,
                   &x(token, tile.col), x.stride, beta, target, panel.stride);
      }
    }
  });
}

template <class T>
void run_gather_group_blocks(ThreadPool& pool, const GatherGroupBlocksArgs& args) {
  const auto panel = args.panel.as<T>();
  const auto blocks = args.blocks;
  const auto size = blocks.shape[1];
  cpu::check_indices(args.group, blocks.shape[0], "gather_group_blocks", "group");
  cpu::check_indices(args.member, size, "gather_group_blocks", "member");
  const cpu::GroupColumns groups(args.group, {}, blocks.shape[0], "gather_group_blocks");
  // Each pair of columns belongs to the lower one's tile: no two tiles write the same entry.
  pool.parallel_for(cpu::tile_count(panel.cols(), columns_of_a_tile), [&](std::int64_t tile, int) {
    const auto end = std::min(panel.cols(), (tile + 1) * columns_of_a_tile);
    for (auto c = tile * columns_of_a_tile; c < end; ++c) {
      const auto column = args.first + c;
      const auto g = std::int64_t{args.group(column)};
      float* const block = blocks.data + g * blocks.stride;
      const auto members = groups.columns(g);
      for (auto it = std::lower_bound(members.begin(), members.end(), column); it != members.end(); ++it) {
        const auto value = static_cast<float>(panel(*it - args.first, c));
        block[args.member(*it) * size + args.member(column)] = value;
        block[args.member(column) * size + args.member(*it)] = value;
      }
    }
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const ColumnSquareSumsArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.x.dtype, "column_square_sums",
                        [&](auto type) { run_column_square_sums<decltype(type)>(pool(), args); });
  });
}

void CpuBackend::run(Stream& stream, const GramPanelArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.x.dtype, "gram_panel", [&](auto type) { run_gram_panel<decltype(type)>(pool(), args); });
  });
}

void CpuBackend::run(Stream& stream, const GetDiagonalArgs& args) {
  enqueue(stream, [args] {
    cpu::with_real_type(args.panel.dtype, "get_diagonal", [&](auto type) {
      const auto panel = args.panel.template as<decltype(type)>();
      for (std::int64_t c = 0; c < panel.cols(); ++c) {
        args.diagonal(c) = static_cast<double>(panel(c, c));
      }
    });
  });
}

void CpuBackend::run(Stream& stream, const SetDiagonalArgs& args) {
  enqueue(stream, [args] {
    cpu::with_real_type(args.panel.dtype, "set_diagonal", [&](auto type) {
      const auto panel = args.panel.template as<decltype(type)>();
      for (std::int64_t c = 0; c < panel.cols(); ++c) {
        panel(c, c) = static_cast<decltype(type)>(args.diagonal(c));
      }
    });
  });
}

void CpuBackend::run(Stream& stream, const GatherGroupBlocksArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.panel.dtype, "gather_group_blocks",
                        [&](auto type) { run_gather_group_blocks<decltype(type)>(pool(), args); });
  });
}

}  // namespace gptqd
