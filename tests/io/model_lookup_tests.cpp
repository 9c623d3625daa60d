#include <gmock/gmock.h>

#include "io/model_lookup.hpp"
#include "tests/io/environment.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::write_text;
using testing::HasSubstr;
using testing::Not;

/// A temporary folder, and the lookup's variables, unset but for those that a test sets.
class ModelLookup : public testing::Test {
 protected:
  fs::path make_folder(const std::string& relative) const {
    fs::create_directories(folder_ / relative);
    return folder_ / relative;
  }
  /// A repository of the Hugging Face cache `cache` with one snapshot.
  fs::path make_snapshot(const std::string& cache, const std::string& repository, const std::string& commit) const {
    make_folder(cache + "/" + repository + "/refs");
    write_text(folder_ / (cache + "/" + repository + "/refs/main"), commit);
    return make_folder(cache + "/" + repository + "/snapshots/" + commit);
  }
  void set(const char* name, const std::string& value) const { environment_.set(name, value); }

  gptqd::test::TemporaryFolder folder_;
  test::Environment environment_{"GPTQ_DIST_MODELS", "HF_HUB_CACHE",   "HUGGINGFACE_HUB_CACHE",
                                 "HF_HOME",          "XDG_CACHE_HOME", "HOME"};
};

TEST_F(ModelLookup, TakesAFolderAsGiven) {
  const auto folder = make_folder("some/model");

  EXPECT_EQ(find_model(folder.string()), folder);
}

TEST_F(ModelLookup, SearchesOurFoldersInOrder) {
  make_folder("b/my-model");
  const auto expected = make_folder("a/my-model");
  set("GPTQ_DIST_MODELS",
      (folder_ / "none").string() + ":" + (folder_ / "a").string() + "::" + (folder_ / "b").string());

  EXPECT_EQ(find_model("my-model"), expected);
}

TEST_F(ModelLookup, FindsSnapshotsOfTheHuggingFaceCache) {
  const auto a = make_snapshot("hub-cache", "models--org--a", "0123abc");
  const auto b = make_snapshot("home/hub", "models--org--b", "0123abc");
  const auto c = make_snapshot("xdg/huggingface/hub", "models--org--c", "0123abc");
  const auto d = make_snapshot("user/.cache/huggingface/hub", "models--d", "0123abc");
  set("HF_HUB_CACHE", (folder_ / "hub-cache").string());
  set("HF_HOME", (folder_ / "home").string());
  set("XDG_CACHE_HOME", (folder_ / "xdg").string());
  set("HOME", (folder_ / "user").string());

  EXPECT_TRUE(fs::equivalent(find_model("org/a"), a));
  EXPECT_TRUE(fs::equivalent(find_model("org/b"), b));
  EXPECT_TRUE(fs::equivalent(find_model("org/c"), c));
  EXPECT_TRUE(fs::equivalent(find_model("d"), d));
}

TEST_F(ModelLookup, KnowsThePapersModels) {
  const auto bloom = make_snapshot("hub", "models--bigscience--bloom", "1");
  const auto opt = make_snapshot("hub", "models--facebook--opt-125m", "2");
  const auto llama = make_snapshot("hub", "models--meta-llama--Meta-Llama-3-8B", "3");
  set("HF_HUB_CACHE", (folder_ / "hub").string());

  EXPECT_TRUE(fs::equivalent(find_model("bloom-176b"), bloom));
  EXPECT_TRUE(fs::equivalent(find_model("BLOOM-176B"), bloom));
  EXPECT_TRUE(fs::equivalent(find_model("opt-125m"), opt));
  EXPECT_TRUE(fs::equivalent(find_model("llama-3-8b"), llama));
}

TEST_F(ModelLookup, FindsAliasesInOurFolders) {
  const auto folder = make_folder("models/facebook/opt-125m");
  set("GPTQ_DIST_MODELS", (folder_ / "models").string());

  EXPECT_EQ(find_model("opt-125m"), folder);
}

TEST_F(ModelLookup, TakesTheSnapshotThatMainNames) {
  make_snapshot("hub", "models--org--m", "aaaa");
  const auto current = make_snapshot("hub", "models--org--m", "bbbb");
  set("HF_HUB_CACHE", (folder_ / "hub").string());

  EXPECT_TRUE(fs::equivalent(find_model("org/m"), current));
}

TEST_F(ModelLookup, IgnoresARefThatLeadsElsewhere) {
  make_snapshot("hub", "models--org--m", "aaaa");
  write_text(folder_ / "hub/models--org--m/refs/main", "../../../../");
  set("HF_HUB_CACHE", (folder_ / "hub").string());

  EXPECT_THAT(error_of([&] { find_model("org/m"); }).message(), HasSubstr("not found"));
}

TEST_F(ModelLookup, ListsEveryPlaceItLookedAt) {
  set("GPTQ_DIST_MODELS", "/first:/second");
  set("HF_HOME", "/third");

  const auto error = error_of([&] { find_model("opt-13b"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("/first/opt-13b\n"));
  EXPECT_THAT(error.message(), HasSubstr("/second/facebook/opt-13b\n"));
  EXPECT_THAT(error.message(), HasSubstr("/third/hub/models--facebook--opt-13b/snapshots/"));
  EXPECT_THAT(error.message(), HasSubstr("download facebook/opt-13b"));
  EXPECT_THAT(error.message(), Not(HasSubstr("not set")));
}

TEST_F(ModelLookup, SaysWhatIsWrongWithARepositoryThatIsThere) {
  make_folder("hub/models--org--no-ref/snapshots/0123abc");
  make_snapshot("hub", "models--org--no-snapshot", "4567def");
  fs::remove_all(folder_ / "hub/models--org--no-snapshot/snapshots");
  set("HUGGINGFACE_HUB_CACHE", (folder_ / "hub").string());

  EXPECT_THAT(
      error_of([] { find_model("org/no-ref"); }).message(),
      HasSubstr("the repository is there, but it has no refs/main; give the folder of one of snapshots/0123abc"));
  EXPECT_THAT(error_of([] { find_model("org/no-snapshot"); }).message(),
              HasSubstr("4567def (the repository is there, but not the snapshot of its refs/main)"));
}

TEST_F(ModelLookup, SaysThatAFileIsNoFolder) {
  write_text(folder_ / "model.safetensors", "x");

  const auto error = error_of([&] { find_model((folder_ / "model.safetensors").string()); });

  EXPECT_THAT(error.message(), HasSubstr("a file, expected the folder it lies in"));
  EXPECT_THAT(error.message(), HasSubstr("$GPTQ_DIST_MODELS (not set)"));
}

TEST_F(ModelLookup, RefusesAnEmptyName) {
  EXPECT_EQ(error_of([] { find_model(""); }).kind(), ErrorKind::input);
}

}  // namespace
}  // namespace gptqd::io
