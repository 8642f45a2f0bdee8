/**
 * Seeded traffic in five shapes of prompt length, all of one mean: what is compared under names that papers use without saying
 * how they were made. These are our own readings of the names, and synthetic.
 */
import { aboveZero, checkKeys, count, oneOf, ordinal } from '../checks.js';
import { Random } from '../random.js';
import type { SimulatedRequest } from './types.js';

export const lengthShapes = ['random', 'central', 'descending', 'two-end', 'average'] as const;
export type LengthShape = (typeof lengthShapes)[number];

export interface SyntheticOptions {
  shape: LengthShape;
  requests: number;
  requestsPerSecond: number;
  seed?: number;
  /** Default 1024. */
  meanInputTokens?: number;
  /** Of an exponential distribution, cut at four times itself. Default 256. */
  meanOutputTokens?: number;
  /** Squared coefficient of variation of the gaps between arrivals: 1 is Poisson, more comes in bursts. Default 2. */
  burstiness?: number;
}

const STREAM = { arrivals: 301, inputs: 302, outputs: 303 };
const LEAST_TOKENS = 16;

/** Share of the longest prompt, by the shape; the mean of each is a half, but for `descending`. */
const DRAW: Record<LengthShape, (random: Random) => number> = {
  random: (random) => random.uniform(),
  /** Bell-shaped about the middle. */
  central: (random) => Math.min(1, Math.max(0, 0.5 + 0.12 * random.normal())),
  /** Many short, few long: falls linearly to 0. */
  descending: (random) => 1 - Math.sqrt(1 - random.uniform()),
  /** Half of them short, half long, few between. */
  'two-end': (random) => {
    const offset = Math.min(0.5, Math.abs(0.1 * random.normal()));
    return random.uniform() < 0.5 ? offset : 1 - offset;
  },
  /** All near the mean. */
  average: (random) => Math.min(1, Math.max(0, 0.5 + 0.02 * random.normal())),
};
const MEAN_SHARE: Record<LengthShape, number> = {
  random: 0.5,
  central: 0.5,
  descending: 1 / 3,
  'two-end': 0.5,
  average: 0.5,
};

/** @throws GimbalError GIMBAL_INVALID_INPUT */
export function syntheticTrace(options: SyntheticOptions): SimulatedRequest[] {
  checkKeys('options', options, [
    'shape',
    'requests',
    'requestsPerSecond',
    'seed',
    'meanInputTokens',
    'meanOutputTokens',
    'burstiness',
  ]);
  const shape = oneOf('options.shape', options.shape, lengthShapes);
  const rate = aboveZero('options.requestsPerSecond', options.requestsPerSecond);
  const seed = ordinal('options.seed', options.seed ?? 0);
  const meanInput = aboveZero('options.meanInputTokens', options.meanInputTokens ?? 1024);
  const meanOutput = aboveZero('options.meanOutputTokens', options.meanOutputTokens ?? 256);
  const burstiness = aboveZero('options.burstiness', options.burstiness ?? 2);
  const arrivals = new Random(seed, STREAM.arrivals);
  const inputs = new Random(seed, STREAM.inputs);
  const outputs = new Random(seed, STREAM.outputs);
  const longest = meanInput / MEAN_SHARE[shape];
  let arrivalMs = 0;
  return Array.from({ length: count('options.requests', options.requests) }, () => {
    arrivalMs += (gap(arrivals, burstiness) * 1000) / rate;
    const inputTokens = Math.max(LEAST_TOKENS, Math.round(longest * DRAW[shape](inputs)));
    const drawn = -Math.log(1 - outputs.uniform()) * meanOutput;
    return { arrivalMs, inputTokens, outputTokens: Math.max(1, Math.round(Math.min(drawn, 4 * meanOutput))) };
  });
}

/** Of mean 1: exponential, or a mixture of a short and a long exponential with balanced means. */
function gap(random: Random, squaredVariation: number): number {
  const exponential = -Math.log(1 - random.uniform());
  if (squaredVariation <= 1) return exponential;
  const p = 0.5 * (1 + Math.sqrt((squaredVariation - 1) / (squaredVariation + 1)));
  return exponential / (2 * (random.uniform() < p ? p : 1 - p));
}
