/** What the simulated dispatcher is told, through stages of one's own; and what pacing holds back. */
import { describe, expect, it } from 'vitest';
import type { Candidate } from '../../lib/index.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedPolicy } from '../../lib/simulator/types.js';
import { BASE, randomTrace } from './simulator-fixture.js';

const trace = randomTrace({ count: 150, gapMs: 4, seed: 12 });

/** Every candidate of every decision. */
async function seen(policy: SimulatedPolicy, engine: object = {}): Promise<Candidate[]> {
  const candidates: Candidate[] = [];
  const filter = (all: readonly Candidate[]) => {
    candidates.push(...all.map((one) => ({ ...one })));
    return all;
  };
  const routing = { kind: 'generative', sigmaExperts: 1, sigmaTopics: 0.1 } as const;
  await simulate({
    ...BASE,
    trace,
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
    expect((await seen({ feedback: true })).some(({ moeMs }) => moeMs > 0)).toBe(true);
    expect((await seen({ feedback: false })).every(({ moeMs }) => moeMs === 0)).toBe(true);
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
