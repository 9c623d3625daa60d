#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "io/safetensors.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::bytes_of;
using test::error_of;
using test::read_text;
using test::safetensors_text;
using test::write_text;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* two_tensors =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[8,20]},)"
    R"("a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"none":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]}})";

TEST(SafetensorsFile, ReadsTensorsInTheOrderOfTheirPlace) {
  const TemporaryFolder folder;
  write_text(folder / "m.safetensors", safetensors_text(two_tensors, 20));
  const SafetensorsFile file(folder / "m.safetensors");
  std::vector<std::byte> whole(12);
  std::vector<std::byte> part(2);

  file.read(file.at("b"), whole);
  file.read_range(file.at("b"), 10, part);

  EXPECT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_THAT(file.tensors()[0].shape, ElementsAre());
  EXPECT_EQ(file.tensors()[1].name, "none");
  EXPECT_EQ(file.at("b").dtype, DType::f16);
  EXPECT_THAT(file.at("b").shape, ElementsAre(2, 3));
  EXPECT_EQ(whole[0], std::byte{8});
  EXPECT_THAT(part, ElementsAre(std::byte{18}, std::byte{19}));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.header_hash(), xxh3_128_hex(bytes_of(two_tensors)));
}

TEST(SafetensorsFile, ReadsFilesOfTheReferenceImplementation) {
  const SafetensorsFile file(source_path("tests/golden/models/opt-pre/model.safetensors"));

  EXPECT_EQ(file.tensors().size(), 52u);
  EXPECT_THAT(file.at("model.decoder.layers.0.fc1.weight").shape, ElementsAre(112, 48));
}

TEST(SafetensorsFile, UnknownNameComesWithTheClosestOnes) {
  const SafetensorsFile file(source_path("tests/golden/models/opt-pre/model.safetensors"));

  const Error error = error_of([&] { file.at("model.decoder.layers.0.fc1.weigth"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr("fc1.weigth"), HasSubstr("closest names are model.decoder.layers.0.fc1.weight")));
}

TEST(SafetensorsFile, RangesOutsideATensorAreOurOwnBug) {
  const TemporaryFolder folder;
  write_text(folder / "m.safetensors", safetensors_text(two_tensors, 20));
  const SafetensorsFile file(folder / "m.safetensors");
  std::vector<std::byte> out(4);

  EXPECT_EQ(error_of([&] { file.read_range(file.at("a"), 5, out); }).kind(), ErrorKind::internal);
  EXPECT_EQ(error_of([&] { file.read_range(file.at("a"), -1, out); }).kind(), ErrorKind::internal);
  EXPECT_EQ(error_of([&] { file.read(file.at("a"), out); }).kind(), ErrorKind::internal);
}

struct Damage {
  const char* name;
  std::string header;
  std::size_t data_bytes;
  const char* offence;
};
void PrintTo(const Damage& value, std::ostream* out) { *out << value.name; }

std::string tensor(const std::string& body) { return R"({"t.weight":{)" + body + "}}"; }

class HeaderRefused : public testing::TestWithParam<Damage> {};

TEST_P(HeaderRefused, NamesTheFileAndTheOffence) {
  const Damage& damage = GetParam();
  const TemporaryFolder folder;
  write_text(folder / "bad.safetensors", safetensors_text(damage.header, damage.data_bytes));

  const Error error = error_of([&] { SafetensorsFile(folder / "bad.safetensors"); });

  EXPECT_EQ(error.kind(), ErrorKind::input) << error.message();
  EXPECT_THAT(error.message(), AllOf(HasSubstr((folder / "bad.safetensors").string()), HasSubstr(damage.offence)));
  EXPECT_LT(error.message().size(), 1500u);
}

INSTANTIATE_TEST_SUITE_P(
    , HeaderRefused,
    testing::Values(
        Damage{"empty", "", 0, "does not begin with"}, Damage{"array", "[]", 0, "does not begin with"},
        Damage{"byte_order_mark", "\xef\xbb\xbf{}", 0, "does not begin with"},
        Damage{"leading_blank", " {}", 0, "does not begin with"},
        Damage{"cut", R"({"t.weight":{"dtype":"F16","sha)", 4, "not valid JSON at byte"},
        Damage{"two_values", "{}{}", 0, "not valid JSON"}, Damage{"not_utf8", "{\"\xff\":1}", 0, "not valid JSON"},
        Damage{"tensor_is_a_number", R"({"t.weight":3})", 0,
               "\"t.weight\" in the safetensors header: expected an object, got 3"},
        Damage{"tensor_is_an_array", R"({"t.weight":[[[[[[]]]]]]})", 0, "expected an object, got an array"},
        Damage{"unknown_dtype", tensor(R"("dtype":"F12","shape":[2],"data_offsets":[0,4])"), 4,
               "unknown dtype \"F12\""},
        Damage{"dtype_is_a_number", tensor(R"("dtype":16,"shape":[2],"data_offsets":[0,4])"), 4,
               "the name of a dtype, got 16"},
        Damage{"shape_against_offsets", tensor(R"("dtype":"F16","shape":[2,3],"data_offsets":[0,4])"), 4,
               "F16 [2, 3] has 12 bytes, but data_offsets [0, 4] hold 4"},
        Damage{"product_overflows", tensor(R"("dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
               "overflows"},
        Damage{"product_wraps_to_the_offsets",
               tensor(R"("dtype":"F64","shape":[4611686018427387905,4],"data_offsets":[0,32])"), 32, "overflows"},
        Damage{"negative_extent", tensor(R"("dtype":"F16","shape":[-2],"data_offsets":[0,4])"), 4,
               "non-negative integers of 63 bits, got -2"},
        Damage{"fractional_extent", tensor(R"("dtype":"F16","shape":[2.0],"data_offsets":[0,4])"), 4, "got 2.0"},
        Damage{"huge_extent", tensor(R"("dtype":"F16","shape":[9223372036854775808],"data_offsets":[0,4])"), 4,
               "got 9223372036854775808"},
        Damage{"shape_is_text", tensor(R"("dtype":"F16","shape":"2","data_offsets":[0,4])"), 4,
               "an array of extents, got the string"},
        Damage{"shape_nested", tensor(R"("dtype":"F16","shape":[[2]],"data_offsets":[0,4])"), 4, "got an array"},
        Damage{"too_many_extents",
               tensor(R"("dtype":"F16","data_offsets":[0,4],"shape":[)" +
                      [] {
                        std::string ones = "1";
                        for (int i = 0; i < 64; ++i) {
                          ones += ",1";
                        }
                        return ones;
                      }() +
                      "]"),
               4, "more than 64 dimensions"},
        Damage{"one_offset", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[4])"), 4,
               "data_offsets has 1 numbers"},
        Damage{"no_offsets", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[])"), 4, "data_offsets has 0 numbers"},
        Damage{"three_offsets", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[0,4,8])"), 4,
               "more than 2 numbers"},
        Damage{"negative_offset", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[-4,0])"), 4, "got -4"},
        Damage{"offsets_swapped", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[4,0])"), 4,
               "[4, 0] end before they begin"},
        Damage{"dtype_missing", tensor(R"("shape":[2],"data_offsets":[0,4])"), 4, "dtype is missing"},
        Damage{"shape_missing", tensor(R"("dtype":"F16","data_offsets":[0,4])"), 4, "shape is missing"},
        Damage{"offsets_missing", tensor(R"("dtype":"F16","shape":[2])"), 4, "data_offsets is missing"},
        Damage{"repeated_key", tensor(R"("dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4,
               "repeated key \"dtype\""},
        Damage{"foreign_key", tensor(R"("dtype":"F16","stride":[1],"shape":[2],"data_offsets":[0,4])"), 4,
               "unexpected or repeated key \"stride\""},
        Damage{"repeated_tensor",
               R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
               R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
               2, "tensor \"a\" in the safetensors header: the name occurs twice"},
        Damage{"metadata_is_no_text", R"({"__metadata__":{"format":1}})", 0, "expected a string, got 1"},
        Damage{"metadata_nested", R"({"__metadata__":{"format":{}}})", 0, "expected a string, got an object"},
        Damage{"hole",
               R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
               R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
               3, "tensor \"b\" begins at byte 2 of the data, expected 1"},
        Damage{"hole_in_front", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[4,8])"), 8,
               "begins at byte 4 of the data, expected 0"},
        Damage{"overlap",
               R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
               R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
               3, "\"a\" and \"b\" overlap"},
        Damage{"same_place",
               R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
               R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
               2, "\"a\" and \"b\" overlap"},
        Damage{"data_truncated", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[0,4])"), 3,
               "ends at byte 4 of the data, but the file holds 3"},
        Damage{"data_too_long", tensor(R"("dtype":"F16","shape":[2],"data_offsets":[0,4])"), 5, "bytes too many"},
        Damage{"long_name", "{\"" + std::string(100'000, 'n') + "\":1}", 0, "expected an object, got 1"}),
    [](const auto& info) { return info.param.name; });

TEST(SafetensorsFile, RefusesABadLengthOfTheHeader) {
  const TemporaryFolder folder;
  const auto path = folder / "bad.safetensors";
  const auto message = [&](const std::string& content) {
    write_text(path, content);
    const Error error = error_of([&] { SafetensorsFile{path}; });
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_THAT(error.message(), HasSubstr(path.string()));
    return error.message();
  };

  EXPECT_THAT(message("1234567"), HasSubstr("7 bytes, expected at least 8"));
  EXPECT_THAT(message(std::string("\x14\0\0\0\0\0\0\0{}", 10)),
              HasSubstr("the header has 20 bytes, but the file holds 2"));
  EXPECT_THAT(message(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10)),
              HasSubstr("18446744073709551615 bytes, more than"));
  EXPECT_THAT(message("<html>not found</html>"), HasSubstr("it is no safetensors file"));
}

TEST(ParseSafetensorsImage, AgreesWithTheFile) {
  const std::string image = safetensors_text(two_tensors, 20);

  const auto header = parse_safetensors_image(bytes_of(image), "memory");

  EXPECT_EQ(header.tensors.size(), 3u);
  EXPECT_THAT(error_of([&] { parse_safetensors_image(bytes_of(image).first(5), "memory"); }).message(),
              HasSubstr("memory: 5 bytes"));
}

const std::vector<TensorDeclaration> declared{{"z.weight", DType::f16, {2, 3}},
                                              {"empty", DType::i32, {0, 4}},
                                              {"a \"quoted\" ü", DType::u8, {3}},
                                              {"scalar", DType::f32, {}}};

std::string written(const std::filesystem::path& path) {
  SafetensorsWriter writer(path, declared);
  writer.append("z.weight", bytes_of("abcdefgh"));
  writer.append("z.weight", bytes_of("ijkl"));
  writer.append("empty", {});
  writer.append("a \"quoted\" ü", bytes_of("mno"));
  writer.append("scalar", bytes_of("pqrs"));
  writer.commit();
  EXPECT_EQ(writer.checksum(), xxh3_128_hex(bytes_of(read_text(path))));
  EXPECT_EQ(writer.bytes(), static_cast<std::int64_t>(std::filesystem::file_size(path)));
  return read_text(path);
}

TEST(SafetensorsWriter, WhatItWritesIsRead) {
  const TemporaryFolder folder;

  written(folder / "m.safetensors");

  const SafetensorsFile file(folder / "m.safetensors");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  std::string text(12, ' ');
  file.read(file.at("z.weight"), std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(text, "abcdefghijkl");
  EXPECT_EQ(file.at("a \"quoted\" ü").bytes, 3);
  EXPECT_THAT(file.at("empty").shape, ElementsAre(0, 4));
  EXPECT_EQ(file.at("z.weight").offset % 8, 0);
}

TEST(SafetensorsWriter, KeepsTheDeclaredOrderAndTheSameBytes) {
  const TemporaryFolder folder;

  const std::string first = written(folder / "a");
  const std::string second = written(folder / "b");

  EXPECT_EQ(first, second);
  EXPECT_LT(first.find("z.weight"), first.find("quoted"));
  EXPECT_THAT(
      first,
      HasSubstr(R"({"__metadata__":{"format":"pt"},"z.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},)"));
}

TEST(SafetensorsWriter, RefusesOtherDataThanDeclared) {
  const TemporaryFolder folder;
  const auto path = folder / "m.safetensors";

  const auto refusal = [&](const auto& body) {
    const Error error = error_of([&] {
      SafetensorsWriter writer(path, declared);
      body(writer);
      writer.commit();
    });
    EXPECT_EQ(error.kind(), ErrorKind::internal);
    return error.message();
  };

  EXPECT_THAT(refusal([](auto& writer) { writer.append("scalar", bytes_of("pqrs")); }),
              HasSubstr("got data of tensor \"scalar\", expected z.weight"));
  EXPECT_THAT(refusal([](auto& writer) { writer.append("z.weight", bytes_of("thirteen byte")); }),
              HasSubstr("got 13 bytes, expected 12 more"));
  EXPECT_THAT(refusal([](auto& writer) { writer.append("z.weight", bytes_of("four")); }),
              HasSubstr("8 bytes of tensor \"z.weight\" are missing"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsWriter, RefusesRepeatedNamesAndImpossibleShapes) {
  const TemporaryFolder folder;
  const auto kind = [&](std::vector<TensorDeclaration> tensors) {
    return error_of([&] { SafetensorsWriter(folder / "m", std::move(tensors)); }).message();
  };

  EXPECT_THAT(kind({{"a", DType::u8, {1}}, {"a", DType::u8, {1}}}), HasSubstr("declared twice"));
  EXPECT_THAT(kind({{"a", DType::u8, {-1}}}), HasSubstr("negative extent"));
  EXPECT_THAT(kind({{"a", DType::f32, {std::int64_t{1} << 40, std::int64_t{1} << 40}}}), HasSubstr("overflows"));
}

TEST(SafetensorsWriter, AFileWithoutTensorsIsValid) {
  const TemporaryFolder folder;

  SafetensorsWriter(folder / "m", {}).commit();

  EXPECT_TRUE(SafetensorsFile(folder / "m").tensors().empty());
}

}  // namespace
}  // namespace gptqd::io
