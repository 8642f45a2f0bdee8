/**
 * How does the time grow? A fast plan against the number of layers, and against slots × GPUs up to 512 GPUs, with the
 * exponent of the best-fitting power law: 1 is linear.
 */
import { Planner } from '../../lib/index.js';
import type { PlacementProblem } from '../../lib/types.js';
import { type Findings, median, type RunOptions, type Table } from '../harness.js';
import { POPULARITIES, SHAPES, type Shape, SKEWED_TOPICS, workload } from '../workloads.js';

export const name = 'scaling';
export const question = 'how does the time of a plan grow with layers, and with slots × GPUs?';

const LAYERS = [4, 8, 16, 32, 64, 128];
const SMALL_LAYERS = [2, 4];
/** 256 experts as they would be spread over ever more GPUs; redundancy grows as it must when slots are few per GPU. */
const SPREADS: [gpus: number, slotsPerGpu: number][] = [
  [8, 36],
  [16, 18],
  [32, 9],
  [64, 5],
  [128, 3],
  [256, 2],
  [512, 1],
];
const SMALL_SPREADS: [number, number][] = [
  [8, 36],
  [16, 18],
];
const SPREAD_LAYERS = 8;
const RUNS = 5;
/** Small problems spend their time on starting; the power law is fitted to those above this. */
const FITTED_FROM_MS = 1;
const LAYER_EXPONENT_LIMIT = 1.05;
const SPREAD_EXPONENT_LIMIT = 1.15;

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const planner = new Planner();
  const time = async (shape: Shape): Promise<number> =>
    medianMs(planner, problemOf(shape, seed), small ? 1 : RUNS, seed);
  const base: Shape = SHAPES['deepseek-v3-288'];
  const byLayers: Point[] = [];
  for (const layers of small ? SMALL_LAYERS : LAYERS) {
    byLayers.push({ label: [layers], size: layers, ms: await time({ ...base, layers }) });
  }
  const bySpread: Point[] = [];
  for (const [gpus, slotsPerGpu] of small ? SMALL_SPREADS : SPREADS) {
    const layers = small ? 1 : SPREAD_LAYERS;
    const ms = await time({ ...base, gpus, slotsPerGpu, layers });
    bySpread.push({ label: [gpus, slotsPerGpu, gpus * slotsPerGpu], size: gpus * gpus * slotsPerGpu, ms });
  }
  planner.close();
  const layerExponent = exponent(byLayers);
  const spreadExponent = exponent(bySpread);
  return {
    tables: [
      tableOf('layers, 256 experts in 288 slots on 32 GPUs', ['layers'], 'layer', byLayers),
      tableOf(
        `GPUs, 256 experts, ${small ? 1 : SPREAD_LAYERS} layers`,
        ['GPUs', 'per GPU', 'slots'],
        'slot × GPU',
        bySpread,
      ),
    ],
    checks: small
      ? []
      : [
          {
            target: `time grows no worse than linearly with layers (exponent ≤ ${LAYER_EXPONENT_LIMIT})`,
            measured: `exponent ${layerExponent.toFixed(3)}`,
            pass: layerExponent <= LAYER_EXPONENT_LIMIT,
            kind: 'time',
          },
          {
            target: `near-linearly with slots × GPUs to 512 GPUs (exponent ≤ ${SPREAD_EXPONENT_LIMIT})`,
            measured: `exponent ${spreadExponent.toFixed(3)}`,
            pass: spreadExponent <= SPREAD_EXPONENT_LIMIT,
            kind: 'time',
          },
        ],
    notes: [
      'One source per GPU, so the input itself grows with the GPUs; nodes of 8 GPUs; effort fast.',
      `Median of ${small ? 1 : RUNS} runs; exponents are fitted to the points above ${FITTED_FROM_MS} ms.`,
    ],
  };
}

interface Point {
  label: number[];
  size: number;
  ms: number;
}

const GPUS_PER_NODE = 8;

function problemOf(shape: Shape, seed: number): PlacementProblem {
  const popularity = POPULARITIES['lognormal-1'];
  return workload({
    shape,
    popularity,
    nodes: Math.max(1, shape.gpus / GPUS_PER_NODE),
    seed,
    topics: SKEWED_TOPICS,
  });
}

async function medianMs(
  planner: Planner,
  problem: PlacementProblem,
  runs: number,
  seed: number,
): Promise<number> {
  const elapsed: number[] = [];
  for (let i = -1; i < runs; i += 1) {
    const began = performance.now();
    await planner.plan(problem, { effort: 'fast', seed });
    // The first call grows the buffers.
    if (i >= 0) elapsed.push(performance.now() - began);
  }
  return median(elapsed);
}

function tableOf(title: string, labels: string[], unit: string, points: Point[]): Table {
  return {
    title,
    columns: [...labels, 'median ms', `µs per ${unit}`],
    rows: points.map(({ label, size, ms }) => [...label, ms, (1000 * ms) / size]),
  };
}

/** Least-squares slope of log time over log size. */
function exponent(points: Point[]): number {
  const fitted = points.filter((point) => point.ms >= FITTED_FROM_MS);
  const x = fitted.map((point) => Math.log(point.size));
  const y = fitted.map((point) => Math.log(point.ms));
  const meanX = x.reduce((sum, value) => sum + value, 0) / x.length;
  const meanY = y.reduce((sum, value) => sum + value, 0) / y.length;
  const covariance = x.reduce((sum, value, i) => sum + (value - meanX) * (y[i]! - meanY), 0);
  const variance = x.reduce((sum, value) => sum + (value - meanX) ** 2, 0);
  return variance === 0 ? Number.NaN : covariance / variance;
}
