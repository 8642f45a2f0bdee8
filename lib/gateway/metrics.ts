/**
 * What the gateway counts: Prometheus' series (prom-client's registry, names under `gimbal_`), and the figures of the last minute
 * that the live page shows. Gauges are read off the fleet when somebody asks.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry, Summary } from 'prom-client';
import type { DispatchReason } from '../dispatch/types.js';
import type { RoutingStatistics } from '../statistics/routing-statistics.js';
import type { AffinityResult, ExpertAffinity } from './affinity.js';
import type { Fleet } from './fleet.js';
import { MinuteSum } from './minute.js';
import type { RoutingSampler, SampleResult } from './routing/sampler.js';
import type { SharedLedger } from './shared-ledger.js';
import type { FleetEngine, GatewaySnapshot, Quantiles } from './types.js';
import type { Usage } from './usage.js';

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const TOKEN_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5];
const WAIT_SECONDS = [0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60];
const ERROR_SHARES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2];
const QUANTILES = [0.5, 0.9, 0.99];
const MINUTE = { maxAgeSeconds: 60, ageBuckets: 6, percentiles: QUANTILES };
const TERMS = ['backlog', 'kv', 'queue', 'moe'] as const;
const STATES = ['active', 'draining', 'asleep', 'gone'] as const;
const REASONS: readonly DispatchReason[] = ['least-pressure', 'all-short-of-kv', 'no-fresh-sample', 'custom'];
const OK_STATUS_BELOW = 400;

export class GatewayMetrics {
  readonly registry = new Registry();
  readonly #requests = this.#counter(
    'requests',
    'Requests that have ended, by what was answered (0: nothing).',
    ['path', 'status'],
  );
  readonly #dispatched = this.#counter('dispatches', 'Requests sent, by engine and reason.', [
    'engine',
    'reason',
  ]);
  readonly #retries = this.#counter('retries', 'Requests sent to another engine after one failed.');
  readonly #refused = this.#counter('refused', 'Requests that no engine took.', ['status']);
  readonly #broken = this.#counter('broken_streams', 'Answers that broke off after a part was passed on.');
  readonly #outputTokens = this.#counter('output_tokens', 'Output tokens passed on.');
  readonly #promptTokens = this.#counter('prompt_tokens', 'Prompt tokens, as engines counted them.');
  readonly #cachedTokens = this.#counter('cached_prompt_tokens', 'Of these, from the prefix cache.');
  readonly #reloads = this.#counter('config_reloads', 'Configurations read while running.', ['result']);
  readonly #samples = this.#counter('routing_samples', 'Answers drawn for their routing.', ['result']);
  readonly #routedTokens = this.#counter('routing_tokens', 'Tokens whose routing was counted from answers.');
  readonly #affinity = this.#counter(
    'affinity_requests',
    'Requests by whether their experts are known, and where they went.',
    ['fingerprint'],
  );
  readonly #pushes = this.#counter('routing_pushes', 'Pushes of counts.', ['result']);
  readonly #duration = this.#histogram(
    'request_duration_seconds',
    'From arrival to the last byte.',
    SECONDS,
    ['path'],
  );
  readonly #firstToken = this.#histogram('time_to_first_token_seconds', 'Of streams, from arrival.', SECONDS);
  readonly #tokenTime = this.#histogram(
    'time_per_output_token_seconds',
    'Of streams, after the first.',
    TOKEN_SECONDS,
  );
  readonly #wait = this.#histogram('queue_wait_seconds', 'In the queue.', WAIT_SECONDS);
  readonly #error = this.#histogram(
    'prompt_estimate_error',
    'Of the estimate of prompt tokens, relative.',
    ERROR_SHARES,
  );
  // Quantiles of the last minute; in no registry, since histograms are there.
  readonly #lately = {
    ttftMs: new LastMinute('ttft_ms'),
    tpotMs: new LastMinute('tpot_ms'),
    queueMs: new LastMinute('queue_ms'),
  };
  readonly #requestRate = new MinuteSum(() => performance.now());
  readonly #tokenRate = new MinuteSum(() => performance.now());
  readonly #promptRate = new MinuteSum(() => performance.now());
  readonly #totals = { requests: 0, finished: 0, failed: 0, refused: 0, retried: 0 };

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  dispatched({ name }: FleetEngine, reason: DispatchReason, waitedMs: number): void {
    this.#dispatched.inc({ engine: name, reason });
    this.#wait.observe(waitedMs / 1000);
    this.#lately.queueMs.observe(waitedMs);
  }

  /** Engines come and go; their series would stay for ever. */
  gone({ name }: FleetEngine): void {
    for (const reason of REASONS) this.#dispatched.remove({ engine: name, reason });
  }

  /** An answered request's prompt, as far as it was not cached, by the estimate where the engine did not count. */
  computed(estimate: number, usage: Usage | undefined): void {
    const { promptTokens = estimate, cachedTokens = 0 } = usage ?? {};
    this.#promptRate.add(Math.max(0, promptTokens - cachedTokens));
  }

  /** That engines compute, over the last minute; undefined where there is none. */
  get tokensPerSecond(): number | undefined {
    const perSecond = this.#promptRate.perSecond + this.#tokenRate.perSecond;
    return perSecond > 0 ? perSecond : undefined;
  }

  firstToken(ms: number): void {
    this.#firstToken.observe(ms / 1000);
    this.#lately.ttftMs.observe(ms);
  }

  counted(estimate: number, { promptTokens, cachedTokens }: Usage): void {
    this.#promptTokens.inc(promptTokens);
    if (cachedTokens !== undefined) this.#cachedTokens.inc(cachedTokens);
    if (promptTokens > 0) this.#error.observe(Math.abs(estimate - promptTokens) / promptTokens);
  }

  /** @param status 0 where nothing was answered */
  ended(path: string, status: number, ms: number): void {
    this.#requests.inc({ path, status: String(status) });
    this.#duration.observe({ path }, ms / 1000);
    this.#requestRate.add(1);
    this.#totals.requests += 1;
    if (status > 0 && status < OK_STATUS_BELOW) this.#totals.finished += 1;
    else this.#totals.failed += 1;
  }

  /** The same, of a request that has been on an engine. `firstTokenMs` of streams alone. */
  answered(path: string, status: number, totalMs: number, outputTokens: number, firstTokenMs?: number): void {
    this.ended(path, status, totalMs);
    if (outputTokens === 0) return;
    this.#outputTokens.inc(outputTokens);
    this.#tokenRate.add(outputTokens);
    if (firstTokenMs === undefined || outputTokens === 1) return;
    const tokenMs = (totalMs - firstTokenMs) / (outputTokens - 1);
    this.#tokenTime.observe(tokenMs / 1000);
    this.#lately.tpotMs.observe(tokenMs);
  }

  retried(): void {
    this.#retries.inc();
    this.#totals.retried += 1;
  }

  refused(status: number): void {
    this.#refused.inc({ status: String(status) });
    this.#totals.refused += 1;
  }

  broken(): void {
    this.#broken.inc();
  }

  reloaded(result: 'ok' | 'failed'): void {
    this.#reloads.inc({ result });
  }

  sampled(result: SampleResult, tokens: number): void {
    this.#samples.inc({ result });
    this.#routedTokens.inc(tokens);
  }

  steered(fingerprint: AffinityResult): void {
    this.#affinity.inc({ fingerprint });
  }

  pushed(result: string): void {
    this.#pushes.inc({ result });
  }

  /** Of how many tenants and sessions something is known. */
  watchAffinity(affinity: Pick<ExpertAffinity, 'keys'>): void {
    this.#gauge('affinity_keys', 'Tenants and sessions whose experts are known.', [], (gauge) => {
      gauge.set(affinity.keys);
    });
  }

  /** What is known of routing. */
  watchRouting(statistics: RoutingStatistics, sampler: RoutingSampler): void {
    this.#gauge('routing_held_bytes', 'Of answers that wait to be counted.', [], (gauge) => {
      gauge.set(sampler.heldBytes);
    });
    this.#gauge('routing_tokens_seen', 'Tokens in the statistics, from wherever.', [], (gauge) => {
      gauge.set(statistics.tokensSeen);
    });
    this.#gauge(
      'routing_confidence',
      'Weight of a source’s own counts in the layer where it is least.',
      [],
      (gauge) => gauge.set(statistics.confidence().layers.reduce((least, one) => Math.min(least, one), 1)),
    );
    this.#gauge('routing_sources', 'Sources by what is known of them.', ['known'], (gauge) => {
      const { thin, unobserved } = statistics.confidence();
      gauge.set({ known: 'thin' }, thin.length);
      gauge.set({ known: 'unobserved' }, unobserved.length);
    });
  }

  /** Gauges of the fleet, as of the scrape. */
  watch(fleet: Fleet): void {
    this.#gauge('engine_pressure_ms', 'Pressure by term.', ['engine', 'term'], (gauge) => {
      for (const engine of fleet.engineSnapshots()) {
        for (const term of TERMS) gauge.set({ engine: engine.name, term }, engine[`${term}Ms`]);
      }
    });
    this.#gauge('engine_in_flight', 'Requests sent and not ended.', ['engine'], (gauge) => {
      for (const { name, inFlight } of fleet.engineSnapshots()) gauge.set({ engine: name }, inFlight);
    });
    this.#gauge('engine_state', '1 for the state that the engine is in.', ['engine', 'state'], (gauge) => {
      for (const { name, state } of fleet.engineSnapshots()) {
        for (const one of STATES) gauge.set({ engine: name, state: one }, one === state ? 1 : 0);
      }
    });
    this.#gauge('engine_sample_age_ms', 'Of the last sample.', ['engine'], (gauge) => {
      for (const { name, sampleAgeMs } of fleet.engineSnapshots()) {
        if (sampleAgeMs !== undefined) gauge.set({ engine: name }, sampleAgeMs);
      }
    });
    this.#gauge('queue_size', 'Requests that wait for an engine.', [], (gauge) => gauge.set(fleet.waiting));
  }

  /** How the gateways of one fleet hear of each other. */
  watchLedger(ledger: SharedLedger): void {
    this.#gauge('ledger_up', '1 while the shared ledger works.', [], (gauge) => {
      gauge.set(ledger.status.state === 'ok' ? 1 : 0);
    });
    this.#gauge('ledger_gateways', 'Other gateways that are heard of.', [], (gauge) => {
      gauge.set(ledger.status.gateways);
    });
    this.#gauge('ledger_mirrored', 'Their requests whose prefill is outstanding.', [], (gauge) => {
      gauge.set(ledger.status.mirrored);
    });
    this.#gauge('ledger_events', 'Of the shared ledger, since the start.', ['event'], (gauge) => {
      for (const [event, count] of Object.entries(ledger.status.counts)) gauge.set({ event }, count);
    });
  }

  /** What the live page shows of all requests. */
  async snapshot(): Promise<
    Pick<
      GatewaySnapshot,
      'ttftMs' | 'tpotMs' | 'queueMs' | 'requestsPerSecond' | 'outputTokensPerSecond' | 'totals'
    >
  > {
    return {
      ttftMs: await this.#lately.ttftMs.quantiles(),
      tpotMs: await this.#lately.tpotMs.quantiles(),
      queueMs: await this.#lately.queueMs.quantiles(),
      requestsPerSecond: this.#requestRate.perSecond,
      outputTokensPerSecond: this.#tokenRate.perSecond,
      totals: { ...this.#totals },
    };
  }

  #counter<Label extends string>(name: string, help: string, labelNames: Label[] = []): Counter<Label> {
    return new Counter({ name: `gimbal_${name}_total`, help, labelNames, registers: [this.registry] });
  }

  #histogram<Label extends string>(
    name: string,
    help: string,
    buckets: number[],
    labelNames: Label[] = [],
  ): Histogram<Label> {
    return new Histogram({ name: `gimbal_${name}`, help, buckets, labelNames, registers: [this.registry] });
  }

  #gauge<Label extends string>(
    name: string,
    help: string,
    labelNames: Label[],
    set: (gauge: Gauge<Label>) => void,
  ): Gauge<Label> {
    return new Gauge({
      name: `gimbal_${name}`,
      help,
      labelNames,
      registers: [this.registry],
      collect() {
        // Engines that have left would stay otherwise.
        this.reset();
        set(this);
      },
    });
  }
}

/** Quantiles of what was observed in the last minute. */
class LastMinute {
  readonly #summary: Summary;
  /** A summary of nothing has quantiles of 0. */
  readonly #count = new MinuteSum(() => performance.now());

  constructor(name: string) {
    this.#summary = new Summary({ name, help: name, registers: [], ...MINUTE });
  }

  observe(value: number): void {
    this.#summary.observe(value);
    this.#count.add(1);
  }

  async quantiles(): Promise<Quantiles> {
    if (this.#count.sum === 0) return {};
    const { values } = await this.#summary.get();
    const found: Quantiles = {};
    for (const { labels, value } of values) {
      const { quantile } = labels as { quantile?: number };
      if (quantile !== undefined) found[`p${Math.round(quantile * 100)}` as keyof Quantiles] = value;
    }
    return found;
  }
}
