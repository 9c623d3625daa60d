/// @file Fuzzes the description of models: any config.json gives a ModelSpec or an input error, nothing else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/json_file.hpp"
#include "kernels/base/error.hpp"
#include "pipeline/family.hpp"

namespace {

/// Weights of which `has` says whether a tensor of some name is there; all that are have one shape and no data.
class NamesOnly : public gptqd::io::CheckpointReader {
 public:
  explicit NamesOnly(std::function<bool(std::string_view)> has) : has_(std::move(has)) {}

  const gptqd::io::TensorInfo* find(std::string_view name) const override { return has_(name) ? &info_ : nullptr; }
  std::vector<std::string> names() const override { return {"a", "b"}; }
  void read_range(const gptqd::io::TensorInfo&, std::int64_t, std::span<std::byte>) const override { std::abort(); }
  std::vector<gptqd::io::FileIdentity> files() const override { return {}; }
  const std::filesystem::path& folder() const override { return folder_; }

 private:
  std::function<bool(std::string_view)> has_;
  gptqd::io::TensorInfo info_{.name = "a", .dtype = gptqd::DType::f16, .shape = {160, 48}, .bytes = 160 * 48 * 2};
  std::filesystem::path folder_ = "fuzz";
};

void describe(std::string_view text, const NamesOnly& tensors) {
  try {
    gptqd::pipeline::describe_model(gptqd::io::parse_json(text, "config.json"), tensors);
  } catch (const gptqd::Error& error) {
    if (error.kind() != gptqd::ErrorKind::input) {
      std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  describe(text, NamesOnly([](std::string_view) { return false; }));
  describe(text, NamesOnly([](std::string_view name) { return !name.ends_with(".qweight"); }));
  describe(text, NamesOnly([](std::string_view name) { return std::hash<std::string_view>()(name) % 4 != 0; }));
  return 0;
}
