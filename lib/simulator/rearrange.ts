/**
 * Rearrangement of a group's experts: which policy plans it, what moving costs, and when the new placement holds. The product's
 * planner and controller are called through their public interfaces, rivals through the same problem.
 */

import { invalid } from '../checks.js';
import { contiguous } from '../contiguous.js';
import { Planner } from '../planner.js';
import type { PlacementProblem } from '../types.js';
import type { CheckedSimulation } from './check.js';
import { ControllerPolicy } from './controlled.js';
import type { Group } from './group.js';
import { OraclePolicy } from './oracle.js';
import { placementCosts } from './placement-costs.js';
import { repaired, withoutGpus } from './repair.js';
import type { RequestColumns } from './requests.js';
import { eplbGlobal } from './rivals/eplb.js';
import { swiftBalance } from './rivals/swift.js';
import type { PlacementPlanner, Rearrangement, SimulatedDecision } from './types.js';

const DEFAULTS = {
  everySteps: 3000,
  windowSteps: 1000,
  layerStallMs: 10,
  linkShare: 0.25,
  redundantExperts: 0,
  oracleEveryMs: 10_000,
};
type Settings = typeof DEFAULTS & Rearrangement;

/** Until a group has noticed that a GPU is lost, and has formed anew. */
const DETECTION_MS = 1000;
const BYTES_PER_GIGA = 1e9;
const MS_PER_SECOND = 1000;
/** Their weights move beside the work unless told otherwise. */
const OVERLAPPING: unknown[] = ['static', 'gimbal', 'periodic', 'swift'];

export interface Move {
  placement: Int32Array;
  migrations: number;
  /** For which the busiest link is taken, were the links the move's alone. */
  transferMs: number;
  /** When the new placement holds. */
  atMs: number;
  /** For which all engines of the group stand still, from now. */
  stallMs: number;
}

export interface PlanningOccasion {
  group: Group;
  nowMs: number;
  /** GPUs have gone or come back. */
  gpusChanged: boolean;
  /** Of the group as it is now, but for its tokens. */
  problem(): Omit<PlacementProblem, 'tokens'>;
}

/** Asked after every step, and where GPUs have changed: the placement to move to, or undefined to leave it. */
export interface PlacementPolicy {
  plan(occasion: PlanningOccasion): Promise<Int32Array | undefined>;
  /** A request of a rank has ended, with so many tokens of a profile behind it. */
  served?(group: Group, rank: number, profile: number, tokens: number): void;
  /** What it knows of the routing, where that is not the group's window. `[layers][sources][experts]` */
  tokens?(): Uint32Array;
  /** The placement of the latest plan holds. */
  moved?(nowMs: number): void;
  readonly decisions?: readonly Omit<SimulatedDecision, 'group'>[];
  close?(): void;
}

/** Plans every so many steps, from what was routed in the last of them. */
class PeriodicPolicy implements PlacementPolicy {
  readonly #planner: PlacementPlanner & { close?(): void };
  readonly #settings: Settings;
  /** Swaps from what is there, and so needs something on every GPU. */
  readonly #plansLosses: boolean;

  constructor(planner: PlacementPlanner & { close?(): void }, settings: Settings, plansLosses = true) {
    this.#planner = planner;
    this.#settings = settings;
    this.#plansLosses = plansLosses;
  }

  async plan({ group, gpusChanged, problem }: PlanningOccasion): Promise<Int32Array | undefined> {
    const { everySteps, windowSteps, firstStep } = this.#settings;
    const { steps, load } = group;
    if (gpusChanged) {
      return this.#plansLosses
        ? this.#planner.plan({ ...problem(), tokens: load.windowTokens() })
        : undefined;
    }
    const isFirst = steps === firstStep;
    if (!isFirst && steps % everySteps === Math.max(0, everySteps - windowSteps)) load.window.fill(0);
    if (!isFirst && (steps === 0 || steps % everySteps !== 0)) return undefined;
    const tokens = load.windowTokens();
    if (tokens.every((count) => count === 0)) return undefined;
    return this.#planner.plan({ ...problem(), tokens });
  }

  close(): void {
    this.#planner.close?.();
  }
}

export class Rearranger {
  readonly #settings: Settings;
  readonly #policy: PlacementPolicy | undefined;
  readonly #overlaps: boolean;
  readonly #isFree: boolean;
  readonly #setting: CheckedSimulation;
  /** Of a whole group, without traffic and a placement in force. */
  readonly problem: Omit<PlacementProblem, 'tokens'>;
  readonly initial: Int32Array;

  constructor(setting: CheckedSimulation, requests: RequestColumns) {
    const { model, hardware, shape, policy, rearrangement, simulatedLayers } = setting;
    const settings = { ...DEFAULTS, ...rearrangement };
    const gpus = shape.ranks * shape.tensorParallel;
    this.#settings = settings;
    this.#setting = setting;
    this.#isFree = policy.placement === 'oracle';
    const usual = OVERLAPPING.includes(policy.placement) ? 'overlap' : 'stall';
    this.#overlaps = !this.#isFree && (settings.transfer ?? usual) === 'overlap';
    this.problem = {
      layers: simulatedLayers,
      sources: shape.ranks,
      experts: model.experts,
      gpus,
      slotsPerGpu: Math.ceil((model.experts + settings.redundantExperts) / gpus),
      replicaChoice: shape.replicaChoice,
      ...placementCosts(model, hardware, shape),
    };
    this.initial = this.#initial();
    this.#policy = this.#policyOf(requests);
  }

  #policyOf(requests: RequestColumns): PlacementPolicy | undefined {
    const { policy, groups, seed } = this.#setting;
    const { placement } = policy;
    const settings = this.#settings;
    if (placement === 'static') return undefined;
    if (placement === 'eplb') return new PeriodicPolicy({ name: 'eplb', plan: eplbGlobal }, settings);
    if (placement === 'swift') {
      return new PeriodicPolicy({ name: 'swift', plan: swiftBalance }, settings, false);
    }
    if (placement === 'periodic') return new PeriodicPolicy(this.#ownPlanner(), settings);
    if (placement === 'oracle') {
      return new OraclePolicy({ everyMs: settings.oracleEveryMs, requests, groups, seed });
    }
    if (placement !== 'gimbal') return new PeriodicPolicy(placement, settings);
    const { model } = this.#setting;
    return new ControllerPolicy({
      problem: this.problem,
      initial: this.initial,
      migration: {
        expertBytes: model.expertBytes,
        linkGBps: this.#linkGBps,
        transfer: this.#overlaps ? 'overlap' : 'stall',
        linkShare: settings.linkShare,
        stallMs: this.#overlaps ? 0 : (settings.stallMs ?? 0),
        layerStallMs: this.#overlaps || settings.stallMs !== undefined ? 0 : settings.layerStallMs,
      },
      given: settings.controller ?? {},
      topK: model.topK,
      seed,
    });
  }

  #ownPlanner(): PlacementPlanner & { close(): void } {
    const { seed } = this.#setting;
    const { windowSteps, everySteps, migrationBudget } = this.#settings;
    const planner = new Planner();
    // A move is paid for once, and its placement serves until the next plan: of that, the window is a part.
    const migrationCost = (this.#moveMs(1) * 1e6 * windowSteps) / everySteps;
    const price = { migrationCost, ...(migrationBudget === undefined ? {} : { migrationBudget }) };
    return {
      name: 'periodic',
      plan: async (problem) =>
        (await planner.plan({ ...problem, ...price }, { seed, backend: 'cpu' })).physicalToLogical,
      close: () => planner.close(),
    };
  }

  #initial(): Int32Array {
    const { layers, experts, gpus, slotsPerGpu } = this.problem;
    const given = this.#settings.initial;
    if (given === undefined) return contiguous(layers, experts, gpus * slotsPerGpu);
    const wanted = layers * gpus * slotsPerGpu;
    if (given.length !== wanted) {
      throw invalid('options.rearrangement.initial', `${wanted} slots`, `${given.length}`);
    }
    return given.slice();
  }

  /** After a step: the move that is due now, if one is. */
  async due(group: Group, nowMs: number): Promise<Move | undefined> {
    if (this.#policy === undefined) return undefined;
    const placement = await this.#policy.plan(this.#occasion(group, nowMs, false));
    return placement === undefined ? undefined : this.#move(group.load.placement, placement, nowMs);
  }

  /** A GPU of the group is gone, or back and empty: the group stands still until all experts have a place again. */
  async gpusChanged(group: Group, nowMs: number, isLoss: boolean): Promise<Move> {
    group.load.placement = withoutGpus(group.load.placement, this.problem, group.deadGpus);
    const occasion = this.#occasion(group, nowMs, true);
    const placement =
      (await this.#policy?.plan(occasion)) ??
      repaired({ ...occasion.problem(), tokens: new Uint32Array(0) }, this.initial);
    const move = this.#move(group.load.placement, placement, nowMs);
    if (!isLoss) return move;
    // Nothing runs beside which weights could move.
    return { ...move, atMs: nowMs, stallMs: DETECTION_MS + Math.max(move.stallMs, move.transferMs) };
  }

  #occasion(group: Group, nowMs: number, gpusChanged: boolean): PlanningOccasion {
    return {
      group,
      nowMs,
      gpusChanged,
      problem: () => ({
        ...this.problem,
        incumbent: group.load.placement,
        ...(group.deadGpus.size === 0 ? {} : { deadGpus: [...group.deadGpus].sort((a, b) => a - b) }),
      }),
    };
  }

  #move(before: Int32Array, after: Int32Array, nowMs: number): Move {
    const { layers, gpus, slotsPerGpu } = this.problem;
    const arrivals = new Int32Array(gpus);
    let pairs = 0;
    for (let row = 0; row < layers * gpus; row++) {
      const own = new Set(before.subarray(row * slotsPerGpu, (row + 1) * slotsPerGpu));
      for (const expert of new Set(after.subarray(row * slotsPerGpu, (row + 1) * slotsPerGpu))) {
        if (expert < 0 || own.has(expert)) continue;
        pairs += 1;
        arrivals[row % gpus]! += 1;
      }
    }
    // Each layer that is simulated stands for so many.
    const stands = this.#setting.model.moeLayers / layers;
    const transferMs = this.#isFree ? 0 : this.#moveMs(stands * Math.max(...arrivals));
    const move = { placement: after, migrations: stands * pairs, transferMs, atMs: nowMs, stallMs: 0 };
    if (pairs === 0 || this.#isFree) return move;
    const { linkShare, layerStallMs, stallMs } = this.#settings;
    if (this.#overlaps) return { ...move, atMs: nowMs + transferMs / linkShare };
    return { ...move, stallMs: stallMs ?? transferMs + stands * layers * layerStallMs };
  }

  /** What is known of the group's routing: by the controller's statistics where there is one. `[layers][sources][experts]` */
  tokens(group: Group): Uint32Array {
    return this.#policy?.tokens?.() ?? group.load.windowTokens();
  }

  /** The move is done. */
  moved(nowMs: number): void {
    this.#policy?.moved?.(nowMs);
  }

  /** A request of a rank has ended. */
  served(group: Group, rank: number, profile: number, tokens: number): void {
    this.#policy?.served?.(group, rank, profile, tokens);
  }

  get decisions(): readonly Omit<SimulatedDecision, 'group'>[] {
    return this.#policy?.decisions ?? [];
  }

  /** Share of the links that is left to the work while a move is under way. */
  get linkLeft(): number {
    return this.#overlaps ? 1 - this.#settings.linkShare : 1;
  }

  /** By which a GPU gets experts. */
  get #linkGBps(): number {
    const { hardware, shape } = this.#setting;
    const { nodes, ranks, tensorParallel } = shape;
    const perNode = (ranks * tensorParallel) / nodes;
    const { links, interNodeGBps } = hardware;
    const { allToAll } = links.find(({ gpus }) => gpus >= perNode) ?? links.at(-1)!;
    return nodes > 1 ? Math.min(allToAll.GBps, interNodeGBps) : allToAll.GBps;
  }

  /** ms in which one GPU gets so many experts. */
  #moveMs(experts: number): number {
    return (experts * this.#setting.model.expertBytes * MS_PER_SECOND) / (this.#linkGBps * BYTES_PER_GIGA);
  }

  close(): void {
    this.#policy?.close?.();
  }
}
