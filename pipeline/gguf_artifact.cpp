#include "pipeline/gguf_artifact.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numbers>
#include <optional>
#include <unordered_map>

#include "io/artifact/companions.hpp"
#include "io/artifact/pieces.hpp"
#include "io/gguf/blocks.hpp"
#include "io/gguf/gguf_file.hpp"
#include "io/gguf/tokenizer_metadata.hpp"
#include "io/json_file.hpp"

namespace gptqd::pipeline {

namespace {

using io::GgmlType;
using RowOrder = std::vector<std::int64_t>;  ///< the source's row for each row; empty: as they are

constexpr const char* file_name = "model.gguf";

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorKind::usage,
              fmt::format("gguf: {}; choose gptq, compressed-tensors or safetensors-float instead", what));
}

std::uint32_t number(std::int64_t value) { return static_cast<std::uint32_t>(value); }

/// llama.cpp's name of the model's architecture.
std::string architecture_of(const ModelSpec& model) {
  constexpr std::array known{"llama", "mistral", "qwen2", "qwen3", "phi3", "bloom"};
  const auto& type = model.model_type;
  if (std::find(known.begin(), known.end(), type) == known.end()) {
    refuse(fmt::format("llama.cpp knows no {} (of our families it knows {})", type, fmt::join(known, ", ")));
  }
  for (const auto& block : model.blocks) {
    if (type != "bloom" && block.activation != Activation::silu) {
      refuse(fmt::format("llama.cpp's {} computes with SiLU, not with {}", type, name_of(block.activation)));
    }
    if (block.norm_placement != NormPlacement::before) {
      refuse("llama.cpp's bloom takes residuals before the norm (apply_residual_connection_post_layernorm: false)");
    }
  }
  return type == "mistral" ? "llama" : type;
}

/// Rotary pairs of llama.cpp's llama stand side by side, in checkpoints half a head apart: row 2i + j of a head is row
/// i + j·head_dim/2 of the checkpoint.
RowOrder paired_rows(std::int64_t heads, std::int64_t head_dim) {
  RowOrder order;
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t i = 0; i < head_dim / 2; ++i) {
      for (std::int64_t j = 0; j < 2; ++j) {
        order.push_back(head * head_dim + j * head_dim / 2 + i);
      }
    }
  }
  return order;
}

/// [heads, 3, head_dim] to [3, heads, head_dim].
RowOrder separated_rows(std::int64_t heads, std::int64_t head_dim) {
  RowOrder order;
  for (std::int64_t part = 0; part < 3; ++part) {
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t i = 0; i < head_dim; ++i) {
        order.push_back((head * 3 + part) * head_dim + i);
      }
    }
  }
  return order;
}

/// What a tensor of the file is made of: a tensor of the source, a layer, or numbers.
struct Source {
  const io::TensorInfo* passing = nullptr;
  std::int64_t block = -1;
  std::int64_t layer = -1;
  RowOrder rows;
  std::vector<float> numbers;
};

class GgufArtifactWriter final : public io::ArtifactWriter {
 public:
  GgufArtifactWriter(const io::ArtifactContent& content, const ModelSpec& model, const io::ArtifactOptions& options)
      : content_(content), model_(model), options_(options), architecture_(architecture_of(model)) {
    for (std::int64_t block = 0; block < std::ssize(content.blocks); ++block) {
      const auto& layers = content.blocks[static_cast<std::size_t>(block)];
      for (std::int64_t layer = 0; layer < std::ssize(layers); ++layer) {
        const auto& format = layers[static_cast<std::size_t>(layer)];
        if (const auto reason = io::block_obstacle(format)) {
          throw Error(ErrorKind::usage, fmt::format("{}: {}", format.module, *reason));
        }
        layer_of_[format.module] = {block, layer};
      }
    }
    const nlohmann::json config = content.config;
    auto tokenizer = io::tokenizer_metadata(content.folder, config, model.vocabulary);
    add_model(name_for(tokenizer));
    std::move(tokenizer.begin(), tokenizer.end(), std::back_inserter(metadata_));
    add_tensors();
  }

  int weight_files() const override { return 1; }

  io::ArtifactFile write_weights(int, const std::filesystem::path& folder) const override {
    io::GgufWriter writer(folder / file_name, metadata_, tensors_);
    std::vector<io::Piece> pieces;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      add_pieces(pieces, i);
    }
    io::stream_pieces(pieces, options_.threads,
                      [&](const io::TensorBytes& bytes) { writer.append(bytes.tensor, bytes.data.bytes); });
    writer.commit();
    if (options_.progress) {
      options_.progress(fmt::format("wrote {}", file_name));
    }
    return {.name = file_name, .bytes = writer.bytes(), .xxh3_128 = writer.checksum()};
  }

  std::vector<io::ArtifactFile> write_rest(const std::filesystem::path& folder) const override {
    std::vector<io::ArtifactFile> files{io::write_provenance(io::ArtifactFormat::gguf, content_, folder)};
    for (const auto& path : io::companions(content_.folder)) {
      if (path.filename().string().starts_with("LICENSE")) {
        files.push_back(io::copy_companion(path, folder));
      }
    }
    return files;
  }

 private:
  void put(const std::string& key, io::GgufValue value) { metadata_.emplace_back(key, std::move(value)); }
  void put_own(const std::string& key, io::GgufValue value) { put(architecture_ + "." + key, std::move(value)); }

  /// By "phi3" in a model's name llama.cpp knows Phi-3's tokens, and fails where one of them is missing.
  std::string name_for(const io::GgufMetadata& tokenizer) const {
    constexpr std::array of_phi3{"</s>", "<unk>", "<s>", "<|endoftext|>"};
    const auto tokens = std::find_if(tokenizer.begin(), tokenizer.end(),
                                     [](const auto& entry) { return entry.first == "tokenizer.ggml.tokens"; });
    require(tokens != tokenizer.end(), "gguf: metadata of a tokenizer without tokens");
    const auto& list = std::get<std::vector<std::string>>(tokens->second);
    const bool has_them = std::all_of(of_phi3.begin(), of_phi3.end(), [&](const char* token) {
      return std::find(list.begin(), list.end(), token) != list.end();
    });
    return model_.model_type == "phi3" && !has_them ? "phi" : model_.model_type;
  }

  void add_model(const std::string& name) {
    const auto& block = model_.blocks.front();
    const auto& attention = block.attention;
    const auto type = content_.blocks.empty() ? std::nullopt : io::block_type(content_.settings);
    // llama.cpp's numbers of the types that most of a file's matrices have.
    const std::uint32_t file_type = type == GgmlType::q4_0   ? 2
                                    : type == GgmlType::q8_0 ? 7
                                    : type == GgmlType::q5_0 ? 8
                                                             : 1;
    put("general.architecture", architecture_);
    put("general.type", std::string("model"));
    put("general.name", name);
    put("general.file_type", file_type);
    put("general.quantization_version", 2u);
    put_own("block_count", number(std::ssize(model_.blocks)));
    put_own("context_length", number(context_length()));
    put_own("embedding_length", number(model_.hidden));
    put_own("feed_forward_length", number(block.mlp_out.cols));
    put_own("vocab_size", number(model_.vocabulary));
    put_own("attention.head_count", number(attention.heads));
    put_own("attention.head_count_kv", number(attention.kv_heads));
    put_own("attention.key_length", number(attention.head_dim));
    put_own("attention.value_length", number(attention.head_dim));
    put_own(block.attention_norm.kind == NormKind::rms ? "attention.layer_norm_rms_epsilon"
                                                       : "attention.layer_norm_epsilon",
            block.attention_norm.epsilon);
    if (architecture_ == "phi3") {
      put_own("attention.sliding_window", number(attention.window));
    }
    if (model_.rope) {
      add_rope(*model_.rope, attention.head_dim);
    }
  }

  /// llama.cpp attends to all tokens in these architectures: with a sliding window it is right up to the window's
  /// length.
  std::int64_t context_length() const {
    constexpr std::int64_t of_bloom = 2048;  // what BLOOM was trained with
    const nlohmann::json config = content_.config;
    std::int64_t length = model_.max_positions < unlimited_positions
                              ? model_.max_positions
                              : io::get_or<std::int64_t>(config, "seq_length", of_bloom, "config.json");
    for (const auto& block : model_.blocks) {
      if (block.attention.window > 0) {
        length = std::min(length, block.attention.window);
      }
    }
    return length;
  }

  void add_rope(const RopeSpec& rope, std::int64_t head_dim) {
    if (rope.width != head_dim && architecture_ != "phi3") {
      refuse(fmt::format("llama.cpp's {} turns whole heads of {} columns, not {} of them", architecture_, head_dim,
                         rope.width));
    }
    put_own("rope.dimension_count", number(rope.width));
    put_own("rope.freq_base", static_cast<float>(rope.theta));
    switch (rope.kind) {
      case RopeSpec::Kind::standard:
        break;
      case RopeSpec::Kind::linear:
        put_own("rope.scaling.type", std::string("linear"));
        put_own("rope.scaling.factor", static_cast<float>(rope.factor));
        break;
      case RopeSpec::Kind::llama3:
        if (architecture_ != "llama") {
          refuse(fmt::format("llama.cpp reads llama3's rotary frequencies for llama, not for {}", architecture_));
        }
        add_numbers("rope_freqs.weight", llama3_divisors(rope));
        break;
      case RopeSpec::Kind::yarn:
        add_yarn(rope);
        break;
      case RopeSpec::Kind::longrope:
        if (architecture_ != "phi3") {
          refuse(fmt::format("llama.cpp reads longrope's factors for phi3, not for {}", architecture_));
        }
        put_own("rope.scaling.attn_factor", static_cast<float>(rope.amplitude));
        add_numbers("rope_factors_long.weight", {rope.long_factors.begin(), rope.long_factors.end()});
        add_numbers("rope_factors_short.weight", {rope.short_factors.begin(), rope.short_factors.end()});
        break;
      case RopeSpec::Kind::dynamic:
        refuse("llama.cpp has no dynamic scaling of rotary frequencies");
    }
    if (architecture_ == "phi3" || rope.kind == RopeSpec::Kind::yarn) {
      put_own("rope.scaling.original_context_length", number(rope.original_positions));
    }
  }

  void add_yarn(const RopeSpec& rope) {
    // llama.cpp computes the amplitude itself, by the usual rule.
    const double usual = rope.factor > 1 ? 0.1 * std::log(rope.factor) + 1 : 1.0;
    if (std::abs(rope.amplitude - usual) > 1e-6 * usual || !rope.truncate) {
      refuse("yarn with an attention_factor of its own, or without truncation, is not what llama.cpp computes");
    }
    put_own("rope.scaling.type", std::string("yarn"));
    put_own("rope.scaling.factor", static_cast<float>(rope.factor));
    put_own("rope.scaling.yarn_beta_fast", static_cast<float>(rope.beta_fast));
    put_own("rope.scaling.yarn_beta_slow", static_cast<float>(rope.beta_slow));
  }

  /// By what llama3 divides each frequency f = theta^(−2i/width): 1 for wavelengths below L/high, factor for those
  /// above L/low, and between them 1 / ((1 − s)/factor + s) with s = (L/λ − low)/(high − low).
  static std::vector<float> llama3_divisors(const RopeSpec& rope) {
    const auto length = static_cast<double>(rope.original_positions);
    std::vector<float> divisors;
    for (std::int64_t i = 0; i < rope.width; i += 2) {
      const double wavelength =
          2 * std::numbers::pi * std::pow(rope.theta, static_cast<double>(i) / static_cast<double>(rope.width));
      const double smooth =
          (length / wavelength - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor);
      const double divisor = wavelength < length / rope.high_frequency_factor ? 1.0
                             : wavelength > length / rope.low_frequency_factor
                                 ? rope.factor
                                 : 1 / ((1 - smooth) / rope.factor + smooth);
      divisors.push_back(static_cast<float>(divisor));
    }
    return divisors;
  }

  void add_numbers(const std::string& name, std::vector<float> numbers) {
    tensors_.push_back({.name = name, .type = GgmlType::f32, .shape = {std::ssize(numbers)}});
    sources_.push_back({.rows = {}, .numbers = std::move(numbers)});
  }

  /// A tensor of the source. Vectors become float32, as llama.cpp wants them; matrices keep their type.
  void add_tensor(const std::string& name, const std::string& source, RowOrder rows = {}) {
    const io::TensorInfo& info = content_.tensors->at(source);
    if (!is_floating(info.dtype) || info.dtype == DType::f64 || info.shape.empty() || info.shape.size() > 2) {
      refuse(fmt::format("{} is a tensor of {} with {} dimensions", source, gptqd::name_of(info.dtype),
                         info.shape.size()));
    }
    const bool vector = info.shape.size() == 1;
    const GgmlType type = vector || info.dtype == DType::f32 ? GgmlType::f32
                          : info.dtype == DType::f16         ? GgmlType::f16
                                                             : GgmlType::bf16;
    tensors_.push_back({.name = name, .type = type, .shape = info.shape});
    sources_.push_back({.passing = &info, .rows = std::move(rows), .numbers = {}});
  }

  void add_linear(const std::string& name, const LinearSpec& linear, const RowOrder& rows = {}) {
    if (const auto found = layer_of_.find(linear.module); found != layer_of_.end()) {
      const auto [block, layer] = found->second;
      const auto& settings = content_.blocks[static_cast<std::size_t>(block)][static_cast<std::size_t>(layer)].settings;
      tensors_.push_back(
          {.name = name + ".weight", .type = io::block_type(settings).value(), .shape = {linear.rows, linear.cols}});
      sources_.push_back({.block = block, .layer = layer, .rows = rows, .numbers = {}});
    } else {
      add_tensor(name + ".weight", linear.weight_name(), rows);
    }
    if (linear.bias) {
      add_tensor(name + ".bias", linear.bias_name(), rows);
    }
  }

  void add_norm(const std::string& name, const NormSpec& norm) {
    add_tensor(name + ".weight", norm.weight_name());
    if (norm.has_bias()) {
      add_tensor(name + ".bias", norm.bias_name());
    }
  }

  void add_tensors() {
    add_tensor("token_embd.weight", model_.token_table);
    if (model_.embedding_norm) {
      add_norm("token_embd_norm", *model_.embedding_norm);
    }
    if (model_.final_norm) {
      add_norm("output_norm", *model_.final_norm);
    }
    if (model_.head != model_.token_table) {
      add_tensor("output.weight", model_.head);
    }
    for (std::size_t i = 0; i < model_.blocks.size(); ++i) {
      add_block(fmt::format("blk.{}.", i), model_.blocks[i]);
    }
  }

  void add_block(const std::string& prefix, const BlockSpec& block) {
    const auto& attention = block.attention;
    add_norm(prefix + "attn_norm", block.attention_norm);
    if (block.attention_in.size() == 1) {
      add_linear(
          prefix + "attn_qkv", block.attention_in.front(),
          attention.layout == HeadLayout::by_head ? separated_rows(attention.heads, attention.head_dim) : RowOrder());
    } else {
      const bool pairs = architecture_ == "llama";
      add_linear(prefix + "attn_q", block.attention_in.at(0),
                 pairs ? paired_rows(attention.heads, attention.head_dim) : RowOrder());
      add_linear(prefix + "attn_k", block.attention_in.at(1),
                 pairs ? paired_rows(attention.kv_heads, attention.head_dim) : RowOrder());
      add_linear(prefix + "attn_v", block.attention_in.at(2));
    }
    if (attention.query_norm && attention.key_norm) {
      add_norm(prefix + "attn_q_norm", *attention.query_norm);
      add_norm(prefix + "attn_k_norm", *attention.key_norm);
    }
    add_linear(prefix + "attn_output", block.attention_out);
    add_norm(prefix + "ffn_norm", block.mlp_norm);
    if (block.mlp_in.size() == 2) {
      add_linear(prefix + "ffn_gate", block.mlp_in.front());
    }
    add_linear(prefix + "ffn_up", block.mlp_in.back());
    add_linear(prefix + "ffn_down", block.mlp_out);
  }

  void add_pieces(std::vector<io::Piece>& pieces, std::size_t index) const {
    const Source& source = sources_[index];
    const auto& tensor = tensors_[index];
    const auto whole = [&](auto make) {
      pieces.push_back([index, make] { return std::vector{io::TensorBytes{.tensor = index, .data = make()}}; });
    };
    if (source.block >= 0) {
      whole([this, &source] {
        return with_context(fmt::format("reading block {} for the artifact", source.block), [&] {
          return io::OwnedBytes::of(to_blocks(io::read_declared(content_, source.block, source.layer), source.rows));
        });
      });
    } else if (source.passing == nullptr) {
      whole([&source] { return io::OwnedBytes::of(source.numbers); });
    } else if (source.rows.empty() && source.passing->bytes == tensor.bytes()) {
      io::append_passing(pieces, index, *content_.tensors, *source.passing);
    } else {
      whole([this, &source, &tensor] { return converted(source, tensor.type); });
    }
  }

  /// A tensor whose rows change places, or whose 16-bit numbers become float32.
  io::OwnedBytes converted(const Source& source, GgmlType type) const {
    const auto& info = *source.passing;
    std::vector<std::byte> bytes(static_cast<std::size_t>(info.bytes));
    content_.tensors->read(info, bytes);
    if (!source.rows.empty()) {
      const std::size_t row_bytes = bytes.size() / source.rows.size();
      std::vector<std::byte> moved(bytes.size());
      for (std::size_t row = 0; row < source.rows.size(); ++row) {
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(source.rows[row]) * row_bytes),
                    row_bytes, moved.begin() + static_cast<std::ptrdiff_t>(row * row_bytes));
      }
      bytes = std::move(moved);
    }
    if (type != GgmlType::f32 || info.dtype == DType::f32) {
      return io::OwnedBytes::of(std::move(bytes));
    }
    std::vector<float> numbers(bytes.size() / 2);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + 2 * i, sizeof(bits));
      numbers[i] = info.dtype == DType::f16 ? to_float(Half{bits}) : to_float(BFloat16{bits});
    }
    return io::OwnedBytes::of(std::move(numbers));
  }

  const io::ArtifactContent& content_;
  const ModelSpec& model_;
  io::ArtifactOptions options_;
  std::string architecture_;
  std::unordered_map<std::string, std::pair<std::int64_t, std::int64_t>> layer_of_;
  io::GgufMetadata metadata_;
  std::vector<io::GgufTensor> tensors_;
  std::vector<Source> sources_;
};

}  // namespace

std::unique_ptr<io::ArtifactWriter> make_gguf_writer(const io::ArtifactContent& content, const ModelSpec& model,
                                                     const io::ArtifactOptions& options) {
  return std::make_unique<GgufArtifactWriter>(content, model, options);
}

}  // namespace gptqd::pipeline
