// One walk of one layer, from its start on: what a backend runs for each walker, over its own Team.
#pragma once

#include "construct.h"
#include "search.h"
#include "types.h"

namespace gimbal {
namespace spec {

// Walks on to step `until`, or to the plan's end. `start` [gpus][slots] is read by a walk that has not begun; null: construct
// by the walker's variant. A paused walk goes on from w.expert. Returns false where `stop` said to stop.
template <class Team, class Stop>
GIMBAL_OVER_TEAM bool walk_on(Team& team, const LayerView& view, const Walker& walker, const WalkPlan& plan, const i32* start,
                         i64 until, WalkProgress* progress, Stop stop) {
  const Walker w = walker;
  Search<Team> search(team, view, walker, plan.key, plan.temper);
  if (progress->steps_done < 0) {
    team.for_each(w.frontier, [=](i32 m) GIMBAL_LAMBDA { w.frontier_value[m] = INT64_MAX; });
    if (start == nullptr) {
      Construct<Team> construct(team, view, walker);
      construct.run(start_variant(plan.walker), plan.key);
    } else {
      const i32 slots = view.slots, stride = view.stride;
      team.for_each2(slots, view.gpus, [=](i32 k, i32 h) GIMBAL_LAMBDA {
        w.expert[k * stride + h] = start[h * slots + k];
      });
    }
    search.start(&progress->load_potential, &progress->comm_potential);
    progress->steps_done = 0;
  } else {
    search.resume(progress->load_potential, progress->comm_potential, progress->best_value);
  }
  const i64 end = min_of(until, plan.total_steps);
  const bool priced = w.frontier > 0;  // a budget's price falls with the temperature
  bool finished = true;
  for (i64 at = progress->steps_done; finished && at < end;) {
    const i64 chunk = at - at % kStepsPerTemperature;
    if (priced) search.set_extra_price(extra_price_at(plan.dearest, plan.cheapest, chunk, plan.total_steps));
    const i64 next = priced ? min_of<i64>(end, chunk + kStepsPerTemperature) : end;
    finished = search.walk(at, next, plan.total_steps, stop);
    at = next;
  }
  progress->steps_done = end;
  progress->best_value = search.best_value();
  return finished;
}

}  // namespace spec
}  // namespace gimbal
