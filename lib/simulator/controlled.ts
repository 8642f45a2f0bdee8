/**
 * The product's controller over a simulated group: RoutingStatistics fed with what engines tell of a share of the requests, a look
 * every so many ms, and what the controller does at a look (lib/controller/consider.ts: plan, schedule, judge, decide, audit). Only
 * the clock, the requests and the hook that moves experts are simulated.
 */
import { Considering, type Finding, type Situation } from '../controller/consider.js';
import type { DecisionHistory } from '../controller/decide.js';
import { type CheckedController, checkController } from '../controller/options.js';
import { GrowthRate } from '../controller/rate.js';
import { gainShare } from '../controller/record.js';
import type { MigrationCosts } from '../controller/types.js';
import { Planner } from '../planner.js';
import { Random } from '../random.js';
import { RoutingStatistics } from '../statistics/routing-statistics.js';
import type { PlacementProblem } from '../types.js';
import type { Group } from './group.js';
import type { PlacementPolicy, PlanningOccasion } from './rearrange.js';
import type { SimulatedController, SimulatedDecision } from './types.js';

const SAMPLE_STREAM = 401;
const DEFAULTS: Required<Pick<SimulatedController, 'lookEveryMs' | 'sampleShare' | 'effort'>> = {
  lookEveryMs: 10_000,
  sampleShare: 0.05,
  effort: 'balanced',
};
/** Expected hits below which they are drawn one by one. */
const FEW = 12;

export interface ControllerSetting {
  problem: Omit<PlacementProblem, 'tokens'>;
  initial: Int32Array;
  migration: MigrationCosts;
  given: SimulatedController;
  topK: number;
  seed: number;
}

export class ControllerPolicy implements PlacementPolicy {
  readonly decisions: Omit<SimulatedDecision, 'group'>[] = [];
  readonly #settings: typeof DEFAULTS & SimulatedController;
  readonly #topK: number;
  readonly #random: Random;
  readonly #statistics: RoutingStatistics;
  readonly #options: CheckedController;
  readonly #planner = new Planner();
  readonly #considering: Considering;
  readonly #rate: GrowthRate;
  readonly #never = new AbortController().signal;
  #history: DecisionHistory = { failures: 0 };
  /** Of the plan that is being put in force. */
  #score = 1;
  #nextMs: number;

  constructor({ problem, initial, migration, given, topK, seed }: ControllerSetting) {
    const settings = { ...DEFAULTS, ...given };
    const { layers, sources, experts } = problem;
    const { halfLifeTokens, priorTokens } = settings;
    this.#settings = settings;
    this.#topK = topK;
    this.#nextMs = settings.lookEveryMs;
    this.#random = new Random(seed, SAMPLE_STREAM);
    this.#statistics = new RoutingStatistics({
      layers,
      sources,
      experts,
      ...(halfLifeTokens === undefined ? {} : { halfLifeTokens }),
      ...(priorTokens === undefined ? {} : { priorTokens }),
    });
    this.#rate = new GrowthRate(0, 0);
    this.#options = checkController({
      problem,
      initial,
      migration,
      statistics: this.#statistics,
      plan: { backend: 'cpu', effort: settings.effort, seed },
      // The simulator itself applies what is decided, and remembers it.
      apply: { apply: async () => {} },
      stateFile: 'none',
      ...(settings.rules === undefined ? {} : { rules: settings.rules }),
    });
    this.#considering = new Considering(this.#options, this.#planner);
  }

  /** Engines tell a request's routing with its end. It is drawn from the tables as they are then. */
  served(group: Group, rank: number, profile: number, tokens: number): void {
    if (this.#random.uniform() >= this.#settings.sampleShare) return;
    const counts = Uint32Array.from(group.load.chances(profile), (chance) => this.#hits(tokens, chance));
    this.#statistics.observeCounts({ source: rank, counts, k: this.#topK });
  }

  /** Of so many tokens, those that go to an expert. */
  #hits(tokens: number, chance: number): number {
    const mean = tokens * chance;
    if (mean >= FEW) {
      return Math.max(0, Math.round(mean + Math.sqrt(mean * (1 - chance)) * this.#random.normal()));
    }
    return this.#random.poisson(mean);
  }

  async plan(occasion: PlanningOccasion): Promise<Int32Array | undefined> {
    const { nowMs, gpusChanged } = occasion;
    if (nowMs < this.#nextMs && !gpusChanged) return undefined;
    while (this.#nextMs <= nowMs) this.#nextMs += this.#settings.lookEveryMs;
    const situation = this.#situationOf(occasion);
    const finding = await this.#considering.consider(situation, this.#never);
    if (!finding.decision.rearrange) return this.#note(nowMs, finding);
    this.#score = finding.prospect!.candidateScore;
    return this.#note(nowMs, finding, finding.plan!.physicalToLogical);
  }

  #situationOf({ group, nowMs, gpusChanged, problem }: PlanningOccasion): Situation {
    const { incumbent, gpus, slotsPerGpu, deadGpus = [] } = problem();
    this.#rate.note(nowMs, this.#statistics.tokensSeen);
    return {
      nowMs,
      gpusChanged,
      deadGpus,
      history: this.#history,
      committed: {
        planId: `of step ${group.steps}`,
        atMs: this.#history.committedAtMs ?? 0,
        placement: incumbent!,
        gpus,
        slotsPerGpu,
        deadGpus,
      },
      statisticsAgeMs: this.#rate.ageMs(nowMs),
      tokensPerSecond: this.#rate.tokensPerSecond / this.#settings.sampleShare,
    };
  }

  /** Returns the placement that is moved to, if any. */
  #note(atMs: number, { plan, prospect, decision }: Finding, placement?: Int32Array): Int32Array | undefined {
    this.decisions.push({
      atMs,
      rearranged: placement !== undefined,
      reason: decision.reason,
      ...(plan === undefined ? {} : { migrations: plan.migrations }),
      ...(prospect === undefined ? {} : { gainShare: gainShare(prospect) }),
    });
    return placement;
  }

  tokens(): Uint32Array {
    return this.#statistics.counts();
  }

  moved(nowMs: number): void {
    this.#history = { failures: 0, committedAtMs: nowMs, committedScore: this.#score };
  }

  close(): void {
    this.#planner.close();
  }
}
