#include <cmath>
#include <limits>

#include "kernels/embedding.hpp"
#include "tests/kernels/device_tensors.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Embedding : public OnDevice {
 protected:
  template <class T>
  Matrix<float> run(const std::vector<std::int32_t>& ids, const Matrix<T>& table, const Matrix<float>& before,
                    bool accumulate, std::int64_t gap = 0) {
    const auto numbers = upload(ids);
    const auto entries = upload(table, gap);
    const auto y = upload_rounded(before, gap);
    backend->embedding(*stream, {.ids = flat(numbers), .table = entries.view, .y = y.view, .accumulate = accumulate});
    return download(y);
  }
};

std::vector<std::int32_t> some_ids(std::int64_t tokens, std::int64_t entries) {
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) {
    ids.push_back(static_cast<std::int32_t>((t * 7919 + entries - 1) % entries));
  }
  return ids;
}

TEST_P(Embedding, TakesRows) {
  for (const auto& [tokens, entries, d] : std::vector<std::array<std::int64_t, 3>>{
           {1, 1, 1}, {63, 10, 65}, {1000, 157, 257}, {70, 10, 66}, {3, 2, 40000}}) {
    const auto table = normal(entries, d, 1);
    const auto ids = some_ids(tokens, entries);

    const auto got = run(ids, table, filled(tokens, d, std::nanf("")), false, 2);

    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t c = 0; c < d; ++c) {
        ASSERT_EQ(got(t, c), rounded(table(ids[static_cast<std::size_t>(t)], c)));
      }
    }
  }
}

TEST_P(Embedding, AddsRows) {
  const auto table = normal(20, 33, 1);
  const auto before = rounded(normal(50, 33, 2));
  const auto ids = some_ids(50, 20);

  const auto got = run(ids, table, before, true);

  for (std::int64_t t = 0; t < 50; ++t) {
    for (std::int64_t c = 0; c < 33; ++c) {
      ASSERT_EQ(got(t, c), rounded(before(t, c) + table(ids[static_cast<std::size_t>(t)], c)));
    }
  }
}

TEST_P(Embedding, TablesOfOtherTypes) {
  const auto table = normal(4, 37, 1);
  const auto halves = converted<Half>(table, to_half);
  const auto brains = converted<BFloat16>(table, to_bfloat16);
  const auto doubles = converted<double>(table, [](float value) { return static_cast<double>(value); });
  const std::vector<std::int32_t> ids{3, 0};
  const auto before = filled(2, 37, 0.0f);

  const auto from_halves = run(ids, halves, before, false);
  const auto from_brains = run(ids, brains, before, true);
  const auto from_doubles = run(ids, doubles, before, false);

  for (std::int64_t t = 0; t < 2; ++t) {
    for (std::int64_t c = 0; c < 37; ++c) {
      const auto id = ids[static_cast<std::size_t>(t)];
      ASSERT_EQ(from_halves(t, c), rounded(to_float(halves(id, c))));
      ASSERT_EQ(from_brains(t, c), rounded(to_float(brains(id, c))));
      ASSERT_EQ(from_doubles(t, c), rounded(table(id, c)));
    }
  }
}

TEST_P(Embedding, AnIdOutsideTheTableIsThrownByTheStream) {
  for (const std::int32_t id : {-1, 20, std::numeric_limits<std::int32_t>::max()}) {
    auto ids = some_ids(5000, 20);
    ids[3000] = id;
    ids[4000] = -5;
    stream = backend->create_stream();

    EXPECT_THAT(error_message([&] { run(ids, normal(20, 33, 1), filled(5000, 33, 0.0f), false); }),
                AllOf(HasSubstr(fmt::format("id {} of token 3000", id)), HasSubstr("20 entries")));
  }
}

TEST_P(Embedding, RefusesWhatDoesNotFit) {
  EXPECT_THAT(error_message([&] {
                run({0, 1}, normal(3, 4, 1), filled(2, 5, 0.0f), false);
              }),
              AllOf(HasSubstr("y is [2, 5]"), HasSubstr("expected [2, 4]")));
  EXPECT_THAT(error_message([&] {
                run({0, 1}, Matrix<std::int32_t>(3, 4), filled(2, 4, 0.0f), false);
              }),
              AllOf(HasSubstr("table is I32"), HasSubstr("F16")));
}

INSTANTIATE_TEST_SUITE_P(, Embedding, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
