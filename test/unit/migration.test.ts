/** Schedules of migrations through the public interface: cases by hand, checks of every field, and that the replay can fail. */
import { describe, expect, it } from 'vitest';
import {
  GimbalError,
  type MigrationProblem,
  type MigrationSchedule,
  scheduleMigration,
} from '../../lib/index.js';
import { replay } from '../reference/replay.js';

const SWAP: MigrationProblem = {
  layers: 1,
  experts: 2,
  gpus: 2,
  slotsPerGpu: 1,
  from: Int32Array.of(0, 1),
  to: Int32Array.of(1, 0),
};

describe('scheduleMigration', () => {
  it('swaps two sole replicas in one round through a staging slot on each GPU', async () => {
    const schedule = await scheduleMigration({ ...SWAP, expertBytes: 44e6 });
    expect(schedule).toEqual({
      rounds: 1,
      lowerBound: 1,
      transfers: {
        round: Int32Array.of(0, 0),
        layer: Int32Array.of(0, 0),
        expert: Int32Array.of(1, 0),
        fromGpu: Int32Array.of(1, 0),
        fromSlot: Int32Array.of(0, 0),
        toGpu: Int32Array.of(0, 1),
        toSlot: Int32Array.of(1, 1),
      },
      roundStart: Int32Array.of(0, 2),
      localCopies: {
        round: Int32Array.of(1, 1),
        layer: Int32Array.of(0, 0),
        gpu: Int32Array.of(1, 0),
        fromSlot: Int32Array.of(1, 1),
        toSlot: Int32Array.of(0, 0),
      },
      storageLoads: {
        round: new Int32Array(0),
        layer: new Int32Array(0),
        expert: new Int32Array(0),
        toGpu: new Int32Array(0),
        toSlot: new Int32Array(0),
      },
      slotsPerGpu: 1,
      stagingPeak: Int32Array.of(1, 1),
      transferBytes: 88e6,
      stagingBytes: 44e6,
    });
  });

  it('refuses the swap without staging, and says how many slots it takes', async () => {
    await expect(scheduleMigration({ ...SWAP, stagingSlots: 0 })).rejects.toMatchObject({
      code: 'GIMBAL_INFEASIBLE',
      field: 'stagingSlots',
      expected: expect.stringMatching(/^at least 1, since expert \d of layer 0/),
      received: '0',
    });
  });

  it('has the nearest of equally busy holders send', async () => {
    const problem: MigrationProblem = {
      ...SWAP,
      experts: 1,
      gpus: 4,
      from: Int32Array.of(0, 0, -1, -1),
      to: Int32Array.of(0, 0, 0, -1),
    };
    const fromFirst = await scheduleMigration(problem);
    expect([...fromFirst.transfers.fromGpu]).toEqual([0]);
    // Two sources: the first two GPUs are one's, and 2 is nearer to the second's.
    const commCost = Float64Array.of(0, 9, 9, 9, 9, 0, 1, 9, 9, 1, 0, 9, 9, 9, 9, 0);
    const fromNear = await scheduleMigration({ ...problem, commCost });
    expect([...fromNear.transfers.fromGpu]).toEqual([1]);
    const sources = await scheduleMigration({ ...problem, sources: 2, commCost: commCost.slice(0, 8) });
    expect([...sources.transfers.fromGpu]).toEqual([0]);
  });

  it('lets GPUs that leave send, and GPUs that come receive', async () => {
    const shrink: MigrationProblem = {
      ...SWAP,
      experts: 2,
      slotsPerGpu: 2,
      gpus: 1,
      fromGpus: 2,
      fromSlotsPerGpu: 1,
      to: Int32Array.of(1, 0),
    };
    const shrunk = await scheduleMigration(shrink);
    expect(replay(shrink, shrunk, 1)).toBe('');
    expect([...shrunk.transfers.fromGpu]).toEqual([1]);
    const grow: MigrationProblem = { ...SWAP, gpus: 3, fromGpus: 2, to: Int32Array.of(0, 1, 1) };
    const grown = await scheduleMigration(grow);
    expect(replay(grow, grown, 1)).toBe('');
    expect(grown.stagingPeak.length).toBe(3);
  });

  it('is the same every time, from plain and from shared memory', async () => {
    const from = Int32Array.from({ length: 64 }, (_, slot) => slot % 48);
    const to = Int32Array.from({ length: 64 }, (_, slot) => ((slot * 5) % 64) % 48);
    const problem = { layers: 1, experts: 48, gpus: 16, slotsPerGpu: 4, from, to };
    const first = await scheduleMigration(problem);
    expect(replay(problem, first, 4)).toBe('');
    const shared = new Int32Array(new SharedArrayBuffer(from.byteLength));
    shared.set(from);
    expect(await scheduleMigration({ ...problem, from: shared })).toEqual(first);
  });

  it('stops for a signal, with its reason', async () => {
    const reason = new Error('enough');
    await expect(scheduleMigration(SWAP, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  it.each<[string, Partial<Record<keyof MigrationProblem | 'form', unknown>>, string]>([
    ['an unknown key', { form: 1 }, 'problem.form'],
    ['a length', { to: Int32Array.of(0) }, 'to'],
    ['a type', { from: [0, 1] }, 'from'],
    ['an expert that is none', { from: Int32Array.of(0, 2) }, 'from'],
    ['an expert that would be nowhere', { to: Int32Array.of(0, 0) }, 'to'],
    ['an expert on a dead GPU', { deadGpus: [1] }, 'to'],
    ['a dead GPU that does not exist', { deadGpus: [2] }, 'deadGpus[0]'],
    ['costs of another shape', { commCost: new Float64Array(3) }, 'commCost'],
    ['costs that are none', { commCost: Float64Array.of(0, Number.NaN, 1, 0) }, 'commCost[1]'],
    ['staging slots', { stagingSlots: -1 }, 'stagingSlots'],
    ['bytes', { expertBytes: 0 }, 'expertBytes'],
  ])('names the field: %s', async (_, wrong, field) => {
    const error = await scheduleMigration({ ...SWAP, ...wrong } as MigrationProblem).catch(
      (thrown) => thrown,
    );
    expect(error).toBeInstanceOf(GimbalError);
    expect(error).toMatchObject({ code: 'GIMBAL_INVALID_INPUT', field });
  });
});

describe('the replay', () => {
  const problem: MigrationProblem = {
    layers: 1,
    experts: 4,
    gpus: 2,
    slotsPerGpu: 2,
    from: Int32Array.of(0, 1, 2, 3),
    to: Int32Array.of(2, 3, 0, 1),
  };
  const faulty = async (fault: (schedule: MigrationSchedule) => void) => {
    const schedule = await scheduleMigration(problem);
    expect(replay(problem, schedule, 1)).toBe('');
    fault(schedule);
    return replay(problem, schedule, 1);
  };

  it('finds planted faults', async () => {
    expect(await faulty(({ transfers }) => transfers.fromSlot.fill(1))).toMatch(/sends what is not there/);
    expect(await faulty(({ transfers }) => transfers.toSlot.fill(3))).toMatch(/no slot 3/);
    expect(await faulty(({ transfers }) => transfers.toSlot.fill(0))).toMatch(/overwritten|nowhere/);
    expect(await faulty(({ transfers }) => transfers.toGpu.fill(0))).toMatch(/receives twice/);
    expect(await faulty(({ transfers }) => transfers.fromGpu.fill(0))).toMatch(/sends twice/);
    expect(await faulty(({ localCopies }) => localCopies.round.fill(0))).toMatch(
      /not there|nowhere|ends wrong/,
    );
    expect(await faulty(({ localCopies }) => localCopies.toSlot.fill(0))).toMatch(/nowhere|ends wrong/);
  });
});
