// The CPU's Team for tests that call the spec's functions directly, and a loop over it and the shuffled one.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#define GIMBAL_ISA isa_plain
#include "../solver/cpu/team_cpu.h"
#undef GIMBAL_ISA

#include "shuffled_team.h"

namespace gimbal {
namespace test {

// `cells`: the most candidates that an argmin of the function under test looks at; the scratch is no larger.
struct PlainTeam {
  explicit PlainTeam(size_t cells) : scores(cells), team(nullptr, scores.data()) {}
  PlainTeam(const PlainTeam&) = delete;

  std::vector<spec::i32> scores;
  isa_plain::TeamCpu team;
};

// Runs `body(team, name)` over each Team.
template <class Body>
void over_teams(size_t cells, Body body) {
  PlainTeam plain(cells);
  body(plain.team, std::string("plain team"));
  ShuffledTeam shuffled(nullptr, nullptr);
  body(shuffled, std::string("shuffled team"));
}

}  // namespace test
}  // namespace gimbal
