// Round by round, greedily, with three kinds of transfers:
//   1. direct ones, whose slot can be emptied before the round;
//   2. chains: transfers of one layer, each of which makes room for the one before, up to an empty slot or round a circle. They
//      all settle at the end of the round and need one staging slot on each GPU until then;
//   3. ones that wait in staging for longer, as long as a GPU keeps a slot in reserve for chains.
// With the reserve there is always a chain, so no order of the rounds runs into a dead end. Without staging there is only kind
// 1, and unstaged.h keeps it out of dead ends. With unlimited staging every transfer is possible in every round, which then
// serves all busiest GPUs: the lower bound is reached.
#include "schedule.h"

#include <algorithm>
#include <cassert>
#include <climits>
#include <optional>
#include <string>

#include "../model/errors.h"
#include "chain.h"
#include "progress.h"
#include "round_matching.h"
#include "senders.h"
#include "unstaged.h"

namespace gimbal {
namespace {

constexpr int32_t kUnlimited = INT32_MAX;

int32_t peak_of(const Schedule& schedule) {
  return schedule.staging_peak.empty() ? 0 : *std::max_element(schedule.staging_peak.begin(), schedule.staging_peak.end());
}

class Rounds {
 public:
  Rounds(const PlacementPair& pair, const Moves& moves, const std::vector<int32_t>& senders, int32_t staging_slots,
         int32_t most_used, const std::atomic<bool>* cancel)
      : progress_(pair, moves, senders),
        matching_(pair.gpus()),
        gpus_(pair.gpus()),
        staging_slots_(staging_slots),
        most_used_(most_used),
        cancel_(cancel),
        staged_(static_cast<size_t>(pair.gpus())),
        staging_used_(static_cast<size_t>(pair.gpus())),
        direct_(static_cast<size_t>(pair.gpus()) * static_cast<size_t>(pair.gpus())),
        indirect_(direct_.size()),
        settling_in_(static_cast<size_t>(pair.layers) * static_cast<size_t>(pair.gpus()), 0),
        settling_of_(static_cast<size_t>(pair.layers) * static_cast<size_t>(pair.experts), 0) {
    out_.slots = pair.slots();
    out_.staging_peak.assign(static_cast<size_t>(gpus_), 0);
    for (int32_t g = 0; g < gpus_; ++g) {
      const auto at = static_cast<size_t>(g);
      out_.lower_bound = std::max({out_.lower_bound, progress_.sends_left()[at], progress_.receives_left()[at]});
    }
    for (size_t i = 0; i < progress_.arrivals().size(); ++i) {
      if (progress_.arrivals()[i].sender < 0) loads_.push_back(static_cast<int32_t>(i));
    }
  }

  // False where the staging slots do not suffice, and why_not() says why; or where too many would be used.
  bool run() {
    if (staging_slots_ == 0 && !is_possible_unstaged()) return false;
    if (!finish_gpus(/*that_wait=*/false)) return false;
    for (;;) {
      throw_if_cancelled();
      settle_staged();
      progress_.allow_new_senders(false);
      load_from_storage();
      if (is_over()) break;
      choose();
      if (chosen_.empty() && !choose_with_new_senders()) return false;
      if (!chosen_.empty()) carry_out();
      if (peak_of(out_) > most_used_) return false;
    }
    assert(loads_.empty());
    return finish_gpus(/*that_wait=*/true);
  }

  Schedule take() { return std::move(out_); }
  const std::string& why_not() const { return why_not_; }

 private:
  void throw_if_cancelled() const {
    if (cancel_ == nullptr || !cancel_->load(std::memory_order_relaxed)) return;
    throw Error(ErrorCode::kCancelled, "options.signal", "no abort", "one");
  }

  bool is_over() const {
    const auto is_empty = [](const std::vector<int32_t>& list) { return list.empty(); };
    if (!std::all_of(staged_.begin(), staged_.end(), is_empty)) return false;
    return std::all_of(progress_.receives_left().begin(), progress_.receives_left().end(), [](int32_t n) { return n == 0; });
  }

  bool is_possible_unstaged() {
    choose_unstaged_keepers(progress_);
    for (int32_t l = 0; l < progress_.layers(); ++l) {
      int32_t stranded = -1;
      if (count_stranded(progress_, l, &stranded) == 0) continue;
      why_not_ = "expert " + std::to_string(stranded) + " of layer " + std::to_string(l) +
                 " can only go where an expert without another replica has to leave first";
      return false;
    }
    return true;
  }

  // Order inside the GPUs where nothing arrives, or, at the end, on all.
  bool finish_gpus(bool that_wait) {
    for (int32_t l = 0; l < progress_.layers(); ++l) {
      for (int32_t g = 0; g < gpus_; ++g) {
        const size_t c = progress_.slots().cell(l, g);
        if (!that_wait && progress_.unsettled_slots(c) > 0) continue;
        bool staged = false;
        if (!progress_.slots().finish(l, g, staging_slots_ > 0, out_.rounds, &out_.copies, &staged)) {
          why_not_ = "experts of layer " + std::to_string(l) + " change places on GPU " + std::to_string(g);
          return false;
        }
        int32_t& peak = out_.staging_peak[static_cast<size_t>(g)];
        if (staged) peak = std::max(peak, 1);
      }
    }
    return true;
  }

  // At the barrier: everything in staging that can settle does, all at once. What is assumed to settle lets others do so, and
  // what does not bear itself out is withdrawn: promised ones last, then those that free a keeper. True where any settled.
  bool settle_staged() {
    std::vector<int32_t> settling;
    for (const std::vector<int32_t>& list : staged_) settling.insert(settling.end(), list.begin(), list.end());
    std::sort(settling.begin(), settling.end(), [&](int32_t a, int32_t b) { return settle_rank(a) < settle_rank(b); });
    for (const int32_t id : settling) assume(id, 1);
    while (withdraw(&settling)) {
    }
    for (const int32_t id : settling) {
      assume(id, -1);
      progress_.announce(progress_.arrival(id));
    }
    for (const int32_t id : settling) leave_staging(id);
    progress_.replace_senders();
    return !settling.empty();
  }

  std::pair<int32_t, int32_t> settle_rank(int32_t id) {
    const Arrival& a = progress_.arrival(id);
    if (a.is_promised) return {0, id};
    return {progress_.is_settled(a.layer, a.expert) ? 2 : 1, id};
  }

  void assume(int32_t id, int32_t change) {
    const Arrival& a = progress_.arrival(id);
    settling_in_[progress_.cell(a)] += change;
    settling_of_[key(a.layer, a.expert)] += change;
  }

  // Where a GPU has too little room in a layer, the last of those that want it; true where there was one.
  bool withdraw(std::vector<int32_t>* settling) {
    const size_t before = settling->size();
    for (size_t i = 0; i < settling->size(); ++i) {
      const size_t c = progress_.cell(progress_.arrival((*settling)[i]));
      if (settling_in_[c] <= room_then(progress_.arrival((*settling)[i]))) continue;
      const auto last = std::find_if(settling->rbegin(), settling->rend(),
                                     [&](int32_t id) { return progress_.cell(progress_.arrival(id)) == c; });
      assume(*last, -1);
      settling->erase(std::next(last).base());
    }
    return settling->size() < before;
  }

  int32_t room_then(const Arrival& a) const {
    const size_t c = progress_.cell(a);
    const std::vector<Occupant>& held = progress_.occupants(c);
    return progress_.unsettled_slots(c) -
           static_cast<int32_t>(std::count_if(held.begin(), held.end(),
                                              [&](const Occupant& o) { return !may_drop_then(a.layer, a.to_gpu, o); }));
  }

  bool may_drop_then(int32_t layer, int32_t gpu, const Occupant& o) const {
    if (progress_.may_drop(layer, gpu, o)) return true;
    return settling_of_[key(layer, o.expert)] > 0 && (o.sends == 0 || progress_.allows_new_senders());
  }

  void leave_staging(int32_t id) {
    Arrival& a = progress_.arrival(id);
    const bool has_room = progress_.make_room(a, out_.rounds, &out_.copies);
    assert(has_room);
    const auto gpu = static_cast<size_t>(a.to_gpu);
    out_.copies.push_back({out_.rounds, a.layer, a.to_gpu, out_.slots + a.staging, a.to_slot});
    staging_used_[gpu][static_cast<size_t>(a.staging)] = 0;
    staged_[gpu].erase(std::find(staged_[gpu].begin(), staged_[gpu].end(), id));
    progress_.settle(a);
  }

  // What no GPU holds is missed most, so its slots are emptied as soon as can be.
  void load_from_storage() {
    std::vector<int32_t> still;
    for (const int32_t id : loads_) {
      Arrival& a = progress_.arrival(id);
      if (!progress_.has_room(a.layer, a.to_gpu) || !is_safe(id)) {
        still.push_back(id);
        continue;
      }
      progress_.make_room(a, out_.rounds, &out_.copies);
      progress_.settle(a);
      out_.loads.push_back({out_.rounds, a.layer, a.expert, a.to_gpu, a.to_slot});
    }
    loads_.swap(still);
  }

  // Beside what is chosen already.
  bool is_safe(int32_t id) {
    if (staging_slots_ > 0) return true;
    Arrival& a = progress_.arrival(id);
    a.in_round = true;
    const bool safe = count_stranded(progress_, a.layer, nullptr) == 0;
    a.in_round = false;
    return safe;
  }

  void choose() {
    find_candidates();
    matching_.clear();
    allow(direct_);
    matching_.serve(progress_.sends_left(), progress_.receives_left());
    if (staging_slots_ == kUnlimited) {
      allow(indirect_);
      matching_.serve(progress_.sends_left(), progress_.receives_left());
    }
    for (int32_t g = 0; g < gpus_; ++g) choose_from_matching(g);
    if (staging_slots_ == 0 || staging_slots_ == kUnlimited) return;
    add_chains();
    if (!progress_.allows_new_senders()) add_waiting();
  }

  void choose_from_matching(int32_t receiver) {
    const int32_t sender = matching_.sender_of(receiver);
    if (sender < 0) return;
    const size_t pair = pair_of(sender, receiver);
    const int32_t id = direct_[pair] >= 0 ? direct_[pair] : indirect_[pair];
    if (is_safe(id)) choose_one(id);
  }

  // For GPUs that are still free: what can wait in staging beside the slot in reserve.
  void add_waiting() {
    std::vector<int32_t> receivers;
    for (int32_t g = 0; g < gpus_; ++g) {
      if (matching_.sender_of(g) < 0 && staged_count(g) + 1 < staging_slots_) receivers.push_back(g);
    }
    matching_.forget_pairs();
    for (const int32_t g : receivers) {
      for (int32_t f = 0; f < gpus_; ++f) {
        if (matching_.receiver_of(f) < 0 && indirect_[pair_of(f, g)] >= 0) matching_.allow(f, g);
      }
    }
    matching_.serve(progress_.sends_left(), progress_.receives_left());
    for (const int32_t g : receivers) choose_from_matching(g);
  }

  void choose_one(int32_t id) {
    progress_.arrival(id).in_round = true;
    chosen_.push_back(id);
  }

  // Of each pair the arrival to take, experts that still have a keeper first.
  void find_candidates() {
    std::fill(direct_.begin(), direct_.end(), -1);
    std::fill(indirect_.begin(), indirect_.end(), -1);
    for (int32_t g = 0; g < gpus_; ++g) {
      int32_t layer = -1;
      bool has_room = false;
      for (const int32_t id : progress_.pending(g)) {
        const Arrival& a = progress_.arrival(id);
        if (a.layer != layer) has_room = progress_.has_room(a.layer, g);
        layer = a.layer;
        int32_t& best = (has_room ? direct_ : indirect_)[pair_of(a.sender, g)];
        if (best < 0 || (is_kept(best) < is_kept(id))) best = id;
      }
    }
  }

  bool is_kept(int32_t id) {
    const Arrival& a = progress_.arrival(id);
    return !progress_.is_settled(a.layer, a.expert);
  }

  void allow(const std::vector<int32_t>& candidates) {
    for (int32_t f = 0; f < gpus_; ++f) {
      for (int32_t g = 0; g < gpus_; ++g) {
        if (candidates[pair_of(f, g)] >= 0) matching_.allow(f, g);
      }
    }
  }

  // For GPUs that would receive nothing, the busiest first.
  void add_chains() {
    std::vector<int32_t> order;
    for (int32_t g = 0; g < gpus_; ++g) {
      if (matching_.sender_of(g) < 0) order.push_back(g);
    }
    const std::vector<int32_t>& left = progress_.receives_left();
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return left[static_cast<size_t>(a)] > left[static_cast<size_t>(b)];
    });
    std::vector<uint8_t> in_use(settling_in_.size(), 0);
    for (const int32_t id : chosen_) in_use[progress_.cell(progress_.arrival(id))] = 1;
    const ChainRules rules{
        [&](int32_t g) { return matching_.receiver_of(g) < 0; },
        [&](int32_t g) { return matching_.sender_of(g) < 0; },
        [&](int32_t l, int32_t g) { return in_use[progress_.slots().cell(l, g)] == 0; },
    };
    for (const int32_t g : order) {
      // One alone is enough, and sure to be possible, where copies with sends to make may go.
      if (progress_.allows_new_senders() && !chosen_.empty()) return;
      if (matching_.sender_of(g) < 0) add_chain(g, rules, &in_use);
    }
  }

  void add_chain(int32_t gpu, const ChainRules& rules, std::vector<uint8_t>* in_use) {
    for (const int32_t layer : layers_waiting_at(gpu)) {
      if (!rules.may_use(layer, gpu) || progress_.has_room(layer, gpu)) continue;
      if (progress_.will_have_room(layer, gpu)) {
        if (add_head(layer, gpu, in_use)) return;
        continue;
      }
      const std::vector<int32_t> chain = find_chain(progress_, layer, gpu, rules);
      if (chain.empty()) continue;
      int32_t sender = gpu;
      for (const int32_t id : chain) {
        link(id, sender, in_use);
        sender = progress_.arrival(id).to_gpu;
      }
      (*in_use)[progress_.slots().cell(layer, gpu)] = 1;
      if (sender != gpu) add_head(layer, gpu, in_use);
      return;
    }
  }

  std::vector<int32_t> layers_waiting_at(int32_t gpu) {
    std::vector<int32_t> layers;
    for (const int32_t id : progress_.pending(gpu)) layers.push_back(progress_.arrival(id).layer);
    for (const int32_t id : staged_[static_cast<size_t>(gpu)]) layers.push_back(progress_.arrival(id).layer);
    std::sort(layers.begin(), layers.end());
    layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
    return layers;
  }

  void link(int32_t id, int32_t sender, std::vector<uint8_t>* in_use) {
    Arrival& a = progress_.arrival(id);
    a.is_promised = true;
    (*in_use)[progress_.cell(a)] = 1;
    if (a.state != ArrivalState::kPending) return;
    progress_.set_sender(id, sender);
    matching_.take(sender, a.to_gpu);
    choose_one(id);
  }

  // There will be room on `gpu`: for something that waits there, or that comes in this very round.
  bool add_head(int32_t layer, int32_t gpu, std::vector<uint8_t>* in_use) {
    for (const int32_t id : staged_[static_cast<size_t>(gpu)]) {
      Arrival& a = progress_.arrival(id);
      if (a.layer != layer) continue;
      a.is_promised = true;
      (*in_use)[progress_.cell(a)] = 1;
      return true;
    }
    for (const int32_t id : progress_.pending(gpu)) {
      const Arrival& a = progress_.arrival(id);
      if (a.layer != layer || a.in_round || matching_.receiver_of(a.sender) >= 0) continue;
      link(id, a.sender, in_use);
      return true;
    }
    return false;
  }

  // The last resort: copies may go before they have sent all they were to send, and others send in their place.
  bool choose_with_new_senders() {
    progress_.allow_new_senders(true);
    if (settle_staged()) return true;
    choose();
    // Where all links of a chain were in staging already, they settle without a round.
    if (!chosen_.empty() || settle_staged()) return true;
    if (staging_slots_ == 0 && choose_any_safe()) return true;
    assert(staging_slots_ == 0);
    why_not_ = "no order was found without";
    return false;
  }

  bool choose_any_safe() {
    for (int32_t g = 0; g < gpus_; ++g) {
      for (const int32_t id : progress_.pending(g)) {
        if (!progress_.has_room(progress_.arrival(id).layer, g) || !is_safe(id)) continue;
        choose_one(id);
        return true;
      }
    }
    return false;
  }

  // The round itself. What has room lands in its slot; the rest in staging.
  void carry_out() {
    std::sort(chosen_.begin(), chosen_.end(), [&](int32_t a, int32_t b) {
      return progress_.arrival(a).to_gpu < progress_.arrival(b).to_gpu;
    });
    std::vector<int32_t> taken;
    for (const int32_t id : chosen_) {
      if (find_place(id)) taken.push_back(id);
    }
    progress_.replace_senders();
    for (const int32_t id : taken) {
      const Arrival& a = progress_.arrival(id);
      const int32_t from_slot = progress_.slots().find(progress_.slots().cell(a.layer, a.sender), a.expert);
      assert(from_slot >= 0);
      const int32_t to_slot = a.staging < 0 ? a.to_slot : out_.slots + a.staging;
      out_.transfers.push_back({out_.rounds, a.layer, a.expert, a.sender, from_slot, a.to_gpu, to_slot});
    }
    for (const int32_t id : taken) arrive(id);
    chosen_.clear();
    ++out_.rounds;
  }

  // Empties the arrival's slot or takes a staging slot; false where neither can be, and then it waits.
  bool find_place(int32_t id) {
    Arrival& a = progress_.arrival(id);
    if (progress_.has_room(a.layer, a.to_gpu)) {
      if (progress_.make_room(a, out_.rounds, &out_.copies)) return true;
      a.in_round = false;
      return false;
    }
    std::vector<uint8_t>& used = staging_used_[static_cast<size_t>(a.to_gpu)];
    a.staging = static_cast<int32_t>(std::find(used.begin(), used.end(), uint8_t{0}) - used.begin());
    if (a.staging == static_cast<int32_t>(used.size())) used.push_back(0);
    used[static_cast<size_t>(a.staging)] = 1;
    assert(a.staging < staging_slots_);
    int32_t& peak = out_.staging_peak[static_cast<size_t>(a.to_gpu)];
    peak = std::max(peak, a.staging + 1);
    return true;
  }

  void arrive(int32_t id) {
    Arrival& a = progress_.arrival(id);
    a.in_round = false;
    progress_.received(id);
    if (a.staging < 0) {
      progress_.settle(a);
      return;
    }
    a.state = ArrivalState::kStaged;
    staged_[static_cast<size_t>(a.to_gpu)].push_back(id);
  }

  int32_t staged_count(int32_t gpu) const { return static_cast<int32_t>(staged_[static_cast<size_t>(gpu)].size()); }
  size_t pair_of(int32_t sender, int32_t receiver) const {
    return static_cast<size_t>(sender) * static_cast<size_t>(gpus_) + static_cast<size_t>(receiver);
  }
  size_t key(int32_t layer, int32_t expert) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(progress_.experts()) + static_cast<size_t>(expert);
  }

  Progress progress_;
  RoundMatching matching_;
  int32_t gpus_;
  int32_t staging_slots_;
  int32_t most_used_;  // a schedule that takes more is of no use
  const std::atomic<bool>* cancel_;
  std::vector<std::vector<int32_t>> staged_;        // [gpus], arrivals that lie in staging
  std::vector<std::vector<uint8_t>> staging_used_;  // [gpus][staging slots so far]
  std::vector<int32_t> direct_;                     // [gpus][gpus], sender by receiver: the arrival to take, -1: none
  std::vector<int32_t> indirect_;                   // [gpus][gpus]
  std::vector<int32_t> settling_in_;                // [layers][gpus], arrivals assumed to settle at this barrier
  std::vector<int32_t> settling_of_;                // [layers][experts]
  std::vector<int32_t> loads_;                      // arrivals from storage still to come
  std::vector<int32_t> chosen_;                     // arrivals of the round
  std::string why_not_;
  Schedule out_;
};

bool is_better(const Schedule& a, const Schedule& b) {
  return a.rounds != b.rounds ? a.rounds < b.rounds : peak_of(a) < peak_of(b);
}

}  // namespace

// More staging slots help the greedy rounds mostly, not always. So fewer are tried first, by powers of two, until the lower
// bound is reached or slots are left over; then what serves the busiest GPUs whatever it takes, in case it takes little.
Schedule schedule_migration(const PlacementPair& pair, const ScheduleOptions& options) {
  const Moves moves = moves_between(pair);
  const std::vector<int32_t> senders = choose_senders(moves, pair.gpus());
  std::optional<Schedule> best;
  std::string why_not;
  const auto attempt = [&](int32_t slots) {
    Rounds rounds(pair, moves, senders, slots, options.staging_slots, options.cancel);
    if (!rounds.run()) {
      why_not = rounds.why_not();
      return slots;
    }
    Schedule found = rounds.take();
    const int32_t peak = peak_of(found);
    if (!best || is_better(found, *best)) best = std::move(found);
    return peak;
  };
  const auto is_done = [&] { return best && best->rounds == best->lower_bound; };
  int32_t tried = -1;
  for (int64_t next = 0; next <= options.staging_slots && !is_done(); next = next == 0 ? 1 : 2 * next) {
    tried = static_cast<int32_t>(next);
    if (attempt(tried) < tried) break;
  }
  if (!is_done() && options.staging_slots > tried) attempt(options.staging_slots);
  if (!is_done() && options.staging_slots > 1) attempt(kUnlimited);
  if (!best) {
    throw Error(ErrorCode::kInfeasible, "stagingSlots", "at least 1, since " + why_not, std::to_string(options.staging_slots));
  }
  return *std::move(best);
}

}  // namespace gimbal
