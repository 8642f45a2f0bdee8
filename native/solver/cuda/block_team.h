// The GPU's Teams: a block of threads, or one warp of it. Ranges are dealt out round robin; whatever a primitive writes, every thread sees when it
// returns.
//
// A reduction over few values is made by every warp for itself, which costs less than telling each other and needs no
// barrier. So a reduction alone does not order what comes before it and what comes after: where a range was only reduced and
// is written next, the spec says sync().
#pragma once

#include "../../spec/order.h"
#include "../../spec/units.h"
#include "runtime.h"

#define GIMBAL_DEVICE __device__ __forceinline__

namespace gimbal {
namespace cuda {

using namespace spec;

constexpr i32 kWarp = 32;
constexpr u32 kAllLanes = 0xFFFFFFFFu;
constexpr i32 kMostThreads = 1024;
// Values up to here are reduced by every warp for itself.
constexpr i32 kWarpRange = 64;

// ---- within a warp

// __reduce_*_sync came with sm_80; GIMBAL_NO_WARP_REDUCE takes the older way, for tests.
#if (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800) && !defined(GIMBAL_NO_WARP_REDUCE)
GIMBAL_DEVICE i32 warp_min(i32 x) { return __reduce_min_sync(kAllLanes, x); }
GIMBAL_DEVICE i32 warp_max(i32 x) { return __reduce_max_sync(kAllLanes, x); }
GIMBAL_DEVICE u32 warp_min(u32 x) { return __reduce_min_sync(kAllLanes, x); }
GIMBAL_DEVICE u32 warp_max(u32 x) { return __reduce_max_sync(kAllLanes, x); }
#else
template <class T>
GIMBAL_DEVICE T warp_min(T x) {
  for (i32 lanes = kWarp / 2; lanes > 0; lanes /= 2) x = min_of(x, static_cast<T>(__shfl_xor_sync(kAllLanes, x, lanes)));
  return x;
}
template <class T>
GIMBAL_DEVICE T warp_max(T x) {
  for (i32 lanes = kWarp / 2; lanes > 0; lanes /= 2) x = max_of(x, static_cast<T>(__shfl_xor_sync(kAllLanes, x, lanes)));
  return x;
}
#endif

GIMBAL_DEVICE i64 shuffle_xor(i64 x, i32 lanes) {
  return static_cast<i64>(__shfl_xor_sync(kAllLanes, static_cast<long long>(x), lanes));
}

GIMBAL_DEVICE i64 warp_max(i64 x) {
  for (i32 lanes = kWarp / 2; lanes > 0; lanes /= 2) x = max_of(x, shuffle_xor(x, lanes));
  return x;
}

GIMBAL_DEVICE i64 warp_sum(i64 x) {
  for (i32 lanes = kWarp / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}

// No candidate is index -1, which as an unsigned number follows all others.
GIMBAL_DEVICE Best warp_best(Best x) {
  const i32 score = warp_min(x.score);
  return {score, static_cast<i32>(warp_min(x.score == score ? static_cast<u32>(x.index) : ~0u))};
}

// ---- who makes up a Team

struct BlockScope {
  GIMBAL_DEVICE static i32 rank() { return static_cast<i32>(threadIdx.x); }
  GIMBAL_DEVICE static i32 size() { return static_cast<i32>(blockDim.x); }
  GIMBAL_DEVICE static void sync() { __syncthreads(); }
};

struct WarpScope {
  GIMBAL_DEVICE static i32 rank() { return static_cast<i32>(threadIdx.x) & (kWarp - 1); }
  GIMBAL_DEVICE static i32 size() { return kWarp; }
  GIMBAL_DEVICE static void sync() { __syncwarp(); }
};

template <class Scope>
class DeviceTeam {
 public:
  // What a block's Team needs of its shared memory, 8-byte aligned; a warp's needs none.
  static constexpr u32 kSharedBytes = 2 * (kMostThreads / kWarp) * 8;

  // Rows of `stride` in planes of `slots` rows are dealt out without a division.
  GIMBAL_DEVICE DeviceTeam(const i32* noise_table, unsigned char* shared, i32 stride, i32 slots)
      : noise_table_(noise_table),
        partials_(shared),
        rank_(Scope::rank()),
        lattice_(lattice_of(stride)) {
    plane_step_ = lattice_.row_step / slots;
    row_step_ = lattice_.row_step - plane_step_ * slots;
  }

  GIMBAL_DEVICE const i32* noise_table() const { return noise_table_; }
  GIMBAL_DEVICE void sync() { Scope::sync(); }

  template <class F>
  GIMBAL_DEVICE void single(F f) {
    sync();
    if (rank_ == 0) f();
    sync();
  }

  template <class F>
  GIMBAL_DEVICE void for_each(i32 count, F f) {
    GIMBAL_ROLLED
    for (i32 i = rank_; i < count; i += size()) f(i);
    sync();
  }

  template <class F>
  GIMBAL_DEVICE void for_each_shared(i32 count, F f) {
    for_each(count, f);
  }

  template <class F>
  GIMBAL_DEVICE void for_each2(i32 rows, i32 columns, F f) {
    const Lattice at = columns == lattice_.columns ? lattice_ : lattice_of(columns);
    GIMBAL_ROLLED
    for (i32 c = at.column; c < columns; c += at.column_step()) {
      GIMBAL_ROLLED
      for (i32 r = at.row; r < rows; r += at.row_step) f(r, c);
    }
    sync();
  }

  template <class F>
  GIMBAL_DEVICE void for_each3(i32 rows, i32 depth, i32 columns, F f) {
    const Lattice at = columns == lattice_.columns ? lattice_ : lattice_of(columns);
    GIMBAL_ROLLED
    for (i32 c = at.column; c < columns; c += at.column_step()) {
      GIMBAL_ROLLED
      for (i32 r = at.row; r < rows; r += at.row_step) {
        GIMBAL_ROLLED
        for (i32 d = 0; d < depth; ++d) f(r, d, c);
      }
    }
    sync();
  }

  GIMBAL_DEVICE static i32 add(i32* counter, i32 more) { return atomicAdd(counter, more); }
  GIMBAL_DEVICE static i64 add(i64* counter, i64 more) {
    auto* const bits = reinterpret_cast<unsigned long long*>(counter);
    return static_cast<i64>(atomicAdd(bits, static_cast<unsigned long long>(more)));
  }

  GIMBAL_DEVICE static void set(i32* at, i32 value) { atomicExch(at, value); }

  template <class F>
  GIMBAL_DEVICE auto max(i32 count, F f) -> decltype(f(0)) {
    using T = decltype(f(0));
    const i32 first = count <= kWarpRange ? lane() : rank_;
    const i32 step = count <= kWarpRange ? kWarp : size();
    T most = least_value<T>();
    GIMBAL_ROLLED
    for (i32 i = first; i < count; i += step) most = max_of(most, static_cast<T>(f(i)));
    most = warp_max(most);
    if (count <= kWarpRange || size() == kWarp) return most;
    return warp_max(gather(most, least_value<T>()));
  }

  template <class F>
  GIMBAL_DEVICE i64 sum(i32 count, F f) {
    const i32 first = count <= kWarpRange ? lane() : rank_;
    const i32 step = count <= kWarpRange ? kWarp : size();
    i64 total = 0;
    GIMBAL_ROLLED
    for (i32 i = first; i < count; i += step) total += f(i);
    total = warp_sum(total);
    if (count <= kWarpRange || size() == kWarp) return total;
    return warp_sum(gather(total, i64{0}));
  }

  template <class F>
  GIMBAL_DEVICE Best argmin(i32 count, F f) {
    const i32 first = count <= kWarpRange ? lane() : rank_;
    const i32 step = count <= kWarpRange ? kWarp : size();
    Best best{INT32_MAX, -1};
    GIMBAL_ROLLED
    for (i32 i = first; i < count; i += step) {
      const Best here{f(i), i};
      if (precedes(here, best)) best = here;
    }
    best = warp_best(best);
    if (count <= kWarpRange) return best;
    return block_best(best);
  }

  template <class F>
  GIMBAL_DEVICE Best argmin3(i32 planes, i32 rows, i32 columns, F f) {
    Best best{INT32_MAX, -1};
    GIMBAL_ROLLED
    for (i32 c = lattice_.column; c < columns; c += lattice_.column_step()) {
      i32 p = 0;
      i32 r = lattice_.row;
      GIMBAL_ROLLED
      for (; r >= rows; ++p) r -= rows;
      i32 index = lattice_.row * columns + c;
      GIMBAL_ROLLED
      while (p < planes) {
        const Best here{f(p, r, c), index};
        if (precedes(here, best)) best = here;
        index += lattice_.row_step * columns;
        p += plane_step_;
        r += row_step_;
        if (r >= rows) {
          r -= rows;
          ++p;
        }
      }
    }
    return block_best(warp_best(best));
  }

  template <class F, class Done>
  GIMBAL_DEVICE void min_rows(i32 rows, i32 columns, F f, Done done) {
    GIMBAL_ROLLED
    for (i32 r = rank_ / kWarp; r < rows; r += size() / kWarp) {
      Best best{INT32_MAX, -1};
      GIMBAL_ROLLED
      for (i32 c = lane(); c < columns; c += kWarp) {
        const Best here{f(r, c), c};
        if (precedes(here, best)) best = here;
      }
      best = warp_best(best);
      if (lane() == 0) done(r, best);
    }
    sync();
  }

 private:
  // How threads are laid over rows of `columns`: each keeps to its columns, so that what hangs on the column alone is read
  // once. Threads beyond the last whole row have no row.
  struct Lattice {
    i32 columns, row, row_step, column;
    GIMBAL_DEVICE i32 column_step() const { return min_of(columns, size()); }
  };

  GIMBAL_DEVICE Lattice lattice_of(i32 columns) const {
    if (columns >= size()) return {columns, 0, 1, rank_};
    const i32 rows = size() / columns;
    const i32 row = rank_ / columns;
    return {columns, row, rows, row < rows ? rank_ - row * columns : columns};
  }

  GIMBAL_DEVICE i32 lane() const { return rank_ & (kWarp - 1); }
  GIMBAL_DEVICE static i32 size() { return Scope::size(); }

  // Every warp's value, one to a lane. Two buffers take turns: a value is overwritten two reductions later, and the barrier
  // of the one between comes after its last reader.
  template <class T>
  GIMBAL_DEVICE T gather(T mine, T none) {
    T* const partials = reinterpret_cast<T*>(partials_ + turn_ * (kSharedBytes / 2));
    turn_ ^= 1;
    if (lane() == 0) partials[rank_ / kWarp] = mine;
    sync();
    return lane() < size() / kWarp ? partials[lane()] : none;
  }

  GIMBAL_DEVICE Best block_best(Best best) {
    if (size() == kWarp) return best;
    return warp_best(gather(best, Best{INT32_MAX, -1}));
  }

  const i32* noise_table_;
  unsigned char* const partials_;
  const i32 rank_;
  const Lattice lattice_;
  i32 plane_step_, row_step_;
  u32 turn_ = 0;
};

using BlockTeam = DeviceTeam<BlockScope>;
using WarpTeam = DeviceTeam<WarpScope>;

}  // namespace cuda
}  // namespace gimbal
