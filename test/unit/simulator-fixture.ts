/** What the simulator's tests share: a small model on a small machine whose times can be worked out by hand. */

import { Random } from '../../lib/random.js';
import type { ServedModel, ServingHardware } from '../../lib/simulator/hardware.js';
import type { SimulatedRequest, SimulationOptions } from '../../lib/simulator/types.js';

export const MODEL: ServedModel = {
  name: 'small',
  layers: 2,
  moeLayers: 2,
  experts: 16,
  topK: 2,
  hiddenSize: 1000,
  expertIntermediateSize: 500,
  precision: 'bf16',
  expertBytes: 3e6,
  queryHeads: 8,
  keyValueHeads: 2,
  headSize: 100,
  latentFlopsPerToken: 0,
  keyValueBytesPerToken: 1600,
  vocabulary: 10_000,
  attention: [
    { rows: 1000, columns: 1200, split: true },
    { rows: 800, columns: 1000, split: true },
  ],
  shared: [],
  dense: [],
};

const link = { micros: 10, GBps: 100 };

export const HARDWARE: ServingHardware = {
  name: 'small',
  memoryTBps: 1,
  nominalTflops: 100,
  expertTflops: { bf16: 100, fp8: 100, mxfp4: 100 },
  activationTBps: 0,
  intraNodeGBps: [{ gpus: 8, GBps: 100 }],
  interNodeGBps: 10,
  memoryGB: 16,
  attention: { decodeMicros: 10, sequenceMicros: 1, decodeTBps: 1, prefillMicros: 20, prefillTflops: 100 },
  gemm: { micros: 5, TBps: 1, tflops: 1, power: 1 },
  moe: { micros: 0, TBps: 1, tflops: 100, power: 1, padding: 0, activationTBps: 0 },
  links: [{ gpus: 8, allToAll: link, allGather: link, reduceScatter: link }],
  interNodeMicros: 30,
  layerMicros: 1000,
  stepMicros: 1000,
};

export const BASE: Omit<SimulationOptions, 'trace'> = {
  model: MODEL,
  hardware: HARDWARE,
  dp: 2,
  engine: { maxNumSeqs: 16, maxNumBatchedTokens: 256, kvBlocks: 800 },
  seed: 3,
};

export interface TraceSettings {
  count: number;
  /** Mean gap of Poisson arrivals. */
  gapMs: number;
  seed: number;
  /** Prompts share the first of their blocks by topic. */
  prefixes?: boolean;
}

export function randomTrace({ count, gapMs, seed, prefixes = false }: TraceSettings): SimulatedRequest[] {
  const random = new Random(seed);
  let arrivalMs = 0;
  return Array.from({ length: count }, (_, n) => {
    arrivalMs -= Math.log(1 - random.uniform()) * gapMs;
    const inputTokens = random.between(1, 600);
    const outputTokens = random.between(1, 120);
    if (!prefixes) return { arrivalMs, inputTokens, outputTokens };
    const family = random.below(4);
    const blocks = Math.max(1, Math.ceil(inputTokens / 128));
    const shared = random.between(0, blocks);
    const prefixHashes = Array.from({ length: blocks }, (_block, b) =>
      b < shared ? family * 100 + b : 1000 + n * 10 + b,
    );
    return { arrivalMs, inputTokens, outputTokens, prefixHashes };
  });
}
