/** What the simulated dispatcher is told, through stages of one's own; and what pacing holds back. */
import { describe, expect, it } from 'vitest';
import type { Candidate } from '../../lib/index.js';
import { checkSimulation } from '../../lib/simulator/check.js';
import type { ServedModel } from '../../lib/simulator/hardware.js';
import { Routing } from '../../lib/simulator/routing.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedPolicy, SimulationOptions } from '../../lib/simulator/types.js';
import { BASE, randomTrace } from './simulator-fixture.js';

const trace = randomTrace({ count: 150, gapMs: 4, seed: 12 });

/** Every candidate of every decision. */
async function seen(policy: SimulatedPolicy, engine: object = {}, of = trace): Promise<Candidate[]> {
  const candidates: Candidate[] = [];
  const filter = (all: readonly Candidate[]) => {
    candidates.push(...all.map((one) => ({ ...one })));
    return all;
  };
  const routing = { kind: 'generative', sigmaExperts: 1, sigmaTopics: 0.1 } as const;
  await simulate({
    ...BASE,
    trace: of,
    routing,
    engine: { ...BASE.engine, ...engine },
    policy: { placement: 'static', ...policy, dispatch: { filter } },
  });
  return candidates;
}

describe('the dispatcher', () => {
  it('gets samples as often as is said', async () => {
    const usual = await seen({});
    expect(usual.slice(4).every(({ stale }) => !stale)).toBe(true);
    // What samples say of running requests and memory changes what is seen.
    expect(await seen({}, { sampleEveryMs: 1e6 })).not.toEqual(usual);
  });

  it('gets MoE pressure with feedback, and without none', async () => {
    // It is told every second, and there is nothing to tell in the first.
    const long = trace.map((request) => ({ ...request, arrivalMs: 5 * request.arrivalMs }));
    const later = (all: Candidate[]) => all.slice(-100).map(({ moeMs }) => moeMs);
    expect(
      later(await seen({ feedback: true, weights: { moe: 1 } }, {}, long)).every((moeMs) => moeMs !== 0),
    ).toBe(true);
    expect(later(await seen({ weights: { moe: 1 } }, {}, long)).every((moeMs) => moeMs === 0)).toBe(true);
  });

  it('is told first tokens, so that prefill does not stay in its ledger', async () => {
    const candidates = await seen({}, { sampleEveryMs: 1e6 });
    const last =
      candidates.slice(-20).reduce((sum, { inFlightPrefillMs }) => sum + inFlightPrefillMs, 0) / 20;
    // Two engines have a few prompts each in front of them, and not all that they ever got.
    const all = trace.reduce((sum, { inputTokens }) => sum + inputTokens, 0) / 2;
    expect(last).toBeLessThan(all / 10);
  });
});

describe('pacing', () => {
  it('holds back what engines have no room for', async () => {
    const filterSeen: number[] = [];
    const dispatch = {
      filter: (all: readonly Candidate[]) => {
        filterSeen.push(Math.min(...all.map(({ inFlight }) => inFlight)));
        return all;
      },
    };
    const burst = randomTrace({ count: 40, gapMs: 0.01, seed: 3 });
    const most = async (pacing: SimulatedPolicy['pacing']) => {
      filterSeen.length = 0;
      await simulate({
        ...BASE,
        trace: burst,
        policy: { placement: 'static', dispatch, ...(pacing === undefined ? {} : { pacing }) },
      });
      return Math.max(...filterSeen);
    };
    const free = await most(undefined);
    const held = await most({ leastTokens: 300, backlogShare: 0 });
    expect(free).toBeGreaterThan(15);
    expect(held).toBeLessThan(free);
  });
});

describe('affinity', () => {
  /** Two engines, two tenants of a topic each, and a placement that holds the experts of topic t near engine t. */
  async function shareOfNear(affinity: boolean): Promise<number> {
    const model = BASE.model as ServedModel;
    const routing = { kind: 'generative', sigmaTopics: 2, topics: 2, personas: 1, stickiness: 1 } as const;
    const tenants = randomTrace({ count: 400, gapMs: 12, seed: 4 }).map((request, n) => ({
      ...request,
      tenant: `tenant ${n % 2}`,
      topic: n % 2,
    }));
    const { chance } = new Routing(routing, model, 1).tables;
    const initial = Int32Array.from(
      Array.from({ length: model.moeLayers }, (_, layer) => {
        const lean = (e: number) =>
          chance[layer * model.experts + e]! - chance[(model.moeLayers + layer) * model.experts + e]!;
        return Array.from({ length: model.experts }, (_e, e) => e).sort((a, b) => lean(b) - lean(a));
      }).flat(),
    );
    const { requests } = await simulate({
      ...BASE,
      trace: tenants,
      routing,
      engine: { ...BASE.engine, allToAll: 'a2a-pairs' },
      rearrangement: { initial },
      policy: { placement: 'static', affinity },
      seed: 1,
    });
    const late = [...requests.entries()].slice(200);
    return late.filter(([n, { engine }]) => engine === n % 2).length / late.length;
  }

  it('sends a tenant where its experts are, once it has learned them', async () => {
    expect(await shareOfNear(false)).toBeLessThan(0.65);
    expect(await shareOfNear(true)).toBeGreaterThan(0.75);
  });

  it('is on by default over an all-to-all between nodes, and for no rival', async () => {
    const told = (options: Partial<SimulationOptions>, policy: SimulatedPolicy = {}) => {
      const { policy: checked } = checkSimulation({
        ...BASE,
        trace,
        ...options,
        policy: { placement: 'static', ...policy },
      });
      return checked.affinity;
    };
    const pairs = { ...BASE.engine, allToAll: 'a2a-dedup' } as const;
    expect(told({ nodes: 2, engine: pairs })).toBe(true);
    expect(told({ nodes: 2, engine: pairs }, { affinity: false })).toBe(false);
    expect(told({ nodes: 2, engine: pairs }, { dispatch: 'vllm' })).toBe(false);
    expect(told({ engine: pairs })).toBe(false);
    expect(told({ nodes: 2 })).toBe(false);
  });
});
