/**
 * Statistics that follow the dispatcher: how each source's tokens choose experts is what was observed, how many tokens each source gets is
 * what the dispatcher has sent of late. So a placement is planned for where traffic goes, and not for where it went.
 */
import { RoutingStatistics } from '../statistics/routing-statistics.js';
import type { RoutingStatisticsOptions } from '../statistics/types.js';
import { weighSources } from './shares.js';
import { sum } from './sum.js';

/** Fewer tokens than these say nothing of shares: the observed ones stay. */
const LEAST_TOKENS = 4096;

/** What was dispatched to each source, the older the less. */
export class DispatchShares {
  readonly #halfLifeMs: number;
  /** [sources] */
  readonly #weights: Float64Array;
  #lastMs: number | undefined;
  /** [sources] As they were at the last call, since counts only grow. */
  #before: Float64Array;

  constructor(sources: number, halfLifeMs: number) {
    this.#halfLifeMs = halfLifeMs;
    this.#weights = new Float64Array(sources);
    this.#before = new Float64Array(sources);
  }

  /** @param tokens [sources] sent since the start; less than before where an engine has left and come back */
  observe(tokens: Float64Array, nowMs: number): void {
    const kept = 2 ** (-(nowMs - (this.#lastMs ?? nowMs)) / this.#halfLifeMs);
    this.#lastMs = nowMs;
    for (let source = 0; source < this.#weights.length; source++) {
      const grown = tokens[source]! - this.#before[source]!;
      this.#weights[source] = this.#weights[source]! * kept + (grown < 0 ? tokens[source]! : grown);
    }
    this.#before = tokens.slice();
  }

  /** [sources] Undefined where too little was sent. */
  get shares(): Float64Array | undefined {
    return sum(this.#weights) < LEAST_TOKENS ? undefined : this.#weights;
  }
}

export class DispatchedStatistics extends RoutingStatistics {
  readonly #options: RoutingStatisticsOptions;
  readonly #shares: DispatchShares;

  constructor(options: RoutingStatisticsOptions, shares: DispatchShares) {
    super(options);
    this.#options = options;
    this.#shares = shares;
  }

  override counts(): Uint32Array {
    const tokens = super.counts();
    const { shares } = this.#shares;
    return shares === undefined ? tokens : weighSources({ ...this.#options, tokens }, shares);
  }
}
