/** The controller's looks: what is committed, what is kept, GPUs that go and come, clocks that jump, and what it tells. */
import fs from 'node:fs';
import path from 'node:path';
import { Registry } from 'prom-client';
import { afterEach, describe, expect, it } from 'vitest';
import {
  type DecisionRecord,
  evaluatePlacements,
  RoutingStatistics,
  readPlacement,
} from '../../lib/index.js';
import {
  begin,
  changeTraffic,
  modelOf,
  observeSkewed,
  type Rig,
  RULES,
  rig,
  SMALL,
  stopAll,
} from '../support/controller.js';
import { contiguous } from '../support/problems.js';

const { layers, experts, gpus: sources } = SMALL;
const STATISTICS = { layers, sources, experts, windowTokens: 2 ** 16 };

afterEach(stopAll);

/** The cost of placements on the statistics as they are, by the native evaluation and in no other way. */
async function costs({ statistics, options }: Rig, ...placements: Int32Array[]): Promise<number[]> {
  const problem = { ...options.problem, tokens: statistics.counts() };
  const found: number[] = [];
  for (const placement of placements) {
    const { objective } = await evaluatePlacements(problem, placement);
    found.push(objective.reduce((sum, value) => sum + value, 0));
  }
  return found;
}

describe('a look', () => {
  it('commits a plan that pays, has the engines take it, and remembers it', async () => {
    const of = rig();
    const controller = await begin(of.controller);
    const record = await controller.look();
    expect(record).toMatchObject({ decision: 'committed', reason: 'gain', planId: controller.planId });
    expect(of.engines.placement).toEqual(controller.placement);
    const [before, after] = await costs(of, of.options.initial, controller.placement);
    expect(after).toBeLessThan(before!);
    expect(record!.gainShare).toBeGreaterThan(0);
    // The plan was made for the counts that it is judged by: they flatter it.
    expect(record!.optimismMs).toBeGreaterThan(0);
    expect(record!.rounds).toBeGreaterThan(0);
    expect(record!.transferBytes).toBeGreaterThan(0);
    await controller.stop();
    const next = await begin(of.again());
    expect(next.placement).toEqual(of.engines.placement);
    expect(next.planId).toBe(of.engines.planId);
    expect(next.status().history).toHaveLength(1);
  });

  it('tells the hook what is in force, what is to be, and under which names', async () => {
    const { controller, engines, options } = rig();
    const first = controller.planId;
    await begin(controller);
    const initialId = controller.planId;
    expect(initialId).toBe(first);
    await controller.look();
    const [change] = engines.changes;
    expect(change).toMatchObject({
      previousPlanId: initialId,
      planId: controller.planId,
      layers: SMALL.layers,
      gpus: SMALL.gpus,
      slotsPerGpu: SMALL.slotsPerGpu,
      previousGpus: SMALL.gpus,
      isRollback: false,
      fencingToken: 0,
    });
    expect(change!.previous).toEqual(options.initial);
  });

  it('keeps the plan until its least interval is over, and then while the traffic is the same', async () => {
    const { controller, clock, engines } = rig();
    await begin(controller);
    await controller.look();
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'too-soon' });
    clock.advance(RULES.minIntervalMs);
    const record = await controller.look();
    expect(record!.decision).toBe('kept');
    expect(['within-hysteresis', 'same-placement']).toContain(record!.reason);
    expect(engines.changes).toHaveLength(1);
  });

  it('moves again once the traffic has changed', async () => {
    const { controller, clock, statistics, engines } = rig();
    await begin(controller);
    await controller.look();
    changeTraffic({ clock, statistics });
    expect(await controller.look()).toMatchObject({ decision: 'committed', reason: 'gain' });
    expect(engines.changes).toHaveLength(2);
    expect(engines.changes[1]!.previous).toEqual(engines.changes[0]!.placement);
  });

  it('does not move for a gain that costs more than it brings', async () => {
    const { controller } = rig({ migration: { expertBytes: 1_000_000, stallMs: 1e9 } });
    await begin(controller);
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'cost-above-gain' });
    expect(controller.preview).toMatchObject({ reason: 'cost-above-gain', migrations: expect.any(Number) });
    expect(controller.status().preview!.gainMs).toBeGreaterThan(0);
  });

  it('that is planning when the controller stops begins nothing', async () => {
    const of = rig();
    const evaluate = of.statistics.counts.bind(of.statistics);
    let stopped: Promise<void> | undefined;
    let counted = 0;
    // While the audit counts, the last thing before the change.
    of.statistics.counts = () => {
      counted += 1;
      if (counted === 2) stopped = of.controller.stop();
      return evaluate();
    };
    await begin(of.controller);
    expect(await of.controller.look()).toBeUndefined();
    await stopped;
    expect(of.engines.changes).toEqual([]);
    expect(of.controller.status().state).toBe('stopped');
    await expect(of.controller.start()).rejects.toMatchObject({ code: 'GIMBAL_INVALID_INPUT' });
  });

  it('is made once for all who ask at the same time', async () => {
    const { controller, engines } = rig();
    await begin(controller);
    const [one, other] = await Promise.all([controller.look(), controller.look()]);
    expect(one).toBe(other);
    expect(engines.changes).toHaveLength(1);
  });

  it('writes the file in the format of the engine before it asks for the change', async () => {
    const of = rig();
    const exportFile = path.join(of.folder, 'placement.json');
    let atApply = '';
    of.engines.faults = [() => (atApply = fs.readFileSync(exportFile, 'utf8'))];
    const controller = await begin(of.again({ exportFile, exportFormat: 'sglang' }));
    await controller.look();
    expect(JSON.parse(atApply)).toEqual({ physical_to_logical_map: expect.any(Array) });
    const file = await readPlacement(exportFile, { gpus: SMALL.gpus });
    expect(file.physicalToLogical).toEqual(controller.placement);
    expect(of.engines.changes[0]!.file).toBe(exportFile);
  });

  it('only says what it would do in the shadow', async () => {
    const { controller, engines, options, clock } = rig({ shadow: true });
    await begin(controller);
    expect(await controller.look()).toMatchObject({ decision: 'would-commit', reason: 'gain' });
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'too-soon' });
    clock.advance(RULES.minIntervalMs);
    expect(await controller.look()).toMatchObject({ decision: 'would-commit' });
    controller.setDeadGpus([1]);
    expect(await controller.look()).toMatchObject({ decision: 'would-commit', reason: 'gpus-changed' });
    expect(engines.changes).toEqual([]);
    expect(controller.placement).toEqual(options.initial);
    expect(fs.existsSync(options.stateFile)).toBe(false);
  });

  it('refuses a plan that the newest counts say is worse', async () => {
    const of = rig();
    const counts = of.statistics.counts.bind(of.statistics);
    let asked = 0;
    // After the plan is made, the traffic is gone: it is no better than what is in force, and no worse.
    of.statistics.counts = () => (asked++ === 0 ? counts() : new Uint32Array(layers * sources * experts));
    const controller = await begin(of.controller);
    const record = await controller.look();
    expect(record).toMatchObject({ decision: 'kept', reason: 'worse-on-audit' });
    expect(of.engines.changes).toEqual([]);
    expect(controller.preview?.reason).toBe('worse-on-audit');
  });
});

describe('statistics', () => {
  const empty = () => new RoutingStatistics(STATISTICS);

  it('that are empty, or of which no source was observed, move nothing', async () => {
    const { controller, engines } = rig({ statistics: empty() });
    await begin(controller);
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'too-little-data' });
    expect(engines.changes).toEqual([]);
  });

  it('of which one source was never heard of are good enough, by the mean of the others', async () => {
    const { controller, statistics } = rig();
    statistics.reset(2);
    await begin(controller);
    expect(await controller.look()).toMatchObject({ decision: 'committed' });
  });

  it('that have not grown for long are not gone by', async () => {
    const { controller, clock, statistics } = rig({ rules: { ...RULES, staleStatisticsMs: 50_000 } });
    await begin(controller);
    clock.advance(50_001);
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'stale-statistics' });
    observeSkewed(statistics, SMALL);
    expect(await controller.look()).toMatchObject({ decision: 'committed' });
  });

  it('that come twice, or late and all at once, decide as they would have', async () => {
    const once = rig();
    const twice = rig();
    observeSkewed(twice.statistics, SMALL);
    const a = await (await begin(once.controller)).look();
    const b = await (await begin(twice.controller)).look();
    expect(b!.decision).toBe(a!.decision);
    expect(twice.controller.placement).toEqual(once.controller.placement);
    // The shares are the same, and the rate is the engines': so is the gain, but for the noise.
    expect(Math.abs(b!.gainMs! - a!.gainMs!)).toBeLessThan(4 * a!.spreadMs!);
  });

  it('that overflow are a failure, and the plan in force stays', async () => {
    const statistics = new RoutingStatistics({
      layers,
      sources,
      experts,
      halfLifeTokens: 2 ** 27,
      priorTokens: 0,
    });
    const counts = new Uint32Array(layers * experts);
    for (let layer = 0; layer < layers; layer++) counts[layer * experts] = 2 ** 31 - 1;
    for (let push = 0; push < 10; push++) statistics.observeCounts({ source: 0, counts, k: 32 });
    const { controller, options, engines } = rig({ statistics });
    await begin(controller);
    const record = await controller.look();
    expect(record).toMatchObject({ decision: 'failed', reason: 'error' });
    expect(record!.detail).toMatch(/counts/);
    expect(controller.placement).toEqual(options.initial);
    expect(engines.changes).toEqual([]);
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'backing-off' });
  });

  it('that lie move to a placement that the truth then moves back from', async () => {
    const { controller, statistics, clock, ...of } = rig();
    await begin(controller);
    await controller.look();
    const honest = controller.placement;
    clock.advance(RULES.minIntervalMs);
    const counts = new Uint32Array(SMALL.layers * SMALL.experts).fill(1);
    for (let layer = 0; layer < SMALL.layers; layer++) counts[layer * SMALL.experts + 6] = 1e6;
    for (let source = 0; source < SMALL.gpus; source++) statistics.observeCounts({ source, counts });
    await controller.look();
    statistics.reset();
    observeSkewed(statistics, SMALL);
    clock.advance(RULES.minIntervalMs);
    await controller.look();
    const [now, then] = await costs({ controller, statistics, clock, ...of }, controller.placement, honest);
    expect(now! / then!).toBeLessThan(1.05);
  });

  it('tell how many tokens a second are served where nobody else does', async () => {
    const { statistics, options, clock } = rig();
    const { tokensPerSecond: _, ...rest } = options;
    const { Controller } = await import('../../lib/index.js');
    const registry = new Registry();
    const controller = await begin(new Controller({ ...rest, sampledShare: 0.25, registry }));
    expect(await controller.look()).toMatchObject({ reason: 'too-little-data', detail: expect.any(String) });
    const before = statistics.tokensSeen;
    observeSkewed(statistics, SMALL);
    clock.advance(10_000);
    await controller.look();
    const rate = await registry.getSingleMetric('gimbal_controller_tokens_per_second')!.get();
    expect(rate.values[0]!.value).toBeCloseTo((statistics.tokensSeen - before) / 10 / 0.25, 6);
  });

  it.each([
    [
      'throws',
      () => {
        throw new Error('no idea');
      },
    ],
    ['is no number', () => Number.NaN],
  ])('of which the rate %s are a failure', async (_, tokensPerSecond) => {
    const { controller, engines } = rig({ tokensPerSecond });
    await begin(controller);
    expect(await controller.look()).toMatchObject({ decision: 'failed', reason: 'error' });
    expect(engines.changes).toEqual([]);
  });

  it('are kept over a restart where a file is named, and begin anew where that is damaged', async () => {
    const of = rig();
    const statisticsFile = path.join(of.folder, 'statistics');
    const first = await begin(of.again({ statisticsFile }));
    await first.stop();
    const kept = empty();
    const second = await begin(of.again({ statisticsFile, statistics: kept }));
    expect(kept.counts()).toEqual(of.statistics.counts());
    await second.stop();
    fs.writeFileSync(statisticsFile, 'damaged');
    const anew = empty();
    await begin(of.again({ statisticsFile, statistics: anew }));
    expect(anew.tokensSeen).toBe(0);
  });
});

describe('GPUs', () => {
  it('that are lost are planned around at once, and planned with again when they are back', async () => {
    const { controller, engines } = rig({}, { ...SMALL, slotsPerGpu: 4 });
    await begin(controller);
    await controller.look();
    controller.setDeadGpus([2]);
    // Long before the least interval is over.
    expect(await controller.look()).toMatchObject({ decision: 'committed', reason: 'gpus-changed' });
    const slots = Array.from(controller.placement).slice(8, 12);
    expect(slots).toEqual([-1, -1, -1, -1]);
    for (const layer of [0, 1]) {
      const row = controller.placement.subarray(layer * 16, (layer + 1) * 16);
      expect(new Set(row).size, 'all experts, and -1').toBe(SMALL.experts + 1);
    }
    expect(controller.status().deadGpus).toEqual([2]);
    expect(await controller.look()).toMatchObject({ decision: 'kept', reason: 'too-soon' });
    controller.setDeadGpus([]);
    expect(await controller.look()).toMatchObject({ decision: 'committed', reason: 'gpus-changed' });
    expect(controller.placement).not.toContain(-1);
    expect(engines.placement).toEqual(controller.placement);
  });

  it('that are lost are known after a restart', async () => {
    const of = rig({}, { ...SMALL, slotsPerGpu: 4 });
    await begin(of.controller);
    of.controller.setDeadGpus([1]);
    await of.controller.look();
    await of.controller.stop();
    const next = await begin(of.again());
    expect(next.status().deadGpus).toEqual([1]);
    expect(await next.look()).toMatchObject({ reason: 'too-soon' });
  });

  it('that are too many to lose are a failure, with what is in force left as it is', async () => {
    const { controller, options } = rig();
    await begin(controller);
    controller.setDeadGpus([0, 1, 2]);
    expect(await controller.look()).toMatchObject({ decision: 'failed', reason: 'error' });
    expect(controller.placement).toEqual(options.initial);
  });

  it('that are more or fewer than before take what was in force as an incumbent of another shape', async () => {
    const of = rig();
    await begin(of.controller);
    await of.controller.look();
    const before = of.controller.placement;
    await of.controller.stop();
    const shape = { ...SMALL, gpus: 5 };
    const wider = { ...modelOf(shape), sources: SMALL.gpus, commCost: new Float64Array(4 * 5).fill(80) };
    const next = await begin(of.again({ problem: wider, initial: contiguous(shape) }));
    expect(next.placement).toEqual(before);
    expect(await next.look()).toMatchObject({ decision: 'committed', reason: 'gpus-changed' });
    expect(next.placement).toHaveLength(2 * 5 * 3);
    expect(of.engines.changes.at(-1)).toMatchObject({ previousGpus: 4, gpus: 5 });
    expect(of.engines.changes.at(-1)!.previous).toEqual(before);
  });
});

describe('clocks', () => {
  it('of day that jump change nothing while it runs', async () => {
    const { controller, clock } = rig();
    await begin(controller);
    await controller.look();
    clock.wall += 10 * 365 * 86_400_000;
    expect(await controller.look()).toMatchObject({ reason: 'too-soon' });
    clock.wall -= 20 * 365 * 86_400_000;
    clock.monotonic += RULES.minIntervalMs;
    expect((await controller.look())!.reason).not.toBe('too-soon');
  });

  it('that stand before what is kept do not stop it for ever', async () => {
    const of = rig();
    await begin(of.controller);
    await of.controller.look();
    await of.controller.stop();
    of.clock.wall -= 365 * 86_400_000;
    of.clock.monotonic = 0;
    const next = await begin(of.again());
    expect(next.status().planAgeMs).toBe(0);
    expect(await next.look()).toMatchObject({ reason: 'too-soon' });
    of.clock.monotonic += RULES.minIntervalMs;
    expect((await next.look())!.reason).not.toBe('too-soon');
  });
});

describe('what it tells', () => {
  it('are records to a listener and the log, newest first in the status, and series', async () => {
    const records: DecisionRecord[] = [];
    const lines: [string, object][] = [];
    const registry = new Registry();
    const { controller, engines, clock } = rig({
      onDecision: (record) => records.push(record),
      logger: {
        info: (fields) => lines.push(['info', fields]),
        warn: (fields) => lines.push(['warn', fields]),
      },
      registry,
    });
    engines.faults = ['refuse'];
    await begin(controller);
    await controller.look();
    clock.advance(RULES.backoffMs);
    await controller.look();
    clock.advance(7000);
    expect(records.map(({ decision }) => decision)).toEqual(['rolled-back', 'committed']);
    expect(lines.map(([level]) => level)).toEqual(['warn', 'info']);
    expect(controller.status().decisions).toEqual([...records].reverse());
    const value = async (name: string, labels = {}) => {
      const { values } = await registry.getSingleMetric(`gimbal_controller_${name}`)!.get();
      return values.find((one) => Object.entries(labels).every(([key, is]) => one.labels[key] === is))?.value;
    };
    expect(await value('decisions_total', { decision: 'committed', reason: 'gain' })).toBe(1);
    expect(await value('decisions_total', { decision: 'rolled-back', reason: 'error' })).toBe(1);
    expect(await value('failures_total')).toBe(1);
    expect(await value('consecutive_failures')).toBe(0);
    expect(await value('moved_experts_total')).toBe(records[1]!.migrations);
    expect(await value('moved_bytes_total')).toBe(records[1]!.transferBytes);
    expect(await value('predicted_gain_ms_total')).toBeCloseTo(records[1]!.gainMs!);
    expect(await value('plan_age_seconds')).toBeCloseTo(7);
    expect(await value('state', { state: 'watching' })).toBe(1);
    expect(await value('lease_held')).toBe(1);
    await controller.stop();
    expect(await value('state', { state: 'stopped' })).toBe(1);
    expect(await value('lease_held')).toBe(0);
  });

  it('is JSON', async () => {
    const { controller } = rig();
    await begin(controller);
    await controller.look();
    const status = controller.status();
    expect(JSON.parse(JSON.stringify(status))).toEqual(status);
    expect(status.load).toHaveLength(SMALL.layers);
    for (const [layer, row] of status.load.entries()) {
      expect(Math.max(...row)).toBeCloseTo(status.imbalance[layer]!);
      expect(row.reduce((sum, value) => sum + value, 0)).toBeCloseTo(SMALL.gpus);
    }
  });

  it('bears a listener that throws', async () => {
    const thrown: unknown[] = [];
    const catcher = (error: unknown) => thrown.push(error);
    const others = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException').on('uncaughtException', catcher);
    const { controller } = rig({
      onDecision: () => {
        throw new Error('mine');
      },
    });
    await begin(controller);
    expect(await controller.look()).toMatchObject({ decision: 'committed' });
    await new Promise(setImmediate);
    process.removeListener('uncaughtException', catcher);
    for (const other of others) process.on('uncaughtException', other);
    expect(thrown.map(String)).toEqual(['Error: mine']);
  });
});

describe('options', () => {
  it.each([
    ['initial', { initial: new Int32Array(24) }],
    ['intervalMs', { intervalMs: 0 }],
    ['sampledShare', { sampledShare: 2 }],
    ['overdispersion', { overdispersion: 0.5 }],
    ['resamples', { resamples: 1 }],
    ['rules.certainty', { rules: { certainty: -1 } }],
    ['migration.linkShare', { migration: { expertBytes: 1, transfer: 'overlap', linkShare: 1 } }],
    ['stateFile', { stateFile: '' }],
    ['exportFormat', { exportFormat: 'sglan' as 'sglang' }],
    ['apply.apply', { apply: {} as never }],
  ] as const)('that are wrong are named: %s', (name, over) => {
    expect(() => rig(over)).toThrow(
      expect.objectContaining({
        code: 'GIMBAL_INVALID_INPUT',
        field: expect.stringContaining(`options.${name}`),
      }),
    );
  });
});
