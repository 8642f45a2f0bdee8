/**
 * A problem kept in native memory: its arrays are copied once, and every plan or evaluation after that reads them where
 * they are. For a controller or a bench that asks several questions about one problem.
 */

import { binding, type NativeProblem, type NativeProblemHandle } from './binding.js';
import { invalid } from './checks.js';
import { runJob } from './job.js';
import type { PlacementProblem } from './types.js';
import { checkProblem } from './validate.js';

/** Made by `holdProblem`; accepted wherever a PlacementProblem is. */
export class HeldProblem {
  readonly layers: number;
  readonly sources: number;
  readonly experts: number;
  readonly gpus: number;
  readonly slotsPerGpu: number;
  #handle: NativeProblemHandle | undefined;

  /** @internal Use `holdProblem`. */
  constructor(problem: NativeProblem, handle: NativeProblemHandle) {
    this.layers = problem.layers;
    this.sources = problem.sources;
    this.experts = problem.experts;
    this.gpus = problem.gpus;
    this.slotsPerGpu = problem.slotsPerGpu;
    this.#handle = handle;
  }

  /** @internal */
  get handle(): NativeProblemHandle {
    if (this.#handle === undefined) throw invalid('problem', 'a held problem', 'one that was released');
    return this.#handle;
  }

  /** Frees the memory, once the plans that already run have ended. Otherwise the garbage collector does it, some day. */
  release(): void {
    if (this.#handle === undefined) return;
    binding().releaseProblem(this.#handle);
    this.#handle = undefined;
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/**
 * Copies a problem into native memory. Like any other call it does not block the event loop for more than the copy itself,
 * and the arrays must not change until it has resolved; after that they are the caller's again.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT, GIMBAL_OUT_OF_RANGE, GIMBAL_BINDING
 */
export async function holdProblem(problem: PlacementProblem): Promise<HeldProblem> {
  const checked = checkProblem(problem);
  return new HeldProblem(checked, await runJob(() => binding().holdProblem(checked)));
}

/** What native code takes for a problem, and the sizes that its callers need. */
export function toNative(problem: PlacementProblem | HeldProblem): {
  native: NativeProblem | NativeProblemHandle;
  layers: number;
  /** Entries of one placement, `[layers][gpus * slotsPerGpu]`. */
  slotCount: number;
} {
  const native = problem instanceof HeldProblem ? problem.handle : checkProblem(problem);
  const { layers, gpus, slotsPerGpu } = problem;
  return { native, layers, slotCount: layers * gpus * slotsPerGpu };
}
