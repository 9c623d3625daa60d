#pragma once
/// @file The numeric operations of the product, as one run-time interface at coarse grain.
///
/// One call is one GEMM, one norm, one panel of a factorization, one panel of the solve. Every operation is
/// asynchronous: it is enqueued on a Stream, and its tensors must stay valid until the stream has passed it. Shapes and
/// types are checked when it is enqueued (kernels/<op>.cpp); what it finds in the data while it runs is reported
/// through a device value (FactorPanelArgs::status) or thrown by Stream::synchronize().
///
/// Every operation gives bits that depend on its arguments alone: not on the number of threads, not on what else runs.
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/attention.hpp"
#include "kernels/base/buffer.hpp"
#include "kernels/base/progress.hpp"
#include "kernels/base/stream.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/embedding.hpp"
#include "kernels/factor.hpp"
#include "kernels/gated_activation.hpp"
#include "kernels/gram.hpp"
#include "kernels/grid.hpp"
#include "kernels/layer_norm.hpp"
#include "kernels/linear.hpp"
#include "kernels/obq.hpp"
#include "kernels/pack.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/rotary.hpp"
#include "kernels/row_statistics.hpp"
#include "kernels/solve.hpp"

namespace gptqd {

/// Sizes of the pieces that a backend works best in. But for whole_columns they may decide the last bits of results.
struct PieceSizes {
  std::int64_t panel_columns = 0;  ///< of H's column panels
  std::int64_t row_tile = 0;       ///< rows of W that are solved together
  std::int64_t gram_tokens = 0;    ///< rows of X that one gram_panel takes where they lie together; 0: a micro-batch
  std::int64_t whole_columns = 0;  ///< an H of at most so many columns is factored by every rank for itself
};

/// Of a CUDA backend, for whoever plans without one.
inline constexpr PieceSizes gpu_pieces{
    .panel_columns = 2048, .row_tile = 192, .gram_tokens = 32768, .whole_columns = 6144};

/// Where a backend's buffers lie: what decides how ranks exchange them.
enum class MemoryKind : std::uint8_t { host, cuda };

class Backend {
 public:
  virtual ~Backend() = default;

  virtual MemoryKind memory_kind() const = 0;
  virtual PieceSizes preferred_pieces() const = 0;

  /// What decides the bits of results, for the fingerprint: "cpu openblas 0.3.21 SkylakeX".
  virtual std::string describe() const = 0;
  /// Element type of activations and dequantized weights for a model stored as `model`.
  virtual DType compute_dtype(DType model) const = 0;

  /// Memory of the device, 256-byte aligned, contents undefined. @throws Error naming bytes asked for and in use
  virtual Buffer allocate(std::int64_t bytes) = 0;
  /// Memory of the host that copies from and to the device reach at full speed. Unlike the device's it must not be
  /// given back before work that uses it has run. @throws Error like allocate()
  virtual Buffer allocate_host(std::int64_t bytes) = 0;
  /// Bytes handed out now, and the most there were at once.
  virtual std::int64_t bytes_in_use() const = 0;
  virtual std::int64_t peak_bytes() const = 0;
  virtual std::unique_ptr<Stream> create_stream() = 0;
  /// For work beside that of other streams, which goes first where both wait for room. Null where the device works
  /// through one stream's work as fast as through two.
  virtual std::unique_ptr<Stream> create_background_stream() = 0;

  /// Host to device, device to host, device to device; ordered on the stream. Host memory must stay valid until then.
  virtual void copy_to_device(Stream& stream, void* device, const void* host, std::int64_t bytes) = 0;
  virtual void copy_to_host(Stream& stream, void* host, const void* device, std::int64_t bytes) = 0;
  virtual void copy(Stream& stream, void* to, const void* from, std::int64_t bytes) = 0;
  virtual void fill_zero(Stream& stream, void* device, std::int64_t bytes) = 0;

  // Forward pass.
  void linear(Stream& stream, const LinearArgs& args) {
    validate(args);
    run(stream, args);
  }
  void layer_norm(Stream& stream, const LayerNormArgs& args) {
    validate(args);
    run(stream, args);
  }
  void rms_norm(Stream& stream, const RmsNormArgs& args) {
    validate(args);
    run(stream, args);
  }
  void rotary(Stream& stream, const RotaryArgs& args) {
    validate(args);
    run(stream, args);
  }
  void gated_activation(Stream& stream, const GatedActivationArgs& args) {
    validate(args);
    run(stream, args);
  }
  void attention(Stream& stream, const AttentionArgs& args) {
    validate(args);
    run(stream, args);
  }
  void embedding(Stream& stream, const EmbeddingArgs& args) {
    validate(args);
    run(stream, args);
  }
  void cross_entropy(Stream& stream, const CrossEntropyArgs& args) {
    validate(args);
    run(stream, args);
  }
  // Elementwise.
  void add(Stream& stream, const AddArgs& args) {
    validate(args);
    run(stream, args);
  }
  void convert(Stream& stream, const ConvertArgs& args) {
    validate(args);
    run(stream, args);
  }
  void gather_columns(Stream& stream, const GatherColumnsArgs& args) {
    validate(args);
    run(stream, args);
  }
  // Hessian.
  void column_square_sums(Stream& stream, const ColumnSquareSumsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void gram_panel(Stream& stream, const GramPanelArgs& args) {
    validate(args);
    run(stream, args);
  }
  void get_diagonal(Stream& stream, const GetDiagonalArgs& args) {
    validate(args);
    run(stream, args);
  }
  void set_diagonal(Stream& stream, const SetDiagonalArgs& args) {
    validate(args);
    run(stream, args);
  }
  void gather_group_blocks(Stream& stream, const GatherGroupBlocksArgs& args) {
    validate(args);
    run(stream, args);
  }
  // Factorization.
  void factor_panel(Stream& stream, const FactorPanelArgs& args) {
    validate(args);
    run(stream, args);
  }
  void update_panel(Stream& stream, const UpdatePanelArgs& args) {
    validate(args);
    run(stream, args);
  }
  // Quantization.
  void find_grids(Stream& stream, const FindGridsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void round_to_grids(Stream& stream, const RoundToGridsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void solve_panel(Stream& stream, const SolvePanelArgs& args) {
    validate(args);
    run(stream, args);
  }
  void weighted_norms(Stream& stream, const WeightedNormsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void row_statistics(Stream& stream, const RowStatisticsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void obq(Stream& stream, const ObqArgs& args) {
    validate(args);
    run(stream, args);
  }
  void pack_rows(Stream& stream, const PackRowsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void transpose_words(Stream& stream, const TransposeWordsArgs& args) {
    validate(args);
    run(stream, args);
  }
  void dequantize(Stream& stream, const DequantizeArgs& args) {
    validate(args);
    run(stream, args);
  }

 protected:
  virtual void run(Stream& stream, const LinearArgs& args) = 0;
  virtual void run(Stream& stream, const LayerNormArgs& args) = 0;
  virtual void run(Stream& stream, const RmsNormArgs& args) = 0;
  virtual void run(Stream& stream, const RotaryArgs& args) = 0;
  virtual void run(Stream& stream, const GatedActivationArgs& args) = 0;
  virtual void run(Stream& stream, const AttentionArgs& args) = 0;
  virtual void run(Stream& stream, const EmbeddingArgs& args) = 0;
  virtual void run(Stream& stream, const CrossEntropyArgs& args) = 0;
  virtual void run(Stream& stream, const AddArgs& args) = 0;
  virtual void run(Stream& stream, const ConvertArgs& args) = 0;
  virtual void run(Stream& stream, const GatherColumnsArgs& args) = 0;
  virtual void run(Stream& stream, const ColumnSquareSumsArgs& args) = 0;
  virtual void run(Stream& stream, const GramPanelArgs& args) = 0;
  virtual void run(Stream& stream, const GetDiagonalArgs& args) = 0;
  virtual void run(Stream& stream, const SetDiagonalArgs& args) = 0;
  virtual void run(Stream& stream, const GatherGroupBlocksArgs& args) = 0;
  virtual void run(Stream& stream, const FactorPanelArgs& args) = 0;
  virtual void run(Stream& stream, const UpdatePanelArgs& args) = 0;
  virtual void run(Stream& stream, const FindGridsArgs& args) = 0;
  virtual void run(Stream& stream, const RoundToGridsArgs& args) = 0;
  virtual void run(Stream& stream, const SolvePanelArgs& args) = 0;
  virtual void run(Stream& stream, const WeightedNormsArgs& args) = 0;
  virtual void run(Stream& stream, const RowStatisticsArgs& args) = 0;
  virtual void run(Stream& stream, const ObqArgs& args) = 0;
  virtual void run(Stream& stream, const PackRowsArgs& args) = 0;
  virtual void run(Stream& stream, const TransposeWordsArgs& args) = 0;
  virtual void run(Stream& stream, const DequantizeArgs& args) = 0;
};

struct CpuBackendOptions {
  int threads = 0;               ///< 0: one per core this process may use
  Progress* progress = nullptr;  ///< ticked once per tile; may be null
};
/// The CPU backend: OpenBLAS on tiles of fixed shape, own thread pool. Defined in kernels/cpu/.
std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options);

struct CudaBackendOptions {
  int device = 0;
  Progress* progress = nullptr;
};
/// The CUDA backend. @throws Error (not_built) in a build without it. Defined in kernels/cuda/.
std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options);
/// GPUs that make_cuda_backend() may be asked for; 0 in a build without it.
int cuda_device_count();

}  // namespace gptqd
