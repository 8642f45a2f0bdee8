// What JS holds of the dispatch side: a scheduler and a queue. Both serve the thread that made them, and all is synchronous but
// the scores of many requests; the arguments are what lib/dispatch/validate.ts lets through.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "../dispatch/request_queue.h"
#include "../dispatch/scheduler.h"
#include "../solver/score.h"
#include "pool.h"
#include "runner.h"

namespace gimbal::addon {

// new NativeScheduler(options). Times are milliseconds. A decision's parts come back in `decision`, a Float64Array that every
// call fills anew, so that a decision makes no object: [engine, ticket, reason, score].
class NativeScheduler : public Napi::ObjectWrap<NativeScheduler> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit NativeScheduler(const Napi::CallbackInfo& info);
  ~NativeScheduler() override;

 private:
  // addEngine(group, role, prefillTokensPerSecond, kvTokens): the engine's number.
  Napi::Value add_engine(const Napi::CallbackInfo& info);
  void set_state(const Napi::CallbackInfo& info);
  void restarted(const Napi::CallbackInfo& info);
  // observe(engine, timeMs, kvUsage, running, waiting, waitingPrefillTokens, preemptions, moePressure, nowMs); -1: not known.
  void observe(const Napi::CallbackInfo& info);
  // setExpertPressure(engine, moePressure, commExcess, timeMs, nowMs)
  void set_expert_pressure(const Napi::CallbackInfo& info);
  // dispatch(promptTokens, cachedTokens, stage, streams, nowMs, session?, prefix?, cachedByEngine?, expertMs?) and
  // dispatchTo(engine, …the same). `cachedByEngine` is a Uint32Array [engines], which counts before cachedTokens; `expertMs` a
  // Float64Array [engines].
  void dispatch(const Napi::CallbackInfo& info);
  void dispatch_to(const Napi::CallbackInfo& info);
  // dispatchBatch(promptTokens, cachedTokens, streams, decisions, nowMs): arrays [requests]; fills decisions [requests][4].
  void dispatch_batch(const Napi::CallbackInfo& info);
  // scores(…as dispatch, all, scores): fills a Float64Array [engines] of what each engine would score, NaN where it may not take
  // the request or, unless `all`, the filter leaves it out.
  void scores(const Napi::CallbackInfo& info);
  // scoreBatch(promptTokens, cachedTokens, stages, sessions, prefixes, caches, experts, nowMs, options): columns [requests], the
  // third a Uint8Array, the next four arrays with undefined where a request has none. Returns { promise, cancel }; the ledger
  // counts as it is now.
  Napi::Value score_batch(const Napi::CallbackInfo& info);
  void first_token(const Napi::CallbackInfo& info);
  void progress(const Napi::CallbackInfo& info);
  void finished(const Napi::CallbackInfo& info);
  void failed(const Napi::CallbackInfo& info);
  // report(engine, nowMs, into): a Float64Array [8].
  void report(const Napi::CallbackInfo& info);
  Napi::Value decision_array(const Napi::CallbackInfo& info);

  DispatchRequest request(const Napi::CallbackInfo& info, size_t first);

  Scheduler scheduler_;
  std::shared_ptr<Runner> runner_;
  std::shared_ptr<Pool<ScoreWorkspace>> workspaces_;  // shared with running jobs
  Napi::Reference<Napi::Float64Array> decision_;
  double* told_ = nullptr;  // its elements
  std::vector<int32_t> expert_us_;  // [engines] of the request at hand
};

// new NativeQueue(policy, agingTokensPerSecond). Requests are known by the number that push() returns.
class NativeQueue : public Napi::ObjectWrap<NativeQueue> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit NativeQueue(const Napi::CallbackInfo& info);

 private:
  Napi::Value push(const Napi::CallbackInfo& info);  // push(prefillTokens, arrivalMs, nowMs)
  Napi::Value peek(const Napi::CallbackInfo& info);  // peek(nowMs), -1 where none waits
  Napi::Value pop(const Napi::CallbackInfo& info);
  void update(const Napi::CallbackInfo& info);  // update(number, prefillTokens)
  void remove(const Napi::CallbackInfo& info);

  RequestQueue queue_;
};

Napi::Value hash_blocks(const Napi::CallbackInfo& info);

}  // namespace gimbal::addon
