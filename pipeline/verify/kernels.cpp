#include "pipeline/verify/kernels.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>

namespace gptqd::pipeline {

namespace {

using Refusal = std::optional<std::string>;

template <class T>
bool is_one_of(T value, std::initializer_list<T> values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

bool is_gptq(const EngineTensor& tensor) {
  return tensor.format == io::ArtifactFormat::gptq || tensor.format == io::ArtifactFormat::gptq_v2;
}

Refusal wrong_multiple(const char* what, std::int64_t size, std::int64_t multiple) {
  return size % multiple == 0 ? std::nullopt
                              : Refusal(fmt::format("{} {} are no multiple of {}", size, what, multiple));
}

Refusal wrong_rows(const EngineTensor& tensor, std::int64_t multiple) {
  return wrong_multiple("output features", tensor.rows, multiple);
}

Refusal wrong_cols(const EngineTensor& tensor, std::int64_t multiple) {
  return wrong_multiple("input features", tensor.cols, multiple);
}

Refusal wrong_bits(const EngineTensor& tensor, std::initializer_list<int> widths) {
  const int bits = tensor.settings.bits;
  return is_one_of(bits, widths) ? std::nullopt
                                 : Refusal(fmt::format("{} bits; it knows {}", bits, fmt::join(widths, ", ")));
}

Refusal wrong_group(const EngineTensor& tensor, std::initializer_list<std::int64_t> sizes) {
  const std::int64_t size = tensor.settings.group_size;
  if (!is_one_of(size, sizes)) {
    return fmt::format("group size {}; it knows {}", size, fmt::join(sizes, ", "));
  }
  return std::nullopt;
}

/// Groups that lie on two GPUs have no scale of their own on either.
Refusal cut_groups(const EngineTensor& tensor) {
  const std::int64_t size = tensor.settings.group_size;
  if (size == -1 || tensor.cols % size == 0) {
    return std::nullopt;
  }
  return fmt::format("{} input features a GPU are no multiple of the group size {}", tensor.cols, size);
}

Refusal cut_order(const EngineTensor& tensor) {
  return tensor.settings.reordered && tensor.cols != tensor.full_cols
             ? Refusal("dynamic act-order with the input features split over GPUs")
             : std::nullopt;
}

/// What vLLM refuses before it looks for a kernel (auto_gptq.py: TYPE_MAP).
Refusal refused_by_vllm(const EngineTensor& tensor) {
  if (is_gptq(tensor) && !(tensor.settings.sym && is_one_of(tensor.settings.bits, {4, 8}))) {
    return fmt::format("vLLM reads GPTQ checkpoints of 4 and 8 bits with symmetric grids; this is {} bits {}",
                       tensor.settings.bits, tensor.settings.sym ? "symmetric" : "asymmetric");
  }
  return std::nullopt;
}

Refusal refused_by_gptqmodel(const EngineTensor& tensor) {
  return is_gptq(tensor) ? std::nullopt : Refusal("GPTQModel reads GPTQ checkpoints only");
}

KernelAnswer first_refusal(std::initializer_list<Refusal> refusals) {
  for (const auto& refusal : refusals) {
    if (refusal) {
      return {.verdict = KernelAnswer::Verdict::refuses, .reason = *refusal};
    }
  }
  return {};
}

KernelAnswer ask_marlin(const EngineTensor& tensor) {
  const bool zero_points_of_4_bits = tensor.settings.sym || tensor.settings.bits == 4;
  const bool grouped = tensor.settings.group_size != -1 && tensor.settings.group_size < tensor.full_cols;
  const auto answer =
      first_refusal({refused_by_vllm(tensor), wrong_bits(tensor, {4, 8}),
                     zero_points_of_4_bits ? Refusal() : Refusal("asymmetric grids of other than 4 bits"),
                     wrong_group(tensor, {-1, 32, 64, 128}), grouped ? cut_groups(tensor) : Refusal()});
  if (answer.verdict == KernelAnswer::Verdict::refuses) {
    return answer;
  }
  auto shape = first_refusal({wrong_rows(tensor, 64), wrong_cols(tensor, 128)});
  if (shape.verdict == KernelAnswer::Verdict::refuses && !tensor.settings.reordered) {
    shape.verdict = KernelAnswer::Verdict::pads;
  }
  return shape;
}

KernelAnswer ask_machete(const EngineTensor& tensor) {
  return first_refusal({refused_by_vllm(tensor), wrong_bits(tensor, {4, 8}), wrong_group(tensor, {-1, 64, 128}),
                        cut_groups(tensor), cut_order(tensor), wrong_cols(tensor, 64), wrong_rows(tensor, 128)});
}

KernelAnswer ask_exllama(const EngineTensor& tensor) {
  return first_refusal(
      {refused_by_vllm(tensor), wrong_bits(tensor, {4, 8}),
       tensor.settings.sym ? Refusal() : Refusal("asymmetric grids"),
       tensor.dtype == DType::f16 ? Refusal() : Refusal("activations other than float16 (vLLM: --dtype half)"),
       tensor.settings.group_size > 0 ? Refusal() : Refusal("a whole row as one group"), cut_groups(tensor),
       cut_order(tensor), wrong_rows(tensor, 32 / tensor.settings.bits)});
}

}  // namespace

std::string_view name_of(EngineKernel kernel) {
  switch (kernel) {
    case EngineKernel::marlin:
      return "Marlin";
    case EngineKernel::machete:
      return "Machete";
    case EngineKernel::exllama:
      return "ExLlama";
    case EngineKernel::exllama_v2:
      return "ExLlamaV2";
    case EngineKernel::triton:
      return "Triton";
    default:
      return "Torch";
  }
}

std::string_view engines_of(EngineKernel kernel) {
  switch (kernel) {
    case EngineKernel::marlin:
      return "vLLM, SGLang";
    case EngineKernel::machete:
      return "vLLM on Hopper";
    case EngineKernel::exllama:
      return "vLLM";
    default:
      return "GPTQModel";
  }
}

KernelAnswer ask(EngineKernel kernel, const EngineTensor& tensor) {
  switch (kernel) {
    case EngineKernel::marlin:
      return ask_marlin(tensor);
    case EngineKernel::machete:
      return ask_machete(tensor);
    case EngineKernel::exllama:
      return ask_exllama(tensor);
    case EngineKernel::exllama_v2:
      return first_refusal({refused_by_gptqmodel(tensor), wrong_bits(tensor, {4}),
                            wrong_group(tensor, {-1, 32, 64, 128}), cut_groups(tensor), wrong_cols(tensor, 32),
                            wrong_rows(tensor, 32)});
    case EngineKernel::triton:
      return first_refusal({refused_by_gptqmodel(tensor), wrong_bits(tensor, {2, 4, 8}),
                            wrong_group(tensor, {-1, 16, 32, 64, 128}), cut_groups(tensor), wrong_cols(tensor, 32),
                            wrong_rows(tensor, 32)});
    default:
      return first_refusal({refused_by_gptqmodel(tensor), wrong_bits(tensor, {2, 3, 4, 8}),
                            wrong_group(tensor, {-1, 16, 32, 64, 128, 256, 512, 1024}), cut_groups(tensor)});
  }
}

}  // namespace gptqd::pipeline
