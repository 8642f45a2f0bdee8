/**
 * A lease in a folder that all contenders see. Each time it is won a file named by the next token is made, which only one can do (O_EXCL),
 * and the greatest token's owner holds it. The owner writes a new beat into its file at every renewal. Others go by whether they see
 * the beat change, for as long as `ttlMs` of their own monotonic clock; no time of day is written or read, so clocks may jump.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { checkKeys, nonEmpty } from '../../checks.js';
import { readFileBounded, writeFileAtomic } from '../../files.js';
import type { Lease } from '../types.js';
import { KeptLease, type LeaseStore, type LeaseTimes } from './keeper.js';

const NAME = /^lease\.(\d{1,15})$/;
const RELEASED = 'released';
const MOST_BYTES = 1024;

export interface FileLeaseOptions extends LeaseTimes {
  /** Made where it is not there; of this lease alone. */
  folder: string;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT */
export function fileLease(options: FileLeaseOptions): Lease {
  checkKeys('options', options, ['folder', 'ttlMs', 'renewMs']);
  const folder = nonEmpty('options.folder', options.folder, 'a path');
  return new KeptLease(new LeaseFolder(folder), options);
}

class LeaseFolder implements LeaseStore {
  readonly #folder: string;
  readonly #owner = randomBytes(8).toString('hex');
  #beats = 0;
  /** Another's beat, and since when it has been the same. */
  #watched: { token: number; text: string; sinceMs: number } | undefined;

  constructor(folder: string) {
    this.#folder = folder;
  }

  async acquire(ttlMs: number): Promise<number | undefined> {
    await mkdir(this.#folder, { recursive: true });
    const greatest = await this.#greatest();
    if (greatest > 0 && !(await this.#isGivenUp(greatest, ttlMs))) return undefined;
    const token = greatest + 1;
    try {
      const handle = await open(this.#pathOf(token), 'wx');
      try {
        await handle.writeFile(this.#beat());
        await handle.sync();
      } finally {
        await handle.close();
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return undefined;
      throw error;
    }
    // Who was held up between the look and the file may have been overtaken twice, and the name be free again.
    if ((await this.#greatest()) !== token) {
      await rm(this.#pathOf(token), { force: true });
      return undefined;
    }
    // Only after the new one is there: the greatest must never be less than it was.
    for (const old of await this.#tokens()) if (old < token) await rm(this.#pathOf(old), { force: true });
    return token;
  }

  async renew(token: number, _ttlMs: number): Promise<boolean> {
    if ((await this.#greatest()) !== token) return false;
    await writeFileAtomic(this.#pathOf(token), this.#beat());
    return (await this.#greatest()) === token;
  }

  async release(token: number): Promise<void> {
    if ((await this.#greatest()) === token) await writeFileAtomic(this.#pathOf(token), RELEASED);
  }

  async #isGivenUp(token: number, ttlMs: number): Promise<boolean> {
    const bytes = await readFileBounded(this.#pathOf(token), { maxBytes: MOST_BYTES }).catch(() => undefined);
    // Gone since it was listed: another has won meanwhile.
    if (bytes === undefined) return false;
    const text = Buffer.from(bytes).toString('utf8');
    if (text === RELEASED) return true;
    const watched = this.#watched;
    if (watched?.token !== token || watched.text !== text) {
      this.#watched = { token, text, sinceMs: performance.now() };
      return false;
    }
    return performance.now() - watched.sinceMs > ttlMs;
  }

  #beat(): string {
    this.#beats += 1;
    return `${this.#owner} ${this.#beats}`;
  }

  async #tokens(): Promise<number[]> {
    const names = await readdir(this.#folder);
    return names.map((name) => Number(NAME.exec(name)?.[1] ?? 0)).filter((token) => token > 0);
  }

  async #greatest(): Promise<number> {
    return Math.max(0, ...(await this.#tokens()));
  }

  #pathOf(token: number): string {
    return join(this.#folder, `lease.${token}`);
  }
}
