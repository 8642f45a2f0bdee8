/**
 * Models and hardware by name, with the figures from which topology() derives costs. Model figures are those of the
 * published configurations; hardware figures are nominal where they say so and otherwise fitted to measured kernels and
 * collectives. Anyone's own figures can take their place: topology() accepts an object wherever it accepts a name.
 */

import { oneOf } from './checks.js';

export type Precision = 'bf16' | 'fp8' | 'mxfp4';

/** The shape of a model, as far as MoE layers are concerned. */
export interface ModelShape {
  name: string;
  /** All transformer layers. */
  layers: number;
  /** Those with routed experts, the last ones of the model. */
  moeLayers: number;
  /** Routed experts per MoE layer. */
  experts: number;
  /** Routed experts per token. */
  topK: number;
  /** Hidden size H, elements. */
  hiddenSize: number;
  /** Intermediate size I of one expert, elements. */
  expertIntermediateSize: number;
  /** Of the experts' weights. */
  precision: Precision;
  /** Weights of one expert. */
  expertBytes: number;
}

/** What one GPU computes and how it reaches the others. */
export interface Hardware {
  name: string;
  /** Nominal memory bandwidth, TB/s. */
  memoryTBps: number;
  /** Nominal dense bf16 rate, TFLOP/s. */
  nominalTflops: number;
  /** Rate that grouped MoE kernels approach on large batches, TFLOP/s, by precision of the weights. */
  expertTflops: Record<Precision, number>;
  /** Rate at which MoE kernels move activations, TB/s, where that takes time of its own; 0: it is hidden. */
  activationTBps: number;
  /** All-to-all rate per GPU within a node, GB/s, by the number of GPUs it was measured on (rising). */
  intraNodeGBps: { gpus: number; GBps: number }[];
  /** Network rate per GPU between nodes, GB/s. */
  interNodeGBps: number;
}

/** By the names that users write; see `findModel` for how names are matched. */
export const models = {
  'Qwen3-30B-A3B': {
    name: 'Qwen3-30B-A3B',
    layers: 48,
    moeLayers: 48,
    experts: 128,
    topK: 8,
    hiddenSize: 2048,
    expertIntermediateSize: 768,
    precision: 'bf16',
    expertBytes: 9.44e6,
  },
  'Qwen3-235B-A22B': {
    name: 'Qwen3-235B-A22B',
    layers: 94,
    moeLayers: 94,
    experts: 128,
    topK: 8,
    hiddenSize: 4096,
    expertIntermediateSize: 1536,
    precision: 'bf16',
    expertBytes: 37.7e6,
  },
  'DeepSeek-V3': {
    name: 'DeepSeek-V3',
    layers: 61,
    moeLayers: 58,
    experts: 256,
    topK: 8,
    hiddenSize: 7168,
    expertIntermediateSize: 2048,
    precision: 'fp8',
    expertBytes: 44.0e6,
  },
  'Kimi-K2': {
    name: 'Kimi-K2',
    layers: 61,
    moeLayers: 60,
    experts: 384,
    topK: 8,
    hiddenSize: 7168,
    expertIntermediateSize: 2048,
    precision: 'fp8',
    expertBytes: 44.0e6,
  },
  'gpt-oss-120b': {
    name: 'gpt-oss-120b',
    layers: 36,
    moeLayers: 36,
    experts: 128,
    topK: 4,
    hiddenSize: 2880,
    expertIntermediateSize: 2880,
    precision: 'mxfp4',
    expertBytes: 13.2e6,
  },
  'Mixtral-8x7B': {
    name: 'Mixtral-8x7B',
    layers: 32,
    moeLayers: 32,
    experts: 8,
    topK: 2,
    hiddenSize: 4096,
    expertIntermediateSize: 14336,
    precision: 'bf16',
    expertBytes: 352e6,
  },
} as const satisfies Record<string, ModelShape>;

// mxfp4 weights are widened to bf16 before the matrix units see them; so are fp8 weights on A100, which has no fp8 units.
export const hardware = {
  A100: {
    name: 'A100',
    memoryTBps: 2.039,
    nominalTflops: 312,
    expertTflops: { bf16: 143, fp8: 143, mxfp4: 143 },
    activationTBps: 1.4,
    intraNodeGBps: [
      { gpus: 2, GBps: 131 },
      { gpus: 8, GBps: 162 },
    ],
    interNodeGBps: 25,
  },
  H100: {
    name: 'H100',
    memoryTBps: 3.35,
    nominalTflops: 989,
    expertTflops: { bf16: 440, fp8: 412, mxfp4: 440 },
    activationTBps: 0,
    intraNodeGBps: [
      { gpus: 2, GBps: 232 },
      { gpus: 8, GBps: 265 },
    ],
    interNodeGBps: 50,
  },
  // The H100's processor and links beside more memory: its compute and link figures are taken over, not measured.
  H200: {
    name: 'H200',
    memoryTBps: 4.8,
    nominalTflops: 989,
    expertTflops: { bf16: 440, fp8: 412, mxfp4: 440 },
    activationTBps: 0,
    intraNodeGBps: [
      { gpus: 2, GBps: 232 },
      { gpus: 8, GBps: 265 },
    ],
    interNodeGBps: 50,
  },
} as const satisfies Record<string, Hardware>;

export type ModelName = keyof typeof models;
export type HardwareName = keyof typeof hardware;

/** The model of that name, whatever its case; throws where there is none. */
export function findModel(name: string): ModelShape {
  return find('model', name, models);
}

/** The hardware of that name, whatever its case; throws where there is none. */
export function findHardware(name: string): Hardware {
  return find('hardware', name, hardware);
}

function find<T>(field: string, name: string, table: Record<string, T>): T {
  const names = Object.keys(table);
  const given = typeof name === 'string' ? name.trim().toLowerCase() : '';
  const key = names.find((known) => known.toLowerCase() === given);
  return table[oneOf(field, key ?? name, names)]!;
}
