// The primitives that the spec is written over, of the CPU's Team and of the shuffled one, against plain loops.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "plain_team.h"
#include "random.h"

using namespace gimbal::spec;
using gimbal::test::base_seed;
using gimbal::test::over_teams;
using gimbal::test::Random;

namespace {

template <class T>
void check_max(Random& random, i32 count) {
  // Near both ends of the type, and many equals.
  std::vector<T> values(static_cast<size_t>(count));
  const int manner = random.below(3);
  for (T& v : values) {
    const T bits = static_cast<T>(random.bits());
    v = manner == 0 ? bits : manner == 1 ? static_cast<T>(std::numeric_limits<T>::lowest() + (bits & 3)) : static_cast<T>(bits & 1);
  }
  over_teams(0, [&](auto& team, const std::string& name) {
    INFO(name);
    const T* const v = values.data();
    REQUIRE(team.max(count, [=](i32 i) { return v[i]; }) == *std::max_element(values.begin(), values.end()));
  });
}

// Where the least stands first.
Best least_of(const std::vector<i32>& scores) {
  const auto at = std::min_element(scores.begin(), scores.end());
  return {*at, static_cast<i32>(at - scores.begin())};
}

std::vector<i32> draw_scores(Random& random, i32 count) {
  std::vector<i32> scores(static_cast<size_t>(count));
  const i32 bits = random.between(0, 30);  // few bits: many equals
  for (i32& s : scores) s = static_cast<i32>(random.any_magnitude(bits)) - (1 << 20);
  return scores;
}

}  // namespace

TEST_CASE("team: max and sum are those of the whole range, in the type that the values have") {
  Random random(40);
  INFO("seed " << base_seed());
  for (int n = 0; n < 200; ++n) {
    const i32 count = random.between(1, 150);
    check_max<i32>(random, count);
    check_max<i64>(random, count);
    check_max<u32>(random, count);
    std::vector<i64> values(static_cast<size_t>(count));
    for (i64& v : values) v = static_cast<i64>(random.any_magnitude(50)) - (i64{1} << 40);
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      REQUIRE(team.sum(count, [&](i32 i) { return values[static_cast<size_t>(i)]; }) ==
              std::accumulate(values.begin(), values.end(), i64{0}));
    });
  }
  over_teams(0, [](auto& team, const std::string&) {
    REQUIRE(team.sum(0, [](i32) { return i64{1}; }) == 0);
  });
}

TEST_CASE("team: the least candidate is the first of its equals, in one range, in planes and in rows") {
  Random random(41);
  INFO("seed " << base_seed());
  for (int n = 0; n < 150; ++n) {
    const i32 planes = random.between(1, 4), rows = random.between(1, 9), columns = random.between(1, 150);
    const std::vector<i32> scores = draw_scores(random, planes * rows * columns);
    const i32* const s = scores.data();
    const i32 plane = rows * columns;
    over_teams(static_cast<size_t>(planes * plane + columns), [&](auto& team, const std::string& name) {
      INFO(name);
      const Best one = team.argmin(planes * plane, [=](i32 i) { return s[i]; });
      const Best three = team.argmin3(planes, rows, columns, [=](i32 p, i32 r, i32 c) { return s[p * plane + r * columns + c]; });
      const Best expected = least_of(scores);
      REQUIRE(one.score == expected.score);
      REQUIRE(one.index == expected.index);
      REQUIRE(three.score == expected.score);
      REQUIRE(three.index == expected.index);
      std::vector<Best> by_row(static_cast<size_t>(planes * rows), Best{0, -7});
      team.min_rows(planes * rows, columns, [=](i32 r, i32 c) { return s[r * columns + c]; },
                    [&](i32 r, Best least) {
                      REQUIRE(by_row[static_cast<size_t>(r)].index == -7);  // once for each row
                      by_row[static_cast<size_t>(r)] = least;
                    });
      for (i32 r = 0; r < planes * rows; ++r) {
        const Best least = least_of(std::vector<i32>(s + r * columns, s + (r + 1) * columns));
        REQUIRE(by_row[static_cast<size_t>(r)].score == least.score);
        REQUIRE(by_row[static_cast<size_t>(r)].index == least.index);
      }
    });
  }
}

TEST_CASE("team: loops visit every index once, and the depths of a cell in order") {
  Random random(42);
  INFO("seed " << base_seed());
  for (int n = 0; n < 100; ++n) {
    const i32 rows = random.between(0, 6), depth = random.between(0, 9), columns = random.between(1, 40);
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      std::vector<i32> depths(static_cast<size_t>(rows * columns), 0), twice = depths, once(static_cast<size_t>(columns), 0);
      team.for_each3(rows, depth, columns, [&](i32 r, i32 d, i32 c) { REQUIRE(depths[static_cast<size_t>(r * columns + c)]++ == d); });
      for (i32 d : depths) REQUIRE(d == depth);
      team.for_each2(rows, columns, [&](i32 r, i32 c) { ++twice[static_cast<size_t>(r * columns + c)]; });
      team.for_each2(rows, columns, [&](i32 r, i32 c) { twice[static_cast<size_t>(r * columns + c)] += 10; },
                     [&](i32 r, i32 c) { twice[static_cast<size_t>(r * columns + c)] += 100; });
      for (i32 visits : twice) REQUIRE(visits == 111);
      team.for_each(columns, [&](i32 c) { ++once[static_cast<size_t>(c)]; });
      team.for_each_shared(columns, [&](i32 c) { ++once[static_cast<size_t>(c)]; });
      for (i32 visits : once) REQUIRE(visits == 2);
      std::vector<i32> copied(static_cast<size_t>(rows * columns), 0);
      team.copy(rows * columns, static_cast<const i32*>(depths.data()), copied.data());
      REQUIRE(copied == depths);
    });
  }
}

TEST_CASE("team: totals are those of each row that is wanted, and of no other") {
  Random random(43);
  INFO("seed " << base_seed());
  for (int n = 0; n < 100; ++n) {
    const i32 rows = random.between(1, 40), columns = random.between(1, 100);
    std::vector<RowTotals> cells(static_cast<size_t>(rows * columns));
    for (RowTotals& c : cells) c = {random.below(1 << 20), random.below(3), random.below(2001) - 1000};
    std::vector<bool> wanted(static_cast<size_t>(rows));
    for (size_t r = 0; r < wanted.size(); ++r) wanted[r] = random.below(3) == 0;
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      std::vector<i32> calls(static_cast<size_t>(rows), 0);
      team.total_rows(
          rows, columns, [&](i32 r) { return static_cast<bool>(wanted[static_cast<size_t>(r)]); },
          [&](i32 r, i32 c) { return cells[static_cast<size_t>(r * columns + c)]; },
          [&](i32 r, RowTotals totals) {
            ++calls[static_cast<size_t>(r)];
            RowTotals expected{0, 0, 0};
            for (i32 c = 0; c < columns; ++c) expected = joined(expected, cells[static_cast<size_t>(r * columns + c)]);
            REQUIRE(totals.first_max == expected.first_max);
            REQUIRE(totals.second_max == expected.second_max);
            REQUIRE(totals.sum == expected.sum);
          });
      for (size_t r = 0; r < wanted.size(); ++r) REQUIRE(calls[r] == (wanted[r] ? 1 : 0));
    });
  }
}

TEST_CASE("team: alone, one has a Team for what comes one after the other") {
  over_teams(64, [](auto& team, const std::string& name) {
    INFO(name);
    i32 calls = 0;
    team.solo([&](auto& one) {
      ++calls;
      REQUIRE(one.argmin(40, [](i32 i) { return i == 17 ? -1 : 0; }).index == 17);
    });
    REQUIRE(calls == 1);
  });
}

TEST_CASE("team: add gives every caller another ticket") {
  over_teams(0, [](auto& team, const std::string& name) {
    INFO(name);
    using Team = std::decay_t<decltype(team)>;
    i32 counter = 5;
    i64 wide = 0;
    std::vector<i32> taken(30, 0);
    team.for_each_shared(30, [&](i32) {
      ++taken[static_cast<size_t>(Team::add(&counter, 1) - 5)];
      Team::add(&wide, i64{1} << 40);
    });
    REQUIRE(counter == 35);
    REQUIRE(wide == i64{30} << 40);
    for (i32 n : taken) REQUIRE(n == 1);
    const std::vector<i32> ids = {2, 0, 2, 2, 1, 0};
    std::vector<i32> counters = {10, 20, 30};
    team.tally(6, ids.data(), counters.data());
    REQUIRE(counters == std::vector<i32>{12, 21, 33});
  });
}
