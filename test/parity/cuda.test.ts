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

  it('turns a failure of the device into a typed error, and goes on', { timeout: 120_000 }, () => {
    const [first, second, third] = run('failure', {
      HOSTLAYER_FAIL: 'cudaMalloc:2:cudaErrorMemoryAllocation',
    });
    expect(first).toMatchObject({ code: 'GIMBAL_BACKEND_FAILED', field: 'cuda' });
    expect(first.message).toContain('cudaMalloc');
    expect(first.message).toContain('cudaErrorMemoryAllocation');
    expect([second, third]).toEqual([{ backend: 'cuda' }, { backend: 'cuda' }]);
  });

  it('is there with its device in words', () => {
    const cuda = run('backends')[1];
    expect(cuda).toMatchObject({ name: 'cuda', available: true });
    expect(cuda.description).toContain('compute capability');
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
  });
});
