// Runs jobs on threads of their own and settles their promises.
#include "runner.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "../model/errors.h"
#include "errors.h"

namespace gimbal::addon {
namespace {

constexpr int64_t kProgressIntervalMs = 25;
// More than the cores of a small machine: a quick plan should not wait behind a few long ones.
constexpr size_t kMinThreadLimit = 4;

int64_t now_ms() {
  const auto since_epoch = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(since_epoch).count();
}

Error cancelled_error() { return Error(ErrorCode::kCancelled, "signal", "a plan that may finish", "an abort"); }

}  // namespace

void Job::report_progress(int64_t done, int64_t total) {
  progress_total_.store(total, std::memory_order_relaxed);
  int64_t known = progress_done_.load(std::memory_order_relaxed);
  while (known < done && !progress_done_.compare_exchange_weak(known, done, std::memory_order_relaxed)) {
  }
  const int64_t now = now_ms();
  int64_t last = progress_event_ms_.load(std::memory_order_relaxed);
  if (now - last < kProgressIntervalMs) return;
  if (!progress_event_ms_.compare_exchange_strong(last, now, std::memory_order_relaxed)) return;
  progress_pending_.store(true, std::memory_order_release);
  runner_->wake();
}

Runner::Runner(Napi::Env env)
    : thread_limit_(std::max<size_t>(kMinThreadLimit, std::thread::hardware_concurrency())) {
  const Napi::String name = Napi::String::New(env, "gimbal");
  const napi_status status = napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this,
                                                             &Runner::on_wake, &wake_function_);
  NAPI_THROW_IF_FAILED_VOID(env, status);
  napi_unref_threadsafe_function(env, wake_function_);
  // Cleanup hooks run in the reverse order of their making: ours runs before that of the thread-safe function above.
  napi_add_env_cleanup_hook(env, &Runner::on_cleanup, this);
}

Runner::~Runner() { shut_down(); }

void Runner::on_cleanup(void* self) { static_cast<Runner*>(self)->shut_down(); }

void Runner::shut_down() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const auto& job : live_) job->cancelled_.store(true, std::memory_order_relaxed);
  }
  work_available_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  queue_.clear();
  discarded_.clear();
  finished_.clear();
  live_.clear();
}

Napi::Value Runner::start(Napi::Env env, std::shared_ptr<Job> job) {
  job->runner_ = this;
  napi_value promise = nullptr;
  NAPI_THROW_IF_FAILED(env, napi_create_promise(env, &job->deferred_, &promise), Napi::Value());

  std::weak_ptr<Job> weak = job;
  Napi::Object handle = Napi::Object::New(env);
  handle.Set("promise", promise);
  handle.Set("cancel", Napi::Function::New(env, [this, weak](const Napi::CallbackInfo&) {
    if (auto held = weak.lock()) cancel(held);
  }));

  if (live_.empty()) napi_ref_threadsafe_function(env, wake_function_);
  live_.push_back(job);
  job->stage_ = job->is_prepared() ? Job::Stage::kCapture : Job::Stage::kPrepare;
  submit(env, job);
  return handle;
}

// JS thread: gives the job to the runner threads, after copying what it needs where its memory is ready.
void Runner::submit(Napi::Env env, const std::shared_ptr<Job>& job) {
  try {
    if (job->stage_ == Job::Stage::kCapture) {
      job->capture();
      job->stage_ = Job::Stage::kRun;
    }
    enqueue(job);
  } catch (...) {
    job->failure_ = std::current_exception();
    settle(env, job);
  }
}

// JS thread: a runner thread has done what the job's stage asked for.
void Runner::advance(Napi::Env env, const std::shared_ptr<Job>& job) {
  if (job->failure_ || job->stage_ == Job::Stage::kRun) {
    settle(env, job);
    return;
  }
  job->stage_ = Job::Stage::kCapture;
  submit(env, job);
}

void Runner::enqueue(const std::shared_ptr<Job>& job) {
  {
    std::lock_guard lock(mutex_);
    add_thread_if_needed();
    queue_.push_back(job);
  }
  work_available_.notify_one();
}

void Runner::discard(std::shared_ptr<void> memory) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_ || threads_.empty()) return;
    discarded_.push_back(std::move(memory));
  }
  work_available_.notify_one();
}

// Called with the mutex held, before one more job is queued.
void Runner::add_thread_if_needed() {
  if (queue_.size() < idle_threads_ || threads_.size() >= thread_limit_) return;
  try {
    threads_.emplace_back([this] { thread_main(); });
  } catch (const std::system_error&) {
    if (threads_.empty()) throw;  // otherwise the threads there are will come to it
  }
}

void Runner::thread_main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_threads_;
    work_available_.wait(lock, [this] { return stopping_ || !queue_.empty() || !discarded_.empty(); });
    --idle_threads_;
    if (stopping_) return;
    if (queue_.empty()) {
      auto memory = std::move(discarded_.front());
      discarded_.pop_front();
      lock.unlock();
      memory.reset();
      lock.lock();
      continue;
    }
    auto job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    run_one(*job);
    lock.lock();
    finished_.push_back(std::move(job));  // the JS references inside a job may only die on the JS thread
    wake();
  }
}

void Runner::run_one(Job& job) {
  try {
    if (job.cancelled_.load(std::memory_order_relaxed)) throw cancelled_error();
    if (job.stage_ == Job::Stage::kPrepare) {
      job.prepare();
    } else {
      job.run();
    }
  } catch (...) {
    job.failure_ = std::current_exception();
  }
  if (job.failure_ || job.stage_ == Job::Stage::kRun) job.release();
}

void Runner::cancel(const std::shared_ptr<Job>& job) {
  job->cancelled_.store(true, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  const auto queued = std::find(queue_.begin(), queue_.end(), job);
  if (queued == queue_.end()) return;  // it runs, and will see the flag; or it is done
  job->failure_ = std::make_exception_ptr(cancelled_error());
  finished_.push_back(std::move(*queued));
  queue_.erase(queued);
  wake();
}

void Runner::wake() {
  if (wake_pending_.exchange(true, std::memory_order_acq_rel)) return;
  napi_call_threadsafe_function(wake_function_, nullptr, napi_tsfn_nonblocking);
}

void Runner::on_wake(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;  // the environment is gone; shut_down() has settled everything
  static_cast<Runner*>(context)->drain(Napi::Env(env));
}

void Runner::drain(Napi::Env env) {
  wake_pending_.store(false, std::memory_order_release);
  Napi::HandleScope scope(env);
  for (size_t i = 0; i < live_.size(); ++i) {  // by index: a listener may start another job
    const std::shared_ptr<Job> job = live_[i];
    if (job->progress_pending_.exchange(false, std::memory_order_acq_rel)) deliver_progress(env, *job);
  }
  std::vector<std::shared_ptr<Job>> finished;
  {
    std::lock_guard lock(mutex_);
    finished.swap(finished_);
  }
  for (const auto& job : finished) advance(env, job);
}

void Runner::deliver_progress(Napi::Env env, Job& job) {
  const int64_t done = job.progress_done_.load(std::memory_order_relaxed);
  const int64_t total = job.progress_total_.load(std::memory_order_relaxed);
  if (total == 0 || done == job.progress_reported_) return;
  job.progress_reported_ = done;
  try {
    job.progress_listener_.Call({Napi::Number::New(env, static_cast<double>(done)),
                                 Napi::Number::New(env, static_cast<double>(total))});
  } catch (const Napi::Error&) {
    // The listener is ours and does not throw; only a terminating environment gets here.
  }
}

void Runner::settle(Napi::Env env, const std::shared_ptr<Job>& job) {
  Napi::HandleScope scope(env);
  try {
    if (!job->failure_ && job->wants_progress()) deliver_progress(env, *job);
    if (job->failure_) {
      napi_reject_deferred(env, job->deferred_, failure_to_js(env, job->failure_));
    } else {
      napi_resolve_deferred(env, job->deferred_, job->result(env));
    }
  } catch (const Napi::Error&) {
    // A terminating environment refuses new values; nobody is left to hear of it.
  }
  std::erase(live_, job);
  if (live_.empty()) napi_unref_threadsafe_function(env, wake_function_);
}

}  // namespace gimbal::addon
