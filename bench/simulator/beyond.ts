/**
 * Larger models on more GPUs under recorded traffic: our policies beside those of vLLM, SGLang, Dynamo and SMG, stalls of
 * rearrangement included.
 */
import { compareRuns, type FinishedRun } from '../../lib/simulator/compare.js';
import { simulatedPolicies } from '../../lib/simulator/policies.js';
import { simulate } from '../../lib/simulator/simulate.js';
import { atRate } from '../../lib/simulator/traces.js';
import type { SimulatedRequest, SimulationOptions } from '../../lib/simulator/types.js';
import { azureTrace, mooncakeTrace, type Trace } from '../dispatch/traces.js';
import { type BenchResult, DEFAULT_SEED, percent, type RunOptions } from '../harness.js';

export const name = 'simulator-beyond';
export const question = 'do the policies win with larger models, 8 and 32 GPUs, and recorded traffic?';

const POLICIES = ['vllm', 'sglang', 'dynamo', 'smg', 'gimbal'] as const;
const LOAD = 0.85;
const OVERLOAD_PER_SECOND = 100_000;

const CLUSTERS: { title: string; options: Omit<SimulationOptions, 'trace'>; requests: number }[] = [
  {
    title: 'Qwen3-235B-A22B, 8 × H200',
    requests: 800,
    options: { model: 'Qwen3-235B-A22B', hardware: 'H200', dp: 8 },
  },
  {
    title: 'DeepSeek-V3, 8 × H200',
    requests: 800,
    options: { model: 'DeepSeek-V3', hardware: 'H200', dp: 8 },
  },
  {
    title: 'Qwen3-235B-A22B, 4 nodes of 8 × H100',
    requests: 1600,
    options: { model: 'Qwen3-235B-A22B', hardware: 'H100', dp: 32, nodes: 4 },
  },
  {
    title: 'DeepSeek-V3, 4 nodes of 8 × H100',
    requests: 1600,
    options: { model: 'DeepSeek-V3', hardware: 'H100', dp: 32, nodes: 4 },
  },
];
const REARRANGEMENT = { everySteps: 3000, windowSteps: 1000, firstStep: 300 };
/** A model of 8 GPUs or more sends each token once to each GPU. */
const ENGINE = { allToAll: 'a2a-dedup', maxNumSeqs: 256 } as const;

export async function run({ small, seed = DEFAULT_SEED }: RunOptions): Promise<BenchResult> {
  const most = small ? 60 : Math.max(...CLUSTERS.map(({ requests }) => requests));
  const found = [azureTrace(), mooncakeTrace()].filter((one) => one !== undefined);
  if (found.length === 0) {
    return {
      name,
      question,
      seed,
      small,
      tables: [],
      checks: [],
      notes: ['skipped: no recorded traffic is at hand.'],
    };
  }
  const rows: (string | number)[][] = [];
  for (const { title, options, requests } of small ? CLUSTERS.slice(0, 1) : CLUSTERS) {
    for (const trace of small ? found.slice(0, 1) : found) {
      rows.push(...(await compared(title, options, trace, small ? most : requests, seed)));
    }
  }
  return {
    name,
    question,
    seed,
    small,
    tables: [
      {
        title: `at ${LOAD} of vLLM's saturation: ms, and change against vLLM`,
        columns: [
          'cluster',
          'traffic',
          'policy',
          'requests/s',
          'TTFT mean',
          'change',
          'p99 change',
          'TPOT mean',
          'change',
          'goodput change',
        ],
        rows,
      },
    ],
    checks: [],
    notes: [
      'EP over all GPUs, one GPU an engine; EPLB plans after 300 steps and every 3,000, with a stall; ours where its controller decides to, beside the work.',
      'One seed: read small differences with that in mind.',
    ],
  };
}

async function compared(
  title: string,
  options: Omit<SimulationOptions, 'trace'>,
  recorded: Trace,
  count: number,
  seed: number,
): Promise<(string | number)[][]> {
  const requests = recorded.requests
    .slice(0, count)
    .map(({ arrivalMs, promptTokens, outputTokens, prefixHashes }) => ({
      arrivalMs,
      inputTokens: promptTokens,
      outputTokens,
      ...(prefixHashes === undefined ? {} : { prefixHashes }),
    }));
  const simulateAt = (trace: SimulatedRequest[], policy: (typeof POLICIES)[number]) =>
    simulate({
      ...options,
      engine: ENGINE,
      rearrangement: REARRANGEMENT,
      policy: simulatedPolicies[policy],
      trace,
      seed,
    });
  const over = await simulateAt(atRate(requests, OVERLOAD_PER_SECOND), 'vllm');
  const ends = over.requests.map(({ finishMs }) => finishMs).sort((a, b) => a - b);
  const [from, to] = [Math.floor(0.25 * count), Math.floor(0.75 * count)];
  const saturation = ((to - from) * 1000) / (ends[to]! - ends[from]!);
  const trace = atRate(requests, LOAD * saturation);
  const runs: FinishedRun[] = [];
  for (const policy of POLICIES) runs.push({ policy, seed, result: await simulateAt(trace, policy) });
  return compareRuns(runs).map(({ policy, values, changes }) => [
    title,
    recorded.name,
    policy,
    round(LOAD * saturation),
    round(values['TTFT mean'].mean),
    percent(changes['TTFT mean'].mean, 1),
    percent(changes['TTFT p99'].mean, 1),
    round(values['TPOT mean'].mean),
    percent(changes['TPOT mean'].mean, 1),
    percent(changes['goodput/s'].mean, 1),
  ]);
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}
