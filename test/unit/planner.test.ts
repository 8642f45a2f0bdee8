/** What planPlacement and Planner promise a caller, apart from the quality of the placement. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { afterAll, describe, expect, it } from 'vitest';
import { backends, holdProblem, type PlacementProblem, Planner, planPlacement } from '../../lib/index.js';
import { contiguous, makeProblem, SMALL, shared } from '../support/problems.js';

/** Some tens of milliseconds at effort fast, so that plans overlap and progress is seen. */
const MEDIUM = { layers: 24, experts: 64, gpus: 16, slotsPerGpu: 5 };
const planner = new Planner();
afterAll(() => planner.close());

describe('a plan', () => {
  it('has the documented shapes and sums', async () => {
    const problem = makeProblem(SMALL);
    const plan = await planPlacement(problem, { seed: 7, backend: 'cpu' });
    const { layers, experts, gpus, slotsPerGpu } = SMALL;
    expect(plan.physicalToLogical).toBeInstanceOf(Int32Array);
    expect(plan.physicalToLogical).toHaveLength(layers * gpus * slotsPerGpu);
    expect(plan.replicaCount).toHaveLength(layers * experts);
    expect(plan.layers).toHaveLength(layers);
    expect(plan).toMatchObject({ backend: 'cpu', seed: 7, migrations: 0, forcedMigrations: 0 });
    expect(plan.backendDetail).not.toBe('');
    expect(plan.backendReason, 'only what was free to choose has a reason').toBeUndefined();
    expect(plan.rounds).toBeGreaterThan(0);
    expect(plan.walkers).toBeGreaterThan(0);
    expect(plan.elapsedMs).toBeGreaterThan(0);
    const sum = (field: 'objective' | 'lowerBound') =>
      plan.layers.reduce((total, row) => total + row[field], 0);
    expect(plan.objective).toBeCloseTo(sum('objective'), 3);
    expect(plan.gap).toBeCloseTo(plan.objective / plan.lowerBound - 1, 9);
    for (const row of plan.layers) {
      expect(row.objective).toBeGreaterThanOrEqual(row.lowerBound);
      expect(row.loadMax).toBeGreaterThan(0);
      expect(row.gap).toBeCloseTo(row.objective / row.lowerBound - 1, 9);
    }
    const counted = new Int32Array(layers * experts);
    plan.physicalToLogical.forEach((expert, slot) => {
      counted[Math.floor(slot / (gpus * slotsPerGpu)) * experts + expert]!++;
    });
    expect(plan.replicaCount).toEqual(counted);
  });

  it('has terms that evaluation agrees with', async () => {
    const problem = makeProblem(SMALL);
    const plan = await planner.plan(problem);
    const evaluation = await planner.evaluate(problem, plan.physicalToLogical);
    for (const field of ['objective', 'loadMax', 'commMax', 'commTotal'] as const) {
      expect(Array.from(evaluation[field])).toEqual(plan.layers.map((row) => row[field]));
    }
  });

  it('marks the slots of dead GPUs', async () => {
    const plan = await planPlacement({ ...makeProblem(SMALL), deadGpus: [1] });
    const dead = plan.physicalToLogical.filter((_, slot) => Math.floor((slot % 12) / 3) === 1);
    expect(dead).toEqual(new Int32Array(6).fill(-1));
  });

  it('gives a large seed back as it came', async () => {
    const seed = 2n ** 64n - 1n;
    expect((await planPlacement(makeProblem(SMALL), { seed })).seed).toBe(seed);
    expect((await planPlacement(makeProblem(SMALL), { seed: 5n })).seed).toBe(5);
  });

  it('is the same whatever keeps the buffers, the memory and the threads', async () => {
    const problem = makeProblem(MEDIUM);
    const incumbent = contiguous(MEDIUM);
    const options = { effort: 'fast', seed: 3 } as const;
    const expected = await planPlacement({ ...problem, incumbent }, { ...options, threads: 1 });
    const inSharedMemory: PlacementProblem = {
      ...problem,
      tokens: shared(problem.tokens),
      commCost: shared(problem.commCost),
      incumbent: shared(incumbent),
    };
    const held = await holdProblem({ ...problem, incumbent });
    const plans = await Promise.all([
      planner.plan({ ...problem, incumbent }, options),
      planner.plan(inSharedMemory, options),
      planPlacement(inSharedMemory, { ...options, threads: 3 }),
      planPlacement(held, options),
      planner.plan(held, options),
    ]);
    held.release();
    for (const plan of plans) {
      expect(plan.physicalToLogical).toEqual(expected.physicalToLogical);
      expect(plan.objective).toBe(expected.objective);
    }
  });

  it('does not see what the next problem in the same buffers changes', async () => {
    const first = makeProblem(MEDIUM, 1);
    const second = makeProblem(SMALL, 2);
    const [alone, alsoAlone] = [await planPlacement(first), await planPlacement(second)];
    for (const [problem, expected] of [
      [first, alone],
      [second, alsoAlone],
      [first, alone],
    ] as const) {
      expect((await planner.plan(problem)).physicalToLogical).toEqual(expected.physicalToLogical);
    }
  });
});

describe('a planner', () => {
  it('is as good as before after an error', async () => {
    const problem = makeProblem(SMALL);
    const before = await planner.plan(problem);
    await expect(planner.plan({ ...problem, slotsPerGpu: 1 })).rejects.toMatchObject({
      code: 'GIMBAL_INFEASIBLE',
    });
    const stray = { ...problem, incumbent: new Int32Array(24).fill(99) };
    await expect(planner.plan(stray)).rejects.toMatchObject({
      code: 'GIMBAL_INVALID_INPUT',
      field: expect.stringMatching(/^incumbent/),
      received: expect.stringContaining('99'),
    });
    expect((await planner.plan(problem)).physicalToLogical).toEqual(before.physicalToLogical);
  });

  it('refuses calls once closed, and may be closed twice', async () => {
    const own = new Planner();
    const running = own.plan(makeProblem(MEDIUM), { effort: 'fast' });
    own.close();
    own[Symbol.dispose]();
    expect((await running).layers).toHaveLength(MEDIUM.layers);
    await expect(own.plan(makeProblem(SMALL))).rejects.toMatchObject({ field: 'planner' });
    await expect(own.evaluate(makeProblem(SMALL), contiguous(SMALL))).rejects.toMatchObject({
      field: 'planner',
    });
  });

  it('runs many plans at once, each its own', async () => {
    const problems = Array.from({ length: 40 }, (_, i) => makeProblem(SMALL, i + 1));
    const together = await Promise.all(problems.map((problem, i) => planner.plan(problem, { seed: i })));
    for (const [i, problem] of problems.entries()) {
      const alone = await planPlacement(problem, { seed: i });
      expect(together[i]!.physicalToLogical).toEqual(alone.physicalToLogical);
      expect(together[i]!.seed).toBe(i);
    }
  });
});

describe('a held problem', () => {
  it('knows its sizes, and may change no more', async () => {
    const problem = makeProblem(SMALL);
    const held = await holdProblem(problem);
    expect(held).toMatchObject({ ...SMALL, sources: 4 });
    const before = await planPlacement(held);
    problem.tokens.fill(0);
    expect((await planPlacement(held)).objective).toBe(before.objective);
  });

  it('is gone once released', async () => {
    const held = await holdProblem(makeProblem(SMALL));
    held.release();
    held[Symbol.dispose]();
    await expect(planPlacement(held)).rejects.toMatchObject({ field: 'problem' });
  });

  it('is checked like any other', async () => {
    await expect(holdProblem({ ...makeProblem(SMALL), gpus: 0 })).rejects.toMatchObject({ field: 'gpus' });
  });
});

describe('progress', () => {
  it('rises, is coalesced, and ends with all done', async () => {
    const seen: { done: number; total: number; at: number }[] = [];
    await planPlacement(makeProblem(MEDIUM), {
      effort: 'balanced',
      onProgress: ({ done, total }) => seen.push({ done, total, at: performance.now() }),
    });
    const last = seen.at(-1)!;
    expect(last.done).toBe(last.total);
    for (const [i, event] of seen.entries()) {
      expect(event.total).toBe(last.total);
      expect(event.done).toBeGreaterThan(i === 0 ? -1 : seen[i - 1]!.done);
    }
    const spanMs = last.at - seen[0]!.at;
    expect(seen.length).toBeLessThanOrEqual(2 + Math.ceil(spanMs / 24));
  });

  it('comes in the async context of the call', async () => {
    const storage = new AsyncLocalStorage<string>();
    const contexts = new Set<string | undefined>();
    const onProgress = () => contexts.add(storage.getStore());
    await storage.run('mine', () => planPlacement(makeProblem(SMALL), { onProgress }));
    expect([...contexts]).toEqual(['mine']);
  });

  it('that throws stops the plan, which rejects with what was thrown', async () => {
    const thrown = new Error('from the listener');
    const onProgress = () => {
      throw thrown;
    };
    await expect(planPlacement(makeProblem(MEDIUM), { effort: 'thorough', onProgress })).rejects.toBe(thrown);
    await expect(planPlacement(makeProblem(SMALL), { effort: 'fast', onProgress })).rejects.toBe(thrown);
  });
});

describe('a time limit', () => {
  it('stops between rounds, and the plan says how many it ran', async () => {
    const options = { rounds: 1_000_000, timeLimitMs: 30 };
    const plan = await planPlacement(makeProblem(MEDIUM), options);
    expect(plan.rounds).toBeGreaterThan(0);
    expect(plan.rounds).toBeLessThan(options.rounds);
  });
});

describe('backends', () => {
  it('lists what there is, and says why the rest is not available', () => {
    const found = backends();
    expect(found.map(({ name }) => name)).toEqual(['cpu', 'cuda']);
    expect(found[0]).toMatchObject({ available: true, description: expect.stringMatching(/./) });
    for (const backend of found) {
      expect(typeof backend.reason).toBe(backend.available ? 'undefined' : 'string');
    }
  });

  it('does not fall back from a backend that was asked for by name', async () => {
    const cuda = backends().find(({ name }) => name === 'cuda')!;
    const plan = planPlacement(makeProblem(SMALL), { backend: 'cuda' });
    if (cuda.available) expect((await plan).backend).toBe('cuda');
    else await expect(plan).rejects.toMatchObject({ code: 'GIMBAL_BACKEND_UNAVAILABLE', field: 'backend' });
  });

  it('says in the plan why a free choice took no GPU', async () => {
    const cuda = backends().find(({ name }) => name === 'cuda')!;
    const { backend, backendReason } = await planPlacement(makeProblem(SMALL));
    expect(backend).toBe(cuda.available ? 'cuda' : 'cpu');
    expect(backendReason).toBe(cuda.available ? undefined : `cuda: ${cuda.reason}`);
  });
});
