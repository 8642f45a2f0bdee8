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
import { type Findings, percent, type RunOptions, rounded } from '../harness.js';
import { inWords } from './in-words.js';
import { sustainedRate } from './saturation.js';

export const name = 'simulator-beyond';
export const question = 'do the policies win with larger models, 8 and 32 GPUs, and recorded traffic?';

const POLICIES = ['vllm', 'sglang', 'dynamo', 'smg', 'gimbal'] as const;
const LOAD = 0.85;
const SMALL_REQUESTS = 60;
const SEEDS = 3;
/** Recorded prompts grow longer by a fifth along what is used of Azure's. */
const GROWTH = 0.05;

/** `requests`: of Azure's, and of Mooncake's, whose prompts are ten times as long. */
const CLUSTERS: { title: string; options: Omit<SimulationOptions, 'trace'>; requests: [number, number] }[] = [
  {
    title: 'Qwen3-235B-A22B, 8 × H200',
    requests: [2000, 400],
    options: { model: 'Qwen3-235B-A22B', hardware: 'H200', dp: 8 },
  },
  {
    title: 'DeepSeek-V3, 8 × H200',
    requests: [2000, 400],
    options: { model: 'DeepSeek-V3', hardware: 'H200', dp: 8 },
  },
  {
    title: 'Qwen3-235B-A22B, 4 nodes of 8 × H100',
    requests: [2500, 400],
    options: { model: 'Qwen3-235B-A22B', hardware: 'H100', dp: 32, nodes: 4 },
  },
  {
    title: 'DeepSeek-V3, 4 nodes of 8 × H100',
    requests: [2500, 400],
    options: { model: 'DeepSeek-V3', hardware: 'H100', dp: 32, nodes: 4 },
  },
];
const REARRANGEMENT = { everySteps: 3000, windowSteps: 1000, firstStep: 300 };
/** A model of 8 GPUs or more sends each token once to each GPU. */
const ENGINE = { allToAll: 'a2a-dedup', maxNumSeqs: 256 } as const;

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const found = [azureTrace(), mooncakeTrace()];
  if (found.every((trace) => trace === undefined)) {
    return {
      tables: [],
      checks: [],
      notes: ['skipped: no recorded traffic is at hand.'],
    };
  }
  const rows: (string | number)[][] = [];
  for (const { title, options, requests } of small ? CLUSTERS.slice(0, 1) : CLUSTERS) {
    for (const [n, trace] of found.entries()) {
      if (trace === undefined || (small && n > 0)) continue;
      const count = small ? SMALL_REQUESTS : requests[n]!;
      rows.push(...(await compared(title, options, trace, count, seed, small ? 1 : SEEDS)));
    }
  }
  return {
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
      `Of ${SEEDS} seeds, which are of routing and of ties; requests are the same. ± is half a 95 % interval over them.`,
      'Saturation: the most requests a second, evenly spaced, with which vLLM’s waiting prompts do not grow in number by more than a twentieth of what arrives.',
    ],
  };
}

async function compared(
  title: string,
  options: Omit<SimulationOptions, 'trace'>,
  recorded: Trace,
  count: number,
  seed: number,
  seeds: number,
): Promise<(string | number)[][]> {
  const requests = recorded.requests
    .slice(0, count)
    .map(({ arrivalMs, promptTokens, outputTokens, prefixHashes }) => ({
      arrivalMs,
      inputTokens: promptTokens,
      outputTokens,
      ...(prefixHashes === undefined ? {} : { prefixHashes }),
    }));
  const simulateAt = (trace: SimulatedRequest[], policy: (typeof POLICIES)[number], own = seed) =>
    simulate({
      ...options,
      engine: ENGINE,
      rearrangement: REARRANGEMENT,
      policy: simulatedPolicies[policy],
      trace,
      seed: own,
    });
  const saturation = await sustainedRate(requests, (evenly) => simulateAt(evenly, 'vllm'), GROWTH);
  const trace = atRate(requests, LOAD * saturation);
  const runs: FinishedRun[] = [];
  for (const policy of POLICIES) {
    for (let own = seed; own < seed + seeds; own++) {
      runs.push({ policy, seed: own, result: await simulateAt(trace, policy, own) });
    }
  }
  return compareRuns(runs).map(({ policy, values, changes }) => [
    title,
    recorded.name,
    policy,
    rounded(LOAD * saturation),
    rounded(values['TTFT mean'].mean),
    inWords(changes['TTFT mean']),
    percent(changes['TTFT p99'].mean, 1),
    rounded(values['TPOT mean'].mean),
    inWords(changes['TPOT mean']),
    percent(changes['goodput/s'].mean, 1),
  ]);
}
