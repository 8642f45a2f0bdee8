/**
 * From what kernels execute to a modelled time. Each kernel takes the longest of five times, as if everything else overlapped
 * with it: instructions issued, passes over shared memory, bytes from the second-level cache, bytes from memory that cannot be
 * had for less, and waiting (chains of results and latencies, with as many blocks side by side as a multiprocessor holds).
 * Every number that comes out of here is modelled, none is measured.
 */
import {
  COPY_NS,
  type Device,
  ISSUED_PER_CLOCK,
  LAUNCH_NS,
  SECTOR_BYTES,
  WAVEFRONTS_PER_CLOCK,
} from './machines.js';

/** Instructions by kind, of a warp. */
export interface Costs {
  integer: number;
  multiply: number;
  memory: number;
  issue: number;
}

/** What the host execution layer counts of a kernel; native/test/hostlayer/README.md has the fields. */
export interface KernelCounts {
  kernel: string;
  launches: number;
  blocks: number;
  threads: number;
  /** Of a block, the most that a launch asked for. */
  sharedBytes: number;
  sharedWavefronts: number;
  globalSectors: number;
  cycles: number;
  mostCycles: number;
  executed: Costs;
  written: Costs;
  hottest: { instructions: number; executions: number; lanes: number; costs: Costs };
}

export interface ModelledKernel {
  kernel: string;
  blocks: number;
  blocksPerMultiprocessor: number;
  /** ms: each bound by itself. */
  issueMs: number;
  sharedMs: number;
  cacheMs: number;
  memoryMs: number;
  waitingMs: number;
  ms: number;
}

export interface KernelInputs {
  counts: KernelCounts;
  /** Instructions of the machine in the kernel, where known: the estimate that PTX gives is scaled to it. */
  instructions: number;
  blocksPerMultiprocessor: number;
  /** How many times the sample's blocks the whole has. */
  scale: number;
  /** Bytes of memory that the whole must read or write at least. */
  leastBytes: number;
}

export function modelKernel(
  device: Device,
  { counts, instructions, blocksPerMultiprocessor, scale, leastBytes }: KernelInputs,
): ModelledKernel {
  const { multiprocessors, clockGhz } = device;
  const blocks = counts.blocks * scale;
  const issued = counts.executed.issue * scale * (instructions / counts.written.issue);
  const ms = (clocks: number) => clocks / clockGhz / 1e6;
  const issueMs = ms(issued / multiprocessors / ISSUED_PER_CLOCK);
  const sharedMs = ms((counts.sharedWavefronts * scale) / multiprocessors / WAVEFRONTS_PER_CLOCK);
  const cacheMs = (counts.globalSectors * scale * SECTOR_BYTES) / device.cacheBandwidth / 1e6;
  const memoryMs = leastBytes / device.memoryBandwidth / 1e6;
  const waves = Math.max(1, blocks / (multiprocessors * blocksPerMultiprocessor));
  const waitingMs = ms((waves * counts.cycles) / counts.blocks);
  return {
    kernel: counts.kernel,
    blocks: Math.round(blocks),
    blocksPerMultiprocessor,
    issueMs,
    sharedMs,
    cacheMs,
    memoryMs,
    waitingMs,
    ms: Math.max(issueMs, sharedMs, cacheMs, memoryMs, waitingMs),
  };
}

/** What an evaluation's roofline depends on of a device. */
export type Throughput = Pick<Device, 'multiprocessors' | 'clockGhz' | 'memoryBandwidth'>;

/**
 * The instructions that nothing can be left out of, of a thread. For each slot: two exact quotients of 64 bits by multiplication
 * (four products, the sum of their parts, the remainder and its correction: 19 each), the product of tokens and cost (3), two
 * additions of 64 bits (4), an id, its replicas, tokens and communication read (4), an id checked (1), kept (1) and counted (1),
 * a loop's turn and addresses (2). For each expert: cleared, read, checked (3).
 */
const LEAST_PER_SLOT = 2 * 19 + 3 + 4 + 4 + 3 + 2;
const LEAST_PER_EXPERT = 3;
/** A candidate layer's terms and its verdict. */
const RESULT_BYTES = 36;

/** Less than the longer of these times, evaluating `count` candidate layers cannot take: memory's, and that of instructions. */
export function evaluationRoofline(
  { multiprocessors, clockGhz, memoryBandwidth }: Throughput,
  { experts, slots, count }: { experts: number; slots: number; count: number },
): { bytes: number; memoryMs: number; issueMs: number } {
  const bytes = count * (slots * 4 + RESULT_BYTES);
  const issued = (count * (slots * LEAST_PER_SLOT + experts * LEAST_PER_EXPERT)) / 32;
  return {
    bytes,
    memoryMs: bytes / memoryBandwidth / 1e6,
    issueMs: issued / multiprocessors / ISSUED_PER_CLOCK / clockGhz / 1e6,
  };
}

/** Kernels one after another on a stream, `beside` on another one meanwhile, and the copies before and after. */
export function modelPlan(
  device: Device,
  kernels: ModelledKernel[],
  beside: string[],
  bytesIn: number,
  bytesOut: number,
): number {
  const sum = (of: ModelledKernel[]) => of.reduce((total, kernel) => total + kernel.ms + LAUNCH_NS / 1e6, 0);
  const side = sum(kernels.filter(({ kernel }) => beside.includes(kernel)));
  const main = sum(kernels.filter(({ kernel }) => !beside.includes(kernel)));
  const copies = (2 * COPY_NS + (bytesIn + bytesOut) / device.hostBandwidth) / 1e6;
  return Math.max(main, side) + copies;
}
