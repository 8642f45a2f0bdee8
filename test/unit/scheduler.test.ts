/** The scheduler as JavaScript meets it: names, ids, errors, stages, batches. The decisions themselves are native tests. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { POLICIES } from '../../lib/dispatch/validate.js';
import {
  type DispatchRequest,
  type EngineSample,
  Scheduler,
  type SchedulerOptions,
} from '../../lib/index.js';

/** A scheduler on a clock of the test's, its engines idle at time 0; a token takes 1 ms. */
function idle(engines: number, options: Partial<SchedulerOptions> = {}) {
  const clock = { nowMs: 0 };
  const scheduler = new Scheduler({
    engines,
    prefillTokensPerSecond: 1000,
    clock: () => clock.nowMs,
    ...options,
  });
  scheduler.observe(scheduler.engines.map((_, engine) => sample(engine)));
  return { clock, scheduler };
}

function sample(engine: number, more: Partial<EngineSample> = {}): EngineSample {
  return { engine, timeMs: 0, kvUsage: 0, running: 0, waiting: 0, waitingPrefillTokens: 0, ...more };
}

/** [engines] */
const CACHED = [100, 0, 700, 300];

const error = (code: string, field: string, received?: string) =>
  expect.objectContaining({ code, field, ...(received === undefined ? {} : { received }) });

describe('Scheduler', () => {
  it('sends each request where the least prefill is in front of it, and says why', () => {
    const { scheduler } = idle(3);
    scheduler.observe([sample(0, { waitingPrefillTokens: 500, waiting: 1 })]);
    const first = scheduler.dispatch({ id: 'a', promptTokens: 100 });
    expect([1, 2]).toContain(first.engine);
    expect(first).toMatchObject({ reason: 'least-pressure', pressure: 100 });
    const second = scheduler.dispatch({ id: 'b', promptTokens: 50 });
    expect(second.engine).toBe(3 - first.engine);
    expect(scheduler.inFlight).toBe(2);
  });

  it('shows the pressure by term', () => {
    const { clock, scheduler } = idle(1, { engines: [{ kvTokens: 1000 }], weights: { moe: 1 } });
    scheduler.observe([
      sample(0, { waitingPrefillTokens: 250, waiting: 2, running: 5, kvUsage: 0.25, moePressure: 0.5 }),
    ]);
    // The mean request, for which expert pressure is stated, is the one that was sent.
    scheduler.dispatch({ id: 1, promptTokens: 100 });
    clock.nowMs = 10;
    const [pressure] = scheduler.pressure();
    expect(pressure).toMatchObject({
      engine: 0,
      backlogMs: 340,
      // 250 waiting and 100 sent beside 250 held: 0.6 of 1,000, and 150 ms · 0.6 / 0.4.
      kvMs: expect.closeTo(225, 1),
      queueMs: 2 * 3 + 0.2 * 5,
      moeMs: 50,
      inFlight: 1,
      inFlightPrefillMs: 100,
      stale: false,
      state: 'active',
    });
    expect(pressure!.totalMs).toBeCloseTo(
      pressure!.backlogMs + pressure!.kvMs + pressure!.queueMs + pressure!.moeMs,
      9,
    );
  });

  it('keeps the ledger by ids, which can be used again once they have ended', () => {
    const { scheduler } = idle(2);
    scheduler.dispatch({ id: 'x', promptTokens: 10 });
    expect(() => scheduler.dispatch({ id: 'x', promptTokens: 10 })).toThrow(
      error('GIMBAL_INVALID_INPUT', 'request.id', '"x"'),
    );
    expect(scheduler.firstToken('x')).toBe(true);
    expect(scheduler.progress('x', 10)).toBe(true);
    expect(scheduler.finished('x')).toBe(true);
    for (const tell of ['firstToken', 'finished', 'failed'] as const)
      expect(scheduler[tell]('x')).toBe(false);
    expect(scheduler.progress('x', 1)).toBe(false);
    scheduler.dispatch({ id: 'x', promptTokens: 10 });
    expect(scheduler.failed('x')).toBe(true);
    expect(scheduler.inFlight).toBe(0);
    expect(scheduler.pressure().every(({ inFlightPrefillMs }) => inFlightPrefillMs === 0)).toBe(true);
  });

  it('numbers engines as they come, and sends nothing to those that are not active', () => {
    const { scheduler } = idle(1, { engines: [{ role: 'prefill', url: 'http://a:8000', globalRank: 4 }] });
    expect(scheduler.addEngine({ role: 'decode', group: 'other' })).toBe(1);
    expect(scheduler.engines).toEqual([
      { role: 'prefill', url: 'http://a:8000', globalRank: 4 },
      { role: 'decode', group: 'other' },
    ]);
    scheduler.observe([sample(1)]);
    expect(scheduler.dispatch({ id: 1, promptTokens: 5 }).engine).toBe(0);
    expect(scheduler.dispatch({ id: 2, promptTokens: 5, stage: 'decode' }).engine).toBe(1);
    scheduler.setState(0, 'draining');
    expect(scheduler.pressure()[0]).toMatchObject({ state: 'draining', inFlight: 1 });
    expect(() => scheduler.dispatch({ id: 3, promptTokens: 5 })).toThrow(
      error('GIMBAL_NO_ENGINE', 'engines'),
    );
    scheduler.setState(0, 'active');
    expect(scheduler.dispatch({ id: 3, promptTokens: 5 }).engine).toBe(0);
    scheduler.restarted(0);
    expect(scheduler.pressure()[0]!.inFlightPrefillMs).toBe(0);
  });

  it('says so where no engine has a fresh sample, or none has room', () => {
    const { clock, scheduler } = idle(2, { staleAfterMs: 100 });
    scheduler.observe([sample(0, { kvUsage: 0.95 }), sample(1, { kvUsage: 0.96 })]);
    expect(scheduler.dispatch({ id: 1, promptTokens: 5 }).reason).toBe('all-short-of-kv');
    clock.nowMs = 1000;
    expect(scheduler.pressure()[0]!.stale).toBe(true);
    expect(scheduler.dispatch({ id: 2, promptTokens: 5 }).reason).toBe('no-fresh-sample');
  });

  it('takes prefixes as numbers, bigints or an array of them, and sessions by any name', () => {
    for (const prefixHashes of [[1, 2, 3, 4], [1n, 2n, 3n, 4n], BigUint64Array.of(1n, 2n, 3n, 4n)]) {
      const { clock, scheduler } = idle(4);
      const first = scheduler.dispatch({ id: 1, promptTokens: 400, prefixHashes });
      scheduler.finished(1);
      clock.nowMs = 500;
      const second = scheduler.dispatch({ id: 2, promptTokens: 400, prefixHashes: [1, 2, 3, 9] });
      expect(second).toMatchObject({ engine: first.engine, pressure: 100 });
    }
    const { clock, scheduler } = idle(4);
    const { engine } = scheduler.dispatch({ id: 1, promptTokens: 300, sessionKey: 'gespräch 🙂' });
    scheduler.finished(1);
    clock.nowMs = 400;
    expect(scheduler.dispatch({ id: 2, promptTokens: 360, sessionKey: 'gespräch 🙂' })).toMatchObject({
      engine,
      pressure: 60,
    });
  });

  it('takes what each engine has cached, in any kind of array, in every way of asking', () => {
    const cached = [0, 60, 100, 0];
    for (const cachedTokens of [cached, Uint32Array.from(cached), Float64Array.from(cached)]) {
      const request = { promptTokens: 100, cachedTokens, sessionKey: 'a', prefixHashes: [1, 2] };
      const { scheduler } = idle(4);
      // Of a prompt that is cached whole, one token is computed.
      expect(scheduler.dispatch({ ...request, id: 1 })).toMatchObject({ engine: 2, pressure: 1 });
      scheduler.observe([sample(2, { waitingPrefillTokens: 50, waiting: 1 })]);
      expect(scheduler.dispatch({ ...request, id: 2 })).toMatchObject({ engine: 1, pressure: 40 });
      const batch = idle(4).scheduler.dispatchBatch([
        { id: 1, promptTokens: 100, cachedTokens },
        { id: 2, promptTokens: 100, cachedTokens: [0, 0, 0, 90] },
        { id: 3, promptTokens: 100, cachedTokens: 100 },
      ]);
      expect(batch.map(({ engine, pressure }) => [engine, pressure])).toEqual([
        [2, 1],
        [3, 10],
        [expect.any(Number), 1],
      ]);
      const seen: number[] = [];
      const staged = idle(4, {
        stages: {
          score: ({ engine, pressureMs }) => {
            seen[engine] = pressureMs;
            return pressureMs;
          },
        },
      });
      expect(staged.scheduler.dispatch({ ...request, id: 1 })).toMatchObject({ engine: 2, pressure: 1 });
      expect(seen).toEqual([100, 40, 1, 100]);
      expect(staged.scheduler.pressure()[2]!.inFlightPrefillMs).toBe(1);
    }
  });

  it('does not keep what engines had cached for the next request', () => {
    const { scheduler } = idle(2);
    scheduler.dispatch({ id: 1, promptTokens: 100, cachedTokens: [0, 90] });
    expect(scheduler.dispatch({ id: 2, promptTokens: 100 })).toMatchObject({ engine: 0, pressure: 100 });
    const engine = scheduler.addEngine();
    scheduler.observe([sample(engine)]);
    const cachedTokens = [0, 0, 99];
    expect(scheduler.dispatch({ id: 3, promptTokens: 100, cachedTokens })).toMatchObject({
      engine,
      pressure: 1,
    });
  });

  it('gives a batch what one call after the other gives', () => {
    const request = fc.record(
      {
        promptTokens: fc.integer({ min: 0, max: 5000 }),
        streams: fc.boolean(),
        cachedTokens: fc.oneof(fc.constant(0), fc.constant([0, 0, 0, 0]), fc.constant(CACHED)),
        sessionKey: fc.constantFrom('a', 'b'),
        prefixHashes: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }),
        stage: fc.constantFrom('prefill' as const, 'decode' as const),
      },
      { requiredKeys: ['promptTokens'] },
    );
    const policies = fc.constantFrom(
      'gimbal',
      'vllm',
      'dynamo',
      'llm-d',
      'power-of-two',
    ) as fc.Arbitrary<'gimbal'>;
    fc.assert(
      fc.property(fc.array(request, { maxLength: 30 }), policies, (shapes, policy) => {
        const requests = shapes.map((shape, id) => {
          const promptTokens = shape.promptTokens + Math.max(...CACHED);
          return { ...shape, promptTokens, id };
        });
        const [one, other] = [idle(4, { policy }), idle(4, { policy })];
        const singly = requests.map((r) => one.scheduler.dispatch(r));
        expect(other.scheduler.dispatchBatch(requests)).toEqual(singly);
        expect(other.scheduler.pressure()).toEqual(one.scheduler.pressure());
        for (const { id } of requests) other.scheduler.finished(id);
        expect(other.scheduler.inFlight).toBe(0);
      }),
      { numRuns: 60 },
    );
  });

  it('dispatches nothing of a batch in which one request is wrong', () => {
    const { scheduler } = idle(2);
    const good: DispatchRequest = { id: 1, promptTokens: 5 };
    expect(() => scheduler.dispatchBatch([good, { id: 2, promptTokens: -1 }])).toThrow(
      error('GIMBAL_INVALID_INPUT', 'requests[1].promptTokens', '-1'),
    );
    expect(() => scheduler.dispatchBatch([good, good])).toThrow(
      error('GIMBAL_INVALID_INPUT', 'requests[1].id'),
    );
    expect(scheduler.inFlight).toBe(0);
    expect(scheduler.dispatchBatch([])).toEqual([]);
  });

  it('sends nothing to engines that a request excludes, under any policy, and only for that request', () => {
    for (const policy of POLICIES) {
      const scheduler = new Scheduler({ engines: 3, policy });
      scheduler.setState(2, 'draining');
      for (let n = 0; n < 6; n += 1) {
        expect(scheduler.dispatch({ id: `a${n}`, promptTokens: 10, excluding: [n % 2, 2, 77] }).engine).toBe(
          1 - (n % 2),
        );
      }
      expect(() => scheduler.dispatch({ id: 'none', promptTokens: 1, excluding: [0, 1] })).toThrow(
        expect.objectContaining({ code: 'GIMBAL_NO_ENGINE' }),
      );
      const [first, second] = scheduler.dispatchBatch([
        { id: 'b', promptTokens: 1, excluding: [0] },
        { id: 'c', promptTokens: 1, excluding: [1] },
      ]);
      expect([first!.engine, second!.engine]).toEqual([1, 0]);
      expect(scheduler.pressure().map(({ state }) => state)).toEqual(['active', 'active', 'draining']);
      const free = Array.from(
        { length: 8 },
        (_, n) => scheduler.dispatch({ id: n, promptTokens: 50 }).engine,
      );
      expect(new Set(free)).toEqual(new Set([0, 1]));
    }
  });

  it('is the same for the same seed, and has its own turns for another', () => {
    const turns = (seed: number) => {
      const { scheduler } = idle(16, { gateways: 3, seed });
      return Array.from({ length: 40 }, (_, id) => scheduler.dispatch({ id, promptTokens: 100 }).engine);
    };
    expect(turns(7)).toEqual(turns(7));
    expect(turns(7)).not.toEqual(turns(8));
  });

  it.each(['vllm', 'total-tokens', 'round-robin', 'power-of-two', 'least-load', 'dynamo', 'llm-d'] as const)(
    'has %s as a policy',
    (policy) => {
      const { scheduler } = idle(3, { policy });
      const engines = Array.from(
        { length: 30 },
        (_, id) => scheduler.dispatch({ id, promptTokens: 100 }).engine,
      );
      expect(new Set(engines)).toEqual(new Set([0, 1, 2]));
      for (let id = 0; id < 30; id++) scheduler.finished(id);
      expect(scheduler.pressure().every(({ inFlight }) => inFlight === 0)).toBe(true);
    },
  );
});

describe('what another gateway has sent', () => {
  const step = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant('dispatch' as const),
        gateway: fc.nat(1),
        promptTokens: fc.integer({ min: 0, max: 5000 }),
        streams: fc.boolean(),
        sessionKey: fc.constantFrom('a', 'b', undefined),
        prefixHashes: fc.option(fc.array(fc.nat(5), { minLength: 1, maxLength: 4 }), { nil: undefined }),
      }),
    },
    fc.record({ kind: fc.constantFrom('firstToken', 'finished', 'failed'), nth: fc.nat(5) }),
    fc.record({ kind: fc.constant('wait' as const), ms: fc.nat(2000) }),
    fc.record({
      kind: fc.constant('sample' as const),
      engine: fc.nat(2),
      waiting: fc.nat(3),
      waitingPrefillTokens: fc.nat(8000),
    }),
  );

  it.each(['gimbal', 'vllm', 'least-load', 'dynamo', 'power-of-two'] as const)(
    'makes two schedulers that tell each other all pick as one does that gets all, under %s',
    (policy) => {
      fc.assert(
        fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
          const all = [idle(3, { policy }), idle(3, { policy }), idle(3, { policy })] as const;
          const one = all[2].scheduler;
          const live: number[] = [];
          steps.forEach((of, id) => {
            if (of.kind === 'dispatch') {
              const { kind: _, gateway, sessionKey, prefixHashes, ...rest } = of;
              const named = sessionKey === undefined ? rest : { ...rest, sessionKey };
              const request = { id, ...(prefixHashes === undefined ? named : { ...named, prefixHashes }) };
              const picked = all[gateway]!.scheduler.dispatch(request);
              all[1 - gateway]!.scheduler.dispatched(picked.engine, request);
              expect(picked).toEqual(one.dispatch(request));
              live.push(id);
            } else if (of.kind === 'wait') {
              for (const { clock } of all) clock.nowMs += of.ms;
            } else if (of.kind === 'sample') {
              const { kind: _, ...more } = of;
              for (const { clock, scheduler } of all)
                scheduler.observe([sample(of.engine, { timeMs: clock.nowMs, ...more })]);
            } else if (of.nth < live.length) {
              const told = live[of.nth]!;
              for (const { scheduler } of all) scheduler[of.kind as 'finished'](told);
              if (of.kind !== 'firstToken') live.splice(of.nth, 1);
            }
          });
          for (const { scheduler } of all) {
            expect(scheduler.pressure()).toEqual(one.pressure());
            expect(scheduler.inFlight).toBe(live.length);
          }
        }),
        { numRuns: 60 },
      );
    },
  );

  it('began when it was sent, not when it was told', () => {
    const { clock, scheduler } = idle(2);
    clock.nowMs = 1000;
    scheduler.dispatched(1, { id: 'theirs', promptTokens: 500 }, 300);
    expect(scheduler.pressureOf(1)).toMatchObject({ backlogMs: 200, inFlightPrefillMs: 500, inFlight: 1 });
    expect(scheduler.pressureOf(0)).toMatchObject({ backlogMs: 0, inFlight: 0 });
    expect([scheduler.backlogOf(0), scheduler.backlogOf(1)]).toEqual([0, 200]);
    expect(scheduler.finished('theirs')).toBe(true);
    expect(scheduler.inFlight).toBe(0);
  });

  it('is in a sample that was taken after it was sent, and stands beside one that was taken before', () => {
    for (const [ageMs, queueMs, backlogMs] of [
      [5, 2, 497],
      [1, 4, 997],
    ] as const) {
      const { clock, scheduler } = idle(1);
      clock.nowMs = 100;
      scheduler.observe([sample(0, { timeMs: 97, waiting: 1, waitingPrefillTokens: 500 })]);
      scheduler.dispatched(0, { id: 1, promptTokens: 500 }, ageMs);
      expect(scheduler.pressureOf(0)).toMatchObject({ queueMs, backlogMs });
    }
  });

  it('goes where it was sent: engines that get nothing new, and ones that stages of the caller leave out', () => {
    const { scheduler } = idle(2, { stages: { filter: () => [] } });
    scheduler.setState(1, 'draining');
    scheduler.dispatched(1, { id: 1, promptTokens: 100, streams: false });
    expect(scheduler.pressureOf(1)).toMatchObject({ inFlightPrefillMs: 100, state: 'draining' });
  });
});

describe('stages of the caller', () => {
  it('replace filter, score and pick, each alone, on the same ledger', () => {
    const filtered = idle(3, { stages: { filter: (all) => all.filter(({ engine }) => engine === 2) } });
    for (let id = 0; id < 3; id++) {
      expect(filtered.scheduler.dispatch({ id, promptTokens: 100 })).toMatchObject({
        engine: 2,
        reason: 'custom',
        pressure: 100 * (id + 1) + 2 * id,
      });
    }
    const scored = idle(3, { stages: { score: ({ engine }) => -engine } });
    expect(scored.scheduler.dispatch({ id: 1, promptTokens: 1 }).engine).toBe(2);
    const picked = idle(3, { stages: { pick: (all) => all.at(-1)!.candidate.engine } });
    expect(picked.scheduler.dispatch({ id: 1, promptTokens: 70 }).engine).toBe(2);
    expect(picked.scheduler.pressure()[2]!.inFlightPrefillMs).toBe(70);
    picked.scheduler.finished(1);
    expect(picked.scheduler.inFlight).toBe(0);
  });

  it('see what ours would: without their own filter, only what is fresh and has room', () => {
    const seen: number[][] = [];
    const { scheduler } = idle(3, {
      stages: {
        score: ({ engine, pressureMs }) => {
          seen.at(-1)!.push(engine);
          return pressureMs;
        },
      },
    });
    scheduler.observe([sample(0, { kvUsage: 0.99 })]);
    seen.push([]);
    scheduler.dispatch({ id: 1, promptTokens: 10 });
    expect(seen[0]).toEqual([1, 2]);
    const all = idle(3, {
      stages: { filter: (candidates) => candidates.filter(({ engine }) => engine === 0) },
    });
    all.scheduler.observe([sample(0, { kvUsage: 0.99 })]);
    expect(all.scheduler.dispatch({ id: 1, promptTokens: 10 }).engine).toBe(0);
  });

  it('may dispatch another request meanwhile', () => {
    const { scheduler } = idle(2, {
      stages: {
        score: ({ pressureMs, engine }, { id }) => {
          if (id === 'outer' && engine === 0) {
            scheduler.dispatch({ id: 'inner', promptTokens: 100, cachedTokens: [100, 0] });
          }
          return pressureMs;
        },
      },
    });
    const { engine } = scheduler.dispatch({ id: 'outer', promptTokens: 100, cachedTokens: [0, 60] });
    scheduler.finished('inner');
    expect(engine).toBe(1);
    expect(scheduler.pressure()[1]!.inFlightPrefillMs).toBe(40);
  });

  it('must pick one of the candidates, and may leave none', () => {
    const wrong = idle(2, { stages: { pick: () => 7 } });
    expect(() => wrong.scheduler.dispatch({ id: 1, promptTokens: 1 })).toThrow(
      error('GIMBAL_INVALID_INPUT', 'options.stages.pick', '7'),
    );
    expect(wrong.scheduler.inFlight).toBe(0);
    const none = idle(2, { stages: { filter: () => [] } });
    expect(() => none.scheduler.dispatch({ id: 1, promptTokens: 1 })).toThrow(
      error('GIMBAL_NO_ENGINE', 'engines'),
    );
  });
});

describe('what is wrong is named', () => {
  // biome-ignore lint/suspicious/noExplicitAny: the wrong types are the point
  type Wrong = any;

  it.each<[string, Wrong, string]>([
    ['no engines', {}, 'options.engines'],
    ['none of them', { engines: 0 }, 'options.engines'],
    ['half of one', { engines: 1.5 }, 'options.engines'],
    ['an engine that is none', { engines: [3] }, 'options.engines[0]'],
    ['a role', { engines: [{}, { role: 'decoder' }] }, 'options.engines[1].role'],
    ['a URL', { engines: [{ url: 'localhost 8000' }] }, 'options.engines[0].url'],
    ['a rank', { engines: [{ globalRank: -1 }] }, 'options.engines[0].globalRank'],
    ['a group', { engines: [{ group: {} }] }, 'options.engines[0].group'],
    ['a rate', { engines: 1, prefillTokensPerSecond: 3 }, 'options.prefillTokensPerSecond'],
    ['a rate of NaN', { engines: 1, prefillTokensPerSecond: Number.NaN }, 'options.prefillTokensPerSecond'],
    ['a policy', { engines: 1, policy: 'gimbals' }, 'options.policy'],
    ['an option', { engines: 1, stale: 5 }, 'options.stale'],
    ['a weight', { engines: 1, weights: { kv: -1 } }, 'options.weights.kv'],
    ['a weight that is too large', { engines: 1, weights: { backlog: 1e9 } }, 'options.weights.backlog'],
    ['a name of a weight', { engines: 1, weights: { KV: 1 } }, 'options.weights.KV'],
    ['a limit', { engines: 1, weights: { kvLimit: 1 } }, 'options.weights.kvLimit'],
    ['a seed', { engines: 1, seed: -1 }, 'options.seed'],
    ['a clock', { engines: 1, clock: 5 }, 'options.clock'],
    ['gateways', { engines: 1, gateways: 0 }, 'options.gateways'],
    ['a stage', { engines: 1, stages: { filter: 1 } }, 'options.stages.filter'],
    ['stages of a rival', { engines: 1, policy: 'vllm', stages: {} }, 'options.stages'],
  ])('%s', (_, options, field) => {
    expect(() => new Scheduler(options)).toThrow(
      expect.objectContaining({ code: expect.stringMatching(/^GIMBAL_/), field }),
    );
  });

  it.each<[string, Wrong, string]>([
    ['no id', { promptTokens: 1 }, 'request.id'],
    ['no prompt', { id: 1 }, 'request.promptTokens'],
    ['a prompt of Infinity', { id: 1, promptTokens: Number.POSITIVE_INFINITY }, 'request.promptTokens'],
    ['a prompt beyond all models', { id: 1, promptTokens: 2 ** 29 }, 'request.promptTokens'],
    ['more cached than there is', { id: 1, promptTokens: 5, cachedTokens: 6 }, 'request.cachedTokens'],
    [
      'cached tokens of too few engines',
      { id: 1, promptTokens: 5, cachedTokens: [0] },
      'request.cachedTokens',
    ],
    ['too many of one', { id: 1, promptTokens: 5, cachedTokens: [0, 6] }, 'request.cachedTokens[1]'],
    ['none of one', { id: 1, promptTokens: 5, cachedTokens: [Number.NaN, 0] }, 'request.cachedTokens[0]'],
    ['cached tokens as a text', { id: 1, promptTokens: 5, cachedTokens: '00' }, 'request.cachedTokens'],
    ['a hash', { id: 1, promptTokens: 5, prefixHashes: [1, -2] }, 'request.prefixHashes[1]'],
    ['hashes', { id: 1, promptTokens: 5, prefixHashes: 'abc' }, 'request.prefixHashes'],
    ['a session', { id: 1, promptTokens: 5, sessionKey: 5 }, 'request.sessionKey'],
    ['a stage', { id: 1, promptTokens: 5, stage: 'both' }, 'request.stage'],
    ['a flag', { id: 1, promptTokens: 5, streams: 1 }, 'request.streams'],
    ['a priority', { id: 1, promptTokens: 5, priority: Number.NaN }, 'request.priority'],
    ['an engine', { id: 1, promptTokens: 5, excluding: [0, -1] }, 'request.excluding[1]'],
    ['engines', { id: 1, promptTokens: 5, excluding: 1 }, 'request.excluding'],
    ['a key', { id: 1, promptTokens: 5, tokens: 5 }, 'request.tokens'],
    ['nothing at all', undefined, 'request'],
  ])('in a request: %s', (_, request, field) => {
    const { scheduler } = idle(2);
    expect(() => scheduler.dispatch(request)).toThrow(error('GIMBAL_INVALID_INPUT', field));
    expect(scheduler.inFlight).toBe(0);
  });

  it.each<[string, Wrong, string]>([
    ['an engine', { engine: 2 }, 'samples[1].engine'],
    ['a time', { timeMs: Number.NaN }, 'samples[1].timeMs'],
    ['a share', { kvUsage: 1.2 }, 'samples[1].kvUsage'],
    ['requests', { running: -1 }, 'samples[1].running'],
    ['half a request', { waiting: 0.5 }, 'samples[1].waiting'],
    ['tokens', { waitingPrefillTokens: '5' }, 'samples[1].waitingPrefillTokens'],
    ['a counter', { preemptions: -3 }, 'samples[1].preemptions'],
    ['expert pressure', { moePressure: Number.POSITIVE_INFINITY }, 'samples[1].moePressure'],
  ])('in a sample: %s', (_, wrong, field) => {
    const { scheduler } = idle(2);
    const good = sample(0, { waitingPrefillTokens: 777 });
    expect(() => scheduler.observe([good, { ...sample(1), ...wrong }])).toThrow(
      error('GIMBAL_INVALID_INPUT', field),
    );
    expect(scheduler.pressure()[0]!.backlogMs, 'none of the samples was taken').toBe(0);
  });

  it('in the rest', () => {
    const { scheduler } = idle(1);
    expect(() => scheduler.observe('x' as Wrong)).toThrow(error('GIMBAL_INVALID_INPUT', 'samples'));
    expect(() => scheduler.dispatchBatch({} as Wrong)).toThrow(error('GIMBAL_INVALID_INPUT', 'requests'));
    expect(() => scheduler.setState(5, 'active')).toThrow(error('GIMBAL_INVALID_INPUT', 'engine'));
    expect(() => scheduler.setState(0, 'dead' as Wrong)).toThrow(error('GIMBAL_INVALID_INPUT', 'state'));
    expect(() => scheduler.restarted(-1)).toThrow(error('GIMBAL_INVALID_INPUT', 'engine'));
    const request: DispatchRequest = { id: 1, promptTokens: 5 };
    for (const engine of [1, -1, 0.5]) {
      expect(() => scheduler.dispatched(engine, request)).toThrow(error('GIMBAL_INVALID_INPUT', 'engine'));
    }
    for (const ageMs of [-1, Number.NaN, 1e300]) {
      expect(() => scheduler.dispatched(0, request, ageMs)).toThrow(error('GIMBAL_INVALID_INPUT', 'ageMs'));
    }
    expect(() => scheduler.dispatched(0, { ...request, promptTokens: -1 })).toThrow(
      error('GIMBAL_INVALID_INPUT', 'request.promptTokens'),
    );
    scheduler.dispatched(0, request);
    expect(() => scheduler.dispatched(0, request)).toThrow(error('GIMBAL_INVALID_INPUT', 'request.id', '1'));
    expect(() => scheduler.dispatch(request)).toThrow(error('GIMBAL_INVALID_INPUT', 'request.id', '1'));
    expect(scheduler.inFlight).toBe(1);
    expect(() => scheduler.progress(1, -1)).toThrow(error('GIMBAL_INVALID_INPUT', 'prefilledTokens'));
    expect(() => scheduler.addEngine({ kvTokens: 0 })).toThrow(
      error('GIMBAL_INVALID_INPUT', 'engine.kvTokens'),
    );
  });
});
