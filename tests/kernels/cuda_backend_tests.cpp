#include <numeric>
#include <thread>

#include "kernels/cuda/break_device.hpp"
#include "kernels/cuda/cuda_backend.hpp"
#include "tests/kernels/device_tensors.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::int64_t mebibyte = std::int64_t{1} << 20;

class CudaBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (available_devices().size() < 2) {
      GTEST_SKIP() << "no GPU here";
    }
    backend_ = std::make_unique<cuda::CudaBackend>(CudaBackendOptions{.device = 0, .progress = &progress_});
    stream_ = backend_->create_stream();
  }

  /// Work that takes the device a while: tens of milliseconds.
  void keep_busy(Stream& stream) {
    if (!busy_) {
      busy_ = backend_->allocate(1024 * mebibyte);
    }
    for (int i = 0; i < 60; ++i) {
      backend_->fill_zero(stream, busy_.data(), busy_.bytes());
    }
  }
  /// Fails the stream, once the host hears of it.
  void enqueue_bad_gather(Stream& stream) {
    const std::vector<std::int32_t> bad{7};
    const auto index = backend_->allocate(4);
    const auto from = backend_->allocate(256);
    const auto to = backend_->allocate(256);
    backend_->copy_to_device(stream, index.data(), bad.data(), 4);
    backend_->gather_columns(
        stream,
        {.x = from.view<float, 2>({1, 3}), .index = index.view<std::int32_t, 1>({1}), .y = to.view<float, 2>({1, 1})});
  }

  Progress progress_;
  std::unique_ptr<cuda::CudaBackend> backend_;
  std::unique_ptr<Stream> stream_;
  Buffer busy_;
};

TEST_F(CudaBackendTest, DescribesWhatDecidesBits) {
  EXPECT_THAT(backend_->describe(), AllOf(StartsWith("cuda "), HasSubstr("sm_"), HasSubstr("cublas 1"),
                                          HasSubstr("cusolver 1"), HasSubstr("runtime 1")));
}

TEST_F(CudaBackendTest, ComputesInTheModelsType) {
  EXPECT_EQ(backend_->compute_dtype(DType::bf16), DType::bf16);
  EXPECT_EQ(backend_->compute_dtype(DType::f16), DType::f16);
  EXPECT_EQ(backend_->compute_dtype(DType::f32), DType::f32);
  EXPECT_THROW(backend_->compute_dtype(DType::i32), Error);
}

TEST_F(CudaBackendTest, AGpuThatIsNotThereIsNamed) {
  EXPECT_THAT(error_message([] { make_cuda_backend({.device = 99, .progress = nullptr}); }),
              AllOf(HasSubstr("CUDA device 99"), HasSubstr("--device cpu")));
  EXPECT_THAT(error_message([] { make_cuda_backend({.device = -1, .progress = nullptr}); }), HasSubstr("device -1"));
}

TEST_F(CudaBackendTest, CopiesOfManyPiecesArriveWhole) {
  std::vector<std::uint32_t> host(30 * 1000 * 1000 + 3);  // about seven times what staging memory holds
  std::iota(host.begin(), host.end(), 0u);
  std::vector<std::uint32_t> back(host.size());
  const auto bytes = static_cast<std::int64_t>(host.size() * sizeof(host[0]));
  const auto device = backend_->allocate(bytes);

  for (int round = 0; round < 2; ++round) {
    std::fill(back.begin(), back.end(), 0u);
    backend_->copy_to_device(*stream_, device.data(), host.data(), bytes);
    backend_->copy_to_host(*stream_, back.data(), device.data(), bytes);
    stream_->synchronize();
    ASSERT_EQ(back, host);
  }
}

TEST_F(CudaBackendTest, CopiesOfEverySizeInTurn) {
  std::vector<std::vector<unsigned char>> there;
  std::vector<std::vector<unsigned char>> back;
  std::vector<Buffer> buffers;
  for (std::int64_t bytes : {1, 255, 256, 4097, 65536, 65537, 3000000, 4194304, 4194305, 9000001, 2, 70000}) {
    there.emplace_back(static_cast<std::size_t>(bytes));
    std::iota(there.back().begin(), there.back().end(), static_cast<unsigned char>(bytes));
    back.emplace_back(there.back().size());
    buffers.push_back(backend_->allocate(bytes));
  }
  for (std::size_t i = 0; i < there.size(); ++i) {
    backend_->copy_to_device(*stream_, buffers[i].data(), there[i].data(), buffers[i].bytes());
  }
  for (std::size_t i = 0; i < there.size(); ++i) {
    backend_->copy_to_host(*stream_, back[i].data(), buffers[i].data(), buffers[i].bytes());
  }
  stream_->synchronize();

  EXPECT_EQ(back, there);
}

TEST_F(CudaBackendTest, SmallCopiesDoNotWaitForTheDevice) {
  keep_busy(*stream_);
  std::vector<float> host(100, 3.0f);
  std::vector<float> back(100);
  const auto device = backend_->allocate(400);

  backend_->copy_to_device(*stream_, device.data(), host.data(), 400);
  backend_->copy_to_host(*stream_, back.data(), device.data(), 400);
  const Event event = stream_->record();
  host.assign(100, 5.0f);  // small copies are taken when they are enqueued

  EXPECT_THAT(back, Each(0.0f));
  event.synchronize();
  EXPECT_THAT(back, Each(3.0f));
}

TEST_F(CudaBackendTest, AnotherStreamThatWaitedDeliversCopiesToo) {
  const auto other = backend_->create_stream();
  const std::vector<float> host(100, 3.0f);
  std::vector<float> back(100);
  const auto device = backend_->allocate(400);
  keep_busy(*stream_);
  backend_->copy_to_device(*stream_, device.data(), host.data(), 400);
  backend_->copy_to_host(*stream_, back.data(), device.data(), 400);

  other->wait(stream_->record());
  other->synchronize();

  EXPECT_THAT(back, Each(3.0f));
}

TEST_F(CudaBackendTest, AFindingFailsTheStreamAndThoseThatWaited) {
  const auto other = backend_->create_stream();
  const Event before = stream_->record();
  enqueue_bad_gather(*stream_);
  const Event event = stream_->record();
  other->wait(event);

  EXPECT_THAT(error_message([&] { other->synchronize(); }), HasSubstr("index[0] = 7"));
  for (int repeat = 0; repeat < 2; ++repeat) {
    EXPECT_THAT(error_message([&] { stream_->synchronize(); }), HasSubstr("index[0] = 7"));
    EXPECT_THAT(error_message([&] { event.synchronize(); }), HasSubstr("index[0] = 7"));
  }
  EXPECT_NO_THROW(before.synchronize());
  const auto buffer = backend_->allocate(256);
  EXPECT_THAT(error_message([&] { backend_->fill_zero(*stream_, buffer.data(), 256); }), HasSubstr("index[0] = 7"));
  EXPECT_NO_THROW(backend_->create_stream()->synchronize());
}

TEST_F(CudaBackendTest, MoreFindingsThanPlacesForThem) {
  const std::vector<std::int32_t> host{2};
  const auto index = backend_->allocate(4);
  const auto from = backend_->allocate(256);
  const auto to = backend_->allocate(256);
  backend_->copy_to_device(*stream_, index.data(), host.data(), 4);
  for (int i = 0; i < 10000; ++i) {
    backend_->gather_columns(
        *stream_,
        {.x = from.view<float, 2>({1, 3}), .index = index.view<std::int32_t, 1>({1}), .y = to.view<float, 2>({1, 1})});
  }

  EXPECT_NO_THROW(stream_->synchronize());
}

TEST_F(CudaBackendTest, RefusesStreamsAndEventsOfOthers) {
  const auto cpu = make_cpu_backend({.threads = 1, .progress = nullptr});
  const auto foreign = cpu->create_stream();
  EXPECT_THAT(error_message([&] { backend_->fill_zero(*foreign, nullptr, 0); }), HasSubstr("another backend"));
  EXPECT_THAT(error_message([&] { stream_->wait(foreign->record()); }), HasSubstr("another backend"));
}

TEST_F(CudaBackendTest, EmptyEventsAndOwnEventsAreFine) {
  EXPECT_NO_THROW(Event().synchronize());
  stream_->wait(Event());
  stream_->wait(stream_->record());
  keep_busy(*stream_);
  stream_->wait(stream_->record());
  EXPECT_NO_THROW(stream_->synchronize());
}

TEST_F(CudaBackendTest, TheSteadyStateTakesNoMemoryFromCuda) {
  const auto step = [&] {
    std::vector<Buffer> buffers;
    for (const std::int64_t bytes : {100, 3000, 5 * 1000 * 1000, 40 * 1000 * 1000, 200 * 1000 * 1000}) {
      buffers.push_back(backend_->allocate(bytes));
      backend_->fill_zero(*stream_, buffers.back().data(), bytes);
    }
  };
  for (int i = 0; i < 3; ++i) {
    step();
  }
  stream_->synchronize();
  const auto held = backend_->arena().bytes_held();
  for (int i = 0; i < 50; ++i) {
    step();
  }

  EXPECT_LE(backend_->arena().bytes_held(), held + 256 * mebibyte + held / 8);
  const auto then = backend_->arena().bytes_held();
  for (int i = 0; i < 50; ++i) {
    step();
  }
  EXPECT_EQ(backend_->arena().bytes_held(), then);
}

TEST_F(CudaBackendTest, AReleasedBlockWaitsForItsWork) {
  const auto other = backend_->create_stream();
  const std::vector<float> host(100, 3.0f);
  for (int i = 0; i < 3; ++i) {
    auto first = backend_->allocate(400);
    std::vector<float> back(100);
    keep_busy(*stream_);
    backend_->copy_to_device(*stream_, first.data(), host.data(), 400);
    backend_->copy_to_host(*stream_, back.data(), first.data(), 400);
    first = Buffer();
    // On a stream that does not wait for the first one.
    const auto second = backend_->allocate(400);
    backend_->fill_zero(*other, second.data(), 400);
    other->synchronize();
    stream_->synchronize();
    EXPECT_THAT(back, Each(3.0f));
  }
}

TEST_F(CudaBackendTest, BuffersOutliveTheirBackend) {
  auto buffer = backend_->allocate(1000);
  busy_ = Buffer();
  stream_.reset();
  backend_.reset();

  EXPECT_NO_THROW(buffer = Buffer());
}

TEST_F(CudaBackendTest, ImpossibleRequestsNameTheirBytes) {
  const auto held = backend_->allocate(1234);
  for (const std::int64_t bytes : {std::int64_t{1} << 42, std::int64_t{1} << 60}) {
    EXPECT_THAT(error_message([&] { backend_->allocate(bytes); }),
                AllOf(HasSubstr(std::to_string(bytes)), HasSubstr("1234 bytes in use")));
  }
  EXPECT_THROW(backend_->allocate(-1), Error);
  EXPECT_NO_THROW(backend_->allocate(1000));
  EXPECT_EQ(backend_->bytes_in_use(), 1234);
}

TEST_F(CudaBackendTest, TicksProgressWhileTheHostWaits) {
  const auto before = progress_.ticks();
  keep_busy(*stream_);

  stream_->synchronize();

  EXPECT_GE(progress_.ticks(), before + 3);
}

TEST_F(CudaBackendTest, ServesSeveralThreads) {
  const auto work = [&](unsigned char seed) {
    const auto stream = backend_->create_stream();
    for (int i = 0; i < 200; ++i) {
      const std::int64_t bytes = 1 + (i * 7919 + seed) % 200000;
      const std::vector<unsigned char> host(static_cast<std::size_t>(bytes), seed);
      std::vector<unsigned char> back(host.size());
      const auto buffer = backend_->allocate(bytes);
      backend_->copy_to_device(*stream, buffer.data(), host.data(), bytes);
      backend_->copy_to_host(*stream, back.data(), buffer.data(), bytes);
      stream->synchronize();
      ASSERT_EQ(back, host);
    }
  };

  std::thread one([&] { work(1); });
  std::thread two([&] { work(2); });
  work(3);
  one.join();
  two.join();
}

/// The context of a process cannot be had back: in one of its own.
TEST_F(CudaBackendTest, ALostDeviceFailsEveryCallWithItsNameAndEverythingCanBeGivenBack) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto lose_and_tidy_up = [&] {
    auto other = backend_->create_stream();
    auto memory = backend_->allocate(mebibyte);
    const auto pinned = backend_->allocate_host(mebibyte);
    {
      std::vector<std::byte> host(mebibyte);  // gone before the copy to it is waited for
      backend_->copy_to_host(*stream_, host.data(), memory.data(), mebibyte);
    }
    keep_busy(*other);
    const Event early = other->record();
    auto& lost = dynamic_cast<cuda::CudaStream&>(*stream_);
    cuda::break_device(lost.stream(), DeviceFault::lost);
    lost.end("losing the device");
    const std::vector<std::pair<const char*, std::function<void()>>> calls{
        {"synchronize", [&] { stream_->synchronize(); }},
        {"fill_zero", [&] { backend_->fill_zero(*other, memory.data(), mebibyte); }},
        {"allocate", [&] { backend_->allocate(4096 * mebibyte); }},
        {"create_stream", [&] { backend_->create_stream(); }},
        {"wait", [&] { stream_->wait(early); }},
        {"event", [&] { early.synchronize(); }}};
    for (const auto& [name, call] : calls) {
      try {
        call();
        fmt::print(stderr, "{} did not fail\n", name);
        std::_Exit(1);
      } catch (const Error& error) {
        fmt::print(stderr, "{}: {}\n", name, error.message());
      }
    }
    memory = Buffer();
    other.reset();
    stream_.reset();
    busy_ = Buffer();
    backend_.reset();
    fmt::print(stderr, "all given back\n");
    std::_Exit(0);
  };
  EXPECT_EXIT(lose_and_tidy_up(), ::testing::ExitedWithCode(0),
              "synchronize: CUDA device 0 .*is lost to this process.*run the same command again(.|\n)*all given back");
}

TEST(CudaError, SaysWhichDeviceAndWhetherItIsLost) {
  const auto text_of = [](cudaError_t status) -> std::string {
    try {
      cuda::check(status, "a test");
    } catch (const Error& error) {
      return error.message();
    }
    return {};
  };

  EXPECT_EQ(text_of(cudaSuccess), "");
  for (const auto status : {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable,
                            cudaErrorDeviceUninitialized, cudaErrorAssert}) {
    EXPECT_THAT(text_of(status),
                AllOf(HasSubstr("CUDA device"), HasSubstr("is lost to this process: a test: cudaError"),
                      HasSubstr("run the same command again")));
  }
  if (cuda_device_count() > 0) {
    EXPECT_THAT(text_of(cudaErrorInvalidValue),
                AllOf(HasSubstr("a test: cudaErrorInvalidValue"), Not(HasSubstr("is lost"))));
  }
}

}  // namespace
}  // namespace gptqd::test
