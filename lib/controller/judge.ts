/**
 * What a candidate promises against the placement in force, in ms of MoE time over the horizon.
 *
 * J of the native evaluation, without moves, is ns over the window; a layer's share of the horizon is
 *
 *   J · tokensPerSecond · horizon / tokens of the window in that layer.
 *
 * The candidate was made for these very counts, noise included, so it looks better on them than it will be. Counts drawn anew around
 * the ones that were seen are as far from these as these are from the truth: what the candidate costs there, on the mean of the draws,
 * is what it is taken to cost. The incumbent has not seen these counts, or not all of them; a maximum grows with noise, so it looks
 * worse than it is, by as much as it looks worse still on the draws, and that is taken off: 2 · J(counts) − mean J(draws). Both
 * are paired by draw, and the spread of their difference is the estimate's.
 */
import { Random } from '../random.js';
import type { Evaluation, PlacementProblem } from '../types.js';
import type { Prospect } from './decide.js';
import { resample } from './resample.js';
import { Slices } from './slices.js';

const NS_PER_MS = 1e6;

/** As `Planner` gives it. */
export type Evaluate = (problem: PlacementProblem, candidates: Int32Array) => Promise<Evaluation>;

export interface Case {
  /** With the counts and the dead GPUs; neither incumbent nor costs of migration. */
  problem: PlacementProblem;
  /** Both of the problem's shape. `[layers][gpus * slotsPerGpu]` */
  incumbent: Int32Array;
  candidate: Int32Array;
  /** `[layers]`: windows like this one in the horizon. */
  windows: Float64Array;
  overdispersion: number;
  resamples: number;
  seed: number;
}

export interface Judgement extends Pick<Prospect, 'incumbentMs' | 'candidateMs' | 'spreadMs'> {
  /** On the counts as they are. */
  seenMs: { incumbent: number; candidate: number };
  /** Communication's share of the incumbent's MoE time, 0…1. */
  commShare: number;
}

export async function judge(of: Case, evaluate: Evaluate): Promise<Judgement> {
  const pair = new Int32Array(of.incumbent.length * 2);
  pair.set(of.incumbent);
  pair.set(of.candidate, of.incumbent.length);
  const seen = await evaluate(of.problem, pair);
  const [incumbent, candidate] = horizonMs(seen, of.windows);
  const drawn = await onDraws(of, pair, evaluate);
  const mean = (column: number) => drawn.reduce((sum, pair) => sum + pair[column]!, 0) / drawn.length;
  const gain = mean(0) - mean(1);
  const squares = drawn.reduce((sum, [a, b]) => sum + (a - b - gain) ** 2, 0);
  return {
    incumbentMs: Math.max(0, 2 * incumbent - mean(0)),
    candidateMs: mean(1),
    spreadMs: Math.sqrt(squares / (drawn.length - 1)),
    seenMs: { incumbent, candidate },
    commShare: commShare(seen, of.windows),
  };
}

async function onDraws(of: Case, pair: Int32Array, evaluate: Evaluate): Promise<[number, number][]> {
  const slices = new Slices();
  const drawn: [number, number][] = [];
  for (let draw = 0; draw < of.resamples; draw++) {
    const random = new Random(of.seed, draw);
    const tokens = await resample(of.problem.tokens, of.overdispersion, random, slices);
    drawn.push(horizonMs(await evaluate({ ...of.problem, tokens }, pair), of.windows));
  }
  return drawn;
}

/** Of the first and the second candidate. */
export function horizonMs({ objective }: Evaluation, windows: Float64Array): [number, number] {
  const layers = windows.length;
  const sum = (first: number) =>
    windows.reduce((total, times, layer) => total + (objective[first + layer]! * times) / NS_PER_MS, 0);
  return [sum(0), sum(layers)];
}

function commShare({ loadMax, commMax }: Evaluation, windows: Float64Array): number {
  let [load, comm] = [0, 0];
  windows.forEach((times, layer) => {
    load += loadMax[layer]! * times;
    comm += commMax[layer]! * times;
  });
  return load + comm === 0 ? 0 : comm / (load + comm);
}
