// The CPU kernels' bodies over a Team that evaluates in a random order: proof that the spec depends on no order.
#pragma once

#include "../solver/cpu/kernels.h"

namespace gimbal {
const CpuKernels& kernels_shuffled();
}  // namespace gimbal
