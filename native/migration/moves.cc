#include "moves.h"

#include <algorithm>
#include <string>

#include "../model/errors.h"

namespace gimbal {
namespace {

void check_entries(const char* field, const int32_t* placement, int32_t width, const PlacementPair& pair) {
  for (int64_t i = 0; i < int64_t{pair.layers} * width; ++i) {
    const int32_t e = placement[i];
    if (e >= -1 && e < pair.experts) continue;
    throw Error(ErrorCode::kInvalidInput, field,
                "expert ids from 0 to " + std::to_string(pair.experts - 1) + ", or -1 for an empty slot",
                std::to_string(e) + " in layer " + std::to_string(i / width) + ", slot " + std::to_string(i % width));
  }
}

void check_dead(const PlacementPair& pair) {
  for (int32_t l = 0; l < pair.layers; ++l) {
    for (const int32_t g : pair.dead_gpus) {
      if (g >= pair.to_gpus) continue;
      const int32_t* row = pair.to + (int64_t{l} * pair.to_gpus + g) * pair.to_slots;
      for (int32_t k = 0; k < pair.to_slots; ++k) {
        if (row[k] < 0) continue;
        throw Error(ErrorCode::kInvalidInput, "to", "-1 in the slots of a dead GPU",
                    "expert " + std::to_string(row[k]) + " in layer " + std::to_string(l) + " on GPU " + std::to_string(g));
      }
    }
  }
}

// The GPUs of each expert in one layer, ascending, each once.
void read_gpus(const int32_t* row, int32_t gpus, int32_t slots, std::vector<std::vector<int32_t>>* by_expert) {
  for (std::vector<int32_t>& list : *by_expert) list.clear();
  for (int32_t m = 0; m < gpus * slots; ++m) {
    if (row[m] < 0) continue;
    std::vector<int32_t>& list = (*by_expert)[static_cast<size_t>(row[m])];
    if (list.empty() || list.back() != m / slots) list.push_back(m / slots);
  }
}

int32_t count_missing(const std::vector<int32_t>& from, const std::vector<int32_t>& in) {
  return static_cast<int32_t>(
      std::count_if(from.begin(), from.end(), [&](int32_t g) { return !std::binary_search(in.begin(), in.end(), g); }));
}

}  // namespace

Moves moves_between(const PlacementPair& pair) {
  check_entries("from", pair.from, pair.from_gpus * pair.from_slots, pair);
  check_entries("to", pair.to, pair.to_gpus * pair.to_slots, pair);
  check_dead(pair);
  std::vector<uint8_t> is_dead(static_cast<size_t>(pair.gpus()), 0);
  for (const int32_t g : pair.dead_gpus) is_dead[static_cast<size_t>(g)] = 1;
  std::vector<std::vector<int32_t>> held(static_cast<size_t>(pair.experts));
  std::vector<std::vector<int32_t>> wanted(static_cast<size_t>(pair.experts));
  Moves moves;
  moves.dropped.assign(static_cast<size_t>(pair.layers), 0);
  moves.holder_start.push_back(0);
  for (int32_t l = 0; l < pair.layers; ++l) {
    read_gpus(pair.from + int64_t{l} * pair.from_gpus * pair.from_slots, pair.from_gpus, pair.from_slots, &held);
    read_gpus(pair.to + int64_t{l} * pair.to_gpus * pair.to_slots, pair.to_gpus, pair.to_slots, &wanted);
    for (int32_t e = 0; e < pair.experts; ++e) {
      const std::vector<int32_t>& had = held[static_cast<size_t>(e)];
      moves.dropped[static_cast<size_t>(l)] += count_missing(had, wanted[static_cast<size_t>(e)]);
      for (const int32_t g : wanted[static_cast<size_t>(e)]) {
        if (std::binary_search(had.begin(), had.end(), g)) continue;
        moves.layer.push_back(l);
        moves.expert.push_back(e);
        moves.to_gpu.push_back(g);
        const auto first = static_cast<std::ptrdiff_t>(moves.holders.size());
        std::copy_if(had.begin(), had.end(), std::back_inserter(moves.holders),
                     [&](int32_t f) { return !is_dead[static_cast<size_t>(f)]; });
        std::stable_sort(moves.holders.begin() + first, moves.holders.end(),
                         [&](int32_t a, int32_t b) { return pair.far(a, g) < pair.far(b, g); });
        moves.holder_start.push_back(static_cast<int32_t>(moves.holders.size()));
      }
    }
  }
  return moves;
}

}  // namespace gimbal
