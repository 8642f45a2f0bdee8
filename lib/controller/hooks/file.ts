/**
 * A hook for an operator that watches a folder: the change as `change.json`, and after it, since that is what is watched,
 * `manifest.json` with the plan's name and the checksum of `change.json`. Who has put it in force says so in `acknowledged.json`,
 * `{"planId": "…"}`, and that is what is waited for and what tells the plan in force.
 */
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { aboveZero, checkKeys, nonEmpty } from '../../checks.js';
import { readFileBounded, writeFileAtomic } from '../../files.js';
import type { ApplyHook } from '../types.js';
import { toWire } from './wire.js';

const MOST_BYTES = 64 * 1024;

export interface FileHookOptions {
  /** Made where it is not there. */
  folder: string;
  /** Between two looks at `acknowledged.json`. Default 500. */
  pollMs?: number;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT */
export function fileHook(options: FileHookOptions): ApplyHook {
  checkKeys('options', options, ['folder', 'pollMs']);
  const folder = nonEmpty('options.folder', options.folder, 'a path');
  const pollMs = aboveZero('options.pollMs', options.pollMs ?? 500);
  const acknowledged = () => acknowledgedIn(folder);
  return {
    apply: async (change, signal) => {
      await mkdir(folder, { recursive: true });
      const text = `${JSON.stringify(toWire(change))}\n`;
      await writeFileAtomic(join(folder, 'change.json'), text);
      const { planId, previousPlanId, fencingToken, isRollback, file } = change;
      const sha256 = createHash('sha256').update(text).digest('hex');
      const manifest = { version: 1, planId, previousPlanId, fencingToken, isRollback, sha256, file };
      signal.throwIfAborted();
      await writeFileAtomic(join(folder, 'manifest.json'), `${JSON.stringify(manifest)}\n`);
      while ((await acknowledged()) !== planId) await sleep(pollMs, undefined, { signal });
    },
    verify: acknowledged,
  };
}

/** Undefined where nobody has acknowledged anything, or not in a way that can be read. */
async function acknowledgedIn(folder: string): Promise<string | undefined> {
  try {
    const bytes = await readFileBounded(join(folder, 'acknowledged.json'), { maxBytes: MOST_BYTES });
    const { planId } = JSON.parse(Buffer.from(bytes).toString('utf8')) as { planId?: unknown };
    return typeof planId === 'string' ? planId : undefined;
  } catch {
    return undefined;
  }
}
