/** Long work on the JavaScript thread, in slices: between two of them whatever else the process has to do is done. */
import { setImmediate as nextTurn } from 'node:timers/promises';

/** Of one slice, ms: well below what a request would notice. */
const SLICE_MS = 4;

export class Slices {
  #beganMs = performance.now();

  /** To be awaited at every point where the work can be left. */
  async pause(): Promise<void> {
    if (performance.now() - this.#beganMs < SLICE_MS) return;
    await nextTurn();
    this.#beganMs = performance.now();
  }
}
