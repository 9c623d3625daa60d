#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/artifact/gptq_dynamic.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {
namespace {

using Json = nlohmann::ordered_json;

constexpr LayerSettings base{.bits = 4, .group_size = 128};

TEST(GptqDynamic, TheFirstMatchInTheFilesOrderDecides) {
  const GptqDynamic dynamic(Json::parse(R"({"+:.*\\.down": {"bits": 8}, "-:.*\\.1\\.": {}, ".*": {"group_size": 64}})"),
                            "test");

  EXPECT_EQ(dynamic.apply(base, "layers.1.down"), (LayerSettings{.bits = 8, .group_size = 128}));
  EXPECT_EQ(dynamic.apply(base, "layers.1.up"), std::nullopt);
  EXPECT_EQ(dynamic.apply(base, "layers.2.up"), (LayerSettings{.bits = 4, .group_size = 64}));
}

TEST(GptqDynamic, PatternsMatchFromTheBeginningOfTheName) {
  const GptqDynamic dynamic(Json::parse(R"({"+:a|b": {"bits": 8, "sym": false, "desc_act": true}})"), "test");

  EXPECT_EQ(dynamic.apply(base, "b.c"), (LayerSettings{.bits = 8, .group_size = 128, .sym = false, .reordered = true}));
  EXPECT_EQ(dynamic.apply(base, "c.b"), base);
}

TEST(GptqDynamic, NullAndAnEmptyObjectChangeNothing) {
  EXPECT_TRUE(GptqDynamic(Json(), "test").empty());
  EXPECT_EQ(GptqDynamic(Json::object(), "test").apply(base, "x"), base);
}

TEST(GptqDynamic, WhatIsNoTableOfPatternsIsRefused) {
  for (const char* text : {"[]", "1", R"({"+:(": {}})", R"({"x": 1})", R"({"x": {"bits": "8"}})",
                           R"({"x": {"bits": 1e99}})", R"({"x": {"sym": 1}})"}) {
    EXPECT_THROW(GptqDynamic(Json::parse(text), "test"), Error) << text;
  }
}

TEST(GptqDynamic, APatternThatExplodesEndsInAnError) {
  const GptqDynamic dynamic(Json::parse(R"({"+:(a+)+$": {}})"), "test");

  EXPECT_THROW(dynamic.apply(base, std::string(64, 'a') + "b"), Error);
}

}  // namespace
}  // namespace gptqd::io
