/** Drift: the test against its definition, and how often it alarms where nothing changed and where something did. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../bench/random.js';
import { RoutingStatistics } from '../../lib/index.js';
import { driftOf } from '../../lib/statistics/drift.js';
import { PROPERTY_SEED as SEED } from '../property/arbitraries.js';

describe(`the test, seed ${SEED}`, () => {
  it('ranks the newest third among all choices of batches, by chi-square distance, over all layers', () => {
    const random = new Random(SEED, 1);
    const [count, layers, experts, recent] = [11, 3, 5, 3];
    for (let round = 0; round < 10; round++) {
      const buckets = Float64Array.from({ length: count * layers * experts }, (_, i) =>
        // The last batches of layer 1 differ.
        random.below(i % (layers * experts) === 7 && i >= 8 * layers * experts ? 60 : 20),
      );
      const drift = driftOf(buckets, count, layers, experts, {
        source: -1,
        falseAlarmRate: 0.01,
        leastDistance: 0.05,
      });
      const expected = naive(buckets, count, layers, experts, recent);
      expect([drift.ready, drift.batches, drift.recent, drift.orders]).toEqual([true, 11, 3, 165]);
      drift.layers.forEach((layer, at) => {
        expect(layer.layer).toBe(at);
        expect(layer.ratio).toBeCloseTo(expected[at]!.ratio, 9);
        expect(layer.distance).toBeCloseTo(expected[at]!.distance, 12);
        expect(layer.pValue).toBeCloseTo(expected[at]!.pValue, 12);
        expect(layer.drifted).toBe(layer.pValue <= 0.01 && layer.distance >= 0.05);
      });
      expect(drift.drifted).toBe(drift.layers.some((layer) => layer.drifted));
    }
  });

  it('leaves out batches in which a layer has nothing, and waits until there are enough', () => {
    const options = { source: -1, falseAlarmRate: 0.01, leastDistance: 0 };
    const buckets = Float64Array.from({ length: 15 * 4 }, (_, i) => 1 + ((i * 7) % 5));
    expect(driftOf(buckets, 15, 2, 2, options)).toMatchObject({ ready: true, batches: 15, orders: 3003 });
    buckets.fill(0, 4 * 4, 4 * 4 + 2);
    expect(driftOf(buckets, 15, 2, 2, options)).toMatchObject({ ready: true, batches: 14, recent: 4 });
    expect(driftOf(buckets, 10, 2, 2, options)).toEqual({
      ready: false,
      drifted: false,
      batches: 9,
      recent: 3,
      orders: 0,
      layers: [],
    });
    // 84 choices of 3 from 9: a rate of 1 in 84 can be told.
    expect(driftOf(buckets, 10, 2, 2, { ...options, falseAlarmRate: 0.012 }).ready).toBe(true);
    expect(driftOf(buckets, 0, 2, 2, options).ready).toBe(false);
  });

  it('finds none where all batches are alike, and none that is too small to matter', () => {
    const statistics = new RoutingStatistics({ layers: 1, sources: 1, experts: 3, windowTokens: 1600 });
    const batch = (ones: number) => {
      const topk = new Uint8Array(100).fill(2, 0, 50).fill(1, 50, 50 + ones);
      statistics.observe({ source: 0, topk, tokens: 100, k: 1 });
    };
    for (let n = 0; n < 15; n++) batch(30);
    expect(statistics.drift()).toMatchObject({ ready: true, drifted: false });
    expect(statistics.drift().layers[0]).toMatchObject({ ratio: 0, pValue: 1, drifted: false });
    expect(statistics.drift().layers[0]!.distance).toBeCloseTo(0, 12);
    for (let n = 0; n < 5; n++) batch(31);
    // Nothing but the newest five differ at all, by a hundredth of the pairs.
    const sure = statistics.drift({ leastDistance: 0.001 }).layers[0]!;
    expect([sure.pValue, sure.drifted]).toEqual([1 / 3003, true]);
    expect(sure.distance).toBeCloseTo(0.01, 12);
    expect(statistics.drift().drifted).toBe(false);
  });
});

/** From the definitions: every choice of `recent` batches, the distance between the mean shares of both parts. */
function naive(buckets: Float64Array, count: number, layers: number, experts: number, recent: number) {
  const masks = Array.from({ length: 2 ** count }, (_, mask) => mask).filter(
    (mask) => mask.toString(2).replaceAll('0', '').length === recent,
  );
  const newest = masks.indexOf((2 ** recent - 1) << (count - recent));
  const shares = (batch: number, layer: number) => {
    const row = [
      ...buckets.subarray((batch * layers + layer) * experts, (batch * layers + layer + 1) * experts),
    ];
    return row.map((pairs) => pairs / row.reduce((a, b) => a + b));
  };
  const mean = (rows: number[][]) =>
    Array.from({ length: experts }, (_, e) => rows.reduce((sum, row) => sum + row[e]!, 0) / rows.length);
  const parts = (layer: number, mask: number) => {
    const rows = Array.from({ length: count }, (_, batch) => shares(batch, layer));
    return [true, false].map((inside) =>
      mean(rows.filter((_, batch) => ((mask >> batch) & 1) === Number(inside))),
    );
  };
  const all = Array.from({ length: layers }, (_, layer) => {
    const overall = mean(Array.from({ length: count }, (_, batch) => shares(batch, layer)));
    const distances = masks.map((mask) => {
      const [a, b] = parts(layer, mask);
      return a!.reduce((sum, x, e) => sum + (overall[e]! > 0 ? (x - b![e]!) ** 2 / overall[e]! : 0), 0);
    });
    const middle = distances.reduce((a, b) => a + b) / distances.length;
    return distances.map((distance) => distance / middle);
  });
  return all.map((ratios, layer) => {
    const ratio = ratios[newest]!;
    const asGreat = masks.filter((_, at) => Math.max(...all.map((own) => own[at]!)) >= ratio - 1e-9).length;
    const [a, b] = parts(layer, masks[newest]!);
    const distance = a!.reduce((sum, x, e) => sum + Math.abs(x - b![e]!), 0) / 2;
    return { ratio, distance, pValue: asGreat / masks.length };
  });
}

/** Requests with topics: all tokens of one choose experts by its topic, so tokens are far from independent. */
class Traffic {
  readonly #random: Random;
  /** [topics][layers][experts], cumulative shares. */
  readonly #topics: Float64Array[][];

  constructor(
    readonly statistics: RoutingStatistics,
    readonly shape: { layers: number; experts: number; topics: number },
    stream: number,
  ) {
    this.#random = new Random(SEED, stream);
    this.#topics = Array.from({ length: shape.topics }, () =>
      Array.from({ length: shape.layers }, () => {
        const weights = Float64Array.from({ length: shape.experts }, () => Math.exp(this.#random.normal()));
        const all = weights.reduce((a, b) => a + b);
        let sum = 0;
        return weights.map((weight) => (sum += weight / all));
      }),
    );
  }

  /** Requests of 10 to 30 tokens until so many are sent; a layer follows the topic that `topicOf` says. */
  send(source: number, tokens: number, topicOf: (draw: number, layer: number) => number): void {
    const { layers } = this.shape;
    for (let sent = 0; sent < tokens; ) {
      const length = this.#random.between(10, 30);
      const draw = this.#random.uniform();
      const rows = Array.from({ length: layers }, (_, layer) => this.#topics[topicOf(draw, layer)]![layer]!);
      const topk = Uint8Array.from({ length: length * layers * 2 }, (_, i) =>
        this.#random.pick(rows[(i >> 1) % layers]!),
      );
      this.statistics.observe({ source, topk, tokens: length, k: 2 });
      sent += length;
    }
  }
}

describe(`simulated traffic of requests with topics, seed ${SEED}`, { timeout: 120_000 }, () => {
  const shape = { layers: 3, experts: 32, topics: 6 };
  const BATCH = 500;
  const RATE = 0.05;
  const fresh = (stream: number, sources = 1) =>
    new Traffic(
      new RoutingStatistics({ layers: 3, experts: 32, sources, windowTokens: 16 * BATCH }),
      shape,
      stream,
    );
  const anyTopic = (draw: number) => Math.floor(draw * shape.topics);

  it('alarms no oftener than its rate where nothing changes', () => {
    const RUNS = 400;
    let alarms = 0;
    for (let run = 0; run < RUNS; run++) {
      const traffic = fresh(1000 + run);
      traffic.send(0, 15 * BATCH, anyTopic);
      const drift = traffic.statistics.drift({ falseAlarmRate: RATE, leastDistance: 0 });
      expect(drift.batches).toBe(15);
      if (drift.drifted) alarms++;
    }
    // 20 are expected; beyond 35 and below 7 lie one in a thousand seeds each.
    expect(alarms).toBeLessThan(36);
    expect(alarms).toBeGreaterThan(6);
  });

  it('finds that topics have shifted, in all but few runs', () => {
    const RUNS = 60;
    let found = 0;
    for (let run = 0; run < RUNS; run++) {
      const traffic = fresh(3000 + run);
      traffic.send(0, 10 * BATCH, anyTopic);
      // A third of the requests turn to one topic.
      traffic.send(0, 5 * BATCH, (draw) =>
        draw < 1 / 3 ? 0 : Math.floor(((draw - 1 / 3) * 3 * shape.topics) / 2),
      );
      if (traffic.statistics.drift({ falseAlarmRate: RATE }).drifted) found++;
    }
    expect(found).toBeGreaterThan(0.9 * RUNS);
  });

  it('names the layer that changed and no other', () => {
    const traffic = fresh(5000);
    traffic.send(0, 10 * BATCH, anyTopic);
    traffic.send(0, 5 * BATCH, (draw, layer) => (layer === 1 ? anyTopic(draw / 2) : anyTopic(draw)));
    const { layers } = traffic.statistics.drift();
    expect(layers.filter(({ drifted }) => drifted).map(({ layer }) => layer)).toEqual([1]);
  });

  it('sees sources that trade topics, looked at one by one', () => {
    const traffic = fresh(6000, 2);
    const half = (upper: boolean) => (draw: number) => anyTopic(draw / 2 + (upper ? 0.5 : 0));
    for (let batch = 0; batch < 15; batch++) {
      traffic.send(0, BATCH / 2, half(batch >= 10));
      traffic.send(1, BATCH / 2, half(batch < 10));
    }
    expect(traffic.statistics.drift().drifted).toBe(false);
    expect(traffic.statistics.drift({ source: 0 }).drifted).toBe(true);
    expect(traffic.statistics.drift({ source: 1 }).layers.every(({ drifted }) => drifted)).toBe(true);
  });

  it('does so where the window fades, too', () => {
    const statistics = new RoutingStatistics({
      layers: 3,
      experts: 32,
      sources: 1,
      halfLifeTokens: 4 * BATCH,
    });
    const traffic = new Traffic(statistics, shape, 7000);
    traffic.send(0, 12 * BATCH, anyTopic);
    expect(statistics.drift()).toMatchObject({ ready: true, drifted: false, batches: 12 });
    traffic.send(0, 5 * BATCH, (draw) => anyTopic(draw / 2));
    expect(statistics.drift()).toMatchObject({ ready: true, drifted: true, batches: 15 });
    traffic.send(0, 15 * BATCH, (draw) => anyTopic(draw / 2));
    expect(statistics.drift().drifted).toBe(false);
  });
});
