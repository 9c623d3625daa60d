#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/snapshot_store.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::TemporaryFolder;
using test::error_of;
using test::read_text;
using test::write_text;
using testing::ElementsAre;
using testing::HasSubstr;

Snapshot sample_snapshot(std::int64_t leaf, DType dtype = DType::bf16) {
  return {.block = 5,
          .leaf = leaf,
          .fingerprint = "abc",
          .first_sample = 2 * leaf,
          .tokens = 3,
          .hidden = 7,
          .dtype = dtype};
}

std::vector<std::byte> content(const Snapshot& snapshot) {
  std::vector<std::byte> data(static_cast<std::size_t>(snapshot.bytes()));
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = static_cast<std::byte>(i * 31 + static_cast<std::size_t>(snapshot.leaf));
  }
  return data;
}

class SnapshotStoreTest : public ::testing::Test {
 protected:
  void write(const Snapshot& snapshot) { store_.write(snapshot, content(snapshot)); }
  std::vector<std::byte> read(const Snapshot& snapshot) {
    std::vector<std::byte> data(static_cast<std::size_t>(snapshot.bytes()));
    store_.read(snapshot, data);
    return data;
  }

  TemporaryFolder folder_;
  SnapshotStore store_{folder_.path()};
};

TEST_F(SnapshotStoreTest, GivesBackTheBitsOfAnyType) {
  for (const auto dtype : {DType::bf16, DType::f16, DType::f32}) {
    write(sample_snapshot(1, dtype));

    EXPECT_EQ(read(sample_snapshot(1, dtype)), content(sample_snapshot(1, dtype)));
  }
}

TEST_F(SnapshotStoreTest, KnowsItsGenerationsAndWhetherTheyAreWhole) {
  EXPECT_THAT(store_.generations(), ElementsAre());
  auto later = sample_snapshot(0);
  later.block = 11;
  write(sample_snapshot(0));
  write(sample_snapshot(1));
  write(later);

  EXPECT_THAT(store_.generations(), ElementsAre(11, 5));
  EXPECT_TRUE(store_.is_whole(5, {0, 1}));
  EXPECT_FALSE(store_.is_whole(11, {0, 1}));
  store_.remove(11);
  EXPECT_THAT(store_.generations(), ElementsAre(5));
  store_.remove(5);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "activations"));
}

TEST_F(SnapshotStoreTest, AFlippedBitIsFoundByTheChecksum) {
  write(sample_snapshot(1));
  const auto path = store_.file(5, 1).path();
  auto text = read_text(path);
  text[text.size() - 9] ^= 4;
  write_text(path, text);

  const Error error = error_of([&] { read(sample_snapshot(1)); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("damaged"));
  EXPECT_EQ(store_.file(5, 1).state(true).status, FileStatus::damaged);
}

TEST_F(SnapshotStoreTest, AnotherRunsOrAnotherShapeIsRefused) {
  write(sample_snapshot(1));
  auto other_run = sample_snapshot(1);
  other_run.fingerprint = "abd";
  auto other_samples = sample_snapshot(1);
  other_samples.first_sample = 0;
  auto wider = sample_snapshot(1);
  wider.hidden = 8;

  EXPECT_THAT(error_of([&] { read(other_run); }).message(), HasSubstr("another run's"));
  EXPECT_THAT(error_of([&] { read(other_samples); }).message(), HasSubstr("another run's"));
  EXPECT_THAT(error_of([&] { read(wider); }).message(), HasSubstr("shape [3, 7], expected [3, 8]"));
  EXPECT_THAT(error_of([&] { read(sample_snapshot(1, DType::f16)); }).message(), HasSubstr("another run's"));
  EXPECT_EQ(error_of([&] { read(sample_snapshot(2)); }).kind(), ErrorKind::input);
}

}  // namespace
}  // namespace gptqd::io
