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

Matrix<double> rms_norm(const Matrix<float>& x, const std::vector<float>& weight, double epsilon) {
  Matrix<double> y(x.rows, x.cols);
  const auto d = static_cast<std::int64_t>(weight.size());
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t start = 0; start < x.cols; start += d) {
      double squares = 0.0;
      for (std::int64_t i = start; i < start + d; ++i) {
        squares += static_cast<double>(x(t, i)) * static_cast<double>(x(t, i));
      }
      const double norm = std::sqrt(squares / static_cast<double>(d) + epsilon);
      for (std::int64_t i = start; i < start + d; ++i) {
        y(t, i) = static_cast<double>(x(t, i)) / norm * at(weight, i - start);
      }
    }
  }
  return y;
}

Matrix<double> rotary(const Matrix<float>& x, const Matrix<float>& cos, const Matrix<float>& sin,
                      std::int64_t tokens_per_sample, std::int64_t head_dim) {
  auto y = x.as<double>();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const std::int64_t p = t % tokens_per_sample;
    for (std::int64_t head = 0; head < x.cols; head += head_dim) {
      for (std::int64_t i = 0; i < cos.cols; ++i) {
        const double low = static_cast<double>(x(t, head + i));
        const double high = static_cast<double>(x(t, head + i + cos.cols));
        y(t, head + i) = low * static_cast<double>(cos(p, i)) - high * static_cast<double>(sin(p, i));
        y(t, head + i + cos.cols) = high * static_cast<double>(cos(p, i)) + low * static_cast<double>(sin(p, i));
      }
    }
  }
  return y;
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu_tanh:
      return x / 2.0 * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::none:
      break;
  }
  return x;
}

Matrix<double> gated_activation(const Matrix<float>& gate, const Matrix<float>& up, Activation activation) {
  Matrix<double> y(gate.rows, gate.cols);
  for (std::size_t i = 0; i < y.data.size(); ++i) {
    y.data[i] = activate(activation, static_cast<double>(gate.data[i])) * static_cast<double>(up.data[i]);
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
      const std::int64_t first = shape.window == 0 ? sample_start : std::max(sample_start, t - shape.window + 1);
      const double slope = shape.alibi_slopes.empty() ? 0.0 : at(shape.alibi_slopes, head);
      std::vector<double> scores;
      for (std::int64_t j = first; j <= t; ++j) {
        double score = 0.0;
        for (std::int64_t c = 0; c < shape.head_dim; ++c) {
          score += static_cast<double>(q(t, column + c)) * static_cast<double>(k(j, kv_column + c));
        }
        scores.push_back(score * shape.scale + slope * static_cast<double>(j - t));
      }
      const double highest = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      for (auto& score : scores) {
        score = std::exp(score - highest);
        sum += score;
      }
      for (std::int64_t j = first; j <= t; ++j) {
        const double weight = scores[static_cast<std::size_t>(j - first)] / sum;
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
