// How far a migration has come: what still has to arrive, what every GPU still holds, and what it may let go of.
//
// An expert is *settled* in a layer once a GPU holds it that holds it in the end. Until then one of its old GPUs is its *keeper*
// and must not let go of it, so it is always live; its other old copies may go at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moves.h"
#include "schedule.h"
#include "slots.h"

namespace gimbal {

enum class ArrivalState : uint8_t { kPending, kStaged, kDone };

struct Arrival {
  int32_t layer = 0;
  int32_t expert = 0;
  int32_t to_gpu = 0;
  int32_t to_slot = 0;  // in the end
  int32_t sender = -1;  // -1: it comes from storage
  int32_t staging = -1;
  ArrivalState state = ArrivalState::kPending;
  bool in_round = false;      // takes part in the round that is being put together
  bool is_promised = false;   // its slot was freed for it; it goes before others
};

// An expert that a GPU holds and shall not hold in the end.
struct Occupant {
  int32_t expert = 0;
  int32_t sends = 0;  // still to be made from this copy
};

class Progress {
 public:
  Progress(const PlacementPair& pair, const Moves& moves, const std::vector<int32_t>& senders);

  int32_t gpus() const { return gpus_; }
  int32_t layers() const { return pair_.layers; }
  int32_t experts() const { return pair_.experts; }
  Slots& slots() { return slots_; }
  std::vector<Arrival>& arrivals() { return arrivals_; }
  Arrival& arrival(int32_t id) { return arrivals_[static_cast<size_t>(id)]; }
  size_t cell(const Arrival& a) const { return slots_.cell(a.layer, a.to_gpu); }
  const std::vector<Occupant>& occupants(size_t cell) const { return occupants_[cell]; }
  // The arrivals of an expert in a layer: ids from first up to end.
  int32_t first_arrival(int32_t layer, int32_t expert) const { return first_arrival_[key(layer, expert)]; }
  int32_t end_arrival(int32_t layer, int32_t expert) const { return first_arrival_[key(layer, expert) + 1]; }
  const std::vector<int32_t>& pending(int32_t receiver) const { return pending_[static_cast<size_t>(receiver)]; }
  const std::vector<int32_t>& sends_left() const { return sends_left_; }
  const std::vector<int32_t>& receives_left() const { return receives_left_; }
  int32_t unsettled_slots(size_t cell) const { return unsettled_slots_[cell]; }

  bool is_settled(int32_t layer, int32_t expert) const { return settled_[key(layer, expert)] != 0; }
  bool is_keeper(int32_t layer, int32_t expert, int32_t gpu) const { return keeper_[key(layer, expert)] == gpu; }
  void set_keeper(int32_t layer, int32_t expert, int32_t gpu) { keeper_[key(layer, expert)] = gpu; }
  int32_t keeper(int32_t layer, int32_t expert) const { return keeper_[key(layer, expert)]; }

  // With it, copies that still have sends to make may go: others send in their place.
  void allow_new_senders(bool allowed) { new_senders_ = allowed; }
  bool allows_new_senders() const { return new_senders_; }
  bool may_drop(int32_t layer, int32_t gpu, const Occupant& occupant) const;
  bool has_room(int32_t layer, int32_t gpu) const;
  // Once the round that is being put together is over, and all that takes part in it has settled.
  bool will_have_room(int32_t layer, int32_t gpu) const;

  // Empties the arrival's slot; false where all copies that could go are sent in this round.
  bool make_room(const Arrival& a, int32_t round, std::vector<LocalCopy>* copies);
  // The expert is about to settle: its keeper may let go of it.
  void announce(const Arrival& a) { settled_[key(a.layer, a.expert)] = 1; }
  // It lies in its slot, which was empty.
  void settle(Arrival& a);
  // Sent and received; it lies in its slot or in staging.
  void received(int32_t id);
  void set_sender(int32_t id, int32_t gpu);
  // Finds senders for what was to be sent by copies that are gone.
  void replace_senders();

 private:
  size_t key(int32_t layer, int32_t expert) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(pair_.experts) + static_cast<size_t>(expert);
  }
  Occupant* occupant(int32_t layer, int32_t gpu, int32_t expert);
  void add_arrivals(const Moves& moves, const std::vector<int32_t>& senders);
  void add_arrival(const Arrival& a);
  void read_occupants();
  void choose_keepers();
  void drop(int32_t layer, int32_t gpu, int32_t expert);
  bool arrives_in_round(int32_t layer, int32_t expert) const;
  bool is_sent_in_round(int32_t layer, int32_t expert, int32_t gpu) const;

  const PlacementPair& pair_;
  int32_t gpus_;
  Slots slots_;
  std::vector<Arrival> arrivals_;                 // by layer, expert, GPU
  std::vector<int32_t> first_arrival_;            // [layers * experts + 1]
  std::vector<std::vector<int32_t>> pending_;     // [gpus], arrivals by receiver
  std::vector<int32_t> sends_left_;               // [gpus]
  std::vector<int32_t> receives_left_;            // [gpus]
  std::vector<std::vector<Occupant>> occupants_;  // [layers * gpus]
  std::vector<int32_t> unsettled_slots_;          // [layers * gpus], that do not yet hold what they shall
  std::vector<uint8_t> settled_;                  // [layers * experts]
  std::vector<int32_t> keeper_;                   // [layers * experts], -1: no live GPU held it
  std::vector<int32_t> orphans_;                  // arrivals without a sender for the moment
  bool new_senders_ = false;
};

}  // namespace gimbal
