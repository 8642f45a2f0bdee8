/**
 * One data-parallel rank: continuous batching with chunked prefill over paged KV memory, as vLLM's scheduler has it. Decodes
 * come first, then prefills under way, then waiting requests in the queue's order, within a budget of tokens and of requests.
 * Where blocks run out, the request admitted last is preempted and computed again later.
 *
 * All decodes move by one token a step, so nothing is kept for each of them: a tick counts steps, requests lie in lists by the
 * tick at which they end, and a ring of 16 counts how many need a new block at which tick.
 */
import { RequestQueue } from '../dispatch/request-queue.js';
import type { QueuePolicy } from '../dispatch/types.js';
import { BLOCK_TOKENS, blocksFor, KvCache } from './kv-cache.js';
import type { RequestColumns } from './requests.js';
import type { Batch } from './step-time.js';

export interface EngineLimits {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  kvBlocks: number;
  prefixCaching: boolean;
  asyncScheduling: boolean;
}

export interface EngineEvents {
  firstToken(id: number): void;
  finished(id: number): void;
  /** Tokens of a request that are in every batch from now on, or no more. */
  joins(id: number): void;
  leaves(id: number): void;
  preempted(id: number, computedTokens: number): void;
}

interface Chunk {
  id: number;
  tokens: number;
  context: number;
}

const PHASES = BLOCK_TOKENS - 1;

export class Engine {
  kv: KvCache;
  readonly #requests: RequestColumns;
  readonly #limits: EngineLimits;
  readonly #events: EngineEvents;
  readonly #queue: RequestQueue;
  /** Under asynchronous scheduling: arrived while a step was under way, and so too late for the next one's plan. */
  readonly #late: number[] = [];
  #tick = 0;
  #decodes = 0;
  /** Tokens in the KV cache of all decoding requests. */
  #context = 0;
  /** Requests by the tick at which they have all their tokens; some may have been preempted since. */
  readonly #ends = new Map<number, { id: number; admission: number }[]>();
  /** `[16]`: decoding requests that need a block at ticks of this phase. */
  readonly #needs = new Int32Array(BLOCK_TOKENS);
  /** Admitted and not prefilled, in order. */
  #prefilling: number[] = [];
  /** In order of admission; some may have ended or been preempted since. */
  #admitted: { id: number; admission: number }[] = [];
  /** Of the step that is planned. */
  readonly chunks: Chunk[] = [];
  readonly batch: Batch = {
    decodes: 0,
    decodeContext: 0,
    prefillTokens: 0,
    prefillWork: 0,
    chunks: 0,
    sampled: 0,
  };
  preemptions = 0;
  cachedTokens = 0;
  /** Prefill that waits, what may be cached included. */
  waitingPrefillTokens = 0;

  constructor(
    requests: RequestColumns,
    limits: EngineLimits,
    queue: { policy: QueuePolicy; agingTokensPerSecond?: number },
    clock: () => number,
    events: EngineEvents,
  ) {
    this.#requests = requests;
    this.#limits = limits;
    this.#events = events;
    this.#queue = new RequestQueue({ ...queue, clock });
    this.kv = new KvCache(limits.kvBlocks);
  }

  get waiting(): number {
    return this.#queue.size + this.#late.length;
  }

  get running(): number {
    return this.#decodes + this.#prefilling.length;
  }

  get hasWork(): boolean {
    return this.running + this.waiting > 0;
  }

  /** Released to this engine and not prefilled yet. */
  get unprefilledTokens(): number {
    const { prefillTokens, prefilled } = this.#requests;
    return this.#prefilling.reduce(
      (sum, id) => sum + prefillTokens[id]! - prefilled[id]!,
      this.waitingPrefillTokens,
    );
  }

  /** `isBusy`: the group's next step is planned already. */
  enqueue(id: number, isBusy: boolean): void {
    this.waitingPrefillTokens += this.#requests.prefillTokens[id]!;
    if (isBusy && this.#limits.asyncScheduling) this.#late.push(id);
    else this.#queueUp(id);
  }

  #queueUp(id: number): void {
    const { prefillTokens, arrivalMs } = this.#requests;
    this.#queue.push({ id, prefillTokens: prefillTokens[id]!, arrivalMs: arrivalMs[id]! });
  }

  /** Fills `batch` and `chunks` with the next step. */
  plan(): void {
    this.chunks.length = 0;
    const before = this.preemptions;
    this.#planDecodes();
    let budget = this.#limits.maxNumBatchedTokens - this.#decodes;
    budget = this.#planPrefilling(budget);
    if (this.preemptions === before) this.#planWaiting(budget);
    if (this.chunks.length === 0 && this.#decodes === 0 && this.#prefilling.length > 0) {
      // Prefills alone fill the memory: the last one gives way, so that the others can go on.
      this.#preemptLast();
      this.#planPrefilling(this.#limits.maxNumBatchedTokens);
    }
    for (const id of this.#late) this.#queueUp(id);
    this.#late.length = 0;
    this.#sumBatch();
  }

  #planDecodes(): void {
    const phase = this.#tick & PHASES;
    while (!this.kv.take(this.#needs[phase]!)) this.#preemptLast();
  }

  #planPrefilling(budget: number): number {
    const { prefillTokens, prefilled } = this.#requests;
    let left = budget;
    for (const id of this.#prefilling) {
      if (left === 0) break;
      const wanted = Math.min(left, prefillTokens[id]! - prefilled[id]!);
      left -= this.#chunk(id, Math.min(wanted, this.#roomFor(id)));
    }
    return left;
  }

  /** Prefill tokens for which the request can still get blocks. */
  #roomFor(id: number): number {
    const { prefilled } = this.#requests;
    const started = prefilled[id]! % BLOCK_TOKENS;
    return this.kv.free * BLOCK_TOKENS + (started === 0 ? 0 : BLOCK_TOKENS - started);
  }

  #chunk(id: number, tokens: number): number {
    const { prefilled, blocks } = this.#requests;
    if (tokens <= 0) return 0;
    const context = prefilled[id]!;
    const more = blocksFor(context + tokens) - blocksFor(context);
    if (!this.kv.take(more)) throw new Error('expected room for the blocks of a chunk');
    blocks[id]! += more;
    this.chunks.push({ id, tokens, context });
    return tokens;
  }

  #planWaiting(budget: number): void {
    let left = budget;
    while (left > 0 && this.#queue.size > 0 && this.running < this.#limits.maxNumSeqs) {
      const id = this.#queue.peek() as number;
      if (!this.#admit(id, left)) return;
      this.#queue.pop();
      left -= this.#chunk(
        id,
        Math.min(left, this.#requests.prefillTokens[id]! - this.#requests.prefilled[id]!),
      );
    }
  }

  /** Takes what is cached; whether the first chunk has room beside it. */
  #admit(id: number, budget: number): boolean {
    const { prefillTokens, prefilled, blocks, admissions } = this.#requests;
    const cached = this.#holdCached(id);
    const first = Math.min(budget, prefillTokens[id]! - cached);
    if (blocksFor(cached + first) - blocksFor(cached) > this.kv.free) {
      this.#releaseHeld(id);
      return false;
    }
    prefilled[id] = cached;
    blocks[id] = 0;
    admissions[id]! += 1;
    this.cachedTokens += cached;
    this.waitingPrefillTokens -= prefillTokens[id]!;
    this.#prefilling.push(id);
    this.#admitted.push({ id, admission: admissions[id]! });
    return true;
  }

  /** Holds the known part of the prompt; returns its tokens, in whole KV blocks, and at least one token stays to compute. */
  #holdCached(id: number): number {
    const hashes = this.#requests.hashes(id);
    if (hashes === undefined || !this.#limits.prefixCaching) return 0;
    const known = this.kv.known(hashes);
    const bounds = this.#bounds(id, hashes.length);
    let count = known;
    while (count > 0 && bounds(count) * BLOCK_TOKENS >= this.#requests.prefillTokens[id]!) count--;
    const held = this.#requests.held(id);
    for (let n = 0; n < count; n++) {
      this.kv.hold(hashes[n]!);
      held.push(hashes[n]!);
    }
    return bounds(count) * BLOCK_TOKENS;
  }

  /** KV blocks that the first n of `parts` equal parts of a prompt fill. */
  #bounds(id: number, parts: number): (n: number) => number {
    const tokens = this.#requests.inputTokens[id]!;
    return (n) => Math.floor((tokens * n) / parts / BLOCK_TOKENS);
  }

  #releaseHeld(id: number): void {
    if (this.#requests.hashes(id) === undefined) return;
    for (const hash of this.#requests.takeHeld(id)) this.kv.release(hash);
  }

  #sumBatch(): void {
    const { batch } = this;
    batch.decodes = this.#decodes;
    // A token looks at itself too.
    batch.decodeContext = this.#context + this.#decodes;
    batch.prefillTokens = 0;
    batch.prefillWork = 0;
    batch.chunks = this.chunks.length;
    batch.sampled = this.#decodes;
    const { prefillTokens } = this.#requests;
    for (const { id, tokens, context } of this.chunks) {
      batch.prefillTokens += tokens;
      batch.prefillWork += tokens * (tokens + 2 * context);
      if (context + tokens === prefillTokens[id]!) batch.sampled += 1;
    }
  }

  /** The planned step is done. */
  complete(): void {
    const { prefilled, prefillTokens, generated } = this.#requests;
    this.#tick += 1;
    this.#context += this.#decodes;
    const ends = this.#ends.get(this.#tick);
    if (ends !== undefined) {
      this.#ends.delete(this.#tick);
      for (const { id, admission } of ends) this.#endDecode(id, admission);
    }
    for (const { id, tokens } of this.chunks) {
      prefilled[id]! += tokens;
      if (prefilled[id]! < prefillTokens[id]!) continue;
      this.#prefilling.splice(this.#prefilling.indexOf(id), 1);
      generated[id]! += 1;
      this.#share(id);
      this.#events.firstToken(id);
      if (generated[id] === this.#requests.outputTokens[id]) this.#end(id);
      else this.#startDecode(id);
    }
    this.chunks.length = 0;
    this.#trim();
  }

  #startDecode(id: number): void {
    const { prefillTokens, generated, outputTokens, sinceTick, sinceContext, admissions } = this.#requests;
    const context = prefillTokens[id]!;
    sinceTick[id] = this.#tick;
    sinceContext[id] = context;
    this.#decodes += 1;
    this.#context += context;
    this.#needs[(this.#tick - context) & PHASES]! += 1;
    const end = this.#tick + outputTokens[id]! - generated[id]!;
    const list = this.#ends.get(end);
    const entry = { id, admission: admissions[id]! };
    if (list === undefined) this.#ends.set(end, [entry]);
    else list.push(entry);
    this.#events.joins(id);
  }

  #endDecode(id: number, admission: number): void {
    const { admissions, generated, outputTokens, sinceTick } = this.#requests;
    if (admissions[id] !== admission || sinceTick[id]! < 0) return;
    this.#stopDecode(id);
    generated[id] = outputTokens[id]!;
    this.#end(id);
  }

  /** Out of the batch; its blocks, those that it took while it decoded included, are still its own. */
  #stopDecode(id: number): void {
    const { sinceTick, sinceContext, blocks } = this.#requests;
    const steps = this.#tick - sinceTick[id]!;
    const context = sinceContext[id]! + steps;
    blocks[id]! += blocksFor(context) - blocksFor(sinceContext[id]!);
    this.#decodes -= 1;
    this.#context -= context;
    this.#needs[(sinceTick[id]! - sinceContext[id]!) & PHASES]! -= 1;
    sinceTick[id] = -1;
    this.#events.leaves(id);
  }

  #end(id: number): void {
    this.#free(id);
    this.#events.finished(id);
  }

  #free(id: number): void {
    const { blocks } = this.#requests;
    this.#releaseHeld(id);
    this.kv.give(blocks[id]!);
    blocks[id] = 0;
  }

  /** A prompt that is computed can be found by others. */
  #share(id: number): void {
    const hashes = this.#requests.hashes(id);
    if (hashes === undefined || !this.#limits.prefixCaching) return;
    const held = this.#requests.held(id);
    const bounds = this.#bounds(id, hashes.length);
    for (let n = held.length; n < hashes.length; n++) {
      const blocks = bounds(n + 1) - bounds(n);
      // Another one computed the same meanwhile: what follows stays private too, for it hangs on what stays private here.
      if (!this.kv.share(hashes[n]!, blocks)) return;
      this.#requests.blocks[id]! -= blocks;
      held.push(hashes[n]!);
    }
  }

  #preemptLast(): void {
    const { admissions, sinceTick } = this.#requests;
    for (;;) {
      const last = this.#admitted.pop();
      if (last === undefined) throw new Error('expected a request to preempt');
      if (admissions[last.id] !== last.admission) continue;
      if (sinceTick[last.id]! >= 0 || this.#prefilling.includes(last.id)) {
        this.#preempt(last.id);
        return;
      }
    }
  }

  #preempt(id: number): void {
    this.preemptions += 1;
    this.#events.preempted(id, this.#withdraw(id));
    this.enqueue(id, false);
  }

  /** Takes an admitted request out, with nothing left of it here. Returns the tokens that must be computed again. */
  #withdraw(id: number): number {
    const { sinceTick, sinceContext, generated, prefillTokens, prefilled, inputTokens } = this.#requests;
    if (sinceTick[id]! >= 0) {
      const steps = this.#tick - sinceTick[id]!;
      generated[id]! += steps;
      prefilled[id] = sinceContext[id]! + steps;
      this.#stopDecode(id);
    } else {
      this.#prefilling.splice(this.#prefilling.indexOf(id), 1);
    }
    this.#free(id);
    const computed = prefilled[id]!;
    prefillTokens[id] = inputTokens[id]! + generated[id]!;
    prefilled[id] = 0;
    return computed;
  }

  /** The rank is lost, its cache included. Returns all requests that it had, none of which is here any more. */
  lose(): { id: number; computedTokens: number }[] {
    const lost = this.#stillAdmitted().map(({ id }) => ({ id, computedTokens: this.#withdraw(id) }));
    const waiting = [...this.#late];
    while (this.#queue.size > 0) waiting.push(this.#queue.pop() as number);
    this.#admitted = [];
    this.#ends.clear();
    this.#late.length = 0;
    this.waitingPrefillTokens = 0;
    if (this.kv.used !== 0) throw new Error(`expected no blocks in use, not ${this.kv.used}`);
    this.kv = new KvCache(this.#limits.kvBlocks);
    return [...lost, ...waiting.map((id) => ({ id, computedTokens: 0 }))];
  }

  /** Keeps the list of the admitted short. */
  #trim(): void {
    if (this.#admitted.length < 64 || this.#admitted.length < 2 * this.running) return;
    this.#admitted = this.#stillAdmitted();
  }

  #stillAdmitted(): { id: number; admission: number }[] {
    const { admissions, sinceTick } = this.#requests;
    const prefilling = new Set(this.#prefilling);
    return this.#admitted.filter(
      ({ id, admission }) => admissions[id] === admission && (sinceTick[id]! >= 0 || prefilling.has(id)),
    );
  }
}
