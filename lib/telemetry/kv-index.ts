/**
 * Which engines hold which blocks of KV cache, by what they tell of it. Blocks are known by keys of our own (block-keys.ts), so
 * that a prompt's tokens find them; an engine's own hashes lead to them, for the sake of parents and removals.
 *
 * Nothing is guessed: a block whose parent is not known counts as not there. What is told may thus be less than what is cached,
 * and is more only for as long as a removal is under way.
 */
import { types } from 'node:util';
import { checkKeys, count, describe, invalid } from '../checks.js';
import { checkEngineNumber } from '../dispatch/validate.js';
import { blockKey, rootKey, textKey } from './block-keys.js';
import { KeyTable } from './key-table.js';
import type {
  CachedTokensOptions,
  KvBlockHash,
  KvBlockIndexOptions,
  KvBlocksRemoved,
  KvBlocksStored,
  KvEngineBlocks,
  KvEvent,
} from './kv-types.js';

const DEFAULT_MAX_BLOCKS = 262_144;
/** Every block has a bit for each. */
const MOST_ENGINES = 65_536;
const FIRST_NODES = 1024;
/** What vLLM and SGLang call where a block can be used at once. From elsewhere it must be fetched, which takes its time. */
const GPU = 'GPU';

interface EngineBlocks extends Omit<KvEngineBlocks, 'blocks'> {
  /** Nodes by the engine's own hashes. */
  nodes: Map<KvBlockHash, number>;
  /** The group of layers that counts: the first that was told and keeps whole prefixes. */
  group: number | undefined;
  /** Of all its blocks: the first that was told. A look-up takes a walk for each size that there is. */
  blockSize: number | undefined;
}

/**
 * Feed it with `apply`, ask it with `cachedTokens`. A block of an engine takes about 85 bytes, in a
 * fleet of 512 engines 135, and some 50 more where its hash is 32 bytes.
 */
export class KvBlockIndex {
  readonly #maxBlocks: number;
  readonly #engines: EngineBlocks[];
  /** Words of 32 bits for a bit of each engine. */
  readonly #words: number;
  /** Nodes by key: one for each block that any engine holds. */
  readonly #nodes = new KeyTable();
  /** [nodes] */
  #keys = new Float64Array(FIRST_NODES);
  /** [nodes] Hashes of all engines that lead here. */
  #references = new Uint32Array(FIRST_NODES);
  /** [nodes] */
  #blockSizes = new Uint32Array(FIRST_NODES);
  /** [nodes][words] The engines that hold the block. */
  #holders: Uint32Array;
  readonly #free: number[] = [];
  #made = 0;
  /** Nodes of each block size that there are any of. */
  readonly #sizes = new Map<number, number>();
  /** [words] The engines that hold all blocks up to the one that is looked at. */
  readonly #alive: Uint32Array;

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option) */
  constructor(options: KvBlockIndexOptions) {
    checkKeys('options', options, ['engines', 'maxBlocks']);
    this.#maxBlocks = count('options.maxBlocks', options.maxBlocks ?? DEFAULT_MAX_BLOCKS);
    const engines = count('options.engines', options.engines);
    if (engines > MOST_ENGINES)
      throw invalid('options.engines', `at most ${MOST_ENGINES}`, describe(engines));
    this.#engines = Array.from({ length: engines }, () => ({
      unplacedBlocks: 0,
      ignoredBlocks: 0,
      refusedBlocks: 0,
      nodes: new Map(),
      group: undefined,
      blockSize: undefined,
    }));
    this.#words = Math.ceil(this.#engines.length / 32);
    this.#alive = new Uint32Array(this.#words);
    this.#holders = new Uint32Array(FIRST_NODES * this.#words);
  }

  /** Takes one event of `engine`; they must come in order. @throws GimbalError GIMBAL_INVALID_INPUT (the engine) */
  apply(engine: number, event: KvEvent): void {
    checkEngineNumber('engine', engine, this.#engines.length);
    if (event.kind === 'stored') this.#store(engine, event);
    else if (event.kind === 'removed') this.#remove(engine, event);
    else this.reset(engine);
  }

  /** The engine holds nothing, or nothing is known of it. */
  reset(engine: number): void {
    checkEngineNumber('engine', engine, this.#engines.length);
    const own = this.#engines[engine]!;
    for (const node of own.nodes.values()) this.#release(engine, node);
    own.nodes.clear();
    own.group = undefined;
    own.blockSize = undefined;
  }

  /** What is known of the engine. */
  blocks(engine: number): KvEngineBlocks {
    checkEngineNumber('engine', engine, this.#engines.length);
    const { nodes, group, blockSize, ...told } = this.#engines[engine]!;
    return { ...told, blocks: nodes.size };
  }

  /**
   * [engines] Of the prompt's tokens, how many from the first on each engine holds. Only whole blocks count, and never the one
   * with the last token, which engines compute in any case.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT
   */
  cachedTokens(tokenIds: ArrayLike<number>, options: CachedTokensOptions = {}): Uint32Array {
    if (!(Array.isArray(tokenIds) || types.isTypedArray(tokenIds))) {
      throw invalid('tokenIds', 'an array of token ids', describe(tokenIds));
    }
    checkKeys('options', options, ['lora']);
    const cached = new Uint32Array(this.#engines.length);
    for (const size of this.#sizes.keys()) this.#follow(tokenIds, size, options.lora, cached);
    return cached;
  }

  /** The prompt in blocks of one size, for as long as anybody holds them. */
  #follow(tokenIds: ArrayLike<number>, size: number, lora: string | undefined, cached: Uint32Array): void {
    const [alive, words] = [this.#alive, this.#words];
    for (let engine = 0; engine < this.#engines.length; engine++) alive[engine >>> 5]! |= 1 << (engine & 31);
    const blocks = Math.floor((tokenIds.length - 1) / size);
    let key = rootKey(size, lora);
    let block = 0;
    for (let anybody = true; anybody && block < blocks; block++) {
      key = blockKey(key, tokenIds, block * size, (block + 1) * size);
      const node = this.#nodes.get(key);
      anybody = false;
      for (let word = 0; word < words; word++) {
        const before = alive[word]!;
        const still = node < 0 ? 0 : (before & this.#holders[node * words + word]!) >>> 0;
        if (still !== before) tell(cached, word, before & ~still, block * size);
        if (still !== 0) anybody = true;
        alive[word] = still;
      }
    }
    for (let word = 0; word < words; word++) tell(cached, word, alive[word]!, block * size);
  }

  #store(engine: number, event: KvBlocksStored): void {
    const own = this.#engines[engine]!;
    const { hashes, parent, tokenIds, blockSize, lora, extras } = event;
    const group = event.group ?? 0;
    if (!isOnGpu(event.medium) || !keepsPrefixes(event.groupKind) || group !== (own.group ?? group)) {
      own.ignoredBlocks += hashes.length;
      return;
    }
    own.group = group;
    own.blockSize ??= blockSize;
    const before = parent === undefined ? undefined : own.nodes.get(parent);
    const isOrphan = parent !== undefined && before === undefined;
    if (isOrphan || blockSize !== own.blockSize || tokenIds?.length !== hashes.length * blockSize) {
      own.unplacedBlocks += hashes.length;
      return;
    }
    let key = before === undefined ? rootKey(blockSize, lora) : this.#keys[before]!;
    for (const [n, hash] of hashes.entries()) {
      key = blockKey(key, tokenIds, n * blockSize, (n + 1) * blockSize);
      const extra = extras?.[n];
      if (extra !== undefined) key = textKey(key, extra);
      if (own.nodes.size >= this.#maxBlocks && !own.nodes.has(hash)) {
        own.refusedBlocks += hashes.length - n;
        return;
      }
      this.#hold(engine, hash, key, blockSize);
    }
  }

  /** An engine that held a block twice and drops one counts as without it: too little is told rather than too much. */
  #remove(engine: number, { hashes, medium, group = 0 }: KvBlocksRemoved): void {
    const own = this.#engines[engine]!;
    if (!isOnGpu(medium) || group !== (own.group ?? group)) {
      own.ignoredBlocks += hashes.length;
      return;
    }
    for (const hash of hashes) {
      const node = own.nodes.get(hash);
      if (node === undefined) continue;
      own.nodes.delete(hash);
      this.#release(engine, node);
    }
  }

  #hold(engine: number, hash: KvBlockHash, key: number, blockSize: number): void {
    const { nodes } = this.#engines[engine]!;
    const before = nodes.get(hash);
    let node = this.#nodes.get(key);
    if (before === undefined || before !== node) {
      if (node < 0) node = this.#make(key, blockSize);
      this.#references[node]! += 1;
      nodes.set(hash, node);
      if (before !== undefined) this.#release(engine, before);
    }
    this.#holders[node * this.#words + (engine >>> 5)]! |= 1 << (engine & 31);
  }

  #release(engine: number, node: number): void {
    this.#holders[node * this.#words + (engine >>> 5)]! &= ~(1 << (engine & 31));
    this.#references[node]! -= 1;
    if (this.#references[node]! > 0) return;
    this.#nodes.delete(this.#keys[node]!);
    this.#free.push(node);
    const size = this.#blockSizes[node]!;
    const left = this.#sizes.get(size)! - 1;
    if (left === 0) this.#sizes.delete(size);
    else this.#sizes.set(size, left);
  }

  #make(key: number, blockSize: number): number {
    const node = this.#free.pop() ?? this.#made++;
    if (node >= this.#keys.length) this.#grow();
    this.#keys[node] = key;
    this.#blockSizes[node] = blockSize;
    this.#nodes.add(key, node);
    this.#sizes.set(blockSize, (this.#sizes.get(blockSize) ?? 0) + 1);
    return node;
  }

  #grow(): void {
    const twice = <T extends Float64Array | Uint32Array>(array: T): T => {
      const grown = new (array.constructor as new (length: number) => T)(2 * array.length);
      grown.set(array);
      return grown;
    };
    this.#keys = twice(this.#keys);
    this.#references = twice(this.#references);
    this.#blockSizes = twice(this.#blockSizes);
    this.#holders = twice(this.#holders);
  }
}

/** `tokens` for every engine whose bit is set, unless more is told already. */
function tell(cached: Uint32Array, word: number, bits: number, tokens: number): void {
  for (let left = bits; left !== 0; left &= left - 1) {
    const engine = word * 32 + 31 - Math.clz32(left & -left);
    if (tokens > cached[engine]!) cached[engine] = tokens;
  }
}

function isOnGpu(medium: string | undefined): boolean {
  return medium === undefined || medium.toUpperCase() === GPU;
}

/** Layers with a window or a state drop what lies behind, so their blocks say nothing of whole prefixes. */
function keepsPrefixes(groupKind: string | undefined): boolean {
  return groupKind === undefined || groupKind === 'mla_attention' || groupKind.includes('full');
}
