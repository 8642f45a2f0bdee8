/** evaluatePlacements: shapes, chunks, streams, errors that name the right candidate, and stopping. */
import { describe, expect, it } from 'vitest';
import { backends, evaluatePlacements, holdProblem, Planner } from '../../lib/index.js';
import { contiguous, makeProblem, type Shape, SMALL, shared } from '../support/problems.js';

const slots = SMALL.layers * SMALL.gpus * SMALL.slotsPerGpu;
const problem = makeProblem(SMALL);

/** `[count][layers][gpus * slotsPerGpu]`: the contiguous placement turned by one more slot each time. */
function turned(count: number, shape: Shape = SMALL): Int32Array {
  const one = contiguous(shape);
  const width = shape.gpus * shape.slotsPerGpu;
  return Int32Array.from({ length: count * one.length }, (_, i) => {
    const candidate = Math.floor(i / one.length);
    return one[(i + candidate) % width]!;
  });
}

async function* stream(...chunks: Int32Array[]) {
  yield* chunks;
}

describe('evaluatePlacements', () => {
  it('returns arrays [candidates][layers]', async () => {
    const evaluation = await evaluatePlacements(problem, turned(5));
    for (const field of ['objective', 'loadMax', 'commMax', 'commTotal', 'migrations'] as const) {
      expect(evaluation[field]).toBeInstanceOf(Float64Array);
      expect(evaluation[field]).toHaveLength(5 * SMALL.layers);
    }
    expect(new Set(evaluation.objective).size).toBeGreaterThan(1);
    expect(evaluation.migrations).toEqual(new Float64Array(10));
  });

  it('counts a load by hand', async () => {
    // One layer, one source, four experts on two GPUs: loads 1 + 2 and 3 + 4 tokens at 10 ns.
    const tiny = {
      layers: 1,
      sources: 1,
      experts: 4,
      gpus: 2,
      slotsPerGpu: 2,
      tokens: Uint32Array.of(1, 2, 3, 4),
    };
    const costs = { computeCost: 10, commCost: Float64Array.of(0, 5) };
    const incumbent = Int32Array.of(0, 1, 2, 3);
    const evaluation = await evaluatePlacements(
      { ...tiny, ...costs, incumbent },
      Int32Array.of(0, 1, 2, 3, 0, 3, 1, 2),
    );
    expect(evaluation.loadMax).toEqual(Float64Array.of(70, 50));
    expect(evaluation.commMax).toEqual(Float64Array.of(35, 25));
    expect(evaluation.commTotal).toEqual(Float64Array.of(35, 25));
    expect(evaluation.migrations).toEqual(Float64Array.of(0, 2));
  });

  it('is the same for an array, shared memory, a stream, an iterable and a held problem', async () => {
    const candidates = turned(7);
    const options = { backend: 'cpu' } as const;
    const expected = await evaluatePlacements(problem, candidates, options);
    const parts = [candidates.subarray(0, slots), new Int32Array(0), candidates.subarray(slots)];
    const held = await holdProblem(problem);
    const planner = new Planner();
    for (const evaluation of await Promise.all([
      evaluatePlacements(problem, shared(candidates), options),
      evaluatePlacements(problem, stream(...parts), options),
      evaluatePlacements(problem, parts, options),
      evaluatePlacements(held, candidates, options),
      planner.evaluate(held, candidates, { ...options, threads: 2 }),
    ])) {
      expect(evaluation).toEqual(expected);
    }
    held.release();
    planner.close();
  });

  it('says what ran, and why no GPU did', async () => {
    const cuda = backends().find(({ name }) => name === 'cuda')!;
    const { backend, backendReason } = await evaluatePlacements(problem, turned(1));
    expect(backend).toBe(cuda.available ? 'cuda' : 'cpu');
    expect(backendReason).toBe(cuda.available ? undefined : `cuda: ${cuda.reason}`);
    const forced = await evaluatePlacements(problem, turned(1), { backend: 'cpu' });
    expect(forced.backend).toBe('cpu');
    expect(forced.backendReason).toBeUndefined();
  });

  it('cuts what is larger than a chunk', async () => {
    // 3 candidates of 12 MiB together: more than one native call holds.
    const wide = { layers: 64, experts: 512, gpus: 512, slotsPerGpu: 32 };
    const tokens = new Uint32Array(wide.layers * wide.experts).fill(7);
    const large = { ...wide, sources: 1, tokens, computeCost: 1, commCost: new Float64Array(wide.gpus) };
    const candidates = turned(3, wide);
    const whole = await evaluatePlacements(large, candidates);
    const one = await evaluatePlacements(large, candidates.subarray((candidates.length / 3) * 2));
    expect(whole.objective).toHaveLength(3 * wide.layers);
    expect(whole.objective.subarray(2 * wide.layers)).toEqual(one.objective);
  });

  it('takes no candidates', async () => {
    const none = await evaluatePlacements(problem, new Int32Array(0));
    expect(none.objective).toEqual(new Float64Array(0));
    expect(await evaluatePlacements(problem, stream())).toEqual(none);
  });

  it('asks a stream for the next chunk only when it needs it, and closes it on failure', async () => {
    let given = 0;
    let closed = false;
    async function* endless() {
      try {
        for (;;) {
          given++;
          yield given === 3 ? new Int32Array(slots).fill(-5) : turned(1);
        }
      } finally {
        closed = true;
      }
    }
    await expect(evaluatePlacements(problem, endless())).rejects.toMatchObject({
      code: 'GIMBAL_INVALID_INPUT',
    });
    expect({ given, closed }).toEqual({ given: 3, closed: true });
  });

  it('names the first bad slot, counted over all chunks', async () => {
    const bad = turned(2);
    bad[slots + 12 + 4] = SMALL.experts;
    const where = (candidate: number) => `${SMALL.experts} in candidate ${candidate}, layer 1, slot 4`;
    const alone = evaluatePlacements(problem, bad);
    const expected = { code: 'GIMBAL_INVALID_INPUT', field: 'candidates' };
    await expect(alone).rejects.toMatchObject({ ...expected, received: where(1) });
    const later = evaluatePlacements(problem, stream(turned(10), bad));
    await expect(later).rejects.toMatchObject({
      ...expected,
      received: where(11),
      message: expect.stringContaining(where(11)),
    });
  });

  it.each([
    [turned(1).subarray(1), /candidates: expected a multiple of 24/],
    [new Uint32Array(slots), /an Int32Array/],
    [{}, /an Int32Array or an \(async\) iterable/],
    ['text', /an Int32Array or an \(async\) iterable/],
    [undefined, /received undefined/],
    [[turned(1), new Float32Array(2)], /candidates chunk 1: .*Float32Array of 2/],
  ])('refuses %o', async (candidates, message) => {
    const evaluation = evaluatePlacements(problem, candidates as unknown as Int32Array);
    await expect(evaluation).rejects.toMatchObject({
      code: 'GIMBAL_INVALID_INPUT',
      message: expect.stringMatching(message),
    });
  });

  it('stops between chunks when the signal aborts', async () => {
    const controller = new AbortController();
    const reason = new Error('enough');
    async function* forever() {
      for (let i = 0; ; i++) {
        if (i === 3) controller.abort(reason);
        yield turned(1);
      }
    }
    const evaluation = evaluatePlacements(problem, forever(), { signal: controller.signal });
    await expect(evaluation).rejects.toBe(reason);
    const late = evaluatePlacements(problem, turned(1), { signal: AbortSignal.abort(reason) });
    await expect(late).rejects.toBe(reason);
  });
});
