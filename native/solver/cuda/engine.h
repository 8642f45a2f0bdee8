// Work on one device: the layers of a batch, their tables, walks and placements; and scores of requests. The plug-in's functions
// are this class behind a C interface.
#pragma once

#include <vector>

#include "device_data.h"
#include "kernel_clock.h"
#include "memory.h"
#include "plugin.h"
#include "stage.h"

namespace gimbal {
namespace cuda {

// What the device can give a block.
struct DeviceLimits {
  int32_t device = 0;
  int32_t shared_bytes_per_block = 0;  // with opt-in
  int32_t shared_bytes_per_multiprocessor = 0;
  int32_t multiprocessors = 0;
};

// How candidates are evaluated, a warp each.
struct EvaluateLaunch {
  bool table_fits = false;    // the layer's table lies in shared memory,
  bool scratch_fits = false;  // and what a warp needs of its own
  int32_t threads = 0;
  size_t shared_bytes = 0;
  int32_t blocks_per_multiprocessor = 1;
};

class Engine {
 public:
  explicit Engine(int32_t device);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // See PluginApi for the arrays.
  void fill(const PluginLayers& layers, bool wait, int64_t* expert_tokens, int32_t* shifts);
  void hold(const uint8_t* const* held, const int32_t* const* start, FineTerms* terms);
  void begin_walks(const PluginWalk* walks, int32_t count);
  void walk(int64_t until);
  void best(PluginFound* found, int32_t* placements);
  int64_t found(PluginFound* found, int64_t capacity);
  void keep(const int32_t* ids, const int32_t* counts);
  void fetch(const int32_t* ids, int32_t* placements);
  void prove(const int64_t* prices, int32_t price_count, int32_t iterations);
  void bounds(int64_t* bounds);
  void evaluate(const int32_t* candidates, int64_t count, int64_t layer_stride, int64_t first_layer, const LiveGpus& live,
                FineTerms* terms, int32_t* bad_slot);
  void score(const EngineColumns& engines, const RequestColumns& requests, int64_t* pressure_us, int32_t* best);
  double kernel_ms() const { return clock_.ms(); }

 private:
  // A placement that may be asked for by its id.
  struct Placement {
    int32_t id = 0;
    DevicePlacement at;
  };

  void use_device() const;
  void wait();
  void wait_for_bounds();
  void forget_layers();
  void stage_inputs(const PluginLayers& layers);
  void enqueue_tables();
  WalkKind walk_kind() const;
  void launch_walks(int64_t until);
  EvaluateLaunch evaluate_launch(size_t scratch_bytes) const;
  void price_all();
  void lay_out_found();
  void pack_placements();
  void copy_placements(const std::vector<DeviceCopy>& copies);
  const DevicePlacement& placement(int32_t layer, int32_t id) const;
  size_t cells() const { return static_cast<size_t>(shape_.gpus) * static_cast<size_t>(shape_.slots); }

  template <class Kernel>
  int32_t threads(Kernel kernel, int32_t usual) const;
  template <class Kernel, class... Arguments>
  void run(const char* name, Kernel kernel, dim3 grid, int32_t usual_threads, size_t shared_bytes, cudaStream_t stream,
           Arguments... arguments) const;
  template <class Enqueue>
  void run_timed(Stage* stage, const Signature& signature, Enqueue enqueue);

  const int32_t forced_threads_;  // by the environment; 0: none
  DeviceLimits limits_;
  Stream main_stream_, side_stream_;
  cudaStream_t stream_ = nullptr;        // main_stream_'s,
  cudaStream_t bound_stream_ = nullptr;  // and side_stream_'s
  Event tables_done_;
  KernelClock clock_;  // of stream_

  // The layers at hand. Only the numbers of shape_ mean anything here.
  FineLayer shape_;
  int32_t count_ = 0;
  bool has_incumbent_ = false;
  LayerView view_;  // its numbers, as far as layouts and the kind of kernel depend on them
  DeviceBuffer inputs_, tables_, held_;
  PinnedBuffer staged_inputs_, staged_held_, staged_tokens_;
  DeviceLayer* layers_ = nullptr;  // in inputs_
  size_t inputs_bytes_ = 0;
  Stage fill_stage_;

  // Their walks.
  std::vector<PluginWalk> walks_;
  DeviceBuffer walk_data_, kept_, work_;
  PinnedBuffer staged_walks_;
  DeviceWalk* device_walks_ = nullptr;
  WalkProgress* progress_ = nullptr;
  Stage walk_stage_;

  // The placements that they found, in the order of layers, walks and frontiers.
  std::vector<DevicePlacement> found_;
  std::vector<int32_t> first_found_;  // [layers + 1]
  DeviceBuffer found_data_, price_scratch_;
  PinnedBuffer staged_found_, results_;
  DevicePlacement* device_found_ = nullptr;
  FineTerms* device_terms_ = nullptr;
  DeviceChoice* device_choices_ = nullptr;
  int32_t* device_chosen_ = nullptr;
  Stage best_stage_;

  // The placements that have ids, by layer and rising id, in one of two pools that take turns.
  std::vector<std::vector<Placement>> kept_placements_;
  std::vector<int32_t> next_id_;  // [layers]
  DeviceBuffer pools_[2];
  int32_t pool_ = 0;
  DeviceBuffer copies_;
  PinnedBuffer staged_copies_;

  // Bounds on their way.
  DeviceBuffer bound_data_;
  PinnedBuffer staged_prices_, staged_bounds_;
  int32_t price_count_ = 0;
  Stage bound_stage_;

  // Candidates, in two halves that take turns.
  DeviceBuffer candidates_[2];
  PinnedBuffer staged_candidates_[2];
  DeviceBuffer evaluate_scratch_;
  Event half_done_[2];

  // Requests to be scored, and their scores.
  DeviceBuffer score_data_;
  PinnedBuffer staged_scores_;
};

}  // namespace cuda
}  // namespace gimbal
