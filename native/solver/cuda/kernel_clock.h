// How long kernels take, by the device's own clock.
#pragma once

#include <utility>
#include <vector>

#include "memory.h"

namespace gimbal {
namespace cuda {

class KernelClock {
 public:
  KernelClock() = default;
  ~KernelClock() {
    for (const Span& span : spans_) {
      cudaEventDestroy(span.first);
      cudaEventDestroy(span.second);
    }
  }
  KernelClock(const KernelClock&) = delete;
  KernelClock& operator=(const KernelClock&) = delete;

  // Times what `enqueue()` puts on the stream.
  template <class Enqueue>
  void time(cudaStream_t stream, Enqueue enqueue) {
    if (pending_ == spans_.size()) add_span();
    check("cudaEventRecord", cudaEventRecord(spans_[pending_].first, stream));
    enqueue();
    check("cudaEventRecord", cudaEventRecord(spans_[pending_].second, stream));
    ++pending_;
  }

  // To be called once the stream has been waited for.
  void settle() {
    for (; pending_ > 0; --pending_) {
      float ms = 0;
      const Span& span = spans_[pending_ - 1];
      check("cudaEventElapsedTime", cudaEventElapsedTime(&ms, span.first, span.second));
      ms_ += static_cast<double>(ms);
    }
  }

  // Of all that has been settled since the last reset().
  double ms() const { return ms_; }
  void reset() { ms_ = 0; }

 private:
  using Span = std::pair<cudaEvent_t, cudaEvent_t>;

  void add_span() {
    Span span{nullptr, nullptr};
    check("cudaEventCreate", cudaEventCreate(&span.first));
    const cudaError_t error = cudaEventCreate(&span.second);
    if (error != cudaSuccess) cudaEventDestroy(span.first);
    check("cudaEventCreate", error);
    spans_.push_back(span);
  }

  std::vector<Span> spans_;
  size_t pending_ = 0;  // the first of spans_ that have not been settled
  double ms_ = 0;
};

}  // namespace cuda
}  // namespace gimbal
