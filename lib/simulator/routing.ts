/**
 * Which experts tokens go to. Requests have a profile: for each layer, how likely each expert is to be among a token's k. Sums
 * over a batch of profiles give the expected pairs of an expert, and the chance that none of its tokens hits it; nothing is
 * drawn token by token.
 *
 * With Gumbel noise on logits, the top k are drawn without replacement with weights w = exp(logit); the chance that e is among
 * them is close to 1 − exp(−λ·w_e), λ being such that the chances add up to k.
 */
import { invalid } from '../checks.js';
import { Random } from '../random.js';
import type { ServedModel } from './hardware.js';
import type { SimulatedRequest, SimulatedRouting } from './types.js';

/** Streams of the seed. */
const STREAM = { base: 101, topics: 102, personas: 103, drift: 104, requests: 105, homes: 106 };
const NEWTON_STEPS = 8;
const LEAST_CHANCE = 1e-6;

export interface RoutingTables {
  profiles: number;
  layers: number;
  experts: number;
  /** `[profiles][layers][experts]`: chance that a token goes there. */
  chance: Float32Array;
  /** The same, log of the chance that it does not. */
  logMiss: Float32Array;
}

export class Routing {
  readonly tables: RoutingTables;
  readonly #topics: number;
  readonly #personas: number;
  readonly #stickiness: number;
  readonly #draw: Random;
  readonly #drawHome: Random;
  /** Or of a tenant. */
  readonly #topicOfSession = new Map<string | number, number>();
  readonly #drift: (() => void) | undefined;
  /** ms between two steps of the drift; Infinity where there is none. */
  readonly driftEveryMs: number = Number.POSITIVE_INFINITY;

  constructor(routing: SimulatedRouting, model: ServedModel, seed: number) {
    const { moeLayers: layers, experts } = model;
    this.#draw = new Random(seed, STREAM.requests);
    this.#drawHome = new Random(seed, STREAM.homes);
    this.#personas = 1;
    this.#stickiness = 0.9;
    if (routing.kind === 'generative') {
      const { topics = 8, personas = 4, stickiness = 0.9, halfLifeMs } = routing;
      this.#topics = topics;
      this.#personas = personas;
      this.#stickiness = stickiness;
      this.tables = emptyTables(topics * personas, layers, experts);
      const { fill, drift } = generative(routing, this.tables, model.topK, seed);
      fill();
      if (halfLifeMs !== undefined) {
        this.driftEveryMs = halfLifeMs / DRIFT_STEPS;
        this.#drift = drift;
      }
      return;
    }
    const given = sharesOf(routing, model);
    this.#topics = given.length;
    this.tables = emptyTables(given.length, layers, experts);
    for (const [topic, shares] of given.entries()) {
      for (let layer = 0; layer < layers; layer++) {
        const row = (layer % (shares.length / experts)) * experts;
        fillCounted(this.tables, topic, layer, shares.subarray(row, row + experts), model.topK);
      }
    }
  }

  /** The base popularity has moved on; sums over the tables must be made anew. */
  drift(): void {
    this.#drift?.();
  }

  /** The profile of the next request of the trace; to be asked in order. */
  profileOf({ session: own, tenant, topic }: SimulatedRequest): number {
    const session = own ?? tenant;
    const persona = this.#draw.below(this.#personas);
    const fresh = this.#draw.below(this.#topics);
    const keeps = this.#draw.uniform() < this.#stickiness;
    if (topic !== undefined) return (topic % this.#topics) * this.#personas + persona;
    if (session === undefined) return fresh * this.#personas + persona;
    const before = this.#topicOfSession.get(session);
    const kept = before !== undefined && keeps ? before : fresh;
    this.#topicOfSession.set(session, kept);
    return kept * this.#personas + persona;
  }

  /** The engine that the next request is bound to by its topic, with the chance that is given; else −1. */
  homeOf(profile: number, engines: number, stickiness: number): number {
    return this.#drawHome.uniform() < stickiness ? this.topicOf(profile) % engines : -1;
  }

  topicOf(profile: number): number {
    return Math.floor(profile / this.#personas);
  }
}

/** Steps of the drift in a half-life. */
const DRIFT_STEPS = 8;

function emptyTables(profiles: number, layers: number, experts: number): RoutingTables {
  const size = profiles * layers * experts;
  return { profiles, layers, experts, chance: new Float32Array(size), logMiss: new Float32Array(size) };
}

function generative(
  options: Extract<SimulatedRouting, { kind: 'generative' }>,
  tables: RoutingTables,
  topK: number,
  seed: number,
): { fill: () => void; drift: () => void } {
  const { sigmaExperts = 0.4, sigmaTopics = 0.5, topics = 8, personas = 4 } = options;
  const { layers, experts } = tables;
  const size = layers * experts;
  const draw = (stream: number, count: number, sigma: number) => {
    const random = new Random(seed, stream);
    return Float64Array.from({ length: count }, () => sigma * random.normal());
  };
  const base = draw(STREAM.base, size, sigmaExperts);
  const topic = draw(STREAM.topics, topics * size, sigmaTopics);
  const persona = draw(STREAM.personas, topics * personas * size, sigmaTopics / 2);
  const weights = new Float64Array(experts);
  const fill = () => {
    for (let profile = 0; profile < tables.profiles; profile++) {
      const ofTopic = Math.floor(profile / personas) * size;
      for (let layer = 0; layer < layers; layer++) {
        const at = layer * experts;
        for (let e = 0; e < experts; e++) {
          weights[e] = Math.exp(base[at + e]! + topic[ofTopic + at + e]! + persona[profile * size + at + e]!);
        }
        fillDrawn(tables, profile, layer, weights, topK);
      }
    }
  };
  const noise = new Random(seed, STREAM.drift);
  const keep = 0.5 ** (1 / DRIFT_STEPS);
  const drift = () => {
    for (let n = 0; n < size; n++) {
      base[n] = keep * base[n]! + Math.sqrt(1 - keep * keep) * sigmaExperts * noise.normal();
    }
    fill();
  };
  return { fill, drift };
}

/** Weights of a topic, `[own layers][experts]`, for each topic of what was given. */
function sharesOf(
  routing: Exclude<SimulatedRouting, { kind: 'generative' }>,
  { experts, topK }: ServedModel,
): Float64Array[] {
  if (routing.kind === 'uniform') return [new Float64Array(experts).fill(1)];
  if (routing.kind === 'counts') {
    if (routing.experts !== experts)
      throw invalid('routing.experts', `the model's ${experts}`, `${routing.experts}`);
    const { tokens, layers, sources } = routing;
    return Array.from({ length: sources }, (_, source) =>
      Float64Array.from({ length: layers * experts }, (_cell, n) => {
        const layer = Math.floor(n / experts);
        return tokens[(layer * sources + source) * experts + (n % experts)]!;
      }),
    );
  }
  return routing.recordings.map(({ ids, layers, topK: own }, n) => {
    if (own !== topK) throw invalid(`routing.recordings[${n}].topK`, `the model's ${topK}`, `${own}`);
    const counts = new Float64Array(layers * experts);
    for (let at = 0; at < ids.length; at++) {
      const id = ids[at]!;
      if (!(id < experts)) throw invalid(`routing.recordings[${n}].ids[${at}]`, `below ${experts}`, `${id}`);
      counts[(Math.floor(at / own) % layers) * experts + id]! += 1;
    }
    return counts;
  });
}

/** One layer of one profile from counts: chances are shares of k. An expert that everything goes to stays just below 1. */
function fillCounted(
  { layers, experts, chance, logMiss }: RoutingTables,
  profile: number,
  layer: number,
  counts: Float64Array,
  topK: number,
): void {
  const sum = counts.reduce((total, count) => total + count, 0);
  if (!(sum > 0))
    throw invalid('routing', 'some traffic in every layer of every topic', `none in layer ${layer}`);
  const at = (profile * layers + layer) * experts;
  for (let e = 0; e < experts; e++) {
    chance[at + e] = Math.min(1 - LEAST_CHANCE, Math.max(LEAST_CHANCE, (topK * counts[e]!) / sum));
    logMiss[at + e] = Math.log1p(-chance[at + e]!);
  }
}

/** One layer of one profile from weights of any scale, of draws without replacement. */
function fillDrawn(
  { layers, experts, chance, logMiss }: RoutingTables,
  profile: number,
  layer: number,
  weights: Float64Array,
  topK: number,
): void {
  const at = (profile * layers + layer) * experts;
  // The sum of chances is concave in lambda, and this start is below the root: Newton's steps rise to it.
  let lambda = topK / weights.reduce((sum, weight) => sum + weight, 0);
  for (let step = 0; step < NEWTON_STEPS && topK < experts; step++) {
    let total = 0;
    let slope = 0;
    for (let e = 0; e < experts; e++) {
      const miss = Math.exp(-lambda * weights[e]!);
      total += 1 - miss;
      slope += weights[e]! * miss;
    }
    lambda += (topK - total) / slope;
  }
  for (let e = 0; e < experts; e++) {
    const log = topK === experts ? Math.log(LEAST_CHANCE) : -lambda * weights[e]!;
    logMiss[at + e] = log;
    chance[at + e] = -Math.expm1(log);
  }
}
