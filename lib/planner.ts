/**
 * Plans: the one-shot function and the Planner that keeps its buffers between calls.
 */
import { binding, type NativeJob, type NativePlan, type NativePlanner } from './binding.js';
import { GimbalError } from './errors.js';
import { type Candidates, evaluateWith } from './evaluate.js';
import { type HeldProblem, toNative } from './held-problem.js';
import { progressListener, runJob } from './job.js';
import type { Evaluation, LayerPlan, PlacementProblem, Plan, PlanOptions, PlanProgress } from './types.js';
import { checkPlanOptions, type EvaluateOptions } from './validate.js';

/** Sets of buffers a Planner keeps: enough for a plan and an evaluation that overlap. */
const KEPT_BUFFERS = 2;
/** The order of the columns that native code returns for each layer. */
const LAYER_FIELDS = [
  'objective',
  'loadMax',
  'commMax',
  'commTotal',
  'sourceMax',
  'migrations',
  'forcedMigrations',
  'lowerBound',
  'gap',
] as const satisfies (keyof LayerPlan)[];

let oneShot: NativePlanner | undefined;

/**
 * Finds a placement for every layer of the problem.
 *
 * Runs on threads of its own; any number of plans may run at once. The problem's arrays must not change until the promise
 * has settled (a plain array that is transferred away in the meantime rejects the plan). Arrays on a SharedArrayBuffer are
 * not copied on the JS thread at all. All costs are in ns, over the window in which the tokens were counted.
 *
 * @returns the placement `[layers][gpus * slotsPerGpu]`, its cost per layer by term, and a proved lower bound.
 * @throws GimbalError GIMBAL_INVALID_INPUT (names the field), GIMBAL_INFEASIBLE (fewer live slots than experts),
 *   GIMBAL_OUT_OF_RANGE (sums that do not fit), GIMBAL_BACKEND_UNAVAILABLE (a backend that was asked for by name),
 *   GIMBAL_BINDING (no addon); and the reason of `options.signal` once that aborts.
 */
export async function planPlacement(
  problem: PlacementProblem | HeldProblem,
  options?: PlanOptions,
): Promise<Plan> {
  oneShot ??= new (binding().NativePlanner)(0);
  return planWith(oneShot, problem, options);
}

/**
 * Plans again and again, as a controller does: buffers and threads stay between calls, so that a plan costs no page faults
 * and no start-up. Calls may overlap; each has buffers of its own, and after an error the planner is as good as before.
 */
export class Planner {
  readonly #native: NativePlanner;
  #closed = false;

  /** @throws GimbalError GIMBAL_BINDING */
  constructor() {
    this.#native = new (binding().NativePlanner)(KEPT_BUFFERS);
  }

  /** As `planPlacement`. */
  async plan(problem: PlacementProblem | HeldProblem, options?: PlanOptions): Promise<Plan> {
    this.#checkOpen();
    return planWith(this.#native, problem, options);
  }

  /** As `evaluatePlacements`. */
  async evaluate(
    problem: PlacementProblem | HeldProblem,
    candidates: Candidates,
    options?: EvaluateOptions,
  ): Promise<Evaluation> {
    this.#checkOpen();
    return evaluateWith(this.#native, problem, candidates, options);
  }

  /** Frees the buffers; those of calls that still run are freed when these end. No call may follow. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #checkOpen(): void {
    if (!this.#closed) return;
    throw new GimbalError(
      'GIMBAL_INVALID_INPUT',
      'planner: expected an open planner but received a closed one',
      {
        field: 'planner',
        expected: 'an open planner',
        received: 'a closed one',
      },
    );
  }
}

async function planWith(
  native: NativePlanner,
  problem: PlacementProblem | HeldProblem,
  options?: PlanOptions,
): Promise<Plan> {
  const checkedOptions = checkPlanOptions(options);
  const { native: input } = toNative(problem);
  const { signal, onProgress } = options ?? {};
  if (onProgress === undefined) {
    return toPlan(await runJob(() => native.plan(input, checkedOptions), signal));
  }
  return toPlan(
    await runReporting(onProgress, (report) => native.plan(input, checkedOptions, report), signal),
  );
}

/** An exception in the caller's listener stops the plan and is what the plan rejects with. */
async function runReporting<T>(
  onProgress: (progress: PlanProgress) => void,
  start: (report: (done: number, total: number) => void) => NativeJob<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  let job: NativeJob<T> | undefined;
  let thrown: { error: unknown } | undefined;
  const report = progressListener(onProgress, (error) => {
    thrown ??= { error };
    job?.cancel();
  });
  const startJob = () => {
    job = start(report);
    return job;
  };
  const result = await runJob(startJob, signal).catch((error) => {
    throw thrown === undefined ? error : thrown.error;
  });
  if (thrown !== undefined) throw thrown.error;
  return result;
}

function toPlan(native: NativePlan): Plan {
  const { layers, seed, ...rest } = native;
  return {
    ...rest,
    layers: toLayers(layers),
    seed: seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed,
  };
}

/** `table`: `[layers][LAYER_FIELDS]`. */
function toLayers(table: Float64Array): LayerPlan[] {
  const width = LAYER_FIELDS.length;
  return Array.from({ length: table.length / width }, (_, layer) => {
    const row = {} as LayerPlan;
    LAYER_FIELDS.forEach((field, column) => {
      row[field] = table[layer * width + column]!;
    });
    return row;
  });
}
