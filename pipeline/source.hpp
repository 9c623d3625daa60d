#pragma once
/// @file The model that a run starts from.
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "io/checkpoint_reader.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// Its tensors, its config.json, and the model they make.
struct Source {
  std::unique_ptr<io::CheckpointReader> tensors;
  nlohmann::json config;
  ModelSpec model;
};

/// @param path  a Hugging Face folder, or the name of a synthetic model
/// @throws Error (input) for what is no model, or a quantized one; (usage) for a synthetic model that does not exist
Source open_source(const std::filesystem::path& path);

}  // namespace gptqd::pipeline
