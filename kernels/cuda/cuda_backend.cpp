#include "kernels/cuda/cuda_backend.hpp"

#include <algorithm>
#include <cstring>

namespace gptqd {

namespace cuda {

namespace {

/// Up to here CUDA itself takes a copy from pageable memory without waiting for the stream.
constexpr std::int64_t direct_upload = 64 << 10;

void require_range(const char* what, const void* to, const void* from, std::int64_t bytes) {
  require(bytes >= 0 && (bytes == 0 || (to != nullptr && from != nullptr)),
          fmt::format("{}: got {} bytes, to {}, from {}", what, bytes, fmt::ptr(to), fmt::ptr(from)));
}

/// False for host memory that CUDA would copy through a buffer of its own, waiting for the stream.
bool is_pinned(const void* host) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, host), "asking about host memory");
  return attributes.type != cudaMemoryTypeUnregistered;
}

std::string version(int major, int minor, int patch) { return fmt::format("{}.{}.{}", major, minor, patch); }

}  // namespace

CudaBackend::CudaBackend(const CudaBackendOptions& options)
    : gpu_(std::make_shared<Gpu>(options.device, options.progress)), arena_(gpu_), pinned_(gpu_) {}

std::string CudaBackend::describe() const {
  int runtime = 0;
  check(cudaRuntimeGetVersion(&runtime), "asking for its version");
  std::array<int, 3> blas{};
  std::array<int, 3> solver{};
  const std::array<libraryPropertyType, 3> parts{MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    check(cublasGetProperty(parts[i], &blas[i]), "asking for its version");
    check(cusolverGetProperty(parts[i], &solver[i]), "asking for its version");
  }
  const auto& gpu = gpu_->properties();
  return fmt::format("cuda {} sm_{}{} x{} runtime {}.{} cublas {} cusolver {}", gpu.name, gpu.major, gpu.minor,
                     gpu.multiProcessorCount, runtime / 1000, runtime % 1000 / 10, version(blas[0], blas[1], blas[2]),
                     version(solver[0], solver[1], solver[2]));
}

DType CudaBackend::compute_dtype(DType model) const {
  require(is_floating(model),
          fmt::format("compute_dtype: models are stored in a floating type, got {}", name_of(model)));
  return model == DType::f16 || model == DType::bf16 ? model : DType::f32;
}

Buffer CudaBackend::allocate(std::int64_t bytes) { return arena_.allocate(bytes); }
std::int64_t CudaBackend::bytes_in_use() const { return arena_.bytes_in_use(); }
std::int64_t CudaBackend::peak_bytes() const { return arena_.peak_bytes(); }
std::unique_ptr<Stream> CudaBackend::create_stream() { return std::make_unique<CudaStream>(gpu_, arena_); }

void CudaBackend::copy_to_device(Stream& stream, void* device, const void* host, std::int64_t bytes) {
  constexpr auto operation = "copy to the device";
  require_range(operation, device, host, bytes);
  CudaStream& own = ready(stream);
  if (bytes == 0) {
    return;
  }
  const auto upload = [&](void* to, const void* from, std::int64_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count), cudaMemcpyHostToDevice, own.stream()), operation);
    own.end(operation);
  };
  if (bytes <= direct_upload || is_pinned(host)) {
    return upload(device, host, bytes);
  }
  for (std::int64_t offset = 0; offset < bytes; offset += CudaStream::staging_piece) {
    const std::int64_t count = std::min(CudaStream::staging_piece, bytes - offset);
    std::byte* const staged = own.stage(count);
    std::memcpy(staged, static_cast<const std::byte*>(host) + offset, static_cast<std::size_t>(count));
    upload(static_cast<std::byte*>(device) + offset, staged, count);
    own.mark();
  }
}

void CudaBackend::copy_to_host(Stream& stream, void* host, const void* device, std::int64_t bytes) {
  constexpr auto operation = "copy to the host";
  require_range(operation, host, device, bytes);
  CudaStream& own = ready(stream);
  if (bytes == 0) {
    return;
  }
  const auto download = [&](void* to, const void* from, std::int64_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count), cudaMemcpyDeviceToHost, own.stream()), operation);
    own.end(operation);
  };
  if (is_pinned(host)) {
    return download(host, device, bytes);
  }
  for (std::int64_t offset = 0; offset < bytes; offset += CudaStream::staging_piece) {
    const std::int64_t count = std::min(CudaStream::staging_piece, bytes - offset);
    // The host sees its memory written when it learns that the stream has passed, as it must wait for that anyway.
    std::byte* const staged = own.stage(count, [=](const std::byte* from) {
      std::memcpy(static_cast<std::byte*>(host) + offset, from, static_cast<std::size_t>(count));
    });
    download(staged, static_cast<const std::byte*>(device) + offset, count);
    own.mark();
  }
}

void CudaBackend::copy(Stream& stream, void* to, const void* from, std::int64_t bytes) {
  require_range("copy", to, from, bytes);
  enqueue(stream, "copy", [&](CudaStream& own) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, own.stream()), "copy");
  });
}

void CudaBackend::fill_zero(Stream& stream, void* device, std::int64_t bytes) {
  require_range("fill_zero", device, device, bytes);
  enqueue(stream, "fill_zero", [&](CudaStream& own) {
    check(cudaMemsetAsync(device, 0, static_cast<std::size_t>(bytes), own.stream()), "fill_zero");
  });
}

CudaStream& CudaBackend::ready(Stream& stream) const {
  auto* own = dynamic_cast<CudaStream*>(&stream);
  require(own != nullptr && &own->gpu() == gpu_.get(),
          "cuda backend: got a stream of another backend; use one made by create_stream()");
  own->begin();
  return *own;
}

}  // namespace cuda

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace gptqd
