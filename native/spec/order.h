// Total orders: every choice is by (value, id), so that any order of evaluation gives the same answer.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

// The least score and the least index that has it.
struct Best {
  i32 score;
  i32 index;  // -1: no candidate
};

GIMBAL_SPEC bool precedes(Best a, Best b) {
  if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
  return a.score < b.score || (a.score == b.score && a.index < b.index);
}

// The most and the second most loaded GPU's values, the most loaded's id being the least among equals.
struct TopTwo {
  i32 first;
  i32 second;
  i32 first_gpu;
};

// Of a row: two maxima, of numbers from 0 on, and a sum.
struct RowTotals {
  i32 first_max;
  i32 second_max;
  i32 sum;
};

GIMBAL_SPEC RowTotals joined(RowTotals a, RowTotals b) {
  return {max_of(a.first_max, b.first_max), max_of(a.second_max, b.second_max), a.sum + b.sum};
}

}  // namespace spec
}  // namespace gimbal
