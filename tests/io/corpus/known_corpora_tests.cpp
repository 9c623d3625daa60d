#include <gmock/gmock.h>

#include "io/corpus/known_corpora.hpp"
#include "tests/io/environment.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::TemporaryFolder;
using test::error_of;
using test::write_text;
using testing::HasSubstr;

class KnownCorpora : public testing::Test {
 protected:
  std::filesystem::path make(const std::string& relative) const {
    const auto path = folder_ / relative;
    std::filesystem::create_directories(path.parent_path());
    write_text(path, "x");
    return path;
  }
  std::string at(const std::string& relative) const { return (folder_ / relative).string(); }

  TemporaryFolder folder_;
  test::Environment environment_{"GPTQ_DIST_DATA"};
};

TEST_F(KnownCorpora, HaveNames) {
  for (const auto convention : {Convention::plain, Convention::wikitext2, Convention::ptb, Convention::ptb_new,
                                Convention::c4, Convention::c4_new}) {
    EXPECT_EQ(convention_from_name(name_of(convention)), convention);
  }
  EXPECT_EQ(known_corpus("ptb-new"), Convention::ptb_new);
  EXPECT_EQ(known_corpus("plain"), std::nullopt);
  EXPECT_EQ(known_corpus("C4"), std::nullopt);
  const auto error = error_of([] { convention_from_name("c5"); });
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), HasSubstr("\"c5\"; expected one of plain, wikitext2, ptb, ptb-new, c4, c4-new"));
}

TEST_F(KnownCorpora, AreFoundUnderTheNamesTheyAreDownloadedWith) {
  environment_.set("GPTQ_DIST_DATA", at("none") + "::" + at("a") + ":" + at("b"));
  const auto train = make("b/en/c4-train.00000-of-01024.json.gz");
  const auto validation = make("b/c4-validation.00000-of-00008.json");
  const auto wiki_train = make("b/wikitext-2-raw/wiki.train.raw");
  const auto wiki_test = make("b/wikitext2-test.jsonl.gz");
  const auto ptb_train = make("a/ptb.train.txt");
  const auto ptb_valid = make("a/ptb.valid.txt");
  const auto ptb_test = make("a/ptb.test.txt.gz");

  EXPECT_EQ(find_corpus(Convention::c4, Split::calibration), train);
  EXPECT_EQ(find_corpus(Convention::c4_new, Split::calibration), train);
  EXPECT_EQ(find_corpus(Convention::c4, Split::evaluation), validation);
  EXPECT_EQ(find_corpus(Convention::wikitext2, Split::calibration), wiki_train);
  EXPECT_EQ(find_corpus(Convention::wikitext2, Split::evaluation), wiki_test);
  EXPECT_EQ(find_corpus(Convention::ptb, Split::calibration), ptb_train);
  EXPECT_EQ(find_corpus(Convention::ptb, Split::evaluation), ptb_valid);
  EXPECT_EQ(find_corpus(Convention::ptb_new, Split::evaluation), ptb_test);
}

TEST_F(KnownCorpora, AreTakenFromTheFirstFolderThatHasThem) {
  environment_.set("GPTQ_DIST_DATA", at("a") + ":" + at("b"));
  const auto first = make("a/en/c4-train.00000-of-01024.json");
  make("b/c4-train.00000-of-01024.json.gz");

  EXPECT_EQ(find_corpus(Convention::c4, Split::calibration), first);
}

TEST_F(KnownCorpora, SayWhereTheyWereLookedForAndWhereTheyAreFrom) {
  environment_.set("GPTQ_DIST_DATA", "/first:/second");

  const auto error = error_of([] { find_corpus(Convention::c4, Split::evaluation); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("the evaluation text of c4 was not found"));
  EXPECT_THAT(error.message(), HasSubstr("\n  /first/c4-validation.00000-of-00008.json.gz\n"));
  EXPECT_THAT(error.message(), HasSubstr("\n  /second/en/c4-validation.00000-of-00008.json\n"));
  EXPECT_THAT(error.message(), HasSubstr("allenai/c4"));
}

TEST_F(KnownCorpora, SayThatNoFolderIsSet) {
  const auto error = error_of([] { find_corpus(Convention::wikitext2, Split::calibration); });

  EXPECT_THAT(error.message(), HasSubstr("$GPTQ_DIST_DATA is not set"));
  EXPECT_THAT(error.message(), HasSubstr("wiki.train.raw"));
}

TEST_F(KnownCorpora, AreNamesAndPathsAreFiles) {
  EXPECT_EQ(TextSource::from_word("c4").convention, Convention::c4);
  EXPECT_EQ(TextSource::from_word("c4").name(), "c4");
  EXPECT_EQ(TextSource::from_word("./c4").file, "./c4");
  EXPECT_EQ(TextSource::from_word("c4.json.gz").convention, Convention::plain);
  EXPECT_EQ(TextSource::from_word("c4.json.gz").path(Split::evaluation), "c4.json.gz");
}

TEST_F(KnownCorpora, ReadRowsOfTextFilesAndOfJsonLines) {
  EXPECT_EQ(document_format("wiki.test.raw", Convention::wikitext2), DocumentFormat::wikitext_lines);
  EXPECT_EQ(document_format("wikitext2-test.jsonl", Convention::wikitext2), DocumentFormat::json_lines);
  EXPECT_EQ(document_format("ptb.test.txt.gz", Convention::ptb_new), DocumentFormat::ptb_lines);
  EXPECT_EQ(document_format("wiki.test.raw", Convention::plain), DocumentFormat::text);
}

}  // namespace
}  // namespace gptqd::io
