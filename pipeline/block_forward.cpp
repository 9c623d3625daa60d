#include "pipeline/block_forward.hpp"

#include <algorithm>
#include <numeric>

namespace gptqd::pipeline {

namespace {

std::int64_t attention_width(const BlockSpec& block) {
  return block.attention_in[0].rows + block.attention_in[1].rows + block.attention_in[2].rows;
}

void apply(Backend& backend, Stream& stream, const DeviceLinear& linear, ConstAnyView<2> x, AnyView<2> y,
           Activation activation, bool accumulate) {
  backend.linear(stream, {.x = x,
                          .weight = linear.weight_view(),
                          .bias = linear.bias_view(),
                          .y = y,
                          .activation = activation,
                          .accumulate = accumulate});
}

void apply(Backend& backend, Stream& stream, const DeviceNorm& norm, float epsilon, ConstAnyView<2> x, AnyView<2> y) {
  backend.layer_norm(stream, {.x = x,
                              .weight = norm.weight.view<float, 1>({norm.width}),
                              .bias = norm.bias.view<float, 1>({norm.width}),
                              .epsilon = epsilon,
                              .y = y});
}

}  // namespace

BlockForward::BlockForward(Backend& backend, Stream& stream, const ModelSpec& model, std::int64_t seqlen,
                           std::int64_t most_tokens)
    : backend_(backend), stream_(stream), seqlen_(seqlen), dtype_(backend.compute_dtype(model.dtype)) {
  std::int64_t widest = 0;
  for (const auto& block : model.blocks) {
    widest = std::max(widest, attention_width(block));
  }
  qkv_ = backend.allocate(most_tokens * widest * size_of(dtype_));
}

void BlockForward::normalize(const NormSpec& spec, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> y) {
  apply(backend_, stream_, weights.norm(spec), spec.epsilon, x, y);
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
    } else {
      backend_.copy(stream_, input.data, hidden.data, hidden.bytes());
    }
  };
  if (!phase) {
    add_to_hidden(block, block.mlp_norm, block.mlp_out, weights, previous, hidden);
    return;
  }
  switch (*phase) {
    case Phase::attention_in:
      enter(block.attention_norm);
      break;
    case Phase::attention_out: {
      const AnyView<2> qkv = qkv_.any_view<2>(dtype_, {previous.rows(), attention_width(block)});
      std::array<AnyView<2>, 3> parts;
      std::int64_t column = 0;
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const auto& linear = block.attention_in[i];
        parts[i] = qkv.slice_cols(column, linear.rows);
        column += linear.rows;
        apply(backend_, stream_, weights.linear(linear), previous, parts[i], Activation::none, false);
      }
      backend_.attention(stream_, {.q = parts[0],
                                   .k = parts[1],
                                   .v = parts[2],
                                   .out = input,
                                   .tokens_per_sample = seqlen_,
                                   .heads = block.attention.heads,
                                   .kv_heads = block.attention.kv_heads,
                                   .head_dim = block.attention.head_dim,
                                   .scale = block.attention.scale});
      break;
    }
    case Phase::mlp_in:
      add_to_hidden(block, block.attention_norm, block.attention_out, weights, previous, hidden);
      enter(block.mlp_norm);
      break;
    case Phase::mlp_out:
      apply(backend_, stream_, weights.linear(block.mlp_in), previous, input, block.activation, false);
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
  if (model.positions) {
    if (seqlen > model.max_positions) {
      throw Error(ErrorKind::usage,
                  fmt::format("windows of {} tokens: the model has {} positions; give --seqlen {} or less", seqlen,
                              model.max_positions, model.max_positions));
    }
    position_table_ = load_matrix(backend, stream, tensors, model.positions->tensor, compute);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(seqlen));
    std::iota(ids.begin(), ids.end(), static_cast<std::int32_t>(model.positions->offset));
    position_ids_ = backend.allocate(seqlen * size_of(DType::i32));
    backend.copy_to_device(stream, position_ids_.data(), ids.data(), seqlen * size_of(DType::i32));
    stream.synchronize();  // `ids` goes out of scope
  }
  if (model.project_in) {
    project_in_ = load_linear(backend, stream, tensors, *model.project_in, compute);
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
    apply(backend_, stream_, *norm_, model_.final_norm->epsilon, hidden, hidden);
  }
  if (!project_out_) {
    return hidden;
  }
  const auto projected = projected_.any_view<2>(dtype_, {hidden.rows(), model_.embedding_width});
  apply(backend_, stream_, *project_out_, hidden, projected, Activation::none, false);
  return projected;
}

void Head::cross_entropy(AnyView<2> hidden, ConstTensorView<std::int32_t, 1> targets, TensorView<double, 1> nll) {
  backend_.cross_entropy(stream_, {.x = input(hidden), .head = table(), .targets = targets, .nll = nll});
}

}  // namespace gptqd::pipeline
