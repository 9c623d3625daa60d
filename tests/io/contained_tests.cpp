#include <gtest/gtest.h>

#include <fstream>

#include "io/artifact/contained.hpp"
#include "kernels/base/error.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using gptqd::test::TemporaryFolder;

void make(const fs::path& path) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << "x";
}

TEST(Contained, FilesAndLinksWithinTheFolderAreFine) {
  const TemporaryFolder folder;
  make(folder / "a/sub/file");
  fs::create_symlink("sub/file", folder / "a/link");
  fs::create_directory_symlink(folder / "a", folder / "b");

  EXPECT_NO_THROW(require_contained(folder / "a", {"sub/file"}));
  EXPECT_NO_THROW(require_contained(folder / "b", {"link"}));  // the folder itself may be a link
}

TEST(Contained, SnapshotsMayLinkToTheirOwnBlobsAlone) {
  const TemporaryFolder folder;
  make(folder / "models--o--m/blobs/1234");
  make(folder / "models--o--other/blobs/5678");
  fs::create_directories(folder / "models--o--m/snapshots/main/sub");
  fs::create_symlink("../../blobs/1234", folder / "models--o--m/snapshots/main/config.json");
  fs::create_symlink("../../../blobs/1234", folder / "models--o--m/snapshots/main/sub/w");
  EXPECT_NO_THROW(require_contained(folder / "models--o--m/snapshots/main", {"sub/w"}));

  fs::create_symlink(folder / "models--o--other/blobs/5678", folder / "models--o--m/snapshots/main/w");
  EXPECT_THROW(require_contained(folder / "models--o--m/snapshots/main", {}), Error);
}

TEST(Contained, NeighboursWithTheFoldersNameAsAPrefixAreOutside) {
  const TemporaryFolder folder;
  make(folder / "a/file");
  make(folder / "ab/file");
  fs::create_symlink("../ab/file", folder / "a/link");

  EXPECT_THROW(require_contained(folder / "a", {}), Error);
}

TEST(Contained, WhatIsMissingIsAnError) {
  const TemporaryFolder folder;
  EXPECT_THROW(require_contained(folder / "none", {}), Error);
  EXPECT_THROW(require_contained(folder.path(), {"none"}), Error);
}

}  // namespace
}  // namespace gptqd::io
