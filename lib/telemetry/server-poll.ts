/**
 * The life of one polled server: ask, read, tell, wait. One request at a time. Whatever goes wrong with the server or its answer
 * makes it `failing` and the waits longer, and nothing else.
 *
 * A sample is of the time when it was asked for: the server may have looked at its queue at any time since, so what was
 * dispatched meanwhile may be in the figures or not, and the scheduler counts it. A server's own times are of another clock.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { EngineSample } from '../dispatch/types.js';
import { checkSample } from '../dispatch/validate.js';
import { mismatch } from '../errors.js';
import { type Endpoint, endpointsOf } from './endpoints.js';
import { get } from './http.js';
import { tell } from './listeners.js';
import { backoff, firstWait, interval, type Pace } from './pace.js';
import type {
  EnginePollerOptions,
  EngineReading,
  ServerEndpoint,
  ServerState,
  ServerStatus,
  TelemetryServer,
} from './types.js';

/** Not there, or not for GET: try the next endpoint. */
const NOT_THERE: readonly number[] = [404, 405];
const OK = 200;

export interface PollSettings extends Pace {
  timeoutMs: number;
  clock: () => number;
  fetch: typeof globalThis.fetch;
  listeners: Pick<EnginePollerOptions, 'onSamples' | 'onState' | 'onSleep'>;
  /** In [0, 1). */
  draw: () => number;
}

interface Read {
  /** Which of the server's endpoints answered. */
  at: number;
  samples: EngineSample[];
  /** [ranks] */
  asleep: boolean[];
}

export class ServerPoll {
  readonly #server: TelemetryServer;
  readonly #settings: PollSettings;
  readonly #endpoints: readonly Endpoint[];
  readonly #asleep = new Set<number>();
  #stop = new AbortController();
  #running: Promise<void> | undefined;
  /** Which endpoint to ask first. */
  #first = 0;
  #state: ServerState = 'unknown';
  #reason = 'not asked yet';
  #failures = 0;
  #endpoint: ServerEndpoint | undefined;
  #sampleTimeMs: number | undefined;

  constructor(server: TelemetryServer, settings: PollSettings) {
    this.#server = server;
    this.#settings = settings;
    this.#endpoints = endpointsOf(server);
  }

  start(): void {
    if (this.#running !== undefined) return;
    this.#stop = new AbortController();
    this.#running = this.#run(this.#stop.signal);
  }

  /** Nothing is told from the call on; resolves when nothing is left behind. */
  async stop(): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    this.#stop.abort();
    await running;
  }

  status(): ServerStatus {
    return {
      server: this.#server,
      state: this.#state,
      reason: this.#reason,
      failures: this.#failures,
      ...(this.#endpoint === undefined ? {} : { endpoint: this.#endpoint }),
      ...(this.#sampleTimeMs === undefined ? {} : { sampleTimeMs: this.#sampleTimeMs }),
    };
  }

  async #run(stop: AbortSignal): Promise<void> {
    let waitMs = firstWait(this.#settings, this.#settings.draw);
    while (await slept(waitMs, stop)) waitMs = await this.#turn(stop);
  }

  /** Asks once; returns ms to wait. */
  async #turn(stop: AbortSignal): Promise<number> {
    const { draw } = this.#settings;
    const askedMs = performance.now();
    let read: Read;
    try {
      read = await this.#attempt(stop);
    } catch (error) {
      if (!stop.aborted) this.#failed(error);
      return backoff(this.#settings, this.#failures, draw);
    }
    // It may have been stopped between the answer and now.
    if (!stop.aborted) this.#succeeded(read, stop);
    return interval(this.#settings, draw) - (performance.now() - askedMs);
  }

  #failed(error: unknown): void {
    this.#failures += 1;
    // Another version may be what comes up again.
    this.#first = 0;
    this.#turnInto('failing', error instanceof Error ? error.message : String(error));
  }

  #succeeded({ at, samples, asleep }: Read, stop: AbortSignal): void {
    const { onSamples, onSleep } = this.#settings.listeners;
    this.#failures = 0;
    this.#first = at;
    this.#endpoint = this.#endpoints[at]!.name;
    this.#sampleTimeMs = samples[0]!.timeMs;
    this.#turnInto('ok', `reads ${this.#endpoint}`);
    // Each listener may stop the poller.
    for (const [rank, sleeps] of asleep.entries()) {
      const engine = this.#server.engines[rank]!;
      if (stop.aborted || sleeps === this.#asleep.has(engine)) continue;
      if (sleeps) this.#asleep.add(engine);
      else this.#asleep.delete(engine);
      tell(() => onSleep?.(engine, sleeps));
    }
    if (!stop.aborted) tell(() => onSamples(samples));
  }

  #turnInto(state: 'ok' | 'failing', reason: string): void {
    const changed = state !== this.#state;
    this.#state = state;
    this.#reason = reason;
    if (changed) tell(() => this.#settings.listeners.onState?.(this.#server, state, reason));
  }

  /** Within the timeout. What comes later is never looked at, so no answer overtakes another. */
  async #attempt(stop: AbortSignal): Promise<Read> {
    const { timeoutMs } = this.#settings;
    const cancel = new AbortController();
    const late = mismatch('GIMBAL_IO', this.#server.url, `an answer within ${timeoutMs} ms`, 'none');
    const timer = setTimeout(() => cancel.abort(late), timeoutMs);
    const onStop = () => cancel.abort(stop.reason);
    stop.addEventListener('abort', onStop, { once: true });
    try {
      return await unlessAborted(this.#ask(cancel.signal), cancel.signal);
    } finally {
      clearTimeout(timer);
      stop.removeEventListener('abort', onStop);
    }
  }

  /** Changes nothing, since it may go on when nobody waits for it any more. */
  async #ask(signal: AbortSignal): Promise<Read> {
    const { clock, fetch } = this.#settings;
    const tried: string[] = [];
    for (let at = this.#first; at < this.#endpoints.length; at++) {
      const { name, path, accept, read } = this.#endpoints[at]!;
      const url = new URL(path, withSlash(this.#server.url)).href;
      const headers = new Headers(this.#server.headers);
      headers.set('accept', accept);
      // Compressing costs the engine's process more than the network gains.
      headers.set('accept-encoding', 'identity');
      const timeMs = clock();
      const { status, text } = await get(url, { fetch, headers, signal });
      signal.throwIfAborted();
      if (status === OK) {
        const readings = read(text, url, this.#server);
        return { at, samples: this.#toSamples(readings, timeMs, url), asleep: readings.map(isAsleep) };
      }
      if (!NOT_THERE.includes(status)) throw mismatch('GIMBAL_IO', url, 'HTTP 200', `HTTP ${status}`);
      tried.push(`HTTP ${status} for ${name}`);
    }
    const expected = this.#endpoints.map(({ name }) => name).join(' or ');
    throw mismatch('GIMBAL_IO', this.#server.url, expected, tried.join(', '));
  }

  /** Ranks to engines by their order: behind some load balancers a server's first rank is not 0. */
  #toSamples(readings: readonly EngineReading[], timeMs: number, url: string): EngineSample[] {
    const { engines } = this.#server;
    if (readings.length !== engines.length) {
      const ranks = readings.map(({ dpRank }) => dpRank).join(', ');
      const expected = `${engines.length} for the engines ${engines.join(', ')}`;
      throw mismatch('GIMBAL_FORMAT', `${url}: DP ranks`, expected, `${readings.length}: ${ranks}`);
    }
    return readings.map((reading, n) => {
      const { dpRank, kvUsage, running, waiting, waitingPrefillTokens, preemptions } = reading;
      const sample: EngineSample = {
        engine: engines[n]!,
        timeMs,
        kvUsage: kvUsage!,
        running,
        waiting,
        ...(waitingPrefillTokens === undefined ? {} : { waitingPrefillTokens }),
        ...(preemptions === undefined ? {} : { preemptions }),
      };
      // What the scheduler would refuse is the server's fault, and must not be thrown at whoever hands samples on.
      checkSample(`${url}: rank ${dpRank}`, sample, Number.POSITIVE_INFINITY);
      return sample;
    });
  }
}

function isAsleep({ asleep }: { asleep?: boolean }): boolean {
  return asleep === true;
}

function withSlash(url: string): string {
  return url.endsWith('/') ? url : `${url}/`;
}

/** False where it was stopped. */
async function slept(ms: number, stop: AbortSignal): Promise<boolean> {
  if (stop.aborted) return false;
  try {
    await sleep(Math.max(0, ms), undefined, { signal: stop });
    return true;
  } catch (error) {
    if (stop.aborted) return false;
    throw error;
  }
}

/** `work`, or what `signal` is aborted with: an injected fetch may not heed it. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    work.then(resolve, reject);
  });
}
