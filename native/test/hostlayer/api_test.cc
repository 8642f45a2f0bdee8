// The runtime API: what CUDA checks is checked, what CUDA does later is done later, and what a test wants to fail fails.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "hostlayer.h"
#include "test_machine.h"
#include "world.h"

namespace hostlayer {
namespace test {
namespace {

__global__ void add(int* values, int count, int what) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) values[i] += what;
}

__global__ void no_arguments() {}

__global__ void uses_shared(int* out) {
  GIMBAL_DYNAMIC_SHARED(raw);
  raw[0] = 1;
  *out = raw[0];
}

cudaError_t launch_add(int* values, int count, int what, cudaStream_t stream) {
  void* args[] = {&values, &count, &what};
  return cudaLaunchKernel(add, dim3(static_cast<unsigned>(count + 31) / 32), dim3(32), args, 0, stream);
}

constexpr int kCount = 100;
constexpr size_t kBytes = kCount * sizeof(int);

// Memory on both sides and a stream, all freed at the end.
struct Buffers {
  Buffers() {
    REQUIRE(cudaMalloc(&device, kBytes) == cudaSuccess);
    REQUIRE(cudaMallocHost(&pinned, kBytes) == cudaSuccess);
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  }
  ~Buffers() {
    cudaFree(device);
    cudaFreeHost(pinned);
    cudaStreamDestroy(stream);
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  void fill(int value) { std::fill(pinned, pinned + kCount, value); }
  bool all(int value) const { return std::all_of(pinned, pinned + kCount, [&](int v) { return v == value; }); }

  int* device = nullptr;
  int* pinned = nullptr;
  cudaStream_t stream = nullptr;
};

// ---- what is done later ------------------------------------------------------------------------------------------------

TEST_CASE("hostlayer: a result is there only after the synchronisation") {
  const Machine machine;
  Buffers b;
  b.fill(5);
  CHECK(cudaMemcpyAsync(b.device, b.pinned, kBytes, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  CHECK(launch_add(b.device, kCount, 2, b.stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(b.pinned, b.device, kBytes, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess);
  CHECK(b.all(5));
  CHECK(counters().launches == 0);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(b.all(7));
  CHECK(counters().launches == 1);
}

TEST_CASE("hostlayer: a pinned source is read when the copy runs, a pageable one at the call") {
  const Machine machine;
  Buffers b;
  std::vector<int> pageable(kCount, 5);
  for (int* source : {b.pinned, pageable.data()}) {
    std::fill(source, source + kCount, 5);
    CHECK(cudaMemcpyAsync(b.device, source, kBytes, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
    std::fill(source, source + kCount, 6);
    CHECK(cudaMemcpyAsync(b.pinned, b.device, kBytes, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
    CHECK(b.all(source == b.pinned ? 6 : 5));
  }
}

TEST_CASE("hostlayer: a copy to pageable memory has been made when the call returns") {
  const Machine machine;
  Buffers b;
  b.fill(3);
  std::vector<int> pageable(kCount);
  CHECK(cudaMemcpyAsync(b.device, b.pinned, kBytes, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(pageable.data(), b.device, kBytes, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess);
  CHECK(pageable == std::vector<int>(kCount, 3));
}

TEST_CASE("hostlayer: without latency, work is done at the call") {
  const Machine machine;
  Config c = config();
  c.latency = false;
  configure(c);
  Buffers b;
  b.fill(5);
  CHECK(cudaMemcpyAsync(b.device, b.pinned, kBytes, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  CHECK(launch_add(b.device, kCount, 2, b.stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(b.pinned, b.device, kBytes, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess);
  CHECK(b.all(7));
}

TEST_CASE("hostlayer: whoever polls sees the work end, but not at once") {
  const Machine machine;
  Buffers b;
  cudaEvent_t event = nullptr;
  CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  CHECK(cudaStreamQuery(b.stream) == cudaSuccess);
  CHECK(cudaMemsetAsync(b.device, 1, kBytes, b.stream) == cudaSuccess);
  CHECK(cudaEventRecord(event, b.stream) == cudaSuccess);
  CHECK(cudaMemsetAsync(b.device, 0, kBytes, b.stream) == cudaSuccess);
  CHECK(cudaStreamQuery(b.stream) == cudaErrorNotReady);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  CHECK(cudaGetLastError() == cudaErrorNotReady);
  CHECK(cudaGetLastError() == cudaSuccess);
  int polls = 0;
  while (cudaStreamQuery(b.stream) == cudaErrorNotReady) REQUIRE(++polls < 10);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(cudaEventDestroy(event) == cudaSuccess);
}

TEST_CASE("hostlayer: an event is waited for by its own stream's work only") {
  const Machine machine;
  Buffers b;
  Buffers other;
  other.fill(1);
  cudaEvent_t first = nullptr;
  cudaEvent_t last = nullptr;
  CHECK(cudaEventCreate(&first) == cudaSuccess);
  CHECK(cudaEventCreate(&last) == cudaSuccess);
  CHECK(cudaEventSynchronize(first) == cudaSuccess);  // never recorded
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, first, last) == cudaErrorInvalidResourceHandle);
  CHECK(cudaMemsetAsync(b.device, 0, kBytes, b.stream) == cudaSuccess);
  CHECK(cudaEventRecord(first, b.stream) == cudaSuccess);
  CHECK(launch_add(b.device, kCount, 4, b.stream) == cudaSuccess);
  CHECK(cudaEventRecord(last, b.stream) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&milliseconds, first, last) == cudaErrorNotReady);
  CHECK(cudaMemcpyAsync(other.device, other.pinned, kBytes, cudaMemcpyHostToDevice, other.stream) == cudaSuccess);
  CHECK(cudaEventSynchronize(first) == cudaSuccess);
  CHECK(counters().launches == 0);
  CHECK(cudaEventSynchronize(last) == cudaSuccess);
  CHECK(counters().launches == 1);
  CHECK(counters().copied_bytes == 0);
  CHECK(cudaEventElapsedTime(&milliseconds, first, last) == cudaSuccess);
  CHECK(milliseconds >= 0);
  CHECK(cudaEventDestroy(first) == cudaSuccess);
  CHECK(cudaEventDestroy(last) == cudaSuccess);
}

TEST_CASE("hostlayer: streams are ordered by events alone") {
  // The consumer's copy runs before the producer's kernel unless it waits for it.
  for (const bool waits : {false, true}) {
    const Machine machine;
    Buffers producer;
    Buffers consumer;
    cudaEvent_t done = nullptr;
    CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming) == cudaSuccess);
    CHECK(cudaMemset(producer.device, 0, kBytes) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(launch_add(producer.device, kCount, 9, producer.stream) == cudaSuccess);
    CHECK(cudaEventRecord(done, producer.stream) == cudaSuccess);
    if (waits) CHECK(cudaStreamWaitEvent(consumer.stream, done, 0) == cudaSuccess);
    CHECK(cudaMemcpyAsync(consumer.pinned, producer.device, kBytes, cudaMemcpyDeviceToHost, consumer.stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(consumer.stream) == cudaSuccess);
    CHECK(consumer.all(waits ? 9 : 0));
    CHECK(cudaEventDestroy(done) == cudaSuccess);
  }
}

TEST_CASE("hostlayer: the default stream waits for blocking streams and they for it, others do not") {
  for (const bool blocking : {false, true}) {
    const Machine machine;
    Buffers b;
    cudaStream_t stream = nullptr;
    CHECK(cudaStreamCreateWithFlags(&stream, blocking ? cudaStreamDefault : cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaMemset(b.device, 0, kBytes) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(launch_add(b.device, kCount, 1, stream) == cudaSuccess);
    std::vector<int> seen(kCount);
    CHECK(cudaMemcpy(seen.data(), b.device, kBytes, cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(seen[0] == (blocking ? 1 : 0));
    CHECK(launch_add(b.device, kCount, 10, nullptr) == cudaSuccess);
    CHECK(cudaMemcpyAsync(b.pinned, b.device, kBytes, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(b.all(blocking ? 11 : 1));
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  }
}

TEST_CASE("hostlayer: a destroyed stream still does its work, and memory is freed behind it") {
  const Machine machine;
  Buffers b;
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaMemsetAsync(b.device, 0, kBytes, stream) == cudaSuccess);
  CHECK(launch_add(b.device, kCount, 1, stream) == cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  CHECK(counters().launches == 0);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  int* more = nullptr;
  CHECK(cudaMalloc(&more, 4) == cudaSuccess);
  CHECK(cudaFree(more) == cudaSuccess);
  CHECK(counters().launches == 1);
  CHECK(live_objects() == 1);
}

void CUDART_CB note_call(void* data) { *static_cast<int*>(data) += 1; }

TEST_CASE("hostlayer: a host function runs in its turn") {
  const Machine machine;
  Buffers b;
  int called = 0;
  CHECK(cudaLaunchHostFunc(b.stream, note_call, &called) == cudaSuccess);
  CHECK(called == 0);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(called == 1);
}

TEST_CASE("hostlayer: several host threads, each with a stream of its own") {
  const Machine machine;
  std::vector<std::thread> threads;
  std::vector<int> right(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &right] {
      Buffers b;
      bool all = true;
      for (int round = 0; round < 20; ++round) {
        b.fill(t * 100 + round);
        all &= cudaMemcpyAsync(b.device, b.pinned, kBytes, cudaMemcpyHostToDevice, b.stream) == cudaSuccess;
        all &= launch_add(b.device, kCount, 1000, b.stream) == cudaSuccess;
        all &= cudaMemcpyAsync(b.pinned, b.device, kBytes, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess;
        all &= cudaStreamSynchronize(b.stream) == cudaSuccess;
        all &= b.all(t * 100 + round + 1000);
      }
      right[static_cast<size_t>(t)] = all;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == std::vector<int>(4, 1));
  CHECK(live_allocations() == 0);
  CHECK(live_host_allocations() == 0);
  CHECK(live_objects() == 0);
}

// ---- graphs ------------------------------------------------------------------------------------------------------------

cudaError_t capture_round_trip(Buffers* b, int what, cudaGraph_t* graph) {
  cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal);
  cudaMemcpyAsync(b->device, b->pinned, kBytes, cudaMemcpyHostToDevice, b->stream);
  launch_add(b->device, kCount, what, b->stream);
  cudaMemcpyAsync(b->pinned, b->device, kBytes, cudaMemcpyDeviceToHost, b->stream);
  return cudaStreamEndCapture(b->stream, graph);
}

TEST_CASE("hostlayer: a captured graph does nothing until it is launched, and then its work each time") {
  const Machine machine;
  Buffers b;
  b.fill(1);
  cudaGraph_t graph = nullptr;
  CHECK(capture_round_trip(&b, 10, &graph) == cudaSuccess);
  size_t nodes = 0;
  CHECK(cudaGraphGetNodes(graph, nullptr, &nodes) == cudaSuccess);
  CHECK(nodes == 3);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(b.all(1));
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaGraphInstantiate(&exec, graph, nullptr, nullptr, 0) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, b.stream) == cudaSuccess);
  b.fill(2);  // too early for the first launch, which reads it when it runs
  CHECK(cudaGraphLaunch(exec, b.stream) == cudaSuccess);
  CHECK(b.all(2));
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(b.all(22));
  CHECK(counters().graph_launches == 2);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  CHECK(live_objects() == 1);
}

TEST_CASE("hostlayer: both forms of instantiation and of update") {
  const Machine machine;
  Buffers b;
  cudaGraph_t graph = nullptr;
  cudaGraph_t changed = nullptr;
  cudaGraph_t other = nullptr;
  CHECK(capture_round_trip(&b, 10, &graph) == cudaSuccess);
  CHECK(capture_round_trip(&b, 20, &changed) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  CHECK(cudaMemsetAsync(b.device, 0, kBytes, b.stream) == cudaSuccess);
  CHECK(cudaStreamEndCapture(b.stream, &other) == cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  cudaGraphExecUpdateResult result = cudaGraphExecUpdateError;
  CHECK(cudaGraphExecUpdate(exec, changed, nullptr, &result) == cudaSuccess);
  CHECK(result == cudaGraphExecUpdateSuccess);
  b.fill(1);
  CHECK(cudaGraphLaunch(exec, b.stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(b.all(21));
  cudaGraphExecUpdateResultInfo info;
  CHECK(cudaGraphExecUpdate(exec, other, &info) == cudaErrorGraphExecUpdateFailure);
  CHECK(info.result == cudaGraphExecUpdateErrorTopologyChanged);
  for (cudaGraph_t g : {graph, changed, other}) CHECK(cudaGraphDestroy(g) == cudaSuccess);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, b.stream) == cudaErrorInvalidValue);
}

TEST_CASE("hostlayer: work of another stream joins a capture by events, and must join it again") {
  const Machine machine;
  Buffers b;
  Buffers side;
  cudaEvent_t fork = nullptr;
  cudaEvent_t join = nullptr;
  CHECK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming) == cudaSuccess);
  CHECK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming) == cudaSuccess);
  enum { kNever, kJoins, kWorksOn };
  for (const int side_work : {kNever, kJoins, kWorksOn}) {
    const bool joins = side_work == kJoins;
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(cudaMemsetAsync(b.device, 0, kBytes, b.stream) == cudaSuccess);
    CHECK(cudaEventRecord(fork, b.stream) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(side.stream, fork) == cudaSuccess);
    CHECK(launch_add(b.device, kCount, 3, side.stream) == cudaSuccess);
    CHECK(cudaEventRecord(join, side.stream) == cudaSuccess);
    CHECK(cudaEventQuery(join) == cudaErrorCapturedEvent);
    if (side_work != kNever) CHECK(cudaStreamWaitEvent(b.stream, join) == cudaSuccess);
    if (side_work == kWorksOn) CHECK(launch_add(b.device, kCount, 3, side.stream) == cudaSuccess);
    CHECK(cudaStreamEndCapture(b.stream, &graph) == (joins ? cudaSuccess : cudaErrorStreamCaptureUnjoined));
    CHECK((graph != nullptr) == joins);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
    CHECK(cudaStreamIsCapturing(side.stream, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusNone);
    if (graph != nullptr) CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  CHECK(cudaEventDestroy(fork) == cudaSuccess);
  CHECK(cudaEventDestroy(join) == cudaSuccess);
}

TEST_CASE("hostlayer: what must not be done during a capture is refused and spoils it") {
  const Machine machine;
  Buffers b;
  cudaStream_t blocking = nullptr;
  CHECK(cudaStreamCreate(&blocking) == cudaSuccess);
  void* memory = nullptr;
  const auto refused = [&](cudaStream_t stream, cudaError_t expected, auto&& act) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(act() == expected);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusInvalidated);
    CHECK(cudaMemsetAsync(b.device, 0, kBytes, stream) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    CHECK(cudaMemsetAsync(b.device, 0, kBytes, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  };
  refused(b.stream, cudaErrorStreamCaptureUnsupported, [&] { return cudaMalloc(&memory, 4); });
  refused(b.stream, cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(b.stream); });
  refused(b.stream, cudaErrorStreamCaptureUnsupported, [&] { return cudaDeviceSynchronize(); });
  refused(b.stream, cudaErrorStreamCaptureUnsupported,
          [&] { return cudaMemcpy(b.device, b.pinned, 4, cudaMemcpyHostToDevice); });
  refused(blocking, cudaErrorStreamCaptureImplicit, [&] { return cudaMemsetAsync(b.device, 0, 4, nullptr); });
  refused(b.stream, cudaErrorStreamCaptureUnsupported, [&] {
    cudaError_t from_thread = cudaSuccess;
    std::thread([&] { from_thread = cudaMalloc(&memory, 4); }).join();
    return from_thread;
  });
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(b.stream, &graph) == cudaErrorIllegalState);
  // A relaxed or thread-local capture leaves other threads alone.
  CHECK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  std::thread([&] { CHECK(cudaMalloc(&memory, 4) == cudaSuccess); }).join();
  std::thread([&] { CHECK(cudaStreamEndCapture(b.stream, &graph) == cudaErrorStreamCaptureWrongThread); }).join();
  CHECK(cudaStreamEndCapture(b.stream, &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaFree(memory) == cudaSuccess);
  CHECK(cudaStreamDestroy(blocking) == cudaSuccess);
}

TEST_CASE("hostlayer: a graph that uses freed memory is found when it runs") {
  const Machine machine;
  Buffers b;
  int* gone = nullptr;
  CHECK(cudaMalloc(&gone, kBytes) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaMemcpyAsync(gone, b.pinned, kBytes, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  CHECK(cudaStreamEndCapture(b.stream, &graph) == cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  CHECK(cudaFree(gone) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, b.stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorIllegalAddress);
  CHECK(last_report().find("byte 0 of the freed allocation") != std::string::npos);
}

// ---- what CUDA checks --------------------------------------------------------------------------------------------------

TEST_CASE("hostlayer: launches outside the limits are refused at the call") {
  const Machine machine;
  const auto launch = [](dim3 grid, dim3 block) {
    void* none[] = {nullptr};
    return cudaLaunchKernel(no_arguments, grid, block, none, 0, nullptr);
  };
  CHECK(launch(dim3(1), dim3(1024)) == cudaSuccess);
  CHECK(launch(dim3(1), dim3(1025)) == cudaErrorInvalidConfiguration);
  CHECK(launch(dim3(1), dim3(32, 33)) == cudaErrorInvalidConfiguration);
  CHECK(launch(dim3(1), dim3(1, 1, 65)) == cudaErrorInvalidConfiguration);
  CHECK(launch(dim3(1), dim3(0)) == cudaErrorInvalidConfiguration);
  CHECK(launch(dim3(0), dim3(1)) == cudaErrorInvalidConfiguration);
  CHECK(launch(dim3(1, 65536), dim3(1)) == cudaErrorInvalidConfiguration);
  CHECK(launch(dim3(0x80000000u), dim3(1)) == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaLaunchKernel(static_cast<void (*)()>(nullptr), dim3(1), dim3(1), nullptr, 0, nullptr) ==
        cudaErrorInvalidDeviceFunction);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(counters().launches == 1);
}

TEST_CASE("hostlayer: a block gets 48 KiB of shared memory, and more where the kernel has opted in") {
  const Machine machine;
  Config c = config();
  c.shared_bytes = size_t{100} << 10;
  configure(c);
  int* out = nullptr;
  CHECK(cudaMalloc(&out, 4) == cudaSuccess);
  const auto launch = [&](size_t shared) {
    void* args[] = {&out};
    return cudaLaunchKernel(uses_shared, dim3(1), dim3(1), args, shared, nullptr);
  };
  int blocks = -1;
  CHECK(launch(48 << 10) == cudaSuccess);
  CHECK(launch((48 << 10) + 1) == cudaErrorInvalidValue);
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, uses_shared, 128, 64 << 10) == cudaSuccess);
  CHECK(blocks == 0);
  CHECK(cudaFuncSetAttribute(uses_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, (100 << 10) + 1) ==
        cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(uses_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10) == cudaSuccess);
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, uses_shared) == cudaSuccess);
  CHECK(attributes.maxDynamicSharedSizeBytes == 64 << 10);
  CHECK(launch(64 << 10) == cudaSuccess);
  CHECK(launch((64 << 10) + 1) == cudaErrorInvalidValue);
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, uses_shared, 128, 32 << 10) == cudaSuccess);
  CHECK(blocks == 3);
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, uses_shared, 1024, 0) == cudaSuccess);
  CHECK(blocks == 2);
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, uses_shared, 32, 0) == cudaSuccess);
  CHECK(blocks == 32);
  CHECK(cudaFree(out) == cudaSuccess);
}

TEST_CASE("hostlayer: copies and frees outside an allocation are refused") {
  const Machine machine;
  Buffers b;
  std::vector<int> host(kCount);
  CHECK(cudaMemcpy(b.device, host.data(), kBytes + 1, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(b.device + 1, host.data(), kBytes, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host.data(), b.device - 1, 8, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(b.device, host.data(), kBytes, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(b.device, host.data(), kBytes, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(b.device, host.data(), kBytes, cudaMemcpyDefault) == cudaSuccess);
  CHECK(cudaMemcpy(nullptr, host.data(), 0, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemset(b.device, 0, kBytes + 1) == cudaErrorInvalidValue);
  CHECK(cudaMemset(host.data(), 0, kBytes) == cudaErrorInvalidValue);
  CHECK(cudaFree(b.device + 1) == cudaErrorInvalidValue);
  CHECK(cudaFree(host.data()) == cudaErrorInvalidValue);
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaFreeHost(host.data()) == cudaErrorInvalidValue);
  int* twice = nullptr;
  CHECK(cudaMalloc(&twice, 8) == cudaSuccess);
  CHECK(live_allocations() == 2);
  CHECK(cudaFree(twice) == cudaSuccess);
  CHECK(cudaFree(twice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(twice, host.data(), 8, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(live_allocations() == 1);
  CHECK(live_bytes() == 512);
  CHECK(cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(&host)) == cudaErrorInvalidResourceHandle);
}

TEST_CASE("hostlayer: device memory runs out") {
  const Machine machine;
  Config c = config();
  c.memory_bytes = size_t{1} << 20;
  configure(c);
  void* big = nullptr;
  void* more = nullptr;
  size_t free = 0;
  size_t total = 0;
  CHECK(cudaMalloc(&big, (size_t{1} << 20) + 1) == cudaErrorMemoryAllocation);
  CHECK(big == nullptr);
  CHECK(cudaMalloc(&big, ~size_t{0}) == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&big, size_t{1} << 19) == cudaSuccess);
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free == size_t{1} << 19);
  CHECK(total == size_t{1} << 20);
  CHECK(cudaMalloc(&more, (size_t{1} << 19) + 1) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaMalloc(&more, size_t{1} << 19) == cudaSuccess);
  CHECK(cudaFree(big) == cudaSuccess);
  CHECK(cudaFree(more) == cudaSuccess);
}

TEST_CASE("hostlayer: freed addresses come back late") {
  const Machine machine;
  void* first = nullptr;
  void* second = nullptr;
  CHECK(cudaMalloc(&first, 1000) == cudaSuccess);
  CHECK(cudaFree(first) == cudaSuccess);
  for (int i = 0; i < 100; ++i) {
    CHECK(cudaMalloc(&second, 1000) == cudaSuccess);
    CHECK(second != first);
    CHECK(cudaFree(second) == cudaSuccess);
  }
}

TEST_CASE("hostlayer: the addresses of a device are gone through once, and then those that are free again") {
  const Machine machine;
  char* kept = nullptr;
  char* at_the_end = nullptr;
  char* again = nullptr;
  world.memory.skip_to(0, 0);
  CHECK(cudaMalloc(&kept, 1000) == cudaSuccess);
  world.memory.skip_to(0, world.memory.span() - 20000);
  CHECK(cudaMalloc(&at_the_end, 9000) == cudaSuccess);
  CHECK(cudaMemset(at_the_end, 1, 9000) == cudaSuccess);
  CHECK(static_cast<size_t>(at_the_end - kept) > world.memory.span() - 30000);
  CHECK(cudaMalloc(&again, 9000) == cudaSuccess);
  CHECK(again > kept + 1000);
  CHECK(again < kept + 10000);
  for (char* p : {kept, at_the_end, again}) CHECK(cudaFree(p) == cudaSuccess);
  world.memory.skip_to(0, 0);
}

// ---- the machine -------------------------------------------------------------------------------------------------------

TEST_CASE("hostlayer: no driver, an old driver, no device") {
  struct Case {
    Driver driver;
    int devices;
    cudaError_t error;
  };
  for (const Case& wanted : {Case{Driver::kNone, 1, cudaErrorInsufficientDriver},
                             Case{Driver::kOld, 1, cudaErrorInsufficientDriver},
                             Case{Driver::kCurrent, 0, cudaErrorNoDevice}}) {
    const Machine machine;
    Config c = config();
    c.driver = wanted.driver;
    c.devices = wanted.devices;
    configure(c);
    int count = 7;
    void* memory = nullptr;
    cudaStream_t stream = nullptr;
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceCount(&count) == wanted.error);
    CHECK(count == 0);
    CHECK(cudaSetDevice(0) == wanted.error);
    CHECK(cudaMalloc(&memory, 4) == wanted.error);
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == wanted.error);
    CHECK(cudaGetDeviceProperties(&properties, 0) == wanted.error);
    CHECK(launch_add(nullptr, 1, 1, nullptr) == wanted.error);
    int version = -1;
    CHECK(cudaDriverGetVersion(&version) == cudaSuccess);
    CHECK((version == 0) == (wanted.driver == Driver::kNone));
    CHECK(cudaRuntimeGetVersion(&version) == cudaSuccess);
    CHECK(version == CUDART_VERSION);
  }
}

TEST_CASE("hostlayer: several devices, each with its memory and streams") {
  const Machine machine;
  Config c = config();
  c.devices = 2;
  configure(c);
  int count = 0;
  CHECK(cudaGetDeviceCount(&count) == cudaSuccess);
  CHECK(count == 2);
  CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
  CHECK(cudaSetDevice(-1) == cudaErrorInvalidDevice);
  Buffers on_first;
  CHECK(cudaSetDevice(1) == cudaSuccess);
  int device = -1;
  CHECK(cudaGetDevice(&device) == cudaSuccess);
  CHECK(device == 1);
  // The choice is of the thread.
  std::thread([&] { CHECK(cudaGetDevice(&device) == cudaSuccess); }).join();
  CHECK(device == 0);
  CHECK(launch_add(on_first.device, kCount, 1, on_first.stream) == cudaErrorInvalidResourceHandle);
  cudaPointerAttributes attributes;
  CHECK(cudaPointerGetAttributes(&attributes, on_first.device) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeDevice);
  CHECK(attributes.device == 0);
  CHECK(cudaPointerGetAttributes(&attributes, on_first.pinned) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeHost);
  CHECK(cudaPointerGetAttributes(&attributes, &device) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeUnregistered);
  size_t free = 0;
  size_t total = 0;
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free == total);
}

TEST_CASE("hostlayer: properties and attributes agree and follow the configuration") {
  const Machine machine;
  Config c = config();
  c.multiprocessors = 3;
  c.compute_capability = 75;
  c.shared_bytes = size_t{64} << 10;
  c.memory_bytes = size_t{10} << 20;
  configure(c);
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0) == cudaSuccess);
  CHECK(p.multiProcessorCount == 3);
  CHECK(p.major == 7);
  CHECK(p.minor == 5);
  CHECK(p.sharedMemPerBlock == 48 << 10);
  CHECK(p.sharedMemPerBlockOptin == 64 << 10);
  CHECK(p.totalGlobalMem == 10 << 20);
  CHECK(p.warpSize == 32);
  int value = 0;
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
  CHECK(value == 64 << 10);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess);
  CHECK(value == 7);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrClockRate, 0) == cudaSuccess);
  CHECK(value > 0);
  CHECK(cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(9999), 0) == cudaErrorInvalidValue);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 1) == cudaErrorInvalidDevice);
}

TEST_CASE("hostlayer: names and texts of errors") {
  CHECK(std::string(cudaGetErrorName(cudaErrorMemoryAllocation)) == "cudaErrorMemoryAllocation");
  CHECK(std::string(cudaGetErrorString(cudaErrorMemoryAllocation)) == "out of memory");
  CHECK(std::string(cudaGetErrorName(static_cast<cudaError_t>(12345))) == "unrecognized error code");
}

// ---- faults on demand --------------------------------------------------------------------------------------------------

void fail_at(const char* what) {
  Config c = config();
  c.fail = what;
  configure(c);
}

TEST_CASE("hostlayer: the call that a test names fails, and no other") {
  const Machine machine;
  fail_at("cudaMalloc:2:cudaErrorMemoryAllocation,cudaStreamCreateWithFlags:1+:999,launch:2:cudaErrorLaunchOutOfResources");
  void* memory[3] = {};
  cudaStream_t stream = nullptr;
  CHECK(cudaMalloc(&memory[0], 4) == cudaSuccess);
  CHECK(cudaMalloc(&memory[1], 4) == cudaErrorMemoryAllocation);
  CHECK(memory[1] == nullptr);
  CHECK(cudaMalloc(&memory[2], 4) == cudaSuccess);
  CHECK(calls("cudaMalloc") == 3);
  void* none[] = {nullptr};
  CHECK(cudaLaunchKernel(no_arguments, dim3(1), dim3(1), none) == cudaSuccess);
  CHECK(cudaLaunchKernel(no_arguments, dim3(1), dim3(1), none) == cudaErrorLaunchOutOfResources);
  CHECK(cudaLaunchKernel(no_arguments, dim3(1), dim3(1), none) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(counters().launches == 2);
  CHECK(cudaStreamCreateWithFlags(&stream, 0) == cudaErrorUnknown);
  CHECK(cudaFree(memory[0]) == cudaErrorUnknown);  // sticky, but it is freed
  CHECK(cudaFree(memory[2]) == cudaErrorUnknown);
  CHECK(live_allocations() == 0);
}

TEST_CASE("hostlayer: an asynchronous error comes out at the next synchronisation and stays") {
  const Machine machine;
  fail_at("async:2:cudaErrorIllegalAddress");
  Buffers b;
  CHECK(cudaMemsetAsync(b.device, 0, kBytes, b.stream) == cudaSuccess);
  CHECK(launch_add(b.device, kCount, 1, b.stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(b.pinned, b.device, kBytes, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorIllegalAddress);
  CHECK(counters().launches == 0);
  void* memory = nullptr;
  CHECK(cudaMalloc(&memory, 4) == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorIllegalAddress);
  CHECK(cudaDeviceReset() == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(live_allocations() == 0);
  CHECK(live_objects() == 0);
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorInvalidResourceHandle);
  CHECK(cudaMalloc(&memory, 4) == cudaSuccess);
  CHECK(cudaFree(memory) == cudaSuccess);
}

TEST_CASE("hostlayer: an error that is not sticky passes") {
  const Machine machine;
  fail_at("async:1:cudaErrorLaunchOutOfResources");
  Buffers b;
  CHECK(cudaMemsetAsync(b.device, 0, kBytes, b.stream) == cudaSuccess);
  CHECK(launch_add(b.device, kCount, 1, b.stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorLaunchOutOfResources);
  CHECK(counters().launches == 1);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorLaunchOutOfResources);
  CHECK(cudaGetLastError() == cudaSuccess);
}

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST_CASE("hostlayer: the environment sets every field") {
  const Variable variables[] = {{"HOSTLAYER_SEED", "77"},       {"HOSTLAYER_ORDER", "backward"},
                                {"HOSTLAYER_DEVICES", "3"},     {"HOSTLAYER_DRIVER", "old"},
                                {"HOSTLAYER_MEMORY_MB", "5"},   {"HOSTLAYER_SHARED_KB", "99"},
                                {"HOSTLAYER_SMS", "12"},        {"HOSTLAYER_CC", "86"},
                                {"HOSTLAYER_STACK_KB", "128"},  {"HOSTLAYER_LATENCY", "off"},
                                {"HOSTLAYER_FAIL", "launch:1:700"}, {"HOSTLAYER_CHECK", "races,bounds"},
                                {"HOSTLAYER_PRINT", "off"},     {"HOSTLAYER_SHUFFLES_ORDER", "off"}};
  static_cast<void>(variables);
  const Config c = environment_config();
  CHECK(c.seed == 77);
  CHECK(c.order == Order::kBackward);
  CHECK(c.devices == 3);
  CHECK(c.driver == Driver::kOld);
  CHECK(c.memory_bytes == 5 << 20);
  CHECK(c.shared_bytes == 99 << 10);
  CHECK(c.multiprocessors == 12);
  CHECK(c.compute_capability == 86);
  CHECK(c.stack_bytes == 128 << 10);
  CHECK_FALSE(c.latency);
  CHECK(c.fail == "launch:1:700");
  CHECK_FALSE(c.check_divergence);
  CHECK(c.check_races);
  CHECK(c.check_bounds);
  CHECK_FALSE(c.check_initialised);
  CHECK_FALSE(c.print);
  CHECK_FALSE(c.shuffles_order_memory);
}

}  // namespace
}  // namespace test
}  // namespace hostlayer
