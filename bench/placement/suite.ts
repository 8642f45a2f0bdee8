/**
 * Is the planner ever worse than a rival? J on every instance of the seeded suite beside every baseline; where
 * communication weighs nothing, the balance beside EPLB's.
 */
import { planPlacement } from '../../lib/index.js';
import type { PlacementProblem } from '../../lib/types.js';
import { contiguous, eplbGlobal, eplbHierarchical, random, topologyAwareSwap } from '../baselines/index.js';
import {
  type Check,
  type Findings,
  layerObjectives,
  percent,
  type RunOptions,
  SAME,
  type Table,
} from '../harness.js';
import { firstLayers, type SuiteInstance, suite, workload } from '../workloads.js';

export const name = 'suite';
export const question = 'is J ever above any baseline, or the balance below EPLB where only load counts?';

const SMALL_LAYERS = 1;
const SMALL_EVERY = 7;
const BALANCE_ONLY = { load: 1, commMax: 0, commTotal: 0, migration: 0 };
const BASELINES = ['EPLB', 'EPLB hier.', 'swap on EPLB', 'swap on contig.', 'contiguous', 'random'] as const;

interface Row {
  instance: SuiteInstance;
  fast: number[];
  balanced: number[];
  /** One array of layer objectives per baseline, in the order of BASELINES. */
  baselines: number[][];
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const instances = suite(seed).filter((_, i) => !small || i % SMALL_EVERY === 0);
  const rows: Row[] = [];
  const balance: Row[] = [];
  for (const instance of instances) {
    const whole = workload(instance.options);
    const problem = small ? firstLayers(whole, SMALL_LAYERS) : whole;
    rows.push(await measure(instance, problem, seed));
    // Without communication the nodes make no difference, and equal sources are no special case.
    if (small || instance.nodes === 1)
      balance.push(await measure(instance, { ...problem, weights: BALANCE_ONLY }, seed));
  }
  return {
    tables: [objectiveTable(rows), balanceTable(balance)],
    checks: [...objectiveChecks(rows), ...balanceChecks(balance)],
    notes: ['J is summed over the layers, in ms; every figure comes from the reference evaluation.'],
  };
}

async function measure(instance: SuiteInstance, problem: PlacementProblem, seed: number): Promise<Row> {
  const planned = async (effort: 'fast' | 'balanced'): Promise<number[]> =>
    layerObjectives(problem, (await planPlacement(problem, { effort, seed })).physicalToLogical);
  const eplb = eplbGlobal(problem);
  const inOrder = contiguous(problem);
  const placements = [
    eplb,
    eplbHierarchical(problem, { nodes: instance.nodes, groups: instance.options.shape.groups }),
    topologyAwareSwap(problem, eplb),
    topologyAwareSwap(problem, inOrder),
    inOrder,
    random(problem, seed),
  ];
  return {
    instance,
    fast: await planned('fast'),
    balanced: await planned('balanced'),
    baselines: placements.map((placement) => layerObjectives(problem, placement)),
  };
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const NS_PER_MS = 1e6;

function bestBaseline(row: Row): number {
  return Math.min(...row.baselines.map(sum));
}

function objectiveTable(rows: Row[]): Table {
  return {
    title: 'J, ms',
    columns: ['instance', 'fast', 'balanced', ...BASELINES, 'balanced / best baseline'],
    rows: rows.map((row) => [
      row.instance.name,
      sum(row.fast) / NS_PER_MS,
      sum(row.balanced) / NS_PER_MS,
      ...row.baselines.map((layers) => sum(layers) / NS_PER_MS),
      sum(row.balanced) / bestBaseline(row),
    ]),
  };
}

function objectiveChecks(rows: Row[]): Check[] {
  const worst = Math.max(...rows.map((row) => sum(row.balanced) / bestBaseline(row)));
  const worstFast = Math.max(
    ...rows.map((row) => sum(row.fast) / Math.min(sum(row.baselines[0]!), sum(row.baselines[1]!))),
  );
  const layerRatios = rows.flatMap((row) =>
    row.balanced.map(
      (objective, layer) => objective / Math.min(...row.baselines.map((layers) => layers[layer]!)),
    ),
  );
  const worstLayer = Math.max(...layerRatios);
  return [
    {
      target: `balanced: J ≤ every baseline on all ${rows.length} instances`,
      measured: `worst ratio ${worst.toFixed(5)}`,
      pass: worst <= 1 + SAME,
      kind: 'quality',
    },
    {
      target: `balanced: the same on each of their ${layerRatios.length} layers`,
      measured: `worst ratio ${worstLayer.toFixed(5)}`,
      pass: worstLayer <= 1 + SAME,
      kind: 'quality',
    },
    {
      target: 'fast: J ≤ EPLB, global and hierarchical, on all instances',
      measured: `worst ratio ${worstFast.toFixed(5)}`,
      pass: worstFast <= 1 + SAME,
      kind: 'quality',
    },
  ];
}

/** The mean load is the same for all, so the ratio of the maxima (here J) is the inverse ratio of the balances. */
function balanceTable(rows: Row[]): Table {
  return {
    title: 'communication weight 0: sum of the maximum loads, ms',
    columns: ['instance', 'balanced', 'EPLB', 'EPLB hier.', 'balanced / EPLB', 'worst layer'],
    rows: rows.map((row) => [
      row.instance.name,
      sum(row.balanced) / NS_PER_MS,
      sum(row.baselines[0]!) / NS_PER_MS,
      sum(row.baselines[1]!) / NS_PER_MS,
      sum(row.balanced) / sum(row.baselines[0]!),
      worstAgainstEplb(row),
    ]),
  };
}

function worstAgainstEplb(row: Row): number {
  const [global, hierarchical] = row.baselines as [number[], number[]];
  return Math.max(...row.balanced.map((max, layer) => max / Math.min(global[layer]!, hierarchical[layer]!)));
}

function balanceChecks(rows: Row[]): Check[] {
  const worst = Math.max(...rows.map(worstAgainstEplb));
  return [
    {
      target: "balanced, communication weight 0: balance ≥ EPLB's on every layer",
      measured: `worst ratio of maxima ${worst.toFixed(5)} (${percent(worst - 1)})`,
      pass: worst <= 1 + SAME,
      kind: 'quality',
    },
  ];
}
