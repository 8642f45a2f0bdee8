#include "chain.h"

#include <algorithm>

namespace gimbal {
namespace {

class ChainSearch {
 public:
  ChainSearch(Progress& progress, int32_t layer, int32_t start, const ChainRules& rules)
      : progress_(progress),
        layer_(layer),
        start_(start),
        rules_(rules),
        came_by_(static_cast<size_t>(progress.gpus()), -1),
        came_from_(came_by_.size(), -1) {}

  std::vector<int32_t> find() {
    std::vector<int32_t> queue{start_};
    for (size_t at = 0; at < queue.size(); ++at) {
      const int32_t gpu = queue[at];
      for (const Occupant& o : progress_.occupants(progress_.slots().cell(layer_, gpu))) {
        for (int32_t id = progress_.first_arrival(layer_, o.expert); id < progress_.end_arrival(layer_, o.expert); ++id) {
          if (!is_link(id, gpu, o)) continue;
          const int32_t next = progress_.arrival(id).to_gpu;
          if (next != start_ && came_by_[static_cast<size_t>(next)] >= 0) continue;
          came_by_[static_cast<size_t>(next)] = id;
          came_from_[static_cast<size_t>(next)] = gpu;
          if (next == start_ || progress_.will_have_room(layer_, next)) return path_to(next);
          queue.push_back(next);
        }
      }
    }
    return {};
  }

 private:
  // The arrival would free the copy on `gpu` by the end of the round.
  bool is_link(int32_t id, int32_t gpu, const Occupant& o) const {
    const Arrival& a = progress_.arrival(id);
    if (a.in_round || a.sender < 0 || a.state == ArrivalState::kDone || !rules_.may_use(layer_, a.to_gpu)) return false;
    const bool is_last_copy = progress_.is_keeper(layer_, o.expert, gpu) && !progress_.is_settled(layer_, o.expert);
    if (progress_.allows_new_senders() ? !is_last_copy : o.sends > 1) return false;
    if (a.state == ArrivalState::kStaged) return is_last_copy && (o.sends == 0 || progress_.allows_new_senders());
    if (a.sender != gpu && !progress_.allows_new_senders()) return false;
    return rules_.can_send(gpu) && rules_.can_receive(a.to_gpu);
  }

  std::vector<int32_t> path_to(int32_t gpu) const {
    std::vector<int32_t> path;
    do {
      path.push_back(came_by_[static_cast<size_t>(gpu)]);
      gpu = came_from_[static_cast<size_t>(gpu)];
    } while (gpu != start_);
    std::reverse(path.begin(), path.end());
    return path;
  }

  Progress& progress_;
  int32_t layer_;
  int32_t start_;
  const ChainRules& rules_;
  std::vector<int32_t> came_by_;    // [gpus], the arrival by which the search reached it
  std::vector<int32_t> came_from_;  // [gpus]
};

}  // namespace

std::vector<int32_t> find_chain(Progress& progress, int32_t layer, int32_t start, const ChainRules& rules) {
  return ChainSearch(progress, layer, start, rules).find();
}

}  // namespace gimbal
