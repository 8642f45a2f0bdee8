/**
 * The two arrows between placement and dispatch, drawn again and again: what the placement in force does to each engine goes to the
 * fleet, and what the fleet sends to each source goes to the statistics.
 */
import type { ServerConfig } from '../gateway/config.js';
import type { Fleet } from '../gateway/fleet.js';
import type { Logger } from '../gateway/log.js';
import { sourceOf, sourcesOf } from '../gateway/routing/sources.js';
import type { RoutingStatistics } from '../statistics/routing-statistics.js';
import type { Affinity } from './affinity.js';
import type { Controller } from './controller.js';
import type { DispatchShares } from './dispatched.js';
import { expertPressure } from './pressure.js';
import type { PlacedModel } from './types.js';

export interface FeedbackParts {
  fleet: Pick<Fleet, 'targets' | 'setExpertPressure' | 'dispatchedTokens'>;
  statistics: RoutingStatistics;
  controller: Pick<Controller, 'placement' | 'status'>;
  shares: DispatchShares;
  /** Where requests are steered by their experts. */
  affinity: Affinity | undefined;
  model: PlacedModel;
  /** As of now, since a reload may change it. */
  servers(): readonly ServerConfig[];
  log: Logger;
}

export class Feedback {
  readonly #parts: FeedbackParts;
  readonly #intervalMs: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: FeedbackParts, intervalMs: number) {
    this.#parts = parts;
    this.#intervalMs = intervalMs;
  }

  start(): void {
    this.#timer = setInterval(() => this.refresh(), this.#intervalMs);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** What goes wrong in one is tried again in the next; the fleet forgets what grows old. */
  refresh(): void {
    try {
      this.exchange(performance.now());
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'expert pressure cannot be worked out');
    }
  }

  exchange(nowMs: number): void {
    const { fleet, statistics, controller, shares, affinity, model, servers } = this.#parts;
    const sources = sourcesOf(servers());
    const ofSource = new Float64Array(model.sources);
    const sent = fleet.dispatchedTokens();
    // Who joined later than the statistics were made for has no place in them.
    const known = fleet.targets.flatMap((target, n) => {
      const source = sourceOf(sources, target);
      return source === undefined || source >= model.sources ? [] : [{ target, source, sent: sent[n]! }];
    });
    for (const { source, sent: tokens } of known) ofSource[source]! += tokens;
    shares.observe(ofSource, nowMs);
    const { gpus, slotsPerGpu, deadGpus, planId } = controller.status();
    const tokens = statistics.counts();
    const pressure = expertPressure({
      ...model,
      gpus,
      slotsPerGpu,
      deadGpus,
      tokens,
      placement: controller.placement,
    });
    const { moePressure, commExcess } = pressure;
    const placement = `${planId} without ${deadGpus.join(',')}`;
    affinity?.place({ pressure, placement, sources: known }, nowMs);
    fleet.setExpertPressure(
      new Map(
        known.map(({ target, source }) => [
          target.name,
          { moePressure: moePressure[source]!, commExcess: commExcess[source]! },
        ]),
      ),
    );
  }
}
