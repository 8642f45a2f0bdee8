/**
 * Carries a migration's schedule out on arrays that stand for the GPUs' memory, and complains of the first promise it breaks.
 * Written from the documentation of the schedule alone.
 */
import type { MigrationProblem, MigrationSchedule } from '../../lib/index.js';

type Content = { layer: number; expert: number } | undefined;

/** Empty where all promises are kept; else the first breach. */
export function replay(problem: MigrationProblem, schedule: MigrationSchedule, stagingSlots: number): string {
  try {
    new Replay(problem, schedule, stagingSlots).run();
    return '';
  } catch (error) {
    if (error instanceof Breach) return error.message;
    throw error;
  }
}

class Breach extends Error {}

class Replay {
  readonly #gpus: number;
  readonly #slots: number;
  /** `[gpus][layer * slots + slot]` */
  readonly #own: Content[][];
  /** `[gpus][stagingSlots]` */
  readonly #staging: Content[][];
  /** `layer:expert` of all that is served. */
  readonly #served = new Set<string>();

  constructor(
    readonly problem: MigrationProblem,
    readonly schedule: MigrationSchedule,
    readonly stagingSlots: number,
  ) {
    const { layers, gpus, slotsPerGpu, fromGpus = gpus, fromSlotsPerGpu = slotsPerGpu } = problem;
    this.#gpus = Math.max(gpus, fromGpus);
    this.#slots = Math.max(slotsPerGpu, fromSlotsPerGpu);
    this.#own = Array.from({ length: this.#gpus }, () => new Array<Content>(layers * this.#slots));
    this.#staging = Array.from({ length: this.#gpus }, () => new Array<Content>(stagingSlots));
    problem.from.forEach((expert, at) => {
      const slot = at % fromSlotsPerGpu;
      const gpu = Math.floor(at / fromSlotsPerGpu) % fromGpus;
      const layer = Math.floor(at / (fromSlotsPerGpu * fromGpus));
      if (expert < 0 || problem.deadGpus?.includes(gpu)) return;
      this.#own[gpu]![layer * this.#slots + slot] = { layer, expert };
      this.#served.add(`${layer}:${expert}`);
    });
  }

  run(): void {
    this.#need(this.schedule.slotsPerGpu === this.#slots, 'staging slots are numbered from elsewhere');
    for (let round = 0; round <= this.schedule.rounds; round++) {
      this.#barrier(round);
      if (round < this.schedule.rounds) this.#round(round);
    }
    this.#end();
  }

  #need(holds: boolean, what: string): void {
    if (!holds) throw new Breach(what);
  }

  #memory(layer: number, gpu: number, slot: number): [Content[], number] {
    this.#need(!this.problem.deadGpus?.includes(gpu), `GPU ${gpu} is dead`);
    this.#need(slot < this.#slots + this.stagingSlots, `GPU ${gpu} has no slot ${slot}`);
    if (slot >= this.#slots) return [this.#staging[gpu]!, slot - this.#slots];
    return [this.#own[gpu]!, layer * this.#slots + slot];
  }

  #barrier(round: number): void {
    const { localCopies: copies, storageLoads: loads } = this.schedule;
    copies.round.forEach((when, i) => {
      if (when !== round) return;
      const [source, from] = this.#memory(copies.layer[i]!, copies.gpu[i]!, copies.fromSlot[i]!);
      const [target, to] = this.#memory(copies.layer[i]!, copies.gpu[i]!, copies.toSlot[i]!);
      this.#need(source[from]?.layer === copies.layer[i], `copy ${i} reads what is not there`);
      target[to] = source[from];
    });
    loads.round.forEach((when, i) => {
      if (when !== round) return;
      const [layer, expert] = [loads.layer[i]!, loads.expert[i]!];
      const [target, to] = this.#memory(layer, loads.toGpu[i]!, loads.toSlot[i]!);
      target[to] = { layer, expert };
    });
    this.#allLive(`after ${round} rounds`);
  }

  #round(round: number): void {
    const { transfers, roundStart } = this.schedule;
    const [first, end] = [roundStart[round]!, roundStart[round + 1]!];
    this.#need(end > first, `round ${round} is empty`);
    const senders = transfers.fromGpu.subarray(first, end);
    const receivers = transfers.toGpu.subarray(first, end);
    this.#need(new Set(senders).size === senders.length, `a GPU sends twice in round ${round}`);
    this.#need(new Set(receivers).size === receivers.length, `a GPU receives twice in round ${round}`);
    const landing: [Content[], number, Content][] = [];
    for (let i = first; i < end; i++) {
      this.#need(transfers.round[i] === round, `transfer ${i} is of another round`);
      const [layer, expert] = [transfers.layer[i]!, transfers.expert[i]!];
      const [source, from] = this.#memory(layer, transfers.fromGpu[i]!, transfers.fromSlot[i]!);
      const sent = source[from];
      this.#need(sent?.layer === layer && sent.expert === expert, `transfer ${i} sends what is not there`);
      const [target, to] = this.#memory(layer, transfers.toGpu[i]!, transfers.toSlot[i]!);
      landing.push([target, to, sent]);
    }
    for (const [target, to] of landing) target[to] = undefined;
    for (let i = first; i < end; i++) {
      const [source, from] = this.#memory(transfers.layer[i]!, transfers.fromGpu[i]!, transfers.fromSlot[i]!);
      this.#need(source[from] !== undefined, `transfer ${i} is overwritten while it is sent`);
    }
    this.#allLive(`during round ${round}`);
    for (const [target, to, content] of landing) target[to] = content;
  }

  #allLive(when: string): void {
    const live = new Set<string>();
    for (const slots of this.#own) {
      for (const content of slots) if (content !== undefined) live.add(`${content.layer}:${content.expert}`);
    }
    for (const name of this.#served) this.#need(live.has(name), `${name} is nowhere ${when}`);
  }

  #end(): void {
    const { gpus, slotsPerGpu, to } = this.problem;
    to.forEach((expert, at) => {
      const slot = at % slotsPerGpu;
      const gpu = Math.floor(at / slotsPerGpu) % gpus;
      const layer = Math.floor(at / (slotsPerGpu * gpus));
      const held = this.#own[gpu]![layer * this.#slots + slot];
      const isThere = held?.layer === layer && held.expert === expert;
      this.#need(expert < 0 || isThere, `layer ${layer}, GPU ${gpu}, slot ${slot} ends wrong`);
    });
  }
}
