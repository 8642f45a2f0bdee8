/** What is learned of the experts that keys choose, within what memory, and what it says of engines. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../bench/random.js';
import { ExpertFingerprints, expertPressure, type PlacedTraffic } from '../../lib/index.js';

const invalid = (field: string) => expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field });

const [layers, experts, k] = [2, 4, 2];

/** Two GPUs with an engine each: experts 0 and 1 are near engine 0, 2 and 3 near engine 1, in both layers. */
const TRAFFIC: PlacedTraffic = {
  layers,
  sources: 2,
  experts,
  gpus: 2,
  slotsPerGpu: 2,
  tokens: new Uint32Array(layers * 2 * experts).fill(10),
  computeCost: 100,
  commCost: Float64Array.of(0, 1000, 1000, 0),
  placement: Int32Array.of(0, 1, 2, 3, 0, 1, 2, 3),
};
const NEAR = expertPressure(TRAFFIC);
const SWAPPED = expertPressure({ ...TRAFFIC, placement: Int32Array.of(2, 3, 0, 1, 2, 3, 0, 1) });

/** So many tokens that choose these experts in every layer. */
const choosing = (chosen: readonly [number, number], tokens: number) => ({
  topk: Uint8Array.from({ length: tokens * layers * k }, (_, n) => chosen[n % k]!),
  tokens,
  k,
});

describe('expert fingerprints', () => {
  it('say what the next tokens of a key cost on each engine, by the placement in force', () => {
    const fingerprints = new ExpertFingerprints({ layers, experts });
    fingerprints.observe('a', choosing([0, 1], 10));
    expect(fingerprints.expertMs('a', 1000), 'nothing is placed yet').toBeUndefined();
    fingerprints.place(NEAR);
    expect(fingerprints.expertMs('b', 1000), 'nothing is known of it').toBeUndefined();
    // A token makes 4 pairs of 100 ns, and from engine 1 all of them travel for 1,000 ns.
    expect([...fingerprints.expertMs('a', 1000)!]).toEqual([0.4, 4.4]);
    fingerprints.observe('a', choosing([2, 3], 10));
    expect([...fingerprints.expertMs('a', 1000)!]).toEqual([2.4, 2.4]);
    fingerprints.observe('b', choosing([0, 3], 8));
    fingerprints.observe('b', choosing([0, 1], 8));
    // Of 64 pairs 16 went to expert 3 and 48 near engine 0: a quarter and three quarters.
    expect([...fingerprints.expertMs('b', 1000)!]).toEqual([1.4, 3.4]);
    fingerprints.place(SWAPPED);
    const into = new Float64Array(2);
    expect(fingerprints.expertMs('b', 1000, into)).toBe(into);
    expect([...into]).toEqual([3.4, 1.4]);
    fingerprints.forget('b');
    expect(fingerprints.expertMs('b', 1000)).toBeUndefined();
  });

  it('says nothing before it has seen enough', () => {
    const fingerprints = new ExpertFingerprints({ layers, experts, leastTokens: 3 });
    fingerprints.place(NEAR);
    fingerprints.observe('a', choosing([0, 1], 2));
    expect(fingerprints.expertMs('a', 1)).toBeUndefined();
    fingerprints.observe('a', choosing([0, 1], 1));
    expect(fingerprints.expertMs('a', 1)).toBeDefined();
  });

  it('keep the keys that were used last, in the memory that they have', () => {
    const fingerprints = new ExpertFingerprints({
      layers,
      experts,
      memoryBytes: 2 * layers * experts * 3 + 1,
    });
    fingerprints.place(NEAR);
    expect(fingerprints.capacity).toBe(3);
    for (const key of ['a', 'b', 'c']) fingerprints.observe(key, choosing([0, 1], 8));
    fingerprints.expertMs('a', 1);
    fingerprints.observe('d', choosing([2, 3], 8));
    expect(fingerprints.size).toBe(3);
    expect(fingerprints.expertMs('b', 1), 'the one that was used least recently is gone').toBeUndefined();
    expect([...fingerprints.expertMs('d', 1000)!], 'and left nothing behind').toEqual([4.4, 0.4]);
    expect(fingerprints.expertMs('a', 1)).toBeDefined();
    expect(fingerprints.expertMs('c', 1)).toBeDefined();
  });

  it('forget the past by and by', () => {
    const fingerprints = new ExpertFingerprints({ layers, experts, memoryTokens: 64 });
    fingerprints.place(NEAR);
    fingerprints.observe('a', choosing([0, 1], 1000));
    fingerprints.observe('a', choosing([2, 3], 64));
    const [here, there] = fingerprints.expertMs('a', 1000)!;
    expect(there!, 'half and half would be 2.4').toBeLessThan(here! + 0.5);
    fingerprints.observe('a', choosing([2, 3], 1000));
    expect([...fingerprints.expertMs('a', 1000)!].map(Math.round)).toEqual([4, 0]);
  });

  it('find the near engine from a few tokens that are drawn, of more experts than fit a node', () => {
    const random = new Random(Number(process.env.GIMBAL_TEST_SEED ?? 1), 3);
    const fingerprints = new ExpertFingerprints({ layers, experts });
    fingerprints.place(NEAR);
    let right = 0;
    for (let n = 0; n < 50; n += 1) {
      const near = n % 2;
      const topk = Uint16Array.from({ length: 40 * layers }, () => {
        const isNear = random.below(10) < 7;
        return 2 * (isNear ? near : 1 - near) + random.below(2);
      });
      fingerprints.observe(`key ${n}`, { topk, tokens: 40, k: 1 });
      const costs = fingerprints.expertMs(`key ${n}`, 1)!;
      right += costs[near]! < costs[1 - near]! ? 1 : 0;
    }
    expect(right).toBeGreaterThan(45);
  });

  it('know engines of several placements', () => {
    const fingerprints = new ExpertFingerprints({ layers, experts });
    fingerprints.observe('a', choosing([0, 1], 8));
    fingerprints.place([
      { pressure: NEAR, engines: [3, 0] },
      { pressure: SWAPPED, engines: [1, 2] },
    ]);
    expect([...fingerprints.expertMs('a', 1000)!]).toEqual([4.4, 4.4, 0.4, 0.4]);
    expect(() => fingerprints.place([{ pressure: NEAR, engines: [0, 2] }])).toThrow(invalid('placed'));
    expect(() => fingerprints.place([{ pressure: NEAR, engines: [0] }])).toThrow(invalid('placed[0]'));
    expect(() => fingerprints.expertMs('a', 1, new Float64Array(3))).toThrow(invalid('into'));
  });

  it('count nothing of what they refuse', () => {
    const fingerprints = new ExpertFingerprints({ layers, experts });
    const right = choosing([0, 1], 8);
    for (const [field, more] of [
      ['observation.topk', { topk: right.topk.slice(1) }],
      ['observation.topk', { topk: [...right.topk] }],
      ['observation.topk[5]', { topk: right.topk.slice().fill(4, 5, 6) }],
      ['observation.k', { k: 33 }],
      ['observation.tokens', { tokens: -1 }],
    ] as const) {
      expect(() => fingerprints.observe('a', { ...right, ...more } as never), field).toThrow(invalid(field));
    }
    expect(() => fingerprints.observe(7 as never, right)).toThrow(invalid('key'));
    expect(fingerprints.size).toBe(0);
    const options = { layers, experts };
    expect(() => new ExpertFingerprints({ ...options, memoryBytes: 15 })).toThrow(
      invalid('options.memoryBytes'),
    );
    expect(() => new ExpertFingerprints({ ...options, memoryTokens: 2 ** 14 + 1 })).toThrow(
      invalid('options.memoryTokens'),
    );
  });
});
