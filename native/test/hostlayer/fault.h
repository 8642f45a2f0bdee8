// What a check has found, first as numbers (gathered on the stack of the thread at fault), then as text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "include/cuda_runtime.h"

namespace hostlayer {

enum class FaultKind {
  kNone,
  kDivergentBarrier,     // threads of a block at different __syncthreads
  kReturnedBeforeBarrier,
  kForeignMask,          // a lane that its own mask does not name, or one that has returned
  kDivergentCollective,  // lanes of one mask in different warp primitives
  kHang,
  kRace,
  kOutOfBounds,
  kUninitialised,
  kMisaligned,
  kOtherThreadsLocal,    // the stack of another thread
  kHostMemory,           // of the calling thread's stack or heap
  kDeviceMemoryOnHost,
  kTrap,
};

enum class Access : uint32_t { kRead = 0, kWrite = 1, kAtomic = 2 };

// One side of a finding about memory.
struct AccessSide {
  Access access = Access::kRead;
  int thread = -1;     // in the block; -1: host code
  int64_t block = -1;  // in the grid
  const void* pc = nullptr;
};

struct Fault {
  FaultKind kind = FaultKind::kNone;
  uintptr_t address = 0;
  size_t bytes = 0;
  AccessSide mine;
  AccessSide other;
  device::Site site{nullptr, 0};        // of this thread's synchronising call
  device::Site other_site{nullptr, 0};
  uint32_t mask = 0;
  uint32_t other_mask = 0;
};

cudaError_t error_of(FaultKind kind);

// Where a return address points to, as "function at file:line" where that can be found out.
std::string place(const void* pc);
std::string place(device::Site site);
std::string name_of_function(const void* address);
// "void f<(Kind)0>(int)" without its parameters.
std::string without_parameters(const std::string& function);

}  // namespace hostlayer
