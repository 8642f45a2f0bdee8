/** What the placement side tells dispatch: pressures against their definition, and what a scheduler makes of them. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../bench/random.js';
import {
  type DispatchRequest,
  type EngineExpertPressure,
  type EngineSample,
  expertPressure,
  type PlacedTraffic,
  Scheduler,
  type SchedulerOptions,
} from '../../lib/index.js';
import { fingerprintNaive, pressureNaive } from '../reference/pressure.js';

const SEED = Number(process.env.GIMBAL_TEST_SEED ?? 1);

const invalid = (field: string) => expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field });

/** Replicas, empty slots, duplicates, silent sources and layers, dead GPUs and equal costs all come up. */
function drawTraffic(random: Random): PlacedTraffic {
  const [layers, sources, gpus] = [1 + random.below(3), 1 + random.below(4), 1 + random.below(5)];
  const experts = 1 + random.below(8);
  const slotsPerGpu = Math.ceil(experts / gpus) + random.below(3);
  const slots = gpus * slotsPerGpu;
  const silent = random.below(sources + 2);
  return {
    layers,
    sources,
    experts,
    gpus,
    slotsPerGpu,
    tokens: Uint32Array.from({ length: layers * sources * experts }, (_, n) => {
      const isSilent = Math.floor(n / experts) % sources === silent;
      return isSilent || random.below(4) === 0 ? 0 : random.below(1000);
    }),
    computeCost: random.below(2) === 0 ? 7 : Float64Array.from({ length: gpus }, () => 1 + random.below(9)),
    commCost: Float64Array.from({ length: sources * gpus }, () => random.below(4) * 10),
    placement: Int32Array.from({ length: layers * slots }, (_, n) =>
      n % slots < experts ? n % slots : random.below(experts + 1) - 1,
    ),
    ...(random.below(2) === 0 ? {} : { replicaChoice: 'nearest' as const }),
    ...(gpus > 1 && random.below(3) === 0 ? { deadGpus: [random.below(gpus)] } : {}),
  };
}

describe('expert pressure', () => {
  it('is what the definition gives, of the fleet and of one fingerprint', () => {
    let [overloaded, far, nearest] = [0, 0, 0];
    for (let n = 0; n < 300; n += 1) {
      const random = new Random(SEED, n);
      const traffic = drawTraffic(random);
      const pressure = expertPressure(traffic);
      const expected = pressureNaive(traffic);
      const hint = `seed ${SEED}, case ${n}`;
      for (let s = 0; s < traffic.sources; s += 1) {
        expect(pressure.moePressure[s], hint).toBeCloseTo(expected.moePressure[s]!, 9);
        expect(pressure.commExcess[s], hint).toBeCloseTo(expected.commExcess[s]!, 9);
      }
      const pairs = Array.from(
        { length: traffic.layers * traffic.experts },
        () => random.below(4) * random.below(9),
      );
      const cost = pressure.of(pairs, 5);
      for (const [s, one] of fingerprintNaive(traffic, pairs, 5).entries()) {
        expect(cost.moePressure[s], hint).toBeCloseTo(one.moePressure, 9);
        expect(cost.moeNs[s], hint).toBeCloseTo(one.moeNs, 6);
        expect(cost.commNs[s], hint).toBeCloseTo(one.commNs, 6);
      }
      overloaded += expected.moePressure.some((m) => m > 0.1) ? 1 : 0;
      far += expected.commExcess.some((x) => x > 0.1) ? 1 : 0;
      nearest += new Set(cost.moeNs).size > 1 ? 1 : 0;
    }
    expect(Math.min(overloaded, far, nearest)).toBeGreaterThan(30);
  });

  it('is worked by hand: a source of the full GPU, one of the empty one, and one that sends further', () => {
    const traffic: PlacedTraffic = {
      layers: 1,
      sources: 2,
      experts: 2,
      gpus: 2,
      slotsPerGpu: 1,
      tokens: Uint32Array.of(90, 0, 0, 30),
      computeCost: 2,
      commCost: Float64Array.of(0, 8, 8, 16),
      placement: Int32Array.of(0, 1),
    };
    // Loads are 180 and 60 around 120; pairs travel 0 and 16 ns, 4 in the mean of all.
    const { moePressure, commExcess } = expertPressure(traffic);
    expect([...moePressure]).toEqual([0.5, -0.5]);
    expect([...commExcess]).toEqual([-1, 3]);
  });

  it('refuses what is no placement', () => {
    const traffic = drawTraffic(new Random(SEED, 1));
    const with99 = traffic.placement.slice().fill(99, 0, 1);
    expect(() => expertPressure({ ...traffic, placement: with99 })).toThrow(invalid('placement[0]'));
    expect(() => expertPressure({ ...traffic, placement: with99.slice(1) })).toThrow(invalid('placement'));
    expect(() => expertPressure({ ...traffic, tokens: new Uint32Array(1) })).toThrow(invalid('tokens'));
    const pressure = expertPressure(traffic);
    expect(() => pressure.of([1, 2, 3.5], 1)).toThrow(invalid('pairs'));
    expect(() => pressure.of(new Array(traffic.layers * traffic.experts).fill(1), 0)).toThrow(
      invalid('tokens'),
    );
  });
});

/** Two engines that take 1 ms for a token, each by itself, with what waits on them. */
function two(waitingTokens: [number, number], options: Partial<SchedulerOptions> = {}) {
  const clock = { nowMs: 0 };
  const scheduler = new Scheduler({
    engines: [{ group: 0 }, { group: 1 }],
    prefillTokensPerSecond: 1000,
    staleAfterMs: 1e6,
    clock: () => clock.nowMs,
    ...options,
    weights: { moe: 1, ...options.weights },
  });
  const sample = (engine: number, more: Partial<EngineSample> = {}): EngineSample => ({
    engine,
    timeMs: clock.nowMs,
    kvUsage: 0,
    running: 0,
    waiting: 0,
    waitingPrefillTokens: waitingTokens[engine]!,
    ...more,
  });
  scheduler.observe([sample(0), sample(1)]);
  const pick = (request: Partial<DispatchRequest>) => {
    const { engine } = scheduler.dispatch({ id: 'x', promptTokens: 100, ...request });
    scheduler.failed('x');
    return engine;
  };
  return { scheduler, clock, sample, pick };
}

describe('a scheduler that is told expert pressure', () => {
  it('weighs a prefill by it, by communication where that has a weight, and keeps it beside samples', () => {
    const untold = new Scheduler({ engines: 1 });
    untold.dispatch({ id: 'x', promptTokens: 100 });
    untold.setExpertPressure([{ engine: 0, moePressure: 1, commExcess: 1 }]);
    expect(untold.pressureOf(0).moeMs, 'it has no weight by default').toBe(0);
    const { scheduler, sample, pick } = two([0, 30]);
    expect(pick({})).toBe(0);
    scheduler.setExpertPressure([{ engine: 0, moePressure: 0.4 }]);
    expect(pick({})).toBe(1);
    scheduler.observe([sample(0)]);
    expect(pick({}), 'a sample that does not say it changes nothing').toBe(1);
    scheduler.observe([sample(0, { moePressure: 0 })]);
    expect(pick({}), 'nor does one that does').toBe(1);
    scheduler.setExpertPressure([{ engine: 0, moePressure: 0, commExcess: 0.4 }]);
    expect(pick({}), 'nor has communication').toBe(0);
    const weighed = two([0, 30], { weights: { comm: 1 } });
    weighed.scheduler.setExpertPressure([{ engine: 0, moePressure: 0, commExcess: 0.4 }]);
    expect(weighed.pick({})).toBe(1);
  });

  it('forgets it after a while, and leaves out what comes late', () => {
    const { scheduler, clock, pick } = two([0, 30], { expertsStaleAfterMs: 500 });
    clock.nowMs = 100;
    scheduler.setExpertPressure([{ engine: 0, moePressure: 1 }]);
    scheduler.setExpertPressure([{ engine: 0, moePressure: 0 }], 99);
    const excess = () => scheduler.pressureOf(0).moeMs;
    pick({});
    expect(excess()).toBeGreaterThan(0);
    clock.nowMs = 599;
    expect(excess()).toBeGreaterThan(0);
    clock.nowMs = 600;
    expect(excess()).toBe(0);
  });

  it('takes all or nothing', () => {
    const { scheduler } = two([0, 0]);
    const told = (more: object): EngineExpertPressure[] => [
      { engine: 0, moePressure: 1 },
      { engine: 1, moePressure: 0, ...more },
    ];
    for (const [field, more] of [
      ['pressures[1].engine', { engine: 2 }],
      ['pressures[1].moePressure', { moePressure: -1.01 }],
      ['pressures[1].moePressure', { moePressure: Number.NaN }],
      ['pressures[1].commExcess', { commExcess: Number.POSITIVE_INFINITY }],
    ] as const) {
      expect(() => scheduler.setExpertPressure(told(more))).toThrow(invalid(field));
    }
    expect(() => scheduler.setExpertPressure({} as never)).toThrow(invalid('pressures'));
    expect(() => scheduler.setExpertPressure([], Number.NaN)).toThrow(invalid('timeMs'));
    expect(scheduler.pressureOf(0).moeMs).toBe(0);
    expect(() => two([0, 0], { expertsStaleAfterMs: 0 })).toThrow(invalid('options.expertsStaleAfterMs'));
  });

  it('sends a request where its experts cost least, unless that engine is further behind than by the request', () => {
    const { pick, scheduler } = two([40, 0]);
    expect(pick({ expertMs: [500, 530] })).toBe(1);
    expect(pick({ expertMs: [500, 550] })).toBe(0);
    expect(pick({ expertMs: Float64Array.of(0, 1e300) })).toBe(0);
    expect(pick({ expertMs: [500, 550], promptTokens: 39 }), 'it weighs no more than 39 ms').toBe(1);
    expect(pick({ expertMs: [0, 50], excluding: [0] })).toBe(1);
    expect(two([40, 0], { weights: { affinity: 0 } }).pick({ expertMs: [0, 1000] })).toBe(1);
    for (const [field, expertMs] of [
      ['request.expertMs', [1]],
      ['request.expertMs', 7],
      ['request.expertMs[1]', [0, -1]],
      ['request.expertMs[0]', [Number.NaN, 1]],
    ] as const) {
      const request = { id: 'y', promptTokens: 1, expertMs } as unknown as DispatchRequest;
      expect(() => scheduler.dispatch(request), field).toThrow(invalid(field));
    }
    const batch = [{ id: 'b', promptTokens: 100, expertMs: [0, 90] }];
    expect(two([40, 0]).scheduler.dispatchBatch(batch)[0]!.engine, 'in a batch, too').toBe(0);
  });
});
