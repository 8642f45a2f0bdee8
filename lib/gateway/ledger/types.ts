/** What the parts of the shared ledger are to each other. */

/** Where requests of other gateways are entered. */
export interface LedgerMirror {
  /** `key` is new. False where no such engine is known here: nothing more is told of the request. */
  dispatched(key: string, engineName: string, request: MirroredRequest): boolean;
  firstToken(key: string): void;
  /** Once for each key that was taken. */
  ended(key: string, how: 'finished' | 'failed'): void;
}

export interface MirroredRequest {
  promptTokens: number;
  streams: boolean;
  /** Since it was dispatched. */
  ageMs: number;
}

/** Where gateways meet. Nothing is thrown; promises reject where it is not open, or does not answer in time. */
export interface LedgerChannel {
  /** Connects, and again whenever the connection is lost, until `close`. */
  open(listener: ChannelListener): void;
  publish(text: string): Promise<void>;
  /** Of a gateway; it is forgotten after `ttlMs`. Before whatever is published later. */
  write(gateway: string, state: string, ttlMs: number): Promise<void>;
  read(gateway: string): Promise<string | undefined>;
  remove(gateway: string): Promise<void>;
  /** Gives the connection up for this reason, and connects anew. */
  reset(reason: string): void;
  /** The listener is told nothing from the call on; resolves when nothing is left behind. */
  close(): Promise<void>;
}

export interface ChannelListener {
  onOpen(): void;
  onLost(reason: string): void;
  /** What is published, ours too. */
  onMessage(text: string): void;
}

export type SharedLedgerState = 'unknown' | 'ok' | 'failing';

export interface SharedLedgerStatus {
  state: SharedLedgerState;
  reason: string;
  /** Other gateways that are heard of, and their requests that are mirrored here. */
  gateways: number;
  mirrored: number;
  /** From publishing to hearing it; missing until there is one. */
  echoMs?: number;
  /** Since the start. */
  counts: LedgerCounts;
}

/** Counters. */
export interface LedgerCounts {
  published: number;
  received: number;
  /** No message of this version, or one that came before. */
  ignored: number;
  /** Times that messages of a gateway were missing. */
  gaps: number;
  /** States that were read to make up for it. */
  reads: number;
  /** Requests on engines that are not known here. */
  unknownEngines: number;
  /** Requests and operations beyond what is kept in memory. */
  dropped: number;
  /** Gateways that were not heard of any more and did not say goodbye. */
  lost: number;
}
