// A plain thread pool: parallel_for over indices, the caller's thread included. Which thread runs which index never shows in
// a result; threads change the time of a plan and nothing else.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gimbal {

class Threads {
 public:
  Threads() = default;
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // Uses `count` threads from now on (the caller's is one of them).
  void resize(int32_t count);
  int32_t count() const { return static_cast<int32_t>(workers_.size()) + 1; }

  // Runs body(index) for index in [0, count). The first exception is rethrown here, after all have stopped.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  void work();
  void drain();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(int64_t)>* body_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  int32_t busy_ = 0;
  uint64_t generation_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
};

}  // namespace gimbal
