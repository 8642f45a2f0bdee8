// Runs jobs on threads of their own and settles their promises. One Runner per Node environment (main thread or worker).
//
// Not libuv's pool: its four threads also serve fs, dns and crypto, and a plan may run for seconds. Not AsyncWorker: its
// callbacks run in an environment that may be dying, and nothing waits for its thread. Here the environment's cleanup hook
// cancels every job and joins every thread before anything a job points to is torn down; so worker.terminate() is safe.
#pragma once

#include <napi.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gimbal::addon {

class Runner;

// One unit of asynchronous work. Its life: [prepare] -> capture -> run -> release -> result, on the threads named below.
class Job {
 public:
  virtual ~Job() = default;

  // True where capture() would be quick now; otherwise prepare() goes first.
  virtual bool is_prepared() const { return true; }
  // A runner thread: gets memory and touches it, so that the JS thread never takes its page faults.
  virtual void prepare() {}
  // The JS thread: copies what JS owns. May throw gimbal::Error.
  virtual void capture() {}
  // A runner thread: the work. No JS value may be touched here.
  virtual void run() = 0;
  // A runner thread, after run() or a failure: frees or gives back what run() needed.
  virtual void release() {}
  // The JS thread: the value the promise resolves with.
  virtual Napi::Value result(Napi::Env env) = 0;

  // The JS function that hears of progress: (done, total).
  void set_progress_listener(Napi::Function listener) { progress_listener_ = Napi::Persistent(listener); }

 protected:
  const std::atomic<bool>* cancel_flag() const { return &cancelled_; }
  bool wants_progress() const { return !progress_listener_.IsEmpty(); }
  // Any thread. Events are coalesced: at most one per kProgressInterval, and always the last.
  void report_progress(int64_t done, int64_t total);

 private:
  friend class Runner;
  enum class Stage : uint8_t { kPrepare, kCapture, kRun };

  Runner* runner_ = nullptr;
  Stage stage_ = Stage::kRun;
  napi_deferred deferred_ = nullptr;  // JS thread only
  std::exception_ptr failure_;        // written by the runner thread before the job is finished
  std::atomic<bool> cancelled_{false};

  Napi::FunctionReference progress_listener_;
  std::atomic<int64_t> progress_done_{0};
  std::atomic<int64_t> progress_total_{0};
  std::atomic<int64_t> progress_event_ms_{0};
  std::atomic<bool> progress_pending_{false};
  int64_t progress_reported_ = -1;  // JS thread only
};

class Runner {
 public:
  explicit Runner(Napi::Env env);
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Starts the job; returns { promise, cancel }. JS thread.
  Napi::Value start(Napi::Env env, std::shared_ptr<Job> job);

  // Drops `memory` on a runner thread, since freeing megabytes would block the JS thread. JS thread.
  void discard(std::shared_ptr<void> memory);

  // Any thread: makes the JS thread look for news soon.
  void wake();

 private:
  static void on_wake(napi_env env, napi_value callback, void* context, void* data);
  static void on_cleanup(void* self);

  void submit(Napi::Env env, const std::shared_ptr<Job>& job);
  void enqueue(const std::shared_ptr<Job>& job);
  void add_thread_if_needed();
  void thread_main();
  void run_one(Job& job);
  void cancel(const std::shared_ptr<Job>& job);
  void drain(Napi::Env env);
  void deliver_progress(Napi::Env env, Job& job);
  void advance(Napi::Env env, const std::shared_ptr<Job>& job);
  void settle(Napi::Env env, const std::shared_ptr<Job>& job);
  void shut_down();

  const size_t thread_limit_;
  napi_threadsafe_function wake_function_ = nullptr;
  std::atomic<bool> wake_pending_{false};
  std::vector<std::shared_ptr<Job>> live_;  // JS thread only; holds every job until its promise is settled

  std::mutex mutex_;  // guards everything below
  std::condition_variable work_available_;
  std::deque<std::shared_ptr<Job>> queue_;
  std::deque<std::shared_ptr<void>> discarded_;
  std::vector<std::shared_ptr<Job>> finished_;
  std::vector<std::thread> threads_;
  size_t idle_threads_ = 0;
  bool stopping_ = false;
};

// The environment's own.
inline std::shared_ptr<Runner>& runner_of(Napi::Env env) { return *env.GetInstanceData<std::shared_ptr<Runner>>(); }

}  // namespace gimbal::addon
