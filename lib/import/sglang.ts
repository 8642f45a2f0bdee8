/**
 * SGLang's expert-distribution recorder. Mode `stat` writes one file of logical counts already summed over all ranks; modes
 * `per_pass` and `per_token` write one file per rank with the counts of each forward pass per *physical* expert, and the
 * placement that translates them. Only per-rank files tell sources apart. Rows are all the model's layers.
 */
import { isInteger, type NumericArray, requireRank, shapeText, visit } from './array.js';
import { describe, formatError, MAX_CELLS, MAX_SLOTS, quote, requireInteger } from './limits.js';
import { dropSilentLayers, listIds, newTable, requireCount, type Table } from './table.js';
import { entry, readTorch, Tensor, type TorchFile } from './torch.js';
import { Zip } from './zip.js';

/** A placement that translates physical counts, in place of the one in the files. */
export interface PhysicalMap {
  layers: number;
  slots: number;
  /** [layers][slots] */
  physicalToLogical: Int32Array;
}

export interface SglangOptions {
  load: (path: string) => Promise<Uint8Array>;
  signal?: AbortSignal | undefined;
  maxBytes: number;
  physicalToLogical?: PhysicalMap | undefined;
}

/** What one rank saw, summed over its passes. */
interface RankCounts {
  rank: number;
  file: string;
  layers: number;
  width: number;
  /** [layers][width]: per logical expert in mode stat, per physical expert otherwise. */
  sums: Float64Array;
  map?: PhysicalMap;
  /** "pass/gatherer" of the passes already added. */
  passes: Set<string>;
}

type Kind = 'stat' | 'records';

export async function readSglang(paths: string[], options: SglangOptions): Promise<Table> {
  const ranks = new Map<number, RankCounts>();
  let kind: Kind | undefined;
  let files = 0;
  for (const path of paths) {
    const torch = readTorch(new Zip(await options.load(path), path, options.maxBytes), path);
    const found = kindOf(torch, path);
    if (kind !== undefined && found !== kind) {
      throw formatError(path, '', `another file of mode ${kind}, as in ${paths[0]}`, `mode ${found}`);
    }
    kind = found;
    files++;
    await (kind === 'stat' ? addStat(torch, path, ranks, options) : addRecords(torch, path, ranks, options));
  }
  const ordered = orderRanks(ranks, files);
  return dropSilentLayers(kind === 'stat' ? joinStat(ordered, files) : joinRecords(ordered));
}

function kindOf(torch: TorchFile, file: string): Kind {
  if (entry(torch.value, 'logical_count') !== undefined) return 'stat';
  if (entry(torch.value, 'records') !== undefined) return 'records';
  const found =
    torch.value instanceof Map ? [...torch.value.keys()].slice(0, 8).map(describe).join(', ') : 'no dict';
  throw formatError(file, 'data.pkl', 'a dict with "logical_count" or "records"', found || 'an empty dict');
}

function openTensor(torch: TorchFile, value: unknown, file: string, where: string): NumericArray {
  if (!(value instanceof Tensor)) throw formatError(file, where, 'a tensor', describe(value));
  const array = torch.open(value, where);
  if (!isInteger(array)) throw formatError(file, where, 'an integer tensor', `dtype ${array.kind}`);
  return array;
}

function rankCounts(
  ranks: Map<number, RankCounts>,
  rank: number,
  shape: { layers: number; width: number },
  file: string,
  where: string,
): RankCounts {
  const known = ranks.get(rank) ?? ranks.values().next().value;
  if (known !== undefined && (known.layers !== shape.layers || known.width !== shape.width)) {
    const expected = `${known.layers} layers of ${known.width} experts, as in ${known.file}`;
    throw formatError(file, where, expected, `${shape.layers} layers of ${shape.width}`);
  }
  let counts = ranks.get(rank);
  if (counts === undefined) {
    const cells = shape.layers * shape.width * (ranks.size + 1);
    if (shape.layers < 1 || shape.width < 1 || shape.width > MAX_SLOTS || cells > MAX_CELLS) {
      const expected = `1 to ${MAX_SLOTS} experts a layer and at most ${MAX_CELLS} counts over all ranks`;
      throw formatError(file, where, expected, `${shape.layers} × ${shape.width} for each rank`);
    }
    const sums = new Float64Array(shape.layers * shape.width);
    counts = { rank, file, ...shape, sums, passes: new Set() };
    ranks.set(rank, counts);
  }
  return counts;
}

/** Adds [.., layers, width] to the rank's sums, over all leading indices. */
async function addCounts(
  counts: RankCounts,
  array: NumericArray,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { sums, width, layers } = counts;
  const add = (value: number, index: number) => {
    const cell = index % sums.length;
    if (!(value >= 0)) {
      const place = `layer ${Math.floor(cell / width) % layers}, expert ${cell % width}`;
      requireCount(value, array.file, () => `${array.where}, ${place}`);
    }
    sums[cell]! += value;
  };
  await visit(array, add, signal);
}

async function addStat(
  torch: TorchFile,
  file: string,
  ranks: Map<number, RankCounts>,
  options: SglangOptions,
): Promise<void> {
  const array = openTensor(torch, entry(torch.value, 'logical_count'), file, 'logical_count');
  requireRank(array, [2, 3], 'shape [steps, layers, experts] or [layers, experts]');
  const rank = requireInteger(file, 'rank', entry(torch.value, 'rank') ?? 0, 0, MAX_SLOTS);
  const [layers = 0, width = 0] = array.shape.slice(-2);
  await addCounts(rankCounts(ranks, rank, { layers, width }, file, 'logical_count'), array, options.signal);
}

async function addRecords(
  torch: TorchFile,
  file: string,
  ranks: Map<number, RankCounts>,
  options: SglangOptions,
): Promise<void> {
  const records = entry(torch.value, 'records');
  if (!Array.isArray(records)) throw formatError(file, 'records', 'a list', describe(records));
  if (records.length === 0) throw formatError(file, 'records', 'at least one forward pass', 'none');
  const map = options.physicalToLogical ?? (await readMap(torch, file, options.signal));
  for (const [index, record] of records.entries()) {
    const where = `records[${index}]`;
    const rank = requireInteger(file, `${where}.rank`, entry(record, 'rank'), 0, MAX_SLOTS);
    const counts = rankCounts(ranks, rank, { layers: map.layers, width: map.slots }, file, where);
    rememberMap(counts, map, file);
    const pass = `${describe(entry(record, 'forward_pass_id'))}/${describe(entry(record, 'gatherer_key'))}`;
    if (counts.passes.has(pass))
      throw formatError(file, where, 'each forward pass once per rank', `pass ${pass} twice`);
    counts.passes.add(pass);
    await addRecord(torch, record, counts, file, where, options.signal);
  }
}

async function addRecord(
  torch: TorchFile,
  record: unknown,
  counts: RankCounts,
  file: string,
  where: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const physical = entry(record, 'global_physical_count');
  if (physical !== undefined && physical !== null) {
    const array = openTensor(torch, physical, file, `${where}.global_physical_count`);
    if (array.shape.length !== 2 || array.shape[0] !== counts.layers || array.shape[1] !== counts.width) {
      const expected = `shape ${shapeText([counts.layers, counts.width])}, as the placement has`;
      throw formatError(file, array.where, expected, shapeText(array.shape));
    }
    await addCounts(counts, array, signal);
    return;
  }
  // Mode per_token before the recorder added the counts themselves.
  const chosen = entry(record, 'topk_ids_of_layer');
  if (chosen === undefined || chosen === null) {
    throw formatError(file, where, 'global_physical_count or topk_ids_of_layer', 'neither');
  }
  await addChoices(counts, openTensor(torch, chosen, file, `${where}.topk_ids_of_layer`), signal);
}

/** Counts the physical experts that each token chose; -1 is padding. */
async function addChoices(
  counts: RankCounts,
  array: NumericArray,
  signal: AbortSignal | undefined,
): Promise<void> {
  requireRank(array, [3], 'shape [layers, tokens, top_k]');
  if (array.shape[0] !== counts.layers) {
    throw formatError(array.file, array.where, `${counts.layers} layers`, shapeText(array.shape));
  }
  const perLayer = array.shape[1]! * array.shape[2]!;
  const add = (value: number, index: number) => {
    if (value === -1) return;
    requireInteger(array.file, array.where, value, -1, counts.width - 1);
    counts.sums[Math.floor(index / perLayer) * counts.width + value]! += 1;
  };
  await visit(array, add, signal);
}

async function readMap(
  torch: TorchFile,
  file: string,
  signal: AbortSignal | undefined,
): Promise<PhysicalMap> {
  const name = 'last_physical_to_logical_map';
  const value = entry(torch.value, name);
  if (value === undefined || value === null) {
    throw formatError(
      file,
      name,
      'the placement that the physical counts belong to',
      'none: give it as an option',
    );
  }
  const array = openTensor(torch, value, file, name);
  requireRank(array, [2], 'shape [layers, physical experts]');
  const [layers = 0, slots = 0] = array.shape;
  if (layers * slots > MAX_CELLS)
    throw formatError(file, name, `at most ${MAX_CELLS} slots`, shapeText(array.shape));
  const physicalToLogical = new Int32Array(layers * slots);
  const set = (id: number, index: number) => {
    // No expert is without a slot, so ids stay below the number of slots.
    const place = `${name}[${Math.floor(index / slots)}][${index % slots}]`;
    physicalToLogical[index] = requireInteger(file, place, id, 0, slots - 1);
  };
  await visit(array, set, signal);
  return { layers, slots, physicalToLogical };
}

function rememberMap(counts: RankCounts, map: PhysicalMap, file: string): void {
  if (counts.map !== undefined && !sameMap(counts.map, map)) {
    throw formatError(
      file,
      'last_physical_to_logical_map',
      `the same placement as in ${counts.file}`,
      'another one',
    );
  }
  counts.map ??= map;
}

function sameMap(a: PhysicalMap, b: PhysicalMap): boolean {
  return a === b || Buffer.compare(bytesOf(a.physicalToLogical), bytesOf(b.physicalToLogical)) === 0;
}

function bytesOf(array: Int32Array | Float64Array): Buffer {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}

/** The ranks in order; a set of files with a gap lacks a source. */
function orderRanks(ranks: Map<number, RankCounts>, files: number): RankCounts[] {
  const ordered = [...ranks.values()].sort((a, b) => a.rank - b.rank);
  const complete = ordered.every((counts, at) => counts.rank === at);
  if (files > 1 && ordered.length > 1 && !complete) {
    const found = listIds(ordered.map((counts) => counts.rank));
    const last = ordered.at(-1)!;
    throw formatError(last.file, 'rank', `files of all ranks from 0 to ${last.rank}`, `ranks ${found}`);
  }
  return ordered;
}

function allEqual(ranks: RankCounts[]): boolean {
  return ranks.every((counts) => Buffer.compare(bytesOf(counts.sums), bytesOf(ranks[0]!.sums)) === 0);
}

function joinStat(ranks: RankCounts[], files: number): Table {
  const first = ranks[0]!;
  // The recorder sums over the ranks before it writes, so equal files of several ranks are copies of one count.
  const copies = ranks.length > 1 && allEqual(ranks);
  const used = copies ? [first] : ranks;
  const table = newTable(
    first.file,
    'logical_count',
    { layers: first.layers, sources: used.length, experts: first.width },
    'sglang',
  );
  fill(table, used, (counts, layer, into) => {
    into.set(counts.sums.subarray(layer * counts.width, (layer + 1) * counts.width));
  });
  if (copies)
    table.notes.push(`the files of ${ranks.length} ranks hold the same counts, which were taken once`);
  else if (ranks.length > 1) table.notes.push('each rank was read as one source');
  else if (files > 1) table.notes.push(`the counts of ${files} dumps were added up`);
  if (used.length === 1)
    table.notes.push('mode stat sums over all ranks: the counts do not tell sources apart');
  return table;
}

function joinRecords(ranks: RankCounts[]): Table {
  const first = ranks[0]!;
  for (const counts of ranks) rememberMap(first, counts.map!, counts.file);
  const map = first.map!;
  const experts = map.physicalToLogical.reduce((most, id) => Math.max(most, id), -1) + 1;
  const arrived = countsArrivals(ranks);
  const shape = { layers: first.layers, sources: arrived ? 1 : ranks.length, experts };
  const table = newTable(first.file, 'records', shape, 'sglang');
  fill(table, ranks, (counts, layer, into) => {
    for (let slot = 0; slot < counts.width; slot++) {
      into[map.physicalToLogical[layer * counts.width + slot]!]! += counts.sums[layer * counts.width + slot]!;
    }
  });
  if (arrived) {
    table.notes.push(
      'each rank counted only the tokens that arrived at its own experts (DeepEP low-latency mode), so the files do not ' +
        'tell sources apart: read as one source',
    );
  } else if (ranks.length === 1) {
    table.notes.push(`only rank ${first.rank} was given: it is the one source`);
  } else if (allEqual(ranks)) {
    table.notes.push(
      'all ranks counted the same tokens: without DP attention, or where tokens are gathered before routing, per-rank files do not tell sources apart',
    );
  }
  const passes = ranks.reduce((most, counts) => Math.max(most, counts.passes.size), 0);
  table.notes.push(`${passes} forward passes, translated by the placement at the end of the recording`);
  return table;
}

/** Runs `add` for each (rank, layer) on that rank's cells; ranks beyond the table's sources share the last one. */
function fill(
  table: Table,
  ranks: RankCounts[],
  add: (counts: RankCounts, layer: number, into: Float64Array) => void,
): void {
  ranks.forEach((counts, at) => {
    const source = Math.min(at, table.sources - 1);
    for (let layer = 0; layer < table.layers; layer++) {
      const start = (layer * table.sources + source) * table.experts;
      add(counts, layer, table.sums.subarray(start, start + table.experts));
    }
  });
}

/**
 * In DeepEP's low-latency mode a rank records what arrived at its own slots, not what its tokens chose. Such files have
 * non-zero counts nowhere but in each rank's own block of slots.
 */
function countsArrivals(ranks: RankCounts[]): boolean {
  const width = ranks[0]!.width;
  const perRank = width / ranks.length;
  if (ranks.length < 2 || !Number.isInteger(perRank)) return false;
  if (!ranks.some((counts) => counts.sums.some((value) => value > 0))) return false;
  return ranks.every(({ sums, rank }) =>
    sums.every((value, cell) => value === 0 || Math.floor((cell % width) / perRank) === rank),
  );
}

/** The placement in a `.pt` file: one given to or recorded by the engine. Undefined where there is none. */
export async function readSglangPlacement(
  torch: TorchFile,
  file: string,
): Promise<{ array: NumericArray; key: string } | undefined> {
  for (const key of ['physical_to_logical_map', 'last_physical_to_logical_map']) {
    const value = entry(torch.value, key);
    if (value !== undefined && value !== null)
      return { array: openTensor(torch, value, file, quote(key)), key };
  }
  return undefined;
}
