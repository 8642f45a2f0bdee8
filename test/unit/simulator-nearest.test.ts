/** Replicas that are the nearest to a rank, against the definition spelled out slot by slot. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../lib/random.js';
import { ExpertLoad } from '../../lib/simulator/expert-load.js';
import { Routing } from '../../lib/simulator/routing.js';
import type { GroupShape, StepTimer } from '../../lib/simulator/step-time.js';
import { MODEL } from './simulator-fixture.js';

const LAYERS = 2;
const EXPERTS = 16;
const GPUS = 4;
const PER_GPU = 7;
const SLOTS = GPUS * PER_GPU;
const STEPS = 400;
const routing = new Routing({ kind: 'generative', topics: 3, personas: 1, sigmaTopics: 1 }, MODEL, 2);
const add = (values: number[]) => values.reduce((a, b) => a + b, 0);
const upTo = (count: number) => Array.from({ length: count }, (_, n) => n);
const gpus = upTo(GPUS);

/** Every expert at least once, twelve of 28 slots more, in a drawn order; an expert may lie on a GPU twice. `[layers][slots]` */
function drawnPlacement(seed: number): Int32Array {
  const random = new Random(seed);
  const layers = upTo(LAYERS).map(() => {
    const own = upTo(SLOTS).map((n) => (n < EXPERTS ? n : random.below(EXPERTS)));
    return random.shuffle(own);
  });
  return Int32Array.from(layers.flat());
}

/** Rank r has `tokens[r]` tokens of profile r. */
class Reference {
  readonly ranks: number[];

  constructor(
    readonly placement: Int32Array,
    readonly shape: Pick<GroupShape, 'ranks' | 'tensorParallel' | 'nodes'>,
    readonly tokens: number[],
  ) {
    this.ranks = upTo(shape.ranks);
  }

  expert(layer: number, slot: number): number {
    return this.placement[layer * SLOTS + slot]!;
  }

  chance(rank: number, layer: number, slot: number): number {
    const profile = rank % 3;
    return routing.tables.chance[(profile * LAYERS + layer) * EXPERTS + this.expert(layer, slot)]!;
  }

  isFar(rank: number, gpu: number): boolean {
    const { tensorParallel, nodes } = this.shape;
    return Math.floor((gpu * nodes) / GPUS) !== Math.floor((rank * tensorParallel * nodes) / GPUS);
  }

  distance(rank: number, slot: number): number {
    const gpu = Math.floor(slot / PER_GPU);
    if (Math.floor(gpu / this.shape.tensorParallel) === rank) return 0;
    return this.isFar(rank, gpu) ? 2 : 1;
  }

  /** The part of the rank's tokens for the slot's expert that the slot gets. */
  share(rank: number, layer: number, slot: number): number {
    const holders = upTo(SLOTS).filter((other) => this.expert(layer, other) === this.expert(layer, slot));
    const least = Math.min(...holders.map((other) => this.distance(rank, other)));
    const near = holders.filter((other) => this.distance(rank, other) === least);
    return near.includes(slot) ? 1 / near.length : 0;
  }

  #sumOver(gpu: number, of: (slot: number) => number): number {
    return add(upTo(PER_GPU).map((k) => of(gpu * PER_GPU + k)));
  }

  pairs(rank: number, layer: number, gpu: number): number {
    return this.#sumOver(
      gpu,
      (slot) => this.tokens[rank]! * this.share(rank, layer, slot) * this.chance(rank, layer, slot),
    );
  }

  active(layer: number, gpu: number): number {
    const miss = (rank: number, slot: number) =>
      (1 - this.chance(rank, layer, slot)) ** (this.tokens[rank]! * this.share(rank, layer, slot));
    return this.#sumOver(gpu, (slot) => 1 - this.ranks.reduce((all, rank) => all * miss(rank, slot), 1));
  }

  /** Copies under deduplication. */
  copies(rank: number, layer: number, gpu: number): number {
    const miss = upTo(PER_GPU)
      .map((k) => gpu * PER_GPU + k)
      .reduce((all, slot) => all * (1 - this.chance(rank, layer, slot)) ** this.share(rank, layer, slot), 1);
    return this.tokens[rank]! * (1 - miss);
  }

  /** Of the busiest GPU, from one node to another, or to it. */
  across(layer: number): number {
    const { ranks } = this;
    const to = gpus.map((gpu) =>
      add(ranks.filter((rank) => this.isFar(rank, gpu)).map((rank) => this.copies(rank, layer, gpu))),
    );
    const from = ranks.map((rank) =>
      add(gpus.filter((gpu) => this.isFar(rank, gpu)).map((gpu) => this.copies(rank, layer, gpu))),
    );
    return Math.max(...to, ...from.map((all) => all / this.shape.tensorParallel));
  }
}

describe.each([
  ['one GPU a rank', { ranks: 4, tensorParallel: 1, nodes: 2 }],
  ['two GPUs a rank', { ranks: 2, tensorParallel: 2, nodes: 2 }],
  ['one node', { ranks: 4, tensorParallel: 1, nodes: 1 }],
])('nearest replicas, %s', (_, shape) => {
  const placement = drawnPlacement(11);
  const tokens = [5, 2, 7, 3].slice(0, shape.ranks);
  const reference = new Reference(placement, shape, tokens);
  const load = (more: Partial<GroupShape>) => {
    const one = new ExpertLoad(
      routing.tables,
      {
        ...shape,
        allToAll: 'allgather-reducescatter',
        hidesStep: false,
        padUpToTokens: 512,
        replicaChoice: 'nearest',
        ...more,
      },
      placement,
      1,
    );
    for (const rank of reference.ranks) one.add(rank, rank % 3, tokens[rank]!);
    return one;
  };
  /** `[steps][layers][gpus]` */
  const stepped = (one: ExpertLoad, steps: number) => {
    const seen: { active: number; pairs: number }[] = [];
    const experts = (active: number, pairs: number) => seen.push({ active, pairs });
    const timer = { experts, gatherScatter: () => 0 } as unknown as StepTimer;
    for (let n = 0; n < steps; n++) one.step(timer, 10, 10, 4);
    // After a layer's GPUs comes what they would take if all were alike.
    return seen.filter((_one, n) => n % (GPUS + 1) < GPUS);
  };

  it('pairs and active experts of each GPU', () => {
    const seen = stepped(load({}), STEPS);
    for (const layer of upTo(LAYERS)) {
      for (const gpu of gpus) {
        const at = layer * GPUS + gpu;
        const own = seen.filter((_one, n) => n % (LAYERS * GPUS) === at);
        const expected = add(reference.ranks.map((rank) => reference.pairs(rank, layer, gpu)));
        // Noise of √pairs, in the mean over the steps.
        const noise = Math.sqrt(expected / STEPS);
        expect(Math.abs(add(own.map(({ pairs }) => pairs)) / STEPS - expected)).toBeLessThan(
          0.05 + 4 * noise,
        );
        expect(seen[at]!.active).toBeCloseTo(reference.active(layer, gpu), 4);
      }
    }
  });

  it('are others than where all share alike', () => {
    const active = (one: ExpertLoad) => stepped(one, 1).map((own) => own.active);
    expect(active(load({ replicaChoice: 'even' }))).not.toEqual(active(load({})));
  });

  it('copies that cross nodes', () => {
    const travelled: number[] = [];
    const allToAll = (_within: number, across: number) => travelled.push(across);
    const timer = { experts: () => 0, allToAll } as unknown as StepTimer;
    load({ allToAll: 'a2a-dedup' }).step(timer, 10, 10, 4);
    for (const layer of upTo(LAYERS)) expect(travelled[layer]).toBeCloseTo(reference.across(layer), 5);
  });
});
