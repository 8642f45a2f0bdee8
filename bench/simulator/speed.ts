/**
 * How much faster than real time is the simulator, on one core: two engines at saturation, and 32 engines over 58 layers; and how
 * much memory does a trace of a million requests take?
 */

import { syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulationOptions } from '../../lib/simulator/types.js';
import type { Check, Findings, RunOptions } from '../harness.js';

export const name = 'simulator-speed';
export const question = 'how much faster than real time are simulations, and what memory do long ones take?';

interface Case {
  name: string;
  /** Times real time. */
  target: number;
  requests: number;
  rate: number;
  options: Omit<SimulationOptions, 'trace'>;
}

const STATIC = { dispatch: 'vllm', queue: 'fcfs', placement: 'static' } as const;
const CASES: Case[] = [
  {
    name: '2 engines of 2 H100, Qwen3-30B-A3B, at saturation',
    target: 100,
    requests: 4000,
    rate: 70,
    options: { model: 'Qwen3-30B-A3B', hardware: 'H100', dp: 2, tp: 2, policy: STATIC },
  },
  {
    name: 'the same under gimbal, plans and feedback included',
    target: 100,
    requests: 4000,
    rate: 70,
    options: { model: 'Qwen3-30B-A3B', hardware: 'H100', dp: 2, tp: 2, policy: { feedback: true } },
  },
  {
    name: '32 engines on 4 nodes, DeepSeek-V3, 58 layers of experts',
    target: 10,
    requests: 2000,
    rate: 100,
    options: {
      model: 'DeepSeek-V3',
      hardware: 'H100',
      dp: 32,
      nodes: 4,
      engine: { allToAll: 'a2a-dedup', maxNumSeqs: 256 },
      policy: STATIC,
    },
  },
];
const MEMORY_GIB = 4;
const MANY_REQUESTS = 1_000_000;

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rows: (string | number)[][] = [];
  const checks: Check[] = [];
  for (const { name: title, target, requests, rate, options } of CASES) {
    const count = small ? Math.ceil(requests / 40) : requests;
    const trace = syntheticTrace({ shape: 'random', requests: count, requestsPerSecond: rate, seed });
    const before = process.cpuUsage();
    const { requests: log, counters } = await simulate({ ...options, trace, seed });
    const used = process.cpuUsage(before);
    const cpuMs = (used.user + used.system) / 1000;
    const simulatedMs = log.reduce((last, { finishMs }) => Math.max(last, finishMs), 0);
    const times = simulatedMs / cpuMs;
    rows.push([
      title,
      round(simulatedMs / 1000),
      round(cpuMs / 1000),
      round(times),
      round((cpuMs * 1000) / counters.steps),
    ]);
    checks.push({
      target: `${title}: at least ${target} times real time`,
      measured: `${round(times)} times`,
      pass: times >= target,
      kind: 'time',
    });
  }
  const memory = await manyRequests(small ? 10_000 : MANY_REQUESTS, seed);
  checks.push({
    target: `${MANY_REQUESTS.toLocaleString('en-US')} requests within ${MEMORY_GIB} GiB`,
    measured: `${memory.toFixed(2)} GiB resident at the most, the trace and the log included`,
    pass: memory < MEMORY_GIB,
    kind: 'time',
  });
  return {
    tables: [
      {
        title: 'simulated time against the processor’s',
        columns: ['case', 'simulated s', 'CPU s', 'times real time', 'µs a step'],
        rows,
      },
    ],
    checks,
    notes: [
      'Time is what the process spent on all its cores, so that other work on the machine does not count.',
    ],
  };
}

/** GiB resident at most, in this process so far, with a simulation of so many short requests. */
async function manyRequests(count: number, seed: number): Promise<number> {
  const trace = syntheticTrace({
    shape: 'average',
    requests: count,
    requestsPerSecond: 400,
    seed,
    meanInputTokens: 128,
    meanOutputTokens: 16,
  });
  await simulate({ model: 'Qwen3-30B-A3B', hardware: 'H100', dp: 2, tp: 2, policy: STATIC, trace, seed });
  return process.resourceUsage().maxRSS / 2 ** 20;
}

function round(value: number): number {
  return Number(value.toPrecision(3));
}
