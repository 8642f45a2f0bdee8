/** One look at the statistics: whether a plan is worth making, the plan, what it promises and costs, and the decision on it. */
import { type MigrationSchedule, scheduleMigration } from '../migration.js';
import type { Planner } from '../planner.js';
import type { PlacementProblem, Plan } from '../types.js';
import { changeMs, roundMs } from './cost.js';
import { type Decision, type DecisionHistory, decide, type Prospect, reasonToWait } from './decide.js';
import { horizonMs, type Judgement, judge } from './judge.js';
import type { CheckedController } from './options.js';
import type { Committed } from './state.js';
import { sum } from './sum.js';

const NS_PER_MS = 1e6;
const MS_PER_SECOND = 1000;

export interface Situation {
  nowMs: number;
  committed: Committed;
  history: DecisionHistory;
  deadGpus: number[];
  gpusChanged: boolean;
  statisticsAgeMs: number;
  tokensPerSecond: number;
}

/** What was found, as far as it came. */
export interface Finding {
  decision: Decision;
  detail?: string;
  plan?: Plan;
  prospect?: Prospect;
  optimismMs?: number;
  schedule?: MigrationSchedule;
}

type Weighed = Pick<Finding, 'optimismMs'> & { prospect: Prospect };

/** What the counts of a look are. */
interface Counted {
  /** The problem with them, without incumbent and migration: what placements are compared by. */
  problem: PlacementProblem;
  /** `[layers]`, of all sources. */
  windowTokens: Float64Array;
}

export class Considering {
  readonly #options: CheckedController;
  readonly #planner: Planner;

  constructor(options: CheckedController, planner: Planner) {
    this.#options = options;
    this.#planner = planner;
  }

  /** @param signal ends it between its parts */
  async consider(situation: Situation, signal: AbortSignal): Promise<Finding> {
    const { rules, problem } = this.#options;
    const { nowMs, gpusChanged, statisticsAgeMs, history } = situation;
    const windowTokens = this.#windowTokens();
    const tokens = Math.min(...windowTokens) / problem.sources;
    const reason = reasonToWait(rules, { nowMs, gpusChanged, statisticsAgeMs, tokens }, history);
    if (reason !== undefined) return { decision: { rearrange: false, reason } };
    if (!gpusChanged && situation.tokensPerSecond === 0) {
      const detail = 'tokens per second are not known yet';
      return { decision: { rearrange: false, reason: 'too-little-data' }, detail };
    }
    const counted = { problem: this.problemOf(situation.deadGpus), windowTokens };
    const plan = await this.#plan(situation, counted, signal);
    // Nothing to weigh: of a placement against itself only noise would be told.
    if (!gpusChanged && plan.migrations === 0)
      return { decision: { rearrange: false, reason: 'same-placement' }, plan };
    return await this.#decide(situation, counted, plan, signal);
  }

  /** The problem as it is now, also for the heat map. An incumbent may hold an expert twice on a GPU. */
  problemOf(deadGpus: number[]): PlacementProblem {
    const { problem, statistics } = this.#options;
    return { ...problem, tokens: statistics.counts(), deadGpus, allowDuplicates: true };
  }

  /** `[layers]`, of all sources. */
  #windowTokens(): Float64Array {
    const { problem, statistics } = this.#options;
    const { layers, sources } = problem;
    const { tokens } = statistics.confidence();
    return Float64Array.from({ length: layers }, (_, layer) =>
      sum(tokens.subarray(layer * sources, (layer + 1) * sources)),
    );
  }

  async #plan(situation: Situation, counted: Counted, signal: AbortSignal): Promise<Plan> {
    const { problem, plan, migration, rules } = this.#options;
    const { committed, deadGpus, tokensPerSecond } = situation;
    const windowMs =
      tokensPerSecond === 0 ? 0 : (Math.max(...counted.windowTokens) / tokensPerSecond) * MS_PER_SECOND;
    const { placement, gpus, slotsPerGpu } = committed;
    return await this.#planner.plan(
      {
        ...problem,
        tokens: counted.problem.tokens,
        deadGpus,
        incumbent: placement,
        incumbentGpus: gpus,
        incumbentSlotsPerGpu: slotsPerGpu,
        // Paid for once in the horizon; of that, the window is a part.
        migrationCost:
          (roundMs(migration) * NS_PER_MS * windowMs) / rules.horizonMs +
          rules.leastMoveShare * evenLayerNs(counted.problem),
      },
      { ...plan, signal },
    );
  }

  async #schedule(
    { committed, deadGpus }: Situation,
    plan: Plan,
    signal: AbortSignal,
  ): Promise<MigrationSchedule> {
    const { problem, migration } = this.#options;
    const { layers, sources, experts, gpus, slotsPerGpu, commCost } = problem;
    const { stagingSlots, expertBytes } = migration;
    const from = committed.placement;
    const shapes = { fromGpus: committed.gpus, fromSlotsPerGpu: committed.slotsPerGpu, gpus, slotsPerGpu };
    const links = { commCost, sources, stagingSlots, expertBytes, deadGpus };
    return await scheduleMigration(
      { layers, experts, ...shapes, from, to: plan.physicalToLogical, ...links },
      { signal },
    );
  }

  async #decide(situation: Situation, counted: Counted, plan: Plan, signal: AbortSignal): Promise<Finding> {
    const { gpusChanged, history } = situation;
    const schedule = await this.#schedule(situation, plan, signal);
    const weighed: Weighed = gpusChanged
      ? { prospect: forced(plan) }
      : await this.#weigh(situation, counted, plan, schedule, signal);
    const found = { plan, schedule, ...weighed };
    const decision = decide(this.#options.rules, weighed.prospect, history, { gpusChanged });
    const isAudited = decision.rearrange && !gpusChanged;
    return isAudited && !(await this.#isBetterByNow(situation, plan, signal))
      ? { ...found, decision: { rearrange: false, reason: 'worse-on-audit' } }
      : { ...found, decision };
  }

  /** The audit before a commit: what the newest counts say, since a plan takes its time. */
  async #isBetterByNow(
    { committed, deadGpus }: Situation,
    { physicalToLogical }: Plan,
    signal: AbortSignal,
  ): Promise<boolean> {
    const problem = this.problemOf(deadGpus);
    const pair = [committed.placement, physicalToLogical];
    const evaluation = await this.#planner.evaluate(problem, pair, { signal });
    const [incumbent, candidate] = horizonMs(evaluation, new Float64Array(problem.layers).fill(1));
    return candidate < incumbent;
  }

  async #weigh(
    situation: Situation,
    counted: Counted,
    plan: Plan,
    schedule: MigrationSchedule,
    signal: AbortSignal,
  ): Promise<Weighed> {
    const { rules, migration, overdispersion, resamples, plan: planOptions } = this.#options;
    const horizonTokens = (situation.tokensPerSecond * rules.horizonMs) / MS_PER_SECOND;
    const windows = counted.windowTokens.map((tokens) => (tokens === 0 ? 0 : horizonTokens / tokens));
    const [incumbent, candidate] = [situation.committed.placement, plan.physicalToLogical];
    // Another seed for every state of the statistics, the same for the same.
    const seed = Number(planOptions.seed ?? 0) + this.#options.statistics.tokensSeen;
    const of = { problem: counted.problem, incumbent, candidate, windows, overdispersion, resamples };
    const judgement = await judge({ ...of, seed: seed % 2 ** 52 }, (problem, pair) =>
      this.#planner.evaluate(problem, pair, { signal }),
    );
    const lowerMs = plan.layers.reduce(
      (total, { lowerBound }, l) => total + (lowerBound * windows[l]!) / NS_PER_MS,
      0,
    );
    const prospect = prospectOf(judgement, lowerMs, {
      costMs: changeMs(migration, schedule, judgement.commShare),
      migrations: plan.migrations,
    });
    const { seenMs, incumbentMs, candidateMs } = judgement;
    const optimismMs = seenMs.incumbent - seenMs.candidate - (incumbentMs - candidateMs);
    return { prospect, optimismMs };
  }
}

/** Of the window: what a layer's experts take where their load is even over the live GPUs, the mean of the layers. */
function evenLayerNs({ layers, gpus, tokens, computeCost, deadGpus = [] }: PlacementProblem): number {
  const costs = typeof computeCost === 'number' ? [computeCost] : computeCost;
  const cost = sum(costs) / costs.length;
  return (sum(tokens) * cost) / (gpus - deadGpus.length) / layers;
}

function prospectOf(
  { incumbentMs, candidateMs, spreadMs, seenMs }: Judgement,
  lowerMs: number,
  rest: Pick<Prospect, 'costMs' | 'migrations'>,
): Prospect {
  const score = (ms: number) => (lowerMs === 0 ? 1 : Math.max(1, ms / lowerMs));
  // The incumbent's as it is seen: at its commit, its own was taken from draws around what was seen then.
  const scores = { incumbentScore: score(seenMs.incumbent), candidateScore: score(candidateMs) };
  return { incumbentMs, candidateMs, spreadMs, ...scores, ...rest };
}

/** Where the incumbent cannot be had any more there is nothing to compare with. */
function forced(plan: Plan): Prospect {
  const score = plan.lowerBound === 0 ? 1 : Math.max(1, plan.objective / plan.lowerBound);
  const nothing = { incumbentMs: 0, candidateMs: 0, spreadMs: 0, costMs: 0, incumbentScore: score };
  return { ...nothing, candidateScore: score, migrations: plan.migrations };
}
