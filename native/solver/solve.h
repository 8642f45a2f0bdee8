// The solver's front door: all control flow of a plan (quantise, construct, search, share the budget, audit, certify).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../model/backends.h"
#include "../model/plan.h"
#include "../model/problem.h"

namespace gimbal {

enum class BackendChoice : uint8_t { kAuto, kCpu, kCuda };
enum class Effort : uint8_t { kFast, kBalanced, kThorough };

struct SolveOptions {
  BackendChoice backend = BackendChoice::kAuto;
  int32_t device = 0;  // of CUDA
  Effort effort = Effort::kBalanced;
  int32_t walkers = 0;  // per layer; 0: the effort's number
  int32_t rounds = 0;   // per walker; 0: the effort's number
  uint64_t seed = 0;
  int32_t threads = 0;         // 0: as many as the machine has; changes the time, never the plan
  double time_limit_ms = 0;    // 0: none; stops between rounds only
  const std::atomic<bool>* cancel = nullptr;  // polled; when set the solver throws Error(kCancelled)
  // Called from a solver thread, at most once per finished unit of work: done and total in the same unit.
  std::function<void(int64_t done, int64_t total)> progress;
};

std::vector<BackendInfo> list_backends();

// Buffers and threads kept between plans. One Workspace serves one plan at a time; use several for concurrent plans.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Throws gimbal::Error. Never returns a plan that the audit has not recomputed from scratch.
Plan plan_placement(const ProblemInput& problem, const SolveOptions& options, Workspace& workspace);

// candidates: [count][layers][gpus * slots_per_gpu]. Throws gimbal::Error that names the first bad slot.
Evaluation evaluate_placements(const ProblemInput& problem, const int32_t* candidates, int64_t count,
                               const SolveOptions& options, Workspace& workspace);

}  // namespace gimbal
