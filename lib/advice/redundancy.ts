/**
 * How many redundant experts a layer are worth their memory: each number is planned for by the product's planner and set against
 * the KV cache that it displaces, on one scale, the tokens a second that the group gives at the load. Fewer are advised where more
 * win no more than chance or the model's own error could.
 */
import { Planner } from '../planner.js';
import { type PlacementCosts, placementCosts } from '../simulator/placement-costs.js';
import { StepTimer } from '../simulator/step-time.js';
import type { Plan } from '../types.js';
import { type CheckedAdvice, checkAdvice, type Slots } from './check.js';
import { choose } from './choose.js';
import { type Counts, countsOf, splitCounts, withoutChance } from './counts.js';
import { PlacedLoad } from './placed-load.js';
import { type Demand, type Steady, SteadyState } from './steady-state.js';
import type { DemandRange, RedundancyAdvice, RedundancyCandidate, RedundancyOptions } from './types.js';
import { simulateCandidate } from './verify.js';

/** Demands for memory are looked at from so many times the given one, in steps; where advice changes is found to within a part. */
const DEMAND = { least: 1 / 8, most: 8, step: 2 ** 0.25, within: 1.02 };

/** One candidate, planned. */
interface Weighed {
  slots: Slots;
  plan: Plan;
  /** Under all counts. */
  whole: PlacedLoad;
  /** `[splits]`: planned on one half of the counts, under the other. */
  halves: PlacedLoad[];
}

/**
 * Weighs numbers of redundant experts against the KV cache that they displace.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT (names the option), GIMBAL_INFEASIBLE (no room for a request beside the weights), and as
 *   `planPlacement` and `simulate`; the reason of `options.signal` once it aborts
 */
export async function adviseRedundancy(options: RedundancyOptions): Promise<RedundancyAdvice> {
  const advisor = new Advisor(options, checkAdvice(options));
  try {
    return await advisor.advise();
  } finally {
    advisor.close();
  }
}

class Advisor {
  readonly #options: RedundancyOptions;
  readonly #checked: CheckedAdvice;
  readonly #counts: Counts;
  readonly #judged: Counts;
  readonly #timer: StepTimer;
  readonly #steady: SteadyState;
  readonly #planner = new Planner();
  readonly #costs: PlacementCosts;
  #done = 0;
  readonly #total: number;

  constructor(options: RedundancyOptions, checked: CheckedAdvice) {
    const { model, hardware, shape, candidates, splits, simulate } = checked;
    this.#options = options;
    this.#checked = checked;
    this.#counts = countsOf(checked, model);
    this.#judged = withoutChance(this.#counts);
    this.#timer = new StepTimer(model, hardware, options.tables ?? {}, shape);
    this.#steady = new SteadyState(this.#timer, checked);
    this.#costs = placementCosts(model, hardware, shape);
    this.#total =
      candidates.length * (splits + 1) + 1 + Math.min(candidates.length, simulate + 1) * Number(simulate > 0);
  }

  async advise(): Promise<RedundancyAdvice> {
    const { candidates, traffic, shape } = this.#checked;
    const weighed: Weighed[] = [];
    for (const slots of candidates) weighed.push(await this.#weigh(slots));
    const { concurrency, note } = this.#concurrency(weighed[0]!.whole);
    const demand: Demand = { concurrency, kvTokensPerRequest: traffic.kvTokensPerRequest };
    const { chosen: alone, gains } = this.#choose(weighed, demand);
    const told = weighed.map((one, n) => this.#tell(one, demand, gains[n]!));
    const { ranges, chosen } = await this.#ranges(weighed, demand);
    await this.#progress();
    const best = told.map((_, n) => n).sort((a, b) => told[b]!.gainShare - told[a]!.gainShare || a - b);
    await this.#verify(told, [...new Set([0, chosen, ...best])], demand);
    const { redundantExperts, slotsPerGpu } = told[chosen]!;
    return {
      redundantExperts,
      slotsPerGpu,
      runnersUp: best.filter((n) => n !== chosen).map((n) => told[n]!.redundantExperts),
      candidates: told,
      concurrency,
      kvTokensWanted: (concurrency / shape.ranks) * traffic.kvTokensPerRequest,
      demand: ranges,
      notes: [
        ...this.#notes(),
        ...(note === undefined ? [] : [note]),
        ...(chosen === alone
          ? []
          : [
              `${told[alone]!.redundantExperts} redundant experts seem to win, but lose where less memory is wanted`,
            ]),
      ],
    };
  }

  async #weigh(slots: Slots): Promise<Weighed> {
    const { splits, seed } = this.#checked;
    const plan = await this.#plan(this.#counts, slots);
    const halves: PlacedLoad[] = [];
    for (let split = 0; split < splits; split++) {
      const [seen, unseen] = splitCounts(this.#counts, seed, split);
      halves.push(
        this.#load(withoutChance(unseen), (await this.#plan(seen, slots)).physicalToLogical, slots),
      );
    }
    return { slots, plan, whole: this.#load(this.#judged, plan.physicalToLogical, slots), halves };
  }

  async #plan(counts: Counts, { slotsPerGpu }: Slots): Promise<Plan> {
    const { gpus, replicaChoice, plan: options, seed } = this.#checked;
    const { signal } = this.#options;
    const problem = { ...counts, ...this.#costs, gpus, slotsPerGpu, replicaChoice };
    const plan = await this.#planner.plan(problem, {
      ...options,
      seed,
      ...(signal === undefined ? {} : { signal }),
    });
    await this.#progress();
    return plan;
  }

  #load(counts: Counts, placement: Int32Array, { slotsPerGpu }: Slots): PlacedLoad {
    const { model, shape, gpus, replicaChoice, seed } = this.#checked;
    const placed = { gpus, slotsPerGpu, commCost: this.#costs.commCost, placement, replicaChoice };
    return new PlacedLoad(counts, model.topK, placed, shape, this.#timer, model.moeLayers, seed);
  }

  /** Requests under way, by what was told of them. */
  #concurrency(leanest: PlacedLoad): { concurrency: number; note?: string } {
    const { traffic, shape } = this.#checked;
    const { concurrency, requestsPerSecond, kvUse, inForce, kvTokensPerRequest } = traffic;
    if (concurrency !== undefined) return { concurrency };
    if (requestsPerSecond === undefined)
      return { concurrency: (shape.ranks * kvUse! * inForce.kvTokens) / kvTokensPerRequest };
    const { concurrency: kept, carried } = this.#steady.concurrencyAt(leanest, requestsPerSecond);
    const note = `${requestsPerSecond} requests/s are more than the engines carry whatever their memory: full batches are taken`;
    return carried ? { concurrency: kept } : { concurrency: kept, note };
  }

  /** The advised candidate, and each one's gain over the leanest by split. */
  #choose(weighed: readonly Weighed[], demand: Demand) {
    const rates = weighed.map(({ slots, halves }) =>
      halves.map((load) => this.#steady.of(load, demand, slots.kvTokens).outputTokensPerSecond),
    );
    const { certainty, leastGainShare } = this.#checked;
    return choose(rates, { certainty, leastGainShare });
  }

  #tell(
    { slots, plan, whole }: Weighed,
    demand: Demand,
    { mean, spread }: { mean: number; spread: number },
  ): RedundancyCandidate {
    const { candidates, model } = this.#checked;
    const steady: Steady = this.#steady.of(whole, demand, slots.kvTokens);
    // Each token of the window is counted topK times in a layer.
    const pairs = this.#counts.tokens.reduce((sum, count) => sum + count, 0);
    const tokens = pairs / (this.#counts.layers * model.topK);
    const perToken = (term: 'loadMax' | 'commMax') =>
      plan.layers.reduce((sum, layer) => sum + layer[term], 0) / tokens;
    return {
      redundantExperts: slots.redundantExperts,
      slotsPerGpu: slots.slotsPerGpu,
      extraBytes: (slots.slotsPerGpu - candidates[0]!.slotsPerGpu) * model.moeLayers * model.expertBytes,
      kvTokens: Math.floor(slots.kvTokens),
      batch: steady.batch,
      stepMs: steady.stepMs,
      moeMs: steady.moeMs,
      activeExperts: steady.decode.active,
      imbalance: steady.decode.imbalance,
      loadMaxNs: perToken('loadMax'),
      commMaxNs: perToken('commMax'),
      outputTokensPerSecond: steady.outputTokensPerSecond,
      msPerOutputToken: steady.msPerOutputToken,
      gainShare: mean,
      gainSpread: spread,
      plan,
    };
  }

  /**
   * What is advised as requests of the same number want more and more memory, up to and beyond what they do. More is never advised
   * than at a lower demand: where all caches are short alike redundancy may seem to win again, and that is no place to trust a model.
   */
  async #ranges(
    weighed: readonly Weighed[],
    { concurrency, kvTokensPerRequest: own }: Demand,
  ): Promise<{ ranges: DemandRange[]; chosen: number }> {
    const each = concurrency / this.#checked.shape.ranks;
    const choice = (kvTokensPerRequest: number) =>
      this.#choose(weighed, { concurrency, kvTokensPerRequest }).chosen;
    // Beyond it some candidate could not hold one request.
    const most = Math.max(own, Math.min(own * DEMAND.most, ...weighed.map(({ slots }) => slots.kvTokens)));
    const looks = [own, ...powersWithin(DEMAND.step, own * DEMAND.least, most)].sort((a, b) => a - b);
    const ranges: DemandRange[] = [];
    let [fewest, chosen] = [weighed.length, 0];
    for (const [n, look] of looks.entries()) {
      await this.#breathe();
      const now = choice(look);
      if (now < fewest) {
        let [low, high] = [n === 0 ? look : looks[n - 1]!, look];
        while (high / low > DEMAND.within) {
          const middle = Math.sqrt(low * high);
          if (choice(middle) >= fewest) low = middle;
          else high = middle;
        }
        fewest = now;
        ranges.push({ fromKvTokens: each * high, redundantExperts: weighed[now]!.slots.redundantExperts });
      }
      if (look === own) chosen = fewest;
    }
    return { ranges, chosen };
  }

  async #verify(told: RedundancyCandidate[], order: number[], demand: Demand): Promise<void> {
    const { simulate } = this.#checked;
    if (simulate === 0) return;
    for (const n of order.slice(0, simulate + 1)) {
      const candidate = told[n]!;
      candidate.simulated = await simulateCandidate(
        this.#options,
        this.#checked,
        this.#counts,
        candidate,
        demand,
      );
      await this.#progress();
    }
  }

  async #progress(): Promise<void> {
    this.#done += 1;
    this.#options.onProgress?.({ done: this.#done, total: this.#total });
    await this.#breathe();
  }

  async #breathe(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#options.signal?.throwIfAborted();
  }

  #notes(): string[] {
    const { model, hardware, shape, gpusPerNode, engine, memory, traffic, left, routing, splits } =
      this.#checked;
    return [
      `${model.name} on ${hardware.name}, ${shape.nodes} x ${gpusPerNode} GPUs: ${shape.ranks} engines of ${shape.tensorParallel}, ${engine.allToAll}`,
      `memory: ${memory.memoryShare} of ${hardware.memoryGB} GB, of it ${memory.activationBytes / 1e9} GB for activations`,
      `a request: ${round(traffic.inputTokens)} tokens in, ${round(traffic.outputTokens)} out, ${round(traffic.kvTokensPerRequest)} in the KV cache in the mean`,
      `counts: ${routing.kind === 'counts' ? 'as given' : 'drawn from the generative model (synthetic)'}, judged by halves of ${splits} splits`,
      this.#options.tables === undefined
        ? 'step times from fits'
        : 'step times from measured tables where given',
      ...left,
    ];
  }

  close(): void {
    this.#planner.close();
  }
}

function round(tokens: number): number {
  return Number(tokens.toPrecision(4));
}

/** Whole powers of a step between two values, rising: the same ones whatever the values. */
function powersWithin(step: number, least: number, most: number): number[] {
  const from = Math.ceil(Math.log(least) / Math.log(step));
  const to = Math.floor(Math.log(most) / Math.log(step));
  return Array.from({ length: Math.max(0, to - from + 1) }, (_, n) => step ** (from + n));
}
