/**
 * How long does it take to find out which engines have how much of a prompt cached, and to take their events in? For prompts and
 * fleets of several sizes; a few engines hold the whole prompt, the others ever shorter prefixes of it.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { encode } from '@msgpack/msgpack';
import { decodeKvEvents, KvBlockIndex } from '../../lib/index.js';
import { type Findings, median, type RunOptions, type Table } from '../harness.js';
import { Random } from '../random.js';

export const name = 'dispatch-cached';
export const question = 'how long does a look at the KV caches of a fleet take?';

const TARGET_MS = 2;
const VOCABULARY = 150_000;

interface Shape {
  promptTokens: number;
  engines: number;
  blockSize: number;
}

/** The last one is that of the target. */
const SHAPES: Shape[] = [
  { promptTokens: 2048, engines: 8, blockSize: 16 },
  { promptTokens: 32_768, engines: 8, blockSize: 16 },
  { promptTokens: 32_768, engines: 512, blockSize: 16 },
  { promptTokens: 32_768, engines: 64, blockSize: 1 },
  { promptTokens: 32_768, engines: 64, blockSize: 16 },
];

interface Row extends Shape {
  lookupUs: number;
  /** Of one engine's batch that stores the whole prompt: from bytes to the index. */
  batchUs: number;
  bytesPerBlock: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rows = (small ? SHAPES.slice(0, 1) : SHAPES).map((shape) => measure(shape, small, seed));
  const { lookupUs, promptTokens, engines } = rows.at(-1)!;
  return {
    tables: [tableOf(rows)],
    checks: small
      ? []
      : [
          {
            target: `< ${TARGET_MS} ms for ${promptTokens.toLocaleString('en-US')} tokens on ${engines} engines`,
            measured: `${(lookupUs / 1000).toFixed(2)} ms`,
            pass: lookupUs < 1000 * TARGET_MS,
            kind: 'time',
          },
        ],
    notes: [
      'A look: `cachedTokens` of one prompt. A batch: `decodeKvEvents` and `apply` of an event that stores all its blocks.',
      'Bytes: what the heap and typed arrays grow by, for each block of each engine, with integer hashes; half of the blocks are held by one engine alone.',
    ],
  };
}

function measure(shape: Shape, small: boolean, seed: number): Row {
  const random = new Random(seed, shape.promptTokens);
  const draw = () => random.below(VOCABULARY);
  const tokenIds = Uint32Array.from({ length: shape.promptTokens }, draw);
  const index = new KvBlockIndex({ engines: shape.engines });
  const blocks = Math.floor(shape.promptTokens / shape.blockSize);
  const before = memoryBytes();
  let held = 0;
  for (let engine = 0; engine < shape.engines; engine++) {
    const shared = Math.ceil(blocks / (1 + (engine >>> 2)));
    store(index, engine, tokenIds.subarray(0, shared * shape.blockSize), shape.blockSize, 1);
    const own = Uint32Array.from({ length: shared * shape.blockSize }, draw);
    store(index, engine, own, shape.blockSize, blocks + 1);
    held += 2 * shared;
  }
  const bytesPerBlock = (memoryBytes() - before) / held;
  const repeats = small ? 3 : 101;
  const lookupUs = timeUs(repeats, () => index.cachedTokens(tokenIds));
  const payload = encode([0, [toStored(tokenIds, shape.blockSize, 1)]], { useBigInt64: true });
  const batchUs = timeUs(repeats, () => {
    index.reset(0);
    for (const event of decodeKvEvents(payload).events) index.apply(0, event);
  });
  return { ...shape, lookupUs, batchUs, bytesPerBlock };
}

function toStored(tokenIds: Uint32Array, blockSize: number, firstHash: number) {
  const hashes = Array.from(
    { length: tokenIds.length / blockSize },
    (_, n) => (BigInt(firstHash + n) << 40n) + 1n,
  );
  return ['BlockStored', hashes, null, [...tokenIds], blockSize, null, 'GPU', null];
}

function store(
  index: KvBlockIndex,
  engine: number,
  tokenIds: Uint32Array,
  blockSize: number,
  firstHash: number,
) {
  const payload = encode([0, [toStored(tokenIds, blockSize, firstHash)]], { useBigInt64: true });
  for (const event of decodeKvEvents(payload).events) index.apply(engine, event);
}

function timeUs(repeats: number, work: () => unknown): number {
  const took = Array.from({ length: repeats }, () => {
    const began = performance.now();
    work();
    return (performance.now() - began) * 1000;
  });
  return median(took);
}

/** After collections, which a program can ask for only where the flag was set. The first may leave array buffers to the second. */
function memoryBytes(): number {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc');
  for (let n = 0; n < 3; n++) collect();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

function tableOf(rows: Row[]): Table {
  return {
    title: 'microseconds, medians; bytes',
    columns: ['prompt tokens', 'engines', 'block size', 'look µs', 'batch µs', 'bytes of a block'],
    rows: rows.map(({ promptTokens, engines, blockSize, lookupUs, batchUs, bytesPerBlock }) => [
      promptTokens,
      engines,
      blockSize,
      Math.round(lookupUs),
      Math.round(batchUs),
      // Of few blocks the difference is noise.
      promptTokens * engines >= 100_000 ? Math.round(bytesPerBlock) : '–',
    ]),
  };
}
