// The CPU's Team: one core, whose primitives are loops that the compiler turns into vector code.
// This header is compiled once per instruction set (see kernels.inc), always inside that file's target region.
#pragma once

#include "../../spec/order.h"
#include "../../spec/tables.h"
#include "../../spec/units.h"

namespace gimbal {
namespace GIMBAL_ISA {

using namespace spec;

class TeamCpu {
 public:
  TeamCpu(const i32* noise_table, i32* scores) : noise_table_(noise_table), scores_(scores) {}

  const i32* noise_table() const { return noise_table_; }
  GIMBAL_SPEC void sync() {}

  template <class F>
  GIMBAL_SPEC void single(F f) {
    f();
  }

  template <class F>
  GIMBAL_SPEC void for_each(i32 count, F f) {
    GIMBAL_VECTOR_LOOP
    for (i32 i = 0; i < count; ++i) f(i);
  }

  template <class F>
  GIMBAL_SPEC void for_each2(i32 rows, i32 columns, F f) {
    for (i32 r = 0; r < rows; ++r) {
      GIMBAL_VECTOR_LOOP
      for (i32 c = 0; c < columns; ++c) f(r, c);
    }
  }

  template <class F>
  GIMBAL_SPEC i32 max(i32 count, F f) {
    i32 most = INT32_MIN;
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
