/**
 * Requests that wait for an engine, and which of them goes next; and the same order as the `priority` field of engines that
 * order their own queue. The order is native/spec/queue_key.h.
 */
import { binding, type NativeQueue } from '../binding.js';
import { checkKeys, count, describe, invalid, oneOf } from '../checks.js';
import type { QueuedRequest, RequestQueueOptions } from './types.js';
import { checkId, checkQueue, checkTime, checkTokens, QUEUE_POLICIES } from './validate.js';

/**
 * Shortest remaining prefill first, with aging: the rank of a request is prefillTokens / agingTokensPerSecond + arrival, least
 * first. Nobody starves: a request with p tokens left is overtaken only by those that arrive less than p / agingTokensPerSecond
 * seconds after it.
 */
export class RequestQueue {
  readonly #native: NativeQueue;
  readonly #clock: () => number;
  readonly #numbers = new Map<string | number, number>();
  /** By number. */
  readonly #ids: (string | number | undefined)[] = [];

  /** @throws GimbalError GIMBAL_INVALID_INPUT, GIMBAL_BINDING */
  constructor(options?: RequestQueueOptions) {
    const { policy, agingTokensPerSecond, clock } = checkQueue(options);
    this.#native = new (binding().NativeQueue)(QUEUE_POLICIES.indexOf(policy), agingTokensPerSecond);
    this.#clock = clock;
  }

  get size(): number {
    return this.#numbers.size;
  }

  /** @throws GimbalError GIMBAL_INVALID_INPUT, also for an id that waits already */
  push(request: QueuedRequest): void {
    checkKeys('request', request, ['id', 'prefillTokens', 'arrivalMs']);
    checkId('request.id', request.id);
    checkTokens('request.prefillTokens', request.prefillTokens);
    if (request.arrivalMs !== undefined) checkTime('request.arrivalMs', request.arrivalMs);
    if (this.#numbers.has(request.id)) {
      throw invalid('request.id', 'an id that does not wait already', describe(request.id));
    }
    const nowMs = this.#clock();
    const number = this.#native.push(request.prefillTokens, request.arrivalMs ?? nowMs, nowMs);
    this.#numbers.set(request.id, number);
    this.#ids[number] = request.id;
  }

  /** The id of the request that goes next, taken out; undefined where none waits. */
  pop(): string | number | undefined {
    const number = this.#native.pop(this.#clock());
    return number < 0 ? undefined : this.#forget(number);
  }

  /** The id of the request that goes next, left where it is. */
  peek(): string | number | undefined {
    const number = this.#native.peek(this.#clock());
    return number < 0 ? undefined : this.#ids[number];
  }

  /** The request's remaining prefill has changed. Returns false where no such request waits. */
  update(id: string | number, prefillTokens: number): boolean {
    checkTokens('prefillTokens', prefillTokens);
    const number = this.#numbers.get(id);
    if (number !== undefined) this.#native.update(number, prefillTokens);
    return number !== undefined;
  }

  cancel(id: string | number): boolean {
    const number = this.#numbers.get(id);
    if (number === undefined) return false;
    this.#native.remove(number);
    this.#forget(number);
    return true;
  }

  #forget(number: number): string | number {
    const id = this.#ids[number]!;
    this.#ids[number] = undefined;
    this.#numbers.delete(id);
    return id;
  }
}

/** What orders a request in an engine's own queue. */
export interface RankedRequest {
  prefillTokens: number;
  arrivalMs: number;
}

export interface EnginePriorityOptions {
  /** As of the queue in front. Default 4,000. */
  agingTokensPerSecond?: number;
  /** The time that priorities count from, e.g. when the gateway started: so they stay small. Default 0. */
  sinceMs?: number;
  /** The longest prompt that the model takes. Default 131,072. */
  maxPrefillTokens?: number;
  /** SGLang stops a running request for one whose priority is better by so much. Default 10, as there. */
  preemptionThreshold?: number;
}

const DEFAULT_MOST_PREFILL = 131_072;
const DEFAULT_PREEMPTION_THRESHOLD = 10;

/**
 * The rank as an engine's `priority` field: an integer, the least first for vLLM and the greatest first for SGLang.
 *
 * vLLM preempts only for want of memory, so there it is the rank in ms. SGLang preempts where priorities differ by a threshold:
 * steps are so coarse that two requests differ by less, unless the one arrived that much later. Requests in one step are equals,
 * which engines order by arrival.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT
 */
export function enginePriority(
  request: RankedRequest,
  engine: 'vllm' | 'sglang',
  options: EnginePriorityOptions = {},
): number {
  checkKeys('options', options, [
    'agingTokensPerSecond',
    'sinceMs',
    'maxPrefillTokens',
    'preemptionThreshold',
  ]);
  const { sinceMs = 0, maxPrefillTokens = DEFAULT_MOST_PREFILL } = options;
  const { preemptionThreshold = DEFAULT_PREEMPTION_THRESHOLD } = options;
  const { agingTokensPerSecond } = checkQueue(
    options.agingTokensPerSecond === undefined ? {} : { agingTokensPerSecond: options.agingTokensPerSecond },
  );
  checkTokens('request.prefillTokens', request.prefillTokens);
  checkTime('request.arrivalMs', request.arrivalMs);
  checkTime('options.sinceMs', sinceMs);
  checkTokens('options.maxPrefillTokens', count('options.maxPrefillTokens', maxPrefillTokens));
  if (count('options.preemptionThreshold', preemptionThreshold) < 2) {
    throw invalid('options.preemptionThreshold', 'an integer of at least 2', describe(preemptionThreshold));
  }
  const kind = oneOf('engine', engine, ['vllm', 'sglang']);
  const prefillMs = (Math.min(request.prefillTokens, maxPrefillTokens) / agingTokensPerSecond) * 1000;
  const rankMs = prefillMs + request.arrivalMs - sinceMs;
  if (kind === 'vllm') return Math.floor(rankMs);
  const longestMs = (maxPrefillTokens / agingTokensPerSecond) * 1000;
  // Rounding adds up to one step to a difference.
  const stepMs = longestMs / (preemptionThreshold - 1);
  return 0 - Math.floor(rankMs / stepMs);
}
