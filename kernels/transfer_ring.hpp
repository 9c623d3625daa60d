#pragma once
/// @file Data that lives in page-locked host memory, on its way to and from the device beside the work on it.
#include <array>
#include <cstdint>
#include <span>

#include "kernels/backend.hpp"

namespace gptqd {

/// Bytes of page-locked host memory (Backend::allocate_host).
struct HostPart {
  const void* data = nullptr;
  std::int64_t bytes = 0;
};

/// Device memory that transfers and work use in turn.
struct TransferSlot {
  Buffer memory;
  Event free;  ///< for the side that fills it
};

/// Host to device through two slots: while work reads one, the other is filled.
///
/// The host memory must outlive both streams' work. The slots need not.
/// @code
/// for (const auto& parts : pieces) {
///   const void* data = ring.bring(parts);
///   enqueue work with data on `compute`;
///   ring.release();
/// }
/// @endcode
class UploadRing {
 public:
  /// @param compute  the stream of the work that uses the slots
  /// @param copies   the stream of the transfers; work enqueued there before is done first
  UploadRing(Backend& backend, Stream& compute, Stream& copies, std::int64_t slot_bytes);

  /// Device memory with the parts behind one another, for work enqueued on `compute` until release(). It may be
  /// changed.
  /// @throws Error (internal) for more than a slot holds
  void* bring(std::span<const HostPart> parts);
  /// All work that uses the slot is enqueued.
  void release();

 private:
  Backend& backend_;
  Stream& compute_;
  Stream& copies_;
  std::array<TransferSlot, 2> slots_;
  std::size_t current_ = 0;
};

/// Device to host, likewise: while one slot is written, the other is sent.
class DownloadRing {
 public:
  DownloadRing(Backend& backend, Stream& compute, Stream& copies, std::int64_t slot_bytes);

  /// Device memory for work enqueued on `compute` until send().
  void* next();
  /// Sends the first bytes of the slot to the host when the work enqueued by now is done.
  void send(void* host, std::int64_t bytes);

 private:
  Backend& backend_;
  Stream& compute_;
  Stream& copies_;
  std::array<TransferSlot, 2> slots_;
  std::size_t current_ = 0;
};

}  // namespace gptqd
