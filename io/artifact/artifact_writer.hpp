#pragma once
/// @file Writes an artifact of any format: streamed, complete or absent, the same bytes however the work is shared.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/artifact/artifact_format.hpp"
#include "io/artifact/content.hpp"
#include "io/atomic_file.hpp"

namespace gptqd::io {

struct ArtifactFile {
  std::string name;
  std::int64_t bytes = 0;
  std::string xxh3_128;
};

struct ArtifactSummary {
  std::int64_t bytes = 0;
  std::vector<ArtifactFile> files;  ///< every file of the artifact, weights first
};

struct ArtifactOptions {
  std::int64_t max_shard_bytes = 4'000'000'000;    ///< of a file's tensors; not for gguf, which is one file
  int threads = 2;                                 ///< that read and convert ahead of the one that writes a file
  std::function<void(std::string)> progress = {};  ///< a line a file; may be empty
};

/// The planned artifact. Making one checks everything that can be known before codes are read, and writes nothing.
///
/// Files of weights are independent of one another: several processes may each write some of them into one folder.
class ArtifactWriter {
 public:
  virtual ~ArtifactWriter() = default;

  /// How many files of weights there are.
  virtual int weight_files() const = 0;
  /// Writes one of them into `folder`. Memory: the pieces in flight, at most 2 · threads + 2 layers.
  /// @throws Error (input) for content that is not what was declared; (io)
  virtual ArtifactFile write_weights(int file, const std::filesystem::path& folder) const = 0;
  /// Writes everything else: index, configuration, tokenizer.
  virtual std::vector<ArtifactFile> write_rest(const std::filesystem::path& folder) const = 0;
};

/// A writer of one of the formats in a Hugging Face folder.
///
/// Every tensor of `content.passing` appears once with its bytes; of a quantized module X the format's tensors stand in
/// the place of X.weight. The order is: tensors outside the blocks in the source's order, then block after block in the
/// source's order. (A block's own tensors are those that share its modules' common prefix.) Exceptions keep every
/// tensor aligned to its element, which readers need: 8-byte elements come first of all, tensors whose bytes are no
/// multiple of 4 last.
/// @pre format is not gguf; content outlives the writer
/// @throws Error (usage) for what the format cannot hold, naming the layer, the reason and formats that can; (input)
std::unique_ptr<ArtifactWriter> make_folder_writer(ArtifactFormat format, const ArtifactContent& content,
                                                   const ArtifactOptions& options);

/// All of it in one process, into a folder that appears when the caller commits it.
/// @throws whatever the writer throws
ArtifactSummary write_artifact(const ArtifactWriter& writer, const AtomicFolder& folder);

}  // namespace gptqd::io
