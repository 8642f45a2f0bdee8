/** The search for the most requests a second that engines keep up with, on servers whose answer is known. */
import { describe, expect, it } from 'vitest';
import { sustainedRate } from '../../bench/simulator/saturation.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedRequest, SimulationResult } from '../../lib/simulator/types.js';
import { BASE, HARDWARE, MODEL } from './simulator-fixture.js';

const requests = Array.from({ length: 2000 }, () => ({ arrivalMs: 0, inputTokens: 200, outputTokens: 1 }));

/** One request after the other, each as long as `serviceMs` says of its number. */
function server(serviceMs: (n: number) => number) {
  return async (trace: SimulatedRequest[]) => {
    let freeMs = 0;
    const served = trace.map(({ arrivalMs }, n) => {
      freeMs = Math.max(freeMs, arrivalMs) + serviceMs(n);
      return { arrivalMs, firstTokenMs: freeMs, finishMs: freeMs, engine: 0 };
    });
    return { requests: served } as unknown as SimulationResult;
  };
}

describe('the rate that is kept up with', () => {
  it('is the one of a server of constant service, from below and within 1 %', async () => {
    const rate = await sustainedRate(
      requests,
      server(() => 20),
    );
    expect(rate).toBeGreaterThan(49);
    expect(rate).toBeLessThan(51);
  });

  it('is not what is finished while a first rush lasts', async () => {
    // An empty house takes in the first 1,200 at once, and what is finished from the first quarter to the third is far too much.
    const rate = await sustainedRate(
      requests,
      server((n) => (n < 1200 ? 5 : 20)),
    );
    expect(rate).toBeGreaterThan(49);
    expect(rate).toBeLessThan(51);
  });

  it('is found where overload makes the server slower than it need be', async () => {
    const slowed = (trace: SimulatedRequest[]) =>
      server(() => (trace.at(-1)!.arrivalMs === 0 ? 60 : 20))(trace);
    const rate = await sustainedRate(requests, slowed);
    expect(rate).toBeGreaterThan(49);
    expect(rate).toBeLessThan(51);
  });

  it('is the inverse of the service of an engine that takes one request at a time', async () => {
    const options = {
      model: MODEL,
      hardware: HARDWARE,
      dp: 1,
      engine: { ...BASE.engine, maxNumSeqs: 1, requestMs: 0, asyncScheduling: false },
      policy: { placement: 'static' as const },
    };
    const alone = await simulate({ ...options, trace: requests.slice(0, 1) });
    const rate = await sustainedRate(requests, (trace) => simulate({ ...options, trace }));
    expect((rate * alone.summary.ttftMs.mean) / 1000).toBeCloseTo(1, 1);
  });
});
