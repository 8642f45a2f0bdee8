/**
 * What a placement makes of the counts in steps of any size: the simulator's own expert load, over slots in the place of experts.
 * Each slot stands for the part of its expert's tokens that come to it, source by source, so every replica choice is the same to
 * the load: a placement in which each expert has one replica.
 */

import { ExpertLoad, type StepLoad } from '../simulator/expert-load.js';
import type { RoutingTables } from '../simulator/routing.js';
import type { GroupShape, StepTimer } from '../simulator/step-time.js';
import type { PlacementProblem, ReplicaChoice } from '../types.js';
import { type Counts, sharesOf } from './counts.js';

/** As the simulator keeps chances off 0 and 1. */
const LEAST_CHANCE = 1e-6;

export interface Placed extends Pick<PlacementProblem, 'gpus' | 'slotsPerGpu' | 'commCost'> {
  /** `[layers][gpus * slotsPerGpu]` */
  placement: Int32Array;
  replicaChoice: ReplicaChoice;
}

export class PlacedLoad {
  readonly #load: ExpertLoad;
  readonly #shape: GroupShape;
  readonly #timer: StepTimer;
  /** Layers of the model for each one that was counted. */
  readonly #layersEach: number;
  readonly #known = new Map<string, StepLoad>();
  /** `[ranks]`, in the batch. */
  readonly #tokens: Float64Array;

  constructor(
    counts: Counts,
    topK: number,
    placed: Placed,
    shape: GroupShape,
    timer: StepTimer,
    moeLayers: number,
    seed: number,
  ) {
    const tables = slotTables(counts, topK, placed);
    this.#shape = shape;
    this.#tokens = new Float64Array(shape.ranks);
    this.#timer = timer;
    this.#layersEach = moeLayers / tables.layers;
    const slots = placed.gpus * placed.slotsPerGpu;
    const own = Int32Array.from({ length: tables.layers * slots }, (_, n) => n % slots);
    this.#load = new ExpertLoad(tables, shape, own, seed);
  }

  /** All layers' experts and collectives where each rank has so many tokens. `tokens`: `[ranks]`. */
  step(tokens: Float64Array): StepLoad {
    const key = tokens.join();
    let known = this.#known.get(key);
    if (known === undefined) {
      const { ranks, padUpToTokens } = this.#shape;
      for (let rank = 0; rank < ranks; rank++) {
        this.#load.add(rank, rank, tokens[rank]! - this.#tokens[rank]!);
      }
      this.#tokens.set(tokens);
      this.#load.restartNoise();
      const most = Math.max(...tokens);
      const sum = tokens.reduce((total, own) => total + own, 0);
      const padded = most <= padUpToTokens ? ranks * most : sum;
      known = this.#load.step(this.#timer, sum, padded, most);
      known.micros *= this.#layersEach;
      this.#known.set(key, known);
    }
    return known;
  }
}

/** Chances over slots, `[sources][layers][slots]`. */
function slotTables(counts: Counts, topK: number, placed: Placed): RoutingTables {
  const { layers, sources, experts } = counts;
  const slots = placed.gpus * placed.slotsPerGpu;
  const size = sources * layers * slots;
  const tables: RoutingTables = {
    profiles: sources,
    layers,
    experts: slots,
    chance: new Float32Array(size),
    logMiss: new Float32Array(size),
  };
  for (let layer = 0; layer < layers; layer++) {
    const held = slotsOfExperts(placed.placement.subarray(layer * slots, (layer + 1) * slots), experts);
    for (let source = 0; source < sources; source++) {
      const chances = chancesOf(counts, layer, source, topK);
      const at = (source * layers + layer) * slots;
      for (let expert = 0; expert < experts; expert++) {
        const serving = servingSlots(held[expert]!, source, placed);
        const chance = chances[expert]!;
        for (const slot of serving) {
          tables.chance[at + slot] = chance / serving.length;
          tables.logMiss[at + slot] = Math.log1p(-chance) / serving.length;
        }
      }
    }
  }
  return tables;
}

/** `[experts]`: the slots that hold each. */
function slotsOfExperts(placement: Int32Array, experts: number): number[][] {
  const held: number[][] = Array.from({ length: experts }, () => []);
  placement.forEach((expert, slot) => {
    if (expert >= 0) held[expert]!.push(slot);
  });
  return held;
}

/** That take the source's tokens: all of an expert's, or those to which the way is shortest. */
function servingSlots(
  held: number[],
  source: number,
  { gpus, slotsPerGpu, commCost, replicaChoice }: Placed,
): number[] {
  if (replicaChoice === 'even' || held.length === 1) return held;
  const costs = held.map((slot) => commCost[source * gpus + Math.floor(slot / slotsPerGpu)]!);
  const least = Math.min(...costs);
  return held.filter((_, n) => costs[n] === least);
}

/** `[experts]`: that a token of the source goes there. */
function chancesOf(counts: Counts, layer: number, source: number, topK: number): Float64Array {
  const shares = sharesOf(counts, layer, source);
  const sum = shares.reduce((total, count) => total + count, 0);
  return Float64Array.from(shares, (count) =>
    Math.min(1 - LEAST_CHANCE, Math.max(LEAST_CHANCE, (topK * count) / sum)),
  );
}
