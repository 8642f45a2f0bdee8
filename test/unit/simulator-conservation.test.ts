/** Nothing is lost or made in a simulation: requests, tokens, KV blocks; and the same options give the same result. */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulationOptions, SimulationResult } from '../../lib/simulator/types.js';
import { BASE, randomTrace } from './simulator-fixture.js';

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

const CASES: [name: string, options: Partial<SimulationOptions>, prefixes: boolean][] = [
  ['two ranks', {}, false],
  ['one rank', { dp: 1 }, false],
  ['groups of their own', { dp: 4, ep: 2 }, false],
  ['tensor parallelism', { dp: 2, tp: 2 }, false],
  ['little memory, so that requests are preempted', { engine: { ...BASE.engine, kvBlocks: 60 } }, false],
  ['a prefix cache', {}, true],
  ['a prefix cache in little memory', { engine: { ...BASE.engine, kvBlocks: 60 } }, true],
  ['pacing', { policy: { pacing: { leastTokens: 100 } } }, false],
  ['copies by pair', { engine: { ...BASE.engine, allToAll: 'a2a-pairs' } }, false],
  ['copies by GPU, two nodes', { dp: 4, nodes: 2, engine: { ...BASE.engine, allToAll: 'a2a-dedup' } }, false],
  [
    'rearrangement with stalls',
    { policy: { placement: 'eplb' }, rearrangement: { everySteps: 200, windowSteps: 50 } },
    false,
  ],
  [
    'rearrangement beside the work',
    {
      policy: { placement: 'periodic' },
      rearrangement: { everySteps: 200, windowSteps: 50, redundantExperts: 4 },
    },
    false,
  ],
  [
    'the controller',
    { rearrangement: { controller: { lookEveryMs: 100, sampleShare: 0.5, rules: { minIntervalMs: 200 } } } },
    false,
  ],
  [
    'a GPU lost and back, a prefix cache, in little memory',
    {
      dp: 4,
      engine: { ...BASE.engine, kvBlocks: 60 },
      rearrangement: { redundantExperts: 8 },
      failures: [{ atMs: 300, gpu: 1, backMs: 1500 }],
    },
    true,
  ],
  [
    'GPUs lost one after another, with pacing',
    {
      dp: 3,
      tp: 2,
      policy: { pacing: { leastTokens: 100 } },
      rearrangement: { redundantExperts: 16 },
      failures: [
        { atMs: 200, gpu: 1 },
        { atMs: 600, gpu: 0, backMs: 1000 },
        { atMs: 700, gpu: 5, backMs: 2000 },
      ],
    },
    false,
  ],
  [
    'groups, one of which loses a GPU',
    {
      dp: 4,
      ep: 2,
      policy: { placement: 'oracle' },
      rearrangement: { redundantExperts: 16, oracleEveryMs: 300 },
      failures: [{ atMs: 300, gpu: 3, backMs: 900 }],
    },
    false,
  ],
  ['rivals', { policy: { dispatch: 'vllm', queue: 'fcfs', placement: 'static' } }, false],
  ['drifting experts', { routing: { kind: 'generative', halfLifeMs: 100 } }, false],
];

describe('a simulation', () => {
  it.each(CASES)('finishes every request once: %s', async (_, options, prefixes) => {
    const trace = randomTrace({ count: 400, gapMs: 2, seed: 11, prefixes });
    const result = await simulate({ ...BASE, ...options, trace });
    const engines = options.dp ?? BASE.dp;
    expect(result.requests.length).toBe(trace.length);
    for (const [n, request] of result.requests.entries()) {
      expect(request.arrivalMs).toBe(trace[n]!.arrivalMs);
      expect(request.firstTokenMs).toBeGreaterThan(request.arrivalMs);
      expect(request.finishMs).toBeGreaterThanOrEqual(request.firstTokenMs);
      if (trace[n]!.outputTokens > 1) expect(request.finishMs).toBeGreaterThan(request.firstTokenMs);
      expect(request.engine).toBeGreaterThanOrEqual(0);
      expect(request.engine).toBeLessThan(engines);
    }
    const { counters } = result;
    expect(counters.leakedBlocks).toBe(0);
    // Every prompt token is computed once or found; what was thrown away is computed again.
    const input = sum(trace.map(({ inputTokens }) => inputTokens));
    const output = sum(trace.map(({ outputTokens }) => outputTokens));
    // Of n tokens the prefill gives the first. What a preempted request had decoded is prefill when it comes back,
    // and that prefill gives one token too.
    const computed = counters.prefillTokens + counters.cachedTokens + counters.decodeTokens;
    expect(computed).toBe(input + output - trace.length + counters.recomputedTokens);
    expect(counters.preemptions > 0).toBe(options.engine?.kvBlocks === 60);
    expect(counters.resentRequests > 0).toBe(options.failures !== undefined);
    expect(counters.cachedTokens > 0).toBe(prefixes);
  });

  it('uses every engine, and none alone', async () => {
    const { requests } = await simulate({
      ...BASE,
      dp: 4,
      ep: 2,
      trace: randomTrace({ count: 200, gapMs: 2, seed: 1 }),
    });
    for (let engine = 0; engine < 4; engine++) {
      expect(requests.filter((one) => one.engine === engine).length).toBeGreaterThan(20);
    }
  });

  it('is the same to the byte with the same seed, and another with another', async () => {
    const trace = randomTrace({ count: 300, gapMs: 2, seed: 5 });
    const controller = { lookEveryMs: 100, sampleShare: 0.5, rules: { minIntervalMs: 200 } };
    const options = { ...BASE, trace, rearrangement: { controller } };
    const [a, b, c] = await Promise.all([
      simulate(options),
      simulate(options),
      simulate({ ...options, seed: 4 }),
    ]);
    expect(hash(a!)).toBe(hash(b!));
    expect(hash(a!)).not.toBe(hash(c!));
  });

  it('reaches percentiles and rates that its own log gives', async () => {
    const trace = randomTrace({ count: 200, gapMs: 4, seed: 6 });
    const { requests, summary } = await simulate({ ...BASE, trace, slo: { ttftMs: 200, tpotMs: 4 } });
    const ttft = requests.map((one) => one.firstTokenMs - one.arrivalMs).sort((x, y) => x - y);
    expect(summary.ttftMs.mean).toBeCloseTo(sum(ttft) / 200, 6);
    expect([summary.ttftMs.p50, summary.ttftMs.p90, summary.ttftMs.p99]).toEqual([
      ttft[99],
      ttft[179],
      ttft[197],
    ]);
    const seconds = (Math.max(...requests.map(({ finishMs }) => finishMs)) - requests[0]!.arrivalMs) / 1000;
    expect(summary.requestsPerSecond).toBeCloseTo(200 / seconds, 6);
    const good = requests.filter((one, n) => {
      const { outputTokens } = trace[n]!;
      const tpot = outputTokens > 1 ? (one.finishMs - one.firstTokenMs) / (outputTokens - 1) : 0;
      return one.firstTokenMs - one.arrivalMs <= 200 && tpot <= 4;
    });
    expect(summary.goodShare).toBeCloseTo(good.length / 200, 9);
    expect(good.length).toBeGreaterThan(10);
    expect(good.length).toBeLessThan(190);
  });
});

function hash(result: SimulationResult): string {
  return createHash('sha256').update(JSON.stringify(result)).digest('hex');
}
