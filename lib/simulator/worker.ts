/** A thread that runs one simulation after another for compare.ts. */
import { parentPort } from 'node:worker_threads';
import { simulate } from './simulate.js';
import type { SimulationOptions } from './types.js';

parentPort?.on('message', ({ number, options }: { number: number; options: SimulationOptions }) => {
  const onProgress = (progress: { done: number; total: number }) =>
    parentPort?.postMessage({ number, progress });
  simulate({ ...options, onProgress }).then(
    (result) => parentPort?.postMessage({ number, result }),
    (error: unknown) => parentPort?.postMessage({ number, error }),
  );
});
