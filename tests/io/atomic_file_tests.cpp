#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "kernels/base/fault_point.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

namespace fs = std::filesystem;
using gptqd::test::TemporaryFolder;
using test::bytes_of;
using test::error_of;
using test::read_text;
using test::write_text;
using testing::AllOf;
using testing::HasSubstr;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

/// Lets no file of this process grow beyond `bytes` while it lives: the nearest thing to a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    previous_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, previous_);
  }

 private:
  rlimit before_{};
  void (*previous_)(int) = nullptr;
};

TEST(WriteFileAtomically, LeavesTheFileAndNothingElse) {
  const TemporaryFolder folder;

  write_file_atomically(folder / "a.json", "{}\n");

  EXPECT_EQ(read_text(folder / "a.json"), "{}\n");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a.json"});
}

TEST(WriteFileAtomically, ReplacesAnOlderFileAndALeftoverTemporary) {
  const TemporaryFolder folder;
  write_text(folder / "a", "an older and longer text");
  write_text(folder / "a.tmp", "left behind by a crash, longer than the new text");

  write_file_atomically(folder / "a", "new");

  EXPECT_EQ(read_text(folder / "a"), "new");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a"});
}

TEST(WriteFileAtomically, DoesNotWriteThroughALinkInTheTemporarysPlace) {
  const TemporaryFolder folder;
  write_text(folder / "precious", "kept");
  fs::create_symlink(folder / "precious", folder / "a.tmp");

  write_file_atomically(folder / "a", "new");

  EXPECT_EQ(read_text(folder / "precious"), "kept");
  EXPECT_EQ(read_text(folder / "a"), "new");
}

TEST(WriteFileAtomically, FailureNamesPathOperationAndCauseAndKeepsTheOldFile) {
  const TemporaryFolder folder;
  write_text(folder / "a", "old");

  const Error error = error_of([&] {
    const FileSizeLimit limit(4096);
    write_file_atomically(folder / "a", std::string(100'000, 'x'));
  });

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("cannot write"), HasSubstr((folder / "a.tmp").string()),
                                     HasSubstr("File too large"), HasSubstr("ulimit")));
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a"});
}

TEST(WriteFileAtomically, MissingFolderIsAnIoErrorWithANextStep) {
  const TemporaryFolder folder;

  const Error error = error_of([&] { write_file_atomically(folder / "none/a", "x"); });

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("none/a.tmp"), HasSubstr("check that its folder exists")));
}

/// Faults of this process while it lives.
class Faults {
 public:
  explicit Faults(const std::string& setting) { set_faults(setting); }
  ~Faults() { set_faults(""); }
};

TEST(WriteFileAtomically, AnyFailureKeepsTheOldFileAndLeavesNoOther) {
  for (const char* fault :
       {"file.create:erofs", "file.write:enospc", "file.written:eio", "file.fsync:eio", "file.rename:edquot"}) {
    const TemporaryFolder folder;
    write_text(folder / "a", "old");

    const Error error = error_of([&] {
      const Faults faults(fault);
      write_file_atomically(folder / "a", "new");
    });

    EXPECT_EQ(error.kind(), ErrorKind::io) << fault;
    EXPECT_EQ(read_text(folder / "a"), "old") << fault;
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a"}) << fault;
  }
}

TEST(WriteFileAtomically, RepeatsWhatDidNothingAndNothingElse) {
  const TemporaryFolder folder;

  {
    const Faults faults("file.create:eintr,file.write:eagain,file.fsync:eintr,file.rename:eintr,folder.fsync:einval");
    write_file_atomically(folder / "a", "new");
  }
  EXPECT_EQ(read_text(folder / "a"), "new");

  // A second fsync after EIO would succeed, although data is lost; EAGAIN for ever is no wait without end.
  for (const char* fault : {"file.fsync:eio", "file.write:eagain:1+", "file.create:estale", "folder.fsync:eio"}) {
    const Faults faults(fault);
    EXPECT_EQ(error_of([&] { write_file_atomically(folder / "b", "x"); }).kind(), ErrorKind::io) << fault;
  }
}

TEST(WriteFileAtomically, NeedsNoFolderThatCanBeFlushed) {
  for (const char* fault : {"folder.fsync:einval", "folder.fsync:enotsup"}) {
    const TemporaryFolder folder;
    const Faults faults(fault);

    EXPECT_NO_THROW(write_file_atomically(folder / "a", "new")) << fault;
  }
}

TEST(WriteFileAtomically, SaysWhatToDo) {
  const std::vector<std::pair<std::string, std::string>> next_steps{
      {"enospc", "No space left on device (errno 28); free space there"},
      {"edquot", "(errno 122); free space there"},
      {"erofs", "the file system is read-only"},
      {"eacces", "check the permissions"},
      {"efbig", "ulimit -f"},
      {"eio", "check the device and the system's log"}};
  for (const auto& [errno_name, text] : next_steps) {
    const TemporaryFolder folder;
    const Faults faults("file.write:" + errno_name);

    EXPECT_THAT(error_of([&] { write_file_atomically(folder / "a", "x"); }).message(),
                AllOf(HasSubstr("cannot write " + (folder / "a.tmp").string()), HasSubstr(text)));
  }
}

TEST(File, LooksANameUpAgainThatTheServerHasForgotten) {
  const TemporaryFolder folder;
  write_text(folder / "a", "x");
  const Faults faults("file.open:estale");

  EXPECT_EQ(File(folder / "a").size(), 1);
}

TEST(AtomicFile, AppearsAtCommitWithAllItsPieces) {
  const TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.append(bytes_of("one "));
  file.append(bytes_of(""));
  file.append(bytes_of("two"));
  EXPECT_FALSE(fs::exists(folder / "a"));

  file.commit();

  EXPECT_EQ(file.bytes(), 7);
  EXPECT_EQ(read_text(folder / "a"), "one two");
}

TEST(AtomicFile, WithoutCommitLeavesNothing) {
  const TemporaryFolder folder;
  {
    AtomicFile file(folder / "a");
    file.append(bytes_of("half"));
  }

  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(AtomicFolder, AppearsAtCommitUnderItsName) {
  const TemporaryFolder folder;
  AtomicFolder out(folder / "out/");  // the slash that shells complete
  write_file_atomically(out.path() / "a", "x");
  EXPECT_EQ(out.path().filename(), "out.partial");

  out.commit();

  EXPECT_EQ(read_text(folder / "out/a"), "x");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"out"});
}

TEST(AtomicFolder, TakesAnEmptyFolderAndReplacesALeftover) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  fs::create_directories(folder / "out.partial/deep");
  write_text(folder / "out.partial/deep/stale", "x");

  AtomicFolder out(folder / "out");
  write_file_atomically(out.path() / "a", "x");
  out.commit();

  EXPECT_EQ(names_in(folder / "out"), std::vector<std::string>{"a"});
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"out"});
}

TEST(AtomicFolder, FlushesItsFilesAndItselfBeforeItGetsItsNameAndTheNameAfterwards) {
  const std::vector<std::pair<std::string, bool>> cases{
      {"file.fsync:eio", false}, {"folder.fsync:eio:1", false}, {"folder.fsync:eio:2", true}};
  for (const auto& [fault, has_name] : cases) {
    const TemporaryFolder folder;
    const Error error = error_of([&] {
      AtomicFolder out(folder / "out");
      write_text(out.path() / "a", "x");
      const Faults faults(fault);
      out.commit();
    });

    EXPECT_EQ(error.kind(), ErrorKind::io) << fault;
    EXPECT_EQ(fs::exists(folder / "out/a"), has_name) << fault;
    EXPECT_FALSE(fs::exists(folder / "out.partial")) << fault;
  }
}

TEST(AtomicFolder, WithoutCommitLeavesNothing) {
  const TemporaryFolder folder;
  {
    const AtomicFolder out(folder / "out");
    write_file_atomically(out.path() / "a", "x");
  }

  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(AtomicFolder, RefusesAFileAndAFolderThatIsNotEmpty) {
  const TemporaryFolder folder;
  write_text(folder / "file", "kept");
  fs::create_directory(folder / "full");
  write_text(folder / "full/a", "kept");

  const Error file = error_of([&] { AtomicFolder(folder / "file"); });
  const Error full = error_of([&] { AtomicFolder(folder / "full"); });

  EXPECT_EQ(file.kind(), ErrorKind::usage);
  EXPECT_THAT(file.message(), AllOf(HasSubstr("file"), HasSubstr("not a folder")));
  EXPECT_EQ(full.kind(), ErrorKind::usage);
  EXPECT_THAT(full.message(), AllOf(HasSubstr("full"), HasSubstr("not empty")));
  EXPECT_EQ(read_text(folder / "full/a"), "kept");
}

TEST(AtomicFolder, DoesNotReplaceAFolderThatWasFilledMeanwhile) {
  const TemporaryFolder folder;
  AtomicFolder out(folder / "out");
  fs::create_directory(folder / "out");
  write_text(folder / "out/a", "kept");

  const Error error = error_of([&] { out.commit(); });

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(read_text(folder / "out/a"), "kept");
}

TEST(File, ReadsAnyRange) {
  const TemporaryFolder folder;
  write_text(folder / "a", "0123456789");
  const File file(folder / "a");
  std::string text(3, ' ');

  file.read_exactly(4, std::as_writable_bytes(std::span(text)));

  EXPECT_EQ(file.size(), 10);
  EXPECT_EQ(text, "456");
}

TEST(File, TruncatedFileNamesExpectedAndActualSize) {
  const TemporaryFolder folder;
  write_text(folder / "a", "0123456789");
  const File file(folder / "a");
  fs::resize_file(folder / "a", 6);
  std::string text(8, ' ');

  const Error error = error_of([&] { file.read_exactly(1, std::as_writable_bytes(std::span(text))); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr((folder / "a").string()), HasSubstr("ends after 6 bytes"), HasSubstr("at least 9")));
}

TEST(File, RefusesWhatIsNoRegularFileWithoutWaiting) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);

  const Error pipe = error_of([&] { File(folder / "pipe"); });
  const Error directory = error_of([&] { File(folder.path()); });
  const Error missing = error_of([&] { File(folder / "none"); });

  EXPECT_EQ(pipe.kind(), ErrorKind::input);
  EXPECT_THAT(pipe.message(), HasSubstr("got a device or pipe"));
  EXPECT_THAT(directory.message(), HasSubstr("got a folder"));
  EXPECT_EQ(missing.kind(), ErrorKind::input);
  EXPECT_THAT(missing.message(), HasSubstr("no such file"));
}

TEST(ReadFile, RefusesMoreThanTheLimit) {
  const TemporaryFolder folder;
  write_text(folder / "a", "12345");

  EXPECT_EQ(read_file(folder / "a", 5).size(), 5u);
  EXPECT_THAT(error_of([&] { read_file(folder / "a", 4); }).message(),
              AllOf(HasSubstr("5 bytes"), HasSubstr("more than the 4")));
}

TEST(Checksum, KnownValuesOfXxh3) {
  // The reference implementation's value for no data.
  EXPECT_EQ(xxh3_128_hex({}), "99aa06d3014798d86001c324468d497f");
}

TEST(Checksum, PiecesGiveTheSameAsTheWhole) {
  const std::string text(100'003, 'q');
  Hasher hasher;

  hasher.update(bytes_of(text).first(17));
  const std::string early = hasher.hex();
  hasher.update(bytes_of(text).subspan(17));

  EXPECT_EQ(early, xxh3_128_hex(bytes_of(text).first(17)));
  EXPECT_EQ(hasher.hex(), xxh3_128_hex(bytes_of(text)));
}

}  // namespace
}  // namespace gptqd::io
