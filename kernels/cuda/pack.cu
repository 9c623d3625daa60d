#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/pack.hpp"

namespace gptqd::cuda {

namespace {

constexpr int pack_threads = 256;
/// Codes of some rows that a block keeps in shared memory, where gathering them by position costs no cache line each.
constexpr std::int64_t staged_codes = 48 << 10;
constexpr std::int64_t most_staged_rows = 8;

/// A position outside the row reads its column 0: expect_inside() reports it. One thread a word, for `block_rows` rows.
template <bool staged>
__global__ void __launch_bounds__(pack_threads)
    pack_words(int bits, Rows<const std::uint8_t> codes, std::int64_t rows, std::int64_t n,
               const std::int32_t* position, Rows<std::uint32_t> packed, std::int64_t words, std::int64_t block_rows) {
  extern __shared__ std::uint8_t staging[];
  const std::uint32_t mask = (1u << bits) - 1;
  const std::int64_t first_row = blockIdx.x * block_rows;
  const int held = static_cast<int>(min(block_rows, rows - first_row));
  if constexpr (staged) {
    for (int i = 0; i < held; ++i) {
      const std::uint8_t* const row = codes.row(first_row + i);
      for (std::int64_t c = threadIdx.x; c < n; c += pack_threads) {
        staging[i * n + c] = row[c];
      }
    }
    __syncthreads();
  }
  for (std::int64_t word = threadIdx.x; word < words; word += pack_threads) {
    std::uint32_t values[most_staged_rows] = {};
    // The codes with a bit in [32·word, 32·word + 32).
    const std::int64_t first = 32 * word / bits;
    const std::int64_t last = (32 * word + 31) / bits;
    for (std::int64_t i = first; i <= last; ++i) {
      const std::int32_t named = position[i];
      const std::int64_t column = named >= 0 && named < n ? named : 0;
      const auto shift = static_cast<int>(bits * i - 32 * word);
#pragma unroll
      for (int j = 0; j < most_staged_rows; ++j) {
        if (j < held) {
          const std::uint32_t code = mask & (staged ? staging[j * n + column] : codes.row(first_row + j)[column]);
          values[j] |= shift >= 0 ? code << shift : code >> -shift;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < most_staged_rows; ++j) {
      if (j < held) {
        packed.row(first_row + j)[word] = values[j];
      }
    }
  }
}

/// `exact`, which is a stored scale (at most 11 significant bits) times a small integer, rounded once to `stored`.
template <class Weight>
__device__ Weight dequantized(float exact, DType stored) {
  if constexpr (sizeof(Weight) == 2) {
    return convert_element<Weight>(exact);
  } else {
    return static_cast<Weight>(stored == DType::f16    ? __half2float(__float2half_rn(exact))
                               : stored == DType::bf16 ? __bfloat162float(__float2bfloat16_rn(exact))
                                                       : exact);
  }
}

/// A code as a float, without a conversion: 2^23 + code has the code's bits at its end.
constexpr std::uint32_t code_offset_bits = 0x4b000000u;
constexpr float code_offset = 0x1p23f;

constexpr int unpack_threads = 128;
/// Rows for which a thread keeps what it needs to know of its columns.
constexpr std::int64_t unpack_rows = 16;

/// A thread writes `width` neighbours of each of some rows. A group outside the scales reads those of group 0:
/// expect_inside() reports it.
template <class Weight, int width, bool packs>
__global__ void __launch_bounds__(unpack_threads)
    unpack(int bits, Rows<const std::uint32_t> packed, Rows<const float> scales, Rows<const std::uint8_t> zeros,
           const std::int32_t* group, std::int64_t groups, DType stored, Rows<Weight> weight, std::int64_t rows,
           std::int64_t n) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * unpack_threads + threadIdx.x) * width;
  if (first >= n) {
    return;
  }
  std::int32_t own[width];
  bool one_group = true;
  for (int i = 0; i < width; ++i) {
    const std::int32_t named = group[first + i];
    own[i] = named >= 0 && named < groups ? named : 0;
    one_group = one_group && own[i] == own[0];
  }
  const std::uint32_t mask = (1u << bits) - 1;
  const std::int64_t word = first * bits / 32;
  const auto shift = static_cast<int>(first * bits % 32);
  const bool straddles = shift + width * bits > 32;
  for (std::int64_t chunk = blockIdx.y; chunk * unpack_rows < rows; chunk += gridDim.y) {
    const std::int64_t end = min(rows, (chunk + 1) * unpack_rows);
#pragma unroll 4
    for (std::int64_t r = chunk * unpack_rows; r < end; ++r) {
      std::uint32_t codes = packed.row(r)[word] >> shift;
      if (straddles) {
        codes = __funnelshift_r(packed.row(r)[word], packed.row(r)[word + 1], shift);
      }
      float scale = scales.row(r)[own[0]];
      float zero = code_offset + static_cast<float>(zeros.row(r)[own[0]]);
      Pack<Weight, width> result;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (!one_group) {
          scale = scales.row(r)[own[i]];
          zero = code_offset + static_cast<float>(zeros.row(r)[own[i]]);
        }
        const float code = __uint_as_float(code_offset_bits | (codes & mask));
        result.values[i] = dequantized<Weight>(scale * (code - zero), stored);
        codes >>= bits;
      }
      Weight* const to = weight.row(r) + first;
      if constexpr (packs) {
        store_pack<width>(to, result);
      } else {
        for (int i = 0; i < width; ++i) {
          to[i] = result.values[i];
        }
      }
    }
  }
}

template <class Weight, int width>
void unpack_weights(CudaStream& stream, const DequantizeArgs& args) {
  const std::int64_t rows = args.weight.rows();
  const std::int64_t n = args.weight.cols();
  const dim3 grid(grid_size(divide_up(n, std::int64_t{unpack_threads} * width)),
                  grid_size(divide_up(rows, unpack_rows), 65535));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, unpack_threads, 0, stream.stream()>>>(
        args.bits, Rows<const std::uint32_t>(args.packed), Rows<const float>(args.scales),
        Rows<const std::uint8_t>(args.zeros), args.group.data, args.scales.cols(), args.stored,
        Rows<Weight>(args.weight), rows, n);
  };
  if (allows_packs(width, args.weight)) {
    launch(unpack<Weight, width, true>);
  } else {
    launch(unpack<Weight, width, false>);
  }
}

constexpr int transpose_side = 32;
constexpr int transpose_rows = 8;

__global__ void __launch_bounds__(transpose_side* transpose_rows)
    transpose(Rows<const std::uint32_t> x, std::int64_t rows, std::int64_t words, Rows<std::uint32_t> y) {
  __shared__ std::uint32_t tile[transpose_side][transpose_side + 1];
  const std::int64_t first_word = std::int64_t{blockIdx.x} * transpose_side;
  for (std::int64_t first = std::int64_t{blockIdx.y} * transpose_side; first < rows;
       first += std::int64_t{gridDim.y} * transpose_side) {
    __syncthreads();  // the last tile has been read
    for (int i = static_cast<int>(threadIdx.y); i < transpose_side; i += transpose_rows) {
      if (first + i < rows && first_word + threadIdx.x < words) {
        tile[i][threadIdx.x] = x.row(first + i)[first_word + threadIdx.x];
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.y); i < transpose_side; i += transpose_rows) {
      if (first_word + i < words && first + threadIdx.x < rows) {
        y.row(first_word + i)[first + threadIdx.x] = tile[threadIdx.x][i];
      }
    }
  }
}

}  // namespace

void CudaBackend::run(Stream& stream, const TransposeWordsArgs& args) {
  enqueue(stream, "transpose_words", [&](CudaStream& own) {
    const std::int64_t rows = args.x.rows();
    const std::int64_t words = args.x.cols();
    if (rows == 0 || words == 0) {
      return;
    }
    const dim3 grid(grid_size(divide_up(words, transpose_side)), grid_size(divide_up(rows, transpose_side), 65535));
    transpose<<<grid, dim3(transpose_side, transpose_rows), 0, own.stream()>>>(
        Rows<const std::uint32_t>(args.x), rows, words, Rows<std::uint32_t>(args.y));
  });
}

void CudaBackend::run(Stream& stream, const PackRowsArgs& args) {
  enqueue(stream, "pack_rows", [&](CudaStream& own) {
    const std::int64_t rows = args.codes.rows();
    const std::int64_t n = args.codes.cols();
    expect_inside(own, args.position, 0, n, [n](const Finding& found) {
      return fmt::format("pack_rows: position[{}] = {}, expected an index in [0, {})", found.position, found.value, n);
    });
    if (rows == 0 || n == 0) {
      return;
    }
    const bool staged = n <= staged_codes;
    const std::int64_t block_rows = staged ? std::min(most_staged_rows, staged_codes / n) : most_staged_rows;
    const auto launch = [&](auto kernel, std::int64_t bytes) {
      kernel<<<grid_size(divide_up(rows, block_rows)), pack_threads, static_cast<std::size_t>(bytes), own.stream()>>>(
          args.bits, Rows<const std::uint8_t>(args.codes), rows, n, args.position.data,
          Rows<std::uint32_t>(args.packed), args.packed.cols(), block_rows);
    };
    staged ? launch(pack_words<true>, block_rows * n) : launch(pack_words<false>, 0);
  });
}

void CudaBackend::run(Stream& stream, const DequantizeArgs& args) {
  enqueue(stream, "dequantize", [&](CudaStream& own) {
    const std::int64_t groups = args.scales.cols();
    expect_inside(own, args.group, 0, groups, [groups](const Finding& found) {
      return fmt::format("dequantize: group[{}] = {}, expected an index in [0, {})", found.position, found.value,
                         groups);
    });
    if (args.weight.size() == 0 || groups == 0) {
      return;
    }
    with_floating_type(args.weight.dtype, [&]<class Weight>() {
      // Rows are whole words: of 8-bit codes multiples of 4, of all others of 8.
      args.bits == 8 ? unpack_weights<Weight, 4>(own, args) : unpack_weights<Weight, 8>(own, args);
    });
  });
}

}  // namespace gptqd::cuda
