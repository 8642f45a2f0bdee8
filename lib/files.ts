/**
 * Files, safely: reads are bounded before anything is allocated, and writes appear whole or not at all (a temporary
 * file beside the target, flushed, then renamed over it).
 */
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, open, realpath, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { GimbalError, mismatch } from './errors.js';

const CHUNK_BYTES = 8 * 1024 * 1024;

export interface ReadOptions {
  /** A longer file is refused, unread. */
  maxBytes: number;
  /** Stops between chunks; the promise then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** An I/O failure as a GimbalError that names the path. */
export function ioError(path: string, cause: unknown): GimbalError {
  // Node's "ENOENT: no such file or directory, open '/a/b'" names the path, perhaps a temporary one, a second time.
  const message = cause instanceof Error ? cause.message : String(cause);
  const received = message.replace(/^(E[A-Z0-9]+): ([^,]*).*$/s, '$2 ($1)');
  return new GimbalError('GIMBAL_IO', `${path}: ${received}`, { field: path, received, cause });
}

async function io<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw error instanceof GimbalError ? error : ioError(path, error);
  }
}

/** The whole of a regular file of at most `maxBytes`. */
export async function readFileBounded(path: string, options: ReadOptions): Promise<Uint8Array> {
  options.signal?.throwIfAborted();
  // Without O_NONBLOCK the mere opening of a FIFO would wait for a writer, perhaps for ever.
  const handle = await io(path, () => open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)));
  try {
    const stats = await io(path, () => handle.stat());
    if (!stats.isFile()) throw mismatch('GIMBAL_IO', path, 'a regular file', 'something else');
    if (stats.size > options.maxBytes) {
      throw mismatch('GIMBAL_FORMAT', path, `at most ${options.maxBytes} bytes`, `${stats.size} bytes`);
    }
    const bytes = new Uint8Array(stats.size);
    let filled = 0;
    while (filled < bytes.length) {
      options.signal?.throwIfAborted();
      const want = Math.min(CHUNK_BYTES, bytes.length - filled);
      const { bytesRead } = await io(path, () => handle.read(bytes, filled, want, filled));
      if (bytesRead === 0) {
        throw mismatch(
          'GIMBAL_IO',
          path,
          `${bytes.length} bytes`,
          `${filled} bytes: it shrank while it was read`,
        );
      }
      filled += bytesRead;
    }
    return bytes;
  } finally {
    await handle.close();
  }
}

/** Where the bytes must land: behind a symbolic link, its target, so that the link survives. */
async function writeTarget(path: string): Promise<string> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats === undefined) return path;
  const target = stats.isSymbolicLink() ? await io(path, () => realpath(path)) : path;
  const reached = await io(path, () => lstat(target));
  if (!reached.isFile()) throw mismatch('GIMBAL_IO', path, 'a regular file or a new name', 'something else');
  return target;
}

/** Replaces `path` by `data` in one step; on any failure the old file stands untouched and nothing is left behind. */
export async function writeFileAtomic(path: string, data: Uint8Array | string): Promise<void> {
  const target = await writeTarget(path);
  const temporary = join(
    dirname(target),
    `.${basename(target)}.${process.pid}.${randomBytes(6).toString('hex')}.tmp`,
  );
  const handle = await io(path, () => open(temporary, 'wx'));
  try {
    try {
      await handle.writeFile(data);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw ioError(path, error);
  }
}
