#include "pipeline/source.hpp"

#include "io/json_file.hpp"
#include "pipeline/family.hpp"
#include "pipeline/synthetic.hpp"

namespace gptqd::pipeline {

Source open_source(const std::filesystem::path& path) {
  Source source;
  if (is_synthetic(path.native())) {
    auto synthetic = make_synthetic(path.native());
    source.config = std::move(synthetic.config);
    source.tensors = std::move(synthetic.tensors);
    source.model = describe_model(source.config, *source.tensors);
    return source;
  }
  return with_context(fmt::format("reading model {}", path.string()), [&] {
    source.config = io::read_json(path / "config.json");
    if (source.config.contains("quantization_config")) {
      throw Error(ErrorKind::input,
                  "config.json has a quantization_config: the model is quantized already; give the folder of its float "
                  "weights");
    }
    source.tensors = io::CheckpointReader::open(path);
    source.model = describe_model(source.config, *source.tensors);
    return std::move(source);
  });
}

}  // namespace gptqd::pipeline
