#include "pipeline/verify/verify.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <new>
#include <set>

#include "io/artifact/artifact_reader.hpp"
#include "io/json_file.hpp"
#include "pipeline/family.hpp"
#include "pipeline/run_parallel.hpp"

namespace gptqd::pipeline {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t chunk_bytes = std::int64_t{4} << 20;

// Limits of a comparison with the float weights, beyond which something went wrong rather than few bits were given.
constexpr double most_relative_error = 1.0;  ///< as far off as zeros would be
constexpr double most_mean_step = 0.5;       ///< zeros off by one give 1
constexpr double usual_error_in_steps = 4.0;
constexpr double usual_saturation = 0.5;

constexpr std::array packing_suffixes{
    ".qweight",           ".qzeros",       ".scales",      ".g_idx", ".weight_packed", ".weight_scale",
    ".weight_zero_point", ".weight_shape", ".weight_g_idx"};
/// Tensors that are no weights: engines compute them.
constexpr std::array buffer_suffixes{".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
                                     ".attention.masked_bias"};
/// By which checkpoints of one model differ.
constexpr std::array name_prefixes{"model.", "transformer."};

template <std::size_t N>
bool ends_with_any(std::string_view name, const std::array<const char*, N>& suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](const char* suffix) { return name.ends_with(suffix); });
}

std::string shape_text(const io::TensorInfo& tensor) {
  return fmt::format("{} [{}]", gptqd::name_of(tensor.dtype), fmt::join(tensor.shape, ", "));
}

bool is_float(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32 || dtype == DType::f64;
}

/// The tensor of that name, or of the name that another tool would give it; null where there is none.
const io::TensorInfo* find_alike(const io::CheckpointReader& tensors, const std::string& name) {
  if (const auto* found = tensors.find(name)) {
    return found;
  }
  for (const std::string prefix : name_prefixes) {
    const auto* found =
        name.starts_with(prefix) ? tensors.find(name.substr(prefix.size())) : tensors.find(prefix + name);
    if (found != nullptr) {
      return found;
    }
  }
  return nullptr;
}

/// Calls `body` with pieces of a tensor until it returns false.
template <class Body>
void for_each_piece(const io::CheckpointReader& tensors, const io::TensorInfo& tensor, Body&& body) {
  std::vector<std::byte> piece;
  for (std::int64_t offset = 0; offset < tensor.bytes; offset += chunk_bytes) {
    piece.resize(static_cast<std::size_t>(std::min(chunk_bytes, tensor.bytes - offset)));
    tensors.read_range(tensor, offset, piece);
    if (!body(offset, std::span<const std::byte>(piece))) {
      return;
    }
  }
}

bool is_all_zero(const io::CheckpointReader& tensors, const io::TensorInfo& tensor) {
  bool zero = true;
  for_each_piece(tensors, tensor, [&](std::int64_t, std::span<const std::byte> piece) {
    zero = std::all_of(piece.begin(), piece.end(), [](std::byte b) { return b == std::byte{0}; });
    return zero;
  });
  return zero;
}

bool has_equal_bytes(const io::CheckpointReader& a_tensors, const io::TensorInfo& a,
                     const io::CheckpointReader& b_tensors, const io::TensorInfo& b) {
  bool equal = a.dtype == b.dtype && a.shape == b.shape;
  std::vector<std::byte> other;
  if (equal) {
    for_each_piece(a_tensors, a, [&](std::int64_t offset, std::span<const std::byte> piece) {
      other.resize(piece.size());
      b_tensors.read_range(b, offset, other);
      equal = std::equal(piece.begin(), piece.end(), other.begin());
      return equal;
    });
  }
  return equal;
}

/// Whether two floating tensors of one shape and different types hold the same numbers, as far as the coarser type
/// goes.
bool has_close_values(const io::CheckpointReader& a_tensors, const io::TensorInfo& a,
                      const io::CheckpointReader& b_tensors, const io::TensorInfo& b) {
  constexpr float coarsest = 1.0f / 128;  // of bfloat16, twice over
  constexpr float least = 1e-7f;          // below it float16 has fewer bits
  bool close = is_float(a.dtype) && is_float(b.dtype);
  std::vector<std::byte> other;
  std::vector<float> a_values;
  std::vector<float> b_values;
  if (close) {
    for_each_piece(a_tensors, a, [&](std::int64_t offset, std::span<const std::byte> piece) {
      const std::int64_t elements = std::ssize(piece) / size_of(a.dtype);
      other.resize(static_cast<std::size_t>(elements * size_of(b.dtype)));
      b_tensors.read_range(b, offset / size_of(a.dtype) * size_of(b.dtype), other);
      a_values.resize(static_cast<std::size_t>(elements));
      b_values.resize(static_cast<std::size_t>(elements));
      widen(a.dtype, piece.data(), a_values);
      widen(b.dtype, other.data(), b_values);
      close = std::equal(a_values.begin(), a_values.end(), b_values.begin(),
                         [](float x, float y) { return std::abs(x - y) <= coarsest * std::abs(x) + least; });
      return close;
    });
  }
  return close;
}

std::int64_t physical_memory() {
  return static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
}

class Verifier {
 public:
  Verifier(const VerifyRequest& request, const std::function<void(const std::string&)>& note)
      : request_(request), note_(note) {
    report_.artifact = request.artifact.string();
  }

  VerifyReport run() && {
    Check opening{.name = "opening"};
    try {
      reader_ = io::ArtifactReader::open(request_.artifact);
      config_ = io::read_json(request_.artifact / "config.json");
      report_.format = io::name_of(reader_->format());
      for (const auto& name : reader_->linear_names()) {
        packed_.insert(name);
      }
      opening.summary =
          fmt::format("{}: {} quantized modules among {} tensors in {} file(s)", report_.format, packed_.size(),
                      reader_->tensors().names().size(), reader_->tensors().files().size());
      if (packed_.empty()) {
        opening.fail("no module is quantized, but config.json has a quantization_config");
      }
    } catch (const Error& error) {
      opening.fail(error.one_line());
      reader_.reset();
    }
    report_.checks.push_back(std::move(opening));
    if (!reader_) {
      return std::move(report_);
    }
    check_configuration();
    describe();
    check_structure();
    check_layers();
    check_fused();
    check_source();
    ask_engines();
    return std::move(report_);
  }

 private:
  const io::CheckpointReader& tensors() const { return reader_->tensors(); }

  /// Whether quantize_config.json, which some engines read, says what config.json says.
  void check_configuration() {
    Check check{.name = "configuration"};
    const auto& config = reader_->quantization_config();
    const bool is_gptq = reader_->format() != io::ArtifactFormat::compressed_tensors;
    std::error_code ignored;
    const auto path = request_.artifact / "quantize_config.json";
    try {
      if (is_gptq && fs::exists(path, ignored)) {
        const auto other = io::read_json(path);
        for (const char* key : {"bits", "group_size", "desc_act", "sym", "checkpoint_format", "dynamic"}) {
          if (other.is_object() && other.contains(key) && config.contains(key) && other.at(key) != config.at(key)) {
            check.fail(
                fmt::format("{} is {} in quantize_config.json, {} in config.json: engines read the one or the "
                            "other",
                            key, other.at(key).dump(), config.at(key).dump()));
          }
        }
        check.summary = "config.json and quantize_config.json agree";
      } else {
        check.summary = "config.json";
      }
    } catch (const Error& error) {
      check.fail(error.one_line());
    }
    if (reader_->format() == io::ArtifactFormat::gptq && config.contains("sym") && config.at("sym") == false) {
      check.warn(
          "asymmetric zeros stored as z − 1 (\"gptq\"): readers disagree on a zero of 0; \"gptq_v2\" stores them "
          "safely");
    }
    report_.checks.push_back(std::move(check));
  }

  /// The model that config.json describes, where we know its family.
  void describe() {
    Check check{.name = "model"};
    try {
      const auto type = io::get<std::string>(config_, "model_type", "config.json");
      if (!is_known_family(type)) {
        check.skip(fmt::format("model_type \"{}\" is not known to us: which tensors it needs cannot be checked{}", type,
                               request_.against ? " but by the source" : "; --against SOURCE tells"));
      } else {
        model_ = describe_model(config_, tensors());
        check.summary = fmt::format("{}: {} blocks, every tensor is there with its shape", type, model_->blocks.size());
      }
    } catch (const Error& error) {
      check.fail(error.one_line());
    }
    report_.checks.push_back(std::move(check));
  }

  /// Every module once: packed or float, as the configuration says.
  void check_structure() {
    Check check{.name = "structure"};
    for (const auto& name : packed_) {
      if (tensors().find(name + ".weight") != nullptr) {
        check.fail(fmt::format("{} is there twice: packed and as {}.weight", name, name));
      }
    }
    for (const auto& name : reader_->passing_names()) {
      if (ends_with_any(name, packing_suffixes)) {
        check.fail(fmt::format("{} belongs to no complete quantized module", name));
      }
    }
    if (model_) {
      check_modules(check);
    }
    check.summary = fmt::format("{} modules packed{}", packed_.size(),
                                model_ ? fmt::format(" of {} linears in the blocks", linears_) : std::string());
    report_.checks.push_back(std::move(check));
  }

  void check_modules(Check& check) {
    std::set<std::string> known;
    for (const auto& tensor : expected_tensors(*model_)) {
      known.insert(tensor.name);
    }
    for (const auto& block : model_->blocks) {
      for (const auto& linear : block.linears()) {
        ++linears_;
        shapes_[linear.module] = {linear.rows, linear.cols};
        const bool is_packed = packed_.contains(linear.module);
        try {
          const auto settings = reader_->settings(linear.module);
          if (is_packed && !settings) {
            check.fail(
                fmt::format("{} is packed, but quantization_config leaves it unquantized: engines would look for "
                            "its weight",
                            linear.module));
          } else if (!is_packed && settings) {
            check.fail(
                fmt::format("{} is not packed, but quantization_config does not leave it out: engines would look "
                            "for its codes",
                            linear.module));
          }
        } catch (const Error& error) {
          check.fail(error.one_line());
        }
      }
    }
    for (const auto& name : packed_) {
      if (!known.contains(name + ".weight")) {
        check.fail(fmt::format("{} is packed, but the model has no such linear", name));
      }
    }
    for (const auto& name : reader_->passing_names()) {
      if (!known.contains(name) && !ends_with_any(name, buffer_suffixes) && !ends_with_any(name, packing_suffixes)) {
        explain_extra(check, name);
      }
    }
  }

  /// A tensor that the model does not need: harmless where it says nothing new.
  void explain_extra(Check& check, const std::string& name) {
    const auto& tensor = tensors().at(name);
    if (name.ends_with(".bias") && packed_.contains(name.substr(0, name.size() - 5))) {
      if (!is_all_zero(tensors(), tensor)) {
        check.fail(fmt::format("{} is not zero, but the model's linear has no bias", name));
      }
      return;  // older tools write a bias of zeros for every linear
    }
    const auto* table = tensors().find(model_->token_table);
    if (name.starts_with("lm_head.") && table != nullptr && has_equal_bytes(tensors(), tensor, tensors(), *table)) {
      return;  // a tied head, written out
    }
    check.warn(
        fmt::format("{} {} is no tensor of the model: engines ignore it or refuse the file", name, shape_text(tensor)));
  }

  struct LayerChecks {
    Check layers{.name = "layers"};
    Check zeros{.name = "zeros"};
    Check groups{.name = "groups"};
    Check values{.name = "values"};
    Check weights{.name = "weights"};
    std::optional<VerifiedLayer> layer;
    bool is_compared = false;
  };

  void check_layers() {
    if (request_.against) {
      source_ = with_context(fmt::format("reading model {}", request_.against->string()),
                             [&] { return io::CheckpointReader::open(*request_.against); });
    }
    const auto names = reader_->linear_names();
    std::vector<LayerChecks> results(names.size());
    std::atomic<std::int64_t> done{0};
    std::mutex mutex;
    auto last_line = Clock::now();
    run_parallel(std::ssize(names), request_.threads, [&](std::int64_t i) {
      auto& result = results[static_cast<std::size_t>(i)];
      try {
        check_layer(names[static_cast<std::size_t>(i)], result);
      } catch (const Error& error) {
        result.layers.fail(error.one_line());
      } catch (const std::bad_alloc&) {
        result.layers.fail(fmt::format("{}: does not fit into memory", names[static_cast<std::size_t>(i)]));
      }
      ++done;
      const std::lock_guard lock(mutex);
      if (Clock::now() - last_line > std::chrono::seconds(10)) {
        last_line = Clock::now();
        note_(fmt::format("{} of {} modules", done.load(), names.size()));
      }
    });

    LayerChecks all;
    for (auto& result : results) {
      for (const auto part : {&LayerChecks::layers, &LayerChecks::zeros, &LayerChecks::groups, &LayerChecks::values,
                              &LayerChecks::weights}) {
        for (auto& finding : (result.*part).findings) {
          finding.status == Check::Status::fail ? (all.*part).fail(std::move(finding.text))
                                                : (all.*part).warn(std::move(finding.text));
        }
      }
      if (result.layer) {
        settings_.emplace(result.layer->format.module, result.layer->format.settings);
        report_.layers.push_back(std::move(*result.layer));
      }
    }
    summarize(all);
    for (const auto part : {&LayerChecks::layers, &LayerChecks::zeros, &LayerChecks::groups, &LayerChecks::values}) {
      report_.checks.push_back(std::move(all.*part));
    }
    if (request_.against) {
      report_.checks.push_back(std::move(all.weights));
    }
  }

  void summarize(LayerChecks& all) const {
    std::map<std::string, int> kinds;
    double saturated = 0;
    double worst = 0;
    double sum = 0;
    int compared = 0;
    for (const auto& layer : report_.layers) {
      ++kinds[io::to_text(layer.format.settings)];
      saturated = std::max(saturated, layer.codes.saturated);
      if (layer.difference) {
        worst = std::max(worst, layer.difference->relative_error);
        sum += layer.difference->relative_error;
        ++compared;
      }
    }
    std::vector<std::string> texts;
    for (const auto& [text, count] : kinds) {
      texts.push_back(fmt::format("{} x {}", count, text));
    }
    all.layers.summary = fmt::format("types and shapes: {}", fmt::join(texts, "; "));
    all.zeros.summary = reader_->format() == io::ArtifactFormat::gptq ? "stored as z − 1" : "stored as z";
    all.groups.summary = "every group has its columns";
    all.values.summary =
        fmt::format("scales are finite; at most {:.1f} % of a layer's codes at an end", 100 * saturated);
    all.weights.summary = compared == 0 ? std::string("nothing could be compared")
                                        : fmt::format(
                                              "{} layers against the source: relative error {:.4f} on average, "
                                              "{:.4f} at most",
                                              compared, sum / compared, worst);
  }

  void check_layer(const std::string& name, LayerChecks& result) const {
    const auto format = reader_->layer(name);
    if (const auto shape = shapes_.find(name);
        shape != shapes_.end() && shape->second != std::pair(format.rows, format.cols)) {
      result.layers.fail(fmt::format("{}: packed as [{}, {}], config.json makes it [{}, {}]", name, format.rows,
                                     format.cols, shape->second.first, shape->second.second));
      return;
    }
    const auto declared = reader_->settings(name);
    if (declared && declared->reordered != format.settings.reordered) {
      if (format.settings.reordered) {
        result.layers.fail(
            fmt::format("{}: its g_idx is reordered, but the configuration says it is not: engines would "
                        "ignore it",
                        name));
      } else {
        result.layers.warn(
            fmt::format("{}: the configuration says dynamic act-order, but its g_idx is the plain one: "
                        "kernels are slower for nothing",
                        name));
      }
    }
    if (!check_zeros(format, result.zeros)) {
      return;
    }
    // Codes take a byte each once they are unpacked; words and scales come on top.
    if (format.rows * format.cols > physical_memory() / 2) {
      result.layers.fail(
          fmt::format("{} [{}, {}] does not fit into this machine's memory", name, format.rows, format.cols));
      return;
    }
    const auto linear = reader_->read_linear(name);
    const auto codes = io::unpack_qweight(linear.qweight, linear.rows, linear.cols, linear.bits);
    check_groups(linear, result.groups);
    VerifiedLayer layer{.format = format, .codes = code_statistics(linear, codes)};
    check_values(layer, result.values);
    if (source_) {
      compare(linear, codes, layer, result.weights);
    }
    result.layer = std::move(layer);
  }

  /// Whether stored zeros are what the format's name says. Asymmetric ones can only be told beside the weights.
  bool check_zeros(const io::LayerFormat& format, Check& check) const {
    const auto& name = format.module;
    const int bits = format.settings.bits;
    if (reader_->format() == io::ArtifactFormat::compressed_tensors) {
      return true;
    }
    const auto& tensor = tensors().at(name + ".qzeros");
    const std::vector<std::int64_t> shape{format.groups(), format.rows * bits / 32};
    if (tensor.dtype != DType::i32 || tensor.shape != shape) {
      check.fail(fmt::format("{} is {}, expected I32 [{}]", tensor.name, shape_text(tensor), fmt::join(shape, ", ")));
      return false;
    }
    std::vector<std::uint32_t> words(static_cast<std::size_t>(tensor.bytes) / sizeof(std::uint32_t));
    tensors().read(tensor, std::as_writable_bytes(std::span(words)));
    const auto stored = io::unpack_qzeros(words, format.groups(), format.rows, bits, io::ZeroFormat::v2);
    const bool v1 = reader_->format() == io::ArtifactFormat::gptq;
    if (!format.settings.sym) {
      const auto wrapped = std::count(stored.begin(), stored.end(), static_cast<std::uint8_t>((1 << bits) - 1));
      if (v1 && wrapped > 0) {
        check.fail(
            fmt::format("{}: {} zeros are 0 or 2^{}, which \"gptq\" stores alike and readers take for the one or "
                        "the other; \"gptq_v2\" tells them apart",
                        name, wrapped, bits));
      }
      return true;
    }
    const auto middle = static_cast<std::uint8_t>(1 << (bits - 1));
    const auto expected = static_cast<std::uint8_t>(v1 ? middle - 1 : middle);
    const auto other = static_cast<std::uint8_t>(v1 ? middle : middle - 1);
    const auto wrong = stored.size() - static_cast<std::size_t>(std::count(stored.begin(), stored.end(), expected));
    if (wrong == 0) {
      return true;
    }
    const bool is_other_format = std::count(stored.begin(), stored.end(), other) == std::ssize(stored);
    check.fail(
        is_other_format
            ? fmt::format("{}: its zeros are stored as {}, but checkpoint_format says \"{}\": engines would read "
                          "every weight one step off",
                          name, v1 ? "z (\"gptq_v2\")" : "z − 1 (\"gptq\")", report_.format)
            : fmt::format("{}: {} of {} zeros are not the middle code, but the configuration says symmetric: "
                          "engines would ignore them",
                          name, wrong, stored.size()));
    return false;
  }

  static void check_groups(const io::PackedLinear& linear, Check& check) {
    std::vector<std::int64_t> members(static_cast<std::size_t>(linear.groups()));
    for (const auto group : linear.g_idx) {
      ++members[static_cast<std::size_t>(group)];
    }
    const std::int64_t expected = linear.cols / linear.groups();
    for (std::size_t group = 0; group < members.size(); ++group) {
      if (members[group] != expected) {
        check.fail(
            fmt::format("{}: group {} has {} columns, expected {}: kernels that sort columns by group would mix "
                        "them up",
                        linear.name, group, members[group], expected));
        return;
      }
    }
  }

  static void check_values(const VerifiedLayer& layer, Check& check) {
    const auto& name = layer.format.module;
    const auto& codes = layer.codes;
    if (codes.one_code) {
      check.fail(fmt::format("{}: all its codes are the same", name));
    }
    if (codes.negative_scales > 0) {
      check.warn(fmt::format("{}: {} scales are negative", name, codes.negative_scales));
    }
    if (codes.zero_scales > 0) {
      check.warn(fmt::format("{}: {} groups have a scale of 0", name, codes.zero_scales));
    }
    if (layer.format.settings.bits >= 4 && codes.saturated > usual_saturation) {
      check.warn(fmt::format("{}: {:.0f} % of its codes are at an end of their range", name, 100 * codes.saturated));
    }
  }

  void compare(const io::PackedLinear& linear, const std::vector<std::uint8_t>& codes, VerifiedLayer& layer,
               Check& check) const {
    const auto& name = linear.name;
    const auto* weight = find_alike(*source_, name + ".weight");
    if (weight == nullptr) {
      check.fail(fmt::format("{}: the source has no {}.weight", name, name));
      return;
    }
    if (!is_float(weight->dtype) || weight->shape != std::vector<std::int64_t>{linear.rows, linear.cols}) {
      check.fail(fmt::format("{}: the source's weight is {}, the packed one [{}, {}]", name, shape_text(*weight),
                             linear.rows, linear.cols));
      return;
    }
    layer.difference = weight_difference(linear, codes, *source_, *weight);
    const auto& difference = *layer.difference;
    if (difference.non_finite > 0) {
      check.fail(fmt::format("{}: {} weights are NaN or infinite", name, difference.non_finite));
    }
    if (std::abs(difference.mean_step) > most_mean_step) {
      check.fail(fmt::format("{}: weights are {:+.2f} steps off on average: its zeros are off by one", name,
                             difference.mean_step));
    }
    if (!(difference.relative_error <= most_relative_error)) {
      check.fail(fmt::format("{}: relative error {:.3f}: these are other weights than the source's", name,
                             difference.relative_error));
    } else if (difference.bad_rows > 0) {
      const auto text = fmt::format("{}: {} of {} output features are further from the source than zeros would be",
                                    name, difference.bad_rows, linear.rows);
      linear.bits >= 4 ? check.fail(text) : check.warn(text);
    } else if (difference.error_in_steps > usual_error_in_steps) {
      check.warn(fmt::format("{}: the error is {:.1f} times that of plain rounding on these grids", name,
                             difference.error_in_steps));
    }
  }

  /// What engines load as one tensor must have one setting, and one order of columns.
  void check_fused() {
    Check check{.name = "fused", .summary = "q, k, v and gate, up have one setting each"};
    if (!model_) {
      check.skip("the family is not known to us");
      report_.checks.push_back(std::move(check));
      return;
    }
    for (const auto& block : model_->blocks) {
      for (const Phase phase : phases) {
        check_group(block, block.group(phase), check);
      }
      const auto& first = block.attention_in.front();
      const auto own = settings_of(first.module);
      if (own && block.attention.layout == HeadLayout::by_head && block.attention.head_dim * own->bits % 32 != 0) {
        check.warn(fmt::format("{}: heads of {} rows at {} bits are no whole words: the zeros of two heads share one",
                               first.module, block.attention.head_dim, own->bits));
      }
    }
    report_.checks.push_back(std::move(check));
  }

  void check_group(const BlockSpec&, const std::vector<LinearSpec>& group, Check& check) const {
    const auto& first = group.front().module;
    const auto own = settings_of(first);
    for (const auto& linear : group) {
      const auto other = settings_of(linear.module);
      if (packed_.contains(first) != packed_.contains(linear.module)) {
        check.fail(fmt::format("{} and {}: one is packed, the other is not; engines load both as one tensor", first,
                               linear.module));
      } else if (own && other && *own != *other) {
        check.fail(fmt::format("{} ({}) and {} ({}): engines load both as one tensor", first, io::to_text(*own),
                               linear.module, io::to_text(*other)));
      } else if (own && own->reordered && &linear != &group.front() && !has_equal_order(first, linear.module)) {
        check.fail(fmt::format("{} and {} have different g_idx: engines load both as one tensor with one g_idx", first,
                               linear.module));
      }
    }
  }

  bool has_equal_order(const std::string& a, const std::string& b) const {
    const char* suffix = reader_->format() == io::ArtifactFormat::compressed_tensors ? ".weight_g_idx" : ".g_idx";
    const auto* one = tensors().find(a + suffix);
    const auto* other = tensors().find(b + suffix);
    return one != nullptr && other != nullptr && has_equal_bytes(tensors(), *one, tensors(), *other);
  }

  std::optional<io::LayerSettings> settings_of(const std::string& module) const {
    const auto found = settings_.find(module);
    return found == settings_.end() ? std::nullopt : std::optional(found->second);
  }

  /// Every tensor of the source is here once, or accounted for.
  void check_source() {
    if (!source_) {
      return;
    }
    Check check{.name = "source"};
    std::int64_t same = 0;
    std::int64_t accounted = 0;
    std::map<std::string, int> converted;
    std::set<std::string> seen;
    for (const auto& name : source_->names()) {
      const auto& tensor = source_->at(name);
      const auto* own = find_alike(tensors(), name);
      if (own != nullptr) {
        seen.insert(own->name);
        if (own->shape != tensor.shape) {
          check.fail(fmt::format("{} is {}, the source's is {}", own->name, shape_text(*own), shape_text(tensor)));
        } else if (own->dtype != tensor.dtype && has_close_values(*source_, tensor, tensors(), *own)) {
          ++converted[fmt::format("{}, the source's {}", gptqd::name_of(own->dtype), gptqd::name_of(tensor.dtype))];
        } else if (!has_equal_bytes(*source_, tensor, tensors(), *own)) {
          check.fail(fmt::format("{} has other values than the source's", own->name));
        } else {
          ++same;
        }
      } else if (is_accounted_for(name)) {
        ++accounted;
      } else {
        check.fail(fmt::format("{} {} of the source is missing", name, shape_text(tensor)));
      }
    }
    for (const auto& [types, count] : converted) {
      check.warn(fmt::format("{} tensors hold the source's numbers in another type: {}", count, types));
    }
    for (const auto& name : reader_->passing_names()) {
      // With the model known, what it does not need has been looked at.
      if (!model_ && !seen.contains(name) && !ends_with_any(name, buffer_suffixes) &&
          !(name.ends_with(".bias") && is_all_zero(tensors(), tensors().at(name)))) {
        check.warn(fmt::format("{} is not in the source", name));
      }
    }
    check.summary = fmt::format("{} tensors are the source's byte for byte, {} are packed or tied", same, accounted);
    report_.checks.push_back(std::move(check));
  }

  /// Whether a tensor of the source needs no tensor of that name here.
  bool is_accounted_for(const std::string& name) const {
    constexpr std::string_view weight = ".weight";
    if (name.ends_with(weight)) {
      const std::string module = name.substr(0, name.size() - weight.size());
      if (packed_.contains(module)) {
        return true;
      }
      for (const std::string prefix : name_prefixes) {
        if (packed_.contains(prefix + module) ||
            (module.starts_with(prefix) && packed_.contains(module.substr(prefix.size())))) {
          return true;
        }
      }
    }
    const bool tied = config_.is_object() && config_.value("tie_word_embeddings", nlohmann::json()) == true;
    return ends_with_any(name, buffer_suffixes) ||
           (name == "lm_head.weight" && (tied || (model_ && model_->head == model_->token_table)));
  }

  /// Which kernels take the tensors, on how many GPUs.
  void ask_engines() {
    Check check{.name = "kernels"};
    if (!model_) {
      check.skip("the family is not known to us, nor how engines split it");
    } else {
      for (const int size : request_.tensor_parallel) {
        report_.tensor_parallel.push_back(split(
            *model_, reader_->format(), [&](const std::string& module) { return settings_of(module); }, size));
      }
      const auto whole = split(
          *model_, reader_->format(), [&](const std::string& module) { return settings_of(module); }, 1);
      std::vector<std::string_view> kernels;
      for (const auto& kernel : whole.kernels) {
        if (kernel.takes == kernel.tensors) {
          kernels.push_back(name_of(kernel.kernel));
        }
      }
      std::vector<std::string> engines;
      bool is_taken = false;
      for (const auto& engine : whole.engines) {
        engines.push_back(fmt::format("{} takes {} of {} tensors", engine.engine, engine.takes, engine.tensors));
        is_taken = is_taken || engine.takes == engine.tensors;
      }
      check.summary = fmt::format("on one GPU {}; kernels that take all: {}", fmt::join(engines, ", "),
                                  kernels.empty() ? "none" : fmt::format("{}", fmt::join(kernels, ", ")));
      if (!is_taken) {
        check.warn("no engine has kernels for all tensors; other settings for those layers will help");
      }
    }
    report_.checks.push_back(std::move(check));
  }

  const VerifyRequest& request_;
  const std::function<void(const std::string&)>& note_;
  VerifyReport report_;
  std::unique_ptr<io::ArtifactReader> reader_;
  nlohmann::json config_;
  std::optional<ModelSpec> model_;
  std::set<std::string> packed_;
  std::int64_t linears_ = 0;
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> shapes_;  ///< that config.json makes the blocks' linears
  std::unique_ptr<io::CheckpointReader> source_;
  std::map<std::string, io::LayerSettings> settings_;
};

}  // namespace

VerifyReport verify_artifact(const VerifyRequest& request, const std::function<void(const std::string&)>& note) {
  return Verifier(request, note).run();
}

}  // namespace gptqd::pipeline
