#include "migration.h"

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "../migration/schedule.h"
#include "marshal.h"
#include "start.h"

namespace gimbal::addon {
namespace {

// Two placements on their way in, and the job's view of them.
class PairJob : public Job {
 public:
  explicit PairJob(Napi::Object value) {
    const auto number = [&](const char* name) { return value.Get(name).As<Napi::Number>().Int32Value(); };
    pair_.layers = number("layers");
    pair_.experts = number("experts");
    pair_.from_gpus = number("fromGpus");
    pair_.from_slots = number("fromSlotsPerGpu");
    pair_.to_gpus = number("gpus");
    pair_.to_slots = number("slotsPerGpu");
    pair_.dead_gpus = int32_array(value, "deadGpus");
    pair_.distance = int32_array(value, "distance");
    from_ = IncomingArray<int32_t>("from", value.Get("from"), slot_count(pair_.from_gpus, pair_.from_slots));
    to_ = IncomingArray<int32_t>("to", value.Get("to"), slot_count(pair_.to_gpus, pair_.to_slots));
  }

  bool is_prepared() const override { return from_.is_quick(from_buffer_) && to_.is_quick(to_buffer_); }
  void prepare() override {
    from_.prepare(from_buffer_);
    to_.prepare(to_buffer_);
  }
  void capture() override {
    from_.capture(from_buffer_);
    to_.capture(to_buffer_);
  }

 protected:
  const PlacementPair& pair() {
    from_.copy_shared(from_buffer_);
    to_.copy_shared(to_buffer_);
    pair_.from = from_buffer_.data();
    pair_.to = to_buffer_.data();
    return pair_;
  }

 private:
  static std::vector<int32_t> int32_array(Napi::Object value, const char* name) {
    const auto array = value.Get(name).As<Napi::Int32Array>();
    return std::vector<int32_t>(array.Data(), array.Data() + array.ElementLength());
  }
  size_t slot_count(int32_t gpus, int32_t slots) const {
    return static_cast<size_t>(pair_.layers) * static_cast<size_t>(gpus) * static_cast<size_t>(slots);
  }

  PlacementPair pair_;
  IncomingArray<int32_t> from_;
  IncomingArray<int32_t> to_;
  Buffer<int32_t> from_buffer_;  // [layers][from_gpus * from_slots]
  Buffer<int32_t> to_buffer_;    // [layers][to_gpus * to_slots]
};

Napi::Value array_to_js(Napi::Env env, const std::vector<int32_t>& values) {
  auto array = Napi::Int32Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(int32_t));
  return array;
}

// One field of all steps.
template <typename Step>
Napi::Value column(Napi::Env env, const std::vector<Step>& steps, int32_t Step::*field) {
  auto array = Napi::Int32Array::New(env, steps.size());
  int32_t* into = array.Data();
  for (const Step& step : steps) *into++ = step.*field;
  return array;
}

class MovesJob final : public PairJob {
 public:
  using PairJob::PairJob;
  void run() override { moves_ = moves_between(pair()); }
  Napi::Value result(Napi::Env env) override {
    Napi::Object object = Napi::Object::New(env);
    object.Set("layer", array_to_js(env, moves_.layer));
    object.Set("expert", array_to_js(env, moves_.expert));
    object.Set("toGpu", array_to_js(env, moves_.to_gpu));
    object.Set("holderStart", array_to_js(env, moves_.holder_start));
    object.Set("holders", array_to_js(env, moves_.holders));
    object.Set("dropped", array_to_js(env, moves_.dropped));
    return object;
  }

 private:
  Moves moves_;
};

class ScheduleJob final : public PairJob {
 public:
  ScheduleJob(Napi::Object pair, int32_t staging_slots) : PairJob(pair) { options_.staging_slots = staging_slots; }

  void run() override {
    options_.cancel = cancel_flag();
    schedule_ = gimbal::schedule_migration(pair(), options_);
  }

  Napi::Value result(Napi::Env env) override {
    Napi::Object object = Napi::Object::New(env);
    object.Set("rounds", schedule_.rounds);
    object.Set("lowerBound", schedule_.lower_bound);
    object.Set("slotsPerGpu", schedule_.slots);
    object.Set("stagingPeak", array_to_js(env, schedule_.staging_peak));
    object.Set("transfers", transfers(env));
    object.Set("localCopies", local_copies(env));
    object.Set("storageLoads", storage_loads(env));
    return object;
  }

 private:
  Napi::Object transfers(Napi::Env env) const {
    Napi::Object object = Napi::Object::New(env);
    object.Set("round", column(env, schedule_.transfers, &Transfer::round));
    object.Set("layer", column(env, schedule_.transfers, &Transfer::layer));
    object.Set("expert", column(env, schedule_.transfers, &Transfer::expert));
    object.Set("fromGpu", column(env, schedule_.transfers, &Transfer::from_gpu));
    object.Set("fromSlot", column(env, schedule_.transfers, &Transfer::from_slot));
    object.Set("toGpu", column(env, schedule_.transfers, &Transfer::to_gpu));
    object.Set("toSlot", column(env, schedule_.transfers, &Transfer::to_slot));
    return object;
  }

  Napi::Object local_copies(Napi::Env env) const {
    Napi::Object object = Napi::Object::New(env);
    object.Set("round", column(env, schedule_.copies, &LocalCopy::round));
    object.Set("layer", column(env, schedule_.copies, &LocalCopy::layer));
    object.Set("gpu", column(env, schedule_.copies, &LocalCopy::gpu));
    object.Set("fromSlot", column(env, schedule_.copies, &LocalCopy::from_slot));
    object.Set("toSlot", column(env, schedule_.copies, &LocalCopy::to_slot));
    return object;
  }

  Napi::Object storage_loads(Napi::Env env) const {
    Napi::Object object = Napi::Object::New(env);
    object.Set("round", column(env, schedule_.loads, &StorageLoad::round));
    object.Set("layer", column(env, schedule_.loads, &StorageLoad::layer));
    object.Set("expert", column(env, schedule_.loads, &StorageLoad::expert));
    object.Set("toGpu", column(env, schedule_.loads, &StorageLoad::to_gpu));
    object.Set("toSlot", column(env, schedule_.loads, &StorageLoad::to_slot));
    return object;
  }

  ScheduleOptions options_;
  Schedule schedule_;
};

}  // namespace

Napi::Value placement_moves(const Napi::CallbackInfo& info) {
  return start_job(info.Env(), [&] { return std::make_shared<MovesJob>(info[0].As<Napi::Object>()); });
}

Napi::Value schedule_migration(const Napi::CallbackInfo& info) {
  return start_job(info.Env(), [&] {
    return std::make_shared<ScheduleJob>(info[0].As<Napi::Object>(), info[1].As<Napi::Number>().Int32Value());
  });
}

}  // namespace gimbal::addon
