#include <gmock/gmock.h>

#include <thread>

#include "io/checkpoint_reader.hpp"
#include "io/pytorch/pytorch_file.hpp"
#include "io/pytorch/zip_entries.hpp"
#include "io/safetensors.hpp"
#include "tests/io/file_support.hpp"
#include "tests/io/pytorch_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::bytes_of;
using test::error_of;
using test::Pickle;
using test::read_text;
using test::write_text;
using test::write_torch_file;
using test::write_zip;
using test::ZipPart;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string read_tensor(const CheckpointReader& reader, const TensorInfo& info) {
  std::string data(static_cast<std::size_t>(info.bytes), '\0');
  reader.read(info, std::as_writable_bytes(std::span(data)));
  return data;
}

/// Every tensor of `got` is the one of `expected` whose name `twin_of` gives, bit for bit.
template <class TwinOf>
void expect_same_tensors(const CheckpointReader& got, const CheckpointReader& expected, TwinOf&& twin_of) {
  for (const auto& name : got.names()) {
    SCOPED_TRACE(name);
    const TensorInfo& info = got.at(name);
    const TensorInfo& twin = expected.at(twin_of(name));
    EXPECT_EQ(info.dtype, twin.dtype);
    EXPECT_EQ(info.shape, twin.shape);
    EXPECT_EQ(read_tensor(got, info), read_tensor(expected, twin));
  }
}

TEST(PytorchCheckpoint, OptBinHoldsTheTensorsOfItsTwin) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/opt-bin"));
  const auto twin = CheckpointReader::open(source_path("tests/golden/models/opt-pre"));

  EXPECT_EQ(reader->names().size(), twin->names().size() + 1);  // and the head
  expect_same_tensors(*reader, *twin, [](const std::string& name) {
    return name == "lm_head.weight" ? "model.decoder.embed_tokens.weight" : "model." + name;
  });
  EXPECT_EQ(reader->at("lm_head.weight").offset, reader->at("decoder.embed_tokens.weight").offset);
  ASSERT_EQ(reader->files().size(), 1u);
  EXPECT_EQ(reader->files()[0].name, "pytorch_model.bin");
  EXPECT_EQ(reader->files()[0].header_hash.size(), 32u);
}

TEST(PytorchCheckpoint, ShardedBloomHoldsTheTensorsOfItsTwin) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/bloom-bin-sharded"));
  const auto twin = CheckpointReader::open(source_path("tests/golden/models/bloom-pow2"));

  EXPECT_EQ(reader->names().size(), twin->names().size());
  expect_same_tensors(*reader, *twin, [](const std::string& name) { return name; });
  EXPECT_EQ(reader->files().size(), 2u);
  // The golden files are what they claim: some matrices lie transposed.
  const auto names = reader->names();
  EXPECT_TRUE(
      std::any_of(names.begin(), names.end(), [&](const auto& name) { return !reader->at(name).strides.empty(); }));
}

TEST(PytorchCheckpoint, RangesAreThoseOfTheDenseTensor) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/bloom-bin-sharded"));
  for (const auto& name : reader->names()) {
    const TensorInfo& info = reader->at(name);
    const std::string whole = read_tensor(*reader, info);
    for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{1}, info.bytes / 2, info.bytes - 3, info.bytes}) {
      std::string part(static_cast<std::size_t>(std::min<std::int64_t>(1001, info.bytes - begin)), '\0');

      reader->read_range(info, begin, std::as_writable_bytes(std::span(part)));

      EXPECT_EQ(part, whole.substr(static_cast<std::size_t>(begin), part.size())) << name << " from " << begin;
    }
  }
}

TEST(PytorchCheckpoint, MaySpeakToSeveralThreads) {
  const auto reader = CheckpointReader::open(source_path("tests/golden/models/bloom-bin-sharded"));
  std::vector<std::string> hashes(4);

  std::vector<std::thread> threads;
  for (auto& hash : hashes) {
    threads.emplace_back([&] {
      Hasher hasher;
      for (const auto& name : reader->names()) {
        hasher.update(bytes_of(read_tensor(*reader, reader->at(name))));
      }
      hash = hasher.hex();
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }

  EXPECT_THAT(hashes, testing::Each(hashes[0]));
}

std::string bytes_storage(std::int64_t bytes, std::string_view key = "0") {
  return Pickle().storage("ByteStorage", key, bytes).bytes();
}

/// A dict with one U8 vector of 4 elements.
std::string small_pickle(std::string_view name = "w") {
  return Pickle().text(name).tensor(bytes_storage(4), 0, {4}, {1}).dict_file();
}

/// A folder with pytorch_model.bin, which the tests damage.
class PytorchFolder : public testing::Test {
 protected:
  fs::path file() const { return folder_ / "pytorch_model.bin"; }

  std::unique_ptr<CheckpointReader> open() const { return CheckpointReader::open(folder_.path()); }

  std::string refusal() const {
    const Error error = error_of([&] { open(); });
    EXPECT_EQ(error.kind(), ErrorKind::input) << error.message();
    EXPECT_THAT(error.message(), HasSubstr(folder_.path().string()));
    return error.message();
  }

  TemporaryFolder folder_;
};

TEST_F(PytorchFolder, ReadsViewsOfOneStorage) {
  const std::string storage = Pickle().storage("ByteStorage", "0", 12).op("q\x01").bytes();
  Pickle items;
  items.text("whole").tensor(storage, 0, {12}, {1}).text("tail").tensor("h\x01", 8, {2, 2}, {2, 1});
  items.text("turned").tensor("h\x01", 0, {3, 4}, {1, 3}).text("none").tensor("h\x01", 12, {0, 4}, {9, 9});
  items.text("one").tensor("h\x01", 11, {}, {}).text("columns").tensor("h\x01", 1, {3, 2}, {4, 1});
  write_torch_file(file(), items.dict_file(), {"abcdefghijkl"});

  const auto reader = open();

  const auto text = [&](std::string_view name) { return read_tensor(*reader, reader->at(name)); };
  EXPECT_EQ(text("whole"), "abcdefghijkl");
  EXPECT_EQ(text("tail"), "ijkl");
  EXPECT_EQ(text("turned"), "adgjbehkcfil");
  EXPECT_EQ(text("none"), "");
  EXPECT_EQ(text("one"), "l");
  EXPECT_EQ(text("columns"), "bcfgjk");
  EXPECT_TRUE(reader->at("tail").strides.empty());
  EXPECT_THAT(reader->at("turned").strides, ElementsAre(1, 3));
  EXPECT_EQ(reader->at("tail").offset, reader->at("whole").offset + 8);
  EXPECT_THAT(reader->names(), ElementsAre("whole", "turned", "none", "columns", "tail", "one"));
}

TEST_F(PytorchFolder, SafetensorsGoFirst) {
  write_torch_file(file(), small_pickle("from_bin"), {"abcd"});
  EXPECT_THAT(open()->names(), ElementsAre("from_bin"));
  write_text(folder_ / "pytorch_model.bin.index.json", R"({"weight_map":{"a":"gone.bin"}})");
  EXPECT_THAT(open()->names(), ElementsAre("from_bin"));

  SafetensorsWriter writer(folder_ / "model.safetensors", {{"from_safetensors", DType::u8, {0}}});
  writer.commit();

  EXPECT_THAT(open()->names(), ElementsAre("from_safetensors"));
}

TEST_F(PytorchFolder, ReadsArchivesWithout64BitFields) {
  const std::vector<ZipPart> parts{{.name = "a/data.pkl", .data = small_pickle()},
                                   {.name = "a/data/0", .data = "abcd"}};
  write_zip(file(), parts, /*zip64=*/false);
  EXPECT_EQ(read_tensor(*open(), open()->at("w")), "abcd");

  std::string commented = read_text(file());
  commented.replace(commented.size() - 2, 2, test::little_endian(8, 2) + "PK\x05\x06....");
  write_text(file(), commented);

  EXPECT_EQ(read_tensor(*open(), open()->at("w")), "abcd");
}

TEST_F(PytorchFolder, ReadsBeyond4GiB) {
  constexpr std::int64_t gap = (std::int64_t{1} << 32) + 10;
  Pickle items;
  items.text("far").tensor(bytes_storage(4, "1"), 0, {4}, {1});
  items.text("long").tensor(bytes_storage(gap + 4, "0"), gap - 2, {2, 3}, {1, 2});
  write_zip(file(), {{.name = "a/data/0", .data = "", .hole = static_cast<std::uint64_t>(gap + 4)},
                     {.name = "a/data/1", .data = "abcd"},
                     {.name = "a/data.pkl", .data = items.dict_file()}});

  const auto reader = open();

  EXPECT_GT(reader->at("far").offset, gap);
  EXPECT_EQ(read_tensor(*reader, reader->at("far")), "abcd");
  EXPECT_EQ(read_tensor(*reader, reader->at("long")), std::string(6, '\0'));
}

TEST_F(PytorchFolder, TheIdentityFollowsPickleAndStorages) {
  write_torch_file(file(), small_pickle(), {"abcd"});
  const auto first = open()->files()[0];
  write_torch_file(file(), small_pickle(), {"abcd"});
  EXPECT_EQ(open()->files()[0], first);

  write_torch_file(file(), small_pickle(), {"abce"});  // another CRC-32
  EXPECT_NE(open()->files()[0].header_hash, first.header_hash);
  write_torch_file(file(), small_pickle("v"), {"abcd"});
  EXPECT_NE(open()->files()[0].header_hash, first.header_hash);
}

TEST_F(PytorchFolder, RunsNoCode) {
  const fs::path canary = folder_ / "canary";
  const std::string command = "touch " + canary.string();
  Pickle pickle;
  pickle.text("w").global("os", "system").text(command).op("\x85R");
  write_torch_file(file(), pickle.dict_file(), {});

  const std::string message = refusal();

  EXPECT_THAT(message, AllOf(HasSubstr("wants to call \"os.system\" at byte 10; refused"),
                             HasSubstr("no code of a checkpoint is ever run")));
  EXPECT_FALSE(fs::exists(canary));
}

TEST_F(PytorchFolder, EveryTruncationIsRefused) {
  write_torch_file(file(), small_pickle(), {"abcd"});
  const auto whole = static_cast<std::intmax_t>(fs::file_size(file()));
  for (std::intmax_t length = whole - 1; length >= 0; length -= length > whole - 120 ? 1 : 13) {
    fs::resize_file(file(), static_cast<std::uintmax_t>(length));
    refusal();
  }
}

TEST_F(PytorchFolder, AnyByteMayBeWrong) {
  write_torch_file(file(), small_pickle(), {"abcd"});
  const std::string whole = read_text(file());
  // In place: making the file anew each time takes the disk's time.
  std::fstream stream(file(), std::ios::binary | std::ios::in | std::ios::out);
  const auto put_byte = [&](std::size_t place, char value) {
    stream.seekp(static_cast<std::streamoff>(place)).put(value).flush();
  };
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const int change : {0x01, 0x80, 0xff}) {
      put_byte(i, static_cast<char>(whole[i] ^ change));
      try {
        const auto reader = open();
        for (const auto& name : reader->names()) {
          read_tensor(*reader, reader->at(name));
        }
      } catch (const Error& error) {
        ASSERT_EQ(error.kind(), ErrorKind::input) << error.message();
        ++refused;
      }
    }
    put_byte(i, whole[i]);
  }
  EXPECT_GT(refused, 500);
}

TEST_F(PytorchFolder, SaysWhatTheFileIsInstead) {
  using namespace std::string_literals;
  write_text(file(),
             "\x80\x02\x8a\nl\xfc\x9c"
             "F\xf9 j\xa8P\x19.rest");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("a file of torch before 1.6"), HasSubstr("load it with torch")));
  write_text(file(), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("a pointer of Git LFS"), HasSubstr("git lfs pull")));
  write_text(file(), "PK\x03\x04 and so on");
  EXPECT_THAT(refusal(), HasSubstr("a zip file without a directory at its end"));
  write_text(file(), "");
  EXPECT_THAT(refusal(), HasSubstr("no zip archive (0 bytes)"));
  write_text(file(), "hello");
  EXPECT_THAT(refusal(), HasSubstr("no zip archive (5 bytes)"));
  fs::remove(file());
  fs::create_directory(file());
  EXPECT_THAT(refusal(), HasSubstr("expected a regular file, got a folder"));
}

TEST_F(PytorchFolder, RefusesArchivesThatAreNotTorchSaves) {
  struct Case {
    const char* name;
    std::vector<ZipPart> parts;
    const char* offence;
  };
  const ZipPart pickle{.name = "a/data.pkl", .data = small_pickle()};
  const ZipPart data{.name = "a/data/0", .data = "abcd"};
  const std::vector<Case> cases{
      {"no entries", {}, "without a FOLDER/data.pkl"},
      {"no pickle", {data}, "without a FOLDER/data.pkl"},
      {"a pickle without a folder", {{.name = "data.pkl", .data = small_pickle()}, data}, "without a FOLDER/data.pkl"},
      {"two pickles", {pickle, data, {.name = "b/data.pkl", .data = small_pickle()}}, "with two pickles"},
      {"the same name twice", {pickle, data, data}, "two entries \"a/data/0\""},
      {"another pickle of the same name",
       {pickle, data, {.name = "a/data.pkl", .data = "x"}},
       "two entries \"a/data.pkl\""},
      {"TorchScript's constants", {pickle, data, {.name = "a/constants.pkl"}}, "a TorchScript program"},
      {"TorchScript's code", {pickle, data, {.name = "a/code/__torch__.py"}}, "a TorchScript program"},
      {"big-endian", {pickle, data, {.name = "a/byteorder", .data = "big"}}, "byte order \"big\", expected \"little\""},
      {"a storage is missing", {pickle}, "tensor \"w\" lies in the storage \"0\", which is missing"},
      {"a storage is short", {pickle, {.name = "a/data/0", .data = "abc"}}, "has 3 bytes, expected 4"},
      {"a compressed storage",
       {pickle, {.name = "a/data/0", .data = "abcd", .method = 8}},
       "\"a/data/0\" is compressed (method 8), expected stored"},
      {"a compressed pickle", {{.name = "a/data.pkl", .data = small_pickle(), .method = 8}, data}, "is compressed"},
      {"an encrypted storage", {pickle, {.name = "a/data/0", .data = "abcd", .flags = 1}}, "is encrypted"},
      {"a storage beyond the file",
       {pickle, {.name = "a/data/0", .data = "abcd", .claimed_bytes = 1 << 20}},
       "\"a/data/0\" would have 1048576 bytes from byte"},
      {"a storage of 2^64 bytes",
       {pickle, {.name = "a/data/0", .data = "abcd", .claimed_bytes = 0xfffffffffffffff0}},
       "would have 18446744073709551600 bytes from byte"},
      {"a header beyond the file",
       {pickle, {.name = "a/data/0", .data = "abcd", .claimed_offset = 1 << 20}},
       "\"a/data/0\" would begin at byte 1048576 of"},
      {"a header before the file",
       {pickle, {.name = "a/data/0", .data = "abcd", .claimed_offset = 0xfffffffffffffff0}},
       "\"a/data/0\" would begin at byte 18446744073709551600"},
      {"a header of another entry's place",
       {pickle, {.name = "a/data/0", .data = "abcd", .claimed_offset = 0}},
       "\"a/data/0\" does not begin at byte 0"},
      {"a long name", {pickle, data, {.name = std::string(2000, 'n')}}, "a name of 2000 bytes, expected 1 to 1024"},
      {"no name", {pickle, data, {.name = ""}}, "a name of 0 bytes"},
      {"a pickle above the limit",
       {{.name = "a/data.pkl", .data = small_pickle(), .hole = static_cast<std::uint64_t>(max_zip_entries) * 64}, data},
       "more than the 16777216 allowed"},
  };
  for (const auto& refused : cases) {
    SCOPED_TRACE(refused.name);
    write_zip(file(), refused.parts);
    EXPECT_THAT(refusal(), HasSubstr(refused.offence));
  }
}

TEST_F(PytorchFolder, RefusesADamagedPickleByItsChecksum) {
  write_torch_file(file(), small_pickle("name_of_a_tensor"), {"abcd"});
  std::string text = read_text(file());
  text.replace(text.find("name_of_a_tensor"), 4, "NAME");
  write_text(file(), text);

  EXPECT_THAT(refusal(), AllOf(HasSubstr("the pickle of the weights has CRC-32"), HasSubstr("damaged")));
}

TEST_F(PytorchFolder, AFileThatBecameShorterIsAnError) {
  write_torch_file(file(), small_pickle(), {"abcd"});
  const auto reader = open();
  fs::resize_file(file(), 10);

  const Error error = error_of([&] { read_tensor(*reader, reader->at("w")); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("truncated or changed while it was read"));
}

TEST_F(PytorchFolder, ReadsAnIndexAndRefusesBadOnes) {
  write_torch_file(folder_ / "one.bin", small_pickle("a"), {"abcd"});
  write_torch_file(folder_ / "two.bin", small_pickle("b"), {"efgh"});
  const auto write_index = [&](const std::string& weight_map) {
    write_text(folder_ / "pytorch_model.bin.index.json", R"({"weight_map":)" + weight_map + "}");
  };
  write_index(R"({"a":"one.bin","b":"two.bin"})");
  EXPECT_EQ(read_tensor(*open(), open()->at("b")), "efgh");

  write_index(R"({"a":"one.bin","b":"../two.bin"})");
  EXPECT_THAT(refusal(), HasSubstr("\"../two.bin\"; expected a file inside the folder"));
  write_index(R"({"a":"/etc/passwd"})");
  EXPECT_THAT(refusal(), HasSubstr("\"/etc/passwd\"; expected a file inside the folder"));
  write_index(R"({"a":"one.bin","b":"gone.bin"})");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("pytorch_model.bin.index.json"), HasSubstr("\"gone.bin\", which is missing")));
  write_index(R"({"a":"one.bin","b":"one.bin"})");
  EXPECT_THAT(refusal(), HasSubstr("tensor \"b\" should lie in one.bin, but no file has it"));
}

TEST_F(PytorchFolder, AFolderWithoutWeightsNamesWhatWasLookedFor) {
  EXPECT_THAT(refusal(), AllOf(HasSubstr("model.safetensors.index.json, pytorch_model.bin"),
                               HasSubstr("pytorch_model.bin.index.json")));
}

}  // namespace
}  // namespace gptqd::io
