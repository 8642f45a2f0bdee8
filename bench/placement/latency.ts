/**
 * How long does a whole plan take, how much memory beside its input, and how fast are placements evaluated? At the
 * three shapes of large deployments, at every effort, with J beside EPLB's so that speed is not bought with quality.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { evaluatePlacements, Planner } from '../../lib/index.js';
import type { Effort, PlacementProblem } from '../../lib/types.js';
import { eplbGlobal, random } from '../baselines/index.js';
import {
  type Check,
  type Findings,
  median,
  type RunOptions,
  type Table,
  totalObjective,
} from '../harness.js';
import { firstLayers, SHAPES, type ShapeName, skewedWorkload } from '../workloads.js';

export const name = 'latency';
export const question = 'how long does a whole plan take, and in how much memory?';

const CASES: { shape: ShapeName; nodes: number; fastLimitMs: number }[] = [
  { shape: 'qwen3-30b-144', nodes: 1, fastLimitMs: 5 },
  { shape: 'deepseek-v3-288', nodes: 4, fastLimitMs: 15 },
  { shape: 'kimi-k2-448', nodes: 8, fastLimitMs: 40 },
];
const RUNS: Record<Effort, number> = { fast: 15, balanced: 5, thorough: 1 };
const BALANCED_OVER_FAST = 10;
const MEMORY_LIMIT_MIB = 64;
const EVALUATIONS_PER_SECOND = 200_000;
const CANDIDATES = 400;
const SMALL_LAYERS = 2;

interface Timing {
  effort: Effort;
  medianMs: number;
  worstMs: number;
  objective: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const tables: Table[] = [];
  const checks: Check[] = [];
  for (const { shape, nodes, fastLimitMs } of small ? CASES.slice(0, 1) : CASES) {
    const problem = problemOf(shape, nodes, small, seed);
    const eplb = timeEplb(problem);
    const timings = await timeEfforts(problem, small, seed);
    tables.push(
      timingTable(`${shape} lognormal-1 topics ${nodes}n, ${problem.layers} layers`, timings, eplb),
    );
    checks.push(...timingChecks(shape, timings, eplb.objective, fastLimitMs, small));
  }
  const memory = await measureMemory(small, seed);
  tables.push(memory.table);
  checks.push(...memory.checks);
  const evaluation = await measureEvaluation(small, seed);
  tables.push(evaluation.table);
  if (!small) checks.push(evaluation.check);
  const notes = [
    'Times are from call to result in JavaScript, on a planner that keeps its buffers, after two calls to warm up.',
    'Peak memory is the growth of the resident set of a child process over one plan, its input not counted.',
  ];
  return { tables, checks, notes };
}

function problemOf(shape: ShapeName, nodes: number, small: boolean, seed: number): PlacementProblem {
  const whole = skewedWorkload(SHAPES[shape], nodes, seed);
  return small ? firstLayers(whole, SMALL_LAYERS) : whole;
}

export interface EplbTiming {
  elapsedMs: number;
  objective: number;
}

/** EPLB's placement beside ours, warm as ours are. */
export function timeEplb(problem: PlacementProblem): EplbTiming {
  eplbGlobal(problem);
  const began = performance.now();
  const placement = eplbGlobal(problem);
  return { elapsedMs: performance.now() - began, objective: totalObjective(problem, placement) };
}

async function timeEfforts(problem: PlacementProblem, small: boolean, seed: number): Promise<Timing[]> {
  const planner = new Planner();
  const timings: Timing[] = [];
  for (const effort of Object.keys(RUNS) as Effort[]) {
    if (small && effort === 'thorough') continue;
    const warmUps = effort === 'fast' ? 2 : 0;
    const elapsed: number[] = [];
    let objective = 0;
    for (let i = -warmUps; i < (small ? 1 : RUNS[effort]); i += 1) {
      const began = performance.now();
      const plan = await planner.plan(problem, { effort, seed });
      if (i >= 0) elapsed.push(performance.now() - began);
      if (i === 0) objective = totalObjective(problem, plan.physicalToLogical);
    }
    timings.push({ effort, medianMs: median(elapsed), worstMs: Math.max(...elapsed), objective });
  }
  planner.close();
  return timings;
}

function timingTable(title: string, timings: Timing[], eplb: EplbTiming): Table {
  return {
    title,
    columns: ['planner', 'median ms', 'worst ms', 'J, ms', 'J / EPLB'],
    rows: [
      ...timings.map(({ effort, medianMs, worstMs, objective }) => [
        effort,
        medianMs,
        worstMs,
        objective / 1e6,
        objective / eplb.objective,
      ]),
      ['EPLB (JavaScript)', eplb.elapsedMs, eplb.elapsedMs, eplb.objective / 1e6, 1],
    ],
  };
}

function timingChecks(
  shape: ShapeName,
  timings: Timing[],
  eplbObjective: number,
  fastLimitMs: number,
  small: boolean,
): Check[] {
  const of = (effort: Effort): Timing => timings.find((timing) => timing.effort === effort)!;
  const fast = of('fast');
  const quality: Check = {
    target: `${shape}: fast has J below EPLB's`,
    measured: `ratio ${(fast.objective / eplbObjective).toFixed(4)}`,
    pass: fast.objective < eplbObjective,
    kind: 'quality',
  };
  if (small) return [quality];
  const limit = (effort: Effort, limitMs: number): Check => ({
    target: `${shape}: ${effort} ≤ ${limitMs} ms`,
    measured: `median ${of(effort).medianMs.toFixed(1)} ms`,
    pass: of(effort).medianMs <= limitMs,
    kind: 'time',
  });
  return [quality, limit('fast', fastLimitMs), limit('balanced', BALANCED_OVER_FAST * fastLimitMs)];
}

/** What memory-child.ts prints. */
export interface MemoryReport {
  shape: string;
  effort: Effort;
  inputMiB: number;
  peakMiB: number;
}

async function measureMemory(small: boolean, seed: number): Promise<{ table: Table; checks: Check[] }> {
  const reports: MemoryReport[] = [];
  for (const { shape, nodes } of small ? CASES.slice(0, 1) : CASES) {
    for (const effort of small ? (['fast'] as const) : (['fast', 'balanced'] as const)) {
      const layers = small ? SMALL_LAYERS : SHAPES[shape].layers;
      const parameters = JSON.stringify({ shape, nodes, layers, effort, seed });
      const child = join(__dirname, `memory-child${__filename.endsWith('.ts') ? '.ts' : '.js'}`);
      // The child runs TypeScript as this process does.
      const loader = pathToFileURL(require.resolve('tsx')).href;
      const argv = ['--expose-gc', '--import', loader, child, parameters];
      const { stdout } = await promisify(execFile)(process.execPath, argv);
      reports.push(JSON.parse(stdout) as MemoryReport);
    }
  }
  return {
    table: {
      title: 'peak memory of one plan beside its input, MiB',
      columns: ['shape', 'effort', 'input', 'peak'],
      rows: reports.map(({ shape, effort, inputMiB, peakMiB }) => [shape, effort, inputMiB, peakMiB]),
    },
    checks: [
      {
        target: `peak extra memory ≤ ${MEMORY_LIMIT_MIB} MiB at every shape`,
        measured: `largest ${Math.max(...reports.map((report) => report.peakMiB)).toFixed(1)} MiB`,
        pass: reports.every((report) => report.peakMiB <= MEMORY_LIMIT_MIB),
        kind: 'time',
      },
    ],
  };
}

async function measureEvaluation(small: boolean, seed: number): Promise<{ table: Table; check: Check }> {
  const shape = small ? 'qwen3-30b-144' : 'deepseek-v3-288';
  const problem = problemOf(shape, 4, small, seed);
  const width = problem.layers * problem.gpus * problem.slotsPerGpu;
  const count = small ? 4 : CANDIDATES;
  const candidates = new Int32Array(count * width);
  // A few different placements over and over: drawing hundreds would take longer than evaluating them.
  const drawn = Array.from({ length: 4 }, (_, i) => random(problem, seed + i));
  for (let c = 0; c < count; c += 1) candidates.set(drawn[c % drawn.length]!, c * width);
  await evaluatePlacements(problem, candidates.subarray(0, width));
  const began = performance.now();
  const evaluation = await evaluatePlacements(problem, candidates);
  const seconds = (performance.now() - began) / 1000;
  const done = evaluation.objective.length;
  const rate = done / seconds;
  return {
    table: {
      title: `evaluatePlacements, ${shape}`,
      columns: ['candidates', 'layer evaluations', 'ms', 'layer evaluations per second'],
      rows: [[count, done, seconds * 1000, Math.round(rate)]],
    },
    check: {
      target: `evaluatePlacements ≥ ${EVALUATIONS_PER_SECOND.toLocaleString('en-US')} layer evaluations/s at ${shape}`,
      measured: `${Math.round(rate).toLocaleString('en-US')}/s`,
      pass: rate >= EVALUATIONS_PER_SECOND,
      kind: 'time',
    },
  };
}
