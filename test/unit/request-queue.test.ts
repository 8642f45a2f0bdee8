/** The queue as JavaScript meets it, and the priorities that carry its order into engines. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { enginePriority, RequestQueue } from '../../lib/index.js';

describe('RequestQueue', () => {
  it('lets the shortest prefill go first, and who waits longer move up', () => {
    const clock = { nowMs: 0 };
    const queue = new RequestQueue({ agingTokensPerSecond: 1000, clock: () => clock.nowMs });
    queue.push({ id: 'long', prefillTokens: 3000 });
    queue.push({ id: 'short', prefillTokens: 100 });
    clock.nowMs = 2000;
    queue.push({ id: 'later', prefillTokens: 500 });
    clock.nowMs = 4000;
    queue.push({ id: 'last', prefillTokens: 500 });
    expect([queue.size, queue.peek()]).toEqual([4, 'short']);
    // 0.1 s, 2.5 s, 3 s and 4.5 s.
    expect([queue.pop(), queue.pop(), queue.pop(), queue.pop(), queue.pop()]).toEqual([
      'short',
      'later',
      'long',
      'last',
      undefined,
    ]);
    expect([queue.size, queue.peek()]).toEqual([0, undefined]);
  });

  it('takes what has changed and what is cancelled, by id', () => {
    const queue = new RequestQueue({ policy: 'spf' });
    for (const [id, prefillTokens] of [
      ['a', 1],
      ['b', 2],
      ['c', 3],
    ] as const)
      queue.push({ id, prefillTokens });
    expect(queue.update('a', 9)).toBe(true);
    expect(queue.cancel('b')).toBe(true);
    expect([queue.update('b', 1), queue.cancel('b'), queue.update('z', 1)]).toEqual([false, false, false]);
    queue.push({ id: 'b', prefillTokens: 5 });
    expect([queue.pop(), queue.pop(), queue.pop()]).toEqual(['c', 'b', 'a']);
  });

  it.each([
    ['fcfs', ['first', 'second', 'third']],
    ['spf', ['third', 'first', 'second']],
    // Waits of 3, 2 and 1 s over prefills of 300, 400 and 50 tokens.
    ['hrrn', ['third', 'first', 'second']],
  ] as const)('orders by %s', (policy, order) => {
    const queue = new RequestQueue({ policy, clock: () => 3000 });
    queue.push({ id: 'first', prefillTokens: 300, arrivalMs: 0 });
    queue.push({ id: 'second', prefillTokens: 400, arrivalMs: 1000 });
    queue.push({ id: 'third', prefillTokens: 50, arrivalMs: 2000 });
    expect([queue.pop(), queue.pop(), queue.pop()]).toEqual(order);
  });

  it('holds its ids through any course of calls', () => {
    const call = fc.oneof(
      fc.record({ do: fc.constant('push' as const), id: fc.integer({ min: 0, max: 9 }), tokens: fc.nat(50) }),
      fc.record({
        do: fc.constantFrom('pop' as const, 'cancel' as const),
        id: fc.integer({ min: 0, max: 9 }),
        tokens: fc.nat(1),
      }),
    );
    fc.assert(
      fc.property(fc.array(call, { maxLength: 60 }), (calls) => {
        const queue = new RequestQueue({ policy: 'spf', clock: () => 0 });
        const model: { id: number; tokens: number }[] = [];
        const without = (id: number) =>
          model.splice(
            model.findIndex((one) => one.id === id),
            1,
          );
        for (const { do: what, id, tokens } of calls) {
          const waits = model.some((one) => one.id === id);
          if (what === 'push' && !waits) {
            queue.push({ id, prefillTokens: tokens });
            model.push({ id, tokens });
          } else if (what === 'cancel') {
            expect(queue.cancel(id)).toBe(waits);
            if (waits) without(id);
          } else if (what === 'pop') {
            const first = [...model].sort((a, b) => a.tokens - b.tokens)[0];
            expect(queue.pop()).toBe(first?.id);
            if (first !== undefined) without(first.id);
          }
          expect(queue.size).toBe(model.length);
        }
      }),
    );
  });

  it('names what is wrong', () => {
    const wrong = (field: string) => expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field });
    const queue = new RequestQueue();
    queue.push({ id: 1, prefillTokens: 1 });
    expect(() => queue.push({ id: 1, prefillTokens: 1 })).toThrow(wrong('request.id'));
    expect(() => queue.push({ id: 2, prefillTokens: -1 })).toThrow(wrong('request.prefillTokens'));
    expect(() => queue.push({ id: 2, prefillTokens: 1, arrivalMs: Number.NaN })).toThrow(
      wrong('request.arrivalMs'),
    );
    expect(() => queue.push({ id: {} as string, prefillTokens: 1 })).toThrow(wrong('request.id'));
    expect(() => queue.update(1, 0.5)).toThrow(wrong('prefillTokens'));
    expect(() => new RequestQueue({ policy: 'lifo' as 'spf' })).toThrow(wrong('options.policy'));
    expect(() => new RequestQueue({ agingTokensPerSecond: 0 })).toThrow(
      wrong('options.agingTokensPerSecond'),
    );
    expect(queue.size).toBe(1);
  });
});

describe('enginePriority', () => {
  it('is right way up for each engine', () => {
    const soon = { prefillTokens: 100, arrivalMs: 0 };
    const late = { prefillTokens: 100_000, arrivalMs: 0 };
    expect(enginePriority(soon, 'vllm')).toBeLessThan(enginePriority(late, 'vllm'));
    expect(enginePriority(soon, 'sglang')).toBeGreaterThan(enginePriority(late, 'sglang'));
    expect(enginePriority({ prefillTokens: 4000, arrivalMs: 5000 }, 'vllm', { sinceMs: 2000 })).toBe(4000);
    expect(Object.is(enginePriority({ prefillTokens: 0, arrivalMs: 0 }, 'sglang'), 0)).toBe(true);
  });

  it('orders as the queue does, and never by so much that SGLang stops what runs', () => {
    const request = fc.record({ prefillTokens: fc.nat(131_072), arrivalMs: fc.nat(600_000) });
    const threshold = fc.integer({ min: 2, max: 50 });
    fc.assert(
      fc.property(request, request, threshold, (running, waiting, preemptionThreshold) => {
        const rank = ({ prefillTokens, arrivalMs }: typeof running) => prefillTokens / 4 + arrivalMs;
        const of = (one: typeof running) => enginePriority(one, 'sglang', { preemptionThreshold });
        if (rank(waiting) < rank(running)) expect(of(waiting)).toBeGreaterThanOrEqual(of(running));
        // What arrives later than what runs is better by less than the threshold, whatever their lengths.
        if (waiting.arrivalMs >= running.arrivalMs) {
          expect(of(waiting) - of(running)).toBeLessThan(preemptionThreshold);
        }
        if (rank(waiting) < rank(running)) {
          expect(enginePriority(waiting, 'vllm')).toBeLessThanOrEqual(enginePriority(running, 'vllm'));
        }
      }),
    );
  });

  it('names what is wrong', () => {
    const one = { prefillTokens: 1, arrivalMs: 0 };
    const wrong = (field: string) => expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field });
    expect(() => enginePriority(one, 'tgi' as 'vllm')).toThrow(wrong('engine'));
    expect(() => enginePriority({ ...one, prefillTokens: -1 }, 'vllm')).toThrow(
      wrong('request.prefillTokens'),
    );
    expect(() => enginePriority(one, 'sglang', { preemptionThreshold: 1 })).toThrow(
      wrong('options.preemptionThreshold'),
    );
    expect(() => enginePriority(one, 'vllm', { since: 0 } as object)).toThrow(wrong('options.since'));
  });
});
