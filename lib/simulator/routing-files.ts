/**
 * Routing for a simulation from files, each file a topic: counts as plans take them, or recorded choices. Choices are `.npy`
 * arrays [tokens, layers, k], or what vLLM returns as `routed_experts`: responses as JSON or one a line, or the bare base64.
 */
import { stat } from 'node:fs/promises';
import { GimbalError } from '../errors.js';
import { readFileBounded } from '../files.js';
import { breathe, shapeText, visit } from '../import/array.js';
import { readCounts } from '../import/counts.js';
import { formatError, MAX_FILE_BYTES } from '../import/limits.js';
import { isNpy, parseNpy } from '../import/npy.js';
import { decodeText, parseJson, property, startsLikeJson } from '../import/text.js';
import { type RoutedExperts, readRoutedExperts } from '../statistics/routed-experts.js';
import type { ServedModel } from './hardware.js';
import type { SimulatedRouting } from './types.js';

const FIELD = 'routed_experts';
/** Base64 of NumPy's magic bytes. */
const BASE64_MAGIC = 'k05VTVBZ';

/** `[tokens][layers][k]` */
interface Choices {
  ids: Uint16Array;
  layers: number;
  k: number;
}

/** @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (both name the file) */
export async function readRouting(
  paths: readonly string[],
  model: ServedModel,
  signal?: AbortSignal,
): Promise<SimulatedRouting> {
  const files: (Choices | undefined)[] = [];
  for (const path of paths) files.push(await readChoices(path, model, signal));
  const recorded = files.filter((file) => file !== undefined);
  if (recorded.length === 0) {
    const { tokens, layers, sources, experts } = await readCounts([...paths], signal ? { signal } : {});
    return { kind: 'counts', tokens, layers, sources, experts };
  }
  const other = files.indexOf(undefined);
  if (other >= 0) {
    throw formatError(paths[other]!, '', 'recorded choices, as the other files have', 'counts');
  }
  return {
    kind: 'recorded',
    recordings: recorded.map((choices, n) => {
      const { ids, layers, k } = ofExperts(choices, model, paths[n]!);
      return { ids, layers, topK: k };
    }),
  };
}

/** Undefined where the file is none of recorded choices. */
async function readChoices(
  path: string,
  model: ServedModel,
  signal: AbortSignal | undefined,
): Promise<Choices | undefined> {
  // A folder holds counts of some engines.
  if (
    await stat(path).then(
      (stats) => stats.isDirectory(),
      () => false,
    )
  )
    return undefined;
  const bytes = await readFileBounded(path, { maxBytes: MAX_FILE_BYTES, signal });
  if (isNpy(bytes)) return choicesOfNpy(bytes, path, model, signal);
  const head = Buffer.from(bytes.subarray(0, BASE64_MAGIC.length)).toString('latin1');
  if (head === BASE64_MAGIC) return joined([decodeText(bytes, path).trim()], path, signal);
  if (!startsLikeJson(bytes) || Buffer.from(bytes).indexOf(`"${FIELD}"`) < 0) return undefined;
  const fields = responsesOf(decodeText(bytes, path).trim(), path).flatMap((response) =>
    fieldsOf(response, path),
  );
  if (fields.length === 0) throw formatError(path, FIELD, 'a field that holds base64', 'none');
  return joined(fields, path, signal);
}

/** Counts end in the experts, choices in the experts of a token. */
async function choicesOfNpy(
  bytes: Uint8Array,
  path: string,
  { topK, experts }: ServedModel,
  signal: AbortSignal | undefined,
): Promise<Choices | undefined> {
  const array = parseNpy(bytes, path);
  const { shape } = array;
  if (shape.at(-1) === experts) return undefined;
  if (shape.length !== 3 || shape[2] !== topK) {
    const expected = `[tokens, layers, ${topK}] of choices, or counts [layers, ${experts}] or [layers, sources, ${experts}]`;
    throw formatError(path, 'shape', expected, shapeText(shape));
  }
  const [tokens = 0, layers = 0, k = 0] = shape;
  const ids = new Uint16Array(tokens * layers * k);
  const refused = (value: number, at: number) => {
    const place = [Math.floor(at / k / layers), Math.floor(at / k) % layers, at % k];
    return formatError(path, `array[${place.join('][')}]`, `an expert from 0 to ${experts - 1}`, `${value}`);
  };
  await visit(
    array,
    (value, at) => {
      if (!(Number.isInteger(value) && value >= 0 && value < experts)) throw refused(value, at);
      ids[at] = value;
    },
    signal,
  );
  return { ids, layers, k };
}

/** One document, a list in one document, or a document a line. */
function responsesOf(text: string, path: string): unknown[] {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  if (lines.length === 1 || !lines.every((line) => line.startsWith('{')))
    return [parseJson(text, path)].flat();
  return lines.map((line, n) => parseJson(line, `${path}: line ${n + 1}`));
}

/** Of a response, or of one of its choices. Requests of one token, and those that were not sampled, have none. */
function fieldsOf(value: unknown, path: string): string[] {
  if (typeof value !== 'object' || value === null) return [];
  const object = value as Record<string, unknown>;
  const own = property(object, FIELD) ?? null;
  if (own !== null && typeof own !== 'string') throw formatError(path, FIELD, 'base64 text', typeof own);
  const choices = property(object, 'choices');
  const inner = Array.isArray(choices) ? choices.flatMap((choice) => fieldsOf(choice, path)) : [];
  return own === null ? inner : [own, ...inner];
}

/** As the reader has it, but for the file's name in what it refuses. */
function readField(field: string, path: string): RoutedExperts {
  try {
    return readRoutedExperts(field);
  } catch (error) {
    if (!(error instanceof GimbalError)) throw error;
    throw formatError(path, error.field ?? FIELD, error.expected ?? '', error.received ?? '', error);
  }
}

/** The requests of a file, one after the other. */
async function joined(
  fields: readonly string[],
  path: string,
  signal: AbortSignal | undefined,
): Promise<Choices> {
  const parts = fields.map((field) => readField(field, path)).filter(({ tokens }) => tokens > 0);
  const first = parts[0];
  if (first === undefined) throw formatError(path, FIELD, 'at least one token', 'none');
  const { layers, k } = first;
  const ids = new Uint16Array(parts.reduce((sum, { topk }) => sum + topk.length, 0));
  let at = 0;
  for (const part of parts) {
    await breathe(signal);
    if (part.layers !== layers || part.k !== k) {
      const shape = shapeText([part.tokens, part.layers, part.k]);
      throw formatError(path, FIELD, `[tokens, ${layers}, ${k}], as the first`, shape);
    }
    ids.set(part.topk, at);
    at += part.topk.length;
  }
  return { ids, layers, k };
}

/** Rows of the layers with experts; some versions record the dense ones, which come first, as well. Ids must be the model's. */
function ofExperts({ ids, layers, k }: Choices, model: ServedModel, path: string): Choices {
  const { topK, experts, moeLayers } = model;
  if (k !== topK) throw formatError(path, 'shape', `${topK} experts a token, as ${model.name} has`, `${k}`);
  if (layers > moeLayers && layers !== model.layers) {
    const expected = `at most ${moeLayers} layers, or all ${model.layers} of ${model.name}`;
    throw formatError(path, 'shape', expected, `${layers}`);
  }
  const wrong = ids.findIndex((id) => id >= experts);
  if (wrong >= 0)
    throw formatError(path, `choice ${wrong}`, `an expert from 0 to ${experts - 1}`, `${ids[wrong]}`);
  if (layers <= moeLayers) return { ids, layers, k };
  const dense = (layers - moeLayers) * k;
  return { ids: ids.filter((_, n) => n % (layers * k) >= dense), layers: moeLayers, k };
}
