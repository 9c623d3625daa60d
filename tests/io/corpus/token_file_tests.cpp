#include <gmock/gmock.h>

#include <cstring>

#include "io/corpus/token_file.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::error_of;
using test::write_text;
using testing::HasSubstr;

template <class T>
std::string bytes_text(const std::vector<T>& values) {
  std::string text(values.size() * sizeof(T), '\0');
  if (!values.empty()) {
    std::memcpy(text.data(), values.data(), text.size());
  }
  return text;
}

template <class T>
std::string safetensors(std::string_view dtype, std::string_view shape, const std::vector<T>& ids,
                        std::string_view name = "input_ids") {
  const auto data = bytes_text(ids);
  auto text = test::safetensors_text(
      fmt::format(R"({{"{}":{{"dtype":"{}","shape":{},"data_offsets":[0,{}]}}}})", name, dtype, shape, data.size()), 0);
  return text + data;
}

/// As numpy.save writes it: version 1.0, the header padded to a multiple of 64 with blanks and a line end.
std::string npy(const std::string& dictionary, const std::string& data, int version = 1) {
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  std::string header = dictionary;
  while ((8 + length_bytes + header.size() + 1) % 64 != 0) {
    header += ' ';
  }
  header += '\n';
  std::string text = std::string("\x93NUMPY") + static_cast<char>(version) + '\0';
  for (std::size_t i = 0; i < length_bytes; ++i) {
    text += static_cast<char>(header.size() >> 8 * i & 0xff);
  }
  return text + header + data;
}

std::string npy_of(const std::string& descr, const std::string& shape, const std::string& data) {
  return npy(fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}", descr, shape), data);
}

TokenWindows read(const std::string& name, const std::string& content) {
  const TemporaryFolder folder;
  write_text(folder / name, content);
  return read_token_file(folder / name);
}

TEST(TokenFile, IsKnownByItsEnding) {
  EXPECT_TRUE(is_token_file("a/b.safetensors"));
  EXPECT_TRUE(is_token_file("a/b.npy"));
  EXPECT_FALSE(is_token_file("a/b.txt"));
  EXPECT_FALSE(is_token_file("a.safetensors/b"));
  EXPECT_FALSE(is_token_file("npy"));
}

TEST(TokenFile, ReadsI32) {
  const auto windows = read_token_file(source_path("tests/golden/gptq/calib_tokens.safetensors"));

  EXPECT_EQ(windows.samples, 128);
  EXPECT_EQ(windows.seqlen, 512);
  EXPECT_EQ(windows.ids.size(), 128u * 512);
}

TEST(TokenFile, ReadsI64) {
  EXPECT_EQ(read("t.safetensors", safetensors<std::int64_t>("I64", "[2,3]", {1, 2, 3, 4, 5, 2147483647})),
            (TokenWindows{2, 3, {1, 2, 3, 4, 5, 2147483647}}));
}

TEST(TokenFile, ReadsNumpyArraysOfEveryIntegerType) {
  const TokenWindows expected{2, 3, {1, 2, 3, 4, 5, 65535}};

  EXPECT_EQ(read("t.npy", npy_of("<i4", "(2, 3)", bytes_text<std::int32_t>(expected.ids))), expected);
  EXPECT_EQ(read("t.npy", npy_of("<i8", "(2, 3)", bytes_text<std::int64_t>({1, 2, 3, 4, 5, 65535}))), expected);
  EXPECT_EQ(read("t.npy", npy_of("<u2", "(2, 3)", bytes_text<std::uint16_t>({1, 2, 3, 4, 5, 65535}))), expected);
  EXPECT_EQ(read("t.npy", npy_of("<u4", "(2, 3)", bytes_text<std::uint32_t>({1, 2, 3, 4, 5, 65535}))), expected);
}

// python3 -c 'import numpy; numpy.save("t.npy", numpy.arange(6, dtype="<i4").reshape(2, 3))'
TEST(TokenFile, ReadsTheBytesThatNumpyWrites) {
  std::string file("\x93NUMPY\x01\x00\x76\x00", 10);
  file += "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }" + std::string(58, ' ') + "\n";
  ASSERT_EQ(file.size(), 128u);

  EXPECT_EQ(read("t.npy", file + bytes_text<std::int32_t>({0, 1, 2, 3, 4, 5})),
            (TokenWindows{2, 3, {0, 1, 2, 3, 4, 5}}));
}

TEST(NpyHeader, TakesKeysInAnyOrderAndEveryVersion) {
  const NpyHeader expected{.descr = "<i4", .fortran_order = true, .shape = {7}, .data_offset = 128};
  const std::string dictionary = "{ \"shape\":(7,), 'fortran_order': True,'descr': \"<i4\"}";

  for (const int version : {1, 2, 3}) {
    auto header = parse_npy_header(npy(dictionary, "", version), "t.npy");
    EXPECT_EQ(header.data_offset % 64, 0);
    header.data_offset = 128;
    EXPECT_EQ(header, expected);
  }
  EXPECT_TRUE(parse_npy_header(npy_of("<i4", "()", ""), "t.npy").shape.empty());
}

struct BadTokenFile {
  std::string file;
  std::string content;
  std::string message;
};

void expect_refusals(const std::vector<BadTokenFile>& cases) {
  for (const auto& [file, content, message] : cases) {
    SCOPED_TRACE(message);
    const auto error = error_of([&, &file = file, &content = content] { read(file, content); });

    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_THAT(error.message(), HasSubstr(file));
    EXPECT_THAT(error.message(), HasSubstr(message));
  }
}

TEST(TokenFile, SaysWhatIsWrongWithASafetensorsFile) {
  expect_refusals({
      {"t.safetensors", safetensors<std::int32_t>("I32", "[3]", {1, 2, 3}),
       "input_ids is [3], expected [samples, seqlen], both at least 1; cut the stream into samples"},
      {"t.safetensors", safetensors<std::int32_t>("I32", "[1,1,3]", {1, 2, 3}), "input_ids is [1, 1, 3]"},
      {"t.safetensors", safetensors<std::int32_t>("I32", "[0,3]", {}), "[0, 3], expected [samples, seqlen]"},
      {"t.safetensors", safetensors<float>("F32", "[1,3]", {1, 2, 3}), "input_ids is F32 [1, 3], expected I32 or I64"},
      {"t.safetensors", safetensors<std::int32_t>("I32", "[1,3]", {1, 2, 3}, "tokens"), "it has tokens"},
      {"t.safetensors", safetensors<std::int32_t>("I32", "[2,2]", {1, 2, -3, 4}), "input_ids: element [1, 0] is -3"},
      {"t.safetensors", safetensors<std::int64_t>("I64", "[1,2]", {1, std::int64_t{1} << 31}),
       "input_ids: element [0, 1] is 2147483648"},
      {"t.safetensors", "not a tensor file", "t.safetensors"},
  });
}

TEST(TokenFile, SaysWhatIsWrongWithAnNpyFile) {
  const auto three = bytes_text<std::int32_t>({1, 2, 3});
  const auto with_header = [&](const std::string& dictionary) { return npy(dictionary, three); };

  expect_refusals({
      {"t.npy", "not an array", "does not begin as an .npy file does"},
      {"t.npy", "", "does not begin as an .npy file does"},
      {"t.npy", npy("{}", "", 4), "has .npy version 4"},
      {"t.npy", std::string("\x93NUMPY\x02\0\x10\0", 10), "ends within its .npy header"},
      {"t.npy", npy_of("<i4", "(1, 3)", "").substr(0, 60), "ends within its .npy header of 118 bytes"},
      {"t.npy", std::string("\x93NUMPY\x02\0\xff\xff\xff\xff{}", 14), "an .npy header of 4294967295 bytes"},
      {"t.npy", npy_of("<i4", "(1, 4)", three), "holds 12: it is truncated"},
      {"t.npy", npy_of("<i4", "(1, 2)", three), "holds 12: it is damaged"},
      {"t.npy", npy_of("<i8", "(2147483648, 2147483648)", three), "more than 2147483648"},
      {"t.npy", npy_of("<i8", "(65536, 32768)", three), "holds 12: it is truncated"},
      {"t.npy", npy_of(">i4", "(1, 3)", three), "is of type >i4, expected <i4"},
      {"t.npy", npy_of("<f4", "(1, 3)", three), "is of type <f4"},
      {"t.npy", npy_of("|O", "(1, 3)", three), "is of type |O"},
      {"t.npy", with_header("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1, 3), }"),
       "no quoted text where one is due"},
      {"t.npy", with_header("{'descr': '<i4', 'fortran_order': True, 'shape': (1, 3), }"), "numpy.ascontiguousarray"},
      {"t.npy", npy_of("<i4", "(3,)", three), "cut the stream into samples"},
      {"t.npy", npy_of("<i4", "()", three), "is [], expected [samples, seqlen]"},
      {"t.npy", npy_of("<i4", "(-1, 3)", three), "an extent of the shape"},
      {"t.npy", npy_of("<i4", "(99999999999999999999, 3)", three), "an extent of the shape"},
      {"t.npy", with_header("{'descr': '<i4', 'x': 1}"), "unexpected or repeated key 'x'"},
      {"t.npy", with_header("{'descr': '<i4', 'descr': '<i4'}"), "repeated key 'descr'"},
      {"t.npy", with_header("{'descr': '<i4', }"), "no descr, fortran_order or shape"},
      {"t.npy", with_header("{'descr': '<i4'"), "no '}' where one is due"},
      {"t.npy", with_header("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 3), } x"),
       "text behind the dictionary"},
      {"t.npy", npy_of("<i4", "(1, 3)", bytes_text<std::int32_t>({1, -2, 3})), "element [0, 1] is -2"},
      {"t.npy", npy_of("<u4", "(1, 2)", bytes_text<std::uint32_t>({1, 0x80000000u})), "element [0, 1] is 2147483648"},
  });
}

}  // namespace
}  // namespace gptqd::io
