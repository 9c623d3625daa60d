#include "tests/reference/forward.hpp"

#include <algorithm>
#include <cmath>

namespace gptqd::reference {

namespace {

template <class Product>
Matrix<double> matrix_product(const Matrix<float>& x, const Matrix<float>& weight, const Product& product) {
  Matrix<double> y(x.rows, weight.rows);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t o = 0; o < weight.rows; ++o) {
      for (std::int64_t i = 0; i < x.cols; ++i) {
        y(t, o) += product(static_cast<double>(x(t, i)), static_cast<double>(weight(o, i)));
      }
    }
  }
  return y;
}

double at(const std::vector<float>& values, std::int64_t i) {
  return static_cast<double>(values[static_cast<std::size_t>(i)]);
}

}  // namespace

Matrix<double> linear(const Matrix<float>& x, const Matrix<float>& weight, const std::vector<float>& bias) {
  auto y = matrix_product(x, weight, [](double a, double b) { return a * b; });
  for (std::int64_t t = 0; t < y.rows && !bias.empty(); ++t) {
    for (std::int64_t o = 0; o < y.cols; ++o) {
      y(t, o) += at(bias, o);
    }
  }
  return y;
}

Matrix<double> linear_magnitude(const Matrix<float>& x, const Matrix<float>& weight, const std::vector<float>& bias) {
  auto y = matrix_product(x, weight, [](double a, double b) { return std::abs(a * b); });
  for (std::int64_t t = 0; t < y.rows && !bias.empty(); ++t) {
    for (std::int64_t o = 0; o < y.cols; ++o) {
      y(t, o) += std::abs(at(bias, o));
    }
  }
  return y;
}

Matrix<double> layer_norm(const Matrix<float>& x, const std::vector<float>& weight, const std::vector<float>& bias,
                          double epsilon) {
  Matrix<double> y(x.rows, x.cols);
  const auto d = static_cast<double>(x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double mean = 0.0;
    for (std::int64_t i = 0; i < x.cols; ++i) {
      mean += static_cast<double>(x(t, i)) / d;
    }
    double variance = 0.0;
    for (std::int64_t i = 0; i < x.cols; ++i) {
      variance += std::pow(static_cast<double>(x(t, i)) - mean, 2) / d;
    }
    for (std::int64_t i = 0; i < x.cols; ++i) {
      y(t, i) = (static_cast<double>(x(t, i)) - mean) / std::sqrt(variance + epsilon) * at(weight, i) + at(bias, i);
    }
  }
  return y;
}

Matrix<double> attention(const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v,
                         const AttentionShape& shape) {
  Matrix<double> out(q.rows, q.cols);
  for (std::int64_t t = 0; t < q.rows; ++t) {
    const std::int64_t sample_start = t / shape.tokens_per_sample * shape.tokens_per_sample;
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const std::int64_t column = head * shape.head_dim;
      const std::int64_t kv_column = head / (shape.heads / shape.kv_heads) * shape.head_dim;
      std::vector<double> scores;
      for (std::int64_t j = sample_start; j <= t; ++j) {
        double score = 0.0;
        for (std::int64_t c = 0; c < shape.head_dim; ++c) {
          score += static_cast<double>(q(t, column + c)) * static_cast<double>(k(j, kv_column + c));
        }
        scores.push_back(score * shape.scale);
      }
      const double highest = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      for (auto& score : scores) {
        score = std::exp(score - highest);
        sum += score;
      }
      for (std::int64_t j = sample_start; j <= t; ++j) {
        const double weight = scores[static_cast<std::size_t>(j - sample_start)] / sum;
        for (std::int64_t c = 0; c < shape.head_dim; ++c) {
          out(t, column + c) += weight * static_cast<double>(v(j, kv_column + c));
        }
      }
    }
  }
  return out;
}

std::vector<double> cross_entropy(const Matrix<float>& x, const Matrix<float>& head,
                                  const std::vector<std::int32_t>& targets) {
  const auto logits = linear(x, head, {});
  std::vector<double> nll(static_cast<std::size_t>(x.rows), 0.0);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const auto target = targets[static_cast<std::size_t>(t)];
    if (target < 0) {
      continue;
    }
    double highest = logits(t, 0);
    for (std::int64_t w = 0; w < head.rows; ++w) {
      highest = std::max(highest, logits(t, w));
    }
    double sum = 0.0;
    for (std::int64_t w = 0; w < head.rows; ++w) {
      sum += std::exp(logits(t, w) - highest);
    }
    nll[static_cast<std::size_t>(t)] = std::log(sum) + highest - logits(t, target);
  }
  return nll;
}

}  // namespace gptqd::reference
