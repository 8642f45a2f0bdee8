#include "progress.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <tuple>

#include "../model/errors.h"

namespace gimbal {

Progress::Progress(const PlacementPair& pair, const Moves& moves, const std::vector<int32_t>& senders)
    : pair_(pair), gpus_(pair.gpus()), slots_(pair) {
  const auto gpus = static_cast<size_t>(gpus_);
  const size_t keys = static_cast<size_t>(pair.layers) * static_cast<size_t>(pair.experts);
  pending_.resize(gpus);
  sends_left_.assign(gpus, 0);
  receives_left_.assign(gpus, 0);
  settled_.assign(keys, 0);
  keeper_.assign(keys, -1);
  read_occupants();
  add_arrivals(moves, senders);
  choose_keepers();
}

void Progress::read_occupants() {
  occupants_.resize(static_cast<size_t>(pair_.layers) * static_cast<size_t>(gpus_));
  unsettled_slots_.assign(occupants_.size(), 0);
  for (int32_t l = 0; l < pair_.layers; ++l) {
    for (int32_t g = 0; g < gpus_; ++g) {
      const size_t c = slots_.cell(l, g);
      const int32_t* target = slots_.target(c);
      const int32_t* end = target + slots_.count();
      for (int32_t k = 0; k < slots_.count(); ++k) {
        const int32_t e = slots_.now(c)[k];
        if (e < 0) continue;
        if (std::find(target, end, e) != end) {
          settled_[key(l, e)] = 1;
        } else if (occupant(l, g, e) == nullptr) {
          occupants_[c].push_back({e, 0});
        }
      }
      for (int32_t k = 0; k < slots_.count(); ++k) unsettled_slots_[c] += slots_.is_settled(c, k) ? 0 : 1;
    }
  }
}

// A transfer fills the first of the GPU's slots that shall hold the expert; others are copied from it in the end. From storage
// every slot is filled.
void Progress::add_arrivals(const Moves& moves, const std::vector<int32_t>& senders) {
  first_arrival_.assign(settled_.size() + 1, 0);
  for (int32_t m = 0; m < moves.count(); ++m) {
    const auto at = static_cast<size_t>(m);
    Arrival a;
    a.layer = moves.layer[at];
    a.expert = moves.expert[at];
    a.to_gpu = moves.to_gpu[at];
    a.sender = senders[at];
    const int32_t* target = slots_.target(cell(a));
    for (; a.to_slot < slots_.count(); ++a.to_slot) {
      if (target[a.to_slot] != a.expert) continue;
      add_arrival(a);
      if (a.sender >= 0) break;
    }
  }
  for (size_t i = 1; i < first_arrival_.size(); ++i) first_arrival_[i] += first_arrival_[i - 1];
}

void Progress::add_arrival(const Arrival& a) {
  ++first_arrival_[key(a.layer, a.expert) + 1];
  arrivals_.push_back(a);
  if (a.sender < 0) return;
  pending_[static_cast<size_t>(a.to_gpu)].push_back(static_cast<int32_t>(arrivals_.size()) - 1);
  ++receives_left_[static_cast<size_t>(a.to_gpu)];
  ++sends_left_[static_cast<size_t>(a.sender)];
  if (Occupant* o = occupant(a.layer, a.sender, a.expert)) ++o->sends;
}

// The old GPU that sends the expert most often, since it has to hold on to it anyway. Fails where an expert has no end.
void Progress::choose_keepers() {
  for (int32_t l = 0; l < pair_.layers; ++l) {
    for (int32_t e = 0; e < pair_.experts; ++e) {
      if (is_settled(l, e)) continue;
      if (first_arrival(l, e) == end_arrival(l, e)) {
        throw Error(ErrorCode::kInvalidInput, "to", "a slot for each of " + std::to_string(pair_.experts) + " experts",
                    "none for expert " + std::to_string(e) + " in layer " + std::to_string(l));
      }
      int32_t most = -1;
      for (int32_t g = 0; g < gpus_; ++g) {
        const Occupant* o = occupant(l, g, e);
        if (o == nullptr || o->sends <= most) continue;
        most = o->sends;
        set_keeper(l, e, g);
      }
    }
  }
}

Occupant* Progress::occupant(int32_t layer, int32_t gpu, int32_t expert) {
  for (Occupant& o : occupants_[slots_.cell(layer, gpu)]) {
    if (o.expert == expert) return &o;
  }
  return nullptr;
}

bool Progress::may_drop(int32_t layer, int32_t gpu, const Occupant& o) const {
  if (o.sends > 0 && !new_senders_) return false;
  return is_settled(layer, o.expert) || !is_keeper(layer, o.expert, gpu);
}

bool Progress::has_room(int32_t layer, int32_t gpu) const {
  const size_t c = slots_.cell(layer, gpu);
  const std::vector<Occupant>& held = occupants_[c];
  if (static_cast<int32_t>(held.size()) < unsettled_slots_[c]) return true;
  return std::any_of(held.begin(), held.end(), [&](const Occupant& o) { return may_drop(layer, gpu, o); });
}

bool Progress::will_have_room(int32_t layer, int32_t gpu) const {
  if (has_room(layer, gpu)) return true;
  const std::vector<Occupant>& held = occupants_[slots_.cell(layer, gpu)];
  return std::any_of(held.begin(), held.end(), [&](const Occupant& o) {
    if (!arrives_in_round(layer, o.expert)) return false;
    return o.sends == (is_sent_in_round(layer, o.expert, gpu) ? 1 : 0);
  });
}

bool Progress::arrives_in_round(int32_t layer, int32_t expert) const {
  const auto first = arrivals_.begin() + first_arrival(layer, expert);
  return std::any_of(first, arrivals_.begin() + end_arrival(layer, expert), [](const Arrival& a) { return a.in_round; });
}

bool Progress::is_sent_in_round(int32_t layer, int32_t expert, int32_t gpu) const {
  for (int32_t i = first_arrival(layer, expert); i < end_arrival(layer, expert); ++i) {
    const Arrival& a = arrivals_[static_cast<size_t>(i)];
    if (a.in_round && a.sender == gpu) return true;
  }
  return false;
}

bool Progress::make_room(const Arrival& a, int32_t round, std::vector<LocalCopy>* copies) {
  const size_t c = cell(a);
  const std::vector<Occupant>& held = occupants_[c];
  if (static_cast<int32_t>(held.size()) >= unsettled_slots_[c]) {
    const Occupant* best = nullptr;
    for (const Occupant& o : held) {
      if (!may_drop(a.layer, a.to_gpu, o)) continue;
      if (o.sends > 0 && is_sent_in_round(a.layer, o.expert, a.to_gpu)) continue;
      if (best == nullptr || std::tie(o.sends, o.expert) < std::tie(best->sends, best->expert)) best = &o;
    }
    if (best == nullptr) return false;
    drop(a.layer, a.to_gpu, best->expert);
  }
  slots_.clear_slot(a.layer, a.to_gpu, a.to_slot, round, copies);
  return true;
}

void Progress::drop(int32_t layer, int32_t gpu, int32_t expert) {
  const size_t c = slots_.cell(layer, gpu);
  for (int32_t k = slots_.find(c, expert); k >= 0; k = slots_.find(c, expert)) slots_.forget(c, k);
  std::vector<Occupant>& held = occupants_[c];
  held.erase(std::find_if(held.begin(), held.end(), [&](const Occupant& o) { return o.expert == expert; }));
  for (int32_t i = first_arrival(layer, expert); i < end_arrival(layer, expert); ++i) {
    Arrival& a = arrival(i);
    if (a.state != ArrivalState::kPending || a.sender != gpu) continue;
    --sends_left_[static_cast<size_t>(gpu)];
    orphans_.push_back(i);
  }
}

void Progress::settle(Arrival& a) {
  const size_t c = cell(a);
  slots_.put(c, a.to_slot, a.expert);
  --unsettled_slots_[c];
  settled_[key(a.layer, a.expert)] = 1;
  a.state = ArrivalState::kDone;
}

void Progress::received(int32_t id) {
  Arrival& a = arrival(id);
  --sends_left_[static_cast<size_t>(a.sender)];
  --receives_left_[static_cast<size_t>(a.to_gpu)];
  std::vector<int32_t>& list = pending_[static_cast<size_t>(a.to_gpu)];
  list.erase(std::lower_bound(list.begin(), list.end(), id));
  if (Occupant* o = occupant(a.layer, a.sender, a.expert)) --o->sends;
}

void Progress::set_sender(int32_t id, int32_t gpu) {
  Arrival& a = arrival(id);
  if (a.sender == gpu) return;
  if (Occupant* o = occupant(a.layer, a.sender, a.expert)) --o->sends;
  --sends_left_[static_cast<size_t>(a.sender)];
  a.sender = gpu;
  ++sends_left_[static_cast<size_t>(gpu)];
  if (Occupant* o = occupant(a.layer, gpu, a.expert)) ++o->sends;
}

// Whoever holds the expert now and has least to send; the nearest of these. GPUs that were not there before are far.
void Progress::replace_senders() {
  for (const int32_t id : orphans_) {
    Arrival& a = arrival(id);
    const auto far = [&](int32_t g) { return g < pair_.from_gpus ? pair_.far(g, a.to_gpu) : INT32_MAX; };
    int32_t best = -1;
    for (int32_t g = 0; g < gpus_; ++g) {
      if (!slots_.holds(slots_.cell(a.layer, g), a.expert)) continue;
      const int32_t sends = sends_left_[static_cast<size_t>(g)];
      if (best >= 0 && std::tuple(sends, far(g)) >= std::tuple(sends_left_[static_cast<size_t>(best)], far(best))) continue;
      best = g;
    }
    assert(best >= 0);
    a.sender = best;
    ++sends_left_[static_cast<size_t>(best)];
    if (Occupant* o = occupant(a.layer, best, a.expert)) ++o->sends;
  }
  orphans_.clear();
}

}  // namespace gimbal
