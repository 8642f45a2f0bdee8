/** Placements in every format, from files written by hand to the formats' own definitions, and wrong ones. */
import { describe, expect, it } from 'vitest';
import { readPlacement, selectLayers } from '../../lib/import/placement.js';
import {
  concat,
  elements,
  expectFailure,
  npy,
  pickleOf,
  RawPickle,
  temporaryFolder,
  tensor,
  torchFile,
  zip,
} from './import-fixtures.js';

const folder = temporaryFolder();

/** 2 layers, 4 slots, 3 experts. */
const ROWS = [
  [0, 1, 2, 1],
  [2, 0, 1, 2],
];
const FLAT = ROWS.flat();

const ascend = (rows = ROWS, devices = 2) => ({
  moe_layer_count: rows.length,
  layer_list: rows.map((row, layer) => ({
    layer_id: layer,
    device_count: devices,
    device_list: Array.from({ length: devices }, (_, device) => ({
      device_id: device,
      device_expert: row.slice((device * row.length) / devices, ((device + 1) * row.length) / devices),
    })),
  })),
});

const own = (changes: Record<string, unknown> = {}) => ({
  format: 'gimbal-placement',
  version: 1,
  layers: 2,
  gpus: 2,
  slotsPerGpu: 2,
  experts: 3,
  layerIds: [3, 5],
  modelLayers: 6,
  metadata: { seed: 7, by: { whom: ['x'] } },
  physicalToLogical: ROWS,
  ...changes,
});

const YAML = `num_slots: 4
initial_global_assignments:
  5: [2, 0, 1, 2]
  3: [0, 1, 2, 1]
layer_updates_per_iter: 0
`;

describe('sglang', () => {
  it('reads JSON; its rows are the model layers', async () => {
    const path = folder.write('location.json', JSON.stringify({ physical_to_logical_map: ROWS }));
    const placement = await readPlacement(path);
    expect(placement).toMatchObject({ layers: 2, slots: 4, modelLayers: 2, format: 'sglang', notes: [] });
    expect(placement.gpus).toBeUndefined();
    expect(placement.experts).toBeUndefined();
    expect([...placement.physicalToLogical]).toEqual(FLAT);
    expect([...placement.layerIds!]).toEqual([0, 1]);
  });

  it('notes keys that SGLang itself would refuse', async () => {
    const path = folder.write(
      'location.json',
      JSON.stringify({ physical_to_logical_map: ROWS, comment: 'x' }),
    );
    expect((await readPlacement(path)).notes).toEqual(['SGLang refuses keys beside the map: "comment"']);
  });

  it('reads the map of a .pt file, and the one at the end of a recording', async () => {
    const given = folder.write('location.pt', torchFile({ physical_to_logical_map: tensor(ROWS, 'i8') }));
    expect(await readPlacement(given)).toMatchObject({ format: 'sglang', notes: [] });
    const recorded = folder.write(
      'recorded.pt',
      torchFile({ records: [], last_physical_to_logical_map: tensor(ROWS) }),
    );
    const placement = await readPlacement(recorded);
    expect([...placement.physicalToLogical]).toEqual(FLAT);
    expect(placement.notes).toEqual(['the placement in force at the end of a recording']);
  });
});

describe('vllm', () => {
  it('reads a list of rows, which are MoE layers without numbers', async () => {
    const placement = await readPlacement(folder.write('map.json', JSON.stringify(ROWS)));
    expect(placement).toMatchObject({ layers: 2, slots: 4, format: 'vllm', notes: [] });
    expect([...placement.physicalToLogical]).toEqual(FLAT);
    expect(placement.layerIds).toBeUndefined();
  });

  it('reads one row for all layers', async () => {
    const placement = await readPlacement(folder.write('map.json', '[0, 1, 2, 1]'));
    expect(placement).toMatchObject({
      layers: 1,
      slots: 4,
      format: 'vllm',
      notes: ['one row, meant for all layers'],
    });
  });
});

describe('tensorrt-llm', () => {
  const check = async (name: string, text: string) => {
    const placement = await readPlacement(folder.write(name, text));
    expect(placement).toMatchObject({ layers: 2, slots: 4, format: 'tensorrt-llm', notes: [] });
    expect([...placement.layerIds!]).toEqual([3, 5]);
    expect([...placement.physicalToLogical]).toEqual(FLAT);
  };
  it('reads the configuration, layers in any order', () => check('balancer.yaml', YAML));
  it('goes by the content where the name says nothing', () => check('balancer.conf', YAML));
  it('reads block lists, comments and quoted keys', () =>
    check(
      'block.yml',
      '# made by hand\n"num_slots": 4 # slots\ninitial_global_assignments:\n  \'3\':\n  - 0\n  - 1\n  - 2\n  - 1\n  5:\n    - 2\n    - 0\n    - 1\n    - 2\n',
    ));
  it('reads lists that run over several lines', () =>
    check(
      'wrapped.yaml',
      'initial_global_assignments:\n  3: [0, 1,\n    2, 1]\n  5: [2, 0, 1,\n    2]\nnum_slots: 4\n',
    ));
  it('reads JSON, which is YAML too', () =>
    check(
      'balancer.json',
      JSON.stringify({ num_slots: 4, initial_global_assignments: { 3: ROWS[0], 5: ROWS[1] } }),
    ));
  it('reads a flow mapping that is not JSON', () =>
    check('flow.yaml', '{num_slots: 4, initial_global_assignments: {3: [0, 1, 2, 1], 5: [2, 0, 1, 2]}}'));

  it('follows the aliases that PyYAML writes for equal lists, however many', async () => {
    const aliases = Array.from({ length: 120 }, (_, i) => `  ${i + 4}: *id001\n`).join('');
    const text = `num_slots: 4\ninitial_global_assignments:\n  3: &id001 [0, 1, 2, 1]\n${aliases}`;
    const placement = await readPlacement(folder.write('alias.yaml', text));
    expect(placement.layers).toBe(121);
    expect([...placement.physicalToLogical.subarray(480)]).toEqual([0, 1, 2, 1]);
  });

  it.each<[string, string, string[]]>([
    [
      'a row of another length',
      YAML.replace('[2, 0, 1, 2]', '[2, 0, 1]'),
      ['layer 5', '4 slots, as num_slots says', '3'],
    ],
    ['a negative expert', YAML.replace('[2, 0, 1, 2]', '[2, 0, 1, -1]'), ['layer 5, slot 3', 'from 0', '-1']],
    ['a fraction', YAML.replace('[2, 0, 1, 2]', '[2, 0, 1, 0.5]'), ['layer 5, slot 3', '0.5']],
    ['NaN', YAML.replace('[2, 0, 1, 2]', '[2, 0, 1, .nan]'), ['layer 5, slot 3', 'NaN']],
    ['text', YAML.replace('[2, 0, 1, 2]', '[2, 0, 1, x]'), ['layer 5, slot 3', '"x"']],
    ['a nested list', YAML.replace('[2, 0, 1, 2]', '[2, 0, 1, [2]]'), ['layer 5, slot 3']],
    ['a layer given twice', YAML.replace('  3:', '  5:'), ['initial_global_assignments', '"5" twice']],
    ['a layer that is no number', YAML.replace('  3:', '  three:'), ['key "three"']],
    ['a missing layer', YAML.replace('[2, 0, 1, 2]', ''), ['layer 5', 'a list']],
    ['no assignments', 'num_slots: 4\nlayer_updates_per_iter: 2\n', ['leaves the placement to the engine']],
    ['no number of slots', YAML.replace('num_slots: 4\n', ''), ['num_slots', 'nothing']],
    [
      'absurd slots',
      YAML.replace('num_slots: 4', 'num_slots: 1000000000000'),
      ['num_slots', '1000000000000'],
    ],
    ['a truncated list', YAML.slice(0, 70), ['brackets that close', 'truncated']],
    ['a list of mappings', '- num_slots: 4\n', ['YAML', 'a mapping']],
    [
      'a tag',
      YAML.replace('num_slots: 4', 'num_slots: !!python/object/apply:os.system ["true"]'),
      ['line 1', 'a tag, directive'],
    ],
    ['deep nesting', `num_slots: ${'['.repeat(5000)}`, ['line 1', 'nest too deeply']],
    ['deep blocks', `${'- '.repeat(50)}num_slots: 4\n`, ['line 1', 'levels on one line']],
    ['deep indentation', `num_slots:\n${' '.repeat(200)}x: 1\n`, ['line 2', 'indentation']],
    ['an unknown alias', YAML.replace('[2, 0, 1, 2]', '*nowhere'), ['layer 5', 'a list']],
    ['a file too large to be one', `${YAML}#${'x'.repeat(1024 * 1024)}\n`, ['at most 524288 bytes']],
  ])('refuses %s', async (_, text, fragments) => {
    await expectFailure(() => readPlacement(folder.write('wrong.yaml', text)), ['wrong.yaml', ...fragments]);
  });

  it('bounds what aliases multiply', async () => {
    const slots = 20_000;
    const aliases = Array.from({ length: 4000 }, (_, i) => `  ${i + 1}: *a\n`).join('');
    const list = Array.from({ length: slots }, () => 0).join(', ');
    const text = `num_slots: ${slots}\ninitial_global_assignments:\n  0: &a [${list}]\n${aliases}`;
    await expectFailure(
      () => readPlacement(folder.write('alias.yaml', text)),
      ['67108864 slots', '4001 × 20000'],
    );
  }, 30_000);

  it('refuses hostile YAML quickly', async () => {
    const hostile = [
      '['.repeat(200_000),
      ': '.repeat(200_000),
      '? '.repeat(200_000),
      '{a: '.repeat(100_000),
      `[${','.repeat(300_000)}]`,
      '[\t'.repeat(100_000),
    ];
    for (const text of hostile) {
      const started = performance.now();
      await expectFailure(() => readPlacement(folder.write('hostile.yaml', text)), ['hostile.yaml']);
      expect(performance.now() - started).toBeLessThan(5000);
    }
  }, 30_000);
});

describe('vllm-ascend', () => {
  it('reads layers of devices', async () => {
    const placement = await readPlacement(folder.write('expert_map.json', JSON.stringify(ascend())));
    expect(placement).toMatchObject({
      layers: 2,
      slots: 4,
      gpus: 2,
      slotsPerGpu: 2,
      format: 'vllm-ascend',
      notes: [],
    });
    expect([...placement.physicalToLogical]).toEqual(FLAT);
    expect(placement.layerIds).toBeUndefined();
  });

  const changed = (change: (map: ReturnType<typeof ascend>) => void) => {
    const map = ascend();
    change(map);
    return JSON.stringify(map);
  };
  it.each<[string, string, string[]]>([
    [
      'a missing layer',
      changed((map) => map.layer_list.pop()),
      ['layer_list', 'a list of 2, as moe_layer_count says', 'a list of 1'],
    ],
    [
      'a layer out of place',
      changed((map) => map.layer_list.reverse()),
      ['layer_list[0].layer_id', 'from 0 to 0', '1'],
    ],
    [
      'a missing device',
      changed((map) => map.layer_list[1]!.device_list.pop()),
      ['layer_list[1].device_list', 'a list of 2, as device_count says'],
    ],
    [
      'a device out of place',
      changed((map) => map.layer_list[1]!.device_list.reverse()),
      ['layer_list[1].device_list[0].device_id', '1'],
    ],
    [
      'devices of another number',
      JSON.stringify({
        moe_layer_count: 2,
        layer_list: [
          ascend([ROWS[0]!], 2).layer_list[0],
          { ...ascend([ROWS[1]!], 1).layer_list[0], layer_id: 1 },
        ],
      }),
      ['layer_list[1]', '2 devices'],
    ],
    [
      'a device with fewer experts',
      changed((map) => map.layer_list[1]!.device_list[1]!.device_expert.pop()),
      ['layer_list[1].device_list[1].device_expert', '2 experts', '1'],
    ],
    [
      'a device without experts',
      changed((map) => map.layer_list[0]!.device_list[0]!.device_expert.splice(0)),
      ['device_list[0].device_expert', 'a list of 0'],
    ],
    [
      'a negative expert',
      changed((map) => map.layer_list[0]!.device_list[1]!.device_expert.splice(0, 1, -1)),
      ['layer_list[0].device_list[1].device_expert[0]', '-1'],
    ],
    [
      'an absurd count',
      changed((map) => Object.assign(map, { moe_layer_count: 1e12 })),
      ['moe_layer_count', '1000000000000'],
    ],
    [
      'a device that is null',
      changed((map) => Object.assign(map.layer_list[0]!.device_list, [null])),
      ['device_list[0]', 'an object', 'nothing'],
    ],
  ])('refuses %s', async (_, text, fragments) => {
    await expectFailure(() => readPlacement(folder.write('wrong.json', text)), ['wrong.json', ...fragments]);
  });
});

describe('eplb', () => {
  const PHY = elements(FLAT, 'i8');
  // Expert 1 of layer 0 sits in slots 1 and 3, expert 2 of layer 1 in slots 0 and 3; EPLB lists slots in any order.
  const LOG = elements([0, -1, 3, 1, 2, -1, 1, -1, 2, -1, 0, 3], 'i8');
  const COUNT = elements([1, 2, 1, 1, 1, 2], 'i8');
  const archive = (changes: Record<string, Uint8Array | null> = {}, deflate = false) => {
    const members: Record<string, Uint8Array | null> = {
      'phy2log.npy': npy(PHY, [2, 4], { descr: '<i8' }),
      'log2phy.npy': npy(LOG, [2, 3, 2], { descr: '<i8' }),
      'logcnt.npy': npy(COUNT, [2, 3], { descr: '<i8' }),
      ...changes,
    };
    return zip(
      Object.entries(members).flatMap(([name, data]) => (data === null ? [] : [{ name, data, deflate }])),
    );
  };

  it.each([false, true])('reads the three arrays of an .npz, deflated: %s', async (deflate) => {
    const placement = await readPlacement(folder.write('eplb.npz', archive({}, deflate)));
    expect(placement).toMatchObject({ layers: 2, slots: 4, experts: 3, format: 'eplb', notes: [] });
    expect([...placement.physicalToLogical]).toEqual(FLAT);
  });

  it('reads phy2log alone', async () => {
    const placement = await readPlacement(
      folder.write('eplb.npz', archive({ 'log2phy.npy': null, 'logcnt.npy': null })),
    );
    expect([...placement.physicalToLogical]).toEqual(FLAT);
    expect(placement.experts).toBeUndefined();
  });

  it('reads JSON, and the tensors of a .pt file', async () => {
    const lists = {
      phy2log: ROWS,
      log2phy: [
        [
          [0, -1],
          [3, 1],
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
    };
    const files = [
      folder.write('eplb.json', JSON.stringify(lists)),
      folder.write(
        'tuple.pt',
        torchFile([tensor(ROWS, 'i8'), tensor(lists.log2phy, 'i8'), tensor(lists.logcnt, 'i8')]),
      ),
      folder.write(
        'dict.pt',
        torchFile({
          phy2log: tensor(ROWS, 'i8'),
          log2phy: tensor(lists.log2phy, 'i8'),
          logcnt: tensor(lists.logcnt, 'i8'),
        }),
      ),
    ];
    for (const file of files) {
      const placement = await readPlacement(file);
      expect(placement).toMatchObject({ layers: 2, slots: 4, experts: 3, format: 'eplb' });
      expect([...placement.physicalToLogical]).toEqual(FLAT);
    }
    expect((await readPlacement(folder.write('tensor.pt', torchFile(tensor(ROWS, 'u2'))))).format).toBe(
      'eplb',
    );
  });

  it.each<[string, Uint8Array, string[]]>([
    [
      'counts that contradict the map',
      archive({ 'logcnt.npy': npy(elements([2, 1, 1, 1, 1, 2], 'i8'), [2, 3], { descr: '<i8' }) }),
      ['logcnt, layer 0, expert 0', '1 (phy2log says so)', '2'],
    ],
    [
      'slots that contradict the map',
      archive({
        'log2phy.npy': npy(elements([0, -1, 2, 1, 2, -1, 1, -1, 2, -1, 0, 3], 'i8'), [2, 3, 2], {
          descr: '<i8',
        }),
      }),
      ['log2phy, layer 0, expert 1', 'slot 2'],
    ],
    [
      'a slot listed twice',
      archive({
        'log2phy.npy': npy(elements([0, -1, 1, 1, 2, -1, 1, -1, 2, -1, 0, 3], 'i8'), [2, 3, 2], {
          descr: '<i8',
        }),
      }),
      ['log2phy, layer 0, expert 1', 'each once'],
    ],
    [
      'a slot left out',
      archive({
        'log2phy.npy': npy(elements([0, -1, 1, -1, 2, -1, 1, -1, 2, -1, 0, 3], 'i8'), [2, 3, 2], {
          descr: '<i8',
        }),
      }),
      ['log2phy, layer 0, expert 1', '2 slots', 'fewer'],
    ],
    [
      'an expert beyond the counts',
      archive({ 'phy2log.npy': npy(elements([0, 1, 2, 3, 2, 0, 1, 2], 'i8'), [2, 4], { descr: '<i8' }) }),
      ['phy2log, layer 0, slot 3', 'below 3', '3'],
    ],
    [
      'a negative expert',
      archive({ 'phy2log.npy': npy(elements([0, 1, 2, -1, 2, 0, 1, 2], 'i8'), [2, 4], { descr: '<i8' }) }),
      ['phy2log, layer 0, slot 3', 'from 0', '-1'],
    ],
    [
      'float ids',
      archive({ 'phy2log.npy': npy(elements(FLAT, 'f8'), [2, 4], { descr: '<f8' }) }),
      ['phy2log', 'integer ids', 'f8'],
    ],
    [
      'a missing layer of the counts',
      archive({ 'logcnt.npy': npy(elements([1, 2, 1], 'i8'), [1, 3], { descr: '<i8' }) }),
      ['logcnt', 'shape [2, 3]', '[1, 3]'],
    ],
    [
      'a map of one dimension',
      archive({ 'phy2log.npy': npy(PHY, [8], { descr: '<i8' }) }),
      ['[layers, slots]', '[8]'],
    ],
    ['no map', archive({ 'phy2log.npy': null }), ['an array phy2log', '"log2phy.npy"']],
    [
      'an object array',
      archive({ 'phy2log.npy': npy(PHY, [2, 4], { descr: '|O' }) }),
      ['phy2log', 'holds a pickle'].slice(1),
    ],
    [
      'an absurd array',
      archive({ 'phy2log.npy': npy(PHY, [2 ** 20, 2 ** 20], { descr: '<i8' }) }),
      ['phy2log', '64 bytes'],
    ],
    ['a truncated archive', archive().subarray(0, -30), ['zip directory']],
    [
      'a pickle that would run code',
      torchFile(new RawPickle(concat('cos\nsystem\n', '(', pickleOf('true'), 't', 'R'))),
      ['os.system', 'nothing of the file was executed'],
    ],
    [
      'a .pt file of something else',
      torchFile({ weights: tensor([[1]]) }),
      ['physical_to_logical_map or phy2log', '"weights"'],
    ],
  ])('refuses %s', async (_, bytes, fragments) => {
    await expectFailure(() => readPlacement(folder.write('wrong.npz', bytes)), ['wrong.npz', ...fragments]);
  });
});

describe('npy', () => {
  it('reads int32 with empty slots', async () => {
    const placement = await readPlacement(
      folder.write('p.npy', npy(elements([0, -1, 1, 2], 'i4'), [1, 4], { descr: '<i4' })),
    );
    expect(placement).toMatchObject({ layers: 1, slots: 4, format: 'npy' });
    expect([...placement.physicalToLogical]).toEqual([0, -1, 1, 2]);
  });

  it('takes the GPUs from three dimensions', async () => {
    const placement = await readPlacement(
      folder.write('p.npy', npy(elements(FLAT, 'u1'), [2, 2, 2], { descr: '|u1' })),
    );
    expect(placement).toMatchObject({ layers: 2, slots: 4, gpus: 2, slotsPerGpu: 2 });
  });

  it.each<[string, Uint8Array, string[]]>([
    ['floats', npy(elements(FLAT, 'f4'), [2, 4], { descr: '<f4' }), ['integer ids']],
    [
      'an id below -1',
      npy(elements([0, -2], 'i4'), [1, 2], { descr: '<i4' }),
      ['layer 0, slot 1', 'from -1', '-2'],
    ],
    [
      'an id beyond all experts',
      npy(elements([0, 65536], 'i4'), [1, 2], { descr: '<i4' }),
      ['layer 0, slot 1', '65535', '65536'],
    ],
    ['one dimension', npy(elements([0, 1], 'i4'), [2], { descr: '<i4' }), ['[layers, slots]']],
    ['no slots', npy(new Uint8Array(), [3, 0], { descr: '<i4' }), ['slots', '0']],
    ['too many layers', npy(new Uint8Array(4097), [4097, 1], { descr: '|u1' }), ['layers', '4097']],
  ])('refuses %s', async (_, bytes, fragments) => {
    await expectFailure(() => readPlacement(folder.write('wrong.npy', bytes)), ['wrong.npy', ...fragments]);
  });
});

describe('json', () => {
  it('reads everything', async () => {
    const rows = [
      [0, 1, 2, -1],
      [2, 0, 1, 2],
    ];
    const placement = await readPlacement(
      folder.write('own.json', JSON.stringify(own({ physicalToLogical: rows }))),
    );
    expect(placement).toMatchObject({
      layers: 2,
      slots: 4,
      gpus: 2,
      slotsPerGpu: 2,
      experts: 3,
      modelLayers: 6,
      format: 'json',
      notes: [],
    });
    expect([...placement.physicalToLogical]).toEqual(rows.flat());
    expect([...placement.layerIds!]).toEqual([3, 5]);
    expect(placement.metadata).toEqual({ seed: 7, by: { whom: ['x'] } });
  });

  it.each<[string, Record<string, unknown>, string[]]>([
    ['another version', { version: 2 }, ['version 1', 'version 2']],
    ['no format', { format: undefined }, ['format "gimbal-placement"', 'format nothing']],
    ['a missing layer', { layers: 3 }, ['layers', 'from 2 to 2', '3']],
    ['ragged rows', { physicalToLogical: [[0, 1, 2, 1], [2]] }, ['physicalToLogical[1]', 'a list of 4']],
    ['a shape that does not multiply', { gpus: 3 }, ['3 × 2 slots', '4']],
    [
      'an expert out of range',
      {
        physicalToLogical: [
          [0, 1, 2, 3],
          [2, 0, 1, 2],
        ],
      },
      ['layer 3, slot 3', 'below 3'],
    ],
    [
      'an id below -1',
      {
        physicalToLogical: [
          [0, 1, 2, -2],
          [2, 0, 1, 2],
        ],
      },
      ['physicalToLogical[0][3]', '-2'],
    ],
    ['absurd GPUs', { gpus: 1e15 }, ['gpus', '1000000000000000']],
    ['layer ids of another length', { layerIds: [1] }, ['layerIds', 'a list of 2']],
    ['fewer model layers than rows', { modelLayers: 1 }, ['modelLayers', 'from 2']],
    ['metadata that is a list', { metadata: [] }, ['metadata', 'an object']],
    ['a list that is none', { physicalToLogical: 5 }, ['physicalToLogical', '[layers][slots]']],
  ])('refuses %s', async (_, changes, fragments) => {
    const text = JSON.stringify(own(changes));
    await expectFailure(() => readPlacement(folder.write('wrong.json', text)), ['wrong.json', ...fragments]);
  });
});

describe('choosing the format', () => {
  it.each<[string, string, string[]]>([
    [
      'two formats in one file',
      JSON.stringify({ physical_to_logical_map: ROWS, phy2log: ROWS }),
      ['exactly one of', 'physical_to_logical_map and phy2log'],
    ],
    ['no known key', '{"a": 1}', ['exactly one of', '"a"']],
    ['an empty object', '{}', ['no key']],
    ['truncated JSON', '{"physical_to_logical_map": [[0, 1', ['valid JSON']],
    ['NaN', '{"physical_to_logical_map": [[0, NaN]]}', ['valid JSON', 'NaN']],
    [
      'a negative expert for SGLang',
      '{"physical_to_logical_map": [[0, -1]]}',
      ['physical_to_logical_map[0][1]', 'from 0', '-1'],
    ],
    ['an empty list', '[]', ['[layers][slots]']],
    ['ragged rows', '[[0, 1], [0]]', ['list[1]', 'a list of 2']],
    ['text', 'placement of experts', ['a placement as .json, .yaml, .npy, .npz or .pt', '0x706c61']],
    ['nothing', '', ['an empty file']],
  ])('refuses %s', async (_, text, fragments) => {
    await expectFailure(
      () => readPlacement(folder.write('unclear.txt', text)),
      ['unclear.txt', ...fragments],
    );
  });

  it('holds to the format that is named', async () => {
    const path = folder.write('map.json', JSON.stringify(ROWS));
    expect((await readPlacement(path, { format: 'vllm' })).format).toBe('vllm');
    await expectFailure(
      () => readPlacement(path, { format: 'sglang' }),
      ['map.json', 'of format sglang', 'of format vllm'],
    );
  });
});

describe('what the caller knows', () => {
  const map = () => folder.write('known.json', JSON.stringify(ROWS));

  it('splits the slots and checks the experts', async () => {
    expect(await readPlacement(map(), { gpus: 2, experts: 3 })).toMatchObject({
      gpus: 2,
      slotsPerGpu: 2,
      experts: 3,
      notes: [],
    });
    await expectFailure(
      async () => readPlacement(map(), { gpus: 3 }),
      ['known.json', 'evenly over 3 GPUs', '4 slots'],
    );
    await expectFailure(
      async () => readPlacement(map(), { experts: 2 }),
      ['known.json', 'layer 0, slot 2', 'below 2', '2'],
    );
  });

  it('must agree with what the file says', async () => {
    const path = folder.write('ascend.json', JSON.stringify(ascend()));
    await expectFailure(() => readPlacement(path, { gpus: 4 }), ['ascend.json', '4 GPUs', 'for 2']);
    const json = folder.write('own.json', JSON.stringify(own()));
    await expectFailure(() => readPlacement(json, { experts: 4 }), ['own.json', '4 experts', 'of 3']);
  });

  it('notes experts without a slot, which an incumbent may have after a failure', async () => {
    const placement = await readPlacement(map(), { experts: 5 });
    expect(placement.notes).toEqual(['4 (layer, expert) pairs have no slot']);
  });

  it('bounds the file', async () => {
    await expectFailure(
      async () => readPlacement(map(), { maxBytes: 10 }),
      ['known.json', 'at most 10 bytes'],
    );
    await expectFailure(
      () => readPlacement(folder.path('absent.json')),
      ['absent.json', 'ENOENT'],
      'GIMBAL_IO',
    );
  });
});

describe('selectLayers', () => {
  it('takes rows by their model layers', async () => {
    const placement = await readPlacement(folder.write('select.yaml', YAML));
    const one = selectLayers(placement, { layers: 1, layerIds: Int32Array.of(5) });
    expect(one.layers).toBe(1);
    expect([...one.physicalToLogical]).toEqual(ROWS[1]);
    expect([...one.layerIds!]).toEqual([5]);
  });

  it('refuses a layer that is not there', async () => {
    const placement = await readPlacement(folder.write('select.yaml', YAML));
    const select = () => selectLayers(placement, { layers: 2, layerIds: Int32Array.of(3, 4) }, 'incumbent');
    await expectFailure(select, ['incumbent', 'model layers 3-4', '3, 5: no 4']);
  });

  it('goes by the number of rows where one side has no layer numbers', async () => {
    const placement = await readPlacement(folder.write('select.json', JSON.stringify(ROWS)));
    expect(selectLayers(placement, { layers: 2, layerIds: Int32Array.of(3, 4) })).toBe(placement);
    await expectFailure(() => selectLayers(placement, { layers: 3 }), ['placement', '3 layers', '2 layers']);
  });
});
