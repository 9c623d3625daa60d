/// @file The single-precision GEMM rate of this machine, to compare a quantization run with.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.hpp"
#include "kernels/cpu/blas.hpp"

namespace {

using Clock = std::chrono::steady_clock;

/// C = A·B of [n, n] matrices that belong to one worker.
class Product {
 public:
  Product(std::int64_t n, unsigned seed) : n_(n), a_(static_cast<std::size_t>(n * n)), b_(a_.size()), c_(a_.size()) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (auto* matrix : {&a_, &b_}) {
      for (float& element : *matrix) {
        element = uniform(generator);
      }
    }
  }

  void compute() {
    using gptqd::blas::Op;
    gptqd::blas::gemm(Op::none, Op::none, n_, n_, n_, 1.0f, a_.data(), n_, b_.data(), n_, 0.0f, c_.data(), n_);
  }

  /// Compares some elements with their sums in double precision. @throws Error (internal)
  void check() const {
    const auto size = static_cast<std::size_t>(n_);
    for (std::size_t i = 0; i < size; i += size / 7 + 1) {
      const std::size_t j = (i * 31 + 5) % size;
      double sum = 0;
      for (std::size_t k = 0; k < size; ++k) {
        sum += static_cast<double>(a_[i * size + k]) * static_cast<double>(b_[k * size + j]);
      }
      const double error = std::abs(sum - static_cast<double>(c_[i * size + j]));
      gptqd::require(error <= 1e-5 * std::sqrt(static_cast<double>(n_)) * 10,
                     fmt::format("sgemm: element [{}, {}] is {}, expected {}", i, j, c_[i * size + j], sum));
    }
  }

 private:
  std::int64_t n_;
  std::vector<float> a_;
  std::vector<float> b_;
  std::vector<float> c_;
};

/// Multiplications and additions per second of `workers` threads that multiply [n, n] matrices, each its own, with a
/// single-threaded BLAS: the best of `rounds`. A round begins and ends for all workers together.
double measure(std::int64_t workers, std::int64_t n, std::int64_t rounds) {
  gptqd::blas::set_single_threaded();
  double best_seconds = std::numeric_limits<double>::infinity();
  auto last = Clock::now();
  std::int64_t finished = -2;  // the start of the warm-up and the warm-up itself are not rounds
  std::barrier round(workers, [&]() noexcept {
    const auto now = Clock::now();
    if (++finished > 0) {
      best_seconds = std::min(best_seconds, std::chrono::duration<double>(now - last).count());
    }
    last = now;
  });
  std::vector<std::jthread> threads;
  for (std::int64_t worker = 0; worker < workers; ++worker) {
    threads.emplace_back([&, worker] {
      Product product(n, static_cast<unsigned>(worker));
      round.arrive_and_wait();
      for (std::int64_t i = 0; i < rounds + 1; ++i) {
        product.compute();
        round.arrive_and_wait();
      }
      product.check();
    });
  }
  threads.clear();
  const auto size = static_cast<double>(n);
  return static_cast<double>(workers) * 2 * size * size * size / best_seconds;
}

}  // namespace

/// gptqd_sgemm_peak WORKERS N ROUNDS: prints the BLAS's kernel set and the rate in Gflop/s. OPENBLAS_CORETYPE chooses
/// the kernels; without it they are those that gptq-dist takes.
int main(int argc, char** argv) {
  gptqd::choose_blas_kernels(argv);
  const auto number = [&](int index) { return argc == 4 ? std::strtoll(argv[index], nullptr, 10) : 0; };
  const std::int64_t workers = number(1);
  const std::int64_t n = number(2);
  const std::int64_t rounds = number(3);
  if (workers < 1 || workers > 4096 || n < 1 || n > 32768 || rounds < 1) {
    fmt::print(stderr, "usage: gptqd_sgemm_peak WORKERS N ROUNDS (positive, N at most 32768)\n");
    return gptqd::exit_code(gptqd::ErrorKind::usage);
  }
  const double rate = measure(workers, n, rounds);
  const std::string blas = gptqd::blas_description();
  fmt::print("{} {:.2f}\n", blas.substr(blas.rfind(' ') + 1), rate / 1e9);
  return 0;
}
