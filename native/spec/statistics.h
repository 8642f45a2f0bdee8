// Formulas of the routing statistics: how old tokens lose weight, and how far a source's counts give way to the sources' mean.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

// ---- decay
//
// Time is a number of tokens. A half-life has kTicks ticks, and all tokens of one tick weigh the same, so the weight of a token
// depends on its number alone, never on how tokens came in calls. Weights do not shrink: new tokens weigh more, in powers of two
// that a caller takes out of its sums from time to time.
constexpr int kTickBits = 6;
constexpr i32 kTicks = 1 << kTickBits;
constexpr int kWeightBits = 16;  // fraction bits of the weight of a tick

GIMBAL_SPEC constexpr u64 tick_of(u64 token, u64 half_life_tokens) { return token * kTicks / half_life_tokens; }
// The first token of a tick: tick_of is below `tick` before it.
GIMBAL_SPEC constexpr u64 first_of_tick(u64 tick, u64 half_life_tokens) {
  return (tick * half_life_tokens + kTicks - 1) / kTicks;
}

// floor(sqrt(x)), a bit at a time: for tables alone.
GIMBAL_SPEC constexpr u64 floor_sqrt(u64 x) {
  u64 root = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const u64 next = root | (u64{1} << bit);
    if (next <= x / next) root = next;
  }
  return root;
}

struct WeightTable {
  u32 of[kTicks];
};

// 2^(kWeightBits + i / kTicks): a product of square roots of roots of two in Q31, so that every compiler makes the same table.
GIMBAL_SPEC constexpr WeightTable make_weight_table() {
  WeightTable table{};
  for (i32 i = 0; i < kTicks; ++i) {
    u64 weight = u64{1} << 31;
    u64 root = u64{2} << 31;
    for (int bit = kTickBits - 1; bit >= 0; --bit) {
      root = floor_sqrt(root << 31);
      if ((i >> bit) & 1) weight = (weight * root) >> 31;
    }
    table.of[i] = static_cast<u32>((weight + (u64{1} << (30 - kWeightBits))) >> (31 - kWeightBits));
  }
  return table;
}

// ---- shrinkage
//
// The number of (token, expert) pairs in a cell is taken for a Poisson count whose rate has a Gamma prior: mean, the cell's mean
// over the sources; weight, that of `prior` tokens of a source. The posterior mean is the credibility estimate (Buehlmann and
// Gisler, A Course in Credibility Theory, 2005, chapter 2)
//
//   shrunk[s][e] = Z * counts[s][e] + (1 - Z) * mean[e],  Z = mean tokens / (mean tokens + prior)
//
// with one Z for all sources of a layer, so that what the sources send to an expert together stays the same.

// Z in Q31; 1 where there is neither traffic nor a prior. Both arguments in one unit, below 2^62.
GIMBAL_SPEC constexpr u32 credibility_q31(u64 mean_tokens, u64 prior_tokens) {
  u64 part = mean_tokens, whole = mean_tokens + prior_tokens;
  while (whole >> 32) {
    part >>= 1;
    whole >>= 1;
  }
  return whole == 0 ? kOneQ31 : static_cast<u32>((part << 31) / whole);
}

GIMBAL_SPEC i64 shrunk(i64 own, i64 mean, u32 credibility) {
  return mul_q31_wide(own, credibility) + mul_q31_wide(mean, kOneQ31 - credibility);
}

}  // namespace spec
}  // namespace gimbal
