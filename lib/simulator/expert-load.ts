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
  /** Largest over mean pairs of a GPU, mean over layers; 1 where there are none. */
  imbalance: number;
}

export class ExpertLoad {
  readonly #tables: RoutingTables;
  readonly #shape: GroupShape;
  readonly gpus: number;
  readonly #noise: Float64Array;
  #noiseAt = 0;
  /** `[layers][gpus * slotsPerGpu]` */
  placement: Int32Array;
  #slotsPerGpu = 0;
  /** `[layers][experts]` */
  #replicas: Int32Array;
  /** `[profiles][layers][gpus]`: pairs of a token, and copies of a token under deduplication. */
  #pairsOf: Float64Array;
  #copiesOf: Float64Array;
  /** Of the batch: `[layers][experts]`, `[layers][gpus]`, and `[ranks][layers][gpus]`. */
  readonly #logMiss: Float64Array;
  readonly #pairs: Float64Array;
  readonly #copies: Float64Array;
  /** `[ranks][profiles]`: tokens in the batch, and tokens of steps since the window began. */
  readonly batch: Float64Array;
  readonly window: Float64Array;
  /** `[layers][gpus]`: pairs of all steps. */
  readonly total: Float64Array;

  constructor(tables: RoutingTables, shape: GroupShape, placement: Int32Array, seed: number) {
    const { layers, experts, profiles } = tables;
    this.#tables = tables;
    this.#shape = shape;
    this.gpus = shape.ranks * shape.tensorParallel;
    const random = new Random(seed, NOISE_STREAM);
    this.#noise = Float64Array.from({ length: NOISE_COUNT }, () => random.normal());
    this.#replicas = new Int32Array(layers * experts);
    this.#pairsOf = new Float64Array(profiles * layers * this.gpus);
    this.#copiesOf = new Float64Array(shape.allToAll === 'a2a-dedup' ? this.#pairsOf.length : 0);
    this.#logMiss = new Float64Array(layers * experts);
    this.#pairs = new Float64Array(layers * this.gpus);
    this.#copies = new Float64Array(this.#travels ? shape.ranks * this.#pairs.length : 0);
    this.batch = new Float64Array(shape.ranks * profiles);
    this.window = new Float64Array(shape.ranks * profiles);
    this.total = new Float64Array(layers * this.gpus);
    this.placement = placement;
    this.place(placement);
  }

  /** Bytes depend on the placement. */
  get #travels(): boolean {
    return this.#shape.allToAll !== 'allgather-reducescatter';
  }

  /** Puts a placement in force, or takes up routing tables that have changed. */
  place(placement: Int32Array): void {
    const { layers, experts, profiles, chance, logMiss } = this.#tables;
    const { gpus } = this;
    const slots = placement.length / layers;
    this.placement = placement;
    this.#slotsPerGpu = slots / gpus;
    this.#replicas.fill(0);
    for (let n = 0; n < placement.length; n++) {
      const expert = placement[n]!;
      if (expert >= 0) this.#replicas[Math.floor(n / slots) * experts + expert]! += 1;
    }
    this.#pairsOf.fill(0);
    this.#copiesOf.fill(0);
    const deduplicates = this.#copiesOf.length > 0;
    for (let profile = 0; profile < profiles; profile++) {
      for (let n = 0; n < placement.length; n++) {
        const expert = placement[n]!;
        if (expert < 0) continue;
        const layer = Math.floor(n / slots);
        const row = layer * experts + expert;
        const from = profile * layers * experts + row;
        const to = (profile * layers + layer) * gpus + Math.floor((n % slots) / this.#slotsPerGpu);
        this.#pairsOf[to]! += chance[from]! / this.#replicas[row]!;
        if (deduplicates) this.#copiesOf[to]! += logMiss[from]! / this.#replicas[row]!;
      }
    }
    for (let n = 0; n < this.#copiesOf.length; n++) this.#copiesOf[n] = -Math.expm1(this.#copiesOf[n]!);
    this.#rebuild();
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

  #addSums(rank: number, profile: number, tokens: number): void {
    const { layers, experts, logMiss } = this.#tables;
    const size = layers * experts;
    const from = profile * size;
    const sums = this.#logMiss;
    for (let n = 0; n < size; n++) sums[n]! += tokens * logMiss[from + n]!;
    const width = layers * this.gpus;
    const row = profile * width;
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
    let micros = 0;
    let imbalance = 0;
    for (let layer = 0; layer < layers; layer++) {
      this.#activeOf(layer, active);
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
      micros += slowest + (this.#travels ? this.#travelMicros(timer, layer) : common);
      imbalance += sum > 0 ? (most * gpus) / sum : 1;
    }
    for (let n = 0; n < this.window.length; n++) this.window[n]! += this.batch[n]!;
    return { micros, imbalance: imbalance / layers };
  }

  /** Expectation with the spread of a sum of many rare choices. */
  #drawn(pairs: number): number {
    this.#noiseAt = (this.#noiseAt + 1) & (NOISE_COUNT - 1);
    return pairs <= 0 ? 0 : Math.max(0, pairs + this.#noise[this.#noiseAt]! * Math.sqrt(pairs));
  }

  /** Expected experts of each GPU that at least one token goes to. */
  #activeOf(layer: number, active: Float64Array): void {
    const { experts } = this.#tables;
    const perGpu = this.#slotsPerGpu;
    const row = layer * experts;
    let slot = layer * this.gpus * perGpu;
    for (let gpu = 0; gpu < this.gpus; gpu++) {
      let sum = 0;
      for (let k = 0; k < perGpu; k++, slot++) {
        const expert = this.placement[slot]!;
        if (expert < 0) continue;
        sum += 1 - expOf(this.#logMiss[row + expert]! / this.#replicas[row + expert]!);
      }
      active[gpu] = sum;
    }
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
    const { layers, experts, profiles, chance } = this.#tables;
    const { ranks } = this.#shape;
    const sums = new Float64Array(layers * ranks * experts);
    for (let rank = 0; rank < ranks; rank++) {
      for (let profile = 0; profile < profiles; profile++) {
        const tokens = this.window[rank * profiles + profile]!;
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
