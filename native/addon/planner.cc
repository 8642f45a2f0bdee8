// What JS holds: a planner with its kept buffers, and a problem held in native memory.
#include "planner.h"

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../model/errors.h"
#include "../solver/solve.h"
#include "marshal.h"
#include "pool.h"
#include "start.h"

namespace gimbal::addon {
namespace {

struct HeldProblem {
  ProblemBuffers buffers;
  ProblemInput input;  // points into buffers; never changes, so any number of plans may read it
  size_t bytes = 0;
};

// What the JS handle of a held problem points to.
struct HeldHandle {
  std::shared_ptr<const HeldProblem> problem;  // null once released
  std::shared_ptr<Runner> runner;

  void release(Napi::Env env) {
    if (!problem) return;
    Napi::MemoryManagement::AdjustExternalMemory(env, -static_cast<int64_t>(problem->bytes));
    runner->discard(std::const_pointer_cast<HeldProblem>(std::exchange(problem, nullptr)));
  }
};

}  // namespace

struct PlannerBuffers {
  using Idle = std::tuple<std::vector<std::unique_ptr<Workspace>>, std::vector<std::unique_ptr<ProblemBuffers>>,
                          std::vector<std::unique_ptr<Buffer<int32_t>>>>;
  explicit PlannerBuffers(size_t kept) : workspaces(kept), problems(kept), candidates(kept) {}
  Pool<Workspace> workspaces;
  Pool<ProblemBuffers> problems;
  Pool<Buffer<int32_t>> candidates;
  Idle close() { return {workspaces.close(), problems.close(), candidates.close()}; }
};

namespace {

// The problem of one job: held already, or on its way in through buffers of the planner.
class JobProblem {
 public:
  JobProblem(Napi::Value value, PlannerBuffers& pools) {
    if (value.IsExternal()) {
      held_ = value.As<Napi::External<HeldHandle>>().Data()->problem;
      if (!held_) throw Error(ErrorCode::kInvalidInput, "problem", "a held problem", "one that was released");
    } else {
      incoming_.emplace(value.As<Napi::Object>());
      buffers_.emplace(pools.problems);
    }
  }

  bool is_quick() const { return held_ || incoming_->is_quick(**buffers_); }
  void prepare() {
    if (!held_) incoming_->prepare(**buffers_);
  }
  void capture() {
    if (!held_) incoming_->capture(**buffers_);
  }
  ProblemInput view() { return held_ ? held_->input : incoming_->view(**buffers_); }
  void release_buffers() { buffers_.reset(); }

 private:
  std::shared_ptr<const HeldProblem> held_;
  std::optional<IncomingProblem> incoming_;
  std::optional<Lease<ProblemBuffers>> buffers_;
};

class PlanJob final : public Job {
 public:
  PlanJob(std::shared_ptr<PlannerBuffers> pools, Napi::Value problem, SolveOptions options)
      : pools_(std::move(pools)), problem_(problem, *pools_), options_(std::move(options)) {}

  bool is_prepared() const override { return problem_.is_quick(); }
  void prepare() override { problem_.prepare(); }
  void capture() override { problem_.capture(); }

  void run() override {
    options_.cancel = cancel_flag();
    if (wants_progress()) {
      options_.progress = [this](int64_t done, int64_t total) { report_progress(done, total); };
    }
    Lease<Workspace> workspace(pools_->workspaces);
    plan_ = plan_placement(problem_.view(), options_, *workspace);
  }
  void release() override { problem_.release_buffers(); }

  Napi::Value result(Napi::Env env) override { return plan_to_js(env, plan_); }

 private:
  std::shared_ptr<PlannerBuffers> pools_;
  JobProblem problem_;
  SolveOptions options_;
  Plan plan_;
};

class EvaluateJob final : public Job {
 public:
  EvaluateJob(std::shared_ptr<PlannerBuffers> pools, Napi::Value problem, Napi::Value candidates, int64_t count,
              SolveOptions options)
      : pools_(std::move(pools)),
        problem_(problem, *pools_),
        incoming_("candidates", candidates, candidates.As<Napi::TypedArray>().ElementLength()),
        candidates_(std::in_place, pools_->candidates),
        count_(count),
        options_(std::move(options)) {}

  bool is_prepared() const override { return problem_.is_quick() && incoming_.is_quick(**candidates_); }
  void prepare() override {
    problem_.prepare();
    incoming_.prepare(**candidates_);
  }
  void capture() override {
    problem_.capture();
    incoming_.capture(**candidates_);
  }

  void run() override {
    options_.cancel = cancel_flag();
    incoming_.copy_shared(**candidates_);
    Lease<Workspace> workspace(pools_->workspaces);
    const ProblemInput input = problem_.view();
    check_count(input);
    evaluation_ = evaluate_placements(input, (**candidates_).data(), count_, options_, *workspace);
  }
  void release() override {
    problem_.release_buffers();
    candidates_.reset();
  }

  Napi::Value result(Napi::Env env) override { return evaluation_to_js(env, evaluation_); }

 private:
  // The solver trusts `count`, so it must not reach past the array.
  void check_count(const ProblemInput& input) const {
    const auto one = static_cast<uint64_t>(input.layers) * static_cast<uint64_t>(input.gpus) *
                     static_cast<uint64_t>(input.slots_per_gpu);
    if (count_ > 0 && one == incoming_.count() / static_cast<uint64_t>(count_) &&
        incoming_.count() % static_cast<uint64_t>(count_) == 0) {
      return;
    }
    throw Error(ErrorCode::kInvalidInput, "candidates", "a multiple of " + std::to_string(one) + " elements",
                std::to_string(incoming_.count()));
  }

  std::shared_ptr<PlannerBuffers> pools_;
  JobProblem problem_;
  IncomingArray<int32_t> incoming_;
  std::optional<Lease<Buffer<int32_t>>> candidates_;
  int64_t count_;
  SolveOptions options_;
  Evaluation evaluation_;
};

class HoldJob final : public Job {
 public:
  explicit HoldJob(Napi::Object problem) : incoming_(problem), held_(std::make_shared<HeldProblem>()) {}

  bool is_prepared() const override { return incoming_.is_quick(held_->buffers); }
  void prepare() override { incoming_.prepare(held_->buffers); }
  void capture() override { incoming_.capture(held_->buffers); }
  void run() override {
    held_->input = incoming_.view(held_->buffers);
    held_->bytes = incoming_.large_bytes();
  }

  Napi::Value result(Napi::Env env) override {
    Napi::MemoryManagement::AdjustExternalMemory(env, static_cast<int64_t>(held_->bytes));
    auto* handle = new HeldHandle{held_, runner_of(env)};
    return Napi::External<HeldHandle>::New(env, handle, [](Napi::Env finalizer_env, HeldHandle* data) {
      data->release(finalizer_env);
      delete data;
    });
  }

 private:
  IncomingProblem incoming_;
  std::shared_ptr<HeldProblem> held_;
};

}  // namespace

Napi::Function NativePlanner::define(Napi::Env env) {
  return DefineClass(env, "NativePlanner",
                     {InstanceMethod<&NativePlanner::plan>("plan"),
                      InstanceMethod<&NativePlanner::evaluate>("evaluate"),
                      InstanceMethod<&NativePlanner::close>("close")});
}

NativePlanner::NativePlanner(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<NativePlanner>(info),
      runner_(runner_of(info.Env())),
      buffers_(std::make_shared<PlannerBuffers>(info[0].As<Napi::Number>().Uint32Value())) {}

NativePlanner::~NativePlanner() { discard_buffers(); }

Napi::Value NativePlanner::plan(const Napi::CallbackInfo& info) {
  return start_job(info.Env(), [&] {
    auto job = std::make_shared<PlanJob>(buffers_, info[0], options_from_js(info[1].As<Napi::Object>()));
    if (info[2].IsFunction()) job->set_progress_listener(info[2].As<Napi::Function>());
    return job;
  });
}

Napi::Value NativePlanner::evaluate(const Napi::CallbackInfo& info) {
  return start_job(info.Env(), [&] {
    const int64_t count = info[2].As<Napi::Number>().Int64Value();
    return std::make_shared<EvaluateJob>(buffers_, info[0], info[1], count,
                                         options_from_js(info[3].As<Napi::Object>()));
  });
}

void NativePlanner::close(const Napi::CallbackInfo&) { discard_buffers(); }

void NativePlanner::discard_buffers() {
  runner_->discard(std::make_shared<decltype(buffers_->close())>(buffers_->close()));
}

Napi::Value hold_problem(const Napi::CallbackInfo& info) {
  return start_job(info.Env(), [&] { return std::make_shared<HoldJob>(info[0].As<Napi::Object>()); });
}

void release_problem(const Napi::CallbackInfo& info) {
  info[0].As<Napi::External<HeldHandle>>().Data()->release(info.Env());
}

}  // namespace gimbal::addon
