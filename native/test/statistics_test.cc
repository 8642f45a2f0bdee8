// The routing statistics against lists of all that was counted, summed anew by the definitions.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../model/statistics.h"
#include "../spec/random.h"
#include "random.h"

namespace gimbal {
namespace {

constexpr int32_t kLayers = 3, kSources = 4, kExperts = 10, kCells = kLayers * kSources * kExperts;
constexpr int64_t kNoPrior = 0;

// One token's pairs, or what came summed.
struct Seen {
  uint64_t token;
  int32_t source;
  std::vector<uint32_t> pairs;  // [layers][experts]
};

struct Course {
  StatisticsOptions options;
  RoutingStatistics statistics;
  std::vector<Seen> seen;
  uint64_t tokens = 0;

  Course(bool fades, int64_t window_tokens)
      : options{kLayers, kSources, kExperts, fades, window_tokens}, statistics(options) {}

  template <class Id>
  void observe(test::Random* random, int64_t count, int32_t k) {
    const int32_t source = random->below(kSources);
    std::vector<Id> choices;
    for (int64_t t = 0; t < count; ++t) {
      Seen one{tokens++, source, std::vector<uint32_t>(kLayers * kExperts)};
      for (int32_t i = 0; i < kLayers * k; ++i) {
        choices.push_back(static_cast<Id>(random->below(kExperts)));
        ++one.pairs[static_cast<size_t>(i / k * kExperts + choices.back())];
      }
      seen.push_back(one);
    }
    CHECK(statistics.observe(source, choices.data(), count, k) == -1);
  }

  void push(test::Random* random, int32_t most, int32_t k) {
    Seen one{0, random->below(kSources), {}};
    uint64_t passed = 0;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      uint64_t sum = 0;
      for (int32_t e = 0; e < kExperts; ++e) {
        one.pairs.push_back(static_cast<uint32_t>(random->below(most)));
        sum += one.pairs.back();
      }
      passed = std::max(passed, (sum + static_cast<uint64_t>(k) - 1) / static_cast<uint64_t>(k));
    }
    CHECK(statistics.observe_counts(one.source, 1, one.pairs.data(), k) == -1);
    if (passed == 0) return;
    tokens += passed;
    one.token = tokens - 1;
    seen.push_back(one);
  }

  void random_step(test::Random* random) {
    const int32_t k = random->between(1, 4);
    switch (random->below(4)) {
      case 0: return observe<uint8_t>(random, random->below(40), k);
      case 1: return observe<uint16_t>(random, random->below(3), k);
      case 2: return push(random, random->below(3) == 0 ? 200 : 3, k);
      default: return observe<uint8_t>(random, 1, k);
    }
  }

  // [layers][sources][experts]: all pairs, each by the weight of its token.
  template <class Weight>
  std::vector<double> sums(const Weight& weight) const {
    std::vector<double> sums(kCells);
    for (const Seen& one : seen) {
      for (int32_t i = 0; i < kLayers * kExperts; ++i) {
        const int32_t cell = (i / kExperts * kSources + one.source) * kExperts + i % kExperts;
        sums[static_cast<size_t>(cell)] += weight(one.token) * one.pairs[static_cast<size_t>(i)];
      }
    }
    return sums;
  }
};

std::vector<uint32_t> counts_of(const RoutingStatistics& statistics, int64_t prior_tokens) {
  std::vector<uint32_t> counts(kCells);
  CHECK(statistics.counts(prior_tokens, counts.data()) == -1);
  return counts;
}

std::vector<uint8_t> snapshot_of(const RoutingStatistics& statistics) {
  std::vector<uint8_t> bytes(statistics.snapshot_bytes());
  statistics.snapshot(bytes.data());
  return bytes;
}

TEST_CASE("statistics: the weights of ticks are powers of two, rounded") {
  constexpr spec::WeightTable kTable = spec::make_weight_table();
  for (int i = 0; i < spec::kTicks; ++i) CHECK(kTable.of[i] == std::llround(std::exp2(16 + i / 64.0)));
}

TEST_CASE("statistics: a sliding window holds the tokens of its buckets and no others") {
  for (int64_t window : {16, 17, 100, 1000}) {
    CAPTURE(window);
    INFO("seed " << test::base_seed());
    test::Random random(static_cast<uint64_t>(window));
    Course course(false, window);
    const uint64_t bucket = static_cast<uint64_t>(window + 15) / 16;
    for (int step = 0; step < 200; ++step) {
      course.random_step(&random);
      if (course.tokens == 0) continue;
      const uint64_t newest = (course.tokens - 1) / bucket;
      const auto sums = course.sums([&](uint64_t token) { return token / bucket + 16 > newest ? 1.0 : 0.0; });
      const auto counts = counts_of(course.statistics, kNoPrior);
      REQUIRE(std::equal(counts.begin(), counts.end(), sums.begin()));
    }
  }
}

TEST_CASE("statistics: a fading window weighs tokens by their age in ticks, to 2^-15 of a pair and of the sum") {
  for (int64_t half_life : {4, 50, 64, 1000}) {
    CAPTURE(half_life);
    INFO("seed " << test::base_seed());
    test::Random random(static_cast<uint64_t>(half_life) + 7);
    Course course(true, half_life);
    for (int step = 0; step < 300; ++step) {
      course.random_step(&random);
      if (course.tokens == 0 || step % 5 != 0) continue;
      const auto tick = [&](uint64_t token) { return static_cast<double>(token * 64 / static_cast<uint64_t>(half_life)); };
      const double now = tick(course.tokens - 1);
      const auto by_tick = course.sums([&](uint64_t token) { return std::exp2((tick(token) - now) / 64); });
      const auto exact = course.sums([&](uint64_t token) {
        return std::exp2(-static_cast<double>(course.tokens - 1 - token) / static_cast<double>(half_life));
      });
      const auto counts = counts_of(course.statistics, kNoPrior);
      for (size_t i = 0; i < counts.size(); ++i) {
        // Half a pair for rounding to whole ones, 1/256 for the step before.
        REQUIRE(std::abs(counts[i] - by_tick[i]) <= 0.5 + 0.004 + (1 + by_tick[i]) / 32768);
        REQUIRE(by_tick[i] <= exact[i] * std::exp2(1 / 64.0) + 1e-9);
        REQUIRE(by_tick[i] >= exact[i] * std::exp2(-1 / 64.0) - 1e-9);
      }
    }
  }
}

TEST_CASE("statistics: how tokens come in calls changes nothing") {
  for (bool fades : {false, true}) {
    test::Random random(3);
    RoutingStatistics whole({kLayers, kSources, kExperts, fades, 90}), parts({kLayers, kSources, kExperts, fades, 90});
    for (int step = 0; step < 50; ++step) {
      const int32_t tokens = random.below(300), source = random.below(kSources);
      std::vector<uint8_t> choices(static_cast<size_t>(tokens) * kLayers * 2);
      for (uint8_t& id : choices) id = static_cast<uint8_t>(random.below(kExperts));
      whole.observe(source, choices.data(), tokens, 2);
      for (int32_t at = 0; at < tokens;) {
        const int32_t some = std::min(tokens - at, random.between(1, 50));
        parts.observe(source, choices.data() + at * kLayers * 2, some, 2);
        at += some;
      }
      REQUIRE(snapshot_of(whole) == snapshot_of(parts));
    }
  }
}

TEST_CASE("statistics: what is refused leaves everything as it was") {
  test::Random random(4);
  Course course(true, 100);
  for (int step = 0; step < 50; ++step) course.random_step(&random);
  const auto before = snapshot_of(course.statistics);
  std::vector<uint16_t> choices(5 * kLayers * 2, 3);
  choices[11] = kExperts;
  CHECK(course.statistics.observe(1, choices.data(), 5, 2) == 11);
  choices[20] = 9999;
  CHECK(course.statistics.observe(1, choices.data(), 5, 2) == 11);
  std::vector<uint32_t> pairs(kLayers * kExperts);
  pairs[13] = RoutingStatistics::kMostPushed;
  pairs[17] = 1;
  CHECK(course.statistics.observe_counts(1, 1, pairs.data(), 1) == 17);
  CHECK(snapshot_of(course.statistics) == before);
  pairs[17] = 0;
  CHECK(course.statistics.observe_counts(1, 1, pairs.data(), 1) == -1);
}

TEST_CASE("statistics: a table counts as its sources' parts do, all of one age") {
  test::Random random(5);
  std::vector<uint32_t> table(kCells);
  for (uint32_t& count : table) count = static_cast<uint32_t>(random.below(20));
  RoutingStatistics statistics({kLayers, kSources, kExperts, true, 10});
  CHECK(statistics.observe_counts(0, kSources, table.data(), 1) == -1);
  uint64_t passed = 0;
  for (int32_t s = 0; s < kSources; ++s) {
    int64_t fullest = 0;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const auto row = table.begin() + (layer * kSources + s) * kExperts;
      fullest = std::max(fullest, std::accumulate(row, row + kExperts, int64_t{0}));
    }
    passed += static_cast<uint64_t>(fullest);
  }
  CHECK(statistics.tokens_seen() == passed);
  CHECK(counts_of(statistics, kNoPrior) == table);
}

TEST_CASE("statistics: counts of 2^32 and more are refused when they are asked for, and never wrap") {
  uint32_t counts[2];
  RoutingStatistics fading({1, 1, 2, true, RoutingStatistics::kMostWindowTokens});
  // 2^26 tokens, half a half-life: in the end 2^31 / (1 - 2^-0.5) pairs.
  const uint32_t most[] = {static_cast<uint32_t>(RoutingStatistics::kMostPushed), 0};
  CHECK(fading.observe_counts(0, 1, most, 32) == -1);
  CHECK(fading.counts(0, counts) == -1);
  CHECK(counts[0] == most[0]);
  for (int n = 0; n < 100; ++n) CHECK(fading.observe_counts(0, 1, most, 32) == -1);
  CHECK(fading.counts(0, counts) == 0);

  // 2^25 tokens, a quarter of the window.
  RoutingStatistics sliding({1, 1, 2, false, RoutingStatistics::kMostWindowTokens});
  const uint32_t pairs[] = {0, uint32_t{1} << 30};
  for (int n = 0; n < 3; ++n) CHECK(sliding.observe_counts(0, 1, pairs, 32) == -1);
  CHECK(sliding.counts(0, counts) == -1);
  CHECK(counts[1] == 3u << 30);
  for (int n = 0; n < 100; ++n) CHECK(sliding.observe_counts(0, 1, pairs, 32) == -1);
  CHECK(sliding.counts(0, counts) == 1);
}

TEST_CASE("statistics: shrinkage follows its formula and keeps what an expert gets from all sources") {
  test::Random random(6);
  for (int round = 0; round < 50; ++round) {
    Course course(false, 100000);
    // A busy source, a thin one, and two that are silent at times.
    for (int step = random.below(30); step >= 0; --step) course.random_step(&random);
    const int64_t prior = random.below(500);
    std::vector<double> tokens(kLayers * kSources);
    course.statistics.tokens(tokens.data());
    const auto raw = counts_of(course.statistics, kNoPrior), shrunk = counts_of(course.statistics, prior);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      double mean_tokens = 0;
      for (int32_t s = 0; s < kSources; ++s) mean_tokens += tokens[static_cast<size_t>(layer * kSources + s)] / kSources;
      if (mean_tokens == 0) continue;
      const double z = mean_tokens / (mean_tokens + static_cast<double>(prior));
      for (int32_t e = 0; e < kExperts; ++e) {
        double mean = 0, sum = 0;
        const auto cell = [&](int32_t s) { return static_cast<size_t>((layer * kSources + s) * kExperts + e); };
        for (int32_t s = 0; s < kSources; ++s) mean += static_cast<double>(raw[cell(s)]) / kSources;
        for (int32_t s = 0; s < kSources; ++s) {
          CHECK(std::abs(shrunk[cell(s)] - (z * raw[cell(s)] + (1 - z) * mean)) <= 0.52);
          sum += shrunk[cell(s)];
        }
        CHECK(std::abs(sum - mean * kSources) <= 0.52 * kSources);
      }
    }
  }
}

TEST_CASE("statistics: a forgotten source leaves the others alone") {
  test::Random random(8);
  for (bool fades : {false, true}) {
    Course course(fades, 200);
    for (int step = 0; step < 60; ++step) course.random_step(&random);
    // So that every bucket has something of it.
    const std::vector<uint8_t> choices(300 * kLayers, 1);
    course.statistics.observe(2, choices.data(), 300, 1);
    auto expected = counts_of(course.statistics, kNoPrior);
    for (int32_t layer = 0; layer < kLayers; ++layer) std::fill_n(expected.begin() + (layer * kSources + 2) * kExperts, kExperts, 0u);
    course.statistics.reset(2);
    CHECK(counts_of(course.statistics, kNoPrior) == expected);
    // Nor is it taken out of the window a second time, later.
    std::vector<double> buckets(15 * kLayers * kExperts, -1);
    const int32_t whole = course.statistics.whole_buckets(2, buckets.data());
    CHECK(whole == 15);
    CHECK(std::count(buckets.begin(), buckets.end(), 0.0) == static_cast<int64_t>(buckets.size()));
    course.statistics.observe(0, choices.data(), 300, 1);
    std::vector<double> tokens(kLayers * kSources);
    course.statistics.tokens(tokens.data());
    for (size_t at = 2; at < tokens.size(); at += kSources) CHECK(tokens[at] == 0);
    course.statistics.reset(-1);
    CHECK(snapshot_of(course.statistics) == snapshot_of(RoutingStatistics(course.options)));
  }
}

TEST_CASE("statistics: whole buckets are the last ones, oldest first, and none that is begun") {
  RoutingStatistics statistics({1, 2, 20, false, 160});
  std::vector<double> buckets(15 * 20);
  for (int32_t n = 0; n < 18; ++n) {
    // Bucket n: ten tokens of expert n.
    const std::vector<uint8_t> choices(10, static_cast<uint8_t>(n));
    statistics.observe(n % 2, choices.data(), 9, 1);
    CHECK(statistics.whole_buckets(-1, buckets.data()) == std::min(n, 15));
    statistics.observe(n % 2, choices.data(), 1, 1);
    const int32_t whole = statistics.whole_buckets(-1, buckets.data());
    CHECK(whole == std::min(n + 1, 15));
    for (int32_t i = 0; i < whole * 20; ++i) CHECK(buckets[static_cast<size_t>(i)] == (i % 20 == n + 1 - whole + i / 20 ? 10 : 0));
  }
  CHECK(statistics.whole_buckets(1, buckets.data()) == 15);
  CHECK(buckets[3] == 10);       // the oldest is the fourth
  CHECK(buckets[20 + 4] == 0);  // which the other source sent
}

TEST_CASE("statistics: a snapshot goes on as the original does; a changed one is refused") {
  test::Random random(9);
  for (bool fades : {false, true}) {
    Course course(fades, 120);
    for (int step = 0; step < 80; ++step) course.random_step(&random);
    auto bytes = snapshot_of(course.statistics);
    RoutingStatistics restored(course.options);
    REQUIRE(restored.restore(bytes.data(), bytes.size()) == RestoreFailure::kNone);
    CHECK(snapshot_of(restored) == bytes);
    const auto go_on = [&](RoutingStatistics* statistics) {
      const std::vector<uint8_t> choices(100 * kLayers, 7);
      statistics->observe(0, choices.data(), 100, 1);
      return counts_of(*statistics, 20);
    };
    CHECK(go_on(&restored) == go_on(&course.statistics));
    // At every place within ticks and buckets.
    for (int n = 0; n < 40; ++n) {
      const std::vector<uint8_t> choices(kLayers, 3);
      course.statistics.observe(1, choices.data(), 1, 1);
      bytes = snapshot_of(course.statistics);
      REQUIRE(restored.restore(bytes.data(), bytes.size()) == RestoreFailure::kNone);
      REQUIRE(counts_of(restored, 0) == counts_of(course.statistics, 0));
      REQUIRE(snapshot_of(restored) == bytes);
    }
    const auto unchanged = snapshot_of(restored);
    for (int n = 0; n < 300; ++n) {
      const size_t at = n < 80 ? static_cast<size_t>(n) : static_cast<size_t>(random.below(static_cast<int32_t>(bytes.size())));
      const uint8_t was = bytes[at];
      bytes[at] ^= static_cast<uint8_t>(1 << random.below(8));
      CHECK(restored.restore(bytes.data(), bytes.size()) != RestoreFailure::kNone);
      bytes[at] = was;
    }
    for (size_t size : {size_t{0}, size_t{63}, bytes.size() - 1}) CHECK(restored.restore(bytes.data(), size) != RestoreFailure::kNone);
    CHECK(snapshot_of(restored) == unchanged);
  }
}

// As the format has it: words of 8 bytes, and what is left with the length.
void sign(std::vector<uint8_t>* bytes) {
  const size_t size = bytes->size() - 8;
  const auto word = [&](size_t at, size_t count) {
    uint64_t value = 0;
    for (size_t i = 0; i < count; ++i) value |= static_cast<uint64_t>((*bytes)[at + i]) << (8 * i);
    return value;
  };
  uint64_t hash = 0x54534D47;
  size_t at = 0;
  for (; at + 8 <= size; at += 8) hash = spec::mix64(hash ^ word(at, 8));
  hash = spec::mix64(hash ^ word(at, size - at) ^ size);
  for (size_t i = 0; i < 8; ++i) (*bytes)[size + i] = static_cast<uint8_t>(hash >> (8 * i));
}

TEST_CASE("statistics: a snapshot that is made up is refused where it would break the arithmetic") {
  test::Random random(10);
  Course course(true, 120);
  for (int step = 0; step < 80; ++step) course.random_step(&random);
  const auto bytes = snapshot_of(course.statistics);
  const auto restored_with = [&](size_t at, uint64_t value) {
    auto changed = bytes;
    for (size_t i = 0; i < 8; ++i) changed[at + i] = static_cast<uint8_t>(value >> (8 * i));
    sign(&changed);
    RoutingStatistics statistics(course.options);
    return statistics.restore(changed.data(), changed.size());
  };
  const size_t seen = 32, opened = 40, halvings = 48, reserved = 56, last_sum = bytes.size() - 16;
  CHECK(restored_with(seen, course.tokens) == RestoreFailure::kNone);  // as it was: the signature is right
  CHECK(restored_with(seen, course.tokens + 1000) == RestoreFailure::kContent);
  CHECK(restored_with(seen, uint64_t{1} << 60) == RestoreFailure::kContent);
  CHECK(restored_with(opened, 0) == RestoreFailure::kContent);
  CHECK(restored_with(halvings, course.tokens) == RestoreFailure::kContent);
  CHECK(restored_with(halvings, 0) == (course.tokens > 8 * 120 ? RestoreFailure::kContent : RestoreFailure::kNone));
  CHECK(restored_with(reserved, 1) == RestoreFailure::kContent);
  CHECK(restored_with(last_sum, (uint64_t{1} << 59) - 1) == RestoreFailure::kNone);
  CHECK(restored_with(last_sum, uint64_t{1} << 59) == RestoreFailure::kContent);
}

}  // namespace
}  // namespace gimbal
