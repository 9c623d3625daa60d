#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "gptq/quant_spec.hpp"
#include "tests/gptq/error_of.hpp"

namespace gptqd::gptq {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Refusal {
  const char* name;
  std::function<void(QuantSpec&)> change;
  std::vector<const char*> words;
};

class RefusedSpec : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusedSpec, NamesTheOptionAndWhatIsPossible) {
  QuantSpec spec;
  GetParam().change(spec);

  const auto error = error_of([&] { validate(spec); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  for (const char* word : GetParam().words) {
    EXPECT_THAT(error.message(), HasSubstr(word));
  }
}

INSTANTIATE_TEST_SUITE_P(
    , RefusedSpec,
    ::testing::Values(
        Refusal{"Bits5", [](QuantSpec& s) { s.bits = 5; }, {"--bits", "got 5", "2, 3, 4 or 8"}},
        Refusal{"GroupZero", [](QuantSpec& s) { s.group_size = 0; }, {"--group-size", "got 0", "-1"}},
        Refusal{"GroupNegative", [](QuantSpec& s) { s.group_size = -2; }, {"--group-size", "got -2"}},
        Refusal{"GroupOdd", [](QuantSpec& s) { s.group_size = 100; }, {"--group-size", "got 100", "multiple of 8"}},
        Refusal{"DampingZero", [](QuantSpec& s) { s.damping = 0; }, {"--damping", "above 0"}},
        Refusal{"DampingLarge", [](QuantSpec& s) { s.damping = 1.5; }, {"--damping", "1.5"}},
        Refusal{
            "DampingNaN", [](QuantSpec& s) { s.damping = std::numeric_limits<double>::quiet_NaN(); }, {"--damping"}},
        Refusal{"DeadDiagonal", [](QuantSpec& s) { s.dead_diagonal = 0; }, {"dead_diagonal"}},
        Refusal{"Solver", [](QuantSpec& s) { s.solver = DType::f16; }, {"--solver", "F16", "f32 or f64"}},
        Refusal{"HessianClipOfRows",
                [](QuantSpec& s) {
                  s.clip = Clip::hessian;
                  s.group_size = -1;
                },
                {"--clip hessian", "--clip mse"}},
        Refusal{"HessianClipLongGroups",
                [](QuantSpec& s) {
                  s.clip = Clip::hessian;
                  s.group_size = 2048;
                },
                {"2048", "1024"}},
        Refusal{"ObqDynamic",
                [](QuantSpec& s) {
                  s.method = Method::obq;
                  s.act_order = ActOrder::dynamic;
                },
                {"--method obq", "--act-order static"}},
        Refusal{"RtnDynamic",
                [](QuantSpec& s) {
                  s.method = Method::rtn;
                  s.act_order = ActOrder::dynamic;
                },
                {"--method rtn"}}),
    [](const auto& test) { return test.param.name; });

TEST(QuantSpecTest, DefaultsAndAllBitWidthsAreValid) {
  for (const int bits : {2, 3, 4, 8}) {
    QuantSpec spec;
    spec.bits = bits;
    EXPECT_NO_THROW(validate(spec)) << bits;
  }
}

TEST(QuantSpecTest, NamesGoThereAndBack) {
  for (const auto order : {ActOrder::none, ActOrder::fixed, ActOrder::dynamic}) {
    EXPECT_EQ(act_order_from_name(name_of(order)), order);
  }
  for (const auto method : {Method::gptq, Method::rtn, Method::obq}) {
    EXPECT_EQ(method_from_name(name_of(method)), method);
  }
  for (const auto clip : {Clip::none, Clip::mse, Clip::hessian}) {
    EXPECT_EQ(clip_from_name(name_of(clip)), clip);
  }
  EXPECT_EQ(name_of(ActOrder::fixed), "static");
}

TEST(QuantSpecTest, UnknownNamesAreRefusedWithTheKnownOnes) {
  EXPECT_THAT(error_of([] { act_order_from_name("yes"); }).message(),
              AllOf(HasSubstr("--act-order"), HasSubstr("\"yes\""), HasSubstr("none, static, dynamic")));
  EXPECT_THAT(error_of([] { method_from_name("GPTQ"); }).message(), HasSubstr("gptq, rtn, obq"));
  EXPECT_THAT(error_of([] { clip_from_name(""); }).message(), HasSubstr("none, mse, hessian"));
}

TEST(QuantSpecTest, GridsAreDynamicOnlyForGptqGroupsWithoutStaticOrder) {
  QuantSpec spec;
  EXPECT_FALSE(spec.dynamic_grids());
  spec.act_order = ActOrder::none;
  EXPECT_TRUE(spec.dynamic_grids());
  spec.act_order = ActOrder::dynamic;
  EXPECT_TRUE(spec.dynamic_grids());
  spec.group_size = -1;
  EXPECT_FALSE(spec.dynamic_grids());
  spec.group_size = 128;
  spec.method = Method::obq;
  EXPECT_FALSE(spec.dynamic_grids());
}

TEST(QuantSpecTest, JsonHoldsEveryChoice) {
  QuantSpec spec;
  spec.act_order = ActOrder::none;
  spec.solver = DType::f64;

  const auto json = to_json(spec);

  EXPECT_EQ(json.dump(),
            R"({"act_order":"none","bits":4,"clip":"mse","damping":0.01,"dead_diagonal":1.0,"group_size":128,)"
            R"("method":"gptq","reference":false,"scale_format":"f16","solver":"f64","symmetric":true})");
}

TEST(PartitionTest, LeavesAreAPowerOfTwo) {
  EXPECT_NO_THROW(validate(Partition{}));
  EXPECT_THAT(error_of([] { validate(Partition{.leaves = 6}); }).message(),
              AllOf(HasSubstr("--hessian-leaves"), HasSubstr("got 6")));
  EXPECT_EQ(error_of([] { validate(Partition{.leaves = 0}); }).kind(), ErrorKind::usage);
  EXPECT_EQ(error_of([] { validate(Partition{.row_tile = 0}); }).kind(), ErrorKind::usage);
}

TEST(PartitionTest, JsonHoldsEveryCut) {
  EXPECT_EQ(Partition{}.to_json().dump(), R"({"leaves":8,"panel_columns":768,"row_tile":64})");
}

TEST(DefaultClip, IsTheHessiansWhereGroupsAreShortAndThereIsAHessian) {
  EXPECT_EQ(default_clip(Method::gptq, 128), Clip::hessian);
  EXPECT_EQ(default_clip(Method::obq, 1024), Clip::hessian);
  EXPECT_EQ(default_clip(Method::gptq, 1025), Clip::mse);
  EXPECT_EQ(default_clip(Method::gptq, -1), Clip::mse);
  EXPECT_EQ(default_clip(Method::rtn, 128), Clip::mse);
}

}  // namespace
}  // namespace gptqd::gptq
