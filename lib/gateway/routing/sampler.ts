/**
 * Which requests' routing is counted, and the counting, behind the answers. A request is drawn by its id, so that its log line tells
 * whether it was; what its answer says is kept until the answer has been passed on, and then counted a step to a turn of the event loop.
 * What is kept is bounded: beyond the bound samples are dropped, and counted as such.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { mix32 } from '../../random.js';
import type { RoutingStatistics } from '../../statistics/routing-statistics.js';
import type { ServerKind } from '../../telemetry/types.js';
import type { ChosenExperts, ExpertAffinity } from '../affinity.js';
import type { ServerConfig } from '../config.js';
import type { Logger } from '../log.js';
import type { FleetEngine } from '../types.js';
import type { RoutingConfig } from './config.js';
import { countRouted, type RoutedAnswer } from './count.js';
import type { RoutedText } from './filter.js';
import { type Sources, sourceOf, sourcesOf } from './sources.js';

/**
 * What became of a sample. `absent`: the answer had none; `dropped`: too much is kept already, or it is too long; `unusable`: not what
 * the configuration says.
 */
export const SAMPLE_RESULTS = ['counted', 'absent', 'dropped', 'unusable'] as const;
export type SampleResult = (typeof SAMPLE_RESULTS)[number];

export interface RoutingSamplerParts {
  statistics: RoutingStatistics;
  /** Told of answers whose key is known. */
  affinity?: Pick<ExpertAffinity, 'observe'> | undefined;
  log: Logger;
  seed: number;
  onResult(result: SampleResult, tokens: number): void;
}

/** An answer that waits to be counted. */
interface Sample {
  capture: Capture;
  source: number;
  kind: ServerKind;
  cachedTokens: number;
  affinityKey: string | undefined;
}

/** Steps of a text are so long at most, whatever a socket gives. */
const PIECE_BYTES = 64 * 1024;
const UINT32 = 2 ** 32;

export class RoutingSampler {
  readonly #config: RoutingConfig;
  readonly #parts: RoutingSamplerParts;
  #sources: Sources;
  /** Of texts that are kept, bytes. */
  #heldBytes = 0;
  readonly #waiting: Sample[] = [];
  #counting: Promise<void> | undefined;
  #stopped = false;
  /** Why the last one was unusable: told once. */
  #reason: string | undefined;

  constructor(config: RoutingConfig, servers: readonly ServerConfig[], parts: RoutingSamplerParts) {
    this.#config = config;
    this.#parts = parts;
    this.#sources = sourcesOf(servers);
  }

  renew(servers: readonly ServerConfig[]): void {
    this.#sources = sourcesOf(servers);
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  draws(requestId: string): boolean {
    let hash = mix32(this.#parts.seed);
    for (let at = 0; at < requestId.length; at++) hash = mix32(hash ^ requestId.charCodeAt(at));
    return hash / UINT32 < this.#config.share;
  }

  /** For a request on that engine; undefined where its source is not known. */
  capture(target: FleetEngine): Capture | undefined {
    const source = sourceOf(this.#sources, target);
    if (source === undefined || this.#stopped) return undefined;
    return new Capture((bytes, all) => this.#reserve(bytes, all));
  }

  /** Its answer has been passed on. `affinityKey`: what its experts are learned by. */
  count(capture: Capture, target: FleetEngine, cachedTokens: number, affinityKey?: string): void {
    const source = sourceOf(this.#sources, target);
    if (capture.state !== 'whole' || source === undefined) {
      this.#parts.onResult(capture.state === 'dropped' ? 'dropped' : 'absent', 0);
      capture.release();
      return;
    }
    this.#waiting.push({ capture, source, kind: target.server.kind, cachedTokens, affinityKey });
    this.#counting ??= this.#countAll();
  }

  /** Until all that waits is counted. */
  async settled(): Promise<void> {
    while (this.#counting !== undefined) await this.#counting;
  }

  /** What waits is not counted any more. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.settled();
  }

  #reserve(bytes: number, all: number): boolean {
    const { answerBytes, heldBytes } = this.#config;
    if (bytes > 0 && (all > answerBytes || this.#heldBytes + bytes > heldBytes)) return false;
    this.#heldBytes += bytes;
    return true;
  }

  async #countAll(): Promise<void> {
    // Never with the answer that brought it.
    await nextTurn();
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      const { capture, affinityKey, ...about } = next;
      await this.#countOne({ ...about, pieces: capture.pieces }, affinityKey);
      capture.release();
    }
    this.#counting = undefined;
  }

  async #countOne(answer: RoutedAnswer, affinityKey: string | undefined): Promise<void> {
    const { statistics, affinity, onResult, log } = this.#parts;
    const isLearned = affinity !== undefined && affinityKey !== undefined;
    const tell = isLearned ? (chosen: ChosenExperts) => affinity.observe(affinityKey, chosen) : undefined;
    const steps = countRouted(answer, this.#config, statistics, tell);
    try {
      while (!this.#stopped) {
        const step = steps.next();
        if (step.done === true) {
          onResult('counted', step.value);
          return;
        }
        await nextTurn();
      }
    } catch (error) {
      onResult('unusable', 0);
      const reason = error instanceof Error ? error.message : String(error);
      if (reason === this.#reason) return;
      this.#reason = reason;
      log.warn({ source: answer.source, reason }, 'routing of a request cannot be counted');
    }
  }
}

/** The text of one answer, as it comes. */
export class Capture implements RoutedText {
  state: 'none' | 'open' | 'whole' | 'dropped' = 'none';
  pieces: Buffer[] = [];
  #bytes = 0;
  readonly #reserve: (bytes: number, all: number) => boolean;

  constructor(reserve: (bytes: number, all: number) => boolean) {
    this.#reserve = reserve;
  }

  write(piece: Buffer): void {
    if (this.state === 'dropped') return;
    this.state = 'open';
    if (!this.#reserve(piece.length, this.#bytes + piece.length)) {
      this.release();
      this.state = 'dropped';
      return;
    }
    this.#bytes += piece.length;
    for (let at = 0; at < piece.length; at += PIECE_BYTES)
      this.pieces.push(piece.subarray(at, at + PIECE_BYTES));
  }

  end(): void {
    if (this.state === 'open') this.state = 'whole';
  }

  /** Its memory is free again. */
  release(): void {
    this.#reserve(-this.#bytes, 0);
    this.#bytes = 0;
    this.pieces = [];
  }
}
