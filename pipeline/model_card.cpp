#include "pipeline/model_card.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

namespace gptqd::pipeline {

namespace {

constexpr std::string_view perplexity_begin = "<!-- perplexity -->\n";
constexpr std::string_view perplexity_end = "<!-- end of perplexity -->\n";

/// Text of a foreign file for a Markdown table: no line breaks, pipes or markup, and bounded.
std::string plain(std::string_view text) {
  constexpr std::size_t longest = 100;
  std::string result;
  for (const char c : text.substr(0, longest)) {
    const bool harmless = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                          std::string_view(" -_./:").find(c) != std::string_view::npos;
    result += harmless ? c : '?';
  }
  return result;
}

/// A Hub repository's name ("org/name") in config.json, or empty: folders of the machine that made the file say
/// nothing.
std::string hub_name(const nlohmann::ordered_json& config) {
  const auto name = config.contains("_name_or_path") && config.at("_name_or_path").is_string()
                        ? config.at("_name_or_path").get<std::string>()
                        : std::string();
  const auto is_part = [](std::string_view part) {
    return !part.empty() && part != "." && part != ".." && plain(part) == part &&
           part.find_first_of(" :") == std::string_view::npos;
  };
  const auto slash = name.find('/');
  const bool is_name = slash != std::string::npos && name.find('/', slash + 1) == std::string::npos &&
                       is_part(std::string_view(name).substr(0, slash)) &&
                       is_part(std::string_view(name).substr(slash + 1));
  return is_name ? name : std::string();
}

std::string architecture(const nlohmann::ordered_json& config) {
  if (config.contains("architectures") && config.at("architectures").is_array() &&
      !config.at("architectures").empty() && config.at("architectures").front().is_string()) {
    return plain(config.at("architectures").front().get<std::string>());
  }
  return config.contains("model_type") && config.at("model_type").is_string()
             ? plain(config.at("model_type").get<std::string>())
             : "transformer";
}

double bits_a_weight(const io::ArtifactContent& content) {
  double weights = 0;
  double bits = 0;
  for (const auto& block : content.blocks) {
    for (const auto& layer : block) {
      const auto size = static_cast<double>(layer.rows) * static_cast<double>(layer.cols);
      // Codes, and a scale of 16 bits and a zero of the codes' width for each group.
      const auto groups = static_cast<double>(layer.groups()) * static_cast<double>(layer.rows);
      weights += size;
      bits += size * layer.settings.bits + groups * (16 + (layer.settings.sym ? 0 : layer.settings.bits));
    }
  }
  return weights > 0 ? bits / weights : 0;
}

using Rows = std::vector<std::pair<std::string, std::string>>;

void add_settings(Rows& rows, const io::ArtifactContent& content) {
  std::map<std::string, std::int64_t> kinds;
  for (const auto& block : content.blocks) {
    for (const auto& layer : block) {
      ++kinds[io::to_text(layer.settings)];
    }
  }
  std::vector<std::string> texts;
  for (const auto& [kind, count] : kinds) {
    texts.push_back(kinds.size() == 1 ? kind : fmt::format("{} linears: {}", count, kind));
  }
  rows.emplace_back("quantized", fmt::format("{}", fmt::join(texts, "; ")));
  rows.emplace_back("bits a weight, with scales and zeros", fmt::format("{:.3f}", bits_a_weight(content)));
  std::vector<std::string> inside;
  for (const auto& name : content.float_linears) {
    inside.push_back(fmt::format("`{}`", plain(name)));
  }
  rows.emplace_back("linears left as they were", fmt::format("{}", fmt::join(inside, ", ")));
}

void add_run(Rows& rows, const nlohmann::json& fingerprint) {
  const auto& spec = fingerprint.at("spec");
  rows.emplace_back(
      "method", fmt::format("{}, act-order {}, clip {}, damping {}, {}", spec.at("method").get<std::string>(),
                            spec.at("act_order").get<std::string>(), spec.at("clip").get<std::string>(),
                            spec.at("damping").get<double>(),
                            fingerprint.at("true_sequential").get<bool>() ? "true sequential" : "one block at a time"));
  const auto& calibration = fingerprint.at("calibration");
  rows.emplace_back("calibration", calibration.is_object() ? fmt::format("{} windows of {} tokens (XXH3-128 {})",
                                                                         calibration.at("samples").get<std::int64_t>(),
                                                                         calibration.at("seqlen").get<std::int64_t>(),
                                                                         calibration.at("hash").get<std::string>())
                                                           : std::string("none"));
  std::vector<std::string> files;
  for (const auto& file : fingerprint.at("model").at("files")) {
    files.push_back(fmt::format("`{}` ({} bytes, header {})", plain(file.at("name").get<std::string>()),
                                file.at("bytes").get<std::int64_t>(), file.at("header").get<std::string>()));
  }
  rows.emplace_back("weights of the source", fmt::format("{}", fmt::join(files, ", ")));
}

void append_block_table(std::string& card, const LayerTable& table) {
  struct Block {
    double log_ratio = 0;
    int compared = 0;
    double worst = 0;
    std::string worst_name;
    std::int64_t retries = 0;
    std::int64_t fallbacks = 0;
  };
  std::map<std::int64_t, Block> blocks;
  for (const auto& layer : table.layers()) {
    auto& block = blocks[layer.at("block").get<std::int64_t>()];
    const auto& loss = layer.at("loss");
    const auto& rtn = layer.at("rtn_loss");
    if (loss.is_number() && rtn.is_number() && loss.get<double>() > 0 && rtn.get<double>() > 0) {
      block.log_ratio += std::log(loss.get<double>() / rtn.get<double>());
      ++block.compared;
    }
    if (loss.is_number() && loss.get<double>() >= block.worst) {
      block.worst = loss.get<double>();
      block.worst_name = layer.at("name").get<std::string>();
    }
    block.retries += layer.at("retries").get<std::int64_t>();
    block.fallbacks += layer.at("fallback").get<bool>() ? 1 : 0;
  }
  if (blocks.empty()) {
    return;
  }
  card +=
      "\n## Layers\n\nA layer's loss is the error of its output on the calibration text, relative to the output: "
      "tr(δHδᵀ)/tr(WHWᵀ).\n\n| block | loss, of round-to-nearest's | largest loss | of | damping retries | fallbacks "
      "|\n"
      "|---|---|---|---|---|---|\n";
  for (const auto& [index, block] : blocks) {
    fmt::format_to(std::back_inserter(card), "| {} | {} | {} | {} | {} | {} |\n", index,
                   block.compared > 0 ? fmt::format("{:.3f}", std::exp(block.log_ratio / block.compared)) : "-",
                   block.worst_name.empty() ? std::string("-") : fmt::format("{:.2e}", block.worst),
                   block.worst_name.empty() ? std::string("-") : fmt::format("`{}`", plain(block.worst_name)),
                   block.retries, block.fallbacks);
  }
}

std::string_view loading(io::ArtifactFormat format) {
  switch (format) {
    case io::ArtifactFormat::gguf:
      return "```\nllama-cli -m FOLDER/model.gguf -p \"Once upon a time\"\n```\n";
    case io::ArtifactFormat::safetensors_float:
      return "The weights are dequantized: any engine loads the folder as it loads a float model, without kernels for "
             "quantized weights.\n\n```python\nAutoModelForCausalLM.from_pretrained(\"FOLDER\")\n```\n";
    case io::ArtifactFormat::compressed_tensors:
      return "vLLM, SGLang:\n```\nvllm serve FOLDER\npython -m sglang.launch_server --model-path FOLDER\n```\n"
             "transformers, with compressed-tensors installed:\n"
             "```python\nAutoModelForCausalLM.from_pretrained(\"FOLDER\", device_map=\"auto\")\n```\n"
             "llama.cpp: `gptq-dist convert FOLDER --to gguf --out GGUF`, where the format holds it.\n";
    default:
      return "vLLM (4 and 8 bits, symmetric), SGLang:\n"
             "```\nvllm serve FOLDER\npython -m sglang.launch_server --model-path FOLDER\n```\n"
             "transformers, with gptqmodel installed:\n"
             "```python\nAutoModelForCausalLM.from_pretrained(\"FOLDER\", device_map=\"auto\")\n```\n"
             "llama.cpp: `gptq-dist convert FOLDER --to gguf --out GGUF`, where the format holds it.\n";
  }
}

}  // namespace

std::string model_card(io::ArtifactFormat format, const io::ArtifactContent& content, const nlohmann::json* fingerprint,
                       const LayerTable* table) {
  const std::string name = hub_name(content.config);
  std::string card =
      fmt::format("---\nlibrary_name: {}\n", format == io::ArtifactFormat::gguf ? "gguf" : "transformers");
  const auto out = std::back_inserter(card);
  if (!name.empty()) {
    fmt::format_to(out, "base_model: {}\nbase_model_relation: quantized\n", name);
  }
  card += "tags:\n- gptq\n- quantized\n---\n\n";
  fmt::format_to(out, "# {}, quantized with GPTQ\n\n", name.empty() ? architecture(content.config) : name);
  Rows rows;
  rows.emplace_back("source", fmt::format("{}{}", architecture(content.config),
                                          name.empty() ? std::string() : fmt::format(", {}", name)));
  rows.emplace_back("format", fmt::format("`{}`", name_of(format)));
  add_settings(rows, content);
  if (fingerprint != nullptr) {
    add_run(rows, *fingerprint);
  }
  if (content.facts.contains("meta") && content.facts.at("meta").is_object()) {
    const auto& meta = content.facts.at("meta");
    if (meta.contains("quantizer") && meta.at("quantizer").is_array() && !meta.at("quantizer").empty() &&
        meta.at("quantizer").front().is_string()) {
      rows.emplace_back("made by", plain(meta.at("quantizer").front().get<std::string>()));
    }
    if (meta.contains("fingerprint") && meta.at("fingerprint").is_string()) {
      rows.emplace_back("fingerprint of the run", plain(meta.at("fingerprint").get<std::string>()));
    }
  }
  card += "| | |\n|---|---|\n";
  for (const auto& [what, value] : rows) {
    fmt::format_to(out, "| {} | {} |\n", what, value);
  }
  if (table != nullptr) {
    append_block_table(card, *table);
  }
  fmt::format_to(out, "\n## Loading\n\n{}", loading(format));
  card +=
      "\n`gptq-dist verify FOLDER` says which kernels and how many GPUs take it; `--against SOURCE --text FILE` "
      "measures "
      "what was lost.\n";
  return card;
}

std::string with_perplexity(const std::string& card, const nlohmann::json& perplexity) {
  std::string section = std::string(perplexity_begin) +
                        "\n## Perplexity\n\n| text | windows | this model | source |\n|---|---|---|---|\n";
  for (const auto& entry : perplexity) {
    const auto text = entry.at("text").get<std::string>();
    fmt::format_to(std::back_inserter(section), "| {} (XXH3-128 of the tokens {}) | {} of {} tokens | {:.4f} | {} |\n",
                   plain(text.substr(text.rfind('/') + 1)), entry.at("hash").get<std::string>(),
                   entry.at("windows").get<std::int64_t>(), entry.at("seqlen").get<std::int64_t>(),
                   entry.at("perplexity").get<double>(),
                   entry.contains("source_perplexity")
                       ? fmt::format("{:.4f}", entry.at("source_perplexity").get<double>())
                       : std::string("-"));
  }
  section += perplexity_end;
  const auto begin = card.find(perplexity_begin);
  const auto end = card.find(perplexity_end);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    return card + "\n" + section;
  }
  return card.substr(0, begin) + section + card.substr(end + perplexity_end.size());
}

}  // namespace gptqd::pipeline
