/**
 * Several simulations side by side: policies by seeds, on as many threads as wished, and what their differences are worth. Every
 * policy sees the same traffic for a seed, so that differences are taken seed by seed.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { GimbalError, type GimbalErrorCode } from '../errors.js';
import type { PlanProgress } from '../types.js';
import { simulate } from './simulate.js';
import type { SimulationOptions, SimulationResult } from './types.js';

/** One cell of a comparison; what a thread gets must be data alone, so no planners or stages of one's own. */
export interface ComparedRun {
  policy: string;
  seed: number;
  options: SimulationOptions;
}

export interface FinishedRun extends Omit<ComparedRun, 'options'> {
  result: SimulationResult;
}

export interface Estimate {
  mean: number;
  /** Half the width of the 95 % confidence interval; NaN of one seed. */
  half: number;
}

/** What is compared, and how it is read from a result. */
export const measures = {
  'TTFT mean': ({ summary }: SimulationResult) => summary.ttftMs.mean,
  'TTFT p99': ({ summary }: SimulationResult) => summary.ttftMs.p99,
  'TPOT mean': ({ summary }: SimulationResult) => summary.tpotMs.mean,
  'TPOT p99': ({ summary }: SimulationResult) => summary.tpotMs.p99,
  'E2E mean': ({ summary }: SimulationResult) => summary.e2eMs.mean,
  'requests/s': ({ summary }: SimulationResult) => summary.requestsPerSecond,
  'goodput/s': ({ summary }: SimulationResult) => summary.goodputPerSecond,
} as const;
export type Measure = keyof typeof measures;

export interface ComparedPolicy {
  policy: string;
  values: Record<Measure, Estimate>;
  /** Relative to the first policy, seed by seed: −0.1 is 10 % less. */
  changes: Record<Measure, Estimate>;
}

/** Two-sided 95 % quantiles of Student's t, by degrees of freedom from 1 on. */
const STUDENT = [12.71, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.2, 2.18, 2.16, 2.14, 2.13];
const NORMAL = 1.96;

export function estimate(values: readonly number[]): Estimate {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  if (values.length < 2) return { mean, half: Number.NaN };
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
  return { mean, half: (STUDENT[values.length - 2] ?? NORMAL) * Math.sqrt(variance / values.length) };
}

/** Policies in the order of their first run; the first one is what the others are compared with. */
export function compareRuns(runs: readonly FinishedRun[]): ComparedPolicy[] {
  const names = [...new Set(runs.map(({ policy }) => policy))];
  const of = (policy: string) => runs.filter((run) => run.policy === policy);
  const base = new Map(of(names[0]!).map((run) => [run.seed, run.result]));
  return names.map((policy) => {
    const values = {} as ComparedPolicy['values'];
    const changes = {} as ComparedPolicy['changes'];
    for (const [name, read] of Object.entries(measures) as [
      Measure,
      (result: SimulationResult) => number,
    ][]) {
      values[name] = estimate(of(policy).map(({ result }) => read(result)));
      changes[name] = estimate(
        of(policy).map(({ seed, result }) => ratio(read(result), read(base.get(seed)!))),
      );
    }
    return { policy, values, changes };
  });
}

function ratio(value: number, before: number): number {
  return value === before ? 0 : value / before - 1;
}

export interface RunManyOptions {
  /** Default 1: on the caller's thread. */
  threads?: number;
  signal?: AbortSignal;
  /** Requests of all runs. */
  onProgress?: (progress: PlanProgress) => void;
}

/** All runs; results are in their order and the same whatever the threads. */
export async function runMany(
  runs: readonly ComparedRun[],
  { threads = 1, signal, onProgress }: RunManyOptions = {},
): Promise<FinishedRun[]> {
  const done = new Float64Array(runs.length);
  const total = runs.reduce((sum, { options }) => sum + options.trace.length, 0);
  const told = (number: number, progress: PlanProgress) => {
    done[number] = progress.done;
    onProgress?.({ done: done.reduce((sum, own) => sum + own, 0), total });
  };
  const results = new Array<SimulationResult>(runs.length);
  const pending = runs.map((_, number) => number);
  // From TypeScript sources there is no file that a thread could load.
  const usable = __filename.endsWith('.js') ? Math.min(threads, runs.length) : 1;
  if (usable <= 1) {
    for (const number of pending) {
      const { options } = runs[number]!;
      results[number] = await simulate({
        ...options,
        ...(signal === undefined ? {} : { signal }),
        onProgress: (progress) => told(number, progress),
      });
    }
  } else {
    await Promise.all(Array.from({ length: usable }, () => work(runs, pending, results, told, signal)));
  }
  return runs.map(({ policy, seed }, number) => ({ policy, seed, result: results[number]! }));
}

interface Message {
  number: number;
  progress?: PlanProgress;
  result?: SimulationResult;
  refused?: Refusal;
  error?: unknown;
}

/** One thread, which takes runs until none is left. */
async function work(
  runs: readonly ComparedRun[],
  pending: number[],
  results: SimulationResult[],
  told: (number: number, progress: PlanProgress) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const worker = new Worker(path.join(__dirname, 'worker.js'));
  try {
    await new Promise<void>((resolve, reject) => {
      const next = () => {
        const number = pending.shift();
        if (number === undefined) resolve();
        else worker.postMessage({ number, options: runs[number]!.options });
      };
      signal?.addEventListener('abort', () => reject(signal.reason), { once: true });
      worker.on('error', reject);
      worker.on('message', ({ number, progress, result, refused, error }: Message) => {
        if (progress !== undefined) told(number, progress);
        else if (result === undefined) reject(refused === undefined ? error : revived(refused));
        else {
          results[number] = result;
          next();
        }
      });
      next();
    });
  } finally {
    await worker.terminate();
  }
}

/** A GimbalError as data. */
export interface Refusal {
  code: GimbalErrorCode;
  message: string;
  detail: { field: string | undefined; expected: string | undefined; received: string | undefined };
}

function revived({ code, message, detail: { field, expected, received } }: Refusal): GimbalError {
  return new GimbalError(code, message, {
    ...(field === undefined ? {} : { field }),
    ...(expected === undefined ? {} : { expected }),
    ...(received === undefined ? {} : { received }),
  });
}
