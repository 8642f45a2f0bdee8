/**
 * How far from the proved optimum? Small instances solved exactly as a mixed-integer program, with the replica counts
 * free, and with the counts of the plan, which shows how much of a gap is packing. The certificate is tried too: a
 * lower bound above the optimum would be a false proof.
 */
import { planPlacement } from '../../lib/index.js';
import { solveExact } from '../../test/reference/milp.js';
import {
  type Check,
  type Findings,
  mean,
  percent,
  type RunOptions,
  SAME,
  totalObjective,
} from '../harness.js';
import { smallProblem } from '../workloads.js';

export const name = 'optimum';
export const question = 'how far is a balanced plan from the proved optimum of small instances?';

const INSTANCES = 320;
const SMALL_INSTANCES = 6;
const MEAN_GAP_LIMIT = 0.003;
const WORST_GAP_LIMIT = 0.02;

interface Row {
  seed: number;
  sizes: string;
  gap: number;
  /** Against the optimum of the plan's own replica counts. */
  packingGap: number;
  /** (optimum − lower bound) / optimum */
  boundGap: number;
  /** New pairs the plan calls unavoidable, and the least that any placement needs. */
  forced: number;
  leastForced: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rows: Row[] = [];
  for (let i = 0; i < (small ? SMALL_INSTANCES : INSTANCES); i += 1) rows.push(await measure(seed + i, seed));
  const gaps = rows.map((row) => row.gap);
  const worst = [...rows].sort((a, b) => b.gap - a.gap);
  return {
    tables: [
      {
        title: `all ${rows.length} instances`,
        columns: ['', 'mean', 'worst', 'at 0'],
        rows: [
          summary('gap to the optimum, %', gaps),
          summary(
            'gap with the counts of the plan, %',
            rows.map((row) => row.packingGap),
          ),
          summary(
            'optimum above the lower bound, %',
            rows.map((row) => row.boundGap),
          ),
        ],
      },
      {
        title: 'the worst instances',
        columns: ['seed', 'sizes', 'gap %', 'packing gap %', 'bound gap %'],
        rows: worst
          .slice(0, 10)
          .map((row) => [
            String(row.seed),
            row.sizes,
            100 * row.gap,
            100 * row.packingGap,
            100 * row.boundGap,
          ]),
      },
    ],
    checks: [
      // A few instances say nothing about a mean.
      ...(small ? [] : [meanGapCheck(gaps)]),
      {
        target: `worst gap ≤ ${percent(WORST_GAP_LIMIT, 0)}`,
        measured: percent(worst[0]!.gap, 3),
        pass: worst[0]!.gap <= WORST_GAP_LIMIT,
        kind: 'quality',
      },
      {
        target: 'no lower bound above the optimum, no plan below it',
        measured: `least bound gap ${Math.min(...rows.map((row) => row.boundGap)).toExponential(1)}, least gap ${Math.min(...gaps).toExponential(1)}`,
        pass: rows.every((row) => row.boundGap >= -SAME && row.gap >= -SAME),
        kind: 'quality',
      },
      {
        target: 'moves called forced are the least that any placement needs',
        measured: `${rows.filter((row) => row.forced === row.leastForced).length} of ${rows.length}`,
        pass: rows.every((row) => row.forced === row.leastForced),
        kind: 'quality',
      },
    ],
    notes: [],
  };
}

function meanGapCheck(gaps: number[]): Check {
  return {
    target: `mean gap ≤ ${percent(MEAN_GAP_LIMIT, 1)}`,
    measured: percent(mean(gaps), 3),
    pass: mean(gaps) <= MEAN_GAP_LIMIT,
    kind: 'quality',
  };
}

async function measure(instanceSeed: number, seed: number): Promise<Row> {
  const problem = smallProblem(instanceSeed);
  const plan = await planPlacement(problem, { effort: 'balanced', seed });
  const objective = totalObjective(problem, plan.physicalToLogical);
  const exact = await solveExact(problem);
  const gap = objective / exact.objective - 1;
  // A plan at the optimum is at the optimum of its own counts too.
  const packed = gap <= SAME ? exact : await solveExact(problem, { replicaCounts: plan.replicaCount });
  const { experts, gpus, slotsPerGpu, sources, deadGpus, incumbent } = problem;
  return {
    seed: instanceSeed,
    sizes: `E${experts} G${gpus}×${slotsPerGpu} S${sources}${incumbent ? ' incumbent' : ''}${deadGpus ? ' dead' : ''}`,
    gap,
    packingGap: objective / packed.objective - 1,
    boundGap: 1 - plan.lowerBound / exact.objective,
    forced: plan.forcedMigrations,
    leastForced: exact.forcedMigrations,
  };
}

function summary(title: string, ratios: number[]): (string | number)[] {
  const atZero = ratios.filter((ratio) => Math.abs(ratio) <= SAME).length;
  return [title, 100 * mean(ratios), 100 * Math.max(...ratios), `${atZero} of ${ratios.length}`];
}
