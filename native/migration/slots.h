// What lies in the slots of every GPU while a migration runs, and the local copies that make room. A copy is plain: it reads one
// slot and writes another, in the order of the list, and overwrites nothing that is still needed. Slots from `slots` on are
// staging slots, which all layers of a GPU share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moves.h"

namespace gimbal {

struct LocalCopy {
  int32_t round = 0;  // made when so many rounds are over, before the next one starts
  int32_t layer = 0;
  int32_t gpu = 0;
  int32_t from_slot = 0;  // within the GPU
  int32_t to_slot = 0;
};

class Slots {
 public:
  explicit Slots(const PlacementPair& pair);

  // Slots of a GPU in one layer, staging apart: the more of the two placements.
  int32_t count() const { return slots_; }
  size_t cell(int32_t layer, int32_t gpu) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(gpus_) + static_cast<size_t>(gpu);
  }
  // [count()] each: what a slot holds that is needed, and what it shall hold; -1: nothing.
  const int32_t* now(size_t cell) const { return &now_[cell * static_cast<size_t>(slots_)]; }
  const int32_t* target(size_t cell) const { return &target_[cell * static_cast<size_t>(slots_)]; }
  bool holds(size_t cell, int32_t expert) const { return find(cell, expert) >= 0; }
  // The slot where a copy of the expert lies; -1: none.
  int32_t find(size_t cell, int32_t expert) const;

  // The GPU has what the slot shall hold; where several slots shall hold it, one that does, else the first.
  bool is_settled(size_t cell, int32_t slot) const;

  // What a slot held is needed no more.
  void forget(size_t cell, int32_t slot) { now_[cell * static_cast<size_t>(slots_) + static_cast<size_t>(slot)] = -1; }
  void put(size_t cell, int32_t slot, int32_t expert) {
    now_[cell * static_cast<size_t>(slots_) + static_cast<size_t>(slot)] = expert;
  }

  // Moves what stays to its own slot and the rest out of `slot`, which is empty then. There must be a slot to spare.
  void clear_slot(int32_t layer, int32_t gpu, int32_t slot, int32_t round, std::vector<LocalCopy>* copies);
  // Puts all to where it shall be at the end, second copies on a GPU included. Returns false where contents go round in a
  // circle and neither the layer has an empty slot on that GPU nor `staging` a place; else says whether it took one.
  bool finish(int32_t layer, int32_t gpu, bool may_stage, int32_t round, std::vector<LocalCopy>* copies, bool* staged);

 private:
  bool rearrange(int32_t layer, int32_t gpu, bool may_stage, int32_t round, std::vector<LocalCopy>* copies, bool* staged);
  int32_t gpus_;
  int32_t slots_;
  std::vector<int32_t> now_;     // [layers][gpus][slots]
  std::vector<int32_t> target_;  // [layers][gpus][slots]
  std::vector<int32_t> want_;    // [slots], of the rearrangement under way
};

}  // namespace gimbal
