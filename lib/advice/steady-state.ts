/**
 * A lockstep group in the long run: so many requests decode on each rank as want to and memory has room for, those that end make
 * way for prompts, and a step takes what the simulator's step-time model says. docs/MODEL.md has the formulas.
 */
import type { StepLoad } from '../simulator/expert-load.js';
import type { GroupShape, StepTimer } from '../simulator/step-time.js';
import type { CheckedAdvice, CheckedTraffic } from './check.js';
import type { PlacedLoad } from './placed-load.js';

/** Up to so many chunks of prefill a step their number is summed over its distribution; beyond, taken at three points. */
const FEW_CHUNKS = 4;
const LEAST_WEIGHT = 1e-4;
const HALVINGS = 40;
const GOLDEN = 0.618;

export interface Demand {
  /** Requests under way over the group. */
  concurrency: number;
  /** That each holds while it decodes. */
  kvTokensPerRequest: number;
}

export interface Steady {
  /** Requests that decode at once on a rank, in the mean. */
  batch: number;
  stepMs: number;
  moeMs: number;
  /** A step without prefill. */
  decode: StepLoad;
  outputTokensPerSecond: number;
  msPerOutputToken: number;
}

export class SteadyState {
  readonly #timer: StepTimer;
  readonly #shape: GroupShape;
  readonly #traffic: CheckedTraffic;
  readonly #budget: number;
  /** More than that a rank cannot decode, whatever its memory. */
  readonly #mostBatch: number;

  constructor(
    timer: StepTimer,
    { shape, traffic, engine }: Pick<CheckedAdvice, 'shape' | 'traffic' | 'engine'>,
  ) {
    this.#timer = timer;
    this.#shape = shape;
    this.#traffic = traffic;
    this.#budget = engine.maxNumBatchedTokens;
    // Each step's share of prompts must fit beside its decodes.
    const each = 1 + traffic.inputTokens / (traffic.outputTokens - 1);
    this.#mostBatch = Math.min(engine.maxNumSeqs, engine.maxNumBatchedTokens / each);
  }

  of(load: PlacedLoad, { concurrency, kvTokensPerRequest }: Demand, kvTokens: number): Steady {
    const { ranks } = this.#shape;
    const [wanted, fit] = [concurrency / ranks, kvTokens / kvTokensPerRequest];
    const batch = batchOf(wanted, Math.min(fit, this.#mostBatch));
    const step = this.#step(load, batch, kvTokensPerRequest, shareAbove(wanted, fit));
    const { outputTokens } = this.#traffic;
    // The first token of an answer is the prefill's.
    const tokensPerMs = ((ranks * batch) / step.stepMs) * (outputTokens / (outputTokens - 1));
    return {
      batch,
      ...step,
      outputTokensPerSecond: tokensPerMs * 1000,
      msPerOutputToken: concurrency / tokensPerMs,
    };
  }

  /**
   * Requests that a rate of arrivals keeps under way where memory is no limit; with more than engines can carry, what they hold at
   * most.
   */
  concurrencyAt(load: PlacedLoad, requestsPerSecond: number): { concurrency: number; carried: boolean } {
    const { kvTokensPerRequest, outputTokens } = this.#traffic;
    const { ranks } = this.#shape;
    const carries = (batch: number) =>
      (ranks * batch * 1000) / this.#step(load, batch, kvTokensPerRequest, 0).stepMs >=
      requestsPerSecond * (outputTokens - 1);
    if (!carries(this.#mostBatch)) return { concurrency: ranks * this.#mostBatch, carried: false };
    let [low, high] = [0, this.#mostBatch];
    for (let n = 0; n < HALVINGS; n++) {
      const middle = (low + high) / 2;
      if (carries(middle)) high = middle;
      else low = middle;
    }
    return { concurrency: ranks * high, carried: true };
  }

  /**
   * The mean of a step's time over the chunks of prefill that may fall into it. While the cache is full, what ended requests free goes
   * to prompts, and what the others grow by is taken by preemption: a token is computed again for each one that is generated.
   */
  #step(
    load: PlacedLoad,
    batch: number,
    context: number,
    fullShare: number,
  ): Pick<Steady, 'stepMs' | 'moeMs' | 'decode'> {
    const { inputTokens, outputTokens } = this.#traffic;
    const { ranks } = this.#shape;
    const parts = Math.ceil(inputTokens / (this.#budget - batch));
    const chunks = ranks * batch * parts * (1 / (outputTokens - 1) + fullShare / inputTokens);
    let stepMs = 0;
    let moeMs = 0;
    for (const [number, weight] of chunkNumbers(chunks)) {
      const { micros, experts } = this.#stepWith(load, batch, context, number, inputTokens / parts);
      stepMs += (weight * micros) / 1000;
      moeMs += (weight * experts) / 1000;
    }
    return { stepMs, moeMs, decode: load.step(new Float64Array(ranks).fill(batch)) };
  }

  #stepWith(
    load: PlacedLoad,
    batch: number,
    context: number,
    chunks: number,
    chunkTokens: number,
  ): { micros: number; experts: number } {
    const onRanks = chunksOnRanks(chunks, this.#shape.ranks);
    const busiest = Math.max(...onRanks);
    const attention = this.#timer.attention({
      decodes: batch,
      decodeContext: batch * context,
      prefillTokens: busiest * chunkTokens,
      // A chunk of p tokens stands in the middle of its prompt: p · (p + 2c) = p · prompt.
      prefillWork: busiest * chunkTokens * this.#traffic.inputTokens,
      chunks: busiest,
      sampled: batch,
    });
    const tokens = onRanks.map((own) => batch + own * chunkTokens);
    const experts = load.step(tokens).micros;
    return { micros: this.#timer.step(attention, batch + busiest * chunkTokens, experts, batch), experts };
  }
}

/**
 * Chunks that fall on each of the ranks when each goes to any, from the rank with fewest to the one with most, in a mixed order.
 * `[ranks]`
 */
export function chunksOnRanks(chunks: number, ranks: number): Float64Array {
  const onRanks = new Float64Array(ranks);
  if (chunks === 0) return onRanks;
  const rising = Number.isInteger(chunks)
    ? binomialQuantiles(chunks, ranks)
    : poissonOrder(chunks / ranks, ranks);
  // Neighbours of the largest shall not be the next ones: they would share its node.
  const stride = strideOf(ranks);
  for (let n = 0; n < ranks; n++) onRanks[(n * stride) % ranks] = rising[n]!;
  return onRanks;
}

/** Near the golden part of `ranks`, and without a common divisor. */
function strideOf(ranks: number): number {
  const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
  let stride = Math.max(1, Math.round(ranks * GOLDEN));
  while (gcd(stride, ranks) !== 1) stride++;
  return stride;
}

/** Quantiles of the chunks of a rank where so many go to any, scaled to their sum. */
function binomialQuantiles(chunks: number, ranks: number): Float64Array {
  const quantiles = Float64Array.from({ length: ranks }, (_, n) => {
    const share = (n + 0.5) / ranks;
    let k = 0;
    while (k < chunks && atMost(k, chunks, 1 / ranks) < share) k += 1;
    return k;
  });
  const sum = quantiles.reduce((total, own) => total + own, 0);
  return quantiles.map((own) => (own * chunks) / sum);
}

/** Expected order statistics of as many Poisson numbers of that mean as there are ranks; they add up to the mean's multiple. */
function poissonOrder(mean: number, ranks: number): Float64Array {
  const order = new Float64Array(ranks);
  let weight = Math.exp(-mean);
  let below = weight;
  for (let k = 0; 1 - below > LEAST_WEIGHT / ranks || k < mean; k++) {
    // The n-th of them is above k where fewer than n are not.
    for (let n = 1; n <= ranks; n++) order[n - 1]! += atMost(n - 1, ranks, below);
    weight *= mean / (k + 1);
    below = Math.min(1, below + weight);
  }
  return order;
}

/** That of n draws with chance p at most k hit. */
function atMost(k: number, n: number, p: number): number {
  if (p >= 1) return k >= n ? 1 : 0;
  let log = n * Math.log1p(-p);
  let sum = 0;
  for (let hits = 0; hits <= k; hits++) {
    sum += Math.exp(log);
    log += Math.log((n - hits) / (hits + 1)) + Math.log(p / (1 - p));
  }
  return Math.min(1, sum);
}

/** The mean of min(N, most) for N about `wanted` with the spread of a Poisson number. */
export function batchOf(wanted: number, most: number): number {
  const spread = Math.sqrt(wanted);
  const z = (most - wanted) / spread;
  return Math.max(0, wanted - spread * (density(z) - z * (1 - cumulative(z))));
}

/** That N about `wanted` with the spread of a Poisson number is above `most`. */
export function shareAbove(wanted: number, most: number): number {
  return 1 - cumulative((most - wanted) / Math.sqrt(wanted));
}

/** Numbers of chunks in a step with their weights, which add up to 1; the mean is kept. */
export function chunkNumbers(mean: number): [number: number, weight: number][] {
  if (mean > FEW_CHUNKS) {
    const apart = Math.sqrt(3 * mean);
    return [
      [mean - apart, 1 / 6],
      [mean, 2 / 3],
      [mean + apart, 1 / 6],
    ];
  }
  const points: [number, number][] = [];
  let weight = Math.exp(-mean);
  for (let n = 0; n <= mean || weight > LEAST_WEIGHT; n++) {
    points.push([n, weight]);
    weight *= mean / (n + 1);
  }
  const sum = points.reduce((total, [, own]) => total + own, 0);
  return points.map(([n, own]) => [n, own / sum]);
}

/** Of the standard normal. */
function density(z: number): number {
  return Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);
}

/** Abramowitz and Stegun 26.2.17: within 1e-7. */
function cumulative(z: number): number {
  const t = 1 / (1 + 0.2316419 * Math.abs(z));
  const sum =
    t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  const tail = density(z) * sum;
  return z >= 0 ? 1 - tail : tail;
}
