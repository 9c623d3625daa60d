#include "pipeline/verify/tensor_parallel.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

namespace gptqd::pipeline {

namespace {

constexpr std::size_t most_obstacles = 4;

constexpr std::array<std::string_view, 2> engine_names{"vLLM", "GPTQModel"};
std::size_t engine_of(EngineKernel kernel) {
  return kernel == EngineKernel::marlin || kernel == EngineKernel::machete || kernel == EngineKernel::exllama ? 0 : 1;
}

bool is_split_by_outputs(Phase phase) { return phase == Phase::attention_in || phase == Phase::mlp_in; }

/// Collects what stands in the way, the same for all blocks only once.
class Splitter {
 public:
  Splitter(const ModelSpec& model, io::ArtifactFormat format, const SettingsOf& settings, int size)
      : model_(model), format_(format), settings_(settings), size_(size) {
    result_.size = size;
    for (const auto engine : engine_names) {
      result_.engines.push_back({.engine = engine});
    }
    for (const auto kernel : engine_kernels) {
      result_.kernels.push_back({.kernel = kernel, .first_reason = {}});
    }
  }

  TensorParallel run() && {
    for (const auto& block : model_.blocks) {
      check_heads(block);
      for (const Phase phase : phases) {
        split_phase(block, phase);
      }
    }
    if (!result_.obstacles.empty()) {
      result_.kernels.clear();
      result_.engines.clear();
    }
    return std::move(result_);
  }

 private:
  /// @param name  within the block: the same obstacle in other blocks is not said again
  void obstruct(const BlockSpec& block, std::string_view name, const std::string& what) {
    if (result_.obstacles.size() < most_obstacles && seen_.insert(fmt::format("{}: {}", name, what)).second) {
      result_.obstacles.push_back(fmt::format("{}{}: {}", block.prefix, name, what));
    }
  }

  void check_heads(const BlockSpec& block) {
    const auto& attention = block.attention;
    if (attention.heads % size_ != 0) {
      obstruct(block, "attention", fmt::format("{} heads", attention.heads));
    } else if (attention.kv_heads % size_ != 0 && size_ % attention.kv_heads != 0) {
      obstruct(block, "attention", fmt::format("{} kv heads", attention.kv_heads));
    }
  }

  void split_phase(const BlockSpec& block, Phase phase) {
    const auto group = block.group(phase);
    const auto settings = settings_(group.front().module);
    if (!settings) {
      return;
    }
    const bool by_outputs = is_split_by_outputs(phase);
    const auto& first = group.front();
    const auto relative = [&](const LinearSpec& linear) { return linear.module.substr(block.prefix.size()); };
    EngineTensor tensor{.format = format_,
                        .dtype = model_.dtype,
                        .rows = 0,
                        .cols = by_outputs ? first.cols : first.cols / size_,
                        .full_cols = first.cols,
                        .settings = *settings};
    for (std::size_t i = 0; i < group.size(); ++i) {
      const auto& linear = group[i];
      // k and v with fewer heads than GPUs are there more than once.
      const bool repeated = phase == Phase::attention_in && i > 0 && block.attention.kv_heads < size_;
      const std::int64_t whole = by_outputs ? linear.rows : linear.cols;
      const std::int64_t part = repeated ? block.attention.head_dim : whole / size_;
      const char* side = by_outputs ? "output" : "input";
      tensor.rows += by_outputs ? part : linear.rows;
      if (!repeated && whole % size_ != 0) {
        obstruct(block, relative(linear), fmt::format("{} {} features do not split evenly", whole, side));
      } else if (part * settings->bits % 32 != 0) {
        obstruct(
            block, relative(linear),
            fmt::format("{} {} features a GPU at {} bits are no whole words of 32 bits", part, side, settings->bits));
      }
    }
    const std::int64_t group_size = settings->group_size;
    if (!by_outputs && group_size != -1 && !settings->reordered && tensor.cols % group_size != 0) {
      obstruct(block, relative(first),
               fmt::format("{} input features a GPU are no multiple of the group size {}", tensor.cols, group_size));
    }
    std::array<bool, engine_names.size()> taken{};
    for (auto& summary : result_.kernels) {
      const auto answer = ask(summary.kernel, tensor);
      taken[engine_of(summary.kernel)] |= answer.verdict != KernelAnswer::Verdict::refuses;
      ++summary.tensors;
      summary.takes += answer.verdict != KernelAnswer::Verdict::refuses ? 1 : 0;
      summary.pads += answer.verdict == KernelAnswer::Verdict::pads ? 1 : 0;
      if (answer.verdict != KernelAnswer::Verdict::takes && summary.first_reason.empty()) {
        summary.first_reason = fmt::format("{}: {}", first.module, answer.reason);
      }
    }
    for (std::size_t engine = 0; engine < taken.size(); ++engine) {
      ++result_.engines[engine].tensors;
      result_.engines[engine].takes += taken[engine] ? 1 : 0;
    }
  }

  const ModelSpec& model_;
  io::ArtifactFormat format_;
  const SettingsOf& settings_;
  int size_;
  TensorParallel result_;
  std::set<std::string> seen_;
};

}  // namespace

TensorParallel split(const ModelSpec& model, io::ArtifactFormat format, const SettingsOf& settings, int size) {
  return Splitter(model, format, settings, size).run();
}

}  // namespace gptqd::pipeline
