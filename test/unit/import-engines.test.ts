/** Routing counts as SGLang's recorder and TensorRT-LLM's statistics write them; hostile pickles and archives. */
import { existsSync, mkdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { readCounts } from '../../lib/import/counts.js';
import { tableCrc32 } from '../../lib/import/zip.js';
import {
  concat,
  crc32,
  elements,
  expectFailure,
  le,
  npy,
  pickleOf,
  RawPickle,
  safetensors,
  statistic,
  TensorFixture,
  temporaryFolder,
  tensor,
  torchFile,
  type ZipMember,
  zip,
} from './import-fixtures.js';

const folder = temporaryFolder();

/** A recording of mode stat: [steps][layers][experts]. */
const stat = (counts: number[][][], rank = 0) => ({
  rank,
  logical_count: tensor(counts),
  average_utilization_rate_over_window: null,
});

const STEPS = [
  [
    [0, 0, 0],
    [1, 2, 3],
    [4, 5, 6],
  ],
  [
    [0, 0, 0],
    [10, 20, 30],
    [40, 50, 60],
  ],
];

describe('SGLang mode stat', () => {
  it('sums over the steps and leaves out layers without experts', async () => {
    const counts = await readCounts(folder.write('stat.pt', torchFile(stat(STEPS))));
    expect(counts).toMatchObject({ layers: 2, sources: 1, experts: 3, modelLayers: 3, format: 'sglang' });
    expect([...counts.layerIds!]).toEqual([1, 2]);
    expect([...counts.tokens]).toEqual([11, 22, 33, 44, 55, 66]);
    expect(counts.notes).toContain('mode stat sums over all ranks: the counts do not tell sources apart');
    expect(counts.notes.join()).toContain('1 of 3 model layers have no traffic and were left out (0)');
  });

  it('keeps all layers where nothing was recorded', async () => {
    const counts = await readCounts(
      folder.write(
        'idle.pt',
        torchFile(
          stat([
            [
              [0, 0],
              [0, 0],
            ],
          ]),
        ),
      ),
    );
    expect(counts).toMatchObject({ layers: 2, sources: 1, experts: 2 });
    expect([...counts.layerIds!]).toEqual([0, 1]);
  });

  it('reads a big-endian file, a file without byteorder, a zip64 and a deflated one', async () => {
    const variants = [
      torchFile(stat(STEPS), { byteorder: 'big' }),
      torchFile(stat(STEPS), { byteorder: null }),
      torchFile(stat(STEPS), { zip: { zip64: true } }),
      torchFile(stat(STEPS), {
        members: (members) => members.map((member) => ({ ...member, deflate: true })),
      }),
    ];
    for (const [at, bytes] of variants.entries()) {
      const counts = await readCounts(folder.write(`variant${at}.pt`, bytes));
      expect([...counts.tokens]).toEqual([11, 22, 33, 44, 55, 66]);
    }
  });

  it('reads int64 counts, and a view with strides and an offset', async () => {
    const long = { ...stat(STEPS), logical_count: tensor(STEPS, 'i8') };
    expect([...(await readCounts(folder.write('long.pt', torchFile(long)))).tokens]).toEqual([
      11, 22, 33, 44, 55, 66,
    ]);
    // [experts][layers] in memory, after one stray element.
    const values = [99, 1, 4, 2, 5, 3, 6];
    const view = new TensorFixture('i4', values, [2, 3], { strides: [1, 2], offset: 1 });
    const counts = await readCounts(folder.write('view.pt', torchFile({ rank: 0, logical_count: view })));
    expect([...counts.tokens]).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it('adds up several dumps, and takes copies of one count once', async () => {
    const a = folder.write('dump-a.pt', torchFile(stat([[[1, 2]]])));
    const b = folder.write('dump-b.pt', torchFile(stat([[[10, 20]]])));
    const copy = folder.write('dump-c.pt', torchFile(stat([[[1, 2]]], 1)));
    expect([...(await readCounts([a, b])).tokens]).toEqual([11, 22]);
    const once = await readCounts([a, copy]);
    expect(once.sources).toBe(1);
    expect([...once.tokens]).toEqual([1, 2]);
    expect(once.notes.join()).toContain('the files of 2 ranks hold the same counts, which were taken once');
  });

  it('refuses counts that add up beyond uint32', async () => {
    const path = folder.write('over.pt', torchFile(stat([[[2 ** 31 - 1]], [[2 ** 31 - 1]], [[2]]])));
    await expectFailure(
      () => readCounts(path),
      ['over.pt', 'layer 0, source 0, expert 0', '4294967296', 'divide all counts by 2'],
    );
  });

  it.each<[string, unknown, string[]]>([
    ['a negative count', stat([[[1, -2]]]), ['logical_count, layer 0, expert 1', '-2']],
    [
      'a wrong rank of tensor',
      { rank: 0, logical_count: tensor([1, 2]) },
      ['[steps, layers, experts]', 'shape [2]'],
    ],
    [
      'a float tensor',
      { rank: 0, logical_count: tensor([[1, 2]], 'f4') },
      ['logical_count', 'integer tensor', 'f4'],
    ],
    [
      'a list for a tensor',
      { rank: 0, logical_count: [[1, 2]] },
      ['logical_count', 'a tensor', 'a list of 1'],
    ],
    ['a wrong rank', { rank: -1, logical_count: tensor([[1, 2]]) }, ['rank', '-1']],
    ['a rank of 64 bits', { rank: -(2 ** 40), logical_count: tensor([[1, 2]]) }, ['rank', '-1099511627776']],
    ['another dict', { weights: tensor([[1]]) }, ['"logical_count" or "records"', '"weights"']],
    ['no dict', tensor([[1, 2]]), ['"logical_count" or "records"', 'no dict']],
  ])('refuses %s', async (_, value, fragments) => {
    const path = folder.write('wrong.pt', torchFile(value));
    await expectFailure(() => readCounts(path), ['wrong.pt', ...fragments]);
  });
});

/** 2 layers, 4 slots for 3 experts: expert 1 of layer 0 and expert 2 of layer 1 have two slots. */
const MAP = [
  [0, 1, 2, 1],
  [2, 2, 1, 0],
];

interface Pass {
  id: number;
  counts: number[][];
}

const recording = (rank: number, passes: Pass[], map: unknown = tensor(MAP, 'i8')) => ({
  records: passes.map(({ id, counts }) => ({
    forward_pass_id: id,
    rank,
    gatherer_key: 'primary',
    global_physical_count: tensor(counts),
  })),
  last_physical_to_logical_map: map,
});

const RANKS = [
  recording(0, [
    {
      id: 7,
      counts: [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
      ],
    },
    {
      id: 8,
      counts: [
        [1, 1, 1, 1],
        [1, 1, 1, 1],
      ],
    },
  ]),
  recording(1, [
    {
      id: 7,
      counts: [
        [10, 20, 30, 40],
        [50, 60, 70, 80],
      ],
    },
  ]),
];
// By hand: layer 0 expert 1 = slots 1 and 3; layer 1 expert 2 = slots 0 and 1, expert 0 = slot 3.
const RANK_TOKENS = [2, 8, 4, 10, 60, 30, 9, 8, 13, 80, 70, 110];

describe('SGLang modes per_pass and per_token', () => {
  const write = (name: string, ranks: unknown[]) =>
    ranks.map((value, rank) => folder.write(`${name}_${rank}.pt`, torchFile(value)));

  it('makes one source of each rank, in any order of the files', async () => {
    const paths = write('pass', RANKS);
    for (const order of [paths, [...paths].reverse()]) {
      const counts = await readCounts(order);
      expect(counts).toMatchObject({ layers: 2, sources: 2, experts: 3, format: 'sglang' });
      expect([...counts.tokens]).toEqual(RANK_TOKENS);
      expect(counts.notes.join()).toContain('2 forward passes');
    }
  });

  it('reads a folder of recordings', async () => {
    mkdirSync(folder.path('recordings'));
    RANKS.forEach((value, rank) => {
      folder.write(`recordings/expert_distribution_recorder_17.5_${rank}.pt`, torchFile(value));
    });
    expect([...(await readCounts(folder.path('recordings'))).tokens]).toEqual(RANK_TOKENS);
  });

  it('counts the chosen experts where a record has no counts', async () => {
    const topk = tensor([
      [
        [0, 3],
        [1, -1],
      ],
      [
        [0, 1],
        [3, -1],
      ],
    ]);
    const record = {
      forward_pass_id: 1,
      rank: 0,
      gatherer_key: 'primary',
      input_ids: [5, 6],
      topk_ids_of_layer: topk,
      misc_objects: [],
    };
    const path = folder.write(
      'token.pt',
      torchFile({ records: [record], last_physical_to_logical_map: tensor(MAP) }),
    );
    expect([...(await readCounts(path)).tokens]).toEqual([1, 2, 0, 1, 0, 2]);
  });

  it('translates by a given placement in place of the one in the file', async () => {
    const [path] = write('given', [
      recording(
        0,
        [
          {
            id: 1,
            counts: [
              [1, 2, 3, 4],
              [5, 6, 7, 8],
            ],
          },
        ],
        null,
      ),
    ]) as [string];
    await expectFailure(
      () => readCounts(path),
      ['last_physical_to_logical_map', 'none: give it as an option'],
    );
    const physicalToLogical = {
      layers: 2,
      slots: 4,
      physicalToLogical: Int32Array.from([0, 0, 1, 1, 1, 1, 0, 0]),
    };
    expect([...(await readCounts(path, { physicalToLogical })).tokens]).toEqual([3, 7, 15, 11]);
  });

  it('sees that DeepEP low-latency recordings count arrivals, and reads them as one source', async () => {
    const paths = write('arrivals', [
      recording(0, [
        {
          id: 1,
          counts: [
            [5, 6, 0, 0],
            [1, 0, 0, 0],
          ],
        },
      ]),
      recording(1, [
        {
          id: 1,
          counts: [
            [0, 0, 7, 8],
            [0, 0, 2, 3],
          ],
        },
      ]),
    ]);
    const counts = await readCounts(paths);
    expect(counts.sources).toBe(1);
    expect([...counts.tokens]).toEqual([5, 14, 7, 3, 2, 1]);
    expect(counts.notes.join()).toContain('do not tell sources apart: read as one source');
  });

  it('says when all ranks counted the same tokens', async () => {
    const passes = [
      {
        id: 1,
        counts: [
          [1, 2, 3, 4],
          [5, 6, 7, 8],
        ],
      },
    ];
    const counts = await readCounts(write('same', [recording(0, passes), recording(1, passes)]));
    expect(counts.sources).toBe(2);
    expect(counts.notes.join()).toContain('all ranks counted the same tokens');
  });

  it('says when only one rank was given', async () => {
    const [, second] = write('one', RANKS) as [string, string];
    const counts = await readCounts(second);
    expect(counts.sources).toBe(1);
    expect(counts.notes).toContain('only rank 1 was given: it is the one source');
  });

  it.each<[string, unknown[], string[]]>([
    [
      'a set without a rank',
      [
        RANKS[0],
        recording(2, [
          {
            id: 7,
            counts: [
              [1, 1, 1, 1],
              [1, 1, 1, 1],
            ],
          },
        ]),
      ],
      ['ranks from 0 to 2', 'ranks 0, 2'],
    ],
    ['a pass given twice', [RANKS[0], RANKS[0]], ['records[0]', 'once per rank', 'pass 7/"primary" twice']],
    [
      'recordings under two placements',
      [
        RANKS[0],
        recording(
          1,
          [
            {
              id: 1,
              counts: [
                [1, 1, 1, 1],
                [1, 1, 1, 1],
              ],
            },
          ],
          tensor([
            [0, 1, 2, 0],
            [2, 2, 1, 0],
          ]),
        ),
      ],
      ['same placement as in'],
    ],
    ['a recording and a stat', [RANKS[0], stat(STEPS)], ['mode records', 'mode stat']],
    [
      'counts of another width than the placement',
      [
        recording(0, [
          {
            id: 1,
            counts: [
              [1, 2],
              [3, 4],
            ],
          },
        ]),
      ],
      ['records[0].global_physical_count', 'shape [2, 4]', '[2, 2]'],
    ],
    ['a missing layer', [recording(0, [{ id: 1, counts: [[1, 2, 3, 4]] }])], ['shape [2, 4]', '[1, 4]']],
    [
      'a negative count',
      [
        recording(0, [
          {
            id: 1,
            counts: [
              [1, 2, 3, 4],
              [5, -6, 7, 8],
            ],
          },
        ]),
      ],
      ['layer 1, expert 1', '-6'],
    ],
    [
      'a placement with an id beyond its slots',
      [
        recording(
          0,
          [
            {
              id: 1,
              counts: [
                [1, 1, 1, 1],
                [1, 1, 1, 1],
              ],
            },
          ],
          tensor([
            [0, 1, 2, 4],
            [0, 1, 2, 3],
          ]),
        ),
      ],
      ['last_physical_to_logical_map[0][3]', 'from 0 to 3', '4'],
    ],
    [
      'a placement with an absurd id',
      [recording(0, [{ id: 1, counts: [[1], [1]] }], tensor([[2 ** 40], [0]], 'i8'))],
      ['last_physical_to_logical_map[0][0]', '1099511627776'],
    ],
    [
      'no records',
      [{ records: [], last_physical_to_logical_map: tensor(MAP) }],
      ['records', 'at least one forward pass'],
    ],
    [
      'records that are no list',
      [{ records: 'x', last_physical_to_logical_map: tensor(MAP) }],
      ['records', 'a list'],
    ],
    [
      'a record without counts',
      [{ records: [{ forward_pass_id: 1, rank: 0 }], last_physical_to_logical_map: tensor(MAP) }],
      ['records[0]', 'neither'],
    ],
    [
      'a choice out of range',
      [
        {
          records: [{ forward_pass_id: 1, rank: 0, topk_ids_of_layer: tensor([[[0, 4]], [[0, 1]]]) }],
          last_physical_to_logical_map: tensor(MAP),
        },
      ],
      ['topk_ids_of_layer', 'from -1 to 3', '4'],
    ],
  ])('refuses %s', async (_, ranks, fragments) => {
    const paths = write('bad', ranks);
    await expectFailure(() => readCounts(paths), ['bad_', ...fragments]);
  });
});

describe('pickles that are more than data', () => {
  const marker = folder.path('executed');
  const touch = `touch ${marker}`;
  const call = (name: string) => concat(`c${name}\n`, '(', pickleOf(touch), 't', 'R');
  const hostile: [string, Uint8Array, string[]][] = [
    [
      'os.system by REDUCE',
      call('os\nsystem'),
      ['a reference to "os.system"', 'nothing of the file was executed'],
    ],
    [
      'posix.system beside real data',
      concat('}', '(', pickleOf('logical_count'), call('posix\nsystem'), 'u'),
      ['posix.system'],
    ],
    [
      'builtins.eval by STACK_GLOBAL',
      concat([0x8c, 8], 'builtins', [0x8c, 4], 'eval', [0x93], '(', pickleOf('1'), 't', 'R'),
      ['builtins.eval'],
    ],
    [
      'an allowed name called as a function',
      concat('ctorch\nLongStorage\n', ')', 'R'),
      ['a call of "torch.LongStorage"'],
    ],
    [
      'OrderedDict with arguments',
      concat('ccollections\nOrderedDict\n', '(', pickleOf([1]), 't', 'R'),
      ['a call of "collections.OrderedDict"'],
    ],
    ['a call of a plain value', concat(pickleOf('x'), ')', 'R'), ['another call; nothing was executed']],
    ['INST', concat('(', pickleOf(touch), 'ios\nsystem\n'), ['opcode 0x69']],
    ['OBJ', concat('(', 'ccollections\nOrderedDict\n', 'o'), ['opcode 0x6f']],
    ['NEWOBJ', concat('ccollections\nOrderedDict\n', ')', [0x81]), ['opcode 0x81']],
    [
      'BUILD, which could make a list of any length',
      concat(']', '}', pickleOf('length'), pickleOf(2 ** 31 - 1), 's', 'b'),
      ['opcode 0x62'],
    ],
    ['an extension code', concat([0x82, 1]), ['opcode 0x82']],
    [
      'a huge LONG4, which takes the square of its length',
      concat([0x8b], le(1 << 20, 4), new Uint8Array(1 << 20)),
      ['opcode 0x8b'],
    ],
    ['a persistent id of another kind', concat(pickleOf('x'), 'Q'), ['a storage reference']],
    [
      'a storage key that leaves the archive',
      concat('(', pickleOf('storage'), 'ctorch\nIntStorage\n', pickleOf('../../etc/passwd'), 't', 'Q'),
      ['a storage reference'],
    ],
  ];

  it.each(hostile)('refuses %s', async (_, body, fragments) => {
    const path = folder.write('hostile.pt', torchFile(new RawPickle(body)));
    await expectFailure(() => readCounts(path), ['hostile.pt', 'data.pkl', ...fragments]);
    expect(existsSync(marker)).toBe(false);
  });

  it('refuses a pickle outside an archive', async () => {
    const path = folder.write('bare.pt', concat([0x80, 2], call('os\nsystem'), '.'));
    await expectFailure(() => readCounts(path), ['bare.pt', 'a bare pickle, which is not read']);
    expect(existsSync(marker)).toBe(false);
  });

  it.each<[string, Uint8Array, string[]]>([
    ['an unknown protocol', concat([0x80, 9], 'N.'), ['protocol 9']],
    ['an end without STOP', concat([0x80, 2], 'N'), ['truncated']],
    [
      'a string past the end',
      concat([0x80, 2], 'X', le(1000, 4), 'abc'),
      ['1000 more bytes', '3: the file is truncated'],
    ],
    [
      'a string of 4 GiB',
      concat([0x80, 2], 'X', le(0xffffffff, 4), 'abc'),
      ['text of at most', '4294967295'],
    ],
    ['an empty stack', concat([0x80, 2], '.'), ['an empty stack']],
    ['a missing mark', concat([0x80, 2], ']', 'e', '.'), ['a mark on the stack']],
    ['an unknown memo', concat([0x80, 2], 'h', [7], '.'), ['a remembered value', '7']],
    ['appending to a dict', concat([0x80, 2], '}', '(', 'N', 'e', '.'), ['a list to append to']],
    ['a key without a value', concat([0x80, 2], '}', '(', 'N', 'u', '.'), ['pairs']],
    ['a name without an end', concat([0x80, 2], 'c', 'x'.repeat(2000)), ['a newline']],
  ])('refuses %s', async (_, pickle, fragments) => {
    const path = folder.write('broken.pt', torchFile(null, { pickle }));
    await expectFailure(() => readCounts(path), ['broken.pt', 'data.pkl', ...fragments]);
  });

  it('bounds the values of a pickle', async () => {
    // 3 MB of empty lists would become a hundred megabytes of objects, and so on.
    const pickle = concat([0x80, 2], '(', ']'.repeat(3_000_000), 't', '.');
    const path = folder.write('many.pt', torchFile(null, { pickle }));
    await expectFailure(() => readCounts(path), ['data.pkl', 'too many values']);
  }, 30_000);

  it('reads a list that refers to itself without following it', async () => {
    const pickle = concat([0x80, 2], ']', 'q', [0], 'h', [0], 'a', '.');
    await expectFailure(() => readCounts(folder.write('loop.pt', torchFile(null, { pickle }))), ['no dict']);
  });
});

describe('tensors that lie', () => {
  const view = (shape: number[], strides: number[], offset = 0) => ({
    rank: 0,
    logical_count: new TensorFixture('i4', [1, 2, 3, 4], shape, { strides, offset }),
  });
  it.each<[string, unknown, string[]]>([
    ['a shape beyond the storage', view([3, 2], [2, 1]), ['at most 4 elements', 'shape [3, 2]']],
    ['an absurd shape', view([2 ** 20, 2 ** 20], [1, 1]), ['at most 4 elements', '[1048576, 1048576]']],
    [
      'a stride of 0 that repeats one element',
      view([1000, 1000], [0, 0]),
      ['at most 4 elements', '[1000, 1000]'],
    ],
    ['a stride that leaves the storage', view([2, 2], [3, 1]), ['inside a storage of 4']],
    ['an offset that leaves the storage', view([2, 2], [2, 1], 1), ['inside a storage of 4']],
    [
      'half floats',
      { rank: 0, logical_count: new TensorFixture('i4', [1], [1, 1], { storage: 'HalfStorage' }) },
      ['logical_count', 'torch.HalfStorage'],
    ],
  ])('refuses %s', async (_, value, fragments) => {
    await expectFailure(() => readCounts(folder.write('lie.pt', torchFile(value))), ['lie.pt', ...fragments]);
  });

  it('refuses negative offsets and shapes that do not match strides', async () => {
    const negative = torchFile(view([2, 2], [2, 1], -1));
    await expectFailure(
      () => readCounts(folder.write('lie.pt', negative)),
      ['an offset, a shape and strides'],
    );
    const unequal = torchFile(view([2, 2], [1]));
    await expectFailure(
      () => readCounts(folder.write('lie.pt', unequal)),
      ['an offset, a shape and strides'],
    );
  });

  it('refuses a storage that is not in the archive', async () => {
    const bytes = torchFile(stat(STEPS), {
      members: (members) => members.filter(({ name }) => !name.includes('/data/')),
    });
    await expectFailure(
      () => readCounts(folder.write('lie.pt', bytes)),
      ['entry "archive/data/0"', 'nothing'],
    );
  });

  it('refuses to read one tensor again and again', async () => {
    // One tensor of a million elements, remembered and put into 20 records.
    const big = new TensorFixture('u1', new Array<number>(1 << 20).fill(1), [1, 1 << 20]);
    const tensors: TensorFixture[] = [];
    const first = concat(pickleOf(big, tensors), 'q', [9]);
    const record = (id: number) => ({
      forward_pass_id: id,
      rank: 0,
      global_physical_count: new RawPickle(id === 0 ? first : concat('h', [9])),
    });
    const value = {
      records: Array.from({ length: 20 }, (_, id) => record(id)),
      last_physical_to_logical_map: null,
    };
    const pickle = concat([0x80, 2], pickleOf(value, tensors), '.');
    const data = { name: 'archive/data/0', data: elements(big.values, 'u1') };
    const bytes = torchFile(null, { pickle, members: (members) => [...members, data] });
    const physicalToLogical = { layers: 1, slots: 1 << 20, physicalToLogical: new Int32Array(1 << 20) };
    await expectFailure(
      () => readCounts(folder.write('shared.pt', bytes), { physicalToLogical }),
      ['records[17].global_physical_count', 'named again and again'],
    );
  }, 30_000);

  it('refuses an unknown byte order', async () => {
    const bytes = torchFile(stat(STEPS), { byteorder: 'middle' });
    await expectFailure(() => readCounts(folder.write('lie.pt', bytes)), ['byteorder', '"middle"']);
  });
});

describe('archives that lie', () => {
  const whole = torchFile(stat(STEPS));
  const withClaim = (claim: NonNullable<ZipMember['claim']>, deflate = false) =>
    torchFile(stat(STEPS), {
      members: (members) =>
        members.map((member) => (member.name.endsWith('data/0') ? { ...member, deflate, claim } : member)),
    });

  it.each([1, 21, 100, 300])('refuses a file cut %i bytes before its end', async (cut) => {
    const path = folder.write('cut.pt', whole.subarray(0, whole.length - cut));
    await expectFailure(() => readCounts(path), ['cut.pt', 'zip directory']);
  });

  it.each<[string, Uint8Array, string[]]>([
    [
      'an absurd size',
      withClaim({ bytes: 0xfffffff0 }),
      ['entry "archive/data/0"', '4294967280 bytes', '72 bytes'],
    ],
    [
      'an absurd size of deflated data',
      withClaim({ bytes: 0xfffffff0 }, true),
      ['bytes inflated', 'a claim of 4294967280 bytes'],
    ],
    [
      'a size below the inflated one',
      withClaim({ bytes: 8 }, true),
      ['entry "archive/data/0"', '8 bytes of deflated data'],
    ],
    ['a size above the inflated one', withClaim({ bytes: 200 }, true), ['200 bytes', '72 bytes']],
    [
      'stored bytes beyond the directory',
      withClaim({ compressedBytes: 1 << 20 }),
      ['1048576 bytes before the directory'],
    ],
    [
      'an offset outside the file',
      withClaim({ offset: 0x7fffffff }),
      ['a local header at the offset', '2147483647'],
    ],
    ['an offset into other data', withClaim({ offset: 1 }), ['a local header at the offset']],
    [
      'another name in the local header',
      torchFile(stat(STEPS), {
        members: (members) =>
          members.map((member) =>
            member.name.endsWith('data/0') ? { ...member, localName: 'archive/data/1' } : member,
          ),
      }),
      ['the same name'],
    ],
    ['a wrong CRC', withClaim({ crc: 1 }), ['CRC 1', 'damaged content']],
    ['an encrypted entry', withClaim({ flags: 1 }), ['no encryption']],
    ['an unknown method', withClaim({ method: 12 }), ['compression method 12']],
    ['more entries than there are', torchFile(stat(STEPS), { zip: { count: 60 } }), ['60 entries']],
    ['an entry too many', torchFile(stat(STEPS), { zip: { count: 5 } }), ['entry 4', 'a directory record']],
    [
      'a name twice',
      zip([
        { name: 'a/data.pkl', data: concat('x') },
        { name: 'a/data.pkl', data: concat('y') },
      ]),
      ['distinct names'],
    ],
    [
      'a zip64 locator that points nowhere',
      concat(whole.subarray(0, -22), 'PK\x06\x07', le(0, 4), le(2 ** 50, 8), le(1, 4), whole.subarray(-22)),
      ['zip64'],
    ],
    [
      'two pickles',
      zip([
        { name: 'a/data.pkl', data: concat('x') },
        { name: 'b/data.pkl', data: concat('y') },
      ]),
      ['a .pt file as torch.save writes it'],
    ],
    ['a .npz archive', zip([{ name: 'x.npy', data: npy(elements([1], 'u4'), [1, 1]) }]), ['.npz archive']],
    ['an empty archive', zip([]), ['a .pt file']],
  ])('refuses %s', async (_, bytes, fragments) => {
    await expectFailure(() => readCounts(folder.write('archive.pt', bytes)), ['archive.pt', ...fragments]);
  });

  it('finds the end record behind a comment that imitates one', async () => {
    const comment = concat('PK\x05\x06', new Uint8Array(30));
    const path = folder.write('comment.pt', torchFile(stat(STEPS), { zip: { comment } }));
    expect([...(await readCounts(path)).tokens]).toEqual([11, 22, 33, 44, 55, 66]);
    await expectFailure(
      () => readCounts(folder.write('trailing.pt', concat(whole, [0]))),
      ['trailing.pt', 'an end-of-directory record'],
    );
  });

  it('does not inflate a bomb', async () => {
    const bomb = new Uint8Array(64 * 1024 * 1024);
    const honest = zip([{ name: 'a/data.pkl', data: bomb, deflate: true }]);
    const path = folder.write('bomb.pt', honest);
    await expectFailure(
      () => readCounts(path, { maxBytes: 1 << 20 }),
      ['bomb.pt', 'entry "a/data.pkl"', '67108864 bytes'],
    );
    const small = zip([
      {
        name: 'a/data.pkl',
        data: bomb,
        deflate: true,
        claim: { bytes: 1000, crc: crc32(new Uint8Array(1000)) },
      },
    ]);
    await expectFailure(() => readCounts(folder.write('bomb.pt', small)), ['1000 bytes of deflated data']);
  });

  it('has the CRC of older versions of Node too', () => {
    // The check value of CRC-32 in its definition.
    expect(tableCrc32(Buffer.from('123456789'))).toBe(0xcbf43926);
  });

  it('detects a flipped bit anywhere in the data', async () => {
    const damaged = Uint8Array.from(whole);
    const at = Buffer.from(whole).indexOf(Buffer.from(elements([60], 'i4')));
    damaged[at]! ^= 0x10;
    await expectFailure(() => readCounts(folder.write('damaged.pt', damaged)), ['CRC', 'damaged content']);
  });
});

describe('TensorRT-LLM statistics', () => {
  let at = 0;
  const write = (
    files: Record<string, Uint8Array | string>,
    meta: string | null = '{"num_experts": 3, "num_experts_per_token": 2}',
  ) => {
    const name = `statistics${at++}`;
    mkdirSync(folder.path(name));
    if (meta !== null) folder.write(`${name}/meta_info.json`, meta);
    for (const [file, data] of Object.entries(files)) folder.write(`${name}/${file}`, data);
    return folder.path(name);
  };
  const rank = (scale: number) =>
    safetensors({
      '100_4': statistic([1, 2, 3].map((x) => x * scale)),
      '100_3': statistic([4, 5, 6].map((x) => x * scale)),
      '101_3': statistic([1, 1, 1].map((x) => x * scale)),
      '101_4': statistic([2, 2, 2].map((x) => x * scale)),
    });

  it('sums the iterations, one source per rank, layers by their numbers', async () => {
    const path = write({
      'rank0.safetensors': rank(1),
      'rank1.safetensors': rank(10),
      'rank0_raw.safetensors': 'ignored',
      'notes.txt': '',
    });
    const counts = await readCounts(path);
    expect(counts).toMatchObject({ layers: 2, sources: 2, experts: 3, format: 'tensorrt-llm' });
    expect([...counts.layerIds!]).toEqual([3, 4]);
    expect([...counts.tokens]).toEqual([5, 6, 7, 50, 60, 70, 3, 4, 5, 30, 40, 50]);
    expect(counts.notes).toEqual(['2 iterations, one source per rank']);
  });

  it('orders ten ranks by number, not by name', async () => {
    const files = Object.fromEntries(
      Array.from({ length: 11 }, (_, r) => [
        `rank${r}.safetensors`,
        safetensors({ '0_0': statistic([r, 0, 0]) }),
      ]),
    );
    expect([...(await readCounts(write(files))).tokens].filter((_, i) => i % 3 === 0)).toEqual([
      0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
    ]);
  });

  const one = (tensors: Parameters<typeof safetensors>[0], options = {}) => ({
    'rank0.safetensors': safetensors(tensors, options),
  });
  it.each<[string, Record<string, Uint8Array | string>, string[], (string | null)?]>([
    ['a folder without meta_info.json', one({ '0_0': statistic([1, 2, 3]) }), ['meta_info.json'], null],
    ['a folder without ranks', {}, ['rank<r>.safetensors']],
    [
      'a missing rank',
      { 'rank0.safetensors': rank(1), 'rank2.safetensors': rank(1) },
      ['a file of rank 1', 'ranks 0, 2'],
    ],
    [
      'a missing layer of one rank',
      { 'rank0.safetensors': rank(1), 'rank1.safetensors': safetensors({ '100_3': statistic([1, 2, 3]) }) },
      ['rank1.safetensors', 'layers 3-4', 'no 4'],
    ],
    [
      'a missing layer of one iteration',
      one({ '1_3': statistic([1, 2, 3]), '1_4': statistic([1, 2, 3]), '2_3': statistic([1, 2, 3]) }),
      ['layer 4', '"2_4"'],
    ],
    ['another number of experts', one({ '0_0': statistic([1, 2]) }), ['tensor "0_0"', 'shape [3]', '[2]']],
    ['a negative count', one({ '0_0': statistic([1, -2, 3]) }), ['tensor "0_0", expert 1', '-2']],
    ['another name', one({ weight: statistic([1, 2, 3]) }), ['tensor "weight"', '<iteration>_<layer>']],
    [
      'floats',
      one({ '0_0': { dtype: 'F32', shape: [3], data: elements([1, 2, 3], 'f4') } }),
      ['an integer tensor', 'f4'],
    ],
    [
      'an unknown dtype',
      one({ '0_0': { dtype: 'F8_E4M3', shape: [3], data: new Uint8Array(3) } }),
      ['"F8_E4M3"'],
    ],
    [
      'offsets outside the file',
      one({ '0_0': { ...statistic([1, 2, 3]), offsets: [0, 1e6] } }),
      ["inside the file's 24 bytes", '1000000'],
    ],
    [
      'offsets that do not fit the shape',
      one({ '0_0': { ...statistic([1, 2, 3]), offsets: [0, 16] } }),
      ['24 bytes for shape [3]', '16 bytes'],
    ],
    [
      'offsets in the wrong order',
      one({ '0_0': { ...statistic([1, 2, 3]), offsets: [24, 0] } }),
      ['bytes 24 to 0'],
    ],
    ['an absurd shape', one({ '0_0': { ...statistic([1, 2, 3]), shape: [2 ** 40] } }), ['[1099511627776]']],
    [
      'a header beyond the file',
      one({ '0_0': statistic([1, 2, 3]) }, { headerBytes: 1e6 }),
      ['safetensors header', 'a length of 1000000'],
    ],
    [
      'an absurd header',
      one({ '0_0': statistic([1, 2, 3]) }, { headerBytes: 2 ** 52 }),
      ['a length of 4503599627370496'],
    ],
    [
      'a header that is no JSON',
      { 'rank0.safetensors': concat(le(4, 8), 'oops') },
      ['safetensors header', 'JSON', '"oops"'],
    ],
    ['a truncated file', { 'rank0.safetensors': rank(1).subarray(0, -1) }, ["inside the file's 95 bytes"]],
    ['an empty file', { 'rank0.safetensors': '' }, ['at least 8 bytes']],
    ['no tensors', one({}), ['tensors named']],
    [
      'meta info that is no object',
      one({ '0_0': statistic([1, 2, 3]) }),
      ['meta_info.json', 'an object'],
      '[3]',
    ],
    ['meta info without experts', one({ '0_0': statistic([1, 2, 3]) }), ['num_experts', 'nothing'], '{}'],
    [
      'meta info with absurd experts',
      one({ '0_0': statistic([1, 2, 3]) }),
      ['num_experts', '1e+30'],
      '{"num_experts": 1e30}',
    ],
  ])('refuses %s', async (_, files, fragments, meta) => {
    const path = write(files, meta === undefined ? '{"num_experts": 3}' : meta);
    await expectFailure(() => readCounts(path), ['statistics', ...fragments]);
  });

  it('asks which one where a folder holds the files of two engines', async () => {
    const path = write({ 'rank0.safetensors': rank(1), 'x.pt': torchFile(stat(STEPS)) });
    await expectFailure(() => readCounts(path), ['both: say which by naming the format']);
    expect((await readCounts(path, { format: 'sglang' })).experts).toBe(3);
    expect((await readCounts(path, { format: 'tensorrt-llm' })).sources).toBe(1);
  });

  it('wants the folder, not a file of it', async () => {
    const path = write({ 'rank0.safetensors': rank(1) });
    await expectFailure(() => readCounts(`${path}/rank0.safetensors`), ['the statistics folder', 'a file']);
    await expectFailure(() => readCounts([path, path]), ['one folder', '2 paths']);
  });
});
