#include "dispatch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "../spec/random.h"
#include "marshal.h"
#include "score_job.h"

namespace gimbal::addon {
namespace {

constexpr double kMicrosPerMilli = 1000;

double number(const Napi::CallbackInfo& info, size_t at) { return info[at].As<Napi::Number>().DoubleValue(); }
int32_t integer(const Napi::CallbackInfo& info, size_t at) { return info[at].As<Napi::Number>().Int32Value(); }
int64_t tokens(const Napi::CallbackInfo& info, size_t at) { return info[at].As<Napi::Number>().Int64Value(); }

// Floating point ends here, by one rule: to the nearest, halves away from zero.
int64_t micros(double ms) { return std::llround(ms * kMicrosPerMilli); }
int64_t micros(const Napi::CallbackInfo& info, size_t at) { return micros(number(info, at)); }
double millis(int64_t us) { return static_cast<double>(us) / kMicrosPerMilli; }

// A ratio in 1/65536; beyond `least` and `most` it counts as these.
int32_t share(double ratio, double most, double least = 0) {
  return static_cast<int32_t>(std::llround(std::clamp(ratio, least, most) * spec::kWholeShare));
}
// Of m and the communication excess.
constexpr double kMostOverload = 100;

uint32_t weight(Napi::Object weights, const char* name) {
  return static_cast<uint32_t>(std::llround(weights.Get(name).As<Napi::Number>().DoubleValue() * spec::kWholeShare));
}

SchedulerOptions scheduler_options(Napi::Object value) {
  SchedulerOptions options;
  options.policy = static_cast<DispatchPolicy>(value.Get("policy").As<Napi::Number>().Int32Value());
  const Napi::Object weights = value.Get("weights").As<Napi::Object>();
  const auto ms = [&](const char* name) { return micros(weights.Get(name).As<Napi::Number>().DoubleValue()); };
  spec::PressureWeights& w = options.weights;
  w.backlog = weight(weights, "backlog");
  w.kv = weight(weights, "kv");
  w.queue = weight(weights, "queue");
  w.moe = weight(weights, "moe");
  w.comm = weight(weights, "comm");
  w.affinity = weight(weights, "affinity");
  w.kv_us = ms("kvMs");
  w.kv_most = share(weights.Get("kvLimit").As<Napi::Number>().DoubleValue(), 1);
  w.waiting_us = ms("waitingMs");
  w.running_us = ms("runningMs");
  options.stale_after_us = micros(value.Get("staleAfterMs").As<Napi::Number>().DoubleValue());
  options.experts_stale_after_us = micros(value.Get("expertsStaleAfterMs").As<Napi::Number>().DoubleValue());
  options.gateways = value.Get("gateways").As<Napi::Number>().Int32Value();
  bool lossless = false;
  options.seed = value.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
  return options;
}

QueueOptions queue_options(const Napi::CallbackInfo& info) {
  return {static_cast<QueuePolicy>(integer(info, 0)), tokens(info, 1)};
}

constexpr size_t kDecisionParts = 4;

void tell(const Decision& decision, double* into) {
  into[0] = decision.engine;
  into[1] = decision.ticket;
  into[2] = static_cast<double>(decision.reason);
  into[3] = static_cast<double>(decision.score);
}

// A name of any length as a number that is not 0.
uint64_t hash_of(Napi::Value name) {
  uint64_t hash = 0x67696D62616CULL;
  for (char16_t unit : name.As<Napi::String>().Utf16Value()) hash = spec::mix64(hash ^ unit);
  return hash | 1;
}

// What a request may have in common with others: its session and its prefix, undefined where it has none.
void read_origin(Napi::Value session, Napi::Value prefix, Napi::Value cached, DispatchRequest* request) {
  if (session.IsString()) request->session = hash_of(session);
  if (cached.IsTypedArray()) request->cached_by_engine = cached.As<Napi::Uint32Array>().Data();
  if (!prefix.IsTypedArray()) return;
  const Napi::BigUint64Array hashes = prefix.As<Napi::BigUint64Array>();
  request->prefix = hashes.Data();
  request->prefix_count = static_cast<int64_t>(hashes.ElementLength());
}

// A Float64Array [engines], ms, as integers; their address, or null where there is none.
const int32_t* read_experts(Napi::Value value, std::vector<int32_t>* into) {
  if (!value.IsTypedArray()) return nullptr;
  const Napi::Float64Array ms = value.As<Napi::Float64Array>();
  into->resize(ms.ElementLength());
  const auto to_micros = [](double one) {
    return static_cast<int32_t>(micros(std::min(one, millis(spec::kMostExpertMicros))));
  };
  std::transform(ms.Data(), ms.Data() + ms.ElementLength(), into->begin(), to_micros);
  return into->data();
}

// Of 4 units of UTF-16 as they lie in memory, fewer at the end of a block.
uint64_t word_of(const char16_t* units, size_t count) {
  uint64_t word = 0;
  for (size_t n = 0; n < std::min<size_t>(count, 4); ++n) word |= static_cast<uint64_t>(units[n]) << (16 * n);
  return word;
}

}  // namespace

// (text, name of what tells texts apart, units in a block, into [blocks]): how many blocks were hashed, each with all before it.
Napi::Value hash_blocks(const Napi::CallbackInfo& info) {
  // Kept from call to call: a prompt is long, and every request has one.
  static thread_local std::u16string text;
  size_t length = 0;
  napi_get_value_string_utf16(info.Env(), info[0], nullptr, 0, &length);
  const size_t block = static_cast<size_t>(integer(info, 2));
  Napi::BigUint64Array into = info[3].As<Napi::BigUint64Array>();
  length = std::min(length, block * into.ElementLength());
  text.resize(length + 1);
  napi_get_value_string_utf16(info.Env(), info[0], text.data(), length + 1, &length);
  uint64_t hash = hash_of(info[1]);
  uint64_t* out = into.Data();
  for (size_t first = 0; first < length; first += block) {
    const size_t end = std::min(length, first + block);
    for (size_t n = first; n < end; n += 4) hash = spec::mix64(hash ^ word_of(text.data() + n, end - n));
    *out++ = hash;
  }
  return Napi::Number::New(info.Env(), static_cast<double>((length + block - 1) / block));
}

Napi::Function NativeScheduler::define(Napi::Env env) {
  return DefineClass(env, "NativeScheduler",
                     {
                         InstanceMethod<&NativeScheduler::add_engine>("addEngine"),
                         InstanceMethod<&NativeScheduler::set_state>("setState"),
                         InstanceMethod<&NativeScheduler::restarted>("restarted"),
                         InstanceMethod<&NativeScheduler::observe>("observe"),
                         InstanceMethod<&NativeScheduler::set_expert_pressure>("setExpertPressure"),
                         InstanceMethod<&NativeScheduler::dispatch>("dispatch"),
                         InstanceMethod<&NativeScheduler::dispatch_to>("dispatchTo"),
                         InstanceMethod<&NativeScheduler::dispatch_batch>("dispatchBatch"),
                         InstanceMethod<&NativeScheduler::scores>("scores"),
                         InstanceMethod<&NativeScheduler::score_batch>("scoreBatch"),
                         InstanceMethod<&NativeScheduler::first_token>("firstToken"),
                         InstanceMethod<&NativeScheduler::progress>("progress"),
                         InstanceMethod<&NativeScheduler::finished>("finished"),
                         InstanceMethod<&NativeScheduler::failed>("failed"),
                         InstanceMethod<&NativeScheduler::report>("report"),
                         InstanceAccessor<&NativeScheduler::decision_array>("decision"),
                     });
}

NativeScheduler::NativeScheduler(const Napi::CallbackInfo& info)
    : ObjectWrap(info),
      scheduler_(scheduler_options(info[0].As<Napi::Object>())),
      runner_(runner_of(info.Env())),
      workspaces_(std::make_shared<Pool<ScoreWorkspace>>(1)) {
  Napi::Float64Array decision = Napi::Float64Array::New(info.Env(), kDecisionParts);
  told_ = decision.Data();
  decision_ = Napi::Persistent(decision);
}

NativeScheduler::~NativeScheduler() {
  runner_->discard(std::make_shared<decltype(workspaces_->close())>(workspaces_->close()));
}

Napi::Value NativeScheduler::decision_array(const Napi::CallbackInfo&) { return decision_.Value(); }

Napi::Value NativeScheduler::add_engine(const Napi::CallbackInfo& info) {
  EngineOptions options;
  options.group = integer(info, 0);
  options.role = static_cast<EngineRole>(integer(info, 1));
  options.prefill_tokens_per_second = tokens(info, 2);
  options.kv_tokens = tokens(info, 3);
  return Napi::Number::New(info.Env(), scheduler_.add_engine(options));
}

void NativeScheduler::set_state(const Napi::CallbackInfo& info) {
  scheduler_.set_state(integer(info, 0), static_cast<EngineState>(integer(info, 1)));
}

void NativeScheduler::restarted(const Napi::CallbackInfo& info) { scheduler_.restarted(integer(info, 0), micros(info, 1)); }

void NativeScheduler::observe(const Napi::CallbackInfo& info) {
  EngineSample sample;
  sample.engine = integer(info, 0);
  sample.time_us = micros(info, 1);
  sample.kv = share(number(info, 2), 1);
  sample.running = integer(info, 3);
  sample.waiting = integer(info, 4);
  sample.waiting_prefill_tokens = std::min(tokens(info, 5), spec::kMostTokens);
  sample.preemptions = tokens(info, 6);
  sample.moe = share(number(info, 7), kMostOverload);
  scheduler_.observe(sample, micros(info, 8));
}

void NativeScheduler::set_expert_pressure(const Napi::CallbackInfo& info) {
  ExpertPressure pressure;
  pressure.engine = integer(info, 0);
  pressure.moe = share(number(info, 1), kMostOverload, -1);
  pressure.comm = share(number(info, 2), kMostOverload, -1);
  scheduler_.set_expert_pressure(pressure, micros(info, 3), micros(info, 4));
}

DispatchRequest NativeScheduler::request(const Napi::CallbackInfo& info, size_t first) {
  DispatchRequest request;
  request.prompt_tokens = tokens(info, first);
  request.cached_tokens = tokens(info, first + 1);
  request.stage = static_cast<Stage>(integer(info, first + 2));
  request.streams = info[first + 3].As<Napi::Boolean>().Value();
  read_origin(info[first + 5], info[first + 6], info[first + 7], &request);
  request.expert_us = read_experts(info[first + 8], &expert_us_);
  return request;
}

void NativeScheduler::dispatch(const Napi::CallbackInfo& info) {
  tell(scheduler_.dispatch(request(info, 0), micros(info, 4)), told_);
}

void NativeScheduler::dispatch_to(const Napi::CallbackInfo& info) {
  tell(scheduler_.dispatch_to(integer(info, 0), request(info, 1), micros(info, 5)), told_);
}

void NativeScheduler::dispatch_batch(const Napi::CallbackInfo& info) {
  const Napi::Float64Array prompts = info[0].As<Napi::Float64Array>();
  const Napi::Float64Array cached = info[1].As<Napi::Float64Array>();
  const Napi::Uint8Array streams = info[2].As<Napi::Uint8Array>();
  double* into = info[3].As<Napi::Float64Array>().Data();
  const int64_t now_us = micros(info, 4);
  for (size_t n = 0; n < prompts.ElementLength(); ++n) {
    DispatchRequest one;
    one.prompt_tokens = static_cast<int64_t>(prompts[n]);
    one.cached_tokens = static_cast<int64_t>(cached[n]);
    one.streams = streams[n] != 0;
    tell(scheduler_.dispatch(one, now_us), into + kDecisionParts * n);
  }
}

void NativeScheduler::scores(const Napi::CallbackInfo& info) {
  const bool all = info[9].As<Napi::Boolean>().Value();
  Napi::Float64Array into = info[10].As<Napi::Float64Array>();
  std::fill_n(into.Data(), into.ElementLength(), std::numeric_limits<double>::quiet_NaN());
  scheduler_.scores(request(info, 0), micros(info, 4), all,
                    [&](int32_t engine, int64_t score) { into[static_cast<size_t>(engine)] = static_cast<double>(score); });
}

Napi::Value NativeScheduler::score_batch(const Napi::CallbackInfo& info) {
  const Napi::Float64Array prompts = info[0].As<Napi::Float64Array>();
  const Napi::Float64Array cached = info[1].As<Napi::Float64Array>();
  const Napi::Uint8Array stages = info[2].As<Napi::Uint8Array>();
  const Napi::Array sessions = info[3].As<Napi::Array>();
  const Napi::Array prefixes = info[4].As<Napi::Array>();
  const Napi::Array caches = info[5].As<Napi::Array>();
  const Napi::Array experts = info[6].As<Napi::Array>();
  std::vector<DispatchRequest> requests(prompts.ElementLength());
  std::vector<std::vector<int32_t>> expert_us(requests.size());
  for (uint32_t n = 0; n < requests.size(); ++n) {
    requests[n].prompt_tokens = static_cast<int64_t>(prompts[n]);
    requests[n].cached_tokens = static_cast<int64_t>(cached[n]);
    requests[n].stage = static_cast<Stage>(stages[n]);
    read_origin(sessions.Get(n), prefixes.Get(n), caches.Get(n), &requests[n]);
    requests[n].expert_us = read_experts(experts.Get(n), &expert_us[n]);
  }
  const ScoreOptions options = score_options_from_js(info[8].As<Napi::Object>());
  auto job = std::make_shared<ScoreJob>(workspaces_, scheduler_.score_inputs(requests, micros(info, 7)), options);
  return runner_->start(info.Env(), std::move(job));
}

void NativeScheduler::first_token(const Napi::CallbackInfo& info) { scheduler_.first_token(integer(info, 0), micros(info, 1)); }
void NativeScheduler::progress(const Napi::CallbackInfo& info) {
  scheduler_.progress(integer(info, 0), tokens(info, 1), micros(info, 2));
}
void NativeScheduler::finished(const Napi::CallbackInfo& info) { scheduler_.finished(integer(info, 0), micros(info, 1)); }
void NativeScheduler::failed(const Napi::CallbackInfo& info) { scheduler_.failed(integer(info, 0), micros(info, 1)); }

void NativeScheduler::report(const Napi::CallbackInfo& info) {
  const EngineReport report = scheduler_.report(integer(info, 0), micros(info, 1));
  double* const into = info[2].As<Napi::Float64Array>().Data();
  into[0] = millis(report.terms.backlog_us);
  into[1] = millis(report.terms.kv_us);
  into[2] = millis(report.terms.queue_us);
  into[3] = millis(report.terms.moe_us);
  into[4] = millis(report.terms.total_us);
  into[5] = millis(report.in_flight_us);
  into[6] = report.in_flight;
  into[7] = report.stale ? 1 : 0;
}

Napi::Function NativeQueue::define(Napi::Env env) {
  return DefineClass(env, "NativeQueue",
                     {
                         InstanceMethod<&NativeQueue::push>("push"),
                         InstanceMethod<&NativeQueue::peek>("peek"),
                         InstanceMethod<&NativeQueue::pop>("pop"),
                         InstanceMethod<&NativeQueue::update>("update"),
                         InstanceMethod<&NativeQueue::remove>("remove"),
                     });
}

NativeQueue::NativeQueue(const Napi::CallbackInfo& info) : ObjectWrap(info), queue_(queue_options(info)) {}

Napi::Value NativeQueue::push(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), queue_.push(tokens(info, 0), micros(info, 1), micros(info, 2)));
}
Napi::Value NativeQueue::peek(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), queue_.peek(micros(info, 0)));
}
Napi::Value NativeQueue::pop(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), queue_.pop(micros(info, 0)));
}
void NativeQueue::update(const Napi::CallbackInfo& info) { queue_.update(integer(info, 0), tokens(info, 1)); }
void NativeQueue::remove(const Napi::CallbackInfo& info) { queue_.remove(integer(info, 0)); }

}  // namespace gimbal::addon
