// The toolkit's own occupancy calculator as a filter. A question a line: compute capability (two numbers), threads and bytes
// of shared memory per multiprocessor, bytes per block with opt-in, bytes that the driver keeps of each block; then registers,
// threads and bytes of dynamic shared memory of a kernel. The answer is the blocks that a multiprocessor holds.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  cudaOccDeviceProp device;
  unsigned long shared_sm = 0, shared_block = 0, reserved = 0, dynamic = 0;
  int registers = 0, threads = 0;
  while (std::scanf("%d %d %d %lu %lu %lu %d %d %lu", &device.computeMajor, &device.computeMinor,
                    &device.maxThreadsPerMultiprocessor, &shared_sm, &shared_block, &reserved, &registers, &threads,
                    &dynamic) == 9) {
    device.maxThreadsPerBlock = 1024;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_sm;
    device.sharedMemPerBlockOptin = shared_block;
    device.reservedSharedMemPerBlock = reserved;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared_block;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic);
    std::printf("%d\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
