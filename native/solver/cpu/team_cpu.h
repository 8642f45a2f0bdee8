// The CPU's Team: one core, whose primitives are loops that the compiler turns into vector code.
// This header is compiled once per instruction set (see kernels.inc), always inside that file's target region.
#pragma once

#include "../../spec/order.h"
#include "../../spec/units.h"

// The bodies below never alias; saying so lets compilers vectorise them without run-time checks.
#if defined(__clang__)
#define GIMBAL_VECTOR_LOOP _Pragma("clang loop vectorize(enable)")
#elif defined(__GNUC__)
#define GIMBAL_VECTOR_LOOP _Pragma("GCC ivdep")
#else
#define GIMBAL_VECTOR_LOOP
#endif

namespace gimbal {
namespace GIMBAL_ISA {

using namespace spec;

class TeamCpu {
 public:
  // Whether it is faster to ask if an index needs work than to do work that changes nothing.
  static constexpr bool kSkipsPay = true;

  // Scratch: scores [team_scratch()].
  TeamCpu(const i32* noise_table, i32* scores) : noise_table_(noise_table), scores_(scores) {}

  const i32* noise_table() const { return noise_table_; }
  GIMBAL_SPEC void sync() {}

  template <class F>
  GIMBAL_SPEC void single(F f) {
    f();
  }

  // What one decides after the other, with a Team for small ranges.
  template <class F>
  GIMBAL_SPEC void solo(F f) {
    f(*this);
  }

  template <class F>
  GIMBAL_SPEC void for_each(i32 count, F f) {
    GIMBAL_VECTOR_LOOP
    for (i32 i = 0; i < count; ++i) f(i);
  }

  template <class T>
  GIMBAL_SPEC void copy(i32 count, const T* from, T* to) {
    for_each(count, [=](i32 i) GIMBAL_LAMBDA { to[i] = from[i]; });
  }

  template <class F>
  GIMBAL_SPEC void for_each2(i32 rows, i32 columns, F f) {
    for (i32 r = 0; r < rows; ++r) {
      GIMBAL_VECTOR_LOOP
      for (i32 c = 0; c < columns; ++c) f(r, c);
    }
  }

  // Two bodies for each (row, column), neither of which reads what the other writes.
  template <class F1, class F2>
  GIMBAL_SPEC void for_each2(i32 rows, i32 columns, F1 first, F2 second) {
    for_each2(rows, columns, first);
    for_each2(rows, columns, second);
  }

  // For one (row, column), depth runs in order.
  template <class F>
  GIMBAL_SPEC void for_each3(i32 rows, i32 depth, i32 columns, F f) {
    for (i32 r = 0; r < rows; ++r) {
      for (i32 d = 0; d < depth; ++d) {
        GIMBAL_VECTOR_LOOP
        for (i32 c = 0; c < columns; ++c) f(r, d, c);
      }
    }
  }

  // Bodies that may meet on a counter, through add().
  template <class F>
  GIMBAL_SPEC void for_each_shared(i32 count, F f) {
    for (i32 i = 0; i < count; ++i) f(i);
  }

  // One more for the counter of each id.
  GIMBAL_SPEC void tally(i32 count, const i32* ids, i32* counters) {
    for (i32 i = 0; i < count; ++i) ++counters[ids[i]];
  }

  // Returns what was there before.
  template <class T>
  GIMBAL_SPEC static T add(T* counter, T more) {
    const T before = *counter;
    *counter = before + more;
    return before;
  }

  // A store that several bodies may make, all of the same value.
  GIMBAL_SPEC static void set(i32* at, i32 value) { *at = value; }

  // The greatest of one value or more, in the type that f returns.
  template <class F>
  GIMBAL_SPEC auto max(i32 count, F f) -> decltype(f(0)) {
    auto most = least_value<decltype(f(0))>();
    GIMBAL_VECTOR_LOOP
    for (i32 i = 0; i < count; ++i) most = max_of(most, f(i));
    return most;
  }

  template <class F>
  GIMBAL_SPEC i64 sum(i32 count, F f) {
    i64 total = 0;
    GIMBAL_VECTOR_LOOP
    for (i32 i = 0; i < count; ++i) total += f(i);
    return total;
  }

  // Scores go to memory first: the loop that finds the least and the one that finds where it is both vectorise.
  template <class F>
  GIMBAL_SPEC Best argmin(i32 count, F f) {
    i32* const scores = scores_;
    i32 least = INT32_MAX;
    GIMBAL_VECTOR_LOOP
    for (i32 i = 0; i < count; ++i) {
      const i32 s = f(i);
      scores[i] = s;
      least = min_of(least, s);
    }
    return {least, find(least, count)};
  }

  // Candidates (p, r, c); the index of one is (p * rows + r) * columns + c. The least of each column is kept in memory, so
  // that lanes are only compared with each other once a plane.
  template <class F>
  GIMBAL_SPEC Best argmin3(i32 planes, i32 rows, i32 columns, F f) {
    Best best{INT32_MAX, -1};
    i32* const scores = scores_;
    i32* const column_least = scores_ + rows * columns;
    for (i32 p = 0; p < planes; ++p) {
      GIMBAL_VECTOR_LOOP
      for (i32 c = 0; c < columns; ++c) column_least[c] = INT32_MAX;
      for (i32 r = 0; r < rows; ++r) {
        i32* const row = scores + r * columns;
        GIMBAL_VECTOR_LOOP
        for (i32 c = 0; c < columns; ++c) {
          const i32 s = f(p, r, c);
          row[c] = s;
          column_least[c] = min_of(column_least[c], s);
        }
      }
      i32 least = INT32_MAX;
      GIMBAL_VECTOR_LOOP
      for (i32 c = 0; c < columns; ++c) least = min_of(least, column_least[c]);
      if (least < best.score) best = {least, p * rows * columns + find(least, rows * columns)};
    }
    return best;
  }

  // Of each row that is wanted, the totals over its columns, given to done(row, totals).
  template <class Wanted, class F, class Done>
  GIMBAL_SPEC void total_rows(i32 rows, i32 columns, Wanted wanted, F f, Done done) {
    for (i32 r = 0; r < rows; ++r) {
      if (!wanted(r)) continue;
      i32 first_max = 0, second_max = 0, sum = 0;
      GIMBAL_VECTOR_LOOP
      for (i32 c = 0; c < columns; ++c) {
        const RowTotals t = f(r, c);
        first_max = max_of(first_max, t.first_max);
        second_max = max_of(second_max, t.second_max);
        sum += t.sum;
      }
      done(r, RowTotals{first_max, second_max, sum});
    }
  }

  // The least of each row's columns, given to done(row, least), whose counters rows may share.
  template <class F, class Done>
  GIMBAL_SPEC void min_rows(i32 rows, i32 columns, F f, Done done) {
    for (i32 r = 0; r < rows; ++r) done(r, argmin(columns, [=](i32 c) GIMBAL_LAMBDA { return f(r, c); }));
  }

 private:
  // Where `value` first stands, by blocks: whether a block has it is a question that vectorises.
  GIMBAL_SPEC i32 find(i32 value, i32 count) const {
    constexpr i32 kBlock = 64;
    const i32* const scores = scores_;
    i32 from = 0;
    for (; from + kBlock <= count; from += kBlock) {
      i32 here = 0;
      for (i32 i = 0; i < kBlock; ++i) here |= scores[from + i] == value ? 1 : 0;
      if (here) break;
    }
    for (i32 i = from; i < count; ++i) {
      if (scores[i] == value) return i;
    }
    return -1;
  }

  const i32* noise_table_;
  i32* scores_;
};

}  // namespace GIMBAL_ISA
}  // namespace gimbal
