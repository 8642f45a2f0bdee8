// The CPU kernels for x86-64-v4.
#include <atomic>
#include <cstdint>

#include "kernels.h"

#if defined(GIMBAL_X86_KERNELS)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#endif

#define GIMBAL_ISA isa_v4
#define GIMBAL_ISA_NAME "x86-64-v4"
#include "kernels.inc"

namespace gimbal {
const CpuKernels& kernels_v4() { return isa_v4::kKernels; }
}  // namespace gimbal

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
