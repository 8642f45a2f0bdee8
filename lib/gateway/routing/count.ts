/**
 * What an engine says of a request's routing, from the text in its answer to the statistics, in steps: a long prompt's is megabytes,
 * and whoever runs them serves others in between.
 */
import { mismatch } from '../../errors.js';
import { readRoutedExperts } from '../../statistics/routed-experts.js';
import type { RoutingStatistics } from '../../statistics/routing-statistics.js';
import type { ServerKind } from '../../telemetry/types.js';
import type { ChosenExperts } from '../affinity.js';

const FIELD = 'routed_experts';
/** About a millisecond of counting. */
const STEP_CHOICES = 32_768;
/** Of one answer, tokens whose experts are told beside the statistics: a long one shall not be all that is known. */
const MOST_TOLD_TOKENS = 256;
const BASE64_UNIT = 4;
const INT32_BYTES = 4;
const MOST_UINT16 = 0xffff;

/** How the model's MoE layers lie in what engines report. */
export interface ReportedShape {
  /** MoE layers, */
  layers: number;
  /** behind so many rows of layers without experts. */
  firstLayer: number;
  /** Must be given for SGLang, whose arrays do not say. */
  topK?: number | undefined;
}

export interface RoutedAnswer {
  kind: ServerKind;
  source: number;
  /** The member's text, base64. */
  pieces: readonly Buffer[];
  /** Of the prompt: engines report them too, but did not compute them. */
  cachedTokens: number;
}

/** Rows of an array as an engine wrote it. [tokens][rows][k] */
interface Reported {
  ids: Uint8Array | Uint16Array | Int32Array;
  tokens: number;
  rows: number;
  k: number;
}

/**
 * Each step is short. `tell` hears of up to 256 tokens, from all over the answer. Returns the tokens that were counted.
 *
 * @throws GimbalError GIMBAL_FORMAT, GIMBAL_INVALID_INPUT: not what the statistics take
 */
export function* countRouted(
  answer: RoutedAnswer,
  shape: ReportedShape,
  statistics: RoutingStatistics,
  tell?: (chosen: ChosenExperts) => void,
): Generator<void, number> {
  const bytes = yield* decoded(answer.pieces);
  const reported = answer.kind === 'vllm' ? ofNpy(bytes) : ofInt32(bytes, shape);
  const { tokens, rows, k } = reported;
  const { layers, firstLayer, topK } = shape;
  if (rows < firstLayer + layers) {
    throw mismatch('GIMBAL_FORMAT', FIELD, `at least ${firstLayer + layers} layers`, `${rows}`);
  }
  if (topK !== undefined && k !== topK) throw mismatch('GIMBAL_FORMAT', FIELD, `top ${topK}`, `top ${k}`);
  const from = Math.min(answer.cachedTokens, tokens);
  const step = Math.max(1, Math.floor(STEP_CHOICES / (rows * k)));
  const toldShare = Math.min(1, MOST_TOLD_TOKENS / (tokens - from));
  for (let first = from; first < tokens; first += step) {
    const last = Math.min(tokens, first + step);
    const topk = choicesOf(reported, shape, first, last);
    statistics.observe({ source: answer.source, topk, tokens: last - first, k });
    // As many of each step that their sum is the share of all so far.
    const told = Math.floor((last - from) * toldShare) - Math.floor((first - from) * toldShare);
    if (told > 0) tell?.({ topk: topk.subarray(0, told * layers * k), tokens: told, k });
    yield;
  }
  return tokens - from;
}

/** The bytes of base64 that came in pieces. */
function* decoded(pieces: readonly Buffer[]): Generator<void, Buffer> {
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const bytes = Buffer.allocUnsafe(Math.ceil((length / BASE64_UNIT) * 3));
  let written = 0;
  let rest = '';
  for (const [n, piece] of pieces.entries()) {
    const text = rest + piece.toString('latin1');
    const isLast = n === pieces.length - 1;
    const whole = isLast ? text.length : text.length - (text.length % BASE64_UNIT);
    const part = text.slice(0, whole);
    rest = text.slice(whole);
    // What is no base64 is left out by Buffer, and not told of.
    const isBase64 = (isLast ? /^[A-Za-z0-9+/]*={0,2}$/ : /^[A-Za-z0-9+/]*$/).test(part);
    if (!isBase64 || part.length % BASE64_UNIT !== 0) {
      throw mismatch('GIMBAL_FORMAT', FIELD, 'base64', 'other text');
    }
    written += bytes.write(part, written, 'base64');
    yield;
  }
  return bytes.subarray(0, written);
}

function ofNpy(bytes: Buffer): Reported {
  const { topk, tokens, layers, k } = readRoutedExperts(bytes);
  return { ids: topk, tokens, rows: layers, k };
}

/** SGLang's: the numbers alone. */
function ofInt32(bytes: Buffer, { layers, firstLayer, topK }: ReportedShape): Reported {
  const rows = firstLayer + layers;
  const k = topK!;
  const tokenBytes = rows * k * INT32_BYTES;
  if (bytes.length % tokenBytes !== 0) {
    const expected = `int32 [tokens, ${rows}, ${k}]`;
    throw mismatch('GIMBAL_FORMAT', FIELD, expected, `${bytes.length} bytes`);
  }
  const aligned = bytes.byteOffset % INT32_BYTES === 0 ? bytes : Buffer.from(new Uint8Array(bytes).buffer);
  const ids = new Int32Array(aligned.buffer, aligned.byteOffset, bytes.length / INT32_BYTES);
  return { ids, tokens: bytes.length / tokenBytes, rows, k };
}

/** [last - first][layers][k] As they are where they are that already. */
function choicesOf(
  { ids, rows, k }: Reported,
  { layers, firstLayer }: ReportedShape,
  first: number,
  last: number,
): Uint8Array | Uint16Array {
  const all = ids.subarray(first * rows * k, last * rows * k);
  const isWide = all instanceof Int32Array;
  if (isWide) requireExperts(all);
  else if (rows === layers) return all;
  const length = (last - first) * layers * k;
  const picked = all.BYTES_PER_ELEMENT === 1 ? new Uint8Array(length) : new Uint16Array(length);
  for (let token = 0; token < last - first; token++) {
    const from = (token * rows + firstLayer) * k;
    picked.set(all.subarray(from, from + layers * k), token * layers * k);
  }
  return picked;
}

/** So that none is another when it is narrowed. */
function requireExperts(ids: Int32Array): void {
  const wrong = ids.find((id) => id < 0 || id > MOST_UINT16);
  if (wrong !== undefined) throw mismatch('GIMBAL_FORMAT', FIELD, 'experts', `${wrong}`);
}
