// What JS holds: a planner with its kept buffers, and a problem held in native memory.
#pragma once

#include <napi.h>

#include <memory>

#include "runner.h"

namespace gimbal::addon {

struct PlannerBuffers;

// new NativePlanner(kept): `kept` is how many sets of buffers stay between calls.
// plan(problem, options, onProgress?) and evaluate(problem, candidates, count, options) return { promise, cancel };
// any number may run at once, each with buffers of its own. The arguments are what lib/validate.ts makes.
class NativePlanner : public Napi::ObjectWrap<NativePlanner> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit NativePlanner(const Napi::CallbackInfo& info);
  ~NativePlanner() override;

 private:
  Napi::Value plan(const Napi::CallbackInfo& info);
  Napi::Value evaluate(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);
  void discard_buffers();

  std::shared_ptr<Runner> runner_;
  std::shared_ptr<PlannerBuffers> buffers_;  // shared with running jobs, so a collected planner harms none
};

// holdProblem(problem): { promise of a handle, cancel }. A handle stands for the problem in plan() and evaluate().
Napi::Value hold_problem(const Napi::CallbackInfo& info);
// releaseProblem(handle): frees it; plans that already run keep what they need.
void release_problem(const Napi::CallbackInfo& info);

}  // namespace gimbal::addon
