/**
 * Routing counts from generic files: .npy arrays, JSON lists and CSV tables. They carry no engine's conventions but the
 * ones stated in docs/FORMATS.md; `logical_count` in JSON is SGLang's own word and follows SGLang's shape.
 */
import { parse as parseCsv } from 'csv-parse/sync';
import { requireRank, visit } from './array.js';
import {
  describe,
  formatError,
  MAX_CELLS,
  MAX_EXPERTS,
  MAX_LAYERS,
  MAX_SOURCES,
  quote,
  requireInteger,
} from './limits.js';
import { parseNpy } from './npy.js';
import { dropSilentLayers, newTable, requireCount, type Table } from './table.js';
import { decodeText, nestedShape, parseJson, property, requireObject, walkNested } from './text.js';

/** [layers, experts] or [layers, sources, experts] → a table. */
function tableOf(shape: readonly number[], file: string, where: string, format: string): Table {
  if (shape.length !== 2 && shape.length !== 3) {
    const expected = 'shape [layers, experts] or [layers, sources, experts]';
    throw formatError(file, where, expected, `[${shape.join(', ')}]`);
  }
  const [layers = 0, middle = 0, last = 0] = shape;
  const dimensions =
    shape.length === 2 ? { layers, sources: 1, experts: middle } : { layers, sources: middle, experts: last };
  return newTable(file, where, dimensions, format);
}

export async function readNpyCounts(bytes: Uint8Array, file: string, signal?: AbortSignal): Promise<Table> {
  const array = parseNpy(bytes, file);
  requireRank(array, [2, 3], 'shape [layers, experts] or [layers, sources, experts]');
  const table = tableOf(array.shape, file, 'array', 'npy');
  await visit(array, adder(table, 'array'), signal);
  return table;
}

/** Stores a value under its flat index after checking that it can be a count. */
function adder(table: Table, where: string): (value: number, index: number) => void {
  const { sums, experts, sources, file } = table;
  return (value, index) => {
    if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
      const place = [
        Math.floor(index / (experts * sources)),
        Math.floor(index / experts) % sources,
        index % experts,
      ];
      if (sources === 1) place.splice(1, 1);
      requireCount(value, file, () => `${where}${place.map((i) => `[${i}]`).join('')}`);
    }
    sums[index] = value;
  };
}

const COUNT_KEYS = ['tokens', 'counts', 'logical_count'] as const;

export function readJsonCounts(bytes: Uint8Array, file: string): Table {
  const value = parseJson(decodeText(bytes, file), file);
  if (Array.isArray(value)) return listTable(value, file, 'list');
  const object = requireObject(value, file, 'JSON');
  const keys = COUNT_KEYS.filter((key) => property(object, key) !== undefined);
  const [key] = keys;
  if (keys.length > 1) {
    throw formatError(file, 'JSON', `one of ${COUNT_KEYS.join(', ')}`, `${keys.join(' and ')}: leave one`);
  }
  if (key === undefined) {
    const found =
      Object.keys(object)
        .slice(0, 8)
        .map((name) => quote(name))
        .join(', ') || 'none';
    throw formatError(file, 'JSON', `one of the keys ${COUNT_KEYS.join(', ')}`, found);
  }
  if (key === 'logical_count') return sglangJson(object[key], file);
  const table = listTable(object[key], file, key);
  const ids = property(object, 'layerIds');
  if (ids !== undefined && ids !== null) table.layerIds = readLayerIds(ids, table.layers, file);
  return table;
}

function listTable(value: unknown, file: string, where: string): Table {
  const shape = nestedShape(value, 3);
  const table = tableOf(shape, file, where, 'json');
  walkNested(value, shape, file, where, adder(table, where));
  return table;
}

/** SGLang's shape: [layers][experts] or [steps][layers][experts], over all the model's layers. */
function sglangJson(value: unknown, file: string): Table {
  const shape = nestedShape(value, 3);
  if (shape.length !== 2 && shape.length !== 3) {
    const expected = 'a list [steps][layers][experts] or [layers][experts]';
    throw formatError(file, 'logical_count', expected, `[${shape.join(', ')}]`);
  }
  const [layers = 0, experts = 0] = shape.slice(-2);
  const table = newTable(file, 'logical_count', { layers, sources: 1, experts }, 'json');
  walkNested(value, shape, file, 'logical_count', (count, index) => {
    const cell = index % table.sums.length;
    requireCount(
      count,
      file,
      () => `logical_count, layer ${Math.floor(cell / experts)}, expert ${cell % experts}`,
    );
    table.sums[cell]! += count;
  });
  if (shape.length === 3) table.notes.push(`logical_count was summed over ${shape[0]} steps, as SGLang does`);
  return dropSilentLayers(table);
}

/** Ascending model layers, one per row. */
export function readLayerIds(value: unknown, layers: number, file: string): number[] {
  if (!Array.isArray(value) || value.length !== layers) {
    throw formatError(file, 'layerIds', `a list of ${layers}, one for each layer`, describe(value));
  }
  return value.map((id, row) => {
    const low = row === 0 ? 0 : (value[row - 1] as number) + 1;
    return requireInteger(file, `layerIds[${row}]`, id, low, MAX_LAYERS - 1);
  });
}

const CSV_COLUMNS = ['layer', 'source', 'expert', 'tokens'] as const;
type Column = (typeof CSV_COLUMNS)[number];

/** The cells of a CSV file, one per row, in the file's order. */
interface CsvRows {
  layer: number[];
  source: number[];
  expert: number[];
  tokens: number[];
  line: number[];
}

/** A long table with the header `layer,source,expert,tokens` (`source` may be absent); every cell exactly once. */
export function readCsvCounts(bytes: Uint8Array, file: string): Table {
  const rows = parseRows(decodeText(bytes, file), file);
  const layerIds = [...new Set(rows.layer)].sort((a, b) => a - b);
  const sources = rows.source.reduce((most, id) => Math.max(most, id), 0) + 1;
  const experts = rows.expert.reduce((most, id) => Math.max(most, id), 0) + 1;
  requireEnoughRows(rows.tokens.length, layerIds.length, sources, experts, file);
  const table = newTable(file, 'rows', { layers: layerIds.length, sources, experts }, 'csv');
  table.layerIds = layerIds;
  const rowOf = new Map(layerIds.map((id, row) => [id, row]));
  table.sums.fill(Number.NaN);
  rows.tokens.forEach((tokens, at) => {
    const cell = (rowOf.get(rows.layer[at]!)! * sources + rows.source[at]!) * experts + rows.expert[at]!;
    if (!Number.isNaN(table.sums[cell]!)) {
      throw formatError(
        file,
        `line ${rows.line[at]}`,
        'each layer, source and expert once',
        cellOf(rows, at),
      );
    }
    table.sums[cell] = tokens;
  });
  const missing = table.sums.findIndex(Number.isNaN);
  if (missing >= 0) {
    const id = layerIds[Math.floor(missing / (sources * experts))];
    const cell = `layer ${id}, source ${Math.floor(missing / experts) % sources}, expert ${missing % experts}`;
    const expected = `${table.sums.length} rows: ${layerIds.length} layers × ${sources} sources × ${experts} experts`;
    throw formatError(file, 'rows', expected, `${rows.tokens.length}, none for ${cell}`);
  }
  return table;
}

/** Before the table is allocated: one stray id must not make it huge. */
function requireEnoughRows(
  rows: number,
  layers: number,
  sources: number,
  experts: number,
  file: string,
): void {
  const cells = layers * sources * experts;
  if (cells > 2 * rows + 4096) {
    const expected = `${cells} rows: ${layers} layers × ${sources} sources × ${experts} experts, as the largest ids say`;
    throw formatError(file, 'rows', expected, `${rows}`);
  }
}

function cellOf(rows: CsvRows, at: number): string {
  return `layer ${rows.layer[at]}, source ${rows.source[at]}, expert ${rows.expert[at]} again`;
}

function parseRows(text: string, file: string): CsvRows {
  const rows: CsvRows = { layer: [], source: [], expert: [], tokens: [], line: [] };
  let columns: Column[] | undefined;
  let failure: unknown;
  const take = (record: string[], { lines }: { lines: number }): null => {
    if (columns === undefined) columns = readColumns(record, file);
    else addRow(rows, record, columns, lines, file);
    // Nothing is kept by the parser: the rows live in the arrays above.
    return null;
  };
  try {
    parseCsv(text, {
      skip_empty_lines: true,
      trim: true,
      max_record_size: 4096,
      on_record: (record, context) => {
        try {
          return take(record as unknown as string[], context);
        } catch (error) {
          failure = error;
          throw error;
        }
      },
    });
  } catch (error) {
    if (failure !== undefined) throw failure;
    const reason = error instanceof Error ? error.message : String(error);
    throw formatError(file, 'CSV', 'rows of the same columns', quote(reason, 160), error);
  }
  if (columns === undefined || rows.tokens.length === 0) {
    throw formatError(file, 'rows', 'a header and at least one row', 'none');
  }
  if (rows.tokens.length > MAX_CELLS)
    throw formatError(file, 'rows', `at most ${MAX_CELLS}`, `${rows.tokens.length}`);
  return rows;
}

function readColumns(record: string[], file: string): Column[] {
  const names = record.map((name) => name.toLowerCase());
  const columns = names.map((name) => CSV_COLUMNS.find((column) => column === name));
  const required = CSV_COLUMNS.filter((column) => column !== 'source');
  const known = columns.every((column) => column !== undefined) && new Set(columns).size === columns.length;
  if (!known || required.some((column) => !columns.includes(column))) {
    throw formatError(
      file,
      'header',
      'layer,source,expert,tokens (source may be absent)',
      quote(record.join(',')),
    );
  }
  return columns as Column[];
}

const COLUMN_LIMITS = { layer: MAX_LAYERS - 1, source: MAX_SOURCES - 1, expert: MAX_EXPERTS - 1 };

function addRow(rows: CsvRows, record: string[], columns: Column[], line: number, file: string): void {
  let source = 0;
  columns.forEach((column, at) => {
    const field = record[at] ?? '';
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(field) ? Number(field) : Number.NaN;
    const where = `line ${line}, ${column}`;
    if (Number.isNaN(value)) throw formatError(file, where, 'a number', quote(field));
    if (column === 'tokens') {
      requireCount(value, file, () => where);
      rows.tokens.push(value);
      return;
    }
    const id = requireInteger(file, where, value, 0, COLUMN_LIMITS[column]);
    if (column === 'source') source = id;
    else rows[column].push(id);
  });
  rows.source.push(source);
  rows.line.push(line);
}
