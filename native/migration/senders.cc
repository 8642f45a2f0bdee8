// First greedily, then along alternating paths: a GPU with the most sends gives one to another holder of that expert, which
// gives one of its own to a third, and so on to a GPU with at least two sends less. Where no such path is left, no choice has
// a lower maximum (the usual argument for semi-matchings: the GPUs that can be reached have no room at all).
#include "senders.h"

#include <algorithm>

namespace gimbal {
namespace {

class Senders {
 public:
  Senders(const Moves& moves, int32_t gpus)
      : moves_(moves),
        sender_(static_cast<size_t>(moves.count()), -1),
        sends_(static_cast<size_t>(gpus), 0),
        by_gpu_(static_cast<size_t>(gpus)) {}

  std::vector<int32_t> choose() {
    start();
    while (relieve_busiest()) {
    }
    return sender_;
  }

 private:
  // Moves with few holders have no choice and go first.
  void start() {
    std::vector<int32_t> order;
    for (int32_t m = 0; m < moves_.count(); ++m) {
      if (holder_count(m) > 0) order.push_back(m);
    }
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return holder_count(a) < holder_count(b); });
    for (const int32_t m : order) {
      int32_t best = moves_.holders[first(m)];
      for (size_t i = first(m); i < end(m); ++i) {
        if (sends(moves_.holders[i]) < sends(best)) best = moves_.holders[i];
      }
      give(m, best);
    }
  }

  // One send less for a GPU that has the most; false where that cannot be.
  bool relieve_busiest() {
    const int32_t most = *std::max_element(sends_.begin(), sends_.end());
    came_by_.assign(sends_.size(), -1);
    std::vector<int32_t> queue;
    std::vector<uint8_t> seen(sends_.size(), 0);
    for (size_t g = 0; g < sends_.size(); ++g) {
      if (sends_[g] != most || most == 0) continue;
      seen[g] = 1;
      queue.push_back(static_cast<int32_t>(g));
    }
    for (size_t at = 0; at < queue.size(); ++at) {
      for (const int32_t m : by_gpu_[static_cast<size_t>(queue[at])]) {
        for (size_t i = first(m); i < end(m); ++i) {
          const int32_t other = moves_.holders[i];
          if (seen[static_cast<size_t>(other)]) continue;
          seen[static_cast<size_t>(other)] = 1;
          came_by_[static_cast<size_t>(other)] = m;
          if (sends(other) <= most - 2) {
            shift_to(other);
            return true;
          }
          queue.push_back(other);
        }
      }
    }
    return false;
  }

  // Every GPU on the path gives the move by which the next one was reached.
  void shift_to(int32_t gpu) {
    while (came_by_[static_cast<size_t>(gpu)] >= 0) {
      const int32_t m = came_by_[static_cast<size_t>(gpu)];
      const int32_t giver = sender_[static_cast<size_t>(m)];
      std::vector<int32_t>& list = by_gpu_[static_cast<size_t>(giver)];
      list.erase(std::find(list.begin(), list.end(), m));
      --sends_[static_cast<size_t>(giver)];
      give(m, gpu);
      gpu = giver;
    }
  }

  void give(int32_t m, int32_t gpu) {
    sender_[static_cast<size_t>(m)] = gpu;
    ++sends_[static_cast<size_t>(gpu)];
    by_gpu_[static_cast<size_t>(gpu)].push_back(m);
  }

  size_t first(int32_t m) const { return static_cast<size_t>(moves_.holder_start[static_cast<size_t>(m)]); }
  size_t end(int32_t m) const { return static_cast<size_t>(moves_.holder_start[static_cast<size_t>(m) + 1]); }
  size_t holder_count(int32_t m) const { return end(m) - first(m); }
  int32_t sends(int32_t gpu) const { return sends_[static_cast<size_t>(gpu)]; }

  const Moves& moves_;
  std::vector<int32_t> sender_;               // [moves]
  std::vector<int32_t> sends_;                // [gpus]
  std::vector<std::vector<int32_t>> by_gpu_;  // [gpus], the moves that each sends
  std::vector<int32_t> came_by_;              // [gpus], the move by which the search reached it
};

}  // namespace

std::vector<int32_t> choose_senders(const Moves& moves, int32_t gpus) { return Senders(moves, gpus).choose(); }

}  // namespace gimbal
