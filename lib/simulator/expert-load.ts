/**
 * What the experts of a lockstep group get in a step, under the placement in force: pairs and active experts of each GPU and
 * layer, copies that travel, and the time that follows. Sums are kept over the batch and changed where a request comes, goes
 * or has a chunk, so that a step costs layers × (experts + ranks × GPUs) and nothing for each token.
 */
import { Random } from '../random.js';
import type { RoutingTables } from './routing.js';
import type { GroupShape, StepTimer } from './step-time.js';

const NOISE_STREAM = 201;
/** Standard normals that are used in turn. */
const NOISE_COUNT = 8192;
/** Another node. */
const FARTHEST = 2;
/** exp(−x) by table up to here, in so many parts of 1; beyond, 0. */
const EXP_LIMIT = 16;
const EXP_PARTS = 256;
const EXP_TABLE = Float64Array.from({ length: EXP_LIMIT * EXP_PARTS + 2 }, (_, n) =>
  Math.exp(-n / EXP_PARTS),
);

/** exp(x) of x ≤ 0, within 2e-6. */
function expOf(x: number): number {
  const at = -x * EXP_PARTS;
  if (!(at < EXP_LIMIT * EXP_PARTS)) return 0;
  if (at <= 0) return 1;
  const low = Math.floor(at);
  const from = EXP_TABLE[low]!;
  return from + (EXP_TABLE[low + 1]! - from) * (at - low);
}

export interface StepLoad {
  /** Experts and their collectives, all layers. */
  micros: number;
  /** Experts alone; and what they took, were the step's pairs and active experts the same on each live GPU. */
  expertMicros: number;
  evenMicros: number;
  /** Largest over mean pairs of a GPU, mean over layers; 1 where there are none. */
  imbalance: number;
  /** Distinct experts that a GPU reads in a layer, mean over both. */
  active: number;
}

export class ExpertLoad {
  readonly #tables: RoutingTables;
  readonly #shape: GroupShape;
  readonly gpus: number;
  /** GPUs that hold any expert. */
  #live = 0;
  readonly #noise: Float64Array;
  #noiseAt = 0;
  /** `[layers][gpus * slotsPerGpu]` */
  placement: Int32Array;
  #slotsPerGpu = 0;
  /**
   * What a token brings, `[choices][profiles][layers]` of each, by the ranks' choices of replicas: one that all ranks have, or one
   * each. `[gpus]`: its pairs, and its copies under deduplication. `[slots]`: log of the chance that it does not go there.
   */
  readonly #choices: number;
  readonly #pairsOf: Float64Array;
  readonly #copiesOf: Float64Array;
  #missOf = new Float32Array(0);
  /** Of the batch: `[layers][slots]`, `[layers][gpus]`, and `[ranks][layers][gpus]`. */
  #logMiss = new Float64Array(0);
  readonly #pairs: Float64Array;
  readonly #copies: Float64Array;
  /** `[ranks][profiles]`: tokens in the batch, and tokens of steps since the window began. */
  readonly batch: Float64Array;
  readonly window: Float64Array;
  /** `[layers][gpus]`: pairs of all steps. */
  readonly total: Float64Array;

  constructor(tables: RoutingTables, shape: GroupShape, placement: Int32Array, seed: number) {
    const { layers, profiles } = tables;
    this.#tables = tables;
    this.#shape = shape;
    this.gpus = shape.ranks * shape.tensorParallel;
    const random = new Random(seed, NOISE_STREAM);
    this.#noise = Float64Array.from({ length: NOISE_COUNT }, () => random.normal());
    this.#choices = shape.replicaChoice === 'nearest' ? shape.ranks : 1;
    this.#pairsOf = new Float64Array(this.#choices * profiles * layers * this.gpus);
    this.#copiesOf = new Float64Array(shape.allToAll === 'a2a-dedup' ? this.#pairsOf.length : 0);
    this.#pairs = new Float64Array(layers * this.gpus);
    this.#copies = new Float64Array(this.#travels ? shape.ranks * this.#pairs.length : 0);
    this.batch = new Float64Array(shape.ranks * profiles);
    this.window = new Float64Array(shape.ranks * profiles);
    this.total = new Float64Array(layers * this.gpus);
    this.placement = placement;
    this.place(placement);
  }

  get layers(): number {
    return this.#tables.layers;
  }

  /** How likely each expert is for a token of the profile. `[layers][experts]` */
  chances(profile: number): Float32Array {
    const { layers, experts, chance } = this.#tables;
    return chance.subarray(profile * layers * experts, (profile + 1) * layers * experts);
  }

  /** Bytes depend on the placement. */
  get #travels(): boolean {
    return this.#shape.allToAll !== 'allgather-reducescatter';
  }

  /** Puts a placement in force, or takes up routing tables that have changed. */
  place(placement: Int32Array): void {
    const { layers, profiles } = this.#tables;
    const slots = placement.length / layers;
    this.placement = placement;
    this.#slotsPerGpu = slots / this.gpus;
    if (this.#logMiss.length !== placement.length) {
      this.#logMiss = new Float64Array(placement.length);
      this.#missOf = new Float32Array(this.#choices * profiles * placement.length);
    }
    this.#live = this.#countLive();
    this.#pairsOf.fill(0);
    this.#copiesOf.fill(0);
    for (let choice = 0; choice < this.#choices; choice++) {
      const shares = this.#sharesOf(choice);
      for (let profile = 0; profile < profiles; profile++) this.#placeProfile(choice, profile, shares);
    }
    for (let n = 0; n < this.#copiesOf.length; n++) this.#copiesOf[n] = -Math.expm1(this.#copiesOf[n]!);
    this.#rebuild();
  }

  #placeProfile(choice: number, profile: number, shares: Float64Array): void {
    const { layers, experts, profiles, chance, logMiss } = this.#tables;
    const { placement, gpus } = this;
    const slots = placement.length / layers;
    const row = choice * profiles + profile;
    const deduplicates = this.#copiesOf.length > 0;
    for (let n = 0; n < placement.length; n++) {
      const expert = placement[n]!;
      this.#missOf[row * placement.length + n] = 0;
      if (expert < 0) continue;
      const layer = Math.floor(n / slots);
      const from = (profile * layers + layer) * experts + expert;
      const to = (row * layers + layer) * gpus + Math.floor((n % slots) / this.#slotsPerGpu);
      const miss = shares[n]! * logMiss[from]!;
      this.#missOf[row * placement.length + n] = miss;
      this.#pairsOf[to]! += shares[n]! * chance[from]!;
      if (deduplicates) this.#copiesOf[to]! += miss;
    }
  }

  /**
   * The part of an expert's tokens that each slot gets, `[layers][slots]`: all of its replicas alike, or those nearest to the rank,
   * which are on its own GPUs, else on its node, else anywhere.
   */
  #sharesOf(rank: number): Float64Array {
    const { layers, experts } = this.#tables;
    const { placement } = this;
    const slots = placement.length / layers;
    const isNearest = this.#shape.replicaChoice === 'nearest';
    const shares = new Float64Array(placement.length);
    const nearest = new Uint8Array(experts);
    const sharing = new Int32Array(experts);
    const distance = (slot: number) => (isNearest ? this.#distance(rank, slot) : 0);
    for (let layer = 0; layer < layers; layer++) {
      const row = placement.subarray(layer * slots, (layer + 1) * slots);
      nearest.fill(FARTHEST + 1);
      for (let slot = 0; slot < slots; slot++) {
        const expert = row[slot]!;
        if (expert < 0 || distance(slot) > nearest[expert]!) continue;
        sharing[expert] = distance(slot) === nearest[expert]! ? sharing[expert]! + 1 : 1;
        nearest[expert] = distance(slot);
      }
      for (let slot = 0; slot < slots; slot++) {
        const expert = row[slot]!;
        if (expert >= 0 && distance(slot) === nearest[expert]!)
          shares[layer * slots + slot] = 1 / sharing[expert]!;
      }
    }
    return shares;
  }

  /** 0 on a GPU of the rank's own, 1 on its node, else 2. */
  #distance(rank: number, slot: number): number {
    const { tensorParallel, nodes } = this.#shape;
    const gpu = Math.floor(slot / this.#slotsPerGpu);
    if (Math.floor(gpu / tensorParallel) === rank) return 0;
    const perNode = this.gpus / nodes;
    const isNear = Math.floor(gpu / perNode) === Math.floor((rank * tensorParallel) / perNode);
    return isNear ? 1 : FARTHEST;
  }

  #countLive(): number {
    const live = new Set<number>();
    for (const [n, expert] of this.placement.entries()) {
      if (expert >= 0) live.add(Math.floor(n / this.#slotsPerGpu) % this.gpus);
    }
    return live.size;
  }

  /** Sums of the batch from its tokens: after a change of tables, and now and then against rounding. */
  #rebuild(): void {
    const { profiles } = this.#tables;
    this.#logMiss.fill(0);
    this.#pairs.fill(0);
    this.#copies.fill(0);
    for (let rank = 0; rank < this.#shape.ranks; rank++) {
      for (let profile = 0; profile < profiles; profile++) {
        const tokens = this.batch[rank * profiles + profile]!;
        if (tokens !== 0) this.#addSums(rank, profile, tokens);
      }
    }
  }

  /** So many tokens more of a profile on a rank, or less. Tokens are whole, so that counts come back to 0 exactly. */
  add(rank: number, profile: number, tokens: number): void {
    this.batch[rank * this.#tables.profiles + profile]! += tokens;
    this.#addSums(rank, profile, tokens);
  }

  /** The row of a token's figures. */
  #rowOf(rank: number, profile: number): number {
    return (this.#choices > 1 ? rank * this.#tables.profiles : 0) + profile;
  }

  #addSums(rank: number, profile: number, tokens: number): void {
    const sums = this.#logMiss;
    const size = sums.length;
    const own = this.#rowOf(rank, profile);
    const from = own * size;
    for (let n = 0; n < size; n++) sums[n]! += tokens * this.#missOf[from + n]!;
    const width = this.#pairs.length;
    const row = own * width;
    for (let n = 0; n < width; n++) this.#pairs[n]! += tokens * this.#pairsOf[row + n]!;
    if (!this.#travels) return;
    const copies = this.#copiesOf.length > 0 ? this.#copiesOf : this.#pairsOf;
    const to = rank * width;
    for (let n = 0; n < width; n++) this.#copies[to + n]! += tokens * copies[row + n]!;
  }

  /** The experts' part of a step over the batch as it is: `tokens` of all ranks, `most` of one; collectives pad to `padded`. */
  step(timer: StepTimer, tokens: number, padded: number, most: number): StepLoad {
    const { layers } = this.#tables;
    const { gpus } = this;
    const common = this.#travels ? 0 : timer.gatherScatter(padded, most);
    const active = new Float64Array(gpus);
    let expertMicros = 0;
    let evenMicros = 0;
    let travelMicros = 0;
    let imbalance = 0;
    let read = 0;
    for (let layer = 0; layer < layers; layer++) {
      const allActive = this.#activeOf(layer, active);
      read += allActive;
      let slowest = 0;
      let most = 0;
      let sum = 0;
      for (let gpu = 0; gpu < gpus; gpu++) {
        const pairs = this.#drawn(this.#pairs[layer * gpus + gpu]!);
        this.total[layer * gpus + gpu]! += pairs;
        if (pairs > most) most = pairs;
        sum += pairs;
        const own = timer.experts(active[gpu]!, pairs, tokens);
        if (own > slowest) slowest = own;
      }
      expertMicros += slowest;
      evenMicros += timer.experts(allActive / this.#live, sum / this.#live, tokens);
      travelMicros += this.#travels ? this.#travelMicros(timer, layer) : common;
      imbalance += sum > 0 ? (most * this.#live) / sum : 1;
    }
    for (let n = 0; n < this.window.length; n++) this.window[n]! += this.batch[n]!;
    return {
      micros: expertMicros + travelMicros,
      expertMicros,
      evenMicros,
      imbalance: imbalance / layers,
      active: read / (layers * gpus),
    };
  }

  /** The next step is spread as the first one was: steps that are compared shall not differ by luck. */
  restartNoise(): void {
    this.#noiseAt = 0;
  }

  /** Expectation with the spread of a sum of many rare choices. */
  #drawn(pairs: number): number {
    this.#noiseAt = (this.#noiseAt + 1) & (NOISE_COUNT - 1);
    return pairs <= 0 ? 0 : Math.max(0, pairs + this.#noise[this.#noiseAt]! * Math.sqrt(pairs));
  }

  /** Expected experts of each GPU that at least one token goes to; returns their sum. */
  #activeOf(layer: number, active: Float64Array): number {
    const perGpu = this.#slotsPerGpu;
    let slot = layer * this.gpus * perGpu;
    let all = 0;
    for (let gpu = 0; gpu < this.gpus; gpu++) {
      let sum = 0;
      for (let k = 0; k < perGpu; k++, slot++) sum += 1 - expOf(this.#logMiss[slot]!);
      active[gpu] = sum;
      all += sum;
    }
    return all;
  }

  /** GPU j of a rank has its j-th part of the rank's tokens, and sends nothing to itself. */
  #travelMicros(timer: StepTimer, layer: number): number {
    const { ranks, tensorParallel, nodes } = this.#shape;
    const { gpus } = this;
    const width = this.#tables.layers * gpus;
    const perNode = gpus / nodes;
    let within = 0;
    let across = 0;
    for (let gpu = 0; gpu < gpus; gpu++) {
      const node = Math.floor(gpu / perNode);
      let near = 0;
      let far = 0;
      for (let rank = 0; rank < ranks; rank++) {
        const copies = this.#copies[rank * width + layer * gpus + gpu]!;
        if (Math.floor((rank * tensorParallel) / perNode) === node) near += copies;
        else far += copies;
      }
      const own = Math.floor(gpu / tensorParallel);
      const kept = this.#copies[own * width + layer * gpus + gpu]! / tensorParallel;
      within = Math.max(within, near - kept);
      across = Math.max(across, far);
    }
    for (let rank = 0; rank < ranks; rank++) {
      const node = Math.floor((rank * tensorParallel) / perNode);
      const row = rank * width + layer * gpus;
      let near = 0;
      let all = 0;
      let least = Number.POSITIVE_INFINITY;
      for (let gpu = 0; gpu < gpus; gpu++) {
        const copies = this.#copies[row + gpu]!;
        all += copies;
        if (Math.floor(gpu / perNode) === node) near += copies;
        if (Math.floor(gpu / tensorParallel) === rank) least = Math.min(least, copies);
      }
      within = Math.max(within, (near - least) / tensorParallel);
      across = Math.max(across, (all - near) / tensorParallel);
    }
    return timer.allToAll(within, across);
  }

  /** Tokens that each source sent to each expert since the window began: `[layers][ranks][experts]`. */
  windowTokens(): Uint32Array {
    return this.expertTokens(this.window);
  }

  /** Tokens that each source sends to each expert, of so many of each profile, `[ranks][profiles]`: `[layers][ranks][experts]`. */
  expertTokens(counts: Float64Array): Uint32Array {
    const { layers, experts, profiles, chance } = this.#tables;
    const { ranks } = this.#shape;
    const sums = new Float64Array(layers * ranks * experts);
    for (let rank = 0; rank < ranks; rank++) {
      for (let profile = 0; profile < profiles; profile++) {
        const tokens = counts[rank * profiles + profile]!;
        if (tokens === 0) continue;
        for (let layer = 0; layer < layers; layer++) {
          const from = (profile * layers + layer) * experts;
          const to = (layer * ranks + rank) * experts;
          for (let e = 0; e < experts; e++) sums[to + e]! += tokens * chance[from + e]!;
        }
      }
    }
    return Uint32Array.from(sums, Math.round);
  }
}
