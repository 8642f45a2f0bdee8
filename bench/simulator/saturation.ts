/**
 * The most requests a second that engines keep up with. Rates are tried with evenly spaced arrivals, so that nothing but the engines
 * makes a queue, over a trace so long that batches have settled: where the prompts that wait grow in number from the third quarter of
 * the arrivals to the last one, the rate is too high. What engines finish while far more arrives is only where the search begins.
 */
import type { SimulatedRequest, SimulationResult } from '../../lib/simulator/types.js';

/** Growth of the waiting prompts that is taken for noise: a share of what arrives in a quarter. */
const USUAL_GROWTH = 0.01;
/** The search ends when the bounds are so close. */
const CLOSE = 0.01;
/** Where the search begins, times what is finished under overload. */
const FIRST_BOUNDS = [0.7, 1.1] as const;
const MS_PER_SECOND = 1000;

type Run = (trace: SimulatedRequest[]) => Promise<SimulationResult>;

/**
 * Requests a second; the arrivals of `requests` do not matter. Where lengths drift along the trace, prompts that wait grow in number
 * without end to it: more `growth` has to be taken for noise then, and the rate is as much less exact.
 */
export async function sustainedRate(
  requests: readonly SimulatedRequest[],
  run: Run,
  growth = USUAL_GROWTH,
): Promise<number> {
  const keepsUp = async (rate: number) =>
    growthOf(await run(evenly(requests, rate)), (requests.length * MS_PER_SECOND) / rate) <= growth;
  const overload = finishedPerSecond(await run(evenly(requests, Number.POSITIVE_INFINITY)));
  let [low, high] = [FIRST_BOUNDS[0] * overload, FIRST_BOUNDS[1] * overload];
  while (!(await keepsUp(low))) [low, high] = [low / 2, low];
  while (await keepsUp(high)) [low, high] = [high, high * FIRST_BOUNDS[1]];
  while (high / low > 1 + CLOSE) {
    const middle = (low + high) / 2;
    if (await keepsUp(middle)) low = middle;
    else high = middle;
  }
  return low;
}

function evenly(requests: readonly SimulatedRequest[], rate: number): SimulatedRequest[] {
  return requests.map((request, n) => ({ ...request, arrivalMs: (n * MS_PER_SECOND) / rate }));
}

/** From the first quarter to the third. */
function finishedPerSecond({ requests }: SimulationResult): number {
  const ends = requests.map(({ finishMs }) => finishMs).sort((a, b) => a - b);
  const [from, to] = [Math.floor(0.25 * ends.length), Math.floor(0.75 * ends.length)];
  return ((to - from) * MS_PER_SECOND) / (ends[to]! - ends[from]!);
}

/** Of the waiting prompts, over what arrives in a quarter; requests arrive from 0 to `spanMs`. */
function growthOf(result: SimulationResult, spanMs: number): number {
  const more = waiting(result, 0.75 * spanMs, spanMs) - waiting(result, 0.5 * spanMs, 0.75 * spanMs);
  return (4 * more) / result.requests.length;
}

/** Requests without a first token, in the mean from one time to another. */
function waiting({ requests }: SimulationResult, fromMs: number, toMs: number): number {
  const waitedMs = requests.reduce(
    (sum, { arrivalMs, firstTokenMs }) =>
      sum + Math.max(0, Math.min(toMs, firstTokenMs) - Math.max(fromMs, arrivalMs)),
    0,
  );
  return waitedMs / (toMs - fromMs);
}
