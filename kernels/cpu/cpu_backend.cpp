#include "kernels/cpu/cpu_backend.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_stream.hpp"

namespace gptqd {

namespace {

/// Bytes that one tile of a copy moves.
constexpr std::int64_t copy_tile = std::int64_t{4} << 20;

void require_range(const char* what, const void* to, const void* from, std::int64_t bytes) {
  require(bytes >= 0 && (bytes == 0 || (to != nullptr && from != nullptr)),
          fmt::format("{}: got {} bytes, to {}, from {}", what, bytes, fmt::ptr(to), fmt::ptr(from)));
}

}  // namespace

CpuBackend::CpuBackend(const CpuBackendOptions& options)
    : clock_(std::make_shared<WorkClock>()), arena_(clock_), pool_(options.threads, options.progress) {
  blas::set_single_threaded();
}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::describe() const { return "cpu " + blas_description(); }

DType CpuBackend::compute_dtype(DType model) const {
  require(is_floating(model),
          fmt::format("compute_dtype: models are stored in a floating type, got {}", name_of(model)));
  return DType::f32;
}

Buffer CpuBackend::allocate(std::int64_t bytes) {
  refuse_lost_device();
  return arena_.allocate(bytes);
}
std::int64_t CpuBackend::bytes_in_use() const { return arena_.bytes_in_use(); }
std::int64_t CpuBackend::peak_bytes() const { return arena_.peak_bytes(); }
std::unique_ptr<Stream> CpuBackend::create_stream() {
  refuse_lost_device();
  return std::make_unique<CpuStream>(clock_);
}

void CpuBackend::copy_to_device(Stream& stream, void* device, const void* host, std::int64_t bytes) {
  copy(stream, device, host, bytes);
}

void CpuBackend::copy_to_host(Stream& stream, void* host, const void* device, std::int64_t bytes) {
  copy(stream, host, device, bytes);
}

void CpuBackend::copy(Stream& stream, void* to, const void* from, std::int64_t bytes) {
  require_range("copy", to, from, bytes);
  enqueue(stream, [this, to, from, bytes] {
    pool_.parallel_for((bytes + copy_tile - 1) / copy_tile, [=](std::int64_t tile, int) {
      const std::int64_t offset = tile * copy_tile;
      std::memcpy(static_cast<std::byte*>(to) + offset, static_cast<const std::byte*>(from) + offset,
                  static_cast<std::size_t>(std::min(copy_tile, bytes - offset)));
    });
  });
}

void CpuBackend::fill_zero(Stream& stream, void* device, std::int64_t bytes) {
  require_range("fill_zero", device, device, bytes);
  enqueue(stream, [this, device, bytes] {
    pool_.parallel_for((bytes + copy_tile - 1) / copy_tile, [=](std::int64_t tile, int) {
      const std::int64_t offset = tile * copy_tile;
      std::memset(static_cast<std::byte*>(device) + offset, 0,
                  static_cast<std::size_t>(std::min(copy_tile, bytes - offset)));
    });
  });
}

void CpuBackend::enqueue(Stream& stream, std::function<void()> work) {
  auto* own = dynamic_cast<CpuStream*>(&stream);
  require(own != nullptr, "cpu backend: got a stream of another backend; use one made by create_stream()");
  own->enqueue(std::move(work));
}

void require_compute_dtype(DType dtype, std::string_view operation) {
  require(dtype == DType::f32,
          fmt::format("{}: the cpu backend computes in F32, got {}; convert first", operation, name_of(dtype)));
}

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace gptqd
