/// @file The same bits on any number of ranks: every rank also computes all of it alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <ostream>
#include <span>

#include "comm/tree_sum.hpp"
#include "gptq/panels.hpp"
#include "tests/comm/mpi_main.hpp"
#include "tests/gptq/support.hpp"

namespace gptqd::gptq {
namespace {

using test::HostLinear;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr Partition cuts{.leaves = 8, .panel_columns = 128, .row_tile = 16};

/// This process as one rank of the world.
class WorldTeam {
 public:
  Team& team() { return team_; }

 private:
  std::unique_ptr<Backend> backend_ = make_cpu_backend({.threads = 1});
  std::unique_ptr<Stream> stream_ = backend_->create_stream();
  comm::Group& group_ = comm::test::world().group();
  std::unique_ptr<comm::Communicator> communicator_ = comm::make_mpi_communicator(group_);
  Team team_{*backend_, *stream_, *communicator_, group_};
};

struct Problem {
  std::int64_t cols = 320;
  std::vector<std::int64_t> rows{33, 7, 60};
  std::int64_t tokens = 400;
  std::vector<float> x = test::activations(tokens, cols, 21);
  std::vector<float> weight = test::normal(100 * cols, 22);
  Partition partition = cuts;

  /// Leaves of one rank out of `ranks`; lengths differ, the third is empty.
  std::vector<LeafInput> leaves(AnyView<2> all, int rank, int ranks) const {
    const std::vector<std::int64_t> cut{0, 90, 91, 91, 150, 220, 300, 301, 400};
    const auto own = comm::leaves_of(rank, ranks, 8);
    std::vector<LeafInput> result;
    for (int leaf = own.first; leaf < own.end(); ++leaf) {
      LeafInput input{.leaf = leaf, .chunks = {}};
      const auto end = cut[static_cast<std::size_t>(leaf) + 1];
      for (auto t = cut[static_cast<std::size_t>(leaf)]; t < end; t += 30) {
        input.chunks.push_back(all.slice_rows(t, std::min<std::int64_t>(30, end - t)));
      }
      result.push_back(std::move(input));
    }
    return result;
  }

  /// The same in host memory, chunks of 30 tokens in two parts.
  static std::vector<LeafInput> parked(std::vector<LeafInput> leaves) {
    for (auto& leaf : leaves) {
      for (auto& chunk : leaf.chunks) {
        const auto whole = chunk.parts.front();
        const std::int64_t first = whole.rows() / 3;
        chunk.parts = {whole.slice_rows(0, first), whole.slice_rows(first, whole.rows() - first)};
      }
    }
    return leaves;
  }

  std::vector<HostLinear> quantize_parked(Team& team, const QuantSpec& spec) const {
    auto host_x = x;
    const auto upload = team.backend.create_stream();
    const HessianInput input{
        .leaves = parked(leaves({host_x.data(), DType::f32, {tokens, cols}}, team.group.rank(), team.group.size())),
        .tokens = tokens,
        .matrix = {},
        .find_non_finite = {},
        .upload = upload.get()};
    auto results = quantize(team, spec, input);
    EXPECT_EQ(host_x, x);
    return results;
  }

  std::vector<HostLinear> quantize(Team& team, const QuantSpec& spec,
                                   const std::function<std::optional<std::string>()>& find_non_finite = {}) const {
    const test::DeviceMatrix<float> device_x(team, tokens, cols, x);
    const HessianInput input{.leaves = leaves(device_x.view(), team.group.rank(), team.group.size()),
                             .tokens = tokens,
                             .matrix = {},
                             .find_non_finite = find_non_finite};
    return quantize(team, spec, input);
  }

  std::vector<HostLinear> quantize(Team& team, const QuantSpec& spec, const HessianInput& input) const {
    const test::DeviceMatrix<float> device_w(team, 100, cols, weight);
    std::vector<LinearWeight> linears;
    std::int64_t first = 0;
    for (const auto count : rows) {
      linears.push_back(
          {.name = fmt::format("linear{}", linears.size()), .weight = device_w.view().slice_rows(first, count)});
      first += count;
    }
    return test::download(team, quantize_group(team, linears, input, spec, partition), spec.bits);
  }
};

struct Case {
  const char* name;
  QuantSpec spec;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class SameBits : public ::testing::TestWithParam<Case> {};

TEST_P(SameBits, AsOneRankAlone) {
  const Problem problem;
  WorldTeam world;
  test::LocalTeam alone(1);

  const auto together = problem.quantize(world.team(), GetParam().spec);
  const auto expected = problem.quantize(alone.team(), GetParam().spec);

  ASSERT_EQ(together.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(together[i] == expected[i]) << together[i].record << "\n" << expected[i].record;
  }
}

TEST_P(SameBits, WithAWholeHessianOnEveryRank) {
  Problem problem;
  WorldTeam world;
  test::LocalTeam alone(1);

  const auto expected = problem.quantize(alone.team(), GetParam().spec);
  problem.partition.whole_columns = problem.cols;
  const auto whole = problem.quantize(world.team(), GetParam().spec);

  ASSERT_EQ(whole.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(whole[i] == expected[i]) << whole[i].record << "\n" << expected[i].record;
  }
}

TEST_P(SameBits, WithParkedActivationsAsOneRankAloneWithoutThem) {
  const Problem problem;
  WorldTeam world;
  test::LocalTeam alone(1);

  const auto together = problem.quantize_parked(world.team(), GetParam().spec);
  const auto expected = problem.quantize(alone.team(), GetParam().spec);

  ASSERT_EQ(together.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(together[i] == expected[i]) << together[i].record << "\n" << expected[i].record;
  }
}

QuantSpec spec_with(int bits, std::int64_t group, ActOrder order, Clip clip, Method method = Method::gptq,
                    DType solver = DType::f32) {
  QuantSpec spec;
  spec.bits = bits;
  spec.group_size = group;
  spec.act_order = order;
  spec.clip = clip;
  spec.method = method;
  spec.solver = solver;
  spec.symmetric = bits > 3;
  return spec;
}

INSTANTIATE_TEST_SUITE_P(, SameBits,
                         ::testing::Values(Case{"Static", spec_with(4, 64, ActOrder::fixed, Clip::mse)},
                                           Case{"Natural", spec_with(3, 32, ActOrder::none, Clip::none)},
                                           Case{"Dynamic", spec_with(2, 160, ActOrder::dynamic, Clip::mse)},
                                           Case{"HessianClip", spec_with(3, 64, ActOrder::fixed, Clip::hessian)},
                                           Case{"WholeRows", spec_with(4, -1, ActOrder::fixed, Clip::none)},
                                           Case{"Double", spec_with(8, 64, ActOrder::dynamic, Clip::none, Method::gptq,
                                                                    DType::f64)},
                                           Case{"Rtn", spec_with(4, 64, ActOrder::none, Clip::mse, Method::rtn)}),
                         [](const auto& test) { return test.param.name; });

TEST(ObqOnRanks, GivesTheBitsOfOneRank) {
  Problem problem;
  problem.cols = 96;
  problem.rows = {40, 20, 40};
  problem.x = test::activations(problem.tokens, 96, 23);
  problem.weight = test::normal(100 * 96, 24);
  WorldTeam world;
  test::LocalTeam alone(1);
  const auto spec = spec_with(3, 32, ActOrder::fixed, Clip::mse, Method::obq);

  const auto together = problem.quantize(world.team(), spec);
  const auto expected = problem.quantize(alone.team(), spec);
  problem.partition.whole_columns = problem.cols;
  const auto whole = problem.quantize(world.team(), spec);

  EXPECT_TRUE(together == expected);
  EXPECT_TRUE(whole == expected);
}

TEST(Panels, AreOnEveryRankWhenTheMatrixIsWhole) {
  WorldTeam world;
  Team& team = world.team();
  const int ranks = team.communicator.size();
  Panels panels(team, PanelLayout(100, 30), DType::f32);
  for (int k = 0; k < panels.count(); ++k) {
    EXPECT_EQ(panels.owns(k), k % ranks == team.communicator.rank());
    if (panels.owns(k)) {
      std::fill_n(static_cast<float*>(panels.view(k).data), panels.view(k).bytes() / 4, 1.0F + static_cast<float>(k));
    }
  }

  panels.make_whole(team, "test");

  EXPECT_TRUE(panels.is_whole());
  for (int k = 0; k < panels.count(); ++k) {
    ASSERT_TRUE(panels.owns(k));
    const std::span values(static_cast<const float*>(panels.view(k).data),
                           static_cast<std::size_t>(panels.view(k).bytes() / 4));
    EXPECT_THAT(values, Each(1.0F + static_cast<float>(k)));
  }
  EXPECT_TRUE(Panels(team, panels, DType::f64).is_whole());
}

TEST(FewerTilesThanRanks, GivesTheBitsOfOneRank) {
  Problem problem;
  problem.rows = {9};
  WorldTeam world;
  test::LocalTeam alone(1);
  const auto spec = spec_with(4, 64, ActOrder::fixed, Clip::mse);

  EXPECT_TRUE(problem.quantize(world.team(), spec) == problem.quantize(alone.team(), spec));
}

TEST(NonFiniteActivations, GiveEveryRankTheLowestRanksAnswer) {
  Problem problem;
  problem.x[399 * 320 + 5] = std::numeric_limits<float>::quiet_NaN();
  WorldTeam world;
  const int rank = world.team().group.rank();
  // Two ranks speak where there are two; the lower one is heard.
  const int lowest = std::max(0, world.team().group.size() - 2);

  for (const auto order : {ActOrder::none, ActOrder::fixed}) {
    try {
      problem.quantize(world.team(), spec_with(4, 64, order, Clip::mse), [&] {
        return rank >= lowest ? std::optional(fmt::format("sample of rank {}", rank)) : std::nullopt;
      });
      ADD_FAILURE() << "no Error was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_THAT(error.message(), HasSubstr("linear0, linear1, linear2 is not finite"));
      EXPECT_THAT(error.message(), HasSubstr(fmt::format("sample of rank {}", lowest)));
    }
  }
}

TEST(IndefiniteHessian, FallsBackOnEveryRank) {
  const std::int64_t n = 256;
  WorldTeam world;
  Team& team = world.team();
  std::vector<double> h(static_cast<std::size_t>(n * n), 0.0);
  for (std::size_t i = 0; i < 256; ++i) {
    h[i * 257] = 1;
  }
  h[200 * 256 + 100] = h[100 * 256 + 200] = 3;
  const test::DeviceMatrix<double> matrix(team, n, n, h);
  const test::DeviceMatrix<float> weight(team, 50, n, test::normal(50 * n, 25));
  const std::vector<LinearWeight> linears{{.name = "fc2", .weight = weight.view()}};
  const HessianInput input{.leaves = {}, .tokens = 1, .matrix = matrix.view(), .find_non_finite = {}};

  const auto results = quantize_group(team, linears, input, spec_with(4, 64, ActOrder::fixed, Clip::mse), cuts);

  EXPECT_TRUE(results.front().record.fallback);
  EXPECT_EQ(results.front().record.retries, 2);
}

}  // namespace
}  // namespace gptqd::gptq
