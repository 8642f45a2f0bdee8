// Requests that wait, and which of them goes next. One thread at a time; nothing is allocated once as many have waited before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../spec/queue_key.h"

namespace gimbal {

enum class QueuePolicy : uint8_t {
  kGimbal,  // shortest remaining prefill first, with aging
  kFcfs,    // first come, first served
  kSpf,     // shortest prefill first, without aging
  kHrrn,    // highest response ratio next: (wait + prefill) / prefill
};

struct QueueOptions {
  QueuePolicy policy = QueuePolicy::kGimbal;
  int64_t aging_tokens_per_second = 0;  // the rate at which waiting makes up for prefill; also what HRRN takes prefill to last by
};

class RequestQueue {
 public:
  explicit RequestQueue(const QueueOptions& options) : options_(options) {}

  // Arrivals after `now_us` count as now, and those before kMostBackdated as just so old: nobody overtakes by a clock that is off.
  static constexpr int64_t kMostBackdatedUs = int64_t{60} * 1000 * 1000;

  // Returns the handle by which the request is known until it leaves.
  int32_t push(int64_t prefill_tokens, int64_t arrival_us, int64_t now_us);
  // The handle of the request that goes next, -1 where none waits. pop() takes it out.
  int32_t peek(int64_t now_us) const;
  int32_t pop(int64_t now_us);
  void update(int32_t handle, int64_t prefill_tokens);
  void remove(int32_t handle);
  int64_t size() const { return static_cast<int64_t>(heap_.size()); }

 private:
  struct Entry {
    spec::QueueKey key;
    int64_t arrival_us = 0;
    int64_t prefill_tokens = 0;
    int32_t place = -1;  // in heap_; -1: free
  };

  int64_t rank(int64_t prefill_tokens, int64_t arrival_us) const;
  int32_t highest_ratio(int64_t now_us) const;
  bool before(int32_t a, int32_t b) const;
  void put(size_t place, int32_t handle);
  void rise(size_t place);
  void sink(size_t place);

  const QueueOptions options_;
  uint64_t pushed_ = 0;
  std::vector<Entry> entries_;  // by handle
  std::vector<int32_t> free_;   // handles
  std::vector<int32_t> heap_;   // handles; every parent precedes its children
};

}  // namespace gimbal
