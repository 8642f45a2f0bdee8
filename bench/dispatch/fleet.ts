/**
 * A fleet of data-parallel engines that step together, simple enough to be read: what dispatch can make better or worse, and
 * nothing else. Each step every engine prefills a chunk, first come first served, and decodes one token of every running
 * request; the step takes as long as its slowest engine. A request needs room in the KV cache before its prefill begins, and
 * finds the blocks of its prefix that the engine still holds.
 *
 * Gateways dispatch by the product's own Scheduler, from samples that are taken now and then and come late.
 */

import type { DispatchPolicy } from '../../lib/dispatch/types.js';
import { Scheduler } from '../../lib/index.js';
import type { Trace, TraceRequest } from './traces.js';

export interface FleetOptions {
  engines: number;
  /** Of a step, in which an engine prefills up to `chunkTokens`, at so many a second; decoding is in `stepMs`. */
  stepMs: number;
  chunkTokens: number;
  prefillTokensPerSecond: number;
  kvTokens: number;
  policy: DispatchPolicy;
  gateways: number;
  /** What gateways tell each other of what they send comes so much later; not given: they tell each other nothing. */
  toldLateMs?: number;
  /** Samples are taken every so often, and seen so much later. */
  sampleEveryMs: number;
  sampleLateMs: number;
  /** Whether samples say how much prefill waits, as SGLang's do and vLLM's do not. */
  tellsPrefill: boolean;
  streams: boolean;
  /** Mean arrivals as a share of what the fleet can prefill; the trace's arrivals are scaled. */
  utilisation: number;
  seed: number;
}

export interface FleetResult {
  /** ms, of all requests. */
  ttftMs: Float64Array;
  /** The longest backlog of an engine, in ms of prefill, over time: mean, and 99th percentile. */
  meanLongestMs: number;
  p99LongestMs: number;
}

interface Running {
  index: number;
  request: TraceRequest;
  uncachedTokens: number;
  leftTokens: number;
  outputLeft: number;
  admitted: boolean;
  gateway: number;
}

class Engine {
  waiting: Running[] = [];
  running: Running[] = [];
  usedTokens = 0;
  backlogTokens = 0;
  /** The first of a Map is the one that was used longest ago. */
  readonly cached = new Map<number, true>();

  constructor(private readonly options: FleetOptions) {}

  add(one: Running): void {
    this.waiting.push(one);
    this.backlogTokens += one.request.promptTokens;
  }

  /** Prefills one chunk; returns its tokens, and gives to `first` whose prefill is done. */
  prefill(first: (done: Running) => void): number {
    let left = this.options.chunkTokens;
    let done = 0;
    while (left > 0 && this.waiting.length > 0) {
      const head = this.waiting[0]!;
      if (!head.admitted && !this.admit(head)) break;
      const tokens = Math.min(left, head.leftTokens);
      head.leftTokens -= tokens;
      left -= tokens;
      done += tokens;
      this.backlogTokens -= tokens;
      if (head.leftTokens > 0) break;
      this.waiting.shift();
      this.running.push(head);
      this.remember(head.request);
      first(head);
    }
    return done;
  }

  /** One token of each running request. */
  decode(finished: (done: Running) => void): void {
    this.running = this.running.filter((one) => {
      one.outputLeft -= 1;
      if (one.outputLeft > 0) return true;
      this.usedTokens -= one.request.promptTokens + one.request.outputTokens;
      finished(one);
      return false;
    });
  }

  private admit(one: Running): boolean {
    const { promptTokens, outputTokens, prefixHashes } = one.request;
    const needed = promptTokens + outputTokens;
    // One that is larger than the cache alone still runs.
    if (this.usedTokens + needed > this.options.kvTokens && this.usedTokens > 0) return false;
    this.usedTokens += needed;
    one.admitted = true;
    let blocks = 0;
    while (blocks < (prefixHashes?.length ?? 0) && this.cached.has(prefixHashes![blocks]!)) blocks += 1;
    const cached = blocks === 0 ? 0 : Math.floor((promptTokens * blocks) / prefixHashes!.length);
    one.uncachedTokens = Math.max(1, promptTokens - cached);
    one.leftTokens = one.uncachedTokens;
    this.backlogTokens -= promptTokens - one.uncachedTokens;
    return true;
  }

  private remember({ promptTokens, prefixHashes = [] }: TraceRequest): void {
    const most = Math.floor(this.options.kvTokens / (promptTokens / Math.max(1, prefixHashes.length)));
    for (const block of prefixHashes) {
      this.cached.delete(block);
      this.cached.set(block, true);
    }
    for (const block of this.cached.keys()) {
      if (this.cached.size <= most) break;
      this.cached.delete(block);
    }
  }
}

/** What an engine can prefill a second when it never waits for another one. */
export function capacity({ chunkTokens, stepMs, prefillTokensPerSecond }: FleetOptions): number {
  return (chunkTokens * 1000) / (stepMs + (chunkTokens * 1000) / prefillTokensPerSecond);
}

export function runFleet(trace: Trace, options: FleetOptions): FleetResult {
  let nowMs = 0;
  const engines = Array.from({ length: options.engines }, () => new Engine(options));
  const rate = capacity(options);
  const gateways = Array.from(
    { length: options.gateways },
    (_, n) =>
      new Scheduler({
        engines: Array.from({ length: options.engines }, () => ({ kvTokens: options.kvTokens })),
        policy: options.policy,
        prefillTokensPerSecond: rate,
        gateways: options.gateways,
        seed: options.seed + n,
        clock: () => nowMs,
      }),
  );
  const told: { atMs: number; to: Scheduler; tell: (other: Scheduler) => void }[] = [];
  /** `tell` is what a gateway does; the others learn of it later. */
  const tellOthers = (of: number, timeMs: number, tell: (other: Scheduler) => void) => {
    if (options.toldLateMs === undefined) return;
    for (const [n, to] of gateways.entries()) {
      if (n !== of) told.push({ atMs: timeMs + options.toldLateMs, to, tell });
    }
    told.sort((a, b) => a.atMs - b.atMs);
  };
  const learn = (timeMs: number) => {
    while (told.length > 0 && told[0]!.atMs <= timeMs) {
      const { to, tell } = told.shift()!;
      tell(to);
    }
  };
  const requests = scaled(trace.requests, options, rate);
  const ttftMs = new Float64Array(requests.length);
  const longest: { ms: number; forMs: number }[] = [];
  const late: { atMs: number; samples: Parameters<Scheduler['observe']>[0] }[] = [];
  let nextSampleMs = 0;
  let next = 0;
  let ended = 0;
  while (ended < requests.length) {
    const idle = engines.every(({ waiting, running }) => waiting.length + running.length === 0);
    if (idle && next < requests.length) nowMs = Math.max(nowMs, requests[next]!.arrivalMs);
    while (nextSampleMs <= nowMs) {
      late.push({
        atMs: nextSampleMs + options.sampleLateMs,
        samples: sampleAll(engines, nextSampleMs, options),
      });
      nextSampleMs += options.sampleEveryMs;
    }
    while (late.length > 0 && late[0]!.atMs <= nowMs) {
      const { samples } = late.shift()!;
      for (const gateway of gateways) gateway.observe(samples);
    }
    while (next < requests.length && requests[next]!.arrivalMs <= nowMs) {
      const request = requests[next]!;
      const gateway = next % options.gateways;
      learn(request.arrivalMs);
      const plain = { id: next, promptTokens: request.promptTokens, streams: options.streams };
      const { prefixHashes } = request;
      const { engine } = gateways[gateway]!.dispatch(
        prefixHashes === undefined ? plain : { ...plain, prefixHashes },
      );
      tellOthers(gateway, request.arrivalMs, (other) => other.dispatched(engine, plain));
      engines[engine]!.add({
        index: next,
        request,
        uncachedTokens: request.promptTokens,
        leftTokens: request.promptTokens,
        outputLeft: request.outputTokens,
        admitted: false,
        gateway,
      });
      next += 1;
    }
    const first: Running[] = [];
    const finished: Running[] = [];
    let most = 0;
    for (const engine of engines) {
      engine.decode((one) => finished.push(one));
      most = Math.max(
        most,
        engine.prefill((one) => first.push(one)),
      );
    }
    const tookMs = options.stepMs + (most * 1000) / options.prefillTokensPerSecond;
    const backlog = Math.max(...engines.map(({ backlogTokens }) => backlogTokens));
    longest.push({ ms: (backlog / rate) * 1000, forMs: tookMs });
    nowMs += tookMs;
    for (const one of first) {
      ttftMs[one.index] = nowMs - one.request.arrivalMs;
      if (!options.streams) continue;
      gateways[one.gateway]!.firstToken(one.index);
      tellOthers(one.gateway, nowMs, (other) => other.firstToken(one.index));
    }
    for (const one of finished) {
      gateways[one.gateway]!.finished(one.index);
      tellOthers(one.gateway, nowMs, (other) => other.finished(one.index));
    }
    ended += finished.length;
  }
  learn(Number.POSITIVE_INFINITY);
  for (const gateway of gateways) {
    if (gateway.inFlight !== 0) throw new Error('expected every request to have ended');
  }
  return { ttftMs, ...overTime(longest) };
}

/** The trace's arrivals, closer together or further apart, so that prompts are `utilisation` of what the fleet can prefill. */
function scaled(requests: TraceRequest[], options: FleetOptions, rate: number): TraceRequest[] {
  const tokens = requests.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
  const wantedMs = (tokens / (rate * options.engines * options.utilisation)) * 1000;
  const factor = wantedMs / Math.max(1, requests.at(-1)!.arrivalMs);
  return requests.map((request) => ({ ...request, arrivalMs: request.arrivalMs * factor }));
}

function sampleAll(engines: Engine[], timeMs: number, { kvTokens, tellsPrefill }: FleetOptions) {
  return engines.map(({ usedTokens, running, waiting }, engine) => ({
    engine,
    timeMs,
    kvUsage: Math.min(1, usedTokens / kvTokens),
    // The one whose prefill is under way counts as running, as engines have it.
    running: running.length + waiting.filter(({ admitted }) => admitted).length,
    waiting: waiting.filter(({ admitted }) => !admitted).length,
    ...(tellsPrefill
      ? {
          waitingPrefillTokens: waiting.reduce(
            (sum, { admitted, leftTokens }) => sum + (admitted ? 0 : leftTokens),
            0,
          ),
        }
      : {}),
  }));
}

/** Mean and 99th percentile of a value over time. */
function overTime(values: { ms: number; forMs: number }[]): { meanLongestMs: number; p99LongestMs: number } {
  const total = values.reduce((sum, { forMs }) => sum + forMs, 0);
  const mean = values.reduce((sum, { ms, forMs }) => sum + ms * forMs, 0) / total;
  const sorted = [...values].sort((a, b) => a.ms - b.ms);
  let seen = 0;
  const p99 = sorted.find(({ forMs }) => {
    seen += forMs;
    return seen >= 0.99 * total;
  })!;
  return { meanLongestMs: mean, p99LongestMs: p99.ms };
}
