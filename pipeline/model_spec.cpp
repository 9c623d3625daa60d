#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

std::string_view name_of(Phase phase) {
  switch (phase) {
    case Phase::attention_in:
      return "attention_in";
    case Phase::attention_out:
      return "attention_out";
    case Phase::mlp_in:
      return "mlp_in";
    case Phase::mlp_out:
      break;
  }
  return "mlp_out";
}

std::vector<LinearSpec> BlockSpec::group(Phase phase) const {
  switch (phase) {
    case Phase::attention_in:
      return attention_in;
    case Phase::attention_out:
      return {attention_out};
    case Phase::mlp_in:
      return mlp_in;
    case Phase::mlp_out:
      break;
  }
  return {mlp_out};
}

std::vector<LinearSpec> BlockSpec::linears() const {
  std::vector<LinearSpec> all;
  for (const Phase phase : phases) {
    for (auto& linear : group(phase)) {
      all.push_back(std::move(linear));
    }
  }
  return all;
}

std::vector<NormSpec> BlockSpec::norms() const {
  std::vector<NormSpec> all{attention_norm, mlp_norm};
  for (const auto& norm : {attention.query_norm, attention.key_norm}) {
    if (norm) {
      all.push_back(*norm);
    }
  }
  return all;
}

std::int64_t BlockSpec::input_width(Phase phase) const { return group(phase).front().cols; }

std::int64_t BlockSpec::output_width(Phase phase) const {
  std::int64_t width = 0;
  for (const auto& linear : group(phase)) {
    width += linear.rows;
  }
  return width;
}

std::int64_t ModelSpec::parameters() const {
  std::int64_t count = 0;
  for (const auto& block : blocks) {
    for (const auto& linear : block.linears()) {
      count += linear.rows * linear.cols;
    }
  }
  return count;
}

std::vector<ExpectedTensor> expected_tensors(const ModelSpec& model) {
  std::vector<ExpectedTensor> all;
  const auto linear = [&](const LinearSpec& spec) {
    all.push_back({spec.weight_name(), {spec.rows, spec.cols}});
    if (spec.bias) {
      all.push_back({spec.bias_name(), {spec.rows}});
    }
  };
  const auto norm = [&](const NormSpec& spec) {
    all.push_back({spec.weight_name(), {spec.width}});
    if (spec.has_bias()) {
      all.push_back({spec.bias_name(), {spec.width}});
    }
  };
  all.push_back({model.token_table, {model.vocabulary, model.embedding_width}});
  if (model.head != model.token_table) {
    all.push_back({model.head, {model.vocabulary, model.embedding_width}});
  }
  if (model.positions) {
    all.push_back({model.positions->tensor, {model.positions->rows, model.hidden}});
  }
  for (const auto& projection : {model.project_in, model.project_out}) {
    if (projection) {
      linear(*projection);
    }
  }
  for (const auto& outer : {model.embedding_norm, model.final_norm}) {
    if (outer) {
      norm(*outer);
    }
  }
  for (const auto& block : model.blocks) {
    for (const auto& inner : block.norms()) {
      norm(inner);
    }
    for (const auto& spec : block.linears()) {
      linear(spec);
    }
  }
  return all;
}

}  // namespace gptqd::pipeline
