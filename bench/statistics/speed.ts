/**
 * How fast do the routing statistics count, and what do their answers cost? One thread, calls of a request's length, experts drawn
 * from a skewed popularity, sources by turns; and the way from vLLM's base64 to the choices.
 */
import { RoutingStatistics, readRoutedExperts } from '../../lib/index.js';
import { type Check, type Findings, median, type RunOptions } from '../harness.js';
import { Random } from '../random.js';

export const name = 'statistics-speed';
export const question = 'how many expert hits a second are counted, and what do counts and drift cost?';

const LEAST_HITS = 50e6;
const MOST_BYTES = 64e6;
const SHAPES = [
  { title: 'Qwen3-30B, 8 sources', layers: 48, experts: 128, sources: 8, k: 8 },
  { title: 'DeepSeek-V3, 32 sources', layers: 58, experts: 256, sources: 32, k: 8 },
] as const;
type Shape = (typeof SHAPES)[number];
const WINDOWS = [
  { title: 'fades', halfLifeTokens: 2 ** 16 },
  { title: 'slides', windowTokens: 2 ** 16 },
] as const;
type Ids = Uint8Array | Uint16Array;
/** Tokens of a call; requests that are sampled are of about this length. */
const CALL = 512;
/** Different calls, so that branches and caches see no short cycle. */
const CALLS = 8;

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rounds = small ? 2 : 40;
  const counting: (string | number)[][] = [];
  const answers: (string | number)[][] = [];
  const slowest = { hits: Number.POSITIVE_INFINITY };
  let mostBytes = 0;
  for (const shape of SHAPES) {
    const calls = makeCalls(shape, seed);
    for (const window of WINDOWS) {
      const statistics = new RoutingStatistics({ ...shapeOf(shape), ...windowOf(window) });
      const perSecond = [Uint8Array, Uint16Array].map((kind) =>
        hitsPerSecond(
          statistics,
          shape,
          calls.map((ids) => kind.from(ids)),
          rounds,
        ),
      );
      slowest.hits = Math.min(slowest.hits, ...perSecond);
      mostBytes = Math.max(mostBytes, statistics.memoryBytes);
      counting.push([shape.title, window.title, ...perSecond.map((hits) => Math.round(hits / 1e6))]);
      answers.push([
        shape.title,
        window.title,
        statistics.memoryBytes / 1e6,
        ...answersMs(statistics, small),
      ]);
    }
  }
  return {
    tables: [
      { title: 'million hits a second', columns: ['shape', 'window', 'uint8', 'uint16'], rows: counting },
      {
        title: 'what is kept, and what the answers take',
        columns: ['shape', 'window', 'MB', 'counts ms', 'drift ms', 'snapshot ms', 'restore ms'],
        rows: answers,
      },
      {
        title: "vLLM's field read, million hits a second",
        columns: ['shape', 'uint8', 'uint16'],
        rows: SHAPES.map((shape) => [shape.title, ...readRates(shape, seed, rounds)]),
      },
    ],
    checks: checksOf(slowest.hits, mostBytes, small),
    notes: [
      `A hit is one expert of one token in one layer. Calls of ${CALL} tokens; medians of ${rounds} rounds of ${CALLS} calls.`,
      'The window moves on meanwhile: opening buckets and taking powers of two out of sums is in the figures.',
    ],
  };
}

const shapeOf = ({ layers, sources, experts }: Shape) => ({ layers, sources, experts });
const windowOf = (window: (typeof WINDOWS)[number]) =>
  'windowTokens' in window
    ? { windowTokens: window.windowTokens }
    : { halfLifeTokens: window.halfLifeTokens };

/** [CALLS][CALL][layers][k]: lognormal popularity of its own in each layer. */
function makeCalls({ layers, experts, k }: Shape, seed: number): Uint16Array[] {
  const random = new Random(seed, experts);
  /** [layers][4096]: experts as often as they are popular. */
  const lots = Array.from({ length: layers }, () => {
    const weights = Array.from({ length: experts }, () => Math.exp(random.normal()));
    const all = weights.reduce((a, b) => a + b);
    let sum = 0;
    const bounds = weights.map((weight) => (sum += weight / all));
    let expert = 0;
    return Uint16Array.from({ length: 4096 }, (_, i) => {
      while (expert < experts - 1 && bounds[expert]! < (i + 0.5) / 4096) expert++;
      return expert;
    });
  });
  return Array.from({ length: CALLS }, () =>
    Uint16Array.from(
      { length: CALL * layers * k },
      (_, i) => lots[Math.floor(i / k) % layers]![random.below(4096)]!,
    ),
  );
}

function hitsPerSecond(statistics: RoutingStatistics, shape: Shape, calls: Ids[], rounds: number): number {
  const { layers, sources, k } = shape;
  const rates: number[] = [];
  // The first round warms up.
  for (let round = 0; round <= rounds; round++) {
    const began = performance.now();
    calls.forEach((topk, n) => {
      statistics.observe({ source: (round * CALLS + n) % sources, topk, tokens: CALL, k });
    });
    const hits = CALLS * CALL * layers * k;
    if (round > 0) rates.push((hits * 1000) / (performance.now() - began));
  }
  return median(rates);
}

/** [counts, drift, snapshot, restore] */
function answersMs(statistics: RoutingStatistics, small: boolean): number[] {
  const snapshot = statistics.snapshot();
  const ways = [
    () => statistics.counts(),
    () => statistics.drift(),
    () => statistics.snapshot(),
    () => statistics.restore(snapshot),
  ];
  return ways.map((way) => {
    const tookMs = Array.from({ length: small ? 1 : 9 }, () => {
      const began = performance.now();
      way();
      return performance.now() - began;
    });
    return Number(median(tookMs).toFixed(2));
  });
}

/** [uint8, uint16] */
function readRates(shape: Shape, seed: number, rounds: number): number[] {
  const [ids] = makeCalls(shape, seed);
  return [Uint8Array, Uint16Array].map((kind) => {
    const elements = kind.from(ids!);
    const dtype = kind === Uint8Array ? '|u1' : '<u2';
    const header = `{'descr': '${dtype}', 'fortran_order': False, 'shape': (${CALL}, ${shape.layers}, ${shape.k}), }`;
    const padded = `${header.padEnd(117)}\n`;
    const data = Buffer.from(elements.buffer, elements.byteOffset, elements.byteLength);
    const prefix = Buffer.from(`\x93NUMPY\x01\x00${String.fromCharCode(padded.length)}\x00`, 'latin1');
    const field = Buffer.concat([prefix, Buffer.from(padded), data]).toString('base64');
    const rates = Array.from({ length: rounds }, () => {
      const began = performance.now();
      const { topk } = readRoutedExperts(field);
      return topk.length / (performance.now() - began) / 1000;
    });
    return Math.round(median(rates));
  });
}

function checksOf(hits: number, bytes: number, small: boolean): Check[] {
  const memory: Check = {
    target: `≤ ${MOST_BYTES / 1e6} MB at 58 layers, 32 sources and 256 experts`,
    measured: `${(bytes / 1e6).toFixed(1)} MB`,
    pass: bytes <= MOST_BYTES,
    kind: 'quality',
  };
  const speed: Check = {
    target: `≥ ${LEAST_HITS / 1e6} million hits/s at every shape, window and width`,
    measured: `${Math.round(hits / 1e6)} million/s`,
    pass: hits >= LEAST_HITS,
    kind: 'time',
  };
  return small ? [memory] : [speed, memory];
}
