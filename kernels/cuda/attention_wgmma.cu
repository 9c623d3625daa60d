/// @file Attention in the manner of FlashAttention-3 (arXiv:2407.08608), by Hopper's warpgroup-level matrix
/// instructions.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/hopper.cuh"

namespace gptqd::cuda {

namespace {

/// Keys and values that are used at a time: well below the 50 MB of the second-level cache.
constexpr std::int64_t cached_bytes = std::int64_t{24} << 20;

/// Heads of `width` columns. Warpgroups of 64 queries each compute; one more loads what they need.
template <int width_>
struct Shape {
  static constexpr int width = width_;
  static constexpr int groups = 2;
  static constexpr int tile_queries = 64 * groups;
  static constexpr int tile_keys = 128;
  static constexpr int threads = (groups + 1) * hopper::group_threads;
  static constexpr int computing_registers [[maybe_unused]] = 232;  // setmaxnreg
  static constexpr int loading_registers [[maybe_unused]] = 40;
  static constexpr int scores [[maybe_unused]] = tile_keys / 2;  // a thread has, of 64 rows
  static constexpr int sums [[maybe_unused]] = width / 2;

  static constexpr int panel_columns = width % 64 == 0 ? 64 : width % 32 == 0 ? 32 : 16;
  static constexpr int panels = width / panel_columns;
  static constexpr int row_bytes = 2 * panel_columns;  // of a panel
  static constexpr int query_panel_bytes = 64 * row_bytes;
  static constexpr int query_bytes = panels * query_panel_bytes;  // of a group
  static constexpr int key_panel_bytes = tile_keys * row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes;
  static constexpr int stages = 2;
};

/// A block's shared memory: tiles, pieces of the work on their way to the computing groups, and the barriers that tell
/// when each has come ("full") and is not needed any more ("empty").
template <class T, class S>
struct Memory {
  using Piece = typename AttentionProblem<T>::Piece;
  static constexpr int stages = S::stages;
  static constexpr int piece_stages = 2;
  static constexpr int keys_at = S::groups * S::query_bytes;
  static constexpr int values_at = keys_at + stages * S::key_bytes;
  static constexpr int pieces_at = values_at + stages * S::key_bytes;
  static constexpr int barriers_at = pieces_at + piece_stages * static_cast<int>(sizeof(Piece));
  static constexpr int barriers = 2 * (S::groups + 2 * stages + piece_stages);
  static constexpr int bytes = barriers_at + barriers * 8;
  static constexpr int alignment = 1024;
  static constexpr int bytes_with_alignment = bytes + alignment;

  unsigned char* begin;

  __device__ std::uint32_t at(int offset) const { return shared_address(begin) + static_cast<std::uint32_t>(offset); }
  __device__ std::uint32_t queries(int group) const { return at(group * S::query_bytes); }
  __device__ std::uint32_t keys(int stage) const { return at(keys_at + stage * S::key_bytes); }
  __device__ std::uint32_t values(int stage) const { return at(values_at + stage * S::key_bytes); }
  /// first_query is −1 when there is no more work.
  __device__ Piece& piece(int stage) const {
    return *reinterpret_cast<Piece*>(begin + pieces_at + stage * static_cast<int>(sizeof(Piece)));
  }
  __device__ std::uint32_t barrier(int number) const { return at(barriers_at + 8 * number); }
  __device__ std::uint32_t queries_full(int group) const { return barrier(group); }
  __device__ std::uint32_t queries_empty(int group) const { return barrier(S::groups + group); }
  __device__ std::uint32_t keys_full(int stage) const { return barrier(2 * S::groups + stage); }
  __device__ std::uint32_t keys_empty(int stage) const { return barrier(2 * S::groups + stages + stage); }
  __device__ std::uint32_t values_full(int stage) const { return barrier(2 * S::groups + 2 * stages + stage); }
  __device__ std::uint32_t values_empty(int stage) const { return barrier(2 * S::groups + 3 * stages + stage); }
  __device__ std::uint32_t piece_full(int stage) const { return barrier(2 * S::groups + 4 * stages + stage); }
  __device__ std::uint32_t piece_empty(int stage) const {
    return barrier(2 * S::groups + 4 * stages + piece_stages + stage);
  }
};

/// Heads as tensors [samples, tokens, heads, head_dim].
struct Maps {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <class T, class S>
__device__ void initialize_barriers(const Memory<T, S>& memory) {
  constexpr int warps = hopper::group_threads / 32;
  for (int group = 0; group < S::groups; ++group) {
    hopper::initialize_barrier(memory.queries_full(group), 1);
    hopper::initialize_barrier(memory.queries_empty(group), warps);
  }
  for (int stage = 0; stage < S::stages; ++stage) {
    hopper::initialize_barrier(memory.keys_full(stage), 1);
    hopper::initialize_barrier(memory.keys_empty(stage), S::groups * warps);
    hopper::initialize_barrier(memory.values_full(stage), 1);
    hopper::initialize_barrier(memory.values_empty(stage), S::groups * warps);
  }
  for (int stage = 0; stage < memory.piece_stages; ++stage) {
    hopper::initialize_barrier(memory.piece_full(stage), 1);
    hopper::initialize_barrier(memory.piece_empty(stage), S::groups * warps);
  }
  hopper::publish_barriers();
}

/// Which of several stages is next, and which parity its present phase has.
template <int stages>
struct Ring {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Tiles of keys that queries [first_query, ..) of a piece see, from the last to the first.
template <class S>
struct KeyTiles {
  int last;
  int first;

  template <class T>
  __device__ KeyTiles(const AttentionProblem<T>& problem, int first_query)
      : last((min(first_query + S::tile_queries, problem.tokens) - 1) / S::tile_keys * S::tile_keys),
        first(max(0, first_query - problem.window + 1) / S::tile_keys * S::tile_keys) {}
};

/// One thread: takes pieces of the work, and loads tile after tile.
template <class T, class S>
__device__ void load(const AttentionProblem<T>& problem, const Maps& maps, unsigned int* taken,
                     const Memory<T, S>& memory) {
  hopper::prefetch(maps.q);
  hopper::prefetch(maps.k);
  hopper::prefetch(maps.v);
  const auto load_panels = [&](std::uint32_t to, int panel_bytes, const CUtensorMap& map, std::uint32_t barrier,
                               int head, int token, int sample) {
    hopper::arrive_expecting(barrier, S::panels * panel_bytes);
    for (int panel = 0; panel < S::panels; ++panel) {
      hopper::load_box(to + static_cast<std::uint32_t>(panel * panel_bytes), map, barrier, panel * S::panel_columns,
                       head, token, sample);
    }
  };
  Ring<S::stages> ring;
  Ring<Memory<T, S>::piece_stages> piece_ring;
  std::uint32_t query_parity = 0;
  std::int64_t index = blockIdx.x;
  while (true) {
    hopper::wait_for(memory.piece_empty(piece_ring.stage), piece_ring.parity ^ 1);
    auto& piece = memory.piece(piece_ring.stage);
    if (index >= problem.pieces()) {
      piece.first_query = -1;
      hopper::arrive(memory.piece_full(piece_ring.stage));
      return;
    }
    piece = problem.piece(index, S::tile_queries);
    hopper::arrive(memory.piece_full(piece_ring.stage));
    piece_ring.advance();
    const std::int64_t next = std::int64_t{gridDim.x} + atomicAdd(taken, 1u);

    const int sample = static_cast<int>(piece.row / problem.tokens);
    const int kv_head = piece.head / problem.heads_a_kv_head;
    for (int group = 0; group < S::groups; ++group) {
      hopper::wait_for(memory.queries_empty(group), query_parity ^ 1);
      load_panels(memory.queries(group), S::query_panel_bytes, maps.q, memory.queries_full(group), piece.head,
                  piece.first_query + group * 64, sample);
    }
    query_parity ^= 1;
    const KeyTiles<S> tiles(problem, piece.first_query);
    for (int key = tiles.last; key >= tiles.first; key -= S::tile_keys) {
      hopper::wait_for(memory.keys_empty(ring.stage), ring.parity ^ 1);
      load_panels(memory.keys(ring.stage), S::key_panel_bytes, maps.k, memory.keys_full(ring.stage), kv_head, key,
                  sample);
      hopper::wait_for(memory.values_empty(ring.stage), ring.parity ^ 1);
      load_panels(memory.values(ring.stage), S::key_panel_bytes, maps.v, memory.values_full(ring.stage), kv_head, key,
                  sample);
      ring.advance();
    }
    index = next;
  }
}

/// One of the two rows of scores that a thread has its part of; four neighbours share a row.
struct Row {
  float highest = -INFINITY;
  float total = 0.0f;  // of this thread's weights
};

/// Row `half` of the scores becomes weights 2^(score · scale − highest of the row so far), and the row's sums count for
/// as much less as is returned. `biased`: score j counts `ratio` · j more, and `offset` for the thread's first one.
template <class S, bool biased>
__device__ float weigh(float (&scores)[S::scores], int half, Row& row, float scale, float ratio, float offset) {
  float highest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int n = 0; n < S::tile_keys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& score = scores[n * 4 + half * 2 + i];
      if constexpr (biased) {
        score += ratio * static_cast<float>(n * 8 + i);
      }
      highest[i] = fmaxf(highest[i], score);
    }
  }
  float now = fmaxf(highest[0], highest[1]);
  if constexpr (biased) {
    now += offset;
  }
  now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
  now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
  now = fmaxf(now, row.highest);
  const float reference = now == -INFINITY ? 0.0f : now * scale;
  const float shrink = power_of_two(row.highest * scale - reference);
  row.highest = now;
  const float base = biased ? reference - offset * scale : reference;
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < S::tile_keys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& score = scores[n * 4 + half * 2 + i];
      score = power_of_two(score * scale - base);
      sum[i] += score;
    }
  }
  row.total = row.total * shrink + (sum[0] + sum[1]);
  return shrink;
}

/// Register r of the quad's thread t goes to register t of its thread r.
__device__ void transpose_in_quad(std::uint32_t (&values)[4]) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = (threadIdx.x & static_cast<unsigned int>(distance)) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t& low = values[distance == 1 ? 2 * i : i];
      std::uint32_t& high = values[distance == 1 ? 2 * i + 1 : i + 2];
      const std::uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, distance);
      (upper ? low : high) = got;
    }
  }
}

/// One warpgroup: 64 queries of each piece. The scores of a tile of keys are computed while the weights of the last one
/// are applied to its values; groups take turns, so that one's exponentials meet the other's products.
template <class T, class S, bool biased>
__device__ void attend(const AttentionProblem<T>& problem, const Memory<T, S>& memory, int group) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int own_row = group * 64 + static_cast<int>(threadIdx.x) % hopper::group_threads / 32 * 16 + lane / 4;
  const int own_column = lane % 4 * 2;
  const float scale = problem.scale * log2_e;
  const auto release = [&](std::uint32_t barrier) {
    __syncwarp();
    if (lane == 0) {
      hopper::arrive(barrier);
    }
  };
  constexpr int two_groups = 2 * hopper::group_threads;
  const int own_turn = 1 + group;
  const int next_turn = 1 + (group + 1) % S::groups;
  if (group == S::groups - 1) {
    arrive_for_others(next_turn, two_groups);
  }

  float scores[S::scores];
  float sums[S::sums];
  std::uint32_t weights[S::tile_keys / 16][4];
  const auto q = hopper::Factor::terms_in_columns<S::panel_columns>(memory.queries(group));
  const auto begin_scores = [&](int stage) {
    const auto k = hopper::Factor::terms_in_columns<S::panel_columns>(memory.keys(stage));
    constexpr int panel_steps = S::panel_columns / 16;
    hopper::begin_products();
#pragma unroll
    for (int step = 0; step < S::width / 16; ++step) {
      const int in_panel = step % panel_steps * 32;
      const auto a = q + (step / panel_steps * S::query_panel_bytes + in_panel);
      const auto b = k + (step / panel_steps * S::key_panel_bytes + in_panel);
      if (step == 0) {
        hopper::multiply<T, false>(scores, a, b);
      } else {
        hopper::multiply<T, true>(scores, a, b);
      }
    }
    hopper::end_products();
  };
  const auto begin_sums = [&](int stage) {
    const auto v = hopper::Factor::terms_in_rows<S::panel_columns>(memory.values(stage), S::key_panel_bytes);
    hopper::begin_products();
#pragma unroll
    for (int step = 0; step < S::tile_keys / 16; ++step) {
      hopper::multiply<T>(sums, weights[step], v + step * 16 * S::row_bytes);
    }
    hopper::end_products();
  };

  Ring<S::stages> ring;
  Ring<Memory<T, S>::piece_stages> piece_ring;
  std::uint32_t query_parity = 0;
  while (true) {
    hopper::wait_for(memory.piece_full(piece_ring.stage), piece_ring.parity);
    const auto piece = memory.piece(piece_ring.stage);
    release(memory.piece_empty(piece_ring.stage));
    piece_ring.advance();
    if (piece.first_query < 0) {
      break;
    }
    const KeyTiles<S> tiles(problem, piece.first_query);
    const int first_row = piece.first_query + group * 64;
    const float ratio = biased ? piece.slope / problem.scale : 0.0f;
    Row rows[2];
    float shrink[2];
    const auto weigh_tile = [&](int key) {
      const bool at_border = key + S::tile_keys - 1 > first_row || key <= first_row + 63 - problem.window;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int distance = key + own_column - (piece.first_query + own_row + half * 8);
        if (at_border) {
#pragma unroll
          for (int n = 0; n < S::tile_keys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int far = distance + n * 8 + i;
              if (far > 0 || far <= -problem.window) {
                scores[n * 4 + half * 2 + i] = -INFINITY;
              }
            }
          }
        }
        shrink[half] = weigh<S, biased>(scores, half, rows[half], scale, ratio, ratio * static_cast<float>(distance));
      }
    };
    const auto round_weights = [&] {
#pragma unroll
      for (int step = 0; step < S::tile_keys / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weights[step][i] = pack_pair<T>(scores[step * 8 + 2 * i], scores[step * 8 + 2 * i + 1]);
        }
      }
    };
    const auto scored = [&](int key) {
      hopper::keep(scores);
      release(memory.keys_empty(ring.stage));
      if (key == tiles.first) {
        release(memory.queries_empty(group));
      }
    };

    hopper::wait_for(memory.queries_full(group), query_parity);
    query_parity ^= 1;
    hopper::wait_for(memory.keys_full(ring.stage), ring.parity);
    begin_scores(ring.stage);
#pragma unroll
    for (int i = 0; i < S::sums; ++i) {
      sums[i] = 0.0f;
    }
    hopper::wait_for_products<0>();
    scored(tiles.last);
    weigh_tile(tiles.last);
    round_weights();
    for (int key = tiles.last - S::tile_keys; key >= tiles.first; key -= S::tile_keys) {
      const auto last = ring;
      ring.advance();
      hopper::wait_for(memory.keys_full(ring.stage), ring.parity);
      wait_with_others(own_turn, two_groups);
      begin_scores(ring.stage);
      hopper::wait_for(memory.values_full(last.stage), last.parity);
      begin_sums(last.stage);
      arrive_for_others(next_turn, two_groups);
      hopper::wait_for_products<1>();
      scored(key);
      weigh_tile(key);
      hopper::wait_for_products<0>();
      hopper::keep(sums);
      hopper::keep(weights);
      release(memory.values_empty(last.stage));
      round_weights();
#pragma unroll
      for (int i = 0; i < S::sums; ++i) {
        sums[i] *= shrink[i / 2 % 2];
      }
    }
    hopper::wait_for(memory.values_full(ring.stage), ring.parity);
    begin_sums(ring.stage);
    hopper::wait_for_products<0>();
    hopper::keep(sums);
    hopper::keep(weights);
    release(memory.values_empty(ring.stage));
    ring.advance();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = rows[half].total;
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const float inverse = 1.0f / all;
      const int query = piece.first_query + own_row + half * 8;
      T* const row = problem.out.row(piece.row + query) + piece.out_column;
#pragma unroll
      for (int first = 0; first < S::width; first += 32) {
        std::uint32_t pairs[4] = {};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (first + n * 8 < S::width) {
            const int at = first / 2 + n * 4 + half * 2;
            pairs[n] = pack_pair<T>(sums[at] * inverse, sums[at + 1] * inverse);
          }
        }
        transpose_in_quad(pairs);
        const int column = first + lane % 4 * 8;
        if (query < problem.tokens && column < S::width) {
          store_pack(reinterpret_cast<std::uint32_t*>(row + column),
                     Pack<std::uint32_t, 4>{pairs[0], pairs[1], pairs[2], pairs[3]});
        }
      }
    }
  }
  if (group == 0) {
    wait_with_others(own_turn, two_groups);  // the last group's turn is over: nobody has arrived in vain
  }
}

#endif

/// Blocks take pieces of the work until none is left; which block takes which changes nothing.
///
/// Compiled for other GPUs it takes a single thread, and is not called.
template <class T, class S, bool biased>
__global__ void __launch_bounds__(hopper::compiled ? S::threads : 1, 1)
    attention(const __grid_constant__ AttentionProblem<T> problem, const __grid_constant__ Maps maps,
              unsigned int* taken) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using M = Memory<T, S>;
  extern __shared__ unsigned char unaligned[];
  const M memory{unaligned + (M::alignment - shared_address(unaligned) % M::alignment) % M::alignment};
  if (threadIdx.x == 0) {
    initialize_barriers(memory);
  }
  __syncthreads();
  // From a neighbour, so that the compiler knows it for the same in the whole warp.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / hopper::group_threads, 0);
  if (group == S::groups) {
    hopper::yield_registers<S::loading_registers>();
    if (threadIdx.x % hopper::group_threads == 0) {
      load(problem, maps, taken, memory);
    }
  } else {
    hopper::claim_registers<S::computing_registers>();
    attend<T, S, biased>(problem, memory, group);
  }
#endif
}

/// body.operator()<Shape>() for heads of so many columns. False: there is none.
template <class Body>
bool with_shape(std::int64_t head_dim, const Body& body) {
  switch (head_dim) {
    case 64:
      body.template operator()<Shape<64>>();
      return true;
    case 80:
      body.template operator()<Shape<80>>();
      return true;
    case 96:
      body.template operator()<Shape<96>>();
      return true;
    case 128:
      body.template operator()<Shape<128>>();
      return true;
    default:
      return false;
  }
}

template <class S>
CUtensorMap map_of(const ConstAnyView<2>& heads_of_rows, std::int64_t heads, int box_tokens,
                   const AttentionArgs& args) {
  const std::int64_t element = size_of(heads_of_rows.dtype);
  const std::int64_t rows = heads_of_rows.rows();
  // A single row has no stride, but the map wants one.
  const std::int64_t row_bytes =
      rows == 1 ? divide_up(heads_of_rows.cols() * element, 16) * 16 : heads_of_rows.stride * element;
  return hopper::tensor_map<S::panel_columns, 4>(
      heads_of_rows.dtype, heads_of_rows.data,
      {args.head_dim, heads, args.tokens_per_sample, rows / args.tokens_per_sample},
      {args.stride_of_heads() * element, row_bytes, args.tokens_per_sample * row_bytes},
      {S::panel_columns, 1, box_tokens, 1});
}

template <class T, class S>
void launch(CudaStream& stream, const AttentionArgs& args) {
  const AttentionProblem<T> problem(args, S::tile_queries, cached_bytes);
  const Maps maps{.q = map_of<S>(args.q, args.heads, 64, args),
                  .k = map_of<S>(args.k, args.kv_heads, S::tile_keys, args),
                  .v = map_of<S>(args.v, args.kv_heads, S::tile_keys, args)};
  auto* const taken = stream.scratch_of<unsigned int>(1);
  check(cudaMemsetAsync(taken, 0, sizeof(*taken), stream.stream()), "attention");
  const auto blocks = std::min<std::int64_t>(problem.pieces(), stream.gpu().properties().multiProcessorCount);
  constexpr int bytes = Memory<T, S>::bytes_with_alignment;
  const auto start = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention");
    kernel<<<grid_size(blocks), S::threads, bytes, stream.stream()>>>(problem, maps, taken);
  };
  if (args.alibi_slopes) {
    start(attention<T, S, true>);
  } else {
    start(attention<T, S, false>);
  }
}

}  // namespace

bool takes_warpgroups(const CudaStream& stream, const AttentionArgs& args) {
  constexpr int width = 8;  // elements of 16 bytes
  const auto& gpu = stream.gpu().properties();
  if (gpu.major != 9 || gpu.minor != 0 || args.q.dtype == DType::f32 || args.scale <= 0.0f ||
      args.stride_of_heads() % width != 0 || !allows_packs(width, args.q, args.k, args.v, args.out)) {
    return false;
  }
  // A build may have no code for exactly this GPU, only such as any later one runs too.
  bool compiled = false;
  with_shape(args.head_dim, [&]<class S>() {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, attention<__half, S, false>), "attention");
    compiled = attributes.maxThreadsPerBlock >= S::threads;
  });
  return compiled;
}

void attention_by_warpgroups(CudaStream& stream, const AttentionArgs& args) {
  with_shape(args.head_dim, [&]<class S>() {
    if (args.q.dtype == DType::f16) {
      launch<__half, S>(stream, args);
    } else {
      launch<__nv_bfloat16, S>(stream, args);
    }
  });
}

}  // namespace gptqd::cuda
