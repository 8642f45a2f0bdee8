/** Follows the KV caches of a fleet by the events that its engines publish. Here are the options; the work is in kv-source.ts. */
import { aboveZero, checkFunction, checkKeys, count, describe, invalid, ordinal } from '../checks.js';
import { KvBlockIndex } from './kv-index.js';
import { KvSource } from './kv-source.js';
import type { CachedTokensOptions, KvEventFeedOptions, KvEventSource, KvSourceStatus } from './kv-types.js';
import { loadZeromq } from './zeromq.js';

const DEFAULT_REPLAY_TIMEOUT_MS = 2000;
/** Timers take 32 bits. */
const MOST_MS = 3.6e6;
/** With a port, or a path; the wildcards are for those who bind. */
const ENDPOINT = /^(?:tcp:\/\/[^\s*/]+:(\d{1,5})|ipc:\/\/\S+)$/;
const MOST_PORT = 65_535;

/**
 * Subscribes to every engine's events, and knows from them which of a prompt's tokens each has cached. A publisher that is not
 * there, or publishes nonsense, is told as `failing` and disturbs no other; what is not known for sure counts as not cached.
 */
export class KvEventFeed {
  readonly #index: KvBlockIndex;
  readonly #sources: readonly KvSource[];

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option) */
  constructor(options: KvEventFeedOptions) {
    checkKeys('options', options, ['sources', 'engines', 'maxBlocks', 'replayTimeoutMs', 'onState']);
    const { maxBlocks, replayTimeoutMs = DEFAULT_REPLAY_TIMEOUT_MS, onState } = options;
    const sources = checkSources(options.sources);
    if (onState !== undefined) checkFunction('options.onState', onState);
    if (aboveZero('options.replayTimeoutMs', replayTimeoutMs) > MOST_MS) {
      throw invalid('options.replayTimeoutMs', `at most ${MOST_MS} ms`, describe(replayTimeoutMs));
    }
    const needed = 1 + Math.max(...sources.map(({ engine }) => engine));
    const engines = count('options.engines', options.engines ?? needed);
    if (engines < needed) throw invalid('options.engines', `at least ${needed}`, describe(engines));
    const index = new KvBlockIndex({ engines, ...(maxBlocks === undefined ? {} : { maxBlocks }) });
    this.#index = index;
    this.#sources = sources.map((source) => new KvSource(source, { index, replayTimeoutMs, onState }));
  }

  /**
   * Begins to follow; again after `stop`, too. Keeps the process alive. Does nothing where it has begun already.
   *
   * @throws GimbalError GIMBAL_BINDING where the package zeromq cannot be loaded, GIMBAL_IO where an endpoint is none
   */
  start(): void {
    const zmq = loadZeromq();
    try {
      for (const source of this.#sources) source.start(zmq);
    } catch (error) {
      void this.stop();
      throw error;
    }
  }

  /** Drops what is known; no listener is called any more. Resolves when no connection is left. */
  async stop(): Promise<void> {
    await Promise.all(this.#sources.map((source) => source.stop()));
  }

  /** [sources] As of now, in the order in which they were given. */
  status(): KvSourceStatus[] {
    return this.#sources.map((source) => source.status());
  }

  /** As of `KvBlockIndex`: [engines], for `DispatchRequest.cachedTokens`. */
  cachedTokens(tokenIds: ArrayLike<number>, options?: CachedTokensOptions): Uint32Array {
    return this.#index.cachedTokens(tokenIds, options);
  }
}

function checkSources(sources: unknown): readonly KvEventSource[] {
  if (!Array.isArray(sources) || sources.length === 0) {
    throw invalid('options.sources', 'an array of publishers, one at least', describe(sources));
  }
  const taken = new Set<number>();
  return sources.map((source, n) => {
    const field = `options.sources[${n}]`;
    checkKeys(field, source, ['endpoint', 'replayEndpoint', 'engine', 'topic']);
    const { endpoint, replayEndpoint, engine, topic } = source as KvEventSource;
    checkEndpoint(`${field}.endpoint`, endpoint);
    if (replayEndpoint !== undefined) checkEndpoint(`${field}.replayEndpoint`, replayEndpoint);
    if (taken.has(ordinal(`${field}.engine`, engine))) {
      throw invalid(`${field}.engine`, 'each engine once', describe(engine));
    }
    taken.add(engine);
    if (topic !== undefined && typeof topic !== 'string')
      throw invalid(`${field}.topic`, 'a string', describe(topic));
    return { ...(source as KvEventSource) };
  });
}

function checkEndpoint(field: string, endpoint: unknown): void {
  const parts = typeof endpoint === 'string' ? ENDPOINT.exec(endpoint) : null;
  const port = Number(parts?.[1] ?? MOST_PORT);
  if (parts === null || port < 1 || port > MOST_PORT) {
    throw invalid(field, 'tcp://host:port or ipc://path', describe(endpoint));
  }
}
