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

// Code over a Team: device code alone where CUDA compiles it, since a block's primitives exist nowhere else.
#if defined(__CUDACC__)
#define GIMBAL_OVER_TEAM __device__ __forceinline__
#else
#define GIMBAL_OVER_TEAM GIMBAL_SPEC
#endif

// Short loops of a GPU thread: copies of their bodies would cost registers, and with them blocks per multiprocessor.
// Unrolled are those that wait for memory in every turn: what several turns read is then on its way at once.
#if defined(__CUDACC__)
#define GIMBAL_ROLLED _Pragma("unroll 1")
#define GIMBAL_UNROLLED _Pragma("unroll 3")
#else
#define GIMBAL_ROLLED
#define GIMBAL_UNROLLED
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

// The least number of each type that a reduction meets.
template <class T>
GIMBAL_SPEC constexpr T least_value() {
  return static_cast<T>(-1) < 0 ? static_cast<T>(u64{1} << (8 * sizeof(T) - 1)) : T{0};
}

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

// The upper half of a product, from parts of 32 bits.
GIMBAL_SPEC u64 mul_high_of_parts(u64 a, u64 b) {
  const u64 a_low = a & 0xFFFFFFFFu, a_high = a >> 32, b_low = b & 0xFFFFFFFFu, b_high = b >> 32;
  const u64 middle = a_high * b_low + ((a_low * b_low) >> 32);
  return a_high * b_high + (middle >> 32) + ((a_low * b_high + (middle & 0xFFFFFFFFu)) >> 32);
}

// The same by the best that a compiler knows.
GIMBAL_SPEC u64 mul_high(u64 a, u64 b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#elif defined(__SIZEOF_INT128__)
  __extension__ using Wide = unsigned __int128;
  return static_cast<u64>((static_cast<Wide>(a) * b) >> 64);
#else
  return mul_high_of_parts(a, b);
#endif
}

// floor((2^64 - 1) / n): dividing by a small number is multiplying by this, and at most one more. A division of 64 bits is the
// dearest thing that a GPU thread can be asked for.
constexpr i32 kReciprocals = 64;
struct ReciprocalTable {
  u64 of[kReciprocals + 1];
};
GIMBAL_SPEC constexpr ReciprocalTable make_reciprocals() {
  ReciprocalTable table{};
  for (i32 n = 1; n <= kReciprocals; ++n) table.of[n] = ~u64{0} / static_cast<u64>(n);
  return table;
}

// The fine counterpart, and the one rounding rule of the objective: floor(total / replicas), total >= 0. Made for a count, it
// divides several totals.
class FineShare {
 public:
  GIMBAL_SPEC explicit FineShare(i32 replicas) : replicas_(static_cast<u64>(replicas)) {
    static constexpr ReciprocalTable kTable = make_reciprocals();
    reciprocal_ = replicas <= kReciprocals ? kTable.of[replicas] : 0;
  }
  GIMBAL_SPEC i64 of(i64 total) const {
    const u64 whole = static_cast<u64>(total);
    if (reciprocal_ == 0) return static_cast<i64>(whole / replicas_);
    const u64 quotient = mul_high(whole, reciprocal_);
    return static_cast<i64>(quotient + (whole - quotient * replicas_ >= replicas_ ? 1 : 0));
  }

 private:
  u64 replicas_;
  u64 reciprocal_;
};

GIMBAL_SPEC i64 fine_share(i64 total, i32 replicas) { return replicas == 1 ? total : FineShare(replicas).of(total); }

// Division by a number that is the same for many: floor(x / divisor) for x * divisor < 2^32. Slots by slots per GPU stay below
// 2^24 in every problem.
struct Divisor {
  u32 divisor;
  u32 factor;  // ceil(2^32 / divisor); 0 for 1
  GIMBAL_SPEC explicit Divisor(i32 d)
      : divisor(static_cast<u32>(d)), factor(d == 1 ? 0u : static_cast<u32>(0xFFFFFFFFu / static_cast<u32>(d) + 1u)) {}
  GIMBAL_SPEC i32 into(i32 x) const {
    const u32 u = static_cast<u32>(x);
    return factor == 0 ? x : static_cast<i32>((static_cast<u64>(u) * factor) >> 32);
  }
};

// Arrays over GPUs are padded to whole vectors of 16 lanes.
GIMBAL_SPEC i32 padded_gpus(i32 gpus) { return (gpus + 15) / 16 * 16; }

}  // namespace spec
}  // namespace gimbal
