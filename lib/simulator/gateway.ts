/**
 * What stands in front of the engines: the product's scheduler, fed with samples and with what becomes of requests. With
 * pacing it holds requests back, in the product's queue, and releases them as engines get through what they have.
 */
import { RequestQueue } from '../dispatch/request-queue.js';
import { Scheduler } from '../dispatch/scheduler.js';
import type { EngineExpertPressure } from '../dispatch/types.js';
import type { CheckedSimulation } from './check.js';
import type { Engine } from './engine.js';
import { BLOCK_TOKENS } from './kv-cache.js';
import type { RequestColumns } from './requests.js';
import type { SimulatedRequest } from './types.js';

export class Gateway {
  readonly #scheduler: Scheduler;
  readonly #engines: readonly Engine[];
  readonly #requests: RequestColumns;
  readonly #trace: readonly SimulatedRequest[];
  readonly #pacing: CheckedSimulation['policy']['pacing'];
  readonly #isBusy: (engine: number) => boolean;
  readonly #expertMs: (id: number) => Float64Array | undefined;
  readonly #held: RequestQueue | undefined;
  #heldTokens = 0;
  /** `[engines]`: released and without a first token yet, as the gateway knows it. */
  readonly #released: Float64Array;
  /** `[requests]`: 1 from the dispatch to the first token after it. */
  readonly #awaited: Uint8Array;

  constructor(
    { policy, shape, engine, seed }: CheckedSimulation,
    engines: readonly Engine[],
    requests: RequestColumns,
    trace: readonly SimulatedRequest[],
    prefillTokensPerSecond: number,
    clock: () => number,
    isBusy: (engine: number) => boolean,
    expertMs: (id: number) => Float64Array | undefined,
  ) {
    this.#expertMs = expertMs;
    this.#isBusy = isBusy;
    this.#engines = engines;
    this.#requests = requests;
    this.#trace = trace;
    this.#pacing = policy.pacing;
    this.#released = new Float64Array(engines.length);
    this.#awaited = new Uint8Array(requests.count);
    this.#scheduler = new Scheduler({
      engines: engines.map((_, n) => ({
        group: Math.floor(n / shape.ranks),
        kvTokens: engine.kvBlocks * BLOCK_TOKENS,
      })),
      ...(typeof policy.dispatch === 'string' ? { policy: policy.dispatch } : { stages: policy.dispatch }),
      ...(policy.weights === undefined ? {} : { weights: policy.weights }),
      prefillTokensPerSecond,
      seed,
      clock,
    });
    if (policy.pacing !== undefined) {
      const { queue, agingTokensPerSecond } = policy;
      this.#held = new RequestQueue({
        policy: queue,
        clock,
        ...(agingTokensPerSecond === undefined ? {} : { agingTokensPerSecond }),
      });
    }
  }

  get held(): number {
    return this.#held?.size ?? 0;
  }

  arrive(id: number): void {
    if (this.#held === undefined) {
      this.#dispatch(id);
      return;
    }
    const { inputTokens, arrivalMs } = this.#requests;
    this.#held.push({ id, prefillTokens: inputTokens[id]!, arrivalMs: arrivalMs[id]! });
    this.#heldTokens += inputTokens[id]!;
  }

  /** Releases what engines have room for, under pacing. */
  release(): void {
    if (this.#held === undefined) return;
    const { leastTokens, backlogShare, mostTokens } = this.#pacing!;
    while (this.#held.size > 0) {
      const share = (backlogShare * this.#heldTokens) / this.#engines.length;
      const allowed = Math.min(mostTokens, Math.max(leastTokens, share));
      const least = this.#released.reduce((a, b) => Math.min(a, b));
      if (least >= allowed) return;
      const id = this.#held.pop() as number;
      this.#heldTokens -= this.#requests.inputTokens[id]!;
      this.#dispatch(id);
    }
  }

  #dispatch(id: number): void {
    const { prefillTokens, engine: engineOf, home } = this.#requests;
    const { prefixHashes, session } = this.#trace[id]!;
    const expertMs = this.#expertMs(id);
    const request = {
      id,
      promptTokens: prefillTokens[id]!,
      ...(prefixHashes === undefined ? {} : { prefixHashes }),
      ...(session === undefined ? {} : { sessionKey: String(session) }),
      ...(expertMs === undefined ? {} : { expertMs }),
    };
    const bound = home[id]!;
    // The ledger knows what is bound, too.
    if (bound >= 0) this.#scheduler.dispatched(bound, request);
    const engine = bound >= 0 ? bound : this.#scheduler.dispatch(request).engine;
    engineOf[id] = engine;
    this.#awaited[id] = 1;
    this.#released[engine]! += this.#requests.inputTokens[id]!;
    this.#engines[engine]!.enqueue(id, this.#isBusy(engine));
  }

  firstToken(id: number): void {
    if (this.#awaited[id] === 0) return;
    this.#settle(id);
    this.#scheduler.firstToken(id);
  }

  #settle(id: number): void {
    this.#released[this.#requests.engine[id]!]! -= this.#awaited[id]! * this.#requests.inputTokens[id]!;
    this.#awaited[id] = 0;
  }

  /** The engine is lost: what it had goes to others, with what it had generated. */
  lost(engine: number, ids: readonly number[]): void {
    this.#scheduler.setState(engine, 'gone');
    for (const id of ids) {
      this.#settle(id);
      this.#scheduler.failed(id);
    }
    this.#scheduler.restarted(engine);
    for (const id of ids) this.#dispatch(id);
  }

  back(engine: number): void {
    this.#scheduler.setState(engine, 'active');
  }

  finished(id: number): void {
    this.#scheduler.finished(id);
  }

  setExpertPressure(pressures: readonly EngineExpertPressure[]): void {
    this.#scheduler.setExpertPressure(pressures);
  }

  observe(timeMs: number, tellsPrefill: boolean): void {
    this.#scheduler.observe(
      this.#engines.map(({ kv, running, waiting, preemptions, waitingPrefillTokens }, engine) => ({
        engine,
        timeMs,
        kvUsage: kv.used / kv.blocks,
        running,
        waiting,
        preemptions,
        ...(tellsPrefill ? { waitingPrefillTokens } : {}),
      })),
    );
  }

  /** Requests that it has not seen the end of. */
  get inFlight(): number {
    return this.#scheduler.inFlight;
  }
}
