/// @file Fuzzes the readers of PyTorch files: any bytes give tensors inside their storages or an input error, nothing
/// else. The input is a pickle, and a whole file as well when it begins as a zip archive does.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "io/pytorch/pytorch_file.hpp"
#include "io/pytorch/unpickler.hpp"
#include "kernels/base/error.hpp"

namespace {

void demand(bool condition) {
  if (!condition) {
    std::abort();
  }
}

/// Runs `read`; any exception but an input error ends the run.
template <class Read>
void expect_input_error_at_most(Read&& read) {
  try {
    read();
  } catch (const gptqd::Error& error) {
    demand(error.kind() == gptqd::ErrorKind::input);
  }
}

/// The last element lies inside the storage, counted in 128 bits.
void check(const gptqd::io::PickledTensor& tensor) {
  __extension__ using Wide = __int128;
  Wide end = tensor.offset;
  Wide elements = 1;
  demand(tensor.shape.size() == tensor.strides.size());
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    demand(tensor.shape[i] >= 0 && tensor.strides[i] >= 0);
    end += Wide{tensor.shape[i] - 1} * tensor.strides[i];
    elements = tensor.shape[i] == 0 || elements == 0 ? 0 : elements * tensor.shape[i];
    demand(elements <= tensor.storage_bytes || elements == 0);
  }
  const Wide width = gptqd::size_of(tensor.dtype);
  demand(elements == 0 || (tensor.offset >= 0 && (end + 1) * width <= tensor.storage_bytes));
}

/// Opens the bytes as a file, and reads every tensor of moderate size whole and in part.
void read_file(std::span<const std::uint8_t> data) {
  const gptqd::io::FileDescriptor memory(::memfd_create("fuzz", 0));
  demand(memory.get() >= 0 && ::write(memory.get(), data.data(), data.size()) == static_cast<ssize_t>(data.size()));
  const gptqd::io::PytorchFile file("/proc/self/fd/" + std::to_string(memory.get()));
  std::vector<std::byte> out;
  for (const auto& tensor : file.tensors()) {
    demand(tensor.bytes >= 0 && tensor.bytes <= file.bytes());
    out.resize(static_cast<std::size_t>(tensor.bytes));
    file.read_range(tensor, 0, out);
    const std::int64_t begin = tensor.bytes / 3;
    file.read_range(tensor, begin, std::span(out).first(static_cast<std::size_t>((tensor.bytes - begin) / 2)));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span input(data, size);
  expect_input_error_at_most([&] {
    for (const auto& tensor : gptqd::io::unpickle_state_dict(std::as_bytes(input), "fuzz")) {
      check(tensor);
    }
  });
  if (size >= 2 && data[0] == 'P' && data[1] == 'K') {
    expect_input_error_at_most([&] { read_file(input); });
  }
  return 0;
}
