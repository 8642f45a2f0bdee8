/**
 * Expert affinity in the closed loop: fingerprints of what tenants and sessions choose, under the placement in force, for the
 * engines that there are. Fingerprints count by sources, which the placement knows; the fleet by engines, which come and go.
 */
import type { ChosenExperts, ExpertAffinity } from '../gateway/affinity.js';
import type { FleetEngine, FleetRequest } from '../gateway/types.js';
import { ExpertFingerprints, type ExpertFingerprintsOptions } from './fingerprints.js';
import type { ExpertPressure } from './pressure.js';

/** Every key's costs are worked out anew after a `place`, so what moves less is left as it is, */
const LEAST_CHANGE = 0.05;
/** but not for longer than this: layers may change behind a mean that does not. */
const MOST_AGE_MS = 60_000;

/** Of the time between two exchanges, what may go into costs: who asks waits for them, and so does all that the process serves. */
const MOST_SHARE = 0.05;
const LEAST_BUDGET_MS = 100;

export interface AffinityOptions
  extends Pick<ExpertFingerprintsOptions, 'layers' | 'experts' | 'memoryBytes' | 'leastTokens'> {
  sources: number;
  tenantHeader?: string;
}

/** What is in force, and for whom. */
export interface InForce {
  pressure: ExpertPressure;
  /** Names the placement and the GPUs that serve it: another one counts at once. */
  placement: string;
  /** Engines by the fleet's numbers; those that are no source are left out. */
  sources: readonly { target: FleetEngine; source: number }[];
}

export class Affinity implements ExpertAffinity {
  readonly tenantHeader?: string;
  readonly #fingerprints: ExpertFingerprints;
  #placed: (Pick<InForce, 'pressure' | 'placement'> & { atMs: number }) | undefined;
  #sources: InForce['sources'] = [];
  #lastMs: number | undefined;
  /** Until the next exchange. */
  #budgetMs = LEAST_BUDGET_MS;
  /** `[sources]` */
  readonly #bySource: Float64Array;
  /** `[engines]` */
  #byEngine = new Float64Array(0);

  /** @throws GimbalError GIMBAL_INVALID_INPUT */
  constructor({ sources, tenantHeader, ...fingerprints }: AffinityOptions) {
    this.#fingerprints = new ExpertFingerprints(fingerprints);
    this.#bySource = new Float64Array(sources);
    if (tenantHeader !== undefined) this.tenantHeader = tenantHeader;
  }

  get keys(): number {
    return this.#fingerprints.size;
  }

  observe(key: string, chosen: ChosenExperts): void {
    this.#fingerprints.observe(key, chosen);
  }

  /** Whose source is which counts at once; the placement and its load where they are new. */
  place({ pressure, placement, sources }: InForce, nowMs: number): void {
    this.#sources = sources;
    this.#budgetMs = Math.max(LEAST_BUDGET_MS, MOST_SHARE * (nowMs - (this.#lastMs ?? nowMs)));
    this.#lastMs = nowMs;
    if (!this.#isNew(pressure, placement, nowMs)) return;
    this.#fingerprints.place(pressure);
    this.#placed = { pressure, placement, atMs: nowMs };
  }

  #isNew({ moePressure, commExcess }: ExpertPressure, placement: string, nowMs: number): boolean {
    const last = this.#placed;
    if (last === undefined || last.placement !== placement || nowMs - last.atMs >= MOST_AGE_MS) return true;
    const { pressure } = last;
    const differs = (a: Float64Array, b: Float64Array) =>
      a.some((value, source) => Math.abs(value - b[source]!) >= LEAST_CHANGE);
    return differs(moePressure, pressure.moePressure) || differs(commExcess, pressure.commExcess);
  }

  /**
   * Undefined too where working costs out has taken all the time that it may until the next exchange: thousands of keys under a new
   * placement come in turn.
   *
   * An engine that is no source, since it has just come or chooses its rank itself, costs what the others do in the mean.
   */
  expertMs({ affinityKey, promptTokens }: FleetRequest, engineCount: number): Float64Array | undefined {
    if (affinityKey === undefined || this.#sources.length === 0 || this.#budgetMs <= 0) return undefined;
    const sinceMs = performance.now();
    const bySource = this.#fingerprints.expertMs(affinityKey, promptTokens, this.#bySource);
    this.#budgetMs -= performance.now() - sinceMs;
    if (bySource === undefined) return undefined;
    let sum = 0;
    for (const { source } of this.#sources) sum += bySource[source]!;
    if (this.#byEngine.length !== engineCount) this.#byEngine = new Float64Array(engineCount);
    this.#byEngine.fill(sum / this.#sources.length);
    for (const { target, source } of this.#sources) this.#byEngine[target.engine] = bySource[source]!;
    return this.#byEngine;
  }
}
