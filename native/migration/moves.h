// The difference of two placements as moves: which expert has to come to which GPU, and which GPUs hold it already. A new
// order inside a GPU is no move; a second copy of what the GPU holds is none either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gimbal {

// Two placements of the same layers and experts. GPU ids mean the same in both; -1 is an empty slot. A view.
struct PlacementPair {
  int32_t layers = 0;
  int32_t experts = 0;
  int32_t from_gpus = 0;
  int32_t from_slots = 0;         // per GPU
  const int32_t* from = nullptr;  // [layers][from_gpus * from_slots]
  int32_t to_gpus = 0;
  int32_t to_slots = 0;         // per GPU
  const int32_t* to = nullptr;  // [layers][to_gpus * to_slots]
  std::vector<int32_t> dead_gpus;
  // [from_gpus][to_gpus]: how far a receiver is from a sender, as a rank; empty: all are alike.
  std::vector<int32_t> distance;

  int32_t gpus() const { return from_gpus > to_gpus ? from_gpus : to_gpus; }
  int32_t slots() const { return from_slots > to_slots ? from_slots : to_slots; }
  int32_t far(int32_t sender, int32_t receiver) const {
    if (distance.empty()) return 0;
    return distance[static_cast<size_t>(sender) * static_cast<size_t>(to_gpus) + static_cast<size_t>(receiver)];
  }
};

// Ordered by layer, expert and GPU.
struct Moves {
  std::vector<int32_t> layer;         // [moves]
  std::vector<int32_t> expert;        // [moves]
  std::vector<int32_t> to_gpu;        // [moves]
  std::vector<int32_t> holder_start;  // [moves + 1]
  // The live GPUs that hold the expert before, the nearest first; move m's are holder_start[m] up to holder_start[m + 1].
  // None: the expert has to come from storage.
  std::vector<int32_t> holders;
  std::vector<int32_t> dropped;  // [layers], (expert, GPU) pairs of `from` that `to` lacks

  int32_t count() const { return static_cast<int32_t>(layer.size()); }
};

// Throws Error that names the slot where an entry is no expert, and where a dead GPU is to hold one.
Moves moves_between(const PlacementPair& pair);

}  // namespace gimbal
