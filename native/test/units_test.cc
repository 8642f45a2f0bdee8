// Fixed point, the random stream, and the potential: each against wider or floating arithmetic.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "../spec/order.h"
#include "../spec/potential.h"
#include "../spec/random.h"
#include "../spec/units.h"
#include "random.h"

using namespace gimbal::spec;
using gimbal::test::base_seed;
using gimbal::test::Random;

namespace {

u64 product_q31(u64 x, u64 q) { return static_cast<u64>(static_cast<unsigned __int128>(x) * q >> 31); }

}  // namespace

TEST_CASE("units: mul_q31 is the 128-bit product, rounded down") {
  Random random(1);
  INFO("seed " << base_seed());
  const std::vector<u32> factors = {0, 1, 2, kOneQ31 / 3, kOneQ31 / 2, kOneQ31 - 1, kOneQ31};
  const std::vector<u32> edges = {0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
  for (u32 q : factors) {
    for (u32 x : edges) REQUIRE(static_cast<u32>(mul_q31(static_cast<i32>(x), q)) == product_q31(x, q));
  }
  for (int n = 0; n < 200000; ++n) {
    const u32 x = static_cast<u32>(random.any_magnitude(32));
    const u32 q = static_cast<u32>(std::min<u64>(random.any_magnitude(32), kOneQ31));
    REQUIRE(static_cast<u32>(mul_q31(static_cast<i32>(x), q)) == product_q31(x, q));
  }
}

TEST_CASE("units: mul_q31_wide is the 128-bit product, rounded down, up to 2^62") {
  Random random(2);
  INFO("seed " << base_seed());
  const i64 most = (i64{1} << 62) - 1;
  const std::vector<i64> edges = {0, 1, kOneQ31 - 1, kOneQ31, i64{kOneQ31} + 1, most - 1, most};
  for (u32 q : {0u, 1u, kOneQ31 / 3, kOneQ31 - 1, kOneQ31}) {
    for (i64 x : edges) REQUIRE(static_cast<u64>(mul_q31_wide(x, q)) == product_q31(static_cast<u64>(x), q));
  }
  CHECK(mul_q31_wide(most, kOneQ31) == most);
  for (int n = 0; n < 200000; ++n) {
    const i64 x = static_cast<i64>(random.any_magnitude(62));
    const u32 q = static_cast<u32>(std::min<u64>(random.any_magnitude(32), kOneQ31));
    REQUIRE(static_cast<u64>(mul_q31_wide(x, q)) == product_q31(static_cast<u64>(x), q));
  }
}

TEST_CASE("units: shares never add up to more than the whole") {
  for (i32 replicas = 1; replicas <= 4096; ++replicas) {
    REQUIRE(u64{share_q31(replicas)} * static_cast<u64>(replicas) <= kOneQ31);
    REQUIRE(u64{share_q31(replicas) + 1} * static_cast<u64>(replicas) > kOneQ31);
  }
  CHECK(share_q31(1) == kOneQ31);
  CHECK(fine_share(10, 3) == 3);
  CHECK(fine_share(9, 3) == 3);
}

TEST_CASE("units: a fine share is the quotient, whatever the count") {
  Random random(6);
  INFO("seed " << base_seed());
  for (int n = 0; n < 20000; ++n) {
    const i64 total = static_cast<i64>(random.any_magnitude(62));
    const i32 replicas = random.between(1, random.between(1, 70000));
    REQUIRE(fine_share(total, replicas) == static_cast<i64>(static_cast<u64>(total) / static_cast<u64>(replicas)));
  }
  // Around multiples, where a quotient steps, and around the last count that has a reciprocal.
  for (i64 replicas = 1; replicas <= kReciprocals + 2; ++replicas) {
    for (int n = 0; n < 300; ++n) {
      const i64 multiple = static_cast<i64>(random.any_magnitude(61)) / replicas * replicas;
      for (i64 total : {multiple, multiple + 1, multiple + replicas - 1, std::max<i64>(multiple - 1, 0), (i64{1} << 62) - 1 - n}) {
        REQUIRE(fine_share(total, static_cast<i32>(replicas)) == total / replicas);
        REQUIRE(FineShare(static_cast<i32>(replicas)).of(total) == total / replicas);
      }
    }
  }
}

TEST_CASE("units: mul_high is the upper half of the product, in parts too") {
  Random random(7);
  INFO("seed " << base_seed());
  const auto check = [](u64 a, u64 b) {
    const u64 expected = static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64);
    REQUIRE(mul_high(a, b) == expected);
    REQUIRE(mul_high_of_parts(a, b) == expected);
  };
  const std::vector<u64> edges = {0, 1, 0xFFFFFFFFu, 0x100000000u, ~u64{0} - 1, ~u64{0}};
  for (u64 a : edges) {
    for (u64 b : edges) check(a, b);
  }
  for (int n = 0; n < 20000; ++n) check(random.any_magnitude(64), random.any_magnitude(64));
}

TEST_CASE("units: a divisor divides") {
  Random random(8);
  INFO("seed " << base_seed());
  for (i32 d = 1; d <= 70000; d = d < 300 ? d + 1 : d * 9 / 8) {
    const Divisor divisor(d);
    const i64 most = std::min<i64>(INT32_MAX, ((i64{1} << 32) - 1) / d);
    for (int n = 0; n < 60; ++n) {
      const i64 near = random.below(static_cast<i32>(most / d + 1)) * i64{d};
      for (i64 x : {near - 1, near, near + 1, most - n}) {
        if (x >= 0 && x <= most) REQUIRE(divisor.into(static_cast<i32>(x)) == x / d);
      }
    }
  }
}

TEST_CASE("units: least_value is the least of each type") {
  CHECK(least_value<i32>() == std::numeric_limits<i32>::lowest());
  CHECK(least_value<i64>() == std::numeric_limits<i64>::lowest());
  CHECK(least_value<u32>() == 0);
  CHECK(least_value<u64>() == 0);
  CHECK(least_value<u8>() == 0);
}

TEST_CASE("units: GPUs are padded to whole vectors") {
  for (i32 gpus = 1; gpus <= 100; ++gpus) {
    REQUIRE(padded_gpus(gpus) % 16 == 0);
    REQUIRE(padded_gpus(gpus) >= gpus);
    REQUIRE(padded_gpus(gpus) < gpus + 16);
  }
}

TEST_CASE("order: precedes is a strict total order, and an index below 0 comes last") {
  std::vector<Best> all;
  for (i32 score : {INT32_MIN, -1, 0, 5, INT32_MAX}) {
    for (i32 index : {0, 1, 7}) all.push_back({score, index});
  }
  for (const Best& a : all) {
    CHECK_FALSE(precedes(a, a));
    CHECK(precedes(a, {INT32_MIN, -1}));
    CHECK_FALSE(precedes({INT32_MIN, -1}, a));
    for (const Best& b : all) {
      const bool same = a.score == b.score && a.index == b.index;
      const int either = (precedes(a, b) ? 1 : 0) + (precedes(b, a) ? 1 : 0);
      REQUIRE(either == (same ? 0 : 1));
      for (const Best& c : all) {
        if (precedes(a, b) && precedes(b, c)) REQUIRE(precedes(a, c));
      }
    }
  }
  CHECK_FALSE(precedes({0, -1}, {1, -1}));
  CHECK(precedes({3, 9}, {4, 0}));  // the score before the id
  CHECK(precedes({3, 1}, {3, 2}));
}

TEST_CASE("random: log2 in Q16 is within two units of the real one, and exact at powers of two") {
  for (int bit = 0; bit < 63; ++bit) REQUIRE(log2_q16(u64{1} << bit) == (i64{bit} << 16));
  Random random(3);
  INFO("seed " << base_seed());
  double worst = 0;
  for (int n = 0; n < 100000; ++n) {
    const u64 x = std::max<u64>(1, random.any_magnitude(53));
    worst = std::max(worst, std::fabs(static_cast<double>(log2_q16(x)) - std::log2(static_cast<double>(x)) * 65536.0));
  }
  CHECK(worst < 2.0);
  for (u64 x = 1; x < 5000; ++x) REQUIRE(log2_q16(x + 1) >= log2_q16(x));
}

TEST_CASE("random: the noise table holds the quantiles of Exp(1)") {
  double sum = 0;
  for (i32 i = 0; i < kNoiseSize; ++i) {
    const double exact = -std::log((i + 0.5) / kNoiseSize) * (1 << kNoiseBits);
    REQUIRE(std::fabs(exponential_quantile(i) - exact) < 2.0);
    if (i > 0) REQUIRE(exponential_quantile(i) <= exponential_quantile(i - 1));
    sum += exponential_quantile(i);
  }
  CHECK(exponential_quantile(kNoiseSize - 1) >= 0);
  CHECK(sum / kNoiseSize / (1 << kNoiseBits) == doctest::Approx(1.0).epsilon(0.001));
}

TEST_CASE("random: below stays in its range, reaches both ends, and is even") {
  CHECK(below(0, 7) == 0);
  CHECK(below(0xFFFFFFFFu, 7) == 6);
  CHECK(below(0xFFFFFFFFu, INT32_MAX) == INT32_MAX - 1);
  CHECK(below(0xFFFFFFFFu, 1) == 0);
  Random random(4);
  INFO("seed " << base_seed());
  std::vector<int> counts(13, 0);
  for (int n = 0; n < 130000; ++n) ++counts[static_cast<size_t>(below(static_cast<u32>(random.bits()), 13))];
  for (int c : counts) CHECK(std::abs(c - 10000) < 600);
}

TEST_CASE("random: draws depend on key and counter alone, and do not collide") {
  std::set<u64> seen;
  for (u64 seed : {0ull, 1ull, ~0ull}) {
    for (i32 layer : {0, 1, 2, 60}) {
      for (i32 walker : {0, 1, 7, 65535}) {
        const u64 key = stream_key(seed, layer, walker);
        for (u64 counter = 0; counter < 50; ++counter) {
          REQUIRE(draw(key, counter) == draw(key, counter));
          seen.insert(draw(key, counter));
        }
      }
    }
  }
  CHECK(seen.size() == 3u * 4 * 4 * 50);
  CHECK(stream_key(1, 0, 2) != stream_key(1, 2, 0));
  // Each bit of a draw is set about half of the time.
  std::vector<int> set(64, 0);
  for (u64 counter = 0; counter < 4000; ++counter) {
    for (size_t bit = 0; bit < 64; ++bit) set[bit] += draw(stream_key(5, 3, 1), counter) >> bit & 1;
  }
  for (int c : set) CHECK(std::abs(c - 2000) < 250);
}

TEST_CASE("potential: convex up to its cap, flat above it, and within its bound") {
  Random random(5);
  INFO("seed " << base_seed());
  for (int n = 0; n < 2000; ++n) {
    const i32 gpus = random.between(1, 600);
    const i64 total = static_cast<i64>(random.any_magnitude(kSearchBits)) * random.between(1, gpus);
    const Potential p = potential_for(total, gpus);
    const i64 mean = total / gpus;
    CAPTURE(total);
    CAPTURE(gpus);
    REQUIRE(p.of(0) == 0);
    if (mean == 0) {
      REQUIRE(p.of(1 << kSearchBits) == 0);
      continue;
    }
    // 2^shift is twice the mean, rounded down to a power of two: the slope at the mean is between 1 and 2.
    REQUIRE((i64{1} << p.shift) <= 2 * mean);
    REQUIRE((i64{2} << p.shift) > 2 * mean);
    REQUIRE(p.of(p.cap) == p.of(INT32_MAX));
    REQUIRE(p.of(p.cap) <= 2 * static_cast<i64>(p.cap));
    i32 last = 0;
    for (i64 x = 0; x <= p.cap; x += std::max(1, p.cap / 40)) {
      const i32 here = p.of(static_cast<i32>(x));
      REQUIRE(here >= last);
      REQUIRE(here <= static_cast<i64>(2 * x));
      // Of two: the sum, rounded once.
      const i64 both = p.of(static_cast<i32>(x), p.cap / 3);
      const i64 sum = i64{here} + p.of(p.cap / 3);
      REQUIRE((both == sum || both == sum + 1));
      REQUIRE(p.of(p.cap / 3, static_cast<i32>(x)) == both);
      last = here;
    }
  }
}

TEST_CASE("potential: the largest score of a swap stays below 2^31, and a barred one above every other") {
  // One layer's loads and communication together stay below 2^25 (the search's scale). The extreme score: four potentials,
  // two maxima, two prices, two barred marks and the noise. The least barred score: one mark, less what leaves.
  const i64 layer = i64{1} << kSearchBits;
  // The temperature is capped at half of a price, and a price at the dearest layer.
  const i64 hottest_noise = (static_cast<i64>(exponential_quantile(0)) * (layer >> 1)) >> kNoiseBits;
  i64 most_potential = 0;
  for (i64 load_worst : {layer, layer / 2, layer / 4, i64{0}}) {
    const i64 comm_worst = layer - load_worst;
    i64 sum = 0;
    for (i64 worst : {load_worst, comm_worst}) {
      i64 most = 0;
      // The mean may be anything up to the greatest value that a GPU can have.
      for (i64 mean = 1; mean <= std::max<i64>(worst, 1); mean += std::max<i64>(1, worst / 1000)) {
        most = std::max<i64>(most, potential_for(mean * 8, 8).of(static_cast<i32>(worst)));
      }
      for (int bit = 0; bit < kSearchBits; ++bit) {  // just below and at powers of two, where the shift steps
        for (i64 mean : {(i64{1} << bit) - 1, i64{1} << bit}) {
          if (mean >= 1 && mean <= worst) most = std::max<i64>(most, potential_for(mean * 8, 8).of(static_cast<i32>(worst)));
        }
      }
      sum += most;
    }
    most_potential = std::max(most_potential, 2 * sum);
  }
  CHECK(most_potential <= 4 * layer);
  const i64 greatest = most_potential + 2 * layer + 2 * layer + 2 * layer + 2 * i64{kBarred} + hottest_noise;
  CHECK(greatest < (i64{1} << 31));
  const i64 least_barred = kBarred - most_potential - 2 * (layer + layer);
  const i64 greatest_stay = layer + hottest_noise;
  CHECK(least_barred > greatest_stay);
}
