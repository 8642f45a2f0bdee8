// The plug-in's C interface over Engine: what throws inside ends here, as a status.
#include "plugin.h"

#include <algorithm>
#include <cstdio>
#include <new>

#include "engine.h"

namespace gimbal {
namespace cuda {

struct PluginEngine {
  explicit PluginEngine(int32_t device) : engine(device) {}
  Engine engine;
};

namespace {

template <class Body>
int32_t guard(PluginStatus* status, Body body) {
  *status = PluginStatus();
  try {
    body();
    return 0;
  } catch (const CudaError& error) {
    *status = error.status();
  } catch (const std::bad_alloc&) {
    std::snprintf(status->text, sizeof(status->text), "out of host memory");
  } catch (const std::exception& error) {
    std::snprintf(status->text, sizeof(status->text), "%s", error.what());
  } catch (...) {
    std::snprintf(status->text, sizeof(status->text), "an unknown exception");
  }
  return -1;
}

PluginDevice describe(int32_t device) {
  cudaDeviceProp properties;
  check("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
  PluginDevice out;
  std::snprintf(out.name, sizeof(out.name), "%s", properties.name);
  out.major = properties.major;
  out.minor = properties.minor;
  out.multiprocessors = properties.multiProcessorCount;
  out.shared_bytes_per_block = static_cast<int32_t>(properties.sharedMemPerBlockOptin);
  out.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, device));
    return static_cast<int32_t>(value);
  };
  out.clock_khz = attribute(cudaDevAttrClockRate);
  out.memory_clock_khz = attribute(cudaDevAttrMemoryClockRate);
  out.memory_bus_bits = attribute(cudaDevAttrGlobalMemoryBusWidth);
  check("cudaDriverGetVersion", cudaDriverGetVersion(&out.driver_version));
  check("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&out.runtime_version));
  return out;
}

int32_t devices(PluginDevice* out, int32_t capacity, int32_t* count, PluginStatus* status) {
  *count = 0;
  return guard(status, [&] {
    int found = 0;
    check("cudaGetDeviceCount", cudaGetDeviceCount(&found));
    for (int32_t n = 0; n < std::min<int32_t>(found, capacity); ++n) out[n] = describe(n);
    *count = found;
  });
}

int32_t open(int32_t device, PluginEngine** engine, PluginStatus* status) {
  *engine = nullptr;
  return guard(status, [&] { *engine = new PluginEngine(device); });
}

void close(PluginEngine* engine) { delete engine; }

int32_t fill(PluginEngine* e, const PluginLayers* layers, int32_t wait, int64_t* expert_tokens, int32_t* shifts,
             PluginStatus* status) {
  return guard(status, [&] { e->engine.fill(*layers, wait != 0, expert_tokens, shifts); });
}

int32_t hold(PluginEngine* e, const uint8_t* const* held, const int32_t* const* start, FineTerms* terms,
             PluginStatus* status) {
  return guard(status, [&] { e->engine.hold(held, start, terms); });
}

int32_t begin_walks(PluginEngine* e, const PluginWalk* walks, int32_t count, PluginStatus* status) {
  return guard(status, [&] { e->engine.begin_walks(walks, count); });
}

int32_t walk(PluginEngine* e, int64_t until, PluginStatus* status) {
  return guard(status, [&] { e->engine.walk(until); });
}

int32_t best(PluginEngine* e, PluginFound* found, int32_t* placements, PluginStatus* status) {
  return guard(status, [&] { e->engine.best(found, placements); });
}

int32_t found(PluginEngine* e, PluginFound* out, int64_t capacity, int64_t* count, PluginStatus* status) {
  return guard(status, [&] { *count = e->engine.found(out, capacity); });
}

int32_t keep(PluginEngine* e, const int32_t* ids, const int32_t* counts, PluginStatus* status) {
  return guard(status, [&] { e->engine.keep(ids, counts); });
}

int32_t fetch(PluginEngine* e, const int32_t* ids, int32_t* placements, PluginStatus* status) {
  return guard(status, [&] { e->engine.fetch(ids, placements); });
}

int32_t prove(PluginEngine* e, const int64_t* prices, int32_t price_count, int32_t iterations, PluginStatus* status) {
  return guard(status, [&] { e->engine.prove(prices, price_count, iterations); });
}

int32_t bounds(PluginEngine* e, int64_t* out, PluginStatus* status) {
  return guard(status, [&] { e->engine.bounds(out); });
}

int32_t evaluate(PluginEngine* e, const int32_t* candidates, int64_t count, int64_t layer_stride, int64_t first_layer,
                 const LiveGpus* live, FineTerms* terms, int32_t* bad_slot, PluginStatus* status) {
  return guard(status,
               [&] { e->engine.evaluate(candidates, count, layer_stride, first_layer, *live, terms, bad_slot); });
}

int32_t score(PluginEngine* e, const EngineColumns* engines, const RequestColumns* requests, int64_t* pressure_us,
              int32_t* best, PluginStatus* status) {
  return guard(status, [&] { e->engine.score(*engines, *requests, pressure_us, best); });
}

double kernel_ms(PluginEngine* e) { return e->engine.kernel_ms(); }

const PluginApi kApi = {kPluginVersion, devices, open,  close, fill,  hold,   begin_walks, walk,  best,
                        found,          keep,    fetch, prove, bounds, evaluate, score,    kernel_ms};

}  // namespace
}  // namespace cuda
}  // namespace gimbal

#if defined(_WIN32)
#define GIMBAL_EXPORT extern "C" __declspec(dllexport)
#else
#define GIMBAL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

GIMBAL_EXPORT const gimbal::cuda::PluginApi* gimbal_cuda_plugin() { return &gimbal::cuda::kApi; }
