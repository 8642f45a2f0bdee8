#include "statistics.h"

#include <new>

namespace gimbal::addon {
namespace {

int32_t integer(const Napi::CallbackInfo& info, size_t at) { return info[at].As<Napi::Number>().Int32Value(); }
int64_t large(const Napi::CallbackInfo& info, size_t at) { return info[at].As<Napi::Number>().Int64Value(); }
Napi::Value number(const Napi::CallbackInfo& info, int64_t value) {
  return Napi::Number::New(info.Env(), static_cast<double>(value));
}

StatisticsOptions options_of(const Napi::CallbackInfo& info) {
  return {integer(info, 0), integer(info, 1), integer(info, 2), info[3].As<Napi::Boolean>().Value(), large(info, 4)};
}

}  // namespace

Napi::Function NativeStatistics::define(Napi::Env env) {
  return DefineClass(env, "NativeStatistics",
                     {
                         InstanceMethod<&NativeStatistics::observe>("observe"),
                         InstanceMethod<&NativeStatistics::observe_counts>("observeCounts"),
                         InstanceMethod<&NativeStatistics::counts>("counts"),
                         InstanceMethod<&NativeStatistics::tokens>("tokens"),
                         InstanceMethod<&NativeStatistics::whole_buckets>("wholeBuckets"),
                         InstanceMethod<&NativeStatistics::reset>("reset"),
                         InstanceMethod<&NativeStatistics::snapshot>("snapshot"),
                         InstanceMethod<&NativeStatistics::restore>("restore"),
                         InstanceAccessor<&NativeStatistics::tokens_seen>("tokensSeen"),
                         InstanceAccessor<&NativeStatistics::memory_bytes>("memoryBytes"),
                     });
}

NativeStatistics::NativeStatistics(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  try {
    statistics_ = std::make_unique<RoutingStatistics>(options_of(info));
  } catch (const std::bad_alloc&) {
    throw Napi::RangeError::New(info.Env(), "an allocation failure");
  }
  // So that the collector knows what hangs on so small an object.
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), static_cast<int64_t>(statistics_->memory_bytes()));
}

void NativeStatistics::Finalize(Napi::Env env) {
  if (statistics_) Napi::MemoryManagement::AdjustExternalMemory(env, -static_cast<int64_t>(statistics_->memory_bytes()));
}

Napi::Value NativeStatistics::observe(const Napi::CallbackInfo& info) {
  const int32_t source = integer(info, 0), k = integer(info, 3);
  const int64_t tokens = large(info, 2);
  const Napi::TypedArray choices = info[1].As<Napi::TypedArray>();
  if (choices.TypedArrayType() == napi_uint8_array) {
    return number(info, statistics_->observe(source, choices.As<Napi::Uint8Array>().Data(), tokens, k));
  }
  return number(info, statistics_->observe(source, choices.As<Napi::Uint16Array>().Data(), tokens, k));
}

Napi::Value NativeStatistics::observe_counts(const Napi::CallbackInfo& info) {
  const uint32_t* const counts = info[2].As<Napi::Uint32Array>().Data();
  return number(info, statistics_->observe_counts(integer(info, 0), integer(info, 1), counts, integer(info, 3)));
}

Napi::Value NativeStatistics::counts(const Napi::CallbackInfo& info) {
  return number(info, statistics_->counts(large(info, 0), info[1].As<Napi::Uint32Array>().Data()));
}

void NativeStatistics::tokens(const Napi::CallbackInfo& info) {
  statistics_->tokens(info[0].As<Napi::Float64Array>().Data());
}

Napi::Value NativeStatistics::whole_buckets(const Napi::CallbackInfo& info) {
  return number(info, statistics_->whole_buckets(integer(info, 0), info[1].As<Napi::Float64Array>().Data()));
}

void NativeStatistics::reset(const Napi::CallbackInfo& info) { statistics_->reset(integer(info, 0)); }

Napi::Value NativeStatistics::snapshot(const Napi::CallbackInfo& info) {
  Napi::Uint8Array bytes = Napi::Uint8Array::New(info.Env(), statistics_->snapshot_bytes());
  statistics_->snapshot(bytes.Data());
  return bytes;
}

Napi::Value NativeStatistics::restore(const Napi::CallbackInfo& info) {
  const Napi::Uint8Array bytes = info[0].As<Napi::Uint8Array>();
  return number(info, static_cast<int64_t>(statistics_->restore(bytes.Data(), bytes.ElementLength())));
}

Napi::Value NativeStatistics::tokens_seen(const Napi::CallbackInfo& info) {
  return number(info, static_cast<int64_t>(statistics_->tokens_seen()));
}

Napi::Value NativeStatistics::memory_bytes(const Napi::CallbackInfo& info) {
  return number(info, static_cast<int64_t>(statistics_->memory_bytes()));
}

}  // namespace gimbal::addon
