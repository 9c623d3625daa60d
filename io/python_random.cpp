#include "io/python_random.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

/// A seed sequence (as the standard's engines take) that gives the state of MT19937's init_by_array: the reference code
/// of Matsumoto and Nishimura, mt19937ar.c, 2002.
class InitByArray {
 public:
  using result_type = std::uint32_t;

  /// @param key  not empty
  explicit InitByArray(std::vector<std::uint32_t> key) : key_(std::move(key)) {}

  /// @pre last - first == 624, the state's size
  template <class Iterator>
  void generate(Iterator first, Iterator last) const {
    constexpr std::size_t n = std::mt19937::state_size;
    require(last - first == static_cast<std::ptrdiff_t>(n), "python random: unexpected size of the generator's state");
    std::array<std::uint32_t, n> state{};
    state[0] = 19650218;
    for (std::size_t i = 1; i < n; ++i) {
      state[i] = 1812433253u * mixed(state[i - 1]) + static_cast<std::uint32_t>(i);
    }
    std::size_t i = 1;
    const auto advance = [&] {
      if (++i == n) {
        state[0] = state[n - 1];
        i = 1;
      }
    };
    std::size_t j = 0;
    for (std::size_t round = std::max(n, key_.size()); round > 0; --round) {
      state[i] = (state[i] ^ mixed(state[i - 1]) * 1664525u) + key_[j] + static_cast<std::uint32_t>(j);
      advance();
      j = (j + 1) % key_.size();
    }
    for (std::size_t round = n - 1; round > 0; --round) {
      state[i] = (state[i] ^ mixed(state[i - 1]) * 1566083941u) - static_cast<std::uint32_t>(i);
      advance();
    }
    state[0] = 0x80000000u;
    std::copy(state.begin(), state.end(), first);
  }

 private:
  static std::uint32_t mixed(std::uint32_t word) { return word ^ word >> 30; }

  std::vector<std::uint32_t> key_;
};

std::mt19937 seeded(std::uint64_t seed) {
  // The digits of the seed in base 2^32, lowest first, without leading zeros; 0 has one digit.
  std::vector<std::uint32_t> key{static_cast<std::uint32_t>(seed)};
  if (const auto high = static_cast<std::uint32_t>(seed >> 32); high != 0) {
    key.push_back(high);
  }
  InitByArray sequence(std::move(key));
  return std::mt19937(sequence);
}

}  // namespace

PythonRandom::PythonRandom(std::uint64_t seed) : generator_(seeded(seed)) {}

std::uint64_t PythonRandom::getrandbits(int bits) {
  require(bits >= 0 && bits <= 64, "python random: getrandbits of more than 64 bits");
  std::uint64_t result = 0;
  for (int done = 0; done < bits; done += 32) {
    const int missing = bits - done;
    const std::uint32_t word = static_cast<std::uint32_t>(generator_()) >> std::max(0, 32 - missing);
    result |= std::uint64_t{word} << done;
  }
  return result;
}

std::int64_t PythonRandom::randrange(std::int64_t start, std::int64_t stop) {
  const std::uint64_t width = static_cast<std::uint64_t>(stop) - static_cast<std::uint64_t>(start);
  require(start < stop && width <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()),
          "python random: randrange of an empty or too large range");
  const auto bits = static_cast<int>(std::bit_width(width));
  std::uint64_t value = getrandbits(bits);
  while (value >= width) {
    value = getrandbits(bits);
  }
  return start + static_cast<std::int64_t>(value);
}

std::int64_t PythonRandom::randint(std::int64_t first, std::int64_t last) {
  require(last < std::numeric_limits<std::int64_t>::max(), "python random: randint up to 2^63 - 1");
  return randrange(first, last + 1);
}

}  // namespace gptqd::io
