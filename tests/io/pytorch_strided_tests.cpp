#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "io/pytorch/strided_read.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::TemporaryFolder;
using test::error_of;

/// A file of `bytes` bytes of no pattern.
std::vector<std::byte> write_noise(const std::filesystem::path& path, std::size_t bytes, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::vector<std::uint64_t> words((bytes + 7) / 8);
  std::generate(words.begin(), words.end(), generator);
  std::vector<std::byte> noise(bytes);
  std::memcpy(noise.data(), words.data(), bytes);
  write_file_atomically(path, noise);
  return noise;
}

/// The dense form, one element after the other.
std::vector<std::byte> gathered(const std::vector<std::byte>& file, const TensorInfo& info) {
  const auto width = static_cast<std::size_t>(size_of(info.dtype));
  std::vector<std::byte> result(static_cast<std::size_t>(info.bytes));
  std::vector<std::int64_t> index(info.shape.size(), 0);
  for (std::size_t done = 0; done < result.size(); done += width) {
    const auto element = std::inner_product(index.begin(), index.end(), info.strides.begin(), std::int64_t{0});
    const auto place = static_cast<std::size_t>(info.offset) + static_cast<std::size_t>(element) * width;
    std::memcpy(result.data() + done, file.data() + place, width);
    for (std::size_t d = index.size(); d-- > 0;) {
      if (++index[d] < info.shape[d]) {
        break;
      }
      index[d] = 0;
    }
  }
  return result;
}

TensorInfo make_info(DType dtype, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                     std::int64_t offset) {
  TensorInfo info{.name = "t", .dtype = dtype, .shape = std::move(shape), .offset = offset};
  info.strides = std::move(strides);
  info.bytes = dense_bytes(info.shape, dtype).value();
  return info;
}

/// Compares the range [begin, end) of bytes.
void expect_range(const File& file, const TensorInfo& info, const std::vector<std::byte>& dense, std::int64_t begin,
                  std::int64_t end) {
  std::vector<std::byte> out(static_cast<std::size_t>(end - begin) + 1, std::byte{0x5a});
  read_strided(file, info, begin, std::span(out).first(out.size() - 1));
  ASSERT_TRUE(std::equal(out.begin(), out.end() - 1, dense.begin() + begin))
      << "[" << begin << ", " << end << ") of " << testing::PrintToString(info.shape) << " by "
      << testing::PrintToString(info.strides);
  ASSERT_EQ(out.back(), std::byte{0x5a}) << "written behind the end";
}

TEST(StridedRead, AnyStridesAndRanges) {
  const TemporaryFolder folder;
  const auto noise = write_noise(folder / "noise", 40'000, 1);
  const File file(folder / "noise");
  std::mt19937 generator(2);
  const auto draw = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(generator);
  };
  for (int round = 0; round < 600; ++round) {
    const std::array dtypes{DType::u8, DType::f16, DType::f32, DType::f64};
    const DType dtype = dtypes[static_cast<std::size_t>(draw(0, 3))];
    // Axes in an order of their own in the file, with gaps, or lying on top of one another.
    std::vector<std::int64_t> shape(static_cast<std::size_t>(draw(0, 4)));
    std::vector<std::size_t> order(shape.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), generator);
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t stride = draw(0, 2);
    for (const auto axis : order) {
      shape[axis] = draw(1, 7);
      strides[axis] = stride;
      stride = stride * shape[axis] + draw(0, 1) * draw(0, 3);
    }
    const TensorInfo info = make_info(dtype, shape, strides, draw(0, 100));
    if (info.offset + stride * 8 > std::ssize(noise)) {
      continue;
    }
    const auto dense = gathered(noise, info);

    expect_range(file, info, dense, 0, info.bytes);
    for (int part = 0; part < 4; ++part) {
      const std::int64_t begin = draw(0, info.bytes);
      expect_range(file, info, dense, begin, draw(begin, info.bytes));
    }
  }
}

TEST(StridedRead, LargerThanItsBuffer) {
  const TemporaryFolder folder;
  const auto noise = write_noise(folder / "noise", std::size_t{20} << 20, 3);
  const File file(folder / "noise");
  const std::vector<TensorInfo> tensors{
      make_info(DType::f16, {3001, 3299}, {1, 3001}, 6),             // a transposed matrix
      make_info(DType::f32, {2000, 100}, {1, 20'000}, 0),            // far apart: a piece for each row
      make_info(DType::u8, {2000, 3, 1000}, {10'000, 20, 3}, 1),     // columns cut from a wider matrix
      make_info(DType::f64, {1'100'000}, {2}, 0),                    // every second element
      make_info(DType::f32, {1000, 1000}, {2500, 1}, 4),             // rows cut from a wider matrix
      make_info(DType::f16, {70, 300, 400}, {120'000, 1, 300}, 0)};  // a stack of transposed ones
  for (const auto& info : tensors) {
    const auto dense = gathered(noise, info);

    expect_range(file, info, dense, 0, info.bytes);
    expect_range(file, info, dense, info.bytes / 3 + 1, info.bytes / 3 * 2 + 2);
    expect_range(file, info, dense, info.bytes - 7, info.bytes);
  }
}

TEST(StridedRead, AFileThatBecameShorterIsAnError) {
  const TemporaryFolder folder;
  write_noise(folder / "noise", 1000, 4);
  const File file(folder / "noise");
  std::filesystem::resize_file(folder / "noise", 900);
  std::vector<std::byte> out(1000);

  const Error error = error_of([&] { read_strided(file, make_info(DType::u8, {10, 100}, {1, 10}, 0), 0, out); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), testing::HasSubstr("ends after 900 bytes"));
}

}  // namespace
}  // namespace gptqd::io
