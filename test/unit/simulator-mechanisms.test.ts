/** Mechanisms of a simulation one by one, each in a case so small that what must happen can be said beforehand. */
import { describe, expect, it } from 'vitest';
import { contiguous } from '../../lib/contiguous.js';
import type { Candidate } from '../../lib/index.js';
import { Random } from '../../lib/random.js';
import { Routing } from '../../lib/simulator/routing.js';
import { simulate } from '../../lib/simulator/simulate.js';
import { distribution } from '../../lib/simulator/summary.js';
import type {
  Rearrangement,
  SimulatedRequest,
  SimulatedRouting,
  SimulationOptions,
} from '../../lib/simulator/types.js';
import type { PlacementProblem } from '../../lib/types.js';
import { BASE, HARDWARE, MODEL, randomTrace } from './simulator-fixture.js';

const sum = (values: ArrayLike<number>) => Array.from(values).reduce((total, value) => total + value, 0);

describe('rearrangement', () => {
  const one: SimulatedRequest[] = [{ arrivalMs: 0, inputTokens: 10, outputTokens: 400 }];
  const same = (problem: PlacementProblem) => problem.incumbent!;

  it('a window begins anew for every plan, and holds its own steps alone', async () => {
    const counted: number[] = [];
    const plan = (problem: PlacementProblem) => {
      counted.push(sum(problem.tokens));
      return same(problem);
    };
    await simulate({
      ...BASE,
      trace: one,
      policy: { placement: { name: 'same', plan } },
      rearrangement: { everySteps: 100, windowSteps: 30 },
    });
    // A token a step: of each, two experts in two layers. Every cell of 64 is rounded.
    expect(counted.length).toBe(4);
    for (const tokens of counted) expect(Math.abs(tokens - 30 * 2 * 2)).toBeLessThan(64 / 2);
  });

  it.each([2, 1])(
    'a stall lasts the busiest GPU’s weights over the link and a time a layer, and all engines wait for it: %i of 2 layers simulated',
    async (simulatedLayers) => {
      // GPUs change places, so that nothing but the stall differs: routing is the same for all experts.
      const swapped = (problem: PlacementProblem) =>
        Int32Array.from(problem.incumbent!, (_, n) => problem.incumbent![n % 16 < 8 ? n + 8 : n - 8]!);
      const run = (plan: typeof same, rearrangement: Rearrangement) =>
        simulate({
          ...BASE,
          trace: one,
          routing: { kind: 'uniform' },
          simulatedLayers,
          policy: { placement: { name: 'own', plan } },
          rearrangement: { everySteps: 1000, windowSteps: 50, firstStep: 100, ...rearrangement },
        });
      const still = await run(same, {});
      const moved = await run(swapped, { layerStallMs: 20 });
      // 8 experts in each of 2 layers, 3 MB each, at 100 GB/s.
      const stallMs = (16 * 3e6) / 100e6 + 2 * 20;
      expect([still.counters.stallMs, moved.counters.rearrangements]).toEqual([0, 1]);
      expect(moved.counters.stallMs).toBeCloseTo(stallMs, 9);
      const tookMs = moved.requests[0]!.finishMs - still.requests[0]!.finishMs;
      expect(tookMs).toBeCloseTo(stallMs, 6);
    },
  );

  it('planned every so many steps: a budget limits the moves, and the less a window is of the time, the less they cost', async () => {
    const slow = { micros: 10, GBps: 0.001 };
    const migrations = async (rearrangement: Rearrangement, link = HARDWARE.links[0]!.allToAll) => {
      const { counters } = await simulate({
        ...BASE,
        hardware: { ...HARDWARE, links: [{ gpus: 8, allToAll: link, allGather: link, reduceScatter: link }] },
        trace: randomTrace({ count: 60, gapMs: 3, seed: 22 }),
        routing: { kind: 'generative', sigmaExperts: 1.5 },
        policy: { placement: 'periodic' },
        rearrangement: { firstStep: 60, everySteps: 1e6, windowSteps: 1, ...rearrangement },
      });
      return counters.migrations;
    };
    expect(await migrations({})).toBeGreaterThan(4);
    expect(await migrations({ migrationBudget: 2 })).toBe(2);
    expect(await migrations({}, slow)).toBeGreaterThan(4);
    expect(await migrations({ windowSteps: 1e6 }, slow)).toBe(0);
  });

  it('the series has every migration at its time, stalls without a step included', async () => {
    const { series, counters } = await simulate({
      ...BASE,
      trace: randomTrace({ count: 300, gapMs: 2, seed: 21 }),
      policy: { placement: 'eplb' },
      rearrangement: { everySteps: 100, windowSteps: 50, layerStallMs: 30 },
      seriesEveryMs: 10,
    });
    expect(counters.rearrangements).toBeGreaterThan(2);
    expect(sum(series.migrations)).toBe(counters.migrations);
    expect(series.migrations.length).toBe(series.timeMs.length);
    const changed = series.timeMs.filter((_, n) => series.migrations[n]! > 0);
    expect(changed.length).toBe(counters.rearrangements);
    // No step begins for 60 ms and a transfer: the move is in the point before that, or in the one after.
    for (const atMs of changed) {
      const n = series.timeMs.indexOf(atMs);
      const gaps = [atMs - series.timeMs[n - 1]!, series.timeMs[n + 1]! - atMs];
      expect(Math.max(...gaps)).toBeGreaterThanOrEqual(60);
    }
  });

  describe('beside the work', () => {
    // Experts 0 and 1 get nearly all tokens, and their operations are all that a step waits for.
    const tokens = Array.from({ length: 16 }, (_, e) => (e < 2 ? 10_000 : 1));
    const routing: SimulatedRouting = { kind: 'counts', tokens, layers: 1, sources: 1, experts: 16 };
    const exchanged = contiguous(2, 16, 16).map((expert) => ({ 1: 8, 8: 1 })[expert] ?? expert);
    const link = (GBps: number) => ({ micros: 0, GBps });
    const hardware = {
      ...HARDWARE,
      moe: { ...HARDWARE.moe, tflops: 0.1 },
      links: [{ gpus: 8, allToAll: link(0.1), allGather: link(1), reduceScatter: link(1) }],
      layerMicros: 0,
      stepMicros: 0,
    };
    const trace = Array.from({ length: 200 }, () => ({ arrivalMs: 0, inputTokens: 256, outputTokens: 1 }));
    const PLANNED = 20;

    /** Ends of steps, ms: each has the prompt of one request. */
    async function stepEnds(rearrangement: Rearrangement, own = hardware): Promise<number[]> {
      const { requests } = await simulate({
        model: MODEL,
        hardware: own,
        dp: 1,
        tp: 2,
        engine: { ...BASE.engine, requestMs: 0 },
        routing,
        trace,
        policy: { queue: 'fcfs', placement: { name: 'exchange', plan: () => exchanged } },
        rearrangement: { firstStep: PLANNED, transfer: 'overlap', ...rearrangement },
      });
      return requests.map(({ firstTokenMs }) => firstTokenMs).sort((a, b) => a - b);
    }
    const lasted = (ends: number[], step: number) => ends[step]! - ends[step - 1]!;

    it('a plan is in force when its weights have arrived over their share of the link, not before, and stays so', async () => {
      const ends = await stepEnds({});
      // One expert for each of two layers, 3 MB each, at a quarter of 0.1 GB/s.
      const arrivedMs = ends[PLANNED - 1]! + 6e6 / 0.1e6 / 0.25;
      const before = lasted(ends, 10);
      const steps = Array.from({ length: 179 }, (_, n) => n + PLANNED);
      // The step under way at that time is the last one under the old placement.
      const first = steps.find((step) => ends[step - 1]! >= arrivedMs)!;
      expect(first).toBeGreaterThan(PLANNED + 5);
      expect(first).toBeLessThan(100);
      for (const step of steps.filter((one_) => one_ < first)) {
        expect(lasted(ends, step) / before).toBeGreaterThan(0.9);
      }
      // Two experts on one GPU and now one on each: the pairs of a step take half the time.
      for (const step of steps.filter((one_) => one_ >= first)) {
        expect(lasted(ends, step) / before).toBeLessThan(0.75);
      }
    });

    it('collectives have what is left of the links while weights move, and all of them afterwards', async () => {
      // Links are all that counts.
      const slow = {
        ...hardware,
        moe: { ...hardware.moe, tflops: 1e6 },
        gemm: { ...hardware.gemm, tflops: 1e6 },
      };
      const far = slow.links.map((one_) => ({ ...one_, allGather: link(0.01), reduceScatter: link(0.01) }));
      const ends = await stepEnds({ linkShare: 0.5 }, { ...slow, links: far });
      const usual = lasted(ends, 10);
      expect(lasted(ends, PLANNED) / usual).toBeCloseTo(2, 1);
      expect(lasted(ends, 199) / usual).toBeCloseTo(1, 2);
    });
  });
});

/** What the dispatcher sees of its engines when a request arrives that comes after all others. */
async function seenAt(
  arrivalMs: number,
  options: Partial<SimulationOptions> & { trace: readonly SimulatedRequest[] },
): Promise<Candidate[]> {
  const before = options.trace.length;
  let seen: Candidate[] = [];
  const filter = (all: readonly Candidate[], { id }: { id: string | number }) => {
    if (id === before) seen = all.map((one) => ({ ...one }));
    return all;
  };
  await simulate({
    ...BASE,
    ...options,
    trace: [...options.trace, { arrivalMs, inputTokens: 16, outputTokens: 1 }],
    policy: {
      placement: 'static',
      ...options.policy,
      dispatch: { ...(options.policy?.dispatch as object), filter },
    },
  });
  return seen;
}

describe('what the dispatcher is told', () => {
  const long: SimulatedRequest[] = [{ arrivalMs: 0, inputTokens: 160, outputTokens: 2000 }];

  it('samples are as old as the last one, whatever has happened since', async () => {
    const engine = { ...BASE.engine, sampleEveryMs: 1000, requestMs: 0 };
    const kvMs = async (atMs: number) => (await seenAt(atMs, { trace: long, dp: 1, engine }))[0]!.kvMs;
    const [early, middle, late, next] = [
      await kvMs(1010),
      await kvMs(1500),
      await kvMs(1990),
      await kvMs(2010),
    ];
    // A token takes 3 ms, so that memory has filled much in between.
    expect(early).toBeGreaterThan(0);
    expect(middle).toBe(early);
    expect(late).toBe(early);
    expect(next! / early!).toBeGreaterThan(1.3);
  });

  it('the first token, when it comes: the prefill is off the ledger then, and not before', async () => {
    const engine = { ...BASE.engine, sampleEveryMs: 1e6 };
    const alone = await simulate({ ...BASE, dp: 1, engine, trace: long });
    const firstMs = alone.requests[0]!.firstTokenMs;
    const prefillMs = async (atMs: number) =>
      (await seenAt(atMs, { trace: long, dp: 1, engine }))[0]!.inFlightPrefillMs;
    // A request is dispatched 3 ms after it came.
    expect(await prefillMs(firstMs - 3 - 0.1)).toBeGreaterThan(0);
    expect(await prefillMs(firstMs - 3 + 0.1)).toBe(0);
  });

  it.each(['static', 'gimbal'] as const)('each engine’s own MoE pressure: %s', async (placement) => {
    // Topic 0 goes to the experts of GPU 0 alone, topic 1 to all alike; each has a rank of its own.
    const tokens = Array.from({ length: 32 }, (_, n) => (n < 8 || n >= 16 ? 100 : 0));
    const trace = Array.from({ length: 40 }, (_, n) => ({
      arrivalMs: n,
      inputTokens: 100,
      outputTokens: 20,
      topic: n % 2,
    }));
    const dispatch = { pick: (_: unknown, { id }: { id: string | number }) => Number(id) % 2 };
    // It knows all that has ended, and leaves experts where they are.
    const controller = { sampleShare: 1, priorTokens: 0, rules: { leastTokens: 1e9 } };
    const pressureOf = async (from: number) =>
      (
        await seenAt(1000, {
          trace: trace.map((one) => ({ ...one, topic: (one.topic + from) % 2 })),
          routing: { kind: 'counts', tokens, layers: 1, sources: 2, experts: 16 },
          policy: { dispatch, placement, feedback: true, weights: { moe: 1 } },
          rearrangement: { controller },
        })
      ).map(({ moeMs }) => moeMs);
    for (const hot of [0, 1]) {
      const pressure = await pressureOf(hot);
      expect(pressure[hot]).toBeGreaterThan(0);
      expect(pressure[1 - hot]! / pressure[hot]!).toBeLessThan(0.05);
    }
  });

  it('MoE pressure anew at the next sample, where a placement has come in force', async () => {
    // Topic 0, which rank 0 has, goes to the experts of GPU 0 alone, until those are on both GPUs; topic 1 to all alike.
    const tokens = Array.from({ length: 32 }, (_, n) => (n < 8 || n >= 16 ? 100 : 0));
    const dispatch = { pick: (_: unknown, { id }: { id: string | number }) => Number(id) % 2 };
    const spread = Int32Array.from({ length: 2 * 16 }, (_, n) => (n % 2) * 8 + Math.floor((n % 16) / 2));
    const options = {
      trace: [0, 1].map((topic) => ({ arrivalMs: 0, inputTokens: 16, outputTokens: 1000, topic })),
      routing: { kind: 'counts' as const, tokens, layers: 1, sources: 2, experts: 16 },
      policy: {
        dispatch,
        placement: { name: 'spread', plan: () => spread },
        feedback: true,
        weights: { moe: 1 },
      },
      // A step takes about 2.1 ms: it moves at about 1,300 ms, between two seconds.
      rearrangement: { firstStep: 600, stallMs: 0 },
    };
    const moeMs = async (atMs: number) => Math.max(...(await seenAt(atMs, options)).map((one) => one.moeMs));
    const before = await moeMs(1100);
    expect(before).toBeGreaterThan(0);
    expect(await moeMs(1900)).toBeLessThan(0.2 * before);
  });

  it('a request’s session, so that the next one goes where the last one went', async () => {
    const sessions = 12;
    const trace = Array.from({ length: 4 * sessions }, (_, n) => ({
      arrivalMs: 1000 * n,
      inputTokens: 500,
      outputTokens: 2,
      session: `s${n % sessions}`,
    }));
    const { requests } = await simulate({ ...BASE, dp: 4, trace });
    for (const [n, { engine }] of requests.entries()) {
      expect(engine, `request ${n}`).toBe(requests[n % sessions]!.engine);
    }
    expect(new Set(requests.map(({ engine }) => engine)).size).toBeGreaterThan(1);
  });
});

describe('pacing', () => {
  const burst = (count: number) =>
    Array.from({ length: count }, () => ({ arrivalMs: 0, inputTokens: 100, outputTokens: 1 }));

  /** For each dispatch: the least number of requests that an engine had before it. */
  async function releases(count: number, pacing: object): Promise<number[]> {
    const seen: number[] = [];
    const filter = (all: readonly Candidate[]) => {
      seen.push(Math.min(...all.map(({ inFlight }) => inFlight)));
      return all;
    };
    await simulate({
      ...BASE,
      dp: 1,
      trace: burst(count),
      engine: { ...BASE.engine, maxNumSeqs: 1, maxNumBatchedTokens: 100, asyncScheduling: false },
      policy: { placement: 'static', pacing, dispatch: { filter } },
    });
    return seen;
  }

  it('an engine gets prompts while it has less than the least before it, and one more for each that it has done', async () => {
    const before = await releases(8, { leastTokens: 250, backlogShare: 0 });
    // 0, 100 and 200 tokens are below 250; from then on each release follows a first token.
    expect(before).toEqual([0, 1, 2, 2, 2, 2, 2, 2]);
  });

  it('what is held raises it by its share, and the most limits that', async () => {
    // Of ten prompts, 1,000 tokens are held at first, and a quarter of what is still held is allowed where that is more than 100.
    // Arrivals of one instant come in before anything is released: 250, 225 and 200 tokens against 0, 100 and 200.
    expect((await releases(10, { leastTokens: 100, backlogShare: 0.25 })).slice(0, 3)).toEqual([0, 1, 1]);
    expect((await releases(10, { leastTokens: 100, backlogShare: 0.25 })).at(-1)).toBe(0);
    expect(
      (await releases(10, { leastTokens: 100, backlogShare: 0.25, mostTokens: 100 })).every((n) => n === 0),
    ).toBe(true);
  });

  it('prompts are released in the queue’s order', async () => {
    const order = async (queue: 'fcfs' | 'spf') => {
      const seen: (string | number)[] = [];
      const dispatch = {
        filter: (all: readonly Candidate[], { id }: { id: string | number }) => {
          seen.push(id);
          return all;
        },
      };
      const trace = [300, 200, 100].map((inputTokens) => ({ arrivalMs: 0, inputTokens, outputTokens: 1 }));
      const pacing = { leastTokens: 50, backlogShare: 0 };
      await simulate({ ...BASE, dp: 1, trace, policy: { placement: 'static', queue, pacing, dispatch } });
      return seen;
    };
    expect(await order('fcfs')).toEqual([0, 1, 2]);
    expect(await order('spf')).toEqual([2, 1, 0]);
  });
});

describe('sessions', () => {
  it('keep a topic each, whoever comes in between', () => {
    const routing = new Routing(
      { kind: 'generative', stickiness: 1, topics: 1000, personas: 1 },
      { ...MODEL, experts: 2, topK: 1 },
      1,
    );
    const ask = (session: string) =>
      routing.topicOf(routing.profileOf({ arrivalMs: 0, inputTokens: 1, outputTokens: 1, session }));
    const first = [ask('a'), ask('b'), ask('c')];
    expect(new Set(first).size).toBe(3);
    for (let n = 0; n < 20; n++) expect([ask('a'), ask('b'), ask('c')]).toEqual(first);
  });

  it('draw a topic every time where they keep none, and all topics come', () => {
    const routing = new Routing(
      { kind: 'generative', stickiness: 0, topics: 4, personas: 2 },
      { ...MODEL, experts: 2, topK: 1 },
      1,
    );
    const hits = new Int32Array(4);
    for (let n = 0; n < 4000; n++) {
      const profile = routing.profileOf({ arrivalMs: 0, inputTokens: 1, outputTokens: 1, session: 'a' });
      hits[routing.topicOf(profile)]! += 1;
    }
    for (const count of hits) expect(Math.abs(count - 1000)).toBeLessThan(150);
  });
});

describe('stickiness of ranks', () => {
  // Drawn, so that it has nothing to do with turns.
  const random = new Random(17);
  const trace = randomTrace({ count: 400, gapMs: 2, seed: 16 }).map((one) => ({
    ...one,
    topic: random.below(8),
  }));
  const engines = async (rankStickiness: number) => {
    const policy = { dispatch: 'vllm' as const, placement: 'static' as const, rankStickiness };
    return (await simulate({ ...BASE, dp: 4, trace, policy })).requests.map(({ engine }) => engine);
  };

  it('binds a share of the requests to the engine of their topic, and leaves the others to dispatch', async () => {
    const home = trace.map(({ topic }) => topic % 4);
    const share = (own: number[]) => own.filter((engine, n) => engine === home[n]).length / own.length;
    expect(share(await engines(1))).toBe(1);
    expect(share(await engines(0))).toBeLessThan(0.4);
    // Of the other half, a quarter gets there by chance.
    expect(share(await engines(0.5))).toBeGreaterThan(0.53);
    expect(share(await engines(0.5))).toBeLessThan(0.72);
  });

  it('what is bound stands in the ledger: the others make room for it', async () => {
    // Nine of ten prompts are of engine 0, and half of them bound to it; what is free goes elsewhere, without a sample that says so.
    const skewed = trace.map((one, n) => ({ ...one, topic: n % 10 === 9 ? 1 : 0 }));
    const policy = { dispatch: 'gimbal' as const, placement: 'static' as const, rankStickiness: 0.5 };
    const engine = { ...BASE.engine, sampleEveryMs: 1e6 };
    const { requests } = await simulate({ ...BASE, dp: 4, engine, trace: skewed, policy });
    const on = [0, 1, 2, 3].map((engine) => requests.filter((one) => one.engine === engine).length);
    expect(on[0]! / requests.length).toBeGreaterThan(0.42);
    expect(on[0]! / requests.length).toBeLessThan(0.5);
  });
});

describe('percentiles', () => {
  it('are the least value that the share does not exceed', () => {
    // 77 has no divisor in common with 200: every value once.
    const shuffled = Float64Array.from({ length: 200 }, (_, n) => ((77 * n) % 200) + 1);
    expect(distribution(shuffled)).toEqual({ mean: 100.5, p50: 100, p90: 180, p95: 190, p99: 198 });
    expect(distribution(Float64Array.of(30, 10, 20))).toEqual({
      mean: 20,
      p50: 20,
      p90: 30,
      p95: 30,
      p99: 30,
    });
  });

  it('of every figure are those of the log, tokens of one-token requests left out', async () => {
    const trace = randomTrace({ count: 300, gapMs: 3, seed: 14 }).map((one, n) =>
      n % 5 === 0 ? { ...one, outputTokens: 1 } : one,
    );
    const { requests, summary } = await simulate({ ...BASE, trace });
    const at = (values: number[], share: number) =>
      values.find(
        (value) => values.filter((other) => other <= value).length >= share * values.length - 1e-9,
      )!;
    const check = (told: typeof summary.ttftMs, values: number[]) => {
      const sorted = values.sort((a, b) => a - b);
      expect(told.mean).toBeCloseTo(sum(sorted) / sorted.length, 9);
      expect([told.p50, told.p90, told.p95, told.p99]).toEqual(
        [0.5, 0.9, 0.95, 0.99].map((s) => at(sorted, s)),
      );
    };
    check(
      summary.ttftMs,
      requests.map((one) => one.firstTokenMs - one.arrivalMs),
    );
    check(
      summary.e2eMs,
      requests.map((one) => one.finishMs - one.arrivalMs),
    );
    const several = requests
      .map((one, n) => ({ one, more: trace[n]!.outputTokens - 1 }))
      .filter(({ more }) => more > 0);
    expect(several.length).toBeLessThan(245);
    check(
      summary.tpotMs,
      several.map(({ one, more }) => (one.finishMs - one.firstTokenMs) / more),
    );
  });
});
