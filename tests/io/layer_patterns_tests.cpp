#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/artifact/layer_patterns.hpp"
#include "io/tokenizer/regex.hpp"

namespace gptqd::io {
namespace {

constexpr LayerSettings usual{.bits = 4, .group_size = 128};
constexpr LayerSettings wide{.bits = 8, .group_size = 128};

ArtifactContent content_of(const std::vector<std::vector<std::pair<std::string, LayerSettings>>>& blocks) {
  ArtifactContent content;
  content.settings = usual;
  content.groups_of_block = {{"attn.q", "attn.k", "attn.v"}, {"attn.o"}, {"mlp.gate", "mlp.up"}, {"mlp.down"}};
  for (const auto& block : blocks) {
    auto& layers = content.blocks.emplace_back();
    for (const auto& [module, settings] : block) {
      layers.push_back({.module = module, .rows = 64, .cols = 64, .settings = settings});
    }
  }
  return content;
}

bool fits(const LayerPattern& pattern, const std::string& name) {
  return Regex("\\A(?:" + pattern.regex + ")").matches(name);
}

TEST(LayerPatterns, ThereAreNoneWhereAllAreAlike) {
  auto content = content_of({{{"m.h.0.attn.o", usual}, {"m.h.0.mlp.down", usual}}});
  content.float_linears = {"lm_head", "project_in"};
  EXPECT_TRUE(layer_patterns(content).empty());

  // Dynamic act-order that happens to be natural in a layer is no setting of its own.
  content.settings.reordered = true;
  EXPECT_TRUE(layer_patterns(content).empty());
}

TEST(LayerPatterns, BlocksWithTheSameDifferencesShareOne) {
  const auto patterns = layer_patterns(content_of({{{"m.h.0.attn.o", wide}, {"m.h.0.mlp.down", wide}},
                                                   {{"m.h.1.attn.o", usual}, {"m.h.1.mlp.down", usual}},
                                                   {{"m.h.12.attn.o", wide}, {"m.h.12.mlp.down", wide}}}));

  ASSERT_EQ(patterns.size(), 1u);
  EXPECT_EQ(patterns[0].settings, wide);
  for (const char* name : {"m.h.0.attn.o", "h.12.mlp.down", "x.m.h.12.attn.o"}) {
    EXPECT_TRUE(fits(patterns[0], name)) << name;
  }
  for (const char* name :
       {"m.h.1.attn.o", "m.h.2.attn.o", "m.h.0.attn.oo", "m.h.0.attn.o.bias", "m.hh.0.attn.o", "m.h.0xattn.o"}) {
    EXPECT_FALSE(fits(patterns[0], name)) << name;
  }
}

TEST(LayerPatterns, FusedNamesStandForWholeGroupsAlone) {
  const auto whole = layer_patterns(
      content_of({{{"m.h.0.attn.q", wide}, {"m.h.0.attn.k", wide}, {"m.h.0.attn.v", wide}, {"m.h.0.mlp.gate", wide}}}));

  ASSERT_EQ(whole.size(), 1u);
  EXPECT_TRUE(fits(whole[0], "m.h.0.attn.qkv_proj"));
  EXPECT_TRUE(fits(whole[0], "m.h.0.mlp.gate"));
  EXPECT_FALSE(fits(whole[0], "m.h.0.mlp.gate_up_proj"));
}

TEST(LayerPatterns, FloatLinearsOfBlocksHaveOneWithoutSettings) {
  auto content = content_of({{{"m.h.0.attn.o", wide}}});
  content.float_linears = {"lm_head", "m.h.0.mlp.gate", "m.h.0.mlp.up", "m.h.1.attn.o"};

  const auto patterns = layer_patterns(content);

  ASSERT_EQ(patterns.size(), 3u);
  const auto of = [&](const std::string& name) {
    std::vector<std::optional<LayerSettings>> found;
    for (const auto& pattern : patterns) {
      if (fits(pattern, name)) {
        found.push_back(pattern.settings);
      }
    }
    return found;
  };
  EXPECT_THAT(of("m.h.0.attn.o"), ::testing::ElementsAre(wide));
  EXPECT_THAT(of("m.h.1.attn.o"), ::testing::ElementsAre(std::nullopt));
  EXPECT_THAT(of("m.h.0.mlp.gate_up_proj"), ::testing::ElementsAre(std::nullopt));
  EXPECT_THAT(of("lm_head"), ::testing::IsEmpty());
}

}  // namespace
}  // namespace gptqd::io
