#include "io/checksum.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>

namespace gptqd::io {

namespace {

std::string hex_of(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  std::string text;
  for (const unsigned char digit : canonical.digest) {
    text += fmt::format("{:02x}", digit);
  }
  return text;
}

}  // namespace

std::string xxh3_128_hex(std::span<const std::byte> data) { return hex_of(XXH3_128bits(data.data(), data.size())); }

Hasher::Hasher() : state_(XXH3_createState()) {
  if (state_ == nullptr) {
    throw std::bad_alloc();
  }
  XXH3_128bits_reset(state_.get());
}

void Hasher::update(std::span<const std::byte> data) { XXH3_128bits_update(state_.get(), data.data(), data.size()); }

std::string Hasher::hex() const { return hex_of(XXH3_128bits_digest(state_.get())); }

void Hasher::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

}  // namespace gptqd::io
