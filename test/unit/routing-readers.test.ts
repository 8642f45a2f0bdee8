/** What brings routing to the statistics: vLLM's field, counts that are pushed, and recorders' dumps. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodePushedCounts,
  encodePushedCounts,
  GimbalError,
  type PushedCounts,
  RoutingStatistics,
  readCounts,
  readRoutedExperts,
} from '../../lib/index.js';
import { PROPERTY_SEED as SEED } from '../property/arbitraries.js';
import { elements, expectFailure, npy, temporaryFolder, tensor, torchFile } from './import-fixtures.js';

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');

describe('readRoutedExperts', () => {
  const IDS = Array.from({ length: 3 * 4 * 2 }, (_, i) => (i * 5) % 120);
  const SHAPE = [3, 4, 2];

  it.each([
    ['uint8', '|u1', 'u1', false, Uint8Array],
    ['uint16', '<u2', 'u2', false, Uint16Array],
    ['uint16 of another machine', '>u2', 'u2', true, Uint16Array],
  ] as const)('reads %s, as text and as bytes', (_, descr, kind, bigEndian, type) => {
    const file = npy(elements(IDS, kind, bigEndian), SHAPE, { descr });
    for (const field of [base64(file), file, Buffer.from(file)]) {
      const routed = readRoutedExperts(field);
      expect({ ...routed, topk: [...routed.topk] }).toEqual({ topk: IDS, tokens: 3, layers: 4, k: 2 });
      expect(Object.prototype.toString.call(routed.topk)).toBe(`[object ${type.name}]`);
    }
  });

  it.each(['u1', 'u2'] as const)('puts Fortran order right (%s)', (kind) => {
    const turned: number[] = [];
    for (let k = 0; k < 2; k++)
      for (let layer = 0; layer < 4; layer++)
        for (let token = 0; token < 3; token++) turned.push(IDS[(token * 4 + layer) * 2 + k]!);
    const file = npy(elements(turned, kind), SHAPE, { descr: kind === 'u1' ? '|u1' : '<u2', fortran: true });
    expect([...readRoutedExperts(base64(file)).topk]).toEqual(IDS);
  });

  it.each(['u1', 'u2'] as const)('keeps the rows that are asked for (%s)', (kind) => {
    const file = npy(elements(IDS, kind), SHAPE, { descr: kind === 'u1' ? '|u1' : '<u2' });
    const routed = readRoutedExperts(file, { layerIds: [1, 3] });
    const expected = IDS.filter((_, i) => (i >> 1) % 4 === 1 || (i >> 1) % 4 === 3);
    expect({ ...routed, topk: [...routed.topk] }).toEqual({ topk: expected, tokens: 3, layers: 2, k: 2 });
    expect(() => readRoutedExperts(file, { layerIds: [0, 4] })).toThrow('options.layerIds[1]');
    expect(() => readRoutedExperts(file, { layerIds: [] })).toThrow('options.layerIds');
  });

  it('feeds observe; one token less than the request has is none at all for a request of one', () => {
    const statistics = new RoutingStatistics({ layers: 4, sources: 1, experts: 120, priorTokens: 0 });
    statistics.observe({
      source: 0,
      ...readRoutedExperts(npy(elements(IDS, 'u1'), SHAPE, { descr: '|u1' })),
    });
    statistics.observe({
      source: 0,
      ...readRoutedExperts(npy(elements([], 'u1'), [0, 4, 2], { descr: '|u1' })),
    });
    expect(statistics.tokensSeen).toBe(3);
    expect(statistics.counts()[IDS[2]! + 120]).toBe(1);
  });

  it.each([
    ['text that is not base64', 'ab?=', ['base64']],
    [
      'text that lacks its end',
      base64(npy(elements([1], 'u1'), [1, 1, 1], { descr: '|u1' })).slice(0, -1),
      ['base64'],
    ],
    ['bytes that are no array', base64(Buffer.from('hello world!')), ['magic']],
    ['signed ids', npy(elements([1, 2], 'i1'), [1, 1, 2], { descr: '|i1' }), ['dtype', 'i1']],
    [
      'two dimensions',
      npy(elements([1, 2], 'u1'), [1, 2], { descr: '|u1' }),
      ['[tokens, layers, k]', '[1, 2]'],
    ],
    ['no choices', npy(elements([], 'u1'), [1, 2, 0], { descr: '|u1' }), ['shape']],
    [
      'a shape beyond the bytes',
      npy(elements([1], 'u1'), [9e9, 2, 1], { descr: '|u1' }),
      ['18000000000 bytes'],
    ],
  ])('refuses %s', async (_, field, fragments) => {
    await expectFailure(() => readRoutedExperts(field), ['routed_experts', ...fragments]);
  });

  it('refuses more bytes than allowed before it decodes them, and what is no field', async () => {
    const file = npy(elements(IDS, 'u1'), SHAPE, { descr: '|u1' });
    expect(() => readRoutedExperts(base64(file), { maxBytes: 100 })).toThrow('at most 100 bytes');
    expect(() => readRoutedExperts(file, { maxBytes: 100 })).toThrow('at most 100 bytes');
    await expectFailure(() => readRoutedExperts(7 as never), ['a base64 string'], 'GIMBAL_INVALID_INPUT');
  });
});

describe('pushed counts', () => {
  const pushed: PushedCounts = {
    source: 300,
    layers: 2,
    experts: 3,
    k: 8,
    counts: Uint32Array.of(0, 1, 2, 2 ** 32 - 1, 70_000, 5),
  };

  it('have the binary form that docs/FORMATS.md describes', () => {
    const words = [0x43504d47, 1, 300, 8, 2, 3, ...pushed.counts];
    const bytes = elements(words, 'u4');
    expect(Buffer.from(bytes).subarray(0, 4).toString('latin1')).toBe('GMPC');
    expect(Buffer.compare(encodePushedCounts(pushed), bytes)).toBe(0);
    expect(decodePushedCounts(bytes)).toEqual(pushed);
    // Bytes that begin anywhere in their buffer.
    const moved = new Uint8Array(bytes.length + 1);
    moved.set(bytes, 1);
    expect(decodePushedCounts(moved.subarray(1))).toEqual(pushed);
  });

  it('have the JSON form, too', () => {
    const text = '{"version":1,"source":300,"k":8,"counts":[[0,1,2],[4294967295,70000,5]]}';
    expect(Buffer.from(encodePushedCounts(pushed, 'json')).toString()).toBe(text);
    expect(decodePushedCounts(Buffer.from(` ${text}`))).toEqual(pushed);
  });

  it('feed observeCounts', () => {
    const statistics = new RoutingStatistics({ layers: 2, sources: 2, experts: 3, priorTokens: 0 });
    const small = { ...pushed, source: 1, counts: Uint32Array.of(8, 8, 0, 1, 2, 3) };
    statistics.observeCounts(decodePushedCounts(encodePushedCounts(small)));
    expect([...statistics.counts()]).toEqual([0, 0, 0, 8, 8, 0, 0, 0, 0, 1, 2, 3]);
    expect(statistics.tokensSeen).toBe(2);
    expect(() => statistics.observeCounts(pushed)).toThrow('counts.source');
  });

  const words = (...list: number[]) => elements(list, 'u4');
  it.each([
    ['nothing', new Uint8Array(), 'header'],
    ['other bytes', words(1, 1, 0, 1, 1, 1, 0), '"GMPC"'],
    ['another version', words(0x43504d47, 2, 0, 1, 1, 1, 0), 'version'],
    ['a source beyond all', words(0x43504d47, 1, 65_536, 1, 1, 1, 0), 'source'],
    ['k of 0', words(0x43504d47, 1, 0, 0, 1, 1, 0), 'k: expected'],
    ['no layers', words(0x43504d47, 1, 0, 1, 0, 1), 'layers'],
    ['more counts than bytes', words(0x43504d47, 1, 0, 1, 4096, 16_384, 0), 'bytes for 4096 layers'],
    ['fewer counts than bytes', words(0x43504d47, 1, 0, 1, 1, 1, 0, 0), '28 bytes'],
    ['JSON of another version', '{"version":2,"source":0,"k":1,"counts":[[1]]}', 'version'],
    ['JSON without a source', '{"version":1,"k":1,"counts":[[1]]}', 'source'],
    ['JSON with other keys', '{"version":1,"source":0,"K":1,"k":1,"counts":[[1]]}', 'K'],
    ['ragged JSON', '{"version":1,"source":0,"k":1,"counts":[[1,2],[3]]}', 'counts[1]'],
    ['fractions', '{"version":1,"source":0,"k":1,"counts":[[0.5]]}', 'counts[0][0]'],
    ['2^32', '{"version":1,"source":0,"k":1,"counts":[[0,4294967296]]}', 'counts[0][1]'],
    ['a flat list', '{"version":1,"source":0,"k":1,"counts":[1]}', '[layers][experts]'],
    ['broken JSON', '{"version":1', 'valid JSON'],
  ])('are refused: %s', async (_, bytes, fragment) => {
    await expectFailure(() => decodePushedCounts(Buffer.from(bytes)), ['pushed counts', fragment]);
  });

  it('are not encoded where they could not be decoded', () => {
    expect(() => encodePushedCounts({ ...pushed, k: 33 })).toThrow('counts.k');
    expect(() => encodePushedCounts({ ...pushed, layers: 3 })).toThrow('counts.counts');
    expect(() => encodePushedCounts({ ...pushed, source: -1 })).toThrow('counts.source');
    expect(() => encodePushedCounts(pushed, 'xml' as 'json')).toThrow('form');
  });
});

describe('any bytes', () => {
  const good: [(bytes: Uint8Array) => unknown, Uint8Array][] = [
    [(bytes) => readRoutedExperts(bytes), npy(elements([1, 2, 3, 4], 'u2'), [2, 1, 2], { descr: '<u2' })],
    [
      (bytes) => readRoutedExperts(bytes, { layerIds: [0] }),
      npy(elements([1, 2], 'u1'), [1, 1, 2], { descr: '|u1' }),
    ],
    [
      decodePushedCounts,
      encodePushedCounts({ source: 1, layers: 1, experts: 2, k: 1, counts: Uint32Array.of(1, 2) }),
    ],
    [
      decodePushedCounts,
      encodePushedCounts({ source: 1, layers: 1, experts: 2, k: 1, counts: Uint32Array.of(1, 2) }, 'json'),
    ],
  ];

  it('are read or refused with a GimbalError', () => {
    const change = fc.record({ at: fc.nat(200), bytes: fc.uint8Array({ maxLength: 4 }), cut: fc.nat(4) });
    const property = fc.property(
      fc.constantFrom(...good),
      fc.array(change, { minLength: 1, maxLength: 3 }),
      ([read, bytes], changes) => {
        let mutated = Buffer.from(bytes);
        for (const { at, bytes: into, cut } of changes) {
          const place = at % (mutated.length + 1);
          mutated = Buffer.concat([mutated.subarray(0, place), into, mutated.subarray(place + cut)]);
        }
        try {
          read(mutated);
        } catch (error) {
          expect(error).toBeInstanceOf(GimbalError);
        }
      },
    );
    fc.assert(property, { seed: SEED, numRuns: 3000 });
  });
});

describe("SGLang's recorder", () => {
  const folder = temporaryFolder();
  const record = (rank: number, counts: number[][]) => ({
    records: [{ forward_pass_id: 1, rank, gatherer_key: 'primary', global_physical_count: tensor(counts) }],
    last_physical_to_logical_map: tensor(
      [
        [0, 1, 2, 1],
        [2, 2, 1, 0],
      ],
      'i8',
    ),
  });

  it('feeds the statistics with one source for each rank', async () => {
    const files = [0, 1].map((rank) =>
      folder.write(
        `r${rank}.pt`,
        torchFile(
          record(rank, [
            [1 + rank, 2, 3, 4],
            [5, 6, 7, 8 + rank],
          ]),
        ),
      ),
    );
    const table = await readCounts(files);
    const statistics = new RoutingStatistics({ layers: 2, sources: 2, experts: 3, priorTokens: 0 });
    statistics.observeTable(table, { k: 2 });
    expect([...statistics.counts()]).toEqual([1, 6, 3, 2, 6, 3, 8, 7, 11, 9, 7, 11]);
    // 26 and 27 pairs of the fuller layer.
    expect(statistics.tokensSeen).toBe(13 + 14);
  });

  it('in mode stat, which has summed over the ranks, feeds those of one source alone', async () => {
    const counts = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    const table = await readCounts(folder.write('stat.pt', torchFile({ rank: 0, logical_count: counts })));
    const one = new RoutingStatistics({ layers: 2, sources: 1, experts: 3 });
    one.observeTable(table);
    expect([...one.counts()]).toEqual([1, 2, 3, 4, 5, 6]);
    const two = new RoutingStatistics({ layers: 2, sources: 2, experts: 3 });
    expect(() => two.observeTable(table)).toThrow('summed over the ranks');
  });
});
