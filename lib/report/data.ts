/**
 * What a report shows, gathered once: the terminal, `--json` and the HTML page are three views of it.
 */
import type { Effort, PlacementProblem, Plan, ReplicaChoice, Weights } from '../types.js';
import type { PlacementFigures } from './figures.js';

export interface ReportInput {
  /** Of the package that made the plan. */
  version: string;
  /** The command line, one word an element. */
  command: readonly string[];
  createdAt: Date;
  /** What the counts are of, for the title; e.g. the model's name. */
  subject: string;
  hardware?: string;
  problem: PlacementProblem;
  nodes?: number;
  gpusPerNode?: number;
  effort: Effort;
  plan: Plan;
  before: PlacementFigures;
  /** What `before` is, in words: "the incumbent" or "the engine's default". */
  beforeKind: string;
  after: PlacementFigures;
  /** How costs and counts came to be; each a sentence. */
  notes: readonly string[];
}

/** The objective as the problem states it, with the defaults filled in. */
export function objectiveOf(problem: PlacementProblem): {
  weights: Required<Weights>;
  replicaChoice: ReplicaChoice;
} {
  const { load = 1, commMax = 1, commTotal = 0.1, migration = 1 } = problem.weights ?? {};
  return {
    weights: { load, commMax, commTotal, migration },
    replicaChoice: problem.replicaChoice ?? 'even',
  };
}

/** Live slots over all layers: what a share of moved slots is a share of. */
export function liveSlots(problem: PlacementProblem): number {
  const live = problem.gpus - new Set(problem.deadGpus ?? []).size;
  return problem.layers * live * problem.slotsPerGpu;
}
