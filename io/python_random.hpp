#pragma once
/// @file The random numbers of CPython, so that calibration windows are those that the published GPTQ code draws.
#include <cstdint>
#include <random>

namespace gptqd::io {

/// Python's `random` module after `random.seed(seed)` with an integer: MT19937 seeded by init_by_array over the 32-bit
/// digits of the seed (CPython, Modules/_randommodule.c and Lib/random.py; equal in every version since 3.2).
class PythonRandom {
 public:
  explicit PythonRandom(std::uint64_t seed);

  /// random.getrandbits(bits). @pre 0 <= bits <= 64
  std::uint64_t getrandbits(int bits);
  /// random.randrange(start, stop): an integer in [start, stop). @pre start < stop, stop - start < 2^63
  std::int64_t randrange(std::int64_t start, std::int64_t stop);
  /// random.randint(first, last): an integer in [first, last], both included. @pre first <= last, last < 2^63 - 1
  std::int64_t randint(std::int64_t first, std::int64_t last);

 private:
  std::mt19937 generator_;
};

}  // namespace gptqd::io
