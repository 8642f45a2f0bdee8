/** Polls all servers of a fleet for samples, each at its own pace. Here are the options; the work is in server-poll.ts. */
import {
  aboveZero,
  atLeastZero,
  checkFunction,
  checkKeys,
  checkSeed,
  count,
  describe,
  invalid,
  oneOf,
  ordinal,
} from '../checks.js';
import { timeOfDay } from '../dispatch/validate.js';
import { ENDPOINTS } from './endpoints.js';
import { draws } from './pace.js';
import { type PollSettings, ServerPoll } from './server-poll.js';
import type { EnginePollerOptions, ServerStatus, TelemetryServer } from './types.js';

const DEFAULT_INTERVAL_MS = 100;
const DEFAULT_TIMEOUT_MS = 1000;
const DEFAULT_MAX_BACKOFF_MS = 5000;
const DEFAULT_JITTER = 0.1;
/** Timers take 32 bits. */
const MOST_MS = 3.6e6;
/** Sets the servers' streams of jitter apart (2³² by the golden ratio). */
const SEED_STEP = 0x9e3779b9;

/**
 * Asks every server for what its engines are doing, and hands the answers on as samples for `Scheduler.observe`. A server that
 * does not answer, or answers nonsense, is told as `failing`, is asked ever more seldom until it recovers, and disturbs no other.
 * Nothing it does is thrown; the engines' samples grow stale meanwhile, which the scheduler heeds.
 */
export class EnginePoller {
  readonly #polls: readonly ServerPoll[];

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option) */
  constructor(options: EnginePollerOptions) {
    checkKeys('options', options, [
      'servers',
      'intervalMs',
      'timeoutMs',
      'maxBackoffMs',
      'jitter',
      'seed',
      'clock',
      'fetch',
      'onSamples',
      'onState',
      'onSleep',
    ]);
    const settings = checkSettings(options);
    const seed = checkSeed(options.seed ?? 0);
    const folded = Number((seed ^ (seed >> 32n)) & 0xffffffffn);
    this.#polls = checkServers(options.servers).map(
      (server, n) => new ServerPoll(server, { ...settings, draw: draws(folded + n * SEED_STEP) }),
    );
  }

  /** Begins to ask; again after `stop`, too. Keeps the process alive. Does nothing where it has begun already. */
  start(): void {
    for (const poll of this.#polls) poll.start();
  }

  /** Breaks off what is in flight; no listener is called any more. Resolves when no timer or request is left. */
  async stop(): Promise<void> {
    await Promise.all(this.#polls.map((poll) => poll.stop()));
  }

  /** [servers] As of now, in the order in which they were given. */
  status(): ServerStatus[] {
    return this.#polls.map((poll) => poll.status());
  }
}

function checkSettings(options: EnginePollerOptions): Omit<PollSettings, 'draw'> {
  const { intervalMs = DEFAULT_INTERVAL_MS, timeoutMs = DEFAULT_TIMEOUT_MS } = options;
  const { maxBackoffMs = DEFAULT_MAX_BACKOFF_MS, jitter = DEFAULT_JITTER } = options;
  const { clock = timeOfDay, fetch = globalThis.fetch, onSamples, onState, onSleep } = options;
  if (onState !== undefined) checkFunction('options.onState', onState);
  if (onSleep !== undefined) checkFunction('options.onSleep', onSleep);
  if (atLeastZero('options.jitter', jitter) >= 1) {
    throw invalid('options.jitter', 'a share below 1', describe(jitter));
  }
  const checked = {
    intervalMs: duration('options.intervalMs', intervalMs),
    timeoutMs: duration('options.timeoutMs', timeoutMs),
    maxBackoffMs: duration('options.maxBackoffMs', maxBackoffMs),
    jitter,
    clock: checkFunction('options.clock', clock),
    fetch: checkFunction('options.fetch', fetch),
    listeners: {
      onSamples: checkFunction('options.onSamples', onSamples),
      ...(onState === undefined ? {} : { onState }),
      ...(onSleep === undefined ? {} : { onSleep }),
    },
  };
  if (maxBackoffMs < intervalMs) {
    throw invalid('options.maxBackoffMs', `at least intervalMs, ${intervalMs}`, describe(maxBackoffMs));
  }
  return checked;
}

function checkServers(servers: unknown): readonly TelemetryServer[] {
  if (!Array.isArray(servers) || servers.length === 0) {
    throw invalid('options.servers', 'an array of servers, one at least', describe(servers));
  }
  const taken = new Set<number>();
  return servers.map((server, n) => checkServer(`options.servers[${n}]`, server, taken));
}

/** Returns a copy: the caller may go on with its own. */
function checkServer(field: string, server: TelemetryServer, taken: Set<number>): TelemetryServer {
  checkKeys(field, server, ['url', 'kind', 'engines', 'endpoint', 'kvTokens', 'headers']);
  const { url, kind, engines, endpoint, kvTokens, headers } = server;
  checkUrl(`${field}.url`, url);
  const endpoints = ENDPOINTS[oneOf(`${field}.kind`, kind, ['vllm', 'sglang'])];
  if (!Array.isArray(engines) || engines.length === 0) {
    throw invalid(`${field}.engines`, 'an array of engines, one for each DP rank', describe(engines));
  }
  for (const [rank, engine] of engines.entries()) {
    const at = `${field}.engines[${rank}]`;
    if (taken.has(ordinal(at, engine))) throw invalid(at, 'each engine once', describe(engine));
    taken.add(engine);
  }
  if (kvTokens !== undefined) count(`${field}.kvTokens`, kvTokens);
  if (endpoint !== undefined) {
    const names = endpoints.map(({ name }) => name);
    if (oneOf(`${field}.endpoint`, endpoint, names) === '/get_load' && kvTokens === undefined) {
      throw invalid(`${field}.kvTokens`, 'a number of tokens, which /get_load lacks', describe(kvTokens));
    }
  }
  if (headers !== undefined) checkHeaders(`${field}.headers`, headers);
  return { ...server, engines: [...engines], ...(headers === undefined ? {} : { headers: { ...headers } }) };
}

function checkUrl(field: string, url: unknown): void {
  const expected = 'an http or https URL without credentials, query and fragment';
  if (typeof url !== 'string' || !URL.canParse(url)) throw invalid(field, expected, describe(url));
  const { protocol, username, password, search, hash } = new URL(url);
  if (!['http:', 'https:'].includes(protocol)) throw invalid(field, expected, protocol);
  // Not repeated, since it may be a secret.
  if (username !== '' || password !== '') throw invalid(field, expected, 'one with credentials');
  if (search !== '' || hash !== '') throw invalid(field, expected, `${search}${hash}`);
}

/** As fetch takes them. Values are not repeated in messages, since they may be secrets. */
function checkHeaders(field: string, headers: Readonly<Record<string, string>>): void {
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers)) {
    throw invalid(field, 'an object of strings', describe(headers));
  }
  for (const [name, value] of Object.entries(headers)) {
    if (typeof value !== 'string') throw invalid(`${field}.${name}`, 'a string', typeof value);
    try {
      new Headers({ [name]: value });
    } catch {
      throw invalid(`${field}.${name}`, 'the name and the value of an HTTP header', 'what is not');
    }
  }
}

function duration(field: string, value: unknown): number {
  if (aboveZero(field, value) > MOST_MS) throw invalid(field, `at most ${MOST_MS} ms`, describe(value));
  return value as number;
}
