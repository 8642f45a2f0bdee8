// Pressure: how long a request would have to wait on an engine, and what else speaks against it, as a sum of times.
//
// All numbers are integers; times are microseconds, shares and weights are in 1/65536. The formulas are this project's own.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

constexpr int kShareBits = 16;
constexpr i32 kWholeShare = 1 << kShareBits;
// Of one request, and of what an engine says waits: products with the time of a token stay below 2^62.
constexpr i64 kMostTokens = i64{1} << 28;
// Of any term, weighted or not; so sums of a few of them cannot overflow.
constexpr i64 kMostMicros = i64{1} << 44;
constexpr i32 kMostRequests = 1 << 24;
// Of what a request's experts cost it on an engine, and of that beyond the best engine, weighted.
constexpr i32 kMostExpertMicros = 1 << 30;
constexpr i64 kLeastTokensPerSecond = 100;

// The time of a token in 2^-20 us, rounded to the nearest, for a rate from kLeastTokensPerSecond on.
GIMBAL_SPEC u64 micros_per_token(i64 tokens_per_second) {
  const u64 rate = static_cast<u64>(tokens_per_second);
  return ((u64{1000000} << 20) + rate / 2) / rate;
}

// How long `tokens` take, up to kMostTokens of them.
GIMBAL_SPEC i64 prefill_micros(i64 tokens, u64 per_token) {
  return static_cast<i64>((static_cast<u64>(tokens) * per_token) >> 20);
}

struct PressureWeights {
  u32 backlog;  // each in 1/65536, up to 2^24
  u32 kv;
  u32 queue;
  u32 moe;
  u32 comm;
  u32 affinity;
  i64 kv_us;       // the KV term where half of the cache is in use, i.e. where k / (1 - k) is 1
  i32 kv_most;     // share of the cache in use from which on the term grows no more, and the engine is short of it
  i64 waiting_us;  // of a waiting request beyond its prefill,
  i64 running_us;  // and of one that decodes
};

struct PressureTerms {
  i64 backlog_us;
  i64 kv_us;
  i64 queue_us;
  i64 moe_us;
  i64 total_us;
};

GIMBAL_SPEC i64 weighted(i64 us, u32 weight) {
  const i64 bounded = min_of(us, kMostMicros);
  if (weight == static_cast<u32>(kWholeShare)) return bounded;
  // By halves: a product of 44 and 24 bits would not fit.
  return ((bounded >> kShareBits) * weight) + (((bounded & (kWholeShare - 1)) * weight) >> kShareBits);
}

// kv_us * k / (1 - k): convex, since what is left of a cache goes faster the less of it there is.
GIMBAL_SPEC i64 kv_micros(const PressureWeights& w, i32 kv) {
  const i64 used = min_of(kv, w.kv_most);
  return w.kv_us * used / (kWholeShare - used);
}

GIMBAL_SPEC i64 queue_micros(const PressureWeights& w, i32 waiting, i32 running) {
  return waiting * w.waiting_us + running * w.running_us;
}

// How much longer a prefill takes on an engine, of kWholeShare: by the overload of the experts that its tokens go to, and by how
// much further than others' they travel, both weighted; either may be negative. No prefill takes less than no time.
GIMBAL_SPEC i32 expert_excess(const PressureWeights& w, i32 moe, i32 comm) {
  const i64 sum = (static_cast<i64>(moe) * w.moe + static_cast<i64>(comm) * w.comm) >> kShareBits;
  return static_cast<i32>(max_of<i64>(-kWholeShare, min_of<i64>(sum, 0x7FFFFFFF)));
}

// The three terms that hang on the request, weighted. The prefill in front of it with its own:
GIMBAL_SPEC i64 backlog_term(const PressureWeights& w, i64 backlog_us, i64 own_us) {
  return weighted(backlog_us + own_us, w.backlog);
}
// Its own under the engine's expert_excess:
GIMBAL_SPEC i64 moe_term(i64 own_us, i32 excess) {
  return (min_of(own_us, kMostMicros >> kShareBits) * excess) >> kShareBits;
}
// What its experts cost it there beyond the engine where they cost least. That never weighs more than the prefill it brings, so
// that an engine further behind than by this one request is not picked for its experts.
GIMBAL_SPEC i32 affinity_micros(const PressureWeights& w, i32 expert_us, i32 least_us) {
  return static_cast<i32>(min_of<i64>(weighted(expert_us - least_us, w.affinity), kMostExpertMicros));
}
GIMBAL_SPEC i64 affinity_term(i64 own_us, i32 affinity_us) { return min_of<i64>(own_us, affinity_us); }

// And the two that do not: the KV cache, `kv` of kWholeShare of which is in use, and the requests there.
GIMBAL_SPEC i64 kv_term(const PressureWeights& w, i32 kv) { return weighted(kv_micros(w, kv), w.kv); }
GIMBAL_SPEC i64 queue_term(const PressureWeights& w, i32 waiting, i32 running) {
  return weighted(queue_micros(w, waiting, running), w.queue);
}

// What a request meets on an engine; `rest_us` is the sum of the two terms that do not hang on it, `affinity_us` is 0 where its
// experts are not known.
GIMBAL_SPEC i64 pressure_micros(const PressureWeights& w, i64 backlog_us, i64 own_us, i64 rest_us, i32 excess,
                                i32 affinity_us) {
  return backlog_term(w, backlog_us, own_us) + rest_us + moe_term(own_us, excess) + affinity_term(own_us, affinity_us);
}

}  // namespace spec
}  // namespace gimbal
