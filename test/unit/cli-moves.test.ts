/** Moves between placements and the mapping of sources, on cases small enough to check by hand. */
import { describe, expect, it } from 'vitest';
import { InputError } from '../../lib/cli/exit.js';
import { movesBetween } from '../../lib/cli/moves.js';
import { mapSources } from '../../lib/cli/sources.js';

const view = (gpus: number, slotsPerGpu: number, ...rows: number[][]) => ({
  layers: rows.length,
  gpus,
  slotsPerGpu,
  physicalToLogical: Int32Array.from(rows.flat()),
});

describe('movesBetween', () => {
  it('finds what comes, who can send it and what goes', async () => {
    const before = view(3, 2, [0, 1, 2, 3, 0, 2]);
    const after = view(3, 2, [0, 2, 3, 2, 0, 1]);
    expect(await movesBetween(before, after)).toEqual([
      {
        moves: [
          { expert: 1, toGpu: 2, fromGpus: [0] },
          { expert: 2, toGpu: 0, fromGpus: [1, 2] },
        ],
        dropped: 2,
      },
    ]);
  });

  it('puts the cheapest sender first', async () => {
    const before = view(4, 1, [0, 0, 1, 1]);
    const after = view(4, 1, [0, 0, 0, 1]);
    const ring = Float64Array.from({ length: 16 }, (_, at) => Math.abs(Math.floor(at / 4) - (at % 4)));
    const moves = await movesBetween(before, after, { gpus: 4, sources: 4, commCost: ring });
    expect(moves[0]!.moves).toEqual([{ expert: 0, toGpu: 2, fromGpus: [1, 0] }]);
  });

  it('counts neither a new order inside a GPU nor a second copy there', async () => {
    expect((await movesBetween(view(2, 2, [0, 1, 2, 3]), view(2, 2, [1, 0, 3, 2])))[0]).toEqual({
      moves: [],
      dropped: 0,
    });
    const doubled = await movesBetween(view(2, 2, [0, 1, 2, 3]), view(2, 3, [0, 1, 1, 2, 3, 3]));
    expect(doubled[0]!.moves).toEqual([]);
  });

  it('knows empty slots, more GPUs and experts that nobody holds', async () => {
    const before = view(1, 2, [0, -1]);
    const after = view(2, 2, [0, -1, 0, 1]);
    expect((await movesBetween(before, after))[0]!.moves).toEqual([
      { expert: 0, toGpu: 1, fromGpus: [0] },
      { expert: 1, toGpu: 1, fromGpus: [] },
    ]);
  });

  it('takes placements of fewer GPUs than the topology, layer by layer', async () => {
    const before = view(2, 1, [0, 1], [1, 0]);
    const after = view(2, 1, [1, 0], [1, 0]);
    const moves = await movesBetween(before, after, { gpus: 4, sources: 1, commCost: new Float64Array(4) });
    expect(moves.map((layer) => layer.moves.length)).toEqual([2, 0]);
  });
});

describe('mapSources', () => {
  const counts = (sources: number, ...tokens: number[]) => ({
    layers: 1,
    sources,
    experts: tokens.length / sources,
    tokens: Uint32Array.from(tokens),
  });

  it('leaves equal sources alone', () => {
    const given = counts(2, 1, 2, 3, 4);
    expect(mapSources(given, 2, true)).toEqual({ tokens: given.tokens, note: undefined });
  });

  it('spreads a source over a block, losing nothing', () => {
    const { tokens, note } = mapSources(counts(2, 5, 4, 1, 0), 4, true);
    expect([...tokens]).toEqual([3, 2, 2, 2, 1, 0, 0, 0]);
    expect(note).toContain('2 sources, the topology 4');
    expect(note).toContain('block of 2');
  });

  it('deals remainders round the ranks', () => {
    // One token of each of four experts over four ranks: each rank gets one, no rank gets all.
    const { tokens } = mapSources(counts(1, 1, 1, 1, 1), 4, true);
    for (let rank = 0; rank < 4; rank++) {
      expect([...tokens.subarray(rank * 4, rank * 4 + 4)].reduce((sum, value) => sum + value, 0)).toBe(1);
    }
  });

  it('adds a block of sources up', () => {
    const { tokens, note } = mapSources(counts(4, 1, 2, 3, 4, 5, 6, 7, 8), 2, true);
    expect([...tokens]).toEqual([4, 6, 12, 14]);
    expect(note).toContain('added up');
  });

  it('takes the mean where the counts have no sources, and says so', () => {
    const { tokens, note } = mapSources(counts(1, 8, 4), 4, false);
    expect([...tokens]).toEqual([2, 1, 2, 1, 2, 1, 2, 1]);
    expect(note).toContain('do not say which source');
  });

  it('refuses what blocks cannot do, and sums beyond 32 bits', () => {
    expect(() => mapSources(counts(3, 1, 1, 1), 4, true)).toThrow(InputError);
    expect(() => mapSources(counts(2, 4294967295, 1), 1, true)).toThrow(/below 2\^32/);
  });
});
