/**
 * The product's controller over a simulated group: RoutingStatistics fed with what engines tell of a share of the requests, a look
 * every so many ms, the product's planner, and the product's decision. Only the clock and the requests are simulated.
 */
import {
  DECISION_DEFAULTS,
  type DecisionHistory,
  decide,
  type Prospect,
  reasonToWait,
} from '../controller/decide.js';
import { Planner } from '../planner.js';
import { Random } from '../random.js';
import { RoutingStatistics } from '../statistics/routing-statistics.js';
import type { PlacementProblem } from '../types.js';
import type { CheckedSimulation } from './check.js';
import type { Group } from './group.js';
import type { PlacementPolicy, PlanningOccasion } from './rearrange.js';
import type { SimulatedDecision } from './types.js';

const SAMPLE_STREAM = 401;
const DEFAULTS = { lookEveryMs: 10_000, sampleShare: 0.05, effort: 'balanced' } as const;
/** Expected hits below which they are drawn one by one. */
const FEW = 12;

export class ControllerPolicy implements PlacementPolicy {
  readonly #setting: CheckedSimulation;
  readonly #options;
  readonly #rules;
  readonly #statistics: RoutingStatistics;
  readonly #planner = new Planner();
  readonly #random: Random;
  readonly #moveMs: number;
  readonly decisions: Omit<SimulatedDecision, 'group'>[] = [];
  #history: DecisionHistory = { failures: 0 };
  #pendingScore = 1;
  #nextMs: number;

  constructor(setting: CheckedSimulation, problem: Omit<PlacementProblem, 'tokens'>, moveMs: number) {
    const { rearrangement, seed } = setting;
    const { layers, sources, experts } = problem;
    this.#setting = setting;
    this.#options = { ...DEFAULTS, ...rearrangement.controller };
    this.#rules = { ...DECISION_DEFAULTS, ...this.#options.rules };
    const { halfLifeTokens } = this.#options;
    this.#statistics = new RoutingStatistics({
      layers,
      sources,
      experts,
      ...(process.env.PRIOR ? { priorTokens: Number(process.env.PRIOR) } : {}),
      ...(halfLifeTokens === undefined ? {} : { halfLifeTokens }),
    });
    this.#random = new Random(seed, SAMPLE_STREAM);
    this.#moveMs = moveMs;
    this.#nextMs = this.#options.lookEveryMs;
  }

  /** Engines tell a request's routing with its end. It is drawn from the tables as they are then. */
  served(group: Group, rank: number, profile: number, tokens: number): void {
    if (this.#random.uniform() >= this.#options.sampleShare) return;
    const { topK: k } = this.#setting.model;
    const counts = group.load.chances(profile).map((chance) => this.#drawn(tokens, chance));
    this.#statistics.observeCounts({ source: rank, counts: Uint32Array.from(counts), k });
  }

  /** Of so many tokens, those that go to an expert. */
  #drawn(tokens: number, chance: number): number {
    const mean = tokens * chance;
    if (mean >= FEW) {
      return Math.max(0, Math.round(mean + Math.sqrt(mean * (1 - chance)) * this.#random.normal()));
    }
    const least = Math.exp(-mean);
    let hits = 0;
    for (let left = this.#random.uniform(); left > least; left *= this.#random.uniform()) hits++;
    return hits;
  }

  async plan(occasion: PlanningOccasion): Promise<Int32Array | undefined> {
    const { nowMs, gpusChanged } = occasion;
    if (nowMs < this.#nextMs && !gpusChanged) return undefined;
    while (this.#nextMs <= nowMs) this.#nextMs += this.#options.lookEveryMs;
    const { tokens } = this.#statistics.confidence();
    const least = tokens.reduce((a, b) => a + b, 0) / tokens.length;
    const waits = reasonToWait(this.#rules, { nowMs, tokens: least, gpusChanged }, this.#history);
    if (waits !== undefined) {
      this.decisions.push({ atMs: nowMs, rearranged: false, reason: waits });
      return undefined;
    }
    return this.#look(occasion);
  }

  async #look({ group, nowMs, gpusChanged, problem }: PlanningOccasion): Promise<Int32Array | undefined> {
    const { seed, model } = this.#setting;
    const whole = { ...problem(), tokens: this.#statistics.counts() };
    const tokensPerMs = Math.max(1e-9, (group.prefillTokens + group.decodeTokens) / nowMs);
    const pairs = whole.tokens.reduce((a, b) => a + b, 0) / whole.layers;
    const windowMs = pairs / model.topK / tokensPerMs;
    const windows = this.#rules.horizonMs / windowMs;
    const cost = whole.computeCost as Float64Array;
    const even = (whole.tokens.reduce((a, b) => a + b, 0) * cost[0]!) / whole.gpus / whole.layers;
    const migrationCost = (this.#moveMs * 1e6) / windows + Number(process.env.RHO ?? 0) * even;
    const plan = await this.#planner.plan(
      { ...whole, migrationCost },
      { seed, backend: 'cpu', effort: this.#options.effort },
    );
    const both = new Int32Array(2 * plan.physicalToLogical.length);
    both.set(whole.incumbent!);
    both.set(plan.physicalToLogical, whole.incumbent!.length);
    if (gpusChanged) {
      this.#pendingScore = plan.objective / plan.lowerBound;
      this.decisions.push({
        atMs: nowMs,
        rearranged: true,
        reason: 'gpus-changed',
        migrations: plan.migrations,
      });
      return plan.physicalToLogical;
    }
    const result = await this.#planner.evaluate({ ...whole, migrationCost: 0 }, both);
    const objective = result.objective;
    const L = whole.layers;
    let inc = 0;
    let cand = 0;
    for (let l = 0; l < L; l++) {
      inc += objective[l]!;
      cand += objective[L + l]!;
    }
    const prospect: Prospect = {
      incumbentMs: (inc * windows) / 1e6,
      candidateMs: (cand * windows) / 1e6,
      spreadMs: 0,
      costMs: (plan.migrations * this.#moveMs) / whole.gpus,
      incumbentScore: inc / plan.lowerBound,
      candidateScore: cand / plan.lowerBound,
      migrations: plan.migrations,
    };
    const { rearrange, reason } = decide(this.#rules, prospect, this.#history, { gpusChanged });
    this.decisions.push({
      atMs: nowMs,
      rearranged: rearrange,
      reason,
      migrations: plan.migrations,
      gainShare: 1 - cand / inc,
    });
    if (!rearrange) return undefined;
    this.#pendingScore = prospect.candidateScore;
    return plan.physicalToLogical;
  }

  moved(nowMs: number): void {
    this.#history = { failures: 0, committedAtMs: nowMs, committedScore: this.#pendingScore };
  }

  close(): void {
    this.#planner.close();
  }
}
