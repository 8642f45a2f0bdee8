// Which backend scores requests, some at a time, and what there is to say where there is nothing to score.
#include "score.h"

#include <algorithm>
#include <limits>

#include "registry.h"

namespace gimbal {
namespace {

// A score takes a core about half a nanosecond, and on its way back from a GPU 8 bytes of the bus, which is hardly less, beside a
// driver that may have to be started. So a GPU is asked only where it is named, until one has been measured to pay.
Selection select_for(const ScoreOptions& options) {
  if (options.backend != BackendChoice::kAuto) return select_backend(options.backend, options.device);
  return {cpu_backend(), "scores are made on the CPU unless a GPU is asked for"};
}

Scorer& scorer_of(Backend& backend, ScoreWorkspace* workspace) {
  if (workspace->backend != &backend) {
    workspace->scorer = backend.make_scorer();
    workspace->backend = &backend;
  }
  return *workspace->scorer;
}

// Integers end here.
double to_ms(int64_t us) {
  constexpr double kMicrosPerMilli = 1000;
  return us == spec::kNoScore ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(us) / kMicrosPerMilli;
}

}  // namespace

Scores score_requests(const spec::EngineColumns& engines, const spec::RequestColumns& requests, const ScoreOptions& options,
                      ScoreWorkspace& workspace) {
  const int64_t cells = int64_t{engines.count} * requests.count;
  const Selection selected = select_for(options);
  Scores scores;
  scores.backend = selected.backend.name();
  scores.backend_reason = selected.reason;
  scores.pressure_ms.resize(static_cast<size_t>(cells));
  scores.best.assign(static_cast<size_t>(requests.count), -1);
  if (cells == 0) return scores;
  Scorer& scorer = scorer_of(selected.backend, &workspace);
  const int32_t at_once =
      static_cast<int32_t>(std::clamp<int64_t>(scorer.scores_at_once() / engines.count, 1, requests.count));
  workspace.pressure_us.resize(static_cast<size_t>(at_once) * static_cast<size_t>(engines.count));
  for (int32_t first = 0; first < requests.count; first += at_once) {
    const int32_t count = std::min(at_once, requests.count - first);
    int64_t* const us = workspace.pressure_us.data();
    scorer.score(engines, spec::part_of(requests, engines.count, first, count), us, scores.best.data() + first);
    std::transform(us, us + int64_t{count} * engines.count, scores.pressure_ms.begin() + int64_t{first} * engines.count, to_ms);
  }
  return scores;
}

}  // namespace gimbal
