/**
 * The seeded problems whose plans are pinned. Whole numbers only, by integer arithmetic only, so that they are the same on
 * every machine; sizes from one GPU to a few layers of the large models, and every feature of the model.
 */
import type { PlacementProblem, PlanOptions } from '../../lib/index.js';

export interface GoldenCase {
  name: string;
  problem: PlacementProblem;
  options: PlanOptions;
}

interface Shape {
  layers: number;
  sources: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  nodes: number;
}

const TINY: Shape = { layers: 2, sources: 2, experts: 5, gpus: 3, slotsPerGpu: 2, nodes: 1 };
const SMALL: Shape = { layers: 4, sources: 4, experts: 16, gpus: 4, slotsPerGpu: 5, nodes: 2 };
const ODD: Shape = { layers: 3, sources: 5, experts: 37, gpus: 19, slotsPerGpu: 3, nodes: 3 };
const QWEN: Shape = { layers: 8, sources: 8, experts: 128, gpus: 8, slotsPerGpu: 18, nodes: 1 };
const DEEPSEEK: Shape = { layers: 3, sources: 32, experts: 256, gpus: 32, slotsPerGpu: 9, nodes: 4 };
const KIMI: Shape = { layers: 2, sources: 64, experts: 384, gpus: 64, slotsPerGpu: 7, nodes: 8 };

/** mulberry32. */
function stream(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** Zipf-like popularity in an order of its own for each layer; each source favours an eighth of the experts. */
function skewedTokens({ layers, sources, experts }: Shape, seed: number): Uint32Array {
  const random = stream(seed);
  const tokens = new Uint32Array(layers * sources * experts);
  for (let layer = 0; layer < layers; layer += 1) {
    const rank = Array.from({ length: experts }, (_, e) => e);
    for (let i = experts - 1; i > 0; i -= 1) {
      const j = random(i + 1);
      [rank[i], rank[j]] = [rank[j]!, rank[i]!];
    }
    for (let s = 0; s < sources; s += 1) {
      for (let e = 0; e < experts; e += 1) {
        const base = Math.floor(40_000 / (4 + rank[e]!));
        const favoured = (e + s) % 8 === 0 ? 3 : 1;
        tokens[(layer * sources + s) * experts + e] = favoured * (base + random(base + 1));
      }
    }
  }
  return tokens;
}

/** ns: 0 on the own GPU, 40 in the node, 210 across. Source s sits on GPU s mod gpus. */
function linkCosts({ sources, gpus, nodes }: Shape): Float64Array {
  const perNode = Math.ceil(gpus / nodes);
  return Float64Array.from({ length: sources * gpus }, (_, at) => {
    const [from, to] = [Math.floor(at / gpus) % gpus, at % gpus];
    if (from === to) return 0;
    return Math.floor(from / perNode) === Math.floor(to / perNode) ? 40 : 210;
  });
}

function base(shape: Shape, seed: number): PlacementProblem {
  const { nodes: _, ...sizes } = shape;
  return { ...sizes, tokens: skewedTokens(shape, seed), computeCost: 150, commCost: linkCosts(shape) };
}

/** Experts dealt out in order from an offset that differs by layer: each once, then the redundant slots. */
function dealtOut(shape: Shape, gpus = shape.gpus, slotsPerGpu = shape.slotsPerGpu): Int32Array {
  const width = gpus * slotsPerGpu;
  return Int32Array.from(
    { length: shape.layers * width },
    (_, at) => ((at % width) + 3 * Math.floor(at / width)) % shape.experts,
  );
}

export function goldenCases(): GoldenCase[] {
  const cases: GoldenCase[] = [];
  const add = (
    name: string,
    shape: Shape,
    change: Partial<PlacementProblem> = {},
    options: PlanOptions = {},
  ) => {
    const seed = cases.length + 1;
    const fixed: PlanOptions = { effort: 'fast', walkers: 2, rounds: 3, seed, ...options };
    cases.push({ name, problem: { ...base(shape, seed), ...change }, options: fixed });
  };
  const unequal = (gpus: number) => Float64Array.from({ length: gpus }, (_, g) => 120 + 10 * (g % 5));

  add('tiny', TINY);
  add('tiny, one GPU', { ...TINY, gpus: 1, slotsPerGpu: 5 });
  add('tiny, nearest', TINY, { replicaChoice: 'nearest' });
  add('tiny, every expert everywhere', { ...TINY, slotsPerGpu: 5 });
  add('small', SMALL);
  add('small, nearest', SMALL, { replicaChoice: 'nearest' });
  add('small, no redundancy', { ...SMALL, slotsPerGpu: 4 });
  add('small, all tokens equal', SMALL, { tokens: new Uint32Array(4 * 4 * 16).fill(1000) });
  add('small, no traffic', SMALL, { tokens: new Uint32Array(4 * 4 * 16) });
  add('small, no communication', SMALL, { commCost: new Float64Array(16) });
  add('small, balance only', SMALL, { weights: { load: 1, commMax: 0, commTotal: 0 } });
  add('small, the total above the maximum', SMALL, { weights: { load: 1, commMax: 0.05, commTotal: 3 } });
  add('small, duplicates allowed', SMALL, { allowDuplicates: true });
  add('small, incumbent', SMALL, { incumbent: dealtOut(SMALL), migrationCost: 9000 });
  add('small, budget', SMALL, { incumbent: dealtOut(SMALL), migrationBudget: 7 }, { rounds: 6 });
  add('small, budget of 0', SMALL, { incumbent: dealtOut(SMALL), migrationBudget: 0 });
  add('small, dead GPU', { ...SMALL, slotsPerGpu: 6 }, { deadGpus: [2], incumbent: dealtOut(SMALL, 4, 6) });
  add(
    'small, grown from two GPUs, budget',
    SMALL,
    { incumbent: dealtOut(SMALL, 2, 8), incumbentGpus: 2, incumbentSlotsPerGpu: 8, migrationBudget: 5 },
    { rounds: 4 },
  );
  add('odd, unequal GPUs', ODD, { computeCost: unequal(19) });
  add('odd, unequal GPUs, nearest, two dead', ODD, {
    computeCost: unequal(19),
    replicaChoice: 'nearest',
    deadGpus: [0, 17],
  });
  add('Qwen3-30B', QWEN);
  add('Qwen3-30B, incumbent, budget', QWEN, { incumbent: dealtOut(QWEN), migrationBudget: 60 });
  add('DeepSeek-V3', DEEPSEEK);
  add('DeepSeek-V3, nearest', DEEPSEEK, { replicaChoice: 'nearest' }, { walkers: 1, rounds: 1 });
  add('DeepSeek-V3, incumbent, dead GPU', DEEPSEEK, {
    incumbent: dealtOut(DEEPSEEK, 32, 9),
    deadGpus: [5],
    migrationCost: 20_000,
  });
  add('Kimi-K2', KIMI, {}, { walkers: 1 });
  return cases;
}
