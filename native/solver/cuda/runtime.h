// The CUDA runtime, and the one declaration that no header can hide: a block's dynamic shared memory. Another header of the
// same name, found first, may put something else in CUDA's place: the tests run these sources on a CPU that way.
#pragma once

#include <cuda_runtime.h>

#if !defined(GIMBAL_DYNAMIC_SHARED)
#define GIMBAL_DYNAMIC_SHARED(name) extern __shared__ __align__(64) unsigned char name[]
#endif
