/** Batches of KV events: what engines write is read, in every form that they have had, and nothing else is. */
import { encode } from '@msgpack/msgpack';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GimbalError } from '../../lib/errors.js';
import { decodeKvEvents } from '../../lib/index.js';
import { MAX_PAYLOAD_BYTES } from '../../lib/telemetry/msgpack.js';
import { PROPERTY_SEED } from '../property/arbitraries.js';

/** As msgspec, the engines' library, encodes their structs. */
const WRITTEN = {
  /** Lists of few fields, as vLLM up to 0.9 and SGLang write them; 2⁶³ + 5 and −7 among the hashes. */
  old:
    '92cb3ff80000000000009496ab426c6f636b53746f7265649201cf8000000000000005c0940102030402c096ab426c6f' +
    '636b53746f72656491f90192ce0001117009020392ac426c6f636b52656d6f766564910191b0416c6c426c6f636b7343' +
    '6c6561726564',
  /** Lists of all fields, hashes as bytes, a rank. */
  mid:
    '93cb3ff8000000000000939cab426c6f636b53746f72656491c420000102030405060708090a0b0c0d0e0f1011121314' +
    '15161718191a1b1c1d1e1fc092010202c0a3475055c0c0c0c0c094ac426c6f636b52656d6f76656491c4200001020304' +
    '05060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa3475055c091b0416c6c426c6f636b73436c656172' +
    '656403',
  /** Maps; an adapter, and what else the blocks hang on. */
  new:
    '83a27473cb3ff8000000000000a66576656e7473938ba474797065ab426c6f636b53746f726564ac626c6f636b5f6861' +
    '7368657392cfffffffffffffffff0cb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f69647394010203' +
    '04aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65a373716caa' +
    '65787472615f6b6579739291a373716c93a373716cc420000102030405060708090a0b0c0d0e0f101112131415161718' +
    '191a1b1c1d1e1fcf0000010000000000a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66' +
    '756c6c5f617474656e74696f6e84a474797065ac426c6f636b52656d6f766564ac626c6f636b5f686173686573910ca6' +
    '6d656469756da3475055a967726f75705f6964780081a474797065b0416c6c426c6f636b73436c6561726564b2646174' +
    '615f706172616c6c656c5f72616e6b00',
  /** A list of maps. */
  mix:
    '93cb3ff8000000000000918ba474797065ab426c6f636b53746f726564ac626c6f636b5f686173686573910cb1706172' +
    '656e745f626c6f636b5f6861736809a9746f6b656e5f696473920506aa626c6f636b5f73697a6502a76c6f72615f6964' +
    'c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800b2' +
    '6b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e01',
};
const BYTES = Buffer.from(Uint8Array.from({ length: 32 }, (_, n) => n)).toString('latin1');

const read = (hex: string) => decodeKvEvents(Buffer.from(hex, 'hex'), 'a publisher');
const pack = (value: unknown) => Buffer.from(encode(value, { useBigInt64: true })).toString('hex');
const batch = (...events: unknown[]) => pack([1.5, events]);
const format = (field: string, more: object = {}) =>
  expect.objectContaining({ code: 'GIMBAL_FORMAT', field: `a publisher${field}`, ...more });

describe('decodeKvEvents', () => {
  it('reads lists of few fields', () => {
    expect(read(WRITTEN.old)).toEqual({
      events: [
        { kind: 'stored', hashes: [1n, 2n ** 63n + 5n], tokenIds: [1, 2, 3, 4], blockSize: 2 },
        { kind: 'stored', hashes: [-7n], parent: 1n, tokenIds: [70_000, 9], blockSize: 2, lora: '#3' },
        { kind: 'removed', hashes: [1n] },
        { kind: 'cleared' },
      ],
      unknownEvents: 0,
    });
  });

  it('reads hashes that are bytes, and where blocks lie', () => {
    expect(read(WRITTEN.mid).events).toEqual([
      { kind: 'stored', hashes: [BYTES], tokenIds: [1, 2], blockSize: 2, medium: 'GPU' },
      { kind: 'removed', hashes: [BYTES], medium: 'GPU' },
      { kind: 'cleared' },
    ]);
  });

  it('reads maps, and lists of maps', () => {
    expect(read(WRITTEN.new).events).toEqual([
      {
        kind: 'stored',
        hashes: [2n ** 64n - 1n, 12n],
        tokenIds: [1, 2, 3, 4],
        blockSize: 2,
        lora: 'sql',
        medium: 'GPU',
        group: 0,
        groupKind: 'full_attention',
        // The adapter, which is told by itself, is left out.
        extras: [undefined, `["${Buffer.from(BYTES, 'latin1').toString('hex')}","1099511627776n"]`],
      },
      { kind: 'removed', hashes: [12n], medium: 'GPU', group: 0 },
      { kind: 'cleared' },
    ]);
    expect(read(WRITTEN.mix).events).toEqual([
      {
        kind: 'stored',
        hashes: [12n],
        parent: 9n,
        tokenIds: [5, 6],
        blockSize: 2,
        medium: 'GPU',
        group: 0,
        groupKind: 'full_attention',
        extras: [undefined],
      },
    ]);
  });

  it('has one name for a hash, whatever the integer is encoded as', () => {
    const names = [12, 12n].map((hash) => read(batch(['BlockRemoved', [hash]])).events[0]);
    expect(names[0]).toEqual(names[1]);
  });

  it('counts events of kinds that it does not know, and reads the others', () => {
    const load = ['LoadStat', 3, 4, null];
    expect(read(batch(load, { type: 'BlockMoved' }, ['AllBlocksCleared']))).toEqual({
      events: [{ kind: 'cleared' }],
      unknownEvents: 2,
    });
  });

  it('takes token ids that are no plain ids for none', () => {
    for (const tokenIds of [[[1, 2]], [-1], [2 ** 32], [2n ** 40n], ['a'], [0.5], [null]]) {
      const [event] = read(batch(['BlockStored', [1], null, tokenIds, 1, null])).events;
      expect(event).toEqual({ kind: 'stored', hashes: [1n], blockSize: 1 });
    }
  });

  const stored = (change: object) =>
    batch({ type: 'BlockStored', block_hashes: [1], token_ids: [1], block_size: 1, ...change });
  it.each<[string, string, string]>([
    ['a text', pack('x'), ': batch'],
    ['nothing', pack(null), ': batch'],
    ['bytes', pack(new Uint8Array(3)), ': batch'],
    ['a batch without events', pack([1.5]), ': batch, events'],
    ['a map without events', pack({ ts: 1.5 }), ': batch, events'],
    ['events that are no list', pack([1.5, 7]), ': batch, events'],
    ['an event that is a number', batch(['AllBlocksCleared'], 7), ': event 1'],
    ['an event without a kind', batch([]), ': event 0, type'],
    ['a kind that is a number', batch([3]), ': event 0, type'],
    ['no hashes', stored({ block_hashes: null }), ': event 0, block_hashes'],
    ['a hash that is a text', stored({ block_hashes: ['x'] }), ': event 0, block_hashes'],
    ['a hash that is a fraction', stored({ block_hashes: [1.5] }), ': event 0, block_hashes'],
    ['a hash of no bytes', stored({ block_hashes: [new Uint8Array(0)] }), ': event 0, block_hashes'],
    ['a hash of 65 bytes', stored({ block_hashes: [new Uint8Array(65)] }), ': event 0, block_hashes'],
    ['a parent that is a list', stored({ parent_block_hash: [1] }), ': event 0, parent_block_hash'],
    ['no tokens', stored({ token_ids: null }), ': event 0, token_ids'],
    ['no block size', stored({ block_size: null }), ': event 0, block_size'],
    ['blocks of nothing', stored({ block_size: 0 }), ': event 0, block_size'],
    ['blocks beyond all', stored({ block_size: 2 ** 20 }), ': event 0, block_size'],
    ['an adapter that is a number', stored({ lora_name: 5 }), ': event 0, lora_name'],
    ['a medium that is a number', stored({ medium: 5 }), ': event 0, medium'],
    ['half a group', stored({ group_idx: 0.5 }), ': event 0, group_idx'],
    ['a kind of group that is a list', stored({ kv_cache_spec_kind: [] }), ': event 0, kv_cache_spec_kind'],
    ['extra keys that are a number', stored({ extra_keys: 5 }), ': event 0, extra_keys'],
    ['a removal of nothing', batch(['BlockRemoved']), ': event 0, block_hashes'],
    ['a map with a prototype', '81a95f5f70726f746f5f5f01', ''],
    ['no byte', '', ': byte 0'],
    ['a byte that is not used', '91c1', ': byte 1'],
    ['bytes that are left over', `${batch()}00`, ': byte 11'],
  ])('refuses %s', (_, hex, where) => {
    expect(() => read(hex)).toThrow(format(where));
  });

  it('refuses every batch that is cut off', () => {
    for (const hex of Object.values(WRITTEN)) {
      for (let bytes = 0; bytes < hex.length / 2; bytes++) {
        expect(() => read(hex.slice(0, 2 * bytes)), `after ${bytes} bytes`).toThrow(
          expect.objectContaining({ code: 'GIMBAL_FORMAT' }),
        );
      }
    }
  });

  it('allocates nothing from a claim, and refuses what is nested or long beyond all', () => {
    const claims = ['ddffffffff', 'dfffffffff', 'c6ffffffff', 'dbffffffff', 'c9ffffffff01', 'dcffff'];
    for (const claim of claims) expect(() => read(`92c0${claim}00`)).toThrow(/no more values|the end/);
    // Each level claims no more than what is left, and all together do.
    const nested = Buffer.concat(Array.from({ length: 6 }, () => Buffer.from('dd00000400', 'hex')));
    expect(() => decodeKvEvents(Buffer.concat([nested, Buffer.alloc(2000)]))).toThrow(/no more values/);
    expect(() => read('91'.repeat(100).concat('c0'))).toThrow(/at most 8 levels/);
    const long = Buffer.alloc(MAX_PAYLOAD_BYTES + 1);
    expect(() => decodeKvEvents(long)).toThrow(/at most 16777216 bytes/);
  });

  it('gives an answer or a GimbalError, whatever is changed in a batch', () => {
    const change = fc.record({
      hex: fc.constantFrom(...Object.values(WRITTEN)),
      at: fc.double({ min: 0, max: 1, noNaN: true }),
      cut: fc.nat(3),
      put: fc.uint8Array({ maxLength: 4 }),
    });
    const property = fc.property(change, ({ hex, at, cut, put }) => {
      const bytes = Buffer.from(hex, 'hex');
      const from = Math.floor(at * bytes.length);
      try {
        decodeKvEvents(Buffer.concat([bytes.subarray(0, from), put, bytes.subarray(from + cut)]));
      } catch (error) {
        if (!(error instanceof GimbalError)) throw error;
        expect(error.code).toBe('GIMBAL_FORMAT');
      }
    });
    fc.assert(property, { seed: PROPERTY_SEED, numRuns: 3000 });
  });

  it('takes every kind of value that MessagePack has', () => {
    // Among the extra keys, where anything may stand. Extensions: a time, which the library knows, and others.
    const values = [
      ...['00', '7f', 'e0', 'c0', 'c2', 'c3', 'cc80', 'cd0100', 'ce00010000', 'cf0000000100000000'],
      ...['d080', 'd18000', 'd280000000', 'd38000000000000000', 'ca3fc00000', 'cb3ff8000000000000'],
      ...['a161', 'd90161', 'da000161', 'db0000000161', 'c40161', 'c5000161', 'c60000000161'],
      ...['9100', 'dc000100', 'dd0000000100', '81a16100', 'de0001a16100', 'df00000001a16100'],
      ...['d40161', 'd5016161', 'd60161616161', 'd7016161616161616161', `d801${'61'.repeat(16)}`],
      ...['c7010161', 'c800010161', 'c9000000010161', 'd6ff00000000'],
    ];
    for (const value of values) {
      // Of ten fields the ninth, in a list of one list of one: ["BlockStored", [1], 1, [], 1, nil, nil, nil, [[value]], nil].
      expect(
        () => read(`92c0919aab426c6f636b53746f72656491010190${'01'}c0c0c09191${value}c0`),
        value,
      ).not.toThrow();
    }
  });
});
