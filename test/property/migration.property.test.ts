/** Properties of the schedules of random small migrations, carried out step by step by a replay of its own. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GimbalError, type MigrationProblem, scheduleMigration } from '../../lib/index.js';
import { replay } from '../reference/replay.js';
import { check } from './arbitraries.js';

const ENOUGH = 100_000;

interface Shape {
  layers: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  fromGpus: number;
  fromSlotsPerGpu: number;
  deadGpus: number[];
}

function shapes(): fc.Arbitrary<Shape> {
  const small = fc.integer({ min: 1, max: 4 });
  return fc
    .record({
      layers: fc.integer({ min: 1, max: 3 }),
      gpus: fc.integer({ min: 2, max: 5 }),
      slotsPerGpu: small,
    })
    .chain(({ layers, gpus, slotsPerGpu }) =>
      fc
        .record({
          fromGpus: fc.oneof(fc.constant(gpus), fc.integer({ min: 1, max: 5 })),
          fromSlotsPerGpu: fc.oneof(fc.constant(slotsPerGpu), small),
          deadGpus: fc.array(fc.integer({ min: 0, max: gpus - 1 }), { maxLength: 1 }),
        })
        .chain((from) => {
          const room = Math.min(
            (gpus - from.deadGpus.length) * slotsPerGpu,
            from.fromGpus * from.fromSlotsPerGpu,
          );
          const experts = fc.integer({ min: Math.ceil(room / 2), max: room });
          return experts.map((count) => ({ layers, gpus, slotsPerGpu, ...from, experts: count }));
        }),
    );
}

/** Every expert once on a live slot; the other slots hold any expert, twice on a GPU too, or none. */
function placements(
  layers: number,
  experts: number,
  gpus: number,
  slotsPerGpu: number,
  dead: number[],
): fc.Arbitrary<Int32Array> {
  const live = Array.from({ length: gpus * slotsPerGpu }, (_, slot) => slot).filter(
    (slot) => !dead.includes(Math.floor(slot / slotsPerGpu)),
  );
  const layer = fc
    .record({
      order: fc.shuffledSubarray(live, { minLength: live.length }),
      rest: fc.array(fc.integer({ min: -1, max: experts - 1 }), {
        minLength: live.length - experts,
        maxLength: live.length - experts,
      }),
    })
    .map(({ order, rest }) => {
      const row = new Array<number>(gpus * slotsPerGpu).fill(-1);
      order.forEach((slot, i) => {
        row[slot] = i < experts ? i : rest[i - experts]!;
      });
      return row;
    });
  return fc
    .array(layer, { minLength: layers, maxLength: layers })
    .map((rows) => Int32Array.from(rows.flat()));
}

function migrations(): fc.Arbitrary<MigrationProblem> {
  return shapes().chain((shape) => {
    const { layers, experts, gpus, slotsPerGpu, fromGpus, fromSlotsPerGpu, deadGpus } = shape;
    return fc
      .record({
        from: placements(layers, experts, fromGpus, fromSlotsPerGpu, []),
        to: placements(layers, experts, gpus, slotsPerGpu, deadGpus),
        commCost: fc.option(
          fc
            .array(fc.integer({ min: 0, max: 3 }), { minLength: gpus * gpus, maxLength: gpus * gpus })
            .map((costs) => Float64Array.from(costs)),
          { nil: undefined },
        ),
      })
      .map(({ from, to, commCost }) => ({
        ...shape,
        from,
        to,
        ...(commCost === undefined ? {} : { commCost }),
      }));
  });
}

describe('schedules of migrations', () => {
  it('keep every promise with any number of staging slots', { timeout: 120_000 }, () =>
    check(migrations(), 300, async (problem) => {
      let last = Number.POSITIVE_INFINITY;
      for (const stagingSlots of [1, 2, 3]) {
        const schedule = await scheduleMigration({ ...problem, stagingSlots });
        expect(replay(problem, schedule, stagingSlots)).toBe('');
        expect(Math.max(...schedule.stagingPeak)).toBeLessThanOrEqual(stagingSlots);
        expect(schedule.rounds).toBeGreaterThanOrEqual(schedule.lowerBound);
        expect(schedule.rounds).toBeLessThanOrEqual(last);
        last = schedule.rounds;
      }
    }),
  );

  it('reach the lower bound where staging suffices', { timeout: 120_000 }, () =>
    check(migrations(), 300, async (problem) => {
      const schedule = await scheduleMigration({ ...problem, stagingSlots: ENOUGH });
      expect(schedule.rounds).toBe(schedule.lowerBound);
      expect(replay(problem, schedule, Math.max(...schedule.stagingPeak))).toBe('');
    }),
  );

  it('do without staging or say that one slot is needed', { timeout: 120_000 }, () =>
    check(migrations(), 300, async (problem) => {
      try {
        const schedule = await scheduleMigration({ ...problem, stagingSlots: 0 });
        expect(replay(problem, schedule, 0)).toBe('');
      } catch (error) {
        expect(error).toBeInstanceOf(GimbalError);
        expect(error).toMatchObject({ code: 'GIMBAL_INFEASIBLE', field: 'stagingSlots', received: '0' });
      }
    }),
  );
});
