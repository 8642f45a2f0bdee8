/** Who places experts in the simulator, and when: swift's rule, the oracle, the controller's looks; and lost GPUs. */
import { describe, expect, it } from 'vitest';
import { contiguous } from '../../lib/contiguous.js';
import { Random } from '../../lib/random.js';
import { checkSimulation } from '../../lib/simulator/check.js';
import { ControllerPolicy } from '../../lib/simulator/controlled.js';
import { FailureSchedule } from '../../lib/simulator/failures.js';
import type { Group } from '../../lib/simulator/group.js';
import { OraclePolicy } from '../../lib/simulator/oracle.js';
import { Rearranger } from '../../lib/simulator/rearrange.js';
import { repaired, withoutGpus } from '../../lib/simulator/repair.js';
import { RequestColumns } from '../../lib/simulator/requests.js';
import { swiftBalance } from '../../lib/simulator/rivals/swift.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type {
  SimulatedController,
  SimulatedPlacement,
  SimulationOptions,
} from '../../lib/simulator/types.js';
import type { PlacementProblem } from '../../lib/types.js';
import { BASE, HARDWARE, MODEL, randomTrace } from './simulator-fixture.js';

/** One source, one layer unless told otherwise. */
function problemOf(
  gpus: number,
  slotsPerGpu: number,
  loads: number[],
  incumbent: number[],
  more: Partial<PlacementProblem> = {},
): PlacementProblem {
  return {
    layers: 1,
    sources: 1,
    experts: loads.length,
    gpus,
    slotsPerGpu,
    tokens: Uint32Array.from(loads),
    computeCost: 1,
    commCost: new Float64Array(gpus),
    incumbent: Int32Array.from(incumbent),
    ...more,
  };
}

const gpusOf = (placement: Int32Array, slotsPerGpu: number): number[][] =>
  Array.from({ length: placement.length / slotsPerGpu }, (_, g) =>
    [...placement.subarray(g * slotsPerGpu, (g + 1) * slotsPerGpu)].sort((a, b) => a - b),
  );

describe('the swift-like rival', () => {
  it('exchanges the expert of the busiest GPU that leaves the lower larger load, once with each GPU', () => {
    // 19, 2, 2: 10 for 1 leaves 10 and 11; what came just now stays, and GPU 2 has nothing that helps.
    const problem = problemOf(3, 2, [10, 9, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]);
    expect(gpusOf(swiftBalance(problem), 2)).toEqual([
      [1, 2],
      [0, 3],
      [4, 5],
    ]);
  });

  it('gives redundant slots to the heaviest experts, where their homes may send them', () => {
    // 13 and 3: of the second replicas of 1 and 2 the one becomes expert 0's; expert 3 is there already, so 1 stays.
    const problem = problemOf(2, 3, [12, 1, 1, 2], [0, 1, 2, 3, 1, 2]);
    expect(gpusOf(swiftBalance(problem), 3)).toEqual([
      [0, 1, 2],
      [0, 1, 3],
    ]);
  });

  it('moves nothing for less than a twentieth', () => {
    const incumbent = [0, 1, 2, 3];
    expect([...swiftBalance(problemOf(2, 2, [104, 100, 100, 96], incumbent))]).toEqual(incumbent);
    expect([...swiftBalance(problemOf(2, 2, [130, 100, 100, 70], incumbent))]).not.toEqual(incumbent);
  });

  it('keeps every expert, leaves the dead alone, and sends at most one expert from one GPU to another', () => {
    const seed = Number(process.env.GIMBAL_TEST_SEED ?? 5);
    const random = new Random(seed);
    let changed = 0;
    for (let n = 0; n < 60; n++) {
      const [gpus, slotsPerGpu] = [random.between(3, 6), random.between(3, 6)];
      const dead = n % 3 === 0 ? [random.below(gpus)] : [];
      const experts = (gpus - dead.length) * slotsPerGpu - random.below(4);
      const live = Array.from({ length: gpus }, (_, g) => g).filter((g) => !dead.includes(g));
      let next = 0;
      const incumbent = Array.from({ length: gpus * slotsPerGpu }, (_, slot) =>
        live.includes(Math.floor(slot / slotsPerGpu)) ? next++ % experts : -1,
      );
      const loads = Array.from({ length: experts }, () => Math.round(1000 * Math.exp(random.normal())));
      const problem = problemOf(gpus, slotsPerGpu, loads, incumbent, { deadGpus: dead });
      const plan = swiftBalance(problem);
      const note = `seed ${seed}, case ${n}`;
      expect(new Set([...plan].filter((expert) => expert >= 0)).size, note).toBe(experts);
      expect(plan.filter((expert) => expert < 0).length, note).toBe(dead.length * slotsPerGpu);
      const before = gpusOf(problem.incumbent!, slotsPerGpu);
      const after = gpusOf(plan, slotsPerGpu);
      const sole = (expert: number) => before.filter((own) => own.includes(expert)).length === 1;
      const sends = new Map<string, number>();
      for (const [to, own] of after.entries()) {
        for (const expert of new Set(own)) {
          if (before[to]!.includes(expert) || !sole(expert)) continue;
          changed += 1;
          const from = before.findIndex((held) => held.includes(expert));
          sends.set(`${from} ${to}`, (sends.get(`${from} ${to}`) ?? 0) + 1);
        }
      }
      // Slots that no home may fill any more are filled from anywhere; without any, one each way is all.
      if (experts === live.length * slotsPerGpu) expect(Math.max(0, ...sends.values()), note).toBeLessThan(2);
    }
    expect(changed).toBeGreaterThan(50);
  });
});

describe('a placement without a planner', () => {
  it('revives experts in slots of those that have most replicas, spread over the GPUs, and loads a GPU that is back', () => {
    const initial = contiguous(1, 8, 12);
    const shape = { gpus: 4, slotsPerGpu: 3 };
    const lost = withoutGpus(initial, shape, new Set([1]));
    // 0…2, nothing, 6 7 0, 1 2 3: experts 4 and 5 are gone, and 0, 1 and 2 have two replicas. Each takes one, on another GPU.
    expect([...lost]).toEqual([0, 1, 2, -1, -1, -1, 6, 7, 0, 1, 2, 3]);
    const problem = problemOf(4, 3, new Array(8).fill(1), [...lost], { deadGpus: [1] });
    const alive = repaired(problem, initial);
    expect([...alive]).toEqual([4, 1, 2, -1, -1, -1, 6, 7, 0, 5, 2, 3]);
    const back = repaired({ ...problem, incumbent: alive, deadGpus: [] }, initial);
    expect([...back]).toEqual([4, 1, 2, 3, 4, 5, 6, 7, 0, 5, 2, 3]);
  });

  it('is made layer by layer, from whoever has the most replicas', () => {
    const shape = { gpus: 2, slotsPerGpu: 2 };
    expect([...withoutGpus(contiguous(2, 4, 4), shape, new Set([1]))]).toEqual([0, 1, -1, -1, 0, 1, -1, -1]);
    // Experts 3 and 1 are gone; 1 has three replicas in the first layer, 2 in the second.
    const left = [0, 0, 1, 1, 1, 2, 3, 3, 2, 2, 2, 0];
    const problem = problemOf(2, 3, new Array(4).fill(1), left, { layers: 2 });
    expect([...repaired(problem, contiguous(2, 4, 6))]).toEqual([0, 0, 3, 1, 1, 2, 3, 3, 1, 2, 2, 0]);
  });

  it('tells of each loss and return once, in order, by group', () => {
    const schedule = new FailureSchedule(
      [
        { atMs: 30, gpu: 5, backMs: 50 },
        { atMs: 10, gpu: 1, backMs: 30 },
        { atMs: 30, gpu: 2 },
      ],
      4,
      2,
    );
    expect(schedule.due(0, 9)).toEqual([]);
    expect(schedule.due(0, 10)).toEqual([{ atMs: 10, gpu: 1, isLoss: true }]);
    expect(schedule.due(0, 40).map(({ gpu, isLoss }) => [gpu, isLoss])).toEqual([
      [1, false],
      [2, true],
    ]);
    expect(schedule.due(1, 40)).toEqual([{ atMs: 30, gpu: 1, isLoss: true }]);
    expect(schedule.due(0, 1e9)).toEqual([]);
  });
});

describe('the oracle', () => {
  it('plans for what decodes now and for what the trace brings until its next plan', async () => {
    const trace = [
      { arrivalMs: 900, inputTokens: 7, outputTokens: 7 },
      { arrivalMs: 1100, inputTokens: 100, outputTokens: 4 },
      { arrivalMs: 1400, inputTokens: 40, outputTokens: 300 },
      { arrivalMs: 1500, inputTokens: 5000, outputTokens: 1 },
    ];
    const requests = new RequestColumns(trace);
    requests.profile.set([0, 1, 2, 1]);
    const asked: Float64Array[] = [];
    const group = {
      steps: 100,
      load: {
        batch: Float64Array.from([3, 0, 0, 0, 0, 1]),
        expertTokens: (counts: Float64Array) => {
          asked.push(counts.slice());
          return Uint32Array.from({ length: 2 * 4 }, () => 10);
        },
      },
    } as unknown as Group;
    const oracle = new OraclePolicy({ everyMs: 500, requests, groups: 2, seed: 0 });
    const problem = () => {
      const { tokens: _, ...rest } = problemOf(2, 2, [1, 1, 1, 1], [0, 1, 2, 3]);
      return { ...rest, sources: 2, commCost: new Float64Array(4) };
    };
    const plan = (nowMs: number) => oracle.plan({ group, nowMs, gpusChanged: false, problem });
    expect(await plan(1000)).toHaveLength(4);
    // Steps of 10 ms: 50 until the next plan. Decodes stay; of the third request only 10 tokens come in time. Half for each rank,
    // and of what arrives half for each group.
    const each = [(3 * 50) / 2, (100 + 4) / 4, (40 + 10) / 4 + 50 / 2];
    expect([...asked[0]!]).toEqual([...each, ...each]);
    expect(await plan(1499)).toBeUndefined();
    expect(await plan(1500)).toBeDefined();
    oracle.close();
  });

  it('loses less of the experts’ time than planning from the past, and its moves take no time', async () => {
    const trace = randomTrace({ count: 600, gapMs: 3, seed: 8 }).map((request, n) => ({
      ...request,
      topic: Math.floor(n / 150),
    }));
    const of = (placement: SimulatedPlacement) =>
      simulate({
        ...BASE,
        // Experts that take their time by the pair, as the planner has it, and not by the weights that are read.
        hardware: { ...HARDWARE, moe: { ...HARDWARE.moe, tflops: 1 } },
        dp: 4,
        trace,
        routing: { kind: 'generative', sigmaTopics: 1.5, topics: 4 },
        policy: { placement, feedback: false },
        rearrangement: { everySteps: 100, windowSteps: 50, oracleEveryMs: 200, redundantExperts: 4 },
      });
    const [oracle, periodic] = [await of('oracle'), await of('periodic')];
    const lost = ({ counters }: typeof oracle) => counters.expertMs / counters.evenExpertMs - 1;
    expect(lost(oracle)).toBeLessThan(0.95 * lost(periodic));
    expect(oracle.counters.migrations).toBeGreaterThan(periodic.counters.migrations);
    expect(oracle.counters.stallMs).toBe(0);
  });
});

describe('the controller', () => {
  const trace = randomTrace({ count: 900, gapMs: 3, seed: 9 });
  const look = { lookEveryMs: 200, sampleShare: 0.5, halfLifeTokens: 20_000 };
  const calm = { horizonMs: 10_000, minIntervalMs: 500, leastTokens: 50 };
  const run = (controller: NonNullable<SimulationOptions['rearrangement']>['controller'], seed = 3) =>
    simulate({
      ...BASE,
      dp: 4,
      trace,
      seed,
      routing: { kind: 'generative', sigmaExperts: 0.8, halfLifeMs: 2000 },
      policy: { feedback: false },
      rearrangement: { redundantExperts: 4, controller: controller! },
    });

  it('looks every so often, keeps its distance from the last commit, and moves only where it decides to', async () => {
    const { decisions, counters, requests } = await run({ ...look, rules: calm });
    const lastMs = requests.reduce((last, { finishMs }) => Math.max(last, finishMs), 0);
    const times = decisions.map(({ atMs }) => atMs);
    expect(times.every((atMs, n) => Math.floor(atMs / 200) > Math.floor((times[n - 1] ?? 0) / 200))).toBe(
      true,
    );
    expect(times.length).toBeGreaterThan(0.5 * (lastMs / 200));
    const commits = decisions.filter(({ rearranged }) => rearranged);
    expect(commits.length).toBeGreaterThan(2);
    expect(commits.every(({ reason }) => reason === 'gain')).toBe(true);
    for (const [n, { atMs }] of commits.slice(1).entries()) {
      expect(atMs - commits[n]!.atMs).toBeGreaterThanOrEqual(500);
    }
    expect(counters.rearrangements).toBe(commits.length);
    expect(counters.migrations).toBe(commits.reduce((sum, { migrations }) => sum + migrations!, 0));
    expect(counters.stallMs).toBe(0);
  });

  it('obeys each rule', async () => {
    const reasons = async (rules: object, more: object = {}) => {
      const { decisions, counters } = await run({ ...look, ...more, rules: { ...calm, ...rules } });
      return { reasons: new Set(decisions.map(({ reason }) => reason)), ...counters };
    };
    const small = await reasons({ leastGainShare: 0.9 });
    expect([...small.reasons]).toContain('gain-too-small');
    expect(small.rearrangements).toBe(0);
    const short = await reasons({ horizonMs: 0.001 });
    expect(short.rearrangements).toBe(0);
    const once = await reasons({ minIntervalMs: 1e9 });
    expect([...once.reasons]).toContain('too-soon');
    expect(once.rearrangements).toBe(1);
    const [picky, greedy] = [await reasons({ leastMoveShare: 0.1 }), await reasons({ leastMoveShare: 0 })];
    expect(picky.migrations / picky.rearrangements).toBeLessThan(
      0.7 * (greedy.migrations / greedy.rearrangements),
    );
    const blind = await reasons({}, { sampleShare: 0.001 });
    expect([...blind.reasons]).toEqual(['too-little-data']);
    const hysteresis = await reasons({ hysteresis: 10 });
    expect([...hysteresis.reasons]).toContain('within-hysteresis');
    expect(hysteresis.rearrangements).toBe(1);
  });

  it('draws another sample with another seed, and knows no more than the sample', async () => {
    const [a, b] = [await run({ ...look, rules: calm }), await run({ ...look, rules: calm }, 4)];
    const told = ({ decisions }: typeof a) => decisions.map(({ gainShare }) => gainShare);
    expect(told(a)).not.toEqual(told(b));
    const few = await run({ ...look, sampleShare: 0.02, rules: { ...calm, leastTokens: 0 } });
    expect(told(few)).not.toEqual(told(a));
  });
});

describe('each group’s controller', () => {
  it('is told of its own requests, what they were given and what they generated', async () => {
    const { decisions } = await simulate({
      ...BASE,
      dp: 4,
      ep: 2,
      trace: Array.from({ length: 80 }, (_, n) => ({
        arrivalMs: n < 40 ? n : 2000 + n,
        inputTokens: 5,
        outputTokens: 300,
      })),
      // When the second half comes, a rank has some 3,000 tokens behind it, of which 50 are prompts.
      rearrangement: { controller: { lookEveryMs: 200, sampleShare: 1, rules: { leastTokens: 1000 } } },
    });
    for (const group of [0, 1]) {
      const reasons = decisions.filter((one) => one.group === group).map(({ reason }) => reason);
      expect(reasons[0]).toBe('too-little-data');
      expect(reasons.at(-1)).not.toBe('too-little-data');
    }
  });
});

describe('the controller’s policy', () => {
  /** Every layer's experts alike for a profile. `[profiles][experts]` */
  const CHANCES = [
    [0.4, 0.4, 0.1, 0.1],
    [0.05, 0.2, 0.7, 0.05],
    [0.03, 0.07, 0.7, 0.2],
    [0.07, 0.03, 0.7, 0.2],
  ];
  const group = {
    steps: 1,
    load: { chances: (profile: number) => Float32Array.from(CHANCES[profile]!) },
  } as unknown as Group;
  const HELD = [0, 1, 2, 3];

  /** One layer of four experts, two ranks of a GPU each, and an expert's pair takes a µs. */
  function make(given: SimulatedController, { stallMs = 0, commCost = new Float64Array(4), topK = 1 } = {}) {
    const { tokens: _, incumbent, ...problem } = problemOf(2, 2, HELD, HELD, { sources: 2, commCost });
    const costs = { expertBytes: 1, linkGBps: 1e6, transfer: 'stall' as const, stallMs, layerStallMs: 0 };
    const policy = new ControllerPolicy({
      problem: { ...problem, computeCost: 1000 },
      initial: incumbent!,
      migration: costs,
      given: { lookEveryMs: 200, ...given },
      topK,
      seed: 1,
    });
    const plan = (nowMs: number, placement = incumbent!) =>
      policy.plan({
        group,
        nowMs,
        gpusChanged: false,
        problem: () => ({ ...problem, incumbent: placement }),
      });
    /** 10,000 tokens in requests of 50, of both ranks. */
    const serve = (profile: number) => {
      for (let n = 0; n < 200; n++) policy.served(group, n % 2, profile, 50);
    };
    return { policy, plan, serve };
  }

  it('looks once where the time of a look is reached, and makes up for none that it has missed', async () => {
    const { policy, plan } = make({ rules: { leastTokens: 1e9 } });
    for (const nowMs of [100, 199, 200, 250, 400, 1090, 1150, 1200]) await plan(nowMs);
    expect(policy.decisions.map(({ atMs }) => atMs)).toEqual([200, 400, 1090, 1200]);
    policy.close();
  });

  it.each([40, 4])('is told its share of the requests, by rank and profile, of %i tokens each', (tokens) => {
    const { policy } = make({ sampleShare: 0.25, priorTokens: 0, halfLifeTokens: 1e8 });
    for (let n = 0; n < 8000; n++) policy.served(group, 1, 1, tokens);
    const counts = [...policy.tokens()];
    expect(counts.slice(0, 4)).toEqual([0, 0, 0, 0]);
    for (const [expert, chance] of CHANCES[1]!.entries()) {
      const mean = 8000 * 0.25 * tokens * chance;
      // Of the requests that are drawn, and of their tokens.
      const spread = Math.sqrt(mean) + mean * Math.sqrt(0.75 / (8000 * 0.25));
      expect(Math.abs(counts[4 + expert]! - mean)).toBeLessThan(4 * spread);
    }
    policy.close();
  });

  it.each([
    [150, true],
    [600, false],
  ])('takes the traffic for what it is, and not for its sample: a stall of %i ms', async (stallMs, pays) => {
    // 10,000 tokens a second, of which 8,000 go to GPU 0 and need not: of the 800 ms in 100 s, 300 are to be had.
    const rules = { horizonMs: 100_000, leastTokens: 1, certainty: 0 };
    const { policy, plan, serve } = make({ lookEveryMs: 1000, sampleShare: 0.1, rules }, { stallMs });
    serve(0);
    expect((await plan(1000)) !== undefined).toBe(pays);
    policy.close();
  });

  it.each([
    [1, 'gain'],
    [2, 'too-little-data'],
  ])('has tokens behind it and not pairs: top %i', async (topK, reason) => {
    // 10,000 pairs of two ranks.
    const { policy, plan, serve } = make({ sampleShare: 1, rules: { leastTokens: 4000 } }, { topK });
    serve(0);
    await plan(1000);
    expect(policy.decisions.map((one) => one.reason)).toEqual([reason]);
    policy.close();
  });

  it('forgets by the half-life that it is given, and knows how old its statistics are', async () => {
    const given = { sampleShare: 1, priorTokens: 0, halfLifeTokens: 1000 };
    const { policy, plan, serve } = make({ ...given, rules: { leastTokens: 1, staleStatisticsMs: 5000 } });
    serve(0);
    serve(1);
    const counts = policy.tokens();
    const sum = counts.reduce((total, count) => total + count, 0);
    expect((counts[2]! + counts[6]!) / sum).toBeGreaterThan(0.6);
    await plan(1000);
    await plan(6001);
    const reasons = policy.decisions.map(({ reason }) => reason);
    expect(reasons[0]).not.toBe('stale-statistics');
    expect(reasons[1]).toBe('stale-statistics');
    policy.close();
  });

  it('remembers what the plan in force has promised', async () => {
    // One expert has most of the traffic, so that the best plan is far above its bound; then the two smallest change places.
    const commCost = Float64Array.of(0, 500, 500, 0);
    const given = { lookEveryMs: 1000, sampleShare: 1, halfLifeTokens: 20_000 };
    const rules = { horizonMs: 1e6, minIntervalMs: 0, leastMoveShare: 0, hysteresis: 0.1 };
    const { policy, plan, serve } = make({ ...given, rules }, { commCost });
    serve(2);
    const placement = await plan(1000);
    policy.moved(1000);
    serve(3);
    expect(await plan(2000, placement!)).toBeUndefined();
    expect(policy.decisions.map(({ reason }) => reason)).toEqual(['gain', 'within-hysteresis']);
    policy.close();
  });
});

describe('a move', () => {
  /** Four ranks of a GPU each, six slots a GPU, of which GPU 2 may be lost. */
  const make = (
    placement: SimulatedPlacement,
    rearrangement: SimulationOptions['rearrangement'] = {},
    nodes = 1,
  ) => {
    const trace = randomTrace({ count: 2, gapMs: 1, seed: 1 });
    const options = { ...BASE, dp: 4, nodes, trace, policy: { placement } };
    const checked = checkSimulation({ ...options, rearrangement: { redundantExperts: 8, ...rearrangement } });
    return new Rearranger(checked, new RequestColumns(trace));
  };
  const groupOf = (placement: Int32Array, dead: number[]) =>
    ({
      steps: 1,
      deadGpus: new Set(dead),
      load: {
        placement,
        batch: new Float64Array(4),
        chances: () => new Float32Array(2 * 16).fill(1 / 8),
        expertTokens: () => new Uint32Array(2 * 4 * 16).fill(10),
      },
    }) as unknown as Group;
  it.each([
    ['static', 1, 100],
    ['static', 2, 10],
    ['swift', 1, 100],
  ] as const)(
    'after a loss holds at once, and all stand still for a second and until the weights are there: %s, nodes: %i',
    async (placement, nodes, GBps) => {
      const rearranger = make(placement, {}, nodes);
      const lost = await rearranger.gpusChanged(groupOf(rearranger.initial, [2]), 50, true);
      expect(lost.atMs).toBe(50);
      expect(lost.migrations).toBe(2 * 4);
      // GPU 0 gets two experts for each of two layers, of 3 MB.
      expect(lost.stallMs).toBeCloseTo(1000 + 12 / GBps, 9);
      // It comes back empty, and its six slots of each layer are filled beside the work, at a quarter of the link.
      const back = await rearranger.gpusChanged(groupOf(lost.placement, []), 5000, false);
      expect(back.stallMs).toBe(0);
      expect(back.atMs).toBeCloseTo(5000 + (4 * 12 * 3) / GBps, 9);
      expect([...back.placement.subarray(12, 18)]).toEqual([...rearranger.initial.subarray(12, 18)]);
      rearranger.close();
    },
  );

  it('of the oracle takes no time, after a loss too', async () => {
    const rearranger = make('oracle');
    const lost = await rearranger.gpusChanged(groupOf(rearranger.initial, [2]), 50, true);
    expect(lost.migrations).toBeGreaterThan(0);
    expect([lost.atMs, lost.stallMs]).toEqual([50, 1000]);
    rearranger.close();
  });

  it('is priced by what the controller’s sample says, where there is one', () => {
    const rearranger = make('gimbal', { controller: { sampleShare: 1, priorTokens: 0 } });
    const group = groupOf(rearranger.initial, []);
    expect(rearranger.tokens(group).every((count) => count === 0)).toBe(true);
    for (let n = 0; n < 100; n++) rearranger.served(group, 3, 0, 800);
    const sums = [0, 1, 2, 3].map((rank) =>
      rearranger
        .tokens(group)
        .subarray(16 * rank, 16 * (rank + 1))
        .reduce((a, b) => a + b, 0),
    );
    expect(sums.slice(0, 3)).toEqual([0, 0, 0]);
    expect(sums[3]).toBeGreaterThan(0);
    rearranger.close();
  });
});

describe('a lost GPU', () => {
  const trace = randomTrace({ count: 500, gapMs: 4, seed: 10 });
  const lost = { atMs: 600, gpu: 2, backMs: 1400 };
  const cluster: SimulationOptions = {
    ...BASE,
    dp: 4,
    trace,
    rearrangement: { redundantExperts: 8, everySteps: 300, windowSteps: 100 },
    failures: [lost],
  };

  it.each(['static', 'eplb', 'swift', 'periodic', 'gimbal', 'oracle'] as const)(
    'its requests end elsewhere, and nothing goes there while it is lost: %s',
    async (placement) => {
      const { requests, counters } = await simulate({ ...cluster, policy: { placement } });
      expect(requests.every(({ finishMs }) => finishMs > 0)).toBe(true);
      expect(counters.resentRequests).toBeGreaterThan(0);
      // A second to notice it, and what is lost must be loaded.
      expect(counters.stallMs).toBeGreaterThanOrEqual(1000);
      const sentTo = (engine: number, fromMs: number, toMs: number) =>
        requests.filter((one) => one.engine === engine && one.arrivalMs > fromMs && one.arrivalMs < toMs)
          .length;
      expect(sentTo(2, lost.atMs + 50, lost.backMs - 10)).toBe(0);
      expect(sentTo(1, lost.atMs + 50, lost.backMs - 10)).toBeGreaterThan(0);
      expect(sentTo(2, lost.backMs + 200, 1e9)).toBeGreaterThan(0);
      const idle = requests.every(
        ({ firstTokenMs }) => firstTokenMs <= lost.atMs + 50 || firstTokenMs >= lost.atMs + 1000,
      );
      expect(idle).toBe(true);
    },
  );

  it.each(['eplb', 'swift', 'periodic', 'gimbal', 'oracle'] as const)(
    'has no expert while it is lost, however often is planned: %s',
    async (placement) => {
      const rules = { minIntervalMs: 100, leastTokens: 10 };
      const { expertLoad, counters } = await simulate({
        ...cluster,
        trace: trace.slice(0, 150).map((one) => ({ ...one, arrivalMs: one.arrivalMs + 100 })),
        policy: { placement },
        rearrangement: {
          redundantExperts: 8,
          everySteps: 50,
          windowSteps: 30,
          oracleEveryMs: 100,
          controller: { lookEveryMs: 200, sampleShare: 1, rules },
        },
        failures: [{ atMs: 1, gpu: 2 }],
      });
      expect(counters.rearrangements).toBeGreaterThan(1);
      for (const gpus of expertLoad) expect(gpus.map((load) => load > 0)).toEqual([true, true, false, true]);
    },
  );

  it('ends a move that is under way', async () => {
    // GPU 0 gets six other experts for each of two layers: 36 MB at a quarter of 0.1 GB/s take until long after the loss.
    const links = HARDWARE.links.map((one) => ({ ...one, allToAll: { micros: 10, GBps: 0.1 } }));
    const begins: number[][] = [];
    const placement = {
      name: 'exchange',
      plan: (problem: PlacementProblem) => {
        begins.push([...problem.incumbent!.subarray(0, 3)]);
        return begins.length === 1
          ? problem.incumbent!.map((expert) => 15 - expert)
          : repaired(problem, contiguous(2, 16, 24));
      },
    };
    const { counters } = await simulate({
      ...cluster,
      hardware: { ...HARDWARE, links },
      policy: { placement },
      rearrangement: { redundantExperts: 8, firstStep: 30, everySteps: 1e6, transfer: 'overlap' },
      failures: [{ atMs: 600, gpu: 2 }],
    });
    expect(begins).toEqual([
      [0, 1, 2],
      [0, 1, 2],
    ]);
    expect(counters.rearrangements).toBe(2);
    expect(counters.stallMs).toBeGreaterThan(1000);
  });

  it('has no part in a step: collectives pad to the ranks that are left, and its rank does no dummy steps', async () => {
    const { counters, requests } = await simulate({
      ...BASE,
      trace: trace.slice(0, 50).map((one) => ({ ...one, arrivalMs: one.arrivalMs + 100 })),
      policy: { placement: 'static' },
      rearrangement: { redundantExperts: 16 },
      failures: [{ atMs: 1, gpu: 0 }],
    });
    expect(requests.every(({ engine }) => engine === 1)).toBe(true);
    expect(counters.dummySteps).toBe(0);
    // Each of two layers, there and back: 10 µs, and half of 2,000 B a token at 100 GB/s.
    const { steps, prefillTokens, decodeTokens } = counters;
    const micros = 2 * 2 * (10 * steps + 0.01 * (prefillTokens + decodeTokens));
    expect(counters.moeMs - counters.expertMs).toBeCloseTo(micros / 1000, 6);
  });

  it('is told to a planner, with the placement that is left', async () => {
    const seen: PlacementProblem[] = [];
    const placement = {
      name: 'watcher',
      plan: (problem: PlacementProblem) => {
        seen.push(problem);
        return repaired(problem, contiguous(2, 16, 24));
      },
    };
    await simulate({
      ...cluster,
      rearrangement: { redundantExperts: 8, everySteps: 1e6 },
      policy: { placement },
    });
    expect(seen.map(({ deadGpus }) => deadGpus)).toEqual([[2], undefined]);
    const of = (n: number, gpu: number) => [...seen[n]!.incumbent!.subarray(6 * gpu, 6 * gpu + 6)];
    expect(of(0, 2)).toEqual([-1, -1, -1, -1, -1, -1]);
    expect(of(0, 0)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(of(1, 2)).toEqual([-1, -1, -1, -1, -1, -1]);
  });

  it('forces the controller’s hand at once, whatever its rules', async () => {
    const { decisions } = await simulate({
      ...cluster,
      rearrangement: { redundantExperts: 8, controller: { rules: { leastTokens: 1e9 } } },
    });
    const forced = decisions.filter(({ reason }) => reason === 'gpus-changed');
    expect(forced.length).toBe(2);
    expect(forced[0]!.atMs - lost.atMs).toBeLessThan(50);
    expect(forced.every(({ rearranged }) => rearranged)).toBe(true);
  });

  it('takes its engine out for as long, where the engine has several; and may be idle', async () => {
    const pair = { ...cluster, dp: 2, tp: 2, policy: { placement: 'static' as const } };
    // Each loss stops the group for a second, so that the second one and the first return are noticed by 2,500 ms.
    const failures = [
      { atMs: 500, gpu: 2, backMs: 1900 },
      { atMs: 600, gpu: 3, backMs: 3500 },
    ];
    const { requests } = await simulate({
      ...pair,
      trace: trace.map((one) => ({ ...one, arrivalMs: 2 * one.arrivalMs })),
      rearrangement: { redundantExperts: 16 },
      failures,
    });
    const within = requests.filter(({ arrivalMs }) => arrivalMs > 560 && arrivalMs < 3490);
    expect(within.length).toBeGreaterThan(50);
    expect(within.every(({ engine }) => engine === 0)).toBe(true);
    const late = await simulate({
      ...pair,
      trace: trace.map((one) => ({ ...one, arrivalMs: one.arrivalMs + 5000 })),
      failures: [{ atMs: 100, gpu: 0 }],
      rearrangement: { redundantExperts: 8 },
    });
    expect(late.requests.every(({ engine }) => engine === 1)).toBe(true);
    expect(late.counters.resentRequests).toBe(0);
  });
});

describe('what is counted', () => {
  const trace = randomTrace({ count: 200, gapMs: 3, seed: 12 });

  it('experts’ time over what it had been were it even: 1 on one GPU, more on several, most where one has all', async () => {
    const lost = async (options: Partial<SimulationOptions>) => {
      const { counters } = await simulate({
        ...BASE,
        trace,
        policy: { placement: 'static', feedback: false },
        ...options,
      });
      return counters.expertMs / counters.evenExpertMs - 1;
    };
    expect(await lost({ dp: 1 })).toBeCloseTo(0, 9);
    const even = await lost({ routing: { kind: 'uniform' } });
    const skewed = await lost({ routing: { kind: 'generative', sigmaExperts: 1.5 } });
    expect(even).toBeGreaterThan(0);
    expect(skewed).toBeGreaterThan(2 * even);
    // All that is routed goes to the first GPU of two: twice the mean.
    const tokens = Float64Array.from({ length: 2 * 16 }, (_, n) => (n % 16 < 8 ? 1 : 0));
    const one = await lost({ routing: { kind: 'counts', tokens, layers: 2, sources: 1, experts: 16 } });
    expect(one).toBeGreaterThan(0.95);
    expect(one).toBeLessThan(1.01);
  });

  it('a stall of so many ms is that long, and layers that stand for others count for them', async () => {
    const reversed = (layers: number) => ({
      name: 'reversed',
      plan: () => Int32Array.from({ length: 16 * layers }, (_, n) => 15 - (n % 16)),
    });
    const rearrangement = { everySteps: 100, windowSteps: 30, stallMs: 700 };
    const all = await simulate({ ...BASE, trace, rearrangement, policy: { placement: reversed(2) } });
    const half = await simulate({
      ...BASE,
      trace,
      rearrangement,
      policy: { placement: reversed(1) },
      simulatedLayers: 1,
    });
    for (const { counters } of [all, half]) {
      expect(counters.migrations).toBe(32);
      expect(counters.stallMs).toBe(700);
    }
    expect(half.counters.expertMs / all.counters.expertMs).toBeCloseTo(1, 1);
    expect(half.summary.tpotMs.mean / all.summary.tpotMs.mean).toBeCloseTo(1, 1);
    expect(MODEL.moeLayers).toBe(2);
  });
});
