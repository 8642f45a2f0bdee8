// Kernels to try the layer on: right ones, that no check may complain about, and wrong ones with one planted fault each. The
// bodies are in planted.inc, which is compiled several times.
#pragma once

#include <cuda_runtime.h>

#include <vector>

namespace hostlayer {
namespace test {

// A kernel that is right: runs it on blocks of so many threads, compares what it computes, and returns whether all is well.
struct RightKernel {
  const char* name;
  int multiple;  // of threads, that it is written for
  bool (*run)(int threads);
};

// A kernel with a fault.
struct WrongKernel {
  const char* name;
  const char* finding;  // how the report begins
  cudaError_t error;    // that the launch ends in
  const int* lines[2];  // of planted.inc, that the report names; known once it has run, 0 for none
  bool needs_instrumentation;
  cudaError_t (*run)();  // launches it once and synchronises
};

// One step of a random program for one thread: an access to so many bytes at an offset of shared and of global memory.
struct ProgramStep {
  int kind = 0;  // 0 nothing, 1 read, 2 write, 3 atomic operation
  int offset = 0;
  int bytes = 0;  // 1, 2, 4 or 8; 4 or 8 for atomic operations
};

// What all threads do after a step.
enum ProgramSync { kNoSync, kSyncHalfWarps, kSyncWarps, kSyncBlock, kSyncQuarterWarps };

// A program for each thread of each block: steps[step][block][thread], and a synchronisation after each step.
struct Program {
  int blocks = 0;
  int threads = 0;
  bool in_shared = false;  // else in global memory
  int bytes = 0;           // of that memory
  std::vector<int> syncs;
  std::vector<ProgramStep> steps;
};

struct PlantedKernels {
  const char* build;
  std::vector<RightKernel> right;
  std::vector<WrongKernel> wrong;
  // Lanes that only a shuffle comes between; whether that is right depends on whom one asks.
  cudaError_t (*ordered_by_a_shuffle)();
  cudaError_t (*run_program)(const Program& program);
  // Right. Three times so many synchronisations of the first two lanes between two barriers.
  cudaError_t (*synchronise_often)(int threads, int rounds);
  cudaError_t (*copy)(const int* in, int* out);  // of 64 numbers; sevens where there are none to copy
};

PlantedKernels planted_plain();       // not instrumented
PlantedKernels planted_checked_o1();  // with -fsanitize=thread -O1
PlantedKernels planted_checked_o2();  // with -fsanitize=thread -O2

}  // namespace test
}  // namespace hostlayer
