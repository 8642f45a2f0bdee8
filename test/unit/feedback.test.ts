/** What placement and dispatch tell each other: shares of the dispatcher in the counts, pressure of the placement at the engines. */
import { describe, expect, it, vi } from 'vitest';
import { Affinity } from '../../lib/controller/affinity.js';
import { DispatchedStatistics, DispatchShares } from '../../lib/controller/dispatched.js';
import { Feedback } from '../../lib/controller/feedback.js';
import { checkGatewayOptions } from '../../lib/gateway/config.js';
import { createLog } from '../../lib/gateway/log.js';
import type { FleetEngine } from '../../lib/gateway/types.js';

const MINUTE = 60_000;

describe('the dispatcher’s shares', () => {
  it('are of what was sent since, the older the less', () => {
    const shares = new DispatchShares(2, MINUTE);
    expect(shares.shares).toBeUndefined();
    shares.observe(Float64Array.of(8000, 0), 0);
    shares.observe(Float64Array.of(8000, 6000), MINUTE);
    expect([...shares.shares!]).toEqual([4000, 6000]);
    // An engine that comes back begins anew.
    shares.observe(Float64Array.of(100, 6000), MINUTE);
    expect([...shares.shares!]).toEqual([4100, 6000]);
    shares.observe(Float64Array.of(100, 6000), 3 * MINUTE);
    expect(shares.shares).toBeUndefined();
  });

  it('scale the counts of each source, which keep their taste', () => {
    const shares = new DispatchShares(2, MINUTE);
    const statistics = new DispatchedStatistics(
      { layers: 1, sources: 2, experts: 2, priorTokens: 0 },
      shares,
    );
    const observe = (source: number, counts: number[]) =>
      statistics.observeCounts({ source, counts: Uint32Array.from(counts) });
    observe(0, [300, 100]);
    observe(1, [0, 400]);
    const observed = [...statistics.counts()];
    expect(observed).toEqual([300, 100, 0, 400]);
    shares.observe(Float64Array.of(30_000, 10_000), 0);
    expect([...statistics.counts()]).toEqual([450, 150, 0, 200]);
  });
});

describe('feedback', () => {
  const SERVERS = [
    { url: 'http://a', ranks: 1, group: 'g' },
    { url: 'http://b', ranks: 1, group: 'g' },
    { url: 'http://late', ranks: 1, group: 'g' },
  ];
  const targets: FleetEngine[] = SERVERS.map(({ url }, engine) => ({
    engine,
    name: `${url}#0`,
    rank: 0,
    server: { url, kind: 'vllm', pins: false, headers: {} },
  }));
  /** Two sources, two GPUs, one expert on each. */
  const model = {
    layers: 1,
    sources: 2,
    experts: 2,
    gpus: 2,
    slotsPerGpu: 1,
    computeCost: 1,
    commCost: Float64Array.of(0, 3, 3, 0),
  };

  function system(placement: number[]) {
    const shares = new DispatchShares(2, MINUTE);
    const statistics = new DispatchedStatistics(
      { layers: 1, sources: 2, experts: 2, priorTokens: 0 },
      shares,
    );
    const told: Map<string, { moePressure: number; commExcess?: number }>[] = [];
    const { servers } = checkGatewayOptions({ servers: SERVERS });
    const status = { gpus: 2, slotsPerGpu: 1, deadGpus: [] as number[], planId: 'first' };
    const affinity = new Affinity({ layers: 1, experts: 2, sources: 2, leastTokens: 1 });
    const placed = Int32Array.from(placement);
    const feedback = new Feedback(
      {
        fleet: {
          targets,
          dispatchedTokens: () => [10_000, 30_000, 5],
          setExpertPressure: (byEngine) => told.push(new Map(byEngine)),
        },
        statistics,
        controller: { placement: placed, status: () => status as never },
        shares,
        affinity,
        model,
        servers: () => servers,
        log: createLog('silent', { write: () => true }),
      },
      1000,
    );
    return { feedback, statistics, told, shares, affinity, status, placed };
  }

  it('tells each engine the load of the GPUs that its tokens go to, and how far they travel', () => {
    const { feedback, statistics, told } = system([0, 1]);
    statistics.observeCounts({ source: 0, counts: Uint32Array.of(100, 0) });
    statistics.observeCounts({ source: 1, counts: Uint32Array.of(100, 0) });
    feedback.exchange(0);
    // All goes to GPU 0, which has twice the mean; source 1 is three times as dear as the mean of both, weighed 1 to 3 by dispatch.
    const [byEngine] = told;
    expect([...byEngine!.keys()]).toEqual(['http://a#0', 'http://b#0']);
    expect(byEngine!.get('http://a#0')).toEqual({ moePressure: 1, commExcess: -1 });
    expect(byEngine!.get('http://b#0')!.moePressure).toBe(1);
    expect(byEngine!.get('http://b#0')!.commExcess).toBeCloseTo(3 / 2.25 - 1);
  });

  it('tells the statistics what was sent, and leaves out who came later', () => {
    const { feedback, shares } = system([0, 1]);
    feedback.exchange(0);
    expect([...shares.shares!]).toEqual([10_000, 30_000]);
  });

  it('follows the placement', () => {
    const { feedback, statistics, told } = system([1, 0]);
    statistics.observeCounts({ source: 0, counts: Uint32Array.of(300, 100) });
    statistics.observeCounts({ source: 1, counts: Uint32Array.of(0, 400) });
    feedback.exchange(0);
    // By dispatch 200 of source 0 (150, 50), 600 of source 1: GPU 1 has 150, GPU 0 has 650, the mean is 400.
    expect(told[0]!.get('http://b#0')!.moePressure).toBeCloseTo(650 / 400 - 1);
    expect(told[0]!.get('http://a#0')!.moePressure).toBeCloseTo((0.75 * 150 + 0.25 * 650) / 400 - 1);
  });

  describe('and affinity', () => {
    const request = { id: 'r', promptTokens: 1000, streams: true, arrivalMs: 0, affinityKey: 'a' };
    const chooses = (expert: number) => ({ topk: Uint8Array.of(expert), tokens: 1, k: 1 });

    it('costs nothing where an engine’s own GPU has the experts, by the placement in force', () => {
      const { feedback, affinity, status, placed } = system([0, 1]);
      affinity.observe('a', chooses(1));
      expect(affinity.expertMs(request, 3)).toBeUndefined();
      feedback.exchange(0);
      // An expert takes 1 ns, and 3 ns more from the other GPU. Who came later costs as much as the mean.
      const ofOne = [4, 1, 2.5].map((ns) => (ns * 1000) / 1e6);
      expect([...affinity.expertMs(request, 3)!]).toEqual(ofOne);
      placed.set([1, 0]);
      status.planId = 'second';
      feedback.exchange(1000);
      expect([...affinity.expertMs(request, 3)!]).toEqual([ofOne[1], ofOne[0], ofOne[2]]);
      expect(affinity.expertMs({ ...request, affinityKey: 'b' }, 3)).toBeUndefined();
      const { affinityKey: _key, ...unnamed } = request;
      expect(affinity.expertMs(unnamed, 3)).toBeUndefined();
    });

    it('follows the load where it changes by much, and in the end where it does not', () => {
      const { feedback, statistics, affinity } = system([0, 1]);
      const told = () => affinity.expertMs(request, 3)![1]! * 1000;
      affinity.observe('a', chooses(1));
      statistics.observeCounts({ source: 0, counts: Uint32Array.of(500, 500) });
      statistics.observeCounts({ source: 1, counts: Uint32Array.of(500, 500) });
      feedback.exchange(0);
      expect(told()).toBe(1);
      statistics.observeCounts({ source: 1, counts: Uint32Array.of(0, 20) });
      feedback.exchange(1000);
      expect(told()).toBe(1);
      feedback.exchange(61_000);
      expect(told()).toBeGreaterThan(1);
      const before = told();
      statistics.observeCounts({ source: 1, counts: Uint32Array.of(0, 3000) });
      feedback.exchange(62_000);
      expect(told()).toBeGreaterThan(before + 0.1);
    });

    it('takes no more of the process’s time than a twentieth, and a tenth of a second', () => {
      const { feedback, affinity } = system([0, 1]);
      const answers = (times: number) =>
        Array.from({ length: times }, () => affinity.expertMs(request, 3) !== undefined);
      affinity.observe('a', chooses(1));
      feedback.exchange(0);
      let clockMs = 0;
      const slow = vi.spyOn(performance, 'now').mockImplementation(() => (clockMs += 30));
      expect(answers(6)).toEqual([true, true, true, true, false, false]);
      feedback.exchange(4000);
      expect(answers(8)).toEqual([true, true, true, true, true, true, true, false]);
      slow.mockRestore();
      expect(answers(1)).toEqual([false]);
      feedback.exchange(5000);
      expect(answers(1)).toEqual([true]);
    });

    it('is about engines by their numbers, which are no sources', () => {
      const { feedback, affinity } = system([0, 1]);
      affinity.observe('a', chooses(1));
      const servers = targets.splice(0);
      try {
        // The first server has left and come back as number 5; number 0 is nobody's any more.
        targets.push({ ...servers[0]!, engine: 5 }, servers[1]!);
        feedback.exchange(0);
        const ofOne = [4, 1, 2.5].map((ns) => (ns * 1000) / 1e6);
        expect([...affinity.expertMs(request, 6)!]).toEqual([2, 1, 2, 2, 2, 0].map((n) => ofOne[n]));
      } finally {
        targets.splice(0, targets.length, ...servers);
      }
    });
  });
});
