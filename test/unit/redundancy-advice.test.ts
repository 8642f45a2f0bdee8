/** How many redundant experts are advised: parts by hand, the whole where the answer is plain, and what must hold of any. */
import { describe, expect, it } from 'vitest';
import { choose } from '../../lib/advice/choose.js';
import { type Counts, splitCounts } from '../../lib/advice/counts.js';
import { PlacedLoad } from '../../lib/advice/placed-load.js';
import { adviseRedundancy } from '../../lib/advice/redundancy.js';
import { batchOf, chunkNumbers, chunksOnRanks, shareAbove } from '../../lib/advice/steady-state.js';
import type { RedundancyOptions } from '../../lib/advice/types.js';
import { GimbalError } from '../../lib/errors.js';
import { planPlacement } from '../../lib/planner.js';
import { Random } from '../../lib/random.js';
import { ExpertLoad } from '../../lib/simulator/expert-load.js';
import type { ServingHardware } from '../../lib/simulator/hardware.js';
import { Routing } from '../../lib/simulator/routing.js';
import { type GroupShape, StepTimer } from '../../lib/simulator/step-time.js';
import { HARDWARE, MODEL } from './simulator-fixture.js';

const SEED = Number(process.env.GIMBAL_TEST_SEED ?? 7);
const RANKS = 4;

/** Everything but experts is nearly free, and these are bound by their operations. */
const BUSY_EXPERTS: ServingHardware = {
  ...HARDWARE,
  layerMicros: 0,
  stepMicros: 10,
  attention: { ...HARDWARE.attention, decodeMicros: 0, sequenceMicros: 0, prefillMicros: 0 },
  gemm: { micros: 0, TBps: 1000, tflops: 1000, power: 1 },
  moe: { ...HARDWARE.moe, TBps: 100, tflops: 10 },
};
/** 72 MB of weights with four slots a GPU, 1,600 B of cache a token: a GB more or less of memory decides. */
const withTokens = (kvTokens: number): ServingHardware => ({
  ...BUSY_EXPERTS,
  memoryGB: (72e6 + 1600 * kvTokens) / 1e9,
});

/** `of` gives the shares of the experts in a layer. */
function countsOf(of: (layer: number, source: number, expert: number) => number, layers = 2): Counts {
  const { experts } = MODEL;
  const tokens = Uint32Array.from({ length: layers * RANKS * experts }, (_, n) => {
    const source = Math.floor(n / experts) % RANKS;
    return Math.round(of(Math.floor(n / experts / RANKS), source, n % experts));
  });
  return { tokens, layers, sources: RANKS, experts };
}
/** Expert 0 has two fifths of all pairs: no GPU of four without replicas has less than half. */
const HOT = countsOf((_layer, _source, expert) => (expert === 0 ? 40_000 : 4000));

function optionsOf(
  counts: Counts,
  hardware: ServingHardware,
  more: Partial<RedundancyOptions> = {},
): RedundancyOptions {
  return {
    model: MODEL,
    hardware,
    gpusPerNode: RANKS,
    routing: { kind: 'counts', ...counts },
    traffic: { inputTokens: 20, outputTokens: 101, concurrency: 20 * RANKS, kvTokensPerRequest: 100 },
    memoryShare: 1,
    activationBytes: 0,
    engine: { maxNumSeqs: 256, maxNumBatchedTokens: 2048 },
    plan: { effort: 'fast', threads: 1, backend: 'cpu' },
    seed: SEED,
    ...more,
  };
}

describe('the parts of redundancy advice', () => {
  it('a batch is what wants to run, what memory holds, and less than either where they meet', () => {
    expect(batchOf(20, 1000)).toBeCloseTo(20, 6);
    expect(batchOf(1000, 20)).toBeCloseTo(20, 6);
    // A Poisson number of mean 100 falls short of a limit of 100 by 10 times the density of the normal at 0.
    expect(batchOf(100, 100)).toBeCloseTo(100 - 10 * 0.398942, 4);
    expect(
      [shareAbove(100, 100), shareAbove(100, 200), shareAbove(100, 10)].map(
        (share) => Math.round(share * 1e6) / 1e6,
      ),
    ).toEqual([0.5, 0, 1]);
    expect(shareAbove(100, 110)).toBeCloseTo(0.158655, 5);
  });

  it.each([0.3, 2, 4, 7.5, 40])('%s chunks a step have weights that add up, and keep the mean', (mean) => {
    const points = chunkNumbers(mean);
    expect(points.reduce((sum, [, weight]) => sum + weight, 0)).toBeCloseTo(1, 9);
    expect(points.reduce((sum, [n, weight]) => sum + n * weight, 0) / mean).toBeCloseTo(1, 2);
    expect(points.every(([n, weight]) => n >= 0 && weight > 0)).toBe(true);
  });

  it('chunks lie on ranks as unevenly as chance has it', () => {
    expect([...chunksOnRanks(0, 4)]).toEqual([0, 0, 0, 0]);
    expect([...chunksOnRanks(1, 4)].sort()).toEqual([0, 0, 0, 1]);
    for (const [chunks, ranks] of [
      [3, 8],
      [5.5, 8],
      [16.2, 32],
      [100.7, 8],
    ] as const) {
      const sum = chunksOnRanks(chunks, ranks).reduce((total, own) => total + own, 0);
      expect(sum / chunks, `${chunks} on ${ranks}`).toBeCloseTo(1, 2);
    }
    // The mean of the largest of 32 Poisson numbers, drawn.
    const random = new Random(SEED, 1);
    const largest = Array.from({ length: 4000 }, () =>
      Math.max(...Array.from({ length: 32 }, () => random.poisson(1.5))),
    );
    const drawn = largest.reduce((sum, own) => sum + own, 0) / largest.length;
    expect(Math.abs(Math.max(...chunksOnRanks(48.0001, 32)) - drawn)).toBeLessThan(0.1);
  });

  it('halves of counts add up to them, are binomial, and differ by split and seed', () => {
    const counts = countsOf((_l, _s, expert) => [0, 1, 7, 30, 33, 5000][expert % 6]!, 40);
    const [first, second] = splitCounts(counts, SEED, 0);
    expect(first.tokens.map((own, n) => own + second.tokens[n]!)).toEqual(counts.tokens);
    for (const size of [1, 7, 30, 33, 5000]) {
      const own = [...first.tokens].filter((_, n) => counts.tokens[n] === size);
      const mean = own.reduce((sum, count) => sum + count, 0) / own.length;
      const variance = own.reduce((sum, count) => sum + (count - size / 2) ** 2, 0) / own.length;
      expect(Math.abs(mean - size / 2), `seed ${SEED}, size ${size}`).toBeLessThan(
        4 * Math.sqrt(size / 4 / own.length),
      );
      expect(variance / (size / 4), `seed ${SEED}, size ${size}`).toBeGreaterThan(0.7);
      expect(variance / (size / 4), `seed ${SEED}, size ${size}`).toBeLessThan(1.35);
    }
    expect(splitCounts(counts, SEED, 1)[0].tokens).not.toEqual(first.tokens);
    expect(splitCounts(counts, SEED + 1, 0)[0].tokens).not.toEqual(first.tokens);
    expect(splitCounts(counts, SEED, 0)[0].tokens).toEqual(first.tokens);
  });

  const RULES = { certainty: 2, leastGainShare: 0.005 };
  it.each<[string, number[][], number]>([
    [
      'the best by far',
      [
        [100, 100],
        [103, 104],
        [101, 101],
      ],
      1,
    ],
    [
      'fewer where more win too little',
      [
        [100, 100],
        [100.4, 100.3],
        [100.2, 100.2],
      ],
      0,
    ],
    [
      'fewer where a gain may be chance',
      [
        [100, 100],
        [110, 98],
        [99, 99],
      ],
      0,
    ],
    [
      'the fewest that the best does not surely beat',
      [
        [100, 100],
        [105, 105],
        [105.3, 105.4],
      ],
      1,
    ],
    [
      'none where all lose',
      [
        [100, 100],
        [99, 98],
        [97, 90],
      ],
      0,
    ],
  ])('advises %s', (_, rates, chosen) => {
    expect(choose(rates, RULES).chosen).toBe(chosen);
  });

  it('gains are told against the leanest, with their spread', () => {
    const { gains } = choose(
      [
        [100, 200],
        [110, 224],
      ],
      RULES,
    );
    expect(gains[0]).toEqual({ mean: 0, spread: 0 });
    expect(gains[1]!.mean).toBeCloseTo(0.11, 9);
    expect(gains[1]!.spread).toBeCloseTo(Math.sqrt(2 * 0.01 ** 2), 9);
  });
});

describe('the load of a placement', () => {
  const shape: GroupShape = {
    ranks: RANKS,
    tensorParallel: 1,
    nodes: 1,
    allToAll: 'a2a-dedup',
    hidesStep: true,
    padUpToTokens: 512,
    replicaChoice: 'even',
  };
  const timer = new StepTimer(MODEL, HARDWARE, {}, shape);
  const commCost = Float64Array.from({ length: RANKS * RANKS }, (_, n) => (n % (RANKS + 1) === 0 ? 0 : 100));
  const skewed = countsOf((layer, source, expert) => 50 + 200 * ((expert * (source + 2) + layer) % 5));

  async function placed(replicaChoice: 'even' | 'nearest') {
    const problem = { ...skewed, gpus: RANKS, slotsPerGpu: 6, computeCost: 100, commCost, replicaChoice };
    const { physicalToLogical: placement } = await planPlacement(problem, { effort: 'fast', seed: SEED });
    return { gpus: RANKS, slotsPerGpu: 6, commCost, placement, replicaChoice };
  }
  const loadOf = (own: Awaited<ReturnType<typeof placed>>) =>
    new PlacedLoad(skewed, MODEL.topK, own, shape, timer, MODEL.moeLayers, SEED);

  it('is the simulator’s, whose topics are the sources', async () => {
    const own = await placed('even');
    const { tables } = new Routing({ kind: 'counts', ...skewed }, MODEL, SEED);
    const theirs = new ExpertLoad(tables, shape, own.placement, SEED);
    const tokens = Float64Array.of(30, 5, 17, 8);
    for (const [rank, count] of tokens.entries()) theirs.add(rank, rank, count);
    theirs.restartNoise();
    const expected = theirs.step(timer, 60, 120, 30);
    const actual = loadOf(own).step(tokens);
    expect(actual.micros / expected.micros).toBeCloseTo(1, 5);
    expect(actual.imbalance / expected.imbalance).toBeCloseTo(1, 5);
    expect(actual.active / expected.active).toBeCloseTo(1, 5);
  });

  it('is the same for the same batch, whatever came between', async () => {
    const load = loadOf(await placed('even'));
    const fresh = loadOf(await placed('even'));
    load.step(Float64Array.of(1, 2, 3, 4));
    load.step(Float64Array.of(400, 0, 9, 1));
    expect(load.step(Float64Array.of(9, 9, 9, 9)).micros).toBeCloseTo(
      fresh.step(Float64Array.of(9, 9, 9, 9)).micros,
      6,
    );
  });

  it('under nearest travels less where replicas are near', async () => {
    const own = await placed('even');
    const tokens = new Float64Array(RANKS).fill(300);
    const even = loadOf(own).step(tokens);
    const nearest = loadOf({ ...own, replicaChoice: 'nearest' }).step(tokens);
    // With compute, attention and the rest equal, what is saved is on the links.
    expect(nearest.micros).toBeLessThan(even.micros);
  });
});

describe('adviseRedundancy', () => {
  it('advises replicas of a hot expert where memory is plenty, and none where a cache is starved', async () => {
    const many = { inputTokens: 20, outputTokens: 101, concurrency: 250 * RANKS, kvTokensPerRequest: 100 };
    const plenty = await adviseRedundancy(optionsOf(HOT, withTokens(200_000), { traffic: many }));
    expect(plenty.redundantExperts).toBeGreaterThan(0);
    const [leanest, four] = plenty.candidates;
    // Half of a layer's pairs against a quarter of them, and what chance adds.
    expect(leanest!.imbalance).toBeGreaterThan(1.9);
    expect(four!.imbalance).toBeLessThan(1.25);
    expect(four!.gainShare).toBeGreaterThan(0.25);

    // A slot more takes 2 layers x 3 MB, 3,750 tokens of 5,000: of 20 requests of 100 tokens 12.5 run in place of all.
    const traffic = { inputTokens: 20, outputTokens: 101, concurrency: 50 * RANKS, kvTokensPerRequest: 100 };
    const starved = await adviseRedundancy(optionsOf(HOT, withTokens(5000), { traffic }));
    expect(starved.redundantExperts).toBe(0);
    expect(starved.candidates.map(({ kvTokens }) => kvTokens)).toEqual([5000, 1250]);
    expect(starved.candidates[1]!.batch).toBeCloseTo(12.5, 1);
    expect(starved.notes.join()).toContain('8 redundant experts leave no room');
  });

  it('tells memory, plan and load in figures that can be worked out', async () => {
    const { candidates } = await adviseRedundancy(optionsOf(HOT, withTokens(100_000)));
    expect(candidates.map(({ redundantExperts }) => redundantExperts)).toEqual([0, 4, 8, 12, 16]);
    for (const { redundantExperts, slotsPerGpu, extraBytes, kvTokens } of candidates) {
      expect(slotsPerGpu).toBe(4 + redundantExperts / 4);
      expect(extraBytes).toBe((redundantExperts / 4) * 2 * 3e6);
      expect(kvTokens).toBeCloseTo(100_000 - extraBytes / 1600, -1);
    }
    // 6·H·I operations at 100 TFLOP/s are 30 ns; of a token's 2 pairs in each of 2 layers the busiest GPU has at least .52 and .25.
    expect(candidates[0]!.loadMaxNs).toBeCloseTo(0.52 * 2 * 2 * 30, 1);
    expect(candidates[1]!.loadMaxNs).toBeGreaterThan(0.2499 * 2 * 2 * 30);
    expect(candidates[1]!.loadMaxNs).toBeLessThan(0.3 * 2 * 2 * 30);
  });

  it('reads more weights with more replicas: none are worth it where decode is bound by that', async () => {
    const slow = { ...withTokens(100_000), moe: { ...BUSY_EXPERTS.moe, TBps: 0.05, tflops: 1e6 } };
    const { redundantExperts, candidates } = await adviseRedundancy(optionsOf(HOT, slow));
    expect(redundantExperts).toBe(0);
    const read = candidates.map(({ activeExperts }) => activeExperts);
    expect(read).toEqual([...read].sort((a, b) => a - b));
    expect(candidates.at(-1)!.gainShare).toBeLessThan(-0.3);
  });

  it('advises none where all experts are alike', async () => {
    const flat = countsOf(() => 5000);
    expect((await adviseRedundancy(optionsOf(flat, withTokens(100_000)))).redundantExperts).toBe(0);
  });

  /** Sixteen GPUs of one expert each or two, whose traffic is drawn about shares of that spread. */
  async function drawn(sigma: number, meanPairs: number, seed: number) {
    const [sources, layers] = [16, 2];
    const random = new Random(seed, 3);
    const { experts } = MODEL;
    const popular = Array.from(
      { length: layers * experts },
      () => meanPairs * Math.exp(sigma * random.normal()),
    );
    const tokens = Uint32Array.from({ length: layers * sources * experts }, (_, n) => {
      return random.poisson(popular[Math.floor(n / sources / experts) * experts + (n % experts)]!);
    });
    const traffic = { inputTokens: 20, outputTokens: 101, concurrency: 3200 };
    const counts = { tokens, layers, sources, experts };
    const more = { gpusPerNode: 16, candidates: [0, 16], traffic, seed };
    const { redundantExperts, candidates } = await adviseRedundancy(optionsOf(counts, withTokens(1e6), more));
    return { advised: redundantExperts, gain: candidates[1]!.gainShare };
  }
  const SEEDS = [1, 2, 3];

  it('takes no gain for granted that a handful of counts pretends', async () => {
    // A pair and a half in each cell: plans on half of them hit the true shares by luck.
    for (const seed of SEEDS) expect((await drawn(0.3, 1.5, seed)).advised, `seed ${seed}`).toBe(0);
    for (const seed of SEEDS) expect((await drawn(0.3, 200, seed)).advised, `seed ${seed}`).toBe(16);
  });

  it('sees next to no gain where the counts of equals differ by chance', async () => {
    let gain = 0;
    for (const seed of SEEDS) {
      const one = await drawn(0, 25, seed);
      expect(one.advised, `seed ${seed}`).toBe(0);
      gain += one.gain / SEEDS.length;
    }
    expect(gain).toBeLessThan(0.006);
  });

  it('never advises more where requests want more memory', async () => {
    let fell = 0;
    for (let draw = 1; draw <= 6; draw++) {
      const random = new Random(SEED, 10 + draw);
      const popular = Array.from(
        { length: 2 * MODEL.experts },
        () => 3000 * Math.exp((0.3 + 0.3 * draw) * random.normal()),
      );
      const counts = countsOf((layer, _source, expert) => popular[layer * MODEL.experts + expert]!);
      const hardware = withTokens(8000 + random.below(8000));
      const advised: number[] = [];
      for (const kvTokensPerRequest of [25, 75, 150, 300, 600]) {
        const traffic = { inputTokens: 20, outputTokens: 101, concurrency: 80 * RANKS, kvTokensPerRequest };
        const advice = await adviseRedundancy(optionsOf(counts, hardware, { traffic, splits: 2 }));
        advised.push(advice.redundantExperts);
        const ranges = advice.demand.map(({ redundantExperts }) => redundantExperts);
        expect(ranges, `seed ${SEED}, draw ${draw}`).toEqual([...ranges].sort((a, b) => b - a));
      }
      expect(advised, `seed ${SEED}, draw ${draw}`).toEqual([...advised].sort((a, b) => b - a));
      if (advised[0]! > advised.at(-1)!) fell += 1;
    }
    // Or nothing was seen.
    expect(fell, `seed ${SEED}`).toBeGreaterThan(1);
  });

  it('finds the demand from which the answer is another', async () => {
    const traffic = { inputTokens: 20, outputTokens: 101, concurrency: 80 * RANKS, kvTokensPerRequest: 100 };
    const options = optionsOf(HOT, withTokens(9000), { traffic, candidates: [0, 4] });
    const { demand, kvTokensWanted } = await adviseRedundancy(options);
    expect(kvTokensWanted).toBe(8000);
    expect(demand.map(({ redundantExperts }) => redundantExperts)).toEqual([4, 0]);
    for (const [factor, expected] of [
      [0.97, 4],
      [1.01, 0],
    ] as const) {
      const kvTokensPerRequest = (factor * demand[1]!.fromKvTokens) / 80;
      const moved = await adviseRedundancy({ ...options, traffic: { ...traffic, kvTokensPerRequest } });
      expect(moved.redundantExperts, `${factor}`).toBe(expected);
    }
  });

  it('knows the requests under way by Little’s law, and by measured use', async () => {
    const traffic = { inputTokens: 20, outputTokens: 101 };
    const hardware = withTokens(100_000);
    const byRate = await adviseRedundancy(
      optionsOf(HOT, hardware, { traffic: { ...traffic, requestsPerSecond: 300 } }),
    );
    const { stepMs, batch, outputTokensPerSecond } = byRate.candidates[0]!;
    expect(byRate.concurrency / (300 * 0.1 * stepMs)).toBeCloseTo(1, 3);
    expect(batch * RANKS).toBeCloseTo(byRate.concurrency, 3);
    expect(outputTokensPerSecond).toBeCloseTo(300 * 101, -1);
    const over = await adviseRedundancy(
      optionsOf(HOT, hardware, { traffic: { ...traffic, requestsPerSecond: 1e7 } }),
    );
    expect(over.concurrency).toBe(RANKS * 256);
    expect(over.notes.join()).toContain('more than the engines carry');

    const used = { ...traffic, kvUse: 0.5, redundantExperts: 4, kvTokensPerRequest: 1000 };
    const byUse = await adviseRedundancy(optionsOf(HOT, hardware, { traffic: used }));
    expect(byUse.concurrency).toBeCloseTo((RANKS * 0.5 * (100_000 - 3750)) / 1000, 6);
  });

  it('is the same each time, and gives waiting requests their share of time', async () => {
    const options = optionsOf(HOT, withTokens(5000), {
      traffic: { inputTokens: 20, outputTokens: 101, concurrency: 400 },
    });
    const [one, two] = [await adviseRedundancy(options), await adviseRedundancy(options)];
    const figures = (advice: typeof one) =>
      JSON.stringify({ ...advice, candidates: advice.candidates.map(({ plan, ...rest }) => rest) });
    expect(figures(one)).toBe(figures(two));
    for (const { msPerOutputToken, outputTokensPerSecond } of one.candidates) {
      expect((msPerOutputToken * outputTokensPerSecond) / 1000).toBeCloseTo(400, 6);
    }
  });

  it('draws counts from the generative model, and leaves out layers without traffic', async () => {
    const { routing: _, ...rest } = optionsOf(HOT, withTokens(100_000));
    const generated = await adviseRedundancy({
      ...rest,
      sources: 2,
      routing: { kind: 'generative', sigmaExperts: 1.5 },
    });
    expect(generated.notes.join()).toContain('synthetic');
    expect(generated.notes[0]).toContain('2 engines of 2');
    const more = countsOf((layer, _source, expert) => (layer === 1 ? 0 : expert === 0 ? 40_000 : 4000), 3);
    const [all, some] = [HOT, more].map((counts) => adviseRedundancy(optionsOf(counts, withTokens(100_000))));
    expect((await some!).candidates[1]!.plan.physicalToLogical.length).toBe(2 * 20);
    expect((await some!).candidates[1]!.moeMs).toBeCloseTo((await all!).candidates[1]!.moeMs, 6);
  });

  it('verifies by the simulator what it predicts', { timeout: 120_000 }, async () => {
    const many = { inputTokens: 20, outputTokens: 101, concurrency: 100 * RANKS };
    const options = optionsOf(HOT, withTokens(100_000), { simulate: 1, traffic: many });
    const { candidates, redundantExperts } = await adviseRedundancy(options);
    const verified = candidates.filter(({ simulated }) => simulated !== undefined);
    expect(verified.map((one) => one.redundantExperts)).toEqual([0, redundantExperts]);
    for (const { simulated, outputTokensPerSecond } of verified) {
      expect(Math.abs(outputTokensPerSecond / simulated!.outputTokensPerSecond - 1)).toBeLessThan(0.1);
      expect(simulated!.preemptions).toBe(0);
    }
    const [leanest, advised] = verified.map(({ simulated }) => simulated!.outputTokensPerSecond);
    expect(Math.abs(advised! / leanest! - 1 - verified[1]!.gainShare)).toBeLessThan(0.1);
  });

  it('simulates a candidate with the memory that it leaves to requests of their size', async () => {
    // 12.5 of 50 requests fit beside a slot more; they hold 100 tokens each, the simulator's own some 70.
    const traffic = { inputTokens: 20, outputTokens: 101, concurrency: 50 * RANKS, kvTokensPerRequest: 100 };
    const options = optionsOf(HOT, withTokens(5000), { traffic, candidates: [0, 4], simulate: 2 });
    const [leanest, four] = (await adviseRedundancy(options)).candidates;
    const rates = [leanest!, four!].map(({ simulated }) => simulated!.outputTokensPerSecond);
    expect(rates[1]! / rates[0]!).toBeLessThan(0.8);
    expect(Math.abs(four!.outputTokensPerSecond / rates[1]! - 1)).toBeLessThan(0.3);
    const larger = { ...options, traffic: { ...traffic, kvTokensPerRequest: 200 }, simulate: 1 };
    const [again] = (await adviseRedundancy(larger)).candidates;
    expect(again!.simulated!.outputTokensPerSecond / rates[0]!).toBeLessThan(0.9);
    expect(four!.simulated!.msPerOutputToken).toBeCloseTo((200 * 1000) / rates[1]!, 6);
  });

  it('tells how far it is, and stops at the signal', async () => {
    const told: [number, number][] = [];
    const onProgress = ({ done, total }: { done: number; total: number }) => told.push([done, total]);
    await adviseRedundancy(
      optionsOf(HOT, withTokens(100_000), { candidates: [0, 4], splits: 3, onProgress }),
    );
    expect(told.map(([done]) => done)).toEqual(Array.from({ length: 9 }, (_, n) => n + 1));
    expect(new Set(told.map(([, total]) => total))).toEqual(new Set([9]));
    const abort = new AbortController();
    const stops = {
      signal: abort.signal,
      onProgress: ({ done }: { done: number }) => done === 3 && abort.abort(),
    };
    await expect(adviseRedundancy(optionsOf(HOT, withTokens(100_000), stops))).rejects.toThrow(/abort/i);
    // After the last plan, while demands are looked at.
    const late = new AbortController();
    const stopsLate = {
      signal: late.signal,
      onProgress: ({ done }: { done: number }) => done === 25 && late.abort(),
    };
    await expect(adviseRedundancy(optionsOf(HOT, withTokens(100_000), stopsLate))).rejects.toThrow(/abort/i);
  });

  const traffic = { inputTokens: 20, outputTokens: 101 };
  it.each<[string, Partial<RedundancyOptions> | Record<string, unknown>, RegExp]>([
    ['an unknown option', { candidate: [0] }, /options\.candidate: .*did you mean candidates/],
    ['an unknown model', { model: 'qwen' }, /model/],
    ['no load', { traffic }, /options\.traffic: expected one of concurrency/],
    ['two loads', { traffic: { ...traffic, concurrency: 5, kvUse: 0.5 } }, /concurrency and kvUse/],
    ['no answer', { traffic: { inputTokens: 20, outputTokens: 1, concurrency: 5 } }, /outputTokens/],
    ['a use above 1', { traffic: { ...traffic, kvUse: 65 } }, /kvUse/],
    [
      'a use beside what does not fit',
      { traffic: { ...traffic, kvUse: 0.5, redundantExperts: 44 } },
      /room for a KV cache/,
    ],
    [
      'slots beside a rate',
      { traffic: { ...traffic, concurrency: 5, redundantExperts: 4 } },
      /redundantExperts/,
    ],
    [
      'slots in part',
      { candidates: [0, 6] },
      /candidates\[1\]: expected 0 or a multiple of 4 GPUs more, up to 48/,
    ],
    ['more slots than experts', { candidates: [52] }, /candidates\[0\]/],
    ['no candidate', { candidates: [] }, /candidates/],
    ['another model’s experts', { model: 'Qwen3-30B-A3B' }, /routing\.experts: expected the 128/],
    ['sources that are not the counts’', { sources: 2 }, /options\.sources: expected the 4/],
    [
      'counts of another length',
      { routing: { kind: 'counts', ...HOT, layers: 3 } },
      /routing\.tokens: expected 192/,
    ],
    ['no traffic', { routing: { kind: 'counts', ...countsOf(() => 0) } }, /some traffic/],
    ['an unknown routing', { routing: { kind: 'uniform' } }, /routing\.kind/],
    ['one split', { splits: 1 }, /splits/],
    ['a share above 1', { memoryShare: 1.5 }, /memoryShare/],
  ])('refuses %s', async (_, wrong, message) => {
    const failed = adviseRedundancy({ ...optionsOf(HOT, withTokens(20_000)), ...wrong } as RedundancyOptions);
    await expect(failed).rejects.toMatchObject({
      code: 'GIMBAL_INVALID_INPUT',
      message: expect.stringMatching(message),
    });
  });

  it('says that nothing fits where nothing does', async () => {
    const failed = adviseRedundancy(optionsOf(HOT, withTokens(60)));
    await expect(failed).rejects.toBeInstanceOf(GimbalError);
    await expect(failed).rejects.toMatchObject({ code: 'GIMBAL_INFEASIBLE', field: 'memory' });
  });

  it('plans and judges under nearest as well', async () => {
    const { candidates } = await adviseRedundancy(
      optionsOf(HOT, withTokens(100_000), { replicaChoice: 'nearest' }),
    );
    expect(candidates[1]!.imbalance).toBeLessThan(candidates[0]!.imbalance);
  });
});
