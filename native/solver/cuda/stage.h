// A stage is a run of copies and launches on a stream. Repeated with the same arguments - plans of one shape on buffers that
// are kept - it becomes a CUDA graph: one call instead of many.
#pragma once

#include <vector>

#include "memory.h"

namespace gimbal {
namespace cuda {

// Everything that a stage's copies and launches depend on, but for the contents of memory.
class Signature {
 public:
  template <class T>
  Signature& add(T value) {
    uint64_t bits = 0;
    static_assert(sizeof(T) <= sizeof(bits), "a signature is made of numbers and pointers");
    std::memcpy(&bits, &value, sizeof(T));
    words_.push_back(bits);
    return *this;
  }
  bool operator==(const Signature& other) const { return words_ == other.words_; }

 private:
  std::vector<uint64_t> words_;
};

class Stage {
 public:
  Stage() = default;
  ~Stage() { forget(); }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  // With prepare() before each go(), `enqueue()` is run the first time, recorded the second, and the record is replayed from
  // then on, as long as the signature stays. `enqueue` must use `stream` alone, and pinned memory.
  template <class Enqueue>
  void prepare(cudaStream_t stream, const Signature& signature, Enqueue enqueue) {
    if (!(signature == signature_) || !seen_) {
      forget();
      signature_ = signature;
      seen_ = true;
    } else if (exec_ == nullptr) {
      record(stream, enqueue);
    }
  }

  template <class Enqueue>
  void go(cudaStream_t stream, Enqueue enqueue) {
    if (exec_ == nullptr) {
      enqueue();
    } else {
      check("cudaGraphLaunch", cudaGraphLaunch(exec_, stream));
    }
  }

 private:
  template <class Enqueue>
  void record(cudaStream_t stream, Enqueue enqueue) {
    check("cudaStreamBeginCapture", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check("cudaStreamEndCapture", cudaStreamEndCapture(stream, &graph));
#if CUDART_VERSION >= 12000
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
#else
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, nullptr, nullptr, 0);
#endif
    cudaGraphDestroy(graph);
    check("cudaGraphInstantiate", error);
  }

  void forget() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
    exec_ = nullptr;
    seen_ = false;
  }

  Signature signature_;
  bool seen_ = false;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace cuda
}  // namespace gimbal
