#pragma once
/// @file In-order queues of the CUDA backend, and the libraries' handles that belong to them.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cusolverDn.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.hpp"
#include "kernels/base/stream.hpp"
#include "kernels/cuda/cuda_arena.hpp"
#include "kernels/cuda/cuda_error.hpp"
#include "kernels/cuda/matmul.hpp"
#include "kernels/cuda/timeline.hpp"

namespace gptqd::cuda {

struct BlasTraits {
  using Handle = cublasHandle_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cublasDestroy(handle); }
};
struct BlasLtTraits {
  using Handle = cublasLtHandle_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cublasLtDestroy(handle); }
};
struct SolverTraits {
  using Handle = cusolverDnHandle_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cusolverDnDestroy(handle); }
};

/// Host memory that the device reaches.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::int64_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

/// What a kernel found wrong in its data: written by it (in host memory, by one thread), read after it has run.
struct Finding {
  std::int64_t position = -1;  ///< -1: nothing
  std::int64_t value = 0;
};

/// A CUDA stream, its share of the libraries, its scratch memory, and what the host has to do once work has passed.
///
/// Errors of the device and findings of kernels are noticed by synchronize(), of this stream, of an event behind them,
/// or of a stream that waited for such an event. From then on the stream refuses work. Until then later work runs on
/// whatever data there are: kernels never leave their memory, whatever they find.
class CudaStream final : public Stream {
 public:
  CudaStream(std::shared_ptr<Gpu> gpu, CudaArena& arena, StreamPriority priority = StreamPriority::normal);
  /// Waits for the work. Errors that nobody asked for are lost.
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  Event record() override;
  /// @throws Error (internal) for an event of another kind of backend
  void wait(const Event& event) override;
  void synchronize() override;

  // For operations.
  cudaStream_t stream() const;
  Gpu& gpu() const { return *gpu_; }
  /// Handles bound to this stream, with a workspace of their own; made at the first call. Pointers at the host.
  cublasHandle_t blas();
  cublasLtHandle_t blas_lt();
  cusolverDnHandle_t solver();
  MatmulPlans& matmul_plans() { return matmul_plans_; }
  /// The workspace of blas(), which runs in order with every other use: 256-byte aligned.
  void* workspace();
  static constexpr std::int64_t workspace_bytes = std::int64_t{32} << 20;
  /// Memory for one operation on this stream, 256-byte aligned: the next call may return the same.
  void* scratch(std::int64_t bytes);
  template <class T>
  T* scratch_of(std::int64_t count) {
    return static_cast<T*>(scratch(count * static_cast<std::int64_t>(sizeof(T))));
  }
  /// A place for a kernel's finding, position −1 at first. When the host learns that the kernel has run and found
  /// something, the stream fails with an Error (internal) of the text that `describe` makes of it.
  Finding* expect_no_finding(std::function<std::string(const Finding&)> describe);
  /// Runs at the host, once it learns that the operation being enqueued has run. May throw Error.
  void when_passed(std::function<void()> then);
  /// Pinned memory for a piece of a copy, at most staging_piece bytes, until the operation being enqueued has run;
  /// then(the memory) runs at the host after that. May wait for earlier pieces.
  std::byte* stage(std::int64_t bytes, std::function<void(const std::byte*)> then = {});
  static constexpr std::int64_t staging_piece = std::int64_t{4} << 20;

  /// Before and after enqueuing. @throws Error by which the stream has failed; Error (internal) for a failed launch
  void begin();
  void end(std::string_view operation);
  /// Makes what is enqueued so far something that can be waited for without what follows.
  void mark();

 private:
  class State;

  std::shared_ptr<Gpu> gpu_;
  CudaArena& arena_;
  std::shared_ptr<State> state_;
  UniqueHandle<BlasTraits> blas_;
  UniqueHandle<BlasLtTraits> blas_lt_;
  UniqueHandle<SolverTraits> solver_;
  MatmulPlans matmul_plans_;
  Buffer workspace_;
  Buffer scratch_;
};

}  // namespace gptqd::cuda
