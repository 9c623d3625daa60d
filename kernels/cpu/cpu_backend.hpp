#pragma once
/// @file The CPU backend: OpenBLAS, single-threaded, on tiles of fixed shape, spread over an own thread pool.
#include <functional>
#include <string_view>

#include "kernels/backend.hpp"
#include "kernels/cpu/arena.hpp"
#include "kernels/cpu/thread_pool.hpp"

namespace gptqd {

/// Each run() enqueues one function that captures its args by value and calls pool().parallel_for over tiles whose
/// shapes follow from the args alone. Streams and their work must be gone before the backend is destroyed.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options);
  ~CpuBackend() override;

  MemoryKind memory_kind() const override { return MemoryKind::host; }
  PieceSizes preferred_pieces() const override { return {.panel_columns = 768, .row_tile = 64}; }
  std::string describe() const override;
  /// f32 for every model: there is no fast half-precision GEMM to call.
  DType compute_dtype(DType model) const override;
  Buffer allocate(std::int64_t bytes) override;
  Buffer allocate_host(std::int64_t bytes) override { return allocate(bytes); }
  std::int64_t bytes_in_use() const override;
  std::int64_t peak_bytes() const override;
  std::unique_ptr<Stream> create_stream() override;
  std::unique_ptr<Stream> create_background_stream() override { return nullptr; }
  void copy_to_device(Stream& stream, void* device, const void* host, std::int64_t bytes) override;
  void copy_to_host(Stream& stream, void* host, const void* device, std::int64_t bytes) override;
  void copy(Stream& stream, void* to, const void* from, std::int64_t bytes) override;
  void fill_zero(Stream& stream, void* device, std::int64_t bytes) override;

  ThreadPool& pool() { return pool_; }
  const Arena& arena() const { return arena_; }
  /// Appends work to a stream made by create_stream(). @throws Error (internal) for a stream of another backend,
  /// or the Error by which the stream has failed
  void enqueue(Stream& stream, std::function<void()> work);

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
  std::shared_ptr<WorkClock> clock_;
  Arena arena_;
  ThreadPool pool_;
};

/// @throws Error (internal) unless `dtype` is F32, the compute dtype of this backend
void require_compute_dtype(DType dtype, std::string_view operation);

}  // namespace gptqd
