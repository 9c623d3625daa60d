#include <gmock/gmock.h>

#include <algorithm>

#include "io/corpus/documents.hpp"
#include "tests/io/corpus/gzip_support.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::TemporaryFolder;
using test::error_of;
using test::gzip;
using test::write_text;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> documents_of(std::string_view text, DocumentFormat format) {
  DocumentReader reader(memory_stream(text), format, "a.jsonl");
  std::vector<std::string> documents;
  while (auto document = reader.next()) {
    documents.push_back(std::move(*document));
  }
  return documents;
}

TEST(DocumentFormatOf, IsWhatTheNameSays) {
  EXPECT_EQ(document_format("a/b.jsonl"), DocumentFormat::json_lines);
  EXPECT_EQ(document_format("c4-train.00000-of-01024.json.gz"), DocumentFormat::json_lines);
  EXPECT_EQ(document_format("b.ndjson.gz"), DocumentFormat::json_lines);
  EXPECT_EQ(document_format("b.txt"), DocumentFormat::text);
  EXPECT_EQ(document_format("b.txt.gz"), DocumentFormat::text);
  EXPECT_EQ(document_format("b.jsonl/c"), DocumentFormat::text);
  EXPECT_EQ(document_format("jsonl"), DocumentFormat::text);
}

TEST(Documents, OfATextAreTheTextAsItIs) {
  const std::string text("a\r\n\0\xff b\n", 8);

  EXPECT_THAT(documents_of(text, DocumentFormat::text), ElementsAre(text));
}

TEST(Documents, OfJsonLinesAreTheLines) {
  EXPECT_THAT(documents_of("{\"text\": \"one\\nline\"}\n\n \t\n{\"url\": 1, \"text\": \"\"}\r\n{\"text\":\"z\\u00e4\"}",
                           DocumentFormat::json_lines),
              ElementsAre("one\nline", "", "zä"));
}

// datasets' wikitext.py: the row is the line with its end, or "" where row.strip() is empty.
TEST(Documents, OfWikitextLinesAreTheLibrarysRows) {
  EXPECT_THAT(documents_of(" \n = Title = \n \n Text . \n", DocumentFormat::wikitext_lines),
              ElementsAre("", " = Title = \n", "", " Text . \n"));
  EXPECT_THAT(documents_of(" a", DocumentFormat::wikitext_lines), ElementsAre(" a"));
}

TEST(Documents, OfPtbLinesHaveNoWhiteSpaceAround) {
  EXPECT_THAT(documents_of(" aer banknote \n N years \n", DocumentFormat::ptb_lines),
              ElementsAre("aer banknote", "N years"));
}

TEST(Documents, OfCompressedFilesAreThoseOfTheContent) {
  const TemporaryFolder folder;
  write_text(folder / "a.jsonl.gz", gzip("{\"text\": \"one\"}\n{\"text\": \"two\"}\n"));

  DocumentReader reader(folder / "a.jsonl.gz", DocumentFormat::json_lines);

  EXPECT_EQ(reader.next(), "one");
  EXPECT_EQ(reader.next(), "two");
  EXPECT_EQ(reader.next(), std::nullopt);
  EXPECT_EQ(reader.next(), std::nullopt);
}

TEST(Documents, SayWhichLineIsWrong) {
  const auto error = error_of([] { documents_of("{\"text\": \"one\"}\n\n{\"text\": \n", DocumentFormat::json_lines); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("a.jsonl, line 3: not valid JSON (8 bytes)"));
}

/// Endless text, made as it is read.
class Endless : public ByteStream {
 public:
  explicit Endless(std::string_view piece) : piece_(piece) {}
  std::size_t read(std::span<char> out) override {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = piece_[i % piece_.size()];
    }
    return out.size();
  }

 private:
  std::string_view piece_;
};

TEST(Documents, EndAnEndlessLine) {
  DocumentReader reader(std::make_unique<Endless>("x"), DocumentFormat::json_lines, "bomb.jsonl.gz");

  const auto error = error_of([&] { reader.next(); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("bomb.jsonl.gz, line 1: has more than 67108864 bytes"));
}

TEST(Documents, EndEndlessLines) {
  const std::string long_lines = std::string((std::size_t{1} << 15) - 1, 'x') + "\n";
  for (const auto* piece : {long_lines.c_str(), "\n"}) {
    for (const auto format : {DocumentFormat::ptb_lines, DocumentFormat::text}) {
      DocumentReader reader(std::make_unique<Endless>(piece), format, "bomb.txt", 1 << 20);

      const auto error = error_of([&] {
        while (reader.next()) {
        }
      });

      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_THAT(error.message(), HasSubstr("bomb.txt holds more than 1048576 bytes of text"));
    }
  }
}

TEST(Documents, EndEndlessBlankLines) {
  DocumentReader reader(std::make_unique<Endless>("\n"), DocumentFormat::json_lines, "bomb.jsonl", 1 << 20);

  EXPECT_THAT(error_of([&] { reader.next(); }).message(), HasSubstr("bomb.jsonl holds more than 1048576 bytes"));
}

TEST(JsonLine, RendersMessages) {
  EXPECT_EQ(json_line_text(
                R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})", "a"),
            "user: Hi\n\nassistant: Ho");
  EXPECT_EQ(json_line_text(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": []}]})", "a"),
            "assistant: ");
  EXPECT_EQ(json_line_text(R"({"messages": [{"role": "user", "content":
              [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}]})",
                           "a"),
            "user: ab");
}

TEST(JsonLine, PrefersTextToMessages) { EXPECT_EQ(json_line_text(R"({"messages": 3, "text": "t"})", "a"), "t"); }

TEST(JsonLine, SaysWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"[1]", "is array, expected an object"},
      {"\"text\"", "is string, expected an object"},
      {"{", "not valid JSON"},
      {"{\"text\": \"\xff\"}", "not valid JSON"},
      {"{\"text\": \"\\ud800\"}", "not valid JSON"},
      {"{\"text\": \"a\"} {}", "not valid JSON"},
      {std::string(100, '[') + std::string(100, ']'), "nested more than"},
      {R"({"text": 3})", "\"text\" is number, expected a string"},
      {R"({"text": null})", "\"text\" is null"},
      {R"({"content": "a", "id": 1})", "has neither \"text\" nor \"messages\" but the keys \"content\", \"id\""},
      {"{}", "but the keys none"},
      {R"({"messages": []})", "\"messages\" is empty"},
      {R"({"messages": {"role": "user"}})", "\"messages\" is object"},
      {R"({"messages": ["Hi"]})", "messages[0]: expected an object"},
      {R"({"messages": [{"content": "Hi"}]})", "messages[0]: the key \"role\" is missing"},
      {R"({"messages": [{"role": "user"}]})", "messages[0]: the key \"content\" is missing; it has \"role\""},
      {R"({"messages": [{"role": 1, "content": "Hi"}]})", "\"role\": expected a string"},
      {R"({"messages": [{"role": "user", "content": 3}]})", "\"content\" is number"},
      {R"({"messages": [{"role": "user", "content": [{"text": "a"}]}]})", "the key \"type\" is missing"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})", "the key \"text\" is missing"},
  };
  for (const auto& [line, message] : cases) {
    const auto error = error_of([&, line = line] { json_line_text(line, "a.jsonl, line 17"); });

    EXPECT_EQ(error.kind(), ErrorKind::input) << line;
    EXPECT_THAT(error.message(), HasSubstr("a.jsonl, line 17")) << line;
    EXPECT_THAT(error.message(), HasSubstr(message)) << line;
    EXPECT_LT(error.message().size(), 400u) << line;
  }
}

}  // namespace
}  // namespace gptqd::io
