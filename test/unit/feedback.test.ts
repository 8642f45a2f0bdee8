/** What placement and dispatch tell each other: shares of the dispatcher in the counts, pressure of the placement at the engines. */
import { describe, expect, it } from 'vitest';
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
    const status = { gpus: 2, slotsPerGpu: 1, deadGpus: [] as number[] };
    const feedback = new Feedback(
      {
        fleet: {
          targets,
          dispatchedTokens: () => [10_000, 30_000, 5],
          setExpertPressure: (byEngine) => told.push(new Map(byEngine)),
        },
        statistics,
        controller: { placement: Int32Array.from(placement), status: () => status as never },
        shares,
        model,
        servers: () => servers,
        log: createLog('silent', { write: () => true }),
      },
      1000,
    );
    return { feedback, statistics, told, shares };
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
});
