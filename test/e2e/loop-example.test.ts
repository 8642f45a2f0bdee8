/** The example of the closed loop, as `npm run demo:loop` runs it. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

const EXAMPLE = join(__dirname, '..', '..', 'examples', 'closed-loop.ts');

it('examples/closed-loop.ts finds a better placement and has it put in force', {
  timeout: 120_000,
}, async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', EXAMPLE], {
    timeout: 100_000,
  });
  const worst = [...stdout.matchAll(/worst layer: ([\d.]+)/g)].map(([, figure]) => Number(figure));
  expect(worst, stdout).toHaveLength(2);
  expect(worst[1]!).toBeLessThan(worst[0]!);
  expect(stdout).toMatch(/committed \S+: \d+ moves, .* gained/);
});
