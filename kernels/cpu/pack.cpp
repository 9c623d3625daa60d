#include "kernels/pack.hpp"

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"

namespace gptqd {

namespace {

constexpr std::int64_t rows_of_a_tile = 16;

void run_pack_rows(ThreadPool& pool, const PackRowsArgs& args) {
  const auto n = args.codes.cols();
  const std::uint32_t mask = (1u << args.bits) - 1;
  cpu::check_indices(args.position, n, "pack_rows", "position");
  pool.parallel_for(cpu::tile_count(args.codes.rows(), rows_of_a_tile), [&](std::int64_t tile, int) {
    const auto last_row = std::min(args.codes.rows(), (tile + 1) * rows_of_a_tile);
    for (auto r = tile * rows_of_a_tile; r < last_row; ++r) {
      const std::uint8_t* const codes = args.codes.row(r);
      std::uint32_t* word = args.packed.row(r);
      std::uint64_t pending = 0;
      int bits = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        pending |= std::uint64_t{codes[args.position(i)] & mask} << bits;
        bits += args.bits;
        if (bits >= 32) {
          *word++ = static_cast<std::uint32_t>(pending);
          pending >>= 32;
          bits -= 32;
        }
      }
    }
  });
}

void run_transpose_words(ThreadPool& pool, const TransposeWordsArgs& args) {
  constexpr std::int64_t line = 16;  // words of 64 bytes: a cache line on either side
  const auto rows = args.x.rows();
  const auto words = args.x.cols();
  pool.parallel_for(cpu::tile_count(words, line), [&](std::int64_t tile, int) {
    const auto last_word = std::min(words, (tile + 1) * line);
    for (std::int64_t first = 0; first < rows; first += line) {
      const auto last_row = std::min(rows, first + line);
      for (auto word = tile * line; word < last_word; ++word) {
        for (auto r = first; r < last_row; ++r) {
          args.y(word, r) = args.x(r, word);
        }
      }
    }
  });
}

/// codes[i] = element i of the stream.
void unpack_row(const std::uint32_t* words, std::int64_t n, int bits, std::uint8_t* codes) {
  const std::uint64_t mask = (1u << bits) - 1;
  std::uint64_t pending = 0;
  int available = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (available < bits) {
      pending |= std::uint64_t{*words++} << available;
      available += 32;
    }
    codes[i] = static_cast<std::uint8_t>(pending & mask);
    pending >>= bits;
    available -= bits;
  }
}

/// RN(scale·difference): a stored scale has at most 11 significant bits, so the product of floats is exact and the
/// conversion that follows is the only rounding.
template <class Weight>
Weight dequantized(float scale, int difference, DType stored) {
  const float exact = scale * static_cast<float>(difference);
  if constexpr (std::is_same_v<Weight, Half>) {
    return to_half(exact);
  } else if constexpr (std::is_same_v<Weight, BFloat16>) {
    return to_bfloat16(exact);
  } else {
    switch (stored) {
      case DType::f16:
        return static_cast<Weight>(to_float(to_half(exact)));
      case DType::bf16:
        return static_cast<Weight>(to_float(to_bfloat16(exact)));
      default:
        return static_cast<Weight>(exact);
    }
  }
}

template <class Weight>
void run_dequantize(ThreadPool& pool, const DequantizeArgs& args) {
  const auto weight = args.weight.as<Weight>();
  const auto n = weight.cols();
  const auto groups = args.scales.cols();
  const std::int64_t values = std::int64_t{1} << args.bits;
  // A group has no more than 2^bits different weights: worth a table unless groups are small.
  const bool tabulate = groups * values <= n;
  cpu::check_indices(args.group, groups, "dequantize", "group");
  pool.parallel_for(cpu::tile_count(weight.rows(), rows_of_a_tile), [&](std::int64_t tile, int worker) {
    const auto entries = tabulate ? groups * values : 0;
    Weight* const table = pool.scratch<Weight>(worker, entries + n);
    auto* const codes = reinterpret_cast<std::uint8_t*>(table + entries);
    const auto last_row = std::min(weight.rows(), (tile + 1) * rows_of_a_tile);
    for (auto r = tile * rows_of_a_tile; r < last_row; ++r) {
      unpack_row(args.packed.row(r), n, args.bits, codes);
      const auto value = [&](std::int64_t g, std::int64_t code) {
        return dequantized<Weight>(args.scales(r, g), static_cast<int>(code) - args.zeros(r, g), args.stored);
      };
      Weight* const row = weight.row(r);
      if (tabulate) {
        for (std::int64_t g = 0; g < groups; ++g) {
          for (std::int64_t code = 0; code < values; ++code) {
            table[g * values + code] = value(g, code);
          }
        }
        for (std::int64_t i = 0; i < n; ++i) {
          row[i] = table[args.group(i) * values + codes[i]];
        }
      } else {
        for (std::int64_t i = 0; i < n; ++i) {
          row[i] = value(args.group(i), codes[i]);
        }
      }
    }
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const PackRowsArgs& args) {
  enqueue(stream, [this, args] { run_pack_rows(pool(), args); });
}

void CpuBackend::run(Stream& stream, const TransposeWordsArgs& args) {
  enqueue(stream, [this, args] { run_transpose_words(pool(), args); });
}

void CpuBackend::run(Stream& stream, const DequantizeArgs& args) {
  enqueue(stream, [this, args] {
    switch (args.weight.dtype) {
      case DType::f16:
        return run_dequantize<Half>(pool(), args);
      case DType::bf16:
        return run_dequantize<BFloat16>(pool(), args);
      default:
        return cpu::with_real_type(args.weight.dtype, "dequantize",
                                   [&](auto type) { run_dequantize<decltype(type)>(pool(), args); });
    }
  });
}

}  // namespace gptqd
