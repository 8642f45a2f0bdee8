/**
 * From a native job to what a Node caller expects: the promise, an AbortSignal that stops it, and typed errors.
 */
import { AsyncResource } from 'node:async_hooks';
import type { NativeJob } from './binding.js';
import { GimbalError, type GimbalErrorCode } from './errors.js';
import type { PlanProgress } from './types.js';

/** What a native job rejects with. */
interface NativeFailure {
  code: GimbalErrorCode | 'GIMBAL_CANCELLED';
  message: string;
  field?: string;
  expected?: string;
  received?: string;
}

/** Starts the job and waits for it. Once `signal` aborts, the job stops and its reason is thrown, as Node's own APIs do. */
export async function runJob<T>(start: () => NativeJob<T>, signal?: AbortSignal): Promise<T> {
  signal?.throwIfAborted();
  let cancel: (() => void) | undefined;
  try {
    const job = start();
    cancel = () => job.cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    return await job.promise;
  } catch (failure) {
    if (signal?.aborted && isFailure(failure) && failure.code === 'GIMBAL_CANCELLED') throw signal.reason;
    throw toGimbalError(failure);
  } finally {
    if (cancel !== undefined) signal?.removeEventListener('abort', cancel);
  }
}

/**
 * The listener that the native side calls. It runs in the async context of the caller; where it throws, `onThrow` hears of
 * it, since nothing can be thrown through native code.
 */
export function progressListener(
  onProgress: (progress: PlanProgress) => void,
  onThrow: (error: unknown) => void,
): (done: number, total: number) => void {
  return AsyncResource.bind((done: number, total: number) => {
    try {
      onProgress({ done, total });
    } catch (error) {
      onThrow(error);
    }
  });
}

function isFailure(value: unknown): value is NativeFailure {
  return typeof (value as NativeFailure | null)?.code === 'string';
}

function toGimbalError(failure: unknown): unknown {
  if (failure instanceof Error || !isFailure(failure)) return failure;
  const { code, message, field, expected, received } = failure;
  const detail = { ...(field && { field }), ...(expected && { expected }), ...(received && { received }) };
  return new GimbalError(code === 'GIMBAL_CANCELLED' ? 'GIMBAL_INTERNAL' : code, message, detail);
}
