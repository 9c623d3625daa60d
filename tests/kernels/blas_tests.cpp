#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/base/error.hpp"
#include "kernels/cpu/blas.hpp"

namespace gptqd::blas {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

template <class T>
class BlasOf : public ::testing::Test {
 protected:
  void SetUp() override { set_single_threaded(); }
};
using Reals = ::testing::Types<float, double>;
TYPED_TEST_SUITE(BlasOf, Reals);

// A = [1 2; 3 4; 5 6] with one unused column, B = [1 0 2; 0 1 3].
template <class T>
const std::vector<T> a{1, 2, -9, 3, 4, -9, 5, 6, -9};
template <class T>
const std::vector<T> b{1, 0, 2, 0, 1, 3};

TYPED_TEST(BlasOf, GemmIsRowMajorWithStrides) {
  std::vector<TypeParam> c(9, 1);

  gemm(Op::none, Op::none, 3, 3, 2, TypeParam{1}, a<TypeParam>.data(), 3, b<TypeParam>.data(), 3, TypeParam{1},
       c.data(), 3);

  EXPECT_EQ(c, (std::vector<TypeParam>{2, 3, 9, 4, 5, 19, 6, 7, 29}));
}

TYPED_TEST(BlasOf, GemmTransposes) {
  std::vector<TypeParam> c(9, std::numeric_limits<TypeParam>::quiet_NaN());

  // (Bᵀ)·(Aᵀ), without reading what is in C.
  gemm(Op::transpose, Op::transpose, 3, 3, 2, TypeParam{2}, b<TypeParam>.data(), 3, a<TypeParam>.data(), 3,
       TypeParam{0}, c.data(), 3);

  EXPECT_EQ(c, (std::vector<TypeParam>{2, 6, 10, 4, 8, 12, 16, 36, 56}));
}

TYPED_TEST(BlasOf, SyrkFillsOneTriangle) {
  std::vector<TypeParam> lower(4, 7);
  std::vector<TypeParam> upper(4, 7);

  syrk(Triangle::lower, Op::transpose, 2, 3, TypeParam{1}, a<TypeParam>.data(), 3, TypeParam{0}, lower.data(), 2);
  syrk(Triangle::upper, Op::transpose, 2, 3, TypeParam{1}, a<TypeParam>.data(), 3, TypeParam{1}, upper.data(), 2);

  EXPECT_EQ(lower, (std::vector<TypeParam>{35, 7, 44, 56}));
  EXPECT_EQ(upper, (std::vector<TypeParam>{42, 51, 7, 63}));
}

TYPED_TEST(BlasOf, TrsmSolvesFromTheRight) {
  const std::vector<TypeParam> l{2, 99, 1, 4};  // lower; 99 is not read
  std::vector<TypeParam> x{6, 8, 4, 4};

  trsm(Side::right, Triangle::lower, Op::transpose, 2, 2, TypeParam{1}, l.data(), 2, x.data(), 2);

  // x·Lᵀ is what was there: row 0 [3, 1.25], row 1 [2, 0.5].
  EXPECT_EQ(x, (std::vector<TypeParam>{3, 1.25, 2, 0.5}));
}

TYPED_TEST(BlasOf, PotrfFactorsTheNamedTriangle) {
  std::vector<TypeParam> lower{4, 99, 2, 10};
  std::vector<TypeParam> upper{4, 2, 99, 10};

  EXPECT_EQ(potrf(Triangle::lower, 2, lower.data(), 2), 0);
  EXPECT_EQ(potrf(Triangle::upper, 2, upper.data(), 2), 0);

  EXPECT_EQ(lower, (std::vector<TypeParam>{2, 99, 1, 3}));
  EXPECT_EQ(upper, (std::vector<TypeParam>{2, 1, 99, 3}));
}

TYPED_TEST(BlasOf, PotrfNamesTheMinorThatIsNotPositive) {
  std::vector<TypeParam> h{1, 0, 0, 0, 1, 0, 0, 0, -1};

  EXPECT_EQ(potrf(Triangle::lower, 3, h.data(), 3), 3);
}

TYPED_TEST(BlasOf, TrtriAndPotriInvert) {
  std::vector<TypeParam> l{2, 99, 1, 4};
  std::vector<TypeParam> factor{2, 99, 1, 4};

  EXPECT_EQ(trtri(Triangle::lower, 2, l.data(), 2), 0);
  EXPECT_EQ(potri(Triangle::lower, 2, factor.data(), 2), 0);

  EXPECT_EQ(l, (std::vector<TypeParam>{0.5, 99, -0.125, 0.25}));
  // (L·Lᵀ)⁻¹ = L⁻ᵀ·L⁻¹ = [0.265625 -0.03125; -0.03125 0.0625].
  EXPECT_EQ(factor, (std::vector<TypeParam>{0.265625, 99, -0.03125, 0.0625}));
}

TYPED_TEST(BlasOf, EmptySizesAreFine) {
  gemm(Op::none, Op::transpose, 0, 0, 0, TypeParam{1}, static_cast<const TypeParam*>(nullptr), 0, nullptr, 0,
       TypeParam{0}, nullptr, 0);
  EXPECT_EQ(potrf(Triangle::lower, 0, static_cast<TypeParam*>(nullptr), 0), 0);
}

TYPED_TEST(BlasOf, SizesThatDoNotFitAreRefused) {
  const std::int64_t huge = std::int64_t{1} << 31;
  TypeParam one = 1;

  try {
    gemm(Op::none, Op::none, huge, 1, 1, TypeParam{1}, &one, 1, &one, 1, TypeParam{0}, &one, 1);
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), HasSubstr("2147483648"));
  }
  EXPECT_THROW(potrf(Triangle::lower, -1, &one, 1), Error);
  EXPECT_THROW(trtri(Triangle::lower, huge, &one, huge), Error);
}

TEST(BlasDescription, NamesVersionAndKernels) {
  EXPECT_THAT(blas_description(), MatchesRegex("openblas [0-9.]+[^ ]* [A-Za-z0-9_]+"));
}

TEST(ChooseBlasKernels, LeavesAnEnvironmentThatNamesThemAlone) {
  const std::string before = blas_description();
  char* arguments[] = {nullptr};
  ASSERT_EQ(setenv("OPENBLAS_CORETYPE", "Haswell", /*overwrite=*/0), 0);

  choose_blas_kernels(arguments);  // would start this program again

  EXPECT_EQ(blas_description(), before);
}

}  // namespace
}  // namespace gptqd::blas
