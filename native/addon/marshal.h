// JS values to the solver's structs and back. What JS owns is copied; a runner thread never reads a buffer that JS code
// could transfer away, and never reads shared memory twice (another thread may write it between a check and a use).
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>

#include "../solver/score.h"
#include "../solver/solve.h"

namespace gimbal::addon {

// Memory that is not initialised twice and keeps its size between uses.
template <typename T>
class Buffer {
 public:
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  bool fits(size_t count) const { return count <= capacity_; }
  // Gets memory for `count` elements; with `touch`, its page faults are taken here and not by who writes it later.
  void reserve(size_t count, bool touch) {
    if (fits(count)) return;
    data_.reset();
    capacity_ = 0;
    data_.reset(new T[count]);
    capacity_ = count;
    constexpr size_t kElementsPerPage = 4096 / sizeof(T);
    volatile T* page = data_.get();
    for (size_t i = 0; touch && i < count; i += kElementsPerPage) page[i] = T{};
  }

 private:
  std::unique_ptr<T[]> data_;  // [capacity_]
  size_t capacity_ = 0;
};

// A typed array of known length on its way from JS into a Buffer. Plain memory is copied by capture() on the JS thread;
// shared memory stays where it is (the reference keeps it alive, and it never moves) until copy_shared() on a runner thread.
template <typename T>
class IncomingArray {
 public:
  IncomingArray() = default;
  // Throws gimbal::Error where `value` is not `count` elements long. JS thread.
  IncomingArray(const char* field, Napi::Value value, size_t count);

  size_t count() const { return count_; }
  bool is_quick(const Buffer<T>& into) const;
  void prepare(Buffer<T>& into) const { into.reserve(count_, true); }
  void capture(Buffer<T>& into);
  void copy_shared(Buffer<T>& into) const;

 private:
  Napi::TypedArray array() const { return reference_.Value().As<Napi::TypedArray>(); }
  void check(const T* data, size_t received) const;

  const char* field_ = "";
  size_t count_ = 0;
  Napi::ObjectReference reference_;  // empty: no array
  const T* shared_ = nullptr;
};

// The large arrays of one problem, kept by whoever keeps the problem.
struct ProblemBuffers {
  Buffer<uint32_t> tokens;    // [layers][sources][experts]
  Buffer<int32_t> incumbent;  // [layers][incumbent_gpus * incumbent_slots_per_gpu]
};

// A problem on its way in: small parts already read, large arrays still JS's.
class IncomingProblem {
 public:
  // `value` is what lib/validate.ts makes. JS thread.
  explicit IncomingProblem(Napi::Object value);

  bool is_quick(const ProblemBuffers& buffers) const;
  void prepare(ProblemBuffers& buffers) const;
  void capture(ProblemBuffers& buffers);
  size_t large_bytes() const { return tokens_.count() * sizeof(uint32_t) + incumbent_.count() * sizeof(int32_t); }
  // A runner thread: the finished view onto `buffers`.
  ProblemInput view(ProblemBuffers& buffers) const;

 private:
  ProblemInput input_;  // its pointers are null until view()
  IncomingArray<uint32_t> tokens_;
  IncomingArray<int32_t> incumbent_;
};

SolveOptions options_from_js(Napi::Object value);
ScoreOptions score_options_from_js(Napi::Object value);

Napi::Value plan_to_js(Napi::Env env, const Plan& plan);
Napi::Value evaluation_to_js(Napi::Env env, const Evaluation& evaluation);
Napi::Value scores_to_js(Napi::Env env, const Scores& scores);
Napi::Value backends_to_js(Napi::Env env);

}  // namespace gimbal::addon
