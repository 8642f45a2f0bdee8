/**
 * The oracle: what no controller can have. It knows the trace and the true routing, and so what the group is about to serve; it
 * plans for that without a thought for what lies where, and its experts move in no time. What it gains is what there is to gain
 * by placing experts for windows of that length.
 */
import { Planner } from '../planner.js';
import type { Group } from './group.js';
import type { PlacementPolicy, PlanningOccasion } from './rearrange.js';
import type { RequestColumns } from './requests.js';

export interface OracleSetting {
  everyMs: number;
  requests: RequestColumns;
  /** Groups that share the arrivals. */
  groups: number;
  seed: number;
}

export class OraclePolicy implements PlacementPolicy {
  readonly #setting: OracleSetting;
  readonly #planner = new Planner();
  #nextMs = 0;
  /** Of steps since the last plan. */
  #sinceMs = 0;
  #sinceSteps = 0;
  /** The first request that arrives after what is planned for began. */
  #first = 0;

  constructor(setting: OracleSetting) {
    this.#setting = setting;
  }

  async plan({ group, nowMs, gpusChanged, problem }: PlanningOccasion): Promise<Int32Array | undefined> {
    if (nowMs < this.#nextMs && !gpusChanged) return undefined;
    const { everyMs, seed } = this.#setting;
    this.#nextMs = nowMs + everyMs;
    const { incumbent: _, ...anew } = problem();
    const tokens = group.load.expertTokens(this.#coming(group, nowMs, anew.sources));
    const free = { ...anew, migrationCost: 0, tokens };
    return (await this.#planner.plan(free, { seed, backend: 'cpu' })).physicalToLogical;
  }

  /**
   * Tokens that the ranks will have until the next plan, by profile: what decodes now, and what arrives. Spread evenly, for which rank a
   * request is on is the dispatcher's doing and changes within seconds. `[ranks][profiles]`
   */
  #coming(group: Group, nowMs: number, ranks: number): Float64Array {
    const { everyMs, requests, groups } = this.#setting;
    const stepMs = this.#stepMs(group, nowMs);
    const { batch } = group.load;
    const profiles = batch.length / ranks;
    const coming = new Float64Array(profiles);
    for (let n = 0; n < batch.length; n++) coming[n % profiles]! += (batch[n]! * everyMs) / stepMs / ranks;
    const { arrivalMs, inputTokens, outputTokens, profile, count } = requests;
    while (this.#first < count && arrivalMs[this.#first]! < nowMs) this.#first++;
    for (let id = this.#first; id < count && arrivalMs[id]! < nowMs + everyMs; id++) {
      const decodes = Math.min(outputTokens[id]!, (nowMs + everyMs - arrivalMs[id]!) / stepMs);
      coming[profile[id]!]! += (inputTokens[id]! + decodes) / (groups * ranks);
    }
    return Float64Array.from({ length: batch.length }, (_, n) => coming[n % profiles]!);
  }

  /** Mean time of a step lately, rests included. */
  #stepMs(group: Group, nowMs: number): number {
    const stepMs = (nowMs - this.#sinceMs) / Math.max(1, group.steps - this.#sinceSteps);
    this.#sinceMs = nowMs;
    this.#sinceSteps = group.steps;
    return Math.max(1, stepMs);
  }

  close(): void {
    this.#planner.close();
  }
}
