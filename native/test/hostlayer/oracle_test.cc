// The race check against its definition: random programs are run, and a slow oracle that remembers every access and every
// synchronisation says whether two of their accesses conflict.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "planted.h"
#include "random.h"
#include "test_machine.h"

#if defined(HOSTLAYER_TEST_INSTRUMENTED)
namespace hostlayer {
namespace test {
namespace {

// Whether step `s` of thread a comes before step `t` > s of thread b of its block, by the synchronisations between them.
// reached[b]: whether something thread a did up to step s is known to thread b.
bool comes_before(const Program& p, int s, int a, int t, int b) {
  std::vector<char> reached(static_cast<size_t>(p.threads), 0);
  reached[static_cast<size_t>(a)] = 1;
  for (int step = s; step < t; ++step) {
    const int sync = p.syncs[static_cast<size_t>(step)];
    if (sync == kNoSync) continue;
    const int group = sync == kSyncBlock ? p.threads : sync == kSyncWarps ? 32 : sync == kSyncHalfWarps ? 16 : 8;
    for (int from = 0; from < p.threads; from += group) {
      const auto first = reached.begin() + from;
      const auto last = reached.begin() + std::min(from + group, p.threads);
      if (std::find(first, last, 1) != last) std::fill(first, last, 1);
    }
  }
  return reached[static_cast<size_t>(b)] != 0;
}

bool overlap(const ProgramStep& a, const ProgramStep& b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

bool may_meet(const ProgramStep& a, const ProgramStep& b) {
  const bool both_read = a.kind == 1 && b.kind == 1;
  const bool both_atomic = a.kind == 3 && b.kind == 3;
  return a.kind != 0 && b.kind != 0 && !both_read && !both_atomic && overlap(a, b);
}

const ProgramStep& step_of(const Program& p, int step, int block, int thread) {
  return p.steps[static_cast<size_t>((step * p.blocks + block) * p.threads + thread)];
}

bool conflict(const Program& p, int s, int block_a, int a, int t, int block_b, int b) {
  if (!may_meet(step_of(p, s, block_a, a), step_of(p, t, block_b, b))) return false;
  if (block_a != block_b) return !p.in_shared;
  if (a == b) return false;
  return s <= t ? !comes_before(p, s, a, t, b) : !comes_before(p, t, b, s, a);
}

bool has_conflict(const Program& p) {
  const int steps = static_cast<int>(p.syncs.size());
  const int all = steps * p.blocks * p.threads;
  std::vector<int> active;
  for (int i = 0; i < all; ++i) {
    if (p.steps[static_cast<size_t>(i)].kind != 0) active.push_back(i);
  }
  for (size_t i = 0; i < active.size(); ++i) {
    for (size_t j = i + 1; j < active.size(); ++j) {
      const int per_step = p.blocks * p.threads;
      const int x = active[i];
      const int y = active[j];
      if (conflict(p, x / per_step, x % per_step / p.threads, x % p.threads, y / per_step, y % per_step / p.threads,
                   y % p.threads)) {
        return true;
      }
    }
  }
  return false;
}

int random_sync(Random* random, bool partial_warps) {
  const int some[] = {kNoSync, kSyncWarps, kSyncWarps, kSyncHalfWarps, kSyncQuarterWarps};
  const uint32_t drawn = random->below(10);
  return drawn >= 5 ? kSyncBlock : drawn >= 3 && !partial_warps ? kSyncWarps : some[drawn];
}

// Few threads act, on few cells, so that about half of the programs are right.
Program random_program(Random* random, bool partial_warps) {
  Program p;
  p.blocks = 1 + static_cast<int>(random->below(2));
  p.threads = 32 * (1 + static_cast<int>(random->below(3)));
  p.in_shared = random->below(2) == 0;
  p.bytes = 8 * (1 + static_cast<int>(random->below(8)));
  const int steps = 2 + static_cast<int>(random->below(7));
  const uint32_t many = 1 + random->below(6);
  const bool mostly_reads = random->below(2) == 0;
  const uint32_t some_lanes = 1 + random->below(32);
  p.steps.resize(static_cast<size_t>(steps * p.blocks * p.threads));
  for (int s = 0; s < steps; ++s) {
    p.syncs.push_back(random_sync(random, partial_warps));
    for (uint32_t k = 0; k < many; ++k) {
      const int block = static_cast<int>(random->below(static_cast<uint32_t>(p.blocks)));
      const int thread = static_cast<int>(random->below(static_cast<uint32_t>(p.threads))) / 32 * 32 +
                         static_cast<int>(random->below(some_lanes));
      ProgramStep& step = p.steps[static_cast<size_t>((s * p.blocks + block) * p.threads + thread)];
      step.kind = mostly_reads && random->below(4) != 0 ? 1 : 1 + static_cast<int>(random->below(3));
      step.bytes = step.kind == 3 ? 4 << random->below(2) : 1 << random->below(4);
      step.offset = static_cast<int>(random->below(static_cast<uint32_t>(p.bytes / step.bytes))) * step.bytes;
    }
  }
  return p;
}

uint64_t test_seed() {
  const char* text = std::getenv("GIMBAL_TEST_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

// Many lanes of two warps read one cell, some of them ordered by their warps' synchronisations, and one thread writes it.
Program random_readers(Random* random, bool partial_warps) {
  Program p;
  p.blocks = 1;
  p.threads = 64;
  p.in_shared = true;
  p.bytes = 8;
  const int steps = 3 + static_cast<int>(random->below(5));
  p.steps.resize(static_cast<size_t>(steps * p.threads));
  for (int s = 0; s < steps; ++s) {
    const int sync = partial_warps && random->below(2) == 0 ? kSyncQuarterWarps : kSyncWarps;
    p.syncs.push_back(random->below(3) == 0 ? static_cast<int>(kNoSync) : sync);
    const bool writes = s + 1 == steps;
    const int count = writes ? 1 : 1 + static_cast<int>(random->below(3));
    for (int k = 0; k < count; ++k) {
      const uint32_t warp = random->below(8) == 0 ? 32 : 0;
      ProgramStep& step = p.steps[static_cast<size_t>(s * p.threads) + warp + random->below(9)];
      step = ProgramStep{writes ? 2 : 1, 0, 4};
    }
  }
  return p;
}

struct Tally {
  int right = 0;
  int wrong = 0;
  int false_findings = 0;
  int missed = 0;
};

Tally compare(const PlantedKernels& k, uint64_t seed, int programs, bool partial_warps) {
  Tally tally;
  Random random(seed);
  for (int i = 0; i < programs; ++i) {
    const Machine machine(seed + static_cast<uint64_t>(i), static_cast<Order>(i % 3));
    const Program p = i % 3 == 0 ? random_readers(&random, partial_warps) : random_program(&random, partial_warps);
    const bool expected = has_conflict(p);
    const bool found = k.run_program(p) != cudaSuccess;
    if (found) CHECK(last_report().find("hostlayer: race") == 0);
    ++(expected ? tally.wrong : tally.right);
    tally.false_findings += found && !expected;
    tally.missed += expected && !found;
  }
  return tally;
}

TEST_CASE("hostlayer: the race check finds what the definition says, and nothing else") {
  const Tally tally = compare(planted_checked_o2(), test_seed(), 1000, false);
  MESSAGE("GIMBAL_TEST_SEED=" << test_seed() << ": programs with a race: " << tally.wrong << ", without: " << tally.right);
  CHECK(tally.right > 200);
  CHECK(tally.wrong > 200);
  CHECK(tally.false_findings == 0);
  CHECK(tally.missed == 0);
}

// Where parts of a warp synchronise on their own, two remembered accesses cannot always stand for all.
TEST_CASE("hostlayer: with synchronised parts of warps, nothing is made up and little is missed") {
  const Tally tally = compare(planted_checked_o1(), test_seed() + 1000000, 1000, true);
  MESSAGE("GIMBAL_TEST_SEED=" << test_seed() << ": programs with a race: " << tally.wrong << ", missed: "
                              << tally.missed << ", without: " << tally.right);
  CHECK(tally.right > 200);
  CHECK(tally.wrong > 200);
  CHECK(tally.false_findings == 0);
  CHECK(tally.missed <= tally.wrong / 50);
}

}  // namespace
}  // namespace test
}  // namespace hostlayer
#endif
