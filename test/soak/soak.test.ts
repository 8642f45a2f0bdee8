/** A long life must not pile up memory, native or JavaScript's. */
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { expect, it } from 'vitest';

/** Noise of the allocators. A leak of 1.5 KB a plan would show 12 MB. */
const MAX_GROWTH_MB = 8;

it('10,000 small plans leak nothing', { timeout: 300_000 }, () => {
  const script = path.join(__dirname, 'small-plans.cjs');
  const flags = ['--expose-gc', '--max-semi-space-size=1'];
  const growth = Number(execFileSync(process.execPath, [...flags, script], { encoding: 'utf8' }));
  expect(growth).toBeLessThan(MAX_GROWTH_MB);
});
