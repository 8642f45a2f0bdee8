/**
 * TensorRT-LLM's expert statistics: a folder with `meta_info.json` and one `rank<r>.safetensors` per rank, whose tensors
 * `<iteration>_<layer>` count the tokens that the rank's router sent to each logical expert. One source per rank; layers
 * carry the model's numbers.
 */
import { join } from 'node:path';
import { isInteger, type NumericArray, shapeText, visit } from './array.js';
import {
  describe,
  formatError,
  MAX_EXPERTS,
  MAX_LAYERS,
  MAX_TEXT_BYTES,
  quote,
  requireInteger,
} from './limits.js';
import { parseSafetensors } from './safetensors.js';
import { listIds, newTable, requireCount, type Table } from './table.js';
import { decodeText, parseJson, property, requireObject } from './text.js';

export const META_FILE = 'meta_info.json';

export interface TensorrtLlmOptions {
  load: (path: string, maxBytes?: number) => Promise<Uint8Array>;
  signal?: AbortSignal | undefined;
}

/** Per layer id, [experts] summed over the iterations. */
type RankCounts = Map<number, Float64Array>;

export async function readTensorrtLlm(
  folder: string,
  names: string[],
  options: TensorrtLlmOptions,
): Promise<Table> {
  const experts = await readExperts(folder, options);
  const files = rankFiles(folder, names);
  const perRank: RankCounts[] = [];
  let iterations = 0;
  for (const file of files) {
    const read = await readRank(file, experts, options);
    perRank.push(read.counts);
    iterations = Math.max(iterations, read.iterations);
  }
  const layerIds = commonLayers(perRank, files);
  const shape = { layers: layerIds.length, sources: files.length, experts };
  const table = newTable(folder, 'statistics', shape, 'tensorrt-llm');
  table.layerIds = layerIds;
  layerIds.forEach((id, layer) => {
    perRank.forEach((counts, source) => {
      table.sums.set(counts.get(id)!, (layer * files.length + source) * experts);
    });
  });
  table.notes.push(`${iterations} iterations, one source per rank`);
  return table;
}

async function readExperts(folder: string, options: TensorrtLlmOptions): Promise<number> {
  const file = join(folder, META_FILE);
  const text = decodeText(await options.load(file, MAX_TEXT_BYTES), file);
  const meta = requireObject(parseJson(text, file), file, 'meta info');
  return requireInteger(file, 'num_experts', property(meta, 'num_experts'), 1, MAX_EXPERTS);
}

/** The files of ranks 0, 1, …; `rank<r>_raw.safetensors` hold single tokens and are not needed. */
function rankFiles(folder: string, names: string[]): string[] {
  const ranks = names
    .map((name) => /^rank(\d{1,6})\.safetensors$/.exec(name)?.[1])
    .filter((digits) => digits !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
  if (ranks.length === 0) throw formatError(folder, '', 'files rank<r>.safetensors', 'none');
  const gap = ranks.findIndex((rank, at) => rank !== at);
  if (gap >= 0) throw formatError(folder, '', `a file of rank ${gap}`, `files of ranks ${listIds(ranks)}`);
  return ranks.map((rank) => join(folder, `rank${rank}.safetensors`));
}

async function readRank(
  file: string,
  experts: number,
  options: TensorrtLlmOptions,
): Promise<{ counts: RankCounts; iterations: number }> {
  const tensors = parseSafetensors(await options.load(file), file);
  const counts: RankCounts = new Map();
  const iterations = new Set<number>();
  for (const [key, tensor] of tensors) {
    const { iteration, layer } = parseKey(key, file);
    iterations.add(iteration);
    const sums = counts.get(layer) ?? new Float64Array(experts);
    counts.set(layer, sums);
    await addTensor(tensor, sums, options.signal);
  }
  if (counts.size === 0) throw formatError(file, '', 'tensors named <iteration>_<layer>', 'none');
  requireGrid(tensors, counts, iterations, file);
  return { counts, iterations: iterations.size };
}

function parseKey(key: string, file: string): { iteration: number; layer: number } {
  const match = /^(\d{1,12})_(\d{1,6})$/.exec(key);
  if (match === null)
    throw formatError(file, `tensor ${quote(key)}`, 'a name <iteration>_<layer>', 'another name');
  const layer = requireInteger(file, `tensor ${quote(key)}, layer`, Number(match[2]), 0, MAX_LAYERS - 1);
  return { iteration: Number(match[1]), layer };
}

async function addTensor(
  tensor: NumericArray,
  sums: Float64Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (!isInteger(tensor))
    throw formatError(tensor.file, tensor.where, 'an integer tensor', `dtype ${tensor.kind}`);
  if (tensor.shape.length !== 1 || tensor.shape[0] !== sums.length) {
    const expected = `shape [${sums.length}], as ${META_FILE} says`;
    throw formatError(tensor.file, tensor.where, expected, shapeText(tensor.shape));
  }
  const add = (value: number, expert: number) => {
    if (!(value >= 0)) requireCount(value, tensor.file, () => `${tensor.where}, expert ${expert}`);
    sums[expert]! += value;
  };
  await visit(tensor, add, signal);
}

/** Every layer runs in every iteration, so a missing tensor means a damaged or half-written file. */
function requireGrid(
  tensors: Map<string, NumericArray>,
  counts: RankCounts,
  iterations: Set<number>,
  file: string,
): void {
  if (tensors.size === counts.size * iterations.size) return;
  for (const iteration of iterations) {
    for (const layer of counts.keys()) {
      const key = `${iteration}_${layer}`;
      if (!tensors.has(key)) throw formatError(file, `layer ${layer}`, `a tensor ${describe(key)}`, 'none');
    }
  }
  throw formatError(file, '', 'each iteration and layer once', `${tensors.size} tensors`);
}

/** The layers that every rank has, which must be all that any rank has. */
function commonLayers(perRank: RankCounts[], files: string[]): number[] {
  const all = [...new Set(perRank.flatMap((counts) => [...counts.keys()]))].sort((a, b) => a - b);
  perRank.forEach((counts, rank) => {
    const missing = all.filter((id) => !counts.has(id));
    if (missing.length > 0) {
      throw formatError(
        files[rank]!,
        'layers',
        `layers ${listIds(all)}, as in the other ranks`,
        `no ${listIds(missing)}`,
      );
    }
  });
  return all;
}
