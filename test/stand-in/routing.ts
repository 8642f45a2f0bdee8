/**
 * Where the toy model routes: for each token of a request, in each layer, `topK` experts of its rank's own taste. With `topics` ranks
 * like different experts; without, all the same. Reported as the engines do: vLLM as base64 of a .npy [tokens, rows, topK] on each choice of
 * an answer in one piece, without being asked; SGLang as base64 of int32 [tokens, rows, topK] in `sglext`, if the body asks.
 */
import { mix32 } from '../../bench/random.js';
import { npy } from '../support/npy.js';
import type { Kind } from './wire.js';

export interface StandInRouting {
  layers: number;
  experts: number;
  topK: number;
  /** Rows of layers without experts, which engines report too. Default 0. */
  denseLayers?: number;
  /** Of ten choices, those that go to the experts a rank likes: `rank * topK` and so on. Default 0. */
  taste?: number;
  /** The taste is the number in the body's `topic`, and not the rank. Default false. */
  byTopic?: boolean;
  /** Also at the end of a stream, as vLLM may one day. Default false. */
  inStreams?: boolean;
}

/** [tokens][rows][topK] The last token of an answer is routed nowhere. */
export function routedTo(routing: StandInRouting, rank: number, tokens: number): Uint16Array {
  const { layers, experts, topK, denseLayers = 0, taste = 0 } = routing;
  const rows = denseLayers + layers;
  const ids = new Uint16Array(tokens * rows * topK);
  for (let at = 0; at < ids.length; at++) {
    const row = Math.floor(at / topK);
    const likes = mix32(row ^ (rank << 20)) % 10 < taste;
    const first = likes ? rank * topK : mix32(row ^ 0x5bd1e995 ^ (rank << 24)) % experts;
    ids[at] = (first + (at % topK)) % experts;
  }
  return ids;
}

/** The text of the member. */
export function routedText(routing: StandInRouting, kind: Kind, rank: number, tokens: number): string {
  const { layers, experts, topK, denseLayers = 0 } = routing;
  const ids = routedTo(routing, rank, tokens);
  if (kind === 'sglang') return Buffer.from(Int32Array.from(ids).buffer).toString('base64');
  const narrow = experts <= 256;
  const data = narrow ? Uint8Array.from(ids) : new Uint8Array(ids.buffer);
  const shape = [tokens, denseLayers + layers, topK];
  return npy(data, shape, { descr: narrow ? '|u1' : '<u2' }).toString('base64');
}
