/** The configuration of `gimbal run`: what it takes, what it refuses, and the problem that comes of it. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  checkRunOptions,
  initialPlacement,
  migrationOf,
  modelOf,
  readRunConfig,
} from '../../lib/controller/run-config.js';
import { writePlacement } from '../../lib/export/placement.js';
import { topology } from '../../lib/topology.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gimbal-run-'));
});
afterAll(() => rm(folder, { recursive: true }));

const CONTROLLER = {
  topology: { nodes: 1, gpusPerNode: 4, model: 'mixtral-8x7b', hardware: 'h100' },
  slotsPerGpu: 3,
  hook: { command: ['true'] },
  stateFile: 'state.json',
};
const OPTIONS = {
  servers: [{ url: 'http://a:8000', ranks: 2 }],
  routing: { layers: 2, firstLayer: 3, experts: 8 },
  controller: CONTROLLER,
};
const withController = (changed: object) => ({ ...OPTIONS, controller: { ...CONTROLLER, ...changed } });

describe('checkRunOptions', () => {
  it('takes the gateway’s keys and the controller’s, with their defaults', () => {
    const config = checkRunOptions(OPTIONS);
    expect(config.servers[0]).toMatchObject({ url: 'http://a:8000', kind: 'vllm' });
    expect(config.controller).toMatchObject({ shadow: false, intervalMs: 10_000, rules: {}, plan: {} });
  });

  it.each([
    ['controller', { ...OPTIONS, controller: undefined }],
    ['routing', { ...OPTIONS, routing: undefined }],
    ['servers[].group', { ...OPTIONS, servers: [{ url: 'http://a' }, { url: 'http://b' }] }],
    ['servers[0].ranks', { ...OPTIONS, servers: [{ url: 'http://a', ranks: 0 }] }],
    ['controller.stateFile', withController({ stateFile: undefined })],
    ['controller.hook', withController({ hook: undefined })],
    ['controller.hook', withController({ hook: { command: [] } })],
    ['controller.hook', withController({ hook: { url: 'ftp://x', command: ['true'] } })],
    ['controller.slotsPerGpu', withController({ slotsPerGpu: 1 })],
    ['controller.rules.horizon', withController({ rules: { horizon: 1 } })],
    ['controller.topology', withController({ topology: { nodes: 1, gpusPerNode: 4, model: 'gpt-9' } })],
    ['controller.topology', withController({ topology: { nodes: 1, gpusPerNode: 3 } })],
    ['controller.topology', withController({ topology: { nodes: 1, gpusPerNode: 4, sources: 4 } })],
    ['controller.migration.expertBytes', withController({ topology: { nodes: 1, gpusPerNode: 4 } })],
  ])('names %s where it is amiss', (key, options) => {
    expect(() => checkRunOptions(options, 'run.yaml')).toThrow(
      expect.objectContaining({
        code: expect.stringMatching(/^GIMBAL_/),
        message: expect.stringContaining(`run.yaml: ${key}`),
      }),
    );
  });

  it('wants no hook in the shadow, of the file or of the command line', async () => {
    const { hook: _, ...rest } = CONTROLLER;
    expect(
      checkRunOptions({ ...OPTIONS, controller: { ...rest, shadow: true } }).controller.hook,
    ).toBeUndefined();
    const file = join(folder, 'run.json');
    await writeFile(file, JSON.stringify({ ...OPTIONS, controller: rest }));
    await expect(readRunConfig(file)).rejects.toThrow('controller.hook');
    expect((await readRunConfig(file, true)).controller.shadow).toBe(true);
  });
});

describe('the problem', () => {
  it('has the model of the routing, and the costs of the cluster', () => {
    const model = modelOf(checkRunOptions(OPTIONS));
    const { computeCost, commCost } = topology({
      nodes: 1,
      gpusPerNode: 4,
      sources: 2,
      model: 'mixtral-8x7b',
      hardware: 'h100',
    });
    expect(model).toEqual({
      layers: 2,
      sources: 2,
      experts: 8,
      gpus: 4,
      slotsPerGpu: 3,
      computeCost,
      commCost,
      layerIds: Int32Array.of(3, 4),
    });
  });

  it('knows what an expert weighs, from the model or by itself', () => {
    expect(migrationOf(checkRunOptions(OPTIONS).controller)).toEqual({ expertBytes: 352e6 });
    const own = withController({ migration: { expertBytes: 5, stallMs: 7 } });
    expect(migrationOf(checkRunOptions(own).controller)).toEqual({ expertBytes: 5, stallMs: 7 });
  });

  it('begins as engines do, or with a file', async () => {
    const config = checkRunOptions(OPTIONS);
    const row = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3];
    expect([...(await initialPlacement(config, modelOf(config)))]).toEqual([...row, ...row]);

    const file = join(folder, 'initial.json');
    const placed = Int32Array.from([...row].reverse().concat(row));
    const shape = { layers: 2, gpus: 4, slotsPerGpu: 3, experts: 8, layerIds: Int32Array.of(3, 4) };
    await writePlacement(file, { ...shape, physicalToLogical: placed }, 'json');
    const given = checkRunOptions(withController({ initial: { file } }));
    expect([...(await initialPlacement(given, modelOf(given)))]).toEqual([...placed]);
    const wider = checkRunOptions(withController({ initial: { file }, slotsPerGpu: 4 }));
    await expect(initialPlacement(wider, modelOf(wider))).rejects.toThrow('16 slots a layer');
  });
});
