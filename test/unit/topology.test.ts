/** The derived costs against figures worked out by hand, and every form of input. */
import { describe, expect, it } from 'vitest';
import {
  findHardware,
  findModel,
  hardware,
  models,
  parseTopology,
  planPlacement,
  topology,
} from '../../lib/index.js';

const V3_COMPUTE_NS = (6 * 7168 * 2048) / 412e3;
const V3_PAIR_BYTES = 7168 * 3;

describe('topology', () => {
  it('derives DeepSeek-V3 on 4 x 8 H100', () => {
    const cluster = topology({ nodes: 4, gpusPerNode: 8, model: 'DeepSeek-V3', hardware: 'H100' });
    expect(cluster).toMatchObject({ gpus: 32, sources: 32, nodes: 4, gpusPerNode: 8 });
    expect(cluster.computeCost).toEqual(new Float64Array(32).fill(V3_COMPUTE_NS));
    const cost = (source: number, gpu: number) => cluster.commCost[source * 32 + gpu];
    expect(cost(9, 9)).toBe(0);
    expect(cost(9, 15)).toBeCloseTo(V3_PAIR_BYTES / 265, 9);
    expect(cost(9, 16)).toBeCloseTo(V3_PAIR_BYTES / 50, 9);
    expect(cost(16, 9)).toBe(cost(9, 16));
  });

  it('adds the activations on A100, and takes the link figure of the node size', () => {
    const two = topology({ nodes: 1, gpusPerNode: 2, model: 'Qwen3-30B-A3B', hardware: 'A100' });
    expect(two.computeCost[0]).toBeCloseTo((6 * 2048 * 768) / 143e3 + (4 * 2048 + 6 * 768) / 1.4e3, 9);
    expect(two.commCost[1]).toBeCloseTo((2048 * 4) / 131, 9);
    const four = topology({ nodes: 1, gpusPerNode: 4, model: 'Qwen3-30B-A3B', hardware: 'A100' });
    expect(four.commCost[1]).toBeCloseTo((2048 * 4) / 162, 9);
  });

  it('lets a DP rank of several GPUs cost what its nearest GPU costs', () => {
    const cluster = topology({ nodes: 2, gpusPerNode: 4, tensorParallel: 2 });
    expect(cluster.sources).toBe(4);
    const row = Array.from(cluster.commCost.subarray(8, 16));
    const intra = V3_PAIR_BYTES / 265;
    const inter = V3_PAIR_BYTES / 50;
    expect(row).toEqual([intra, intra, 0, 0, inter, inter, inter, inter]);
    expect(topology({ nodes: 2, gpusPerNode: 4, dpSize: 4 }).commCost).toEqual(cluster.commCost);
  });

  it('has no communication to plan under all-gather and reduce-scatter', () => {
    const cluster = topology({ nodes: 2, gpusPerNode: 2, allToAll: 'allgather-reducescatter' });
    expect(cluster.commCost).toEqual(new Float64Array(16));
    expect(cluster.explanation.join('\n')).toMatch(/do not depend on the placement/);
  });

  it('takes own figures in place of the derived ones', () => {
    const cluster = topology({
      nodes: 2,
      gpusPerNode: 1,
      computeCost: [100, 150],
      links: { interNodeGBps: 100 },
      dispatchBytesPerElement: 2,
      model: { ...models['Mixtral-8x7B'], hiddenSize: 1000 },
      hardware: { ...hardware.H200, name: 'mine' },
    });
    expect(cluster.computeCost).toEqual(Float64Array.of(100, 150));
    expect(cluster.commCost).toEqual(Float64Array.of(0, 40, 40, 0));
  });

  it('says how each figure came about, and what it assumed', () => {
    const text = topology({ nodes: 4, gpusPerNode: 8 }).explanation.join('\n');
    expect(text).toMatch(/32 GPUs: 4 x 8; 32 DP ranks of 1 GPU each/);
    expect(text).toMatch(/213\.8 ns .*6·7168·2048 FLOP .*412 TFLOP\/s/);
    expect(text).toMatch(
      /no model was named, DeepSeek-V3 is assumed; no hardware was named, H100 is assumed/,
    );
    expect(text).toMatch(/21504 = 7168 elements .*1 B dispatch \+ 2 B combine/);
    expect(text).toMatch(/81\.15 ns within a node \(265 GB\/s.*430\.1 ns between nodes \(50 GB\/s/);
    expect(topology({ nodes: 1, gpusPerNode: 8 }).explanation.join('\n')).not.toMatch(/between nodes/);
  });

  it.each([
    [{ nodes: 0, gpusPerNode: 8 }, 'topology.nodes'],
    [{ nodes: 1 }, 'topology.gpusPerNode'],
    [{ nodes: 1, gpusPerNode: 8, gpus: 8 }, 'topology.gpus'],
    [{ nodes: 1, gpusPerNode: 8, sources: 3 }, 'topology.sources'],
    [{ nodes: 1, gpusPerNode: 8, tensorParallel: 3 }, 'topology.tensorParallel'],
    [{ nodes: 1, gpusPerNode: 8, sources: 4, tensorParallel: 4 }, 'topology.sources'],
    [{ nodes: 1, gpusPerNode: 8, sources: 4, dpSize: 2 }, 'topology.dpSize'],
    [{ nodes: 1, gpusPerNode: 8, hardware: 'H1000' }, 'hardware'],
    [{ nodes: 1, gpusPerNode: 8, model: 'DeepSeek' }, 'model'],
    [{ nodes: 1, gpusPerNode: 8, allToAll: 'ring' }, 'topology.allToAll'],
    [{ nodes: 1, gpusPerNode: 8, computeCost: [1] }, 'topology.computeCost'],
    [{ nodes: 1, gpusPerNode: 2, computeCost: [1, -1] }, 'topology.computeCost[1]'],
    [{ nodes: 1, gpusPerNode: 8, links: { interNodeGBps: 0 } }, 'topology.links.interNodeGBps'],
    [{ nodes: 1, gpusPerNode: 8, links: { nvlink: 1 } }, 'topology.links.nvlink'],
  ])('refuses %o', (options, field) => {
    const parse = () => topology(options as unknown as Parameters<typeof topology>[0]);
    expect(parse).toThrow(expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field }));
  });

  it('spreads into a problem', async () => {
    const plan = await planPlacement({
      ...topology({ nodes: 2, gpusPerNode: 2 }),
      layers: 1,
      experts: 6,
      slotsPerGpu: 2,
      tokens: new Uint32Array(4 * 6).fill(10),
    });
    expect(plan.physicalToLogical).toHaveLength(8);
  });
});

describe('parseTopology', () => {
  it.each(['4x8', ' 4 X 8 ', '4×8', '{"nodes": 4, "gpusPerNode": 8}'])('reads %o', (text) => {
    expect(parseTopology(text)).toEqual(topology({ nodes: 4, gpusPerNode: 8 }));
  });

  it('fills in from the options what the input leaves open', () => {
    const parsed = parseTopology(
      { nodes: 1, gpusPerNode: 2, model: 'kimi-k2' },
      { model: 'Mixtral-8x7B', hardware: 'a100' },
    );
    expect(parsed).toEqual(topology({ nodes: 1, gpusPerNode: 2, model: 'Kimi-K2', hardware: 'A100' }));
  });

  const twoByTwo = { rank_cost_matrix: [[0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 1], [4, 4, 1, 0]] }; // biome-ignore format: a matrix

  it('scales a rank cost matrix to the slowest link, and finds the nodes in it', () => {
    const parsed = parseTopology(JSON.stringify(twoByTwo), { model: 'DeepSeek-V3', hardware: 'H100' });
    expect(parsed).toMatchObject({ nodes: 2, gpusPerNode: 2, gpus: 4, sources: 4 });
    const largest = V3_PAIR_BYTES / 50;
    const expected = [0, largest / 4, largest, largest];
    Array.from(parsed.commCost.subarray(0, 4)).forEach((cost, gpu) => {
      expect(cost).toBeCloseTo(expected[gpu]!, 9);
    });
    expect(parsed.explanation.join('\n')).toMatch(/largest entry, 4, stands for 430\.1 ns/);
  });

  it('takes the unit of a rank cost matrix, and DP ranks of several GPUs', () => {
    const parsed = parseTopology(twoByTwo, { nsPerCostUnit: 10, tensorParallel: 2 });
    expect(parsed.sources).toBe(2);
    expect(parsed.commCost).toEqual(Float64Array.of(0, 0, 40, 40, 40, 40, 0, 0));
  });

  it('takes a matrix without blocks for one node', () => {
    const ring = [[0, 1, 2], [2, 0, 1], [1, 2, 0]]; // biome-ignore format: a matrix
    expect(parseTopology({ rank_cost_matrix: ring })).toMatchObject({ nodes: 1, gpusPerNode: 3 });
    expect(parseTopology({ rank_cost_matrix: [[0]] })).toMatchObject({
      nodes: 1,
      commCost: Float64Array.of(0),
    });
  });

  it.each([
    ['4by8', 'topology', 'GIMBAL_FORMAT'],
    ['', 'topology', 'GIMBAL_FORMAT'],
    ['[1]', 'topology', 'GIMBAL_FORMAT'],
    ['null', 'topology', 'GIMBAL_FORMAT'],
    ['0x8', 'topology.nodes', 'GIMBAL_INVALID_INPUT'],
    ['{"rank_cost_matrix": []}', 'topology.rank_cost_matrix', 'GIMBAL_INVALID_INPUT'],
    ['{"rank_cost_matrix": [[0,1]]}', 'topology.rank_cost_matrix[0]', 'GIMBAL_INVALID_INPUT'],
    ['{"rank_cost_matrix": [[0,1],[1,2]]}', 'topology.rank_cost_matrix[1][1]', 'GIMBAL_INVALID_INPUT'],
    ['{"rank_cost_matrix": [[0,-1],[1,0]]}', 'topology.rank_cost_matrix[0][1]', 'GIMBAL_INVALID_INPUT'],
    ['{"rank_cost_matrix": [[0]], "nodes": 1}', 'topology.nodes', 'GIMBAL_INVALID_INPUT'],
  ])('refuses %o', (text, field, code) => {
    expect(() => parseTopology(text)).toThrow(expect.objectContaining({ code, field }));
  });
});

describe('presets', () => {
  it('are found whatever the case', () => {
    expect(findModel('qwen3-235b-a22b')).toBe(models['Qwen3-235B-A22B']);
    expect(findHardware(' h200 ')).toBe(hardware.H200);
    expect(() => findModel('Kimi K2')).toThrow(/did you mean 'Kimi-K2'/);
  });

  it.each(Object.values(models))('$name has experts of the size its shape gives', (model) => {
    const elements = 3 * model.hiddenSize * model.expertIntermediateSize;
    // mxfp4: 4 bits an element and a byte of scale for each 32.
    const bytes = { bf16: 2, fp8: 1, mxfp4: 4.25 / 8 }[model.precision];
    expect(model.expertBytes / (elements * bytes)).toBeCloseTo(1, 2);
    expect(model.moeLayers).toBeLessThanOrEqual(model.layers);
  });
});
