/**
 * The engines behind the gateway and the requests between them: samples come in by polling, requests wait in the queue while every
 * engine is past its admission limit, the scheduler picks, and what fails stands aside for a while.
 */
import { randomInt } from 'node:crypto';
import { RequestQueue } from '../dispatch/request-queue.js';
import { Scheduler } from '../dispatch/scheduler.js';
import type {
  Dispatched,
  EngineExpertPressure,
  EnginePressure,
  EngineSample,
  RequestQueueOptions,
} from '../dispatch/types.js';
import { timeOfDay } from '../dispatch/validate.js';
import { GimbalError } from '../errors.js';
import { present } from '../present.js';
import { type AffinityResult, affinityResult, type ExpertAffinity } from './affinity.js';
import type { GatewayConfig, ServerConfig } from './config.js';
import type { LedgerMirror } from './ledger/types.js';
import type { Logger } from './log.js';
import { MinuteSum } from './minute.js';
import { Server } from './server.js';
import type {
  Assignment,
  EngineSnapshot,
  FleetEngine,
  FleetRequest,
  LedgerListener,
  ServerSnapshot,
} from './types.js';

/** A request that gets no engine. */
export class RefusedError extends Error {
  /** 429: too much waits already. 503: no engine took it in time, or there is none. */
  readonly status: 429 | 503;
  readonly retryAfterSeconds: number;

  constructor(status: 429 | 503, message: string, retryAfterSeconds: number) {
    super(message);
    this.name = 'RefusedError';
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export interface AcquireOptions {
  /** The client has gone: rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Where the request failed before: taken only where no other serves. */
  excluding?: readonly FleetEngine[];
  /** Where it may go at all. */
  only?(target: FleetEngine): boolean;
}

export interface FleetEvents {
  dispatched(target: FleetEngine, dispatched: Dispatched, waitedMs: number): void;
  /** How the request went by its experts, where somebody learns them. */
  steered?(result: AffinityResult): void;
  /** The engine's server has left, and its last request has ended; there is none of its name any more. */
  gone(target: FleetEngine): void;
}

export interface FleetParts {
  log: Logger;
  events: FleetEvents;
  /** What a request's experts cost on each engine, where somebody knows. */
  affinity?: Pick<ExpertAffinity, 'expertMs'> | undefined;
}

/** What is known of an engine beside the scheduler's ledger. */
interface EngineEntry {
  target: FleetEngine;
  server: Server;
  /** Sent by this gateway, */
  inFlight: number;
  /** and by others, as far as they tell. */
  mirrored: number;
  dispatched: number;
  /** Of prompts. */
  dispatchedTokens: number;
  lately: MinuteSum;
  sample?: EngineSample;
}

interface Waiter {
  request: FleetRequest;
  options: AcquireOptions;
  resolve(assignment: Assignment): void;
  reject(error: unknown): void;
  timer: NodeJS.Timeout;
  /** On the clock that never goes back. */
  sinceMs: number;
  onAbort(): void;
}

const MONOTONIC = () => performance.now();
const LEAST_RETRY_AFTER_SECONDS = 1;
const MOST_RETRY_AFTER_SECONDS = 60;

export class Fleet {
  #config: GatewayConfig;
  readonly #log: Logger;
  readonly #events: FleetEvents;
  readonly #affinity: FleetParts['affinity'];
  /** Told of every request, where there is somebody to tell. */
  ledger: LedgerListener | undefined;
  /** The requests of other gateways, by their keys. */
  readonly #mirrored = new Map<string, EngineEntry>();
  readonly #scheduler: Scheduler;
  #queue: RequestQueue;
  readonly #waiters = new Map<string, Waiter>();
  /** By URL: those that the configuration names. */
  readonly #servers = new Map<string, Server>();
  /** Left out of the configuration, with requests still on them. */
  readonly #leaving = new Set<Server>();
  /** [engines] By the scheduler's number. */
  readonly #engines: EngineEntry[] = [];
  /** Those of them that are behind the servers of the configuration: numbers are never given again, so the others only grow. */
  #named: readonly EngineEntry[] = [];
  #pumping = false;
  #running = false;
  /** Whether there is room that those who wait cannot use. As of the last time that somebody looked. */
  #isRoomSpare = false;

  constructor(config: GatewayConfig, { log, events, affinity }: FleetParts) {
    this.#config = config;
    this.#log = log;
    this.#events = events;
    this.#affinity = affinity;
    const { policy, weights, prefillTokensPerSecond, staleAfterMs, gateways } = config;
    this.#scheduler = new Scheduler({
      engines: [],
      policy,
      weights: present(weights),
      prefillTokensPerSecond,
      staleAfterMs,
      gateways,
      // Gateways of one fleet should differ, so that they do not pick alike.
      seed: config.seed ?? randomInt(2 ** 32),
    });
    this.#queue = new RequestQueue(queueOptions(config));
    for (const server of this.#build(config.servers)) this.#join(server);
  }

  start(): void {
    this.#running = true;
    startAll([...this.#servers.values()]);
  }

  /** Whoever waits is refused. */
  async stop(): Promise<void> {
    this.#running = false;
    for (const id of [...this.#waiters.keys()]) this.#refuse(id, 'the gateway stops');
    await Promise.all([...this.#servers.values(), ...this.#leaving].map((server) => server.stop()));
  }

  /**
   * Servers that are new come in, those that are gone leave when their last request has ended.
   *
   * @throws GimbalError a new server's KV events cannot be followed; then nothing has changed
   */
  reload(config: GatewayConfig): void {
    const wanted = new Map(config.servers.map((server) => [server.url, server]));
    const leaving: Server[] = [];
    for (const [url, server] of this.#servers) {
      if (JSON.stringify(wanted.get(url)) === JSON.stringify(server.config)) wanted.delete(url);
      else leaving.push(server);
    }
    const joining = this.#build([...wanted.values()]);
    if (this.#running) startAll(joining);
    const before = this.#config;
    this.#config = config;
    if (JSON.stringify(before.queue) !== JSON.stringify(config.queue)) this.#renewQueue();
    for (const server of leaving) this.#removeServer(server);
    for (const server of joining) this.#join(server);
    this.#pumpSoon();
  }

  /** Those that may get requests, and those that will again. */
  get targets(): readonly FleetEngine[] {
    return [...this.#servers.values()].flatMap(({ engines }) => engines);
  }

  /** Of this gateway's own. */
  get inFlight(): number {
    return this.#scheduler.inFlight - this.#mirrored.size;
  }

  get waiting(): number {
    return this.#waiters.size;
  }

  /** Whether some engine takes requests, now or when it has room again. */
  get isServing(): boolean {
    return this.#named.some(({ target }) => this.serves(target));
  }

  serves(target: FleetEngine): boolean {
    return this.#engines[target.engine]!.server.stateOf(target) === 'active';
  }

  /**
   * An engine for the request, at once or when one has room.
   *
   * @throws RefusedError; what `options.signal` is aborted with
   */
  async acquire(request: FleetRequest, options: AcquireOptions = {}): Promise<Assignment> {
    const { signal, only } = options;
    signal?.throwIfAborted();
    if (only !== undefined && !this.targets.some((target) => only(target))) {
      throw new RefusedError(503, 'none of the engines may take the request', LEAST_RETRY_AFTER_SECONDS);
    }
    return this.acquireNow(request, options) ?? this.wait(request, options);
  }

  /** The same for a request that `acquireNow` has just found no engine for. */
  async wait(request: FleetRequest, options: AcquireOptions): Promise<Assignment> {
    const { signal, excluding = [] } = options;
    signal?.throwIfAborted();
    // One that was taken already, and whose engine failed, is not sent away for those that came after it.
    if (excluding.length === 0 && this.#queue.size >= this.#config.queue.capacity) {
      throw new RefusedError(429, `${this.#queue.size} requests wait already`, this.#retryAfterSeconds());
    }
    return new Promise((resolve, reject) => this.#enter(request, options, resolve, reject));
  }

  /** The same where nobody has to wait; else undefined. */
  acquireNow(request: FleetRequest, options: Omit<AcquireOptions, 'signal'> = {}): Assignment | undefined {
    // Who waits goes first, unless it cannot go where there is room.
    const isNext = this.#queue.size === 0 || (this.#isRoomSpare && !this.#pumping);
    return isNext ? this.#assign(request, options, 0) : undefined;
  }

  /** A connection to the engine's server failed, or it said that it is broken. */
  reportFailure(target: FleetEngine, reason: string): void {
    this.#engines[target.engine]!.server.failed(reason);
  }

  reportSuccess(target: FleetEngine): void {
    this.#engines[target.engine]!.server.succeeded();
  }

  /** By the engines' names: what the placement side has found out of them. Those that are not of this fleet are left out. */
  setExpertPressure(byEngine: ReadonlyMap<string, Omit<EngineExpertPressure, 'engine'>>): void {
    const known = this.targets.filter(({ name }) => byEngine.has(name));
    this.#scheduler.setExpertPressure(known.map(({ name, engine }) => ({ ...byEngine.get(name)!, engine })));
  }

  /** Prompt tokens that this gateway has sent, since the start: of the engines as `targets` has them. */
  dispatchedTokens(): number[] {
    return this.targets.map(({ engine }) => this.#engines[engine]!.dispatchedTokens);
  }

  /** What other gateways send stands in the same ledger, and counts for admission. */
  readonly mirror: LedgerMirror = {
    dispatched: (key, engineName, { promptTokens, streams, ageMs }) => {
      const target = this.targets.find(({ name }) => name === engineName);
      if (target === undefined) return false;
      const entry = this.#engines[target.engine]!;
      this.#scheduler.dispatched(target.engine, { id: mirroredId(key), promptTokens, streams }, ageMs);
      entry.mirrored += 1;
      this.#mirrored.set(key, entry);
      return true;
    },
    firstToken: (key) => {
      this.#scheduler.firstToken(mirroredId(key));
      this.#pumpSoon();
    },
    ended: (key, how) => {
      const entry = this.#mirrored.get(key);
      if (entry === undefined) return;
      this.#mirrored.delete(key);
      entry.mirrored -= 1;
      this.#scheduler[how](mirroredId(key));
      this.#pumpSoon();
    },
  };

  /** Engines that have left are not in it. */
  engineSnapshots(): EngineSnapshot[] {
    const { targets } = this;
    const all = targets.reduce((sum, { engine }) => sum + this.#engines[engine]!.lately.sum, 0);
    return targets.map((target) => this.#snapshotOf(this.#engines[target.engine]!, all));
  }

  serverSnapshots(): ServerSnapshot[] {
    return [...this.#servers.values()].map((server) => server.snapshot());
  }

  queueSnapshot(): { size: number; capacity: number; oldestMs: number } {
    const nowMs = timeOfDay();
    let oldestMs = 0;
    for (const { request } of this.#waiters.values())
      oldestMs = Math.max(oldestMs, nowMs - request.arrivalMs);
    return { size: this.#waiters.size, capacity: this.#config.queue.capacity, oldestMs };
  }

  /** Servers that are to join next, in this order. */
  #build(configs: readonly ServerConfig[]): Server[] {
    let first = this.#engines.length;
    return configs.map((config) => {
      const server = new Server(config, first, this.#config, this.#log, {
        samples: (samples) => this.#observe(samples),
        changed: (changed) => this.#onChange(changed),
      });
      first += config.ranks;
      return server;
    });
  }

  #join(server: Server): void {
    const { ranks, url, prefillTokensPerSecond, kvTokens, group = url, firstGlobalRank } = server.config;
    for (const target of server.engines) {
      this.#scheduler.addEngine({
        group,
        url,
        ...(firstGlobalRank === undefined ? {} : { globalRank: firstGlobalRank + target.rank }),
        ...(prefillTokensPerSecond === undefined ? {} : { prefillTokensPerSecond }),
        ...(kvTokens === undefined ? {} : { kvTokens }),
      });
      const lately = new MinuteSum(MONOTONIC);
      this.#engines.push({
        target,
        server,
        inFlight: 0,
        mirrored: 0,
        dispatched: 0,
        dispatchedTokens: 0,
        lately,
      });
    }
    this.#servers.set(url, server);
    this.#named = this.targets.map(({ engine }) => this.#engines[engine]!);
    this.#log.info({ server: url, ranks }, 'server joins');
  }

  #removeServer(server: Server): void {
    const { url } = server.config;
    this.#servers.delete(url);
    this.#named = this.targets.map(({ engine }) => this.#engines[engine]!);
    this.#leaving.add(server);
    server.leave();
    this.#log.info({ server: url }, 'server leaves');
    this.#buryIfDone(server);
  }

  /** A server that leaves is gone when its last request has ended. */
  #buryIfDone(server: Server): void {
    if (!this.#leaving.has(server)) return;
    if (server.engines.some(({ engine }) => this.#engines[engine]!.inFlight > 0)) return;
    this.#leaving.delete(server);
    for (const target of server.engines) {
      this.#scheduler.setState(target.engine, 'gone');
      // One that was changed has come back under the same name.
      if (!this.targets.some(({ name }) => name === target.name)) this.#events.gone(target);
    }
    void server.stop();
    this.#log.info({ server: server.config.url }, 'server is gone');
  }

  #onChange(server: Server): void {
    for (const target of server.engines) this.#scheduler.setState(target.engine, server.stateOf(target));
    this.#pumpSoon();
  }

  #observe(samples: EngineSample[]): void {
    for (const sample of samples) this.#engines[sample.engine]!.sample = sample;
    this.#scheduler.observe(samples);
    this.#pumpSoon();
  }

  /** Whether an engine is within its admission limit. */
  #engineHasRoom(entry: EngineEntry): boolean {
    const { target, server } = entry;
    const { maxInFlight, maxBacklogMs } = this.#config.admission;
    if (requestsOn(entry) >= maxInFlight || server.stateOf(target) !== 'active') return false;
    return this.#scheduler.backlogOf(target.engine) < maxBacklogMs;
  }

  /** Undefined where no engine may take it now. */
  #assign(request: FleetRequest, options: AcquireOptions, waitedMs: number): Assignment | undefined {
    const barred: number[] = [];
    const avoided: number[] = [];
    // One that is full, where the request has not failed yet: it is worth the wait.
    let isAwaited = false;
    for (const entry of this.#named) {
      const { target, server } = entry;
      const isAvoided = options.excluding?.includes(target) === true;
      if (options.only?.(target) === false) barred.push(target.engine);
      else if (!this.#engineHasRoom(entry)) {
        barred.push(target.engine);
        isAwaited ||= !isAvoided && server.stateOf(target) === 'active';
      } else if (isAvoided) avoided.push(target.engine);
    }
    if (barred.length === this.#named.length) return undefined;
    const dispatched =
      this.#dispatch(request, [...barred, ...avoided]) ??
      (avoided.length === 0 || isAwaited ? undefined : this.#dispatch(request, barred));
    return dispatched === undefined ? undefined : this.#commit(request, dispatched, waitedMs);
  }

  #dispatch(request: FleetRequest, excluding: number[]): Dispatched | undefined {
    const { id, promptTokens, sessionKey, prefixHashes, streams } = request;
    const cachedTokens = this.#cachedTokens(request);
    const expertMs = this.#affinity?.expertMs(request, this.#engines.length);
    try {
      const dispatched = this.#scheduler.dispatch({
        id,
        promptTokens,
        streams,
        ...(cachedTokens === undefined ? {} : { cachedTokens }),
        ...(sessionKey === undefined ? {} : { sessionKey }),
        ...(prefixHashes === undefined ? {} : { prefixHashes }),
        ...(expertMs === undefined ? {} : { expertMs }),
        ...(excluding.length === 0 ? {} : { excluding }),
      });
      if (this.#affinity !== undefined) {
        this.#events.steered?.(affinityResult(expertMs, dispatched.engine, this.#named));
      }
      return dispatched;
    } catch (error) {
      if (error instanceof GimbalError && error.code === 'GIMBAL_NO_ENGINE') return undefined;
      throw error;
    }
  }

  /** [engines] What engines tell of their caches, where they do and the prompt came as token ids; else it is estimated. */
  #cachedTokens({ promptTokenIds, promptTokens }: FleetRequest): Uint32Array | undefined {
    if (promptTokenIds === undefined) return undefined;
    let cached: Uint32Array | undefined;
    for (const server of this.#servers.values()) {
      const byRank = server.cachedTokens(promptTokenIds);
      if (byRank === undefined) continue;
      cached ??= new Uint32Array(this.#engines.length);
      for (const { engine, rank } of server.engines) cached[engine] = Math.min(byRank[rank]!, promptTokens);
    }
    return cached;
  }

  #commit(request: FleetRequest, dispatched: Dispatched, waitedMs: number): Assignment {
    const { id } = request;
    const entry = this.#engines[dispatched.engine]!;
    entry.inFlight += 1;
    entry.dispatched += 1;
    entry.dispatchedTokens += request.promptTokens;
    entry.lately.add(1);
    this.#events.dispatched(entry.target, dispatched, waitedMs);
    this.ledger?.dispatched(id, entry.target, request);
    let ended = false;
    const end = (how: 'finished' | 'failed') => {
      if (ended) return;
      ended = true;
      entry.inFlight -= 1;
      this.#scheduler[how](id);
      this.ledger?.ended(id, how);
      this.#buryIfDone(entry.server);
      this.#pumpSoon();
    };
    return {
      target: entry.target,
      pressureMs: dispatched.pressure,
      reason: dispatched.reason,
      waitedMs,
      firstToken: () => {
        if (ended) return;
        this.#scheduler.firstToken(id);
        this.ledger?.firstToken(id);
        this.#pumpSoon();
      },
      finished: () => end('finished'),
      failed: () => end('failed'),
    };
  }

  #enter(
    request: FleetRequest,
    options: AcquireOptions,
    resolve: (assignment: Assignment) => void,
    reject: (error: unknown) => void,
  ): void {
    const { id } = request;
    const { maxWaitMs } = this.#config.queue;
    const timer = setTimeout(() => this.#refuse(id, `no engine had room for ${maxWaitMs} ms`), maxWaitMs);
    const onAbort = () => this.#forget(id)?.reject(options.signal!.reason);
    options.signal?.addEventListener('abort', onAbort, { once: true });
    this.#waiters.set(id, { request, options, resolve, reject, timer, sinceMs: performance.now(), onAbort });
    this.#enqueue(request);
    if (this.#queue.size === 1) this.#isRoomSpare = this.#open().size > 0;
  }

  #refuse(id: string, why: string): void {
    this.#forget(id)?.reject(new RefusedError(503, why, this.#retryAfterSeconds()));
  }

  /** Takes a request out of the queue, wherever it stands. */
  #forget(id: string): Waiter | undefined {
    const waiter = this.#waiters.get(id);
    if (waiter === undefined) return undefined;
    this.#waiters.delete(id);
    this.#queue.cancel(id);
    clearTimeout(waiter.timer);
    waiter.options.signal?.removeEventListener('abort', waiter.onAbort);
    return waiter;
  }

  /** What happens in one turn of the event loop makes room once. */
  #pumpSoon(): void {
    if (this.#pumping || this.#waiters.size === 0) return;
    this.#pumping = true;
    setImmediate(() => {
      this.#pumping = false;
      this.#pump();
    });
  }

  #pump(): void {
    const open = this.#open();
    // Those that some engine had room for, but none that they may go to; they keep their place.
    const passed: Waiter[] = [];
    while (this.#queue.size > 0 && open.size > 0) {
      const waiter = this.#waiters.get(this.#queue.peek() as string)!;
      const assignment = this.#assignIfOpen(waiter, open);
      if (assignment === undefined) {
        this.#queue.cancel(waiter.request.id);
        passed.push(waiter);
        continue;
      }
      this.#forget(waiter.request.id)!.resolve(assignment);
      const entry = this.#engines[assignment.target.engine]!;
      if (!this.#engineHasRoom(entry)) open.delete(entry);
    }
    this.#isRoomSpare = open.size > 0;
    for (const { request } of passed) this.#enqueue(request);
  }

  #assignIfOpen(
    { request, options, sinceMs }: Waiter,
    open: ReadonlySet<EngineEntry>,
  ): Assignment | undefined {
    const { only } = options;
    if (only !== undefined && ![...open].some(({ target }) => only(target))) return undefined;
    return this.#assign(request, options, performance.now() - sinceMs);
  }

  /** Engines that have room. */
  #open(): Set<EngineEntry> {
    return new Set(this.#named.filter((entry) => this.#engineHasRoom(entry)));
  }

  #enqueue({ id, promptTokens, arrivalMs }: FleetRequest): void {
    this.#queue.push({ id, prefillTokens: promptTokens, arrivalMs });
  }

  #renewQueue(): void {
    this.#queue = new RequestQueue(queueOptions(this.#config));
    for (const { request } of this.#waiters.values()) this.#enqueue(request);
  }

  /** When the least loaded engine will be through with what it has. */
  #retryAfterSeconds(): number {
    let leastMs = Number.POSITIVE_INFINITY;
    for (const { target, server } of this.#named) {
      if (server.stateOf(target) !== 'active') continue;
      leastMs = Math.min(leastMs, this.#scheduler.backlogOf(target.engine));
    }
    const seconds = Number.isFinite(leastMs) ? Math.ceil(leastMs / 1000) : LEAST_RETRY_AFTER_SECONDS;
    return Math.min(MOST_RETRY_AFTER_SECONDS, Math.max(LEAST_RETRY_AFTER_SECONDS, seconds));
  }

  #snapshotOf({ target, inFlight, dispatched, lately, sample }: EngineEntry, all: number): EngineSnapshot {
    const { engine, name, server, rank } = target;
    const pressure: EnginePressure = this.#scheduler.pressureOf(engine);
    return {
      ...pressure,
      inFlight,
      engine,
      name,
      server: server.url,
      rank,
      dispatched,
      dispatchShare: all === 0 ? 0 : lately.sum / all,
      ...(sample === undefined
        ? {}
        : {
            kvUsage: sample.kvUsage,
            running: sample.running,
            waiting: sample.waiting,
            sampleAgeMs: Math.max(0, timeOfDay() - sample.timeMs),
          }),
    };
  }
}

/** All of them or none. */
function startAll(servers: readonly Server[]): void {
  try {
    for (const server of servers) server.start();
  } catch (error) {
    for (const server of servers) void server.stop();
    throw error;
  }
}

function requestsOn({ inFlight, mirrored }: EngineEntry): number {
  return inFlight + mirrored;
}

/** No id of this gateway's own begins so. */
function mirroredId(key: string): string {
  return `peer ${key}`;
}

function queueOptions({ queue: { policy, agingTokensPerSecond } }: GatewayConfig): RequestQueueOptions {
  return { policy, agingTokensPerSecond };
}
