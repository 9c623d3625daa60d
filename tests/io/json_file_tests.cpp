#include <gmock/gmock.h>

#include "io/json_file.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::TemporaryFolder;
using nlohmann::json;
using test::error_of;
using test::write_text;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST(ReadJson, ReadsAFileAndKeepsItsOrderWhenAsked) {
  const TemporaryFolder folder;
  write_text(folder / "a.json", R"({"b": [1, 2.5, null], "a": "ü"})");

  EXPECT_EQ(read_json(folder / "a.json"), (json{{"b", {1, 2.5, nullptr}}, {"a", "ü"}}));
  EXPECT_EQ(read_ordered_json(folder / "a.json").dump(), R"({"b":[1,2.5,null],"a":"ü"})");
}

TEST(ReadJson, TheLastOfRepeatedKeysCounts) { EXPECT_EQ(parse_json(R"({"a":1,"a":2})", "t"), (json{{"a", 2}})); }

struct BadText {
  const char* name;
  std::string text;
  const char* offence;
};
void PrintTo(const BadText& value, std::ostream* out) { *out << value.name; }

class ReadJsonRefuses : public testing::TestWithParam<BadText> {};

TEST_P(ReadJsonRefuses, NamesTheFileAndTheOffence) {
  const TemporaryFolder folder;
  write_text(folder / "bad.json", GetParam().text);

  const Error error = error_of([&] { read_json(folder / "bad.json"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), AllOf(HasSubstr((folder / "bad.json").string()), HasSubstr(GetParam().offence)));
  EXPECT_LT(error.message().size(), 1000u);
}

INSTANTIATE_TEST_SUITE_P(, ReadJsonRefuses,
                         testing::Values(BadText{"empty", "", "not valid JSON (0 bytes)"},
                                         BadText{"cut", "{\"a\": 1,\n  \"b\": [1, 2", "line 2, column 13"},
                                         BadText{"trailing", "{} x", "line 1, column 4"},
                                         BadText{"not_utf8", "\"\xff\xfe\"", "not valid JSON"},
                                         BadText{"long_token", "\"" + std::string(100'000, 'a'), "not valid JSON"},
                                         BadText{"number_overflow", "[1e999]", "number overflow"},
                                         BadText{"deep_arrays", std::string(1'000'000, '['),
                                                 "nested more than 64 deep"},
                                         BadText{"deep_objects",
                                                 [] {
                                                   std::string text;
                                                   for (int i = 0; i < 65; ++i) {
                                                     text += "{\"a\":";
                                                   }
                                                   return text;
                                                 }(),
                                                 "nested more than 64 deep"}),
                         [](const auto& info) { return info.param.name; });

TEST(ReadJson, AcceptsTheDeepestNestingAllowed) {
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "t"));
}

TEST(ReadJson, RefusesMissingAndLargeFiles) {
  const TemporaryFolder folder;
  write_text(folder / "a.json", "[1, 2, 3]");

  const Error missing = error_of([&] { read_json(folder / "none.json"); });
  const Error large = error_of([&] { read_json(folder / "a.json", 8); });

  EXPECT_EQ(missing.kind(), ErrorKind::input);
  EXPECT_THAT(missing.message(), AllOf(HasSubstr("none.json"), HasSubstr("no such file")));
  EXPECT_EQ(large.kind(), ErrorKind::input);
  EXPECT_THAT(large.message(), AllOf(HasSubstr("9 bytes"), HasSubstr("8")));
}

const json values = json::parse(R"({"i": 7, "f": 0.5, "whole": 4096.0, "s": "x", "b": true, "n": null,
                                    "v": [1, 2], "nested": [[1], ["two"]], "big": 18446744073709551615, "neg": -1})");

TEST(Get, ReadsEveryType) {
  EXPECT_EQ(get<std::int64_t>(values, "i", "c"), 7);
  EXPECT_EQ(get<int>(values, "whole", "c"), 4096);
  EXPECT_EQ(get<double>(values, "i", "c"), 7.0);
  EXPECT_EQ(get<float>(values, "f", "c"), 0.5f);
  EXPECT_EQ(get<std::string>(values, "s", "c"), "x");
  EXPECT_TRUE(get<bool>(values, "b", "c"));
  EXPECT_EQ(get<std::vector<int>>(values, "v", "c"), (std::vector{1, 2}));
  EXPECT_EQ(get<json>(values, "v", "c"), (json{1, 2}));
  EXPECT_EQ(get<std::uint8_t>(values, "i", "c"), 7);
}

TEST(GetOr, TakesTheFallbackForMissingAndNullAlone) {
  EXPECT_EQ(get_or<int>(values, "none", 3, "c"), 3);
  EXPECT_EQ(get_or<int>(values, "n", 3, "c"), 3);
  EXPECT_EQ(get_or<int>(values, "i", 3, "c"), 7);
  EXPECT_EQ(error_of([] { get_or<int>(values, "s", 3, "c"); }).kind(), ErrorKind::input);
}

template <class T>
std::string refusal(const char* key) {
  const Error error = error_of([key] { get<T>(values, key, "config.json"); });
  EXPECT_EQ(error.kind(), ErrorKind::input);
  return error.message();
}

TEST(Get, RefusalsNameFileKeyGotAndExpected) {
  EXPECT_EQ(refusal<int>("none"), "config.json: the key \"none\" is missing");
  EXPECT_EQ(refusal<int>("s"), "config.json: \"s\": expected an integer, got \"x\" (string)");
  EXPECT_EQ(refusal<int>("f"), "config.json: \"f\": expected an integer, got 0.5 (number)");
  EXPECT_EQ(refusal<std::string>("i"), "config.json: \"i\": expected a string, got 7 (number)");
  EXPECT_EQ(refusal<bool>("i"), "config.json: \"i\": expected true or false, got 7 (number)");
  EXPECT_EQ(refusal<double>("n"), "config.json: \"n\": expected a number, got null (null)");
  EXPECT_EQ(refusal<std::vector<int>>("i"), "config.json: \"i\": expected an array, got 7 (number)");
  EXPECT_EQ(refusal<std::vector<std::vector<int>>>("nested"),
            "config.json: \"nested\"[1][0]: expected an integer, got \"two\" (string)");
}

TEST(Get, IntegersOutsideTheTypesRangeAreRefused) {
  EXPECT_THAT(refusal<std::int64_t>("big"), HasSubstr("got 18446744073709551615"));
  EXPECT_THAT(refusal<std::uint8_t>("whole"), HasSubstr("from 0 to 255"));
  EXPECT_THAT(refusal<std::uint32_t>("neg"), HasSubstr("from 0 to 4294967295"));
}

TEST(Get, RefusesWhatIsNoObjectAndQuotesLittleOfLongValues) {
  const json object{{"long", std::string(100'000, 'y')}};

  EXPECT_THAT(error_of([] { get<int>(json::array(), "i", "c"); }).message(),
              HasSubstr("c: expected an object with the key \"i\", got array"));
  EXPECT_LT(error_of([&] { get<int>(object, "long", "c"); }).message().size(), 400u);
}

}  // namespace
}  // namespace gptqd::io
