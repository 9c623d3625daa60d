#include "io/artifact/artifact_format.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "io/artifact/compressed_tensors.hpp"
#include "io/artifact/float_format.hpp"
#include "io/artifact/gptq_format.hpp"

namespace gptqd::io {

namespace {

struct NamedFormat {
  ArtifactFormat format;
  std::string_view name;
};
constexpr std::array formats{NamedFormat{ArtifactFormat::gptq, "gptq"}, NamedFormat{ArtifactFormat::gptq_v2, "gptq_v2"},
                             NamedFormat{ArtifactFormat::compressed_tensors, "compressed-tensors"},
                             NamedFormat{ArtifactFormat::gguf, "gguf"},
                             NamedFormat{ArtifactFormat::safetensors_float, "safetensors-float"}};

}  // namespace

std::string_view name_of(ArtifactFormat format) {
  const auto* found =
      std::find_if(formats.begin(), formats.end(), [&](const NamedFormat& named) { return named.format == format; });
  require(found != formats.end(), "a format of artifacts without a name");
  return found->name;
}

ArtifactFormat artifact_format_from_name(std::string_view name) {
  for (const auto& named : formats) {
    if (named.name == name) {
      return named.format;
    }
  }
  throw Error(ErrorKind::usage,
              fmt::format("there is no format \"{}\"; the formats are gptq, gptq_v2, compressed-tensors, gguf, "
                          "safetensors-float",
                          name));
}

std::unique_ptr<TensorFormat> make_tensor_format(ArtifactFormat format, DType dtype) {
  switch (format) {
    case ArtifactFormat::gptq:
      return std::make_unique<GptqFormat>(ZeroFormat::v1);
    case ArtifactFormat::gptq_v2:
      return std::make_unique<GptqFormat>(ZeroFormat::v2);
    case ArtifactFormat::compressed_tensors:
      return std::make_unique<CompressedTensorsFormat>(dtype);
    case ArtifactFormat::safetensors_float:
      return std::make_unique<FloatFormat>(dtype);
    case ArtifactFormat::gguf:
      break;
  }
  throw Error(ErrorKind::internal, fmt::format("{} is no format of a Hugging Face folder", name_of(format)));
}

}  // namespace gptqd::io
