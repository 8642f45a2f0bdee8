// The border between the addon and the CUDA plug-in: a C interface, so that one addon runs with and without a driver. The
// addon opens the plug-in when a GPU is first asked for; no exception and no allocation crosses.
//
// Every function returns 0, or -1 and says why in `status`. An engine serves one call at a time.
#pragma once

#include <cstdint>

#include "../../spec/score_columns.h"
#include "../../spec/types.h"

namespace gimbal {
namespace cuda {

// Rises with every change of what follows; an addon and a plug-in of different versions do not work together.
constexpr uint32_t kPluginVersion = 3;
constexpr const char* kPluginEntry = "gimbal_cuda_plugin";

struct PluginStatus {
  int32_t error = 0;          // the cudaError_t; 0: not the runtime's
  int32_t out_of_memory = 0;  // 1: of the device; a smaller batch may do
  int32_t device_lost = 0;    // 1: the process cannot use the device any more
  char call[64] = "";         // what was being done, e.g. "cudaMalloc"
  char name[64] = "";         // e.g. "cudaErrorMemoryAllocation"
  char text[192] = "";        // in words
};

struct PluginDevice {
  char name[256] = "";
  int32_t major = 0;
  int32_t minor = 0;
  int32_t multiprocessors = 0;
  int32_t shared_bytes_per_block = 0;  // with opt-in
  int64_t memory_bytes = 0;
  int32_t clock_khz = 0;
  int32_t memory_clock_khz = 0;
  int32_t memory_bus_bits = 0;
  int32_t driver_version = 0;   // 1000 * major + 10 * minor
  int32_t runtime_version = 0;
};

// Layers of one problem; host pointers, read before the call returns.
struct PluginLayers {
  int32_t count = 0;
  spec::FineLayer shape;              // tokens [count][sources][experts], compute_cost [gpus], comm_cost [sources][gpus]
  spec::FineWeights weights;
  spec::CostPattern pattern;
  int32_t exceptions = 0;             // of the pattern
  int32_t uniform_compute = 0;
  int32_t allow_duplicates = 0;
};

struct PluginWalk {
  spec::WalkPlan plan;
  int32_t layer = 0;
  int32_t start = -1;  // the id of a placement; -1: construct
  int32_t frontier = 0;
};

struct PluginFound {
  int32_t layer = 0;
  int32_t id = 0;
  spec::FineTerms terms;
};

struct PluginEngine;

struct PluginApi {
  uint32_t version;
  // Fills up to `capacity` devices, and says how many there are.
  int32_t (*devices)(PluginDevice* devices, int32_t capacity, int32_t* count, PluginStatus* status);
  int32_t (*open)(int32_t device, PluginEngine** engine, PluginStatus* status);
  void (*close)(PluginEngine* engine);

  // Tables. Returns at once unless `wait`: then expert_tokens [count][experts] and shifts [count] are there.
  int32_t (*fill)(PluginEngine* engine, const PluginLayers* layers, int32_t wait, int64_t* expert_tokens, int32_t* shifts,
                  PluginStatus* status);
  // held [count] of [experts][stride], start [count] of [gpus][slots]; terms [count] of the starts.
  int32_t (*hold)(PluginEngine* engine, const uint8_t* const* held, const int32_t* const* start, spec::FineTerms* terms,
                  PluginStatus* status);
  // Walks, ordered by layer. A layer's start ids are those of found() and kept by keep(), 0 the incumbent's start.
  int32_t (*begin_walks)(PluginEngine* engine, const PluginWalk* walks, int32_t count, PluginStatus* status);
  // Every walk on to step `until`; returns when they are there.
  int32_t (*walk)(PluginEngine* engine, int64_t until, PluginStatus* status);
  // The best placement of each layer: found [count], placements [count][gpus * slots].
  int32_t (*best)(PluginEngine* engine, PluginFound* found, int32_t* placements, PluginStatus* status);
  // All placements that the walks keep, by layer and id; `capacity` of them fit into found.
  int32_t (*found)(PluginEngine* engine, PluginFound* found, int64_t capacity, int64_t* count, PluginStatus* status);
  // ids [layers][...], rising; the lengths in counts [layers].
  int32_t (*keep)(PluginEngine* engine, const int32_t* ids, const int32_t* counts, PluginStatus* status);
  // One kept placement of each layer, none where its id is -1: placements [count][gpus * slots].
  int32_t (*fetch)(PluginEngine* engine, const int32_t* ids, int32_t* placements, PluginStatus* status);
  // Returns at once; bounds() waits. bounds [prices][layers].
  int32_t (*prove)(PluginEngine* engine, const int64_t* prices, int32_t price_count, int32_t iterations, PluginStatus* status);
  int32_t (*bounds)(PluginEngine* engine, int64_t* bounds, PluginStatus* status);
  // candidates [count][layer_stride][all_gpus * slots], of which layers [first_layer, first_layer + the filled ones); terms
  // and bad_slot [count][filled layers].
  int32_t (*evaluate)(PluginEngine* engine, const int32_t* candidates, int64_t count, int64_t layer_stride,
                      int64_t first_layer, const spec::LiveGpus* live, spec::FineTerms* terms, int32_t* bad_slot,
                      PluginStatus* status);
  // Scores of requests on engines, whatever layers there are: pressure_us [requests][engines], best [requests]. There is one of
  // each at least. Host pointers, read before the call returns.
  int32_t (*score)(PluginEngine* engine, const spec::EngineColumns* engines, const spec::RequestColumns* requests,
                   int64_t* pressure_us, int32_t* best, PluginStatus* status);
  // How long kernels took since fill() was called, as far as they were waited for and without those of the bounds; ms.
  double (*kernel_ms)(PluginEngine* engine);
};

using PluginEntry = const PluginApi* (*)();

}  // namespace cuda
}  // namespace gimbal
