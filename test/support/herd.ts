/**
 * Gateways that send to the same engines, each by a scheduler of its own, over fake timers: how long the longest backlog gets. An
 * engine prefills one request after the other; samples come every 100 ms.
 */
import { vi } from 'vitest';
import { SharedLedger } from '../../lib/gateway/shared-ledger.js';
import { Scheduler } from '../../lib/index.js';
import { draws } from '../../lib/telemetry/pace.js';
import type { FakeBroker } from './ledger-broker.js';

const ENGINES = 8;
const REQUESTS = 1500;
const TOKENS_PER_SECOND = 10_000;
const MEAN_TOKENS = 2000;
const LOAD = 0.8;
const SAMPLE_EVERY_MS = 100;

export interface HerdOptions {
  seed: number;
  gateways: number;
  /** That they share their ledgers by. */
  broker?: FakeBroker;
}

/** Means over all arrivals, ms of prefill. */
export interface Herd {
  longestMs: number;
  /** Between the longest and the shortest. */
  imbalanceMs: number;
}

/** Prefill that is left of what was sent to an engine, in order. */
class Engine {
  #queue: { endMs: number; tokens: number }[] = [];
  #readyMs = 0;

  /** Returns when it will be through with it. */
  add(tokens: number, nowMs: number): number {
    this.#readyMs = Math.max(this.#readyMs, nowMs) + (tokens * 1000) / TOKENS_PER_SECOND;
    this.#queue.push({ endMs: this.#readyMs, tokens });
    return this.#readyMs;
  }

  backlogMs(nowMs: number): number {
    return Math.max(0, this.#readyMs - nowMs);
  }

  sample(engine: number, nowMs: number) {
    this.#queue = this.#queue.filter(({ endMs }) => endMs > nowMs);
    const waiting = this.#queue.slice(1);
    return {
      engine,
      timeMs: nowMs,
      kvUsage: 0,
      running: Math.min(1, this.#queue.length),
      waiting: waiting.length,
      waitingPrefillTokens: waiting.reduce((sum, { tokens }) => sum + tokens, 0),
    };
  }
}

export async function herd({ seed, gateways, broker }: HerdOptions): Promise<Herd> {
  const draw = draws(seed);
  const exponential = (mean: number) => -Math.log(1 - draw()) * mean;
  const clock = () => performance.now();
  const engines = Array.from({ length: ENGINES }, () => new Engine());
  const schedulers = Array.from(
    { length: gateways },
    (_, n) =>
      new Scheduler({
        engines: ENGINES,
        prefillTokensPerSecond: TOKENS_PER_SECOND,
        gateways,
        seed: seed + n,
        clock,
      }),
  );
  const ledgers = broker === undefined ? [] : schedulers.map((scheduler) => ledgerOf(scheduler, broker));
  const sample = () => {
    for (const scheduler of schedulers) {
      scheduler.observe(engines.map((engine, number) => engine.sample(number, clock())));
    }
  };
  sample();
  const sampling = setInterval(sample, SAMPLE_EVERY_MS);
  const everyMs = (MEAN_TOKENS * 1000) / (TOKENS_PER_SECOND * ENGINES * LOAD);
  const herd: Herd = { longestMs: 0, imbalanceMs: 0 };
  for (let n = 0; n < REQUESTS; n += 1) {
    await vi.advanceTimersByTimeAsync(exponential(everyMs));
    const by = Math.floor(draw() * gateways);
    const [scheduler, ledger, id] = [schedulers[by]!, ledgers[by], `r${n}`];
    const request = { id, promptTokens: Math.ceil(exponential(MEAN_TOKENS)), streams: true };
    const { engine } = scheduler.dispatch(request);
    const target = {
      engine,
      name: `${engine}`,
      rank: 0,
      server: { url: '', kind: 'vllm', pins: false, headers: {} },
    } as const;
    ledger?.dispatched(id, target, { ...request, arrivalMs: clock() });
    setTimeout(() => {
      scheduler.firstToken(id);
      scheduler.finished(id);
      ledger?.firstToken(id);
    }, engines[engine]!.add(request.promptTokens, clock()) - clock());
    const backlogs = engines.map((one) => one.backlogMs(clock()));
    herd.longestMs += Math.max(...backlogs) / REQUESTS;
    herd.imbalanceMs += (Math.max(...backlogs) - Math.min(...backlogs)) / REQUESTS;
  }
  clearInterval(sampling);
  const stopped = Promise.all(ledgers.map((ledger) => ledger.stop()));
  await vi.runAllTimersAsync();
  await stopped;
  return herd;
}

function ledgerOf(scheduler: Scheduler, broker: FakeBroker): SharedLedger {
  const ledger = new SharedLedger({
    channel: broker.channel(),
    mirror: {
      dispatched(id, engine, { ageMs, ...request }) {
        scheduler.dispatched(Number(engine), { id, ...request }, ageMs);
        return true;
      },
      firstToken: (id) => scheduler.firstToken(id),
      ended: (id, how) => scheduler[how](id),
    },
  });
  ledger.start();
  return ledger;
}
