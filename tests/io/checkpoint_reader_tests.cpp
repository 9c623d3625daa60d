#include <gmock/gmock.h>

#include <thread>

#include "io/checkpoint_reader.hpp"
#include "io/safetensors.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::bytes_of;
using test::error_of;
using test::write_text;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// A file with one U8 tensor of 4 bytes for each name.
void write_shard(const fs::path& path, const std::vector<std::string>& names) {
  std::vector<TensorDeclaration> tensors;
  for (const auto& name : names) {
    tensors.push_back({name, DType::u8, {4}});
  }
  SafetensorsWriter writer(path, tensors);
  for (const auto& name : names) {
    writer.append(name, bytes_of((name + "....").substr(0, 4)));
  }
  writer.commit();
}

void write_index(const fs::path& folder, const std::string& weight_map) {
  write_text(folder / "model.safetensors.index.json",
             R"({"metadata":{"total_size":1},"weight_map":)" + weight_map + "}");
}

Error refusal(const fs::path& folder) {
  Error error = error_of([&] { CheckpointReader::open(folder); });
  EXPECT_EQ(error.kind(), ErrorKind::input) << error.message();
  EXPECT_THAT(error.message(), HasSubstr(folder.string()));
  return error;
}

TEST(CheckpointReader, ReadsASingleFile) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/opt-pre"));
  const TensorInfo& info = reader->at("model.decoder.layers.2.fc2.weight");
  std::vector<std::byte> whole(static_cast<std::size_t>(info.bytes));
  std::vector<std::byte> part(100);

  reader->read(info, whole);
  reader->read_range(info, 50, part);

  EXPECT_EQ(info.dtype, DType::f16);
  EXPECT_THAT(info.shape, ElementsAre(48, 112));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 50));
  EXPECT_EQ(reader->names().size(), 52u);
  EXPECT_EQ(reader->names().front(), "model.decoder.embed_positions.weight");
  ASSERT_EQ(reader->files().size(), 1u);
  EXPECT_EQ(reader->files()[0].name, "model.safetensors");
  EXPECT_EQ(reader->files()[0].bytes,
            static_cast<std::int64_t>(fs::file_size(source_path("tests/golden/models/opt-pre/model.safetensors"))));
  EXPECT_EQ(reader->files()[0].header_hash.size(), 32u);
}

TEST(CheckpointReader, ReadsFilesOfAnIndexInFileOrder) {
  const TemporaryFolder folder;
  write_shard(folder / "m-2.safetensors", {"a"});
  write_shard(folder / "m-1.safetensors", {"z", "b"});
  write_shard(folder / "unrelated.safetensors", {"a"});
  write_index(folder.path(), R"({"a":"m-2.safetensors","b":"m-1.safetensors","z":"m-1.safetensors"})");

  const auto reader = CheckpointReader::open(folder.path());

  EXPECT_THAT(reader->names(), ElementsAre("z", "b", "a"));
  std::string text(4, ' ');
  reader->read(reader->at("a"), std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(text, "a...");
  EXPECT_EQ(reader->at("a").file_index, 1);
  EXPECT_EQ(reader->files()[1].name, "m-2.safetensors");
  EXPECT_EQ(reader->find("none"), nullptr);
}

TEST(CheckpointReader, ASingleFileGoesBeforeAnIndex) {
  const TemporaryFolder folder;
  write_shard(folder / "model.safetensors", {"a"});
  write_index(folder.path(), R"({"b":"gone.safetensors"})");

  EXPECT_THAT(CheckpointReader::open(folder.path())->names(), ElementsAre("a"));
}

TEST(CheckpointReader, MaySpeakToSeveralThreads) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/opt-pre"));
  std::vector<std::string> hashes(4);

  std::vector<std::thread> threads;
  for (auto& hash : hashes) {
    threads.emplace_back([&] {
      Hasher hasher;
      for (const auto& name : reader->names()) {
        const TensorInfo& info = reader->at(name);
        std::vector<std::byte> data(static_cast<std::size_t>(info.bytes));
        reader->read(info, data);
        hasher.update(data);
      }
      hash = hasher.hex();
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }

  EXPECT_THAT(hashes, testing::Each(hashes[0]));
}

TEST(CheckpointReader, UnknownTensorComesWithTheClosestNames) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/opt-pre"));

  const Error error = error_of([&] { reader->at("decoder.layers.1.fc1.weight"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("opt-pre: no tensor \"decoder.layers.1.fc1.weight\""),
                                     HasSubstr("model.decoder.layers.1.fc1.weight")));
}

TEST(CheckpointReader, RefusesFoldersWithoutWeights) {
  const TemporaryFolder folder;
  write_text(folder / "file", "");

  EXPECT_THAT(refusal(folder / "none").message(), HasSubstr("no such folder"));
  EXPECT_THAT(refusal(folder / "file").message(), HasSubstr("expected a folder"));
  EXPECT_THAT(refusal(folder.path()).message(),
              AllOf(HasSubstr("no weights; looked for"), HasSubstr("model.safetensors, "),
                    HasSubstr("model.safetensors.index.json")));
}

TEST(CheckpointReader, RefusesATruncatedFile) {
  const TemporaryFolder folder;
  write_shard(folder / "model.safetensors", {"a", "b"});
  fs::resize_file(folder / "model.safetensors", fs::file_size(folder / "model.safetensors") - 1);

  EXPECT_THAT(refusal(folder.path()).message(), AllOf(HasSubstr("tensor \"b\""), HasSubstr("truncated")));
}

struct BadIndex {
  const char* name;
  const char* weight_map;
  const char* offence;
};
void PrintTo(const BadIndex& value, std::ostream* out) { *out << value.name; }

class IndexRefused : public testing::TestWithParam<BadIndex> {};

TEST_P(IndexRefused, NamesTheFolderAndTheOffence) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "model");
  write_shard(folder / "outside.safetensors", {"c"});
  write_shard(folder / "model/one.safetensors", {"a"});
  write_shard(folder / "model/two.safetensors", {"b"});
  write_shard(folder / "model/again.safetensors", {"a"});
  write_index(folder / "model", GetParam().weight_map);

  EXPECT_THAT(refusal(folder / "model").message(), HasSubstr(GetParam().offence));
}

INSTANTIATE_TEST_SUITE_P(
    , IndexRefused,
    testing::Values(BadIndex{"no_table", "[]", "\"weight_map\" is no table"},
                    BadIndex{"empty", "{}", "\"weight_map\" is no table"},
                    BadIndex{"file_is_a_number", R"({"a":1})", "\"a\": expected a string, got 1"},
                    BadIndex{"missing_file", R"({"a":"one.safetensors","b":"gone.safetensors"})",
                             "names the file \"gone.safetensors\", which is missing"},
                    BadIndex{"parent_folder", R"({"c":"../outside.safetensors"})",
                             "\"../outside.safetensors\"; expected a file inside"},
                    BadIndex{"hidden_parent", R"({"c":"x/../../outside.safetensors"})", "expected a file inside"},
                    BadIndex{"absolute", R"({"c":"/etc/passwd"})", "\"/etc/passwd\"; expected a file inside"},
                    BadIndex{"empty_name", R"({"c":""})", "expected a file inside"},
                    BadIndex{"folder_itself", R"({"c":"."})", "expected a regular file, got a folder"},
                    BadIndex{"not_in_its_file", R"({"a":"one.safetensors","b":"one.safetensors"})",
                             "tensor \"b\" should lie in one.safetensors, but no file has it"},
                    BadIndex{"in_another_file", R"({"a":"two.safetensors","b":"one.safetensors"})",
                             "tensor \"a\" should lie in two.safetensors, but lies in one.safetensors"},
                    BadIndex{"in_two_files", R"({"a":"one.safetensors","x":"again.safetensors"})",
                             "tensor \"a\" lies in both again.safetensors and one.safetensors"}),
    [](const auto& info) { return info.param.name; });

TEST(ClosestNames, AreAtMostThreeInTheOrderOfTheirDistance) {
  EXPECT_THAT(closest_names("fc1", {"fc2x", "fc1", "norm", "fc2"}), ElementsAre("fc1", "fc2", "fc2x"));
  EXPECT_THAT(closest_names("fc1", {}), ElementsAre());
}

}  // namespace
}  // namespace gptqd::io
