/**
 * The other gateways, as far as they are heard of: each one's requests are mirrored here. Messages are taken in order; where one
 * is missing, the gateway's state is read as soon as it says that it has written one, and puts right what differs. A gateway that
 * is silent for too long is gone, and its requests with it.
 */
import type { LedgerCounts, LedgerMirror } from './types.js';
import { decodeState, type Message, MOST_REQUESTS, type Operation, type Sent, type State } from './wire.js';

const MOST_GATEWAYS = 1024;
/** Operations that wait for states to be read, of all gateways. */
const MOST_HELD = 100_000;

interface Heard extends Message {
  heardMs: number;
}

interface Peer {
  readonly id: string;
  heardMs: number;
  /** Of the last message that was taken. */
  number: number;
  /** Nothing is missing up to there. */
  whole: boolean;
  /** Numbers of its requests that are mirrored. */
  readonly requests: Set<number>;
  /** What came since its state is being read. */
  held?: Heard[];
}

export interface PeersOptions {
  mirror: LedgerMirror;
  counts: LedgerCounts;
  clock: () => number;
  /** Of silence. */
  ttlMs: number;
  read: (gateway: string) => Promise<string | undefined>;
  /** Asks all gateways for their states. */
  ask: () => void;
}

export class Peers {
  readonly #options: PeersOptions;
  readonly #peers = new Map<string, Peer>();
  #mirrored = 0;
  #held = 0;

  constructor(options: PeersOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#peers.size;
  }

  get mirrored(): number {
    return this.#mirrored;
  }

  hear(message: Message): void {
    const { counts, clock } = this.#options;
    const heard = { ...message, heardMs: clock() };
    const peer = this.#peers.get(message.gateway) ?? this.#meet(heard);
    if (peer === undefined) {
      counts.ignored += 1;
      return;
    }
    peer.heardMs = heard.heardMs;
    if (message.body === 'bye') this.#forget(peer);
    else if (peer.held === undefined) this.#take(peer, heard);
    else this.#hold(peer.held, heard);
  }

  /** Those that were silent for too long are gone. */
  sweep(): void {
    const { counts, clock, ttlMs } = this.#options;
    const leastMs = clock() - ttlMs;
    for (const peer of this.#peers.values()) {
      if (peer.heardMs >= leastMs) continue;
      counts.lost += 1;
      this.#forget(peer);
    }
  }

  clear(): void {
    for (const peer of this.#peers.values()) this.#forget(peer);
  }

  #meet({ gateway: id, heardMs, body }: Heard): Peer | undefined {
    if (this.#peers.size >= MOST_GATEWAYS || body === 'bye') return undefined;
    const peer: Peer = { id, heardMs, number: 0, whole: false, requests: new Set() };
    this.#peers.set(id, peer);
    return peer;
  }

  /** Beyond the most, the gap is seen when the next one is taken. */
  #hold(held: Heard[], heard: Heard): void {
    const size = sizeOf(heard);
    if (this.#held + size > MOST_HELD) {
      this.#options.counts.dropped += size;
      return;
    }
    this.#held += size;
    held.push(heard);
  }

  #take(peer: Peer, { number, body, heardMs }: Heard): void {
    const { counts } = this.#options;
    if (body === 'state') {
      if (number !== peer.number) this.#miss(peer);
      if (!peer.whole) void this.#read(peer);
    } else if (Array.isArray(body)) {
      if (number <= peer.number) {
        counts.ignored += 1;
        return;
      }
      if (number !== peer.number + 1 && this.#miss(peer)) this.#options.ask();
      peer.number = number;
      for (const operation of body) this.#apply(peer, operation, heardMs);
    }
  }

  /** False where that was known. */
  #miss(peer: Peer): boolean {
    if (!peer.whole) return false;
    peer.whole = false;
    this.#options.counts.gaps += 1;
    return true;
  }

  #apply(peer: Peer, operation: Operation, heardMs: number): void {
    const { mirror, clock } = this.#options;
    if (operation[0] === 'dispatched') {
      const [, ...sent] = operation;
      this.#enter(peer, sent, clock() - heardMs);
    } else if (operation[0] === 'first') {
      // What is shared is prefill: nothing is told of the request after that.
      if (!peer.requests.has(operation[1])) return;
      mirror.firstToken(keyOf(peer, operation[1]));
      this.#end(peer, operation[1], 'finished');
    } else {
      this.#end(peer, operation[1], operation[0]);
    }
  }

  #enter(peer: Peer, [request, engine, promptTokens, streams, ageMs]: Sent, sinceMs: number): void {
    const { mirror, counts } = this.#options;
    if (peer.requests.has(request)) return;
    if (this.#mirrored >= MOST_REQUESTS) {
      counts.dropped += 1;
      return;
    }
    const mirrored = { promptTokens, streams: streams === 1, ageMs: ageMs + sinceMs };
    if (!mirror.dispatched(keyOf(peer, request), engine, mirrored)) {
      counts.unknownEngines += 1;
      return;
    }
    peer.requests.add(request);
    this.#mirrored += 1;
  }

  #end(peer: Peer, request: number, how: 'finished' | 'failed'): void {
    if (!peer.requests.delete(request)) return;
    this.#mirrored -= 1;
    this.#options.mirror.ended(keyOf(peer, request), how);
  }

  #forget(peer: Peer): void {
    this.#peers.delete(peer.id);
    for (const request of peer.requests) this.#end(peer, request, 'failed');
  }

  async #read(peer: Peer): Promise<void> {
    const { counts, clock } = this.#options;
    const held: Heard[] = [];
    peer.held = held;
    counts.reads += 1;
    const askedMs = clock();
    // Where it cannot be read, the channel is lost, or the gateway has gone.
    const text = await this.#options.read(peer.id).catch(() => undefined);
    delete peer.held;
    for (const message of held) this.#held -= sizeOf(message);
    if (this.#peers.get(peer.id) !== peer) return;
    const state = text === undefined ? undefined : decodeState(peer.id, text);
    if (state !== undefined) this.#reconcile(peer, state, clock() - askedMs);
    else if (text !== undefined) counts.ignored += 1;
    for (const message of held) {
      // One of them may make it be read again.
      if (peer.held === undefined) this.#take(peer, message);
      else this.#hold(peer.held, message);
    }
  }

  #reconcile(peer: Peer, { number, requests }: State, sinceMs: number): void {
    // An old one, from before it said so.
    if (number < peer.number) return;
    const present = new Set(requests.map(([request]) => request));
    for (const request of peer.requests) {
      if (!present.has(request)) this.#end(peer, request, 'finished');
    }
    // Those that have waited longest come first, as they do in the ledger.
    for (const sent of requests.sort((a, b) => b[4] - a[4])) this.#enter(peer, sent, sinceMs);
    peer.number = number;
    peer.whole = true;
  }
}

/** An empty message takes memory too. */
function sizeOf({ body }: Heard): number {
  return 1 + (Array.isArray(body) ? body.length : 0);
}

function keyOf({ id }: Peer, request: number): string {
  return `${id}:${request}`;
}
