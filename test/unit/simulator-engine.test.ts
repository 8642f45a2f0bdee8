/** One engine, step by step: what is in each batch, and who gives way. */
import { describe, expect, it } from 'vitest';
import type { QueuePolicy } from '../../lib/dispatch/types.js';
import { Engine, type EngineLimits } from '../../lib/simulator/engine.js';
import { RequestColumns } from '../../lib/simulator/requests.js';
import type { SimulatedRequest } from '../../lib/simulator/types.js';

const LIMITS: EngineLimits = {
  maxNumSeqs: 8,
  maxNumBatchedTokens: 64,
  kvBlocks: 100,
  prefixCaching: true,
  asyncScheduling: false,
};

function make(
  trace: [input: number, output: number, hashes?: number[]][],
  limits: Partial<EngineLimits> = {},
  policy: QueuePolicy = 'fcfs',
) {
  const requests = new RequestColumns(
    trace.map(
      ([inputTokens, outputTokens, prefixHashes], n): SimulatedRequest => ({
        arrivalMs: n,
        inputTokens,
        outputTokens,
        ...(prefixHashes === undefined ? {} : { prefixHashes }),
      }),
    ),
  );
  const told: string[] = [];
  const tell = (what: string) => (id: number) => told.push(`${what} ${id}`);
  const events = {
    firstToken: tell('first'),
    finished: tell('end'),
    joins: tell('joins'),
    leaves: tell('leaves'),
    preempted: tell('preempted'),
  };
  const engine = new Engine(requests, { ...LIMITS, ...limits }, { policy }, () => 100, events);
  const step = () => {
    engine.plan();
    const chunks = engine.chunks.map(({ id, tokens }) => [id, tokens]);
    const { decodes } = engine.batch;
    engine.complete();
    return { decodes, chunks, told: told.splice(0) };
  };
  return { engine, requests, step };
}

describe('an engine', () => {
  it('cuts prompts into chunks by what the budget leaves beside decodes', () => {
    const { engine, step } = make([
      [10, 3],
      [150, 2],
    ]);
    engine.enqueue(0, false);
    engine.enqueue(1, false);
    expect(step()).toEqual({
      decodes: 0,
      chunks: [
        [0, 10],
        [1, 54],
      ],
      told: ['first 0', 'joins 0'],
    });
    expect(step()).toEqual({ decodes: 1, chunks: [[1, 63]], told: [] });
    expect(step()).toEqual({
      decodes: 1,
      chunks: [[1, 33]],
      told: ['leaves 0', 'end 0', 'first 1', 'joins 1'],
    });
    expect(step()).toEqual({ decodes: 1, chunks: [], told: ['leaves 1', 'end 1'] });
    expect([engine.hasWork, engine.kv.used]).toEqual([false, 0]);
  });

  it('sums what attention reads: decodes their context with themselves, chunks what is before them', () => {
    const { engine, step } = make([
      [10, 5],
      [100, 2],
    ]);
    engine.enqueue(0, false);
    engine.enqueue(1, false);
    step();
    engine.plan();
    expect(engine.batch).toEqual({
      decodes: 1,
      decodeContext: 11,
      prefillTokens: 46,
      prefillWork: 46 * (46 + 2 * 54),
      chunks: 1,
      sampled: 2,
    });
    engine.complete();
    engine.plan();
    expect(engine.batch).toMatchObject({ decodes: 2, decodeContext: 12 + 101, sampled: 2 });
  });

  it('runs no more requests than it may', () => {
    const { engine, step } = make(
      Array.from({ length: 5 }, (): [number, number] => [4, 2]),
      { maxNumSeqs: 2 },
    );
    for (let id = 0; id < 5; id++) engine.enqueue(id, false);
    expect(step().chunks).toEqual([
      [0, 4],
      [1, 4],
    ]);
    expect([engine.running, engine.waiting]).toEqual([2, 3]);
    expect(step()).toMatchObject({ decodes: 2, chunks: [] });
    expect(step().chunks).toEqual([
      [2, 4],
      [3, 4],
    ]);
  });

  it('takes a block every 16 tokens, and the request admitted last gives way where there is none', () => {
    // Three blocks: one each for prompts of 16, and one more for the first that needs it.
    const { engine, requests, step } = make(
      [
        [16, 30],
        [16, 30],
      ],
      { kvBlocks: 3 },
    );
    engine.enqueue(0, false);
    engine.enqueue(1, false);
    step();
    expect(engine.kv.used).toBe(2);
    // Both write token 17 now, and only one can.
    expect(step()).toMatchObject({ decodes: 1, chunks: [], told: ['leaves 1', 'preempted 1'] });
    expect(engine.kv.used).toBe(2);
    expect([requests.prefillTokens[1], requests.generated[1]]).toEqual([17, 1]);
    // It does not come back before there is room for all of its 17 tokens, which take two blocks.
    expect(step()).toMatchObject({ decodes: 1, chunks: [] });
    for (let n = 0; n < 27; n++) step();
    expect(step().chunks).toEqual([[1, 17]]);
  });

  it('lets nobody in in the step that preempts', () => {
    // The shortest goes first, and the block that is free would do for it.
    const { engine, step } = make(
      [
        [16, 30],
        [16, 30],
        [1, 2],
      ],
      { kvBlocks: 3 },
      'spf',
    );
    engine.enqueue(0, false);
    engine.enqueue(1, false);
    step();
    engine.enqueue(2, false);
    const { chunks, told } = step();
    expect(told).toContain('preempted 1');
    expect(chunks).toEqual([]);
    expect(step().chunks).toEqual([[2, 1]]);
  });

  it('finds a prompt’s blocks again, whole ones only, and computes at least the last token', () => {
    const { engine, step } = make([
      [64, 1, [7, 8]],
      [96, 1, [7, 8, 9]],
      [64, 1, [7, 8]],
    ]);
    engine.enqueue(0, false);
    step();
    // 64 tokens in two parts: four blocks that stay.
    expect(engine.kv.used).toBe(0);
    engine.enqueue(1, false);
    expect(step().chunks).toEqual([[1, 32]]);
    engine.enqueue(2, false);
    expect(step().chunks).toEqual([[2, 32]]);
    expect(engine.cachedTokens).toBe(64 + 32);
  });

  it('plans a step ahead where it schedules asynchronously', () => {
    const { engine, step } = make(
      [
        [10, 9],
        [10, 2],
      ],
      { asyncScheduling: true },
    );
    engine.enqueue(0, false);
    step();
    engine.enqueue(1, true);
    expect(engine.waiting).toBe(1);
    expect(step().chunks).toEqual([]);
    expect(step().chunks).toEqual([[1, 10]]);
  });

  it('gives way among prefills, so that they cannot block each other', () => {
    const { engine, step } = make(
      [
        [60, 2],
        [60, 2],
      ],
      { kvBlocks: 6, maxNumBatchedTokens: 40 },
    );
    engine.enqueue(0, false);
    engine.enqueue(1, false);
    const ended = new Set<string>();
    for (let n = 0; n < 30; n++) for (const what of step().told) if (what.startsWith('end')) ended.add(what);
    expect([...ended].sort()).toEqual(['end 0', 'end 1']);
    expect(engine.kv.used).toBe(0);
  });
});
