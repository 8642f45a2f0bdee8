/**
 * The GPU architectures that the plug-in holds code for, and the two devices that times are modelled for. Limits are those of
 * NVIDIA's tables ("Technical Specifications per Compute Capability" of the CUDA programming guide); a device's figures are its
 * data sheet's unless marked as assumed.
 */

export interface Architecture {
  /** As nvcc names it. */
  name: string;
  major: number;
  minor: number;
  /** Resident at once on a multiprocessor. */
  maxWarps: number;
  maxBlocks: number;
  sharedBytesPerMultiprocessor: number;
  /** With opt-in. */
  sharedBytesPerBlock: number;
  /** Kept by the driver of each block. */
  reservedSharedBytes: number;
}

const KIB = 1024;

function architecture(
  major: number,
  minor: number,
  maxWarps: number,
  maxBlocks: number,
  sharedKib: number,
): Architecture {
  const reservedSharedBytes = major >= 8 ? KIB : 0;
  return {
    name: `sm_${major}${minor}`,
    major,
    minor,
    maxWarps,
    maxBlocks,
    sharedBytesPerMultiprocessor: sharedKib * KIB,
    sharedBytesPerBlock: sharedKib * KIB - reservedSharedBytes,
    reservedSharedBytes,
  };
}

/** The same as GIMBAL_CUDA_ARCHITECTURES in CMakeLists.txt; a test compares them. */
export const ARCHITECTURES: readonly Architecture[] = [
  architecture(7, 5, 32, 16, 64),
  architecture(8, 0, 64, 32, 164),
  architecture(8, 6, 48, 16, 100),
  architecture(8, 9, 48, 24, 100),
  architecture(9, 0, 64, 32, 228),
  architecture(10, 0, 64, 32, 228),
  architecture(12, 0, 48, 24, 100),
];

export interface Device {
  name: string;
  architecture: Architecture;
  multiprocessors: number;
  /** GHz; boost, assumed to hold. */
  clockGhz: number;
  /** Bytes per ns. */
  memoryBandwidth: number;
  /** Bytes per ns from the second-level cache; assumed, from published measurements. */
  cacheBandwidth: number;
  /** Bytes per ns between host and device, one way; assumed. */
  hostBandwidth: number;
}

const find = (name: string) => ARCHITECTURES.find((a) => a.name === name)!;

export const DEVICES: readonly Device[] = [
  {
    name: 'A100 SXM 80 GB',
    architecture: find('sm_80'),
    multiprocessors: 108,
    clockGhz: 1.41,
    memoryBandwidth: 2039,
    cacheBandwidth: 4000,
    hostBandwidth: 24,
  },
  {
    name: 'H100 SXM',
    architecture: find('sm_90'),
    multiprocessors: 132,
    clockGhz: 1.755,
    memoryBandwidth: 3350,
    cacheBandwidth: 5500,
    hostBandwidth: 50,
  },
];

/** Per multiprocessor and clock, on all of them: instructions issued, and passes over the banks of shared memory. */
export const ISSUED_PER_CLOCK = 4;
export const WAVEFRONTS_PER_CLOCK = 1;
export const SECTOR_BYTES = 32;
/** Assumed: between the end of one kernel and the start of the next on a stream, and for a copy of any size. */
export const LAUNCH_NS = 2000;
export const COPY_NS = 5000;
