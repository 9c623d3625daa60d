#include <cmath>

#include "kernels/gram.hpp"
#include "tests/kernels/quant_support.hpp"

namespace gptqd {
namespace {

using reference::product;
using reference::random_normal;
using reference::transposed;
using test::Cpu;
using test::Matrix;
using test::message_of;
using test::view_of;
using ::testing::HasSubstr;

/// Largest |got − expected| on and below the diagonal, as a share of the geometric mean of the diagonal entries.
template <class T>
double lower_error(const Matrix<T>& panel, const Matrix<double>& h) {
  double largest = 0;
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    for (std::int64_t c = 0; c < panel.cols && c <= r; ++c) {
      largest = std::max(largest, std::abs(static_cast<double>(panel(r, c)) - h(r, c)) / std::sqrt(h(r, r) * h(c, c)));
    }
  }
  return largest;
}

template <class T>
Matrix<T> gram(Cpu& cpu, const Matrix<T>& x, std::int64_t w) {
  Matrix<T> panel(x.cols, w, T{7});
  cpu.backend->gram_panel(*cpu.stream, {.x = x.view(), .panel = panel.view()});
  cpu.stream->synchronize();
  return panel;
}

template <class T>
class GramPanel : public ::testing::Test {};
using RealTypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GramPanel, RealTypes);

TYPED_TEST(GramPanel, MatchesReferenceOverSeveralTilesAndChunks) {
  Cpu cpu;
  const double tolerance = 2e-6 * (std::is_same_v<TypeParam, float> ? 1 : 1e-7);
  struct Case {
    std::int64_t tokens, m, w;
  };
  // One element; less than a tile; one over a tile and a chunk; a panel of whole tiles.
  for (const auto& [tokens, m, w] : {Case{1, 1, 1}, Case{37, 45, 45}, Case{2049, 300, 257}, Case{64, 520, 256}}) {
    const auto x = random_normal(tokens, m, 3).template as<TypeParam>();

    const auto panel = gram(cpu, x, w);

    const auto exact = x.template as<double>();
    EXPECT_LE(lower_error(panel, product(transposed(exact), exact)), tolerance) << tokens << " " << m << " " << w;
  }
}

TYPED_TEST(GramPanel, AccumulatesOnTopOfWhatIsThere) {
  Cpu cpu;
  const auto x = random_normal(50, 20, 4).as<TypeParam>();
  auto panel = gram(cpu, x, 20);

  cpu.backend->gram_panel(*cpu.stream, {.x = x.view(), .panel = panel.view(), .accumulate = true});
  cpu.stream->synchronize();

  const auto exact = x.template as<double>();
  auto twice = product(transposed(exact), exact);
  for (auto& value : twice.data) {
    value *= 2;
  }
  EXPECT_LE(lower_error(panel, twice), 1e-6);
}

TYPED_TEST(GramPanel, OfNoTokensIsZeroOrUnchanged) {
  Cpu cpu;
  const Matrix<TypeParam> x(0, 300);
  Matrix<TypeParam> panel(300, 280, TypeParam{7});

  cpu.backend->gram_panel(*cpu.stream, {.x = x.view(), .panel = panel.view(), .accumulate = true});
  cpu.stream->synchronize();
  EXPECT_EQ(panel(299, 0), TypeParam{7});
  cpu.backend->gram_panel(*cpu.stream, {.x = x.view(), .panel = panel.view()});
  cpu.stream->synchronize();

  EXPECT_EQ(panel(299, 0), TypeParam{0});
  EXPECT_EQ(panel(0, 0), TypeParam{0});
}

TYPED_TEST(GramPanel, HasTheSameBitsAtEveryNumberOfThreads) {
  const auto x = random_normal(700, 530, 5).as<TypeParam>();
  Cpu one(1);
  const auto expected = gram(one, x, 513);
  for (const int threads : {2, 3}) {
    Cpu cpu(threads);

    const auto got = gram(cpu, x, 513);

    for (std::int64_t r = 0; r < got.rows; ++r) {
      for (std::int64_t c = 0; c <= std::min(r, got.cols - 1); ++c) {
        ASSERT_EQ(got(r, c), expected(r, c)) << threads << " threads, " << r << ", " << c;
      }
    }
  }
}

TYPED_TEST(GramPanel, WritesNothingOutsideAStridedPanel) {
  Cpu cpu;
  const auto wide = random_normal(40, 90, 6).as<TypeParam>();
  Matrix<TypeParam> memory(30, 50, TypeParam{-1});

  cpu.backend->gram_panel(*cpu.stream, {.x = wide.view().slice_cols(11, 30), .panel = memory.view().slice_cols(5, 20)});
  cpu.stream->synchronize();

  double dot = 0;
  for (std::int64_t t = 0; t < 40; ++t) {
    dot += static_cast<double>(wide(t, 11 + 29)) * static_cast<double>(wide(t, 11 + 19));
  }
  EXPECT_NEAR(static_cast<double>(memory(29, 24)), dot, 1e-4);
  for (std::int64_t r = 0; r < 30; ++r) {
    EXPECT_EQ(memory(r, 4), TypeParam{-1});
    EXPECT_EQ(memory(r, 25), TypeParam{-1});
  }
}

TEST(GramPanelArgs, AreRefusedWithGotAndExpected) {
  Cpu cpu;
  const Matrix<float> x(5, 8);
  Matrix<float> panel(8, 9);
  Matrix<double> other(8, 4);
  EXPECT_THAT(message_of([&] { cpu.backend->gram_panel(*cpu.stream, {.x = x.view(), .panel = panel.view()}); }),
              HasSubstr("the panel has 9 columns, expected at most the 8 of x"));
  EXPECT_THAT(message_of([&] { cpu.backend->gram_panel(*cpu.stream, {.x = x.view(), .panel = other.view()}); }),
              HasSubstr("panel is F64, expected F32"));
  EXPECT_THAT(message_of([&] {
                cpu.backend->gram_panel(*cpu.stream,
                                        {.x = x.view(), .panel = panel.view().slice_rows(0, 7).slice_cols(0, 4)});
              }),
              HasSubstr("panel is [7, 4], expected [8, 4]"));
}

TYPED_TEST(GramPanel, ColumnSquareSumsAreExactSumsOfSquares) {
  Cpu cpu;
  const auto x = random_normal(101, 300, 8).as<TypeParam>();
  std::vector<double> sums(300, 5.0);

  cpu.backend->column_square_sums(*cpu.stream, {.x = x.view(), .sums = view_of(sums)});
  cpu.backend->column_square_sums(*cpu.stream,
                                  {.x = x.view().slice_rows(0, 1), .sums = view_of(sums), .accumulate = true});
  cpu.stream->synchronize();

  for (std::int64_t c = 0; c < 300; ++c) {
    double sum = 0;
    for (std::int64_t t = 0; t < 101; ++t) {
      sum += static_cast<double>(x(t, c)) * static_cast<double>(x(t, c));
    }
    sum += static_cast<double>(x(0, c)) * static_cast<double>(x(0, c));
    EXPECT_EQ(sums[static_cast<std::size_t>(c)], sum) << c;
  }
}

TYPED_TEST(GramPanel, DiagonalsAreReadAndWritten) {
  Cpu cpu;
  auto panel = random_normal(7, 5, 9).as<TypeParam>();
  const auto before = panel;
  std::vector<double> diagonal(5);
  const std::vector<double> next{1, 2, 3, 4, 5};

  cpu.backend->get_diagonal(*cpu.stream, {.panel = std::as_const(panel).view(), .diagonal = view_of(diagonal)});
  cpu.backend->set_diagonal(*cpu.stream, {.diagonal = view_of(next), .panel = panel.view()});
  cpu.stream->synchronize();

  for (std::int64_t r = 0; r < 7; ++r) {
    for (std::int64_t c = 0; c < 5; ++c) {
      EXPECT_EQ(panel(r, c), r == c ? static_cast<TypeParam>(c + 1) : before(r, c));
    }
  }
  for (std::int64_t c = 0; c < 5; ++c) {
    EXPECT_EQ(diagonal[static_cast<std::size_t>(c)], static_cast<double>(before(c, c)));
  }
}

TYPED_TEST(GramPanel, GroupBlocksAreGatheredFromAllPanels) {
  Cpu cpu;
  // Columns of three groups of four, scattered as act-order scatters them.
  const std::vector<std::int32_t> group{2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1};
  const std::vector<std::int32_t> member{3, 1, 0, 2, 0, 1, 0, 3, 3, 2, 2, 1};
  const auto h = reference::random_hessian(12, 40, 10);
  const auto panels = test::cut_panels<TypeParam>(h, 5);
  std::vector<float> memory(3 * 16, -1.0f);
  const TensorView<float, 3> blocks(memory.data(), {3, 4, 4});

  for (const auto& panel : panels) {
    cpu.backend->gather_group_blocks(*cpu.stream, {.panel = panel.values.view(),
                                                   .first = panel.first,
                                                   .group = view_of(group),
                                                   .member = view_of(member),
                                                   .blocks = blocks});
  }
  cpu.stream->synchronize();

  ASSERT_EQ(panels.size(), 3u);
  for (std::size_t a = 0; a < 12; ++a) {
    for (std::size_t b = 0; b < 12; ++b) {
      if (group[a] == group[b]) {
        const auto place = static_cast<std::size_t>(group[a] * 16 + member[a] * 4 + member[b]);
        EXPECT_EQ(memory[place], static_cast<float>(h(static_cast<std::int64_t>(a), static_cast<std::int64_t>(b))));
      }
    }
  }
}

TYPED_TEST(GramPanel, GroupBlocksOfOtherPanelsStayUntouched) {
  Cpu cpu;
  const std::vector<std::int32_t> group{0, 0, 1, 1};
  const std::vector<std::int32_t> member{0, 1, 0, 1};
  const Matrix<TypeParam> panel(2, 2, TypeParam{3});
  std::vector<float> memory(8, -1.0f);

  cpu.backend->gather_group_blocks(*cpu.stream, {.panel = panel.view(),
                                                 .first = 2,
                                                 .group = view_of(group),
                                                 .member = view_of(member),
                                                 .blocks = TensorView<float, 3>(memory.data(), {2, 2, 2})});
  cpu.stream->synchronize();

  EXPECT_EQ(memory, (std::vector<float>{-1, -1, -1, -1, 3, 3, 3, 3}));
}

TEST(GroupBlocks, RefuseIndicesOutsideTheBlocks) {
  Cpu cpu;
  const std::vector<std::int32_t> group{0, 2};
  const std::vector<std::int32_t> member{0, 0};
  const Matrix<float> panel(2, 2);
  std::vector<float> memory(2);

  cpu.backend->gather_group_blocks(*cpu.stream, {.panel = panel.view(),
                                                 .first = 0,
                                                 .group = view_of(group),
                                                 .member = view_of(member),
                                                 .blocks = TensorView<float, 3>(memory.data(), {2, 1, 1})});

  EXPECT_THAT(message_of([&] { cpu.stream->synchronize(); }), HasSubstr("group[1] = 2, expected an index in [0, 2)"));
}

}  // namespace
}  // namespace gptqd
