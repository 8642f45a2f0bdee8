/** Rows that are scaled to the dispatched shares: sums, totals, shapes and limits hold for whatever counts and shares. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { weighSources } from '../../lib/index.js';

const seed = Number(process.env.GIMBAL_TEST_SEED ?? 1);
const MOST = 2 ** 32 - 1;

const shape = fc.record({
  layers: fc.integer({ min: 1, max: 3 }),
  sources: fc.integer({ min: 1, max: 5 }),
  experts: fc.integer({ min: 1, max: 9 }),
});
const problem = (most: number) =>
  shape.chain(({ layers, sources, experts }) => {
    const size = layers * sources * experts;
    const count = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: most }));
    const share = fc.oneof(
      fc.constant(0),
      fc.double({ min: 0, max: 1e6, noNaN: true }),
      fc.constant(Number.MAX_VALUE),
    );
    return fc.record({
      counts: fc
        .array(count, { minLength: size, maxLength: size })
        .map((tokens) => ({ layers, sources, experts, tokens: Uint32Array.from(tokens) })),
      shares: fc.array(share, { minLength: sources, maxLength: sources }),
    });
  });

const sum = (values: ArrayLike<number>) => Array.from(values).reduce((total, value) => total + value, 0);

function rowsOf(tokens: Uint32Array, layer: number, sources: number, experts: number): Uint32Array[] {
  return Array.from({ length: sources }, (_, s) =>
    tokens.subarray((layer * sources + s) * experts, (layer * sources + s + 1) * experts),
  );
}

describe('counts by dispatched shares', () => {
  it('keep each layer’s total, follow the shares, and keep the shape of each row', () => {
    fc.assert(
      fc.property(problem(1e6), ({ counts, shares }) => {
        const { layers, sources, experts, tokens } = counts;
        const before = tokens.slice();
        const out = weighSources(counts, shares);
        expect(tokens, 'the counts given are left alone').toEqual(before);
        const all = sum(shares.map((share) => share / Math.max(...shares, 1)));
        if (all === 0) return void expect(out).toEqual(before);
        for (let layer = 0; layer < layers; layer += 1) {
          const [from, to] = [rowsOf(tokens, layer, sources, experts), rowsOf(out, layer, sources, experts)];
          const total = sum(from.map(sum));
          expect(sum(to.map(sum))).toBe(total);
          const columns = Array.from({ length: experts }, (_, e) => sum(from.map((row) => row[e]!)));
          for (const [s, row] of to.entries()) {
            const wanted = total * (shares[s]! / Math.max(...shares, 1) / all);
            expect(Math.abs(sum(row) - wanted)).toBeLessThan(1.001);
            const like = sum(from[s]!) > 0 ? Array.from(from[s]!) : columns;
            for (let e = 0; e < experts; e += 1) {
              const exact = total === 0 ? 0 : (like[e]! / sum(like)) * sum(row);
              expect(Math.abs(row[e]! - exact)).toBeLessThan(1.001);
              if (like[e] === 0) expect(row[e]).toBe(0);
            }
          }
        }
      }),
      { seed, numRuns: 500 },
    );
  });

  it('fit 32 bits whatever comes', () => {
    fc.assert(
      fc.property(problem(MOST), ({ counts, shares }) => {
        const { layers, sources, experts, tokens } = counts;
        const out = weighSources(counts, shares);
        for (let layer = 0; layer < layers; layer += 1) {
          const [from, to] = [rowsOf(tokens, layer, sources, experts), rowsOf(out, layer, sources, experts)];
          // Wrapped counts would lose 2^32 each; a layer that does not fit comes close to the limit instead.
          const [had, has] = [sum(from.map(sum)), sum(to.map(sum))];
          expect(has).toBeLessThanOrEqual(had);
          if (has < had) expect(Math.max(...to.flatMap((row) => [...row]))).toBeGreaterThan(MOST * 0.999);
        }
      }),
      { seed, numRuns: 500 },
    );
  });

  it('is worked by hand', () => {
    const counts = { layers: 1, sources: 3, experts: 2, tokens: Uint32Array.of(10, 30, 40, 0, 0, 0) };
    // Of 80: half, a quarter and a quarter; the source without counts as all of them.
    expect([...weighSources(counts, [2, 1, 1])]).toEqual([10, 30, 20, 0, 13, 7]);
    expect([...weighSources(counts, [0, 5, 0])]).toEqual([0, 0, 80, 0, 0, 0]);
    expect(
      [...weighSources({ ...counts, tokens: Uint32Array.of(MOST, 0, MOST, 0, 0, 0) }, [1, 0, 0])][0],
    ).toBeLessThanOrEqual(MOST);
  });

  it('refuses shares that are none', () => {
    const counts = { layers: 1, sources: 2, experts: 1, tokens: new Uint32Array(2) };
    const invalid = (field: string) => expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field });
    expect(() => weighSources(counts, [1])).toThrow(invalid('shares'));
    expect(() => weighSources(counts, [1, -1])).toThrow(invalid('shares[1]'));
    expect(() => weighSources(counts, [Number.NaN, 1])).toThrow(invalid('shares[0]'));
    expect(() => weighSources({ ...counts, tokens: new Uint32Array(3) }, [1, 1])).toThrow(
      invalid('counts.tokens'),
    );
  });
});
