#include "round_matching.h"

#include <algorithm>
#include <cassert>
#include <numeric>

namespace gimbal {

RoundMatching::RoundMatching(int32_t gpus) : gpus_(gpus) {
  allowed_.resize(static_cast<size_t>(gpus) * static_cast<size_t>(gpus));
  clear();
}

void RoundMatching::clear() {
  forget_pairs();
  for (auto& side : mate_) side.assign(static_cast<size_t>(gpus_), -1);
}

void RoundMatching::forget_pairs() { std::fill(allowed_.begin(), allowed_.end(), uint8_t{0}); }

void RoundMatching::allow(int32_t sender, int32_t receiver) {
  allowed_[static_cast<size_t>(sender) * static_cast<size_t>(gpus_) + static_cast<size_t>(receiver)] = 1;
}

bool RoundMatching::is_allowed(Side side, int32_t own, int32_t other) const {
  const int32_t sender = side == kSender ? own : other;
  const int32_t receiver = side == kSender ? other : own;
  return allowed_[static_cast<size_t>(sender) * static_cast<size_t>(gpus_) + static_cast<size_t>(receiver)] != 0;
}

void RoundMatching::serve(const std::vector<int32_t>& send_rank, const std::vector<int32_t>& receive_rank) {
  serve_side(kReceiver, receive_rank);
  serve_side(kSender, send_rank);
}

void RoundMatching::take(int32_t sender, int32_t receiver) {
  assert(receiver_of(sender) < 0 && sender_of(receiver) < 0);
  mate_[kSender][static_cast<size_t>(sender)] = receiver;
  mate_[kReceiver][static_cast<size_t>(receiver)] = sender;
}

void RoundMatching::serve_side(Side side, const std::vector<int32_t>& rank) {
  std::vector<int32_t> order(static_cast<size_t>(gpus_));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return rank[static_cast<size_t>(a)] > rank[static_cast<size_t>(b)];
  });
  for (const int32_t gpu : order) {
    if (rank[static_cast<size_t>(gpu)] > 0 && mate_[side][static_cast<size_t>(gpu)] < 0) serve_one(side, gpu, rank);
  }
}

// Breadth first along alternating paths: to a free GPU of the other side, else to one of our own side with the lowest rank
// below the GPU's, which gives way. Neither frees a GPU of the other side.
void RoundMatching::serve_one(Side side, int32_t gpu, const std::vector<int32_t>& rank) {
  const Side across = side == kSender ? kReceiver : kSender;
  came_from_.assign(static_cast<size_t>(gpus_), -1);
  queue_.assign(1, gpu);
  int32_t gives_way = -1;
  for (size_t at = 0; at < queue_.size(); ++at) {
    const int32_t own = queue_[at];
    for (int32_t other = 0; other < gpus_; ++other) {
      if (came_from_[static_cast<size_t>(other)] >= 0 || !is_allowed(side, own, other)) continue;
      came_from_[static_cast<size_t>(other)] = own;
      const int32_t mate = mate_[across][static_cast<size_t>(other)];
      if (mate < 0) {
        flip(side, other, -1);
        return;
      }
      queue_.push_back(mate);
      const int32_t least = rank[static_cast<size_t>(gives_way < 0 ? gpu : gives_way)];
      if (rank[static_cast<size_t>(mate)] < least) gives_way = mate;
    }
  }
  if (gives_way >= 0) flip(side, mate_[side][static_cast<size_t>(gives_way)], gives_way);
}

// Re-pairs the path that ends at `last` of the other side; `freed` of our side, or -1, is left without a mate.
void RoundMatching::flip(Side side, int32_t last, int32_t freed) {
  const Side across = side == kSender ? kReceiver : kSender;
  if (freed >= 0) mate_[side][static_cast<size_t>(freed)] = -1;
  for (int32_t other = last; other >= 0;) {
    const int32_t own = came_from_[static_cast<size_t>(other)];
    const int32_t next = mate_[side][static_cast<size_t>(own)];
    mate_[side][static_cast<size_t>(own)] = other;
    mate_[across][static_cast<size_t>(other)] = own;
    other = next;
  }
}

}  // namespace gimbal
