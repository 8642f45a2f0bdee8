/**
 * One ledger for several gateways. Each tells the others which engine it sends a request to, when its prefill is done and when it
 * has ended early; the others enter that in their own ledgers, so that all see nearly the same backlogs and do not send to the same
 * engine at once. What decodes is not shared: samples show it.
 *
 * What happens within a millisecond goes out as one message. Every second a gateway writes down all that it has outstanding, for
 * those who join or have missed a message (ledger/peers.ts). Nobody waits for any of it: without a connection each gateway works
 * from samples and its own ledger, as it would alone.
 */
import { randomBytes } from 'node:crypto';
import { aboveZero, describe, invalid } from '../checks.js';
import { Peers } from './ledger/peers.js';
import type {
  LedgerChannel,
  LedgerCounts,
  LedgerMirror,
  SharedLedgerState,
  SharedLedgerStatus,
} from './ledger/types.js';
import {
  decodeMessage,
  encodeMessage,
  encodeState,
  type Message,
  MOST_OPERATIONS,
  MOST_REQUESTS,
  type Sent,
  toAge,
} from './ledger/wire.js';
import type { FleetEngine, FleetRequest, LedgerListener } from './types.js';

export type { LedgerChannel, LedgerMirror, SharedLedgerStatus } from './ledger/types.js';

/** How long what happens is gathered before it goes out. */
const GATHER_MS = 1;
/** Messages that Redis has not answered yet; with more, the next ones are gathered for longer. */
const MOST_UNANSWERED = 16;
/** Between two states, however often others ask. */
const LEAST_BETWEEN_STATES_MS = 100;
const DEFAULT_STATE_EVERY_MS = 1000;
/** States that may be missed before a gateway counts as gone. */
const DEFAULT_STATES_MISSED = 3;

export interface SharedLedgerOptions {
  channel: LedgerChannel;
  mirror: LedgerMirror;
  /** Default 1,000. */
  stateEveryMs?: number;
  /** A gateway that is silent for so long is gone. Default: three times `stateEveryMs`, which is the least that makes sense. */
  ttlMs?: number;
  /** Called where the state or its reason changes. */
  onState?: (state: SharedLedgerState, reason: string) => void;
  /** ms, of any beginning. */
  clock?: () => number;
}

interface Outstanding {
  number: number;
  engine: string;
  promptTokens: number;
  streams: boolean;
  dispatchedMs: number;
}

type Pending = Outstanding | { number: number; what: 'first' | 'finished' | 'failed' };

export class SharedLedger implements LedgerListener {
  /** Another one for each start, so that a gateway that comes back is not taken for the one it was. */
  readonly #id = randomBytes(8).toString('hex');
  readonly #channel: LedgerChannel;
  readonly #peers: Peers;
  readonly #clock: () => number;
  readonly #stateEveryMs: number;
  readonly #ttlMs: number;
  readonly #onState: (state: SharedLedgerState, reason: string) => void;
  readonly #counts: LedgerCounts = {
    published: 0,
    received: 0,
    ignored: 0,
    gaps: 0,
    reads: 0,
    unknownEngines: 0,
    dropped: 0,
    lost: 0,
  };
  /** By the fleet's id, in the order of dispatch. */
  readonly #outstanding = new Map<string, Outstanding>();
  #pending: Pending[] = [];
  #requests = 0;
  #messages = 0;
  #unanswered = 0;
  #isOpen = false;
  #writing = false;
  #state: SharedLedgerState = 'unknown';
  #reason = 'not connected yet';
  #wroteMs = Number.NEGATIVE_INFINITY;
  #heardOwnMs = 0;
  #beatMs = 0;
  #echoMs: number | undefined;
  #gathering: NodeJS.Timeout | undefined;
  #answering: NodeJS.Timeout | undefined;
  #beating: NodeJS.Timeout | undefined;

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option) */
  constructor(options: SharedLedgerOptions) {
    const { channel, mirror, onState = () => {}, clock = () => performance.now() } = options;
    const { stateEveryMs = DEFAULT_STATE_EVERY_MS, ttlMs = stateEveryMs * DEFAULT_STATES_MISSED } = options;
    this.#channel = channel;
    this.#clock = clock;
    this.#onState = onState;
    this.#stateEveryMs = aboveZero('options.stateEveryMs', stateEveryMs);
    if (!(ttlMs >= stateEveryMs * DEFAULT_STATES_MISSED)) {
      throw invalid('options.ttlMs', `at least ${DEFAULT_STATES_MISSED} times stateEveryMs`, describe(ttlMs));
    }
    this.#ttlMs = ttlMs;
    this.#peers = new Peers({
      mirror,
      counts: this.#counts,
      clock,
      ttlMs,
      read: (gateway) => channel.read(gateway),
      ask: () => this.#publish('hello'),
    });
  }

  start(): void {
    this.#channel.open({
      onOpen: () => this.#opened(),
      onLost: (reason) => this.#lost(reason),
      onMessage: (text) => this.#heard(text),
    });
    this.#beatMs = this.#clock();
    this.#beating = setInterval(() => this.#beat(), this.#stateEveryMs);
  }

  /** Says goodbye where it can; what others have sent is forgotten. */
  async stop(): Promise<void> {
    clearInterval(this.#beating);
    this.#flush();
    const goodbye = this.#isOpen
      ? [this.#channel.publish(this.#encode('bye')), this.#channel.remove(this.#id)]
      : [];
    // Nothing may follow it, or the others would take it for a new beginning.
    this.#isOpen = false;
    // Whatever comes of it: the others forget us in time.
    await Promise.allSettled(goodbye);
    await this.#channel.close();
    clearTimeout(this.#gathering);
    clearTimeout(this.#answering);
    this.#outstanding.clear();
    this.#peers.clear();
  }

  get status(): SharedLedgerStatus {
    return {
      state: this.#state,
      reason: this.#reason,
      gateways: this.#peers.size,
      mirrored: this.#peers.mirrored,
      ...(this.#echoMs === undefined ? {} : { echoMs: this.#echoMs }),
      counts: { ...this.#counts },
    };
  }

  // ---- what the fleet tells

  dispatched(id: string, { name: engine }: FleetEngine, { promptTokens, streams }: FleetRequest): void {
    this.#requests += 1;
    const sent = { number: this.#requests, engine, promptTokens, streams, dispatchedMs: this.#clock() };
    this.#outstanding.set(id, sent);
    this.#tell(sent);
  }

  firstToken(id: string): void {
    this.#settle(id, 'first');
  }

  ended(id: string, how: 'finished' | 'failed'): void {
    this.#settle(id, how);
  }

  #settle(id: string, what: 'first' | 'finished' | 'failed'): void {
    const sent = this.#outstanding.get(id);
    if (sent === undefined) return;
    this.#outstanding.delete(id);
    this.#tell({ number: sent.number, what });
  }

  #tell(pending: Pending): void {
    if (!this.#isOpen) return;
    if (this.#pending.length >= MOST_OPERATIONS) {
      // The number that is left out tells the others to read our state.
      this.#counts.dropped += this.#pending.length;
      this.#pending = [];
      this.#messages += 1;
    }
    this.#pending.push(pending);
    this.#gather();
  }

  #gather(): void {
    this.#gathering ??= setTimeout(() => {
      this.#gathering = undefined;
      if (this.#unanswered < MOST_UNANSWERED) this.#flush();
    }, GATHER_MS);
  }

  #flush(): void {
    if (!this.#isOpen || this.#pending.length === 0) return;
    const nowMs = this.#clock();
    const operations = this.#pending.map((one) =>
      'what' in one
        ? ([one.what, one.number] as [typeof one.what, number])
        : (['dispatched', ...toSent(one, nowMs)] as ['dispatched', ...Sent]),
    );
    this.#pending = [];
    this.#messages += 1;
    this.#publish(operations);
  }

  #encode(body: Message['body']): string {
    return encodeMessage({ gateway: this.#id, number: this.#messages, body });
  }

  #publish(body: Message['body']): void {
    if (!this.#isOpen) return;
    this.#unanswered += 1;
    this.#counts.published += 1;
    // Where it fails, the channel says that it is lost.
    void Promise.allSettled([this.#channel.publish(this.#encode(body))]).then(() => {
      this.#unanswered -= 1;
      if (this.#pending.length > 0) this.#gather();
    });
  }

  // ---- the state

  #beat(): void {
    const nowMs = this.#clock();
    // A process that stood still has not looked yet at what was said meanwhile.
    const stoodStill = nowMs - this.#beatMs > 2 * this.#stateEveryMs;
    this.#beatMs = nowMs;
    if (!stoodStill) this.#peers.sweep();
    if (!stoodStill && this.#isOpen && nowMs - this.#heardOwnMs > this.#ttlMs) {
      this.#channel.reset(`nothing of what was published has come back for ${this.#ttlMs} ms`);
    }
    this.#writeState();
  }

  /** The message behind it tells those who need it to read it. */
  #writeState(): void {
    if (!this.#isOpen || this.#writing) return;
    this.#writing = true;
    this.#flush();
    const nowMs = this.#clock();
    this.#wroteMs = nowMs;
    const requests = Array.from(this.#outstanding.values(), (sent) => toSent(sent, nowMs));
    const beyond = Math.max(0, requests.length - MOST_REQUESTS);
    this.#counts.dropped += beyond;
    const state = encodeState(this.#id, { number: this.#messages, requests: requests.slice(beyond) });
    void Promise.allSettled([this.#channel.write(this.#id, state, this.#ttlMs)]).then(() => {
      this.#writing = false;
    });
    this.#publish('state');
  }

  #answer(): void {
    const waitMs = this.#wroteMs + LEAST_BETWEEN_STATES_MS - this.#clock();
    this.#answering ??= setTimeout(
      () => {
        this.#answering = undefined;
        this.#writeState();
      },
      Math.max(0, waitMs),
    );
  }

  // ---- what the channel tells

  #opened(): void {
    this.#isOpen = true;
    this.#heardOwnMs = this.#clock();
    // What was not told meanwhile is missing, and seen to be by the number that is left out.
    this.#messages += 1;
    this.#turnInto('ok', 'connected');
    this.#publish('hello');
    this.#writeState();
  }

  #lost(reason: string): void {
    this.#isOpen = false;
    this.#pending = [];
    this.#echoMs = undefined;
    this.#turnInto('failing', reason);
  }

  #heard(text: string): void {
    const message = decodeMessage(text);
    if (message === undefined) {
      this.#counts.ignored += 1;
      return;
    }
    if (message.gateway === this.#id) {
      this.#heardOwn(message);
      return;
    }
    this.#counts.received += 1;
    this.#peers.hear(message);
    if (message.body === 'hello') this.#answer();
  }

  #heardOwn({ body }: Message): void {
    this.#heardOwnMs = this.#clock();
    if (body === 'state') this.#echoMs = this.#heardOwnMs - this.#wroteMs;
  }

  #turnInto(state: SharedLedgerState, reason: string): void {
    if (state === this.#state && reason === this.#reason) return;
    this.#state = state;
    this.#reason = reason;
    this.#onState(state, reason);
  }
}

function toSent({ number, engine, promptTokens, streams, dispatchedMs }: Outstanding, nowMs: number): Sent {
  return [number, engine, promptTokens, streams ? 1 : 0, toAge(nowMs - dispatchedMs)];
}
