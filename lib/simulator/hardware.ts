/**
 * What a step costs on a machine and what a model asks of it: the constants of the step-time model, by name. Fits come from
 * published kernel timings; where a machine was not measured, its figures are the A100's scaled by nominal rates, and the
 * comment says so. docs/SIMULATION.md lists every constant with its source.
 */
import { oneOf } from '../checks.js';
import { type Hardware, hardware, type ModelShape, models } from '../presets.js';

/** One matrix product of a layer: weights of `rows` × `columns`, one row of activations a token. */
export interface Gemm {
  rows: number;
  columns: number;
  /** Split over the GPUs of a tensor-parallel rank. */
  split: boolean;
}

/** A model as it is served: what attention, dense parts and the KV cache need beyond the MoE shape. */
export interface ServedModel extends ModelShape {
  queryHeads: number;
  /** 0 for latent attention, whose cache is not split by tensor parallelism. */
  keyValueHeads: number;
  /** Mean of the query–key and the value width of a head, elements. */
  headSize: number;
  /** Operations of decode attention for each cached token and layer, where they can be what is short: latent attention. */
  latentFlopsPerToken: number;
  /** All layers. */
  keyValueBytesPerToken: number;
  vocabulary: number;
  /** Every layer has these, but for experts. */
  attention: Gemm[];
  /** In MoE layers, beside the routed experts. */
  shared: Gemm[];
  /** In layers without experts. */
  dense: Gemm[];
}

/** A machine as the step-time model sees it. Rates are what kernels reach, not what data sheets say. */
export interface ServingHardware extends Hardware {
  memoryGB: number;
  attention: {
    decodeMicros: number;
    sequenceMicros: number;
    decodeTBps: number;
    prefillMicros: number;
    prefillTflops: number;
  };
  gemm: { micros: number; TBps: number; tflops: number; power: number };
  moe: {
    micros: number;
    TBps: number;
    tflops: number;
    power: number;
    /** Share of a block of tokens that an expert pads by. */
    padding: number;
    /** Rate of moving activations, 0: hidden. */
    activationTBps: number;
  };
  /** Collectives by the number of GPUs they were measured on (rising): latency µs and GB/s a GPU. */
  links: {
    gpus: number;
    allToAll: Link;
    allGather: Link;
    reduceScatter: Link;
  }[];
  /** Added to each collective that crosses nodes. */
  interNodeMicros: number;
  /** Norms, rotary embedding, the router and its choice: what a layer takes beside attention, products and experts. */
  layerMicros: number;
  /** Scheduling, sampling, and whatever else happens once a step. */
  stepMicros: number;
}

export interface Link {
  micros: number;
  GBps: number;
}

const square = (rows: number, columns: number, split = true): Gemm => ({ rows, columns, split });

/** Grouped-query attention: one product for queries, keys and values, one for the output. */
function grouped(hidden: number, queryHeads: number, keyValueHeads: number, headSize: number): Gemm[] {
  return [square(hidden, (queryHeads + 2 * keyValueHeads) * headSize), square(queryHeads * headSize, hidden)];
}

/** Latent attention of the DeepSeek family: queries of rank 1536, a cache of 512 + 64 elements a token. */
function latent(hidden: number, heads: number): Gemm[] {
  return [
    square(hidden, 1536, false),
    square(1536, heads * 192),
    square(hidden, 576, false),
    square(512, heads * 256),
    square(heads * 128, hidden),
  ];
}

const latentFlops = (heads: number): number => 2 * heads * (576 + 512);
const gated = (hidden: number, intermediate: number): Gemm[] => [
  square(hidden, 2 * intermediate),
  square(intermediate, hidden),
];
const router = (hidden: number, experts: number): Gemm => square(hidden, experts, false);

export const servedModels = {
  'Qwen3-30B-A3B': {
    ...models['Qwen3-30B-A3B'],
    queryHeads: 32,
    keyValueHeads: 4,
    headSize: 128,
    latentFlopsPerToken: 0,
    keyValueBytesPerToken: 98_304,
    vocabulary: 151_936,
    attention: grouped(2048, 32, 4, 128),
    shared: [router(2048, 128)],
    dense: [],
  },
  'Qwen3-235B-A22B': {
    ...models['Qwen3-235B-A22B'],
    queryHeads: 64,
    keyValueHeads: 4,
    headSize: 128,
    latentFlopsPerToken: 0,
    keyValueBytesPerToken: 192_512,
    vocabulary: 151_936,
    attention: grouped(4096, 64, 4, 128),
    shared: [router(4096, 128)],
    dense: [],
  },
  'DeepSeek-V3': {
    ...models['DeepSeek-V3'],
    queryHeads: 128,
    keyValueHeads: 0,
    headSize: 160,
    latentFlopsPerToken: latentFlops(128),
    keyValueBytesPerToken: 70_272,
    vocabulary: 129_280,
    attention: latent(7168, 128),
    shared: [router(7168, 256), ...gated(7168, 2048)],
    dense: gated(7168, 18_432),
  },
  'Kimi-K2': {
    ...models['Kimi-K2'],
    queryHeads: 64,
    keyValueHeads: 0,
    headSize: 160,
    latentFlopsPerToken: latentFlops(64),
    keyValueBytesPerToken: 70_272,
    vocabulary: 163_840,
    attention: latent(7168, 64),
    shared: [router(7168, 384), ...gated(7168, 2048)],
    dense: gated(7168, 18_432),
  },
  'gpt-oss-120b': {
    ...models['gpt-oss-120b'],
    queryHeads: 64,
    keyValueHeads: 8,
    headSize: 64,
    latentFlopsPerToken: 0,
    keyValueBytesPerToken: 73_728,
    vocabulary: 201_088,
    attention: grouped(2880, 64, 8, 64),
    shared: [router(2880, 128)],
    dense: [],
  },
  'Mixtral-8x7B': {
    ...models['Mixtral-8x7B'],
    queryHeads: 32,
    keyValueHeads: 8,
    headSize: 128,
    latentFlopsPerToken: 0,
    keyValueBytesPerToken: 131_072,
    vocabulary: 32_000,
    attention: grouped(4096, 32, 8, 128),
    shared: [router(4096, 8)],
    dense: [],
  },
} as const satisfies Record<string, ServedModel>;

/** Fitted to the A100's attention and dense kernels. */
const A100_ATTENTION = {
  decodeMicros: 17.8,
  sequenceMicros: 0.141,
  decodeTBps: 1.53,
  prefillMicros: 10.2,
  prefillTflops: 182.5,
};
const A100_GEMM = { micros: 5.5, TBps: 1.543, tflops: 244, power: 1.58 };
const LAYER_MICROS = 30;
const STEP_MICROS = 1500;

/** Another machine's attention and dense kernels, where only its experts were measured: by the ratio of nominal rates. */
function scaled(TBps: number, tflops: number): Pick<ServingHardware, 'attention' | 'gemm'> {
  const memory = TBps / hardware.A100.memoryTBps;
  const compute = tflops / hardware.A100.nominalTflops;
  return {
    attention: {
      ...A100_ATTENTION,
      decodeTBps: A100_ATTENTION.decodeTBps * memory,
      prefillTflops: A100_ATTENTION.prefillTflops * compute,
    },
    gemm: { ...A100_GEMM, TBps: A100_GEMM.TBps * memory, tflops: A100_GEMM.tflops * compute },
  };
}

const link = (micros: number, GBps: number): Link => ({ micros, GBps });
const H100_LINKS = [
  { gpus: 2, allToAll: link(9.1, 232), allGather: link(6.3, 193), reduceScatter: link(6.2, 194) },
  { gpus: 8, allToAll: link(9.2, 265), allGather: link(12.2, 285), reduceScatter: link(11.2, 293) },
];
const H100_MOE = { micros: 0, TBps: 2.85, tflops: 440, power: 1.28, padding: 0, activationTBps: 0 };
/** From DeepEP's published latencies of 16 ranks against 8. */
const INTER_NODE_MICROS = 25;

export const servingHardware = {
  A100: {
    ...hardware.A100,
    memoryGB: 80,
    attention: A100_ATTENTION,
    gemm: A100_GEMM,
    moe: { micros: 0.6, TBps: 1.816, tflops: 143, power: 1.89, padding: 2.13, activationTBps: 1.4 },
    links: [
      { gpus: 2, allToAll: link(13.0, 131), allGather: link(11.4, 114), reduceScatter: link(11.2, 131) },
      { gpus: 8, allToAll: link(15.4, 162), allGather: link(17.5, 162), reduceScatter: link(16.5, 167) },
    ],
    interNodeMicros: INTER_NODE_MICROS,
    layerMicros: LAYER_MICROS,
    stepMicros: STEP_MICROS,
  },
  H100: {
    ...hardware.H100,
    memoryGB: 80,
    ...scaled(3.35, 989),
    moe: H100_MOE,
    links: H100_LINKS,
    interNodeMicros: INTER_NODE_MICROS,
    layerMicros: LAYER_MICROS,
    stepMicros: STEP_MICROS,
  },
  // The H100's processor beside more and faster memory; nothing of it was measured.
  H200: {
    ...hardware.H200,
    memoryGB: 141,
    ...scaled(4.8, 989),
    moe: { ...H100_MOE, TBps: H100_MOE.TBps * (4.8 / 3.35) },
    links: H100_LINKS,
    interNodeMicros: INTER_NODE_MICROS,
    layerMicros: LAYER_MICROS,
    stepMicros: STEP_MICROS,
  },
  // A workstation card on PCIe: links as published for the machine of the measured run, 20 µs and 16 GB/s.
  'RTX-PRO-6000': {
    name: 'RTX-PRO-6000',
    memoryTBps: 1.597,
    nominalTflops: 503,
    expertTflops: { bf16: 280, fp8: 280, mxfp4: 280 },
    activationTBps: 0,
    intraNodeGBps: [{ gpus: 2, GBps: 16 }],
    interNodeGBps: 12.5,
    memoryGB: 96,
    ...scaled(1.597, 503),
    moe: { micros: 8, TBps: 1.39, tflops: 280, power: 1.48, padding: 0, activationTBps: 0 },
    links: [{ gpus: 2, allToAll: link(20, 16), allGather: link(20, 16), reduceScatter: link(20, 16) }],
    interNodeMicros: INTER_NODE_MICROS,
    layerMicros: LAYER_MICROS,
    stepMicros: STEP_MICROS,
  },
} as const satisfies Record<string, ServingHardware>;

export function findServedModel(name: string): ServedModel {
  return find('model', name, servedModels);
}

export function findServingHardware(name: string): ServingHardware {
  return find('hardware', name, servingHardware);
}

function find<T>(field: string, name: string, table: Record<string, T>): T {
  const names = Object.keys(table);
  const given = typeof name === 'string' ? name.trim().toLowerCase() : '';
  const key = names.find((known) => known.toLowerCase() === given);
  return table[oneOf(field, key ?? name, names)]!;
}

/** Bytes of weights that each GPU holds: its expert slots, and its part of everything else. */
export function weightBytes(model: ServedModel, slotsPerGpu: number, tensorParallel: number): number {
  const bytes = elementBytes(model);
  const of = (gemms: readonly Gemm[]) =>
    gemms.reduce((sum, { rows, columns, split }) => sum + (rows * columns) / (split ? tensorParallel : 1), 0);
  const { layers, moeLayers, vocabulary, hiddenSize, expertBytes } = model;
  const dense =
    bytes *
    (layers * of(model.attention) + moeLayers * of(model.shared) + (layers - moeLayers) * of(model.dense));
  return dense + moeLayers * slotsPerGpu * expertBytes + (2 * 2 * vocabulary * hiddenSize) / tensorParallel;
}

/** What of a GPU's memory an engine takes, and what of that is neither weights nor KV cache. */
export interface MemoryRules {
  memoryShare: number;
  activationBytes: number;
}

export const MEMORY_DEFAULTS: MemoryRules = { memoryShare: 0.9, activationBytes: 4e9 };

/**
 * Tokens that the KV cache of a rank holds in what memory leaves; below 0 where not even the weights fit. Grouped heads are split
 * over a rank's GPUs; a latent cache is on each of them.
 */
export function keyValueTokens(
  model: ServedModel,
  { memoryGB }: ServingHardware,
  tensorParallel: number,
  slotsPerGpu: number,
  { memoryShare, activationBytes }: MemoryRules = MEMORY_DEFAULTS,
): number {
  const weights = weightBytes(model, slotsPerGpu, tensorParallel);
  const split = model.keyValueHeads === 0 ? 1 : Math.min(tensorParallel, model.keyValueHeads);
  return (memoryGB * 1e9 * memoryShare - weights - activationBytes) / (model.keyValueBytesPerToken / split);
}

/** Of weights outside experts: models with narrow experts of 4 bits keep the rest at 16. */
export function elementBytes({ precision }: ServedModel): number {
  return precision === 'fp8' ? 1 : 2;
}
