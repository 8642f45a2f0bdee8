#include "replay.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

namespace gimbal {
namespace test {
namespace {

using Place = std::tuple<int32_t, int32_t, int32_t>;  // layer, GPU, slot; staging slots have layer -1
using Content = std::pair<int32_t, int32_t>;          // layer, expert

struct Breach {
  std::string words;
};

class Replay {
 public:
  Replay(const PlacementPair& pair, const Schedule& schedule, int32_t staging_slots)
      : pair_(pair), schedule_(schedule), staging_slots_(staging_slots), dead_(pair.dead_gpus.begin(), pair.dead_gpus.end()) {
    each(pair.from, pair.from_gpus, pair.from_slots, [&](int32_t l, int32_t g, int32_t k, int32_t e) {
      if (e >= 0 && dead_.count(g) == 0) memory_[{l, g, k}] = {l, e};
    });
    for (const auto& [place, content] : memory_) served_.insert(content);
  }

  void run() {
    for (int32_t round = 0; round <= schedule_.rounds; ++round) {
      round_ = round;
      barrier();
      transfers();
    }
    const auto is_late = [&](const auto& step) { return step.round < 0 || step.round > schedule_.rounds; };
    require(std::none_of(schedule_.copies.begin(), schedule_.copies.end(), is_late), "a copy in no round");
    require(std::none_of(schedule_.loads.begin(), schedule_.loads.end(), is_late), "a load in no round");
    require(std::all_of(schedule_.transfers.begin(), schedule_.transfers.end(),
                        [&](const Transfer& t) { return t.round >= 0 && t.round < schedule_.rounds; }),
            "a transfer in no round");
    the_end();
  }

 private:
  template <typename Visit>
  void each(const int32_t* placement, int32_t gpus, int32_t slots, Visit visit) const {
    for (int32_t l = 0; l < pair_.layers; ++l) {
      for (int32_t g = 0; g < gpus; ++g) {
        for (int32_t k = 0; k < slots; ++k) visit(l, g, k, placement[(l * gpus + g) * slots + k]);
      }
    }
  }

  void require(bool holds, const std::string& words) const {
    if (!holds) throw Breach{"round " + std::to_string(round_) + ": " + words};
  }

  Place place(int32_t layer, int32_t gpu, int32_t slot) const {
    const int32_t slots = std::max(pair_.from_slots, pair_.to_slots);
    require(gpu >= 0 && gpu < std::max(pair_.from_gpus, pair_.to_gpus) && dead_.count(gpu) == 0, "no live GPU");
    require(slot >= 0 && slot < slots + staging_slots_, "no such slot: " + std::to_string(slot));
    return slot >= slots ? Place{-1, gpu, slot} : Place{layer, gpu, slot};
  }

  void barrier() {
    for (const LocalCopy& c : schedule_.copies) {
      if (c.round != round_) continue;
      const auto source = memory_.find(place(c.layer, c.gpu, c.from_slot));
      require(source != memory_.end() && source->second.first == c.layer, "a copy of nothing");
      memory_[place(c.layer, c.gpu, c.to_slot)] = source->second;
    }
    for (const StorageLoad& s : schedule_.loads) {
      if (s.round != round_) continue;
      require(served_.count({s.layer, s.expert}) == 0 || loaded_.count({s.layer, s.expert}) == 1, "a load of what a GPU holds");
      memory_[place(s.layer, s.to_gpu, s.to_slot)] = {s.layer, s.expert};
      loaded_.insert({s.layer, s.expert});
      served_.insert({s.layer, s.expert});
      arrived_[{s.layer, s.expert, s.to_gpu}] = 1;  // every slot of the GPU is loaded apart
    }
  }

  void transfers() {
    std::map<int32_t, Place> written;
    std::set<int32_t> sending;
    std::set<Place> read;
    std::vector<std::pair<Place, Content>> landing;
    for (const Transfer& t : schedule_.transfers) {
      if (t.round != round_) continue;
      require(sending.insert(t.from_gpu).second, "GPU " + std::to_string(t.from_gpu) + " sends twice");
      const Place source = place(t.layer, t.from_gpu, t.from_slot);
      const Place target = place(t.layer, t.to_gpu, t.to_slot);
      require(written.emplace(t.to_gpu, target).second, "GPU " + std::to_string(t.to_gpu) + " receives twice");
      require(t.from_gpu != t.to_gpu, "a GPU sends to itself");
      const auto held = memory_.find(source);
      require(held != memory_.end() && held->second == Content{t.layer, t.expert}, "a sender does not hold what it sends");
      read.insert(source);
      landing.emplace_back(target, Content{t.layer, t.expert});
      ++arrived_[{t.layer, t.expert, t.to_gpu}];
    }
    for (const auto& [target, content] : landing) {
      require(read.count(target) == 0, "a slot is read and written");
      memory_.erase(target);
    }
    // What is being written serves nobody.
    check_live();
    for (const auto& [target, content] : landing) memory_[target] = content;
    check_live();
  }

  // All that was served is in a slot from which it can be served.
  void check_live() const {
    std::set<Content> live;
    for (const auto& [where, content] : memory_) {
      if (std::get<0>(where) >= 0) live.insert(content);
    }
    for (const Content& c : served_) {
      require(live.count(c) > 0, "expert " + std::to_string(c.second) + " of layer " + std::to_string(c.first) + " is nowhere");
    }
  }

  void the_end() const {
    std::set<std::tuple<int32_t, int32_t, int32_t>> had;
    each(pair_.from, pair_.from_gpus, pair_.from_slots, [&](int32_t l, int32_t g, int32_t, int32_t e) {
      if (dead_.count(g) == 0) had.insert({l, e, g});
    });
    size_t moves = 0;
    std::set<std::tuple<int32_t, int32_t, int32_t>> seen;
    each(pair_.to, pair_.to_gpus, pair_.to_slots, [&](int32_t l, int32_t g, int32_t k, int32_t e) {
      if (e < 0) return;
      const auto now = memory_.find({l, g, k});
      require(now != memory_.end() && now->second == Content{l, e},
              "layer " + std::to_string(l) + ", GPU " + std::to_string(g) + ", slot " + std::to_string(k) + " ends wrong");
      if (had.count({l, e, g}) > 0 || !seen.insert({l, e, g}).second) return;
      ++moves;
      require(arrived_.count({l, e, g}) == 1 && arrived_.at({l, e, g}) == 1, "a move that is not made once");
    });
    require(moves == arrived_.size(), "a transfer that is no move");
  }

  const PlacementPair& pair_;
  const Schedule& schedule_;
  int32_t staging_slots_;
  std::set<int32_t> dead_;
  int32_t round_ = 0;
  std::map<Place, Content> memory_;
  std::set<Content> served_;  // experts that must stay live
  std::set<Content> loaded_;
  std::map<std::tuple<int32_t, int32_t, int32_t>, int32_t> arrived_;  // layer, expert, GPU
};

}  // namespace

std::string replay(const PlacementPair& pair, const Schedule& schedule, int32_t staging_slots) {
  try {
    Replay(pair, schedule, staging_slots).run();
    return "";
  } catch (const Breach& breach) {
    return breach.words;
  }
}

}  // namespace test
}  // namespace gimbal
