/**
 * What the placement in force does to each engine's tokens: how overloaded the GPUs are that they go to, and how much longer than
 * others they travel. docs/MODEL.md, Feedback, has the formulas. Some milliseconds at 58 layers, 32 sources and 256 experts, on the
 * caller's thread.
 */
import { invalid } from '../checks.js';
import type { PlacementProblem } from '../types.js';
import { checkProblem, typedArray } from '../validate.js';
import { sum } from './sum.js';

/** Traffic, and the placement that it meets. */
export interface PlacedTraffic
  extends Pick<
    PlacementProblem,
    | 'layers'
    | 'sources'
    | 'experts'
    | 'gpus'
    | 'slotsPerGpu'
    | 'tokens'
    | 'computeCost'
    | 'commCost'
    | 'replicaChoice'
    | 'deadGpus'
  > {
  /** `[layers][gpus * slotsPerGpu]`, -1 for an empty slot; those of dead GPUs are not looked at. */
  placement: Int32Array;
}

/** What one request would meet from each source. `[sources]` each. */
export interface FingerprintCost {
  /** As `moePressure` of the fleet, for these tokens. */
  moePressure: Float64Array;
  /** ns a token: its experts, each as much longer as its GPU's load is above the mean, */
  moeNs: Float64Array;
  /** and the way to them and back. */
  commNs: Float64Array;
}

/**
 * Works out the pressure of every source from the traffic. Tokens of experts that no live GPU holds count nowhere.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT (names the field), GIMBAL_OUT_OF_RANGE
 */
export function expertPressure(traffic: PlacedTraffic): ExpertPressure {
  const { placement, ...problem } = traffic;
  const {
    layers,
    gpus,
    slotsPerGpu,
    experts,
    sources,
    tokens,
    computeCost,
    commCost,
    replicaChoice,
    deadGpus,
  } = checkProblem(problem);
  const slots = gpus * slotsPerGpu;
  const placed = typedArray(
    'placement',
    placement,
    'Int32Array',
    '[layers][gpus * slotsPerGpu]',
    layers * slots,
  );
  const hosts = hostsOf(placed, layers, experts, slotsPerGpu, gpus, deadGpus);
  const setting = { layers, sources, experts, gpus, computeCost, commCost, hosts };
  return new ExpertPressure(setting, replicaChoice === 'nearest', gpus - deadGpus.length, tokens);
}

/** The live GPUs that hold each expert of each layer. */
interface Hosts {
  /** `[layers * experts + 1]`: a row's GPUs are gpu[start[row]] up to gpu[start[row + 1]]. */
  start: Int32Array;
  gpu: Int32Array;
}

function hostsOf(
  placement: Int32Array,
  layers: number,
  experts: number,
  slotsPerGpu: number,
  gpus: number,
  deadGpus: Int32Array,
): Hosts {
  const slots = gpus * slotsPerGpu;
  const isDead = new Uint8Array(gpus);
  for (const gpu of deadGpus) isDead[gpu] = 1;
  const start = new Int32Array(layers * experts + 1);
  for (let n = 0; n < placement.length; n++) {
    const expert = placement[n]!;
    if (expert < -1 || expert >= experts) {
      throw invalid(`placement[${n}]`, `an expert of 0 to ${experts - 1}, or -1`, `${expert}`);
    }
    if (expert < 0 || isDead[Math.floor((n % slots) / slotsPerGpu)]) continue;
    start[Math.floor(n / slots) * experts + expert + 1]! += 1;
  }
  for (let row = 0; row < layers * experts; row++) start[row + 1]! += start[row]!;
  const gpu = new Int32Array(start[layers * experts]!);
  const next = start.slice();
  for (let n = 0; n < placement.length; n++) {
    const expert = placement[n]!;
    const own = Math.floor((n % slots) / slotsPerGpu);
    if (expert < 0 || isDead[own]) continue;
    const row = Math.floor(n / slots) * experts + expert;
    gpu[next[row]!] = own;
    next[row]! += 1;
  }
  return { start, gpu };
}

interface Setting {
  layers: number;
  sources: number;
  experts: number;
  gpus: number;
  /** `[gpus]`, ns */
  computeCost: Float64Array;
  /** `[sources][gpus]`, ns */
  commCost: Float64Array;
  hosts: Hosts;
}

/** Made by `expertPressure`; it does not change. */
export class ExpertPressure {
  readonly layers: number;
  readonly sources: number;
  readonly experts: number;
  /**
   * `[sources]`: the mean, over the layers that the source sends anything to, of Σ_g (share that goes to g) · load[g] / (mean load),
   * less 1. 0 where it sends nothing.
   */
  readonly moePressure: Float64Array;
  /** `[sources]`: communication time of a (token, expert) pair over the mean of all pairs, less 1; 0 where either is 0. */
  readonly commExcess: Float64Array;
  readonly #setting: Setting;
  readonly #isNearest: boolean;
  /** `[layers][gpus]`: load over the layer's mean; 1 where a layer has none. */
  readonly #load: Float64Array;

  /** @internal */
  constructor(setting: Setting, isNearest: boolean, liveGpus: number, tokens: Uint32Array) {
    const { layers, sources, gpus } = setting;
    this.layers = layers;
    this.sources = sources;
    this.experts = setting.experts;
    this.#setting = setting;
    this.#isNearest = isNearest;
    this.#load = new Float64Array(layers * gpus).fill(1);
    this.moePressure = new Float64Array(sources);
    this.commExcess = new Float64Array(sources);
    this.#weigh(liveGpus, tokens);
  }

  #weigh(liveGpus: number, tokens: Uint32Array): void {
    const { layers, sources, gpus, commCost } = this.#setting;
    /** `[sources][gpus]`: pairs that arrive. */
    const arriving = new Float64Array(sources * gpus);
    const layersWith = new Float64Array(sources);
    const pairs = new Float64Array(sources);
    const commNs = new Float64Array(sources);
    for (let layer = 0; layer < layers; layer++) {
      this.#arrivalsOf(layer, tokens, arriving);
      this.#loadOf(layer, liveGpus, arriving);
      for (let source = 0; source < sources; source++) {
        let own = 0;
        let met = 0;
        for (let gpu = 0; gpu < gpus; gpu++) {
          const here = arriving[source * gpus + gpu]!;
          own += here;
          met += here * this.#load[layer * gpus + gpu]!;
          commNs[source]! += here * commCost[source * gpus + gpu]!;
        }
        if (own === 0) continue;
        layersWith[source]! += 1;
        pairs[source]! += own;
        this.moePressure[source]! += met / own - 1;
      }
    }
    const mean = sum(commNs) / sum(pairs);
    for (let source = 0; source < sources; source++) {
      if (pairs[source] === 0) continue;
      this.moePressure[source]! /= layersWith[source]!;
      if (mean > 0) this.commExcess[source] = commNs[source]! / pairs[source]! / mean - 1;
    }
  }

  /** Fills `arriving` `[sources][gpus]`. */
  #arrivalsOf(layer: number, tokens: Uint32Array, arriving: Float64Array): void {
    const { sources, experts, gpus, hosts } = this.#setting;
    arriving.fill(0);
    for (let source = 0; source < sources; source++) {
      const from = (layer * sources + source) * experts;
      for (let e = 0; e < experts; e++) {
        const pairs = tokens[from + e]!;
        if (pairs === 0) continue;
        const row = layer * experts + e;
        const first = hosts.start[row]!;
        const end = hosts.start[row + 1]!;
        if (end - first === 1) arriving[source * gpus + hosts.gpu[first]!]! += pairs;
        else this.#spread(source, first, end, pairs, arriving, source * gpus);
      }
    }
  }

  /** Adds the pairs of one source and expert to the GPUs, from `at` on, that serve them by the replica choice. */
  #spread(source: number, first: number, end: number, pairs: number, to: Float64Array, at: number): void {
    const { gpus, commCost, hosts } = this.#setting;
    if (!this.#isNearest) {
      for (let n = first; n < end; n++) to[at + hosts.gpu[n]!]! += pairs / (end - first);
      return;
    }
    const row = source * gpus;
    let least = Number.POSITIVE_INFINITY;
    let ties = 0;
    for (let n = first; n < end; n++) {
      const cost = commCost[row + hosts.gpu[n]!]!;
      if (cost < least) ties = 0;
      least = Math.min(least, cost);
      if (cost === least) ties += 1;
    }
    for (let n = first; n < end; n++) {
      const gpu = hosts.gpu[n]!;
      if (commCost[row + gpu] === least) to[at + gpu]! += pairs / ties;
    }
  }

  #loadOf(layer: number, liveGpus: number, arriving: Float64Array): void {
    const { gpus, computeCost } = this.#setting;
    const load = this.#load.subarray(layer * gpus, (layer + 1) * gpus);
    load.fill(0);
    for (let n = 0; n < arriving.length; n++) load[n % gpus]! += arriving[n]!;
    for (let gpu = 0; gpu < gpus; gpu++) load[gpu]! *= computeCost[gpu]!;
    const mean = sum(load) / liveGpus;
    for (let gpu = 0; gpu < gpus; gpu++) load[gpu] = mean > 0 ? load[gpu]! / mean : 1;
  }

  /**
   * What tokens that choose experts so would meet from each source. `pairs` `[layers][experts]`: of `tokens` tokens.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT
   */
  of(pairs: ArrayLike<number>, tokens: number): FingerprintCost {
    const { layers, sources, experts, gpus, commCost } = this.#setting;
    if (pairs.length !== layers * experts) {
      throw invalid('pairs', `${layers * experts} numbers, [layers][experts]`, `${pairs.length}`);
    }
    if (!(tokens > 0)) throw invalid('tokens', 'a number above 0', `${tokens}`);
    const cost: FingerprintCost = {
      moePressure: new Float64Array(sources),
      moeNs: new Float64Array(sources),
      commNs: new Float64Array(sources),
    };
    const ofLayer = this.#servedPairs(pairs);
    const layersWith = ofLayer.reduce((count, own) => count + (own > 0 ? 1 : 0), 0);
    const { everywhere, bySource } = this.#rowsOf(pairs);
    const common = this.#meetingOf(0, everywhere, pairs, ofLayer);
    for (let source = 0; source < sources; source++) {
      const own = this.#meetingOf(source, bySource, pairs, ofLayer);
      if (layersWith > 0) cost.moePressure[source] = (common.met + own.met) / layersWith - 1;
      cost.moeNs[source] = (common.moeNs + own.moeNs) / tokens;
      let commNs = 0;
      for (let gpu = 0; gpu < gpus; gpu++) {
        commNs += (common.arriving[gpu]! + own.arriving[gpu]!) * commCost[source * gpus + gpu]!;
      }
      cost.commNs[source] = commNs / tokens;
    }
    return cost;
  }

  /** `[layers]`: pairs that a live GPU serves. */
  #servedPairs(pairs: ArrayLike<number>): Float64Array {
    const { layers, experts, hosts } = this.#setting;
    const served = new Float64Array(layers);
    for (let row = 0; row < pairs.length; row++) {
      if (hosts.start[row]! < hosts.start[row + 1]!) served[Math.floor(row / experts)]! += pairs[row]!;
    }
    return served;
  }

  /** Rows of `pairs` that are not 0: those that the same GPUs serve whatever the source, and the others. */
  #rowsOf(pairs: ArrayLike<number>): { everywhere: number[]; bySource: number[] } {
    const { start } = this.#setting.hosts;
    const everywhere: number[] = [];
    const bySource: number[] = [];
    for (let row = 0; row < pairs.length; row++) {
      if (!(pairs[row]! > 0)) continue;
      const isOne = start[row + 1]! - start[row]! <= 1;
      (isOne || !this.#isNearest ? everywhere : bySource).push(row);
    }
    return { everywhere, bySource };
  }

  /** What the pairs of some rows meet: where they arrive `[gpus]`, and their parts of the sums over the layers. */
  #meetingOf(source: number, rows: readonly number[], pairs: ArrayLike<number>, ofLayer: Float64Array) {
    const { experts, gpus, computeCost, hosts } = this.#setting;
    const arriving = new Float64Array(gpus);
    const here = new Float64Array(gpus);
    let met = 0;
    let moeNs = 0;
    for (const row of rows) {
      const layer = Math.floor(row / experts);
      const [first, end] = [hosts.start[row]!, hosts.start[row + 1]!];
      for (let n = first; n < end; n++) here[hosts.gpu[n]!] = 0;
      this.#spread(source, first, end, pairs[row]!, here, 0);
      for (let n = first; n < end; n++) {
        const gpu = hosts.gpu[n]!;
        const load = this.#load[layer * gpus + gpu]!;
        arriving[gpu]! += here[gpu]!;
        met += (here[gpu]! * load) / ofLayer[layer]!;
        moeNs += here[gpu]! * load * computeCost[gpu]!;
        // An expert may stand on a GPU twice.
        here[gpu] = 0;
      }
    }
    return { arriving, met, moeNs };
  }
}
