#include <numeric>

#include "kernels/backend.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/disjoint.hpp"
#include "tests/kernels/device_tensors.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class BackendOf : public OnDevice {};

TEST_P(BackendOf, CopiesThereAndBack) {
  std::vector<int> host(3000000);  // more than one tile of a copy
  std::iota(host.begin(), host.end(), 0);
  std::vector<int> back(host.size());
  const auto bytes = static_cast<std::int64_t>(host.size() * sizeof(int));
  const auto a = backend->allocate(bytes);
  const auto b = backend->allocate(bytes);

  backend->copy_to_device(*stream, a.data(), host.data(), bytes);
  backend->copy(*stream, b.data(), a.data(), bytes);
  backend->copy_to_host(*stream, back.data(), b.data(), bytes);
  stream->synchronize();

  EXPECT_EQ(back, host);
}

TEST_P(BackendOf, FillsWithZero) {
  std::vector<char> host(5000001, 'x');
  const auto bytes = static_cast<std::int64_t>(host.size());
  const auto device = backend->allocate(bytes);

  backend->fill_zero(*stream, device.data(), bytes);
  backend->copy_to_host(*stream, host.data(), device.data(), bytes);
  stream->synchronize();

  EXPECT_THAT(host, Each('\0'));
}

TEST_P(BackendOf, EmptyCopiesAreFine) {
  backend->copy(*stream, nullptr, nullptr, 0);
  backend->fill_zero(*stream, nullptr, 0);
  EXPECT_NO_THROW(stream->synchronize());
  EXPECT_THROW(backend->copy(*stream, nullptr, nullptr, -1), Error);
}

TEST_P(BackendOf, CountsItsMemory) {
  const auto before = backend->bytes_in_use();
  {
    const auto buffer = backend->allocate(100000);
    EXPECT_EQ(backend->bytes_in_use(), before + 100000);
  }
  EXPECT_EQ(backend->bytes_in_use(), before);
  EXPECT_GE(backend->peak_bytes(), before + 100000);
}

TEST_P(BackendOf, BuffersMayGoWhileTheirWorkIsQueued) {
  const auto one = filled(64, 512, 1.0f);
  const auto sum = upload(filled(64, 512, 0.0f));
  for (int i = 0; i < 50; ++i) {
    const auto term = backend->allocate(64 * 512 * 4);
    backend->copy_to_device(*stream, term.data(), one.data.data(), term.bytes());
    backend->add(*stream, {.x = term.view<float, 2>({64, 512}), .y = sum.view});
    // Handed out again too early, this would overwrite the terms.
    const auto other = backend->create_stream();
    const auto reused = backend->allocate(64 * 512 * 4);
    backend->fill_zero(*other, reused.data(), reused.bytes());
    other->synchronize();
  }

  EXPECT_THAT(download(sum).data, Each(50.0f));
}

TEST_P(BackendOf, EventsOrderOperationsOnTwoStreams) {
  const auto other = backend->create_stream();
  const auto a = upload(filled(500, 500, 1.0f));
  const auto b = upload(filled(500, 500, 0.0f));
  for (int i = 0; i < 10; ++i) {
    backend->add(*stream, {.x = a.view, .y = b.view});
    other->wait(stream->record());
    backend->add(*other, {.x = b.view, .y = a.view});
    stream->wait(other->record());
  }

  // a, b = 1, 0; b += a; a += b: Fibonacci numbers.
  EXPECT_THAT(download(a).data, Each(10946.0f));
  EXPECT_THAT(download(b).data, Each(6765.0f));
}

TEST_P(BackendOf, DescribesItself) { EXPECT_THAT(backend->describe(), StartsWith(GetParam().name)); }

INSTANTIATE_TEST_SUITE_P(, BackendOf, ::testing::ValuesIn(available_devices()), device_name);

TEST(CpuBackendTest, NamesLibraryAndKernels) {
  CpuBackend backend({.threads = 1, .progress = nullptr});
  EXPECT_THAT(backend.describe(), StartsWith("cpu openblas "));
  EXPECT_EQ(backend.compute_dtype(DType::bf16), DType::f32);
  EXPECT_THROW(backend.compute_dtype(DType::i32), Error);
}

TEST(CpuBackendTest, TicksProgress) {
  Progress progress;
  CpuBackend backend({.threads = 2, .progress = &progress});
  const auto stream = backend.create_stream();
  const auto buffer = backend.allocate(std::int64_t{9} << 20);

  backend.fill_zero(*stream, buffer.data(), buffer.bytes());
  stream->synchronize();

  EXPECT_EQ(progress.ticks(), 3u);
}

TEST(CpuBackendTest, RefusesAForeignStream) {
  class Foreign final : public Stream {
    Event record() override { return {}; }
    void wait(const Event&) override {}
    void synchronize() override {}
  };
  CpuBackend backend({.threads = 1, .progress = nullptr});
  Foreign foreign;
  EXPECT_THAT(error_message([&] { backend.fill_zero(foreign, nullptr, 0); }), HasSubstr("another backend"));
}

TEST(CpuBackendTest, RefusesNegativeThreads) {
  EXPECT_THROW(make_cpu_backend({.threads = -2, .progress = nullptr}), Error);
}

TEST(Disjoint, KnowsColumnSlicesFromOverlaps) {
  std::vector<float> memory(100);
  const TensorView<float, 2> all(memory.data(), {10, 10});
  const auto disjoint = [](TensorView<float, 2> a, TensorView<float, 2> b) {
    const bool one = checks::are_disjoint(a, b);
    EXPECT_EQ(one, checks::are_disjoint(b, a));
    return one;
  };
  EXPECT_TRUE(disjoint(all.slice_cols(0, 5), all.slice_cols(5, 5)));
  EXPECT_FALSE(disjoint(all.slice_cols(0, 6), all.slice_cols(5, 5)));
  EXPECT_TRUE(disjoint(all.slice_rows(0, 5), all.slice_rows(5, 5)));
  EXPECT_FALSE(disjoint(all.slice_rows(0, 6), all.slice_rows(5, 5)));
  EXPECT_TRUE(disjoint(all.slice_rows(1, 5).slice_cols(0, 3), all.slice_cols(3, 7)));
  EXPECT_FALSE(disjoint(all, all));
  EXPECT_TRUE(disjoint(all, all.slice_rows(3, 0)));
}

}  // namespace
}  // namespace gptqd::test
