/**
 * What to answer an engine that asks for a placement: the controller's, where it has one of that shape, else a plan of our own from the
 * engine's counts. Those are of one source and a window of unknown length, so a plan is weighed in parts of the busiest ranks' time.
 */
import { evaluatePlacements } from '../evaluate.js';
import { planPlacement } from '../planner.js';
import type { PlacementProblem, PlanOptions } from '../types.js';
import { type DecisionRules, decide, reasonToWait } from './decide.js';
import type { PlacementQuestion, PlacementReason, PredictedChange } from './placement-protocol.js';
import { keepSlots, movedSlots } from './slot-order.js';
import { sum } from './sum.js';
import type { PlacementChange } from './types.js';

export type OfferedPlacement = Pick<
  PlacementChange,
  'planId' | 'placement' | 'layers' | 'gpus' | 'slotsPerGpu'
>;

export interface ProposalSettings {
  /** Times are those of the engine, so of these rules only shares, tokens and certainty count. */
  rules: Required<DecisionRules>;
  plan: Omit<PlanOptions, 'signal' | 'onProgress'>;
  /** What moving an expert costs, as a share of the mean rank's time in its layer over the engine's window. */
  moveShare: number;
}

export interface Proposal {
  decision: 'rearrange' | 'keep';
  reason: PlacementReason;
  /** `[layers][slots]` */
  placement: Int32Array;
  /** Where the controller named it. */
  planId?: string;
  predicted?: PredictedChange;
}

/** ns per token: only ratios count, since the whole window costs what it costs. */
const COMPUTE_COST = 1;
const NS_PER_MS = 1e6;

/** The controller's placement in the engine's slots, on the engine's counts; undefined where it is of another shape. */
export async function proposeOffered(
  question: PlacementQuestion,
  offered: OfferedPlacement,
  signal: AbortSignal,
): Promise<Proposal | undefined> {
  const { layers, slots, ranks, experts, old } = question;
  const { planId } = offered;
  const isOfShape =
    offered.layers === layers && offered.gpus === ranks && offered.gpus * offered.slotsPerGpu === slots;
  if (!isOfShape || offered.placement.some((expert) => expert >= experts)) return undefined;
  if (old === undefined)
    return { decision: 'rearrange', reason: 'no-old-map', placement: offered.placement, planId };
  // No engine has a word for the slots of a dead GPU.
  if (offered.placement.includes(-1)) return { decision: 'keep', reason: 'empty-slots', placement: old };
  const placement = keepSlots(offered.placement, old, offered.slotsPerGpu);
  if (movedSlots(placement, old) === 0) {
    return { decision: 'keep', reason: 'same-placement', placement: old, planId };
  }
  const predicted = await predict(problemOf(question), old, placement, signal);
  return { decision: 'rearrange', reason: 'controller', placement, planId, predicted };
}

export async function proposeOwn(
  question: PlacementQuestion,
  { rules, plan: options, moveShare }: ProposalSettings,
  signal: AbortSignal,
): Promise<Proposal> {
  const { old } = question;
  const problem = problemOf(question);
  if (old === undefined) {
    const { physicalToLogical } = await planPlacement(problem, { ...options, signal });
    return { decision: 'rearrange', reason: 'no-old-map', placement: physicalToLogical };
  }
  const history = { failures: 0 };
  const occasion = { nowMs: 0, tokens: Math.min(...layerTokens(question)), gpusChanged: false };
  const wait = reasonToWait(rules, occasion, history);
  if (wait !== undefined) return { decision: 'keep', reason: wait, placement: old };

  const meanNs = sum(meanLoads(problem)) / problem.layers;
  const priced = { ...problem, incumbent: old, migrationCost: moveShare * meanNs };
  const plan = await planPlacement(priced, { ...options, signal });
  const [incumbent, candidate] = await loadsOf(problem, [old, plan.physicalToLogical], signal);
  const [incumbentNs, candidateNs] = [sum(incumbent!), sum(candidate!)];
  const prospect = {
    incumbentMs: incumbentNs / NS_PER_MS,
    candidateMs: candidateNs / NS_PER_MS,
    // As if tokens came one by one; they come in requests, so this is the least that it can be.
    spreadMs: Math.sqrt((incumbentNs + candidateNs) * COMPUTE_COST) / NS_PER_MS,
    costMs: (plan.migrations * priced.migrationCost) / NS_PER_MS,
    incumbentScore: incumbentNs / plan.lowerBound,
    candidateScore: candidateNs / plan.lowerBound,
    migrations: plan.migrations,
  };
  const { rearrange, reason } = decide(rules, prospect, history, occasion);
  const predicted = describe(problem, old, plan.physicalToLogical, incumbent!, candidate!);
  if (!rearrange) return { decision: 'keep', reason, placement: old, predicted };
  return { decision: 'rearrange', reason, placement: plan.physicalToLogical, predicted };
}

/** One source, so nothing is near or far. */
function problemOf({ layers, experts, ranks, slots, tokens }: PlacementQuestion): PlacementProblem {
  return {
    layers,
    sources: 1,
    experts,
    gpus: ranks,
    slotsPerGpu: slots / ranks,
    tokens,
    computeCost: COMPUTE_COST,
    commCost: new Float64Array(ranks),
  };
}

async function predict(
  problem: PlacementProblem,
  old: Int32Array,
  placement: Int32Array,
  signal: AbortSignal,
): Promise<PredictedChange> {
  const [before, after] = await loadsOf(problem, [old, placement], signal);
  return describe(problem, old, placement, before!, after!);
}

/** Of each placement, ns of the busiest rank: `[placements][layers]`. */
async function loadsOf(
  problem: PlacementProblem,
  placements: Int32Array[],
  signal: AbortSignal,
): Promise<Float64Array[]> {
  const { layers } = problem;
  const { loadMax } = await evaluatePlacements(problem, placements, { signal });
  return placements.map((_, index) => loadMax.subarray(index * layers, (index + 1) * layers));
}

function describe(
  problem: PlacementProblem,
  old: Int32Array,
  placement: Int32Array,
  before: Float64Array,
  after: Float64Array,
): PredictedChange {
  const means = meanLoads(problem);
  const imbalance = (loads: Float64Array) => {
    // A layer without traffic is even.
    const shares = loads.map((ns, layer) => (means[layer] === 0 ? 1 : ns / means[layer]!));
    return sum(shares) / problem.layers;
  };
  const whole = sum(before);
  return {
    oldImbalance: imbalance(before),
    newImbalance: imbalance(after),
    gainShare: whole === 0 ? 0 : 1 - sum(after) / whole,
    migrations: newPairs(problem, old, placement),
    movedSlots: movedSlots(placement, old),
  };
}

/** (expert, rank) pairs that the old map lacks. */
function newPairs({ slotsPerGpu }: PlacementProblem, old: Int32Array, placement: Int32Array): number {
  let pairs = 0;
  for (let first = 0; first < placement.length; first += slotsPerGpu) {
    const before = new Set(old.subarray(first, first + slotsPerGpu));
    const now = new Set(placement.subarray(first, first + slotsPerGpu));
    for (const expert of now) if (!before.has(expert)) pairs++;
  }
  return pairs;
}

/** ns of the mean rank: `[layers]`. */
function meanLoads(problem: PlacementProblem): Float64Array {
  return layerTokens(problem).map((tokens) => (tokens * COMPUTE_COST) / problem.gpus);
}

/** `[layers]` */
function layerTokens({ layers, experts, tokens }: Pick<PlacementProblem, 'layers' | 'experts' | 'tokens'>) {
  return Float64Array.from({ length: layers }, (_, layer) =>
    sum(tokens.subarray(layer * experts, (layer + 1) * experts)),
  );
}
