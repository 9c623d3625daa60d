#include <cmath>

#include "kernels/gram.hpp"
#include "tests/kernels/quant_support.hpp"

namespace gptqd {
namespace {

using reference::product;
using reference::random_normal;
using reference::transposed;
using test::DeviceTensors;
using test::flat;
using test::Matrix;
using test::message_of;
using test::normal;
using test::OnDevice;
using test::with_real_types;
using ::testing::HasSubstr;

/// Largest |got − expected| on and below the diagonal, as a share of the geometric mean of the diagonal entries.
template <class T>
double lower_error(const Matrix<T>& panel, const Matrix<double>& h) {
  double largest = 0;
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    for (std::int64_t c = 0; c < panel.cols && c <= r; ++c) {
      const double error = std::abs(static_cast<double>(panel(r, c)) - h(r, c)) / std::sqrt(h(r, r) * h(c, c));
      largest = error <= largest ? largest : error;  // NaN is the largest
    }
  }
  return largest;
}

template <class T>
Matrix<T> gram(DeviceTensors& on, const Matrix<T>& x, std::int64_t w) {
  const auto device = on.upload(x);
  const auto panel = on.upload(Matrix<T>(x.cols, w, T{7}));
  on.backend->gram_panel(*on.stream, {.x = device.view, .panel = panel.view});
  return on.download(panel);
}

class GramPanel : public OnDevice {};
INSTANTIATE_TEST_SUITE_P(, GramPanel, ::testing::ValuesIn(test::available_devices()), test::device_name);

TEST_P(GramPanel, MatchesReferenceOverSeveralTilesAndChunks) {
  struct Case {
    std::int64_t tokens, m, w;
  };
  with_real_types([&]<class T>() {
    const double tolerance = 2e-6 * (std::is_same_v<T, float> ? 1 : 1e-7);
    // One element; less than a tile; one over a tile and a chunk; a panel of whole tiles.
    for (const auto& [tokens, m, w] : {Case{1, 1, 1}, Case{37, 45, 45}, Case{2049, 300, 257}, Case{64, 520, 256}}) {
      const auto x = random_normal(tokens, m, 3).template as<T>();

      const auto panel = gram(*this, x, w);

      const auto exact = x.template as<double>();
      EXPECT_LE(lower_error(panel, product(transposed(exact), exact)), tolerance) << tokens << " " << m << " " << w;
    }
  });
}

TEST_P(GramPanel, AccumulatesOnTopOfWhatIsThere) {
  with_real_types([&]<class T>() {
    const auto x = random_normal(50, 20, 4).as<T>();
    const auto device = upload(x);
    const auto panel = upload(gram(*this, x, 20));

    backend->gram_panel(*stream, {.x = device.view, .panel = panel.view, .accumulate = true});

    const auto exact = x.template as<double>();
    auto twice = product(transposed(exact), exact);
    for (auto& value : twice.data) {
      value *= 2;
    }
    EXPECT_LE(lower_error(download(panel), twice), 1e-6);
  });
}

TEST_P(GramPanel, OfNoTokensIsZeroOrUnchanged) {
  with_real_types([&]<class T>() {
    const auto x = upload(Matrix<T>(0, 300));
    const auto panel = upload(Matrix<T>(300, 280, T{7}));

    backend->gram_panel(*stream, {.x = x.view, .panel = panel.view, .accumulate = true});
    EXPECT_EQ(download(panel)(299, 0), T{7});
    backend->gram_panel(*stream, {.x = x.view, .panel = panel.view});

    const auto zero = download(panel);
    EXPECT_EQ(zero(299, 0), T{0});
    EXPECT_EQ(zero(0, 0), T{0});
  });
}

TEST_P(GramPanel, HasTheSameBitsAtEveryNumberOfThreads) {
  with_real_types([&]<class T>() {
    const auto x = random_normal(700, 530, 5).as<T>();
    DeviceTensors one(GetParam(), 1);
    const auto expected = gram(one, x, 513);
    for (const int threads : {2, 3}) {
      DeviceTensors on(GetParam(), threads);

      const auto got = gram(on, x, 513);

      for (std::int64_t r = 0; r < got.rows; ++r) {
        for (std::int64_t c = 0; c <= std::min(r, got.cols - 1); ++c) {
          ASSERT_EQ(got(r, c), expected(r, c)) << threads << " threads, " << r << ", " << c;
        }
      }
    }
  });
}

TEST_P(GramPanel, WritesNothingOutsideAStridedPanel) {
  with_real_types([&]<class T>() {
    const auto wide = random_normal(40, 90, 6).as<T>();
    const auto x = upload(wide);
    const auto memory = upload(Matrix<T>(30, 50, T{-1}));

    backend->gram_panel(*stream, {.x = x.view.slice_cols(11, 30), .panel = memory.view.slice_cols(5, 20)});

    const auto got = download(memory);
    double dot = 0;
    for (std::int64_t t = 0; t < 40; ++t) {
      dot += static_cast<double>(wide(t, 11 + 29)) * static_cast<double>(wide(t, 11 + 19));
    }
    EXPECT_NEAR(static_cast<double>(got(29, 24)), dot, 1e-4);
    for (std::int64_t r = 0; r < 30; ++r) {
      EXPECT_EQ(got(r, 4), T{-1});
      EXPECT_EQ(got(r, 25), T{-1});
    }
  });
}

TEST_P(GramPanel, IsRefusedWithGotAndExpected) {
  const auto x = upload(Matrix<float>(5, 8));
  const auto panel = upload(Matrix<float>(8, 9));
  const auto other = upload(Matrix<double>(8, 4));
  EXPECT_THAT(message_of([&] { backend->gram_panel(*stream, {.x = x.view, .panel = panel.view}); }),
              HasSubstr("the panel has 9 columns, expected at most the 8 of x"));
  EXPECT_THAT(message_of([&] { backend->gram_panel(*stream, {.x = x.view, .panel = other.view}); }),
              HasSubstr("panel is F64, expected F32"));
  EXPECT_THAT(message_of([&] {
                backend->gram_panel(*stream, {.x = x.view, .panel = panel.view.slice_rows(0, 7).slice_cols(0, 4)});
              }),
              HasSubstr("panel is [7, 4], expected [8, 4]"));
}

TEST_P(GramPanel, ColumnSquareSumsAreSumsOfSquares) {
  with_real_types([&]<class T>() {
    const auto x = random_normal(601, 300, 8).as<T>();
    const auto device = upload(x, 3);
    const auto sums = upload(std::vector<double>(300, 5.0));

    backend->column_square_sums(*stream, {.x = device.view, .sums = flat(sums)});
    backend->column_square_sums(*stream, {.x = device.view.slice_rows(0, 1), .sums = flat(sums), .accumulate = true});

    const auto got = download(sums);
    for (std::int64_t c = 0; c < 300; ++c) {
      double sum = 0;
      for (std::int64_t t = 0; t < 601; ++t) {
        sum += static_cast<double>(x(t, c)) * static_cast<double>(x(t, c));
      }
      sum += static_cast<double>(x(0, c)) * static_cast<double>(x(0, c));
      EXPECT_NEAR(got(0, c), sum, 1e-14 * sum) << c;
    }
  });
}

TEST_P(GramPanel, DiagonalsAreReadAndWritten) {
  with_real_types([&]<class T>() {
    const auto before = random_normal(7, 5, 9).as<T>();
    const auto panel = upload(before, 2);
    const auto diagonal = upload(std::vector<double>(5));
    const auto next = upload(std::vector<double>{1, 2, 3, 4, 5});

    backend->get_diagonal(*stream, {.panel = panel.view, .diagonal = flat(diagonal)});
    backend->set_diagonal(*stream, {.diagonal = flat(next), .panel = panel.view});

    const auto got = download(panel);
    for (std::int64_t r = 0; r < 7; ++r) {
      for (std::int64_t c = 0; c < 5; ++c) {
        EXPECT_EQ(got(r, c), r == c ? static_cast<T>(c + 1) : before(r, c));
      }
    }
    const auto read = download(diagonal);
    for (std::int64_t c = 0; c < 5; ++c) {
      EXPECT_EQ(read(0, c), static_cast<double>(before(c, c)));
    }
  });
}

/// Inputs in every compute dtype.
class GramOfActivations : public OnDevice {
 protected:
  /// H of `x` as the device sees it.
  Matrix<double> exact(const Matrix<float>& x) const {
    const auto seen = rounded(x).as<double>();
    return product(transposed(seen), seen);
  }
  /// fp32's, and where tensor cores add up by truncating what their bias may come to: docs/numerics.md allows 2e-5.
  double tolerance(std::int64_t tokens) const {
    const double bias = computes_in_f32() ? 0.0 : 4e-9 * static_cast<double>(std::min<std::int64_t>(tokens, 2048));
    return 2e-6 + bias;
  }
};
INSTANTIATE_TEST_SUITE_P(, GramOfActivations, ::testing::ValuesIn(test::compute_devices()), test::device_name);

TEST_P(GramOfActivations, MatchesReferenceOverSeveralTilesAndIntervals) {
  struct Case {
    std::int64_t tokens, m, w, gap;
  };
  // Tiles are 256 x 256 where tensor cores do it, sums 2,048 tokens; rows that do not begin at 16 bytes go another way.
  for (const auto& [tokens, m, w, gap] :
       {Case{1, 8, 8, 0}, Case{37, 45, 45, 0}, Case{130, 200, 136, 8}, Case{129, 193, 57, 7}, Case{385, 640, 600, 0},
        Case{1000, 264, 258, 16}, Case{64, 776, 768, 0}, Case{4500, 128, 120, 0}}) {
    const auto x = normal(tokens, m, 3);
    const auto device = upload_rounded(x, gap);
    const auto panel = upload(Matrix<float>(m, w, std::nanf("")), gap);

    backend->gram_panel(*stream, {.x = device.view, .panel = panel.view});

    EXPECT_LE(lower_error(download(panel), exact(x)), tolerance(tokens)) << tokens << " " << m << " " << w;
  }
}

TEST_P(GramOfActivations, AddsChunkAfterChunkInAStridedPanel) {
  const auto x = normal(700, 328, 4);
  const auto device = upload_rounded(x, 24);
  const auto panel = upload(Matrix<float>(320, 296), 4);

  for (const auto& [first, tokens] : {std::pair<std::int64_t, std::int64_t>{0, 300}, {300, 1}, {301, 399}}) {
    backend->gram_panel(
        *stream,
        {.x = device.view.slice_rows(first, tokens).slice_cols(8, 320), .panel = panel.view, .accumulate = true});
  }

  const auto h = exact(x);
  Matrix<double> expected(320, 320);
  for (std::int64_t r = 0; r < 320; ++r) {
    for (std::int64_t c = 0; c < 320; ++c) {
      expected(r, c) = h(r + 8, c + 8);
    }
  }
  EXPECT_LE(lower_error(download(panel), expected), tolerance(700));
}

TEST_P(GramOfActivations, ColumnSquareSumsDependOnTheTokensAlone) {
  const auto x = rounded(normal(1100, 120, 8));
  const auto apart = upload_rounded(x, 7);
  const auto device = upload_rounded(x);
  const auto sums_of = [&](const ConstAnyView<2>& view) {
    const auto sums = upload(std::vector<double>(static_cast<std::size_t>(view.cols())));
    backend->column_square_sums(*stream, {.x = view, .sums = flat(sums)});
    return download(sums);
  };

  const auto got = sums_of(device.view);

  for (std::int64_t c = 0; c < 120; ++c) {
    double sum = 0;
    for (std::int64_t t = 0; t < 1100; ++t) {
      sum += static_cast<double>(x(t, c)) * static_cast<double>(x(t, c));
    }
    EXPECT_NEAR(got(0, c), sum, 1e-14 * sum) << c;
  }
  test::expect_identical(sums_of(apart.view), got);
  const auto some = sums_of(device.view.slice_cols(37, 50));
  for (std::int64_t c = 0; c < 50; ++c) {
    EXPECT_EQ(some(0, c), got(0, 37 + c)) << c;
  }
}

TEST_P(GramOfActivations, HasTheSameBitsEveryTime) {
  const auto device = upload_rounded(normal(900, 640, 5));
  const auto run = [&] {
    const auto panel = upload(Matrix<float>(640, 512));
    backend->gram_panel(*stream, {.x = device.view, .panel = panel.view});
    return download(panel);
  };
  const auto first = run();
  const auto second = run();
  for (std::int64_t r = 0; r < 640; ++r) {
    for (std::int64_t c = 0; c <= std::min<std::int64_t>(r, 511); ++c) {
      ASSERT_EQ(first(r, c), second(r, c)) << r << ", " << c;
    }
  }
}

TEST_P(GramOfActivations, KeepsAChannelsEnergyBesideMassiveActivations) {
  if (computes_in_f32()) {
    return;  // a sum in fp32 loses about as much as is at stake
  }
  const std::int64_t tokens = 4096;
  const std::int64_t channel = 17;
  // On the first token of each window, as models have them; anywhere; where sums end.
  for (const auto& massive : std::vector<std::vector<std::int64_t>>{{0, 2048}, {0, 333, 1087, 2900}, {2047, 4095}}) {
    auto x = normal(tokens, 320, 6, 0.2);
    for (const auto t : massive) {
      x(t, channel) = 0;
    }
    double energy = 0;
    for (std::int64_t t = 0; t < tokens; ++t) {
      energy += std::pow(static_cast<double>(rounded(x(t, channel))), 2);
    }
    for (const auto t : massive) {
      x(t, channel) = 1504;  // which both half types hold
    }
    const auto device = upload_rounded(x);
    const auto panel = upload(Matrix<float>(320, 304));

    backend->gram_panel(*stream, {.x = device.view, .panel = panel.view});

    const auto got = download(panel);
    const double rest = static_cast<double>(got(channel, channel)) - static_cast<double>(massive.size()) * 1504 * 1504;
    EXPECT_NEAR(rest, energy, 0.05 * energy) << "massive: " << ::testing::PrintToString(massive);
    EXPECT_LE(lower_error(got, exact(x)), tolerance(tokens));
  }
}

TEST_P(GramOfActivations, ColumnSquareSumsAreSumsOfSquares) {
  const auto x = rounded(normal(300, 77, 8));
  const auto device = upload_rounded(x);
  const auto sums = upload(std::vector<double>(77, 5.0));

  backend->column_square_sums(*stream, {.x = device.view, .sums = flat(sums)});

  const auto got = download(sums);
  for (std::int64_t c = 0; c < 77; ++c) {
    double sum = 0;
    for (std::int64_t t = 0; t < 300; ++t) {
      sum += static_cast<double>(x(t, c)) * static_cast<double>(x(t, c));
    }
    EXPECT_NEAR(got(0, c), sum, 1e-14 * sum) << c;
  }
}

TEST_P(GramPanel, GroupBlocksAreGatheredFromAllPanels) {
  // Columns of three groups of four, scattered as act-order scatters them.
  const std::vector<std::int32_t> group{2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1};
  const std::vector<std::int32_t> member{3, 1, 0, 2, 0, 1, 0, 3, 3, 2, 2, 1};
  const auto h = reference::random_hessian(12, 40, 10);
  const auto device_group = upload(group);
  const auto device_member = upload(member);
  with_real_types([&]<class T>() {
    const auto panels = test::cut_panels<T>(h, 5);
    const auto memory = upload(std::vector<float>(3 * 16, -1.0f));

    for (const auto& panel : panels) {
      const auto device = upload(panel.values);
      backend->gather_group_blocks(*stream, {.panel = device.view,
                                             .first = panel.first,
                                             .group = flat(device_group),
                                             .member = flat(device_member),
                                             .blocks = TensorView<float, 3>(memory.view.data, {3, 4, 4})});
    }

    ASSERT_EQ(panels.size(), 3u);
    const auto got = download(memory).data;
    for (std::size_t a = 0; a < 12; ++a) {
      for (std::size_t b = 0; b < 12; ++b) {
        if (group[a] == group[b]) {
          const auto place = static_cast<std::size_t>(group[a] * 16 + member[a] * 4 + member[b]);
          EXPECT_EQ(got[place], static_cast<float>(h(static_cast<std::int64_t>(a), static_cast<std::int64_t>(b))));
        }
      }
    }
  });
}

TEST_P(GramPanel, GroupBlocksOfOtherPanelsStayUntouched) {
  const auto group = upload(std::vector<std::int32_t>{0, 0, 1, 1});
  const auto member = upload(std::vector<std::int32_t>{0, 1, 0, 1});
  with_real_types([&]<class T>() {
    const auto panel = upload(Matrix<T>(2, 2, T{3}));
    const auto memory = upload(std::vector<float>(8, -1.0f));

    backend->gather_group_blocks(*stream, {.panel = panel.view,
                                           .first = 2,
                                           .group = flat(group),
                                           .member = flat(member),
                                           .blocks = TensorView<float, 3>(memory.view.data, {2, 2, 2})});

    EXPECT_EQ(download(memory).data, (std::vector<float>{-1, -1, -1, -1, 3, 3, 3, 3}));
  });
}

TEST_P(GramPanel, GroupBlocksRefuseIndicesOutsideTheBlocks) {
  const auto group = upload(std::vector<std::int32_t>{0, 2});
  const auto member = upload(std::vector<std::int32_t>{0, 0});
  const auto panel = upload(Matrix<float>(2, 2));
  const auto memory = upload(std::vector<float>(2));

  EXPECT_THAT(message_of([&] {
                backend->gather_group_blocks(*stream, {.panel = panel.view,
                                                       .first = 0,
                                                       .group = flat(group),
                                                       .member = flat(member),
                                                       .blocks = TensorView<float, 3>(memory.view.data, {2, 1, 1})});
                stream->synchronize();
              }),
              HasSubstr("group[1] = 2, expected an index in [0, 2)"));
}

}  // namespace
}  // namespace gptqd
