/** What the bench of GPU latency says of a run on a GPU, from a run that is made up; and that it says no time without one. */
import { describe, expect, it } from 'vitest';
import * as latency from '../../bench/gpu/latency.js';
import { figures, type Measured } from '../../bench/gpu/latency.js';
import { runBench } from '../../bench/harness.js';
import { SHAPES } from '../../bench/workloads.js';
import { backends } from '../../lib/index.js';
import type { DeviceInfo } from '../../lib/types.js';

const DEVICE: DeviceInfo = {
  name: 'NVIDIA H100 80GB HBM3',
  computeCapability: '9.0',
  multiprocessors: 132,
  memoryBytes: 80 * 2 ** 30,
  clockMhz: 1980,
  memoryClockMhz: 2619,
  memoryBusBits: 5120,
  driver: '13.0',
  runtime: '12.8',
};

function measured(): Measured {
  const shape = SHAPES['deepseek-v3-288'].name;
  return {
    openMs: 120,
    plans: [
      {
        shape,
        effort: 'fast',
        walkers: 64,
        same: true,
        cpuMs: 400,
        cudaMs: 4,
        cudaWorstMs: 5,
        kernelMs: 1.9,
        firstMs: 300,
        eplbMs: 9,
        overEplb: 0.4,
      },
    ],
    evaluations: [
      {
        shape,
        experts: 256,
        slots: 288,
        candidates: 4096,
        layers: 58,
        same: true,
        cpuMs: 300,
        cudaMs: 20,
        kernelMs: 0.2,
      },
    ],
  };
}

describe('gpu-latency on a GPU', () => {
  it('states the device, its bandwidth, and rates against the roofline', () => {
    const { tables, checks, notes } = figures(measured(), DEVICE, false);
    for (const { columns, rows } of tables) for (const row of rows) expect(row).toHaveLength(columns.length);
    const [device, plans, evaluations] = tables;
    // 2 × 2,619 MHz × 640 bytes
    expect(device!.rows).toContainEqual(['memory bandwidth, GB/s', 3352]);
    expect(plans!.rows[0]!.slice(0, 5)).toEqual([SHAPES['deepseek-v3-288'].name, 'fast', 64, 400, 4]);
    const row = evaluations!.rows[0]!;
    const column = (name: string) => row[evaluations!.columns.indexOf(name)];
    expect(column('CUDA rate')).toBeCloseTo((4096 * 58) / 20 / 1e3, 2);
    expect(column('by memory')).toBeCloseTo(3352.32e6 / (288 * 4 + 36) / 1e3, 0);
    expect(column('of roofline')).toBeGreaterThan(0.5);
    expect(checks.filter(({ pass }) => !pass)).toEqual([]);
    expect(checks).toHaveLength(4);
    expect(notes.length).toBeGreaterThan(0);
  });

  it.each<[string, (of: Measured) => void, RegExp]>([
    ['a plan that differs', (of) => (of.plans[0]!.same = false), /plans are the CPU's/],
    ['an evaluation that differs', (of) => (of.evaluations[0]!.same = false), /evaluations are the CPU's/],
    ['slow walks', (of) => (of.plans[0]!.kernelMs = 2.1), /≤ 2 ms/],
    ['a slow evaluation', (of) => (of.evaluations[0]!.kernelMs = 0.4), /within 2×/],
  ])('misses a target by %s', (_, worsen, target) => {
    const of = measured();
    worsen(of);
    const missed = figures(of, DEVICE, false).checks.filter(({ pass }) => !pass);
    expect(missed).toHaveLength(1);
    expect(missed[0]!.target).toMatch(target);
  });

  it('holds no other device to the targets of an H100', () => {
    const of = measured();
    of.plans[0]!.kernelMs = 100;
    expect(figures(of, { ...DEVICE, name: 'Tesla T4' }, false).checks).toHaveLength(2);
  });
});

it.skipIf(backends()[1]!.available)('without a GPU no time is given', { timeout: 120_000 }, async () => {
  const { tables, notes } = await runBench(latency, { small: true });
  expect(notes.join('\n')).toMatch(/No GPU here: .+ No time of a GPU is given/);
  for (const { title, columns } of tables) {
    expect(title).toContain('played by the CPU');
    expect(columns).toEqual(['shape', 'what', 'same']);
  }
});
