/**
 * Which engine takes a request. The decision, the ledger and all formulas are native (native/dispatch, native/spec/pressure.h);
 * here are names in place of numbers, the ids of requests, and the stages that a caller may replace.
 */
import { binding, type NativeScheduler } from '../binding.js';
import { atLeastZero, describe, invalid, oneOf } from '../checks.js';
import { GimbalError } from '../errors.js';
import { runJob } from '../job.js';
import type {
  Candidate,
  Dispatched,
  DispatchReason,
  DispatchRequest,
  DispatchStages,
  EngineExpertPressure,
  EngineOptions,
  EnginePressure,
  EngineSample,
  EngineState,
  SchedulerOptions,
  ScoreOptions,
  Scores,
} from './types.js';
import {
  type CheckedScheduler,
  checkEngine,
  checkEngineNumber,
  checkExpertPressure,
  checkRequest,
  checkSample,
  checkScheduler,
  checkScores,
  checkTime,
  checkTokens,
  POLICIES,
  ROLES,
  STAGES,
  STATES,
  toHashes,
} from './validate.js';

/** As native/dispatch/scheduler.h counts them. */
const REASONS: DispatchReason[] = ['least-pressure', 'all-short-of-kv', 'no-fresh-sample'];
const UNKNOWN = -1;
const MICROS_PER_MILLI = 1000;
const REPORT_PARTS = 8;
/** [engine, ticket, reason, score] */
const DECISION_PARTS = 4;

/**
 * Dispatches requests over data-parallel engines by their pressure: predicted prefill backlog, KV cache, queue, and how
 * overloaded the experts are that an engine's tokens go to. Feed it with samples (`observe`) and with what becomes of requests
 * (`firstToken`, `progress`, `finished`, `failed`); ask it with `dispatch`. A decision takes microseconds; all is synchronous but
 * `scores`.
 */
export class Scheduler {
  readonly #native: NativeScheduler;
  readonly #options: CheckedScheduler;
  readonly #engines: EngineOptions[] = [];
  readonly #states: EngineState[] = [];
  readonly #groups = new Map<string | number, number>();
  /** By id, of requests that have not ended. */
  readonly #tickets = new Map<string | number, number>();
  readonly #decision: Float64Array;
  readonly #report = new Float64Array(REPORT_PARTS);
  /** [engines] */
  #scores = new Float64Array(0);
  /** [engines] */
  #cached = new Uint32Array(0);
  /** [engines] */
  #expertMs = new Float64Array(0);
  #turn = 0;

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option), GIMBAL_BINDING */
  constructor(options: SchedulerOptions) {
    this.#options = checkScheduler(options);
    const { policy, weights, staleAfterMs, expertsStaleAfterMs, gateways, seed } = this.#options;
    this.#native = new (binding().NativeScheduler)({
      policy: POLICIES.indexOf(policy),
      weights,
      staleAfterMs,
      expertsStaleAfterMs,
      gateways,
      seed,
    });
    this.#decision = this.#native.decision;
    for (const engine of this.#options.engines) this.#add(engine);
  }

  /** The engines by their numbers, as they were given. */
  get engines(): readonly Readonly<EngineOptions>[] {
    return this.#engines;
  }

  /** Requests that were dispatched and have not ended. */
  get inFlight(): number {
    return this.#tickets.size;
  }

  /** One engine more; returns its number. Numbers never change, and are not given again. */
  addEngine(engine: EngineOptions = {}): number {
    checkEngine('engine', engine);
    return this.#add(engine);
  }

  /** What is in flight on an engine stays its own, whatever the state. */
  setState(engine: number, state: EngineState): void {
    checkEngineNumber('engine', engine, this.#engines.length);
    this.#states[engine] = oneOf('state', state, STATES);
    this.#native.setState(engine, STATES.indexOf(state));
  }

  /** The engine has lost what it had. Its requests must still be told to have failed, or finished elsewhere. */
  restarted(engine: number): void {
    checkEngineNumber('engine', engine, this.#engines.length);
    this.#native.restarted(engine, this.#options.clock());
  }

  /**
   * Takes samples, in any order; one that is older than the last one of its engine is left out. All are checked before any is
   * taken.
   */
  observe(samples: readonly EngineSample[]): void {
    if (!Array.isArray(samples)) throw invalid('samples', 'an array', describe(samples));
    for (const [n, sample] of samples.entries()) checkSample(`samples[${n}]`, sample, this.#engines.length);
    const nowMs = this.#options.clock();
    for (const sample of samples) {
      this.#native.observe(
        sample.engine,
        sample.timeMs,
        sample.kvUsage,
        sample.running,
        sample.waiting,
        sample.waitingPrefillTokens ?? UNKNOWN,
        sample.preemptions ?? UNKNOWN,
        sample.moePressure ?? 0,
        nowMs,
      );
    }
  }

  /**
   * Takes what the placement side has found out, as of `timeMs` (default: now). It stands in place of `moePressure` of samples,
   * earlier and later ones, for `expertsStaleAfterMs`; what is older than the last one told of an engine is left out. All are
   * checked before any is taken.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT (names the field)
   */
  setExpertPressure(pressures: readonly EngineExpertPressure[], timeMs?: number): void {
    if (!Array.isArray(pressures)) throw invalid('pressures', 'an array', describe(pressures));
    for (const [n, told] of pressures.entries()) {
      checkExpertPressure(`pressures[${n}]`, told, this.#engines.length);
    }
    const nowMs = this.#options.clock();
    const atMs = timeMs === undefined ? nowMs : checkTime('timeMs', timeMs);
    for (const { engine, moePressure, commExcess = 0 } of pressures) {
      this.#native.setExpertPressure(engine, moePressure, commExcess, atMs, nowMs);
    }
  }

  /**
   * Picks an engine, and notes the request under its id until `finished` or `failed`.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT (names the field; also an id that is in flight), GIMBAL_NO_ENGINE (none may take it)
   */
  dispatch(request: DispatchRequest): Dispatched {
    checkRequest('request', request, this.#engines.length);
    return this.#dispatch(request, this.#options.clock());
  }

  /**
   * Another gateway has sent the request to this engine, `ageMs` ago: it stands in the ledger under its id until `finished` or
   * `failed`, as one of ours does. A sample taken after it was sent counts as usual.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT (names the field; also an id that is in flight)
   */
  dispatched(engine: number, request: DispatchRequest, ageMs = 0): void {
    checkEngineNumber('engine', engine, this.#engines.length);
    checkRequest('request', request, this.#engines.length);
    checkTime('ageMs', atLeastZero('ageMs', ageMs));
    this.#checkNew('request.id', request.id);
    this.#native.dispatchTo(engine, ...this.#given(request, this.#options.clock() - ageMs));
    this.#tickets.set(request.id, this.#decision[1]!);
  }

  /** The same as one call of `dispatch` after the other at one time. All are checked before any is dispatched. */
  dispatchBatch(requests: readonly DispatchRequest[]): Dispatched[] {
    if (!Array.isArray(requests)) throw invalid('requests', 'an array', describe(requests));
    const ids = new Set<string | number>();
    requests.forEach((request, n) => {
      checkRequest(`requests[${n}]`, request, this.#engines.length);
      if (ids.has(request.id)) throw invalid(`requests[${n}].id`, 'each id once', describe(request.id));
      ids.add(request.id);
      this.#checkNew(`requests[${n}].id`, request.id);
    });
    const nowMs = this.#options.clock();
    if (this.#options.stages === undefined && requests.every(isPlain))
      return this.#dispatchPlain(requests, nowMs);
    return requests.map((request) => this.#dispatch(request, nowMs));
  }

  /** The request's prefill is done. Returns false where no such request is in flight, as do the others. */
  firstToken(id: string | number): boolean {
    const ticket = this.#tickets.get(id);
    if (ticket === undefined) return false;
    this.#native.firstToken(ticket, this.#options.clock());
    return true;
  }

  /** So much of the prompt is prefilled, what was cached included. */
  progress(id: string | number, prefilledTokens: number): boolean {
    checkTokens('prefilledTokens', prefilledTokens);
    const ticket = this.#tickets.get(id);
    if (ticket === undefined) return false;
    this.#native.progress(ticket, prefilledTokens, this.#options.clock());
    return true;
  }

  /** The request has ended well; its id may be used again. */
  finished(id: string | number): boolean {
    const ticket = this.#take(id);
    if (ticket !== undefined) this.#native.finished(ticket, this.#options.clock());
    return ticket !== undefined;
  }

  /** The request has ended early: its engine failed, or its client went away. */
  failed(id: string | number): boolean {
    const ticket = this.#take(id);
    if (ticket !== undefined) this.#native.failed(ticket, this.#options.clock());
    return ticket !== undefined;
  }

  /** Every engine's pressure by term, for a request without prefill. */
  pressure(): EnginePressure[] {
    const nowMs = this.#options.clock();
    return this.#engines.map((_, engine) => this.#pressureOf(engine, nowMs));
  }

  /** The backlog of one engine alone, ms; for those who ask often. */
  backlogOf(engine: number): number {
    checkEngineNumber('engine', engine, this.#engines.length);
    this.#native.report(engine, this.#options.clock(), this.#report);
    return this.#report[0]!;
  }

  /** The pressure of one engine. */
  pressureOf(engine: number): EnginePressure {
    checkEngineNumber('engine', engine, this.#engines.length);
    return this.#pressureOf(engine, this.#options.clock());
  }

  /**
   * What each of many requests would meet on every engine, by the ledger as it is at the call, which does not change it. Each
   * request is scored by itself: nothing is taken to be sent, lockstep groups and other gateways do not count. Ids are not looked
   * at. Works beside the event loop; up to 2^20 scores, requests times engines, at a time.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT (names the field), GIMBAL_OUT_OF_RANGE (too many), GIMBAL_BACKEND_UNAVAILABLE,
   *   GIMBAL_BACKEND_FAILED
   */
  async scores(requests: readonly DispatchRequest[], options: ScoreOptions = {}): Promise<Scores> {
    const engines = this.#engines.length;
    const checked = checkScores(requests, engines, options);
    const prompts = Float64Array.from(requests, ({ promptTokens }) => promptTokens);
    const cached = Float64Array.from(requests, ({ cachedTokens }) =>
      typeof cachedTokens === 'number' ? cachedTokens : UNKNOWN,
    );
    const stages = Uint8Array.from(requests, ({ stage = 'prefill' }) => STAGES.indexOf(stage));
    const sessions = requests.map(({ sessionKey }) => sessionKey);
    const prefixes = requests.map(({ prefixHashes }, n) =>
      prefixHashes === undefined ? undefined : toHashes(`requests[${n}].prefixHashes`, prefixHashes),
    );
    const caches = requests.map(({ cachedTokens }) => this.#cachedByEngine(cachedTokens)?.slice());
    const experts = requests.map(({ expertMs }) => this.#expertsByEngine(expertMs)?.slice());
    const nowMs = this.#options.clock();
    const start = () =>
      this.#native.scoreBatch(prompts, cached, stages, sessions, prefixes, caches, experts, nowMs, checked);
    return { engines, ...(await runJob(start)) };
  }

  #add(engine: EngineOptions): number {
    const { group = '', role = 'both', kvTokens = 0 } = engine;
    const { prefillTokensPerSecond = this.#options.prefillTokensPerSecond } = engine;
    const groups = this.#groups;
    if (!groups.has(group)) groups.set(group, groups.size);
    this.#engines.push({ ...engine });
    this.#states.push('active');
    this.#scores = new Float64Array(this.#engines.length);
    this.#cached = new Uint32Array(this.#engines.length);
    this.#expertMs = new Float64Array(this.#engines.length);
    return this.#native.addEngine(groups.get(group)!, ROLES.indexOf(role), prefillTokensPerSecond, kvTokens);
  }

  #dispatch(request: DispatchRequest, nowMs: number): Dispatched {
    this.#checkNew('request.id', request.id);
    const barred = (request.excluding ?? []).filter((engine) => this.#states[engine] === 'active');
    try {
      for (const engine of barred) this.#native.setState(engine, STATES.indexOf('draining'));
      return this.#dispatchAmongActive(request, nowMs);
    } finally {
      for (const engine of barred) this.#native.setState(engine, STATES.indexOf('active'));
    }
  }

  #dispatchAmongActive(request: DispatchRequest, nowMs: number): Dispatched {
    const { stages } = this.#options;
    if (stages !== undefined) return this.#dispatchByStages(request, stages, nowMs);
    const { promptTokens, cachedTokens, stage, streams = true, sessionKey, prefixHashes } = request;
    const hashes = prefixHashes === undefined ? undefined : toHashes('request.prefixHashes', prefixHashes);
    const stageNumber = stage === 'decode' ? 1 : 0;
    const everywhere = typeof cachedTokens === 'number' ? cachedTokens : UNKNOWN;
    const byEngine = this.#cachedByEngine(cachedTokens);
    const experts = this.#expertsByEngine(request.expertMs);
    // Spelled out, not spread: a list would be made for every request.
    this.#native.dispatch(
      promptTokens,
      everywhere,
      stageNumber,
      streams,
      nowMs,
      sessionKey,
      hashes,
      byEngine,
      experts,
    );
    return this.#note(request, this.#decision, 0);
  }

  /** [engines] As native code reads it, good until the next request; undefined where engines do not differ. */
  #cachedByEngine(cachedTokens: DispatchRequest['cachedTokens']): Uint32Array | undefined {
    if (cachedTokens === undefined || typeof cachedTokens === 'number') return undefined;
    this.#cached.set(cachedTokens);
    return this.#cached;
  }

  /** [engines] The same for what its experts cost. */
  #expertsByEngine(expertMs: DispatchRequest['expertMs']): Float64Array | undefined {
    if (expertMs === undefined) return undefined;
    this.#expertMs.set(expertMs);
    return this.#expertMs;
  }

  /** In one native call. [requests] each, but for the decisions. */
  #dispatchPlain(requests: readonly DispatchRequest[], nowMs: number): Dispatched[] {
    const prompts = Float64Array.from(requests, ({ promptTokens }) => promptTokens);
    const cached = Float64Array.from(requests, ({ cachedTokens }) => (cachedTokens as number) ?? UNKNOWN);
    const streams = Uint8Array.from(requests, (request) => (request.streams === false ? 0 : 1));
    const decisions = new Float64Array(DECISION_PARTS * requests.length);
    this.#native.dispatchBatch(prompts, cached, streams, decisions, nowMs);
    return requests.map((request, n) => this.#note(request, decisions, DECISION_PARTS * n));
  }

  /** The decision that begins at `at`. */
  #note(request: DispatchRequest, decisions: Float64Array, at: number): Dispatched {
    const [engine, ticket] = [decisions[at]!, decisions[at + 1]!];
    if (engine < 0) throw noEngine(request);
    this.#tickets.set(request.id, ticket);
    const score = decisions[at + 3]!;
    return {
      engine,
      pressure: this.#options.policy === 'gimbal' ? score / MICROS_PER_MILLI : score,
      reason: REASONS[decisions[at + 2]!]!,
    };
  }

  /** Filter, score, pick with what the caller replaces; the ledger is the same. */
  #dispatchByStages(request: DispatchRequest, stages: DispatchStages, nowMs: number): Dispatched {
    const given = this.#given(request, nowMs);
    this.#native.scores(...given, stages.filter !== undefined, this.#scores);
    const all: Candidate[] = [];
    this.#scores.forEach((micros, engine) => {
      if (Number.isNaN(micros)) return;
      all.push({ ...this.#pressureOf(engine, nowMs), pressureMs: micros / MICROS_PER_MILLI });
    });
    const candidates = stages.filter?.(all, request) ?? all;
    const scored = candidates.map((candidate) => ({
      candidate,
      score: stages.score?.(candidate, request) ?? candidate.pressureMs,
    }));
    if (scored.length === 0) throw noEngine(request);
    const engine = stages.pick?.(scored, request) ?? this.#leastInTurn(scored);
    const picked = scored.find(({ candidate }) => candidate.engine === engine);
    if (picked === undefined) {
      const numbers = scored.map(({ candidate }) => candidate.engine).join(', ');
      throw invalid('options.stages.pick', `one of the engines ${numbers}`, describe(engine));
    }
    this.#native.dispatchTo(engine, ...given);
    this.#tickets.set(request.id, this.#decision[1]!);
    return { engine, pressure: picked.candidate.pressureMs, reason: 'custom' };
  }

  /** A request as native code takes it, where a list of it does no harm. */
  #given(request: DispatchRequest, atMs: number) {
    const { promptTokens, cachedTokens, stage = 'prefill', streams = true, sessionKey } = request;
    const { prefixHashes, expertMs } = request;
    return [
      promptTokens,
      typeof cachedTokens === 'number' ? cachedTokens : UNKNOWN,
      STAGES.indexOf(stage),
      streams,
      atMs,
      sessionKey,
      prefixHashes === undefined ? undefined : toHashes('request.prefixHashes', prefixHashes),
      // Copies: a stage may dispatch another request.
      this.#cachedByEngine(cachedTokens)?.slice(),
      this.#expertsByEngine(expertMs)?.slice(),
    ] as const;
  }

  #leastInTurn(scored: readonly { candidate: Candidate; score: number }[]): number {
    this.#turn = (this.#turn + 1) % scored.length;
    let best = scored[this.#turn]!;
    for (let n = 1; n < scored.length; n += 1) {
      const other = scored[(this.#turn + n) % scored.length]!;
      if (other.score < best.score) best = other;
    }
    return best.candidate.engine;
  }

  #pressureOf(engine: number, nowMs: number): EnginePressure {
    this.#native.report(engine, nowMs, this.#report);
    const [backlogMs, kvMs, queueMs, moeMs, totalMs, inFlightPrefillMs, inFlight, stale] = this.#report;
    return {
      engine,
      backlogMs: backlogMs!,
      kvMs: kvMs!,
      queueMs: queueMs!,
      moeMs: moeMs!,
      totalMs: totalMs!,
      inFlightPrefillMs: inFlightPrefillMs!,
      inFlight: inFlight!,
      stale: stale === 1,
      state: this.#states[engine]!,
    };
  }

  #checkNew(field: string, id: string | number): void {
    if (this.#tickets.has(id)) throw invalid(field, 'an id that is not in flight', describe(id));
  }

  #take(id: string | number): number | undefined {
    const ticket = this.#tickets.get(id);
    this.#tickets.delete(id);
    return ticket;
  }
}

/** What a batch says in columns of numbers. */
function isPlain(request: DispatchRequest): boolean {
  const { cachedTokens, sessionKey, prefixHashes, expertMs, stage = 'prefill', excluding } = request;
  if (sessionKey !== undefined || prefixHashes !== undefined || stage !== 'prefill') return false;
  return (
    expertMs === undefined &&
    excluding === undefined &&
    (cachedTokens === undefined || typeof cachedTokens === 'number')
  );
}

function noEngine({ stage = 'prefill' }: DispatchRequest): GimbalError {
  const expected = `an active engine for ${stage}`;
  return new GimbalError('GIMBAL_NO_ENGINE', `engines: expected ${expected} but received none`, {
    field: 'engines',
    expected,
    received: 'none',
  });
}
