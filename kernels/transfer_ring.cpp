#include "kernels/transfer_ring.hpp"

namespace gptqd {

namespace {

std::array<TransferSlot, 2> make_slots(Backend& backend, std::int64_t bytes) {
  return {TransferSlot{.memory = backend.allocate(bytes), .free = {}},
          TransferSlot{.memory = backend.allocate(bytes), .free = {}}};
}

}  // namespace

UploadRing::UploadRing(Backend& backend, Stream& compute, Stream& copies, std::int64_t slot_bytes)
    : backend_(backend), compute_(compute), copies_(copies), slots_(make_slots(backend, slot_bytes)) {}

void* UploadRing::bring(std::span<const HostPart> parts) {
  auto& slot = slots_[current_];
  copies_.wait(slot.free);
  std::int64_t offset = 0;
  for (const auto& part : parts) {
    require(offset + part.bytes <= slot.memory.bytes(),
            fmt::format("upload: got more than the {} bytes of a slot", slot.memory.bytes()));
    backend_.copy_to_device(copies_, static_cast<std::byte*>(slot.memory.data()) + offset, part.data, part.bytes);
    offset += part.bytes;
  }
  compute_.wait(copies_.record());
  return slot.memory.data();
}

void UploadRing::release() {
  slots_[current_].free = compute_.record();
  current_ = (current_ + 1) % slots_.size();
}

DownloadRing::DownloadRing(Backend& backend, Stream& compute, Stream& copies, std::int64_t slot_bytes)
    : backend_(backend), compute_(compute), copies_(copies), slots_(make_slots(backend, slot_bytes)) {}

void* DownloadRing::next() {
  auto& slot = slots_[current_];
  compute_.wait(slot.free);
  return slot.memory.data();
}

void DownloadRing::send(void* host, std::int64_t bytes) {
  auto& slot = slots_[current_];
  require(bytes <= slot.memory.bytes(),
          fmt::format("download: got {} bytes, a slot holds {}", bytes, slot.memory.bytes()));
  copies_.wait(compute_.record());
  backend_.copy_to_host(copies_, host, slot.memory.data(), bytes);
  slot.free = copies_.record();
  current_ = (current_ + 1) % slots_.size();
}

}  // namespace gptqd
