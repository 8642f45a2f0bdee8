// Kernels as the CUDA compiler made them: PTX, executed on the CPU in place of the sources. One warp at a time, its lanes in
// lock step where they agree; results are those of the instructions, so a plug-in that passes its tests this way has been
// translated rightly as far as PTX. Meanwhile everything is counted: a model of time on a real device starts from these
// counts, not from guesses about loops. README.md says what is counted, and what the cycles mean.
#pragma once

#include <memory>
#include <string>

#include "execution.h"

namespace hostlayer {

class PtxProgram {
 public:
  // Throws std::runtime_error that names the line for what the layer does not know; all of a program is checked at once.
  explicit PtxProgram(const std::string& text);
  ~PtxProgram();
  PtxProgram(const PtxProgram&) = delete;
  PtxProgram& operator=(const PtxProgram&) = delete;

  // Runs a whole grid of the kernel of this name, as c++filt writes it without its parameters. Stops at the first finding
  // (an access out of bounds, a hang, a name that is not there), whose error it returns.
  cudaError_t run(const std::string& kernel, const Launch& launch);

  // Threads that a block of this kernel may have at the most, as it was compiled; 1024 where it is not there.
  unsigned most_threads(const std::string& kernel) const;

  // What was counted since the start, as JSON: an array with an object for each kernel that was run.
  std::string report() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hostlayer
