#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/grid_search.cuh"
#include "kernels/grid.hpp"

namespace gptqd::cuda {

namespace {

constexpr int search_threads = 256;
constexpr int search_warps = search_threads / 32;

// Errors are summed as on the CPU: sixteen lanes inside a chunk, a tree over the lanes, double across chunks.
constexpr int chunk = 512;
constexpr int lanes = 16;
constexpr int held = chunk / lanes;

/// |e|^2.4, operation by operation as in kernels/cpu/grid_search.cpp, which has the derivation.
__device__ float power_2_4(float e) {
  const float x = e * e;
  const float guess = 0x1.30ae14p+30f - static_cast<float>(__float_as_int(x)) * 0.2f;
  float y = __int_as_float(static_cast<std::int32_t>(guess));
  float y2 = y * y;
  float r = 1.0f - (x * y) * (y2 * y2);
  y = y * (1.0f + r * (0.2f + r * (0.12f + r * 0.088f)));
  y2 = y * y;
  r = 1.0f - (x * y) * (y2 * y2);
  y = y + y * (r * 0.2f);
  const float root = x * (y * y);
  return root * root;
}

/// Σ |ŵ − w|^2.4 of a chunk's weights: each half of a warp has a candidate of its own, thread l of it those weights
/// i ≡ l (mod 16), zero where there are none.
template <class T>
__device__ float power_error(const T (&weights)[held], int used, const GridRounder<T>& rounder) {
  float part = 0;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    if (i < used) {
      part += power_2_4(static_cast<float>(rounder.error(weights[i])));
    }
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    part += __shfl_xor_sync(0xffffffffu, part, distance);
  }
  return part;
}

/// One group of one row for a warp, or for the whole block of `warps` warps.
template <class T, int warps>
__global__ void __launch_bounds__(search_threads) search(GridProblem<T> problem) {
  constexpr int groups_a_block = search_warps / warps;
  __shared__ GridRounder<T> rounders[groups_a_block][clip_candidates];
  __shared__ double errors[groups_a_block][clip_candidates];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int place = warp / warps;
  const int member = static_cast<int>(threadIdx.x) % (32 * warps);  // of the threads that share the group
  const std::int64_t item = std::int64_t{blockIdx.x} * groups_a_block + place;
  const auto wait = [] {
    if constexpr (warps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };
  if (item >= problem.rows * problem.groups) {
    return;  // a whole warp, or the whole block
  }
  const std::int64_t row = item / problem.groups;
  const std::int64_t group = item % problem.groups;
  const T* const weights = problem.weights.row(row);
  const std::int32_t* const columns = problem.lists.columns + problem.lists.begin[group];
  const std::int64_t count = problem.lists.begin[group + 1] - problem.lists.begin[group];

  T low = 0;
  T high = 0;
  for (std::int64_t i = member; i < count; i += 32 * warps) {
    const T weight = weights[columns[i]];
    low = weight < low ? weight : low;
    high = weight > high ? weight : high;
  }
  low = reduce<32 * warps>(low, Minimum{});
  high = -reduce<32 * warps>(-high, Minimum{});
  const GridRange<T> range = grid_range(low, high, problem.spec);
  if (problem.spec.clip == Clip::none) {
    if (member == 0) {
      problem.store(row, group, grid_candidate(range, 0, problem.spec));
    }
    return;
  }

  for (int i = member; i < clip_candidates; i += 32 * warps) {
    const auto candidate = grid_candidate(range, i, problem.spec);
    rounders[place][i] = GridRounder<T>(static_cast<T>(candidate.scale), candidate.zero, problem.highest());
    errors[place][i] = 0;
  }
  wait();
  const int half = lane / lanes;
  for (std::int64_t first = 0; first < count; first += chunk) {
    const int size = static_cast<int>(min(std::int64_t{chunk}, count - first));
    const int used = (size + lanes - 1) / lanes;
    T own[held];
#pragma unroll
    for (int i = 0; i < held; ++i) {
      const int at = i * lanes + lane % lanes;
      own[i] = at < size ? weights[columns[first + at]] : T{0};
    }
    for (int pair = warp % warps; pair < clip_candidates / 2; pair += warps) {
      const int candidate = 2 * pair + half;
      const float sum = power_error(own, used, rounders[place][candidate]);
      if (lane % lanes == 0) {
        errors[place][candidate] += static_cast<double>(sum);
      }
    }
  }
  wait();
  if (member < 32) {
    ScoredCandidate best{errors[place][lane], lane};
    for (int i = lane + 32; i < clip_candidates; i += 32) {
      best = BetterCandidate{}(best, {errors[place][i], i});
    }
    best = best_of_warp(best);
    if (lane == 0) {
      problem.store(row, group, grid_candidate(range, best.index, problem.spec));
    }
  }
}

template <class T>
void search_grids(CudaStream& stream, const FindGridsArgs& args, const GroupLists& lists, void* memory) {
  const GridProblem<T> problem{
      args.spec, Rows<const T>(args.weights), args.weights.rows(),           args.scales.cols(),
      lists,     Rows<float>(args.scales),    Rows<std::uint8_t>(args.zeros)};
  if (args.spec.clip == Clip::hessian) {
    return search_by_hessian(stream, problem, args.blocks, memory);
  }
  const std::int64_t items = problem.rows * problem.groups;
  // A warp each while groups are short, as long as that gives work to the whole device.
  if (args.weights.cols() <= chunk * problem.groups) {
    search<T, 1><<<grid_size(divide_up(items, search_warps)), search_threads, 0, stream.stream()>>>(problem);
  } else {
    search<T, search_warps><<<grid_size(items), search_threads, 0, stream.stream()>>>(problem);
  }
}

/// A group outside the scales reads those of group 0: expect_inside() reports it.
template <class T, int width>
struct RoundPack {
  Rows<const T> weights;
  const std::int32_t* group;
  std::int64_t groups;
  Rows<const float> scales;
  Rows<const std::uint8_t> zeros;
  T highest;
  Rows<std::uint8_t> codes;
  Rows<T> delta;

  __device__ void operator()(std::int64_t r, std::int64_t pack) const {
    const std::int64_t c = pack * width;
    const auto from = load_pack<width>(weights.row(r) + c);
    Pack<std::uint8_t, width> code;
    Pack<T, width> error;
    for (int i = 0; i < width; ++i) {
      const std::int32_t named = group[c + i];
      const std::int32_t g = named >= 0 && named < groups ? named : 0;
      const T scale = static_cast<T>(scales.row(r)[g]);
      const T zero = static_cast<T>(zeros.row(r)[g]);
      const T value = code_of(from.values[i], scale, zero, highest);
      code.values[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(value));
      error.values[i] = scale * (value - zero) - from.values[i];
    }
    store_pack<width>(codes.row(r) + c, code);
    store_pack<width>(delta.row(r) + c, error);
  }
};

}  // namespace

std::int64_t find_grids_bytes(const FindGridsArgs& args) {
  return hessian_search_bytes(args) + group_list_bytes(args.group.rows(), args.scales.cols());
}

void find_grids(CudaStream& stream, const FindGridsArgs& args, std::string_view operation, void* memory) {
  const std::int64_t groups = args.scales.cols();
  const bool by_hessian = args.spec.clip == Clip::hessian;
  const std::int64_t room = by_hessian ? args.blocks.shape[1] : args.group.rows();
  const auto too_large = [operation = std::string(operation), blocks = args.blocks.shape](std::int64_t columns) {
    return fmt::format("{}: blocks are {}, expected room for the {} columns of a group", operation, to_string(blocks),
                       columns);
  };
  auto* const list_memory = static_cast<std::byte*>(memory) + hessian_search_bytes(args);
  const auto lists = list_groups(stream, args.group, args.member, groups, room, operation, too_large, list_memory);
  if (args.weights.rows() == 0 || groups == 0) {
    return;
  }
  if (args.weights.dtype == DType::f64) {
    search_grids<double>(stream, args, lists, memory);
  } else {
    search_grids<float>(stream, args, lists, memory);
  }
}

void CudaBackend::run(Stream& stream, const FindGridsArgs& args) {
  enqueue(stream, "find_grids",
          [&](CudaStream& own) { cuda::find_grids(own, args, "find_grids", own.scratch(find_grids_bytes(args))); });
}

void CudaBackend::run(Stream& stream, const RoundToGridsArgs& args) {
  enqueue(stream, "round_to_grids", [&](CudaStream& own) {
    const std::int64_t groups = args.scales.cols();
    expect_inside(own, args.group, 0, groups, [groups](const Finding& found) {
      return fmt::format("round_to_grids: group[{}] = {}, expected an index in [0, {})", found.position, found.value,
                         groups);
    });
    if (groups == 0) {
      return;
    }
    const auto launch = [&]<class T, int width>() {
      for_elements(
          own, args.codes.rows(), args.codes.cols() / width,
          RoundPack<T, width>{Rows<const T>(args.weights), args.group.data, groups, Rows<const float>(args.scales),
                              Rows<const std::uint8_t>(args.zeros), static_cast<T>((1 << args.bits) - 1),
                              Rows<std::uint8_t>(args.codes), Rows<T>(args.delta)});
    };
    constexpr int width = 4;
    const bool packs =
        args.codes.cols() % width == 0 && allows_packs(width, args.weights, args.delta, AnyView<2>(args.codes));
    if (args.weights.dtype == DType::f64) {
      packs ? launch.template operator()<double, width>() : launch.template operator()<double, 1>();
    } else {
      packs ? launch.template operator()<float, width>() : launch.template operator()<float, 1>();
    }
  });
}

}  // namespace gptqd::cuda
