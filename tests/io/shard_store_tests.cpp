#include <gmock/gmock.h>

#include <thread>

#include "io/atomic_file.hpp"
#include "io/json_file.hpp"
#include "io/shard_store.hpp"
#include "kernels/base/fault_point.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using gptqd::test::TemporaryFolder;
using nlohmann::json;
using test::error_of;
using test::expect_same_layer;
using test::random_linear;
using test::read_text;
using test::write_text;
using testing::AllOf;
using testing::HasSubstr;

BlockShard sample_shard(std::int64_t block) {
  BlockShard shard;
  shard.block = block;
  shard.fingerprint = "0123456789abcdef";
  shard.spec = {{"bits", 4}, {"note", "ü"}};
  shard.run = {{"seconds", 1.5}, {"host", "node7"}};
  // Not in the order of their names: the order must come back.
  shard.linears.push_back(random_linear("layers.0.self_attn.q_proj", 32, 64, 4, 32, true, 1));
  shard.linears.push_back(random_linear("layers.0.fc1", 96, 64, 3, -1, false, 2));
  shard.linears.push_back(random_linear("layers.0.aaa", 16, 64, 8, 16, false, 3));
  std::reverse(shard.linears[2].g_idx.begin(), shard.linears[2].g_idx.end());
  return shard;
}

void expect_same_content(const BlockShard& got, const BlockShard& expected) {
  EXPECT_EQ(got.block, expected.block);
  EXPECT_EQ(got.fingerprint, expected.fingerprint);
  EXPECT_EQ(got.spec, expected.spec);
  ASSERT_EQ(got.linears.size(), expected.linears.size());
  for (std::size_t i = 0; i < got.linears.size(); ++i) {
    expect_same_layer(got.linears[i], expected.linears[i]);
    EXPECT_EQ(got.linears[i].record, expected.linears[i].record);
  }
}

void flip_bit(const fs::path& path, std::size_t byte, int bit) {
  std::string text = read_text(path);
  text.at(byte) = static_cast<char>(text.at(byte) ^ (1 << bit));
  write_text(path, text);
}

std::vector<std::byte> image_of(const BlockShard& shard) {
  auto image = to_image(shard);
  return {image.bytes().begin(), image.bytes().end()};
}

TEST(ShardImage, HoldsEverythingButTheRun) {
  const BlockShard shard = sample_shard(12);

  const BlockShard got = from_image(image_of(shard), "image");

  expect_same_content(got, shard);
  EXPECT_TRUE(got.run.is_null());
}

TEST(ShardImage, DependsOnTheContentAlone) {
  BlockShard shard = sample_shard(12);
  const auto first = image_of(shard);
  const std::vector<std::byte> dirt(first.size() * 2, std::byte{0xa5});  // what the next allocation may find
  shard.run = {{"seconds", 99}};

  EXPECT_EQ(image_of(shard), first);

  shard.linears[1].qweight[5] ^= 1u;
  EXPECT_NE(image_of(shard), first);
}

TEST(ShardImage, HoldsNeitherPathNorHost) {
  const auto image = image_of(sample_shard(12));
  const std::string text(reinterpret_cast<const char*>(image.data()), image.size());

  EXPECT_EQ(text.find("node7"), std::string::npos);
  EXPECT_EQ(text.find("/dev"), std::string::npos);
  EXPECT_EQ(text.substr(1, 3), "HDF");
}

TEST(ShardImage, ABlockWithoutQuantizedLayersIsAShardToo) {
  BlockShard shard;
  shard.block = 3;

  const BlockShard got = from_image(image_of(shard), "image");

  EXPECT_EQ(got.block, 3);
  EXPECT_TRUE(got.fingerprint.empty());
  EXPECT_TRUE(got.spec.is_null());
  EXPECT_TRUE(got.linears.empty());
}

TEST(ShardImage, RefusesLayersThatAreNotValid) {
  BlockShard spoiled = sample_shard(0);
  spoiled.linears[0].scales.pop_back();
  BlockShard repeated = sample_shard(0);
  repeated.linears[1].name = repeated.linears[0].name;
  BlockShard slash = sample_shard(0);
  slash.linears[0].name = "a/b";
  BlockShard huge = sample_shard(0);
  huge.linears[0].record = std::string(70'000, 'x');

  EXPECT_EQ(error_of([&] { to_image(spoiled); }).kind(), ErrorKind::internal);
  EXPECT_THAT(error_of([&] { to_image(spoiled); }).message(), HasSubstr("q_proj: scales has 63"));
  EXPECT_THAT(error_of([&] { to_image(repeated); }).message(), HasSubstr("two linears are named"));
  EXPECT_THAT(error_of([&] { to_image(slash); }).message(), HasSubstr("cannot name a group"));
  EXPECT_THAT(error_of([&] { to_image(huge); }).message(), HasSubstr("attribute record has 70002 bytes"));
}

TEST(ShardImage, ForeignBytesAreAnInputError) {
  const std::vector<std::byte> garbage(4096, std::byte{'x'});

  const Error error = error_of([&] { from_image(garbage, "garbage.h5"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("garbage.h5"));
}

TEST(ShardStore, WritesAndReads) {
  const TemporaryFolder folder;
  const ShardStore store(folder / "work");
  const BlockShard shard = sample_shard(12);

  store.write(shard);

  EXPECT_EQ(store.shard_path(12), folder / "work/shards/block_00012.h5");
  EXPECT_EQ(store.state(12).status, ShardStatus::valid);
  EXPECT_EQ(store.state(12).bytes, static_cast<std::int64_t>(fs::file_size(store.shard_path(12))));
  const BlockShard got = store.read(12);
  expect_same_content(got, shard);
  EXPECT_EQ(got.run, shard.run);
  EXPECT_EQ(read_json(store.sidecar_path(12)).at("xxh3_128"), store.state(12).xxh3_128);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "work/shards"), fs::directory_iterator()), 2);
}

TEST(ShardStore, RewritingReplaces) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  BlockShard shard = sample_shard(1);
  store.write(shard);
  shard.linears.pop_back();

  store.write(shard);

  expect_same_content(store.read(1), shard);
}

TEST(ShardStore, WithoutAValidSidecarAShardIsMissing) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  EXPECT_EQ(store.state(5).status, ShardStatus::missing);
  store.write(sample_shard(5));

  write_text(store.sidecar_path(5), "{\"xxh3_128\": ");
  const ShardState cut = store.state(5);
  write_text(store.sidecar_path(5), R"({"bytes": 5})");
  const ShardState lacking = store.state(5);
  fs::remove(store.sidecar_path(5));
  const ShardState none = store.state(5);

  EXPECT_EQ(cut.status, ShardStatus::missing);
  EXPECT_THAT(cut.reason, HasSubstr("not valid JSON"));
  EXPECT_EQ(lacking.status, ShardStatus::missing);
  EXPECT_THAT(lacking.reason, HasSubstr("\"xxh3_128\" is missing"));
  EXPECT_EQ(none.status, ShardStatus::missing);
  EXPECT_THAT(none.reason, AllOf(HasSubstr("no valid sidecar"), HasSubstr("block_00005.json")));
  EXPECT_EQ(error_of([&] { store.read(5); }).kind(), ErrorKind::input);
}

TEST(ShardStore, ASidecarAloneIsMissing) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(5));

  fs::remove(store.shard_path(5));

  EXPECT_EQ(store.state(5).status, ShardStatus::missing);
  EXPECT_THAT(error_of([&] { store.read(5); }).message(),
              AllOf(HasSubstr("block_00005.h5"), HasSubstr("no such file")));
}

TEST(ShardStore, AnyFlippedBitIsFoundBeforeHdf5SeesTheFile) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(2));
  const fs::path path = store.shard_path(2);
  const std::size_t size = fs::file_size(path);

  for (const std::size_t byte : {std::size_t{0}, std::size_t{9}, std::size_t{96}, size / 3, size / 2, size - 1}) {
    flip_bit(path, byte, static_cast<int>(byte % 8));
    EXPECT_EQ(store.state(2).status, ShardStatus::damaged) << byte;
    EXPECT_THAT(store.state(2).reason, HasSubstr("checksum"));
    EXPECT_THAT(error_of([&] { store.read(2); }).message(),
                AllOf(HasSubstr("block_00002.h5"), HasSubstr("the file is damaged")))
        << byte;
    flip_bit(path, byte, static_cast<int>(byte % 8));
  }
  EXPECT_EQ(store.state(2).status, ShardStatus::valid);
}

TEST(ShardStore, ATruncatedShardIsDamaged) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(2));
  const auto size = fs::file_size(store.shard_path(2));

  fs::resize_file(store.shard_path(2), size - 1);

  EXPECT_EQ(store.state(2).status, ShardStatus::damaged);
  EXPECT_THAT(store.state(2).reason, HasSubstr("bytes, expected " + std::to_string(size)));
  EXPECT_EQ(error_of([&] { store.read(2); }).kind(), ErrorKind::input);
}

TEST(ShardStore, AShardThatIsMadeAgainIsAbsentUntilItsNewSidecarIsThere) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  BlockShard shard = sample_shard(2);
  store.write(shard);
  shard.linears[0].qweight[0] ^= 1u;  // of the same size: a comparison of sizes would not notice
  set_faults("file.create:eio:2");

  const Error error = error_of([&] { store.write(shard); });
  set_faults("");

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(store.state(2, /*whole=*/false).status, ShardStatus::missing);
}

TEST(ShardStore, AnErrorOfTheDeviceIsNotTakenForAMissingShard) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(2));
  set_faults("file.read:eio");

  const Error error = error_of([&] { store.state(2); });
  set_faults("");

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(store.state(2).status, ShardStatus::valid);
}

TEST(ShardStore, ARenamedShardIsRefused) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(2));

  fs::rename(store.shard_path(2), store.shard_path(3));
  fs::rename(store.sidecar_path(2), store.sidecar_path(3));

  EXPECT_THAT(error_of([&] { store.read(3); }).message(), HasSubstr("holds block 2, expected 3"));
}

TEST(ShardStore, StaleTemporariesGoAndNothingElse) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(2));
  write_text(folder / "shards/block_00003.h5.tmp", "half");
  write_text(folder / "shards/block_00003.json.tmp", "half");
  write_text(folder / "manifest.json.tmp", "half");
  write_text(folder / "notes.tmp", "the user's");

  store.remove_stale_temporaries();

  EXPECT_FALSE(fs::exists(folder / "shards/block_00003.h5.tmp"));
  EXPECT_FALSE(fs::exists(folder / "shards/block_00003.json.tmp"));
  EXPECT_FALSE(fs::exists(folder / "manifest.json.tmp"));
  EXPECT_TRUE(fs::exists(folder / "notes.tmp"));
  EXPECT_EQ(store.state(2).status, ShardStatus::valid);
}

TEST(ShardStore, TheManifestListsTheShardsAndCanBeRebuilt) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  EXPECT_EQ(store.read_manifest(), std::nullopt);
  store.write(sample_shard(0));
  store.write(sample_shard(2));

  store.write_manifest(4, {{"model", "opt"}});
  const std::string first = read_text(folder / "manifest.json");
  fs::remove(folder / "manifest.json");
  store.write_manifest(4, {{"model", "opt"}});

  EXPECT_EQ(read_text(folder / "manifest.json"), first);
  const json manifest = store.read_manifest().value();
  EXPECT_EQ(manifest.at("num_blocks"), 4);
  EXPECT_EQ(manifest.at("fingerprint"), (json{{"model", "opt"}}));
  ASSERT_EQ(manifest.at("shards").size(), 2u);
  EXPECT_EQ(manifest.at("shards")[1], (json{{"block", 2},
                                            {"file", "shards/block_00002.h5"},
                                            {"bytes", fs::file_size(store.shard_path(2))},
                                            {"xxh3_128", store.state(2).xxh3_128}}));
}

TEST(ShardStore, AWriterAndAReaderMayRunAtOnce) {
  const TemporaryFolder folder;
  const ShardStore store(folder.path());
  store.write(sample_shard(0));

  std::thread writer([&] {
    for (std::int64_t block = 1; block < 6; ++block) {
      store.write(sample_shard(block));
    }
  });
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(store.read(0).linears.size(), 3u);
  }
  writer.join();

  EXPECT_EQ(store.read(5).block, 5);
}

TEST(ShardStore, AFolderThatCannotBeMadeIsAnIoError) {
  const TemporaryFolder folder;
  write_text(folder / "file", "");

  const Error error = error_of([&] { ShardStore(folder / "file/work").write(sample_shard(0)); });

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), HasSubstr("file/work/shards"));
}

}  // namespace
}  // namespace gptqd::io
