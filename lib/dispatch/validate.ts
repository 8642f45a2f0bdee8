/** The border of the dispatch side: what a caller gives is checked here, field by field, before native code sees it. */
import { types } from 'node:util';
import type { NativeScoreOptions } from '../binding.js';
import {
  aboveZero,
  atLeastZero,
  boolean,
  checkBackend,
  checkFunction,
  checkKeys,
  checkSeed,
  count,
  describe,
  invalid,
  oneOf,
  ordinal,
} from '../checks.js';
import { mismatch } from '../errors.js';
import type {
  DispatchRequest,
  DispatchStages,
  EngineExpertPressure,
  EngineOptions,
  EngineSample,
  PressureWeights,
  RequestQueueOptions,
  SchedulerOptions,
  ScoreOptions,
} from './types.js';

/** As native/dispatch/scheduler.h counts them. */
export const POLICIES = [
  'gimbal',
  'vllm',
  'total-tokens',
  'round-robin',
  'power-of-two',
  'least-load',
  'dynamo',
  'llm-d',
] as const;
export const ROLES = ['both', 'prefill', 'decode'] as const;
export const STATES = ['active', 'draining', 'asleep', 'gone'] as const;
export const STAGES = ['prefill', 'decode'] as const;
/** As native/dispatch/request_queue.h counts them. */
export const QUEUE_POLICIES = ['gimbal', 'fcfs', 'spf', 'hrrn'] as const;

/** kMostTokens in native/spec/pressure.h. */
export const MOST_TOKENS = 2 ** 28;
const MOST_REQUESTS = 2 ** 24;
/** Limits that keep sums of terms exact: a weight, and the time scale of a term. */
const MOST_WEIGHT = 256;
const MOST_MS = 3.6e6;
/** A rate below this is a mistake, and native code multiplies by the time of a token. */
const LEAST_RATE = 100;
const MOST_RATE = 1e9;
const MOST_GATEWAYS = 1024;
/** Of one call: 8 MiB for the event loop to copy, into memory that nobody has touched yet. */
const MOST_SCORES = 2 ** 20;

export const DEFAULT_WEIGHTS: Required<PressureWeights> = {
  backlog: 1,
  kv: 1,
  queue: 1,
  moe: 0,
  comm: 0,
  affinity: 1,
  kvMs: 150,
  kvLimit: 0.9,
  waitingMs: 2,
  runningMs: 0.2,
};
const DEFAULT_RATE = 20_000;
const DEFAULT_STALE_MS = 3000;
const DEFAULT_EXPERTS_STALE_MS = 30_000;
const DEFAULT_AGING = 4000;

export interface CheckedScheduler {
  engines: readonly EngineOptions[];
  policy: (typeof POLICIES)[number];
  prefillTokensPerSecond: number;
  weights: Required<PressureWeights>;
  staleAfterMs: number;
  expertsStaleAfterMs: number;
  gateways: number;
  seed: bigint;
  clock: () => number;
  stages: DispatchStages | undefined;
}

/** The time of day in ms, with what it lacks in resolution. */
export const timeOfDay = () => performance.timeOrigin + performance.now();

export function checkScheduler(options: SchedulerOptions): CheckedScheduler {
  checkKeys('options', options, [
    'engines',
    'policy',
    'prefillTokensPerSecond',
    'weights',
    'staleAfterMs',
    'expertsStaleAfterMs',
    'gateways',
    'seed',
    'clock',
    'stages',
  ]);
  const { engines, policy = 'gimbal', prefillTokensPerSecond = DEFAULT_RATE, gateways = 1 } = options;
  const { staleAfterMs = DEFAULT_STALE_MS, seed = 0, clock = timeOfDay, stages } = options;
  const { expertsStaleAfterMs = DEFAULT_EXPERTS_STALE_MS } = options;
  const checked = {
    engines: checkEngines(engines),
    policy: oneOf('options.policy', policy, POLICIES),
    prefillTokensPerSecond: rate('options.prefillTokensPerSecond', prefillTokensPerSecond),
    weights: checkWeights(options.weights),
    staleAfterMs: duration('options.staleAfterMs', staleAfterMs),
    expertsStaleAfterMs: duration('options.expertsStaleAfterMs', expertsStaleAfterMs),
    gateways: within('options.gateways', count('options.gateways', gateways), 1, MOST_GATEWAYS),
    seed: checkSeed(seed),
    clock: checkFunction('options.clock', clock),
    stages: stages === undefined ? undefined : checkStages(stages),
  };
  if (stages !== undefined && checked.policy !== 'gimbal') {
    throw invalid('options.stages', "nothing unless the policy is 'gimbal'", describe(stages));
  }
  return checked;
}

function checkEngines(engines: unknown): readonly EngineOptions[] {
  if (typeof engines === 'number')
    return Array.from({ length: count('options.engines', engines) }, () => ({}));
  if (!Array.isArray(engines)) throw invalid('options.engines', 'a number or an array', describe(engines));
  for (const [n, engine] of engines.entries()) checkEngine(`options.engines[${n}]`, engine);
  return engines;
}

export function checkEngine(field: string, engine: EngineOptions): void {
  checkKeys(field, engine, ['group', 'role', 'globalRank', 'url', 'prefillTokensPerSecond', 'kvTokens']);
  const { group, role, globalRank, url, prefillTokensPerSecond, kvTokens } = engine;
  if (group !== undefined && typeof group !== 'string' && typeof group !== 'number') {
    throw invalid(`${field}.group`, 'a string or a number', describe(group));
  }
  if (role !== undefined) oneOf(`${field}.role`, role, ROLES);
  if (globalRank !== undefined) ordinal(`${field}.globalRank`, globalRank);
  if (url !== undefined && !URL.canParse(url)) throw invalid(`${field}.url`, 'a URL', describe(url));
  if (prefillTokensPerSecond !== undefined) rate(`${field}.prefillTokensPerSecond`, prefillTokensPerSecond);
  if (kvTokens !== undefined)
    within(`${field}.kvTokens`, count(`${field}.kvTokens`, kvTokens), 1, 2 ** 31 - 1);
}

function checkWeights(weights: PressureWeights = {}): Required<PressureWeights> {
  checkKeys('options.weights', weights, Object.keys(DEFAULT_WEIGHTS));
  const all = { ...DEFAULT_WEIGHTS };
  for (const key of Object.keys(DEFAULT_WEIGHTS) as (keyof PressureWeights)[]) {
    const given = weights[key];
    if (given === undefined) continue;
    const field = `options.weights.${key}`;
    if (key === 'kvLimit') {
      if (!(given > 0 && given < 1)) throw invalid(field, 'a share between 0 and 1', describe(given));
      all[key] = given;
    } else {
      all[key] = within(field, atLeastZero(field, given), 0, key.endsWith('Ms') ? MOST_MS : MOST_WEIGHT);
    }
  }
  return all;
}

function checkStages(stages: DispatchStages): DispatchStages {
  checkKeys('options.stages', stages, ['filter', 'score', 'pick']);
  for (const [key, stage] of Object.entries(stages)) {
    if (stage !== undefined) checkFunction(`options.stages.${key}`, stage);
  }
  return stages;
}

/** Called for every sample; native code gets what is here and knows no other numbers. */
export function checkSample(field: string, sample: EngineSample, engines: number): void {
  checkKeys(field, sample, [
    'engine',
    'timeMs',
    'kvUsage',
    'running',
    'waiting',
    'waitingPrefillTokens',
    'preemptions',
    'moePressure',
  ]);
  checkEngineNumber(`${field}.engine`, sample.engine, engines);
  checkTime(`${field}.timeMs`, sample.timeMs);
  within(`${field}.kvUsage`, sample.kvUsage, 0, 1);
  within(`${field}.running`, ordinal(`${field}.running`, sample.running), 0, MOST_REQUESTS);
  within(`${field}.waiting`, ordinal(`${field}.waiting`, sample.waiting), 0, MOST_REQUESTS);
  const { waitingPrefillTokens, preemptions, moePressure } = sample;
  if (waitingPrefillTokens !== undefined) ordinal(`${field}.waitingPrefillTokens`, waitingPrefillTokens);
  if (preemptions !== undefined) atLeastZero(`${field}.preemptions`, preemptions);
  if (moePressure !== undefined) atLeastZero(`${field}.moePressure`, moePressure);
}

/** Called for every engine; native code takes what is beyond its limits as these. */
export function checkExpertPressure(field: string, told: EngineExpertPressure, engines: number): void {
  checkKeys(field, told, ['engine', 'moePressure', 'commExcess']);
  checkEngineNumber(`${field}.engine`, told.engine, engines);
  const { moePressure, commExcess = 0 } = told;
  within(`${field}.moePressure`, moePressure, -1, Number.MAX_VALUE);
  within(`${field}.commExcess`, commExcess, -1, Number.MAX_VALUE);
}

export function checkRequest(field: string, request: DispatchRequest, engines: number): void {
  checkKeys(field, request, [
    'id',
    'promptTokens',
    'cachedTokens',
    'sessionKey',
    'prefixHashes',
    'expertMs',
    'priority',
    'stage',
    'streams',
    'excluding',
  ]);
  checkId(`${field}.id`, request.id);
  checkTokens(`${field}.promptTokens`, request.promptTokens);
  const { cachedTokens, sessionKey, prefixHashes, expertMs, priority, stage, streams, excluding } = request;
  if (typeof cachedTokens === 'number') {
    within(`${field}.cachedTokens`, cachedTokens, 0, request.promptTokens);
  } else if (cachedTokens !== undefined) {
    checkByEngine(
      `${field}.cachedTokens`,
      'a number, or an array of one',
      cachedTokens,
      request.promptTokens,
      engines,
    );
  }
  if (expertMs !== undefined)
    checkByEngine(`${field}.expertMs`, 'an array of a number', expertMs, Number.MAX_VALUE, engines);
  if (sessionKey !== undefined && typeof sessionKey !== 'string') {
    throw invalid(`${field}.sessionKey`, 'a string', describe(sessionKey));
  }
  if (prefixHashes !== undefined && !Array.isArray(prefixHashes) && !types.isBigUint64Array(prefixHashes)) {
    throw invalid(`${field}.prefixHashes`, 'an array of hashes', describe(prefixHashes));
  }
  if (priority !== undefined && !Number.isFinite(priority)) {
    throw invalid(`${field}.priority`, 'a finite number', describe(priority));
  }
  if (stage !== undefined) oneOf(`${field}.stage`, stage, STAGES);
  if (streams !== undefined) boolean(`${field}.streams`, streams);
  if (excluding === undefined) return;
  if (!Array.isArray(excluding)) throw invalid(`${field}.excluding`, 'an array', describe(excluding));
  for (const [n, engine] of excluding.entries()) ordinal(`${field}.excluding[${n}]`, engine);
}

/** `[engines]`, each 0 to `most`. */
function checkByEngine(
  field: string,
  what: string,
  given: ArrayLike<number>,
  most: number,
  engines: number,
): void {
  if (!(Array.isArray(given) || types.isTypedArray(given))) {
    throw invalid(field, `${what} for each engine`, describe(given));
  }
  if (given.length !== engines)
    throw invalid(field, `${engines} numbers, one for each engine`, describe(given));
  for (let engine = 0; engine < engines; engine += 1) {
    const value = given[engine];
    // The name of the field is made where it is needed: this runs for every engine of every request.
    if (!(typeof value === 'number' && value >= 0 && value <= most)) {
      within(`${field}[${engine}]`, value, 0, most);
    }
  }
}

/** Hashes as native code reads them. */
export function toHashes(
  field: string,
  hashes: readonly (number | bigint)[] | BigUint64Array,
): BigUint64Array {
  if (types.isBigUint64Array(hashes)) return hashes;
  return BigUint64Array.from(hashes, (hash, n) => {
    if (typeof hash === 'bigint' && hash >= 0n && hash < 2n ** 64n) return hash;
    if (typeof hash === 'number' && Number.isSafeInteger(hash) && hash >= 0) return BigInt(hash);
    throw invalid(`${field}[${n}]`, 'a safe integer of at least 0 or a bigint below 2^64', describe(hash));
  });
}

export function checkScores(
  requests: readonly DispatchRequest[],
  engines: number,
  options: ScoreOptions,
): NativeScoreOptions {
  if (!Array.isArray(requests)) throw invalid('requests', 'an array', describe(requests));
  if (requests.length * engines > MOST_SCORES) {
    const expected = `at most ${Math.floor(MOST_SCORES / engines)} for ${engines} engines`;
    throw mismatch('GIMBAL_OUT_OF_RANGE', 'requests', expected, `${requests.length}`);
  }
  for (const [n, request] of requests.entries()) {
    checkRequest(`requests[${n}]`, request, engines);
    if (request.excluding !== undefined) {
      throw invalid(`requests[${n}].excluding`, 'nothing: scores are of every engine', 'engines');
    }
  }
  checkKeys('options', options, ['backend', 'device']);
  return checkBackend(options);
}

export function checkQueue(options: RequestQueueOptions = {}) {
  checkKeys('options', options, ['policy', 'agingTokensPerSecond', 'clock']);
  const { policy = 'gimbal', agingTokensPerSecond = DEFAULT_AGING, clock = timeOfDay } = options;
  return {
    policy: oneOf('options.policy', policy, QUEUE_POLICIES),
    agingTokensPerSecond: rate('options.agingTokensPerSecond', agingTokensPerSecond),
    clock: checkFunction('options.clock', clock),
  };
}

export function checkId(field: string, id: unknown): void {
  if (typeof id !== 'string' && typeof id !== 'number')
    throw invalid(field, 'a string or a number', describe(id));
}

export function checkTokens(field: string, tokens: unknown): number {
  return within(field, ordinal(field, tokens), 0, MOST_TOKENS);
}

export function checkTime(field: string, ms: unknown): number {
  // Whole microseconds must be safe integers.
  return within(field, ms, -(2 ** 42), 2 ** 42);
}

export function checkEngineNumber(field: string, engine: unknown, engines: number): void {
  if (!(Number.isInteger(engine) && (engine as number) >= 0 && (engine as number) < engines)) {
    throw invalid(field, `the number of an engine, 0 to ${engines - 1}`, describe(engine));
  }
}

function duration(field: string, value: unknown): number {
  return within(field, aboveZero(field, value), 0, MOST_MS);
}

function rate(field: string, value: unknown): number {
  return Math.round(within(field, aboveZero(field, value), LEAST_RATE, MOST_RATE));
}

function within(field: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !(value >= least && value <= most)) {
    throw invalid(field, `a number of ${least} to ${most}`, describe(value));
  }
  return value;
}
