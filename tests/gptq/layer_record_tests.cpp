#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "gptq/layer_record.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::gptq {
namespace {

LayerRecord full_record() {
  LayerRecord record;
  record.name = "model.layers.0.fc1";
  record.rows = 12;
  record.cols = 34;
  record.tokens = 56;
  record.damping = 0.1;
  record.retries = 1;
  record.loss = 1e-3 / 3;
  record.rtn_loss = 2e-3;
  record.weight_norm = 1e9 / 7;
  record.min_scale = 0.25;
  record.max_scale = 0.5;
  record.saturated_codes = 7;
  record.dead_columns = 2;
  record.seconds = 1.5;
  return record;
}

TEST(LayerRecordTest, JsonGoesThereAndBackBitForBit) {
  const auto record = full_record();

  const auto text = record.to_json().dump();
  const auto again = LayerRecord::from_json(nlohmann::json::parse(text));

  EXPECT_EQ(again.to_json().dump(), text);
  EXPECT_EQ(again.loss, record.loss);
  EXPECT_EQ(again.weight_norm, record.weight_norm);
  EXPECT_EQ(again.dead_columns, 2);
}

TEST(LayerRecordTest, SecondsStayOut) {
  EXPECT_FALSE(full_record().to_json().contains("seconds"));
  EXPECT_EQ(LayerRecord::from_json(full_record().to_json()).seconds, 0);
}

TEST(LayerRecordTest, AbsentLossesAreNull) {
  const auto json = LayerRecord{}.to_json();

  EXPECT_TRUE(json.at("loss").is_null());
  EXPECT_FALSE(LayerRecord::from_json(json).rtn_loss.has_value());
}

TEST(LayerRecordTest, MissingAndMistypedFieldsAreInputErrors) {
  auto missing = full_record().to_json();
  missing.erase("tokens");
  auto mistyped = full_record().to_json();
  mistyped["rows"] = "many";

  for (const auto& json : {missing, mistyped, nlohmann::json::array()}) {
    try {
      LayerRecord::from_json(json);
      ADD_FAILURE() << json.dump();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_THAT(error.message(), ::testing::HasSubstr("layer record"));
    }
  }
}

}  // namespace
}  // namespace gptqd::gptq
