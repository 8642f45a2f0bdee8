// What device code calls: built-in variables, barriers, warp primitives, atomics and integer intrinsics. Everything that may
// switch to another thread of the block is a call into the layer and carries its place in the source (__builtin_LINE as a
// default argument: the place of the call as written, also where the compiler duplicates it).
#pragma once

#include <type_traits>

#include "hostlayer_types.h"

namespace hostlayer {
namespace device {

// Where a synchronising call is written.
struct Site {
  const char* file;
  int line;
};

enum class Collective : int {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kReduceAddSigned,
  kReduceMinSigned,
  kReduceMaxSigned,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};

enum class BarrierVote : int { kCount, kAnd, kOr };

// Constant for the whole life of a thread, so that the compiler may keep the values.
uint3 thread_index() noexcept __attribute__((const));
uint3 block_index() noexcept __attribute__((const));
uint3 block_size() noexcept __attribute__((const));
uint3 grid_size() noexcept __attribute__((const));
unsigned char* dynamic_shared() noexcept __attribute__((const));

void barrier(Site site) noexcept;
int barrier(BarrierVote vote, int predicate, Site site) noexcept;
void sync_warp(uint32_t mask, Site site) noexcept;
// Votes and reductions: one result for all lanes of the mask.
uint64_t combine(Collective kind, uint32_t mask, uint64_t value, Site site) noexcept;
// Shuffles and matches: a result for each lane. `argument` is a lane or a distance, `width` the size of a group.
uint64_t exchange(Collective kind, uint32_t mask, uint64_t value, uint32_t argument, int width, Site site) noexcept;
uint32_t active_mask() noexcept;
int64_t clock_ticks() noexcept;
[[noreturn]] void trap(Site site) noexcept;

// An atomic read-modify-write of `bytes` at `address`, made by the code at `caller`.
void check_atomic(const volatile void* address, unsigned bytes, const void* caller) noexcept;

#if HOSTLAYER_INSTRUMENTED
template <class T, class F>
HOSTLAYER_UNCHECKED __attribute__((noinline)) T modify(T* address, F f) {
  check_atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = f(old);
  return old;
}
#else
// Threads change places at synchronising calls only, so a plain read-modify-write is atomic.
template <class T, class F>
HOSTLAYER_INLINE T modify(T* address, F f) {
  const T old = *address;
  *address = f(old);
  return old;
}
#endif

template <class T>
HOSTLAYER_INLINE T shuffle(Collective kind, unsigned mask, T value, unsigned argument, int width, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return static_cast<T>(static_cast<Bits>(exchange(kind, mask, static_cast<Bits>(value), argument, width, site)));
}

}  // namespace device
}  // namespace hostlayer

#define threadIdx (::hostlayer::device::thread_index())
#define blockIdx (::hostlayer::device::block_index())
#define blockDim (::hostlayer::device::block_size())
#define gridDim (::hostlayer::device::grid_size())
static constexpr int warpSize = 32;

// This block's dynamic shared memory, of the size that the launch asked for.
#define GIMBAL_DYNAMIC_SHARED(name) unsigned char* const name = ::hostlayer::device::dynamic_shared()

// The trailing parameters of every synchronising call.
#define HOSTLAYER_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define HOSTLAYER_SITE (::hostlayer::device::Site{file, line})

HOSTLAYER_INLINE void __syncthreads(HOSTLAYER_SITE_PARAMETERS) {
  ::hostlayer::device::barrier(HOSTLAYER_SITE);
}
HOSTLAYER_INLINE int __syncthreads_count(int predicate, HOSTLAYER_SITE_PARAMETERS) {
  return ::hostlayer::device::barrier(::hostlayer::device::BarrierVote::kCount, predicate, HOSTLAYER_SITE);
}
HOSTLAYER_INLINE int __syncthreads_and(int predicate, HOSTLAYER_SITE_PARAMETERS) {
  return ::hostlayer::device::barrier(::hostlayer::device::BarrierVote::kAnd, predicate, HOSTLAYER_SITE);
}
HOSTLAYER_INLINE int __syncthreads_or(int predicate, HOSTLAYER_SITE_PARAMETERS) {
  return ::hostlayer::device::barrier(::hostlayer::device::BarrierVote::kOr, predicate, HOSTLAYER_SITE);
}
HOSTLAYER_INLINE void __syncwarp(unsigned mask = 0xffffffffu, HOSTLAYER_SITE_PARAMETERS) {
  ::hostlayer::device::sync_warp(mask, HOSTLAYER_SITE);
}
HOSTLAYER_INLINE unsigned __ballot_sync(unsigned mask, int predicate, HOSTLAYER_SITE_PARAMETERS) {
  return static_cast<unsigned>(
      ::hostlayer::device::combine(::hostlayer::device::Collective::kBallot, mask, predicate != 0, HOSTLAYER_SITE));
}
HOSTLAYER_INLINE int __any_sync(unsigned mask, int predicate, HOSTLAYER_SITE_PARAMETERS) {
  return static_cast<int>(
      ::hostlayer::device::combine(::hostlayer::device::Collective::kAny, mask, predicate != 0, HOSTLAYER_SITE));
}
HOSTLAYER_INLINE int __all_sync(unsigned mask, int predicate, HOSTLAYER_SITE_PARAMETERS) {
  return static_cast<int>(
      ::hostlayer::device::combine(::hostlayer::device::Collective::kAll, mask, predicate != 0, HOSTLAYER_SITE));
}

// Shuffles and __match_any_sync, for the integer types that CUDA has them for.
#define HOSTLAYER_SHUFFLES(T)                                                                                             \
  HOSTLAYER_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32, HOSTLAYER_SITE_PARAMETERS) {           \
    return ::hostlayer::device::shuffle(::hostlayer::device::Collective::kShuffle, mask, value,                           \
                                        static_cast<unsigned>(lane), width, HOSTLAYER_SITE);                              \
  }                                                                                                                       \
  HOSTLAYER_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HOSTLAYER_SITE_PARAMETERS) {  \
    return ::hostlayer::device::shuffle(::hostlayer::device::Collective::kShuffleUp, mask, value, delta, width,           \
                                        HOSTLAYER_SITE);                                                                  \
  }                                                                                                                       \
  HOSTLAYER_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,                             \
                                      HOSTLAYER_SITE_PARAMETERS) {                                                        \
    return ::hostlayer::device::shuffle(::hostlayer::device::Collective::kShuffleDown, mask, value, delta, width,         \
                                        HOSTLAYER_SITE);                                                                  \
  }                                                                                                                       \
  HOSTLAYER_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, HOSTLAYER_SITE_PARAMETERS) {      \
    return ::hostlayer::device::shuffle(::hostlayer::device::Collective::kShuffleXor, mask, value,                        \
                                        static_cast<unsigned>(lanes), width, HOSTLAYER_SITE);                             \
  }                                                                                                                       \
  HOSTLAYER_INLINE unsigned __match_any_sync(unsigned mask, T value, HOSTLAYER_SITE_PARAMETERS) {                         \
    return static_cast<unsigned>(::hostlayer::device::shuffle<unsigned long long>(                                        \
        ::hostlayer::device::Collective::kMatchAny, mask, static_cast<unsigned long long>(value), 0, 32, HOSTLAYER_SITE)); \
  }
HOSTLAYER_SHUFFLES(int)
HOSTLAYER_SHUFFLES(unsigned int)
HOSTLAYER_SHUFFLES(long)
HOSTLAYER_SHUFFLES(unsigned long)
HOSTLAYER_SHUFFLES(long long)
HOSTLAYER_SHUFFLES(unsigned long long)
#undef HOSTLAYER_SHUFFLES

#define HOSTLAYER_REDUCE(name, T, kind)                                                                              \
  HOSTLAYER_INLINE T name(unsigned mask, T value, HOSTLAYER_SITE_PARAMETERS) {                                       \
    return static_cast<T>(static_cast<uint32_t>(::hostlayer::device::combine(                                        \
        ::hostlayer::device::Collective::kind, mask, static_cast<uint32_t>(value), HOSTLAYER_SITE)));                \
  }
HOSTLAYER_REDUCE(__reduce_add_sync, int, kReduceAddSigned)
HOSTLAYER_REDUCE(__reduce_min_sync, int, kReduceMinSigned)
HOSTLAYER_REDUCE(__reduce_max_sync, int, kReduceMaxSigned)
HOSTLAYER_REDUCE(__reduce_add_sync, unsigned, kReduceAdd)
HOSTLAYER_REDUCE(__reduce_min_sync, unsigned, kReduceMin)
HOSTLAYER_REDUCE(__reduce_max_sync, unsigned, kReduceMax)
HOSTLAYER_REDUCE(__reduce_and_sync, unsigned, kReduceAnd)
HOSTLAYER_REDUCE(__reduce_or_sync, unsigned, kReduceOr)
HOSTLAYER_REDUCE(__reduce_xor_sync, unsigned, kReduceXor)
#undef HOSTLAYER_REDUCE

// The lanes that have not returned. Hardware may name fewer, so no result should rest on it.
HOSTLAYER_INLINE unsigned __activemask() { return ::hostlayer::device::active_mask(); }

// Every access is seen at once here: fences order nothing.
HOSTLAYER_INLINE void __threadfence() {}
HOSTLAYER_INLINE void __threadfence_block() {}
HOSTLAYER_INLINE void __threadfence_system() {}

HOSTLAYER_INLINE long long clock64() { return ::hostlayer::device::clock_ticks(); }
HOSTLAYER_INLINE void __nanosleep(unsigned) {}
HOSTLAYER_INLINE void __trap(HOSTLAYER_SITE_PARAMETERS) { ::hostlayer::device::trap(HOSTLAYER_SITE); }

#undef HOSTLAYER_SITE
#undef HOSTLAYER_SITE_PARAMETERS

// Atomics, for the types that CUDA has them for.
#define HOSTLAYER_ATOMIC(name, T, expression)                                       \
  HOSTLAYER_INLINE T name(T* address, T value) {                                    \
    return ::hostlayer::device::modify(address, [value](T old) -> T { return expression; }); \
  }
#define HOSTLAYER_ATOMIC_EXTREMA(T)                                                 \
  HOSTLAYER_ATOMIC(atomicMin, T, value < old ? value : old)                         \
  HOSTLAYER_ATOMIC(atomicMax, T, value > old ? value : old)
#define HOSTLAYER_ATOMIC_BITS(T)                                                    \
  HOSTLAYER_ATOMIC_EXTREMA(T)                                                       \
  HOSTLAYER_ATOMIC(atomicAnd, T, old & value)                                       \
  HOSTLAYER_ATOMIC(atomicOr, T, old | value)                                        \
  HOSTLAYER_ATOMIC(atomicXor, T, old ^ value)                                       \
  HOSTLAYER_ATOMIC(atomicExch, T, (static_cast<void>(old), value))                  \
  HOSTLAYER_INLINE T atomicCAS(T* address, T compare, T value) {                    \
    return ::hostlayer::device::modify(address, [=](T old) -> T { return old == compare ? value : old; }); \
  }
HOSTLAYER_ATOMIC_BITS(int)
HOSTLAYER_ATOMIC_BITS(unsigned int)
HOSTLAYER_ATOMIC_BITS(unsigned long long)
HOSTLAYER_ATOMIC_EXTREMA(long long)
HOSTLAYER_ATOMIC(atomicAdd, unsigned int, old + value)
HOSTLAYER_ATOMIC(atomicAdd, unsigned long long, old + value)
HOSTLAYER_ATOMIC(atomicSub, unsigned int, old - value)
HOSTLAYER_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
HOSTLAYER_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
#undef HOSTLAYER_ATOMIC_BITS
#undef HOSTLAYER_ATOMIC_EXTREMA
#undef HOSTLAYER_ATOMIC

// Loads and stores with a cache hint are plain ones.
template <class T>
HOSTLAYER_INLINE T __ldg(const T* address) {
  return *address;
}
template <class T>
HOSTLAYER_INLINE T __ldcg(const T* address) {
  return *address;
}
template <class T>
HOSTLAYER_INLINE T __ldcs(const T* address) {
  return *address;
}
template <class T>
HOSTLAYER_INLINE void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
HOSTLAYER_INLINE void __stcs(T* address, T value) {
  *address = value;
}

// Integer intrinsics.
HOSTLAYER_INLINE int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<long long>(a) * b) >> 32);
}
HOSTLAYER_INLINE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}
__extension__ typedef __int128 hostlayer_int128;
__extension__ typedef unsigned __int128 hostlayer_uint128;
HOSTLAYER_INLINE long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((static_cast<hostlayer_int128>(a) * b) >> 64);
}
HOSTLAYER_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<hostlayer_uint128>(a) * b) >> 64);
}
HOSTLAYER_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
HOSTLAYER_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
HOSTLAYER_INLINE int __ffs(int x) { return __builtin_ffs(x); }
HOSTLAYER_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
HOSTLAYER_INLINE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
HOSTLAYER_INLINE int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
HOSTLAYER_INLINE unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
HOSTLAYER_INLINE unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 | __brev(static_cast<unsigned>(x >> 32));
}
HOSTLAYER_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}
HOSTLAYER_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31) >> 32);
}

#define HOSTLAYER_MIN_MAX(A, B, T)                  \
  HOSTLAYER_INLINE constexpr T min(A a, B b) {      \
    const T x = static_cast<T>(a);                  \
    const T y = static_cast<T>(b);                  \
    return y < x ? y : x;                           \
  }                                                 \
  HOSTLAYER_INLINE constexpr T max(A a, B b) {      \
    const T x = static_cast<T>(a);                  \
    const T y = static_cast<T>(b);                  \
    return x < y ? y : x;                           \
  }
HOSTLAYER_MIN_MAX(int, int, int)
HOSTLAYER_MIN_MAX(unsigned, unsigned, unsigned)
HOSTLAYER_MIN_MAX(int, unsigned, unsigned)
HOSTLAYER_MIN_MAX(unsigned, int, unsigned)
HOSTLAYER_MIN_MAX(long, long, long)
HOSTLAYER_MIN_MAX(unsigned long, unsigned long, unsigned long)
HOSTLAYER_MIN_MAX(long long, long long, long long)
HOSTLAYER_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef HOSTLAYER_MIN_MAX
