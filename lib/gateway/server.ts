/**
 * One server of the fleet: its telemetry, and whether requests go to it. A server whose connections fail stands aside, at first
 * for a second, twice as long each time it fails again at once, and comes back by itself; or earlier, when its telemetry does.
 */
import type { EngineSample, EngineState } from '../dispatch/types.js';
import { KvEventFeed } from '../telemetry/kv-feed.js';
import { EnginePoller } from '../telemetry/poller.js';
import type { ServerStatus, TelemetryServer } from '../telemetry/types.js';
import type { GatewayConfig, ServerConfig } from './config.js';
import type { Logger } from './log.js';
import type { FleetEngine, FleetServer, ServerSnapshot } from './types.js';

const FIRST_EJECTION_MS = 1000;
const LONGEST_EJECTION_MS = 30_000;

export interface ServerListener {
  samples(samples: EngineSample[]): void;
  /** The states of its engines may be others. */
  changed(server: Server): void;
}

export class Server {
  readonly config: ServerConfig;
  readonly target: FleetServer;
  /** [ranks] */
  readonly engines: readonly FleetEngine[];
  readonly #poller: EnginePoller;
  readonly #feed: KvEventFeed | undefined;
  readonly #listener: ServerListener;
  readonly #log: Logger;
  readonly #asleep = new Set<number>();
  #leaving = false;
  #ejections = 0;
  #ejectedUntilMs = 0;
  #ejection: NodeJS.Timeout | undefined;

  /** @param first the scheduler's number of its first rank; the others follow */
  constructor(
    config: ServerConfig,
    first: number,
    gateway: GatewayConfig,
    log: Logger,
    listener: ServerListener,
  ) {
    this.config = config;
    this.target = toTarget(config);
    this.engines = Array.from({ length: config.ranks }, (_, rank) => ({
      engine: first + rank,
      name: `${config.url}#${rank}`,
      server: this.target,
      rank,
    }));
    this.#log = log.child({ server: config.url });
    this.#listener = listener;
    const { intervalMs, timeoutMs, maxBackoffMs } = gateway.telemetry;
    this.#poller = new EnginePoller({
      servers: [this.#telemetry()],
      intervalMs,
      timeoutMs,
      maxBackoffMs: Math.max(intervalMs, maxBackoffMs),
      seed: first,
      onSamples: (samples) => listener.samples(samples),
      onState: (_, state, reason) => this.#onTelemetry(state, reason),
      onSleep: (engine, asleep) => this.#onSleep(engine, asleep),
    });
    this.#feed = this.#follow();
  }

  #follow(): KvEventFeed | undefined {
    const { kvEvents } = this.config;
    if (kvEvents === undefined) return undefined;
    return new KvEventFeed({
      sources: kvEvents.map(({ endpoint, replayEndpoint }, rank) => ({
        endpoint,
        engine: rank,
        ...(replayEndpoint === undefined ? {} : { replayEndpoint }),
      })),
      onState: ({ endpoint }, state, reason) =>
        this.#log[state === 'failing' ? 'warn' : 'info']({ endpoint, state, reason }, 'KV events'),
    });
  }

  #telemetry(): TelemetryServer {
    const { url, kind, telemetry, kvTokens } = this.config;
    return {
      url,
      kind,
      engines: this.engines.map(({ engine }) => engine),
      headers: this.target.headers,
      ...(telemetry === undefined ? {} : { endpoint: telemetry }),
      ...(kvTokens === undefined ? {} : { kvTokens }),
    };
  }

  /** @throws GimbalError GIMBAL_BINDING, GIMBAL_IO: KV events cannot be followed */
  start(): void {
    this.#feed?.start();
    this.#poller.start();
  }

  /** [ranks] Of a prompt's tokens, those that each rank has cached; undefined where nobody tells. */
  cachedTokens(promptTokenIds: readonly number[]): Uint32Array | undefined {
    return this.#feed?.cachedTokens(promptTokenIds);
  }

  async stop(): Promise<void> {
    clearTimeout(this.#ejection);
    await Promise.all([this.#poller.stop(), this.#feed?.stop()]);
  }

  /** Out of the configuration: nothing new goes to it. */
  leave(): void {
    this.#leaving = true;
    this.#listener.changed(this);
  }

  stateOf({ engine }: FleetEngine): EngineState {
    if (this.#leaving) return 'draining';
    return this.#asleep.has(engine) || this.#isEjected() ? 'asleep' : 'active';
  }

  /** A request was answered, so whatever was wrong is over. */
  succeeded(): void {
    if (!this.#isEjected()) this.#ejections = 0;
  }

  /** A connection failed. The many that fail with it count once. */
  failed(reason: string): void {
    if (this.#isEjected()) return;
    const forMs = Math.min(LONGEST_EJECTION_MS, FIRST_EJECTION_MS * 2 ** this.#ejections);
    this.#ejections += 1;
    this.#ejectedUntilMs = performance.now() + forMs;
    this.#ejection = setTimeout(() => this.#restore('the time is over'), forMs);
    this.#ejection.unref();
    this.#log.warn({ forMs, reason }, 'server stands aside');
    this.#listener.changed(this);
  }

  snapshot(): ServerSnapshot {
    const { state, reason } = this.status();
    const left = this.#ejectedUntilMs - performance.now();
    const { url, kind } = this.config;
    return { url, kind, state, reason, ...(this.#isEjected() ? { ejectedForMs: Math.max(0, left) } : {}) };
  }

  status(): ServerStatus {
    return this.#poller.status()[0]!;
  }

  #isEjected(): boolean {
    return this.#ejection !== undefined;
  }

  #restore(why: string): void {
    clearTimeout(this.#ejection);
    this.#ejection = undefined;
    this.#log.info({ why }, 'server takes requests again');
    this.#listener.changed(this);
  }

  #onTelemetry(state: 'ok' | 'failing', reason: string): void {
    if (state === 'failing') this.#log.warn({ reason }, 'telemetry fails');
    else this.#log.info({ reason }, 'telemetry answers');
    // A server that was away and is back: the one that failed was another process.
    if (state === 'ok' && this.#isEjected()) this.#restore('its telemetry answers again');
  }

  #onSleep(engine: number, asleep: boolean): void {
    if (asleep) this.#asleep.add(engine);
    else this.#asleep.delete(engine);
    this.#log.info({ engine, asleep }, 'engine sleeps or wakes');
    this.#listener.changed(this);
  }
}

function toTarget({ url, kind, ranks, pin, apiKey, apiKeyEnv }: ServerConfig): FleetServer {
  const key = apiKey ?? (apiKeyEnv === undefined ? undefined : process.env[apiKeyEnv]);
  const headers: Record<string, string> = key === undefined ? {} : { authorization: `Bearer ${key}` };
  return { url, kind, pins: pin ?? ranks > 1, headers };
}
