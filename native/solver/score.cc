// Which backend scores requests, and what there is to say where there is nothing to score.
#include "score.h"

#include "registry.h"

namespace gimbal {
namespace {

// A small table is not worth a look at the devices, which may start a driver.
Selection select_for(int64_t cells, const ScoreOptions& options) {
  if (options.backend != BackendChoice::kAuto || cells >= kScoresForGpu) return select_backend(options.backend, options.device);
  return {cpu_backend(), std::to_string(cells) + " scores, and a GPU is asked from " + std::to_string(kScoresForGpu) + " on"};
}

}  // namespace

Scorer& ScoreWorkspace::scorer_of(Backend& backend) {
  if (backend_ != &backend) {
    scorer_ = backend.make_scorer();
    backend_ = &backend;
  }
  return *scorer_;
}

Scores score_requests(const spec::EngineColumns& engines, const spec::RequestColumns& requests, const ScoreOptions& options,
                      ScoreWorkspace& workspace) {
  const int64_t cells = int64_t{engines.count} * requests.count;
  const Selection selected = select_for(cells, options);
  Scores scores;
  scores.backend = selected.backend.name();
  scores.backend_reason = selected.reason;
  scores.pressure_us.resize(static_cast<size_t>(cells));
  scores.best.assign(static_cast<size_t>(requests.count), -1);
  if (cells > 0) {
    workspace.scorer_of(selected.backend).score(engines, requests, scores.pressure_us.data(), scores.best.data());
  }
  return scores;
}

}  // namespace gimbal
