/** Each way a caller can be wrong, and the field that the error names. */
import { createContext, runInContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { GimbalError, type PlacementProblem, type PlanOptions, planPlacement } from '../../lib/index.js';
import { checkCandidates, checkEvaluateOptions, checkPlanOptions, checkProblem } from '../../lib/validate.js';
import { contiguous, makeProblem, SMALL, shared } from '../support/problems.js';

function caught(run: () => unknown): GimbalError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(GimbalError);
    return error as GimbalError;
  }
  throw new Error('nothing was thrown');
}

function detached<T extends Uint32Array | Int32Array | Float64Array>(array: T): T {
  structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] });
  return array;
}

const base = () => makeProblem(SMALL);
const slots = SMALL.layers * SMALL.gpus * SMALL.slotsPerGpu;

/** field that the error names | what is wrong | part of the message */
const wrongProblems: [string, Record<string, unknown>, RegExp][] = [
  ['layers', { layers: 0 }, /an integer of 1 to .* received 0/],
  ['layers', { layers: 1.5 }, /received 1.5/],
  ['layers', { layers: '2' }, /received "2"/],
  ['layers', { layers: undefined }, /received undefined/],
  ['sources', { sources: -4 }, /received -4/],
  ['experts', { experts: Number.NaN }, /received NaN/],
  ['gpus', { gpus: 2 ** 31 }, /received 2147483648/],
  ['slotsPerGpu', { slotsPerGpu: Number.POSITIVE_INFINITY }, /received Infinity/],
  ['tokens', { tokens: new Uint32Array(63) }, /64 elements, \[layers\]\[sources\]\[experts\] .* 63 elements/],
  ['tokens', { tokens: new Float32Array(64) }, /Uint32Array .* received Float32Array of 64/],
  ['tokens', { tokens: new Int32Array(64) }, /received Int32Array of 64/],
  ['tokens', { tokens: Array(64).fill(1) }, /received an array of 64/],
  ['tokens', { tokens: detached(new Uint32Array(64)) }, /attached buffer .* transferred away/],
  ['computeCost', { computeCost: -1 }, /at least 0 .* received -1/],
  ['computeCost', { computeCost: '200' }, /a number or a Float64Array \[gpus\]/],
  ['computeCost', { computeCost: new Float64Array(3) }, /4 elements/],
  ['computeCost', { computeCost: new Float32Array(4) }, /received Float32Array of 4/],
  ['computeCost[2]', { computeCost: Float64Array.of(1, 1, Number.NaN, 1) }, /received NaN/],
  ['commCost', { commCost: new Float64Array(15) }, /16 elements, \[sources\]\[gpus\]/],
  ['commCost[5]', { commCost: new Float64Array(16).fill(-0.5, 5, 6) }, /received -0.5/],
  [
    'commCost[3]',
    { commCost: shared(new Float64Array(16).fill(Number.POSITIVE_INFINITY, 3, 4)) },
    /Infinity/,
  ],
  ['replicaChoice', { replicaChoice: 'neerest' }, /did you mean 'nearest'/],
  ['replicaChoice', { replicaChoice: null }, /^(?!.*did you mean)/],
  ['weights', { weights: 3 }, /an object but received 3/],
  ['weights.laod', { weights: { laod: 1 } }, /did you mean load/],
  ['weights.load', { weights: { load: -1 } }, /received -1/],
  ['weights.commTotal', { weights: { commTotal: Number.NaN } }, /received NaN/],
  ['migrationCost', { migrationCost: -3 }, /received -3/],
  ['migrationBudget', { migrationBudget: 2.5 }, /received 2.5/],
  ['migrationBudget', { migrationBudget: -1 }, /received -1/],
  ['incumbent', { incumbent: new Int32Array(slots - 1) }, /24 elements, .* 23 elements/],
  ['incumbent', { incumbent: new Int32Array(slots), incumbentGpus: 5 }, /30 elements/],
  ['incumbent', { incumbent: new Uint32Array(slots) }, /Int32Array .* Uint32Array/],
  ['incumbentGpus', { incumbentGpus: 4 }, /no incumbent/],
  ['incumbentSlotsPerGpu', { incumbent: new Int32Array(slots), incumbentSlotsPerGpu: 0 }, /received 0/],
  ['deadGpus', { deadGpus: 3 }, /an array of GPU ids/],
  ['deadGpus[1]', { deadGpus: [0, 4] }, /0 to 3 but received 4/],
  ['deadGpus[0]', { deadGpus: [0.5] }, /received 0.5/],
  ['deadGpus[2]', { deadGpus: [1, 2, 1] }, /at most once but received 1 again/],
  ['allowDuplicates', { allowDuplicates: 1 }, /true or false/],
  ['layerIds', { layerIds: new Int32Array(3) }, /2 elements/],
  ['layerIds[1]', { layerIds: Int32Array.of(3, 3) }, /also at 0/],
  ['layerIds[0]', { layerIds: Int32Array.of(-1, 0) }, /received -1/],
  ['problem.migrationBuget', { migrationBuget: 3 }, /did you mean migrationBudget/],
  ['problem.tokensPerGpu', { tokensPerGpu: 3 }, /an unknown key/],
];

const wrongOptions: [string, Record<string, unknown>, RegExp][] = [
  ['options.backend', { backend: 'gpu' }, /'auto', 'cpu', 'cuda' but received "gpu"/],
  ['options.backend', { backend: 'cdua' }, /did you mean 'cuda'/],
  ['options.effort', { effort: 'quick' }, /'fast', 'balanced', 'thorough'/],
  ['options.walkers', { walkers: 0 }, /received 0/],
  ['options.rounds', { rounds: 1.5 }, /received 1.5/],
  ['options.threads', { threads: -1 }, /received -1/],
  ['options.seed', { seed: -1 }, /received -1/],
  ['options.seed', { seed: 2 ** 53 }, /safe integer/],
  ['options.seed', { seed: 2n ** 64n }, /received 18446744073709551616n/],
  ['options.seed', { seed: -1n }, /received -1n/],
  ['options.seed', { seed: '1' }, /received "1"/],
  ['options.timeLimitMs', { timeLimitMs: 0 }, /above 0/],
  ['options.timeLimitMs', { timeLimitMs: Number.POSITIVE_INFINITY }, /received Infinity/],
  ['options.signal', { signal: {} }, /an AbortSignal but received an object/],
  ['options.onProgress', { onProgress: 'log' }, /a function but received "log"/],
  ['options.sead', { sead: 1 }, /did you mean seed/],
];

describe('a wrong problem', () => {
  it.each(wrongProblems)('%s %o', (field, change, message) => {
    const error = caught(() => checkProblem({ ...base(), ...change } as PlacementProblem));
    expect(error).toMatchObject({ code: 'GIMBAL_INVALID_INPUT', field });
    expect(error.message).toMatch(message);
    expect(error.message).toBe(`${field}: expected ${error.expected} but received ${error.received}`);
  });

  it.each([[undefined], [null], [3], [[]]])('that is no object: %o', (problem) => {
    expect(caught(() => checkProblem(problem as unknown as PlacementProblem)).field).toBe('problem');
  });

  it('with sizes that no array can hold', () => {
    const problem = { ...base(), layers: 2 ** 20, sources: 2 ** 20, experts: 2 ** 20 };
    expect(caught(() => checkProblem(problem))).toMatchObject({
      code: 'GIMBAL_OUT_OF_RANGE',
      field: 'tokens',
    });
  });

  it('rejects the promise and does not throw', async () => {
    const promise = planPlacement({ ...base(), layers: 0 });
    await expect(promise).rejects.toMatchObject({ name: 'GimbalError', field: 'layers' });
  });
});

describe('wrong options', () => {
  it.each(wrongOptions)('%s %o', (field, options, message) => {
    const error = caught(() => checkPlanOptions(options as PlanOptions));
    expect(error).toMatchObject({ code: 'GIMBAL_INVALID_INPUT', field });
    expect(error.message).toMatch(message);
  });

  it('of a plan are not those of an evaluation', () => {
    expect(caught(() => checkEvaluateOptions({ seed: 1 } as object)).field).toBe('options.seed');
  });
});

describe('what is right', () => {
  it('comes out complete', () => {
    const checked = checkProblem(base());
    expect(checked.computeCost).toEqual(new Float64Array(4).fill(200));
    expect(checked).toMatchObject({
      replicaChoice: 'even',
      weights: {},
      migrationCost: 0,
      migrationBudget: -1,
      incumbent: undefined,
      deadGpus: new Int32Array(0),
      allowDuplicates: false,
    });
  });

  it('takes an incumbent of another shape', () => {
    const incumbent = new Int32Array(SMALL.layers * 5 * 2);
    const checked = checkProblem({ ...base(), incumbent, incumbentGpus: 5, incumbentSlotsPerGpu: 2 });
    expect(checked).toMatchObject({ incumbent, incumbentGpus: 5, incumbentSlotsPerGpu: 2 });
  });

  it('takes explicit undefined for absent, and what topology() adds', () => {
    const problem = {
      ...base(),
      nodes: 1,
      gpusPerNode: 4,
      explanation: [],
      weights: undefined,
      deadGpus: undefined,
    };
    expect(() => checkProblem(problem as unknown as PlacementProblem)).not.toThrow();
    expect(checkPlanOptions({ walkers: undefined, backend: undefined } as object)).toMatchObject({
      walkers: 0,
      backend: 'auto',
      effort: 'balanced',
      seed: 0n,
    });
  });

  it('takes the whole range of seeds', () => {
    expect(checkPlanOptions({ seed: Number.MAX_SAFE_INTEGER }).seed).toBe(2n ** 53n - 1n);
    expect(checkPlanOptions({ seed: 2n ** 64n - 1n }).seed).toBe(2n ** 64n - 1n);
  });

  it('takes arrays of another realm', () => {
    const tokens = runInContext('new Uint32Array(64)', createContext()) as Uint32Array;
    expect(tokens).not.toBeInstanceOf(Uint32Array);
    expect(checkProblem({ ...base(), tokens }).tokens).toBe(tokens);
  });
});

describe('candidates', () => {
  it('are counted', () => {
    expect(checkCandidates('candidates', contiguous(SMALL), slots)).toBe(1);
    expect(checkCandidates('candidates', new Int32Array(0), slots)).toBe(0);
  });

  it.each([
    [new Int32Array(slots + 1), /a multiple of 24 entries/],
    [new Uint32Array(slots), /an Int32Array/],
    [detached(new Int32Array(slots)), /transferred away/],
    ['x', /received "x"/],
  ])('that are wrong: %o', (candidates, message) => {
    expect(caught(() => checkCandidates('candidates', candidates, slots)).message).toMatch(message);
  });
});
