/**
 * Which experts the requests of a key choose (a tenant, a session, a prefix), learned from what engines tell, and what the next
 * request of the key would cost on each engine under the placement in force. Placements come and go, so what is kept is the
 * experts' counts and not the costs: two bytes for each expert of each layer, of as many keys as memory is given for.
 */
import { aboveZero, atLeastZero, checkKeys, count, describe, invalid } from '../checks.js';
import { isTypedArray } from '../validate.js';
import { ExpertPressure } from './pressure.js';

const DEFAULTS = { memoryBytes: 64 * 2 ** 20, memoryTokens: 4096, leastTokens: 8 };
const MOST_MEMORY_TOKENS = 2 ** 14;
const MOST_CHOICES = 32;
const MOST_COUNT = 2 ** 16 - 1;
const COUNT_BYTES = 2;
/** Costs are worked out anew once so much has been seen since, of what counts. */
const NEW_SHARE = 0.5;
const NS_PER_MILLI = 1e6;

export interface ExpertFingerprintsOptions {
  layers: number;
  experts: number;
  /** For all keys; the one that was used least recently goes first. Default 64 MiB. */
  memoryBytes?: number;
  /** Tokens of a key that count: at twice as many all its counts are halved. Up to 16,384. Default 4,096. */
  memoryTokens?: number;
  /** A key says nothing before it has so many. Default 8. */
  leastTokens?: number;
}

/** The experts that tokens of one key chose. */
export interface FingerprintObservation {
  /** `[tokens][layers][k]`, logical experts. */
  topk: Uint8Array | Uint16Array;
  tokens: number;
  /** Experts of a token in a layer, at most 32. */
  k: number;
}

/** Engines of one placement: source s of `pressure` is the engine `engines[s]`. */
export interface PlacedEngines {
  pressure: ExpertPressure;
  engines: readonly number[];
}

interface Fingerprint {
  /** `[layers][experts]` */
  counts: Uint16Array;
  tokens: number;
  /** `[engines]`, ms a token, as of a placement, and the tokens that have come since; not there before the first question. */
  costs?: Float64Array;
  version: number;
  newTokens: number;
}

export class ExpertFingerprints {
  readonly #layers: number;
  readonly #experts: number;
  readonly #memoryTokens: number;
  readonly #leastTokens: number;
  /** How many keys are kept. */
  readonly capacity: number;
  /** By key, the least recently used first. */
  readonly #kept = new Map<string, Fingerprint>();
  #placed: readonly PlacedEngines[] = [];
  #engines = 0;
  #version = 0;

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option) */
  constructor(options: ExpertFingerprintsOptions) {
    checkKeys('options', options, ['layers', 'experts', 'memoryBytes', 'memoryTokens', 'leastTokens']);
    const { memoryBytes, memoryTokens, leastTokens } = { ...DEFAULTS, ...options };
    this.#layers = count('options.layers', options.layers);
    this.#experts = count('options.experts', options.experts);
    this.#memoryTokens = count('options.memoryTokens', memoryTokens);
    if (memoryTokens > MOST_MEMORY_TOKENS) {
      throw invalid('options.memoryTokens', `at most ${MOST_MEMORY_TOKENS}`, `${memoryTokens}`);
    }
    this.#leastTokens = aboveZero('options.leastTokens', leastTokens);
    const keyBytes = bytesOfKey(this.#layers, this.#experts);
    this.capacity = Math.floor(aboveZero('options.memoryBytes', memoryBytes) / keyBytes);
    if (this.capacity < 1) {
      throw invalid('options.memoryBytes', `at least the ${keyBytes} bytes of one key`, `${memoryBytes}`);
    }
  }

  /** Keys that are kept. */
  get size(): number {
    return this.#kept.size;
  }

  /**
   * Counts the experts that tokens of the key chose. Ids are checked before anything is counted.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT
   */
  observe(key: string, observation: FingerprintObservation): void {
    this.#check(key, observation);
    const { topk, tokens, k } = observation;
    if (tokens === 0) return;
    const own = this.#kept.get(key) ?? this.#fresh();
    this.#touch(key, own);
    const width = this.#layers * k;
    for (let token = 0; token < tokens; token++) {
      for (let n = 0; n < width; n++) {
        const at = Math.floor(n / k) * this.#experts + topk[token * width + n]!;
        // Only a token that names an expert twice can come so far.
        own.counts[at] = Math.min(MOST_COUNT, own.counts[at]! + 1);
      }
      own.tokens += 1;
      own.newTokens += 1;
      if (own.tokens >= 2 * this.#memoryTokens) halve(own);
    }
  }

  #check(key: string, observation: FingerprintObservation): void {
    if (typeof key !== 'string') throw invalid('key', 'a string', describe(key));
    checkKeys('observation', observation, ['topk', 'tokens', 'k']);
    const { topk, tokens, k } = observation;
    if (!(isTypedArray(topk, 'Uint8Array') || isTypedArray(topk, 'Uint16Array'))) {
      throw invalid('observation.topk', 'a Uint8Array or a Uint16Array [tokens][layers][k]', describe(topk));
    }
    if (count('observation.k', k) > MOST_CHOICES) {
      throw invalid('observation.k', `at most ${MOST_CHOICES}`, `${k}`);
    }
    atLeastZero('observation.tokens', tokens);
    if (topk.length !== tokens * this.#layers * k) {
      const wanted = `${tokens * this.#layers * k} elements, [tokens][layers][k]`;
      throw invalid('observation.topk', wanted, `${topk.length}`);
    }
    const wrong = topk.findIndex((expert) => expert >= this.#experts);
    if (wrong < 0) return;
    throw invalid(`observation.topk[${wrong}]`, `an expert of 0 to ${this.#experts - 1}`, `${topk[wrong]}`);
  }

  /** The memory of the key that was used least recently, where there is no other. */
  #fresh(): Fingerprint {
    const size = this.#layers * this.#experts;
    if (this.#kept.size < this.capacity) {
      return { counts: new Uint16Array(size), tokens: 0, version: -1, newTokens: 0 };
    }
    const [oldest, { counts }] = this.#kept.entries().next().value!;
    this.#kept.delete(oldest);
    return { counts: counts.fill(0), tokens: 0, version: -1, newTokens: 0 };
  }

  #touch(key: string, own: Fingerprint): void {
    this.#kept.delete(key);
    this.#kept.set(key, own);
  }

  /**
   * The placement in force has changed, or the load under it. Given alone, the sources of a pressure are the engines; where
   * engines have several placements, each of them has a part, and every engine from 0 on is in one of them.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT
   */
  place(placed: ExpertPressure | readonly PlacedEngines[]): void {
    const parts =
      placed instanceof ExpertPressure
        ? [{ pressure: placed, engines: Array.from(placed.moePressure, (_, source) => source) }]
        : placed;
    const all = parts.flatMap(({ engines }) => engines).sort((a, b) => a - b);
    const missing = all.findIndex((engine, n) => engine !== n);
    if (missing >= 0)
      throw invalid('placed', 'every engine from 0 on, once', `${all[missing]} as number ${missing}`);
    for (const [n, { pressure, engines }] of parts.entries()) {
      const fits = pressure.layers === this.#layers && pressure.experts === this.#experts;
      if (fits && engines.length === pressure.sources) continue;
      const expected = `${this.#layers} layers, ${this.#experts} experts, ${pressure.sources} engines`;
      const received = `${pressure.layers}, ${pressure.experts}, ${engines.length}`;
      throw invalid(`placed[${n}]`, expected, received);
    }
    this.#placed = parts;
    this.#engines = all.length;
    this.#version += 1;
  }

  /**
   * What `tokens` tokens of the key would cost on each engine, ms, for `DispatchRequest.expertMs`; into `into` `[engines]` where it
   * is given. Undefined for a key that too little is known of, and before the first `place`. Microseconds, but for the first time
   * after a `place` or when half of what is known has come since: at 58 layers, 32 engines and 256 experts some hundreds of them, under
   * `nearest` some thousands.
   */
  expertMs(key: string, tokens: number, into?: Float64Array): Float64Array | undefined {
    const own = this.#kept.get(key);
    if (own === undefined || own.tokens < this.#leastTokens || this.#engines === 0) return undefined;
    this.#touch(key, own);
    const costs = this.#costsOf(own);
    const out = into ?? new Float64Array(this.#engines);
    if (out.length !== this.#engines) {
      throw invalid('into', `${this.#engines} numbers, one for each engine`, `${out.length}`);
    }
    for (let engine = 0; engine < this.#engines; engine++) out[engine] = costs[engine]! * tokens;
    return out;
  }

  #costsOf(own: Fingerprint): Float64Array {
    const isCurrent = own.version === this.#version && own.newTokens < NEW_SHARE * own.tokens;
    if (own.costs !== undefined && isCurrent) return own.costs;
    own.costs = own.costs?.length === this.#engines ? own.costs : new Float64Array(this.#engines);
    for (const { pressure, engines } of this.#placed) {
      const { moeNs, commNs } = pressure.of(own.counts, own.tokens);
      for (const [source, engine] of engines.entries()) {
        own.costs[engine] = (moeNs[source]! + commNs[source]!) / NS_PER_MILLI;
      }
    }
    own.version = this.#version;
    own.newTokens = 0;
    return own.costs;
  }

  /** What is known of the key is forgotten; of all of them without one. */
  forget(key?: string): void {
    if (key === undefined) this.#kept.clear();
    else this.#kept.delete(key);
  }
}

/** What one key takes. */
export function bytesOfKey(layers: number, experts: number): number {
  return layers * experts * COUNT_BYTES;
}

/** Halves of odd counts go up and down in turn, so that rare experts do not fade before the others. */
function halve(own: Fingerprint): void {
  const { counts } = own;
  for (let n = 0; n < counts.length; n++) counts[n] = (counts[n]! + (n & 1)) >> 1;
  own.tokens /= 2;
}
