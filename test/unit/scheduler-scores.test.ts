/** Scores of many requests: they are what dispatch itself looks at, by the ledger as it is at the call, which stays as it is. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../bench/random.js';
import {
  backends,
  type Candidate,
  type DispatchRequest,
  type EngineSample,
  Scheduler,
  type SchedulerOptions,
  type Scores,
} from '../../lib/index.js';

const SEED = Number(process.env.GIMBAL_TEST_SEED ?? 1);

const error = (code: string, field: string) => expect.objectContaining({ code, field });
const cuda = backends().find(({ name }) => name === 'cuda')!;

function sample(engine: number, more: Partial<EngineSample> = {}): EngineSample {
  return { engine, timeMs: 0, kvUsage: 0, running: 0, waiting: 0, waitingPrefillTokens: 0, ...more };
}

/** Engines that are idle at time 0 and take 1 ms for a token. */
function idle(engines: number, options: Partial<SchedulerOptions> = {}): Scheduler {
  const scheduler = new Scheduler({
    engines,
    prefillTokensPerSecond: 1000,
    clock: () => 0,
    ...options,
  });
  scheduler.observe(scheduler.engines.map((_, engine) => sample(engine)));
  return scheduler;
}

const rowOf = ({ pressureMs, engines }: Scores, request: number) => [
  ...pressureMs.subarray(request * engines, (request + 1) * engines),
];

function drawRequest(random: Random, id: number | string, engines: number): DispatchRequest {
  const promptTokens = random.below(20) === 0 ? 2 ** 28 : random.below(6000);
  const request: DispatchRequest = { id, promptTokens };
  const cached = () => random.below(promptTokens + 1);
  const known = random.below(6);
  if (known === 0) request.cachedTokens = cached();
  if (known === 1) request.cachedTokens = Uint32Array.from({ length: engines }, cached);
  if (random.below(3) === 0) request.sessionKey = `session ${random.below(5)}`;
  if (random.below(3) === 0) {
    const first = random.below(4);
    request.prefixHashes = Array.from({ length: 1 + random.below(6) }, (_, n) => 1000 * first + n);
  }
  if (random.below(5) === 0) request.stage = 'decode';
  if (random.below(3) === 0) {
    request.expertMs = Array.from({ length: engines }, () => random.below(5000) / 7);
  }
  return request;
}

/** A scheduler with a past, and what its stages are shown of a request. */
function drawScheduler(random: Random, stage: 'filter' | 'score' | 'none') {
  let nowMs = 0;
  const shown: Candidate[] = [];
  const stages = {
    filter: {
      filter: (all: readonly Candidate[]) => {
        shown.push(...all);
        return all;
      },
    },
    score: {
      score: (candidate: Candidate) => {
        shown.push(candidate);
        return candidate.pressureMs;
      },
    },
    none: undefined,
  }[stage];
  const roles = ['both', 'both', 'prefill', 'decode'] as const;
  const engines = Array.from({ length: 1 + random.below(9) }, () => ({
    group: random.below(3),
    role: roles[random.below(4)]!,
    prefillTokensPerSecond: 100 + random.below(30_000),
    ...(random.below(2) === 0 ? { kvTokens: 1 + random.below(200_000) } : {}),
  }));
  const scheduler = new Scheduler({
    engines,
    clock: () => nowMs,
    gateways: 1 + random.below(2),
    weights: {
      moe: random.below(3),
      comm: random.below(3) / 2,
      affinity: random.below(3) / 2,
      backlog: 1 + random.below(2) / 3,
    },
    ...(stages === undefined ? {} : { stages }),
  });
  const noSamples = random.below(6) === 0;
  for (let n = 0; n < 60; n += 1) {
    nowMs += random.below(200) / 3;
    const engine = random.below(engines.length);
    const kvUsage = random.below(101) / 100;
    if (random.below(2) === 0 && !noSamples) {
      const [running, waiting, moePressure] = [random.below(40), random.below(8), random.below(5) / 4];
      scheduler.observe([{ engine, timeMs: nowMs, kvUsage, running, waiting, moePressure }]);
      if (random.below(3) === 0) {
        const [told, commExcess] = [random.below(5) / 2 - 1, random.below(5) / 2 - 1];
        scheduler.setExpertPressure([{ engine, moePressure: told, commExcess }], nowMs);
      }
    } else {
      try {
        scheduler.dispatch({ ...drawRequest(random, n, engines.length) });
      } catch (failure) {
        expect(failure).toEqual(error('GIMBAL_NO_ENGINE', 'engines'));
      }
      if (random.below(3) === 0) scheduler.finished(random.below(n + 1));
    }
  }
  shown.length = 0;
  return { scheduler, shown };
}

describe('scores', () => {
  it('are the time that each request would wait on each engine', async () => {
    const scheduler = idle(3, { weights: { moe: 1 } });
    scheduler.observe([
      sample(0, { waiting: 1, waitingPrefillTokens: 500 }),
      sample(2, { moePressure: 0.5 }),
    ]);
    const scores = await scheduler.scores([
      { id: 'a', promptTokens: 100 },
      { id: 'b', promptTokens: 2000, cachedTokens: 1600 },
    ]);
    expect(scores).toMatchObject({ engines: 3, backend: 'cpu' });
    // 500 wait, and one request that does counts 2 ms; half as much again of the own prefill under overloaded experts.
    expect(rowOf(scores, 0)).toEqual([500 + 100 + 2, 100, 150]);
    expect(rowOf(scores, 1)).toEqual([500 + 400 + 2, 400, 600]);
    expect([...scores.best]).toEqual([1, 1]);
  });

  it('are to the last bit what the stages are shown, of all engines that may take a request', async () => {
    let compared = 0;
    for (let n = 0; n < 60; n += 1) {
      const random = new Random(SEED, n);
      const { scheduler, shown } = drawScheduler(random, 'filter');
      const requests = Array.from({ length: 3 }, (_, k) =>
        drawRequest(random, `new ${k}`, scheduler.engines.length),
      );
      for (const request of requests) {
        shown.length = 0;
        const scores = await scheduler.scores([...requests, request]);
        try {
          scheduler.dispatch(request);
        } catch {
          expect(shown).toEqual([]);
        }
        const expected = scheduler.engines.map(() => Number.NaN);
        for (const { engine, pressureMs } of shown) expected[engine] = pressureMs;
        expect(rowOf(scores, requests.length), `seed ${SEED}, stream ${n}`).toEqual(expected);
        compared += shown.length;
      }
    }
    expect(compared).toBeGreaterThan(200);
  });

  it('have as the best what is the best of those that the filter lets through, of equals the first', async () => {
    const reasons = new Set<string>();
    for (let n = 0; n < 60; n += 1) {
      const random = new Random(SEED, 1000 + n);
      const { scheduler, shown } = drawScheduler(random, 'score');
      const request = drawRequest(random, 'new', scheduler.engines.length);
      const { best } = await scheduler.scores([request]);
      try {
        scheduler.dispatch(request);
      } catch {
        expect(best[0]).toBe(-1);
      }
      const least = [...shown].sort((a, b) => a.pressureMs - b.pressureMs || a.engine - b.engine)[0];
      expect(best[0], `seed ${SEED}, stream ${n}`).toBe(least?.engine ?? -1);
      reasons.add(least === undefined ? 'none' : least.stale ? 'stale' : 'fresh');
    }
    expect([...reasons].sort()).toEqual(['fresh', 'none', 'stale']);
  });

  it('have as the best where dispatch sends the request, without lockstep, other gateways and ties', async () => {
    let sent = 0;
    for (let n = 0; n < 40; n += 1) {
      const random = new Random(SEED, 2000 + n);
      const count = 2 + random.below(30);
      const engines = Array.from({ length: count }, (_, group) => ({ group }));
      const scheduler = new Scheduler({ engines, clock: () => 0 });
      scheduler.observe(
        engines.map((_, engine) =>
          sample(engine, { kvUsage: random.below(800) / 1000, waitingPrefillTokens: random.below(1e6) }),
        ),
      );
      const request = { id: n, promptTokens: 1 + random.below(5000) };
      const scores = await scheduler.scores([request]);
      if (new Set(scores.pressureMs).size < count) continue;
      const { engine, pressure } = scheduler.dispatch(request);
      expect(scores.best[0], `seed ${SEED}, stream ${n}`).toBe(engine);
      expect(scores.pressureMs[engine]).toBe(pressure);
      sent += 1;
    }
    expect(sent).toBeGreaterThan(30);
  });

  it('leave the ledger as it is, and know it as it was at the call', async () => {
    const [asked, other] = [0, 1].map(() => drawScheduler(new Random(SEED, 3000), 'none').scheduler);
    const requests = Array.from({ length: 20 }, (_, n) => ({ id: `next ${n}`, promptTokens: 100 + 37 * n }));
    for (const request of requests) {
      const before = await asked!.scores(requests);
      const pending = asked!.scores(requests);
      expect(asked!.dispatch(request)).toEqual(other!.dispatch(request));
      expect(await pending).toEqual(before);
    }
    expect(asked!.pressure()).toEqual(other!.pressure());
    expect(asked!.inFlight).toBe(other!.inFlight);
  });

  it('are NaN, and the best is -1, where no engine may take the request', async () => {
    const scheduler = idle(2, { engines: [{ role: 'prefill' }, { role: 'decode' }] });
    const requests: DispatchRequest[] = [
      { id: 1, promptTokens: 50 },
      { id: 2, promptTokens: 50, stage: 'decode' },
    ];
    scheduler.setState(0, 'draining');
    const scores = await scheduler.scores(requests);
    expect(rowOf(scores, 0)).toEqual([Number.NaN, Number.NaN]);
    expect(rowOf(scores, 1)).toEqual([Number.NaN, 0]);
    expect([...scores.best]).toEqual([-1, 1]);
    expect((await scheduler.scores([])).pressureMs).toHaveLength(0);
    const nobody = await idle(0, { engines: [] }).scores(requests);
    expect(nobody).toMatchObject({
      engines: 0,
      pressureMs: new Float64Array(0),
      best: Int32Array.of(-1, -1),
    });
  });

  it('are made under every policy, whose filters are not asked', async () => {
    const scheduler = idle(2, { policy: 'vllm' });
    scheduler.observe([sample(0, { kvUsage: 0.95 }), sample(1, { waitingPrefillTokens: 5000, waiting: 1 })]);
    // Full, and yet the least: the rivals do not leave an engine out for that.
    expect((await scheduler.scores([{ id: 1, promptTokens: 10 }])).best[0]).toBe(0);
  });

  it('say who made them, and why no GPU did', async () => {
    const scheduler = idle(2);
    const requests = [{ id: 1, promptTokens: 10 }];
    const free = await scheduler.scores(requests);
    expect(free.backend).toBe('cpu');
    expect(free.backendReason).toBe('scores are made on the CPU unless a GPU is asked for');
    expect(await scheduler.scores(requests, { backend: 'cpu' })).not.toHaveProperty('backendReason');
  });

  it.skipIf(cuda.available)('are an error where a GPU is wanted and there is none', async () => {
    await expect(idle(2).scores([], { backend: 'cuda' })).rejects.toThrow(
      error('GIMBAL_BACKEND_UNAVAILABLE', 'backend'),
    );
  });

  it('refuse what dispatch refuses, too much at once, and options that there are not', async () => {
    const scheduler = idle(4096);
    const one = { id: 1, promptTokens: 10 };
    const refused = (requests: unknown, options?: unknown) =>
      expect(scheduler.scores(requests as DispatchRequest[], options as object)).rejects;
    await refused([one, { id: 2, promptTokens: -1 }]).toThrow(
      error('GIMBAL_INVALID_INPUT', 'requests[1].promptTokens'),
    );
    await refused([{ ...one, prefixHashes: [1, -2] }]).toThrow(
      error('GIMBAL_INVALID_INPUT', 'requests[0].prefixHashes[1]'),
    );
    await refused({}).toThrow(error('GIMBAL_INVALID_INPUT', 'requests'));
    await refused(Array(257).fill(one)).toThrow(error('GIMBAL_OUT_OF_RANGE', 'requests'));
    await refused([one], { backend: 'gpu' }).toThrow(error('GIMBAL_INVALID_INPUT', 'options.backend'));
    await refused([one], { threads: 2 }).toThrow(error('GIMBAL_INVALID_INPUT', 'options.threads'));
    expect((await scheduler.scores(Array(256).fill(one))).best).toHaveLength(256);
  });
});
