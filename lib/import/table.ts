/**
 * The routing counts while they are being summed: double-precision cells, exact up to 2^53, that become uint32 at the end.
 * Every format adds into one of these, so that negative, NaN and too large counts are refused in one place.
 */
import { describe, formatError, requireShape } from './limits.js';

const UINT32_MAX = 0xffffffff;

export interface Table {
  layers: number;
  sources: number;
  experts: number;
  /** [layers][sources][experts] */
  sums: Float64Array;
  /** [layers], the model layer of each row. */
  layerIds?: number[];
  /** Layers of the whole model, those without experts included. */
  modelLayers?: number;
  format: string;
  notes: string[];
  /** For messages: where the counts came from. */
  file: string;
}

export function newTable(
  file: string,
  where: string,
  shape: { layers: number; sources: number; experts: number },
  format: string,
): Table {
  const { layers, sources, experts } = shape;
  requireShape(file, where, layers, sources, experts);
  return {
    layers,
    sources,
    experts,
    sums: new Float64Array(layers * sources * experts),
    format,
    notes: [],
    file,
  };
}

/** Throws for what cannot be a count. */
export function requireCount(value: number, file: string, where: () => string): void {
  if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
    throw formatError(file, where(), 'a finite count of 0 or more', describe(value));
  }
}

/** "layer 3, source 0, expert 7" of a flat index. */
export function cellName(table: Table, index: number): string {
  const expert = index % table.experts;
  const source = Math.floor(index / table.experts) % table.sources;
  const row = Math.floor(index / (table.experts * table.sources));
  return `layer ${table.layerIds?.[row] ?? row}, source ${source}, expert ${expert}`;
}

/** The cells as uint32; fractions are rounded with a note, values beyond uint32 are an error that says what to do. */
export function finishTokens(table: Table): Uint32Array {
  const { sums } = table;
  const tokens = new Uint32Array(sums.length);
  let rounded = 0;
  let largest = 0;
  let largestAt = 0;
  for (let i = 0; i < sums.length; i++) {
    const value = sums[i]!;
    const whole = Math.round(value);
    if (whole !== value) rounded++;
    if (whole > largest) {
      largest = whole;
      largestAt = i;
    }
    tokens[i] = whole;
  }
  if (largest > UINT32_MAX) {
    const divisor = Math.ceil(largest / UINT32_MAX);
    const remedy = `; divide all counts by ${divisor} or more, or use a shorter window`;
    throw formatError(table.file, cellName(table, largestAt), `at most ${UINT32_MAX}`, `${largest}${remedy}`);
  }
  if (rounded > 0)
    table.notes.push(`${rounded} of ${sums.length} counts were not whole numbers and were rounded`);
  return tokens;
}

/** Sets side by side, each the sources of one file. */
export function joinSources(tables: Table[]): Table {
  const first = tables[0]!;
  if (tables.length === 1) return first;
  const sources = tables.reduce((sum, table) => sum + table.sources, 0);
  for (const table of tables) {
    if (table.layers !== first.layers || table.experts !== first.experts) {
      const expected = `${first.layers} layers of ${first.experts} experts, as in ${first.file}`;
      throw formatError(table.file, '', expected, `${table.layers} layers of ${table.experts}`);
    }
    if (String(table.layerIds ?? '') !== String(first.layerIds ?? '')) {
      throw formatError(table.file, 'layer ids', `the same as in ${first.file}`, 'others');
    }
  }
  const joined = newTable(first.file, 'all files', { ...first, sources }, first.format);
  if (first.layerIds !== undefined) joined.layerIds = first.layerIds;
  if (first.modelLayers !== undefined) joined.modelLayers = first.modelLayers;
  let at = 0;
  for (let layer = 0; layer < first.layers; layer++) {
    for (const table of tables) {
      const size = table.sources * table.experts;
      joined.sums.set(table.sums.subarray(layer * size, (layer + 1) * size), at);
      at += size;
    }
  }
  joined.notes = [...new Set(tables.flatMap((table) => table.notes))];
  joined.notes.push(`${tables.length} files were read as the sources, in the order given`);
  return joined;
}

/**
 * Leaves out the rows that no source sent anything to, and names the rest by their row. For recorders whose rows are all
 * the model's layers: every token passes every layer, so a silent row is a layer without routed experts.
 */
export function dropSilentLayers(table: Table): Table {
  const size = table.sources * table.experts;
  const kept: number[] = [];
  for (let row = 0; row < table.layers; row++) {
    if (table.sums.subarray(row * size, (row + 1) * size).some((value) => value > 0)) kept.push(row);
  }
  table.modelLayers = table.layers;
  // Nothing recorded at all tells nothing about the layers.
  if (kept.length === table.layers || kept.length === 0) {
    table.layerIds = Array.from({ length: table.layers }, (_, row) => row);
    return table;
  }
  const sums = new Float64Array(kept.length * size);
  kept.forEach((row, to) => {
    sums.set(table.sums.subarray(row * size, (row + 1) * size), to * size);
  });
  const silent = Array.from({ length: table.layers }, (_, row) => row).filter((row) => !kept.includes(row));
  const note = `${silent.length} of ${table.layers} model layers have no traffic and were left out (${listIds(silent)})`;
  return { ...table, layers: kept.length, sums, layerIds: kept, notes: [...table.notes, note] };
}

/** "0-2, 61": ascending ids, runs shortened. */
export function listIds(ids: readonly number[], maxRuns = 8): string {
  const runs: string[] = [];
  for (let i = 0; i < ids.length; ) {
    let end = i;
    while (ids[end + 1] === ids[end]! + 1) end++;
    runs.push(end === i ? `${ids[i]}` : `${ids[i]}-${ids[end]}`);
    i = end + 1;
  }
  return runs.length > maxRuns ? `${runs.slice(0, maxRuns).join(', ')}, …` : runs.join(', ');
}
