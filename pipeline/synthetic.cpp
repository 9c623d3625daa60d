#include "pipeline/synthetic.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>

#include "io/checksum.hpp"
#include "io/json_file.hpp"
#include "kernels/cpu/vectorized.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

namespace {

constexpr std::string_view scheme = "synthetic:";

struct Shape {
  std::string_view name;
  DType dtype;
  std::string_view config;
};

// The sizes of the published config.json files.
constexpr std::array shapes{
    Shape{"opt-6.7b", DType::f16,
          R"({"model_type":"opt","hidden_size":4096,"ffn_dim":16384,"num_attention_heads":32,"num_hidden_layers":32,
              "vocab_size":50272,"max_position_embeddings":2048})"},
    Shape{"opt-66b", DType::f16,
          R"({"model_type":"opt","hidden_size":9216,"ffn_dim":36864,"num_attention_heads":72,"num_hidden_layers":64,
              "vocab_size":50272,"max_position_embeddings":2048})"},
    Shape{"opt-175b", DType::f16,
          R"({"model_type":"opt","hidden_size":12288,"ffn_dim":49152,"num_attention_heads":96,"num_hidden_layers":96,
              "vocab_size":50272,"max_position_embeddings":2048})"},
    Shape{"bloom-7b1", DType::f16,
          R"({"model_type":"bloom","hidden_size":4096,"n_head":32,"n_layer":30,"vocab_size":250880})"},
    Shape{"bloom-176b", DType::bf16,
          R"({"model_type":"bloom","hidden_size":14336,"n_head":112,"n_layer":70,"vocab_size":250880})"},
    Shape{"llama-3-8b", DType::bf16,
          R"({"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,
              "num_key_value_heads":8,"num_hidden_layers":32,"vocab_size":128256,"max_position_embeddings":8192,
              "rms_norm_eps":1e-05,"rope_theta":500000.0})"},
    Shape{"llama-3-70b", DType::bf16,
          R"({"model_type":"llama","hidden_size":8192,"intermediate_size":28672,"num_attention_heads":64,
              "num_key_value_heads":8,"num_hidden_layers":80,"vocab_size":128256,"max_position_embeddings":8192,
              "rms_norm_eps":1e-05,"rope_theta":500000.0})"},
    Shape{"mistral-7b", DType::bf16,
          R"({"model_type":"mistral","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,
              "num_key_value_heads":8,"num_hidden_layers":32,"vocab_size":32000,"max_position_embeddings":32768,
              "rms_norm_eps":1e-05,"rope_theta":10000.0,"sliding_window":4096})"},
    Shape{"qwen3-32b", DType::bf16,
          R"({"model_type":"qwen3","hidden_size":5120,"intermediate_size":25600,"num_attention_heads":64,
              "num_key_value_heads":8,"head_dim":128,"num_hidden_layers":64,"vocab_size":151936,
              "max_position_embeddings":40960,"rms_norm_eps":1e-06,"rope_theta":1000000.0})"},
};

[[noreturn]] void refuse(std::string_view name, std::string_view reason) {
  std::vector<std::string_view> names;
  for (const auto& shape : shapes) {
    names.push_back(shape.name);
  }
  throw Error(ErrorKind::usage,
              fmt::format("--model {}: {}; expected synthetic:NAME[:blocks=N][:vocab=V] with NAME one of {}", name,
                          reason, fmt::join(names, ", ")));
}

/// Hash of a 32-bit counter (lowbias32, Ellis): every output bit depends on every input bit, and loops vectorize.
[[gnu::always_inline]] inline std::uint32_t mixed(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

/// One run of elements whose counters share their high half: out[i] = center + half_width·u, u evenly spread over
/// [−1, 1), rounded.
template <class T>
struct GenerateRun {
  [[gnu::always_inline]] static void run(T* out, std::int64_t count, std::uint32_t first, std::uint32_t key,
                                         float center, float half_width) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t bits = mixed((first + static_cast<std::uint32_t>(i)) ^ key);
      const float u = static_cast<float>(static_cast<std::int32_t>(bits)) * 0x1p-31f;
      const float value = center + half_width * u;
      if constexpr (std::is_same_v<T, Half>) {
        out[i] = to_half(value);
      } else if constexpr (std::is_same_v<T, BFloat16>) {
        out[i] = to_bfloat16(value);
      } else {
        out[i] = static_cast<T>(value);
      }
    }
  }
};

/// Elements [first, first + out.size()) of the stream `key`.
template <class T>
void generate(std::span<T> out, std::uint64_t key, std::int64_t first, float center, float half_width) {
  const auto level = vectorized::best_level();
  for (std::size_t done = 0; done < out.size();) {
    const std::uint64_t index = static_cast<std::uint64_t>(first) + done;
    const std::uint64_t left_of_run = (std::uint64_t{1} << 32) - (index & 0xffffffffu);
    const auto count = static_cast<std::int64_t>(std::min<std::uint64_t>(left_of_run, out.size() - done));
    const std::uint32_t run_key =
        mixed(static_cast<std::uint32_t>(index >> 32) ^ static_cast<std::uint32_t>(key >> 32)) ^
        static_cast<std::uint32_t>(key);
    vectorized::call<GenerateRun<T>>(level, out.data() + done, count, static_cast<std::uint32_t>(index), run_key,
                                     center, half_width);
    done += static_cast<std::size_t>(count);
  }
}

/// The values of one tensor.
struct Distribution {
  float center = 0.0f;
  float half_width = 0.0f;
};

Distribution of_deviation(double deviation) { return {.half_width = static_cast<float>(deviation * std::sqrt(3.0))}; }

/// How widely each tensor's values spread: inputs of the residual stream by 1 / √(2·blocks), so that it grows by a
/// constant factor over the whole model, whatever its depth.
std::map<std::string, Distribution> distributions(const ModelSpec& model) {
  std::map<std::string, Distribution> all;
  const auto linear = [&](const LinearSpec& spec, double gain) {
    all[spec.weight_name()] = of_deviation(gain / std::sqrt(static_cast<double>(spec.cols)));
    all[spec.bias_name()] = of_deviation(0.02);
  };
  const double residual = 1.0 / std::sqrt(2.0 * static_cast<double>(model.blocks.size()));
  for (const auto& block : model.blocks) {
    for (const Phase phase : phases) {
      const bool into_residual = phase == Phase::attention_out || phase == Phase::mlp_out;
      for (const auto& spec : block.group(phase)) {
        linear(spec, into_residual ? residual : 1.0);
      }
    }
  }
  return all;
}

/// Any tensor name, of one type: enough for a family to describe a config.json.
class AnyTensor final : public io::CheckpointReader {
 public:
  explicit AnyTensor(DType dtype) { info_.dtype = dtype; }
  const io::TensorInfo* find(std::string_view) const override { return &info_; }
  std::vector<std::string> names() const override { return {}; }
  void read_range(const io::TensorInfo&, std::int64_t, std::span<std::byte>) const override {
    throw Error(ErrorKind::internal, "synthetic model: read before it was described");
  }
  std::vector<io::FileIdentity> files() const override { return {}; }
  const std::filesystem::path& folder() const override { return folder_; }

 private:
  io::TensorInfo info_;
  std::filesystem::path folder_;
};

class SyntheticCheckpoint final : public io::CheckpointReader {
 public:
  SyntheticCheckpoint(std::string name, const ModelSpec& model, DType dtype) : folder_(name) {
    const auto special = distributions(model);
    for (const auto& [tensor, shape] : expected_tensors(model)) {
      io::TensorInfo info{.name = tensor, .dtype = dtype, .shape = shape};
      info.bytes = io::dense_bytes(shape, dtype).value();
      const auto found = special.find(tensor);
      const bool is_norm = shape.size() == 1 && tensor.ends_with(".weight");
      all_.emplace(tensor, Entry{.info = std::move(info),
                                 .key = key_of(tensor),
                                 .values = found != special.end() ? found->second
                                           : is_norm              ? Distribution{.center = 1.0f, .half_width = 0.2f}
                                                                  : of_deviation(0.05)});
      bytes_ += all_.at(tensor).info.bytes;
    }
    identity_ = {.name = std::move(name), .bytes = bytes_, .header_hash = "generated"};
  }

  const io::TensorInfo* find(std::string_view name) const override {
    const auto found = all_.find(std::string(name));
    return found == all_.end() ? nullptr : &found->second.info;
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, unused] : all_) {
      names.push_back(name);
    }
    return names;
  }
  void read_range(const io::TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const override {
    const Entry& entry = all_.at(info.name);
    const auto element = size_of(info.dtype);
    require(offset % element == 0 && std::ssize(out) % element == 0, "synthetic model: a range that cuts an element");
    const std::int64_t first = offset / element;
    const auto fill = [&](auto* data) {
      generate(std::span(data, out.size() / sizeof(*data)), entry.key, first, entry.values.center,
               entry.values.half_width);
    };
    if (info.dtype == DType::f16) {
      fill(reinterpret_cast<Half*>(out.data()));
    } else {
      fill(reinterpret_cast<BFloat16*>(out.data()));
    }
  }
  std::vector<io::FileIdentity> files() const override { return {identity_}; }
  const std::filesystem::path& folder() const override { return folder_; }

 private:
  struct Entry {
    io::TensorInfo info;
    std::uint64_t key = 0;
    Distribution values;
  };

  static std::uint64_t key_of(const std::string& text) {
    return std::stoull(io::xxh3_128_hex(std::as_bytes(std::span(text))).substr(0, 16), nullptr, 16);
  }

  std::filesystem::path folder_;
  std::map<std::string, Entry> all_;
  std::int64_t bytes_ = 0;
  io::FileIdentity identity_;
};

/// "blocks=2" -> 2.
std::int64_t setting_value(std::string_view name, std::string_view setting, std::int64_t most) {
  const auto text = setting.substr(setting.find('=') + 1);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > most) {
    refuse(name, fmt::format("\"{}\" needs a number from 1 to {}", setting, most));
  }
  return value;
}

}  // namespace

bool is_synthetic(std::string_view name) { return name.starts_with(scheme); }

SyntheticModel make_synthetic(std::string_view name) {
  std::string_view rest = name.substr(scheme.size());
  const auto next = [&] {
    const auto colon = rest.find(':');
    const auto word = rest.substr(0, colon);
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
    return word;
  };
  const auto wanted = next();
  const auto* shape = std::find_if(shapes.begin(), shapes.end(), [&](const Shape& s) { return s.name == wanted; });
  if (shape == shapes.end()) {
    refuse(name, fmt::format("there is no shape \"{}\"", wanted));
  }
  SyntheticModel model{.config = io::parse_json(shape->config, "built-in config"), .tensors = {}};
  while (!rest.empty()) {
    const auto setting = next();
    if (setting.starts_with("blocks=")) {
      model.config[model.config.contains("n_layer") ? "n_layer" : "num_hidden_layers"] =
          setting_value(name, setting, 1000);
    } else if (setting.starts_with("vocab=")) {
      model.config["vocab_size"] = setting_value(name, setting, 1'000'000);
    } else {
      refuse(name, fmt::format("there is no setting \"{}\"", setting));
    }
  }
  const auto spec = describe_config(model.config, AnyTensor(shape->dtype));
  model.tensors = std::make_unique<SyntheticCheckpoint>(std::string(name), spec, shape->dtype);
  return model;
}

io::TokenWindows synthetic_tokens(std::int64_t vocabulary, std::int64_t samples, std::int64_t seqlen,
                                  std::uint64_t seed) {
  io::TokenWindows windows{.samples = samples, .seqlen = seqlen, .ids = {}};
  windows.ids.resize(static_cast<std::size_t>(samples * seqlen));
  std::vector<float> places(windows.ids.size());  // in [0, vocabulary], the upper end by rounding
  const auto width = static_cast<float>(vocabulary) / 2;
  generate(std::span(places), seed ^ 0x9e3779b97f4a7c15u, 0, width, width);
  std::transform(places.begin(), places.end(), windows.ids.begin(), [&](float place) {
    return std::clamp(static_cast<std::int32_t>(place), 0, static_cast<std::int32_t>(vocabulary - 1));
  });
  return windows;
}

}  // namespace gptqd::pipeline
