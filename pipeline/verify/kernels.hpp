#pragma once
/// @file Which GPU kernels of the inference engines take a quantized linear, and why not.
///
/// The constraints were read in the engines' sources: vLLM's mixed-precision kernels (marlin.py, machete.py, exllama.py
/// with marlin_utils.py, machete_utils.py) and auto_gptq.py of mid-2026, GPTQModel's
/// qlinear/{exllamav2,tritonv2,torch}.py.
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "io/artifact/artifact_format.hpp"
#include "kernels/base/dtype.hpp"

namespace gptqd::pipeline {

enum class EngineKernel : std::uint8_t {
  marlin,      ///< vLLM, SGLang: NVIDIA from compute capability 7.5
  machete,     ///< vLLM: Hopper
  exllama,     ///< vLLM: CUDA and ROCm
  exllama_v2,  ///< GPTQModel
  triton,      ///< GPTQModel
  torch,       ///< GPTQModel: any device, and what every shape falls back to
};
inline constexpr std::array engine_kernels{EngineKernel::marlin,     EngineKernel::machete, EngineKernel::exllama,
                                           EngineKernel::exllama_v2, EngineKernel::triton,  EngineKernel::torch};
/// "Marlin", "ExLlamaV2", ...
std::string_view name_of(EngineKernel kernel);
/// "vLLM, SGLang", ...
std::string_view engines_of(EngineKernel kernel);

/// What an engine loads as one tensor, on one of its GPUs.
struct EngineTensor {
  io::ArtifactFormat format = io::ArtifactFormat::gptq;
  DType dtype = DType::f16;    ///< of the model, and so of the activations
  std::int64_t rows = 0;       ///< output features on this GPU; of fused linears the sum
  std::int64_t cols = 0;       ///< input features on this GPU
  std::int64_t full_cols = 0;  ///< input features on all of them
  io::LayerSettings settings;
};

struct KernelAnswer {
  enum class Verdict : std::uint8_t {
    takes,
    pads,  ///< takes it after padding it with zeros, which engines before mid-2026 do not do
    refuses,
  };
  Verdict verdict = Verdict::takes;
  std::string reason;  ///< why not, or what is padded
};
KernelAnswer ask(EngineKernel kernel, const EngineTensor& tensor);

}  // namespace gptqd::pipeline
