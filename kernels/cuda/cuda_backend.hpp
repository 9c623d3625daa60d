#pragma once
/// @file The CUDA backend: cuBLAS, cuSOLVER and own kernels, on one GPU.
#include <functional>
#include <string_view>

#include "kernels/backend.hpp"
#include "kernels/cuda/cuda_arena.hpp"
#include "kernels/cuda/cuda_stream.hpp"
#include "kernels/cuda/pinned_pool.hpp"

namespace gptqd::cuda {

/// Each run() launches kernels whose shapes follow from the args alone; none adds with atomics, so on one GPU model
/// with one version of the libraries bits depend on the arguments alone. cuBLAS chooses its kernel by the whole shape:
/// a GEMM of some rows need not give the bits of those rows in a larger GEMM, so callers keep shapes fixed.
///
/// Streams must be gone before the backend is destroyed.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaBackendOptions& options);

  MemoryKind memory_kind() const override { return MemoryKind::cuda; }
  PieceSizes preferred_pieces() const override { return gpu_pieces; }
  std::string describe() const override;
  /// The model's own type where the tensor cores take it (f16, bf16), else f32.
  DType compute_dtype(DType model) const override;
  Buffer allocate(std::int64_t bytes) override;
  Buffer allocate_host(std::int64_t bytes) override { return pinned_.allocate(bytes); }
  std::int64_t bytes_in_use() const override;
  std::int64_t peak_bytes() const override;
  std::unique_ptr<Stream> create_stream() override;
  std::unique_ptr<Stream> create_background_stream() override {
    return std::make_unique<CudaStream>(gpu_, arena_, StreamPriority::background);
  }
  void copy_to_device(Stream& stream, void* device, const void* host, std::int64_t bytes) override;
  void copy_to_host(Stream& stream, void* host, const void* device, std::int64_t bytes) override;
  void copy(Stream& stream, void* to, const void* from, std::int64_t bytes) override;
  void fill_zero(Stream& stream, void* device, std::int64_t bytes) override;

  const CudaArena& arena() const { return arena_; }
  /// For work that others wait for.
  std::unique_ptr<CudaStream> create_urgent_stream() {
    return std::make_unique<CudaStream>(gpu_, arena_, StreamPriority::urgent);
  }

 protected:
  void run(Stream& stream, const LinearArgs& args) override;
  void run(Stream& stream, const LayerNormArgs& args) override;
  void run(Stream& stream, const RmsNormArgs& args) override;
  void run(Stream& stream, const RotaryArgs& args) override;
  void run(Stream& stream, const GatedActivationArgs& args) override;
  void run(Stream& stream, const AttentionArgs& args) override;
  void run(Stream& stream, const EmbeddingArgs& args) override;
  void run(Stream& stream, const CrossEntropyArgs& args) override;
  void run(Stream& stream, const AddArgs& args) override;
  void run(Stream& stream, const ConvertArgs& args) override;
  void run(Stream& stream, const GatherColumnsArgs& args) override;
  void run(Stream& stream, const ColumnSquareSumsArgs& args) override;
  void run(Stream& stream, const GramPanelArgs& args) override;
  void run(Stream& stream, const GetDiagonalArgs& args) override;
  void run(Stream& stream, const SetDiagonalArgs& args) override;
  void run(Stream& stream, const GatherGroupBlocksArgs& args) override;
  void run(Stream& stream, const FactorPanelArgs& args) override;
  void run(Stream& stream, const UpdatePanelArgs& args) override;
  void run(Stream& stream, const FindGridsArgs& args) override;
  void run(Stream& stream, const RoundToGridsArgs& args) override;
  void run(Stream& stream, const SolvePanelArgs& args) override;
  void run(Stream& stream, const WeightedNormsArgs& args) override;
  void run(Stream& stream, const RowStatisticsArgs& args) override;
  void run(Stream& stream, const ObqArgs& args) override;
  void run(Stream& stream, const PackRowsArgs& args) override;
  void run(Stream& stream, const TransposeWordsArgs& args) override;
  void run(Stream& stream, const DequantizeArgs& args) override;

 private:
  /// The stream behind the interface, ready for work, on this thread's GPU.
  /// @throws Error (internal) for a stream of another backend, or the Error by which the stream has failed
  CudaStream& ready(Stream& stream) const;
  /// work(the stream); afterwards checks what it launched.
  template <class Work>
  void enqueue(Stream& stream, std::string_view operation, const Work& work) const {
    CudaStream& own = ready(stream);
    work(own);
    own.end(operation);
  }

  std::shared_ptr<Gpu> gpu_;
  CudaArena arena_;
  PinnedPool pinned_;
};

}  // namespace gptqd::cuda
