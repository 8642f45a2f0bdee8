/**
 * vLLM-Ascend's "swift balancer" in our own words: layer by layer, give redundant slots to the experts that are heaviest now, then
 * exchange experts between the busiest GPU and another one, at most once for each pair of GPUs; and keep all of it back where it
 * saves less than a twentieth. It looks at loads only.
 */
import type { PlacementProblem } from '../../types.js';
import { expertLoads, liveGpusOf } from './common.js';

/** A layer that is this near to even is left alone. */
const EVEN_ENOUGH = 1.01;
/** An exchange must take so much of a GPU's mean load off the busiest one. */
const LEAST_SAVING = 0.01;
const MOST_EXCHANGES = 100;
/** Experts that one GPU sends to another in a plan, by replication and by exchange together. */
const MOST_SENDS = 1;
/** Of the busiest GPUs' loads over all layers: above it, nothing is moved. */
const WORTH_MOVING = 0.95;

/** `[layers][gpus * slotsPerGpu]`, the incumbent but for a few slots. GPUs may be dead where the incumbent has -1 on their slots. */
export function swiftBalance(problem: PlacementProblem): Int32Array {
  const { layers, gpus, slotsPerGpu, incumbent } = problem;
  if (incumbent === undefined) throw new RangeError('incumbent: expected the placement in force');
  const width = gpus * slotsPerGpu;
  const planned = incumbent.slice();
  let before = 0;
  let after = 0;
  for (let layer = 0; layer < layers; layer += 1) {
    const own = planned.subarray(layer * width, (layer + 1) * width);
    const loads = expertLoads(problem, layer);
    const start = new SwiftLayer(problem, own, loads);
    before += start.busiest;
    const changed = new SwiftLayer(problem, own.slice(), loads);
    if (start.busiest >= EVEN_ENOUGH * start.mean) {
      changed.replicateAnew();
      changed.exchange();
    }
    if (changed.busiest < start.busiest) own.set(changed.slots);
    after += Math.min(changed.busiest, start.busiest);
  }
  return after < WORTH_MOVING * before ? planned : incumbent.slice();
}

class SwiftLayer {
  readonly #gpus: number;
  readonly #slotsPerGpu: number;
  readonly #loads: Float64Array;
  readonly #live: number[];
  /** `[gpus][gpus]`, experts that one sends to the other under this plan. */
  readonly #sends: Int32Array;
  /** By GPU: experts that it gets, which stay where they are. */
  readonly #received: Set<number>[];

  constructor(
    problem: PlacementProblem,
    /** `[gpus * slotsPerGpu]` */
    readonly slots: Int32Array,
    loads: Float64Array,
  ) {
    const { gpus, slotsPerGpu } = problem;
    this.#gpus = gpus;
    this.#slotsPerGpu = slotsPerGpu;
    this.#loads = loads;
    this.#live = liveGpusOf(problem);
    this.#sends = new Int32Array(gpus * gpus);
    this.#received = Array.from({ length: gpus }, () => new Set());
  }

  /** `[experts]`, load of one replica. */
  #shares(): Float64Array {
    const replicas = new Float64Array(this.#loads.length);
    for (const expert of this.slots) if (expert >= 0) replicas[expert]! += 1;
    return this.#loads.map((load, expert) => load / Math.max(1, replicas[expert]!));
  }

  /** `[gpus]` */
  #gpuLoads(shares: Float64Array): Float64Array {
    const sums = new Float64Array(this.#gpus);
    for (const [slot, expert] of this.slots.entries()) {
      if (expert >= 0) sums[this.#gpuOf(slot)]! += shares[expert]!;
    }
    return sums;
  }

  get busiest(): number {
    return Math.max(...this.#gpuLoads(this.#shares()));
  }

  get mean(): number {
    return this.#loads.reduce((sum, load) => sum + load, 0) / this.#live.length;
  }

  #gpuOf(slot: number): number {
    return Math.floor(slot / this.#slotsPerGpu);
  }

  #holds(gpu: number, expert: number): boolean {
    return this.slots.subarray(gpu * this.#slotsPerGpu, (gpu + 1) * this.#slotsPerGpu).includes(expert);
  }

  /** Slots beyond the first of each expert, counted slot by slot over the GPUs, get the heaviest experts of now. */
  replicateAnew(): void {
    const { home, spare } = this.#split();
    for (const slot of spare) this.slots[slot] = -1;
    const wanted = this.#heaviest(spare.length);
    const shares = this.#loads.map(
      (load, expert) => load / (1 + wanted.filter((one) => one === expert).length),
    );
    const sums = this.#gpuLoads(shares);
    for (const expert of wanted.sort((a, b) => shares[b]! - shares[a]! || a - b)) {
      const from = home.get(expert)!;
      const slot = this.#bestSlot(spare, expert, from, sums);
      if (slot === undefined) continue;
      this.#fill(spare, slot, expert, from);
      sums[this.#gpuOf(slot)]! += shares[expert]!;
    }
    // What found no GPU that its home may still send to: the heaviest replicas, wherever they are not yet.
    for (const slot of [...spare]) {
      const own = this.#shares();
      const order = Array.from(own.keys()).sort((a, b) => own[b]! - own[a]! || a - b);
      const expert = order.find((one) => !this.#holds(this.#gpuOf(slot), one))!;
      this.#fill(spare, slot, expert, home.get(expert)!);
    }
  }

  #split(): { home: Map<number, number>; spare: number[] } {
    const home = new Map<number, number>();
    const spare: number[] = [];
    for (let k = 0; k < this.#slotsPerGpu; k += 1) {
      for (const gpu of this.#live) {
        const slot = gpu * this.#slotsPerGpu + k;
        const expert = this.slots[slot]!;
        if (expert < 0 || home.has(expert)) spare.push(slot);
        else home.set(expert, gpu);
      }
    }
    return { home, spare };
  }

  /** So many replicas, one after another to the expert whose replicas are heaviest. */
  #heaviest(count: number): number[] {
    const replicas = new Float64Array(this.#loads.length).fill(1);
    return Array.from({ length: count }, () => {
      let best = -1;
      for (const [expert, load] of this.#loads.entries()) {
        if (replicas[expert]! >= this.#live.length) continue;
        if (best < 0 || load / replicas[expert]! > this.#loads[best]! / replicas[best]!) best = expert;
      }
      replicas[best]! += 1;
      return best;
    });
  }

  #bestSlot(spare: readonly number[], expert: number, from: number, sums: Float64Array): number | undefined {
    let best: number | undefined;
    for (const slot of spare) {
      const gpu = this.#gpuOf(slot);
      if (this.#holds(gpu, expert) || this.#sends[from * this.#gpus + gpu]! >= MOST_SENDS) continue;
      if (best === undefined || sums[gpu]! < sums[this.#gpuOf(best)]!) best = slot;
    }
    return best;
  }

  #fill(spare: number[], slot: number, expert: number, from: number): void {
    const gpu = this.#gpuOf(slot);
    this.slots[slot] = expert;
    spare.splice(spare.indexOf(slot), 1);
    this.#sends[from * this.#gpus + gpu]! += 1;
    this.#received[gpu]!.add(expert);
  }

  /** The busiest GPU exchanges an expert with the least busy one that helps, again and again. */
  exchange(): void {
    const shares = this.#shares();
    const sums = this.#gpuLoads(shares);
    const least = LEAST_SAVING * this.mean;
    for (let n = 0; n < MOST_EXCHANGES; n += 1) {
      const order = [...this.#live].sort((a, b) => sums[a]! - sums[b]! || a - b);
      const busiest = order.pop()!;
      const found = order
        .filter((gpu) => this.#maySwap(busiest, gpu))
        .map((gpu) => this.#bestSwap(busiest, gpu, shares, sums))
        .find((swap) => swap !== undefined && sums[busiest]! - swap.most >= least);
      if (found === undefined) return;
      this.#swap(found.a, found.b, shares, sums);
    }
  }

  #maySwap(a: number, b: number): boolean {
    const sends = this.#sends;
    return sends[a * this.#gpus + b]! < MOST_SENDS && sends[b * this.#gpus + a]! < MOST_SENDS;
  }

  /** The two slots whose exchange leaves the lower of the two GPUs' larger loads. */
  #bestSwap(
    busiest: number,
    other: number,
    shares: Float64Array,
    sums: Float64Array,
  ): { a: number; b: number; most: number } | undefined {
    let best: { a: number; b: number; most: number } | undefined;
    for (const a of this.#movable(busiest, other)) {
      for (const b of this.#movable(other, busiest)) {
        const shift = shares[this.slots[a]!]! - shares[this.slots[b]!]!;
        const most = Math.max(sums[busiest]! - shift, sums[other]! + shift);
        if (most < (best?.most ?? sums[busiest]!)) best = { a, b, most };
      }
    }
    return best;
  }

  /** Slots of a GPU whose expert the other one lacks, and that were not filled just now. */
  #movable(gpu: number, other: number): number[] {
    const first = gpu * this.#slotsPerGpu;
    return Array.from({ length: this.#slotsPerGpu }, (_, k) => first + k).filter((slot) => {
      const expert = this.slots[slot]!;
      return expert >= 0 && !this.#received[gpu]!.has(expert) && !this.#holds(other, expert);
    });
  }

  #swap(a: number, b: number, shares: Float64Array, sums: Float64Array): void {
    const [from, to] = [this.#gpuOf(a), this.#gpuOf(b)];
    const [given, taken] = [this.slots[a]!, this.slots[b]!];
    this.slots[a] = taken;
    this.slots[b] = given;
    const shift = shares[given]! - shares[taken]!;
    sums[from]! -= shift;
    sums[to]! += shift;
    this.#received[from]!.add(taken);
    this.#received[to]!.add(given);
    this.#sends[from * this.#gpus + to]! += 1;
    this.#sends[to * this.#gpus + from]! += 1;
  }
}
