#include "pipeline/block_quantizer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

namespace gptqd::pipeline {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::optional<Phase> phase_before(std::optional<Phase> phase) {
  if (!phase) {
    return phases.back();
  }
  const auto at = std::find(phases.begin(), phases.end(), *phase);
  return at == phases.begin() ? std::nullopt : std::optional(*(at - 1));
}

}  // namespace

std::string_view name_of(Propagation propagation) {
  return propagation == Propagation::quantized ? "quantized" : "float";
}

nlohmann::json BlockSeconds::to_json() const {
  return {{"forward", forward},      {"hessian", quantize.hessian}, {"factor", quantize.factor},
          {"grids", quantize.grids}, {"solve", quantize.solve},     {"finish", quantize.finish},
          {"total", total}};
}

bool needs_calibration(const LayerSpecs& layers) {
  const auto specs = layers.distinct();
  return std::any_of(specs.begin(), specs.end(), [](const gptq::QuantSpec& spec) {
    return spec.method != gptq::Method::rtn || spec.clip == Clip::hessian;
  });
}

BlockQuantizer::BlockQuantizer(gptq::Team team, const ModelSpec& model, const Plan& plan, int replica,
                               BlockQuantizerSettings settings)
    : team_(team),
      model_(model),
      plan_(plan),
      settings_(std::move(settings)),
      leaves_(plan.replica_leaves(replica)),
      samples_(plan.replica_samples(replica)) {
  if (!needs_calibration(settings_.layers)) {
    return;
  }
  std::int64_t most_rows = 0;
  for (int leaf = leaves_.first; leaf < leaves_.end(); ++leaf) {
    for (const auto& run : plan.micro_batches(leaf)) {
      batches_.push_back({.leaf = leaf,
                          .row = (run.first - samples_.first) * plan.seqlen,
                          .rows = run.count * plan.seqlen,
                          .first_sample = run.first});
      most_rows = std::max(most_rows, batches_.back().rows);
    }
  }
  forward_ = std::make_unique<BlockForward>(team.backend, team.stream, model, plan.seqlen, most_rows);
  hidden_ = team.backend.allocate(samples_.count * plan.seqlen * model.hidden * size_of(forward_->dtype()));
  inputs_ = make_phase_inputs(plan.activations, {.backend = team.backend,
                                                 .stream = team.stream,
                                                 .batches = batches_,
                                                 .dtype = forward_->dtype(),
                                                 .widths = phase_widths(model)});
}

AnyView<2> BlockQuantizer::hidden() const {
  return forward_ ? hidden_.any_view<2>(forward_->dtype(), {samples_.count * plan_.seqlen, model_.hidden})
                  : AnyView<2>();
}

void BlockQuantizer::embed(const io::TokenWindows& windows, const io::CheckpointReader& tensors) {
  if (!forward_) {
    return;
  }
  Embedding embedding(team_.backend, team_.stream, model_, tensors, plan_.seqlen);
  for (const auto& batch : batches_) {
    Buffer ids = team_.backend.allocate(batch.rows * size_of(DType::i32));
    team_.backend.copy_to_device(team_.stream, ids.data(), windows.ids.data() + batch.first_sample * plan_.seqlen,
                                 ids.bytes());
    embedding.run(ids.view<std::int32_t, 1>({batch.rows}), hidden().slice_rows(batch.row, batch.rows));
  }
  team_.stream.synchronize();  // the tables go out of scope, and `windows` is the caller's
}

void BlockQuantizer::advance_all(const BlockSpec& block, const BlockWeights& weights, std::optional<Phase> phase,
                                 AnyView<2> hidden, const Buffer* square_sums) {
  inputs_->advance(
      block, phase_before(phase), phase, [&](const MicroBatch& batch, ConstAnyView<2> previous, AnyView<2> input) {
        forward_->advance(block, weights, phase, hidden.slice_rows(batch.row, batch.rows), previous, input);
        if (square_sums != nullptr && *square_sums) {
          const std::int64_t leaf = batch.leaf - leaves_.first;
          team_.backend.column_square_sums(
              team_.stream,
              {.x = input,
               .sums = square_sums->view<double, 1>({input.cols()}, leaf * input.cols() * size_of(DType::f64)),
               .accumulate = true});
        }
      });
}

void BlockQuantizer::run_block(const BlockSpec& block, const BlockWeights& weights, AnyView<2> hidden) {
  for (const Phase phase : phases) {
    advance_all(block, weights, phase, hidden);
  }
  advance_all(block, weights, std::nullopt, hidden);
}

void BlockQuantizer::replay(const BlockSpec& block, const BlockWeights& weights) {
  if (forward_) {
    run_block(block, weights, hidden());
    team_.stream.synchronize();  // the weights are the caller's
  }
}

Buffer BlockQuantizer::make_square_sums(const gptq::QuantSpec* spec, std::int64_t width) const {
  if (spec == nullptr || spec->order() == gptq::ActOrder::none || leaves_.count == 0) {
    return {};
  }
  Buffer sums = team_.backend.allocate(leaves_.count * width * size_of(DType::f64));
  team_.backend.fill_zero(team_.stream, sums.data(), sums.bytes());
  return sums;
}

gptq::HessianInput BlockQuantizer::hessian_input(const BlockSpec& block, Phase phase, const Buffer& square_sums) const {
  gptq::HessianInput input;
  input.tokens = plan_.tokens();
  input.upload = inputs_->upload();
  input.spare_bytes = plan_.spare_bytes;
  if (square_sums) {
    input.square_sums = square_sums.view<const double, 2>({leaves_.count, block.input_width(phase)});
  }
  for (int leaf = leaves_.first; leaf < leaves_.end(); ++leaf) {
    input.leaves.push_back({.leaf = leaf, .chunks = {}});  // empty where there are fewer samples than leaves
  }
  const std::int64_t most_rows = team_.backend.preferred_pieces().gram_tokens;
  for (const auto& batch : batches_) {
    auto& chunks = input.leaves[static_cast<std::size_t>(batch.leaf - leaves_.first)].chunks;
    const auto x = inputs_->place(block, phase, batch);
    if (chunks.empty() || chunks.back().rows() + batch.rows > most_rows) {
      chunks.emplace_back(x);
    } else if (auto& last = chunks.back().parts.back();
               static_cast<const std::byte*>(last.data) + last.bytes() == x.data) {
      last.shape[0] += x.rows();
    } else {
      chunks.back().parts.push_back(x);
    }
  }
  input.find_non_finite = [this, &block, phase] { return find_non_finite(block, phase); };
  return input;
}

std::optional<std::string> BlockQuantizer::find_non_finite(const BlockSpec& block, Phase phase) const {
  for (const auto& batch : batches_) {
    auto view = inputs_->place(block, phase, batch);
    Buffer brought;
    if (Stream* const upload = inputs_->upload()) {
      brought = team_.backend.allocate(view.bytes());
      team_.backend.copy_to_device(*upload, brought.data(), view.data, view.bytes());
      team_.stream.wait(upload->record());
      view.data = brought.data();
    }
    std::vector<float> host(static_cast<std::size_t>(view.size()));
    Buffer as_float = team_.backend.allocate(view.size() * size_of(DType::f32));
    team_.backend.convert(team_.stream, {.x = view, .y = as_float.any_view<2>(DType::f32, view.shape)});
    team_.backend.copy_to_host(team_.stream, host.data(), as_float.data(), as_float.bytes());
    team_.stream.synchronize();
    const auto found = std::find_if(host.begin(), host.end(), [](float x) { return !std::isfinite(x); });
    if (found != host.end()) {
      const std::int64_t token = (found - host.begin()) / view.cols();
      return fmt::format("calibration sample {}, token {}, channel {}", batch.first_sample + token / plan_.seqlen,
                         token % plan_.seqlen, (found - host.begin()) % view.cols());
    }
  }
  return std::nullopt;
}

void BlockQuantizer::install(const BlockSpec& block, BlockWeights& weights,
                             std::span<const gptq::QuantizedLinear> linears) {
  for (const auto& spec : block.linears()) {
    for (const auto& linear : linears) {
      if (linear.name == spec.module) {
        linear.dequantize(team_.backend, team_.stream, settings_.layers.find(linear.name)->bits, model_.dtype,
                          weights.linear(spec).weight_view());
      }
    }
  }
}

BlockResult BlockQuantizer::quantize(const BlockSpec& block, BlockWeights& weights,
                                     const std::function<void(Phase)>& entering, const std::function<void()>& leaving) {
  const auto start = Clock::now();
  BlockResult result;
  const bool keeps_float = settings_.propagation == Propagation::unquantized;
  const bool sequential = settings_.true_sequential && !keeps_float;
  // Without true-sequential every group sees the float block: the hidden states behind it are then thrown away.
  Buffer float_hidden;
  AnyView<2> through = hidden();
  if (forward_ && !sequential && !keeps_float) {
    float_hidden = team_.backend.allocate(through.bytes());
    team_.backend.copy(team_.stream, float_hidden.data(), through.data, through.bytes());
    through.data = float_hidden.data();
  }
  for (const Phase phase : phases) {
    entering(phase);
    const auto mark = Clock::now();
    const auto linears = block.group(phase);
    const auto* spec = settings_.layers.find(linears.front().module);  // one for all linears of a phase
    std::optional<gptq::HessianInput> hessian;
    Buffer square_sums;
    if (forward_) {
      square_sums = make_square_sums(spec, block.input_width(phase));
      advance_all(block, weights, phase, through, &square_sums);
      team_.stream.synchronize();
      hessian = hessian_input(block, phase, square_sums);
    }
    result.seconds.forward += seconds_since(mark);
    if (spec == nullptr) {
      continue;
    }

    std::vector<gptq::LinearWeight> group;
    for (const auto& linear : linears) {
      group.push_back({.name = linear.module, .weight = weights.linear(linear).weight_view()});
    }
    auto quantized = gptq::quantize_group(team_, group, hessian, *spec, plan_.partition, &result.seconds.quantize);
    if (sequential) {
      install(block, weights, quantized);
    }
    std::move(quantized.begin(), quantized.end(), std::back_inserter(result.linears));
  }
  const auto mark = Clock::now();
  leaving();
  if (!sequential && !keeps_float) {
    install(block, weights, result.linears);
  }
  if (forward_ && (sequential || keeps_float)) {
    advance_all(block, weights, std::nullopt, through);
  } else if (forward_) {
    run_block(block, weights, hidden());
  }
  team_.stream.synchronize();
  result.seconds.forward += seconds_since(mark);
  result.seconds.total = seconds_since(start);
  return result;
}

FetchedLinear::FetchedLinear(Backend& backend, Stream& stream, const gptq::QuantizedLinear& linear,
                             const gptq::QuantSpec& spec)
    : groups_(linear.groups),
      codes_(backend.allocate_host(linear.rows * linear.cols * spec.bits / 32 * size_of(DType::u32))),
      scales_(backend.allocate_host(linear.rows * linear.groups * size_of(DType::f32))),
      zeros_(backend.allocate_host(linear.rows * linear.groups)) {
  linear_.name = linear.name;
  linear_.bits = spec.bits;
  linear_.group_size = spec.group_size;
  linear_.sym = spec.symmetric;
  linear_.rows = linear.rows;
  linear_.cols = linear.cols;
  linear_.record = linear.record.to_json();
  linear_.g_idx.resize(static_cast<std::size_t>(linear.cols));
  const auto fetch = [&](void* host, const Buffer& device, std::int64_t bytes) {
    backend.copy_to_host(stream, host, device.data(), bytes);
  };
  // Into the layout of files while it is on the device: at the host it would take as long as all the rest of a shard.
  const std::int64_t words = linear.cols * spec.bits / 32;
  const Buffer qweight = backend.allocate(codes_.bytes());
  backend.transpose_words(stream, {.x = linear.packed.view<const std::uint32_t, 2>({linear.rows, words}),
                                   .y = qweight.view<std::uint32_t, 2>({words, linear.rows})});
  fetch(codes_.data(), qweight, codes_.bytes());
  fetch(scales_.data(), linear.scales, scales_.bytes());
  fetch(zeros_.data(), linear.zeros, zeros_.bytes());
  fetch(linear_.g_idx.data(), linear.g_idx, linear.cols * size_of(DType::i32));
}

std::int64_t FetchedLinear::host_bytes(std::int64_t rows, std::int64_t cols, const gptq::QuantSpec& spec) {
  constexpr std::int64_t roundings = 3 * 256;
  return rows * (cols * spec.bits / 8 + spec.groups(cols) * (size_of(DType::f32) + 1)) + roundings;
}

io::PackedLinear FetchedLinear::packed() && {
  const std::int64_t rows = linear_.rows;
  const std::span qweight(static_cast<const std::uint32_t*>(codes_.data()),
                          static_cast<std::size_t>(rows * linear_.cols * linear_.bits / 32));
  linear_.qweight.assign(qweight.begin(), qweight.end());
  const auto scales = scales_.view<const float, 2>({rows, groups_});
  const auto zeros = zeros_.view<const std::uint8_t, 2>({rows, groups_});
  linear_.scales.resize(static_cast<std::size_t>(rows * groups_));
  linear_.zeros.resize(linear_.scales.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups_; ++g) {
      const auto to = static_cast<std::size_t>(g * rows + r);
      linear_.scales[to] = to_half(scales(r, g));
      linear_.zeros[to] = zeros(r, g);
    }
  }
  return std::move(linear_);
}

}  // namespace gptqd::pipeline
