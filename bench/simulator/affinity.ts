/**
 * What the feedback from placement to dispatch is worth: each engine's expert pressure, its excess of communication, and fingerprints
 * that steer requests to the engine near their experts. Over 8 GPUs and over 32 on four nodes, with and without topics.
 */
import { Planner } from '../../lib/planner.js';
import { Random } from '../../lib/random.js';
import { compareRuns, type FinishedRun } from '../../lib/simulator/compare.js';
import { findServedModel, findServingHardware } from '../../lib/simulator/hardware.js';
import { Routing } from '../../lib/simulator/routing.js';
import { syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type {
  PlacementPlanner,
  SimulatedAllToAll,
  SimulatedPolicy,
  SimulatedRequest,
} from '../../lib/simulator/types.js';
import { topology } from '../../lib/topology.js';
import type { Findings, RunOptions } from '../harness.js';
import { inWords } from './in-words.js';
import { topicTokens } from './rivals.js';

export const name = 'simulator-affinity';
export const question = 'what do feedback and affinity add to dispatch, by cluster, collectives and topics?';

const SEEDS = 5;
const TENANTS = 64;
const COUNTED_TOKENS = 1e5;

const POLICIES: Record<string, SimulatedPolicy> = {
  neither: { feedback: false, affinity: false },
  feedback: { feedback: true, affinity: false, weights: { moe: 1, comm: 0 } },
  'feedback with communication': { feedback: true, affinity: false, weights: { moe: 1, comm: 1 } },
  affinity: { feedback: false, affinity: true },
  'feedback and affinity': { feedback: true, affinity: true, weights: { moe: 1, comm: 0 } },
};

interface Cluster {
  title: string;
  gpus: number;
  nodes: number;
  requests: number;
  requestsPerSecond: number;
}
const NODE: Cluster = { title: 'EP=8', gpus: 8, nodes: 1, requests: 800, requestsPerSecond: 100 };
const FOUR: Cluster = { title: 'EP=32, 4 nodes', gpus: 32, nodes: 4, requests: 1000, requestsPerSecond: 100 };

/** Long enough that pressure is told, and tenants come back. */
const SMALL = { requests: 80, requestsPerSecond: 20 };

/** `near`: planned for topics that are shared out over nodes, or over the GPUs of one, and kept. `replanned`: from a contiguous one. */
type Start = 'near' | 'replanned';

interface Cell {
  cluster: Cluster;
  allToAll: SimulatedAllToAll;
  sigmaTopics: number;
  start: Start;
}

const CELLS: Cell[] = [
  ...[NODE, FOUR].flatMap((cluster) => [
    ...[0, 0.5, 1].map((sigmaTopics) => ({
      cluster,
      allToAll: 'a2a-dedup' as const,
      sigmaTopics,
      start: 'near' as const,
    })),
    { cluster, allToAll: 'allgather-reducescatter' as const, sigmaTopics: 1, start: 'near' as const },
  ]),
  { cluster: FOUR, allToAll: 'a2a-dedup', sigmaTopics: 1, start: 'replanned' },
];

const model = findServedModel('Qwen3-30B-A3B');
const hardware = findServingHardware('H100');

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const cells = small ? CELLS.slice(2, 3) : CELLS;
  const planner = new Planner();
  try {
    const rows: (string | number)[][] = [];
    for (const cell of cells) rows.push(...(await compared(cell, small, seed, planner)));
    return {
      tables: [
        {
          title: `Change against neither, ± 95 % over ${small ? 2 : SEEDS} seeds, of the same traffic for each`,
          columns: [
            'cluster',
            'collectives',
            'σ of topics',
            'placement',
            'policy',
            'TTFT mean',
            'TPOT mean',
            'E2E mean',
          ],
          rows,
        },
      ],
      checks: [],
      notes: [
        `${model.name} on H100, an engine a GPU; synthetic prompts of 1,024 tokens and 128 out in the mean, of ${TENANTS} tenants with a topic of eight each.`,
        'near: the placement was planned for topics shared out over the nodes (over the GPUs of one node), and is kept; replanned: from a contiguous one, every 200 steps.',
        'Engines tell the experts of four tokens of each request that ends; pressure is told every second.',
      ],
    };
  } finally {
    planner.close();
  }
}

async function compared(
  cell: Cell,
  small: boolean,
  seed: number,
  planner: Planner,
): Promise<(string | number)[][]> {
  const runs: FinishedRun[] = [];
  for (let n = 0; n < (small ? 2 : SEEDS); n++) {
    const initial = cell.start === 'near' ? await nearTopics(cell, seed + n, planner) : undefined;
    const trace = traceOf(small ? SMALL : cell.cluster, seed + n);
    for (const [policy, own] of Object.entries(POLICIES)) {
      const result = await simulateCell(cell, own, trace, initial, seed + n, planner);
      runs.push({ policy, seed: seed + n, result });
    }
  }
  const { cluster, allToAll, sigmaTopics, start } = cell;
  return compareRuns(runs).map(({ policy, values, changes }, n) => [
    cluster.title,
    allToAll,
    sigmaTopics,
    start,
    policy,
    ...(['TTFT mean', 'TPOT mean', 'E2E mean'] as const).map((measure) =>
      n === 0 ? `${values[measure].mean.toPrecision(4)} ms` : inWords(changes[measure]),
    ),
  ]);
}

function traceOf(
  { requests, requestsPerSecond }: Pick<Cluster, 'requests' | 'requestsPerSecond'>,
  seed: number,
): SimulatedRequest[] {
  const random = new Random(seed, 1);
  const lengths = { meanInputTokens: 1024, meanOutputTokens: 128 };
  return syntheticTrace({ shape: 'random', requests, requestsPerSecond, seed, ...lengths }).map(
    (request) => ({
      ...request,
      tenant: random.below(TENANTS),
    }),
  );
}

function routingOf({ sigmaTopics }: Cell) {
  return { kind: 'generative', sigmaTopics, stickiness: 1 } as const;
}

async function simulateCell(
  cell: Cell,
  policy: SimulatedPolicy,
  trace: SimulatedRequest[],
  initial: Int32Array | undefined,
  seed: number,
  planner: Planner,
) {
  const { gpus, nodes } = cell.cluster;
  const fast: PlacementPlanner = {
    name: 'gimbal, fast',
    plan: async (problem) =>
      (await planner.plan(problem, { seed, effort: 'fast', backend: 'cpu' })).physicalToLogical,
  };
  return simulate({
    trace,
    model,
    hardware,
    dp: gpus,
    nodes,
    seed,
    engine: { allToAll: cell.allToAll, maxNumSeqs: 256 },
    routing: routingOf(cell),
    rearrangement:
      initial === undefined
        ? { everySteps: 200, windowSteps: 100, firstStep: 50, transfer: 'overlap' }
        : { initial },
    policy: { ...policy, placement: initial === undefined ? fast : 'static' },
  });
}

/** `[layers][gpus * slotsPerGpu]`, from what engines would send if topics were shared out over nodes, or GPUs where there is one. */
async function nearTopics(cell: Cell, seed: number, planner: Planner): Promise<Int32Array> {
  const { gpus, nodes } = cell.cluster;
  const routing = new Routing(routingOf(cell), model, seed);
  const { layers, experts } = routing.tables;
  const parts = nodes > 1 ? nodes : gpus;
  const isOwn = (engine: number, topic: number) => topic % parts === Math.floor((engine * parts) / gpus);
  const tokens = topicTokens(routing, gpus, COUNTED_TOKENS, isOwn);
  const { computeCost, commCost } = topology({
    nodes,
    gpusPerNode: gpus / nodes,
    model,
    hardware,
    sources: gpus,
    // Where bytes do not hang on the placement, an operator would still plan for what the links could do.
    allToAll: 'all-to-all',
  });
  const shape = { layers, sources: gpus, experts, gpus, slotsPerGpu: experts / gpus };
  const problem = { ...shape, tokens, computeCost, commCost };
  return (await planner.plan(problem, { seed, effort: 'fast', backend: 'cpu' })).physicalToLogical;
}
