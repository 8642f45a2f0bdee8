/** When to ask a server again: at an interval while it answers, ever later while it fails, and never in step with others. */

export interface Pace {
  intervalMs: number;
  maxBackoffMs: number;
  /** Share of a wait, up or down. */
  jitter: number;
}

/** Doublings after which every back-off is at its longest; keeps 2^failures finite. */
const MOST_DOUBLINGS = 30;

/** ms before the first request: some way into an interval, so that servers are not asked all at once. */
export function firstWait({ intervalMs, jitter }: Pace, draw: () => number): number {
  return intervalMs * jitter * draw();
}

/** ms from one request to the next. */
export function interval({ intervalMs, jitter }: Pace, draw: () => number): number {
  return intervalMs * blur(jitter, draw);
}

/** ms from a failure to the next request; `failures` in a row, this one included. At most `maxBackoffMs`, jitter included. */
export function backoff(pace: Pace, failures: number, draw: () => number): number {
  const { intervalMs, maxBackoffMs, jitter } = pace;
  const doubled = intervalMs * 2 ** Math.min(failures, MOST_DOUBLINGS);
  return Math.min(doubled, maxBackoffMs / (1 + jitter)) * blur(jitter, draw);
}

/** 1 ± jitter. */
function blur(jitter: number, draw: () => number): number {
  return 1 + jitter * (2 * draw() - 1);
}

/** A stream of numbers in [0, 1), the same for the same seed (the mulberry32 generator). Good enough to scatter requests. */
export function draws(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
