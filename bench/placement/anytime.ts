/**
 * How good is the search for its time? J against time per layer, 1 ms to 1 s on one thread, beside a plain annealer
 * given the same time; and whether `balanced` stays within half a percent of the best that `thorough`, or the annealer
 * in a hundred times the time, can find.
 */
import { planPlacement } from '../../lib/index.js';
import type { Effort, PlacementProblem, PlanOptions } from '../../lib/types.js';
import { annealLayer } from '../baselines/index.js';
import { type Findings, percent, type RunOptions, type Table, totalObjective } from '../harness.js';
import { POPULARITIES, SHAPES, type ShapeName, SKEWED_TOPICS, workload } from '../workloads.js';

export const name = 'anytime';
export const question = 'what does J per layer cost in time, beside a plain annealer?';

const EFFORTS: Effort[] = ['fast', 'balanced', 'thorough'];
const TIMES_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
const SMALL_TIMES_MS = [1, 5];
const ANNEALER_TIME_FACTOR = 100;
const SMALL_ANNEALER_TIME_FACTOR = 5;
/** The annealer's long run is never shorter, so that a very quick `balanced` does not make it a weak rival. */
const LONG_RUN_MS = 500;
const GAP_LIMIT = 0.005;
const UNLIMITED_ROUNDS = 1_000_000;

interface Case {
  shape: ShapeName;
  popularity: keyof typeof POPULARITIES;
  nodes: number;
}

const CASES: Case[] = [
  { shape: 'qwen3-30b-144', popularity: 'lognormal-1', nodes: 1 },
  { shape: 'deepseek-v3-288', popularity: 'lognormal-0.5', nodes: 4 },
  { shape: 'deepseek-v3-288', popularity: 'zipf', nodes: 4 },
  { shape: 'kimi-k2-448', popularity: 'lognormal-1', nodes: 8 },
];
const LAYERS = 2;

interface CaseResult {
  curve: Table;
  efforts: (string | number)[][];
  worstGap: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const results: CaseResult[] = [];
  for (const each of small ? CASES.slice(1, 2) : CASES) results.push(await measureCase(each, small, seed));
  const worst = Math.max(...results.map((result) => result.worstGap));
  return {
    tables: [
      ...results.map((result) => result.curve),
      {
        title: 'efforts, one thread, beside the long annealing',
        columns: ['case', 'search', 'ms per layer', 'J, ms', 'above the best %'],
        rows: results.flatMap((result) => result.efforts),
      },
    ],
    checks: [
      {
        target: `balanced within ${percent(GAP_LIMIT, 1)} of the best of thorough and the annealer in ${ANNEALER_TIME_FACTOR}× the time`,
        measured: `worst ${percent(worst, 3)}`,
        pass: worst <= GAP_LIMIT,
        kind: small ? 'time' : 'quality',
      },
    ],
    notes: [
      `Each J is the sum over ${small ? 1 : LAYERS} layers, planned one at a time; the annealer's own set-up time is not counted.`,
      'A time limit stops the planner between rounds, so the first rows can take longer than their limit.',
    ],
  };
}

async function measureCase(
  { shape, popularity, nodes }: Case,
  small: boolean,
  seed: number,
): Promise<CaseResult> {
  const title = `${shape} ${popularity} topics ${nodes}n`;
  const layers = singleLayers({ shape, popularity, nodes }, small ? 1 : LAYERS, seed);
  // Compiled code for both sides before anything is timed.
  annealLayer(layers[0]!, 0, { steps: 300_000, seed });
  await planLayers(layers, { effort: 'fast', seed });

  const rows: (string | number)[][] = [];
  for (const timeMs of small ? SMALL_TIMES_MS : TIMES_MS) {
    const planned = await planLayers(layers, {
      effort: 'thorough',
      rounds: UNLIMITED_ROUNDS,
      timeLimitMs: timeMs,
      seed,
    });
    const annealed = annealLayers(layers, timeMs, seed);
    rows.push([
      timeMs,
      planned.elapsedMs,
      planned.objective / 1e6,
      annealed / 1e6,
      planned.objective / annealed,
    ]);
  }

  const byEffort = new Map<Effort, Measured>();
  for (const effort of EFFORTS) byEffort.set(effort, await planLayers(layers, { effort, seed }));
  const balanced = byEffort.get('balanced')!;
  const factor = small ? SMALL_ANNEALER_TIME_FACTOR : ANNEALER_TIME_FACTOR;
  const longMs = Math.max(factor * balanced.elapsedMs, small ? 0 : LONG_RUN_MS);
  const annealed = { elapsedMs: longMs, objective: annealLayers(layers, longMs, seed) };
  const best = Math.min(byEffort.get('thorough')!.objective, annealed.objective);
  const rowOf = (search: string, { elapsedMs, objective }: Measured): (string | number)[] => [
    title,
    search,
    elapsedMs,
    objective / 1e6,
    100 * (objective / best - 1),
  ];
  return {
    curve: {
      title: `${title}: J after a time per layer`,
      columns: ['limit ms', 'planner took ms', 'planner J, ms', 'annealer J, ms', 'planner / annealer'],
      rows,
    },
    efforts: [...EFFORTS.map((effort) => rowOf(effort, byEffort.get(effort)!)), rowOf('annealer', annealed)],
    worstGap: balanced.objective / best - 1,
  };
}

interface Measured {
  /** Per layer. */
  elapsedMs: number;
  /** Summed over the layers, ns. */
  objective: number;
}

function singleLayers({ shape, popularity, nodes }: Case, count: number, seed: number): PlacementProblem[] {
  return Array.from({ length: count }, (_, i) =>
    workload({
      shape: { ...SHAPES[shape], layers: 1 },
      popularity: POPULARITIES[popularity],
      nodes,
      seed: seed + i,
      topics: SKEWED_TOPICS,
    }),
  );
}

async function planLayers(layers: PlacementProblem[], options: PlanOptions): Promise<Measured> {
  let objective = 0;
  let elapsedMs = 0;
  for (const problem of layers) {
    const plan = await planPlacement(problem, { ...options, threads: 1 });
    objective += totalObjective(problem, plan.physicalToLogical);
    elapsedMs += plan.elapsedMs / layers.length;
  }
  return { elapsedMs, objective };
}

function annealLayers(layers: PlacementProblem[], timeMs: number, seed: number): number {
  return layers.reduce((total, problem) => total + annealLayer(problem, 0, { timeMs, seed }).objective, 0);
}
