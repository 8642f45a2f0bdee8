/** The parts of the simulator against hand-worked cases, sampling, and slow definitions. */
import { describe, expect, it } from 'vitest';
import { contiguous } from '../../lib/contiguous.js';
import { Random } from '../../lib/random.js';
import { ExpertLoad } from '../../lib/simulator/expert-load.js';
import { weightBytes } from '../../lib/simulator/hardware.js';
import { KvCache } from '../../lib/simulator/kv-cache.js';
import { Routing } from '../../lib/simulator/routing.js';
import { simulate } from '../../lib/simulator/simulate.js';
import { type GroupShape, StepTimer } from '../../lib/simulator/step-time.js';
import { kolmogorovSmirnov } from '../../lib/simulator/summary.js';
import { gridOf, lookUp } from '../../lib/simulator/tables.js';
import type { PlacementProblem } from '../../lib/types.js';
import { BASE, HARDWARE, MODEL, randomTrace } from './simulator-fixture.js';

const SHAPE: GroupShape = {
  ranks: 2,
  tensorParallel: 1,
  nodes: 1,
  allToAll: 'allgather-reducescatter',
  hidesStep: false,
  padUpToTokens: 512,
  replicaChoice: 'even',
};
const timer = (shape: Partial<GroupShape> = {}, hardware = HARDWARE) =>
  new StepTimer(MODEL, hardware, {}, { ...SHAPE, ...shape });

describe('step times', () => {
  const nothing = { decodes: 0, decodeContext: 0, prefillTokens: 0, prefillWork: 0, chunks: 0, sampled: 0 };

  it('attention: decodes by what they read, prefill by its square', () => {
    // 800 B of cache a token and layer at 1 TB/s: 0.0008 µs; 10 + 1 a sequence besides.
    expect(timer().attention({ ...nothing, decodes: 4, decodeContext: 10_000 })).toBeCloseTo(10 + 4 + 8, 9);
    // 2·8·100 operations for each of p·(p + 2c + 566) at 100 TFLOP/s.
    const work = 200 * (200 + 2 * 300);
    const expected = 20 + (2 * 8 * 100 * (work + 566 * 200)) / 100e6;
    expect(timer().attention({ ...nothing, prefillTokens: 200, prefillWork: work, chunks: 1 })).toBeCloseTo(
      expected,
      9,
    );
    // Two GPUs halve the heads.
    expect(
      timer({ tensorParallel: 2 }).attention({ ...nothing, decodes: 4, decodeContext: 10_000 }),
    ).toBeCloseTo(18, 9);
  });

  it('experts: weights of those that are hit, and operations of pairs', () => {
    // 3 MB each at 1 TB/s: 3 µs; 6·1000·500 operations a pair at 100 TFLOP/s: 0.03 µs; a norm of power 1 adds.
    expect(timer().experts(5, 100, 200)).toBeCloseTo(5 * 3 + 100 * 0.03, 9);
    const padded = { ...HARDWARE, moe: { ...HARDWARE.moe, padding: 1 } };
    expect(timer({}, padded).experts(5, 100, 100)).toBeCloseTo(15 + (100 + (5 * 16) / 2) * 0.03, 9);
    expect(timer({}, padded).experts(5, 100, 200)).toBeCloseTo(15 + (100 + (5 * 64) / 2) * 0.03, 9);
    expect(timer().experts(0, 0, 200)).toBe(0);
  });

  it('collectives: what leaves a GPU at the link’s rate, and the slower of links and network', () => {
    // 100 tokens of 1000 elements of 2 B: 200 kB, of which half moves, each way.
    expect(timer().gatherScatter(100, 50)).toBeCloseTo(2 * (10 + 1), 9);
    expect(timer({ ranks: 1 }).gatherScatter(100, 100)).toBe(0);
    // Four ranks on two nodes: half crosses, over two network links a node, at 10 GB/s.
    expect(timer({ ranks: 4, nodes: 2 }).gatherScatter(100, 25)).toBeCloseTo(2 * (10 + 30 + 5), 9);
    // 40 copies of 2000 B at 100 GB/s each way; across nodes 10 GB/s and 30 µs more.
    expect(timer().allToAll(40, 0)).toBeCloseTo(2 * (10 + 0.8), 9);
    expect(timer({ ranks: 4, nodes: 2 }).allToAll(40, 20)).toBeCloseTo(2 * (10 + 30 + 4), 9);
    const busy = timer();
    busy.linkShare = 0.5;
    expect(busy.allToAll(40, 0)).toBeCloseTo(2 * (10 + 1.6), 9);
  });

  it('a layer: its products, and an all-reduce where GPUs share a rank', () => {
    const gemm = (rows: number, columns: number, own: number, tokens: number) =>
      5 + (2 * own + 2 * tokens * (rows + columns)) / 1e6 + (2 * tokens * own) / 1e6;
    const one = gemm(1000, 1200, 1.2e6, 10) + gemm(800, 1000, 0.8e6, 10);
    expect(timer().layer(10, true)).toBeCloseTo(1000 + one, 6);
    const split = gemm(1000, 1200, 0.6e6, 10) + gemm(800, 1000, 0.4e6, 10);
    expect(timer({ tensorParallel: 2 }).layer(10, true)).toBeCloseTo(1000 + split + 10 + 0.2, 6);
    // A layer without experts adds up what its products gave, too.
    expect(timer({ tensorParallel: 2 }).layer(10, false)).toBeCloseTo(1000 + split + 2 * (10 + 0.2), 6);
  });

  it('a step: the engine’s own time unless it is hidden', () => {
    const head = 5 + (2e7 + 2 * 3 * 11_000) / 1e6 + (2 * 3 * 1e7) / 1e6;
    expect(timer().once(3)).toBeCloseTo(1000 + head, 6);
    expect(timer({ hidesStep: true }).once(3)).toBeCloseTo(head, 6);
  });

  it('weights of a GPU: its experts, its part of the rest', () => {
    const rest = 2 * (2 * 2e6) + 2 * 2 * 1e7;
    expect(weightBytes(MODEL, 8, 1)).toBe(2 * 8 * 3e6 + rest);
    expect(weightBytes(MODEL, 4, 2)).toBe(2 * 4 * 3e6 + rest / 2);
  });

  it('tables: linear between points, in a line beyond the last two, ragged', () => {
    const grid = gridOf([
      [0, 0, 1],
      [0, 10, 3],
      [10, 0, 5],
      [10, 20, 25],
    ]);
    expect(lookUp(grid, 0, 5)).toBe(2);
    expect(lookUp(grid, 10, 5)).toBe(10);
    expect(lookUp(grid, 5, 5)).toBe(6);
    expect(lookUp(grid, 0, 20)).toBe(5);
    expect(lookUp(grid, 20, 0)).toBe(9);
    expect(lookUp(grid, -1, 0)).toBe(1);
  });
});

describe('routing', () => {
  it('has the chances of a draw without replacement, and they add up to k', () => {
    const routing = new Routing({ kind: 'generative', topics: 2, personas: 1, sigmaTopics: 1 }, MODEL, 5);
    const { chance, layers, experts, profiles } = routing.tables;
    for (let row = 0; row < profiles * layers; row++) {
      const sum = chance.subarray(row * experts, (row + 1) * experts).reduce((a, b) => a + b, 0);
      expect(sum).toBeCloseTo(MODEL.topK, 3);
    }
    // Draw from the weights that the chances stand for: −log of the miss is proportional to the weight.
    const weights = Array.from(routing.tables.logMiss.subarray(0, experts), (log) => -log);
    const random = new Random(7);
    const hits = new Float64Array(experts);
    const draws = 60_000;
    for (let n = 0; n < draws; n++) {
      const scores = weights.map((weight, e) => ({
        e,
        score: Math.log(weight) - Math.log(-Math.log(random.uniform())),
      }));
      scores.sort((a, b) => b.score - a.score);
      for (const { e } of scores.slice(0, MODEL.topK)) hits[e]! += 1;
    }
    // An approximation: 0.021 off for the hottest of 16, with draws' own noise below 0.004.
    for (let e = 0; e < experts; e++) expect(Math.abs(hits[e]! / draws - chance[e]!)).toBeLessThan(0.03);
  });

  it('takes counts and recorded choices as they are', () => {
    const tokens = Uint32Array.from(
      { length: 2 * 2 * 16 },
      (_, n) => (n % 16 < 4 ? 100 : n % 16 === 9 ? 50 : 0) + 1,
    );
    const counted = new Routing({ kind: 'counts', tokens, layers: 2, sources: 2, experts: 16 }, MODEL, 0)
      .tables;
    const sum = 4 * 101 + 51 + 11;
    expect(counted.chance[0]).toBeCloseTo((2 * 101) / sum, 6);
    expect(counted.chance[9]).toBeCloseTo((2 * 51) / sum, 6);
    // Three tokens, two layers, two experts each.
    const ids = [0, 1, 2, 3, 0, 1, 2, 4, 0, 5, 2, 3];
    const recorded = new Routing({ kind: 'recorded', recordings: [{ ids, layers: 2, topK: 2 }] }, MODEL, 0)
      .tables;
    expect(recorded.chance[0]).toBeCloseTo(1, 5);
    expect(recorded.chance[1]).toBeCloseTo(2 / 3, 6);
    expect(recorded.chance[16 + 4]).toBeCloseTo(1 / 3, 6);
  });

  it('keeps a session’s topic as often as it is told', () => {
    const routing = new Routing(
      { kind: 'generative', stickiness: 0.8, topics: 1000, personas: 1 },
      { ...MODEL, experts: 2, topK: 1 },
      1,
    );
    let kept = 0;
    let before = routing.profileOf({ arrivalMs: 0, inputTokens: 1, outputTokens: 1, session: 'a' });
    for (let n = 0; n < 4000; n++) {
      const next = routing.profileOf({ arrivalMs: 0, inputTokens: 1, outputTokens: 1, session: 'a' });
      if (next === before) kept++;
      before = next;
    }
    expect(kept / 4000).toBeCloseTo(0.8, 1);
  });

  it('drifts away from where it began', () => {
    const routing = new Routing(
      { kind: 'generative', halfLifeMs: 80, sigmaExperts: 1, sigmaTopics: 0.01 },
      MODEL,
      5,
    );
    const before = routing.tables.chance.slice(0, 16);
    for (let n = 0; n < 64; n++) routing.drift();
    const moved = before.reduce((sum, value, e) => sum + Math.abs(value - routing.tables.chance[e]!), 0);
    expect(moved).toBeGreaterThan(0.3);
    expect(routing.driftEveryMs).toBe(10);
  });
});

describe('loads of experts', () => {
  const routing = new Routing({ kind: 'generative', topics: 3, personas: 1, sigmaTopics: 1 }, MODEL, 2);
  const { chance, experts } = routing.tables;
  const load = (shape: Partial<GroupShape>, placement = contiguous(2, 16, 16)) =>
    new ExpertLoad(routing.tables, { ...SHAPE, ...shape }, placement, 1);

  it('pairs and active experts are those of drawn tokens', () => {
    const seen: { active: number; pairs: number }[] = [];
    const spy = {
      experts: (active: number, pairs: number) => seen.push({ active, pairs }),
      gatherScatter: () => 0,
    };
    const one = load({});
    for (let n = 0; n < 300; n++) {
      // Tokens come and go; what is left is 5 of profile 0 and 3 of profile 2.
      one.add(0, 0, 5);
      one.add(1, 2, 3);
      one.step(spy as unknown as StepTimer, 8, 16, 8);
      one.add(0, 0, -5);
      one.add(1, 2, -3);
    }
    // Two GPUs and their mean, in each of two layers.
    const first = seen.filter((_, n) => n % 6 === 0);
    for (let n = 0; n < seen.length; n += 3) {
      expect(seen[n + 2]!.pairs).toBeCloseTo((seen[n]!.pairs + seen[n + 1]!.pairs) / 2, 9);
      expect(seen[n + 2]!.active).toBeCloseTo((seen[n]!.active + seen[n + 1]!.active) / 2, 9);
    }
    const pairs = [0, 1, 2, 3, 4, 5, 6, 7].reduce(
      (sum, e) => sum + 5 * chance[e]! + 3 * chance[2 * 2 * experts + e]!,
      0,
    );
    const active = [0, 1, 2, 3, 4, 5, 6, 7].reduce(
      (sum, e) => sum + 1 - (1 - chance[e]!) ** 5 * (1 - chance[2 * 2 * experts + e]!) ** 3,
      0,
    );
    expect(first[0]!.active).toBeCloseTo(active, 4);
    expect(first[299]!.active).toBeCloseTo(active, 4);
    expect(first.reduce((sum, one_) => sum + one_.pairs, 0) / 300).toBeCloseTo(pairs, 0);
    expect(new Set(first.map((one_) => one_.pairs)).size).toBeGreaterThan(200);
  });

  it('replicas share an expert’s tokens', () => {
    const slots = Int32Array.from({ length: 2 * 18 }, (_, n) =>
      n % 18 === 16 || n % 18 === 17 ? 0 : n % 18,
    );
    const seen: number[] = [];
    const spy = { experts: (active: number) => seen.push(active), gatherScatter: () => 0 };
    const one = load({}, slots);
    one.add(0, 0, 4);
    one.step(spy as unknown as StepTimer, 4, 4, 4);
    // GPU 0 has slots 0…8: expert 0 among them, one of three replicas.
    const expected = [0, 1, 2, 3, 4, 5, 6, 7, 8].reduce(
      (sum, e) => sum + 1 - (1 - chance[e]!) ** (e === 0 ? 4 / 3 : 4),
      0,
    );
    expect(seen[0]).toBeCloseTo(expected, 4);
  });

  it.each(['a2a-pairs', 'a2a-dedup'] as const)(
    'copies that travel, %s, against the definition',
    (allToAll) => {
      const travelled: [number, number][] = [];
      const spy = {
        experts: () => 0,
        allToAll: (within: number, across: number) => travelled.push([within, across]),
      };
      const shape = { ranks: 4, nodes: 2, allToAll };
      const one = load(shape);
      const tokens = [3, 1, 4, 2];
      for (const [rank, count] of tokens.entries()) one.add(rank, rank % 3, count);
      one.step(spy as unknown as StepTimer, 10, 10, 4);
      const node = (gpu: number) => Math.floor(gpu / 2);
      const copies = (rank: number, gpu: number, layer: number) => {
        const own = [0, 1, 2, 3].map((k) => chance[((rank % 3) * 2 + layer) * experts + gpu * 4 + k]!);
        const each =
          allToAll === 'a2a-pairs'
            ? own.reduce((a, b) => a + b, 0)
            : 1 - own.reduce((miss, p) => miss * (1 - p), 1);
        return tokens[rank]! * each;
      };
      for (const layer of [0, 1]) {
        let within = 0;
        let across = 0;
        for (const gpu of [0, 1, 2, 3]) {
          const others = [0, 1, 2, 3].filter((other) => other !== gpu);
          const sum = (near: boolean, of: (other: number) => number) =>
            others
              .filter((other) => (node(other) === node(gpu)) === near)
              .reduce((total, other) => total + of(other), 0);
          within = Math.max(
            within,
            sum(true, (r) => copies(r, gpu, layer)),
            sum(true, (g) => copies(gpu, g, layer)),
          );
          across = Math.max(
            across,
            sum(false, (r) => copies(r, gpu, layer)),
            sum(false, (g) => copies(gpu, g, layer)),
          );
        }
        expect(travelled[layer]![0]).toBeCloseTo(within, 5);
        expect(travelled[layer]![1]).toBeCloseTo(across, 5);
      }
    },
  );

  it('a placement that comes later counts as one from the start, with slots that it has emptied', () => {
    const left = Int32Array.from({ length: 2 * 16 }, (_, n) => (n % 16 < 8 ? n % 16 : -1));
    const active = (one: ExpertLoad) => {
      const seen: number[] = [];
      const spy = { experts: (count: number) => seen.push(count), gatherScatter: () => 0 };
      one.add(0, 0, 5);
      one.step(spy as unknown as StepTimer, 5, 5, 5);
      return seen;
    };
    const later = load({});
    later.place(left);
    expect(active(later)).toEqual(active(load({}, left)));
    // By layer: GPU 0, GPU 1, which has nothing, and the mean of those that have something.
    const told = active(load({}, left));
    expect([told[1], told[4]]).toEqual([0, 0]);
    expect([told[2], told[5]]).toEqual([told[0], told[3]]);
  });

  it('the window says what each source sent', () => {
    const one = load({});
    const spy = { experts: () => 0, gatherScatter: () => 0 };
    one.add(0, 0, 10);
    one.add(1, 1, 1);
    for (let n = 0; n < 50; n++) one.step(spy as unknown as StepTimer, 11, 20, 10);
    const tokens = one.windowTokens();
    expect(tokens[3]).toBe(Math.round(500 * chance[3]!));
    expect(tokens[16 + 3]).toBe(Math.round(50 * chance[2 * experts + 3]!));
  });
});

describe('KV memory', () => {
  it('keeps shared blocks after their last user, longest unused first, and gives them up for private ones', () => {
    const kv = new KvCache(10);
    expect(kv.take(6)).toBe(true);
    expect(kv.share(1, 2)).toBe(true);
    expect(kv.share(2, 2)).toBe(true);
    expect(kv.share(1, 2)).toBe(false);
    expect(kv.used).toBe(6);
    kv.release(2);
    kv.release(1);
    expect([kv.used, kv.free]).toEqual([2, 8]);
    expect(kv.known([1, 2, 3])).toBe(2);
    expect(kv.hold(1)).toBe(2);
    expect(kv.take(5)).toBe(true);
    // Only hash 2 could go, and it had to.
    expect(kv.known([2])).toBe(0);
    expect(kv.known([1])).toBe(1);
    expect(kv.take(2)).toBe(false);
    kv.release(1);
    kv.give(7);
    expect(kv.used).toBe(0);
    expect(() => kv.give(1)).toThrow();
  });
});

describe('rearrangement', () => {
  it('asks a planner of one’s own with what was routed since the window began, and puts its plan in force', async () => {
    const problems: PlacementProblem[] = [];
    const reversed = Int32Array.from({ length: 32 }, (_, n) => 15 - (n % 16));
    const placement = {
      name: 'reversed',
      plan: (problem: PlacementProblem) => {
        problems.push({ ...problem, tokens: problem.tokens.slice(), incumbent: problem.incumbent!.slice() });
        return reversed;
      },
    };
    const trace = randomTrace({ count: 200, gapMs: 2, seed: 4 });
    const { counters } = await simulate({
      ...BASE,
      trace,
      policy: { placement },
      engine: { ...BASE.engine, replicaChoice: 'nearest' },
      rearrangement: { everySteps: 100, windowSteps: 30 },
    });
    expect(problems.length).toBeGreaterThan(1);
    expect(problems[0]!.replicaChoice).toBe('nearest');
    expect(counters.rearrangements).toBe(problems.length);
    expect(Array.from(problems[0]!.incumbent!.subarray(0, 4))).toEqual([0, 1, 2, 3]);
    expect(Array.from(problems[1]!.incumbent!.subarray(0, 4))).toEqual([15, 14, 13, 12]);
    // Every expert changes its GPU once, and none at the second plan.
    expect(counters.migrations).toBe(32);
    const counted = problems[0]!.tokens.reduce((sum, count) => sum + count, 0);
    const all = counters.prefillTokens + counters.decodeTokens;
    expect(counted).toBeLessThan(all * MODEL.topK * MODEL.moeLayers * 0.6);
    expect(counted).toBeGreaterThan(0);
  });
});

describe('figures', () => {
  it('the distance of Kolmogorov and Smirnov', () => {
    expect(kolmogorovSmirnov([1, 2, 3, 4], [1, 2, 3, 4])).toBe(0);
    expect(kolmogorovSmirnov([1, 2], [3, 4])).toBe(1);
    expect(kolmogorovSmirnov([1, 2, 3, 4], [3, 4, 5, 6])).toBe(0.5);
  });
});
