/// @file Artifacts made to do harm: verify answers with a report, whatever they hold.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <random>
#include <sstream>

#include "pipeline/verify/verify.hpp"
#include "tests/pipeline/tiny_artifact.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

namespace fs = std::filesystem;
using gptqd::test::TemporaryFolder;
using ::testing::HasSubstr;

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

/// Names, sizes and times of everything below a folder.
std::map<std::string, std::string> state_of(const fs::path& folder) {
  std::map<std::string, std::string> state;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    state[entry.path()] = entry.is_regular_file() && !entry.is_symlink() ? read(entry.path()) : "";
  }
  return state;
}

class HostileArtifact : public ::testing::Test {
 protected:
  void SetUp() override { test::tiny_artifact().write(artifact_); }

  /// Verifies; nothing on disk may change.
  VerifyReport verify() const {
    const auto before = state_of(folder_.path());
    auto report = verify_artifact({.artifact = artifact_}, [](const std::string&) {});
    EXPECT_EQ(state_of(folder_.path()), before);
    return report;
  }

  void expect_refusal(const std::string& word) const {
    const auto report = verify();
    EXPECT_FALSE(report.passed());
    EXPECT_THAT(report.to_text(), HasSubstr(word));
  }

  TemporaryFolder folder_;
  fs::path artifact_ = folder_ / "artifact";
  fs::path weights_ = artifact_ / "model.safetensors";
};

TEST_F(HostileArtifact, RandomBytesAreRefused) {
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) {
    std::string bytes(static_cast<std::size_t>(random() % 4096), '\0');
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
    write(i % 2 == 0 ? weights_ : artifact_ / "config.json", bytes);

    EXPECT_FALSE(verify().passed()) << i;
  }
}

TEST_F(HostileArtifact, FlippedBytesOfTheHeaderNeverCrash) {
  const auto whole = read(weights_);
  const std::size_t header = 8 + static_cast<unsigned char>(whole[0]) + 256u * static_cast<unsigned char>(whole[1]);
  std::mt19937 random(2);
  for (int i = 0; i < 150; ++i) {
    auto bytes = whole;
    for (int flips = 0; flips < 1 + i % 3; ++flips) {
      bytes[random() % header] = "0123456789{}[],:\"xI"[random() % 19];
    }
    write(weights_, bytes);

    verify_artifact({.artifact = artifact_}, [](const std::string&) {});  // a report, whatever it says
  }
}

TEST_F(HostileArtifact, FlippedBytesOfTheConfigurationNeverCrash) {
  const auto whole = read(artifact_ / "config.json");
  std::mt19937 random(3);
  for (int i = 0; i < 150; ++i) {
    auto text = whole;
    text[random() % text.size()] = "0123456789{}[],:\"x-e"[random() % 20];
    write(artifact_ / "config.json", text);

    verify_artifact({.artifact = artifact_}, [](const std::string&) {});
  }
}

TEST_F(HostileArtifact, TruncatedFilesAreRefused) {
  const auto whole = read(weights_);
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{8}, whole.size() / 2, whole.size() - 1}) {
    write(weights_, whole.substr(0, size));

    EXPECT_FALSE(verify().passed()) << size;
  }
}

TEST_F(HostileArtifact, HugeShapesAreRefusedWithoutTheirMemory) {
  for (const auto& [shape, bytes] :
       std::vector<std::pair<std::string, std::string>>{{"[9223372036854775807,9223372036854775807]", "16"},
                                                        {"[4294967296,4294967296]", "0"},
                                                        {"[1000000000000,64]", "256000000000000"},
                                                        {"[-1,64]", "0"}}) {
    const std::string header = R"({"model.layers.0.self_attn.q_proj.qweight":{"dtype":"I32","shape":)" + shape +
                               R"(,"data_offsets":[0,)" + bytes + "]}}";
    std::string file(8, '\0');
    file[0] = static_cast<char>(header.size());
    write(weights_, file + header + std::string(16, 'x'));

    EXPECT_FALSE(verify().passed()) << shape;
  }
}

TEST_F(HostileArtifact, AFileWithAHoleTheSizeOfADiskIsRefused) {
  const std::string header =
      R"({"model.layers.0.self_attn.q_proj.qweight":{"dtype":"I32","shape":[268435456,1024],"data_offsets":[0,1099511627776]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  write(weights_, file + header);
  fs::resize_file(weights_, 8 + header.size() + (std::uintmax_t{1} << 40));

  const auto report = verify_artifact({.artifact = artifact_}, [](const std::string&) {});

  EXPECT_FALSE(report.passed());
}

TEST_F(HostileArtifact, MissingShardsAndPathsOutOfTheFolderAreRefused) {
  const auto index = artifact_ / "model.safetensors.index.json";
  fs::rename(weights_, folder_ / "outside.safetensors");
  for (const auto& [file, word] : std::vector<std::pair<std::string, std::string>>{
           {"model-00001-of-00002.safetensors", "missing"},
           {"../outside.safetensors", "inside the folder"},
           {"x/../../outside.safetensors", "inside the folder"},
           {(folder_ / "outside.safetensors").string(), "inside the folder"},
           {"", "inside the folder"}}) {
    write(index, nlohmann::json{{"weight_map", {{"model.norm.weight", file}}}}.dump());

    expect_refusal(word);
  }
}

TEST_F(HostileArtifact, LinksOutOfTheFolderAreRefused) {
  write(folder_ / "secret", "secret");
  fs::create_symlink(folder_ / "secret", artifact_ / "tokenizer.json");
  expect_refusal("out of the artifact's folder");
  fs::remove(artifact_ / "tokenizer.json");

  fs::rename(weights_, folder_ / "outside.safetensors");
  fs::create_symlink("../outside.safetensors", weights_);
  expect_refusal("out of the artifact's folder");
  fs::remove(weights_);

  fs::create_directory(folder_ / "elsewhere");
  fs::copy(folder_ / "outside.safetensors", folder_ / "elsewhere/part.safetensors");
  fs::create_directory_symlink(folder_ / "elsewhere", artifact_ / "sub");
  write(artifact_ / "model.safetensors.index.json",
        nlohmann::json{{"weight_map", {{"model.norm.weight", "sub/part.safetensors"}}}}.dump());
  expect_refusal("out of the artifact's folder");

  fs::remove(artifact_ / "sub");
  fs::create_symlink("nowhere", artifact_ / "sub");
  expect_refusal("leads nowhere");
}

TEST_F(HostileArtifact, PipesAndDevicesDoNotHang) {
  fs::remove(weights_);
  ASSERT_EQ(mkfifo(weights_.c_str(), 0600), 0);
  expect_refusal("model.safetensors");
  fs::remove(weights_);
  fs::create_directory(weights_);
  EXPECT_FALSE(verify_artifact({.artifact = artifact_}, [](const std::string&) {}).passed());
  fs::remove(artifact_ / "config.json");
  fs::create_symlink("/dev/zero", artifact_ / "config.json");
  EXPECT_FALSE(verify_artifact({.artifact = artifact_}, [](const std::string&) {}).passed());
}

TEST_F(HostileArtifact, DeepJsonAndExplodingPatternsAreRefused) {
  auto config = nlohmann::json::parse(read(artifact_ / "config.json"));
  config["quantization_config"]["dynamic"] = {{"+:(.*a*)*(.*b*)*(.*c*)*x$", nlohmann::json::object()}};
  write(artifact_ / "config.json", config.dump());
  verify_artifact({.artifact = artifact_}, [](const std::string&) {});

  write(artifact_ / "config.json", std::string(100'000, '[') + std::string(100'000, ']'));
  expect_refusal("nested");
}

TEST_F(HostileArtifact, AFolderThatIsNoneIsRefused) {
  fs::remove_all(artifact_);
  EXPECT_FALSE(verify_artifact({.artifact = artifact_}, [](const std::string&) {}).passed());
  write(artifact_, "file");
  EXPECT_FALSE(verify_artifact({.artifact = artifact_}, [](const std::string&) {}).passed());
}

}  // namespace
}  // namespace gptqd::pipeline
