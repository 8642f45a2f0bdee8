/**
 * The CUDA backend gives the CPU's plans, and fails as it should. Where there is no GPU it runs all the same: its sources, as
 * they are, on a CPU (native/test/hostlayer), as a plug-in that `npm test` builds.
 */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it } from 'vitest';

const ROOT = path.join(__dirname, '..', '..');
const PLUGIN = path.join(ROOT, 'build-tests', 'gimbal_cuda_hostlayer.so');
const SCRIPT = path.join(__dirname, 'both-backends.cjs');
const SUITE = path.join(__dirname, 'suite.ts');

function run(what: string, environment: Record<string, string> = {}) {
  const env = { ...process.env, GIMBAL_CUDA_PLUGIN: PLUGIN, ...environment };
  const output = execFileSync(process.execPath, [SCRIPT, what], {
    env,
    encoding: 'utf8',
    timeout: 240_000,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return JSON.parse(output);
}

describe.skipIf(!fs.existsSync(PLUGIN))('the CUDA backend, by its sources on a CPU', () => {
  it('plans and prices as the CPU backend does, bit for bit', { timeout: 300_000 }, () => {
    for (const row of run('parity')) expect(row).toMatchObject({ same: true, backend: 'cuda' });
  });

  it('does so in any order of threads', { timeout: 300_000 }, () => {
    const plans = ['forward', 'backward'].map((order) => run('parity', { HOSTLAYER_ORDER: order }));
    expect(plans[0]).toEqual(plans[1]);
    for (const row of plans[0]) expect(row).toMatchObject({ same: true });
  });

  it('does so for models and clusters as they are, and for one beyond shared memory', {
    timeout: 300_000,
  }, () => {
    const output = execFileSync(process.execPath, ['--import', 'tsx', SUITE], {
      cwd: ROOT,
      env: { ...process.env, GIMBAL_CUDA_PLUGIN: PLUGIN },
      encoding: 'utf8',
      timeout: 240_000,
    });
    expect(output).toMatch(/^1\d passed, 0 failed$/m);
    expect(output).toContain('same  512 GPUs, 1,024 slots');
  });

  it('scores requests as the CPU backend does, bit for bit', { timeout: 120_000 }, () => {
    const rows = run('scores');
    for (const row of rows) expect(row).toMatchObject({ same: true, backend: 'cuda' });
    // Some requests can go somewhere, and some fleets have nobody for a stage.
    expect(rows.filter(({ picked }: { picked: number }) => picked > 0).length).toBeGreaterThan(20);
  });

  it('turns failures under scores into typed errors, and goes on where the device can', {
    timeout: 120_000,
  }, () => {
    for (const api of ['cudaMalloc', 'cudaHostAlloc', 'launch', 'cudaMemcpyAsync', 'cudaEventRecord']) {
      const [first, ...later] = run('scoreFailure', {
        HOSTLAYER_FAIL: `${api}:1:cudaErrorLaunchOutOfResources`,
      });
      expect(first, api).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED', field: 'cuda' });
      expect(later, api).toEqual([{ backend: 'cuda' }, { backend: 'cpu' }]);
    }
    const [first, second, third] = run('scoreFailure', { HOSTLAYER_FAIL: 'async:2:cudaErrorIllegalAddress' });
    expect(first).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED' });
    expect(second).toMatchObject({ code: 'GIMBAL_BACKEND_UNAVAILABLE' });
    expect(second.message).toMatch(/device 0 is lost to this process .*cudaErrorIllegalAddress/);
    expect(third).toEqual({ backend: 'cpu' });
  });

  it('turns a failure of the device into a typed error, and goes on', { timeout: 120_000 }, () => {
    const [first, second, third] = run('failure', {
      HOSTLAYER_FAIL: 'cudaMalloc:2:cudaErrorMemoryAllocation',
    });
    expect(first).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED', field: 'cuda' });
    expect(first.message).toContain('cudaMalloc');
    expect(first.message).toContain('cudaErrorMemoryAllocation');
    expect([second, third]).toEqual([{ backend: 'cuda' }, { backend: 'cuda' }]);
  });

  it('does so whichever call fails', { timeout: 300_000 }, () => {
    for (const api of [
      'cudaMalloc',
      'cudaHostAlloc',
      'launch',
      'cudaMemcpyAsync',
      'cudaStreamCreateWithFlags',
    ]) {
      for (const nth of [1, 2, 5]) {
        const error = api === 'cudaMalloc' ? 'cudaErrorMemoryAllocation' : 'cudaErrorLaunchOutOfResources';
        const [first, ...later] = run('failure', { HOSTLAYER_FAIL: `${api}:${nth}:${error}` });
        // Fewer calls than that are possible, not another kind of error. Out of memory, a plan of one layer has no smaller batch.
        if (first.backend === undefined) {
          expect(first, `${api} ${nth}`).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED', field: 'cuda' });
          expect(first.message).toContain(error);
        }
        expect(later, `${api} ${nth}`).toEqual([{ backend: 'cuda' }, { backend: 'cuda' }]);
      }
    }
  });

  it('gives a device up for good that a fault has taken, and says so', { timeout: 120_000 }, () => {
    const HOSTLAYER_FAIL = 'async:4:cudaErrorIllegalAddress';
    const [first, second] = run('failure', { HOSTLAYER_FAIL });
    expect(first).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED' });
    expect(first.message).toContain('cudaErrorIllegalAddress');
    expect(second).toMatchObject({ code: 'GIMBAL_BACKEND_UNAVAILABLE' });
    expect(second.message).toMatch(/device 0 is lost to this process .*cudaErrorIllegalAddress/);
    const { tries, cuda } = run('freeChoice', { HOSTLAYER_FAIL });
    expect(tries[0]).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED' });
    expect(tries[1].backend).toBe('cpu');
    expect(tries[1].reason).toMatch(/^cuda: device 0 is lost/);
    expect(cuda).toMatchObject({ available: false });
  });

  it('takes fewer layers at a time where memory is short, with the same plan', { timeout: 120_000 }, () => {
    // Layers that must stay together show what would not fit at once.
    const { together, ...short } = run('manyLayers', { HOSTLAYER_MEMORY_MB: '1' });
    expect(together).toMatch(/cudaErrorMemoryAllocation/);
    expect(short).toEqual({ same: true, backend: 'cuda', steady: true });
    expect(run('manyLayers')).toEqual({ same: true, backend: 'cuda', steady: true, together: 'fits' });
  });

  it('says so where even one layer is too much', { timeout: 120_000 }, () => {
    const [first] = run('failure', { HOSTLAYER_FAIL: 'cudaMalloc:*:cudaErrorMemoryAllocation' });
    expect(first).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED' });
    expect(first.message).toContain('out of memory');
  });

  it('is there with its devices, in words and in figures', () => {
    const cuda = run('backends', { HOSTLAYER_DEVICES: '2' })[1];
    expect(cuda).toMatchObject({ name: 'cuda', available: true });
    expect(cuda.description).toContain('compute capability');
    expect(cuda.devices).toHaveLength(2);
    for (const device of cuda.devices) {
      expect(device).toMatchObject({ computeCapability: '9.0', multiprocessors: 8, memoryBytes: 2 ** 30 });
      expect(device.driver).toMatch(/^\d+\.\d$/);
    }
  });

  it('says how long its kernels took, of a plan and of candidates', () => {
    const { cpu, cuda } = run('kernelTimes');
    expect(cpu).toEqual({});
    expect(cuda.evaluation).toBeGreaterThan(0);
    expect(cuda.plan).toBeGreaterThan(0);
    expect(cuda.plan).toBeLessThan(cuda.elapsed);
  });

  it.each([
    ['no device', { HOSTLAYER_DEVICES: '0' }, /cudaErrorNoDevice/],
    ['no driver or an old one', { HOSTLAYER_DRIVER: 'old' }, /cudaErrorInsufficientDriver/],
    ['no plug-in', { GIMBAL_CUDA_PLUGIN: '/nowhere/gimbal_cuda.so' }, /no CUDA plug-in could be loaded/],
    ['another library', { GIMBAL_CUDA_PLUGIN: 'libm.so.6' }, /is not a CUDA plug-in/],
  ])('says why it is not there: %s', (_, environment, reason) => {
    const cuda = run('backends', environment)[1];
    expect(cuda.available).toBe(false);
    expect(cuda.reason).toMatch(reason);
    const [plan] = run('freeChoice', environment).tries;
    expect(plan.backend).toBe('cpu');
    expect(plan.reason).toMatch(reason);
  });
});
