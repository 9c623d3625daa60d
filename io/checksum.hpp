#pragma once
/// @file Checksums against damage (not against forgery): XXH3-128.
#include <cstddef>
#include <memory>
#include <span>
#include <string>

struct XXH3_state_s;

namespace gptqd::io {

/// XXH3-128 of `data`, seed 0, as 32 hexadecimal digits in canonical (big-endian) order: what `xxhsum -H2` prints.
std::string xxh3_128_hex(std::span<const std::byte> data);

/// The same over data that comes in pieces.
class Hasher {
 public:
  Hasher();
  void update(std::span<const std::byte> data);
  /// The checksum of everything so far; more may follow.
  std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace gptqd::io
