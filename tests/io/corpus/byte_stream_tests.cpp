#include <gmock/gmock.h>

#include "io/corpus/byte_stream.hpp"
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

/// Everything the stream gives, asked for in pieces of `piece` bytes.
std::string drain(ByteStream& stream, std::size_t piece = 7) {
  std::string all;
  std::vector<char> buffer(piece);
  while (const auto bytes = stream.read(buffer)) {
    all.append(buffer.data(), bytes);
  }
  return all;
}

std::string gunzipped(std::string_view data) { return drain(*gunzip(memory_stream(data), "a.gz")); }

TEST(Gunzip, GivesBackWhatWasCompressed) {
  const std::string long_text(300'000, 'x');

  EXPECT_EQ(gunzipped(gzip("hello")), "hello");
  EXPECT_EQ(gunzipped(gzip("")), "");
  EXPECT_EQ(gunzipped(gzip(long_text)), long_text);
}

TEST(Gunzip, ReadsMembersOneAfterAnother) { EXPECT_EQ(gunzipped(gzip("one ") + gzip("") + gzip("two")), "one two"); }

TEST(Gunzip, IgnoresZerosBehindTheEnd) {
  EXPECT_EQ(gunzipped(gzip("one") + std::string(100'000, '\0')), "one");
  EXPECT_EQ(gunzipped(gzip("one") + std::string(3, '\0') + gzip(" two")), "one two");
}

TEST(Gunzip, NoticesEveryTruncation) {
  const auto data = gzip("a text of some length, for there to be something to cut off");

  for (std::size_t length = 1; length < data.size(); ++length) {
    const auto error = error_of([&] { gunzipped(std::string_view(data).substr(0, length)); });
    ASSERT_EQ(error.kind(), ErrorKind::input) << length;
    ASSERT_THAT(error.message(), HasSubstr("a.gz: cannot be decompressed")) << length;
  }
}

TEST(Gunzip, NoticesAChangedByteOfTheDataOrItsChecksum) {
  const auto data = gzip("a text of some length, for there to be something to change");

  for (std::size_t place = 10; place < data.size(); ++place) {
    auto changed = data;
    changed[place] = static_cast<char>(changed[place] ^ 0x10);
    ASSERT_EQ(error_of([&] { gunzipped(changed); }).kind(), ErrorKind::input) << place;
  }
}

TEST(Gunzip, RefusesOtherDataBehindTheEnd) {
  EXPECT_EQ(error_of([] { gunzipped(gzip("one") + "garbage"); }).kind(), ErrorKind::input);
}

TEST(OpenText, DecompressesWhatBeginsAsGzipWhateverItsName) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", gzip("compressed"));
  write_text(folder / "b.txt", "plain");
  write_text(folder / "c", "x");

  EXPECT_EQ(drain(*open_text(folder / "a.txt")), "compressed");
  EXPECT_EQ(drain(*open_text(folder / "b.txt")), "plain");
  EXPECT_EQ(drain(*open_text(folder / "c")), "x");
}

TEST(OpenText, RefusesWhatIsOnlyCalledGz) {
  const TemporaryFolder folder;
  write_text(folder / "a.json.gz", "{\"text\": \"not compressed\"}");

  const auto error = error_of([&] { open_text(folder / "a.json.gz"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("a.json.gz is called .gz but does not begin as gzip does"));
}

TEST(OpenText, RefusesMissingEmptyAndFolders) {
  const TemporaryFolder folder;
  write_text(folder / "empty.txt", "");

  for (const auto& path : {folder / "none.txt", folder / "empty.txt", folder.path()}) {
    const auto error = error_of([&] { open_text(path); });
    EXPECT_EQ(error.kind(), ErrorKind::input) << path;
    EXPECT_THAT(error.message(), HasSubstr(path.string()));
  }
}

/// Lines with their numbers; "$" behind those that ended.
std::vector<std::string> lines_of(std::string_view text, std::int64_t longest = 1 << 20) {
  LineReader reader(memory_stream(text), "a.txt", longest);
  std::vector<std::string> lines;
  while (const auto line = reader.next()) {
    lines.push_back(fmt::format("{} {}{}", reader.number(), *line, reader.had_end() ? "$" : ""));
  }
  return lines;
}

TEST(LineReader, CutsAtLineEndsOnly) {
  EXPECT_THAT(lines_of("a\n\nb\r\nc"), ElementsAre("1 a$", "2 $", "3 b\r$", "4 c"));
  EXPECT_THAT(lines_of("a\n"), ElementsAre("1 a$"));
  EXPECT_THAT(lines_of("\n"), ElementsAre("1 $"));
  EXPECT_THAT(lines_of(""), ElementsAre());
}

TEST(LineReader, JoinsLinesThatAreLongerThanItsBuffer) {
  const std::string a(65'536, 'a');
  const std::string b(200'001, 'b');

  EXPECT_THAT(lines_of(a + "\n" + b + "\nc"), ElementsAre("1 " + a + "$", "2 " + b + "$", "3 c"));
  EXPECT_THAT(lines_of(b), ElementsAre("1 " + b));
}

TEST(LineReader, RefusesLinesAboveItsLimit) {
  const std::string text = "short\n" + std::string(100'001, 'x') + "\n";

  EXPECT_EQ(lines_of(text, 100'001).size(), 2u);
  const auto error = error_of([&] { lines_of(text, 100'000); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("a.txt, line 2: has more than 100000 bytes"));
}

}  // namespace
}  // namespace gptqd::io
