// Everything that the emulated machine remembers: devices, their memory, streams with queued work, graphs, errors. Work that
// is put on a stream stays in its queue until something synchronises; so whoever looks at a result too early, or writes over
// a source too soon, sees it. One lock guards all of it, also while kernels run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "execution.h"
#include "hostlayer.h"
#include "include/cuda_runtime.h"
#include "memory.h"
#include "ptx.h"
#include "random.h"

namespace hostlayer {

// A point in a stream's work.
struct Mark {
  hostlayer_stream* stream = nullptr;
  bool done = false;
  double milliseconds = 0;  // when, since the process started
};

struct Operation {
  enum class Kind { kCopy, kSet, kLaunch, kMark, kWait, kGraph, kHostFunction };
  Kind kind = Kind::kMark;
  void* target = nullptr;
  const void* source = nullptr;
  size_t bytes = 0;
  int value = 0;
  std::shared_ptr<std::vector<unsigned char>> staged;  // a copy of pageable memory, taken at the call
  std::shared_ptr<Launch> launch;
  std::shared_ptr<Mark> mark;  // to reach, or to wait for
  std::shared_ptr<const std::vector<Operation>> graph;
  cudaHostFn_t function = nullptr;
  void* data = nullptr;
};

// A recording of work, from cudaStreamBeginCapture on.
struct Capture {
  hostlayer_stream* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalid = false;
  std::vector<Operation> operations;
  std::set<hostlayer_stream*> streams;
  std::set<hostlayer_stream*> unjoined;  // have work that the origin does not wait for
};

}  // namespace hostlayer

struct hostlayer_stream {
  int device = 0;
  bool blocking = true;  // ordered with the default stream
  bool is_default = false;
  bool destroyed = false;  // goes away once its work is done
  bool asked = false;      // whether cudaStreamQuery has been answered "not ready" since work was added
  std::deque<hostlayer::Operation> queue;
  std::shared_ptr<hostlayer::Capture> capture;
};

struct hostlayer_event {
  int device = 0;
  bool timed = true;
  std::shared_ptr<hostlayer::Mark> mark;
  std::shared_ptr<hostlayer::Capture> capture;  // that it was last recorded in
  hostlayer_stream* captured_stream = nullptr;
  bool asked = false;
};

struct hostlayer_graph {
  std::shared_ptr<std::vector<hostlayer::Operation>> operations;
};

struct hostlayer_graph_exec {
  int device = 0;
  std::shared_ptr<const std::vector<hostlayer::Operation>> operations;
};

namespace hostlayer {

struct Device {
  cudaError_t broken = cudaSuccess;  // returned by every call until cudaDeviceReset
  hostlayer_stream default_stream;
};

struct HostBlock {
  size_t bytes = 0;
  int device = 0;
  bool owned = true;  // allocated here rather than registered
};

class World {
 public:
  World();

  // Whether the call may go ahead: injected faults, the driver, the devices and, unless `tolerant`, a broken device.
  enum class Needs { kNothing, kDriver, kDevice };
  cudaError_t admit(const char* api, Needs needs);

  void configure(const Config& config);
  void reset();
  void reset_device(int device);

  // Queues (or records) an operation. `waits` runs the stream's work up to it at once.
  cudaError_t enqueue(hostlayer_stream* stream, Operation operation, bool waits = false);
  cudaError_t copy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, hostlayer_stream* stream,
                   bool waits);
  cudaError_t set(void* target, int value, size_t bytes, hostlayer_stream* stream);
  cudaError_t run_all(hostlayer_stream* stream);
  cudaError_t run_until(Mark& mark);
  cudaError_t run_device(int device);
  cudaError_t run_one(hostlayer_stream* stream);

  // The stream of a handle; null if there is none.
  hostlayer_stream* stream_of(cudaStream_t handle);
  void invalidate(Capture& capture) { capture.invalid = true; }
  // What a call that might synchronise with captured work returns.
  cudaError_t refuse_during_capture();
  bool is_pinned(const void* pointer, size_t bytes) const;

  std::recursive_mutex mutex;
  Config config;
  DeviceMemory memory;
  std::unique_ptr<PtxProgram> ptx;  // that kernels are run by, where one was named
  Device devices[kMaxDevices];
  std::vector<hostlayer_stream*> streams;  // these four in the order of creation
  std::vector<hostlayer_event*> events;
  std::vector<hostlayer_graph*> graphs;
  std::vector<hostlayer_graph_exec*> execs;
  std::map<uintptr_t, HostBlock> pinned;  // by address
  std::map<std::pair<int, const void*>, int> shared_limits;  // by device and kernel
  std::map<std::string, int64_t> calls;
  Random random{0};
  uint64_t poison() { return random.next() ^ random.next() >> 32; }

 private:
  struct Injection {
    std::string api;
    int64_t nth = 1;
    bool onwards = false;
    cudaError_t error = cudaSuccess;
  };
  cudaError_t injected(const std::string& api, int64_t call) const;
  void parse_injections();
  void load_ptx();
  cudaError_t perform(const Operation& operation, int device);
  cudaError_t perform_copy(const Operation& operation);
  cudaError_t break_device(int device, cudaError_t error);
  cudaError_t record(hostlayer_stream* stream, Operation operation);
  void order_with_default(hostlayer_stream* stream);
  std::shared_ptr<Mark> mark_end(hostlayer_stream* stream);
  void forget_finished();
  void drop_work(hostlayer_stream* stream);

  std::vector<Injection> injections_;
  std::string ptx_file_;  // that ptx was read from
  int64_t performed_ = 0;  // operations, for "async" faults
  uint64_t launch_number_ = 0;
};

extern World& world;  // never destroyed, since destructors of statics may still free memory
extern thread_local int current_device;
extern thread_local cudaError_t last_error;
extern thread_local cudaStreamCaptureMode thread_capture_mode;

template <class T>
bool holds(const std::vector<T*>& all, const T* one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

// Takes `one` out and deletes it.
template <class T>
void destroy(std::vector<T*>* all, T* one) {
  all->erase(std::find(all->begin(), all->end(), one));
  delete one;
}

bool is_sticky(cudaError_t error);
// From a name ("cudaErrorX") or a number; cudaErrorUnknown for anything else.
cudaError_t error_from(const std::string& text);

}  // namespace hostlayer
