/** What the placement side tells the simulated dispatcher, part by part, with groups and rearrangements that are set by hand. */
import { describe, expect, it } from 'vitest';
import { expertPressure } from '../../lib/controller/pressure.js';
import type { CheckedSimulation } from '../../lib/simulator/check.js';
import { Feedback } from '../../lib/simulator/feedback.js';
import type { Group } from '../../lib/simulator/group.js';
import type { Rearranger } from '../../lib/simulator/rearrange.js';
import { RequestColumns } from '../../lib/simulator/requests.js';
import type { RoutingTables } from '../../lib/simulator/routing.js';

const COSTS = {
  layers: 1,
  sources: 2,
  experts: 4,
  gpus: 2,
  slotsPerGpu: 4,
  replicaChoice: 'even' as const,
  computeCost: 100,
  commCost: Float64Array.of(0, 30, 10, 0),
};
/** By group: `[sources][experts]`, `[gpus * slotsPerGpu]`, and GPUs that are lost. */
const TOKENS = [Uint32Array.of(9, 1, 3, 2, 1, 1, 4, 8), Uint32Array.of(1, 7, 1, 1, 2, 2, 2, 9)];
const PLACEMENTS = [Int32Array.of(0, 1, -1, -1, 2, 3, -1, -1), Int32Array.of(0, 1, 2, 3, 3, -1, -1, -1)];
const DEAD = [[], [1]];
/** Every token goes to expert 1. */
const TABLES: RoutingTables = {
  profiles: 1,
  layers: 1,
  experts: 4,
  chance: Float32Array.of(0, 1, 0, 0),
  logMiss: new Float32Array(4),
};
const TENANTS = 60;

function make(policy: { feedback: boolean; affinity: boolean }, moeLayers = 1) {
  const groups = PLACEMENTS.map((placement, n) => ({ load: { placement }, deadGpus: new Set(DEAD[n]) }));
  const rearrangers = TOKENS.map((own, n) => ({
    problem: COSTS,
    tokens: (group: unknown) => (group === groups[n] ? own : new Uint32Array(own.length)),
  }));
  const trace = Array.from({ length: TENANTS }, () => ({
    arrivalMs: 0,
    inputTokens: 10,
    outputTokens: 1,
    tenant: 'a',
  }));
  return new Feedback(
    { policy, shape: { ranks: 2 }, model: { topK: 1, moeLayers }, seed: 1 } as unknown as CheckedSimulation,
    groups as unknown as Group[],
    rearrangers as unknown as Rearranger[],
    TABLES,
    new RequestColumns(trace),
    trace,
  );
}

describe('pressure', () => {
  it('of each group’s engines is of its own tokens, under its placement in force, without its lost GPUs', () => {
    const expected = [0, 1].flatMap((n) => {
      const own = expertPressure({
        ...COSTS,
        tokens: TOKENS[n]!,
        placement: PLACEMENTS[n]!,
        deadGpus: DEAD[n]!,
      });
      return [0, 1].map((source) => ({
        engine: 2 * n + source,
        moePressure: own.moePressure[source]!,
        commExcess: own.commExcess[source]!,
      }));
    });
    expect(make({ feedback: true, affinity: false }).due(0)).toEqual(expected);
    // Nothing above would be told apart were all of it 0.
    expect(expected.some(({ moePressure }) => moePressure > 0.1)).toBe(true);
    expect(expected.some(({ commExcess }) => commExcess > 0.1)).toBe(true);
  });

  it('is told every second, and at the next occasion once a placement has come in force', () => {
    const feedback = make({ feedback: true, affinity: false });
    const told = (nowMs: number) => feedback.due(nowMs) !== undefined;
    expect([0, 999, 1000, 1100].map(told)).toEqual([true, false, true, false]);
    feedback.placed();
    expect([1100, 2000, 2100].map(told)).toEqual([true, false, true]);
  });
});

describe('what a request’s experts take', () => {
  const told = (policy: { feedback: boolean; affinity: boolean }, moeLayers?: number) => {
    const feedback = make(policy, moeLayers);
    const pressures = feedback.due(0);
    for (let id = 0; id < TENANTS; id++) feedback.finished(id);
    const expertMs = feedback.expertMs(0);
    return { pressures, expertMs: expertMs === undefined ? undefined : [...expertMs] };
  };

  it('is told with affinity alone, and pressure with feedback alone', () => {
    const near = told({ feedback: false, affinity: true });
    expect(near.pressures).toBeUndefined();
    // Ten tokens for expert 1 on GPU 0, which is the first engine's own.
    expect(near.expertMs).toHaveLength(4);
    expect(near.expertMs![1]).toBeGreaterThan(near.expertMs![0]!);
    const loaded = told({ feedback: true, affinity: false });
    expect(loaded.pressures).toHaveLength(4);
    expect(loaded.expertMs).toBeUndefined();
  });

  it('is that of all layers, where one that is simulated stands for several', () => {
    const [one, six] = [1, 6].map((layers) => told({ feedback: false, affinity: true }, layers).expertMs!);
    expect(one!.some((ms) => ms > 0)).toBe(true);
    for (const [engine, ms] of six!.entries()) expect(ms).toBeCloseTo(6 * one![engine]!, 12);
  });
});
