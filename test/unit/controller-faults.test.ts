/** What a controller calls goes wrong, or the controller itself dies: nothing is lost, and what is in force is known in the end. */
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type ControllerOptions, readPlacement } from '../../lib/index.js';
import {
  begin,
  changeTraffic,
  observeSkewed,
  type Rig,
  RULES,
  rig,
  SMALL,
  stopAll,
} from '../support/controller.js';

/** Which writes of files fail. */
const disk = vi.hoisted(() => ({ fail: (_path: string): boolean => false }));
vi.mock('../../lib/files.js', async (original) => {
  const real = await original<typeof import('../../lib/files.js')>();
  return {
    ...real,
    writeFileAtomic: async (file: string, data: Uint8Array | string) => {
      if (disk.fail(file)) {
        throw real.ioError(file, new Error('ENOSPC: no space left on device, write'));
      }
      await real.writeFileAtomic(file, data);
    },
  };
});

afterEach(async () => {
  disk.fail = () => false;
  await stopAll();
});

const first = async (of: Rig, over: Partial<ControllerOptions> = {}) => {
  const controller = await begin(of.again(over));
  return { controller, record: await controller.look() };
};

const numberOf = (planId: string | undefined) => Number(planId!.split('-')[1]);

describe('a hook', () => {
  it('that refuses, with the old plan in force for sure, leaves it without a rollback', async () => {
    const of = rig();
    const { controller } = await first(of);
    const before = controller.planId;
    changeTraffic(of);
    of.engines.faults = ['refuse'];
    expect(await controller.look()).toMatchObject({ decision: 'failed', reason: 'error', detail: 'refused' });
    expect(of.engines.changes).toHaveLength(2);
    expect(controller.planId).toBe(before);
    expect(controller.status().state).toBe('watching');
  });

  it('that fails half-way is rolled back, under a newer name', async () => {
    const of = rig();
    of.engines.faults = ['half'];
    const { controller, record } = await first(of);
    expect(record).toMatchObject({ decision: 'rolled-back', reason: 'error' });
    const [tried, back] = of.engines.changes;
    expect(back).toMatchObject({ isRollback: true });
    expect(back!.placement).toEqual(of.options.initial);
    expect(numberOf(back!.planId)).toBeGreaterThan(numberOf(tried!.planId));
    expect(controller.placement).toEqual(of.engines.placement);
    expect(controller.planId).toBe(of.engines.planId);
  });

  it('that succeeds after its time is up is committed where it says so', async () => {
    const of = rig();
    of.engines.faults = ['late'];
    const { controller, record } = await first(of);
    expect(record).toMatchObject({ decision: 'committed' });
    expect(controller.placement).toEqual(of.engines.placement);
    expect(of.engines.changes).toHaveLength(1);
  });

  it('that hangs is left when its time is up, and rolled back even if nothing is in force of it yet', async () => {
    const of = rig();
    const { controller } = await first(of);
    changeTraffic(of);
    const before = controller.placement;
    of.engines.faults = ['hang'];
    expect(await controller.look()).toMatchObject({
      decision: 'rolled-back',
      detail: expect.stringContaining('100 ms'),
    });
    expect(of.engines.placement).toEqual(before);
    // It comes about after all, much later.
    of.engines.planId = of.engines.changes[1]!.planId;
    of.engines.placement = of.engines.changes[1]!.placement;
    expect(await controller.look()).toMatchObject({ decision: 'rolled-back', reason: 'not-in-force' });
    expect(of.engines.placement).toEqual(before);
    expect(of.engines.planId).toBe(controller.planId);
  });

  it('that says it has done it, while the engines say that they have not, is not believed', async () => {
    const of = rig();
    const { apply } = of.engines;
    of.engines.planId = 'another';
    of.engines.apply = async (change) => {
      of.engines.changes.push(change);
      if (change.isRollback) await apply.call(of.engines, change);
    };
    const { controller, record } = await first(of);
    expect(record).toMatchObject({ decision: 'rolled-back', reason: 'not-in-force' });
    const next = await controller.look();
    expect(next).toMatchObject({
      decision: 'failed',
      reason: 'error',
      detail: expect.stringContaining('report plan'),
    });
    expect(controller.placement).toEqual(of.options.initial);
  });

  it('whose engines do not answer what is in force is taken at its word', async () => {
    const of = rig();
    of.engines.answers = false;
    const { controller, record } = await first(of);
    expect(record).toMatchObject({ decision: 'committed' });
    expect(controller.placement).toEqual(of.engines.placement);
  });

  it('whose rollback fails is asked again after a while, for the same plan', async () => {
    const of = rig();
    of.engines.faults = ['half', 'half'];
    const { controller, record } = await first(of);
    expect(record).toMatchObject({ decision: 'failed' });
    expect(controller.status().state).toBe('rolling-back');
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'backing-off' });
    // Two failures: twice the wait.
    of.clock.advance(RULES.backoffMs);
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'backing-off' });
    of.clock.advance(RULES.backoffMs);
    expect(await controller.look()).toMatchObject({ decision: 'rolled-back', reason: 'not-in-force' });
    const [, back, again] = of.engines.changes;
    expect(again!.planId).toBe(back!.planId);
    expect(controller.planId).toBe(again!.planId);
  });

  it('that fails again and again is asked ever more seldom, and for a new plan each time', async () => {
    const of = rig();
    of.engines.faults = Array(12).fill('refuse');
    of.engines.planId = undefined;
    const { controller } = await first(of);
    const waits: number[] = [];
    for (let waited = 0; waits.length < 3; waited += 5000) {
      of.clock.advance(5000);
      const calls = of.engines.changes.length;
      await controller.look();
      if (of.engines.changes.length === calls) continue;
      waits.push(waited);
      waited = 0;
    }
    expect(waits[1]!).toBeGreaterThan(waits[0]!);
    expect(waits[2]!).toBeGreaterThan(waits[1]!);
  });

  it('that fails for GPUs that are gone is not rolled back to them, but planned for anew', async () => {
    const of = rig({}, { ...SMALL, slotsPerGpu: 4 });
    const { controller } = await first(of);
    controller.setDeadGpus([0]);
    of.engines.faults = ['half'];
    expect(await controller.look()).toMatchObject({ decision: 'failed' });
    expect(of.engines.changes.filter(({ isRollback }) => isRollback)).toEqual([]);
    of.clock.advance(RULES.backoffMs);
    expect(await controller.look()).toMatchObject({ decision: 'committed', reason: 'gpus-changed' });
    expect(of.engines.placement).toEqual(controller.placement);
    expect(controller.placement).toContain(-1);
  });

  it('that takes no rollback, with the plan before in force, is left in peace', async () => {
    const of = rig();
    const { controller } = await first(of);
    changeTraffic(of);
    const before = controller.planId;
    of.engines.faults = ['hang', 'refuse'];
    expect(await controller.look()).toMatchObject({ decision: 'rolled-back' });
    expect(controller.planId).toBe(before);
    expect(controller.status().state).toBe('watching');
  });

  it('that has failed for long does not keep a plan for GPUs that are lost now waiting', async () => {
    const of = rig({}, { ...SMALL, slotsPerGpu: 4 });
    of.engines.faults = ['half', 'half', 'half'];
    const { controller } = await first(of);
    of.clock.advance(RULES.minIntervalMs);
    await controller.look();
    expect(await controller.look()).toMatchObject({ reason: 'backing-off' });
    controller.setDeadGpus([3]);
    expect(await controller.look()).toMatchObject({ decision: 'committed', reason: 'gpus-changed' });
  });

  it('that failed for GPUs that have come back meanwhile is rolled back then', async () => {
    const of = rig({}, { ...SMALL, slotsPerGpu: 4 });
    const { controller } = await first(of);
    const before = controller.placement;
    controller.setDeadGpus([0]);
    of.engines.faults = ['half'];
    await controller.look();
    controller.setDeadGpus([]);
    expect(await controller.look()).toMatchObject({ decision: 'rolled-back' });
    expect(of.engines.placement).toEqual(before);
  });
});

describe('a disk', () => {
  it('that is full for the exported file leaves the last good plan, on it and in force', async () => {
    const of = rig();
    const exportFile = path.join(of.folder, 'placement.json');
    const { controller } = await first(of, { exportFile });
    const [good, text] = [controller.placement, fs.readFileSync(exportFile, 'utf8')];
    changeTraffic(of);
    disk.fail = (file) => file === exportFile;
    const record = await controller.look();
    expect(record).toMatchObject({ decision: 'failed', detail: expect.stringContaining('ENOSPC') });
    expect(of.engines.changes).toHaveLength(1);
    expect(controller.placement).toEqual(good);
    expect(fs.readFileSync(exportFile, 'utf8')).toBe(text);
    disk.fail = () => false;
    of.clock.advance(RULES.backoffMs);
    expect(await controller.look()).toMatchObject({ decision: 'committed' });
  });

  it('that is full for the state when a change begins asks nothing of the engines', async () => {
    const of = rig();
    const controller = await begin(of.again());
    disk.fail = () => true;
    expect(await controller.look()).toMatchObject({ decision: 'failed' });
    expect(of.engines.changes).toEqual([]);
    expect(await controller.look()).toMatchObject({
      decision: 'failed',
      detail: expect.stringContaining('ENOSPC'),
    });
    disk.fail = () => false;
    of.clock.advance(3 * RULES.backoffMs);
    expect(await controller.look()).toMatchObject({ decision: 'committed' });
  });

  it('that is full for the state after the engines have it begins nothing new, and loses nothing', async () => {
    const of = rig();
    let full = false;
    disk.fail = () => full;
    of.engines.faults = [
      () => {
        full = true;
      },
    ];
    const { controller, record } = await first(of);
    expect(record).toMatchObject({ decision: 'committed' });
    expect(controller.placement).toEqual(of.engines.placement);
    changeTraffic(of);
    expect(await controller.look()).toMatchObject({ decision: 'failed' });
    expect(of.engines.changes).toHaveLength(1);
    // Dies now: the file says that it was about to apply, and the engines that they have it.
    full = false;
    const next = await begin(of.again());
    expect(next.placement).toEqual(of.engines.placement);
    expect(next.planId).toBe(of.engines.planId);
  });
});

describe('a state file', () => {
  it.each([
    ['damaged', (text: string) => text.replace(/"failures":0/, '"failures":1')],
    ['cut off', (text: string) => text.slice(0, text.length / 2)],
    ['empty', () => ''],
    ['of something else', () => '{"hello": 1}\n'],
    ['of a later version', (text: string) => text.replace('"version":1', '"version":2')],
  ])('that is %s is an error that says what to do, and is left as it is', async (_, spoil) => {
    const of = rig();
    await (await begin(of.controller)).stop();
    const spoilt = spoil(fs.readFileSync(of.options.stateFile, 'utf8'));
    fs.writeFileSync(of.options.stateFile, spoilt);
    await expect(of.again().start()).rejects.toMatchObject({
      code: 'GIMBAL_FORMAT',
      field: of.options.stateFile,
      received: expect.stringContaining('move it away'),
    });
    expect(fs.readFileSync(of.options.stateFile, 'utf8')).toBe(spoilt);
  });

  it('of another model is an error', async () => {
    const of = rig();
    await (await begin(of.controller)).stop();
    const other = rig({ stateFile: of.options.stateFile }, { ...SMALL, experts: 9 });
    await expect(other.controller.start()).rejects.toMatchObject({ code: 'GIMBAL_FORMAT', expected: '9' });
  });

  it('that is lost makes names that were never used', async () => {
    const of = rig();
    const { controller } = await first(of);
    const used = of.engines.planId;
    await controller.stop();
    fs.rmSync(of.options.stateFile);
    const { controller: next, record } = await first(of);
    // The engines hold a plan that nobody knows any more.
    expect(record).toMatchObject({ decision: 'rolled-back', reason: 'not-in-force' });
    expect(of.engines.placement).toEqual(of.options.initial);
    expect(next.planId.split('-')[0]).not.toBe(used!.split('-')[0]);
  });
});

/** Every write of the state in a change, and the hook before and after it acts. */
describe('a controller that dies', () => {
  /** From then on it does nothing more: neither the disk nor the hook hears of it. */
  class Dead extends Error {}

  async function dieAt(of: Rig, step: number, faults: Rig['engines']['faults']): Promise<boolean> {
    let steps = 0;
    const arrive = () => {
      steps += 1;
      if (steps >= step) throw new Dead('dead');
    };
    const apply = of.engines.apply.bind(of.engines);
    of.engines.faults = faults;
    const mortal = {
      verify: async (signal: AbortSignal) => {
        arrive();
        void signal;
        return await of.engines.verify();
      },
      apply: async (change: Parameters<typeof apply>[0]) => {
        arrive();
        await apply(change);
        arrive();
      },
    };
    const controller = of.again({ apply: mortal, exportFile: path.join(of.folder, 'placement.json') });
    disk.fail = () => {
      arrive();
      return false;
    };
    await controller.start().then(
      () => controller.look(),
      () => {},
    );
    // Of the process nothing is left; what a dead one would write in its stop is not written.
    disk.fail = () => true;
    await controller.stop();
    disk.fail = () => false;
    of.engines.faults = [];
    return steps >= step;
  }

  it('before anything was asked of the engines asks nothing of them when it is back', async () => {
    const of = rig();
    const exportFile = path.join(of.folder, 'placement.json');
    const controller = await begin(of.again({ exportFile }));
    disk.fail = (file) => {
      if (file !== exportFile) return false;
      // From here on it is dead.
      disk.fail = () => true;
      return true;
    };
    await controller.look();
    await controller.stop();
    disk.fail = () => false;
    const next = await begin(of.again({ exportFile }));
    expect(await next.look()).toMatchObject({ decision: 'kept', reason: 'backing-off' });
    expect(of.engines.changes).toEqual([]);
    expect((await readPlacement(exportFile, { gpus: SMALL.gpus })).physicalToLogical).toEqual(
      of.options.initial,
    );
  });

  it.each([
    ['in a change that goes well', []],
    ['in a change that fails half-way and is rolled back', ['half']],
  ] as const)(
    '%s, at any step of it, finds out where it was',
    async (_, faults) => {
      let step = 1;
      for (; ; step++) {
        const of = rig();
        // A placement that can be told from the first one of the next controller.
        const died = await dieAt(of, step, [...faults]);
        const next = await begin(of.again());
        const settled = await next.look();
        const told = `dead at step ${step}: ${JSON.stringify(settled)}`;
        for (let tries = 0; tries < 3; tries++) {
          of.clock.advance(10 * RULES.minIntervalMs);
          observeSkewed(of.statistics, SMALL);
          await next.look();
        }
        expect(next.status().state, told).toBe('watching');
        expect(next.placement, told).toEqual(of.engines.placement);
        expect(next.planId, told).toBe(of.engines.planId);
        const names = of.engines.changes.map(({ planId }) => numberOf(planId));
        expect(
          [...names].sort((a, b) => a - b),
          `${told}: names only grow`,
        ).toEqual(names);
        expect(of.engines.changes.length, told).toBeGreaterThan(0);
        expect(of.engines.changes.length, told).toBeGreaterThan(0);
        if (!died) break;
      }
      // Start, intent, file, applying, hook before and after, verify, committed at the least.
      expect(step).toBeGreaterThan(8);
    },
    60_000,
  );
});
