#include "io/artifact/artifact_writer.hpp"

namespace gptqd::io {

ArtifactSummary write_artifact(const ArtifactWriter& writer, const AtomicFolder& folder) {
  ArtifactSummary summary;
  for (int file = 0; file < writer.weight_files(); ++file) {
    summary.files.push_back(writer.write_weights(file, folder.path()));
  }
  for (auto& file : writer.write_rest(folder.path())) {
    summary.files.push_back(std::move(file));
  }
  for (const auto& file : summary.files) {
    summary.bytes += file.bytes;
  }
  return summary;
}

}  // namespace gptqd::io
