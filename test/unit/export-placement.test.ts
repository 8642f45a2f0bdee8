/** Placement files: their exact content against the formats' definitions, what each format cannot say, and round trips. */
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parse as parseYaml } from 'yaml';
import {
  encodePlacement,
  type PlacementFormat,
  type PlacementToExport,
  placementFormats,
  writePlacement,
} from '../../lib/export/placement.js';
import { writeFileAtomic } from '../../lib/files.js';
import { readPlacement } from '../../lib/import/placement.js';
import { elements, expectFailure, npy, temporaryFolder, zip } from './import-fixtures.js';

const folder = temporaryFolder();
const FORMATS = Object.keys(placementFormats) as PlacementFormat[];

/** 2 layers, 2 GPUs of 2 slots, 3 experts. */
const PLACEMENT: PlacementToExport = {
  layers: 2,
  gpus: 2,
  slotsPerGpu: 2,
  experts: 3,
  physicalToLogical: Int32Array.of(0, 1, 2, 1, 2, 0, 1, 2),
  layerIds: Int32Array.of(3, 5),
};
const without = <K extends keyof PlacementToExport>(key: K): PlacementToExport => {
  const { [key]: _, ...rest } = PLACEMENT;
  return rest as PlacementToExport;
};
const textOf = (placement: PlacementToExport, format: PlacementFormat) =>
  Buffer.from(encodePlacement(placement, format)).toString('utf8');

describe('what each format says', () => {
  it('sglang: a row for every model layer and no other key', () => {
    const unused = [0, 1, 2, 0];
    expect(JSON.parse(textOf(PLACEMENT, 'sglang'))).toEqual({
      physical_to_logical_map: [unused, unused, unused, [0, 1, 2, 1], unused, [2, 0, 1, 2]],
    });
    const rows = JSON.parse(textOf({ ...PLACEMENT, modelLayers: 8 }, 'sglang')).physical_to_logical_map;
    expect(rows).toHaveLength(8);
    expect(rows[7]).toEqual(unused);
    expect(JSON.parse(textOf(without('layerIds'), 'sglang'))).toEqual({
      physical_to_logical_map: [
        [0, 1, 2, 1],
        [2, 0, 1, 2],
      ],
    });
  });

  it('vllm: a list of the MoE layers', () => {
    expect(JSON.parse(textOf(PLACEMENT, 'vllm'))).toEqual([
      [0, 1, 2, 1],
      [2, 0, 1, 2],
    ]);
  });

  it('tensorrt-llm: static assignments under the model layers', () => {
    expect(textOf(PLACEMENT, 'tensorrt-llm')).toBe(
      'num_slots: 4\ninitial_global_assignments:\n  3: [0, 1, 2, 1]\n  5: [2, 0, 1, 2]\nlayer_updates_per_iter: 0\n',
    );
    const parsed = parseYaml(textOf(PLACEMENT, 'tensorrt-llm'), { mapAsMap: true });
    // The engine wants integer keys.
    expect([...parsed.get('initial_global_assignments').keys()]).toEqual([3, 5]);
  });

  it('vllm-ascend: positions of layers and devices', () => {
    const device = (id: number, experts: number[]) => ({ device_id: id, device_expert: experts });
    const layer = (id: number, a: number[], b: number[]) => ({
      layer_id: id,
      device_count: 2,
      device_list: [device(0, a), device(1, b)],
    });
    expect(JSON.parse(textOf(PLACEMENT, 'vllm-ascend'))).toEqual({
      moe_layer_count: 2,
      layer_list: [layer(0, [0, 1], [2, 1]), layer(1, [2, 0], [1, 2])],
    });
  });

  it("eplb: int64 arrays, byte for byte NumPy's, in a stored zip", () => {
    const i8 = { descr: '<i8' };
    const members = [
      { name: 'phy2log.npy', data: npy(elements([0, 1, 2, 1, 2, 0, 1, 2], 'i8'), [2, 4], i8) },
      {
        name: 'log2phy.npy',
        data: npy(elements([0, -1, 1, 3, 2, -1, 1, -1, 2, -1, 0, 3], 'i8'), [2, 3, 2], i8),
      },
      { name: 'logcnt.npy', data: npy(elements([1, 2, 1, 1, 1, 2], 'i8'), [2, 3], i8) },
    ];
    const bytes = Buffer.from(encodePlacement(PLACEMENT, 'eplb'));
    for (const { name, data } of members)
      expect(bytes.includes(Buffer.concat([Buffer.from(name), data])), name).toBe(true);
    expect(bytes.length).toBe(zip(members).length);
  });

  it("npy: int32, byte for byte NumPy's", () => {
    const expected = npy(elements([0, 1, 2, 1, 2, 0, 1, 2], 'i4'), [2, 4], { descr: '<i4' });
    expect(Buffer.from(encodePlacement(PLACEMENT, 'npy'))).toEqual(Buffer.from(expected));
  });

  it('json: everything, a bigint as text', () => {
    const placement = {
      ...PLACEMENT,
      modelLayers: 6,
      metadata: { seed: 2n ** 63n, nested: { list: [1, null] } },
    };
    expect(JSON.parse(textOf(placement, 'json'))).toEqual({
      format: 'gimbal-placement',
      version: 1,
      layers: 2,
      gpus: 2,
      slotsPerGpu: 2,
      experts: 3,
      layerIds: [3, 5],
      modelLayers: 6,
      metadata: { seed: '9223372036854775808', nested: { list: [1, null] } },
      physicalToLogical: [
        [0, 1, 2, 1],
        [2, 0, 1, 2],
      ],
    });
  });

  it.each(FORMATS)('%s: the same placement gives the same bytes', (format) => {
    expect(Buffer.from(encodePlacement(PLACEMENT, format))).toEqual(
      Buffer.from(encodePlacement({ ...PLACEMENT }, format)),
    );
  });
});

describe('what a format cannot say', () => {
  const dead = {
    ...PLACEMENT,
    slotsPerGpu: 3,
    physicalToLogical: Int32Array.of(0, 1, 2, -1, -1, -1, 2, 0, 1, -1, -1, -1),
  };

  it.each(FORMATS.filter((format) => !placementFormats[format].expressesEmptySlots))(
    '%s refuses the empty slots of a dead GPU',
    async (format) => {
      await expectFailure(
        () => encodePlacement(dead, format),
        [
          'layer 0, slot 3',
          `format ${format} cannot express an empty one (npy and json can)`,
          '-1, as on a dead GPU',
        ],
        'GIMBAL_INVALID_INPUT',
      );
    },
  );

  it.each(FORMATS.filter((format) => placementFormats[format].expressesEmptySlots))(
    '%s keeps the empty slots of a dead GPU',
    async (format) => {
      const path = folder.path(`dead${placementFormats[format].extension}`);
      await writePlacement(path, dead, format);
      expect([...(await readPlacement(path)).physicalToLogical]).toEqual([...dead.physicalToLogical]);
    },
  );

  it.each<[string, PlacementToExport, PlacementFormat, string[]]>([
    [
      'layers without numbers',
      without('layerIds'),
      'tensorrt-llm',
      ['layerIds', 'TensorRT-LLM finds it', 'none'],
    ],
    [
      'two replicas on one device',
      { ...PLACEMENT, physicalToLogical: Int32Array.of(0, 1, 2, 2, 2, 0, 1, 2) },
      'vllm-ascend',
      ['layer 0, GPU 1', 'at most once', 'expert 2 twice'],
    ],
  ])('refuses %s', async (_, placement, format, fragments) => {
    await expectFailure(() => encodePlacement(placement, format), fragments, 'GIMBAL_INVALID_INPUT');
  });
});

describe('placements that are none', () => {
  const cases: [string, PlacementToExport, string[]][] = [
    [
      'a wrong length',
      { ...PLACEMENT, physicalToLogical: new Int32Array(7) },
      ['physicalToLogical', '8 slots', '7'],
    ],
    ['no layers', { ...PLACEMENT, layers: 0 }, ['layers', 'at least 1', '0']],
    ['fractional GPUs', { ...PLACEMENT, gpus: 1.5 }, ['gpus', '1.5']],
    [
      'an expert out of range',
      { ...PLACEMENT, physicalToLogical: Int32Array.of(0, 1, 2, 3, 2, 0, 1, 2) },
      ['layer 0, slot 3', 'from 0 to 2', '3'],
    ],
    [
      'an id below -1',
      { ...PLACEMENT, physicalToLogical: Int32Array.of(0, 1, 2, -2, 2, 0, 1, 2) },
      ['layer 0, slot 3', '-2'],
    ],
    [
      'an expert without a slot',
      { ...PLACEMENT, physicalToLogical: Int32Array.of(0, 1, 2, 1, 2, 2, 1, 2) },
      ['layer 1', 'a slot for every expert', 'expert 0'],
    ],
    ['layer ids of another length', { ...PLACEMENT, layerIds: Int32Array.of(1) }, ['layerIds', '2 ids', '1']],
    [
      'layer ids that do not ascend',
      { ...PLACEMENT, layerIds: Int32Array.of(5, 5) },
      ['layerIds[1]', 'from 6', '5'],
    ],
    [
      'a negative layer id',
      { ...PLACEMENT, layerIds: Int32Array.of(-1, 5) },
      ['layerIds[0]', 'from 0', '-1'],
    ],
    [
      'an absurd layer id',
      { ...PLACEMENT, layerIds: Int32Array.of(0, 2 ** 31 - 1) },
      ['layerIds[1]', '4095', '2147483647'],
    ],
    ['too few model layers', { ...PLACEMENT, modelLayers: 5 }, ['modelLayers', 'from 6', '5']],
    ['absurd model layers', { ...PLACEMENT, modelLayers: 2 ** 40 }, ['modelLayers', '4096']],
  ];
  it.each(cases)('refuses %s', async (_, placement, fragments) => {
    for (const format of FORMATS)
      await expectFailure(() => encodePlacement(placement, format), fragments, 'GIMBAL_INVALID_INPUT');
  });

  it('refuses an unknown format, one of the prototype too', async () => {
    for (const format of ['yaml', 'constructor']) {
      await expectFailure(
        () => encodePlacement(PLACEMENT, format as PlacementFormat),
        ['format', 'tensorrt-llm', format],
        'GIMBAL_INVALID_INPUT',
      );
    }
  });

  it('refuses metadata that is not JSON', async () => {
    const metadata: Record<string, unknown> = {};
    metadata.self = metadata;
    await expectFailure(
      () => encodePlacement({ ...PLACEMENT, metadata }, 'json'),
      ['metadata', 'JSON'],
      'GIMBAL_INVALID_INPUT',
    );
  });
});

/** Every expert once, then replicas; on each GPU at most once, so that all formats can say it. */
const arbitraryPlacement = fc
  .record({
    layers: fc.integer({ min: 1, max: 4 }),
    gpus: fc.integer({ min: 1, max: 5 }),
    slotsPerGpu: fc.integer({ min: 1, max: 6 }),
    spare: fc.integer({ min: 0, max: 4 }),
    start: fc.integer({ min: 0, max: 60 }),
    gap: fc.integer({ min: 1, max: 3 }),
    seed: fc.integer({ min: 0, max: 1000 }),
  })
  .map(({ layers, gpus, slotsPerGpu, spare, start, gap, seed }): PlacementToExport => {
    const slots = gpus * slotsPerGpu;
    const experts = Math.max(slotsPerGpu, slots - spare);
    const row = (layer: number) =>
      Array.from({ length: slots }, (_, slot) => (slot * 1 + layer + seed) % experts);
    return {
      layers,
      gpus,
      slotsPerGpu,
      experts,
      physicalToLogical: Int32Array.from(Array.from({ length: layers }, (_, layer) => row(layer)).flat()),
      layerIds: Int32Array.from({ length: layers }, (_, layer) => start + layer * gap),
      metadata: { seed },
    };
  });

describe('round trips', () => {
  it.each(FORMATS)('%s comes back as it was', async (format) => {
    const path = folder.path(`trip-${format}${placementFormats[format].extension}`);
    await fc.assert(
      fc.asyncProperty(arbitraryPlacement, async (placement) => {
        const { layers, gpus, slotsPerGpu, experts, physicalToLogical, layerIds, metadata } = placement;
        await writePlacement(path, placement, format);
        const found = await readPlacement(path, { gpus, experts });
        expect(found).toMatchObject({
          slots: gpus * slotsPerGpu,
          gpus,
          slotsPerGpu,
          experts,
          format,
          notes: [],
        });
        if (format === 'sglang') {
          // Its rows are all model layers: ours are among them, the others hold every expert.
          expect(found.layers).toBe(layerIds!.at(-1)! + 1);
          const slots = gpus * slotsPerGpu;
          layerIds!.forEach((id, layer) => {
            const row = found.physicalToLogical.subarray(id * slots, (id + 1) * slots);
            expect([...row]).toEqual([...physicalToLogical.subarray(layer * slots, (layer + 1) * slots)]);
          });
          return;
        }
        expect(found.layers).toBe(layers);
        expect([...found.physicalToLogical]).toEqual([...physicalToLogical]);
        if (format === 'tensorrt-llm' || format === 'json')
          expect([...found.layerIds!]).toEqual([...layerIds!]);
        if (format === 'json') expect(found.metadata).toEqual(metadata);
      }),
      { numRuns: 25 },
    );
  });
});

describe('writing', () => {
  const leftovers = (name: string) =>
    readdirSync(folder.path(name)).filter((entry) => entry.endsWith('.tmp'));

  it('replaces a file whole, and leaves the old one where it cannot', async () => {
    mkdirSync(folder.path('out'));
    const path = folder.write('out/placement.json', 'old');
    await expectFailure(
      () => writePlacement(path, without('layerIds'), 'tensorrt-llm'),
      ['layerIds'],
      'GIMBAL_INVALID_INPUT',
    );
    expect(readFileSync(path, 'utf8')).toBe('old');
    await writePlacement(path, PLACEMENT, 'json');
    expect(JSON.parse(readFileSync(path, 'utf8')).layers).toBe(2);
    expect(leftovers('out')).toEqual([]);
  });

  it('leaves nothing behind when the rename fails', async () => {
    mkdirSync(folder.path('broken'));
    // A data source that fails half-way stands for a full disk.
    const failing = { toString: () => 'x' } as unknown as string;
    const path = folder.write('broken/file.json', 'old');
    await expectFailure(() => writeFileAtomic(path, failing), ['file.json'], 'GIMBAL_IO');
    expect(readFileSync(path, 'utf8')).toBe('old');
    expect(leftovers('broken')).toEqual([]);
  });

  it('names a folder that is not there, and a path that is a folder', async () => {
    await expectFailure(
      () => writePlacement(folder.path('absent/x.json'), PLACEMENT, 'json'),
      ['absent/x.json', 'ENOENT'],
      'GIMBAL_IO',
    );
    mkdirSync(folder.path('taken'));
    await expectFailure(
      () => writePlacement(folder.path('taken'), PLACEMENT, 'json'),
      ['taken', 'a regular file or a new name'],
      'GIMBAL_IO',
    );
    expect(existsSync(folder.path('absent'))).toBe(false);
  });

  it('follows a symbolic link and keeps it', async () => {
    const target = folder.write('target.json', 'old');
    symlinkSync(target, folder.path('link.json'));
    await writePlacement(folder.path('link.json'), PLACEMENT, 'vllm');
    expect(lstatSync(folder.path('link.json')).isSymbolicLink()).toBe(true);
    expect(JSON.parse(readFileSync(target, 'utf8'))).toHaveLength(2);
  });

  it.skipIf(process.platform === 'win32')('refuses to write to, or read, what is no file', async () => {
    await expectFailure(
      () => writePlacement('/dev/null', PLACEMENT, 'json'),
      ['/dev/null', 'a regular file'],
      'GIMBAL_IO',
    );
    await expectFailure(() => readPlacement('/dev/null'), ['/dev/null', 'a regular file'], 'GIMBAL_IO');
    await expectFailure(() => readPlacement(folder.path('.')), ['a regular file'], 'GIMBAL_IO');
  });

  it.skipIf(process.platform === 'win32' || process.getuid?.() === 0)(
    'names a file it may not read',
    async () => {
      const path = folder.path('secret.json');
      writeFileSync(path, '[]');
      chmodSync(path, 0);
      await expectFailure(() => readPlacement(path), ['secret.json', 'EACCES'], 'GIMBAL_IO');
    },
  );
});
