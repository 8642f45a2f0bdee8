/** What theory and common sense say of queues and batches, held against the simulator. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../lib/random.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulationOptions } from '../../lib/simulator/types.js';
import { BASE, HARDWARE, MODEL, randomTrace } from './simulator-fixture.js';

/** One request at a time, of one token each: a server with a constant time of service. */
const ONE_BY_ONE: Omit<SimulationOptions, 'trace'> = {
  model: MODEL,
  hardware: HARDWARE,
  dp: 1,
  engine: { maxNumSeqs: 1, maxNumBatchedTokens: 4096, kvBlocks: 1000, requestMs: 0, asyncScheduling: false },
  routing: { kind: 'uniform' },
  policy: { queue: 'fcfs', placement: 'static' },
};

describe('queueing theory', () => {
  /** Constant service, so many ms alone in the house. */
  async function queue(load: number, count: number) {
    const inputTokens = 1000;
    // Far apart, and many: pairs of experts are drawn, so that services differ a little.
    const apart = Array.from({ length: 1000 }, (_, n) => ({
      arrivalMs: 1000 * n,
      inputTokens,
      outputTokens: 1,
    }));
    const alone = await simulate({ ...ONE_BY_ONE, trace: apart });
    const serviceMs = alone.summary.ttftMs.mean;
    const random = new Random(Math.round(100 * load));
    let arrivalMs = 0;
    const trace = Array.from({ length: count }, () => {
      arrivalMs -= (Math.log(1 - random.uniform()) * serviceMs) / load;
      return { arrivalMs, inputTokens, outputTokens: 1 };
    });
    return { serviceMs, trace, ...(await simulate({ ...ONE_BY_ONE, trace })) };
  }

  it.each([0.3, 0.6])('an M/D/1 queue at load %s waits as Pollaczek and Khinchine have it', async (load) => {
    const { serviceMs, summary } = await queue(load, 30_000);
    const expected = serviceMs + (load * serviceMs) / (2 * (1 - load));
    expect(Math.abs(summary.ttftMs.mean / expected - 1)).toBeLessThan(0.02);
  });

  it('and at load 0.9 each request waits as Lindley’s recursion has it', async () => {
    const { serviceMs, trace, requests } = await queue(0.9, 5000);
    let waitMs = 0;
    for (const [n, { arrivalMs }] of trace.entries()) {
      if (n > 0) waitMs = Math.max(0, waitMs + serviceMs - (arrivalMs - trace[n - 1]!.arrivalMs));
      const tookMs = requests[n]!.firstTokenMs - arrivalMs;
      expect(Math.abs(tookMs - waitMs - serviceMs)).toBeLessThan(0.05 * (waitMs + serviceMs));
    }
  });

  it('Little’s law holds of requests in the system', async () => {
    const trace = randomTrace({ count: 2000, gapMs: 5, seed: 8 });
    const { requests, summary } = await simulate({ ...BASE, trace });
    const endMs = Math.max(...requests.map(({ finishMs }) => finishMs));
    const points = 4000;
    let inside = 0;
    for (let n = 0; n < points; n++) {
      const at = ((n + 0.5) * endMs) / points;
      inside += requests.filter(({ arrivalMs, finishMs }) => arrivalMs <= at && at < finishMs).length;
    }
    const rate = trace.length / endMs;
    expect(inside / points / (rate * summary.e2eMs.mean)).toBeCloseTo(1, 1);
  });
});

describe('monotonicity', () => {
  const trace = randomTrace({ count: 600, gapMs: 2, seed: 9 });
  const mean = async (options: Partial<SimulationOptions>) => {
    const { summary } = await simulate({ ...BASE, trace, ...options });
    return { ttft: summary.ttftMs.mean, tpot: summary.tpotMs.mean, e2e: summary.e2eMs.mean };
  };

  it('requests that come faster wait longer', async () => {
    const slow = await simulate({
      ...BASE,
      trace: trace.map((one) => ({ ...one, arrivalMs: 5 * one.arrivalMs })),
    });
    const fast = await mean({});
    expect(fast.ttft).toBeGreaterThan(slow.summary.ttftMs.mean);
    expect(fast.tpot).toBeGreaterThan(slow.summary.tpotMs.mean);
  });

  it('more engines are faster', async () => {
    const [two, four] = [await mean({}), await mean({ dp: 4, ep: 2 })];
    expect(four.ttft).toBeLessThan(two.ttft);
    expect(four.e2e).toBeLessThan(two.e2e);
  });

  it('faster memory, matrix units and links are faster', async () => {
    const usual = await mean({});
    const changes: Partial<typeof HARDWARE>[] = [
      { gemm: { ...HARDWARE.gemm, TBps: 2 } },
      { moe: { ...HARDWARE.moe, TBps: 2 } },
      { attention: { ...HARDWARE.attention, decodeTBps: 2, prefillTflops: 200 } },
      { links: [{ ...HARDWARE.links[0]!, allGather: { micros: 1, GBps: 100 } }] },
      { layerMicros: 10 },
    ];
    for (const change of changes) {
      const faster = await mean({ hardware: { ...HARDWARE, ...change } });
      expect(faster.e2e, JSON.stringify(change)).toBeLessThan(usual.e2e);
    }
  });

  it('less KV memory is slower', async () => {
    expect((await mean({ engine: { ...BASE.engine, kvBlocks: 60 } })).e2e).toBeGreaterThan(
      (await mean({})).e2e,
    );
  });

  it('a smaller budget of tokens makes tokens come more evenly, and the first ones later', async () => {
    const [large, small] = [
      await mean({}),
      await mean({ engine: { ...BASE.engine, maxNumBatchedTokens: 32 } }),
    ];
    expect(small.ttft).toBeGreaterThan(large.ttft);
    expect(small.tpot).toBeLessThan(large.tpot);
  });

  it('a prefix cache saves prefill', async () => {
    const shared = randomTrace({ count: 600, gapMs: 2, seed: 9, prefixes: true });
    const [on, off] = await Promise.all(
      [true, false].map((prefixCaching) =>
        simulate({ ...BASE, trace: shared, engine: { ...BASE.engine, prefixCaching } }),
      ),
    );
    expect(on!.counters.prefillTokens).toBeLessThan(off!.counters.prefillTokens);
    expect(on!.summary.ttftMs.mean).toBeLessThan(off!.summary.ttftMs.mean);
  });

  it('asynchronous scheduling hides the step’s own time, and lets arrivals wait a step more', async () => {
    const calm = trace.map((one) => ({ ...one, arrivalMs: 6 * one.arrivalMs }));
    const [on, off] = await Promise.all(
      [true, false].map((asyncScheduling) =>
        simulate({
          ...BASE,
          trace: calm,
          hardware: { ...HARDWARE, stepMicros: 200 },
          engine: { ...BASE.engine, asyncScheduling },
        }),
      ),
    );
    expect(on!.summary.tpotMs.mean).toBeLessThan(off!.summary.tpotMs.mean);
    expect(on!.summary.ttftMs.mean).toBeGreaterThan(off!.summary.ttftMs.mean);
  });

  it('a stall costs what it lasts, and an overlapped transfer less', async () => {
    const settings = { everySteps: 100, windowSteps: 50, layerStallMs: 20 };
    const policy = { placement: 'eplb' } as const;
    const [stalled, overlapped, none] = [
      await simulate({ ...BASE, trace, policy, rearrangement: { ...settings, transfer: 'stall' } }),
      await simulate({ ...BASE, trace, policy, rearrangement: { ...settings, transfer: 'overlap' } }),
      await simulate({ ...BASE, trace, policy: { placement: 'static' } }),
    ];
    const { rearrangements, stallMs, migrations } = stalled.counters;
    expect(rearrangements).toBeGreaterThan(2);
    expect(migrations).toBeGreaterThan(rearrangements);
    expect(stallMs).toBeGreaterThanOrEqual(rearrangements * 2 * 20);
    expect(overlapped.counters.stallMs).toBe(0);
    expect(stalled.summary.e2eMs.mean).toBeGreaterThan(overlapped.summary.e2eMs.mean);
    expect(none.counters.migrations).toBe(0);
  });
});

describe('lockstep', () => {
  const long = { arrivalMs: 0, inputTokens: 200, outputTokens: 50 };
  const calm = { ...BASE, policy: { placement: 'static' as const, dispatch: 'round-robin' as const } };

  it('an idle rank does dummy batches while the other one works, and does not where it stands alone', async () => {
    const together = await simulate({ ...calm, trace: [long] });
    const apart = await simulate({ ...calm, ep: 1, trace: [long] });
    expect(together.counters.steps).toBe(50);
    expect(together.counters.dummySteps).toBe(50);
    expect(apart.counters.dummySteps).toBe(0);
  });

  it('a rank’s prefill holds up the other rank’s decodes', async () => {
    const trace = [long, { arrivalMs: 20, inputTokens: 250, outputTokens: 1 }];
    const both = await simulate({ ...calm, trace });
    const apart = await simulate({ ...calm, ep: 1, trace });
    const alone = await simulate({ ...calm, trace: [long] });
    expect(both.requests.map(({ engine }) => engine)).toEqual(expect.arrayContaining([0, 1]));
    const first = (result: typeof both) => result.requests[0]!.finishMs;
    expect(first(both)).toBeGreaterThan(first(alone));
    const aloneApart = await simulate({ ...calm, ep: 1, trace: [long] });
    expect(first(apart)).toBeCloseTo(first(aloneApart), 0);
  });

  it('a step lasts as long as its slowest rank, and no longer', async () => {
    // Attention is all that counts.
    const slow = { ...HARDWARE, attention: { ...HARDWARE.attention, prefillTflops: 0.001 } };
    const prompt = { arrivalMs: 0, inputTokens: 200, outputTokens: 1 };
    const first = async (trace: (typeof prompt)[]) =>
      (await simulate({ ...calm, hardware: slow, trace })).requests[0]!.firstTokenMs;
    const [one, two] = [await first([prompt]), await first([prompt, prompt])];
    expect(one).toBeGreaterThan(300);
    expect(two / one).toBeCloseTo(1, 2);
  });

  it('small batches are padded to the largest of the group, and large ones are not', async () => {
    // Links are all that counts.
    const link = { micros: 0, GBps: 0.01 };
    const slow = { ...HARDWARE, links: [{ gpus: 8, allToAll: link, allGather: link, reduceScatter: link }] };
    const prompt = { arrivalMs: 0, inputTokens: 200, outputTokens: 1 };
    const first = async (padUpToTokens: number, trace: (typeof prompt)[]) => {
      const engine = { ...BASE.engine, padUpToTokens };
      return (await simulate({ ...calm, hardware: slow, engine, trace })).requests[0]!.firstTokenMs;
    };
    const both = await first(512, [prompt, prompt]);
    expect((await first(512, [prompt])) / both).toBeCloseTo(1, 1);
    expect((await first(199, [prompt])) / both).toBeCloseTo(0.5, 1);
  });
});
