#pragma once
/// @file Loops compiled for several instruction sets, chosen at run time, with the same bits from each.
///
/// A kernel is a struct with an always-inline static function `run`. Its loops do elementwise IEEE arithmetic; sums go
/// through a fixed number of lanes. No instruction set may then change a bit, for products and sums are never
/// contracted (cmake/GptqdSettings.cmake). Sources with kernels are compiled with -fno-math-errno and
/// -fno-trapping-math, without which conditional moves do not vectorize.
#include <cstdint>
#include <limits>
#include <type_traits>

namespace gptqd::vectorized {

enum class Level { baseline, avx2, avx512 };

/// The best level of this machine.
Level best_level();

template <class Kernel, class... Args>
[[gnu::noinline]] void call_baseline(Args... args) {
  Kernel::run(args...);
}
template <class Kernel, class... Args>
[[gnu::noinline, gnu::target("avx2")]] void call_avx2(Args... args) {
  Kernel::run(args...);
}
template <class Kernel, class... Args>
[[gnu::noinline, gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] void call_avx512(Args... args) {
  Kernel::run(args...);
}

/// Kernel::run(args...) at `level`. @pre level <= best_level()
template <class Kernel, class... Args>
void call(Level level, Args... args) {
  switch (level) {
    case Level::avx512:
      return call_avx512<Kernel>(args...);
    case Level::avx2:
      return call_avx2<Kernel>(args...);
    case Level::baseline:
      return call_baseline<Kernel>(args...);
  }
}

/// rint(x), half to even, for |x| < 2^22 (double: 2^51); for larger |x| a value that is at least as large.
///
/// Adding 1.5·2^(mantissa bits) leaves no bits for the fraction: IEEE addition does the rounding, on any instruction
/// set.
template <class T>
[[gnu::always_inline]] inline T round_half_even(T x) {
  constexpr T shift = static_cast<T>(3ll << (std::numeric_limits<T>::digits - 2));
  return (x + shift) - shift;
}

/// x limited to [low, high]; low where x is NaN.
template <class T>
[[gnu::always_inline]] inline T clamp(T x, T low, T high) {
  const T above = x > low ? x : low;
  return above < high ? above : high;
}

/// q = clamp(rint(w/s) + z, 0, highest), as a number of type T.
template <class T>
[[gnu::always_inline]] inline T code_of(T weight, T scale, T zero, T highest) {
  return clamp(round_half_even(weight / scale) + zero, T{0}, highest);
}

}  // namespace gptqd::vectorized
