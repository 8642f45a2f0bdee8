/**
 * How long a step takes: attention, dense products, experts and collectives of one lockstep group, from what each rank has in
 * its batch. docs/SIMULATION.md has the formulas. Times in here are µs.
 */
import type { ReplicaChoice } from '../types.js';
import { elementBytes, type Gemm, type Link, type ServedModel, type ServingHardware } from './hardware.js';
import { type Grid, lookUp, type ProfileTables } from './tables.js';
import type { SimulatedAllToAll } from './types.js';

/** What a rank computes in a step. */
export interface Batch {
  decodes: number;
  /** Cached tokens that the decodes look at, summed. */
  decodeContext: number;
  prefillTokens: number;
  /** Σ p·(p + 2c) over chunks of p tokens after a context of c. */
  prefillWork: number;
  chunks: number;
  /** Rows that a token is sampled from. */
  sampled: number;
}

export interface GroupShape {
  /** Data-parallel ranks of a group. */
  ranks: number;
  tensorParallel: number;
  nodes: number;
  allToAll: SimulatedAllToAll;
  /** What the engine does between steps happens while the step before runs. */
  hidesStep: boolean;
  padUpToTokens: number;
  replicaChoice: ReplicaChoice;
}

const MICROS_PER_TERA = 1e-6;
const MICROS_PER_GIGA = 1e-3;
/** Added to p + 2c in the work of a prefill chunk: what its blocks waste, fitted. */
const PREFILL_WASTE = 566;
const BLOCK_TOKENS_FEW = 16;
const BLOCK_TOKENS_MANY = 64;
const FEW_TOKENS = 128;
const ACTIVATION_BYTES = 2;
/** Softmax and top k of the router's logits, where norms and the like are measured apart. */
const CHOICE_MICROS = 5;

export class StepTimer {
  readonly #model: ServedModel;
  readonly #hardware: ServingHardware;
  readonly #tables: ProfileTables;
  readonly #shape: GroupShape;
  /** By tokens of a rank: what a layer takes besides attention, experts and collectives. */
  readonly #moeLayer = new Map<number, number>();
  readonly #denseLayer = new Map<number, number>();
  readonly #corrections = new Map<number, number>();
  readonly #link: { allToAll: Link; allGather: Link; reduceScatter: Link };
  /** Of the links, what is left beside a transfer of weights. */
  linkShare = 1;

  constructor(model: ServedModel, hardware: ServingHardware, tables: ProfileTables, shape: GroupShape) {
    this.#model = model;
    this.#hardware = hardware;
    this.#tables = tables;
    this.#shape = shape;
    const perNode = (shape.ranks * shape.tensorParallel) / shape.nodes;
    this.#link = hardware.links.find(({ gpus }) => gpus >= perNode) ?? hardware.links.at(-1)!;
  }

  /** One layer's attention on one rank. */
  attention(batch: Batch): number {
    const { attention } = this.#tables;
    return attention === undefined || this.#shape.tensorParallel > 1
      ? this.#attentionFit(batch)
      : this.#attentionTable(batch);
  }

  #attentionFit({ decodes, decodeContext, prefillTokens, prefillWork, chunks }: Batch): number {
    const { attention } = this.#hardware;
    const { layers, queryHeads, headSize, keyValueHeads, keyValueBytesPerToken } = this.#model;
    const split = this.#shape.tensorParallel;
    let micros = 0;
    const measured = split === 1 ? this.#tables.decodeAttention : undefined;
    if (decodes > 0 && measured !== undefined) {
      micros += lookUp(measured, decodes, decodeContext / decodes);
    } else if (decodes > 0) {
      const bytes =
        keyValueBytesPerToken / layers / (keyValueHeads === 0 ? 1 : Math.min(split, keyValueHeads));
      const flops = this.#model.latentFlopsPerToken / split;
      const perToken = Math.max(
        (bytes * MICROS_PER_TERA) / attention.decodeTBps,
        (flops * MICROS_PER_TERA) / attention.prefillTflops,
      );
      micros += attention.decodeMicros + attention.sequenceMicros * decodes + perToken * decodeContext;
    }
    if (chunks > 0) {
      const work = prefillWork + PREFILL_WASTE * prefillTokens;
      const flops = (2 * queryHeads * headSize * work) / split;
      micros += attention.prefillMicros * chunks + (flops * MICROS_PER_TERA) / attention.prefillTflops;
    }
    return micros;
  }

  /**
   * Tables know one chunk. Several are one of their sum where that has the same work with some context before it; where they
   * are so short that it has more, one of their mean length, and what each further one adds to it.
   */
  #attentionTable({ decodes, decodeContext, prefillTokens, prefillWork }: Batch): number {
    const table = this.#tables.attention!;
    const context = decodes === 0 ? 0 : decodeContext / decodes;
    if (prefillTokens === 0) return decodes === 0 ? 0 : lookUp(table, 0, 0, decodes, context);
    const reach = prefillWork / prefillTokens;
    const chunk = Math.min(prefillTokens, this.#tables.largestChunk!);
    if (reach >= chunk) {
      const once = lookUp(table, chunk, (reach - chunk) / 2, decodes, context);
      const again = prefillTokens / chunk - 1;
      return again === 0 ? once : once + again * lookUp(table, chunk, (reach - chunk) / 2, 0, 0);
    }
    const further = Math.max(0, lookUp(table, reach, 0, 0, 0) - lookUp(table, 0, 0, 1, 1));
    return lookUp(table, reach, 0, decodes, context) + (prefillTokens / reach - 1) * further;
  }

  /** A layer besides attention, experts and their collectives, for a rank padded to `tokens`. */
  layer(tokens: number, hasExperts: boolean): number {
    const known = hasExperts ? this.#moeLayer : this.#denseLayer;
    let micros = known.get(tokens);
    if (micros === undefined) {
      micros = this.#layer(tokens, hasExperts);
      known.set(tokens, micros);
    }
    // Not kept with the rest: a transfer of weights slows links for a while.
    return micros + this.#allReduce(tokens) * (hasExperts ? 1 : 2);
  }

  /** What stays the same for so many tokens. */
  #layer(tokens: number, hasExperts: boolean): number {
    const { layerMicros } = this.#hardware;
    const { attention, shared, dense } = this.#model;
    const rest = (hasExperts ? shared : dense).reduce((sum, gemm) => sum + this.#gemm(gemm, tokens), 0);
    const measured = this.#tables.dense;
    if (measured === undefined || this.#shape.tensorParallel > 1) {
      return layerMicros + rest + attention.reduce((sum, gemm) => sum + this.#gemm(gemm, tokens), 0);
    }
    const small = (count: number) =>
      ['layernorm', 'layernorm', 'qk_norm', 'rotary_emb'].reduce(
        (sum, name) => sum + timeOf(measured, name, count),
        0,
      );
    const large = ['qkv_proj', 'o_proj'].reduce((sum, name) => sum + timeOf(measured, name, tokens), 0);
    // Norms and rotary embedding are measured; of the constant, only the router's choice is left.
    return small(tokens) + large + CHOICE_MICROS + rest;
  }

  #gemm({ rows, columns, split }: Gemm, tokens: number): number {
    const { gemm } = this.#hardware;
    const own = rows * columns * (split ? 1 / this.#shape.tensorParallel : 1);
    const bytes = own * elementBytes(this.#model) + tokens * (rows + columns) * ACTIVATION_BYTES;
    const memory = (bytes * MICROS_PER_TERA) / gemm.TBps;
    const compute = (2 * tokens * own * MICROS_PER_TERA) / gemm.tflops;
    return gemm.micros + (memory ** gemm.power + compute ** gemm.power) ** (1 / gemm.power);
  }

  /** Experts of one GPU in one layer: `active` of them are hit, by `pairs` (token, expert) pairs; `tokens` of the group. */
  experts(active: number, pairs: number, tokens: number): number {
    const { topK } = this.#model;
    if (pairs <= 0) return 0;
    if (this.#tables.moe !== undefined) return lookUp(this.#tables.moe, pairs / topK, active);
    return this.#expertsFit(active, pairs, tokens) * this.#expertsCorrection(pairs / topK);
  }

  /** Measured over fitted, for so many tokens on all experts; the fit is for large batches. */
  #expertsCorrection(tokens: number): number {
    const measured = this.#tables.moeByTokens;
    if (measured === undefined) return 1;
    const { experts, topK } = this.#model;
    const whole = Math.max(1, Math.round(tokens));
    let ratio = this.#corrections.get(whole);
    if (ratio === undefined) {
      const active = experts * (1 - (1 - topK / experts) ** whole);
      ratio = lookUp(measured, whole) / this.#expertsFit(active, whole * topK, whole);
      this.#corrections.set(whole, ratio);
    }
    return ratio;
  }

  #expertsFit(active: number, pairs: number, tokens: number): number {
    const { moe } = this.#hardware;
    const { hiddenSize, expertIntermediateSize, expertBytes } = this.#model;
    const block = tokens <= FEW_TOKENS ? BLOCK_TOKENS_FEW : BLOCK_TOKENS_MANY;
    const padded = pairs + (active * moe.padding * block) / 2;
    const memory = (active * expertBytes * MICROS_PER_TERA) / moe.TBps;
    const compute = (padded * 6 * hiddenSize * expertIntermediateSize * MICROS_PER_TERA) / moe.tflops;
    const moved =
      moe.activationTBps === 0
        ? 0
        : (pairs * (4 * hiddenSize + 6 * expertIntermediateSize) * MICROS_PER_TERA) / moe.activationTBps;
    return moe.micros + (memory ** moe.power + compute ** moe.power) ** (1 / moe.power) + moved;
  }

  /** All-gather before and reduce-scatter after the experts: `all` tokens of the ranks, padding included, `most` of one. */
  gatherScatter(all: number, most: number): number {
    const { ranks, nodes, tensorParallel } = this.#shape;
    const reduce = this.#allReduce(most);
    if (ranks === 1) return reduce;
    const { allGather, reduceScatter } = this.#link;
    const bytes = all * this.#model.hiddenSize * ACTIVATION_BYTES;
    const within = (bytes * (ranks - 1)) / ranks;
    const across = (bytes * (nodes - 1)) / nodes / ((ranks * tensorParallel) / nodes);
    const one = ({ micros, GBps }: Link) =>
      micros +
      (nodes > 1 ? this.#hardware.interNodeMicros : 0) +
      Math.max((within * MICROS_PER_GIGA) / GBps, (across * MICROS_PER_GIGA) / this.#hardware.interNodeGBps) /
        this.linkShare;
    return reduce + one(allGather) + one(reduceScatter);
  }

  /** Dispatch and combine of the busiest GPU, which moves so many copies of a token within its node and across nodes. */
  allToAll(within: number, across: number): number {
    const { hiddenSize, precision } = this.#model;
    const { interNodeGBps, interNodeMicros } = this.#hardware;
    const { micros, GBps } = this.#link.allToAll;
    const one = (bytesPerElement: number) => {
      const bytes = hiddenSize * bytesPerElement * MICROS_PER_GIGA;
      const slowest = Math.max((within * bytes) / GBps, (across * bytes) / interNodeGBps);
      return micros + (this.#shape.nodes > 1 ? interNodeMicros : 0) + slowest / this.linkShare;
    };
    return one(precision === 'fp8' ? 1 : 2) + one(2);
  }

  /** Over the GPUs of one rank. */
  #allReduce(tokens: number): number {
    const split = this.#shape.tensorParallel;
    if (split === 1) return 0;
    const { allGather, reduceScatter } = this.#link;
    const bytes = tokens * this.#model.hiddenSize * ACTIVATION_BYTES;
    const moved = (2 * bytes * (split - 1)) / split;
    return (
      Math.max(allGather.micros, reduceScatter.micros) +
      (moved * MICROS_PER_GIGA) / reduceScatter.GBps / this.linkShare
    );
  }

  /**
   * A whole step: the slowest rank's attention in one layer, `most` tokens on the largest rank, experts and collectives of all layers,
   * and `sampled` rows.
   */
  step(attention: number, most: number, experts: number, sampled: number): number {
    const { layers, moeLayers } = this.#model;
    return (
      layers * attention +
      moeLayers * this.layer(most, true) +
      (layers - moeLayers) * this.layer(most, false) +
      experts +
      this.once(sampled)
    );
  }

  /** Once a step, whatever its layers: sampling `rows` tokens, and the engine itself. */
  once(rows: number): number {
    const { vocabulary, hiddenSize } = this.#model;
    const measured = this.#tables.perSequence;
    const head =
      measured === undefined || this.#shape.tensorParallel > 1
        ? this.#gemm({ rows: hiddenSize, columns: vocabulary, split: true }, rows)
        : timeOf(measured, 'lm_head', rows) + timeOf(measured, 'sampler', rows);
    return (this.#shape.hidesStep ? 0 : this.#hardware.stepMicros) + (rows === 0 ? 0 : head);
  }
}

/** 0 where the table has no such kernel. */
function timeOf(tables: Map<string, Grid>, name: string, at: number): number {
  const grid = tables.get(name);
  return grid === undefined ? 0 : lookUp(grid, at);
}
