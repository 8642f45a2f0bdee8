/** The index against one that keeps every engine's prefixes as they are and compares them token by token. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KvBlockIndex, type KvBlocksStored, type KvEvent } from '../../lib/index.js';
import { blockKey, rootKey, textKey } from '../../lib/telemetry/block-keys.js';
import { KeyTable } from '../../lib/telemetry/key-table.js';
import { PROPERTY_SEED } from '../property/arbitraries.js';

const store = (hashes: number[], tokenIds: number[], more: Partial<KvBlocksStored> = {}): KvBlocksStored => ({
  kind: 'stored',
  hashes: hashes.map(BigInt),
  tokenIds,
  blockSize: tokenIds.length / hashes.length,
  ...more,
});
const remove = (hashes: number[], more: object = {}): KvEvent => ({
  kind: 'removed',
  hashes: hashes.map(BigInt),
  ...more,
});
const indexOf = (...perEngine: KvEvent[][]) => {
  const index = new KvBlockIndex({ engines: perEngine.length });
  for (const [engine, events] of perEngine.entries()) for (const event of events) index.apply(engine, event);
  return index;
};
const cached = (index: KvBlockIndex, tokenIds: number[], lora?: string) => [
  ...index.cachedTokens(tokenIds, lora === undefined ? {} : { lora }),
];

describe('KvBlockIndex', () => {
  it('tells the longest prefix of each engine, in tokens', () => {
    const index = indexOf(
      [store([1, 2, 3], [1, 2, 3, 4, 5, 6])],
      [store([7], [1, 2]), store([8], [3, 4], { parent: 7n })],
      [store([9], [9, 9])],
      [],
    );
    expect(cached(index, [1, 2, 3, 4, 5, 6, 7])).toEqual([6, 4, 0, 0]);
    expect(cached(index, [1, 2, 3, 9, 5, 6, 7])).toEqual([2, 2, 0, 0]);
    expect(cached(index, [9, 9, 3])).toEqual([0, 0, 2, 0]);
    expect(index.cachedTokens(Uint32Array.of(1, 2, 3, 4, 5, 6, 7))).toEqual(Uint32Array.of(6, 4, 0, 0));
    expect(cached(index, [])).toEqual([0, 0, 0, 0]);
  });

  it('leaves out the block with the last token, which is computed in any case', () => {
    const index = indexOf([store([1, 2], [1, 2, 3, 4])]);
    expect(cached(index, [1, 2, 3, 4])).toEqual([2]);
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([4]);
  });

  it('counts up to the first block that is gone, and on again once it is back', () => {
    const index = indexOf([store([1, 2, 3], [1, 2, 3])]);
    index.apply(0, remove([2]));
    expect(cached(index, [1, 2, 3, 4])).toEqual([1]);
    index.apply(0, store([2], [2], { parent: 1n }));
    expect(cached(index, [1, 2, 3, 4])).toEqual([3]);
    index.apply(0, { kind: 'cleared' });
    expect(cached(index, [1, 2, 3, 4])).toEqual([0]);
    expect(index.blocks(0).blocks).toBe(0);
  });

  it('does not place what comes after a block that is not known, or comes without tokens', () => {
    const index = indexOf([
      store([5], [5, 6], { parent: 4n }),
      store([6], [7, 8], { parent: 5n }),
      { kind: 'stored', hashes: [1n, 2n], blockSize: 2 },
      store([3], [1], { blockSize: 2 }),
      remove([77]),
    ]);
    expect(cached(index, [5, 6, 7])).toEqual([0]);
    expect(index.blocks(0)).toEqual({ blocks: 0, unplacedBlocks: 5, ignoredBlocks: 0, refusedBlocks: 0 });
  });

  it('keeps engines with blocks of different sizes apart', () => {
    const index = indexOf(
      [store([1, 2], [1, 2, 3, 4])],
      [store([1], [1, 2, 3, 4])],
      [store([1, 2, 3], [1, 2, 3])],
    );
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([4, 4, 3]);
    // One engine's blocks are of one size, until it begins anew.
    index.apply(0, store([9], [7]));
    expect(cached(index, [7, 8])).toEqual([0, 0, 0]);
    expect(index.blocks(0)).toMatchObject({ blocks: 2, unplacedBlocks: 1 });
    index.reset(0);
    index.apply(0, store([9], [7]));
    expect(cached(index, [7, 8])).toEqual([1, 0, 0]);
  });

  it('keeps adapters apart, and what hangs on more than tokens', () => {
    const index = indexOf(
      [store([1, 2], [1, 2, 3, 4], { lora: 'sql' })],
      [store([1, 2], [1, 2, 3, 4], { extras: [undefined, '["a picture"]'] })],
      [store([1], [1, 2], { extras: ['["a salt"]'] }), store([2], [3, 4], { parent: 1n })],
    );
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([0, 2, 0]);
    expect(cached(index, [1, 2, 3, 4, 5], 'sql')).toEqual([4, 0, 0]);
    expect(cached(index, [1, 2, 3, 4, 5], 'other')).toEqual([0, 0, 0]);
  });

  it('counts what lies on the GPU only', () => {
    const index = indexOf([
      store([1], [1, 2], { medium: 'GPU' }),
      store([2], [3, 4], { parent: 1n, medium: 'CPU' }),
      remove([1], { medium: 'CPU' }),
    ]);
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([2]);
    expect(index.blocks(0)).toMatchObject({ blocks: 1, ignoredBlocks: 2 });
    index.apply(0, remove([1], { medium: 'GPU' }));
    expect(cached(index, [1, 2, 3])).toEqual([0]);
  });

  it('goes by one group of layers, of those that keep whole prefixes', () => {
    const groupKind = 'full_attention';
    const index = indexOf([
      store([1], [1, 2], { group: 0, groupKind: 'sliding_window' }),
      store([1, 2], [1, 2, 3, 4], { group: 1, groupKind }),
      store([1], [1, 2], { group: 2, groupKind }),
      remove([1], { group: 0 }),
      remove([2], { group: 2 }),
    ]);
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([4]);
    index.apply(0, remove([2], { group: 1 }));
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([2]);
    // Whatever comes first after a reset.
    index.reset(0);
    index.apply(0, store([1], [1, 2], { group: 2, groupKind }));
    expect(cached(index, [1, 2, 3])).toEqual([2]);
    for (const [kind, tokens] of [
      ['mla_attention', 1],
      ['sink_full_attention', 1],
      ['sliding_window_mla', 0],
      ['mamba', 0],
    ] as const) {
      expect(cached(indexOf([store([1], [1], { groupKind: kind })]), [1, 2]), kind).toEqual([tokens]);
    }
  });

  it('takes no more blocks of an engine than it may, and goes on with those it has', () => {
    const index = new KvBlockIndex({ engines: 2, maxBlocks: 2 });
    for (const engine of [0, 1]) index.apply(engine, store([1, 2, 3, 4], [1, 2, 3, 4]));
    expect(cached(index, [1, 2, 3, 4, 5])).toEqual([2, 2]);
    expect(index.blocks(1)).toMatchObject({ blocks: 2, refusedBlocks: 2 });
    index.apply(1, store([1], [1]));
    index.apply(1, remove([2]));
    index.apply(1, store([9], [7]));
    expect(cached(index, [7, 8])).toEqual([0, 1]);
  });

  it('has room for many engines and blocks, and for as many again', () => {
    const index = new KvBlockIndex({ engines: 70 });
    const tokenIds = Array.from({ length: 5000 }, (_, n) => n);
    for (let round = 0; round < 3; round++) {
      for (const engine of [0, 31, 32, 63, 64, 69]) {
        const length = 1000 + 50 * engine;
        index.apply(engine, store(tokenIds.slice(0, length), tokenIds.slice(0, length)));
      }
      const told = index.cachedTokens(tokenIds);
      expect([0, 31, 32, 63, 64, 69].map((engine) => told[engine])).toEqual([
        1000, 2550, 2600, 4150, 4200, 4450,
      ]);
      expect(told.reduce((sum, tokens) => sum + tokens, 0)).toBe(18_950);
      for (let engine = 0; engine < 70; engine++) index.reset(engine);
      expect(index.cachedTokens(tokenIds).every((tokens) => tokens === 0)).toBe(true);
    }
  });

  it('refuses what is wrong', () => {
    const invalid = (field: string) => expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field });
    expect(() => new KvBlockIndex({ engines: 0 })).toThrow(invalid('options.engines'));
    expect(() => new KvBlockIndex({ engines: 65_537 })).toThrow(invalid('options.engines'));
    expect(() => new KvBlockIndex({ engines: 1, maxBlocks: 0 })).toThrow(invalid('options.maxBlocks'));
    expect(() => new KvBlockIndex({ engines: 1, blocks: 1 } as never)).toThrow(invalid('options.blocks'));
    const index = new KvBlockIndex({ engines: 1 });
    expect(() => index.apply(1, { kind: 'cleared' })).toThrow(invalid('engine'));
    expect(() => index.reset(-1)).toThrow(invalid('engine'));
    expect(() => index.blocks(0.5)).toThrow(invalid('engine'));
    expect(() => index.cachedTokens('abc' as never)).toThrow(invalid('tokenIds'));
    expect(() => index.cachedTokens([1], { Lora: 'a' } as never)).toThrow(invalid('options.Lora'));
  });

  it('tells what an index of plain lists tells, whatever happens', () => {
    fc.assert(fc.property(histories, checkHistory), { seed: PROPERTY_SEED, numRuns: 200 });
  });
});

// ---- the plain index

const ENGINES = 3;
const MOST_BLOCKS = 12;
/** Few tokens and hashes, so that prefixes meet and hashes come again with other content. */
const token = fc.nat(1);
const hash = fc.integer({ min: 1, max: 14 });
const lora = fc.constantFrom(undefined, undefined, 'sql');
const rarely = <T>(value: T) =>
  fc.oneof({ weight: 6, arbitrary: fc.constant(undefined) }, fc.constant(value));

const stored = fc.record({
  kind: fc.constant('stored' as const),
  engine: fc.nat(ENGINES - 1),
  hashes: fc.uniqueArray(hash, { minLength: 1, maxLength: 3 }),
  parent: fc.option(hash, { nil: undefined }),
  tokens: fc.array(token, { minLength: 9, maxLength: 9 }),
  blockSize: fc.integer({ min: 1, max: 2 }),
  lora,
  medium: rarely('CPU'),
  extra: rarely('["salt"]'),
});
const removed = fc.record({
  kind: fc.constant('removed' as const),
  engine: fc.nat(ENGINES - 1),
  hashes: fc.array(hash, { maxLength: 3 }),
  medium: rarely('CPU'),
});
const cleared = fc.record({ kind: fc.constant('cleared' as const), engine: fc.nat(ENGINES - 1) });
const step = fc.oneof({ weight: 10, arbitrary: stored }, { weight: 4, arbitrary: removed }, cleared);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
const histories = fc.record({
  steps: fc.array(step, { minLength: 5, maxLength: 60 }),
  prompts: fc.array(fc.array(token, { maxLength: 9 }), { minLength: 8, maxLength: 8 }),
});

/** What a block stands for: all tokens up to its end, and what else it hangs on. */
interface PlainBlock {
  tokens: number[];
  blockSize: number;
  lora: string | undefined;
  extras: string;
}

class PlainEngine {
  byHash = new Map<number, PlainBlock>();
  held = new Set<string>();
  blockSize: number | undefined;

  apply(given: Step): void {
    if (given.kind === 'cleared') {
      this.byHash.clear();
      this.held.clear();
      this.blockSize = undefined;
    } else if (given.medium !== 'CPU') {
      if (given.kind === 'removed') for (const name of given.hashes) this.drop(name);
      else this.store(given);
    }
  }

  store({
    hashes,
    parent,
    tokens,
    blockSize,
    lora: adapter,
    extra,
  }: Extract<Step, { kind: 'stored' }>): void {
    this.blockSize ??= blockSize;
    const before = parent === undefined ? undefined : this.byHash.get(parent);
    if (blockSize !== this.blockSize || (parent !== undefined && before === undefined)) return;
    let last = before ?? { tokens: [], blockSize, lora: adapter, extras: '' };
    for (const [n, name] of hashes.entries()) {
      last = {
        ...last,
        tokens: [...last.tokens, ...tokens.slice(n * blockSize, (n + 1) * blockSize)],
        extras: `${last.extras},${extra ?? ''}`,
      };
      if (this.byHash.size >= MOST_BLOCKS && !this.byHash.has(name)) return;
      if (JSON.stringify(this.byHash.get(name)) !== JSON.stringify(last)) this.drop(name);
      this.byHash.set(name, last);
      this.held.add(JSON.stringify(last));
    }
  }

  drop(name: number): void {
    const block = this.byHash.get(name);
    this.byHash.delete(name);
    if (block !== undefined) this.held.delete(JSON.stringify(block));
  }

  cachedTokens(prompt: number[], adapter: string | undefined): number {
    let most = 0;
    for (const blockSize of [1, 2]) {
      let extras = '';
      for (let end = blockSize; end < prompt.length; end += blockSize) {
        extras += ',';
        const block: PlainBlock = { tokens: prompt.slice(0, end), blockSize, lora: adapter, extras };
        if (!this.held.has(JSON.stringify(block))) break;
        most = Math.max(most, end);
      }
    }
    return most;
  }
}

function toEvent(given: Step): KvEvent {
  if (given.kind === 'cleared') return given;
  const { kind, medium } = given;
  const hashes = given.hashes.map(BigInt);
  const at = medium === undefined ? {} : { medium };
  if (kind === 'removed') return { kind, hashes, ...at };
  const { parent, tokens, blockSize, lora: adapter, extra } = given;
  return {
    kind,
    hashes,
    blockSize,
    tokenIds: tokens.slice(0, hashes.length * blockSize),
    ...at,
    ...(parent === undefined ? {} : { parent: BigInt(parent) }),
    ...(adapter === undefined ? {} : { lora: adapter }),
    ...(extra === undefined ? {} : { extras: hashes.map(() => extra) }),
  };
}

function checkHistory({ steps, prompts }: { steps: Step[]; prompts: number[][] }): void {
  const index = new KvBlockIndex({ engines: ENGINES, maxBlocks: MOST_BLOCKS });
  const plain = Array.from({ length: ENGINES }, () => new PlainEngine());
  for (const given of steps) {
    index.apply(given.engine, toEvent(given));
    plain[given.engine]!.apply(given);
    for (const adapter of [undefined, 'sql']) {
      for (const prompt of prompts) {
        expect(cached(index, prompt, adapter)).toEqual(
          plain.map((engine) => engine.cachedTokens(prompt, adapter)),
        );
      }
    }
    expect(plain.map((_, engine) => index.blocks(engine).blocks)).toEqual(
      plain.map(({ byHash }) => byHash.size),
    );
  }
}

describe('keys of blocks', () => {
  it('are different where anything before or within is, however alike', () => {
    const keys = new Set<number>();
    let made = 0;
    const note = (key: number) => {
      keys.add(key);
      made += 1;
      return key;
    };
    // Blocks of one token, of many alike ones, runs of equal tokens, and one deep chain.
    const root = note(rootKey(16, undefined));
    for (let id = 0; id < 60_000; id++) note(blockKey(root, [id], 0, 1));
    for (let id = 0; id < 30_000; id++) note(blockKey(root, [id & 255, 0, 0, id >>> 8], 0, 4));
    // Four zeros were there before.
    for (let length = 5; length < 3000; length++) note(blockKey(root, new Uint32Array(length), 0, length));
    for (let n = 0, key = root; n < 60_000; n++) key = note(blockKey(key, [7, 7], 0, 2));
    for (let n = 0; n < 30_000; n++) note(textKey(root, `salt ${n}`));
    for (let size = 1; size < 200; size++) if (size !== 16) note(rootKey(size, undefined));
    for (const adapter of ['', 'a', 'b']) note(rootKey(16, adapter));
    expect(keys.size).toBe(made);
    expect([...keys].every((key) => Number.isSafeInteger(key) && key >= 0)).toBe(true);
  });

  it('use all their bits evenly', () => {
    const ones = new Uint32Array(53);
    const keys = 20_000;
    for (let id = 0; id < keys; id++) {
      const key = BigInt(blockKey(0, [id], 0, 1));
      for (let bit = 0; bit < 53; bit++) ones[bit]! += Number((key >> BigInt(bit)) & 1n);
    }
    // Seven standard deviations.
    for (const count of ones) expect(Math.abs(count - keys / 2)).toBeLessThan(7 * Math.sqrt(keys / 4));
  });
});

describe('KeyTable', () => {
  it('holds what a Map holds, whatever is added and deleted, also where keys meet in one slot', () => {
    // Low bits that are equal or next to each other, at both ends of the table, and high bits that tell them apart.
    const key = fc.record({ low: fc.constantFrom(0, 1, 2, 5, 2045, 2046, 2047), high: fc.nat(9) });
    const steps = fc.array(key, { maxLength: 300 });
    const property = fc.property(steps, (all) => {
      const [table, map] = [new KeyTable(), new Map<number, number>()];
      for (const [n, { low, high }] of all.entries()) {
        const one = high * 2 ** 32 + low;
        if (map.delete(one)) {
          table.delete(one);
        } else {
          map.set(one, n);
          table.add(one, n);
        }
        expect(table.size).toBe(map.size);
        for (let h = 0; h < 10; h++)
          expect(table.get(h * 2 ** 32 + low)).toBe(map.get(h * 2 ** 32 + low) ?? -1);
      }
      for (const [one, value] of map) expect(table.get(one)).toBe(value);
    });
    fc.assert(property, { seed: PROPERTY_SEED, numRuns: 60 });
  });

  it('grows, and keeps what it has', () => {
    const table = new KeyTable();
    for (let n = 0; n < 20_000; n++) table.add(blockKey(0, [n], 0, 1), n);
    for (let n = 0; n < 20_000; n += 2) table.delete(blockKey(0, [n], 0, 1));
    expect(table.size).toBe(10_000);
    for (let n = 0; n < 20_000; n++) expect(table.get(blockKey(0, [n], 0, 1))).toBe(n % 2 === 0 ? -1 : n);
  });
});
