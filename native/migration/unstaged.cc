#include "unstaged.h"

#include <algorithm>
#include <vector>

namespace gimbal {
namespace {

bool will_settle(Progress& progress, int32_t layer, int32_t expert) {
  if (progress.is_settled(layer, expert)) return true;
  for (int32_t i = progress.first_arrival(layer, expert); i < progress.end_arrival(layer, expert); ++i) {
    if (progress.arrival(i).in_round) return true;
  }
  return false;
}

// [gpus]: empty slots after the round, keepers' apart.
std::vector<int32_t> count_room(Progress& progress, int32_t layer) {
  std::vector<int32_t> room(static_cast<size_t>(progress.gpus()), 0);
  for (int32_t g = 0; g < progress.gpus(); ++g) {
    const size_t c = progress.slots().cell(layer, g);
    int32_t& here = room[static_cast<size_t>(g)];
    here = progress.unsettled_slots(c);
    for (const Occupant& o : progress.occupants(c)) {
      if (progress.is_keeper(layer, o.expert, g) && !will_settle(progress, layer, o.expert)) --here;
    }
  }
  return room;
}

bool arrives_with_room(Progress& progress, int32_t layer, int32_t expert, const std::vector<int32_t>& room) {
  for (int32_t i = progress.first_arrival(layer, expert); i < progress.end_arrival(layer, expert); ++i) {
    if (room[static_cast<size_t>(progress.arrival(i).to_gpu)] > 0) return true;
  }
  return false;
}

}  // namespace

int32_t count_stranded(Progress& progress, int32_t layer, int32_t* first) {
  std::vector<int32_t> room = count_room(progress, layer);
  std::vector<int32_t> waiting;  // arrivals of unsettled experts
  const int32_t experts = progress.experts();
  for (int32_t i = progress.first_arrival(layer, 0); i < progress.end_arrival(layer, experts - 1); ++i) {
    const Arrival& a = progress.arrival(i);
    if (a.in_round) --room[static_cast<size_t>(a.to_gpu)];
    if (a.sender >= 0 && !will_settle(progress, layer, a.expert)) waiting.push_back(i);
  }
  for (bool grew = true; grew;) {
    grew = false;
    std::vector<int32_t> still;
    for (const int32_t i : waiting) {
      const Arrival& a = progress.arrival(i);
      if (room[static_cast<size_t>(a.to_gpu)] <= 0) {
        still.push_back(i);
        continue;
      }
      // A slot passes through here: the keeper is reached. What is counted is whether, not how many.
      int32_t& next = room[static_cast<size_t>(progress.keeper(layer, a.expert))];
      next = std::max(next, 1);
      grew = true;
    }
    waiting.swap(still);
  }
  int32_t stranded = 0;
  int32_t last = -1;
  for (const int32_t i : waiting) {
    const int32_t e = progress.arrival(i).expert;
    if (e == last || arrives_with_room(progress, layer, e, room)) continue;
    last = e;
    if (stranded++ == 0 && first != nullptr) *first = e;
  }
  return stranded;
}

void choose_unstaged_keepers(Progress& progress) {
  for (int32_t l = 0; l < progress.layers(); ++l) {
    int32_t stranded = count_stranded(progress, l, nullptr);
    for (bool better = true; better && stranded > 0;) {
      better = false;
      for (int32_t e = 0; e < progress.experts(); ++e) {
        if (progress.is_settled(l, e) || progress.keeper(l, e) < 0) continue;
        for (int32_t g = 0; g < progress.gpus(); ++g) {
          const int32_t keeper = progress.keeper(l, e);
          if (g == keeper || !progress.slots().holds(progress.slots().cell(l, g), e)) continue;
          progress.set_keeper(l, e, g);
          const int32_t now = count_stranded(progress, l, nullptr);
          if (now < stranded) {
            stranded = now;
            better = true;
          } else {
            progress.set_keeper(l, e, keeper);
          }
        }
      }
    }
  }
}

}  // namespace gimbal
