/**
 * How many rounds does a migration take? After a 10 % lognormal drift: the planner's moves within 5 % of the slots, and a full
 * replan by EPLB from its own placement, scheduled with no, few and many staging slots, against the lower bound.
 */
import { GimbalError, type MigrationSchedule, planPlacement, scheduleMigration } from '../../lib/index.js';
import type { PlacementProblem } from '../../lib/types.js';
import { replay } from '../../test/reference/replay.js';
import { eplbGlobal } from '../baselines/index.js';
import { type Check, type Findings, mean, percent, type RunOptions, type Table } from '../harness.js';
import { drift, firstLayers, SHAPES, type ShapeName, skewedWorkload } from '../workloads.js';

export const name = 'migration';
export const question =
  'how near to the fewest possible rounds is a migration, and how much staging does it take?';

const SIGMA = 0.1;
const BUDGET = 0.05;
const STAGING = [0, 1, 2, 4, 8];
const MANY = 1_000_000;
const SMALL_LAYERS = 4;
/** Over the lower bound with the default of staging slots. */
const LIMIT = 1.05;
const DEFAULT_STAGING = 4;
const LIMIT_MS = 1000;
const CASES: { shape: ShapeName; nodes: number }[] = [
  { shape: 'qwen3-30b-128', nodes: 1 },
  { shape: 'deepseek-v3-288', nodes: 4 },
  { shape: 'kimi-k2-448', nodes: 8 },
];

interface Replan {
  label: string;
  from: Int32Array;
  to: Int32Array;
}

interface Measured {
  stagingSlots: number;
  /** Missing where this much staging does not suffice. */
  schedule?: MigrationSchedule;
  elapsedMs: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const tables: Table[] = [];
  const checks: Check[] = [];
  for (const { shape, nodes } of small ? CASES.slice(1, 2) : CASES) {
    const whole = skewedWorkload(SHAPES[shape], nodes, seed);
    const before = small ? firstLayers(whole, SMALL_LAYERS) : whole;
    for (const replan of await replans(before, seed)) {
      const runs: Measured[] = [];
      for (const stagingSlots of [...STAGING, MANY]) runs.push(await measure(before, replan, stagingSlots));
      tables.push(tableOf(`${shape} ${nodes}n: ${replan.label}`, before.gpus, runs));
      checks.push(...checksOf(shape, before, replan, runs, small));
    }
  }
  const notes = [
    'Senders: the most and the mean that a GPU sends. Peak: staging slots in use at once on the fullest GPU. Time: the whole call.',
    'A limit on staging is a limit: fewer slots are used where more save no round.',
  ];
  return { tables, checks, notes };
}

async function replans(before: PlacementProblem, seed: number): Promise<Replan[]> {
  const options = { effort: 'fast', seed } as const;
  const after = drift(before, SIGMA, seed + 1);
  const incumbent = (await planPlacement(before, options)).physicalToLogical;
  const migrationBudget = Math.floor(BUDGET * incumbent.length);
  const next = await planPlacement({ ...after, incumbent, migrationBudget }, options);
  return [
    { label: `budget ${percent(BUDGET, 0)}`, from: incumbent, to: next.physicalToLogical },
    { label: 'full replan by EPLB', from: eplbGlobal(before), to: eplbGlobal(after) },
  ];
}

function migrationOf(problem: PlacementProblem, { from, to }: Replan) {
  const { layers, experts, gpus, slotsPerGpu, sources, commCost } = problem;
  return { layers, experts, gpus, slotsPerGpu, sources, commCost, from, to };
}

async function measure(problem: PlacementProblem, replan: Replan, stagingSlots: number): Promise<Measured> {
  const migration = migrationOf(problem, replan);
  const began = performance.now();
  try {
    const schedule = await scheduleMigration({ ...migration, stagingSlots });
    return { stagingSlots, schedule, elapsedMs: performance.now() - began };
  } catch (error) {
    if (!(error instanceof GimbalError) || error.code !== 'GIMBAL_INFEASIBLE') throw error;
    return { stagingSlots, elapsedMs: performance.now() - began };
  }
}

function sendsOf(schedule: MigrationSchedule, gpus: number): number[] {
  const sends = new Array<number>(gpus).fill(0);
  for (const gpu of schedule.transfers.fromGpu) sends[gpu] = sends[gpu]! + 1;
  return sends;
}

function tableOf(title: string, gpus: number, runs: Measured[]): Table {
  const rows = runs.map(({ stagingSlots, schedule, elapsedMs }): (string | number)[] => {
    const limit = stagingSlots === MANY ? 'no limit' : String(stagingSlots);
    if (schedule === undefined) return [limit, 'impossible', '', '', '', '', '', elapsedMs];
    const sends = sendsOf(schedule, gpus);
    return [
      limit,
      String(schedule.rounds),
      String(schedule.lowerBound),
      percent(schedule.rounds / Math.max(1, schedule.lowerBound) - 1),
      `${Math.max(...sends)} / ${mean(sends).toFixed(1)}`,
      String(Math.max(...schedule.stagingPeak)),
      String(schedule.localCopies.round.length),
      elapsedMs,
    ];
  });
  const columns = [
    'staging slots',
    'rounds',
    'bound',
    'above',
    'senders max / mean',
    'peak',
    'local copies',
    'ms',
  ];
  return { title, columns, rows };
}

function checksOf(
  shape: ShapeName,
  problem: PlacementProblem,
  replan: Replan,
  runs: Measured[],
  small: boolean,
): Check[] {
  const what = `${shape}, ${replan.label}`;
  const migration = migrationOf(problem, replan);
  const breaches = runs.map(({ schedule, stagingSlots }) =>
    schedule === undefined
      ? ''
      : replay(migration, schedule, Math.min(stagingSlots, Math.max(...schedule.stagingPeak))),
  );
  const free = runs.at(-1)!.schedule!;
  const usual = runs.find(({ stagingSlots }) => stagingSlots === DEFAULT_STAGING)!;
  const ratio = usual.schedule!.rounds / Math.max(1, usual.schedule!.lowerBound);
  const kept: Check[] = [
    {
      target: `${what}: every schedule replays without a fault`,
      measured: breaches.find((breach) => breach !== '') ?? 'no fault',
      pass: breaches.every((breach) => breach === ''),
      kind: 'quality',
    },
    {
      target: `${what}: the lower bound without a limit on staging`,
      measured: `${free.rounds} of ${free.lowerBound}`,
      pass: free.rounds === free.lowerBound,
      kind: 'quality',
    },
  ];
  if (small) return kept;
  return [
    ...kept,
    {
      target: `${what}: ≤ ${percent(LIMIT - 1, 0)} above the bound with ${DEFAULT_STAGING} staging slots`,
      measured: percent(ratio - 1),
      pass: ratio <= LIMIT,
      kind: 'quality',
    },
    {
      target: `${what}: ≤ ${LIMIT_MS} ms with ${DEFAULT_STAGING} staging slots`,
      measured: `${usual.elapsedMs.toFixed(0)} ms`,
      pass: usual.elapsedMs <= LIMIT_MS,
      kind: 'time',
    },
  ];
}
