#include "pipeline/block_forward.hpp"

#include <algorithm>
#include <numeric>

#include "pipeline/rope.hpp"

namespace gptqd::pipeline {

namespace {

void apply(Backend& backend, Stream& stream, const DeviceLinear& linear, ConstAnyView<2> x, AnyView<2> y,
           Activation activation, bool accumulate) {
  backend.linear(stream, {.x = x,
                          .weight = linear.weight_view(),
                          .bias = linear.bias_view(),
                          .y = y,
                          .activation = activation,
                          .accumulate = accumulate});
}

void apply(Backend& backend, Stream& stream, const DeviceNorm& norm, const NormSpec& spec, ConstAnyView<2> x,
           AnyView<2> y) {
  if (spec.kind == NormKind::rms) {
    backend.rms_norm(stream, {.x = x, .weight = norm.weight_view(), .epsilon = spec.epsilon, .y = y});
  } else {
    backend.layer_norm(
        stream, {.x = x, .weight = norm.weight_view(), .bias = norm.bias_view(), .epsilon = spec.epsilon, .y = y});
  }
}

/// A small table of the host on the device.
template <class T>
Buffer upload(Backend& backend, Stream& stream, const std::vector<T>& values) {
  Buffer buffer = backend.allocate(static_cast<std::int64_t>(values.size() * sizeof(T)));
  backend.copy_to_device(stream, buffer.data(), values.data(), buffer.bytes());
  stream.synchronize();  // `values` is the caller's
  return buffer;
}

}  // namespace

BlockForward::BlockForward(Backend& backend, Stream& stream, const ModelSpec& model, std::int64_t seqlen,
                           std::int64_t most_tokens)
    : backend_(backend), stream_(stream), seqlen_(seqlen), dtype_(backend.compute_dtype(model.dtype)) {
  std::int64_t widest = 0;
  for (const auto& block : model.blocks) {
    widest = std::max(widest, block.output_width(Phase::attention_in));
    if (block.gated) {
      widest = std::max(widest, block.output_width(Phase::mlp_in));
    }
  }
  projected_ = backend.allocate(most_tokens * widest * size_of(dtype_));
  if (model.rope) {
    const auto tables = rope_tables(*model.rope, seqlen);
    rope_half_ = tables.half;
    rope_cos_ = upload(backend, stream, tables.cos);
    rope_sin_ = upload(backend, stream, tables.sin);
  }
  if (const auto& slopes = model.blocks.front().attention.alibi_slopes; !slopes.empty()) {
    alibi_slopes_ = upload(backend, stream, slopes);
  }
}

void BlockForward::normalize(const NormSpec& spec, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> y) {
  apply(backend_, stream_, weights.norm(spec), spec, x, y);
}

AnyView<2> BlockForward::project(const BlockSpec& block, Phase phase, const BlockWeights& weights, ConstAnyView<2> x) {
  const auto all = projected_.any_view<2>(dtype_, {x.rows(), block.output_width(phase)});
  std::int64_t column = 0;
  for (const auto& linear : block.group(phase)) {
    apply(backend_, stream_, weights.linear(linear), x, all.slice_cols(column, linear.rows), Activation::none, false);
    column += linear.rows;
  }
  return all;
}

void BlockForward::attend(const BlockSpec& block, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> out) {
  const auto& attention = block.attention;
  const auto qkv = project(block, Phase::attention_in, weights, x);
  const bool by_head = attention.layout == HeadLayout::by_head;
  const std::int64_t stride = by_head ? 3 * attention.head_dim : attention.head_dim;
  const auto part = [&](std::int64_t first, std::int64_t heads) {
    return qkv.slice_cols(first, (heads - 1) * stride + attention.head_dim);
  };
  const std::int64_t key = by_head ? attention.head_dim : attention.query_width();
  const std::int64_t value = by_head ? 2 * attention.head_dim : key + attention.key_width();
  const auto q = part(0, attention.heads);
  const auto k = part(key, attention.kv_heads);
  const auto v = part(value, attention.kv_heads);
  if (attention.query_norm) {
    normalize(*attention.query_norm, weights, q, q);
  }
  if (attention.key_norm) {
    normalize(*attention.key_norm, weights, k, k);
  }
  if (rope_cos_) {
    for (const auto& rotated : {q, k}) {
      backend_.rotary(stream_, {.x = rotated,
                                .cos = rope_cos_.view<float, 2>({seqlen_, rope_half_}),
                                .sin = rope_sin_.view<float, 2>({seqlen_, rope_half_}),
                                .tokens_per_sample = seqlen_,
                                .head_dim = attention.head_dim});
    }
  }
  AttentionArgs args{.q = q,
                     .k = k,
                     .v = v,
                     .out = out,
                     .tokens_per_sample = seqlen_,
                     .heads = attention.heads,
                     .kv_heads = attention.kv_heads,
                     .head_dim = attention.head_dim,
                     .head_stride = stride,
                     .scale = attention.scale,
                     .alibi_slopes = std::nullopt,
                     .window = attention.window};
  if (alibi_slopes_) {
    args.alibi_slopes = alibi_slopes_.view<float, 1>({attention.heads});
  }
  backend_.attention(stream_, args);
}

void BlockForward::feed(const BlockSpec& block, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> out) {
  if (!block.gated) {
    apply(backend_, stream_, weights.linear(block.mlp_in.front()), x, out, block.activation, false);
    return;
  }
  const auto both = project(block, Phase::mlp_in, weights, x);
  backend_.gated_activation(stream_, {.gate = both.slice_cols(0, out.cols()),
                                      .up = both.slice_cols(out.cols(), out.cols()),
                                      .y = out,
                                      .activation = block.activation});
}

void BlockForward::add_to_hidden(const BlockSpec& block, const NormSpec& norm, const LinearSpec& linear,
                                 const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> hidden) {
  apply(backend_, stream_, weights.linear(linear), x, hidden, Activation::none, true);
  if (block.norm_placement == NormPlacement::after) {
    normalize(norm, weights, hidden, hidden);
  }
}

void BlockForward::advance(const BlockSpec& block, const BlockWeights& weights, std::optional<Phase> phase,
                           AnyView<2> hidden, ConstAnyView<2> previous, AnyView<2> input) {
  const auto enter = [&](const NormSpec& norm) {
    if (block.norm_placement == NormPlacement::before) {
      normalize(norm, weights, hidden, input);
      return;
    }
    if (block.norm_placement == NormPlacement::before_residual) {
      normalize(norm, weights, hidden, hidden);
    }
    backend_.copy(stream_, input.data, hidden.data, hidden.bytes());
  };
  if (!phase) {
    add_to_hidden(block, block.mlp_norm, block.mlp_out, weights, previous, hidden);
    return;
  }
  switch (*phase) {
    case Phase::attention_in:
      enter(block.attention_norm);
      break;
    case Phase::attention_out:
      attend(block, weights, previous, input);
      break;
    case Phase::mlp_in:
      add_to_hidden(block, block.attention_norm, block.attention_out, weights, previous, hidden);
      enter(block.mlp_norm);
      break;
    case Phase::mlp_out:
      feed(block, weights, previous, input);
      break;
  }
}

Embedding::Embedding(Backend& backend, Stream& stream, const ModelSpec& model, const io::CheckpointReader& tensors,
                     std::int64_t seqlen)
    : backend_(backend),
      stream_(stream),
      model_(model),
      seqlen_(seqlen),
      table_dtype_(tensors.at(model.token_table).dtype) {
  token_table_ = load_matrix(backend, stream, tensors, model.token_table, table_dtype_);
  const DType compute = backend.compute_dtype(model.dtype);
  if (seqlen > model.max_positions) {
    throw Error(ErrorKind::usage,
                fmt::format("windows of {} tokens: the model has {} positions; give --seqlen {} or less", seqlen,
                            model.max_positions, model.max_positions));
  }
  if (model.positions) {
    position_table_ = load_matrix(backend, stream, tensors, model.positions->tensor, compute);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(seqlen));
    std::iota(ids.begin(), ids.end(), static_cast<std::int32_t>(model.positions->offset));
    position_ids_ = upload(backend, stream, ids);
  }
  if (model.project_in) {
    project_in_ = load_linear(backend, stream, tensors, *model.project_in, compute);
  }
  if (model.embedding_norm) {
    norm_ = load_norm(backend, stream, tensors, *model.embedding_norm);
  }
}

void Embedding::run(ConstTensorView<std::int32_t, 1> ids, AnyView<2> hidden) {
  const ConstAnyView<2> table = token_table_.any_view<2>(table_dtype_, {model_.vocabulary, model_.embedding_width});
  Buffer narrow;
  if (project_in_) {
    narrow = backend_.allocate(ids.rows() * model_.embedding_width * size_of(hidden.dtype));
    const auto embedded = narrow.any_view<2>(hidden.dtype, {ids.rows(), model_.embedding_width});
    backend_.embedding(stream_, {.ids = ids, .table = table, .y = embedded});
    apply(backend_, stream_, *project_in_, embedded, hidden, Activation::none, false);
  } else {
    backend_.embedding(stream_, {.ids = ids, .table = table, .y = hidden});
  }
  if (model_.positions) {
    const ConstAnyView<2> positions =
        position_table_.any_view<2>(hidden.dtype, {model_.positions->rows, model_.hidden});
    for (std::int64_t row = 0; row < ids.rows(); row += seqlen_) {
      backend_.embedding(stream_, {.ids = position_ids_.view<std::int32_t, 1>({seqlen_}),
                                   .table = positions,
                                   .y = hidden.slice_rows(row, seqlen_),
                                   .accumulate = true});
    }
  }
  if (norm_) {
    apply(backend_, stream_, *norm_, *model_.embedding_norm, hidden, hidden);
  }
}

Head::Head(Backend& backend, Stream& stream, const ModelSpec& model, const io::CheckpointReader& tensors,
           std::int64_t most_tokens)
    : backend_(backend), stream_(stream), model_(model), dtype_(backend.compute_dtype(model.dtype)) {
  if (model.final_norm) {
    norm_ = load_norm(backend, stream, tensors, *model.final_norm);
  }
  if (model.project_out) {
    project_out_ = load_linear(backend, stream, tensors, *model.project_out, dtype_);
    projected_ = backend.allocate(most_tokens * model.embedding_width * size_of(dtype_));
  }
  head_ = load_matrix(backend, stream, tensors, model.head, dtype_);
}

AnyView<2> Head::input(AnyView<2> hidden) {
  if (norm_) {
    apply(backend_, stream_, *norm_, *model_.final_norm, hidden, hidden);
  }
  if (!project_out_) {
    return hidden;
  }
  const auto projected = projected_.any_view<2>(dtype_, {hidden.rows(), model_.embedding_width});
  apply(backend_, stream_, *project_out_, hidden, projected, Activation::none, false);
  return projected;
}

AnyView<2> Head::cross_entropy(AnyView<2> hidden, ConstTensorView<std::int32_t, 1> targets, TensorView<double, 1> nll) {
  const auto x = input(hidden);
  backend_.cross_entropy(stream_, {.x = x, .head = table(), .targets = targets, .nll = nll});
  return x;
}

}  // namespace gptqd::pipeline
