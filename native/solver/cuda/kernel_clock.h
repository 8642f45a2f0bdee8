// How long kernels take, by the device's own clock.
#pragma once

#include <memory>
#include <vector>

#include "memory.h"

namespace gimbal {
namespace cuda {

class KernelClock {
 public:
  // Times what `enqueue()` puts on the stream: from the first kernel's start to the last one's end, gaps included.
  template <class Enqueue>
  void time(cudaStream_t stream, Enqueue enqueue) {
    if (pending_ == spans_.size()) spans_.push_back(std::make_unique<Span>());
    const Span& span = *spans_[pending_];
    check("cudaEventRecord", cudaEventRecord(span.start.get(), stream));
    enqueue();
    check("cudaEventRecord", cudaEventRecord(span.end.get(), stream));
    ++pending_;
  }

  // To be called once the stream has been waited for.
  void settle() {
    for (; pending_ > 0; --pending_) {
      float ms = 0;
      const Span& span = *spans_[pending_ - 1];
      check("cudaEventElapsedTime", cudaEventElapsedTime(&ms, span.start.get(), span.end.get()));
      ms_ += static_cast<double>(ms);
    }
  }

  // Of all that has been settled since the last reset().
  double ms() const { return ms_; }
  void reset() { ms_ = 0; }

 private:
  struct Span {
    Span() {
      start.open(cudaEventDefault);
      end.open(cudaEventDefault);
    }
    Event start, end;
  };

  std::vector<std::unique_ptr<Span>> spans_;
  size_t pending_ = 0;  // the first of spans_ that have not been settled
  double ms_ = 0;
};

}  // namespace cuda
}  // namespace gimbal
