/**
 * What can placement win, by how unequal experts are (σ of their popularity and of topics alike) and by whether each rank has
 * traffic of its own kind (requests bound to their topic's rank) or the same mixture?
 */
import { compareRuns, type FinishedRun } from '../../lib/simulator/compare.js';
import { syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedRouting, SimulationOptions, SimulationResult } from '../../lib/simulator/types.js';
import { type Findings, mean, type RunOptions } from '../harness.js';
import { inWords } from './in-words.js';

export const name = 'simulator-spread';
export const question = 'what can placement win, by the spread of experts and the stickiness of ranks?';

const SIGMAS = [0.3, 0.5, 0.7, 0.9, 1.1];
const STICKINESS = [0, 0.9];
const SEEDS = 3;
const SMALL_REQUESTS = 60;

interface Cluster {
  title: string;
  requests: number;
  rate: number;
  options: Omit<SimulationOptions, 'trace'>;
}

const CLUSTERS: Cluster[] = [
  {
    title: 'EP=2, all-gather',
    requests: 600,
    rate: 25,
    options: { model: 'Qwen3-30B-A3B', hardware: 'H100', dp: 2 },
  },
  {
    title: 'EP=8, copies by GPU',
    requests: 1600,
    rate: 120,
    options: { model: 'Qwen3-30B-A3B', hardware: 'H100', dp: 8, engine: { allToAll: 'a2a-dedup' } },
  },
];
/** Runs are short, and plans come early. */
const REARRANGEMENT = { firstStep: 100, everySteps: 400, windowSteps: 200 };

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rows: (string | number)[][] = [];
  const seeds = Array.from({ length: small ? 1 : SEEDS }, (_, n) => seed + n);
  for (const cluster of small ? CLUSTERS.slice(0, 1) : CLUSTERS) {
    const requests = small ? SMALL_REQUESTS : cluster.requests;
    for (const sigma of small ? SIGMAS.slice(-1) : SIGMAS) {
      const routing = { kind: 'generative', sigmaExperts: sigma, sigmaTopics: sigma } as const;
      for (const stickiness of small ? STICKINESS.slice(-1) : STICKINESS) {
        const still = await runs(cluster, requests, seeds, routing, stickiness, 'static');
        const planned = await runs(cluster, requests, seeds, routing, stickiness, 'periodic');
        rows.push([cluster.title, sigma, stickiness, ...figures(still, planned)]);
      }
    }
  }
  return {
    tables: [
      {
        title:
          'planned against contiguous placement: expert imbalance, time per token, to the first one and end to end',
        columns: ['cluster', 'σ', 'stickiness', 'imbalance', 'planned', 'TPOT', 'TTFT', 'E2E'],
        rows,
      },
    ],
    checks: [],
    notes: [
      'Qwen3-30B-A3B on H100s, one GPU an engine, synthetic traffic at mid load, vLLM’s rules of dispatch and queue for what is not bound to a rank; the time of transfers is in it.',
    ],
  };
}

async function runs(
  { rate, options }: Cluster,
  requests: number,
  seeds: readonly number[],
  routing: SimulatedRouting,
  rankStickiness: number,
  placement: 'static' | 'periodic',
): Promise<SimulationResult[]> {
  const results: SimulationResult[] = [];
  for (const seed of seeds) {
    const trace = syntheticTrace({ shape: 'random', requests, requestsPerSecond: rate, seed });
    const policy = { dispatch: 'vllm', queue: 'fcfs', placement, feedback: false, rankStickiness } as const;
    results.push(await simulate({ ...options, trace, routing, policy, rearrangement: REARRANGEMENT, seed }));
  }
  return results;
}

function figures(
  still: readonly SimulationResult[],
  planned: readonly SimulationResult[],
): (string | number)[] {
  const named = (policy: string, results: readonly SimulationResult[]): FinishedRun[] =>
    results.map((result, seed) => ({ policy, seed, result }));
  const { changes } = compareRuns([...named('still', still), ...named('planned', planned)])[1]!;
  const imbalance = (results: readonly SimulationResult[]) =>
    Number(mean(results.flatMap(({ series }) => series.expertImbalance)).toFixed(3));
  const told = (['TPOT mean', 'TTFT mean', 'E2E mean'] as const).map((measure) => inWords(changes[measure]));
  return [imbalance(still), imbalance(planned), ...told];
}
