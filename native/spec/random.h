// The random stream: counter-based, so that a draw depends on where it is used and on nothing that ran before it.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

// The finaliser of splitmix64: a bijection of 64-bit words that passes for random.
GIMBAL_SPEC constexpr u64 mix64(u64 x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

// The key of one walker's stream.
GIMBAL_SPEC u64 stream_key(u64 seed, i32 layer, i32 walker) {
  const u64 place = (static_cast<u64>(static_cast<u32>(layer)) << 32) | static_cast<u32>(walker);
  return mix64(mix64(seed) ^ place);
}

GIMBAL_SPEC u64 draw(u64 key, u64 counter) { return mix64(key ^ (counter * 0xD1B54A32D192ED03ULL)); }

// A number in [0, bound) from 32 random bits.
GIMBAL_SPEC i32 below(u32 bits, i32 bound) {
  return static_cast<i32>((static_cast<u64>(bits) * static_cast<u32>(bound)) >> 32);
}

// Exponential noise. Adding T * Exp(1) to each candidate's cost and taking the least is how a rejection-free annealer
// draws a candidate at temperature T; the variates come from one fixed table, entered at a random place.
constexpr i32 kNoiseSize = 2048;  // a power of two
constexpr int kNoiseBits = 12;    // variates are Q12

// log2(x) in Q16 for x >= 1, by repeated squaring: integers only, so that every compiler makes the same table.
GIMBAL_SPEC constexpr i64 log2_q16(u64 x) {
  i64 whole = 0;
  while ((x >> whole) > 1) ++whole;
  u64 mantissa = whole <= 30 ? x << (30 - whole) : x >> (whole - 30);  // Q30 in [1, 2)
  i64 fraction = 0;
  for (int bit = 0; bit < 16; ++bit) {
    mantissa = (mantissa * mantissa) >> 30;
    fraction <<= 1;
    if (mantissa >= (2ULL << 30)) {
      mantissa >>= 1;
      fraction |= 1;
    }
  }
  return (whole << 16) + fraction;
}

// The i-th of kNoiseSize equally likely quantiles of Exp(1), Q12: -ln((i + 1/2) / n) = ln 2 * (log2(2n) - log2(2i + 1)).
constexpr i32 exponential_quantile(i32 i) {
  constexpr i64 kLn2Q16 = 45426;
  const i64 log_ratio = log2_q16(2ULL * kNoiseSize) - log2_q16(2ULL * static_cast<u64>(i) + 1);
  return static_cast<i32>((log_ratio * kLn2Q16) >> (32 - kNoiseBits));
}

struct NoiseTable {
  i32 quantile[kNoiseSize];
};

// The quantiles in a fixed shuffled order, so that neighbours in the table are unrelated.
constexpr NoiseTable make_noise_table() {
  NoiseTable table{};
  for (i32 i = 0; i < kNoiseSize; ++i) table.quantile[i] = exponential_quantile(i);
  u64 state = 0x67696D62616CULL;
  for (i32 i = kNoiseSize - 1; i > 0; --i) {
    const u64 x = mix64(state);
    state += 0x9E3779B97F4A7C15ULL;
    const i32 j = static_cast<i32>(((x & 0xFFFFFFFFULL) * static_cast<u64>(i + 1)) >> 32);
    const i32 t = table.quantile[i];
    table.quantile[i] = table.quantile[j];
    table.quantile[j] = t;
  }
  return table;
}

}  // namespace spec
}  // namespace gimbal
