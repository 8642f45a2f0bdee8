/** The controller's series, `gimbal_controller_…`, on the registry of whoever serves them. Gauges are read when somebody asks. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { ControllerStatus, DecisionRecord } from './types.js';

const STATES: readonly ControllerStatus['state'][] = [
  'stopped',
  'waiting-for-lease',
  'watching',
  'planning',
  'applying',
  'rolling-back',
];
const LOOK_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100];
const MS_PER_SECOND = 1000;

/** What gauges are read off. */
export interface Watched {
  status: () => Pick<ControllerStatus, 'state' | 'planAgeMs' | 'deadGpus' | 'failures' | 'fencingToken'>;
  statistics: () => { ageMs: number; tokens: number; tokensPerSecond: number };
}

export class ControllerMetrics {
  readonly #registers: Registry[];
  readonly #decisions: Counter<'decision' | 'reason'>;
  readonly #experts: Counter;
  readonly #bytes: Counter;
  readonly #gainMs: Counter;
  readonly #predicted: Gauge;
  readonly #failures: Counter;
  readonly #looks: Histogram;

  constructor(registry: Registry, watched: Watched) {
    this.#registers = [registry];
    this.#decisions = this.#counter('decisions', 'Looks, by what came of them and why.', [
      'decision',
      'reason',
    ]);
    this.#experts = this.#counter('moved_experts', 'New (expert, GPU) pairs that were put in force.');
    this.#bytes = this.#counter('moved_bytes', 'Of these, bytes between GPUs.');
    this.#gainMs = this.#counter(
      'predicted_gain_ms',
      'MoE time that committed plans promised over their horizons.',
    );
    this.#failures = this.#counter('failures', 'Looks and changes that failed.');
    this.#predicted = new Gauge({
      ...named('predicted_gain_share', 'Of the latest plan, over the MoE time of the placement in force.'),
      registers: this.#registers,
    });
    this.#looks = new Histogram({
      ...named('look_duration_seconds', 'Of a look, with the change where there was one.'),
      buckets: LOOK_SECONDS,
      registers: this.#registers,
    });
    this.#watch(watched);
  }

  decided(record: DecisionRecord): void {
    const { decision, reason, gainShare, gainMs, migrations, transferBytes } = record;
    this.#decisions.inc({ decision, reason });
    if (gainShare !== undefined) this.#predicted.set(gainShare);
    if (reason === 'error') this.#failures.inc();
    if (decision !== 'committed') return;
    this.#experts.inc(migrations ?? 0);
    this.#bytes.inc(transferBytes ?? 0);
    this.#gainMs.inc(Math.max(0, gainMs ?? 0));
  }

  looked(ms: number): void {
    this.#looks.observe(ms / MS_PER_SECOND);
  }

  #watch({ status, statistics }: Watched): void {
    this.#gauge(
      'plan_age_seconds',
      'Since the plan in force was committed.',
      () => status().planAgeMs / MS_PER_SECOND,
    );
    this.#gauge('lease_held', '1 while this controller may act.', () => {
      return ['stopped', 'waiting-for-lease'].includes(status().state) ? 0 : 1;
    });
    this.#gauge('fencing_token', 'Of the lease; 0 without.', () => status().fencingToken ?? 0);
    this.#gauge('consecutive_failures', 'Failures in a row.', () => status().failures);
    this.#gauge('dead_gpus', 'GPUs that are planned around.', () => status().deadGpus.length);
    this.#gauge(
      'statistics_age_seconds',
      'Since the statistics last grew.',
      () => statistics().ageMs / MS_PER_SECOND,
    );
    this.#gauge('statistics_tokens', 'Tokens that the statistics have seen.', () => statistics().tokens);
    this.#gauge('tokens_per_second', 'By which gains are predicted.', () => statistics().tokensPerSecond);
    new Gauge({
      ...named('state', '1 for the state that the controller is in.'),
      labelNames: ['state'],
      registers: this.#registers,
      collect() {
        const { state } = status();
        for (const one of STATES) this.set({ state: one }, one === state ? 1 : 0);
      },
    });
  }

  #gauge(name: string, help: string, value: () => number): void {
    new Gauge({
      ...named(name, help),
      registers: this.#registers,
      collect() {
        this.set(value());
      },
    });
  }

  #counter<Label extends string>(name: string, help: string, labelNames: Label[] = []): Counter<Label> {
    return new Counter({ ...named(`${name}_total`, help), labelNames, registers: this.#registers });
  }
}

function named(name: string, help: string): { name: string; help: string } {
  return { name: `gimbal_controller_${name}`, help };
}
