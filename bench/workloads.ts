/**
 * Seeded placement problems: model shapes × expert popularity × topics that stick to sources × nodes, drifted copies
 * of a problem, small instances whose optimum can be proved, and real routing counts where they are at hand.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { PlacementProblem, Weights } from '../lib/types.js';
import { Random } from './random.js';

/** What a shape needs of a model to turn tokens into time. */
export interface Shape {
  name: string;
  layers: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  /** Experts a token is sent to, per layer. */
  topK: number;
  hidden: number;
  intermediate: number;
  /** Matrix throughput of an H100 at the model's precision, FLOP/s. */
  flops: number;
  /**
   * Expert groups, which hierarchical EPLB keeps together on a node: the router's own for DeepSeek-V3; the others have
   * none and get equal blocks, so that the baseline exists for them too.
   */
  groups: number;
}

const H100_BF16_FLOPS = 440e12;
const H100_FP8_FLOPS = 412e12;

export const SHAPES = {
  'qwen3-30b-128': {
    name: 'Qwen3-30B 48×128, 128 slots, 8 GPUs',
    layers: 48,
    experts: 128,
    gpus: 8,
    slotsPerGpu: 16,
    topK: 8,
    hidden: 2048,
    intermediate: 768,
    flops: H100_BF16_FLOPS,
    groups: 8,
  },
  'qwen3-30b-144': {
    name: 'Qwen3-30B 48×128, 144 slots, 8 GPUs',
    layers: 48,
    experts: 128,
    gpus: 8,
    slotsPerGpu: 18,
    topK: 8,
    hidden: 2048,
    intermediate: 768,
    flops: H100_BF16_FLOPS,
    groups: 8,
  },
  'deepseek-v3-288': {
    name: 'DeepSeek-V3 58×256, 288 slots, 32 GPUs',
    layers: 58,
    experts: 256,
    gpus: 32,
    slotsPerGpu: 9,
    topK: 8,
    hidden: 7168,
    intermediate: 2048,
    flops: H100_FP8_FLOPS,
    groups: 8,
  },
  'kimi-k2-448': {
    name: 'Kimi-K2-like 60×384, 448 slots, 64 GPUs',
    layers: 60,
    experts: 384,
    gpus: 64,
    slotsPerGpu: 7,
    topK: 8,
    hidden: 7168,
    intermediate: 2048,
    flops: H100_FP8_FLOPS,
    groups: 8,
  },
} as const satisfies Record<string, Shape>;

export type ShapeName = keyof typeof SHAPES;

/** How unequal the experts are before topics: Zipf ranks shuffled per layer, or exp(σ·normal). */
export type Popularity = { kind: 'zipf'; exponent: number } | { kind: 'lognormal'; sigma: number };

export const POPULARITIES = {
  zipf: { kind: 'zipf', exponent: 1 },
  'lognormal-0.5': { kind: 'lognormal', sigma: 0.5 },
  'lognormal-1': { kind: 'lognormal', sigma: 1 },
} as const satisfies Record<string, Popularity>;

export interface Topics {
  count: number;
  /** Each topic multiplies the popularity of each expert by exp(σ·normal), drawn per layer. */
  sigma: number;
  /** Share of a source's tokens that belong to its home topic; the rest is drawn evenly from all topics. */
  stickiness: number;
}

/** Sources differ strongly, as where a gateway keeps sessions of one kind on one engine. */
export const SKEWED_TOPICS: Topics = { count: 8, sigma: 1, stickiness: 0.8 };

export interface WorkloadOptions {
  shape: Shape;
  popularity: Popularity;
  nodes: number;
  seed: number;
  /** Omitted: all sources draw from the same distribution. */
  topics?: Topics;
  /** Default: one DP rank per GPU. */
  sources?: number;
  /** Tokens each source sends per layer in the window, before top-k. Default 16,384. */
  tokensPerSource?: number;
  weights?: Weights;
}

const DEFAULT_TOKENS_PER_SOURCE = 16_384;
const NVLINK_BYTES_PER_SECOND = 265e9;
const INTER_NODE_BYTES_PER_SECOND = 50e9;
/** fp8 out, bf16 back: bytes per element of the hidden vector. */
const ROUND_TRIP_BYTES_PER_ELEMENT = 1 + 2;

/** ns that one (token, expert) pair takes: three H×I matrices, two FLOPs per weight. */
export function computeCostNs(shape: Shape): number {
  return (6 * shape.hidden * shape.intermediate * 1e9) / shape.flops;
}

/** ns to send one token to another GPU of the node, or of another node, and its result back. */
export function linkCostNs(shape: Shape): { sameNode: number; otherNode: number } {
  const bytes = shape.hidden * ROUND_TRIP_BYTES_PER_ELEMENT;
  return {
    sameNode: (bytes * 1e9) / NVLINK_BYTES_PER_SECOND,
    otherNode: (bytes * 1e9) / INTER_NODE_BYTES_PER_SECOND,
  };
}

/**
 * `[sources][gpus]`, the cost from the nearest GPU of the source: 0 on it, `sameNode` within the node, `otherNode`
 * across. Sources share the GPUs in equal blocks: with fewer sources than GPUs each spans several (tensor parallel).
 */
export function commCostMatrix(
  sources: number,
  gpus: number,
  nodes: number,
  link: { sameNode: number; otherNode: number },
): Float64Array {
  if (gpus % nodes !== 0)
    throw new RangeError(`nodes: expected a divisor of ${gpus} gpus but received ${nodes}`);
  const gpusPerNode = gpus / nodes;
  const cost = new Float64Array(sources * gpus);
  for (let source = 0; source < sources; source += 1) {
    const first = Math.floor((source * gpus) / sources);
    const end = Math.max(first + 1, Math.floor(((source + 1) * gpus) / sources));
    const firstNode = Math.floor(first / gpusPerNode);
    const lastNode = Math.floor((end - 1) / gpusPerNode);
    for (let gpu = 0; gpu < gpus; gpu += 1) {
      const node = Math.floor(gpu / gpusPerNode);
      const near = node >= firstNode && node <= lastNode ? link.sameNode : link.otherNode;
      cost[source * gpus + gpu] = gpu >= first && gpu < end ? 0 : near;
    }
  }
  return cost;
}

/** `[experts]`, sums to 1. */
function drawPopularity(popularity: Popularity, experts: number, random: Random): Float64Array {
  const share = new Float64Array(experts);
  for (let e = 0; e < experts; e += 1) {
    share[e] =
      popularity.kind === 'zipf'
        ? (e + 1) ** -popularity.exponent
        : Math.exp(popularity.sigma * random.normal());
  }
  if (popularity.kind === 'zipf') random.shuffle(share);
  return normalise(share);
}

function normalise(share: Float64Array): Float64Array {
  let sum = 0;
  for (const value of share) sum += value;
  for (let i = 0; i < share.length; i += 1) share[i] = share[i]! / sum;
  return share;
}

/** A count around `mean` with the spread of a Poisson draw. */
function noisyCount(mean: number, random: Random): number {
  return Math.max(0, Math.round(mean + Math.sqrt(mean) * random.normal()));
}

/** `[topics][experts]`: the layer's popularity, coloured by each topic. */
function drawTopics(base: Float64Array, topics: Topics | undefined, random: Random): Float64Array[] {
  if (topics === undefined) return [base];
  return Array.from({ length: topics.count }, () =>
    normalise(base.map((share) => share * Math.exp(topics.sigma * random.normal()))),
  );
}

/** Fills `[sources][experts]` of one layer. Neighbouring sources share a home topic where topics are fewer. */
function fillLayer(tokens: Uint32Array, options: WorkloadOptions, sources: number, random: Random): void {
  const { shape, topics } = options;
  const perSource = (options.tokensPerSource ?? DEFAULT_TOKENS_PER_SOURCE) * shape.topK;
  const byTopic = drawTopics(drawPopularity(options.popularity, shape.experts, random), topics, random);
  const stickiness = topics?.stickiness ?? 0;
  for (let source = 0; source < sources; source += 1) {
    const home = Math.floor((source * byTopic.length) / sources);
    for (let e = 0; e < shape.experts; e += 1) {
      let mean = 0;
      for (const share of byTopic) mean += share[e]! / byTopic.length;
      const share = stickiness * byTopic[home]![e]! + (1 - stickiness) * mean;
      tokens[source * shape.experts + e] = noisyCount(perSource * share, random);
    }
  }
}

/** What most benches plan: lognormal popularity, and topics that sources favour. */
export function skewedWorkload(shape: Shape, nodes: number, seed: number): PlacementProblem {
  return workload({ shape, popularity: POPULARITIES['lognormal-1'], nodes, seed, topics: SKEWED_TOPICS });
}

export function workload(options: WorkloadOptions): PlacementProblem {
  const { shape, nodes, seed } = options;
  const sources = options.sources ?? shape.gpus;
  const layerLength = sources * shape.experts;
  const tokens = new Uint32Array(shape.layers * layerLength);
  for (let layer = 0; layer < shape.layers; layer += 1) {
    const rows = tokens.subarray(layer * layerLength, (layer + 1) * layerLength);
    fillLayer(rows, options, sources, new Random(seed, layer));
  }
  return {
    layers: shape.layers,
    sources,
    experts: shape.experts,
    gpus: shape.gpus,
    slotsPerGpu: shape.slotsPerGpu,
    tokens,
    computeCost: computeCostNs(shape),
    commCost: commCostMatrix(sources, shape.gpus, nodes, linkCostNs(shape)),
    ...(options.weights === undefined ? {} : { weights: options.weights }),
  };
}

/** A copy with fewer layers, for quick runs; layer l of the copy is layer l of the problem. */
export function firstLayers(problem: PlacementProblem, layers: number): PlacementProblem {
  const kept = Math.min(layers, problem.layers);
  const copy: PlacementProblem = {
    ...problem,
    layers: kept,
    tokens: problem.tokens.slice(0, kept * problem.sources * problem.experts),
  };
  if (problem.incumbent)
    copy.incumbent = problem.incumbent.slice(0, (problem.incumbent.length / problem.layers) * kept);
  return copy;
}

/**
 * A copy whose load has moved on: the tokens of each (layer, expert) are multiplied by exp(sigma·normal), the same
 * factor for all sources, since it is the expert that gains or loses favour.
 */
export function drift(problem: PlacementProblem, sigma: number, seed: number): PlacementProblem {
  const { layers, sources, experts } = problem;
  const tokens = new Uint32Array(problem.tokens.length);
  for (let layer = 0; layer < layers; layer += 1) {
    const random = new Random(seed, layer);
    for (let e = 0; e < experts; e += 1) {
      const factor = Math.exp(sigma * random.normal());
      for (let source = 0; source < sources; source += 1) {
        const at = (layer * sources + source) * experts + e;
        tokens[at] = Math.round(problem.tokens[at]! * factor);
      }
    }
  }
  return { ...problem, tokens };
}

/** What a suite entry is made of, in words for tables. */
export interface SuiteInstance {
  name: string;
  shape: ShapeName;
  popularity: keyof typeof POPULARITIES;
  skewed: boolean;
  nodes: number;
  options: WorkloadOptions;
}

export const SUITE_NODES = [1, 4, 8] as const;

/** Every shape × popularity × (equal sources, sources with topics) × nodes, each with its own seed. */
export function suite(seed: number): SuiteInstance[] {
  const instances: SuiteInstance[] = [];
  for (const shape of Object.keys(SHAPES) as ShapeName[]) {
    for (const popularity of Object.keys(POPULARITIES) as (keyof typeof POPULARITIES)[]) {
      for (const skewed of [false, true]) {
        for (const nodes of SUITE_NODES) {
          instances.push({
            name: `${shape} ${popularity} ${skewed ? 'topics' : 'equal'} ${nodes}n`,
            shape,
            popularity,
            skewed,
            nodes,
            options: {
              shape: SHAPES[shape],
              popularity: POPULARITIES[popularity],
              nodes,
              seed: seed + instances.length,
              ...(skewed ? { topics: SKEWED_TOPICS } : {}),
            },
          });
        }
      }
    }
  }
  return instances;
}

/** Sizes of a small instance, chosen so that slots suffice and an exact solver proves the optimum quickly. */
interface SmallSizes {
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  sources: number;
  dead: number | undefined;
}

/** Free counts make the model grow with redundant slots × experts; beyond this the proof takes seconds, not ms. */
const MAX_SMALL_REDUNDANT = 4;

function drawSmallSizes(random: Random): SmallSizes {
  for (;;) {
    const gpus = random.between(2, 4);
    const slotsPerGpu = random.between(2, 4);
    const experts = random.between(4, 12);
    const dead = gpus > 2 && random.uniform() < 0.25 ? random.below(gpus) : undefined;
    const live = dead === undefined ? gpus : gpus - 1;
    const redundant = live * slotsPerGpu - experts;
    if (redundant < 0 || redundant > MAX_SMALL_REDUNDANT || slotsPerGpu > experts) continue;
    return { experts, gpus, slotsPerGpu, sources: random.between(1, 4), dead };
  }
}

/**
 * One layer with E 4–12, G 2–4, K 2–4, S 1–4: half with an incumbent, some with a dead GPU, unequal GPUs, or no
 * communication weight. Times are in the range that real shapes have.
 */
export function smallProblem(seed: number): PlacementProblem {
  const random = new Random(seed, 0x51);
  const { experts, gpus, slotsPerGpu, sources, dead } = drawSmallSizes(random);
  const sigma = random.between(2, 12) / 10;
  const favour = Array.from({ length: experts }, () => Math.exp(sigma * random.normal()));
  const tokens = new Uint32Array(sources * experts);
  for (let at = 0; at < tokens.length; at += 1) {
    tokens[at] = Math.round(1000 * favour[at % experts]! * Math.exp(0.7 * random.normal()));
  }
  const nodes = gpus % 2 === 0 && random.uniform() < 0.5 ? 2 : 1;
  const link = { sameNode: random.between(5, 60), otherNode: random.between(60, 300) };
  const uniform = random.uniform() < 0.6;
  const problem: PlacementProblem = {
    layers: 1,
    sources,
    experts,
    gpus,
    slotsPerGpu,
    tokens,
    computeCost: uniform ? 100 : Float64Array.from({ length: gpus }, () => random.between(70, 140)),
    commCost: commCostMatrix(sources, gpus, nodes, link),
  };
  if (random.uniform() < 0.25) problem.weights = { load: 1, commMax: 0, commTotal: 0, migration: 1 };
  if (dead !== undefined) problem.deadGpus = [dead];
  if (random.uniform() < 0.5) {
    problem.incumbent = randomPlacement(problem, random, []);
    problem.migrationCost = random.between(0, 20_000);
  }
  return problem;
}

/**
 * A valid placement of one layer drawn at random: every expert once, redundant slots to random experts, no GPU with
 * two replicas of one expert. `[gpus * slotsPerGpu]`
 */
export function randomPlacement(problem: PlacementProblem, random: Random, deadGpus: number[]): Int32Array {
  const { experts, gpus, slotsPerGpu } = problem;
  const placement = new Int32Array(gpus * slotsPerGpu).fill(-1);
  const live = Array.from({ length: gpus }, (_, g) => g).filter((g) => !deadGpus.includes(g));
  if (live.length * slotsPerGpu < experts || slotsPerGpu > experts) {
    throw new RangeError(
      `slotsPerGpu: expected ${experts} experts to fill ${live.length} GPUs once but received ${slotsPerGpu}`,
    );
  }
  const slots: number[] = [];
  for (const g of live) for (let k = 0; k < slotsPerGpu; k += 1) slots.push(g * slotsPerGpu + k);
  random.shuffle(slots);
  for (const [i, slot] of slots.entries()) {
    if (i < experts) {
      placement[slot] = i;
      continue;
    }
    const first = slot - (slot % slotsPerGpu);
    const held = placement.subarray(first, first + slotsPerGpu);
    let e = random.below(experts);
    while (held.includes(e)) e = (e + 1) % experts;
    placement[slot] = e;
  }
  return placement;
}

/** FlashLB's published test vector: 8 experts on 8 devices of 2 slots, balance only; the optimum's maximum is 590/3. */
export function flashLbProblem(): PlacementProblem {
  return {
    layers: 1,
    sources: 1,
    experts: 8,
    gpus: 8,
    slotsPerGpu: 2,
    tokens: Uint32Array.of(600, 560, 120, 120, 20, 10, 10, 10),
    computeCost: 1,
    commCost: new Float64Array(8),
    weights: { load: 1, commMax: 0, commTotal: 0, migration: 0 },
  };
}

const ESFT_COUNTS = join(__dirname, '..', '..', 'shared', 'data', 'routing', 'esft_counts.npy');
const ESFT_LINK = { sameNode: 1, otherNode: 4 };

/**
 * Real routing counts of four tasks (26 layers, 64 experts), each task spread evenly over an equal block of ranks,
 * 64 slots; null where the file is not at hand. Compute cost 1 per token; cost 0 on the own GPU, 1 in the node, 4
 * across, so that commTotal over 4·tokens is the share of the never-local worst case.
 */
export function esftProblem(options: {
  gpus: number;
  nodes: number;
  weights?: Weights;
}): PlacementProblem | null {
  const counts = readCounts(ESFT_COUNTS);
  if (counts === null) return null;
  const { gpus, nodes } = options;
  const [layers, tasks, experts] = counts.shape as [number, number, number];
  if (gpus % tasks !== 0 || experts % gpus !== 0) {
    throw new RangeError(
      `gpus: expected a multiple of ${tasks} that divides ${experts} but received ${gpus}`,
    );
  }
  const ranksPerTask = gpus / tasks;
  const tokens = new Uint32Array(layers * gpus * experts);
  for (let at = 0; at < counts.data.length; at += 1) {
    const e = at % experts;
    const task = Math.floor(at / experts) % tasks;
    const layer = Math.floor(at / (experts * tasks));
    for (let r = 0; r < ranksPerTask; r += 1) {
      const rank = task * ranksPerTask + r;
      // The remainder of each division goes round the ranks, so that none gets all of them.
      tokens[(layer * gpus + rank) * experts + e] = evenShare(
        counts.data[at]!,
        ranksPerTask,
        (r + e) % ranksPerTask,
      );
    }
  }
  return {
    layers,
    sources: gpus,
    experts,
    gpus,
    slotsPerGpu: experts / gpus,
    tokens,
    computeCost: 1,
    commCost: commCostMatrix(gpus, gpus, nodes, ESFT_LINK),
    ...(options.weights === undefined ? {} : { weights: options.weights }),
  };
}

/** Part `index` of `count` split into `parts` integers that differ by at most one. */
function evenShare(count: number, parts: number, index: number): number {
  return Math.floor(count / parts) + (index < count % parts ? 1 : 0);
}

/** Reads a little-endian uint32 array in the NumPy format, version 1; null where there is no such file. */
function readCounts(path: string): { shape: number[]; data: Uint32Array } | null {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  const headerLength = bytes.readUInt16LE(8);
  const header = bytes.toString('latin1', 10, 10 + headerLength);
  const shape = /'shape': \(([\d, ]+)\)/
    .exec(header)?.[1]
    ?.split(',')
    .filter((part) => part.trim())
    .map(Number);
  if (!/'descr': '<u4', 'fortran_order': False/.test(header) || shape?.length !== 3) {
    throw new Error(`${path}: expected a C-ordered <u4 array of 3 axes but received ${header.trim()}`);
  }
  const body = bytes.subarray(10 + headerLength);
  const data = new Uint32Array(body.buffer.slice(body.byteOffset, body.byteOffset + body.byteLength));
  if (data.length !== shape[0]! * shape[1]! * shape[2]!)
    throw new Error(`${path}: shorter than its shape says`);
  return { shape, data };
}
