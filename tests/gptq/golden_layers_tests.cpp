/// @file Single layers against what the paper's published code makes of them (tests/golden/gptq/layers.*).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/safetensors.hpp"
#include "tests/gptq/support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::gptq {
namespace {

/// The golden file's tensors.
class GoldenLayers {
 public:
  GoldenLayers()
      : file_(gptqd::test::source_path("tests/golden/gptq/layers.safetensors")),
        json(nlohmann::json::parse(std::ifstream(gptqd::test::source_path("tests/golden/gptq/layers.json")))) {}

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const auto& info = file_.at(name);
    std::vector<T> values(static_cast<std::size_t>(info.bytes) / sizeof(T));
    file_.read(info, std::as_writable_bytes(std::span(values)));
    return values;
  }
  /// The float64 run's tensor where it differs from the float32 run's, else that one.
  template <class T>
  std::vector<T> read_f64_run(const std::string& prefix, const std::string& kind) const {
    return read<T>(has(prefix + kind + "_f64") ? prefix + kind + "_f64" : prefix + kind + "_f32");
  }

 private:
  io::SafetensorsFile file_;

 public:
  nlohmann::json json;
};

const GoldenLayers& golden() {
  static const GoldenLayers layers;
  return layers;
}

QuantSpec spec_of(const nlohmann::json& solve, DType solver) {
  QuantSpec spec;
  spec.bits = solve.at("bits");
  spec.group_size = solve.at("group_size");
  spec.symmetric = solve.at("sym");
  spec.act_order = solve.at("act_order") ? ActOrder::fixed : ActOrder::none;
  spec.clip = Clip::none;
  spec.reference = true;
  spec.dead_diagonal = 1;
  spec.solver = solver;
  return spec;
}

/// Every solve of one layer.
class GoldenLayerTest : public ::testing::TestWithParam<std::string> {
 protected:
  test::HostLinear quantize(const QuantSpec& spec) {
    const test::DeviceMatrix<float> w(local_.team(), rows, cols, weight);
    const test::DeviceMatrix<double> h(local_.team(), cols, cols, hessian);
    const std::vector<LinearWeight> linears{{.name = GetParam(), .weight = w.view()}};
    const HessianInput input{.leaves = {}, .tokens = 65536, .matrix = h.view(), .find_non_finite = {}};
    const auto results = quantize_group(local_.team(), linears, input, spec, {.panel_columns = 64, .row_tile = 16});
    return test::download(local_.team(), results.front(), spec.bits);
  }

  nlohmann::json layer = [] {
    for (const auto& candidate : golden().json.at("layers")) {
      if (candidate.at("layer") == GetParam()) {
        return candidate;
      }
    }
    throw Error(ErrorKind::internal, "no such golden layer");
  }();
  std::int64_t rows = layer.at("rows");
  std::int64_t cols = layer.at("cols");
  std::vector<float> weight = golden().read<float>(GetParam() + ".weight");
  std::vector<double> hessian = golden().read<double>(GetParam() + ".hessian");

 private:
  test::LocalTeam local_;
};

TEST_P(GoldenLayerTest, DoubleSolverGivesTheSameCodes) {
  for (const auto& solve : layer.at("solves")) {
    SCOPED_TRACE(solve.at("name"));
    const auto spec = spec_of(solve, DType::f64);
    const std::string prefix = GetParam() + "." + solve.at("name").get<std::string>() + ".";

    const auto got = quantize(spec);

    EXPECT_TRUE(test::unpack(got.packed, rows, cols, spec.bits) ==
                golden().read_f64_run<std::uint8_t>(prefix, "codes"));
    EXPECT_TRUE(got.zeros == golden().read_f64_run<std::uint8_t>(prefix, "zeros"));
    std::vector<float> scales;
    for (const auto bits : golden().read_f64_run<std::uint16_t>(prefix, "scales")) {
      scales.push_back(to_float(Half{bits}));
    }
    EXPECT_TRUE(got.scales == scales);
    const auto& record = got.layer_record;
    const double norm = layer.at("weight_norm");
    EXPECT_NEAR(record.weight_norm.value() / norm, 1, 1e-8);
    EXPECT_NEAR(record.loss.value() * norm / solve.at("loss_f64").get<double>(), 1, 1e-6);
    EXPECT_NEAR(record.rtn_loss.value() * norm / solve.at("loss_rtn").get<double>(), 1, 1e-6);
    EXPECT_EQ(record.dead_columns, layer.at("dead_columns").get<std::int64_t>());
    EXPECT_EQ(record.tokens, 65536);
    EXPECT_EQ(record.retries, 0);
  }
}

TEST_P(GoldenLayerTest, FloatSolverIsAsCloseAsTheReferenceIsToItself) {
  for (const auto& solve : layer.at("solves")) {
    SCOPED_TRACE(solve.at("name"));
    const auto spec = spec_of(solve, DType::f32);
    const std::string prefix = GetParam() + "." + solve.at("name").get<std::string>() + ".";
    const auto expected = golden().read<std::uint8_t>(prefix + "codes_f32");

    const auto got = quantize(spec);

    const auto codes = test::unpack(got.packed, rows, cols, spec.bits);
    std::int64_t differing_rows = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      differing_rows +=
          std::equal(codes.begin() + r * cols, codes.begin() + (r + 1) * cols, expected.begin() + r * cols) ? 0 : 1;
    }
    EXPECT_LE(static_cast<double>(differing_rows),
              solve.at("rows_differing").get<double>() + 0.01 * static_cast<double>(rows));
    EXPECT_NEAR(
        got.layer_record.loss.value() * layer.at("weight_norm").get<double>() / solve.at("loss_f32").get<double>(), 1,
        1e-3);
  }
}

INSTANTIATE_TEST_SUITE_P(, GoldenLayerTest,
                         ::testing::Values("llama-7m.1.k_proj", "llama-7m.4.o_proj", "llama-7m.5.down_proj",
                                           "opt-7m.0.k_proj", "opt-7m.1.fc2.first256", "opt-7m.2.out_proj",
                                           "opt-7m.3.fc1"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return c == '.' || c == '-'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace gptqd::gptq
