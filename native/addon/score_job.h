// Scores of many requests as a job: the columns are the scheduler's at the call, all else is done beside it.
#pragma once

#include <memory>
#include <utility>

#include "../dispatch/score_inputs.h"
#include "../solver/score.h"
#include "marshal.h"
#include "pool.h"
#include "runner.h"

namespace gimbal::addon {

class ScoreJob final : public Job {
 public:
  ScoreJob(std::shared_ptr<Pool<ScoreWorkspace>> workspaces, ScoreInputs inputs, const ScoreOptions& options)
      : workspaces_(std::move(workspaces)), inputs_(std::move(inputs)), options_(options) {}

  void run() override {
    Lease<ScoreWorkspace> workspace(*workspaces_);
    scores_ = score_requests(inputs_.engines(), inputs_.requests(), options_, *workspace);
  }
  void release() override { inputs_ = ScoreInputs(); }

  Napi::Value result(Napi::Env env) override { return scores_to_js(env, scores_); }

 private:
  std::shared_ptr<Pool<ScoreWorkspace>> workspaces_;
  ScoreInputs inputs_;
  const ScoreOptions options_;
  Scores scores_;
};

}  // namespace gimbal::addon
