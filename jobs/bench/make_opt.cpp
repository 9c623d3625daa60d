/// @file Writes an OPT model with generated weights, and token ids to calibrate it with: shapes without a download.
#include <boost/program_options.hpp>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "kernels/base/dtype.hpp"

namespace {

namespace po = boost::program_options;
using gptqd::DType;

struct Shape {
  std::int64_t hidden = 576;
  std::int64_t ffn = 1536;
  std::int64_t heads = 9;
  std::int64_t blocks = 30;
  std::int64_t vocabulary = 8192;
  std::int64_t positions = 2048;
};

nlohmann::json config_of(const Shape& shape) {
  return {{"model_type", "opt"},
          {"architectures", {"OPTForCausalLM"}},
          {"activation_function", "relu"},
          {"do_layer_norm_before", true},
          {"enable_bias", true},
          {"dtype", "float16"},
          {"hidden_size", shape.hidden},
          {"word_embed_proj_dim", shape.hidden},
          {"ffn_dim", shape.ffn},
          {"num_attention_heads", shape.heads},
          {"num_hidden_layers", shape.blocks},
          {"vocab_size", shape.vocabulary},
          {"max_position_embeddings", shape.positions},
          {"tie_word_embeddings", true},
          {"bos_token_id", 2},
          {"eos_token_id", 2},
          {"pad_token_id", 1}};
}

std::vector<gptqd::io::TensorDeclaration> tensors_of(const Shape& shape) {
  std::vector<gptqd::io::TensorDeclaration> tensors;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> extents) {
    tensors.push_back({.name = "model.decoder." + name, .dtype = DType::f16, .shape = std::move(extents)});
  };
  const auto add_pair = [&](const std::string& module, std::int64_t rows, std::optional<std::int64_t> cols) {
    add(module + ".weight", cols ? std::vector{rows, *cols} : std::vector{rows});
    add(module + ".bias", {rows});
  };
  add("embed_tokens.weight", {shape.vocabulary, shape.hidden});
  add("embed_positions.weight", {shape.positions + 2, shape.hidden});
  add_pair("final_layer_norm", shape.hidden, std::nullopt);
  for (std::int64_t i = 0; i < shape.blocks; ++i) {
    const std::string block = "layers." + std::to_string(i) + ".";
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      add_pair(block + "self_attn." + name, shape.hidden, shape.hidden);
    }
    add_pair(block + "self_attn_layer_norm", shape.hidden, std::nullopt);
    add_pair(block + "fc1", shape.ffn, shape.hidden);
    add_pair(block + "fc2", shape.hidden, shape.ffn);
    add_pair(block + "final_layer_norm", shape.hidden, std::nullopt);
  }
  return tensors;
}

/// Matrices are normal with standard deviation 0.02, norms' weights 1, biases 0.
void write_model(const std::filesystem::path& folder, const Shape& shape, std::mt19937_64& generator) {
  std::normal_distribution<float> normal(0.0f, 0.02f);
  const auto tensors = tensors_of(shape);
  gptqd::io::SafetensorsWriter writer(folder / "model.safetensors", tensors);
  std::vector<gptqd::Half> values;
  for (const auto& tensor : tensors) {
    values.assign(static_cast<std::size_t>(tensor.bytes() / gptqd::size_of(tensor.dtype)), gptqd::to_half(0.0f));
    const bool is_matrix = tensor.shape.size() == 2;
    if (is_matrix || tensor.name.ends_with(".weight")) {
      for (auto& value : values) {
        value = gptqd::to_half(is_matrix ? normal(generator) : 1.0f);
      }
    }
    writer.append(tensor.name, std::as_bytes(std::span(values)));
  }
  writer.commit();
  gptqd::io::write_file_atomically(folder / "config.json", config_of(shape).dump(1) + "\n");
}

void write_tokens(const std::filesystem::path& path, std::int64_t samples, std::int64_t seqlen, std::int64_t vocabulary,
                  std::mt19937_64& generator) {
  std::uniform_int_distribution<std::int32_t> uniform(0, static_cast<std::int32_t>(vocabulary - 1));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(samples * seqlen));
  for (auto& id : ids) {
    id = uniform(generator);
  }
  gptqd::io::SafetensorsWriter writer(path, {{.name = "input_ids", .dtype = DType::i32, .shape = {samples, seqlen}}});
  writer.append("input_ids", std::as_bytes(std::span(ids)));
  writer.commit();
}

int run(int argc, char** argv) {
  Shape shape;
  std::int64_t samples = 128;
  std::int64_t seqlen = 512;
  std::uint64_t seed = 0;
  std::filesystem::path out;
  po::options_description options(
      "gptqd_make_opt --out DIR: an OPT model (float16) with generated weights in DIR/model, random tokens in "
      "DIR/tokens.safetensors");
  const auto with_default = [](auto& variable) { return po::value(&variable)->default_value(variable); };
  options.add_options()("help", "print this text")("out", po::value(&out)->required(), "folder to write to")(
      "hidden", with_default(shape.hidden), "width")("ffn", with_default(shape.ffn), "width of the mlp")(
      "heads", with_default(shape.heads), "attention heads, dividing the width")(
      "blocks", with_default(shape.blocks), "decoder blocks")("vocabulary", with_default(shape.vocabulary),
                                                              "token ids")("positions", with_default(shape.positions),
                                                                           "longest sample")(
      "samples", with_default(samples), "samples of tokens")("seqlen", with_default(seqlen), "tokens a sample")(
      "seed", with_default(seed), "of weights and tokens");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, options), values);
  if (values.count("help") != 0) {
    std::cout << options;
    return 0;
  }
  po::notify(values);
  for (const auto number :
       {shape.hidden, shape.ffn, shape.heads, shape.blocks, shape.vocabulary, shape.positions, samples, seqlen}) {
    if (number < 1 || number > 1'000'000) {
      throw gptqd::Error(gptqd::ErrorKind::usage, fmt::format("{}: expected numbers from 1 to 1,000,000", number));
    }
  }
  std::mt19937_64 generator(seed);
  std::filesystem::create_directories(out / "model");
  write_model(out / "model", shape, generator);
  write_tokens(out / "tokens.safetensors", samples, seqlen, shape.vocabulary, generator);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const gptqd::Error& error) {
    fmt::print(stderr, "gptqd_make_opt: {}\n", error.one_line());
    return gptqd::exit_code(error.kind());
  } catch (const std::exception& error) {
    fmt::print(stderr, "gptqd_make_opt: {}\n", error.what());
    return gptqd::exit_code(gptqd::ErrorKind::usage);
  }
}
