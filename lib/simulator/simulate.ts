/**
 * The simulator: requests arrive, the product's scheduler sends them to engines, engines step in lockstep groups, and time
 * advances from event to event. Same options, same result, to the last bit; docs/SIMULATION.md says what is modelled.
 */
import { type CheckedSimulation, checkSimulation } from './check.js';
import { Engine } from './engine.js';
import { FailureSchedule } from './failures.js';
import { Feedback } from './feedback.js';
import { Gateway } from './gateway.js';
import { Group } from './group.js';
import { type Move, Rearranger } from './rearrange.js';
import { RequestColumns } from './requests.js';
import { Routing } from './routing.js';
import { Series } from './series.js';
import { StepTimer } from './step-time.js';
import { summarise } from './summary.js';
import type { SimulationCounters, SimulationOptions, SimulationResult } from './types.js';

/** Events between two looks at the signal, and two calls of the listener. */
const EVENTS_PER_BREATH = 2000;
/** Tokens of a prompt that fills a step, for the rate that the scheduler is told. */
const USUAL_PROMPT = 2048;
/** Kept from touching 0, where the scheduler refuses a rate. */
const LEAST_RATE = 100;

/**
 * Simulates the trace on the engines under the policies.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT (names the option), GIMBAL_BINDING; and the reason of `options.signal` once it aborts
 */
export async function simulate(options: SimulationOptions): Promise<SimulationResult> {
  const simulation = new Simulation(options, checkSimulation(options));
  try {
    return await simulation.run();
  } finally {
    simulation.close();
  }
}

class Simulation {
  readonly #options: SimulationOptions;
  readonly #checked: CheckedSimulation;
  readonly #requests: RequestColumns;
  readonly #routing: Routing;
  readonly #engines: Engine[];
  readonly #groups: Group[];
  readonly #rearrangers: Rearranger[];
  /** By group: a move that is under way, and a stall that the next step waits for. */
  readonly #moves: (Move | undefined)[];
  readonly #readyMs: number[];
  readonly #feedback: Feedback;
  readonly #failures: FailureSchedule;
  readonly #gateway: Gateway;
  readonly #series: Series;
  readonly #counters: SimulationCounters;
  #nowMs = 0;
  #arrived = 0;
  #finished = 0;

  constructor(options: SimulationOptions, checked: CheckedSimulation) {
    const { model, hardware, groups, shape, engine, policy, seed } = checked;
    this.#options = options;
    this.#checked = checked;
    this.#requests = new RequestColumns(options.trace);
    this.#routing = new Routing(checked.routing, { ...model, moeLayers: checked.simulatedLayers }, seed);
    for (const [id, request] of options.trace.entries()) {
      const profile = this.#routing.profileOf(request);
      this.#requests.profile[id] = profile;
      this.#requests.home[id] = this.#routing.homeOf(profile, groups * shape.ranks, policy.rankStickiness);
    }
    const { agingTokensPerSecond } = policy;
    const queue = {
      policy: policy.queue,
      ...(agingTokensPerSecond === undefined ? {} : { agingTokensPerSecond }),
    };
    this.#engines = Array.from(
      { length: groups * shape.ranks },
      (_, number) => new Engine(this.#requests, engine, queue, () => this.#nowMs, this.#eventsOf(number)),
    );
    const timers = Array.from(
      { length: groups },
      () => new StepTimer(model, hardware, options.tables ?? {}, shape),
    );
    this.#rearrangers = timers.map(() => new Rearranger(checked, this.#requests));
    const stands = model.moeLayers / checked.simulatedLayers;
    this.#groups = timers.map((timer, n) => {
      const own = this.#engines.slice(n * shape.ranks, (n + 1) * shape.ranks);
      const { initial } = this.#rearrangers[n]!;
      return new Group(own, timer, stands, this.#routing.tables, shape, initial, seed + n);
    });
    this.#moves = timers.map(() => undefined);
    this.#readyMs = timers.map(() => 0);
    this.#feedback = new Feedback(
      checked,
      this.#groups,
      this.#rearrangers,
      this.#routing.tables,
      this.#requests,
      options.trace,
    );
    this.#failures = new FailureSchedule(checked.failures, shape.ranks * shape.tensorParallel, groups);
    const rate = Math.max(LEAST_RATE, this.#prefillRate(timers[0]!));
    this.#gateway = new Gateway(
      checked,
      this.#engines,
      this.#requests,
      options.trace,
      rate,
      () => this.#nowMs,
      (number) => this.#groups[Math.floor(number / shape.ranks)]!.isBusy,
      (id) => this.#feedback.expertMs(id),
    );
    this.#series = new Series(checked.seriesEveryMs, this.#engines);
    this.#counters = {
      steps: 0,
      dummySteps: 0,
      preemptions: 0,
      prefillTokens: 0,
      cachedTokens: 0,
      decodeTokens: 0,
      recomputedTokens: 0,
      rearrangements: 0,
      migrations: 0,
      stallMs: 0,
      moeMs: 0,
      expertMs: 0,
      evenExpertMs: 0,
      resentRequests: 0,
      leakedBlocks: 0,
    };
  }

  /** What a rank prefills a second where every rank has a full step of it: what an operator would measure. */
  #prefillRate(timer: StepTimer): number {
    const { model, engine, shape } = this.#checked;
    const tokens = engine.maxNumBatchedTokens;
    const batch = {
      decodes: 0,
      decodeContext: 0,
      prefillTokens: tokens,
      prefillWork: tokens * Math.min(tokens, USUAL_PROMPT),
      chunks: 1,
      sampled: 1,
    };
    const pairs = (tokens * model.topK) / shape.tensorParallel;
    const active = model.experts / (shape.ranks * shape.tensorParallel);
    const layer =
      timer.attention(batch) +
      timer.layer(tokens, true) +
      timer.experts(active, pairs, tokens * shape.ranks) +
      timer.gatherScatter(tokens * shape.ranks, tokens);
    return (tokens * 1e6) / (model.layers * layer + timer.once(1));
  }

  #eventsOf(engine: number) {
    const rank = engine % this.#checked.shape.ranks;
    const group = Math.floor(engine / this.#checked.shape.ranks);
    const { profile, firstTokenMs, finishMs, inputTokens, outputTokens } = this.#requests;
    return {
      firstToken: (id: number) => {
        if (Number.isNaN(firstTokenMs[id]!)) firstTokenMs[id] = this.#nowMs;
        this.#gateway.firstToken(id);
      },
      finished: (id: number) => {
        finishMs[id] = this.#nowMs;
        this.#finished += 1;
        this.#gateway.finished(id);
        this.#feedback.finished(id);
        const tokens = inputTokens[id]! + outputTokens[id]!;
        this.#rearrangers[group]!.served(this.#groups[group]!, rank, profile[id]!, tokens);
      },
      joins: (id: number) => this.#groups[group]!.load.add(rank, profile[id]!, 1),
      leaves: (id: number) => this.#groups[group]!.load.add(rank, profile[id]!, -1),
      preempted: (_id: number, computedTokens: number) => {
        this.#counters.preemptions += 1;
        this.#counters.recomputedTokens += computedTokens;
      },
    };
  }

  async run(): Promise<SimulationResult> {
    const { engine } = this.#checked;
    const { count, arrivalMs } = this.#requests;
    let nextSampleMs = 0;
    let nextDriftMs = this.#routing.driftEveryMs;
    for (let events = 1; this.#finished < count; events++) {
      if (events % EVENTS_PER_BREATH === 0) await this.#breathe();
      const arrivalAt =
        this.#arrived < count ? arrivalMs[this.#arrived]! + engine.requestMs : Number.POSITIVE_INFINITY;
      const stepAt = this.#nextEndMs();
      if (stepAt === Number.POSITIVE_INFINITY && nextSampleMs < arrivalAt) {
        // Nothing runs: samples in between would all be the same.
        const every = engine.sampleEveryMs;
        nextSampleMs = Math.max(nextSampleMs, Math.floor(arrivalAt / every) * every);
      }
      this.#nowMs = Math.min(arrivalAt, stepAt, nextSampleMs);
      if (stepAt <= this.#nowMs) await this.#endSteps();
      await this.#changeGpus();
      if (this.#nowMs >= nextDriftMs) {
        nextDriftMs += this.#routing.driftEveryMs;
        this.#routing.drift();
        for (const { load } of this.#groups) load.place(load.placement);
      }
      if (nextSampleMs <= this.#nowMs) {
        this.#sample();
        nextSampleMs += engine.sampleEveryMs;
      }
      while (this.#arrived < count && arrivalMs[this.#arrived]! + engine.requestMs <= this.#nowMs) {
        this.#gateway.arrive(this.#arrived);
        this.#arrived += 1;
      }
      this.#gateway.release();
      this.#startSteps();
    }
    return this.#result();
  }

  /** Infinity where no step is under way. */
  #nextEndMs(): number {
    let least = Number.POSITIVE_INFINITY;
    // Not by Math.min: a group at rest has NaN.
    for (const { endsMs } of this.#groups) if (endsMs < least) least = endsMs;
    return least;
  }

  async #breathe(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#options.signal?.throwIfAborted();
    this.#options.onProgress?.({ done: this.#finished, total: this.#requests.count });
  }

  #sample(): void {
    this.#gateway.observe(this.#nowMs, this.#checked.engine.tellsPrefill);
    const pressures = this.#feedback.due(this.#nowMs);
    if (pressures !== undefined) this.#gateway.setExpertPressure(pressures);
  }

  async #endSteps(): Promise<void> {
    for (const [n, group] of this.#groups.entries()) {
      if (!(group.endsMs <= this.#nowMs)) continue;
      group.complete();
      if (this.#moves[n] === undefined) {
        const move = await this.#rearrangers[n]!.due(group, this.#nowMs);
        if (move !== undefined) this.#begin(n, move);
      }
      const move = this.#moves[n];
      if (move !== undefined && move.atMs <= this.#nowMs) this.#finishMove(n, move);
    }
  }

  #begin(n: number, move: Move): void {
    this.#moves[n] = move;
    this.#readyMs[n] = Math.max(this.#readyMs[n]!, this.#nowMs + move.stallMs);
    this.#groups[n]!.timer.linkShare = this.#rearrangers[n]!.linkLeft;
    this.#series.moved(this.#nowMs, move.migrations);
    this.#counters.rearrangements += 1;
    this.#counters.migrations += move.migrations;
    this.#counters.stallMs += move.stallMs;
  }

  #finishMove(n: number, { placement }: Move): void {
    const group = this.#groups[n]!;
    this.#moves[n] = undefined;
    group.timer.linkShare = 1;
    group.load.place(placement);
    this.#rearrangers[n]!.moved(this.#nowMs);
    this.#feedback.placed();
  }

  /** Between steps: GPUs that have been lost since, and those that are back. A move under way is given up. */
  async #changeGpus(): Promise<void> {
    for (const [n, group] of this.#groups.entries()) {
      if (!Number.isNaN(group.endsMs)) continue;
      for (const { gpu, isLoss } of this.#failures.due(n, this.#nowMs)) {
        if (isLoss) this.#lose(n, gpu);
        else this.#bringBack(n, gpu);
        const move = await this.#rearrangers[n]!.gpusChanged(group, this.#nowMs, isLoss);
        this.#begin(n, move);
        if (move.atMs <= this.#nowMs) this.#finishMove(n, move);
      }
    }
  }

  #lose(n: number, gpu: number): void {
    const { ranks, tensorParallel } = this.#checked.shape;
    const group = this.#groups[n]!;
    const rank = Math.floor(gpu / tensorParallel);
    const wasOut = group.isOut(rank);
    group.deadGpus.add(gpu);
    if (wasOut) return;
    const lost = group.engines[rank]!.lose();
    for (const { computedTokens } of lost) this.#counters.recomputedTokens += computedTokens;
    this.#counters.resentRequests += lost.length;
    this.#gateway.lost(
      n * ranks + rank,
      lost.map(({ id }) => id),
    );
  }

  #bringBack(n: number, gpu: number): void {
    const { ranks, tensorParallel } = this.#checked.shape;
    const group = this.#groups[n]!;
    const rank = Math.floor(gpu / tensorParallel);
    group.deadGpus.delete(gpu);
    if (!group.isOut(rank)) this.#gateway.back(n * ranks + rank);
  }

  #startSteps(): void {
    for (const [n, group] of this.#groups.entries()) {
      if (!Number.isNaN(group.endsMs) || !group.hasWork) continue;
      const startMs = Math.max(this.#nowMs, this.#readyMs[n]!);
      const figures = group.start(startMs, this.#requests);
      this.#counters.moeMs += figures.moeMs;
      this.#counters.expertMs += figures.expertMs;
      this.#counters.evenExpertMs += figures.evenExpertMs;
      this.#series.add(startMs, figures, this.#gateway.held);
    }
  }

  #result(): SimulationResult {
    const { count, arrivalMs, firstTokenMs, finishMs, engine } = this.#requests;
    const counters = this.#counters;
    for (const group of this.#groups) {
      counters.steps += group.steps;
      counters.dummySteps += group.dummySteps;
      counters.prefillTokens += group.prefillTokens;
      counters.decodeTokens += group.decodeTokens;
    }
    for (const { cachedTokens, kv } of this.#engines) {
      counters.cachedTokens += cachedTokens;
      counters.leakedBlocks += kv.used;
    }
    this.#options.onProgress?.({ done: count, total: count });
    return {
      requests: Array.from({ length: count }, (_, id) => ({
        arrivalMs: arrivalMs[id]!,
        firstTokenMs: firstTokenMs[id]!,
        finishMs: finishMs[id]!,
        engine: engine[id]!,
      })),
      summary: summarise(this.#requests, this.#checked.slo),
      series: this.#series.finish(),
      counters,
      expertLoad: this.#expertLoad(),
      decisions: this.#rearrangers.flatMap(({ decisions }, group) =>
        decisions.map((decision) => ({ ...decision, group })),
      ),
      kvBlocks: this.#checked.engine.kvBlocks,
      notes: this.#notes(),
    };
  }

  #expertLoad(): number[][] {
    const { load } = this.#groups[0]!;
    const layers = load.total.length / load.gpus;
    return Array.from({ length: layers }, (_, layer) => {
      const row = Array.from(load.total.subarray(layer * load.gpus, (layer + 1) * load.gpus));
      const mean = row.reduce((sum, pairs) => sum + pairs, 0) / row.length;
      return row.map((pairs) => (mean > 0 ? pairs / mean : 1));
    });
  }

  #notes(): string[] {
    const { model, hardware, shape, groups, engine, routing, simulatedLayers } = this.#checked;
    return [
      `${model.name} on ${hardware.name}: ${groups} lockstep group${groups > 1 ? 's' : ''} of ${shape.ranks} engines x ${shape.tensorParallel} GPUs, ${engine.allToAll}`,
      `KV cache: ${engine.kvBlocks} blocks of 16 tokens an engine`,
      this.#options.tables === undefined
        ? 'step times from fits'
        : 'step times from measured tables where given',
      ...(simulatedLayers === model.moeLayers
        ? []
        : [`experts of ${simulatedLayers} layers stand for all ${model.moeLayers}`]),
      `routing: ${routing.kind}${routing.kind === 'generative' || routing.kind === 'uniform' ? ' (synthetic)' : ''}`,
    ];
  }

  close(): void {
    for (const rearranger of this.#rearrangers) rearranger.close();
  }
}
