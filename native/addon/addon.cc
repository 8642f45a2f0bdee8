// The addon's exports, and the state each Node environment has of its own.
#include <napi.h>

#include <memory>

#include "dispatch.h"
#include "marshal.h"
#include "migration.h"
#include "planner.h"
#include "runner.h"
#include "statistics.h"

namespace gimbal::addon {
namespace {

Napi::Value backends(const Napi::CallbackInfo& info) { return backends_to_js(info.Env()); }

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new std::shared_ptr<Runner>(std::make_shared<Runner>(env)));
  exports.Set("backends", Napi::Function::New<backends>(env, "backends"));
  exports.Set("NativePlanner", NativePlanner::define(env));
  exports.Set("NativeQueue", NativeQueue::define(env));
  exports.Set("NativeScheduler", NativeScheduler::define(env));
  exports.Set("NativeStatistics", NativeStatistics::define(env));
  exports.Set("hashBlocks", Napi::Function::New<hash_blocks>(env, "hashBlocks"));
  exports.Set("holdProblem", Napi::Function::New<hold_problem>(env, "holdProblem"));
  exports.Set("placementMoves", Napi::Function::New<placement_moves>(env, "placementMoves"));
  exports.Set("releaseProblem", Napi::Function::New<release_problem>(env, "releaseProblem"));
  exports.Set("scheduleMigration", Napi::Function::New<schedule_migration>(env, "scheduleMigration"));
  return exports;
}

}  // namespace

NODE_API_MODULE(gimbal, init)

}  // namespace gimbal::addon
