/**
 * Hostile problems through the public interface: whatever a caller gives, the answer is a plan that keeps its promises or a
 * GimbalError, never a crash, a hang or another exception. The seed is printed; GIMBAL_FUZZ_SEED repeats a run,
 * GIMBAL_FUZZ_RUNS lengthens it.
 */
import { afterAll, describe, expect, it } from 'vitest';
import {
  type Evaluation,
  evaluatePlacements,
  GimbalError,
  holdProblem,
  type PlacementProblem,
  type Plan,
  Planner,
  type PlanOptions,
} from '../../lib/index.js';
import { violations } from '../reference/naive.js';

const SEED = Number(process.env.GIMBAL_FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32)) >>> 0;
const RUNS = Number(process.env.GIMBAL_FUZZ_RUNS ?? 400);
/** Far above the milliseconds that these problems need, so that a busy machine does not fail the test. */
const MAX_MILLISECONDS = 20_000;

console.log(`planner fuzz: GIMBAL_FUZZ_SEED=${SEED} GIMBAL_FUZZ_RUNS=${RUNS}`);

const planner = new Planner();
afterAll(() => planner.close());

type Random = (below: number) => number;

/** mulberry32: small, seeded, good enough to pick problems. */
function randomOf(seed: number): Random {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const pick = <T>(random: Random, items: readonly T[]): T => items[random(items.length)]!;

/** Loose on purpose: what a JavaScript caller can pass. */
type Loose = Record<string, unknown>;

const NUMBERS = [
  0,
  -0,
  -1,
  0.5,
  1,
  2,
  3,
  255,
  256,
  65_537,
  2 ** 24,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 53,
  1e-320,
  1e-300,
  1e300,
  1.7e308,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
];
const STRANGERS: readonly (() => unknown)[] = [
  () => null,
  () => undefined,
  () => 'even',
  () => '',
  () => 7n,
  () => -1n,
  () => 2n ** 64n,
  () => Symbol('s'),
  () => [],
  () => [0, 0],
  () => ({}),
  () => Object.create(null),
  () => true,
  () => () => 3,
  () => new Proxy({}, { get: () => Number.NaN }),
  () => new Float64Array(3),
  () => new Int32Array(0),
  () => new Uint8Array(8),
  () => new Uint32Array(new SharedArrayBuffer(16)),
  () => detached(new Uint32Array(4)),
  () => detached(new Float64Array(4)),
  () => new DataView(new ArrayBuffer(8)),
  () => new Date(Number.NaN),
];

function detached<T extends Uint32Array | Float64Array | Int32Array>(array: T): T {
  structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] });
  return array;
}

/** A valid problem with every optional field now and then. */
function drawProblem(random: Random): PlacementProblem {
  const gpus = 1 + random(random(4) === 0 ? 20 : 6);
  const slotsPerGpu = 1 + random(5);
  const dead = gpus > 2 && random(4) === 0 ? [random(gpus)] : [];
  const cells = (gpus - dead.length) * slotsPerGpu;
  const allowDuplicates = random(4) === 0;
  const experts = Math.max(allowDuplicates ? 1 : slotsPerGpu, 1 + random(cells));
  const [layers, sources] = [1 + random(3), 1 + random(5)];
  const count = pick<(r: Random) => number>(random, [
    (r) => r(2000),
    (r) => r(3),
    () => 2 ** 32 - 1,
    () => 0,
    (r) => 2 ** r(32),
  ]);
  const price = pick<(r: Random) => number>(random, [
    (r) => r(400),
    (r) => r(3) * 50,
    (r) => r(1000) * 1e-9,
    (r) => r(1000) * 1e9,
    () => 0,
  ]);
  const problem: PlacementProblem = {
    layers,
    sources,
    experts,
    gpus,
    slotsPerGpu,
    tokens: Uint32Array.from({ length: layers * sources * experts }, () => count(random)),
    computeCost: random(2) === 0 ? price(random) : Float64Array.from({ length: gpus }, () => price(random)),
    commCost: Float64Array.from({ length: sources * gpus }, () => price(random)),
  };
  if (random(2) === 0) problem.replicaChoice = pick(random, ['even', 'nearest']);
  if (dead.length > 0) problem.deadGpus = dead;
  if (allowDuplicates) problem.allowDuplicates = true;
  if (random(3) === 0) problem.weights = { load: random(3), commMax: random(3) / 2, commTotal: random(4) };
  if (random(2) === 0) addIncumbent(problem, random);
  return problem;
}

function addIncumbent(problem: PlacementProblem, random: Random): void {
  const { layers, gpus, slotsPerGpu, experts } = problem;
  const incumbentGpus = random(2) === 0 ? gpus : 1 + random(gpus + 2);
  const incumbentSlotsPerGpu = random(2) === 0 ? slotsPerGpu : 1 + random(slotsPerGpu + 2);
  problem.incumbent = Int32Array.from(
    { length: layers * incumbentGpus * incumbentSlotsPerGpu },
    () => random(experts + 1) - 1,
  );
  problem.incumbentGpus = incumbentGpus;
  problem.incumbentSlotsPerGpu = incumbentSlotsPerGpu;
  if (random(2) === 0) problem.migrationCost = pick(random, [0, 1, 5000, 1e12, 1e-12]);
  if (random(2) === 0) problem.migrationBudget = random(layers * gpus * slotsPerGpu + 2);
}

const ARRAY_FIELDS = ['tokens', 'commCost', 'computeCost', 'incumbent'] as const;

/** One or two fields made strange: another value, another type, one element, another length. */
function spoil(problem: PlacementProblem, random: Random): Loose {
  const spoilt: Loose = { ...problem };
  for (let n = 1 + random(2); n > 0; n -= 1) {
    const field = pick(random, [
      ...Object.keys(problem),
      'migrationCost',
      'weights',
      'deadGpus',
      'layerIds',
      'oddKey',
    ]);
    const array = pick(random, ARRAY_FIELDS);
    switch (random(5)) {
      case 0:
        spoilt[field] = pick(random, NUMBERS);
        break;
      case 1:
        spoilt[field] = pick(random, STRANGERS)();
        break;
      case 2:
        delete spoilt[field];
        break;
      case 3:
        spoilt[array] = withElement(problem[array], pick(random, NUMBERS), random);
        break;
      default:
        spoilt[array] = withLength(problem[array], random);
    }
  }
  if (random(10) === 0) spoilt.weights = { load: pick(random, NUMBERS), commTotal: pick(random, NUMBERS) };
  return spoilt;
}

type Numbers = Uint32Array | Int32Array | Float64Array;

function withElement(array: unknown, value: number, random: Random): unknown {
  if (!ArrayBuffer.isView(array)) return value;
  const changed = (array as Numbers).slice();
  changed[random(changed.length)] = value;
  return changed;
}

function withLength(array: unknown, random: Random): unknown {
  if (!ArrayBuffer.isView(array)) return [];
  const numbers = array as Numbers;
  const type = numbers.constructor as new (length: number) => Numbers;
  return random(2) === 0 ? numbers.subarray(1) : new type(numbers.length + 1 + random(4));
}

function drawOptions(random: Random): PlanOptions {
  const options: Loose = {
    effort: 'fast',
    rounds: 1 + random(2),
    walkers: 1,
    threads: 1 + random(3),
    seed: random(100),
  };
  if (random(8) === 0) options[pick(random, Object.keys(options))] = pick(random, NUMBERS);
  if (random(8) === 0) options[pick(random, Object.keys(options))] = pick(random, STRANGERS)();
  if (random(8) === 0) options.timeLimitMs = pick(random, [0.001, 1, 1e9, Number.NaN, -1]);
  // Valid, but hours of work: not what this test asks about.
  for (const key of ['rounds', 'walkers'] as const) {
    if (typeof options[key] === 'number' && options[key] > 300) options.timeLimitMs = 5;
  }
  if (typeof options.walkers === 'number' && options.walkers > 300) options.walkers = 2 ** 31 - 1;
  if (typeof options.threads === 'number' && options.threads > 300) options.threads = 2 ** 31 - 1;
  return options as PlanOptions;
}

/** Resolves to the plan, or to the GimbalError it was refused with; anything else fails. */
async function planOrError(problem: Loose, options: PlanOptions): Promise<Plan | GimbalError> {
  return settle(() => planner.plan(problem as unknown as PlacementProblem, options));
}

async function settle<T>(call: () => Promise<T>): Promise<T | GimbalError> {
  const start = performance.now();
  try {
    return await call();
  } catch (error) {
    if (!(error instanceof GimbalError)) throw error;
    expect(error.code).not.toBe('GIMBAL_INTERNAL');
    expect(error.message).toMatch(/./);
    return error;
  } finally {
    expect(performance.now() - start).toBeLessThan(MAX_MILLISECONDS);
  }
}

/** A plan that came back keeps the constraints and is made of numbers. */
function expectSound(problem: PlacementProblem, plan: Plan): void {
  expect(violations(problem, plan.physicalToLogical)).toEqual([]);
  for (const row of plan.layers) {
    for (const [field, value] of Object.entries(row)) {
      if (field === 'gap') expect(value).toBeGreaterThanOrEqual(0);
      else expect(value, field).toSatisfy(Number.isFinite);
    }
    expect(row.lowerBound).toBeLessThanOrEqual(row.objective);
  }
  const { migrationBudget } = problem;
  if (migrationBudget === undefined || problem.incumbent === undefined) return;
  expect(plan.migrations - plan.forcedMigrations).toBeLessThanOrEqual(migrationBudget);
}

const hint = (n: number) => `GIMBAL_FUZZ_SEED=${SEED}, run ${n}`;

describe('fuzzed problems', () => {
  it('that are valid give sound plans, or are out of range', { timeout: 240_000 }, async () => {
    let plans = 0;
    for (let n = 0; n < RUNS; n += 1) {
      const random = randomOf(SEED + 7919 * n);
      const problem = drawProblem(random);
      const result = await planOrError(problem as unknown as Loose, {
        effort: 'fast',
        rounds: 1,
        walkers: 1,
        seed: n,
      }).catch((error) => {
        throw new Error(hint(n), { cause: error });
      });
      if (result instanceof GimbalError) {
        expect(result.code, `${hint(n)}: ${result.message}`).toBe('GIMBAL_OUT_OF_RANGE');
        continue;
      }
      plans += 1;
      expect(() => expectSound(problem, result), hint(n)).not.toThrow();
    }
    expect(plans).toBeGreaterThan(RUNS / 2);
  });

  it('that are spoilt give sound plans or errors that name a field', { timeout: 240_000 }, async () => {
    let refused = 0;
    for (let n = 0; n < RUNS; n += 1) {
      const random = randomOf(SEED + 7919 * n + 1);
      const spoilt = spoil(drawProblem(random), random);
      const result = await planOrError(spoilt, drawOptions(random)).catch((error) => {
        throw new Error(hint(n), { cause: error });
      });
      if (result instanceof GimbalError) {
        refused += 1;
        expect(result.field, `${hint(n)}: ${result.message}`).toMatch(/./);
        continue;
      }
      expect(() => expectSound(spoilt as unknown as PlacementProblem, result), hint(n)).not.toThrow();
    }
    expect(refused).toBeGreaterThan(RUNS / 3);
  });

  it('evaluate, hold and stream without a crash', { timeout: 240_000 }, async () => {
    for (let n = 0; n < RUNS / 2; n += 1) {
      const random = randomOf(SEED + 7919 * n + 2);
      const problem = drawProblem(random);
      const slots = problem.layers * problem.gpus * problem.slotsPerGpu;
      const length = random(4) === 0 ? slots + random(3) : slots * random(3);
      const candidates = Int32Array.from({ length }, () => random(problem.experts + 2) - 1);
      const given = pick<unknown>(random, [
        candidates,
        [candidates, candidates],
        candidates,
        pick(random, STRANGERS)(),
      ]);
      const spoilt = random(3) === 0 ? spoil(problem, random) : problem;
      const result = await settle(() =>
        evaluatePlacements(spoilt as unknown as PlacementProblem, given as Int32Array, { threads: 2 }),
      ).catch((error) => {
        throw new Error(hint(n), { cause: error });
      });
      if (!(result instanceof GimbalError)) expectNumbers(result, hint(n));
      const held = await settle(() => holdProblem(spoilt as unknown as PlacementProblem));
      if (!(held instanceof GimbalError)) held.release();
    }
  });
});

function expectNumbers(evaluation: Evaluation, what: string): void {
  const { objective, loadMax, commMax, commTotal, migrations } = evaluation;
  for (const values of [objective, loadMax, commMax, commTotal, migrations]) {
    for (const value of values) expect(value, what).toSatisfy(Number.isFinite);
  }
}
