#include <gmock/gmock.h>

#include <functional>
#include <ostream>
#include <utility>
#include <vector>

#include "io/python_random.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

template <class T>
std::vector<T> draw(int count, const std::function<T()>& next) {
  std::vector<T> values;
  for (int i = 0; i < count; ++i) {
    values.push_back(next());
  }
  return values;
}

/// What `python3 -c "import random; random.seed(seed); ..."` prints (CPython 3.11).
struct Expected {
  std::uint64_t seed;
  std::vector<std::uint64_t> words;  // getrandbits(32), ten times
  std::vector<std::int64_t> starts;  // randint(0, 651838 - 512 - 1), ten times

  friend void PrintTo(const Expected& expected, std::ostream* out) { *out << "seed " << expected.seed; }
};

class PythonRandomSeed : public testing::TestWithParam<Expected> {};

TEST_P(PythonRandomSeed, GivesPythonsWords) {
  PythonRandom random(GetParam().seed);

  const auto got = draw<std::uint64_t>(10, [&] { return random.getrandbits(32); });

  EXPECT_THAT(got, ElementsAreArray(GetParam().words));
}

TEST_P(PythonRandomSeed, GivesPythonsRandint) {
  PythonRandom random(GetParam().seed);

  const auto got = draw<std::int64_t>(10, [&] { return random.randint(0, 651838 - 512 - 1); });

  EXPECT_THAT(got, ElementsAreArray(GetParam().starts));
}

INSTANTIATE_TEST_SUITE_P(
    , PythonRandomSeed,
    testing::Values(Expected{0,
                             {3626764237, 1654615998, 3255389356, 3823568514, 1806341205, 173879092, 1112038970,
                              4146640122, 2195908194, 2087043557},
                             {403958, 441001, 42450, 271493, 536110, 509532, 424604, 318046, 499748, 375441}},
                    Expected{1,
                             {577090037, 2444712010, 3639700191, 3445702192, 3280387012, 271041745, 1095513148,
                              506456969, 2127877499, 3268308804},
                             {140891, 596853, 66172, 267459, 123646, 519501, 471325, 495185, 398055, 220153}},
                    Expected{std::uint64_t{1} << 40,
                             {445128065, 1517081360, 2880015531, 282029048, 1832466665, 208659080, 1665290981,
                              1714308564, 2690737890, 2407100149},
                             {108673, 370381, 68854, 447379, 50942, 406565, 418532, 587670, 81671, 411885}},
                    Expected{~std::uint64_t{0},
                             {93740670, 1068495656, 1452108352, 2657516307, 910393425, 1958779474, 2641946051,
                              408097150, 3949527284, 3868957638},
                             {22885, 260863, 354518, 648807, 222264, 478217, 645006, 99633, 389068, 56993}}));

TEST(PythonRandom, GivesPythonsBitsOfAnyWidth) {
  PythonRandom random(1);
  std::vector<std::uint64_t> got;

  for (const int bits : {1, 7, 31, 32, 33, 53, 64, 64, 0, 5}) {
    got.push_back(random.getrandbits(bits));
  }

  EXPECT_THAT(got, ElementsAre(0u, 72u, 1819850095u, 3445702192u, 3280387012u, 1062116443042876u, 14037279428536751483u,
                               8711387064946514083u, 0u, 20u));
}

TEST(PythonRandom, GivesPythonsRangesWithNegativeEnds) {
  PythonRandom random(0);

  const auto small = draw<std::int64_t>(10, [&] { return random.randrange(-5, 5); });
  const auto single = random.randrange(7, 8);
  const auto wide = random.randrange(0, std::int64_t{1} << 40);

  EXPECT_THAT(small, ElementsAre(1, 1, -5, -1, 3, 2, 1, -1, 2, 0));
  EXPECT_EQ(single, 7);
  EXPECT_EQ(wide, 307110291574);
}

TEST(PythonRandom, RefusesRangesThatPythonRefusesOrWeCannotHold) {
  PythonRandom random(0);

  EXPECT_THROW(random.randrange(3, 3), Error);
  EXPECT_THROW(random.randrange(4, 3), Error);
  EXPECT_THROW(random.randint(0, INT64_MAX), Error);
  EXPECT_THROW(random.randrange(INT64_MIN, INT64_MAX), Error);
  EXPECT_THROW(random.getrandbits(65), Error);
  EXPECT_THROW(random.getrandbits(-1), Error);
}

}  // namespace
}  // namespace gptqd::io
