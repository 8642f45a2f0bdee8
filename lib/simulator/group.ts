/**
 * Ranks that step together: each plans its batch, the step takes as long as its slowest part on any of them, and ranks without
 * work do a dummy batch of one token. Rearrangements of experts happen between steps of the group.
 */
import type { Engine } from './engine.js';
import { ExpertLoad } from './expert-load.js';
import type { RequestColumns } from './requests.js';
import type { RoutingTables } from './routing.js';
import type { GroupShape, StepTimer } from './step-time.js';

const MICROS_PER_MILLI = 1000;

export interface StepFigures {
  ms: number;
  /** Waited for experts and their collectives; for experts alone; and what that had been, were their work even over the GPUs. */
  moeMs: number;
  expertMs: number;
  evenExpertMs: number;
  engineImbalance: number;
  expertImbalance: number;
}

export class Group {
  readonly load: ExpertLoad;
  /** NaN where no step is under way. */
  endsMs = Number.NaN;
  steps = 0;
  dummySteps = 0;
  prefillTokens = 0;
  decodeTokens = 0;
  /** Of the group's own GPUs, those that are lost. */
  readonly deadGpus = new Set<number>();
  readonly #stands: number;
  readonly #shape: GroupShape;

  constructor(
    readonly engines: readonly Engine[],
    readonly timer: StepTimer,
    /** Layers that each layer whose experts are simulated stands for. */
    stands: number,
    tables: RoutingTables,
    shape: GroupShape,
    placement: Int32Array,
    seed: number,
  ) {
    this.#stands = stands;
    this.#shape = shape;
    this.load = new ExpertLoad(tables, shape, placement, seed);
  }

  get hasWork(): boolean {
    return this.engines.some((engine) => engine.hasWork);
  }

  /** A step is under way, or is about to follow the one that has just ended: planned ahead, it takes up nothing new. */
  get isBusy(): boolean {
    return !Number.isNaN(this.endsMs) || this.engines.some(({ running }) => running > 0);
  }

  /** A rank stands while one of its GPUs is lost. */
  isOut(rank: number): boolean {
    if (this.deadGpus.size === 0) return false;
    const { tensorParallel } = this.#shape;
    return [...this.deadGpus].some((gpu) => Math.floor(gpu / tensorParallel) === rank);
  }

  /** Plans and times a step that begins now. */
  start(nowMs: number, requests: RequestColumns): StepFigures {
    let most = 0;
    let sum = 0;
    let attention = 0;
    let sampled = 0;
    let live = 0;
    for (const [rank, engine] of this.engines.entries()) {
      if (this.isOut(rank)) continue;
      live += 1;
      engine.plan();
      const { decodes, prefillTokens } = engine.batch;
      const tokens = decodes + prefillTokens;
      sum += tokens;
      this.prefillTokens += prefillTokens;
      this.decodeTokens += decodes;
      if (tokens === 0) this.dummySteps += 1;
      most = Math.max(most, tokens, 1);
      attention = Math.max(attention, this.timer.attention(engine.batch));
      sampled = Math.max(sampled, engine.batch.sampled);
    }
    this.#addChunks(requests, 1);
    // Captured graphs need equal sizes; larger batches run without, each rank with what it has.
    const { padUpToTokens } = this.#shape;
    const padded = most <= padUpToTokens ? live * most : Math.max(sum, live);
    const experts = this.load.step(this.timer, sum, padded, most);
    this.#addChunks(requests, -1);
    const stands = this.#stands;
    const micros = this.timer.step(attention, most, stands * experts.micros, sampled);
    this.endsMs = nowMs + micros / MICROS_PER_MILLI;
    this.steps += 1;
    return {
      ms: micros / MICROS_PER_MILLI,
      moeMs: (stands * experts.micros) / MICROS_PER_MILLI,
      expertMs: (stands * experts.expertMicros) / MICROS_PER_MILLI,
      evenExpertMs: (stands * experts.evenMicros) / MICROS_PER_MILLI,
      engineImbalance: sum > 0 ? (most * live) / sum : 1,
      expertImbalance: experts.imbalance,
    };
  }

  /** Prefill is in the batch for this step only; decodes stay in it. */
  #addChunks(requests: RequestColumns, sign: 1 | -1): void {
    for (const [rank, engine] of this.engines.entries()) {
      for (const { id, tokens } of engine.chunks) this.load.add(rank, requests.profile[id]!, sign * tokens);
    }
  }

  complete(): void {
    this.endsMs = Number.NaN;
    for (const engine of this.engines) engine.complete();
  }
}
