#pragma once
/// @file The files of torch.save: a zip archive with one pickle that describes the tensors and one stored entry for
/// each storage (torch/serialization.py, caffe2/serialize/inline_container.h).
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.hpp"
#include "io/checkpoint_reader.hpp"

namespace gptqd::io {

/// One pytorch_model.bin open for reading in ranges. Thread-safe; tensors' offsets count from the start of the file.
class PytorchFile {
 public:
  /// Opens the file and checks directory and pickle; reads no tensor. No code of the file is run.
  /// @throws Error (input) for whatever read_zip_entries and unpickle_state_dict refuse, files of torch before 1.6,
  ///         TorchScript programs, big-endian files, a pickle whose CRC-32 is wrong, and storages that are missing or
  ///         shorter than their tensors need; (io)
  explicit PytorchFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  std::int64_t bytes() const { return file_.size(); }
  /// In the order of their place in the file. Tensors may share bytes.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// XXH3-128 of the pickle's bytes and of the places and CRC-32s of all entries.
  const std::string& header_hash() const { return header_hash_; }

  /// `out.size()` bytes from `offset` within the dense form of the tensor. @pre they lie inside the tensor
  void read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const;

 private:
  File file_;
  std::vector<TensorInfo> tensors_;
  std::string header_hash_;
};

}  // namespace gptqd::io
