/** Who places experts in the simulator, and when: swift's rule, the oracle, the controller's looks; and lost GPUs. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../lib/random.js';
import { FailureSchedule } from '../../lib/simulator/failures.js';
import type { Group } from '../../lib/simulator/group.js';
import { OraclePolicy } from '../../lib/simulator/oracle.js';
import { contiguous } from '../../lib/simulator/rearrange.js';
import { repaired, withoutGpus } from '../../lib/simulator/repair.js';
import { RequestColumns } from '../../lib/simulator/requests.js';
import { swiftBalance } from '../../lib/simulator/rivals/swift.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedPlacement, SimulationOptions } from '../../lib/simulator/types.js';
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
    const oracle = new OraclePolicy({ everyMs: 500, requests, groups: 1, seed: 0 });
    const problem = () => {
      const { tokens: _, ...rest } = problemOf(2, 2, [1, 1, 1, 1], [0, 1, 2, 3]);
      return { ...rest, sources: 2, commCost: new Float64Array(4) };
    };
    const plan = (nowMs: number) => oracle.plan({ group, nowMs, gpusChanged: false, problem });
    expect(await plan(1000)).toHaveLength(4);
    // Steps of 10 ms: 50 until the next plan. Decodes stay; of the third request only 10 tokens come in time. Half for each rank.
    const each = [(3 * 50) / 2, (100 + 4) / 2, (40 + 10) / 2 + 50 / 2];
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
    const failures = [
      { atMs: 500, gpu: 2, backMs: 900 },
      { atMs: 700, gpu: 3, backMs: 1500 },
    ];
    const { requests } = await simulate({ ...pair, rearrangement: { redundantExperts: 16 }, failures });
    const within = requests.filter(({ arrivalMs }) => arrivalMs > 560 && arrivalMs < 1490);
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
