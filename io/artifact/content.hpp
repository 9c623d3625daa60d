#pragma once
/// @file What an artifact of any format is made from.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/packed_linear.hpp"

namespace gptqd::io {

/// The settings of a quantized linear that formats have to express.
struct LayerSettings {
  int bits = 4;
  std::int64_t group_size = -1;  ///< columns that share a scale; -1: the whole row
  bool sym = true;               ///< every zero is 2^(bits-1)
  bool reordered = false;        ///< g_idx is not k / group_size: dynamic act-order

  friend bool operator==(const LayerSettings&, const LayerSettings&) = default;
};

/// "4 bits, groups of 128, symmetric", for messages.
std::string to_text(const LayerSettings& settings);

/// What is known of a quantized linear before its codes are read.
struct LayerFormat {
  std::string module;     ///< as in the source, without ".weight"
  std::int64_t rows = 0;  ///< N, out_features
  std::int64_t cols = 0;  ///< K, in_features
  LayerSettings settings;

  std::int64_t groups() const { return settings.group_size == -1 ? 1 : cols / settings.group_size; }
};

/// A model some of whose linears are packed. Every layer has its own settings; what is in no block's list stays float.
///
/// All references outlive the writing.
struct ArtifactContent {
  std::filesystem::path folder;   ///< tokenizer, generation_config and the like are taken from here
  nlohmann::ordered_json config;  ///< config.json, without quantization_config
  DType dtype = DType::f16;       ///< of the model: dequantized weights are rounded to it
  /// Holds every tensor that passes through. Tensors of packed linears that it has beside them (X.weight of the float
  /// model, X.qweight of an artifact) mark the layers' places.
  const CheckpointReader* tensors = nullptr;
  std::vector<std::string> passing;  ///< names in `tensors` that pass through with their bytes, in file order
  /// The packed linears, block by block, in the order of their places.
  std::vector<std::vector<LayerFormat>> blocks;
  /// Reads blocks[block][layer]. Called from several threads, for neighbouring layers in about their order.
  std::function<PackedLinear(std::int64_t block, std::int64_t layer)> read_layer;

  LayerSettings settings;                  ///< those that most layers have; what differs is said layer by layer
  std::vector<std::string> float_linears;  ///< modules of the model that are linears and stay float: "lm_head", ...
  /// Linears of a block that share an input, named within the block: [["self_attn.q_proj", ...], ...].
  std::vector<std::vector<std::string>> groups_of_block;
  /// How the codes were found, for gptq's quantization_config and gptq_dist.json: damp_percent, true_sequential,
  /// static_groups, meta (with the run's fingerprint).
  nlohmann::json facts = nlohmann::json::object();
};

/// Bytes and whatever keeps them alive.
struct OwnedBytes {
  std::shared_ptr<const void> owner;
  std::span<const std::byte> bytes;

  template <class T>
  static OwnedBytes of(std::vector<T> values) {
    auto owner = std::make_shared<const std::vector<T>>(std::move(values));
    const auto bytes = std::as_bytes(std::span(*owner));
    return {std::move(owner), bytes};
  }
};

}  // namespace gptqd::io
