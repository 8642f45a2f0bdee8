// The pairs of one round: a GPU sends to at most one GPU and receives from at most one. GPUs with the most left to do are
// served first, so that a round which may use every pair takes one from every busiest sender and receiver: repeated, that
// reaches the lower bound (König's edge colouring).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gimbal {

class RoundMatching {
 public:
  explicit RoundMatching(int32_t gpus);

  void clear();
  // Who is served stays so, for no path leads to them any more.
  void forget_pairs();
  // Pairs come in as bytes [sender][receiver]; they add to those of earlier calls.
  void allow(int32_t sender, int32_t receiver);
  // Serves as many GPUs as the pairs allow, those with the highest rank first on either side; whoever is served stays
  // served unless one of a higher rank takes his place.
  void serve(const std::vector<int32_t>& send_rank, const std::vector<int32_t>& receive_rank);
  // Takes a pair that must stay; both must be free.
  void take(int32_t sender, int32_t receiver);

  int32_t receiver_of(int32_t sender) const { return mate_[kSender][static_cast<size_t>(sender)]; }
  int32_t sender_of(int32_t receiver) const { return mate_[kReceiver][static_cast<size_t>(receiver)]; }

 private:
  enum Side : uint8_t { kSender, kReceiver };

  void serve_side(Side side, const std::vector<int32_t>& rank);
  void serve_one(Side side, int32_t gpu, const std::vector<int32_t>& rank);
  void flip(Side side, int32_t last, int32_t freed);
  bool is_allowed(Side side, int32_t own, int32_t other) const;

  int32_t gpus_;
  std::vector<uint8_t> allowed_;    // [gpus][gpus], sender by receiver
  std::vector<int32_t> mate_[2];    // [gpus] each, -1: free
  std::vector<int32_t> came_from_;  // [gpus], of the other side: who reached it in the search; -1: not reached
  std::vector<int32_t> queue_;
};

}  // namespace gimbal
