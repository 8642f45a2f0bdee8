/** What engines tell of the blocks in their KV caches, and what following it takes. Times are milliseconds. */
import type { ServerState } from './types.js';

/** An engine's own name of a block: an integer, or bytes as a string of one character each. */
export type KvBlockHash = bigint | string;

export interface KvBlocksStored {
  kind: 'stored';
  /** [blocks] One after the other. */
  hashes: readonly KvBlockHash[];
  /** The block before the first of them; missing where they begin a prompt. */
  parent?: KvBlockHash;
  /** [blocks][blockSize]; missing where they are not plain ids below 2³² (pairs, say). */
  tokenIds?: readonly number[];
  blockSize: number;
  /** The adapter that they were computed with: its name, or `#` and its number. */
  lora?: string;
  /** Where they lie. */
  medium?: string;
  /** Of a model with several kinds of attention, the group of layers. */
  group?: number;
  groupKind?: string;
  /** [blocks] What else a block hangs on beside its tokens (pictures, a salt); undefined where nothing. */
  extras?: readonly (string | undefined)[];
}

export interface KvBlocksRemoved {
  kind: 'removed';
  hashes: readonly KvBlockHash[];
  medium?: string;
  group?: number;
}

export interface KvBlocksCleared {
  kind: 'cleared';
}

export type KvEvent = KvBlocksStored | KvBlocksRemoved | KvBlocksCleared;

export interface KvEventBatch {
  events: KvEvent[];
  /** Events of kinds that are not known here, which are left out. */
  unknownEvents: number;
}

export interface KvBlockIndexOptions {
  /** How many; they are known by their numbers. */
  engines: number;
  /** Blocks that are kept of one engine; what comes beyond is not counted as cached. Default 262,144. */
  maxBlocks?: number;
}

export interface CachedTokensOptions {
  /** The adapter of the request, as the engine names it. Default: none. */
  lora?: string;
}

/** What is known of one engine, in blocks. All but the first are totals. */
export interface KvEngineBlocks {
  /** Held now. */
  blocks: number;
  /** Stored, but after a block that is not known, without their tokens, or of another size than the others: they cannot be placed. */
  unplacedBlocks: number;
  /** Told of another medium than the GPU, or of layers that do not keep whole prefixes. */
  ignoredBlocks: number;
  /** Beyond `maxBlocks`. */
  refusedBlocks: number;
}

/** One publisher: one DP rank. */
export interface KvEventSource {
  /** Where it publishes, e.g. `tcp://engine-0:5557`; the ports of further DP ranks follow. */
  endpoint: string;
  /** Where it sends again what was missed, e.g. `tcp://engine-0:5558`. Without it, a gap empties what is known of the engine. */
  replayEndpoint?: string;
  /** The scheduler's number of the engine. */
  engine: number;
  /** What the topics that count begin with. Default: all. */
  topic?: string;
}

export interface KvSourceStatus extends KvEngineBlocks {
  source: KvEventSource;
  state: ServerState;
  reason: string;
  /** Batches that were taken, those that were sent again included. */
  batches: number;
  /** Times that batches were missing, */
  gaps: number;
  /** that the publisher began anew, */
  restarts: number;
  /** and that what was known of the engine was dropped, for these or other reasons. */
  resets: number;
  unknownEvents: number;
}

export interface KvEventFeedOptions {
  sources: readonly KvEventSource[];
  /** The scheduler's. Default: one more than the greatest engine of the sources. */
  engines?: number;
  /** As of `KvBlockIndex`. */
  maxBlocks?: number;
  /** For each message that is sent again. Default 2,000. */
  replayTimeoutMs?: number;
  /** Called where the state changes. */
  onState?(source: KvEventSource, state: 'ok' | 'failing', reason: string): void;
}
