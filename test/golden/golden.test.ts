/**
 * The pinned plans: the same placement and the same numbers on every machine, whatever its vectors and threads. A change of
 * the search changes them all, and is pinned anew by the command below; a change of anything else must not.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { type GoldenHashes, hashPlans, pinnedPlans, UPDATE_COMMAND } from './hashes.js';
import { goldenCases } from './problems.js';

const ROOT = join(__dirname, '..', '..');
const run = promisify(execFile);

/** Hashes from a process whose CPU backend is held to an instruction set. */
async function hashesUnder(cpu: string): Promise<GoldenHashes> {
  const script = join(__dirname, 'hashes.ts');
  const options = { cwd: ROOT, env: { ...process.env, GIMBAL_CPU: cpu }, maxBuffer: 2 ** 24 };
  const { stdout } = await run(process.execPath, ['--import', 'tsx', script], options);
  return JSON.parse(stdout);
}

describe('pinned plans', () => {
  it(`are what this machine plans (after a change of the search: ${UPDATE_COMMAND})`, async () => {
    const { plans, backendDetail } = await hashPlans();
    console.log(`golden plans by the CPU backend's ${backendDetail} kernels`);
    expect(plans).toEqual(pinnedPlans());
  });

  it('are the same on one thread and on three', async () => {
    expect((await hashPlans(1)).plans).toEqual(pinnedPlans());
    expect((await hashPlans(3)).plans).toEqual(pinnedPlans());
  });

  it.each(['portable', 'x86-64-v3'])('are the same by the %s kernels', async (cpu) => {
    const { plans, backendDetail } = await hashesUnder(cpu);
    // Where the machine lacks the instruction set, the backend takes what there is.
    if (cpu === 'portable') expect(backendDetail).toBe('portable');
    else expect(['portable', 'x86-64-v3']).toContain(backendDetail);
    expect(plans).toEqual(pinnedPlans());
  });

  it('cover every feature, each under its own name and hash', () => {
    const cases = goldenCases();
    expect(cases.length).toBeGreaterThanOrEqual(24);
    expect(Object.keys(pinnedPlans()).sort()).toEqual(cases.map(({ name }) => name).sort());
    expect(new Set(Object.values(pinnedPlans())).size).toBe(cases.length);
    const has = (test: (problem: (typeof cases)[number]['problem']) => boolean) =>
      cases.filter(({ problem }) => test(problem)).length;
    expect(has((p) => p.replicaChoice === 'nearest')).toBeGreaterThan(2);
    expect(has((p) => p.incumbent !== undefined && p.migrationBudget === undefined)).toBeGreaterThan(1);
    expect(has((p) => p.migrationBudget !== undefined)).toBeGreaterThan(2);
    expect(has((p) => (p.deadGpus ?? []).length > 0)).toBeGreaterThan(1);
    expect(has((p) => typeof p.computeCost !== 'number')).toBeGreaterThan(1);
    expect(has((p) => p.allowDuplicates === true)).toBeGreaterThan(0);
  });
});
