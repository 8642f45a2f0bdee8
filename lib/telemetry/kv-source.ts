/**
 * The life of one publisher of KV events: subscribe, follow the sequence, and mend what is broken in it.
 *
 * Batches are numbered from 0. One that is missing makes all that is known of the engine doubtful: a block may have gone unnoticed.
 * So it is either had again, from the replay endpoint, or what is known is dropped. A publisher that began anew counts from 0
 * again, but may be past where it was before anything is heard of it. What it sends again tells: the last batch that was taken
 * holds the time when it was made, so it is the same only where the publisher is.
 *
 * One thing after the other: while batches are sent again, live ones wait in ZeroMQ's queue.
 */
import { decodeKvEvents } from './kv-events.js';
import type { KvBlockIndex } from './kv-index.js';
import type { KvEventSource, KvSourceStatus } from './kv-types.js';
import { tell } from './listeners.js';
import type { ServerState } from './types.js';
import {
  type loadZeromq,
  parseMessage,
  replay,
  type SequencedPayload,
  type Subscriber,
  subscribe,
} from './zeromq.js';

export interface SourceSettings {
  index: KvBlockIndex;
  replayTimeoutMs: number;
  onState: ((source: KvEventSource, state: 'ok' | 'failing', reason: string) => void) | undefined;
}

export class KvSource {
  readonly #source: KvEventSource;
  readonly #settings: SourceSettings;
  #stop = new AbortController();
  #running: Promise<void> | undefined;
  #zmq: ReturnType<typeof loadZeromq> | undefined;
  /** What is done one after the other. */
  #work: Promise<void> = Promise.resolve();
  /** The last batch that was taken; missing where nothing is known of the engine. */
  #last: SequencedPayload | undefined;
  /** Of the last live message of this connection. */
  #live: number | undefined;
  #isConnected = false;
  #state: ServerState = 'unknown';
  #reason = 'not connected yet';
  #batches = 0;
  #gaps = 0;
  #restarts = 0;
  #resets = 0;
  #unknownEvents = 0;

  constructor(source: KvEventSource, settings: SourceSettings) {
    this.#source = source;
    this.#settings = settings;
  }

  start(zmq: ReturnType<typeof loadZeromq>): void {
    if (this.#running !== undefined) return;
    const { endpoint, topic = '' } = this.#source;
    this.#zmq = zmq;
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    const socket = subscribe(zmq, endpoint, topic, {
      onConnect: () => {
        this.#isConnected = true;
        // Messages may have been lost since the last connection, and the publisher may be another one.
        void this.#next(signal, () => this.#verify(signal));
      },
      onDisconnect: () => {
        this.#isConnected = false;
        if (signal.aborted) return;
        this.#turnInto('failing', `${endpoint}: expected a connection but received none`);
      },
    });
    signal.addEventListener('abort', () => socket.close(), { once: true });
    this.#running = this.#run(socket, signal);
  }

  /** Nothing is told from the call on; resolves when nothing is left behind. What is known is dropped: it would grow old. */
  async stop(): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    this.#stop.abort();
    if (running === undefined) return;
    this.#forget();
    await running;
  }

  status(): KvSourceStatus {
    return {
      source: this.#source,
      state: this.#state,
      reason: this.#reason,
      batches: this.#batches,
      gaps: this.#gaps,
      restarts: this.#restarts,
      resets: this.#resets,
      unknownEvents: this.#unknownEvents,
      ...this.#settings.index.blocks(this.#source.engine),
    };
  }

  async #run(socket: Subscriber, stop: AbortSignal): Promise<void> {
    for await (const frames of socket) await this.#next(stop, () => this.#take(frames, stop));
    await this.#work;
  }

  /** `step` after all before it. What goes wrong in it is told, and what is known dropped. */
  #next(stop: AbortSignal, step: () => Promise<void>): Promise<void> {
    this.#work = this.#work.then(async () => {
      if (stop.aborted) return;
      try {
        await step();
      } catch (error) {
        if (stop.aborted) return;
        this.#reset();
        this.#turnInto('failing', error instanceof Error ? error.message : String(error));
      }
    });
    return this.#work;
  }

  async #take(frames: readonly Uint8Array[], stop: AbortSignal): Promise<void> {
    const message = parseMessage(frames, this.#source.endpoint);
    const { sequence } = message;
    const beganAnew = this.#live !== undefined && sequence <= this.#live;
    this.#live = sequence;
    const expected = this.#last === undefined ? sequence : this.#last.sequence + 1;
    if (beganAnew) await this.#beginAnew(stop);
    else if (sequence > expected) await this.#fill(stop);
    stop.throwIfAborted();
    // It may have been among those that were sent again.
    if (this.#last === undefined || sequence > this.#last.sequence) this.#apply(message);
    this.#succeeded();
  }

  async #verify(stop: AbortSignal): Promise<void> {
    this.#live = undefined;
    if (this.#source.replayEndpoint === undefined) this.#reset();
    else if (this.#last === undefined) await this.#replayAll(stop);
    else await this.#replaySince(this.#last, stop);
    stop.throwIfAborted();
    this.#succeeded();
  }

  async #fill(stop: AbortSignal): Promise<void> {
    this.#gaps += 1;
    if (this.#source.replayEndpoint === undefined || this.#last === undefined) return;
    await this.#replaySince(this.#last, stop);
  }

  async #beginAnew(stop: AbortSignal): Promise<void> {
    this.#restarts += 1;
    this.#reset();
    if (this.#source.replayEndpoint !== undefined) await this.#replayAll(stop);
  }

  /** From `last` on, which must come again as it was; where it does not, all. */
  async #replaySince(last: SequencedPayload, stop: AbortSignal): Promise<void> {
    let isSame = false;
    await this.#replay(last.sequence, stop, (batch) => {
      if (isSame) this.#apply(batch);
      else isSame = batch.sequence === last.sequence && Buffer.compare(batch.payload, last.payload) === 0;
      return isSame;
    });
    // The publisher is another one, or has gone on so far that it does not have that batch any more.
    if (!isSame) await this.#beginAnew(stop);
  }

  async #replayAll(stop: AbortSignal): Promise<void> {
    await this.#replay(0, stop, (batch) => {
      this.#apply(batch);
      return true;
    });
  }

  #replay(first: number, signal: AbortSignal, take: (batch: SequencedPayload) => boolean): Promise<void> {
    const { replayEndpoint: endpoint } = this.#source;
    const { replayTimeoutMs: timeoutMs } = this.#settings;
    return replay({ zmq: this.#zmq!, endpoint: endpoint!, timeoutMs, signal }, first, take);
  }

  #apply(batch: SequencedPayload): void {
    const { index } = this.#settings;
    const { endpoint, engine } = this.#source;
    // Some are missing still: removals may be among them.
    if (this.#last !== undefined && batch.sequence !== this.#last.sequence + 1) this.#reset();
    const { events, unknownEvents } = decodeKvEvents(batch.payload, `${endpoint}: batch ${batch.sequence}`);
    for (const event of events) index.apply(engine, event);
    this.#last = batch;
    this.#batches += 1;
    this.#unknownEvents += unknownEvents;
  }

  #reset(): void {
    if (this.#last !== undefined) this.#resets += 1;
    this.#forget();
  }

  #forget(): void {
    this.#last = undefined;
    this.#settings.index.reset(this.#source.engine);
  }

  /** What comes last over a connection may be taken when it is gone. */
  #succeeded(): void {
    if (this.#isConnected) this.#turnInto('ok', `follows ${this.#source.endpoint}`);
  }

  #turnInto(state: 'ok' | 'failing', reason: string): void {
    const changed = state !== this.#state;
    this.#state = state;
    this.#reason = reason;
    if (changed) tell(() => this.#settings.onState?.(this.#source, state, reason));
  }
}
