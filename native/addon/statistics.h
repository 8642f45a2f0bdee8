// What JS holds of the routing statistics. Synchronous, and of the thread that made it; the arguments are what
// lib/statistics/validate.ts lets through.
#pragma once

#include <napi.h>

#include <memory>

#include "../model/statistics.h"

namespace gimbal::addon {

// new NativeStatistics(layers, sources, experts, fades, windowTokens). Where counting is refused, the place in the array comes
// back, else -1.
class NativeStatistics : public Napi::ObjectWrap<NativeStatistics> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit NativeStatistics(const Napi::CallbackInfo& info);
  void Finalize(Napi::Env env) override;

 private:
  Napi::Value observe(const Napi::CallbackInfo& info);         // observe(source, topk, tokens, k)
  Napi::Value observe_counts(const Napi::CallbackInfo& info);  // observeCounts(firstSource, sources, counts, k)
  Napi::Value counts(const Napi::CallbackInfo& info);          // counts(priorTokens, into)
  void tokens(const Napi::CallbackInfo& info);                 // tokens(into)
  Napi::Value whole_buckets(const Napi::CallbackInfo& info);   // wholeBuckets(source, into): how many
  void reset(const Napi::CallbackInfo& info);                  // reset(source)
  Napi::Value snapshot(const Napi::CallbackInfo& info);        // a Uint8Array
  Napi::Value restore(const Napi::CallbackInfo& info);         // restore(bytes): a RestoreFailure's number
  Napi::Value tokens_seen(const Napi::CallbackInfo& info);
  Napi::Value memory_bytes(const Napi::CallbackInfo& info);

  std::unique_ptr<RoutingStatistics> statistics_;
};

}  // namespace gimbal::addon
