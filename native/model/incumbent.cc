// Reads the incumbent by its (expert, GPU) pairs alone: the order of slots inside a GPU, and its shape, do not matter.
//
// Forced pairs. An expert without a live replica needs a new pair; so does a slot that no incumbent pair can fill (a GPU
// that joined, or more slots per GPU). `start` has just these: what it adds to the incumbent is the least that is whole.
#include "incumbent.h"

#include <algorithm>
#include <string>

#include "errors.h"

namespace gimbal {
namespace {

class Builder {
 public:
  Builder(const Quantised& q, const int64_t* heat)
      : q_(q),
        heat_(heat),
        stride_(spec::padded_gpus(q.gpus)),
        start_(static_cast<size_t>(q.gpus) * static_cast<size_t>(q.slots), -1),
        used_(static_cast<size_t>(q.gpus), 0),
        copies_(static_cast<size_t>(q.experts) * static_cast<size_t>(stride_), 0),
        replicas_(static_cast<size_t>(q.experts), 0) {}

  // Keeps the incumbent's pairs that fit: first one for every expert that can have one, then the hottest others.
  void keep(const std::vector<std::vector<int32_t>>& by_gpu) {
    keeper_.assign(static_cast<size_t>(q_.experts), -1);
    kept_.assign(static_cast<size_t>(q_.gpus), {});
    for (int32_t e = 0; e < q_.experts; ++e) {
      visited_.assign(static_cast<size_t>(q_.gpus), 0);
      find_keeper(e, by_gpu);
    }
    for (int32_t e = 0; e < q_.experts; ++e) {
      if (keeper_[static_cast<size_t>(e)] >= 0) put(e, keeper_[static_cast<size_t>(e)]);
    }
    for (int32_t g = 0; g < q_.gpus; ++g) {
      std::vector<int32_t> others = by_gpu[static_cast<size_t>(g)];
      for (int32_t e : kept_[static_cast<size_t>(g)]) others.erase(std::find(others.begin(), others.end(), e));
      std::stable_sort(others.begin(), others.end(), [&](int32_t a, int32_t b) {
        return heat_[static_cast<size_t>(a)] > heat_[static_cast<size_t>(b)];
      });
      for (size_t n = 0; n < others.size() && used_[static_cast<size_t>(g)] < q_.slots; ++n) put(others[n], g);
    }
  }

  // Gives every expert without a replica a slot, and fills the empty ones.
  void make_whole() {
    for (int32_t e = 0; e < q_.experts; ++e) {
      if (replicas_[static_cast<size_t>(e)] > 0) continue;
      if (!put_in_empty_slot(e)) put_over_surplus(e);
    }
    for (int32_t g = 0; g < q_.gpus; ++g) {
      while (used_[static_cast<size_t>(g)] < q_.slots) put(hottest_for(g), g);
    }
  }

  const std::vector<int32_t>& start() const { return start_; }

 private:
  // An augmenting path of bipartite matching, experts to GPUs of `slots` places each, so that where GPUs must drop pairs
  // (fewer slots than before) as many experts as possible keep one.
  bool find_keeper(int32_t e, const std::vector<std::vector<int32_t>>& by_gpu) {
    for (int32_t g = 0; g < q_.gpus; ++g) {
      const auto& held = by_gpu[static_cast<size_t>(g)];
      if (visited_[static_cast<size_t>(g)] || std::find(held.begin(), held.end(), e) == held.end()) continue;
      visited_[static_cast<size_t>(g)] = 1;
      auto& kept = kept_[static_cast<size_t>(g)];
      if (static_cast<int32_t>(kept.size()) < q_.slots) {
        kept.push_back(e);
        keeper_[static_cast<size_t>(e)] = g;
        return true;
      }
      for (int32_t& other : kept) {
        const int32_t moving = other;
        if (!find_keeper(moving, by_gpu)) continue;
        other = e;
        keeper_[static_cast<size_t>(e)] = g;
        return true;
      }
    }
    return false;
  }

  size_t cell(int32_t e, int32_t g) const { return static_cast<size_t>(e) * static_cast<size_t>(stride_) + static_cast<size_t>(g); }

  void put(int32_t e, int32_t g) {
    start_[static_cast<size_t>(g) * static_cast<size_t>(q_.slots) + static_cast<size_t>(used_[static_cast<size_t>(g)]++)] = e;
    ++copies_[cell(e, g)];
    ++replicas_[static_cast<size_t>(e)];
  }

  bool put_in_empty_slot(int32_t e) {
    int32_t emptiest = -1;
    for (int32_t g = 0; g < q_.gpus; ++g) {
      if (used_[static_cast<size_t>(g)] >= q_.slots) continue;
      if (emptiest < 0 || used_[static_cast<size_t>(g)] < used_[static_cast<size_t>(emptiest)]) emptiest = g;
    }
    if (emptiest < 0) return false;
    put(e, emptiest);
    return true;
  }

  // Takes the slot of the replica that is missed least: the expert with the least heat per replica that is left.
  void put_over_surplus(int32_t e) {
    size_t best = start_.size();
    int64_t best_heat = 0;
    for (size_t m = 0; m < start_.size(); ++m) {
      const int32_t f = start_[m];
      const int32_t n = replicas_[static_cast<size_t>(f)];
      if (n < 2) continue;
      const int64_t heat = heat_[static_cast<size_t>(f)] / (n - 1);
      if (best == start_.size() || heat < best_heat) {
        best = m;
        best_heat = heat;
      }
    }
    // There are at least as many live slots as experts and e has none, so some expert has two.
    const int32_t g = static_cast<int32_t>(best / static_cast<size_t>(q_.slots));
    const int32_t f = start_[best];
    --copies_[cell(f, g)];
    --replicas_[static_cast<size_t>(f)];
    start_[best] = e;
    ++copies_[cell(e, g)];
    ++replicas_[static_cast<size_t>(e)];
  }

  // The hottest expert that may still come to g; where duplicates are allowed one that g holds already is no transfer.
  int32_t hottest_for(int32_t g) const {
    int32_t best = -1;
    if (q_.allow_duplicates && used_[static_cast<size_t>(g)] > 0) return start_[static_cast<size_t>(g) * static_cast<size_t>(q_.slots)];
    for (int32_t e = 0; e < q_.experts; ++e) {
      if (!q_.allow_duplicates && copies_[cell(e, g)] > 0) continue;
      if (best < 0 || heat_[static_cast<size_t>(e)] / replicas_[static_cast<size_t>(e)] >
                          heat_[static_cast<size_t>(best)] / replicas_[static_cast<size_t>(best)]) {
        best = e;
      }
    }
    return best;
  }

  const Quantised& q_;
  const int64_t* heat_;  // [experts]
  const int32_t stride_;
  std::vector<int32_t> start_;
  std::vector<int32_t> used_;
  std::vector<uint8_t> copies_;
  std::vector<int32_t> replicas_;
  // The matching: each expert's GPU (-1: none yet), and the experts each GPU keeps for it.
  std::vector<int32_t> keeper_;
  std::vector<std::vector<int32_t>> kept_;
  std::vector<char> visited_;
};

// Distinct (expert, GPU) pairs of a placement [gpus][slots] that the incumbent lacks.
int64_t count_new_pairs(const Quantised& q, const Incumbent& incumbent, const int32_t* placement) {
  const size_t stride = static_cast<size_t>(spec::padded_gpus(q.gpus));
  int64_t count = 0;
  for (int32_t g = 0; g < q.gpus; ++g) {
    const int32_t* row = placement + static_cast<size_t>(g) * static_cast<size_t>(q.slots);
    for (int32_t k = 0; k < q.slots; ++k) {
      if (incumbent.held[static_cast<size_t>(row[k]) * stride + static_cast<size_t>(g)] > 0) continue;
      count += std::find(row, row + k, row[k]) == row + k;  // a second copy on the GPU is no second transfer
    }
  }
  return count;
}

}  // namespace

void check_incumbent(const ProblemInput& in) {
  if (in.incumbent == nullptr) return;
  if (in.incumbent_gpus < 1 || in.incumbent_slots_per_gpu < 1) {
    throw Error(ErrorCode::kInvalidInput, "incumbent", "at least one GPU and one slot per GPU",
                std::to_string(in.incumbent_gpus) + " x " + std::to_string(in.incumbent_slots_per_gpu));
  }
  const int64_t per_layer = int64_t{in.incumbent_gpus} * in.incumbent_slots_per_gpu;
  for (int64_t i = 0; i < per_layer * in.layers; ++i) {
    const int32_t e = in.incumbent[i];
    if (e >= -1 && e < in.experts) continue;
    throw Error(ErrorCode::kInvalidInput, "incumbent",
                "expert ids from 0 to " + std::to_string(in.experts - 1) + ", or -1 for an empty slot",
                std::to_string(e) + " in layer " + std::to_string(i / per_layer) + ", slot " +
                    std::to_string(i % per_layer));
  }
}

Incumbent read_incumbent(const ProblemInput& in, const Quantised& q, int32_t layer, const int64_t* heat) {
  const int32_t stride = spec::padded_gpus(q.gpus);
  Incumbent result;
  result.held.assign(static_cast<size_t>(q.experts) * static_cast<size_t>(stride), 0);
  std::vector<std::vector<int32_t>> by_gpu(static_cast<size_t>(q.gpus));
  const int64_t per_layer = int64_t{in.incumbent_gpus} * in.incumbent_slots_per_gpu;
  const int32_t* row = in.incumbent + per_layer * layer;
  for (int32_t g = 0; g < in.incumbent_gpus && g < q.all_gpus; ++g) {
    const int32_t live = q.live_index[static_cast<size_t>(g)];
    if (live < 0) continue;
    for (int32_t k = 0; k < in.incumbent_slots_per_gpu; ++k) {
      const int32_t e = row[int64_t{g} * in.incumbent_slots_per_gpu + k];
      if (e < 0) continue;
      uint8_t& copies = result.held[static_cast<size_t>(e) * static_cast<size_t>(stride) + static_cast<size_t>(live)];
      if (copies == 255) continue;
      ++copies;
      by_gpu[static_cast<size_t>(live)].push_back(e);
    }
  }
  Builder builder(q, heat);
  builder.keep(by_gpu);
  builder.make_whole();
  result.start = builder.start();
  result.forced = static_cast<int32_t>(count_new_pairs(q, result, result.start.data()));
  return result;
}

}  // namespace gimbal
