// Schedules of migrations, replayed step by step; the rounds against the bound, and against an exhaustive search where staging
// is short.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "../migration/schedule.h"
#include "../migration/senders.h"
#include "../model/errors.h"
#include "random.h"
#include "replay.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

// Owns what a PlacementPair points to.
struct Migration {
  PlacementPair pair;
  std::vector<int32_t> from;
  std::vector<int32_t> to;

  Migration() = default;
  Migration(int32_t experts, int32_t gpus, int32_t slots, std::vector<int32_t> before, std::vector<int32_t> after)
      : from(std::move(before)), to(std::move(after)) {
    pair.layers = static_cast<int32_t>(from.size()) / (gpus * slots);
    pair.experts = experts;
    pair.from_gpus = pair.to_gpus = gpus;
    pair.from_slots = pair.to_slots = slots;
    point();
  }
  Migration(const Migration&) = delete;
  void point() {
    pair.from = from.data();
    pair.to = to.data();
  }
};

constexpr int32_t kEnough = 1 << 20;

Schedule schedule(const Migration& m, int32_t staging = kEnough) {
  ScheduleOptions options;
  options.staging_slots = staging;
  return schedule_migration(m.pair, options);
}

int32_t peak(const Schedule& s) { return *std::max_element(s.staging_peak.begin(), s.staging_peak.end()); }

// One layer: every expert once on a random live slot, the others at random or empty. With `duplicates` a GPU may hold an
// expert twice.
std::vector<int32_t> random_layer(Random* random, int32_t experts, int32_t gpus, int32_t slots, const std::vector<int32_t>& dead,
                                  double empty, bool duplicates) {
  std::vector<int32_t> layer(static_cast<size_t>(gpus * slots), -1);
  std::vector<int32_t> live;
  for (int32_t m = 0; m < gpus * slots; ++m) {
    if (std::find(dead.begin(), dead.end(), m / slots) == dead.end()) live.push_back(m);
  }
  random->shuffle(&live);
  for (size_t i = 0; i < live.size(); ++i) {
    const int32_t m = live[i];
    if (static_cast<int32_t>(i) < experts) {
      layer[static_cast<size_t>(m)] = static_cast<int32_t>(i);
      continue;
    }
    if (random->chance(empty)) continue;
    const int32_t e = random->below(experts);
    const auto first = layer.begin() + (m / slots) * slots;
    if (duplicates || std::find(first, first + slots, e) == first + slots) layer[static_cast<size_t>(m)] = e;
  }
  return layer;
}

struct Sizes {
  int32_t layers, gpus, slots;
  double empty;
  bool foreign, deaths;
};

std::unique_ptr<Migration> draw(Random* random, const Sizes& most) {
  auto m = std::make_unique<Migration>();
  PlacementPair& p = m->pair;
  p.layers = random->between(1, most.layers);
  p.to_gpus = p.from_gpus = random->between(2, most.gpus);
  p.to_slots = p.from_slots = random->between(1, most.slots);
  if (most.foreign && random->chance(0.3)) p.from_gpus = random->between(1, most.gpus);
  if (most.foreign && random->chance(0.3)) p.from_slots = random->between(1, most.slots);
  if (most.deaths && p.to_gpus > 2 && random->chance(0.3)) p.dead_gpus.push_back(random->below(p.to_gpus));
  const int32_t live = p.to_gpus - static_cast<int32_t>(p.dead_gpus.size());
  const int32_t room = std::min(live * p.to_slots, p.from_gpus * p.from_slots);
  p.experts = random->chance(0.4) ? room : random->between(1, room);
  const double empty = random->chance(0.5) ? 0 : most.empty;
  const bool duplicates = random->chance(0.3);
  for (int32_t l = 0; l < p.layers; ++l) {
    const auto before = random_layer(random, p.experts, p.from_gpus, p.from_slots, {}, empty, duplicates);
    const auto after = random_layer(random, p.experts, p.to_gpus, p.to_slots, p.dead_gpus, empty, duplicates);
    m->from.insert(m->from.end(), before.begin(), before.end());
    m->to.insert(m->to.end(), after.begin(), after.end());
  }
  if (random->chance(0.5)) {
    for (int32_t i = 0; i < p.from_gpus * p.to_gpus; ++i) p.distance.push_back(random->below(3));
  }
  m->point();
  return m;
}

constexpr Sizes kSmall{3, 5, 4, 0.5, true, true};

// The fewest rounds of a migration of one layer without staging, by breadth-first search over what the GPUs hold; -1: there is
// no order at all. Slots inside a GPU do not matter, so a GPU is a set of experts; second copies and deaths are not in here.
class Exhaustive {
 public:
  explicit Exhaustive(const Migration& m) : p_(m.pair) {
    for (int32_t g = 0; g < p_.to_gpus; ++g) {
      from_.push_back(set_of(p_.from, g));
      to_.push_back(set_of(p_.to, g));
    }
  }

  int32_t fewest_rounds() {
    std::set<State> seen{from_};
    std::vector<State> now{from_};
    for (int32_t round = 0; !now.empty(); ++round) {
      std::vector<State> next;
      for (const State& state : now) {
        if (is_end(state)) return round;
        expand(state, state, 0, &seen, &next);
      }
      now.swap(next);
    }
    return -1;
  }

 private:
  using State = std::vector<uint32_t>;  // [gpus], a set of experts

  uint32_t set_of(const int32_t* placement, int32_t g) const {
    uint32_t set = 0;
    for (int32_t k = 0; k < p_.to_slots; ++k) {
      if (placement[g * p_.to_slots + k] >= 0) set |= 1u << placement[g * p_.to_slots + k];
    }
    return set;
  }

  bool is_end(const State& state) const {
    for (size_t g = 0; g < to_.size(); ++g) {
      if ((state[g] & to_[g]) != to_[g]) return false;
    }
    return true;
  }

  // Lets each GPU in turn receive nothing or one expert that it lacks, dropping what there is no room for. `before` holds what
  // can be sent and `kept` what is still there while the round runs.
  void expand(const State& before, State kept, size_t gpu, std::set<State>* seen, std::vector<State>* next) {
    if (gpu == to_.size()) {
      finish(kept, seen, next);
      return;
    }
    expand(before, kept, gpu + 1, seen, next);
    for (uint32_t e = 0; e < static_cast<uint32_t>(p_.experts); ++e) {
      if ((to_[gpu] >> e & 1) == 0 || (before[gpu] >> e & 1) != 0) continue;
      arriving_.push_back({gpu, e});
      if (std::popcount(before[gpu]) < p_.to_slots) expand(before, kept, gpu + 1, seen, next);
      for (uint32_t d = 0; d < static_cast<uint32_t>(p_.experts); ++d) {
        if ((before[gpu] >> d & 1) == 0 || (to_[gpu] >> d & 1) != 0) continue;
        State less = kept;
        less[gpu] &= ~(1u << d);
        expand(before, less, gpu + 1, seen, next);
      }
      arriving_.pop_back();
    }
  }

  // All experts are live while the round runs, and every arrival has a sender of its own.
  void finish(const State& kept, std::set<State>* seen, std::vector<State>* next) {
    uint32_t live = 0;
    for (const uint32_t set : kept) live |= set;
    if (live != (1u << p_.experts) - 1 || arriving_.empty() || !can_send(kept, 0, 0)) return;
    State after = kept;
    for (const auto& [gpu, e] : arriving_) after[gpu] |= 1u << e;
    if (seen->insert(after).second) next->push_back(after);
  }

  bool can_send(const State& kept, size_t at, uint32_t busy) const {
    if (at == arriving_.size()) return true;
    for (size_t f = 0; f < kept.size(); ++f) {
      if ((busy >> f & 1) != 0 || (kept[f] >> arriving_[at].second & 1) == 0) continue;
      if (can_send(kept, at + 1, busy | 1u << f)) return true;
    }
    return false;
  }

  const PlacementPair& p_;
  State from_;
  State to_;
  std::vector<std::pair<size_t, uint32_t>> arriving_;
};

}  // namespace

TEST_CASE("migration: a random one holds what it promises with any staging") {
  for (uint64_t i = 0; i < share_of(3000); ++i) {
    Random random(i);
    const auto m = draw(&random, kSmall);
    CAPTURE(base_seed());
    CAPTURE(i);
    const Schedule free = schedule(*m);
    CHECK(replay(m->pair, free, peak(free)) == "");
    CHECK(free.rounds == free.lower_bound);
    int32_t last = INT32_MAX;
    for (const int32_t staging : {1, 2, 4}) {
      const Schedule limited = schedule(*m, staging);
      CHECK(replay(m->pair, limited, staging) == "");
      CHECK(limited.rounds >= limited.lower_bound);
      CHECK(limited.rounds <= last);
      CHECK(peak(limited) <= staging);
      last = limited.rounds;
    }
    try {
      const Schedule none = schedule(*m, 0);
      CHECK(replay(m->pair, none, 0) == "");
    } catch (const Error& error) {
      CHECK(error.field() == "stagingSlots");
      CHECK(error.code() == ErrorCode::kInfeasible);
    }
  }
}

// How far from the best, where staging is what is short; the exhaustive search may also send on what has just arrived. An error
// where it finds an order would be wrong.
TEST_CASE("migration: without staging, near the fewest rounds, and impossible only where it is") {
  int64_t compared = 0, above = 0, impossible = 0, rounds = 0, fewest = 0;
  for (uint64_t i = 0; i < share_of(1500); ++i) {
    Random random(100000 + i);
    const auto m = draw(&random, {1, 4, 2, 0.3, false, false});
    CAPTURE(base_seed());
    CAPTURE(i);
    bool has_duplicates = false;
    for (size_t k = 1; k < m->to.size() && m->pair.to_slots == 2; k += 2) {
      has_duplicates |= m->to[k] >= 0 && (m->to[k] == m->to[k - 1]);
      has_duplicates |= m->from[k] >= 0 && (m->from[k] == m->from[k - 1]);
    }
    if (has_duplicates) continue;
    const int32_t best = Exhaustive(*m).fewest_rounds();
    int32_t found = -1;
    try {
      found = schedule(*m, 0).rounds;
    } catch (const Error& error) {
      // Experts that change places inside one GPU are none of the search's business.
      if (error.expected().find("change places") != std::string::npos) continue;
    }
    CHECK((found < 0) == (best < 0));
    if (found < 0 || best < 0) {
      ++impossible;
      continue;
    }
    ++compared;
    above += found > best;
    rounds += found;
    fewest += best;
  }
  CHECK(happened(compared, 300));
  CHECK(happened(impossible, 100));
  MESSAGE("without staging: " << compared << " compared, " << above << " above the fewest rounds, " << rounds << " rounds for "
                              << fewest << "; " << impossible << " impossible");
  CHECK(rounds * 100 <= fewest * 115);
}

TEST_CASE("migration: sole replicas change places through one staging slot each, and not without") {
  const Migration m(2, 2, 1, {0, 1}, {1, 0});
  const Schedule s = schedule(m, 1);
  CHECK(replay(m.pair, s, 1) == "");
  CHECK(s.rounds == 1);
  CHECK(s.staging_peak == std::vector<int32_t>{1, 1});
  CHECK_THROWS_WITH(schedule(m, 0),
                    "stagingSlots: expected at least 1, since expert 0 of layer 0 can only go where an expert without another "
                    "replica has to leave first but received 0");
}

TEST_CASE("migration: a replica to spare makes room without staging, one slot after another") {
  // 0 is on GPUs 0 and 1; 1 goes to GPU 1, which then frees GPU 2's slot for 2, and so on.
  const Migration m(3, 4, 1, {0, 0, 1, 2}, {0, 1, 2, 0});
  const Schedule s = schedule(m, 0);
  CHECK(replay(m.pair, s, 0) == "");
  CHECK(s.rounds == 3);
  CHECK(s.lower_bound == 1);
  CHECK(schedule(m, 1).rounds == 1);
}

TEST_CASE("migration: layers share rounds") {
  const Migration m(4, 2, 2, {0, 1, 2, 3, 0, 1, 2, 3}, {0, 2, 1, 3, 2, 1, 0, 3});
  const Schedule s = schedule(m, 2);
  CHECK(s.lower_bound == 2);
  CHECK(s.rounds == 2);
}

TEST_CASE("migration: order inside a GPU costs no round, but a place to put things aside") {
  const Migration m(2, 1, 2, {0, 1}, {1, 0});
  const Schedule s = schedule(m, 1);
  CHECK(s.rounds == 0);
  CHECK(s.copies.size() == 3);
  CHECK(replay(m.pair, s, 1) == "");
  CHECK_THROWS_AS(schedule(m, 0), Error);
  const Migration spare(2, 1, 3, {0, 1, -1}, {1, 0, -1});
  CHECK(replay(spare.pair, schedule(spare, 0), 0) == "");
}

TEST_CASE("migration: what only a dead GPU held comes from storage, and nothing is asked of the dead") {
  Migration m(3, 3, 2, {0, 1, 2, 1, 0, 1}, {0, 2, 1, 0, -1, -1});
  m.pair.dead_gpus = {2};
  const Schedule s = schedule(m, 1);
  CHECK(replay(m.pair, s, 1) == "");
  CHECK(s.loads.empty());
  Migration lost(3, 3, 2, {0, 1, 0, 1, 2, 2}, {0, 2, 1, 2, -1, -1});
  lost.pair.dead_gpus = {2};
  const Schedule l = schedule(lost, 1);
  CHECK(replay(lost.pair, l, 1) == "");
  CHECK(l.transfers.empty());
  CHECK(l.loads.size() == 2);
  CHECK(l.loads[0].round == 0);
  Migration wrong(2, 2, 1, {0, 1}, {0, 1});
  wrong.pair.dead_gpus = {1};
  CHECK_THROWS_WITH(schedule(wrong), "to: expected -1 in the slots of a dead GPU but received expert 1 in layer 0 on GPU 1");
}

TEST_CASE("migration: entries that are no experts, and experts that would be nowhere, are refused") {
  CHECK_THROWS_WITH(schedule(Migration(2, 2, 1, {0, 2}, {0, 1})),
                    "from: expected expert ids from 0 to 1, or -1 for an empty slot but received 2 in layer 0, slot 1");
  CHECK_THROWS_WITH(schedule(Migration(2, 2, 1, {0, 1}, {0, 0})),
                    "to: expected a slot for each of 2 experts but received none for expert 1 in layer 0");
}

TEST_CASE("migration: senders have as little to send as can be, the nearest among equals") {
  // Expert 0 on GPUs 0 and 1, experts 1 and 2 on GPU 0 alone: GPU 1 sends expert 0, to both.
  Migration m(3, 4, 3, {0, 1, 2, 0, -1, -1, -1, -1, -1, -1, -1, -1}, {0, 1, 2, 0, -1, -1, 0, 1, -1, 0, 2, -1});
  const Moves moves = moves_between(m.pair);
  CHECK(choose_senders(moves, 4) == std::vector<int32_t>{1, 1, 0, 0});
  Migration near(1, 4, 1, {0, 0, -1, -1}, {0, 0, 0, 0});
  near.pair.distance = {0, 1, 2, 1, 1, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0};
  CHECK(choose_senders(moves_between(near.pair), 4) == std::vector<int32_t>{1, 0});
}

// The least maximum by trying all choices.
TEST_CASE("migration: no choice of senders has a lower maximum") {
  for (uint64_t i = 0; i < share_of(500); ++i) {
    Random random(200000 + i);
    const auto m = draw(&random, {2, 4, 2, 0.2, true, true});
    CAPTURE(base_seed());
    CAPTURE(i);
    const Moves moves = moves_between(m->pair);
    const auto busiest = [&](const std::vector<int32_t>& senders) {
      std::vector<int32_t> sends(static_cast<size_t>(m->pair.gpus()) + 1, 0);
      for (const int32_t g : senders) ++sends[static_cast<size_t>(g + 1)];
      return *std::max_element(sends.begin() + 1, sends.end());
    };
    int32_t least = INT32_MAX;
    std::vector<int32_t> choice(static_cast<size_t>(moves.count()), -1);
    const std::function<void(size_t)> try_all = [&](size_t at) {
      if (at == choice.size()) {
        least = std::min(least, busiest(choice));
        return;
      }
      if (moves.holder_start[at] == moves.holder_start[at + 1]) try_all(at + 1);
      for (int32_t h = moves.holder_start[at]; h < moves.holder_start[at + 1]; ++h) {
        choice[at] = moves.holders[static_cast<size_t>(h)];
        try_all(at + 1);
      }
    };
    try_all(0);
    CHECK(busiest(choose_senders(moves, m->pair.gpus())) == least);
  }
}

TEST_CASE("migration: the replay finds planted faults") {
  const Migration m(6, 3, 3, {0, 1, 2, 3, 4, 5, 0, 1, 2}, {3, 1, 2, 0, 4, 5, 0, 1, 5});
  const Schedule good = schedule(m, 2);
  REQUIRE(replay(m.pair, good, 2) == "");
  REQUIRE(good.transfers.size() == 3);
  const auto with = [&](const std::function<void(Schedule*)>& fault) {
    Schedule bad = good;
    fault(&bad);
    return replay(m.pair, bad, 2);
  };
  CHECK(with([](Schedule* s) { s->transfers.pop_back(); }) != "");
  CHECK(with([](Schedule* s) { for (Transfer& t : s->transfers) t.round = 0; }).find("twice") != std::string::npos);
  CHECK(with([](Schedule* s) { s->transfers[0].from_slot = (s->transfers[0].from_slot + 1) % 3; }).find("does not hold") !=
        std::string::npos);
  CHECK(with([](Schedule* s) { s->transfers[0].to_slot = 5; }).find("no such slot") != std::string::npos);
  CHECK(with([](Schedule* s) { s->transfers.push_back(s->transfers[0]); s->transfers.back().round = s->rounds++; }) != "");
  // Straight into the slots of sole replicas, which are being sent.
  const Migration swap(2, 2, 1, {0, 1}, {1, 0});
  Schedule direct = schedule(swap, 1);
  direct.copies.clear();
  for (Transfer& t : direct.transfers) t.to_slot = 0;
  CHECK(replay(swap.pair, direct, 1) == "round 0: a slot is read and written");
}
