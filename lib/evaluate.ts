/**
 * Costs of given placements. Candidates are worked through in chunks of bounded size, so that neither the copies nor the
 * event loop grow with their number; only the results do.
 */
import { binding, type NativePlanner, type NativeProblemHandle } from './binding.js';
import { describe, invalid } from './checks.js';
import { GimbalError, mismatch } from './errors.js';
import { HeldProblem, holdProblem, toNative } from './held-problem.js';
import { runJob } from './job.js';
import type { Evaluation, PlacementProblem } from './types.js';
import { checkCandidates, checkEvaluateOptions, type EvaluateOptions } from './validate.js';

/** Candidate entries per native call: 8 MiB, tens of milliseconds of work, a copy of well under 2 ms. */
const CHUNK_ENTRIES = 2 * 2 ** 20;
/** The arrays `[candidates][layers]` of an evaluation. */
const COLUMNS = [
  'objective',
  'loadMax',
  'commMax',
  'commTotal',
  'migrations',
] as const satisfies (keyof Evaluation)[];
type Column = (typeof COLUMNS)[number];

/** `[candidates][layers][gpus * slotsPerGpu]`, or any number of such arrays one after another. */
export type Candidates = Int32Array | AsyncIterable<Int32Array> | Iterable<Int32Array>;

/**
 * What each of many placements would cost in each layer.
 *
 * An iterable is asked for its next chunk only when the one before has been evaluated, so any number of candidates runs in
 * bounded memory; the results of all chunks come back as one. Arrays must not change until the promise has settled.
 *
 * @returns arrays `[candidates][layers]`: objective, loadMax, commMax, commTotal in ns, migrations as a count.
 * @throws GimbalError as `planPlacement`; GIMBAL_INVALID_INPUT names the first bad slot. The reason of `options.signal`
 *   once that aborts.
 */
export async function evaluatePlacements(
  problem: PlacementProblem | HeldProblem,
  candidates: Candidates,
  options?: EvaluateOptions,
): Promise<Evaluation> {
  const planner = new (binding().NativePlanner)(1);
  try {
    return await evaluateWith(planner, problem, candidates, options);
  } finally {
    planner.close();
  }
}

/** `evaluatePlacements` with the buffers of a given planner. */
export async function evaluateWith(
  planner: NativePlanner,
  problem: PlacementProblem | HeldProblem,
  candidates: Candidates,
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  const checkedOptions = checkEvaluateOptions(options);
  const held = problem instanceof HeldProblem ? problem : await holdProblem(problem);
  const { native, layers, slotCount } = toNative(held);
  const parts: Evaluation[] = [];
  let first = 0;
  try {
    for await (const chunk of chunksOf(candidates, slotCount)) {
      const count = chunk.length / slotCount;
      const start = () => planner.evaluate(native as NativeProblemHandle, chunk, count, checkedOptions);
      parts.push(await runJob(start, options.signal).catch((error) => throwFrom(error, first)));
      first += count;
    }
    options.signal?.throwIfAborted();
  } finally {
    if (held !== problem) held.release();
  }
  return concatenate(parts, first * layers);
}

/** Cuts what the caller gave into whole candidates, CHUNK_ENTRIES at most unless one alone is larger. */
async function* chunksOf(candidates: Candidates, slotCount: number): AsyncGenerator<Int32Array, void, void> {
  const entries = Math.max(1, Math.floor(CHUNK_ENTRIES / slotCount)) * slotCount;
  let index = 0;
  for await (const array of arraysOf(candidates)) {
    const field = array === candidates ? 'candidates' : `candidates chunk ${index}`;
    checkCandidates(field, array, slotCount);
    for (let at = 0; at < array.length; at += entries) yield array.subarray(at, at + entries);
    index++;
  }
}

function arraysOf(candidates: Candidates): AsyncIterable<Int32Array> | Iterable<Int32Array> {
  if (ArrayBuffer.isView(candidates)) return [candidates as Int32Array];
  const iterable = candidates as Partial<AsyncIterable<Int32Array> & Iterable<Int32Array>> | null | undefined;
  if (typeof candidates === 'object' && (iterable?.[Symbol.asyncIterator] ?? iterable?.[Symbol.iterator])) {
    return candidates;
  }
  throw invalid('candidates', 'an Int32Array or an (async) iterable of them', describe(candidates));
}

/** Native code numbers the candidates of one chunk from 0; the caller counts from the first of all. */
function throwFrom(error: unknown, first: number): never {
  const named = error instanceof GimbalError ? /in candidate (\d+)/.exec(error.received ?? '') : null;
  if (!(error instanceof GimbalError) || named === null) throw error;
  const received = named.input.replace(named[0], `in candidate ${first + Number(named[1])}`);
  throw mismatch(error.code, error.field ?? 'candidates', error.expected ?? 'a valid placement', received);
}

function concatenate(parts: Evaluation[], length: number): Evaluation {
  if (parts.length === 1) return parts[0]!;
  const column = (field: Column) => {
    const whole = new Float64Array(length);
    let at = 0;
    for (const part of parts) {
      whole.set(part[field], at);
      at += part[field].length;
    }
    return whole;
  };
  const columns = Object.fromEntries(COLUMNS.map((field) => [field, column(field)]));
  const whole: Evaluation = { ...parts.at(-1), ...(columns as Record<Column, Float64Array>) };
  const kernelMs = parts.reduce((total, part) => total + (part.kernelMs ?? 0), 0);
  return kernelMs > 0 ? { ...whole, kernelMs } : whole;
}
