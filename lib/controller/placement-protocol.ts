/**
 * What a policy inside an engine asks the placement service, and what it is answered: JSON, arrays as base64 of little-endian numbers.
 * docs/ENGINES.md describes it. A question is untrusted: nothing is computed from one that has not been checked as a whole.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { invalid } from '../checks.js';
import { MAX_EXPERTS, MAX_LAYERS } from '../import/limits.js';
import { everyExpert } from '../validate.js';
import type { DecisionReason } from './decide.js';

export const PLACEMENT_PROTOCOL_VERSION = 1;
const MOST_TOKENS = 2 ** 32 - 1;
const MOST_NAME = 256;
/** Layers × slots, which are no fewer than layers × experts: 16 times what the largest models have. What is answered is kept, so it is bounded. */
const MOST_CELLS = 2 ** 20;

const whole = (most: number) => z.number().int().min(1).max(most);
const name = z.string().min(1).max(MOST_NAME);
const base64 = z.string().regex(/^[A-Za-z0-9+/]*={0,2}$/, 'expected base64');

const questionSchema = z.strictObject({
  version: z.literal(PLACEMENT_PROTOCOL_VERSION),
  model: name,
  key: name,
  layers: whole(MAX_LAYERS),
  experts: whole(MAX_EXPERTS),
  slots: whole(MOST_CELLS),
  groups: whole(MAX_EXPERTS),
  nodes: whole(MAX_EXPERTS),
  ranks: whole(MAX_EXPERTS),
  weight: z.union([
    z.array(z.array(z.number())),
    z.strictObject({ dtype: z.enum(['int64', 'float32']), data: base64 }),
  ]),
  old: base64.nullable(),
});

const agreementSchema = z.strictObject({
  version: z.literal(PLACEMENT_PROTOCOL_VERSION),
  key: name,
  planId: name,
  agreed: z.boolean(),
  detail: z.string().max(4096).optional(),
});

export interface PlacementQuestion {
  model: string;
  /** Names the question: whoever asks it again gets the same answer. */
  key: string;
  layers: number;
  experts: number;
  /** Over all ranks. */
  slots: number;
  groups: number;
  nodes: number;
  ranks: number;
  /** `[layers][experts]`, tokens; halved as often as it takes to fit 32 bits. */
  tokens: Uint32Array;
  /** `[layers][slots]`: the map in force. */
  old?: Int32Array;
  /** Of all of the above but the key. */
  digest: string;
}

export interface PlacementAgreement {
  key: string;
  planId: string;
  /** Whether the ranks took the answer, all of them. */
  agreed: boolean;
  detail?: string;
}

export type PlacementReason = DecisionReason | 'controller' | 'empty-slots' | 'no-old-map';

export interface PredictedChange {
  /** Largest over mean load of a rank, mean over the layers; 1 is even. */
  oldImbalance?: number;
  newImbalance: number;
  /** Of the busiest ranks' time. */
  gainShare?: number;
  /** New (expert, rank) pairs, and slots that change. */
  migrations?: number;
  movedSlots?: number;
}

export interface PlacementAnswer {
  version: typeof PLACEMENT_PROTOCOL_VERSION;
  key: string;
  /** The same for everybody who is given this answer. */
  planId: string;
  decision: 'rearrange' | 'keep';
  reason: PlacementReason;
  /** layers, slots */
  shape: [number, number];
  /** `[layers][slots]`, base64 of int32. */
  physicalToLogical: string;
  /** Of the map's bytes, in hex. */
  sha256: string;
  predicted?: PredictedChange;
  /** In shadow mode: what would have been answered. */
  shadow?: { decision: 'rearrange' | 'keep'; reason: PlacementReason; planId: string };
}

/** @throws GimbalError GIMBAL_INVALID_INPUT, which names the field */
export function readQuestion(body: unknown): PlacementQuestion {
  const asked = parse(questionSchema, body);
  const { layers, experts, slots, ranks, weight, old } = asked;
  if (layers * slots > MOST_CELLS)
    throw invalid('slots', `at most ${MOST_CELLS} over all layers`, `${slots}`);
  if (slots % ranks !== 0) throw invalid('slots', `a multiple of the ${ranks} ranks`, `${slots}`);
  if (slots < experts) throw invalid('slots', `at least one for each of the ${experts} experts`, `${slots}`);
  const tokens = toTokens(readWeights(weight, layers, experts));
  const map = old === null ? undefined : readOld(old, layers, slots, experts);
  const { model, key, groups, nodes } = asked;
  const shape = { model, layers, experts, slots, groups, nodes, ranks };
  const hash = createHash('sha256').update(JSON.stringify(shape)).update(bytesOf(tokens));
  if (map !== undefined) hash.update(bytesOf(map));
  return { ...shape, key, tokens, digest: hash.digest('hex'), ...(map && { old: map }) };
}

/** @throws GimbalError GIMBAL_INVALID_INPUT, which names the field */
export function readAgreement(body: unknown): PlacementAgreement {
  const { key, planId, agreed, detail } = parse(agreementSchema, body);
  return { key, planId, agreed, ...(detail !== undefined && { detail }) };
}

export function encodeMap(map: Int32Array): Pick<PlacementAnswer, 'physicalToLogical' | 'sha256'> {
  const bytes = bytesOf(map);
  return {
    physicalToLogical: bytes.toString('base64'),
    sha256: createHash('sha256').update(bytes).digest('hex'),
  };
}

function parse<T>(schema: z.ZodType<T>, body: unknown): T {
  const { success, data, error } = schema.safeParse(body);
  if (success) return data;
  const { path, message } = error.issues[0]!;
  throw invalid(path.length === 0 ? 'body' : path.join('.'), 'a question of this protocol', message);
}

/** `[layers][experts]`, as they came. */
function readWeights(
  weight: z.infer<typeof questionSchema>['weight'],
  layers: number,
  experts: number,
): Float64Array {
  const expected = `[${layers}][${experts}]`;
  if (Array.isArray(weight)) {
    if (weight.length !== layers || weight.some((row) => row.length !== experts)) {
      throw invalid('weight', expected, `${weight.length} rows, the first of ${weight[0]?.length ?? 0}`);
    }
    return Float64Array.from(weight.flat());
  }
  const { dtype, data } = weight;
  const width = dtype === 'int64' ? 8 : 4;
  const bytes = readBase64('weight.data', data, layers * experts * width, `${expected} of ${dtype}`);
  const values = new Float64Array(layers * experts);
  for (let at = 0; at < values.length; at++) {
    values[at] = dtype === 'int64' ? Number(bytes.readBigInt64LE(at * width)) : bytes.readFloatLE(at * width);
  }
  return values;
}

function toTokens(weights: Float64Array): Uint32Array {
  let most = 0;
  for (const [at, weight] of weights.entries()) {
    if (!Number.isFinite(weight) || weight < 0) {
      throw invalid(`weight[${at}]`, 'a finite number of at least 0', String(weight));
    }
    most = Math.max(most, weight);
  }
  let scale = 1;
  while (most * scale > MOST_TOKENS) scale /= 2;
  return Uint32Array.from(weights, (weight) => Math.round(weight * scale));
}

function readOld(data: string, layers: number, slots: number, experts: number): Int32Array {
  const bytes = readBase64('old', data, layers * slots * 4, `[${layers}][${slots}] of int32`);
  const map = Int32Array.from({ length: layers * slots }, (_, at) => bytes.readInt32LE(at * 4));
  for (let layer = 0; layer < layers; layer++) {
    const row = map.subarray(layer * slots, (layer + 1) * slots);
    const wrong = row.find((expert) => expert < 0 || expert >= experts);
    if (wrong !== undefined) throw invalid(`old[${layer}]`, `experts 0 to ${experts - 1}`, String(wrong));
    everyExpert(`old[${layer}]`, row, experts);
  }
  return map;
}

function readBase64(field: string, text: string, length: number, expected: string): Buffer {
  const bytes = Buffer.from(text, 'base64');
  if (bytes.length !== length) throw invalid(field, `${length} bytes, ${expected}`, `${bytes.length} bytes`);
  return bytes;
}

/** Every processor that the addon is built for is little-endian. */
function bytesOf(array: Int32Array | Uint32Array): Buffer {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}
