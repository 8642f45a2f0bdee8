// Integers only: the types, the fixed-point rules and the limits that every backend shares.
//
// Two resolutions. *Fine* values are 64-bit and define the objective; whatever a caller sees comes from them. *Search*
// values are 32-bit, scaled per layer, and only steer the search: half the memory, twice the lanes, and a GPU's native width.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GIMBAL_SPEC __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define GIMBAL_SPEC __forceinline
#else
// always_inline also keeps one copy per instruction set: no out-of-line twin that the linker could merge across them.
#define GIMBAL_SPEC inline __attribute__((always_inline))
#endif

// Longer functions: one copy per translation unit, for the same reason.
#if defined(__CUDACC__)
#define GIMBAL_SPEC_LONG static inline __host__ __device__
#else
#define GIMBAL_SPEC_LONG static inline
#endif

#if defined(_MSC_VER) || defined(__CUDACC__)
#define GIMBAL_LAMBDA
#else
#define GIMBAL_LAMBDA __attribute__((always_inline))
#endif

namespace gimbal {
namespace spec {

using i32 = int32_t;
using i64 = int64_t;
using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;

// Q31: a number in [0, 1] as an integer in [0, 2^31].
constexpr u32 kOneQ31 = 1u << 31;

// Search values: the dearest conceivable layer is scaled to 2^25, so that four squares, two maxima, a price and a
// barred candidate's penalty still sum below 2^31 (see Potential and score_swap in search.h).
constexpr int kSearchBits = 25;
constexpr i32 kBarred = 1 << 29;

// Fine values: the worst sum over all layers stays below 2^62.
constexpr int kFineBits = 62;
// Fine costs are below 2^31, so that tokens times cost is one 32 x 32 -> 64 bit product.
constexpr int kCostBits = 31;

template <class T>
GIMBAL_SPEC T max_of(T a, T b) {
  return a > b ? a : b;
}
template <class T>
GIMBAL_SPEC T min_of(T a, T b) {
  return a < b ? a : b;
}

// floor(x * q / 2^31) for x < 2^32 and q <= 2^31.
GIMBAL_SPEC i32 mul_q31(i32 x, u32 q) {
  return static_cast<i32>((static_cast<u64>(static_cast<u32>(x)) * q) >> 31);
}

// floor(x * q / 2^31) for x < 2^62 and q <= 2^31, without 128-bit arithmetic.
GIMBAL_SPEC i64 mul_q31_wide(i64 x, u32 q) {
  const u64 high = static_cast<u64>(x) >> 31;
  const u64 low = static_cast<u64>(x) & (kOneQ31 - 1);
  return static_cast<i64>(high * q + ((low * q) >> 31));
}

// One replica's share of a search value when `replicas` share it evenly.
GIMBAL_SPEC u32 share_q31(i32 replicas) { return kOneQ31 / static_cast<u32>(replicas); }

// The fine counterpart, and the one rounding rule of the objective: floor(total / replicas).
GIMBAL_SPEC i64 fine_share(i64 total, i64 replicas) { return total / replicas; }

// Arrays over GPUs are padded to whole vectors of 16 lanes.
GIMBAL_SPEC i32 padded_gpus(i32 gpus) { return (gpus + 15) / 16 * 16; }

}  // namespace spec
}  // namespace gimbal
