/// @file Activations on the device or parked: the same results, and as much memory as planned.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "pipeline/block_loader.hpp"
#include "pipeline/block_quantizer.hpp"
#include "pipeline/source.hpp"
#include "pipeline/synthetic.hpp"
#include "tests/gptq/support.hpp"
#include "tests/pipeline/apart_backend.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptq::test::HostLinear;
using gptq::test::LocalCommunicator;
using gptq::test::LocalGroup;
using test::ApartBackend;
using ::testing::HasSubstr;

struct Settings {
  std::string name;
  gptq::QuantSpec spec = {};
  bool true_sequential = true;
  Propagation propagation = Propagation::quantized;
};
void PrintTo(const Settings& settings, std::ostream* out) { *out << settings.name; }

/// What a run over two blocks leaves behind.
struct Outcome {
  std::vector<HostLinear> linears;
  std::vector<float> hidden;
  std::int64_t device_bytes = 0;
  std::int64_t host_bytes = 0;
};

class ActivationsTest : public ::testing::Test {
 protected:
  Plan plan_of(const Settings& settings, std::optional<Activations> activations, std::int64_t samples = 24) const {
    return make_plan(source.model,
                     {.samples = samples,
                      .seqlen = 128,
                      .micro_batch_tokens = 128,
                      .partition = {.leaves = 8, .panel_columns = 128, .row_tile = 64},
                      .memory = {.spec = settings.spec,
                                 .kind = MemoryKind::cuda,
                                 .compute = DType::f32,
                                 .gram_tokens = gram_tokens,
                                 .keeps_hidden_before_block =
                                     !settings.true_sequential && settings.propagation == Propagation::quantized},
                      .activations = activations});
  }

  Outcome run(const Settings& settings, const Plan& plan, float hidden_factor = 1) const {
    ApartBackend backend(gram_tokens);
    const auto stream = backend.create_stream();
    LocalCommunicator communicator;
    LocalGroup group;
    Progress progress;
    gptq::Team team{backend, *stream, communicator, group};
    BlockQuantizer quantizer(team, source.model, plan, 0,
                             {.layers = LayerSpecs::uniform(settings.spec),
                              .true_sequential = settings.true_sequential,
                              .propagation = settings.propagation});
    quantizer.embed(synthetic_tokens(source.model.vocabulary, plan.samples, plan.seqlen, 7), *source.tensors);
    if (hidden_factor != 1) {
      const auto last = quantizer.hidden().slice_rows(plan.tokens() - 1, 1);
      const std::vector<float> row(static_cast<std::size_t>(last.cols()), hidden_factor);
      backend.copy_to_device(*stream, last.data, row.data(), last.bytes());
      stream->synchronize();
    }
    BlockLoader loader({.backend = backend,
                        .stream = *stream,
                        .communicator = communicator,
                        .group = group,
                        .progress = progress,
                        .model = source.model,
                        .tensors = *source.tensors},
                       {}, [](std::int64_t) { return 0; });
    Outcome outcome;
    for (std::int64_t block = 0; block < 2; ++block) {
      auto weights = loader.load(block);
      const auto result = quantizer.quantize(
          source.model.blocks[static_cast<std::size_t>(block)], weights, [](Phase) {}, [] {});
      for (auto& linear : gptq::test::download(team, result.linears, settings.spec.bits)) {
        outcome.linears.push_back(std::move(linear));
      }
    }
    outcome.device_bytes = backend.peak_bytes();
    outcome.host_bytes = backend.peak_host_bytes();
    outcome.hidden.resize(static_cast<std::size_t>(quantizer.hidden().size()));
    backend.copy_to_host(*stream, outcome.hidden.data(), quantizer.hidden().data, quantizer.hidden().bytes());
    stream->synchronize();
    return outcome;
  }

  // Micro-batches of a leaf are joined by two: chunks of parked activations have two parts where they are not wide.
  static constexpr std::int64_t gram_tokens = 256;
  Source source = open_source(gptqd::test::source_path("jobs/demo/opt-7m"));
};

gptq::QuantSpec spec_with(gptq::ActOrder order) {
  gptq::QuantSpec spec;
  spec.act_order = order;
  return spec;
}

class SameResults : public ActivationsTest, public ::testing::WithParamInterface<Settings> {};

TEST_P(SameResults, WhereverActivationsLive) {
  auto plan = plan_of(GetParam(), Activations::resident);
  plan.spare_bytes = -(std::int64_t{1} << 40);  // put into order where they lie
  const auto resident = run(GetParam(), plan);
  plan.spare_bytes = std::int64_t{1} << 30;
  const auto copied = run(GetParam(), plan);
  const auto parked = run(GetParam(), plan_of(GetParam(), Activations::parked));

  EXPECT_GT(copied.device_bytes, resident.device_bytes);
  for (const auto* other : {&copied, &parked}) {
    ASSERT_EQ(other->linears.size(), 12u);
    for (std::size_t i = 0; i < resident.linears.size(); ++i) {
      EXPECT_TRUE(other->linears[i] == resident.linears[i]) << other->linears[i].record << "\n"
                                                            << resident.linears[i].record;
    }
    EXPECT_EQ(other->hidden, resident.hidden);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SameResults,
                         ::testing::Values(Settings{"natural_order", spec_with(gptq::ActOrder::none)},
                                           Settings{"static_order", spec_with(gptq::ActOrder::fixed)},
                                           Settings{"dynamic_order", spec_with(gptq::ActOrder::dynamic)},
                                           Settings{.name = "float_block", .true_sequential = false},
                                           Settings{.name = "float_model", .propagation = Propagation::unquantized}),
                         [](const auto& info) { return info.param.name; });

TEST_F(ActivationsTest, MemoryIsWhatThePlanSaysAndLessOnTheDeviceWhereActivationsAreParked) {
  const Settings settings;
  constexpr std::int64_t samples = 48;
  std::vector<std::int64_t> device;
  for (const auto activations : {Activations::resident, Activations::parked}) {
    const auto plan = plan_of(settings, activations, samples);
    const auto planned = plan.bytes_per_rank(source.model).most;

    const auto outcome = run(settings, plan);

    const auto measured = static_cast<double>(outcome.device_bytes);
    EXPECT_NEAR(static_cast<double>(planned.device), measured, 0.15 * measured) << name_of(activations);
    // Beside parked activations there are statistics of rows.
    EXPECT_NEAR(static_cast<double>(outcome.host_bytes), static_cast<double>(planned.host), 1e5)
        << name_of(activations);
    device.push_back(outcome.device_bytes);
  }
  constexpr std::int64_t parked_bytes = samples * 128 * (256 + 1024) * 4;
  EXPECT_LT(device[1], device[0] - parked_bytes * 8 / 10);
}

TEST_F(ActivationsTest, ASampleThatIsNotFiniteIsNamedWhereverItLies) {
  const Settings settings;
  for (const auto activations : {Activations::resident, Activations::parked}) {
    const Error error =
        test::error_of([&] { run(settings, plan_of(settings, activations), std::numeric_limits<float>::quiet_NaN()); });

    EXPECT_THAT(error.message(), HasSubstr("calibration sample 23, token 127")) << name_of(activations);
  }
}

}  // namespace
}  // namespace gptqd::pipeline
