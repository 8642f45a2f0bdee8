/**
 * What does real routing allow? The whole trade-off between balance and communication cost on the ESFT counts, drawn
 * by sweeping the weight of communication, beside the EPLB family.
 */
import { planPlacement } from '../../lib/index.js';
import type { PlacementProblem } from '../../lib/types.js';
import { balanceOf, evaluateNaive } from '../../test/reference/naive.js';
import { eplbGlobal, eplbHierarchical, topologyAwareSwap } from '../baselines/index.js';
import { type Check, type Findings, mean, type RunOptions, type Table } from '../harness.js';
import { esftProblem, firstLayers } from '../workloads.js';

export const name = 'esft';
export const question = 'how do balance and communication cost trade on real routing counts?';

/** Weight of the mean communication time; the load's weight is 1. */
const WEIGHTS = [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5];
const SMALL_WEIGHTS = [0, 0.5, 2];
const SMALL_LAYERS = 3;
const GROUPS = 8;
/** One token over the dearest link. */
const WORST_COST_PER_TOKEN = 4;

const SETTINGS = [
  { gpus: 8, nodes: 2, balance: 0.99, cost: 0.487 },
  { gpus: 16, nodes: 2, balance: 0.978, cost: 0.51 },
];

interface Point {
  /** Mean over the layers of mean/max load. */
  balance: number;
  /** Communication over that of sending every token across nodes. */
  cost: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const tables: Table[] = [];
  const checks: Check[] = [];
  const notes: string[] = [];
  for (const setting of SETTINGS) {
    const whole = esftProblem(setting);
    if (whole === null) {
      notes.push('skipped: esft_counts.npy is not at hand.');
      break;
    }
    const problem = small ? firstLayers(whole, SMALL_LAYERS) : whole;
    const curve: { weight: number; point: Point }[] = [];
    for (const commTotal of small ? SMALL_WEIGHTS : WEIGHTS) {
      const weights = { load: 1, commMax: 0, commTotal, migration: 0 };
      const plan = await planPlacement({ ...problem, weights }, { effort: 'balanced', seed });
      curve.push({ weight: commTotal, point: pointOf(problem, plan.physicalToLogical) });
    }
    tables.push(tableOf(setting, problem, curve));
    // The targets are for all 26 layers; a small run has too few to compare.
    if (!small) checks.push(checkOf(setting, curve));
  }
  return { tables, checks, notes };
}

function pointOf(problem: PlacementProblem, placement: Int32Array): Point {
  const layers = evaluateNaive(problem, placement);
  const tokens = problem.tokens.reduce((sum, value) => sum + value, 0);
  const comm = layers.reduce((sum, layer) => sum + layer.commTotal, 0);
  return {
    balance: mean(layers.map((layer) => balanceOf(problem, layer.load))),
    cost: comm / (tokens * WORST_COST_PER_TOKEN),
  };
}

function tableOf(
  { gpus, nodes }: { gpus: number; nodes: number },
  problem: PlacementProblem,
  curve: { weight: number; point: Point }[],
): Table {
  const eplb = eplbGlobal(problem);
  const rivals: [string, Int32Array][] = [
    ['EPLB', eplb],
    ['EPLB hierarchical', eplbHierarchical(problem, { nodes, groups: GROUPS })],
    ['swap on EPLB', topologyAwareSwap(problem, eplb)],
  ];
  const row = (label: string, { balance, cost }: Point): (string | number)[] => [label, balance, cost];
  return {
    title: `${gpus} GPUs, ${nodes} nodes`,
    columns: ['placement', 'balance', 'cost'],
    rows: [
      ...rivals.map(([label, placement]) => row(label, pointOf(problem, placement))),
      ...curve.map(({ weight, point }) => row(`planner, weight ${weight}`, point)),
    ],
  };
}

function checkOf(
  { gpus, nodes, balance, cost }: (typeof SETTINGS)[number],
  curve: { weight: number; point: Point }[],
): Check {
  const meeting = curve.filter(({ point }) => point.balance >= balance && point.cost <= cost);
  const cheapest = curve
    .filter(({ point }) => point.balance >= balance)
    .sort((a, b) => a.point.cost - b.point.cost)[0];
  const said = meeting.map(
    ({ weight, point }) => `${point.balance.toFixed(4)}/${point.cost.toFixed(4)} at ${weight}`,
  );
  const nearest = cheapest
    ? `cheapest at that balance: ${cheapest.point.cost.toFixed(4)}`
    : 'no point at that balance';
  return {
    target: `${gpus} GPUs, ${nodes} nodes: balance ≥ ${balance} with cost ≤ ${cost}`,
    measured: meeting.length > 0 ? said.join(', ') : nearest,
    pass: meeting.length > 0,
    kind: 'quality',
  };
}
