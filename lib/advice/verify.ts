/**
 * A candidate in the simulator: as many requests on each engine as the advice takes to be under way, more waiting for each that
 * ends, the advised plan in force, and what memory it leaves.
 */
import { Random } from '../random.js';
import { BLOCK_TOKENS } from '../simulator/kv-cache.js';
import { simulate } from '../simulator/simulate.js';
import type { RequestOutcome, SimulatedRequest } from '../simulator/types.js';
import type { CheckedAdvice, CheckedTraffic } from './check.js';
import { type Counts, sharesOf } from './counts.js';
import type { Demand } from './steady-state.js';
import type { RedundancyCandidate, RedundancyOptions } from './types.js';

const STREAM = 403;
/** Requests for each one that is under way: the first begin together, the last end alone, and what is between counts. */
const GENERATIONS = 4;
const COUNTED = { from: 0.35, to: 0.7 };

export async function simulateCandidate(
  { signal, tables }: Pick<RedundancyOptions, 'signal' | 'tables'>,
  checked: CheckedAdvice,
  counts: Counts,
  { redundantExperts, kvTokens, plan }: Pick<RedundancyCandidate, 'redundantExperts' | 'kvTokens' | 'plan'>,
  { concurrency }: Demand,
): Promise<NonNullable<RedundancyCandidate['simulated']>> {
  const { model, hardware, shape, engine, replicaChoice, seed, traffic } = checked;
  const { ranks, tensorParallel, nodes } = shape;
  const maxNumSeqs = Math.max(1, Math.min(engine.maxNumSeqs, Math.round(concurrency / ranks)));
  const trace = fullHouse(traffic, ranks, maxNumSeqs, seed);
  // The simulator's requests hold their prompt and what they have of the answer; those that hold more or less get memory to match.
  const held = (traffic.inputTokens + traffic.outputTokens / 2) / traffic.kvTokensPerRequest;
  const { requests, counters } = await simulate({
    trace,
    model,
    hardware,
    dp: ranks,
    tp: tensorParallel,
    nodes,
    engine: { ...engine, replicaChoice, maxNumSeqs, kvBlocks: Math.floor((kvTokens * held) / BLOCK_TOKENS) },
    routing: { kind: 'counts', ...withoutSilence(counts) },
    policy: {
      // A source is an engine, and its requests are the topic of its number.
      dispatch: {
        filter: (all, { id }) => all.filter(({ engine: own }) => own === trace[id as number]!.topic),
      },
      queue: 'fcfs',
      placement: 'static',
      feedback: false,
    },
    rearrangement: {
      redundantExperts,
      initial: repeated(plan.physicalToLogical, counts.layers, model.moeLayers),
    },
    seed,
    ...(tables === undefined ? {} : { tables }),
    ...(signal === undefined ? {} : { signal }),
  });
  const outputTokensPerSecond = rateOf(trace, requests);
  return {
    outputTokensPerSecond,
    msPerOutputToken: (concurrency * 1000) / outputTokensPerSecond,
    preemptions: counters.preemptions,
  };
}

/** All there from the start. Answers are equally long but for the first ones on each engine, which end at random. */
function fullHouse(
  { inputTokens, outputTokens }: CheckedTraffic,
  ranks: number,
  perRank: number,
  seed: number,
): SimulatedRequest[] {
  const random = new Random(seed, STREAM);
  const full = Math.round(outputTokens);
  return Array.from({ length: ranks * perRank * GENERATIONS }, (_, n) => {
    const part = n < ranks * perRank ? random.uniform() : 1;
    return {
      arrivalMs: 0,
      inputTokens: Math.max(1, Math.round(inputTokens)),
      outputTokens: Math.max(1, Math.ceil(part * full)),
      topic: n % ranks,
    };
  });
}

/** Output tokens a second while the house is full. */
function rateOf(trace: readonly SimulatedRequest[], requests: readonly RequestOutcome[]): number {
  const ends = requests.map(({ finishMs }) => finishMs).sort((a, b) => a - b);
  const from = ends[Math.floor(COUNTED.from * ends.length)]!;
  const to = ends[Math.floor(COUNTED.to * ends.length)]!;
  let tokens = 0;
  for (const [id, { firstTokenMs, finishMs }] of requests.entries()) {
    // An answer comes evenly between its first token and its last.
    const within = Math.min(to, finishMs) - Math.max(from, firstTokenMs);
    if (within > 0) tokens += (trace[id]!.outputTokens * within) / (finishMs - firstTokenMs);
  }
  return (tokens * 1000) / (to - from);
}

/** A source that sent nothing in a layer sends what all do. */
function withoutSilence(counts: Counts): Counts {
  const { layers, sources, experts } = counts;
  const tokens = counts.tokens.slice();
  for (let layer = 0; layer < layers; layer++) {
    for (let source = 0; source < sources; source++) {
      const at = (layer * sources + source) * experts;
      tokens.set(sharesOf(counts, layer, source), at);
    }
  }
  return { ...counts, tokens };
}

/** Layers of the counts stand in turn for the model's, as the simulator has it. */
function repeated(placement: Int32Array, layers: number, modelLayers: number): Int32Array {
  const slots = placement.length / layers;
  return Int32Array.from({ length: modelLayers * slots }, (_, n) => placement[n % placement.length]!);
}
