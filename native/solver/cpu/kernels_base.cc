// The CPU kernels for the compiler's default instruction set.
#include <atomic>
#include <cstdint>

#include "kernels.h"


#define GIMBAL_ISA isa_base
#define GIMBAL_ISA_NAME "portable"
#include "kernels.inc"

namespace gimbal {
const CpuKernels& kernels_base() { return isa_base::kKernels; }
}  // namespace gimbal

