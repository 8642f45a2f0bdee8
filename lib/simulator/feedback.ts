/**
 * The controller's part towards dispatch, through the product's own interfaces: every second each group's expert pressure, from the
 * routing of its window and the placement in force; and with affinity, fingerprints of what tenants and sessions choose.
 */
import { ExpertFingerprints } from '../controller/fingerprints.js';
import { expertPressure } from '../controller/pressure.js';
import type { EngineExpertPressure } from '../dispatch/types.js';
import { Random } from '../random.js';
import type { CheckedSimulation } from './check.js';
import type { Group } from './group.js';
import type { Rearranger } from './rearrange.js';
import type { RequestColumns } from './requests.js';
import type { RoutingTables } from './routing.js';
import type { SimulatedRequest } from './types.js';

const EVERY_MS = 1000;
const STREAM = 301;
/** Of a request that has ended, tokens whose experts are told: engines are asked for samples, not for everything. */
const TOLD_TOKENS = 4;

export class Feedback {
  readonly #policy: CheckedSimulation['policy'];
  readonly #ranks: number;
  readonly #groups: readonly Group[];
  readonly #rearrangers: readonly Rearranger[];
  readonly #tables: RoutingTables;
  readonly #topK: number;
  readonly #stands: number;
  readonly #requests: RequestColumns;
  readonly #trace: readonly SimulatedRequest[];
  readonly #random: Random;
  readonly #fingerprints: ExpertFingerprints;
  readonly #expertMs: Float64Array;
  #nextMs = 0;

  constructor(
    { policy, shape, model, seed }: CheckedSimulation,
    groups: readonly Group[],
    rearrangers: readonly Rearranger[],
    tables: RoutingTables,
    requests: RequestColumns,
    trace: readonly SimulatedRequest[],
  ) {
    this.#policy = policy;
    this.#ranks = shape.ranks;
    this.#groups = groups;
    this.#rearrangers = rearrangers;
    this.#tables = tables;
    this.#topK = model.topK;
    this.#stands = model.moeLayers / tables.layers;
    this.#requests = requests;
    this.#trace = trace;
    this.#random = new Random(seed, STREAM);
    const { layers, experts } = tables;
    this.#fingerprints = new ExpertFingerprints({ layers, experts });
    this.#expertMs = new Float64Array(groups.length * shape.ranks);
  }

  /** A placement has come in force: it is told at the next occasion. */
  placed(): void {
    this.#nextMs = 0;
  }

  /** What the scheduler is to be told now; undefined where it is not time yet, or it is told nothing. */
  due(nowMs: number): EngineExpertPressure[] | undefined {
    const { feedback, affinity } = this.#policy;
    if (nowMs < this.#nextMs || !(feedback || affinity)) return undefined;
    this.#nextMs = nowMs + EVERY_MS;
    const parts = this.#groups.map((group, n) => ({
      pressure: expertPressure({
        ...this.#rearrangers[n]!.problem,
        tokens: this.#rearrangers[n]!.tokens(group),
        placement: group.load.placement,
        deadGpus: [...group.deadGpus].sort((a, b) => a - b),
      }),
      engines: Array.from({ length: this.#ranks }, (_, rank) => n * this.#ranks + rank),
    }));
    if (affinity) this.#fingerprints.place(parts);
    if (!feedback) return undefined;
    return parts.flatMap(({ pressure, engines }) =>
      engines.map((engine, source) => ({
        engine,
        moePressure: pressure.moePressure[source]!,
        commExcess: pressure.commExcess[source]!,
      })),
    );
  }

  /** `[engines]` For a request that arrives; good until the next one. */
  expertMs(id: number): Float64Array | undefined {
    const key = this.#keyOf(id);
    if (key === undefined) return undefined;
    // Each layer that is simulated stands for so many.
    const tokens = this.#requests.inputTokens[id]! * this.#stands;
    return this.#fingerprints.expertMs(key, tokens, this.#expertMs);
  }

  /** Engines tell the experts of some tokens of a request that has ended. */
  finished(id: number): void {
    const key = this.#keyOf(id);
    if (key === undefined) return;
    const { layers } = this.#tables;
    const topk = new Uint16Array(TOLD_TOKENS * layers * this.#topK);
    for (let row = 0; row < TOLD_TOKENS * layers; row++) {
      this.#draw(this.#requests.profile[id]!, row % layers, topk, row * this.#topK);
    }
    this.#fingerprints.observe(key, { topk, tokens: TOLD_TOKENS, k: this.#topK });
  }

  /** Undefined where nothing is learned. */
  #keyOf(id: number): string | undefined {
    if (!this.#policy.affinity) return undefined;
    const { tenant, session } = this.#trace[id]!;
    const key = tenant ?? session;
    return key === undefined ? undefined : String(key);
  }

  /**
   * A token's experts: one draw lays k marks at equal distances along the chances, which add up to about k, so each expert is chosen
   * as often as its chance says, and none twice.
   */
  #draw(profile: number, layer: number, into: Uint16Array, at: number): void {
    const { layers, experts, chance } = this.#tables;
    const from = (profile * layers + layer) * experts;
    let total = 0;
    for (let e = 0; e < experts; e++) total += chance[from + e]!;
    const distance = total / this.#topK;
    let mark = this.#random.uniform() * distance;
    let chosen = 0;
    let running = 0;
    for (let e = 0; e < experts && chosen < this.#topK; e++) {
      running += chance[from + e]!;
      if (running <= mark) continue;
      into[at + chosen] = e;
      chosen += 1;
      mark += distance;
    }
  }
}
