/** The routing statistics as JavaScript meets them: against sums over everything that was observed, by the definitions. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Random } from '../../bench/random.js';
import { planPlacement, RoutingStatistics, topology } from '../../lib/index.js';
import { PROPERTY_SEED as SEED } from '../property/arbitraries.js';

const SHAPE = { layers: 2, sources: 3, experts: 6 };
const wrong = (field: string, code = 'GIMBAL_INVALID_INPUT') => expect.objectContaining({ code, field });

interface Call {
  source: number;
  /** [tokens][layers][k] */
  ids: number[];
  k: number;
}

const call = fc
  .record({ source: fc.nat(SHAPE.sources - 1), k: fc.integer({ min: 1, max: 3 }), tokens: fc.nat(12) })
  .chain(({ source, k, tokens }) => {
    const length = tokens * SHAPE.layers * k;
    const ids = fc.array(fc.nat(SHAPE.experts - 1), { minLength: length, maxLength: length });
    return fc.record({ source: fc.constant(source), k: fc.constant(k), ids });
  });

/** [layers][sources][experts]: every pair by the weight of its token, given the token's number and how many there were. */
function naive(calls: Call[], weight: (token: number, seen: number) => number): number[] {
  const { layers, sources, experts } = SHAPE;
  const sums = new Array<number>(layers * sources * experts).fill(0);
  const seen = calls.reduce((sum, { ids, k }) => sum + ids.length / k / layers, 0);
  let before = 0;
  for (const { source, ids, k } of calls) {
    ids.forEach((expert, at) => {
      const token = before + Math.floor(at / (k * layers));
      const layer = Math.floor(at / k) % layers;
      sums[(layer * sources + source) * experts + expert]! += weight(token, seen);
    });
    before += ids.length / k / layers;
  }
  return sums;
}

function observeAll(statistics: RoutingStatistics, calls: Call[], wide = false): RoutingStatistics {
  for (const { source, ids, k } of calls) {
    const topk = wide ? Uint16Array.from(ids) : Uint8Array.from(ids);
    statistics.observe({ source, topk, tokens: ids.length / k / SHAPE.layers, k });
  }
  return statistics;
}

describe('the window', () => {
  it('slides by sixteenths: the tokens of the last sixteen count, whatever the calls', () => {
    const property = fc.property(fc.array(call, { maxLength: 30 }), fc.boolean(), (calls, wide) => {
      const windowTokens = 40;
      const bucket = Math.ceil(windowTokens / 16);
      const statistics = new RoutingStatistics({ ...SHAPE, windowTokens, priorTokens: 0 });
      const counts = observeAll(statistics, calls, wide).counts();
      const expected = naive(calls, (token, seen) =>
        Math.floor(token / bucket) + 16 > Math.floor((seen - 1) / bucket) ? 1 : 0,
      );
      expect([...counts]).toEqual(expected);
    });
    fc.assert(property, { seed: SEED });
  });

  it('fades: a token weighs 2^-(age / half-life), to a 64th of a half-life', () => {
    const property = fc.property(fc.array(call, { maxLength: 30 }), fc.boolean(), (calls, wide) => {
      const halfLifeTokens = 25;
      const statistics = new RoutingStatistics({ ...SHAPE, halfLifeTokens, priorTokens: 0 });
      const counts = observeAll(statistics, calls, wide).counts();
      const exact = naive(calls, (token, seen) => 2 ** (-(seen - 1 - token) / halfLifeTokens));
      counts.forEach((pairs, cell) => {
        expect(pairs).toBeGreaterThanOrEqual(exact[cell]! * 2 ** (-1 / 64) - 0.51);
        expect(pairs).toBeLessThanOrEqual(exact[cell]! * 2 ** (1 / 64) + 0.51);
      });
    });
    fc.assert(property, { seed: SEED });
  });

  it('fades alike after a hundred half-lives: what was halved on the way is not lost', () => {
    const statistics = new RoutingStatistics({ layers: 1, sources: 1, experts: 2, halfLifeTokens: 1000 });
    const topk = new Uint8Array(1000);
    const tokens = 1000;
    // 1000 · (1 + ½ + ¼ + …) tokens, each by its own age: 1 / (1 − 2^(−1/1000)).
    const steady = 1 / (1 - 2 ** (-1 / 1000));
    for (let n = 0; n < 100; n++) {
      statistics.observe({ source: 0, topk, tokens, k: 1 });
      if (n > 20) expect(Math.abs(statistics.counts()[0]! / steady - 1)).toBeLessThan(0.011);
    }
    expect(statistics.tokensSeen).toBe(100_000);
  });

  it('is the same for the same calls, to the byte', () => {
    const property = fc.property(fc.array(call, { maxLength: 20 }), (calls) => {
      const made = () => observeAll(new RoutingStatistics({ ...SHAPE, halfLifeTokens: 7 }), calls).snapshot();
      expect(Buffer.compare(made(), made())).toBe(0);
    });
    fc.assert(property, { seed: SEED, numRuns: 20 });
  });
});

describe('counts that come summed', () => {
  it('count as the newest tokens, and drive the window by their pairs over k', () => {
    const statistics = new RoutingStatistics({ ...SHAPE, windowTokens: 32, priorTokens: 0 });
    const counts = Uint32Array.from({ length: 12 }, (_, i) => i);
    statistics.observeCounts({ source: 1, counts, k: 3 });
    // The fuller layer: 6 + 7 + … + 11 = 51 pairs.
    expect(statistics.tokensSeen).toBe(17);
    expect([...statistics.counts()].filter((pairs) => pairs > 0)).toEqual([...counts].slice(1));
    statistics.observeCounts({ source: 2, counts, k: 3 });
    expect(statistics.counts().reduce((sum, pairs) => sum + pairs, 0)).toBe(2 * 66);
    statistics.observeCounts({ source: 2, counts, k: 3 });
    expect(
      statistics
        .counts()
        .subarray(6, 12)
        .some((pairs) => pairs > 0),
    ).toBe(false);
  });

  it('without a pair change nothing', () => {
    const statistics = new RoutingStatistics({ ...SHAPE, windowTokens: 32 });
    statistics.observeCounts({ source: 0, counts: new Uint32Array(12) });
    statistics.observe({ source: 0, topk: new Uint8Array(0), tokens: 0, k: 2 });
    expect(statistics.tokensSeen).toBe(0);
    expect(statistics.counts()).toEqual(new Uint32Array(36));
  });

  it('come as whole tables too, one part for each source', () => {
    const statistics = new RoutingStatistics({ ...SHAPE, halfLifeTokens: 1000, priorTokens: 0 });
    const tokens = Uint32Array.from({ length: 36 }, (_, i) => (i * 7) % 11);
    statistics.observeTable({ ...SHAPE, tokens }, { k: 2 });
    expect(statistics.counts()).toEqual(tokens);
  });

  it('of 2^31 pairs and more are refused, and 2^32 in the window are when they are asked for', () => {
    const statistics = new RoutingStatistics({ ...SHAPE, halfLifeTokens: 2 ** 27, priorTokens: 0 });
    const counts = new Uint32Array(12);
    counts[7] = 2 ** 31;
    expect(() => statistics.observeCounts({ source: 0, counts })).toThrow(
      wrong('counts.counts[7]', 'GIMBAL_OUT_OF_RANGE'),
    );
    counts[7] = 2 ** 31 - 1;
    for (let n = 0; n < 10; n++) statistics.observeCounts({ source: 1, counts, k: 32 });
    expect(() => statistics.counts()).toThrow(
      wrong('counts, layer 1, source 1, expert 1', 'GIMBAL_OUT_OF_RANGE'),
    );
  });
});

describe(`shrinkage, seed ${SEED}`, () => {
  /** Tokens of one expert in the only layer. */
  const sends = (source: number, expert: number, tokens: number) => ({
    source,
    topk: new Uint8Array(tokens).fill(expert),
    tokens,
    k: 1,
  });

  it('gives an unobserved source the mean, keeps what each expert gets, and says so', () => {
    const shape = { layers: 1, sources: 4, experts: 2, windowTokens: 100_000, priorTokens: 500 };
    const statistics = new RoutingStatistics(shape);
    statistics.observe(sends(0, 0, 3000));
    statistics.observe(sends(1, 1, 900));
    statistics.observe(sends(2, 1, 100));
    // The mean source sent 1,000 tokens: Z is 2/3, and the mean row is [750, 250].
    expect([...statistics.counts()]).toEqual([2250, 83, 250, 683, 250, 150, 250, 83]);
    const confidence = statistics.confidence();
    expect(confidence.layers[0]).toBeCloseTo(2 / 3, 12);
    expect([...confidence.tokens]).toEqual([3000, 900, 100, 0]);
    expect([...confidence.shrinkShare]).toEqual([1 - 3000 / 3500, 1 - 900 / 1400, 1 - 100 / 600, 1]);
    expect([confidence.unobserved, confidence.thin]).toEqual([[3], [2]]);
  });

  it('is none where the prior weighs nothing, and what was not observed is not trusted then either', () => {
    const shape = { layers: 1, sources: 2, experts: 2, windowTokens: 100, priorTokens: 0 };
    const statistics = new RoutingStatistics(shape);
    expect(statistics.confidence()).toMatchObject({
      layers: Float64Array.of(0),
      unobserved: [0, 1],
      thin: [],
    });
    statistics.observe(sends(1, 1, 1));
    expect([...statistics.counts()]).toEqual([0, 0, 0, 1]);
    expect(statistics.confidence()).toMatchObject({
      layers: Float64Array.of(1),
      shrinkShare: Float64Array.of(1, 0),
      unobserved: [0],
    });
  });

  it('brings thin sources nearer to what they would send, and leaves busy ones where they are', () => {
    const [sources, experts, k] = [8, 64, 4];
    const random = new Random(SEED, 1);
    // Sources that differ: each half of a common popularity, half of its own.
    const weights = () => Array.from({ length: experts }, () => Math.exp(random.normal()));
    const normal = (list: number[]) => list.map((w) => w / list.reduce((a, b) => a + b));
    const common = normal(weights());
    const truth = Array.from({ length: sources }, () =>
      normal(weights()).map((w, e) => w / 2 + common[e]! / 2),
    );
    const shares = { thin: 0, thinRaw: 0, busy: 0, busyRaw: 0 };
    for (let round = 0; round < 40; round++) {
      const options = { layers: 1, sources, experts, windowTokens: 2 ** 20 };
      const both = [new RoutingStatistics(options), new RoutingStatistics({ ...options, priorTokens: 0 })];
      for (let source = 0; source < sources; source++) {
        const tokens = source < 4 ? 20 : 4000;
        const topk = Uint8Array.from({ length: tokens * k }, () => draw(random, truth[source]!));
        for (const statistics of both) statistics.observe({ source, topk, tokens, k });
      }
      const [shrunk, raw] = both.map((statistics) => statistics.counts());
      truth.forEach((own, source) => {
        const kind = source < 4 ? 'thin' : 'busy';
        shares[kind] += apart(shrunk!.subarray(source * experts, (source + 1) * experts), own);
        shares[`${kind}Raw`] += apart(raw!.subarray(source * experts, (source + 1) * experts), own);
      });
    }
    expect(shares.thin).toBeLessThan(0.75 * shares.thinRaw);
    expect(shares.busy).toBeLessThan(1.05 * shares.busyRaw);
  });

  it('feeds planPlacement', async () => {
    const cluster = topology({ nodes: 1, gpusPerNode: 4, model: 'Qwen3-30B-A3B' });
    const shape = { layers: 2, sources: 4, experts: 8 };
    const statistics = new RoutingStatistics(shape);
    const topk = Uint8Array.from({ length: 100 * 2 * 2 }, (_, i) => (i * i) % 8);
    statistics.observe({ source: 3, topk, tokens: 100, k: 2 });
    const plan = await planPlacement({ ...cluster, ...shape, slotsPerGpu: 3, tokens: statistics.counts() });
    expect(plan.physicalToLogical).toHaveLength(24);
  });
});

function draw(random: Random, shares: number[]): number {
  let left = random.uniform();
  for (const [expert, share] of shares.entries()) {
    left -= share;
    if (left < 0) return expert;
  }
  return shares.length - 1;
}

/** Total variation between the shares of counts and the true ones. */
function apart(counts: Uint32Array, truth: number[]): number {
  const all = counts.reduce((sum, pairs) => sum + pairs, 0);
  return truth.reduce((sum, share, e) => sum + Math.abs(counts[e]! / all - share), 0) / 2;
}

describe('what is refused', () => {
  const statistics = new RoutingStatistics({ ...SHAPE, windowTokens: 100 });
  const good = { source: 0, topk: new Uint8Array(8), tokens: 2, k: 2 };
  const before = statistics.snapshot();

  it.each([
    ['observation.source', { source: 3 }],
    ['observation.source', { source: -1 }],
    ['observation.source', { source: 0.5 }],
    ['observation.tokens', { tokens: -1 }],
    ['observation.k', { k: 0 }],
    ['observation.k', { k: 7 }],
    ['observation.layers', { layers: 3 }],
    ['observation.topk', { tokens: 3 }],
    ['observation.topk', { topk: new Uint32Array(8) }],
    ['observation.topk', { topk: [0, 0, 0, 0, 0, 0, 0, 0] }],
    ['observation.topK', { topK: 2 }],
    ['observation.topk[5]', { topk: Uint8Array.of(0, 1, 2, 3, 4, 6, 5, 255) }],
    ['observation.topk[0]', { topk: new Uint16Array(8).fill(256) }],
  ])('an observation for its %s (%j)', (field, change) => {
    expect(() => statistics.observe({ ...good, ...change } as typeof good)).toThrow(wrong(field));
    expect(Buffer.compare(statistics.snapshot(), before)).toBe(0);
  });

  it('says which token and layer an id stands at', () => {
    const topk = Uint8Array.of(0, 1, 2, 3, 4, 5, 5, 6);
    expect(() => statistics.observe({ ...good, topk })).toThrow(
      'observation.topk[7]: expected an expert of 0 to 5 but received 6 (token 1, layer 1)',
    );
  });

  it('an array that was transferred away; shared memory is taken', () => {
    const topk = new Uint8Array(8);
    structuredClone(topk.buffer, { transfer: [topk.buffer] });
    expect(() => statistics.observe({ ...good, topk })).toThrow('transferred away');
    const own = new RoutingStatistics({ ...SHAPE, windowTokens: 100, priorTokens: 0 });
    own.observe({ ...good, topk: new Uint8Array(new SharedArrayBuffer(8)) });
    expect(own.counts()[0]).toBe(4);
    // What is counted is a copy, whatever another thread writes meanwhile.
    const written = new Uint8Array(new SharedArrayBuffer(8));
    written.slice = () => new Uint8Array(8).fill(1);
    own.observe({ ...good, topk: written });
    expect([...own.counts().subarray(0, 2)]).toEqual([4, 4]);
    const counts = new Uint32Array(new SharedArrayBuffer(48)).fill(1);
    own.observeCounts({ source: 2, counts });
    expect(own.counts()[12]).toBe(1);
  });

  it.each([
    ['counts.source', { source: 3 }],
    ['counts.counts', { counts: new Uint32Array(11) }],
    ['counts.counts', { counts: new Int32Array(12) }],
    ['counts.k', { k: 33 }],
    ['counts.experts', { experts: 7 }],
  ])('summed counts for their %s', (field, change) => {
    const summed = { source: 0, counts: new Uint32Array(12), ...change };
    expect(() => statistics.observeCounts(summed as { source: number; counts: Uint32Array })).toThrow(
      wrong(field),
    );
  });

  it('a table of another shape, above all one that is summed over the ranks', () => {
    const table = { ...SHAPE, tokens: new Uint32Array(36) };
    expect(() => statistics.observeTable({ ...table, layers: 3 })).toThrow(wrong('table.layers'));
    expect(() => statistics.observeTable({ ...table, experts: 7 })).toThrow(wrong('table.experts'));
    expect(() => statistics.observeTable({ ...table, sources: 2 })).toThrow(wrong('table.sources'));
    expect(() => statistics.observeTable({ ...table, sources: 1 })).toThrow('summed over the ranks');
    expect(() => statistics.observeTable({ ...table, tokens: new Uint32Array(35) })).toThrow(
      wrong('table.tokens'),
    );
  });

  it.each([
    ['options.layers', { layers: 0 }],
    ['options.experts', { experts: 65_537 }],
    ['options.windowTokens', { windowTokens: 15 }],
    ['options.windowTokens', { windowTokens: 2 ** 27 + 1 }],
    ['options.windowTokens', { windowTokens: 100, halfLifeTokens: 100 }],
    ['options.halfLifeTokens', { halfLifeTokens: 3 }],
    ['options.priorTokens', { priorTokens: -1 }],
    ['options.halfLife', { halfLife: 3 }],
  ])('options for %s', (field, change) => {
    expect(() => new RoutingStatistics({ ...SHAPE, ...change } as typeof SHAPE)).toThrow(wrong(field));
  });

  it('more than memory should hold', () => {
    expect(() => new RoutingStatistics({ layers: 4096, sources: 64, experts: 256 })).toThrow(
      wrong('options.layers * sources * experts', 'GIMBAL_OUT_OF_RANGE'),
    );
  });

  it('a source to forget, or drift options, that are not there', () => {
    expect(() => statistics.reset(3)).toThrow(wrong('source'));
    expect(() => statistics.drift({ source: 3 })).toThrow(wrong('options.source'));
    expect(() => statistics.drift({ falseAlarmRate: 0 })).toThrow(wrong('options.falseAlarmRate'));
    expect(() => statistics.drift({ leastDistance: 2 })).toThrow(wrong('options.leastDistance'));
  });
});

describe('snapshots', () => {
  const calls = fc.sample(fc.array(call, { minLength: 10, maxLength: 20 }), { seed: SEED, numRuns: 1 })[0]!;

  it.each([{ halfLifeTokens: 20 }, { windowTokens: 50 }])('survive a restart (%j)', (window) => {
    const first = observeAll(new RoutingStatistics({ ...SHAPE, ...window }), calls);
    const second = observeAll(new RoutingStatistics({ ...SHAPE, ...window }), calls.slice(0, 3));
    second.restore(first.snapshot());
    expect(second.tokensSeen).toBe(first.tokensSeen);
    for (const statistics of [first, second]) observeAll(statistics, calls);
    expect(second.counts()).toEqual(first.counts());
    expect(second.confidence()).toEqual(first.confidence());
  });

  it('are refused where they are another shape or window, damaged, or no snapshot, and then change nothing', () => {
    const own = observeAll(new RoutingStatistics({ ...SHAPE, windowTokens: 50 }), calls);
    const bytes = own.snapshot();
    const refuses = (given: unknown, field: string, code = 'GIMBAL_FORMAT') =>
      expect(() => own.restore(given as Uint8Array)).toThrow(wrong(field, code));
    refuses(new RoutingStatistics({ ...SHAPE, layers: 3, windowTokens: 50 }).snapshot(), 'snapshot, shape');
    refuses(new RoutingStatistics({ ...SHAPE, halfLifeTokens: 50 }).snapshot(), 'snapshot, window');
    refuses(new RoutingStatistics({ ...SHAPE, windowTokens: 51 }).snapshot(), 'snapshot, window');
    refuses(bytes.subarray(0, bytes.length - 1), 'snapshot, length');
    refuses(new Uint8Array(3), 'snapshot, length');
    refuses(new Uint8Array(bytes.length), 'snapshot, magic');
    const changed = (at: number) => bytes.map((byte, i) => (i === at ? byte ^ 4 : byte));
    refuses(changed(4), 'snapshot, version');
    refuses(changed(bytes.length / 2), 'snapshot, checksum');
    refuses('GMST', 'snapshot', 'GIMBAL_INVALID_INPUT');
    expect(Buffer.compare(own.snapshot(), bytes)).toBe(0);
  });
});

describe('memory', () => {
  it('is at most 64 MB for 58 layers, 32 sources and 256 experts, and does not grow', () => {
    const shape = { layers: 58, sources: 32, experts: 256 };
    const before = process.memoryUsage().rss;
    const statistics = new RoutingStatistics({ ...shape, halfLifeTokens: 2000 });
    const random = new Random(SEED, 2);
    const topk = Uint8Array.from({ length: 500 * 58 * 8 }, () => random.below(256));
    const observe = (rounds: number) => {
      for (let n = 0; n < rounds; n++) statistics.observe({ source: n % 32, topk, tokens: 500, k: 8 });
    };
    observe(64);
    const made = process.memoryUsage().rss;
    expect(statistics.memoryBytes).toBeLessThanOrEqual(64e6);
    // Much of the rest of the process may come and go meanwhile.
    expect(made - before).toBeLessThan(64e6);
    observe(300);
    expect(process.memoryUsage().rss - made).toBeLessThan(32e6);
  });
});
