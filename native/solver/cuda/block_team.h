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
#define GIMBAL_WARP_REDUCE 1
#else
#define GIMBAL_WARP_REDUCE 0
#endif

#if GIMBAL_WARP_REDUCE
GIMBAL_DEVICE i32 warp_sum(i32 x) { return __reduce_add_sync(kAllLanes, x); }
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
GIMBAL_DEVICE i32 warp_sum(i32 x) {
  for (i32 lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}
#endif

#if GIMBAL_WARP_REDUCE
// By halves: the greatest upper one, and among those that have it the greatest lower one.
GIMBAL_DEVICE i64 warp_max(i64 x) {
  const i32 high = static_cast<i32>(x >> 32);
  const i32 most = warp_max(high);
  const u32 low = warp_max(high == most ? static_cast<u32>(x) : 0u);
  return static_cast<i64>(static_cast<u64>(static_cast<u32>(most)) << 32 | low);
}

// By parts of 26, 26 and 12 bits, whose sums fit 32.
GIMBAL_DEVICE i64 warp_sum(i64 x) {
  constexpr u64 kPart = (u64{1} << 26) - 1;
  const u64 bits = static_cast<u64>(x);
  const u64 low = static_cast<u32>(warp_sum(static_cast<i32>(bits & kPart)));
  const u64 middle = static_cast<u32>(warp_sum(static_cast<i32>(bits >> 26 & kPart)));
  const u64 high = static_cast<u32>(warp_sum(static_cast<i32>(bits >> 52)));
  return static_cast<i64>((high << 52) + (middle << 26) + low);
}
#else
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
#endif

// The sum of the lanes' totals, each of numbers of type T. Where these have 32 bits, and all together sum to less than 2^47, the
// sum is made in halves that fit the warp's own addition: as integers that wrap, which the lanes' own halves may.
GIMBAL_DEVICE i64 warp_sum_of(i64 total, i64) { return warp_sum(total); }
GIMBAL_DEVICE i64 warp_sum_of(i64 total, i32) {
  const i64 low = warp_sum(static_cast<i32>(total & 0xFFFF));
  const i64 high = warp_sum(static_cast<i32>(total >> 16));
  return high * 65536 + low;
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
  static constexpr bool kSkipsPay = false;
  // What a block's Team needs of its shared memory, 8-byte aligned; a warp's needs none.
  static constexpr u32 kSharedBytes = 2 * (kMostThreads / kWarp) * 8;

  // Rows of `stride` are dealt out without a division.
  GIMBAL_DEVICE DeviceTeam(const i32* noise_table, unsigned char* shared, i32 stride)
      : noise_table_(noise_table), partials_(shared), rank_(Scope::rank()), lattice_(lattice_of(stride)) {}

  GIMBAL_DEVICE const i32* noise_table() const { return noise_table_; }
  GIMBAL_DEVICE void sync() { Scope::sync(); }

  template <class F>
  GIMBAL_DEVICE void single(F f) {
    sync();
    if (rank_ == 0) f();
    sync();
  }

  // One warp works, with a Team of its own; the others wait.
  template <class F>
  GIMBAL_DEVICE void solo(F f) {
    sync();
    if (rank_ < kWarp) {
      DeviceTeam<WarpScope> one(noise_table_, nullptr, lattice_.columns);
      f(one);
    }
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

  GIMBAL_DEVICE void tally(i32 count, const i32* ids, i32* counters) {
    stride_through(rank_, count, size(), [=](i32 i) { add(&counters[ids[i]], 1); });
    sync();
  }

  // Four numbers of a thread are on their way at once.
  template <class T>
  GIMBAL_DEVICE void copy(i32 count, const T* from, T* to) {
    const i32 step = size();
    i32 i = rank_;
    GIMBAL_ROLLED
    for (; i + 3 * step < count; i += 4 * step) {
      const T a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
      to[i] = a;
      to[i + step] = b;
      to[i + 2 * step] = c;
      to[i + 3 * step] = d;
    }
    GIMBAL_ROLLED
    for (; i < count; i += step) to[i] = from[i];
    sync();
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

  template <class F1, class F2>
  GIMBAL_DEVICE void for_each2(i32 rows, i32 columns, F1 first, F2 second) {
    const Lattice at = columns == lattice_.columns ? lattice_ : lattice_of(columns);
    GIMBAL_ROLLED
    for (i32 c = at.column; c < columns; c += at.column_step()) {
      stride_through(at.row, rows, at.row_step, [=](i32 r) {
        first(r, c);
        second(r, c);
      });
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
    stride_through(first, count, step, [&](i32 i) { most = max_of(most, static_cast<T>(f(i))); });
    most = warp_max(most);
    if (count <= kWarpRange || size() == kWarp) return most;
    return warp_max(gather(most, least_value<T>()));
  }

  template <class F>
  GIMBAL_DEVICE i64 sum(i32 count, F f) {
    using T = decltype(f(0));
    const i32 first = count <= kWarpRange ? lane() : rank_;
    const i32 step = count <= kWarpRange ? kWarp : size();
    i64 total = 0;
    GIMBAL_ROLLED
    for (i32 i = first; i < count; i += step) total += f(i);
    total = warp_sum_of(total, T{0});
    if (count <= kWarpRange || size() == kWarp) return total;
    return warp_sum_of(gather(total, i64{0}), T{0});
  }

  template <class F>
  GIMBAL_DEVICE Best argmin(i32 count, F f) {
    const i32 first = count <= kWarpRange ? lane() : rank_;
    const i32 step = count <= kWarpRange ? kWarp : size();
    Best best = no_candidate();
    GIMBAL_UNROLLED
    for (i32 i = first; i < count; i += step) {  // of equals the first is the least
      const i32 score = f(i);
      if (score < best.score || best.index < 0) best = {score, i};
    }
    best = warp_best(best);
    if (count <= kWarpRange) return best;
    return block_best(best);
  }

  // A thread keeps to its columns and takes three rows at a time, planes innermost: what hangs on the row alone or on the plane
  // alone is read once for all.
  template <class F>
  GIMBAL_DEVICE Best argmin3(i32 planes, i32 rows, i32 columns, F f) {
    Best best = no_candidate();
    const i32 step = lattice_.row_step;
    GIMBAL_ROLLED
    for (i32 c = lattice_.column; c < columns; c += lattice_.column_step()) {
      i32 r = lattice_.row;
      GIMBAL_ROLLED
      for (; r + 2 * step < rows; r += 3 * step) {
        Best x = no_candidate(), y = no_candidate(), z = no_candidate();
        GIMBAL_ROLLED
        for (i32 p = 0; p < planes; ++p) {
          take_plane(f(p, r, c), p, &x);
          take_plane(f(p, r + step, c), p, &y);
          take_plane(f(p, r + 2 * step, c), p, &z);
        }
        take_row(x, rows, columns, r, c, &best);
        take_row(y, rows, columns, r + step, c, &best);
        take_row(z, rows, columns, r + 2 * step, c, &best);
      }
      GIMBAL_ROLLED
      for (; r < rows; r += step) {
        Best x = no_candidate();
        GIMBAL_ROLLED
        for (i32 p = 0; p < planes; ++p) take_plane(f(p, r, c), p, &x);
        take_row(x, rows, columns, r, c, &best);
      }
    }
    return block_best(warp_best(best));
  }

  // A warp for each row, which looks for rows that are wanted among 32 at a time.
  template <class Wanted, class F, class Done>
  GIMBAL_DEVICE void total_rows(i32 rows, i32 columns, Wanted wanted, F f, Done done) {
    GIMBAL_ROLLED
    for (i32 from = rank_ / kWarp * kWarp; from < rows; from += size()) {
      const i32 mine = from + lane();
      u32 left = __ballot_sync(kAllLanes, mine < rows && wanted(mine) ? 1 : 0);
      GIMBAL_ROLLED
      while (left != 0) {  // two at a time, so that each waits for memory while the other does; the last one perhaps twice
        const i32 first = from + take_lowest(&left);
        const i32 second = left != 0 ? from + take_lowest(&left) : first;
        RowTotals a{0, 0, 0}, b{0, 0, 0};
        if (lane() < columns) {  // most rows are no longer: before a loop, what hangs on the row alone would be waited for
          a = f(first, lane());
          b = f(second, lane());
        }
        GIMBAL_ROLLED
        for (i32 c = lane() + kWarp; c < columns; c += kWarp) {
          a = joined(a, f(first, c));
          b = joined(b, f(second, c));
        }
        a = {warp_max(a.first_max), warp_max(a.second_max), warp_sum(a.sum)};
        b = {warp_max(b.first_max), warp_max(b.second_max), warp_sum(b.sum)};
        if (lane() == 0) {
          done(first, a);
          done(second, b);
        }
      }
    }
    sync();
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

  // f(i) for i = first, first + step, ... below count, three at a time: what they read from memory is on its way at once.
  // Written out, for a compiler that unrolls a loop of unknown length asks before each turn whether it is the last. For short
  // bodies and for those that wait: elsewhere the copies only make the code longer.
  template <class F>
  GIMBAL_DEVICE static void stride_through(i32 first, i32 count, i32 step, F f) {
    i32 i = first;
    GIMBAL_ROLLED
    for (; i + 2 * step < count; i += 3 * step) {
      f(i);
      f(i + step);
      f(i + 2 * step);
    }
    GIMBAL_ROLLED
    for (; i < count; i += step) f(i);
  }

  GIMBAL_DEVICE static Best no_candidate() { return {INT32_MAX, -1}; }
  // Planes come in rising order, so of equals the first is the least.
  GIMBAL_DEVICE static void take_plane(i32 score, i32 plane, Best* least) {
    least->index = score < least->score ? plane : least->index;
    least->score = min_of(score, least->score);
  }
  GIMBAL_DEVICE static void take_row(Best least, i32 rows, i32 columns, i32 row, i32 column, Best* best) {
    const Best here{least.score, (max_of(least.index, 0) * rows + row) * columns + column};
    if (precedes(here, *best)) *best = here;
  }

  GIMBAL_DEVICE static i32 take_lowest(u32* bits) {
    const i32 lowest = __ffs(static_cast<int>(*bits)) - 1;
    *bits &= *bits - 1;
    return lowest;
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
  u32 turn_ = 0;
};

using BlockTeam = DeviceTeam<BlockScope>;
using WarpTeam = DeviceTeam<WarpScope>;

}  // namespace cuda
}  // namespace gimbal
