#include "request_queue.h"

#include <algorithm>

#include "../spec/pressure.h"

namespace gimbal {
namespace {

// HRRN compares products of a wait and a prefill: 2^34 us are almost five hours, and 2^28 tokens the most that a request has.
constexpr int64_t kMostWaitUs = int64_t{1} << 34;

}  // namespace

int64_t RequestQueue::rank(int64_t prefill_tokens, int64_t arrival_us) const {
  switch (options_.policy) {
    case QueuePolicy::kGimbal:
      return arrival_us + spec::prefill_micros(prefill_tokens, spec::micros_per_token(options_.aging_tokens_per_second));
    case QueuePolicy::kSpf:
      return prefill_tokens;
    case QueuePolicy::kFcfs:
    case QueuePolicy::kHrrn:
      break;
  }
  return arrival_us;
}

int32_t RequestQueue::push(int64_t prefill_tokens, int64_t arrival_us, int64_t now_us) {
  int32_t handle = 0;
  if (free_.empty()) {
    handle = static_cast<int32_t>(entries_.size());
    entries_.emplace_back();
    free_.reserve(entries_.capacity());  // so that leaving allocates nothing
  } else {
    handle = free_.back();
    free_.pop_back();
  }
  Entry& entry = entries_[static_cast<size_t>(handle)];
  entry.arrival_us = std::clamp(arrival_us, now_us - kMostBackdatedUs, now_us);
  entry.prefill_tokens = prefill_tokens;
  entry.key = {rank(prefill_tokens, entry.arrival_us), pushed_++};
  heap_.push_back(handle);
  entry.place = static_cast<int32_t>(heap_.size() - 1);
  rise(heap_.size() - 1);
  return handle;
}

int32_t RequestQueue::peek(int64_t now_us) const {
  if (heap_.empty()) return -1;
  return options_.policy == QueuePolicy::kHrrn ? highest_ratio(now_us) : heap_.front();
}

int32_t RequestQueue::pop(int64_t now_us) {
  const int32_t handle = peek(now_us);
  if (handle >= 0) remove(handle);
  return handle;
}

void RequestQueue::update(int32_t handle, int64_t prefill_tokens) {
  Entry& entry = entries_[static_cast<size_t>(handle)];
  entry.prefill_tokens = prefill_tokens;
  entry.key.rank = rank(prefill_tokens, entry.arrival_us);
  rise(static_cast<size_t>(entry.place));
  sink(static_cast<size_t>(entry.place));
}

void RequestQueue::remove(int32_t handle) {
  Entry& entry = entries_[static_cast<size_t>(handle)];
  const size_t place = static_cast<size_t>(entry.place);
  entry.place = -1;
  free_.push_back(handle);
  const int32_t last = heap_.back();
  heap_.pop_back();
  if (place == heap_.size()) return;
  put(place, last);
  rise(place);
  sink(static_cast<size_t>(entries_[static_cast<size_t>(last)].place));
}

// The order of ratios changes as time passes, so no heap holds: every request is looked at. (wait + s) / s is largest where
// wait / tokens is, whatever the rate.
int32_t RequestQueue::highest_ratio(int64_t now_us) const {
  int32_t best = -1;
  int64_t best_wait = 0, best_tokens = 1;
  for (int32_t handle : heap_) {
    const Entry& entry = entries_[static_cast<size_t>(handle)];
    const int64_t wait = std::clamp<int64_t>(now_us - entry.arrival_us, 0, kMostWaitUs);
    const int64_t tokens = std::max<int64_t>(entry.prefill_tokens, 1);
    const int64_t mine = wait * best_tokens, its = best_wait * tokens;
    const bool is_first = best < 0 || mine > its || (mine == its && entry.key.number < entries_[static_cast<size_t>(best)].key.number);
    if (!is_first) continue;
    best = handle;
    best_wait = wait;
    best_tokens = tokens;
  }
  return best;
}

bool RequestQueue::before(int32_t a, int32_t b) const {
  return spec::precedes(entries_[static_cast<size_t>(a)].key, entries_[static_cast<size_t>(b)].key);
}

void RequestQueue::put(size_t place, int32_t handle) {
  heap_[place] = handle;
  entries_[static_cast<size_t>(handle)].place = static_cast<int32_t>(place);
}

void RequestQueue::rise(size_t place) {
  const int32_t handle = heap_[place];
  while (place > 0) {
    const size_t parent = (place - 1) / 2;
    if (!before(handle, heap_[parent])) break;
    put(place, heap_[parent]);
    place = parent;
  }
  put(place, handle);
}

void RequestQueue::sink(size_t place) {
  const int32_t handle = heap_[place];
  for (;;) {
    size_t child = 2 * place + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && before(heap_[child + 1], heap_[child])) ++child;
    if (!before(heap_[child], handle)) break;
    put(place, heap_[child]);
    place = child;
  }
  put(place, handle);
}

}  // namespace gimbal
