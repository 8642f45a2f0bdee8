// The runtime API: checks of arguments, and the error state that CUDA keeps.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "world.h"

namespace hostlayer {
namespace {

using Needs = World::Needs;

constexpr int kDriverVersion = 13000;
constexpr int kOldDriverVersion = 10020;
constexpr size_t kDefaultSharedBytes = size_t{48} << 10;  // of a block that has not opted in to more
constexpr size_t kReservedSharedBytes = 1024;             // of each block, from cc 8.0 on
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kBlocksPerMultiprocessor = 32;

// Every call: under the lock, counted, refused where the machine or a test wants it so, its error remembered.
template <class F>
cudaError_t call(const char* api, Needs needs, F f) {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  cudaError_t error = world.admit(api, needs);
  if (error == cudaSuccess) error = f();
  if (error != cudaSuccess) last_error = error;
  return error;
}

// A call on a stream: f(stream), for a handle that is one.
template <class F>
cudaError_t call_on(const char* api, cudaStream_t handle, F f) {
  return call(api, Needs::kDevice, [&] {
    hostlayer_stream* stream = world.stream_of(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : f(stream);
  });
}

// A call that frees or destroys does so also on a broken device.
template <class F>
cudaError_t call_to_free(const char* api, F f) {
  return call(api, Needs::kDriver, [&] {
    const cudaError_t broken = world.devices[current_device].broken;
    const cudaError_t error = f();
    return broken != cudaSuccess ? broken : error;
  });
}

bool is_device(int device) { return device >= 0 && device < world.config.devices; }

size_t shared_per_multiprocessor() { return world.config.shared_bytes + kReservedSharedBytes; }

size_t shared_limit(int device, const void* kernel) {
  const auto found = world.shared_limits.find({device, kernel});
  return found == world.shared_limits.end() ? std::min(kDefaultSharedBytes, world.config.shared_bytes)
                                            : static_cast<size_t>(found->second);
}

void* host_memory(size_t bytes) {
  void* at = nullptr;
  if (posix_memalign(&at, 4096, std::max<size_t>(bytes, 1)) != 0) return nullptr;
  fill_with_poison(at, bytes, world.poison());
  return at;
}

cudaError_t allocate_host(void** pointer, size_t bytes) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  *pointer = nullptr;
  const cudaError_t refused = world.refuse_during_capture();
  if (refused != cudaSuccess || bytes == 0) return refused;
  *pointer = host_memory(bytes);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  world.pinned[reinterpret_cast<uintptr_t>(*pointer)] = HostBlock{bytes, current_device, true};
  return cudaSuccess;
}

cudaError_t create_stream(cudaStream_t* stream, unsigned flags) {
  if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
  *stream = new hostlayer_stream;
  (*stream)->device = current_device;
  (*stream)->blocking = flags != cudaStreamNonBlocking;
  world.streams.push_back(*stream);
  return cudaSuccess;
}

cudaError_t create_event(cudaEvent_t* event, unsigned flags) {
  if (event == nullptr || flags > 7) return cudaErrorInvalidValue;
  *event = new hostlayer_event;
  (*event)->device = current_device;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  world.events.push_back(*event);
  return cudaSuccess;
}

cudaError_t check_shape(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
  const bool too_large = block.x > 1024 || block.y > 1024 || block.z > 64 || threads > kMaxThreads ||
                         grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535;
  return empty || too_large ? cudaErrorInvalidConfiguration : cudaSuccess;
}

cudaError_t record_event(hostlayer_event* event, hostlayer_stream* stream) {
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->asked = false;
  event->capture = stream->capture;
  if (stream->capture != nullptr) {
    if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    event->captured_stream = stream;
    event->mark = nullptr;
    return cudaSuccess;
  }
  Operation operation;
  operation.mark = std::make_shared<Mark>();
  operation.mark->stream = stream;
  event->mark = operation.mark;
  return world.enqueue(stream, std::move(operation));
}

// Waiting for an event of a capture takes the stream into it, or joins the other stream's work to this one's.
cudaError_t wait_in_capture(hostlayer_stream* stream, hostlayer_event* event) {
  if (event->capture == nullptr) {
    world.invalidate(*stream->capture);
    return cudaErrorStreamCaptureIsolation;
  }
  if (event->capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (stream->capture == nullptr) {
    if (stream->is_default) return cudaErrorStreamCaptureImplicit;
    stream->capture = event->capture;
    event->capture->streams.insert(stream);
    event->capture->unjoined.insert(stream);
  }
  if (stream->capture != event->capture) {
    world.invalidate(*stream->capture);
    world.invalidate(*event->capture);
    return cudaErrorStreamCaptureMerge;
  }
  if (event->captured_stream != stream) event->capture->unjoined.erase(event->captured_stream);
  return cudaSuccess;
}

cudaError_t wait_for_event(hostlayer_stream* stream, hostlayer_event* event) {
  if (event->capture != nullptr || stream->capture != nullptr) return wait_in_capture(stream, event);
  if (event->mark == nullptr || event->mark->done) return cudaSuccess;
  Operation operation;
  operation.kind = Operation::Kind::kWait;
  operation.mark = event->mark;
  return world.enqueue(stream, std::move(operation));
}

cudaError_t end_capture(hostlayer_stream* stream, cudaGraph_t* graph) {
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr) return cudaErrorIllegalState;
  if (capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  for (hostlayer_stream* member : capture->streams) member->capture = nullptr;
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!capture->unjoined.empty()) return cudaErrorStreamCaptureUnjoined;
  *graph = new hostlayer_graph;
  (*graph)->operations = std::make_shared<std::vector<Operation>>(std::move(capture->operations));
  world.graphs.push_back(*graph);
  return cudaSuccess;
}

cudaError_t instantiate(cudaGraphExec_t* exec, cudaGraph_t graph) {
  if (exec == nullptr || !holds(world.graphs, graph)) return cudaErrorInvalidValue;
  *exec = new hostlayer_graph_exec;
  (*exec)->device = current_device;
  (*exec)->operations = graph->operations;
  world.execs.push_back(*exec);
  return cudaSuccess;
}

cudaGraphExecUpdateResult compare_graphs(const std::vector<Operation>& old, const std::vector<Operation>& now) {
  if (old.size() != now.size()) return cudaGraphExecUpdateErrorTopologyChanged;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i].kind != now[i].kind) return cudaGraphExecUpdateErrorNodeTypeChanged;
    if (old[i].kind == Operation::Kind::kLaunch && old[i].launch->kernel != now[i].launch->kernel) {
      return cudaGraphExecUpdateErrorFunctionChanged;
    }
  }
  return cudaGraphExecUpdateSuccess;
}

cudaError_t update(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResult* result) {
  if (!holds(world.execs, exec) || !holds(world.graphs, graph)) return cudaErrorInvalidValue;
  *result = compare_graphs(*exec->operations, *graph->operations);
  if (*result != cudaGraphExecUpdateSuccess) return cudaErrorGraphExecUpdateFailure;
  exec->operations = graph->operations;
  return cudaSuccess;
}

int attribute_value(cudaDeviceAttr attribute, int device) {
  const Config& config = world.config;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return kMaxThreads;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return static_cast<int>(std::min(kDefaultSharedBytes, config.shared_bytes));
    case cudaDevAttrTotalConstantMemory:
      return 65536;
    case cudaDevAttrWarpSize:
      return kLanes;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrClockRate:
      return 1000000;  // kHz
    case cudaDevAttrMemoryClockRate:
      return 1000000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 1024;
    case cudaDevAttrL2CacheSize:
      return 1 << 20;
    case cudaDevAttrMultiProcessorCount:
      return config.multiprocessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return kThreadsPerMultiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return kBlocksPerMultiprocessor;
    case cudaDevAttrComputeCapabilityMajor:
      return config.compute_capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return config.compute_capability % 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return static_cast<int>(shared_per_multiprocessor());
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return static_cast<int>(config.shared_bytes);
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return static_cast<int>(kReservedSharedBytes);
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
      return 1;
    case cudaDevAttrAsyncEngineCount:
      return 2;
    case cudaDevAttrPciBusId:
      return device + 1;
    case cudaDevAttrIntegrated:
    case cudaDevAttrEccEnabled:
    case cudaDevAttrComputeMode:
    case cudaDevAttrPciDeviceId:
    case cudaDevAttrPciDomainId:
      return 0;
  }
  return -1;
}

void fill_properties(cudaDeviceProp* p, int device) {
  const auto value = [device](cudaDeviceAttr attribute) { return attribute_value(attribute, device); };
  std::memset(p, 0, sizeof(*p));
  std::snprintf(p->name, sizeof(p->name), "Host execution layer (no GPU) %d", device);
  p->totalGlobalMem = world.config.memory_bytes;
  p->sharedMemPerBlock = static_cast<size_t>(value(cudaDevAttrMaxSharedMemoryPerBlock));
  p->sharedMemPerBlockOptin = static_cast<size_t>(value(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  p->sharedMemPerMultiprocessor = static_cast<size_t>(value(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  p->reservedSharedMemPerBlock = kReservedSharedBytes;
  p->regsPerBlock = value(cudaDevAttrMaxRegistersPerBlock);
  p->regsPerMultiprocessor = value(cudaDevAttrMaxRegistersPerMultiprocessor);
  p->warpSize = kLanes;
  p->maxThreadsPerBlock = kMaxThreads;
  p->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
  p->maxBlocksPerMultiProcessor = kBlocksPerMultiprocessor;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = kMaxThreads;
  p->maxThreadsDim[2] = value(cudaDevAttrMaxBlockDimZ);
  p->maxGridSize[0] = value(cudaDevAttrMaxGridDimX);
  p->maxGridSize[1] = p->maxGridSize[2] = value(cudaDevAttrMaxGridDimY);
  p->totalConstMem = static_cast<size_t>(value(cudaDevAttrTotalConstantMemory));
  p->major = value(cudaDevAttrComputeCapabilityMajor);
  p->minor = value(cudaDevAttrComputeCapabilityMinor);
  p->multiProcessorCount = value(cudaDevAttrMultiProcessorCount);
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
  p->asyncEngineCount = value(cudaDevAttrAsyncEngineCount);
  p->pciBusID = value(cudaDevAttrPciBusId);
  p->memoryBusWidth = value(cudaDevAttrGlobalMemoryBusWidth);
  p->l2CacheSize = value(cudaDevAttrL2CacheSize);
#if CUDART_VERSION < 13000
  p->clockRate = value(cudaDevAttrClockRate);
  p->memoryClockRate = value(cudaDevAttrMemoryClockRate);
#endif
}

}  // namespace

namespace launching {

cudaError_t launch(const void* kernel, Invoke invoke, bool instrumented, const unsigned char* parameters,
                   size_t parameter_bytes, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t handle) {
  return call_on("cudaLaunchKernel", handle, [&](hostlayer_stream* stream) {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (stream->device != current_device) return cudaErrorInvalidResourceHandle;
    const cudaError_t shape = check_shape(grid, block);
    if (shape != cudaSuccess) return shape;
    if (shared_bytes > shared_limit(current_device, kernel)) return cudaErrorInvalidValue;
    Operation operation;
    operation.kind = Operation::Kind::kLaunch;
    operation.launch = std::make_shared<Launch>();
    Launch& l = *operation.launch;
    l.kernel = kernel;
    l.invoke = invoke;
    l.instrumented = instrumented;
    l.parameters.assign(parameters, parameters + parameter_bytes);
    l.parameters.resize(std::max<size_t>(parameter_bytes, 1));
    l.grid = grid;
    l.block = block;
    l.shared_bytes = shared_bytes;
    l.device = current_device;
    return world.enqueue(stream, std::move(operation));
  });
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return call("cudaFuncSetAttribute", Needs::kDevice, [&] {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
      return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
    if (value < 0 || static_cast<size_t>(value) > world.config.shared_bytes) return cudaErrorInvalidValue;
    world.shared_limits[{current_device, kernel}] = value;
    return cudaSuccess;
  });
}

cudaError_t get_attributes(cudaFuncAttributes* attributes, const void* kernel) {
  return call("cudaFuncGetAttributes", Needs::kDevice, [&] {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    std::memset(attributes, 0, sizeof(*attributes));
    attributes->maxThreadsPerBlock =
        static_cast<int>(world.ptx == nullptr ? kMaxThreads : world.ptx->most_threads(name_of_function(kernel)));
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = world.config.compute_capability;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(current_device, kernel));
    attributes->preferredShmemCarveout = -1;
    return cudaSuccess;
  });
}

cudaError_t max_active_blocks(int* blocks, const void* kernel, int block_size, size_t dynamic_shared_bytes) {
  return call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", Needs::kDevice, [&] {
    if (blocks == nullptr || block_size <= 0) return cudaErrorInvalidValue;
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    *blocks = 0;
    if (block_size > kMaxThreads || dynamic_shared_bytes > shared_limit(current_device, kernel)) return cudaSuccess;
    const int warps = (block_size + kLanes - 1) / kLanes;
    const size_t by_shared = shared_per_multiprocessor() / (dynamic_shared_bytes + kReservedSharedBytes);
    const int by_threads = kThreadsPerMultiprocessor / kLanes / warps;
    *blocks = std::min({by_threads, kBlocksPerMultiprocessor, static_cast<int>(std::min<size_t>(by_shared, 1024))});
    return cudaSuccess;
  });
}

}  // namespace launching
}  // namespace hostlayer

using namespace hostlayer;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define HOSTLAYER_CASE(name, value, text) \
  case name:                              \
    return #name;
    HOSTLAYER_ERRORS(HOSTLAYER_CASE)
#undef HOSTLAYER_CASE
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define HOSTLAYER_CASE(name, value, text) \
  case name:                              \
    return text;
    HOSTLAYER_ERRORS(HOSTLAYER_CASE)
#undef HOSTLAYER_CASE
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  const cudaError_t broken = world.devices[current_device].broken;
  return broken != cudaSuccess ? broken : last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaDriverGetVersion(int* version) {
  return call("cudaDriverGetVersion", Needs::kNothing, [&] {
    if (version == nullptr) return cudaErrorInvalidValue;
    const Driver driver = world.config.driver;
    *version = driver == Driver::kNone ? 0 : driver == Driver::kOld ? kOldDriverVersion : kDriverVersion;
    return cudaSuccess;
  });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return call("cudaRuntimeGetVersion", Needs::kNothing, [&] {
    if (version == nullptr) return cudaErrorInvalidValue;
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (count != nullptr) *count = 0;
  return call("cudaGetDeviceCount", Needs::kDriver, [&] {
    if (count == nullptr) return cudaErrorInvalidValue;
    *count = world.config.devices;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", Needs::kDriver, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return call("cudaGetDevice", Needs::kDriver, [&] {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = current_device;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDeviceFlags(unsigned flags) {
  return call("cudaSetDeviceFlags", Needs::kDriver, [&] { return flags > 31 ? cudaErrorInvalidValue : cudaSuccess; });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", Needs::kDriver, [&] {
    if (properties == nullptr) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    fill_properties(properties, device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", Needs::kDriver, [&] {
    if (value == nullptr) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    const int found = attribute_value(attribute, device);
    if (found < 0) return cudaErrorInvalidValue;
    *value = found;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return call("cudaDeviceGetPCIBusId", Needs::kDriver, [&] {
    if (id == nullptr || length < 13) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    std::snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", (device + 1) & 0xff);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call("cudaDeviceSynchronize", Needs::kDevice, [&] {
    for (hostlayer_stream* stream : world.streams) {
      if (stream->capture == nullptr || stream->device != current_device) continue;
      world.invalidate(*stream->capture);
      return cudaErrorStreamCaptureUnsupported;
    }
    return world.run_device(current_device);
  });
}

cudaError_t cudaDeviceReset() {
  return call("cudaDeviceReset", Needs::kDriver, [&] {
    world.reset_device(current_device);
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const void* caller = __builtin_return_address(0);
  return call("cudaMalloc", Needs::kDevice, [&] {
    if (pointer == nullptr) return cudaErrorInvalidValue;
    *pointer = nullptr;
    const cudaError_t refused = world.refuse_during_capture();
    if (refused != cudaSuccess || bytes == 0) return refused;
    *pointer = world.memory.allocate(current_device, bytes, world.config.memory_bytes, world.poison(), caller);
    return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

cudaError_t cudaFree(void* pointer) {
  return call_to_free("cudaFree", [&] {
    if (pointer == nullptr) return cudaSuccess;
    const cudaError_t refused = world.refuse_during_capture();
    if (refused != cudaSuccess) return refused;
    const Allocation* allocation = world.memory.find(reinterpret_cast<uintptr_t>(pointer));
    if (allocation == nullptr || allocation->begin != reinterpret_cast<uintptr_t>(pointer)) return cudaErrorInvalidValue;
    const cudaError_t error = world.run_device(allocation->device);
    world.memory.release(pointer);
    return error;
  });
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  return call("cudaHostAlloc", Needs::kDevice,
              [&] { return flags > 7 ? cudaErrorInvalidValue : allocate_host(pointer, bytes); });
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return call("cudaMallocHost", Needs::kDevice, [&] { return allocate_host(pointer, bytes); });
}

cudaError_t cudaFreeHost(void* pointer) {
  return call_to_free("cudaFreeHost", [&] {
    if (pointer == nullptr) return cudaSuccess;
    const cudaError_t refused = world.refuse_during_capture();
    if (refused != cudaSuccess) return refused;
    const auto found = world.pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == world.pinned.end() || !found->second.owned) return cudaErrorInvalidValue;
    cudaError_t error = cudaSuccess;
    for (int d = 0; d < world.config.devices; ++d) {
      const cudaError_t of_device = world.run_device(d);
      if (d == current_device) error = of_device;
    }
    std::free(pointer);
    world.pinned.erase(found);
    return error;
  });
}

cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
  return call("cudaHostRegister", Needs::kDevice, [&] {
    if (pointer == nullptr || bytes == 0 || flags > 15) return cudaErrorInvalidValue;
    if (world.is_pinned(pointer, 0)) return cudaErrorHostMemoryAlreadyRegistered;
    world.pinned[reinterpret_cast<uintptr_t>(pointer)] = HostBlock{bytes, current_device, false};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* pointer) {
  return call_to_free("cudaHostUnregister", [&] {
    const auto found = world.pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == world.pinned.end() || found->second.owned) return cudaErrorHostMemoryNotRegistered;
    const cudaError_t error = world.run_device(found->second.device);
    world.pinned.erase(found);
    return error;
  });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  return call("cudaHostGetDevicePointer", Needs::kDevice, [&] {
    if (device == nullptr || flags != 0 || !world.is_pinned(host, 0)) return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return call("cudaMemGetInfo", Needs::kDevice, [&] {
    if (free == nullptr || total == nullptr) return cudaErrorInvalidValue;
    *total = world.config.memory_bytes;
    *free = *total - std::min(*total, world.memory.used(current_device));
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return call("cudaPointerGetAttributes", Needs::kDevice, [&] {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    void* const at = const_cast<void*>(pointer);
    *attributes = cudaPointerAttributes{cudaMemoryTypeUnregistered, -2, nullptr, at};
    const Allocation* allocation = world.memory.find(reinterpret_cast<uintptr_t>(pointer));
    if (allocation != nullptr) *attributes = {cudaMemoryTypeDevice, allocation->device, at, nullptr};
    if (world.is_pinned(pointer, 0)) *attributes = {cudaMemoryTypeHost, current_device, at, at};
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  return call_on("cudaMemcpy", nullptr, [&](hostlayer_stream* stream) {
    const cudaError_t refused = world.refuse_during_capture();
    return refused != cudaSuccess ? refused : world.copy(target, source, bytes, kind, stream, true);
  });
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return call_on("cudaMemcpyAsync", stream,
                 [&](hostlayer_stream* s) { return world.copy(target, source, bytes, kind, s, false); });
}

cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  return call_on("cudaMemset", nullptr, [&](hostlayer_stream* stream) { return world.set(target, value, bytes, stream); });
}

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  return call_on("cudaMemsetAsync", stream, [&](hostlayer_stream* s) { return world.set(target, value, bytes, s); });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return call("cudaStreamCreate", Needs::kDevice, [&] { return create_stream(stream, cudaStreamDefault); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call("cudaStreamCreateWithFlags", Needs::kDevice, [&] { return create_stream(stream, flags); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return call("cudaStreamCreateWithPriority", Needs::kDevice, [&] { return create_stream(stream, flags); });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", Needs::kDevice, [&] {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call_to_free("cudaStreamDestroy", [&] {
    if (stream == nullptr || world.stream_of(stream) != stream) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) world.invalidate(*stream->capture);
    stream->destroyed = true;
    if (stream->queue.empty() && stream->capture == nullptr) destroy(&world.streams, stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call_on("cudaStreamSynchronize", stream, [&](hostlayer_stream* s) {
    if (s->capture != nullptr) {
      world.invalidate(*s->capture);
      return cudaErrorStreamCaptureUnsupported;
    }
    return world.run_all(s);
  });
}

// Whoever asks again and again sees the work progress, but never finds it done at once.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call_on("cudaStreamQuery", stream, [&](hostlayer_stream* s) {
    if (s->capture != nullptr) {
      world.invalidate(*s->capture);
      return cudaErrorStreamCaptureUnsupported;
    }
    if (s->queue.empty()) return cudaSuccess;
    const cudaError_t error = s->asked ? world.run_one(s) : cudaSuccess;
    s->asked = true;
    return error != cudaSuccess ? error : s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return call_on("cudaStreamWaitEvent", stream, [&](hostlayer_stream* s) {
    if (!holds(world.events, event)) return cudaErrorInvalidResourceHandle;
    return flags > 1 ? cudaErrorInvalidValue : wait_for_event(s, event);
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call_on("cudaLaunchHostFunc", stream, [&](hostlayer_stream* s) {
    if (function == nullptr) return cudaErrorInvalidValue;
    Operation operation;
    operation.kind = Operation::Kind::kHostFunction;
    operation.function = function;
    operation.data = data;
    return world.enqueue(s, std::move(operation));
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return call("cudaEventCreate", Needs::kDevice, [&] { return create_event(event, cudaEventDefault); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call("cudaEventCreateWithFlags", Needs::kDevice, [&] { return create_event(event, flags); });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call_on("cudaEventRecord", stream, [&](hostlayer_stream* s) {
    return holds(world.events, event) ? record_event(event, s) : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call("cudaEventSynchronize", Needs::kDevice, [&] {
    if (!holds(world.events, event)) return cudaErrorInvalidResourceHandle;
    if (event->capture != nullptr) return cudaErrorCapturedEvent;
    return event->mark == nullptr ? cudaSuccess : world.run_until(*event->mark);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery", Needs::kDevice, [&] {
    if (!holds(world.events, event)) return cudaErrorInvalidResourceHandle;
    if (event->capture != nullptr) return cudaErrorCapturedEvent;
    const cudaError_t refused = world.refuse_during_capture();
    if (refused != cudaSuccess) return refused;
    if (event->mark == nullptr || event->mark->done) return cudaSuccess;
    const cudaError_t error = event->asked ? world.run_one(event->mark->stream) : cudaSuccess;
    event->asked = true;
    return error != cudaSuccess ? error : event->mark->done ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call("cudaEventElapsedTime", Needs::kDevice, [&] {
    if (milliseconds == nullptr) return cudaErrorInvalidValue;
    for (hostlayer_event* event : {start, end}) {
      if (!holds(world.events, event) || !event->timed) return cudaErrorInvalidResourceHandle;
      if (event->mark == nullptr) return cudaErrorInvalidResourceHandle;
      if (!event->mark->done) return cudaErrorNotReady;
    }
    *milliseconds = static_cast<float>(end->mark->milliseconds - start->mark->milliseconds);
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call_to_free("cudaEventDestroy", [&] {
    if (!holds(world.events, event)) return cudaErrorInvalidResourceHandle;
    destroy(&world.events, event);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call_on("cudaStreamBeginCapture", stream, [&](hostlayer_stream* s) {
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    if (s->is_default) return cudaErrorStreamCaptureUnsupported;
    if (s->capture != nullptr) return cudaErrorIllegalState;
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->thread = std::this_thread::get_id();
    s->capture->streams.insert(s);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (graph != nullptr) *graph = nullptr;
  return call_on("cudaStreamEndCapture", stream, [&](hostlayer_stream* s) {
    return graph == nullptr ? cudaErrorInvalidValue : end_capture(s, graph);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call_on("cudaStreamIsCapturing", stream, [&](hostlayer_stream* s) {
    if (status == nullptr) return cudaErrorInvalidValue;
    *status = s->capture == nullptr    ? cudaStreamCaptureStatusNone
              : s->capture->invalid    ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return call("cudaThreadExchangeStreamCaptureMode", Needs::kNothing, [&] {
    if (mode == nullptr || *mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    std::swap(*mode, thread_capture_mode);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, cudaGraphNode_t* error_node, char* log,
                                 size_t bytes) {
  if (error_node != nullptr) *error_node = nullptr;
  if (log != nullptr && bytes != 0) *log = '\0';
  return call("cudaGraphInstantiate", Needs::kDevice, [&] { return instantiate(exec, graph); });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", Needs::kDevice, [&] { return instantiate(exec, graph); });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiateWithFlags", Needs::kDevice, [&] { return instantiate(exec, graph); });
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphNode_t* error_node,
                                cudaGraphExecUpdateResult* result) {
  if (error_node != nullptr) *error_node = nullptr;
  return call("cudaGraphExecUpdate", Needs::kDevice, [&] {
    return result == nullptr ? cudaErrorInvalidValue : update(exec, graph, result);
  });
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo* result) {
  return call("cudaGraphExecUpdate", Needs::kDevice, [&] {
    if (result == nullptr) return cudaErrorInvalidValue;
    *result = cudaGraphExecUpdateResultInfo{cudaGraphExecUpdateSuccess, nullptr, nullptr};
    return update(exec, graph, &result->result);
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  return call_on("cudaGraphUpload", stream, [&](hostlayer_stream*) {
    return holds(world.execs, exec) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return call_on("cudaGraphLaunch", stream, [&](hostlayer_stream* s) {
    if (!holds(world.execs, exec)) return cudaErrorInvalidValue;
    if (s->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
    Operation operation;
    operation.kind = Operation::Kind::kGraph;
    operation.graph = exec->operations;
    return world.enqueue(s, std::move(operation));
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return call("cudaGraphGetNodes", Needs::kDevice, [&] {
    if (!holds(world.graphs, graph) || count == nullptr) return cudaErrorInvalidValue;
    if (nodes != nullptr) return cudaErrorNotSupported;
    *count = graph->operations->size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call_to_free("cudaGraphExecDestroy", [&] {
    if (!holds(world.execs, exec)) return cudaErrorInvalidValue;
    destroy(&world.execs, exec);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call_to_free("cudaGraphDestroy", [&] {
    if (!holds(world.graphs, graph)) return cudaErrorInvalidValue;
    destroy(&world.graphs, graph);
    return cudaSuccess;
  });
}
