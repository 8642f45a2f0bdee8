/**
 * Rearrangement of a group's experts: when to plan, with which planner, what moving costs, and when the new placement holds.
 * The product's planner is called through its public interface, rivals through the same problem.
 */
import { invalid } from '../checks.js';
import { Planner } from '../planner.js';
import { topology } from '../topology.js';
import type { PlacementProblem } from '../types.js';
import type { Group } from './group.js';
import type { ServedModel, ServingHardware } from './hardware.js';
import { eplbGlobal } from './rivals/eplb.js';
import type { GroupShape } from './step-time.js';
import type { PlacementPlanner, Rearrangement, SimulatedPolicy } from './types.js';

const DEFAULTS = {
  everySteps: 3000,
  windowSteps: 1000,
  layerStallMs: 10,
  linkShare: 0.25,
  redundantExperts: 0,
};
const BYTES_PER_GIGA = 1e9;
const MS_PER_SECOND = 1000;

export interface Move {
  placement: Int32Array;
  migrations: number;
  /** When the new placement holds. */
  atMs: number;
  /** For which all engines of the group stand still, from now. */
  stallMs: number;
}

/** Slot m holds expert m modulo the experts, as engines start. `[layers][slots]` */
export function contiguous(layers: number, experts: number, slots: number): Int32Array {
  return Int32Array.from({ length: layers * slots }, (_, n) => (n % slots) % experts);
}

export class Rearranger {
  readonly slotsPerGpu: number;
  readonly #settings: typeof DEFAULTS & Rearrangement;
  readonly #planner: PlacementPlanner | undefined;
  readonly #overlaps: boolean;
  readonly #problem: Omit<PlacementProblem, 'tokens'>;
  readonly #hardware: ServingHardware;
  readonly #model: ServedModel;
  readonly #shape: GroupShape;
  #own: Planner | undefined;

  constructor(
    model: ServedModel,
    hardware: ServingHardware,
    shape: GroupShape,
    placement: NonNullable<SimulatedPolicy['placement']>,
    rearrangement: Rearrangement,
    seed: number,
  ) {
    const settings = { ...DEFAULTS, ...rearrangement };
    const gpus = shape.ranks * shape.tensorParallel;
    this.#settings = settings;
    this.#model = model;
    this.#hardware = hardware;
    this.#shape = shape;
    this.slotsPerGpu = Math.ceil((model.experts + settings.redundantExperts) / gpus);
    this.#planner = this.#plannerOf(placement, seed);
    this.#overlaps = (settings.transfer ?? (placement === 'gimbal' ? 'overlap' : 'stall')) === 'overlap';
    const { computeCost, commCost } = topology({
      nodes: shape.nodes,
      gpusPerNode: gpus / shape.nodes,
      model,
      hardware,
      sources: shape.ranks,
      allToAll: shape.allToAll === 'allgather-reducescatter' ? shape.allToAll : 'all-to-all',
    });
    this.#problem = {
      layers: model.moeLayers,
      sources: shape.ranks,
      experts: model.experts,
      gpus,
      slotsPerGpu: this.slotsPerGpu,
      computeCost,
      commCost,
      // A move is paid for once, and its placement serves until the next plan: of that, the window is a part.
      migrationCost: (this.#moveMs(1) * 1e6 * settings.windowSteps) / settings.everySteps,
      ...(settings.migrationBudget === undefined ? {} : { migrationBudget: settings.migrationBudget }),
    };
  }

  #plannerOf(
    placement: NonNullable<SimulatedPolicy['placement']>,
    seed: number,
  ): PlacementPlanner | undefined {
    if (placement === 'static') return undefined;
    if (placement === 'eplb') return { name: 'eplb', plan: eplbGlobal };
    if (placement !== 'gimbal') return placement;
    this.#own = new Planner();
    return {
      name: 'gimbal',
      plan: async (problem) => (await this.#own!.plan(problem, { seed, backend: 'cpu' })).physicalToLogical,
    };
  }

  /** What a placement costs, by the group's shape and hardware. */
  get costs() {
    const { layers, sources, experts, gpus, slotsPerGpu, computeCost, commCost } = this.#problem;
    return { layers, sources, experts, gpus, slotsPerGpu, computeCost, commCost };
  }

  get initial(): Int32Array {
    const { layers, experts, gpus, slotsPerGpu } = this.#problem;
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
    const { everySteps, windowSteps, firstStep } = this.#settings;
    const { steps, load } = group;
    if (this.#planner === undefined) return undefined;
    const isFirst = steps === firstStep;
    if (!isFirst && steps % everySteps === Math.max(0, everySteps - windowSteps)) load.window.fill(0);
    if (!isFirst && (steps === 0 || steps % everySteps !== 0)) return undefined;
    const tokens = load.windowTokens();
    if (tokens.every((count) => count === 0)) return undefined;
    const incumbent = load.placement;
    const placement = await this.#planner.plan({ ...this.#problem, tokens, incumbent });
    return this.#move(incumbent, placement, nowMs);
  }

  #move(before: Int32Array, after: Int32Array, nowMs: number): Move {
    const { layers, gpus, slotsPerGpu } = this.#problem;
    const arrivals = new Int32Array(gpus);
    let migrations = 0;
    for (let row = 0; row < layers * gpus; row++) {
      const own = new Set(before.subarray(row * slotsPerGpu, (row + 1) * slotsPerGpu));
      for (const expert of new Set(after.subarray(row * slotsPerGpu, (row + 1) * slotsPerGpu))) {
        if (expert < 0 || own.has(expert)) continue;
        migrations += 1;
        arrivals[row % gpus]! += 1;
      }
    }
    const transferMs = this.#moveMs(Math.max(...arrivals));
    const { linkShare, layerStallMs } = this.#settings;
    if (migrations === 0) return { placement: after, migrations, atMs: nowMs, stallMs: 0 };
    return this.#overlaps
      ? { placement: after, migrations, atMs: nowMs + transferMs / linkShare, stallMs: 0 }
      : { placement: after, migrations, atMs: nowMs, stallMs: transferMs + layers * layerStallMs };
  }

  /** Share of the links that is left to the work while a move is under way. */
  get linkLeft(): number {
    return this.#overlaps ? 1 - this.#settings.linkShare : 1;
  }

  /** ms in which one GPU gets so many experts. */
  #moveMs(experts: number): number {
    const { nodes, ranks, tensorParallel } = this.#shape;
    const perNode = (ranks * tensorParallel) / nodes;
    const { links, interNodeGBps } = this.#hardware;
    const link = links.find(({ gpus }) => gpus >= perNode) ?? links.at(-1)!;
    const GBps = nodes > 1 ? Math.min(link.allToAll.GBps, interNodeGBps) : link.allToAll.GBps;
    return (experts * this.#model.expertBytes * MS_PER_SECOND) / (GBps * BYTES_PER_GIGA);
  }

  close(): void {
    this.#own?.close();
  }
}
