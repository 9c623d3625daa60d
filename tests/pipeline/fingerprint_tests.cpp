#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "pipeline/fingerprint.hpp"

namespace gptqd::pipeline {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

const nlohmann::json fingerprint = {{"model", {{"files", {{{"name", "a"}, {"bytes", 3}}}}}},
                                    {"spec", {{"bits", 4}, {"damping", 0.01}}},
                                    {"calibration", nullptr}};

TEST(Fingerprint, EqualOnesHaveNoDifferencesAndOneHash) {
  const auto again = nlohmann::json::parse(fingerprint.dump());

  EXPECT_THAT(fingerprint_differences(fingerprint, again), IsEmpty());
  EXPECT_EQ(fingerprint_hash(fingerprint), fingerprint_hash(again));
  EXPECT_EQ(fingerprint_hash(fingerprint).size(), 32u);
}

TEST(Fingerprint, TheHashDoesNotDependOnTheOrderOfKeys) {
  EXPECT_EQ(fingerprint_hash(nlohmann::json::parse(R"({"a":1,"b":2})")),
            fingerprint_hash(nlohmann::json::parse(R"({"b":2,"a":1})")));
}

TEST(Fingerprint, EveryValueCounts) {
  for (const char* pointer :
       {"/model/files/0/name", "/model/files/0/bytes", "/spec/bits", "/spec/damping", "/calibration"}) {
    auto other = fingerprint;
    other[nlohmann::json::json_pointer(pointer)] = 17;
    EXPECT_NE(fingerprint_hash(other), fingerprint_hash(fingerprint)) << pointer;
    EXPECT_THAT(fingerprint_differences(fingerprint, other), ::testing::SizeIs(1)) << pointer;
  }
}

TEST(Fingerprint, ADifferenceNamesTheFieldAndBothValues) {
  auto here = fingerprint;
  here["spec"]["bits"] = 3;

  EXPECT_THAT(fingerprint_differences(fingerprint, here), ElementsAre("spec.bits: 4 there, 3 here"));
}

TEST(Fingerprint, AFieldOfOneSideAloneIsADifference) {
  auto here = fingerprint;
  here["spec"].erase("damping");
  here["spec"]["clip"] = "mse";

  EXPECT_THAT(fingerprint_differences(fingerprint, here),
              UnorderedElementsAre("spec.damping: 0.01 there, nothing here", "spec.clip: nothing there, \"mse\" here"));
}

TEST(Fingerprint, WhatIsNoFingerprintDiffersInEveryField) {
  for (const auto& edited :
       {nlohmann::json::object(), nlohmann::json::array(), nlohmann::json(), nlohmann::json("x")}) {
    EXPECT_THAT(fingerprint_differences(edited, {{"spec", {{"bits", 4}}}}),
                ::testing::Contains("spec.bits: nothing there, 4 here"))
        << edited;
  }
}

}  // namespace
}  // namespace gptqd::pipeline
