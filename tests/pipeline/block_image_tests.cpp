#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <limits>

#include "io/json_file.hpp"
#include "pipeline/block_weights.hpp"
#include "pipeline/family.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/support/host_model.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::HostModel;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string folder_name = "tests/golden/models/opt-pre";

struct Opened {
  std::unique_ptr<io::CheckpointReader> tensors;
  ModelSpec model;
};

Opened open(const std::filesystem::path& folder) {
  Opened opened{.tensors = io::CheckpointReader::open(folder), .model = {}};
  opened.model = describe_model(io::read_json(folder / "config.json"), *opened.tensors);
  return opened;
}

const BlockTensor& find(const std::vector<BlockTensor>& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
}

/// Reads all of a block into memory.
void read(const Opened& source, std::size_t block) {
  const auto backend = make_cpu_backend({.threads = 1});
  const auto stream = backend->create_stream();
  const auto image = block_image(*source.tensors, source.model.blocks[block], {});
  fill_buffer(*backend, *stream, backend->allocate(image.bytes), image.pieces, [] {});
}

TEST(BlockImage, HoldsTheBlocksTensorsAsTheFilesDo) {
  const auto source = open(source_path(folder_name));
  auto model = HostModel::read(source_path(folder_name));
  const auto backend = make_cpu_backend({.threads = 1});
  const auto stream = backend->create_stream();
  std::atomic<int> ticks = 0;

  const auto block = block_image(*source.tensors, source.model.blocks[1], {});
  const Buffer data = backend->allocate(block.bytes);
  fill_buffer(*backend, *stream, data, block.pieces, [&] { ++ticks; });

  EXPECT_EQ(block.tensors.size(), 16u);  // 6 linears and 2 norms, each with weight and bias
  EXPECT_EQ(ticks, 16);
  std::int64_t end = 0;
  for (const auto& tensor : block.tensors) {
    EXPECT_EQ(tensor.offset % 256, 0);
    EXPECT_GE(tensor.offset, end);
    end = tensor.offset + tensor.bytes();
    const auto& expected = model.at(tensor.name);
    EXPECT_EQ(tensor.dtype, expected.dtype);
    EXPECT_EQ(tensor.shape, expected.shape);
    ASSERT_EQ(tensor.bytes(), std::ssize(expected.data));
    EXPECT_EQ(std::memcmp(static_cast<const std::byte*>(data.data()) + tensor.offset, expected.data.data(),
                          expected.data.size()),
              0)
        << tensor.name;
  }
  EXPECT_EQ(block.bytes, end);
}

TEST(BlockImage, TheLayoutSurvivesItsTextForm) {
  const auto source = open(source_path(folder_name));
  const auto block = block_image(*source.tensors, source.model.blocks[0], {});

  const auto parsed = BlockImage::parse_layout(block.layout());

  ASSERT_EQ(parsed.size(), block.tensors.size());
  for (std::size_t i = 0; i < parsed.size(); ++i) {
    EXPECT_EQ(parsed[i].name, block.tensors[i].name);
    EXPECT_EQ(parsed[i].dtype, block.tensors[i].dtype);
    EXPECT_EQ(parsed[i].shape, block.tensors[i].shape);
    EXPECT_EQ(parsed[i].offset, block.tensors[i].offset);
  }
}

struct Damage {
  std::string tensor;
  std::int64_t row;
  std::int64_t column;
  std::int64_t columns;
  float value;
};

TEST(BlockImage, AWeightThatIsNotFiniteIsNamedWithRowAndColumn) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const std::vector<Damage> damages{
      {"model.decoder.layers.0.fc1.weight", 0, 0, 48, nan},
      {"model.decoder.layers.0.fc1.weight", 111, 47, 48, infinity},
      {"model.decoder.layers.0.fc2.weight", 40, 7, 112, -infinity},  // element 4487, beyond the first 4096
      {"model.decoder.layers.0.fc2.bias", 0, 13, 48, nan},
      {"model.decoder.layers.0.final_layer_norm.weight", 0, 47, 48, infinity}};
  for (const auto dtype : {DType::f16, DType::bf16, DType::f32}) {
    for (const auto& damage : damages) {
      const TemporaryFolder folder;
      auto model = HostModel::read(source_path(folder_name));
      for (auto& tensor : model.tensors) {
        tensor = to_dtype(tensor, dtype);
      }
      model.at(damage.tensor).set(damage.row * damage.columns + damage.column, damage.value);
      model.write(folder.path());
      const auto source = open(folder.path());

      const Error error = error_of([&] { read(source, 0); });

      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_THAT(error.message(), AllOf(HasSubstr(damage.tensor + " "),
                                         HasSubstr(fmt::format("row {}, column {};", damage.row, damage.column))));
      EXPECT_NO_THROW(read(source, 1));
    }
  }
}

TEST(BlockImage, TheLargestFiniteNumbersPass) {
  for (const auto& [dtype, largest] :
       {std::pair(DType::f16, 65504.0f), std::pair(DType::f32, std::numeric_limits<float>::max())}) {
    const TemporaryFolder folder;
    auto model = HostModel::read(source_path(folder_name));
    for (auto& tensor : model.tensors) {
      tensor = to_dtype(tensor, dtype);
    }
    auto& weight = model.at("model.decoder.layers.0.fc1.weight");
    weight.set(2, largest);
    weight.set(3, -largest);
    model.write(folder.path());

    EXPECT_NO_THROW(read(open(folder.path()), 0));
  }
}

/// q = (row + 3·column) mod 16, zeros = group + 1, scales = (row + 1)·2^-(group + 4); reversed groups where shuffled.
io::PackedLinear packed_fc1(const LinearSpec& spec, bool shuffled) {
  constexpr std::int64_t group_size = 16;
  io::PackedLinear linear;
  linear.name = spec.module;
  linear.bits = 4;
  linear.group_size = group_size;
  linear.sym = false;
  linear.rows = spec.rows;
  linear.cols = spec.cols;
  std::vector<std::uint8_t> codes;
  for (std::int64_t r = 0; r < spec.rows; ++r) {
    for (std::int64_t c = 0; c < spec.cols; ++c) {
      codes.push_back(static_cast<std::uint8_t>((r + 3 * c) % 16));
    }
  }
  linear.qweight = io::pack_qweight({codes.data(), {spec.rows, spec.cols}}, 4);
  for (std::int64_t g = 0; g < linear.groups(); ++g) {
    for (std::int64_t r = 0; r < spec.rows; ++r) {
      linear.scales.push_back(to_half(std::ldexp(static_cast<float>(r + 1), static_cast<int>(-g - 4))));
      linear.zeros.push_back(static_cast<std::uint8_t>(g + 1));
    }
  }
  for (std::int64_t c = 0; c < spec.cols; ++c) {
    const auto from = shuffled ? spec.cols - 1 - c : c;
    linear.g_idx.push_back(static_cast<std::int32_t>(from / group_size));
  }
  return linear;
}

TEST(BlockImage, APackedLinearTakesTheFloatWeightsPlaceAndBecomesItsDequantizedWeights) {
  const auto source = open(source_path(folder_name));
  const auto& spec = source.model.blocks[2];
  for (const bool shuffled : {false, true}) {
    const auto packed = packed_fc1(spec.mlp_in.front(), shuffled);
    const auto block = block_image(*source.tensors, spec, [&](const std::string& module) {
      return module == packed.name ? std::optional(packed) : std::nullopt;
    });
    EXPECT_EQ(find(block.tensors, packed.name + ".packed").shape, (std::vector<std::int64_t>{112, 48 * 4 / 32}));
    EXPECT_EQ(std::count_if(block.tensors.begin(), block.tensors.end(),
                            [&](const auto& tensor) { return tensor.name == packed.name + ".weight"; }),
              0);

    const auto backend = make_cpu_backend({.threads = 2});
    const auto stream = backend->create_stream();
    const Buffer raw = backend->allocate(block.bytes);
    fill_buffer(*backend, *stream, raw, block.pieces, [] {});
    const BlockWeights weights(*backend, *stream, spec, BlockImage::parse_layout(block.layout()), raw, DType::f16);
    stream->synchronize();

    const auto& linear = weights.linear(spec.mlp_in.front());
    const auto view = linear.weight_view().as<float>();
    for (std::int64_t r = 0; r < spec.mlp_in.front().rows; ++r) {
      for (std::int64_t c = 0; c < spec.mlp_in.front().cols; ++c) {
        const auto group = (shuffled ? spec.mlp_in.front().cols - 1 - c : c) / 16;
        const auto steps = static_cast<float>((r + 3 * c) % 16 - (group + 1));
        // Exact: few bits, far from the ends of the range.
        ASSERT_EQ(view(r, c), std::ldexp(static_cast<float>(r + 1), static_cast<int>(-group - 4)) * steps)
            << r << ", " << c;
      }
    }
    EXPECT_TRUE(linear.bias_view().has_value());
  }
}

TEST(BlockImage, APackedLinearOfAnotherShapeIsRefusedByName) {
  const auto source = open(source_path(folder_name));
  const auto& spec = source.model.blocks[0];
  auto other = spec.mlp_in.front();
  other.rows = 96;
  const auto packed = packed_fc1(other, false);

  const Error error = error_of([&] {
    block_image(*source.tensors, spec, [&](const std::string& module) {
      return module == packed.name ? std::optional(packed) : std::nullopt;
    });
  });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("layers.0.fc1"), HasSubstr("[96, 48]"), HasSubstr("[112, 48]")));
}

}  // namespace
}  // namespace gptqd::pipeline
