/** A contender for a lease in a folder that is held up between its look and its win. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, it, vi } from 'vitest';
import { fileLease } from '../../lib/index.js';

/** What happens just before a token's file is made. */
const held = vi.hoisted(() => ({ up: (_file: string) => {} }));
vi.mock('node:fs/promises', async (original) => {
  const real = await original<typeof import('node:fs/promises')>();
  return {
    ...real,
    open: (file: string, flags: string) => {
      if (flags === 'wx') held.up(file);
      return real.open(file, flags);
    },
  };
});

it('does not win by a token that others have won and left behind meanwhile', async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-lease-'));
  fs.writeFileSync(path.join(folder, 'lease.1'), 'released');
  let overtaken = 0;
  held.up = (file) => {
    if (path.basename(file) !== 'lease.2' || overtaken > 0) return;
    overtaken += 1;
    // Another wins by 2 and gives it back; a third wins by 3 and clears what is older.
    fs.rmSync(path.join(folder, 'lease.1'));
    fs.writeFileSync(path.join(folder, 'lease.3'), 'third 1');
  };
  const lease = fileLease({ folder, ttlMs: 60_000, renewMs: 5 });
  const tokens: (number | undefined)[] = [];
  lease.open((token) => tokens.push(token));
  await vi.waitFor(() => expect(overtaken).toBe(1));
  await vi.waitFor(() => expect(fs.readdirSync(folder)).toEqual(['lease.3']));
  expect(tokens).toEqual([]);
  expect(lease.token).toBeUndefined();
  await lease.close();
});
