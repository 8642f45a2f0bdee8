/** A thread that runs one simulation after another for compare.ts. */
import { parentPort } from 'node:worker_threads';
import { GimbalError } from '../errors.js';
import type { Refusal } from './compare.js';
import { simulate } from './simulate.js';
import type { SimulationOptions } from './types.js';

/** A clone of an error has its message alone; ours go as data. */
function told(error: unknown): { refused: Refusal } | { error: unknown } {
  if (!(error instanceof GimbalError)) return { error };
  const { code, message, field, expected, received } = error;
  return { refused: { code, message, detail: { field, expected, received } } };
}

parentPort?.on('message', ({ number, options }: { number: number; options: SimulationOptions }) => {
  const onProgress = (progress: { done: number; total: number }) =>
    parentPort?.postMessage({ number, progress });
  simulate({ ...options, onProgress }).then(
    (result) => parentPort?.postMessage({ number, result }),
    (error: unknown) => parentPort?.postMessage({ number, ...told(error) }),
  );
});
