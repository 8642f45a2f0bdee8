/**
 * How few moves does a drifted load need? After 10 % lognormal drift with the old plan in force: J without the
 * migration term against the share of slots moved, from no move to a fifth of the slots, beside a fresh plan.
 */
import { planPlacement } from '../../lib/index.js';
import type { PlacementProblem } from '../../lib/types.js';
import { evaluateNaive } from '../../test/reference/naive.js';
import { eplbGlobal } from '../baselines/index.js';
import { type Check, type Findings, percent, type RunOptions, SAME, type Table } from '../harness.js';
import { drift, firstLayers, SHAPES, type ShapeName, skewedWorkload } from '../workloads.js';

export const name = 'drift';
export const question = 'what does J cost when only a share of the slots may move after a 10 % drift?';

const SIGMA = 0.1;
const SHARES = [0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2];
const SMALL_SHARES = [0, 0.05, 0.2];
const SMALL_LAYERS = 2;
const LIMITS = [
  { moved: 0.05, above: 0.02 },
  { moved: 0.08, above: 0.01 },
];
const CASES: { shape: ShapeName; nodes: number }[] = [
  { shape: 'qwen3-30b-144', nodes: 1 },
  { shape: 'deepseek-v3-288', nodes: 4 },
  { shape: 'kimi-k2-448', nodes: 8 },
];

interface Point {
  budget: number;
  moved: number;
  /** Over J of the fresh plan. */
  ratio: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const tables: Table[] = [];
  const checks: Check[] = [];
  for (const { shape, nodes } of small ? CASES.slice(0, 1) : CASES) {
    const whole = skewedWorkload(SHAPES[shape], nodes, seed);
    const { points, fresh, eplb } = await measure(
      small ? firstLayers(whole, SMALL_LAYERS) : whole,
      small,
      seed,
    );
    const row = (label: string, { moved, ratio }: Omit<Point, 'budget'>): (string | number)[] => [
      label,
      100 * moved,
      100 * (ratio - 1),
    ];
    tables.push({
      title: `${shape} lognormal-1 topics ${nodes}n`,
      columns: ['plan', 'slots moved %', 'J above the fresh plan %'],
      rows: [
        ...points.map((point) => row(`budget ${percent(point.budget, 0)}`, point)),
        row('fresh', fresh),
        row('EPLB', eplb),
      ],
    });
    checks.push(...checksOf(shape, points, small));
  }
  const notes = [
    '"Moved" counts (expert, GPU) pairs that the old plan lacks, over all slots; moves are free in J here.',
  ];
  return { tables, checks, notes };
}

async function measure(
  before: PlacementProblem,
  small: boolean,
  seed: number,
): Promise<{ points: Point[]; fresh: Omit<Point, 'budget'>; eplb: Omit<Point, 'budget'> }> {
  const options = { effort: 'balanced', seed } as const;
  const incumbent = (await planPlacement(before, options)).physicalToLogical;
  const after = drift(before, SIGMA, seed + 1);
  const drifted: PlacementProblem = { ...after, incumbent, migrationCost: 0 };
  const slots = before.layers * before.gpus * before.slotsPerGpu;
  const measured = (placement: Int32Array): { moved: number; objective: number } => {
    const layers = evaluateNaive(drifted, placement);
    return {
      moved: layers.reduce((sum, layer) => sum + layer.migrations, 0) / slots,
      objective: layers.reduce((sum, layer) => sum + layer.objective, 0),
    };
  };
  const fresh = measured((await planPlacement(after, options)).physicalToLogical);
  const relative = (placement: Int32Array): Omit<Point, 'budget'> => {
    const { moved, objective } = measured(placement);
    return { moved, ratio: objective / fresh.objective };
  };
  const points: Point[] = [];
  for (const budget of small ? SMALL_SHARES : SHARES) {
    const plan = await planPlacement({ ...drifted, migrationBudget: Math.floor(budget * slots) }, options);
    points.push({ budget, ...relative(plan.physicalToLogical) });
  }
  return { points, fresh: { moved: fresh.moved, ratio: 1 }, eplb: relative(eplbGlobal(after)) };
}

function checksOf(shape: ShapeName, points: Point[], small: boolean): Check[] {
  const kept: Check = {
    target: `${shape}: no plan moves more than its budget`,
    measured: points.map((point) => percent(point.moved, 1)).join(', '),
    pass: points.every((point) => point.moved <= point.budget + SAME),
    kind: 'quality',
  };
  if (small) return [kept];
  const limits = LIMITS.map(({ moved, above }): Check => {
    const point = points.find(({ budget }) => budget === moved)!;
    return {
      target: `${shape}: ≤ ${percent(above, 0)} above a fresh plan at ${percent(moved, 0)} moved`,
      measured: percent(point.ratio - 1),
      pass: point.ratio <= 1 + above,
      kind: 'quality',
    };
  });
  return [kept, ...limits];
}
