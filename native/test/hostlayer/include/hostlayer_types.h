// CUDA's words and small types, as plain C++.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// A static array would be one array for all blocks of all streams, and none of the checks would know of it.
#define __shared__ hostlayer_has_dynamic_shared_memory_only_see_GIMBAL_DYNAMIC_SHARED

#if defined(HOSTLAYER_NO_CHECKS)
#define HOSTLAYER_INSTRUMENTED 0
#elif defined(__SANITIZE_THREAD__)
#define HOSTLAYER_INSTRUMENTED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HOSTLAYER_INSTRUMENTED 1
#endif
#endif
#ifndef HOSTLAYER_INSTRUMENTED
#define HOSTLAYER_INSTRUMENTED 0  // 1: this unit's accesses are reported through the __tsan_* callbacks
#endif

#define HOSTLAYER_INLINE static inline __attribute__((always_inline))
// No callbacks from such a function: what it touches is the layer's own business.
#define HOSTLAYER_UNCHECKED __attribute__((no_sanitize("thread")))

struct uint3 {
  unsigned int x, y, z;
};
struct int2 {
  int x, y;
};
struct uint2 {
  unsigned int x, y;
};
struct int3 {
  int x, y, z;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

HOSTLAYER_INLINE int2 make_int2(int x, int y) { return {x, y}; }
HOSTLAYER_INLINE uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
HOSTLAYER_INLINE int3 make_int3(int x, int y, int z) { return {x, y, z}; }
HOSTLAYER_INLINE uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
HOSTLAYER_INLINE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
HOSTLAYER_INLINE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
HOSTLAYER_INLINE longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
HOSTLAYER_INLINE ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
