/** What the CUDA kernels cost stays within budget, and what gets worse is noticed; how the figures are read and modelled. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { hostlayerMissing } from '../../bench/gpu/hostlayer.js';
import * as kernels from '../../bench/gpu/kernels.js';
import { ARCHITECTURES, DEVICES, ISSUED_PER_CLOCK, LAUNCH_NS } from '../../bench/gpu/machines.js';
import { evaluationRoofline, type KernelCounts, modelKernel, modelPlan } from '../../bench/gpu/model.js';
import {
  blocksPerMultiprocessor,
  codeBytes,
  findNvcc,
  kernelName,
  parsePtxas,
  ptxFile,
} from '../../bench/gpu/toolchain.js';
import { formatResult, runBench } from '../../bench/harness.js';

const nvcc = findNvcc();
const sm90 = ARCHITECTURES.find(({ name }) => name === 'sm_90')!;
const h100 = DEVICES.find(({ name }) => name.startsWith('H100'))!;

describe.skipIf('reason' in nvcc)('the kernels, by the compiler', () => {
  it('cost no more than their budget on any architecture', { timeout: 600_000 }, async () => {
    const result = await runBench(kernels);
    const text = formatResult(result);
    expect(
      result.checks.filter(({ pass }) => !pass),
      text,
    ).toEqual([]);
    const targets = result.checks.map(({ target }) => target).join('\n');
    expect(targets).toContain('no kernel spills');
    const ofBudgets = kernels.readBudgets().nvcc === (nvcc as { version: string }).version;
    if (ofBudgets) expect(targets).toContain('registers and blocks within budget');
    if (hostlayerMissing() !== undefined) return;
    if (ofBudgets) expect(targets).toContain('modelled times within budget');
    expect(targets).toContain('≤ 2 ms on H100');
    expect(targets).toContain('48 KiB');
  });

  // CUDA 11 knows no C++20.
  it.skipIf('version' in nvcc && Number.parseInt(nvcc.version, 10) < 12)(
    'compile as C++20 as well',
    { timeout: 120_000 },
    async () => {
      expect(readFileSync(await ptxFile(sm90, 20), 'utf8')).toContain('.target sm_90');
    },
  );

  it('are asked of the calculator as the driver counts', { timeout: 60_000 }, async () => {
    const ask = (registers: number, threads: number, sharedBytes: number) => ({
      architecture: sm90,
      registers,
      threads,
      sharedBytes,
    });
    // By blocks, by registers (65,536 of them, given to warps by 256), by warps, and by shared memory with its KiB of the driver.
    const questions = [ask(16, 32, 0), ask(64, 256, 0), ask(32, 1024, 0), ask(32, 96, 35 * 1024)];
    expect(await blocksPerMultiprocessor(questions)).toEqual([32, 4, 2, 6]);
  });
});

it('the architectures of the bench are those of the build', () => {
  const cmake = readFileSync(join(__dirname, '..', '..', 'CMakeLists.txt'), 'utf8');
  const built = /GIMBAL_CUDA_ARCHITECTURES "([^"]+)"/.exec(cmake)![1]!;
  expect(ARCHITECTURES.map(({ major, minor }) => `${major}${minor}`)).toEqual(built.split(';'));
});

it('a kernel has one name, mangled or not', () => {
  expect(kernelName('_ZN6gimbal4cuda11walk_kernelILNS0_8WalkKindE0ELb1EEEvNS0_13WalkArgumentsE')).toBe(
    'walk<0,1>',
  );
  expect(kernelName('void gimbal::cuda::walk_kernel<(gimbal::cuda::WalkKind)0, true>(WalkArguments)')).toBe(
    'walk<0,1>',
  );
  expect(kernelName('_ZN6gimbal4cuda13choose_kernelEPKNS0_11DeviceLayerE')).toBe('choose');
  expect(() => kernelName('main')).toThrow(/expected the name of a kernel/);
});

it('reads what ptxas says, and nothing else', () => {
  const said = [
    "ptxas info    : Compiling entry function '_ZN6gimbal4cuda12scale_kernelEPNS0_11DeviceLayerE' for 'sm_90'",
    'ptxas info    : Function properties for _ZN6gimbal4cuda12scale_kernelEPNS0_11DeviceLayerE',
    '    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads',
    'ptxas info    : Used 40 registers, used 1 barriers',
  ].join('\n');
  expect(parsePtxas(said)).toEqual([{ kernel: 'scale', registers: 40, spilledBytes: 20, stackBytes: 16 }]);
  expect(() => parsePtxas('ptxas info : nothing')).toThrow(/said nothing/);
  expect(() => codeBytes(Buffer.from('no ELF file at all'))).toThrow(/not a cubin/);
});

function counts(): KernelCounts {
  const costs = { integer: 6, multiply: 2, memory: 2, issue: 10 };
  return {
    kernel: 'walk<0,1>',
    launches: 1,
    blocks: 4,
    threads: 4 * 96,
    sharedBytes: 36_000,
    sharedWavefronts: 1000,
    globalSectors: 100,
    cycles: 8000,
    mostCycles: 2500,
    executed: { ...costs, issue: 40_000 },
    written: { ...costs, issue: 500 },
    hottest: { instructions: 50, executions: 100, lanes: 3200, costs },
  };
}

describe('the model', () => {
  const device = { ...h100, multiprocessors: 2, clockGhz: 1, cacheBandwidth: 100, memoryBandwidth: 10 };
  const inputs = {
    counts: counts(),
    instructions: 1000,
    blocksPerMultiprocessor: 3,
    scale: 10,
    leastBytes: 5000,
  };

  it('takes the longest of its bounds', () => {
    const modelled = modelKernel(device, inputs);
    // PTX of 500 became 1000 instructions of the machine: 40,000 × 2 × 10, on two multiprocessors.
    expect(modelled.issueMs).toBeCloseTo((40_000 * 2 * 10) / 2 / ISSUED_PER_CLOCK / 1e6, 12);
    expect(modelled.sharedMs).toBeCloseTo((1000 * 10) / 2 / 1e6, 12);
    expect(modelled.cacheMs).toBeCloseTo((100 * 10 * 32) / 100 / 1e6, 12);
    expect(modelled.memoryMs).toBeCloseTo(5000 / 10 / 1e6, 12);
    // 40 blocks, of which 6 at a time, of 2,000 clocks each.
    expect(modelled.waitingMs).toBeCloseTo(((40 / 6) * 2000) / 1e6, 12);
    expect(modelled.ms).toBe(Math.max(modelled.issueMs, modelled.waitingMs));
    expect(modelKernel(device, { ...inputs, leastBytes: 1e9 }).ms).toBeCloseTo(100, 9);
  });

  it('adds up what follows on one stream, and lets another one run beside', () => {
    const kernel = (name: string, ms: number) => ({ ...modelKernel(device, inputs), kernel: name, ms });
    const plan = [kernel('walk', 2), kernel('choose', 1), kernel('bound', 0.5)];
    const launches = (2 * LAUNCH_NS) / 1e6;
    const copies = 2 * 0.005 + 100 / device.hostBandwidth / 1e6;
    expect(modelPlan(device, plan, ['bound'], 60, 40)).toBeCloseTo(3 + launches + copies, 9);
    expect(modelPlan(device, [kernel('bound', 7), plan[0]!], ['bound'], 60, 40)).toBeCloseTo(
      7 + launches / 2 + copies,
      9,
    );
  });

  it('sets a roofline by memory or by instructions', () => {
    const work = { experts: 256, slots: 288, count: 1000 };
    const { bytes, memoryMs, issueMs } = evaluationRoofline(device, work);
    expect(bytes).toBe(1000 * (288 * 4 + 36));
    expect(memoryMs).toBeCloseTo(bytes / 10 / 1e6, 12);
    expect(issueMs).toBeGreaterThan(0);
    const twice = evaluationRoofline({ ...device, multiprocessors: 4 }, work);
    expect(twice.issueMs).toBeCloseTo(issueMs / 2, 12);
    expect(twice.memoryMs).toBe(memoryMs);
  });
});

describe('the budget', () => {
  function costs(): kernels.Costs {
    const kernel = { kernel: 'walk<0,1>', registers: 64, spilledBytes: 0, stackBytes: 0, instructions: 1000 };
    const inputs = {
      counts: counts(),
      instructions: 1000,
      blocksPerMultiprocessor: 5,
      scale: 58,
      leastBytes: 0,
    };
    const modelled = modelKernel(h100, inputs);
    return {
      nvcc: '13.0',
      resources: [
        { architecture: sm90, kernels: [{ ...kernel, threads: 96, sharedBytes: 36_000, blocks: 5 }] },
      ],
      plans: [
        {
          shape: 'deepseek-v3-288',
          counts: [counts()],
          devices: [{ device: h100, kernels: [modelled], ms: 1.5 }],
        },
      ],
      evaluation: [{ device: h100, kernel: modelled, rooflineMs: modelled.ms / 1.5 }],
    };
  }
  const budgets = kernels.budgetsOf(costs());
  const missed = (now: kernels.Costs) =>
    kernels
      .budgetChecks(now, budgets)
      .flatMap(({ pass, target, measured }) => (pass ? [] : [`${target}: ${measured}`]));

  it('holds where nothing has changed', () => {
    expect(missed(costs())).toEqual([]);
    expect(kernels.budgetChecks(costs(), budgets)).toHaveLength(5);
  });

  it.each<[string, (now: kernels.Costs) => void, RegExp]>([
    ['a register more', (now) => now.resources[0]!.kernels[0]!.registers++, /65 registers, 64 before/],
    ['a block fewer', (now) => now.resources[0]!.kernels[0]!.blocks--, /4 blocks, 5 before/],
    ['a spill', (now) => (now.resources[0]!.kernels[0]!.spilledBytes = 4), /spills.*4 bytes spilled/],
    ['a stack', (now) => (now.resources[0]!.kernels[0]!.stackBytes = 8), /spills.*8 bytes of stack/],
    ['a kernel that cannot run', (now) => (now.resources[0]!.kernels[0]!.blocks = 0), /runs where/],
    ['a longer loop', (now) => now.plans[0]!.counts[0]!.hottest.instructions++, /51 instructions, 50 before/],
    ['a slower plan', (now) => (now.plans[0]!.devices[0]!.ms = 1.6), /1.6 ms, 1.5 before/],
    ['a slower evaluation', (now) => (now.evaluation[0]!.kernel.ms *= 2), /evaluation on H100/],
    [
      'a kernel that it does not know',
      (now) => (now.resources[0]!.kernels[0]!.kernel = 'price<1>'),
      /has no budget/,
    ],
  ])('notices %s', (_, worsen, expected) => {
    const now = costs();
    worsen(now);
    expect(missed(now).join('\n')).toMatch(expected);
  });

  it('holds another compiler to no spills only', () => {
    const now = { ...costs(), nvcc: '12.4' };
    now.resources[0]!.kernels[0]!.registers = 200;
    expect(missed(now)).toEqual([]);
    now.resources[0]!.kernels[0]!.spilledBytes = 4;
    expect(missed(now)).toHaveLength(1);
  });
});
