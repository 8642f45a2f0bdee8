/** Requests that go near their experts: what the fleet is told of them, by what key they are known, and what of answers is learned. */
import { pino } from 'pino';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Affinity } from '../../lib/controller/affinity.js';
import { affinityOf, checkRunOptions } from '../../lib/controller/run-config.js';
import { Scheduler } from '../../lib/dispatch/scheduler.js';
import { timeOfDay } from '../../lib/dispatch/validate.js';
import { type AffinityResult, affinityKeyOf, type ChosenExperts } from '../../lib/gateway/affinity.js';
import { checkGatewayOptions } from '../../lib/gateway/config.js';
import { Fleet } from '../../lib/gateway/fleet.js';
import { ApiKeys } from '../../lib/gateway/keys.js';
import { countRouted } from '../../lib/gateway/routing/count.js';
import { RoutingSampler } from '../../lib/gateway/routing/sampler.js';
import type { FleetEngine, FleetRequest } from '../../lib/gateway/types.js';
import { RoutingStatistics } from '../../lib/statistics/routing-statistics.js';
import { routedText, routedTo } from '../stand-in/routing.js';

const log = pino({ level: 'silent' });
const URLS = ['http://127.0.0.1:1', 'http://127.0.0.1:2', 'http://127.0.0.1:3'];

let requests = 0;
function request(more: Partial<FleetRequest> = {}): FleetRequest {
  requests += 1;
  const arrivalMs = performance.timeOrigin + performance.now();
  return { id: `r${requests}`, promptTokens: 1000, streams: true, arrivalMs, ...more };
}

afterEach(() => {
  vi.restoreAllMocks();
});

/** Nobody polls, but `fresh` says for all engines that they have nothing to do: they differ by what was sent to them alone. */
function fleetOf(expertMs: (request: FleetRequest, engineCount: number) => Float64Array | undefined) {
  const config = (urls: readonly string[]) =>
    checkGatewayOptions({
      servers: urls.map((url) => ({ url, group: 'g' })),
      seed: 1,
      prefillTokensPerSecond: 1000,
    });
  const results: AffinityResult[] = [];
  const joins = vi.spyOn(Scheduler.prototype, 'addEngine');
  const fleet = new Fleet(config(URLS), {
    log,
    affinity: { expertMs },
    events: {
      dispatched: () => undefined,
      gone: () => undefined,
      steered: (result) => results.push(result),
    },
  });
  const scheduler = joins.mock.contexts[0] as Scheduler;
  const fresh = () =>
    scheduler.observe(
      fleet.targets.map(({ engine }) => ({
        engine,
        timeMs: timeOfDay(),
        kvUsage: 0,
        running: 0,
        waiting: 0,
      })),
    );
  fresh();
  return { fleet, results, config, fresh };
}

describe('the fleet', () => {
  const costs = new Map([
    ['left', [0, 30, 30]],
    ['right', [30, 30, 0]],
  ]);
  const byKey = ({ affinityKey = '' }: FleetRequest) => {
    const own = costs.get(affinityKey);
    return own === undefined ? undefined : Float64Array.from(own);
  };

  it.each([
    ['left', 0],
    ['right', 2],
  ])('sends %s where its experts cost least, as long as engines are alike', async (affinityKey, engine) => {
    const { fleet, results } = fleetOf(byKey);
    for (let n = 0; n < 6; n++) {
      const sent = await fleet.acquire(request({ affinityKey }));
      expect(sent.target.engine).toBe(engine);
      sent.finished();
    }
    expect(results).toEqual(new Array(6).fill('nearest'));
  });

  it('does not where that engine has more to do than the experts cost', async () => {
    const { fleet, results } = fleetOf(byKey);
    const heavy = await fleet.acquire(request({ promptTokens: 5000, affinityKey: 'left' }));
    expect(heavy.target.engine).toBe(0);
    for (let n = 0; n < 4; n++) {
      const sent = await fleet.acquire(request({ affinityKey: 'left' }));
      expect(sent.target.engine).not.toBe(0);
      sent.finished();
    }
    expect(results).toEqual(['nearest', ...new Array(4).fill('elsewhere')]);
  });

  it('spreads those of which nothing is known', async () => {
    const { fleet, results } = fleetOf(byKey);
    const met = new Set<number>();
    for (let n = 0; n < 12; n++) {
      const sent = await fleet.acquire(request());
      met.add(sent.target.engine);
      sent.finished();
    }
    expect(met.size).toBe(3);
    expect(new Set(results)).toEqual(new Set(['unknown']));
  });

  it('asks for as many engines as it has ever had, and takes the newest by its number', async () => {
    const asked: number[] = [];
    const { fleet, config, fresh } = fleetOf((_, engineCount) => {
      asked.push(engineCount);
      return Float64Array.from({ length: engineCount }, (_, engine) => (engine === engineCount - 1 ? 0 : 30));
    });
    fleet.reload(config(URLS.slice(1)));
    fleet.reload(config([...URLS.slice(1), URLS[0]!]));
    fresh();
    for (let n = 0; n < 6; n++) {
      const sent = await fleet.acquire(request());
      expect([sent.target.engine, sent.target.name]).toEqual([3, `${URLS[0]}#0`]);
      sent.finished();
    }
    expect(new Set(asked)).toEqual(new Set([4]));
  });
});

describe('the key', () => {
  const several = new ApiKeys(['one', 'two']);
  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
  const keyOf = (headers: Record<string, string>, keys = several, session?: string) =>
    affinityKeyOf(headers, session, keys, 'x-tenant');

  it('is the tenant’s by the header, else by the API key, else the session’s', () => {
    expect(keyOf({ 'x-tenant': 'acme', ...bearer('one') }, several, 's')).toBe('tenant acme');
    const [one, two] = [keyOf(bearer('one'), several, 's'), keyOf(bearer('two'), several, 's')];
    expect(one).toMatch(/^key /);
    expect(one).not.toContain('one');
    expect(two).not.toBe(one);
    expect(keyOf({}, several, 's')).toBe('session s');
    expect(keyOf({})).toBeUndefined();
    expect(affinityKeyOf({ 'x-tenant': 'acme' }, 's', several, undefined)).toBe('session s');
  });

  it('is not the API key’s where all have the same, or nobody looks at it', () => {
    for (const keys of [new ApiKeys(['one']), new ApiKeys([])])
      expect(keyOf(bearer('one'), keys, 's')).toBe('session s');
  });
});

describe('what is learned of an answer', () => {
  const SHAPE = { layers: 3, experts: 8, topK: 2 };
  const statistics = () => new RoutingStatistics({ layers: 3, experts: 8, sources: 2 });

  it('is up to 256 tokens, from its beginning to its end', () => {
    const tokens = 20_000;
    const pieces = [Buffer.from(routedText(SHAPE, 'vllm', 1, tokens))];
    const told: ChosenExperts[] = [];
    const steps = countRouted(
      { kind: 'vllm', source: 0, pieces, cachedTokens: 0 },
      { ...SHAPE, firstLayer: 0 },
      statistics(),
      (chosen) => told.push(chosen),
    );
    for (let step = steps.next(); step.done !== true; step = steps.next());
    const sum = told.reduce((all, one) => all + one.tokens, 0);
    expect(sum).toBeGreaterThan(250);
    expect(sum).toBeLessThanOrEqual(256);
    expect(told.length).toBeGreaterThan(2);
    for (const { topk, tokens: own, k } of told) expect(topk.length).toBe(own * 3 * k);
  });

  it('is told under the key of its request, all of a short one, and nothing without a key', async () => {
    const config = checkGatewayOptions({
      servers: [{ url: URLS[0]! }],
      routing: { layers: 3, experts: 8, share: 1 },
    });
    const told: { key: string; chosen: ChosenExperts }[] = [];
    const sampler = new RoutingSampler(config.routing!, config.servers, {
      statistics: statistics(),
      affinity: { observe: (key, chosen) => told.push({ key, chosen }) },
      log,
      seed: 1,
      onResult: (result) => expect(result).toBe('counted'),
    });
    const target: FleetEngine = {
      engine: 0,
      name: 'a',
      rank: 0,
      server: { url: URLS[0]!, kind: 'vllm', pins: false, headers: {} },
    };
    for (const [rank, key] of [
      [1, 'tenant a'],
      [2, undefined],
      [3, 'tenant b'],
    ] as const) {
      const capture = sampler.capture(target)!;
      capture.write(Buffer.from(routedText(SHAPE, 'vllm', rank, 5)));
      capture.end();
      sampler.count(capture, target, 2, key);
    }
    await sampler.settled();
    expect(told.map(({ key, chosen }) => [key, chosen.tokens])).toEqual([
      ['tenant a', 3],
      ['tenant b', 3],
    ]);
    // Two tokens came from the cache.
    const own = [...routedTo(SHAPE, 3, 5)].slice(2 * 3 * 2);
    expect([...told[1]!.chosen.topk]).toEqual(own);
  });
});

describe('controller.affinity', () => {
  function learned(
    affinity: string | undefined,
    more: { topology?: object; gateway?: object; controller?: object } = {},
  ) {
    return affinityOf(
      checkRunOptions({
        servers: [{ url: URLS[0], ranks: 16 }],
        routing: { layers: 3, experts: 8 },
        ...more.gateway,
        controller: {
          topology: { nodes: 2, gpusPerNode: 8, model: 'DeepSeek-V3', ...more.topology },
          slotsPerGpu: 1,
          hook: { service: true },
          stateFile: 'state.json',
          ...(affinity === undefined ? {} : { affinity }),
          ...more.controller,
        },
      }),
    );
  }

  it('is on by itself over an all-to-all between nodes, where dispatch heeds it and something is sampled', () => {
    expect(learned(undefined, { controller: { tenantHeader: 'X-Tenant' } })).toEqual({
      layers: 3,
      experts: 8,
      sources: 16,
      memoryBytes: 64 * 2 ** 20,
      tenantHeader: 'x-tenant',
    });
    const without: Parameters<typeof learned>[1][] = [
      { topology: { nodes: 1, gpusPerNode: 16 } },
      { topology: { allToAll: 'allgather-reducescatter' } },
      { gateway: { policy: 'round-robin' } },
      { gateway: { weights: { affinity: 0 } } },
      { gateway: { routing: { layers: 3, experts: 8, share: 0 } } },
    ];
    for (const more of without) {
      expect(learned('auto', more), JSON.stringify(more)).toBeUndefined();
      expect(learned('on', more), JSON.stringify(more)).toBeDefined();
    }
    expect(learned('off')).toBeUndefined();
  });

  it('wants room for a key', () => {
    const little = { controller: { affinityMemoryBytes: 47 } };
    expect(() => learned('on', little)).toThrow(/controller\.affinityMemoryBytes: expected at least the 48/);
    expect(learned('off', little)).toBeUndefined();
    expect(() => new Affinity(learned('on', { controller: { affinityMemoryBytes: 48 } })!)).not.toThrow();
  });
});
