/** Figures of a simulation that has ended. Percentiles are the nearest rank: the least value that the share does not exceed. */
import type { RequestColumns } from './requests.js';
import type { Distribution, SimulationSummary } from './types.js';

export function distribution(values: Float64Array): Distribution {
  const sorted = values.slice().sort();
  const at = (share: number) =>
    sorted.length === 0 ? Number.NaN : sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!;
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  return { mean, p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99) };
}

export function summarise(
  requests: RequestColumns,
  slo: { ttftMs: number; tpotMs: number },
): SimulationSummary {
  const { count, arrivalMs, firstTokenMs, finishMs, outputTokens } = requests;
  const ttft = new Float64Array(count);
  const tpot = new Float64Array(count);
  const e2e = new Float64Array(count);
  let several = 0;
  let tokens = 0;
  let good = 0;
  let lastMs = 0;
  for (let id = 0; id < count; id++) {
    ttft[id] = firstTokenMs[id]! - arrivalMs[id]!;
    e2e[id] = finishMs[id]! - arrivalMs[id]!;
    tokens += outputTokens[id]!;
    lastMs = Math.max(lastMs, finishMs[id]!);
    const own = outputTokens[id]! > 1 ? (finishMs[id]! - firstTokenMs[id]!) / (outputTokens[id]! - 1) : 0;
    if (outputTokens[id]! > 1) tpot[several++] = own;
    if (ttft[id]! <= slo.ttftMs && own <= slo.tpotMs) good += 1;
  }
  const seconds = (lastMs - arrivalMs[0]!) / 1000;
  return {
    ttftMs: distribution(ttft),
    tpotMs: distribution(tpot.subarray(0, several)),
    e2eMs: distribution(e2e),
    requestsPerSecond: count / seconds,
    outputTokensPerSecond: tokens / seconds,
    goodputPerSecond: good / seconds,
    goodShare: good / count,
  };
}

/** Largest distance of two samples' cumulative distributions. */
export function kolmogorovSmirnov(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const x = Float64Array.from(a).sort();
  const y = Float64Array.from(b).sort();
  let i = 0;
  let j = 0;
  let most = 0;
  while (i < x.length && j < y.length) {
    const at = Math.min(x[i]!, y[j]!);
    while (i < x.length && x[i]! <= at) i++;
    while (j < y.length && y[j]! <= at) j++;
    most = Math.max(most, Math.abs(i / x.length - j / y.length));
  }
  return most;
}
