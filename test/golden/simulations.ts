/**
 * The pinned simulations: short runs that touch every mechanism, as figures of six digits. `npx tsx test/golden/simulations.ts
 * --write` pins them anew after a change of the model; a change of anything else must leave them.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeFileAtomic } from '../../lib/files.js';
import { syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulationOptions } from '../../lib/simulator/types.js';
import { BASE, randomTrace } from '../unit/simulator-fixture.js';

const FILE = join(__dirname, 'simulations.json');
const DIGITS = 6;

export type PinnedFigures = Record<string, Record<string, number>>;

const chat = (requests: number, requestsPerSecond: number) =>
  syntheticTrace({ shape: 'two-end', requests, requestsPerSecond, seed: 1 });
const VLLM = { dispatch: 'vllm', queue: 'fcfs', placement: 'eplb' } as const;

const CASES: Record<string, SimulationOptions> = {
  'gimbal on 4 H100': {
    trace: chat(300, 60),
    model: 'Qwen3-30B-A3B',
    hardware: 'H100',
    dp: 2,
    tp: 2,
    rearrangement: { controller: { lookEveryMs: 1000, sampleShare: 0.5, rules: { minIntervalMs: 2000 } } },
  },
  'planned every so many steps on 4 H100': {
    trace: chat(300, 60),
    model: 'Qwen3-30B-A3B',
    hardware: 'H100',
    dp: 2,
    tp: 2,
    policy: { placement: 'periodic' },
    rearrangement: { firstStep: 100 },
  },
  'vllm on 4 H100': {
    trace: chat(300, 60),
    model: 'Qwen3-30B-A3B',
    hardware: 'H100',
    dp: 2,
    tp: 2,
    policy: VLLM,
    rearrangement: { firstStep: 100 },
  },
  'deepseek on 4 nodes': {
    trace: chat(200, 100),
    model: 'DeepSeek-V3',
    hardware: 'H100',
    dp: 32,
    nodes: 4,
    engine: { allToAll: 'a2a-dedup' },
    policy: { placement: 'static' },
  },
  'little memory and a prefix cache': {
    ...BASE,
    trace: randomTrace({ count: 300, gapMs: 3, seed: 2, prefixes: true }),
    engine: { ...BASE.engine, kvBlocks: 70 },
    policy: { placement: 'periodic' },
    rearrangement: { everySteps: 200, windowSteps: 50, redundantExperts: 4 },
  },
  'paced, drifting, by pair': {
    ...BASE,
    trace: randomTrace({ count: 300, gapMs: 3, seed: 2 }),
    engine: { ...BASE.engine, allToAll: 'a2a-pairs' },
    routing: { kind: 'generative', halfLifeMs: 200 },
    policy: { placement: 'periodic', pacing: { leastTokens: 200 } },
  },
  'swift, and a GPU lost for a while': {
    ...BASE,
    dp: 4,
    trace: randomTrace({ count: 300, gapMs: 4, seed: 2 }),
    policy: { placement: 'swift' },
    rearrangement: { everySteps: 100, windowSteps: 50, redundantExperts: 8 },
    failures: [{ atMs: 500, gpu: 1, backMs: 900 }],
  },
  'the oracle, of one layer': {
    ...BASE,
    trace: randomTrace({ count: 300, gapMs: 4, seed: 2 }),
    policy: { placement: 'oracle' },
    rearrangement: { oracleEveryMs: 200 },
    simulatedLayers: 1,
  },
  'feedback, and affinity between nodes': {
    ...BASE,
    trace: randomTrace({ count: 300, gapMs: 8, seed: 2 }).map((one, n) => ({ ...one, tenant: n % 5 })),
    dp: 4,
    nodes: 2,
    engine: { ...BASE.engine, allToAll: 'a2a-dedup' },
    policy: { placement: 'periodic', feedback: true, weights: { moe: 1, comm: 1 } },
    rearrangement: { everySteps: 200, windowSteps: 50 },
  },
};

export async function figuresNow(): Promise<PinnedFigures> {
  const figures: PinnedFigures = {};
  for (const [name, options] of Object.entries(CASES)) {
    const { summary, counters } = await simulate({ ...options, seed: 1 });
    const { ttftMs, tpotMs, e2eMs } = summary;
    const all = { ttft: ttftMs.mean, ttftP99: ttftMs.p99, tpot: tpotMs.mean, e2e: e2eMs.mean, ...counters };
    figures[name] = Object.fromEntries(
      Object.entries(all).map(([key, value]) => [key, Number(value.toPrecision(DIGITS))]),
    );
  }
  return figures;
}

export function pinnedFigures(): PinnedFigures {
  return JSON.parse(readFileSync(FILE, 'utf8'));
}

if (require.main === module && process.argv.includes('--write')) {
  void figuresNow().then((figures) => writeFileAtomic(FILE, `${JSON.stringify(figures, null, 2)}\n`));
}
