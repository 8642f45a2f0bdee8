/**
 * Mutation fuzz over every reader of files: whatever the bytes, a reader returns a value of the promised shape or throws a
 * GimbalError, soon and without taking memory. The seed is printed; GIMBAL_FUZZ_SEED repeats a run, GIMBAL_FUZZ_RUNS
 * lengthens it. Mutations happen inside the containers too, with lengths and CRCs made good, so that they reach the inner
 * parsers.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { GimbalError } from '../../lib/errors.js';
import { encodePlacement, type PlacementFormat, placementFormats } from '../../lib/export/placement.js';
import { type RoutingCounts, readCounts } from '../../lib/import/counts.js';
import { type PlacementFile, readPlacement } from '../../lib/import/placement.js';
import {
  elements,
  npy,
  safetensors,
  statistic,
  temporaryFolder,
  tensor,
  torchFile,
  zip,
} from '../unit/import-fixtures.js';

const SEED = Number(process.env.GIMBAL_FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32)) >>> 0;
const RUNS = Number(process.env.GIMBAL_FUZZ_RUNS ?? 150);
// Far above the few milliseconds that any of these small files needs, so that a busy machine does not fail the test.
const MAX_MILLISECONDS = 10_000;
const MAX_BYTES_HELD = 256 * 1024 * 1024;

console.log(`formats fuzz: GIMBAL_FUZZ_SEED=${SEED} GIMBAL_FUZZ_RUNS=${RUNS}`);

type Random = (below: number) => number;

/** mulberry32: small, seeded, good enough to pick bytes. */
function randomOf(seed: number): Random {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const TOKENS = [
  '-1',
  'NaN',
  'null',
  '1e999',
  '99999999999',
  '[',
  ']',
  '{',
  '}',
  '"',
  ',',
  ':',
  '\n',
  '[[]]',
  '0.5',
  '__proto__',
  '&a',
  '*a',
  '  - ',
];
const EXTREMES = [
  [0],
  [0xff],
  [0x7f],
  [0x80],
  [0xff, 0xff, 0xff, 0xff],
  [0, 0, 0, 0],
  [0, 0, 0, 0x80],
  [0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0],
];

/** One small change, or up to four. */
function mutate(bytes: Uint8Array, random: Random): Uint8Array {
  let out = Buffer.from(bytes);
  for (let change = random(2) * random(4); change >= 0; change--) {
    const at = random(out.length + 1);
    const length = random(1 + Math.min(16, out.length - at));
    switch (random(8)) {
      case 0:
        if (at < out.length) out[at]! ^= 1 << random(8);
        break;
      case 1:
        if (at < out.length) out[at] = random(256);
        break;
      case 2:
        out = out.subarray(0, at);
        break;
      case 3:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at + length)]);
        break;
      case 4:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at, at + length), out.subarray(at)]);
        break;
      case 5:
        out = Buffer.concat([
          out.subarray(0, at),
          Buffer.from(TOKENS[random(TOKENS.length)]!),
          out.subarray(at),
        ]);
        break;
      case 6:
        Buffer.from(EXTREMES[random(EXTREMES.length)]!).copy(out, at);
        break;
      default:
        if (at + 8 <= out.length) out.writeBigUInt64LE(BigInt(random(2 ** 32)) << BigInt(random(32)), at);
    }
  }
  return out;
}

const folder = temporaryFolder();
const COUNTS = [
  [
    [0, 0, 0],
    [1, 2, 3],
  ],
  [
    [0, 0, 0],
    [4, 5, 6],
  ],
];
const recording = (rank: number) => ({
  records: [
    {
      forward_pass_id: 1,
      rank,
      gatherer_key: 'primary',
      global_physical_count: tensor([
        [1, 2, 3, 4],
        [5, 6, 7, 8],
      ]),
    },
  ],
  last_physical_to_logical_map: tensor(
    [
      [0, 1, 2, 1],
      [2, 2, 1, 0],
    ],
    'i8',
  ),
});
const ROWS = [
  [0, 1, 2, 1],
  [2, 0, 1, 2],
];
const placement = {
  layers: 2,
  gpus: 2,
  slotsPerGpu: 2,
  experts: 3,
  physicalToLogical: Int32Array.from(ROWS.flat()),
  layerIds: Int32Array.of(3, 5),
};
const text = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));

/** Writes a mutated file and says what to read. */
type Source = (random: Random, name: string) => string | string[];

/** The whole file is mutated. */
const plain =
  (extension: string, bytes: Uint8Array): Source =>
  (random, name) =>
    folder.write(`${name}${extension}`, mutate(bytes, random));

const counts: Record<string, Source> = {
  npy: plain('.npy', npy(elements([1, 2, 3, 4, 5, 6], 'i8'), [2, 3], { descr: '<i8' })),
  'npy of floats': plain(
    '.npy',
    npy(elements([1, 2.5, 3, 4, 5, 6], 'f8'), [1, 2, 3], { descr: '<f8', version: 2 }),
  ),
  json: plain(
    '.json',
    text({
      tokens: [
        [
          [1, 2],
          [3, 4],
        ],
      ],
      layerIds: [3],
    }),
  ),
  'SGLang json': plain('.json', text({ logical_count: COUNTS })),
  csv: plain('.csv', text('layer,source,expert,tokens\n0,0,0,1\n0,0,1,2\n3,0,0,3\n3,0,1,4\n')),
  'stat archive': plain('.pt', torchFile({ rank: 0, logical_count: tensor(COUNTS) })),
  'stat pickle': (random, name) =>
    folder.write(
      `${name}.pt`,
      torchFile({ rank: 0, logical_count: tensor(COUNTS) }, { mutate: (pickle) => mutate(pickle, random) }),
    ),
  'stat storage, deflated': (random, name) =>
    folder.write(
      `${name}.pt`,
      torchFile(
        { rank: 0, logical_count: tensor(COUNTS) },
        {
          members: (members) =>
            members.map((m) =>
              m.name.includes('/data/') ? { ...m, data: mutate(m.data, random), deflate: true } : m,
            ),
        },
      ),
    ),
  'zip64 archive': plain(
    '.pt',
    torchFile({ rank: 0, logical_count: tensor(COUNTS) }, { zip: { zip64: true } }),
  ),
  'recording pickles': (random, name) =>
    [0, 1].map((rank) =>
      folder.write(
        `${name}_${rank}.pt`,
        torchFile(recording(rank), rank === random(2) ? { mutate: (pickle) => mutate(pickle, random) } : {}),
      ),
    ),
  'recording storages': (random, name) =>
    [0, 1].map((rank) =>
      folder.write(
        `${name}_${rank}.pt`,
        torchFile(recording(rank), {
          members: (members) =>
            members.map((m) =>
              m.name.includes('/data/') && random(3) === 0 ? { ...m, data: mutate(m.data, random) } : m,
            ),
        }),
      ),
    ),
  statistics: (random, name) => {
    mkdirSync(folder.path(name), { recursive: true });
    const meta = text({ num_experts: 3, num_experts_per_token: 2 });
    writeFileSync(folder.path(`${name}/meta_info.json`), random(4) === 0 ? mutate(meta, random) : meta);
    for (const rank of [0, 1]) {
      const bytes = safetensors({ '1_3': statistic([1, 2, 3]), '1_4': statistic([4, 5, 6]) });
      writeFileSync(
        folder.path(`${name}/rank${rank}.safetensors`),
        rank === 0 ? bytes : mutate(bytes, random),
      );
    }
    return folder.path(name);
  },
};

const exported = (format: PlacementFormat) =>
  plain(placementFormats[format].extension, encodePlacement(placement, format));
const npz = (random: Random) =>
  zip(
    [
      { name: 'phy2log.npy', data: npy(elements(ROWS.flat(), 'i8'), [2, 4], { descr: '<i8' }) },
      {
        name: 'log2phy.npy',
        data: npy(elements([0, -1, 1, 3, 2, -1, 1, -1, 2, -1, 0, 3], 'i8'), [2, 3, 2], { descr: '<i8' }),
      },
      { name: 'logcnt.npy', data: npy(elements([1, 2, 1, 1, 1, 2], 'i8'), [2, 3], { descr: '<i8' }) },
    ].map((member) => ({
      ...member,
      data: random(2) === 0 ? mutate(member.data, random) : member.data,
      deflate: random(2) === 0,
    })),
  );

const placements: Record<string, Source> = {
  ...Object.fromEntries(
    (Object.keys(placementFormats) as PlacementFormat[]).map((format) => [format, exported(format)]),
  ),
  'eplb arrays': (random, name) => folder.write(`${name}.npz`, npz(random)),
  'eplb json': plain(
    '.json',
    text({
      phy2log: ROWS,
      log2phy: [
        [
          [0, -1],
          [1, 3],
          [2, -1],
        ],
        [
          [1, -1],
          [2, -1],
          [0, 3],
        ],
      ],
      logcnt: [
        [1, 2, 1],
        [1, 1, 2],
      ],
    }),
  ),
  'eplb tensors': (random, name) =>
    folder.write(
      `${name}.pt`,
      torchFile([tensor(ROWS, 'i8')], { mutate: (pickle) => mutate(pickle, random) }),
    ),
  'sglang pickle': (random, name) =>
    folder.write(
      `${name}.pt`,
      torchFile({ physical_to_logical_map: tensor(ROWS) }, { mutate: (pickle) => mutate(pickle, random) }),
    ),
  'block yaml': plain(
    '.yml',
    text('num_slots: 2\ninitial_global_assignments:\n  3: &a\n  - 0\n  - 1\n  4: *a\n  5: [1,\n    0]\n'),
  ),
};

/** Returned values must keep their promises; a GimbalError must say something. */
function checkCounts(value: RoutingCounts): void {
  expect(value.tokens).toBeInstanceOf(Uint32Array);
  expect(value.tokens.length).toBe(value.layers * value.sources * value.experts);
  if (value.layerIds !== undefined) expect(value.layerIds.length).toBe(value.layers);
}

function checkPlacement(value: PlacementFile): void {
  expect(value.physicalToLogical.length).toBe(value.layers * value.slots);
  expect(value.physicalToLogical.every((id) => id >= -1 && id < (value.experts ?? 65536))).toBe(true);
  if (value.gpus !== undefined) expect(value.gpus * value.slotsPerGpu!).toBe(value.slots);
}

interface Outcome {
  values: number;
  errors: number;
  slowest: number;
}

async function run<T>(
  source: Source,
  salt: string,
  read: (paths: string | string[]) => Promise<T>,
  check: (value: T) => void,
): Promise<Outcome> {
  const outcome: Outcome = { values: 0, errors: 0, slowest: 0 };
  for (let i = 0; i < RUNS; i++) {
    // Each mutation has its own stream, so that one can be repeated alone.
    const random = randomOf(
      [...`${SEED}/${salt}/${i}`].reduce(
        (hash, c) => Math.imul(hash ^ c.charCodeAt(0), 16777619),
        0x811c9dc5,
      ),
    );
    const paths = source(random, salt.replace(/\W/g, '-'));
    const context = `GIMBAL_FUZZ_SEED=${SEED}, ${salt}, mutation ${i}`;
    const started = performance.now();
    try {
      check(await read(paths));
      outcome.values++;
    } catch (error) {
      if (!(error instanceof GimbalError)) throw new Error(`${context}: ${String(error)}`, { cause: error });
      expect(['GIMBAL_FORMAT', 'GIMBAL_IO'], context).toContain(error.code);
      expect(error.message.length, context).toBeLessThan(2000);
      outcome.errors++;
    }
    const elapsed = performance.now() - started;
    outcome.slowest = Math.max(outcome.slowest, elapsed);
    expect(elapsed, `${context}: time`).toBeLessThan(MAX_MILLISECONDS);
    expect(process.memoryUsage().arrayBuffers, `${context}: memory`).toBeLessThan(MAX_BYTES_HELD);
  }
  return outcome;
}

const totals = { values: 0, errors: 0, slowest: 0 };
function add(outcome: Outcome): void {
  totals.values += outcome.values;
  totals.errors += outcome.errors;
  totals.slowest = Math.max(totals.slowest, outcome.slowest);
  // A corpus that never parses, or never fails, tests nothing.
  expect(outcome.errors).toBeGreaterThan(0);
}
afterAll(() => {
  console.log(
    `formats fuzz: ${totals.values} values, ${totals.errors} errors, slowest ${totals.slowest.toFixed(1)} ms`,
  );
  expect(totals.values).toBeGreaterThan(0);
});

describe('mutated routing counts', () => {
  it.each(Object.keys(counts))(
    '%s',
    async (name) => {
      add(await run(counts[name]!, `counts ${name}`, (paths) => readCounts(paths), checkCounts));
    },
    120_000,
  );
});

describe('mutated placements', () => {
  it.each(Object.keys(placements))(
    '%s',
    async (name) => {
      add(
        await run(
          placements[name]!,
          `placement ${name}`,
          (path) => readPlacement(path as string),
          checkPlacement,
        ),
      );
    },
    120_000,
  );
});
