/**
 * Random placement problems for fast-check: small, but with every feature of the model, and shrinking to small ones. Costs
 * are whole or half nanoseconds, so that costs which differ stay different in the planner's fixed point.
 */
import fc from 'fast-check';
import type { PlacementProblem, Weights } from '../../lib/index.js';

/** GIMBAL_TEST_SEED moves every property to other problems; fast-check prints the seed and the path of a failure. */
export const PROPERTY_SEED = Number(process.env.GIMBAL_TEST_SEED ?? 20_260_601);

export function check<T>(arbitrary: fc.Arbitrary<T>, runs: number, property: (value: T) => Promise<void>) {
  return fc.assert(fc.asyncProperty(arbitrary, property), { seed: PROPERTY_SEED, numRuns: runs });
}

export interface ProblemOptions {
  incumbent?: boolean;
  budget?: boolean;
  dead?: boolean;
  duplicates?: boolean;
}

interface Sizes {
  layers: number;
  sources: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  deadGpus: number[];
  allowDuplicates: boolean;
}

/** A valid problem. What the options forbid is left out; the rest may be there or not. */
export function problems(options: ProblemOptions = {}): fc.Arbitrary<PlacementProblem> {
  return sizes(options).chain((size) =>
    fc
      .record({
        tokens: tokens(size),
        costs: costs(size),
        replicaChoice: fc.constantFrom('even' as const, 'nearest' as const),
        weights: weights(),
        moving: options.incumbent === false ? fc.constant({}) : moving(size, options),
      })
      .map(({ costs: { computeCost, commCost }, weights: given, moving: rest, ...fields }) => ({
        ...size,
        ...fields,
        computeCost,
        commCost,
        ...(given === undefined ? {} : { weights: given }),
        ...rest,
      })),
  );
}

function sizes(options: ProblemOptions): fc.Arbitrary<Sizes> {
  return fc
    .record({
      layers: fc.integer({ min: 1, max: 3 }),
      sources: fc.integer({ min: 1, max: 4 }),
      gpus: fc.integer({ min: 1, max: 6 }),
      slotsPerGpu: fc.integer({ min: 1, max: 4 }),
      allowDuplicates: options.duplicates === false ? fc.constant(false) : fc.boolean(),
      hasDead: options.dead === false ? fc.constant(false) : fc.boolean(),
      slack: fc.nat({ max: 6 }),
    })
    .map(({ hasDead, slack, ...size }) => {
      const deadGpus = hasDead && size.gpus > 1 ? [size.gpus >> 1] : [];
      const slots = (size.gpus - deadGpus.length) * size.slotsPerGpu;
      const experts = Math.max(1, slots - slack, size.allowDuplicates ? 1 : size.slotsPerGpu);
      return { ...size, deadGpus, experts };
    });
}

function tokens({ layers, sources, experts }: Sizes): fc.Arbitrary<Uint32Array> {
  const length = layers * sources * experts;
  const counts = fc.oneof(
    { weight: 4, arbitrary: fc.nat({ max: 5000 }) },
    { weight: 1, arbitrary: fc.nat({ max: 3 }) },
    { weight: 1, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.nat({ max: 200_000 }) },
  );
  return fc.array(counts, { minLength: length, maxLength: length }).map((all) => Uint32Array.from(all));
}

function costs({ sources, gpus }: Sizes): fc.Arbitrary<Pick<PlacementProblem, 'computeCost' | 'commCost'>> {
  const half = (max: number) => fc.nat({ max: 2 * max }).map((n) => n / 2);
  const row = (length: number, cost: fc.Arbitrary<number>) =>
    fc.array(cost, { minLength: length, maxLength: length }).map((all) => Float64Array.from(all));
  return fc.record({
    computeCost: fc.oneof(half(200), row(gpus, fc.integer({ min: 50, max: 200 }))),
    commCost: fc.oneof(row(sources * gpus, half(300)), row(sources * gpus, fc.constantFrom(0, 40, 210.5))),
  });
}

function weights(): fc.Arbitrary<Weights | undefined> {
  return fc.option(
    fc.record(
      {
        load: fc.constantFrom(0, 0.5, 1, 2),
        commMax: fc.constantFrom(0, 0.25, 1),
        commTotal: fc.constantFrom(0, 0.1, 3),
        migration: fc.constantFrom(0, 1, 1.5),
      },
      { requiredKeys: [] },
    ),
    { nil: undefined },
  );
}

type Moving = Pick<
  PlacementProblem,
  'incumbent' | 'incumbentGpus' | 'incumbentSlotsPerGpu' | 'migrationCost' | 'migrationBudget'
>;

function moving(
  { layers, experts, gpus, slotsPerGpu }: Sizes,
  options: ProblemOptions,
): fc.Arbitrary<Moving> {
  const shape = fc.record({
    incumbentGpus: fc.oneof(fc.constant(gpus), fc.integer({ min: 1, max: gpus + 1 })),
    incumbentSlotsPerGpu: fc.oneof(fc.constant(slotsPerGpu), fc.integer({ min: 1, max: slotsPerGpu + 1 })),
  });
  const given = shape.chain((before) => {
    const length = layers * before.incumbentGpus * before.incumbentSlotsPerGpu;
    return fc.record(
      {
        incumbentGpus: fc.constant(before.incumbentGpus),
        incumbentSlotsPerGpu: fc.constant(before.incumbentSlotsPerGpu),
        incumbent: fc
          .array(fc.integer({ min: -1, max: experts - 1 }), { minLength: length, maxLength: length })
          .map((all) => Int32Array.from(all)),
        migrationCost: fc.nat({ max: 20_000 }),
        migrationBudget: fc.nat({ max: layers * gpus * slotsPerGpu + 1 }),
      },
      { requiredKeys: ['incumbent', 'incumbentGpus', 'incumbentSlotsPerGpu'] },
    );
  });
  return fc.option(given, { nil: {} }).map((fields) => {
    if (options.budget === false) delete (fields as Moving).migrationBudget;
    return fields;
  });
}

/** A valid placement `[layers][gpus * slotsPerGpu]` of the problem, drawn from the given numbers. */
export function placementFrom(problem: PlacementProblem, numbers: readonly number[]): Int32Array {
  const { layers, experts, gpus, slotsPerGpu, deadGpus = [] } = problem;
  const width = gpus * slotsPerGpu;
  const placement = new Int32Array(layers * width).fill(-1);
  let at = 0;
  const next = (below: number) => numbers[at++ % numbers.length]! % below;
  for (let layer = 0; layer < layers; layer += 1) {
    const slots = Array.from({ length: width }, (_, slot) => slot).filter(
      (slot) => !deadGpus.includes(Math.floor(slot / slotsPerGpu)),
    );
    for (let i = slots.length - 1; i > 0; i -= 1) {
      const j = next(i + 1);
      [slots[i], slots[j]] = [slots[j]!, slots[i]!];
    }
    for (const [i, slot] of slots.entries()) {
      const first = layer * width + slot - (slot % slotsPerGpu);
      const row = placement.subarray(first, first + slotsPerGpu);
      let e = i < experts ? i : next(experts);
      while (i >= experts && !problem.allowDuplicates && row.includes(e)) e = (e + 1) % experts;
      placement[layer * width + slot] = e;
    }
  }
  return placement;
}

/** Enough numbers for `placementFrom`; they shrink to the identity. */
export const choices = fc.array(fc.nat(), { minLength: 97, maxLength: 97 });
