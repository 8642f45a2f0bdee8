// Queues, their execution, captures, and the faults that a test may ask for.
#include "world.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "race.h"

namespace hostlayer {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode thread_capture_mode = cudaStreamCaptureModeGlobal;

World& world = *new World;

namespace {

void write_ptx_report() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  if (world.ptx != nullptr && !world.config.ptx_report.empty()) std::ofstream(world.config.ptx_report) << world.ptx->report();
}

double now_milliseconds() {
  static const auto start = std::chrono::steady_clock::now();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

bool on_device(const void* pointer) { return device_range.contains(reinterpret_cast<uintptr_t>(pointer)); }

// What the kind says must be what the pointers are.
bool kind_fits(cudaMemcpyKind kind, bool target_on_device, bool source_on_device) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !target_on_device && !source_on_device;
    case cudaMemcpyHostToDevice:
      return target_on_device && !source_on_device;
    case cudaMemcpyDeviceToHost:
      return !target_on_device && source_on_device;
    case cudaMemcpyDeviceToDevice:
      return target_on_device && source_on_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

}  // namespace

bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

cudaError_t error_from(const std::string& text) {
  struct Named {
    const char* name;
    cudaError_t error;
  };
#define HOSTLAYER_NAMED(name, value, text) {#name, name},
  static const Named kNamed[] = {HOSTLAYER_ERRORS(HOSTLAYER_NAMED)};
#undef HOSTLAYER_NAMED
  for (const Named& named : kNamed) {
    if (text == named.name || text == std::to_string(static_cast<int>(named.error))) return named.error;
  }
  return cudaErrorUnknown;
}

World::World() {
  if (!memory.reserve()) {
    std::fprintf(stderr, "hostlayer: no address space for the emulated devices\n");
    std::abort();
  }
  configure(environment_config());
  for (int d = 0; d < kMaxDevices; ++d) {
    devices[d].default_stream.device = d;
    devices[d].default_stream.is_default = true;
  }
}

void World::configure(const Config& wanted) {
  config = wanted;
  config.devices = std::min(std::max(config.devices, 0), kMaxDevices);
  random = Random(mix(config.seed ^ 0x776f726c64u));
  calls.clear();
  performed_ = 0;
  launch_number_ = 0;
  parse_injections();
  load_ptx();
}

// What was counted goes on as long as the file stays the same.
void World::load_ptx() {
  static const bool at_exit = std::atexit(write_ptx_report) == 0;
  static_cast<void>(at_exit);
  if (config.ptx == ptx_file_) return;
  ptx_file_ = config.ptx;
  ptx = nullptr;
  if (ptx_file_.empty()) return;
  std::ifstream file(ptx_file_);
  std::ostringstream text;
  text << file.rdbuf();
  try {
    if (!file) throw std::runtime_error("cannot be read");
    ptx = std::make_unique<PtxProgram>(text.str());
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "hostlayer: HOSTLAYER_PTX: %s: %s\n", ptx_file_.c_str(), error.what());
    std::abort();
  }
}

void World::parse_injections() {
  injections_.clear();
  std::istringstream all(config.fail);
  for (std::string one; std::getline(all, one, ',');) {
    const size_t first = one.find(':');
    const size_t second = first == std::string::npos ? first : one.find(':', first + 1);
    if (second == std::string::npos) {
      std::fprintf(stderr, "hostlayer: HOSTLAYER_FAIL: expected api:nth:error, got '%s'\n", one.c_str());
      std::abort();
    }
    Injection injection;
    injection.api = one.substr(0, first);
    if (injection.api == "launch") injection.api = "cudaLaunchKernel";
    std::string nth = one.substr(first + 1, second - first - 1);
    if (nth == "*") nth = "1+";
    injection.onwards = !nth.empty() && nth.back() == '+';
    injection.nth = std::strtoll(nth.c_str(), nullptr, 10);
    injection.error = error_from(one.substr(second + 1));
    injections_.push_back(injection);
  }
}

cudaError_t World::injected(const std::string& api, int64_t call) const {
  for (const Injection& injection : injections_) {
    if (injection.api != api) continue;
    if (call == injection.nth || (injection.onwards && call > injection.nth)) return injection.error;
  }
  return cudaSuccess;
}

cudaError_t World::admit(const char* api, Needs needs) {
  const int64_t call = ++calls[api];
  const cudaError_t wanted = injected(api, call);
  if (wanted != cudaSuccess) return is_sticky(wanted) ? break_device(current_device, wanted) : wanted;
  if (needs == Needs::kNothing) return cudaSuccess;
  if (config.driver != Driver::kCurrent) return cudaErrorInsufficientDriver;
  if (config.devices == 0) return cudaErrorNoDevice;
  if (needs == Needs::kDevice) return devices[current_device].broken;
  return cudaSuccess;
}

void World::reset_device(int device) {
  const auto mine = [device](const auto* object) { return object->device == device; };
  for (hostlayer_stream* stream : streams) {
    if (mine(stream)) drop_work(stream);
  }
  const auto remove_mine = [&](auto* all) {
    const auto kept = std::stable_partition(all->begin(), all->end(), [&](const auto* object) { return !mine(object); });
    std::for_each(kept, all->end(), [](auto* object) { delete object; });
    all->erase(kept, all->end());
  };
  remove_mine(&streams);
  remove_mine(&events);
  remove_mine(&execs);
  for (auto p = pinned.begin(); p != pinned.end();) {
    const bool gone = p->second.device == device;
    if (gone && p->second.owned) std::free(reinterpret_cast<void*>(p->first));
    p = gone ? pinned.erase(p) : std::next(p);
  }
  for (auto s = shared_limits.begin(); s != shared_limits.end();) {
    s = s->first.first == device ? shared_limits.erase(s) : std::next(s);
  }
  drop_work(&devices[device].default_stream);
  memory.release_all(device);
  devices[device].broken = cudaSuccess;
}

void World::reset() {
  for (int d = 0; d < kMaxDevices; ++d) reset_device(d);
  for (hostlayer_graph* graph : graphs) delete graph;
  graphs.clear();
  configure(config);
  execution.counters = Counters{};
  forget_reports();
  last_error = cudaSuccess;
  current_device = 0;
}

hostlayer_stream* World::stream_of(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return &devices[current_device].default_stream;
  return holds(streams, static_cast<const hostlayer_stream*>(handle)) && !handle->destroyed ? handle : nullptr;
}

bool World::is_pinned(const void* pointer, size_t bytes) const {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  const auto after = pinned.upper_bound(address);
  if (after == pinned.begin()) return false;
  const auto& [begin, block] = *std::prev(after);
  return address - begin <= block.bytes && bytes <= block.bytes - (address - begin);
}

// A call that may synchronise with everything is refused to a thread that captures, and, while any thread captures globally,
// to all that have not asked to be let through.
cudaError_t World::refuse_during_capture() {
  if (thread_capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  for (hostlayer_stream* stream : streams) {
    if (stream->capture == nullptr || stream->capture->mode == cudaStreamCaptureModeRelaxed) continue;
    const bool mine = stream->capture->thread == std::this_thread::get_id();
    const bool global = stream->capture->mode == cudaStreamCaptureModeGlobal &&
                        thread_capture_mode == cudaStreamCaptureModeGlobal;
    if (!mine && !global) continue;
    invalidate(*stream->capture);
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

cudaError_t World::record(hostlayer_stream* stream, Operation operation) {
  Capture& capture = *stream->capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  if (stream != capture.origin) capture.unjoined.insert(stream);
  capture.operations.push_back(std::move(operation));
  return cudaSuccess;
}

std::shared_ptr<Mark> World::mark_end(hostlayer_stream* stream) {
  Operation end;
  end.mark = std::make_shared<Mark>();
  end.mark->stream = stream;
  stream->queue.push_back(end);
  return end.mark;
}

// The default stream and the blocking streams of a device wait for each other.
void World::order_with_default(hostlayer_stream* stream) {
  const auto wait_for = [&](hostlayer_stream* other) {
    if (other == stream || other->queue.empty()) return;
    Operation wait;
    wait.kind = Operation::Kind::kWait;
    wait.mark = mark_end(other);
    stream->queue.push_back(wait);
  };
  if (!stream->blocking) return;
  if (!stream->is_default) {
    wait_for(&devices[stream->device].default_stream);
    return;
  }
  for (hostlayer_stream* other : streams) {
    if (other->blocking && other->device == stream->device) wait_for(other);
  }
}

cudaError_t World::enqueue(hostlayer_stream* stream, Operation operation, bool waits) {
  if (stream->capture != nullptr) return record(stream, std::move(operation));
  if (stream->is_default) {
    for (hostlayer_stream* other : streams) {
      if (other->capture == nullptr || !other->blocking || other->device != stream->device) continue;
      invalidate(*other->capture);
      return cudaErrorStreamCaptureImplicit;
    }
  }
  order_with_default(stream);
  stream->queue.push_back(std::move(operation));
  stream->asked = false;
  return waits || !config.latency ? run_all(stream) : cudaSuccess;
}

cudaError_t World::copy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, hostlayer_stream* stream,
                        bool waits) {
  if (bytes == 0) return cudaSuccess;
  if (target == nullptr || source == nullptr) return cudaErrorInvalidValue;
  const bool target_on_device = on_device(target);
  const bool source_on_device = on_device(source);
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (!kind_fits(kind, target_on_device, source_on_device)) return cudaErrorInvalidValue;
  if (target_on_device && memory.find(target, bytes) == nullptr) return cudaErrorInvalidValue;
  if (source_on_device && memory.find(source, bytes) == nullptr) return cudaErrorInvalidValue;
  const bool pageable_target = !target_on_device && !is_pinned(target, bytes);
  const bool pageable_source = !source_on_device && !is_pinned(source, bytes);
  Operation operation;
  operation.kind = Operation::Kind::kCopy;
  operation.target = target;
  operation.source = source;
  operation.bytes = bytes;
  if (pageable_source && !pageable_target && stream->capture == nullptr) {
    const unsigned char* bytes_of_source = static_cast<const unsigned char*>(source);
    operation.staged = std::make_shared<std::vector<unsigned char>>(bytes_of_source, bytes_of_source + bytes);
  }
  // A copy into pageable memory has been made when the call returns.
  return enqueue(stream, std::move(operation), waits || pageable_target);
}

cudaError_t World::set(void* target, int value, size_t bytes, hostlayer_stream* stream) {
  if (bytes == 0) return cudaSuccess;
  if (on_device(target) ? memory.find(target, bytes) == nullptr : !is_pinned(target, bytes)) return cudaErrorInvalidValue;
  Operation operation;
  operation.kind = Operation::Kind::kSet;
  operation.target = target;
  operation.value = value;
  operation.bytes = bytes;
  return enqueue(stream, std::move(operation));
}

cudaError_t World::break_device(int device, cudaError_t error) {
  devices[device].broken = error;
  for (hostlayer_stream* stream : streams) {
    if (stream->device == device) drop_work(stream);
  }
  drop_work(&devices[device].default_stream);
  return error;
}

// Work behind a fault is not done, but nobody waits for it either.
void World::drop_work(hostlayer_stream* stream) {
  for (Operation& operation : stream->queue) {
    if (operation.kind == Operation::Kind::kMark) operation.mark->done = true;
  }
  stream->queue.clear();
}

cudaError_t World::perform_copy(const Operation& operation) {
  const uintptr_t target = reinterpret_cast<uintptr_t>(operation.target);
  const uintptr_t source = reinterpret_cast<uintptr_t>(operation.source);
  const bool target_on_device = device_range.contains(target);
  const bool source_on_device = device_range.contains(source) && operation.staged == nullptr;
  if ((target_on_device && memory.find(operation.target, operation.bytes) == nullptr) ||
      (source_on_device && memory.find(operation.source, operation.bytes) == nullptr)) {
    report("a queued copy of " + std::to_string(operation.bytes) + " bytes uses " +
           memory.describe(target_on_device && memory.find(operation.target, operation.bytes) == nullptr ? target : source));
    return cudaErrorIllegalAddress;
  }
  std::memmove(operation.target, operation.staged == nullptr ? operation.source : operation.staged->data(), operation.bytes);
  if (target_on_device && source_on_device) {
    memory.copy_written(target, source, operation.bytes);
  } else if (target_on_device) {
    memory.mark_written(target, operation.bytes);
  }
  execution.counters.copied_bytes += static_cast<int64_t>(operation.bytes);
  return cudaSuccess;
}

cudaError_t World::perform(const Operation& operation, int device) {
  if (operation.kind != Operation::Kind::kMark && operation.kind != Operation::Kind::kWait &&
      operation.kind != Operation::Kind::kGraph) {
    const cudaError_t wanted = injected("async", ++performed_);
    if (wanted != cudaSuccess) return wanted;
  }
  switch (operation.kind) {
    case Operation::Kind::kCopy:
      return perform_copy(operation);
    case Operation::Kind::kSet:
      if (device_range.contains(reinterpret_cast<uintptr_t>(operation.target))) {
        if (memory.find(operation.target, operation.bytes) == nullptr) {
          report("a queued memset uses " + memory.describe(reinterpret_cast<uintptr_t>(operation.target)));
          return cudaErrorIllegalAddress;
        }
        memory.mark_written(reinterpret_cast<uintptr_t>(operation.target), operation.bytes);
      }
      std::memset(operation.target, operation.value, operation.bytes);
      return cudaSuccess;
    case Operation::Kind::kLaunch:
      if (ptx != nullptr) return ptx->run(name_of_function(operation.launch->kernel), *operation.launch);
      prepare_checks(*operation.launch);
      return execution.run(*operation.launch, config, ++launch_number_);
    case Operation::Kind::kMark:
      operation.mark->milliseconds = now_milliseconds();
      operation.mark->done = true;
      return cudaSuccess;
    case Operation::Kind::kWait:
      return run_until(*operation.mark);
    case Operation::Kind::kGraph:
      ++execution.counters.graph_launches;
      for (const Operation& part : *operation.graph) {
        const cudaError_t error = perform(part, device);
        if (error != cudaSuccess) return error;
      }
      return cudaSuccess;
    case Operation::Kind::kHostFunction:
      operation.function(operation.data);
      return cudaSuccess;
  }
  return cudaErrorUnknown;
}

cudaError_t World::run_one(hostlayer_stream* stream) {
  const Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  const cudaError_t error = perform(operation, stream->device);
  if (error == cudaSuccess) return devices[stream->device].broken;
  return is_sticky(error) ? break_device(stream->device, error) : error;
}

cudaError_t World::run_all(hostlayer_stream* stream) {
  cudaError_t first = devices[stream->device].broken;
  while (!stream->queue.empty()) {
    const cudaError_t error = run_one(stream);
    if (first == cudaSuccess) first = error;
  }
  forget_finished();
  return first;
}

cudaError_t World::run_until(Mark& mark) {
  cudaError_t first = cudaSuccess;
  while (!mark.done) {
    const cudaError_t error = run_one(mark.stream);
    if (first == cudaSuccess) first = error;
  }
  return first;
}

// The work of different streams is interleaved at random.
cudaError_t World::run_device(int device) {
  cudaError_t first = devices[device].broken;
  for (;;) {
    std::vector<hostlayer_stream*> busy;
    if (!devices[device].default_stream.queue.empty()) busy.push_back(&devices[device].default_stream);
    for (hostlayer_stream* stream : streams) {
      if (stream->device == device && !stream->queue.empty()) busy.push_back(stream);
    }
    if (busy.empty()) break;
    const cudaError_t error = run_one(busy[random.below(static_cast<uint32_t>(busy.size()))]);
    if (first == cudaSuccess) first = error;
  }
  forget_finished();
  return first;
}

// Streams that were destroyed with work in them live until it is done.
void World::forget_finished() {
  for (size_t i = 0; i < streams.size();) {
    hostlayer_stream* stream = streams[i];
    if (stream->destroyed && stream->queue.empty()) {
      destroy(&streams, stream);
    } else {
      ++i;
    }
  }
}

}  // namespace hostlayer
