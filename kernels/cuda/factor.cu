#include <cusolverDn.h>

#include <memory>
#include <vector>

#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/factor_block.cuh"
#include "kernels/cuda/split_product.cuh"
#include "kernels/factor.hpp"

namespace gptqd::cuda {

namespace {

/// Columns of the target that one GEMM of a trailing update covers: what it computes above the diagonal is wasted.
constexpr std::int64_t update_columns = 512;
constexpr int status_threads = 1024;
/// Panels of so many rows are factored strip by strip.
constexpr std::int64_t tall_rows = 8192;
constexpr std::int64_t tall_strip_columns = 4 * factor_block_columns;

struct SolverParamsTraits {
  using Handle = cusolverDnParams_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cusolverDnDestroyParams(handle); }
};

/// One block. status = the leading minor that potrf reports, or the first whose root is not a positive number: NaN may
/// pass potrf.
__global__ void __launch_bounds__(status_threads)
    find_status(Rows<const double> panel, std::int64_t w, const int* reported, std::int32_t* status) {
  std::int64_t first = *reported > 0 ? *reported : w + 1;
  for (std::int64_t c = threadIdx.x; c < w; c += status_threads) {
    const double root = panel.row(c)[c];
    if (!(root > 0) || !isfinite(root)) {
      first = min(first, c + 1);
      break;
    }
  }
  first = reduce<status_threads>(first, Minimum{});
  if (threadIdx.x == 0) {
    *status = first > w ? 0 : static_cast<std::int32_t>(first);
  }
}

/// What the libraries take for the distance of rows: a single row's stride may be anything.
template <class View>
std::int64_t pitch(const View& view) {
  return std::max(view.stride, view.cols());
}

/// Zeros above the diagonal.
template <class T>
struct ClearUpper {
  Rows<T> panel;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    if (c > r) {
      panel.row(r)[c] = T{0};
    }
  }
};

/// The diagonal block is, column-major, the upper part of a matrix Uᵀ U with U = L11ᵀ.
void factor_diagonal_block(CudaStream& stream, const TensorView<double, 2>& panel, std::int32_t* status) {
  const std::int64_t w = panel.cols();
  constexpr cudaDataType_t type = CUDA_R_64F;
  cusolverDnParams_t handle = nullptr;
  check(cusolverDnCreateParams(&handle), "describing a factorization");
  const UniqueHandle<SolverParamsTraits> params(handle);
  std::size_t device_bytes = 0;
  std::size_t host_bytes = 0;
  check(cusolverDnXpotrf_bufferSize(stream.solver(), handle, CUBLAS_FILL_MODE_UPPER, w, type, panel.data, pitch(panel),
                                    type, &device_bytes, &host_bytes),
        "asking for a factorization's memory");
  constexpr std::int64_t result_bytes = 256;
  auto* const memory = stream.scratch_of<std::byte>(result_bytes + static_cast<std::int64_t>(device_bytes));
  auto* const reported = reinterpret_cast<int*>(memory);
  const auto host = std::make_shared<std::vector<std::byte>>(host_bytes);
  check(cusolverDnXpotrf(stream.solver(), handle, CUBLAS_FILL_MODE_UPPER, w, type, panel.data, pitch(panel), type,
                         memory + result_bytes, device_bytes, host->data(), host_bytes, reported),
        "a factorization");
  if (host_bytes > 0) {
    stream.when_passed([host] {});
  }
  find_status<<<1, status_threads, 0, stream.stream()>>>(Rows<const double>(panel), w, reported, status);
  for_elements(stream, w, w, ClearUpper<double>{Rows<double>(panel)});
}

/// L21 = A21 L11⁻ᵀ: column-major, (L11ᵀ)ᵀ X = A21ᵀ.
void solve_below(CudaStream& stream, const TensorView<double, 2>& panel) {
  const std::int64_t w = panel.cols();
  const double one = 1;
  check(cublasDtrsm_64(stream.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, w,
                       panel.rows() - w, &one, panel.data, pitch(panel), panel.row(w), pitch(panel)),
        "a triangular solve");
}

/// On tensor cores, as good as in fp32.
void update_panel_split(CudaStream& stream, CudaArena& arena, const UpdatePanelArgs& args) {
  const auto rows = args.rows.as<float>();
  const Buffer memory = arena.allocate(split_bytes(rows.cols(), rows.rows()));
  const auto parts = split(stream, rows, true, memory.data());
  split_product(
      stream,
      {.left = parts, .right = parts, .result = args.target.as<float>(), .sign = -1, .lower = true, .cut_terms = true});
}

/// target − rows·topᵀ is, column-major, targetᵀ [w2, m2] − top·rowsᵀ.
template <class T>
void update_panel(CudaStream& stream, const UpdatePanelArgs& args) {
  const auto rows = args.rows.as<T>();
  const auto top = args.top.as<T>();
  const auto target = args.target.as<T>();
  const std::int64_t terms = rows.cols();
  const T minus_one = -1;
  const T one = 1;
  constexpr auto doing = "a trailing update";
  for (std::int64_t first = 0; first < target.cols(); first += update_columns) {
    const std::int64_t cols = std::min(update_columns, target.cols() - first);
    const std::int64_t below = target.rows() - first;
    T* const to = target.row(first) + first;
    if constexpr (std::is_same_v<T, float>) {
      check(cublasSgemm_64(stream.blas(), CUBLAS_OP_T, CUBLAS_OP_N, cols, below, terms, &minus_one, top.row(first),
                           pitch(top), rows.row(first), pitch(rows), &one, to, pitch(target)),
            doing);
    } else {
      check(cublasDgemm_64(stream.blas(), CUBLAS_OP_T, CUBLAS_OP_N, cols, below, terms, &minus_one, top.row(first),
                           pitch(top), rows.row(first), pitch(rows), &one, to, pitch(target)),
            doing);
    }
  }
}

/// In whichever way the GPU has.
void update_in_full_precision(CudaStream& stream, CudaArena& arena, const UpdatePanelArgs& args) {
  if (args.rows.cols() == 0 || args.target.size() == 0) {
    return;
  }
  if (args.target.dtype == DType::f64) {
    return update_panel<double>(stream, args);
  }
  allows_split_product(stream, args.target) ? update_panel_split(stream, arena, args)
                                            : update_panel<float>(stream, args);
}

/// A panel's columns [first, end) act on its columns [end, until).
void update_later_columns(CudaStream& stream, CudaArena& arena, const TensorView<float, 2>& panel, std::int64_t first,
                          std::int64_t end, std::int64_t until) {
  const std::int64_t below = panel.rows() - end;
  const auto rows = panel.slice_rows(end, below).slice_cols(first, end - first);
  update_in_full_precision(stream, arena,
                           {.rows = rows,
                            .top = rows.slice_rows(0, until - end),
                            .target = panel.slice_rows(end, below).slice_cols(end, until - end)});
}

/// fp32: block by block, each followed by the update of other columns. In tall panels, which no cache holds, of its
/// strip's columns alone: those behind are read and written once a strip.
void factor_in_blocks(CudaStream& stream, CudaArena& arena, const FactorPanelArgs& args) {
  const auto panel = args.panel.as<float>();
  const std::int64_t w = panel.cols();
  const std::int64_t strip_columns = panel.rows() >= tall_rows ? tall_strip_columns : w;
  const Buffer memory = arena.allocate(factor_block_bytes);
  for (std::int64_t strip = 0; strip < w; strip += strip_columns) {
    const std::int64_t strip_end = std::min(w, strip + strip_columns);
    for (std::int64_t first = strip; first < strip_end; first += factor_block_columns) {
      const std::int64_t end = std::min(strip_end, first + factor_block_columns);
      const auto block = panel.slice_rows(first, panel.rows() - first).slice_cols(first, end - first);
      factor_block(stream, block, first, args.status.data, memory.data());
      update_later_columns(stream, arena, panel, first, end, strip_end);
    }
    update_later_columns(stream, arena, panel, strip, strip_end, w);
  }
  for_elements(stream, w, w, ClearUpper<float>{Rows<float>(panel)});
}

/// fp64: by cuSOLVER and cuBLAS.
void factor_by_libraries(CudaStream& stream, const FactorPanelArgs& args) {
  const auto panel = args.panel.as<double>();
  factor_diagonal_block(stream, panel, args.status.data);
  if (panel.rows() > panel.cols()) {
    solve_below(stream, panel);
  }
}

}  // namespace

void CudaBackend::run(Stream& stream, const FactorPanelArgs& args) {
  enqueue(stream, "factor_panel", [&](CudaStream& own) {
    check(cudaMemsetAsync(args.status.data, 0, sizeof(std::int32_t), own.stream()), "factor_panel");
    if (args.panel.cols() > 0) {
      args.panel.dtype == DType::f64 ? factor_by_libraries(own, args) : factor_in_blocks(own, arena_, args);
    }
  });
}

void CudaBackend::run(Stream& stream, const UpdatePanelArgs& args) {
  enqueue(stream, "update_panel", [&](CudaStream& own) { update_in_full_precision(own, arena_, args); });
}

}  // namespace gptqd::cuda
