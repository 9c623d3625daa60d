#pragma once
/// @file The weights of one decoder block on the device, in the backend's compute dtype.
#include <map>
#include <optional>
#include <string>

#include "kernels/backend.hpp"
#include "pipeline/block_image.hpp"

namespace gptqd::pipeline {

/// A linear ready to multiply with.
struct DeviceLinear {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  DType dtype = DType::f32;
  Buffer weight;  ///< [rows, cols], compute dtype
  Buffer bias;    ///< f32 [rows]; empty without a bias

  AnyView<2> weight_view() const { return weight.any_view<2>(dtype, {rows, cols}); }
  std::optional<ConstTensorView<float, 1>> bias_view() const;
};

/// fp32 weight and bias of a norm; no bias for an RMS norm.
struct DeviceNorm {
  std::int64_t width = 0;
  Buffer weight;
  Buffer bias;

  ConstTensorView<float, 1> weight_view() const { return weight.view<float, 1>({width}); }
  ConstTensorView<float, 1> bias_view() const { return bias.view<float, 1>({width}); }
};

class BlockWeights {
 public:
  /// Takes the tensors out of `raw`, a device buffer with a block's image; float weights are converted, packed ones
  /// dequantized. Asynchronous: `raw` may go when this returns, as any buffer that enqueued work uses.
  /// @param stored  the model's dtype, to which dequantized weights are rounded
  BlockWeights(Backend& backend, Stream& stream, const BlockSpec& block, const std::vector<BlockTensor>& layout,
               const Buffer& raw, DType stored);

  const DeviceLinear& linear(const LinearSpec& spec) const { return linears_.at(spec.module); }
  const DeviceNorm& norm(const NormSpec& spec) const { return norms_.at(spec.module); }

 private:
  std::map<std::string, DeviceLinear> linears_;
  std::map<std::string, DeviceNorm> norms_;
};

/// A small tensor of a checkpoint as fp32 on the device, read by this rank itself.
Buffer load_vector(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const std::string& name);
/// A matrix of a checkpoint on the device; converted to `dtype`.
Buffer load_matrix(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const std::string& name,
                   DType dtype);
/// A linear outside the blocks, or a norm, read by this rank itself.
DeviceLinear load_linear(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const LinearSpec& spec,
                         DType dtype);
DeviceNorm load_norm(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const NormSpec& spec);

}  // namespace gptqd::pipeline
