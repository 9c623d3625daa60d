#include "pipeline/paired_difference.hpp"

#include <boost/math/distributions/students_t.hpp>
#include <cmath>

#include "kernels/base/error.hpp"

namespace gptqd::pipeline {

PairedDifference paired_difference(std::span<const double> a, std::span<const double> b) {
  require(a.size() == b.size() && !a.empty(), "a paired difference needs the same windows on both sides");
  const auto n = static_cast<double>(a.size());
  PairedDifference result{.mean = 0, .half_width = std::nullopt, .windows = std::ssize(a)};
  for (std::size_t i = 0; i < a.size(); ++i) {
    result.mean += (b[i] - a[i]) / n;
  }
  if (a.size() > 1) {
    double squares = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double deviation = b[i] - a[i] - result.mean;
      squares += deviation * deviation;
    }
    const double t = boost::math::quantile(boost::math::students_t(n - 1), 0.975);
    result.half_width = t * std::sqrt(squares / (n - 1) / n);
  }
  return result;
}

}  // namespace gptqd::pipeline
