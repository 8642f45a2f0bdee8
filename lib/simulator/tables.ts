/**
 * Measured kernel times in place of fits, read from CSV files: attention by (prefill chunk, its context, decodes, their
 * context), dense kernels by tokens, experts by (tokens, active experts), and what is done once a sequence. Between grid points
 * times are interpolated linearly, beyond the last two they go on in their line.
 */
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { parse } from 'csv-parse/sync';
import { mismatch } from '../errors.js';
import { ioError, readFileBounded } from '../files.js';
import type { ServedModel } from './hardware.js';

const MOST_BYTES = 256 * 1024 * 1024;

/**
 * A function of one to four numbers, known at points whose later coordinates may differ from branch to branch: ascending keys, each
 * with a value or with a grid of the next coordinate. Plain data, so that it can go to another thread.
 */
export interface Grid {
  keys: number[];
  below: (Grid | number)[];
}

/** `points`: [...coordinates, value]. */
export function gridOf(points: readonly (readonly number[])[]): Grid {
  return branch([...points], 0);
}

export function lookUp(grid: Grid, ...coordinates: number[]): number {
  return interpolate(grid, coordinates, 0);
}

function branch(points: (readonly number[])[], depth: number): Grid {
  const byKey = new Map<number, (readonly number[])[]>();
  for (const point of points) {
    const key = point[depth]!;
    const found = byKey.get(key);
    if (found === undefined) byKey.set(key, [point]);
    else found.push(point);
  }
  const keys = [...byKey.keys()].sort((a, b) => a - b);
  const isLast = depth === points[0]!.length - 2;
  const below = keys.map((key) => {
    const under = byKey.get(key)!;
    return isLast
      ? under.reduce((sum, point) => sum + point.at(-1)!, 0) / under.length
      : branch(under, depth + 1);
  });
  return { keys, below };
}

function interpolate({ keys, below }: Grid, coordinates: readonly number[], depth: number): number {
  const value = (index: number): number => {
    const node = below[index]!;
    return typeof node === 'number' ? node : interpolate(node, coordinates, depth + 1);
  };
  const at = coordinates[depth]!;
  if (keys.length === 1 || at <= keys[0]!) return value(0);
  let low = 0;
  let high = keys.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (keys[middle]! <= at) low = middle;
    else high = middle;
  }
  if (at === keys[low]!) return value(low);
  if (at === keys[high]!) return value(high);
  const from = value(low);
  return from + ((value(high) - from) * (at - keys[low]!)) / (keys[high]! - keys[low]!);
}

/** Every table is optional; what is missing is taken from the fit. All times in µs. */
export interface ProfileTables {
  /** (prefill tokens, context before them, decodes, their mean context), one layer. */
  attention?: Grid;
  /** By kernel name: `layernorm`, `qk_norm`, `rotary_emb`, `qkv_proj`, `o_proj`, … by tokens. */
  dense?: Map<string, Grid>;
  /** (tokens of which every pair is local, active experts), one layer. */
  moe?: Grid;
  /** `lm_head` and `sampler` by sequences. */
  perSequence?: Map<string, Grid>;
  /** The largest chunk that `attention` was measured with. */
  largestChunk?: number;
  /** Decode attention alone, by (sequences, their context): where `attention` is missing. */
  decodeAttention?: Grid;
  /** All experts on one GPU, by tokens, whose routing is skewed: corrects the fit where `moe` is missing. */
  moeByTokens?: Grid;
}

export interface ReadTablesOptions {
  /** Keep to files whose name begins so. */
  prefix?: string;
  /** Of tables that hold many models, what belongs to this one; without it they are passed over. */
  model?: ServedModel;
}

/** The columns by which a file is known, and what its rows become. */
const KINDS: { columns: string[]; read(rows: Row[], tables: ProfileTables): void }[] = [
  {
    columns: ['prefill_chunk', 'kv_prefill', 'n_decode', 'kv_decode', 'time_us'],
    read: (rows, tables) => {
      const points = numbers(rows, ['prefill_chunk', 'kv_prefill', 'n_decode', 'kv_decode', 'time_us']);
      tables.attention = gridOf(points);
      tables.largestChunk = points.reduce((most, [chunk]) => Math.max(most, chunk!), 0);
    },
  },
  {
    columns: ['tokens', 'activated_experts', 'time_us'],
    read: (rows, tables) => {
      tables.moe = gridOf(numbers(rows, ['tokens', 'activated_experts', 'time_us']));
    },
  },
  {
    columns: ['layer', 'tokens', 'time_us'],
    read: (rows, tables) => {
      tables.dense = byName(rows, 'tokens');
    },
  },
  {
    columns: ['layer', 'sequences', 'time_us'],
    read: (rows, tables) => {
      tables.perSequence = byName(rows, 'sequences');
    },
  },
];

/** The beginning of the columns of tables that hold many models and machines, and how such a table is known. */
const MANY_MODELS = 'framework,version,device,op_name,';
const DTYPES: Record<string, string[]> = { bf16: ['bfloat16'], fp8: ['fp8', 'fp8_block'], mxfp4: [] };
const MICROS_PER_MILLI = 1000;

function readMany(rows: Row[], tables: ProfileTables, model: ServedModel): void {
  const decode = rows.filter(
    (row) =>
      row.op_name === 'generation_attention' &&
      isOf(row, {
        num_heads: model.queryHeads,
        num_key_value_heads: model.keyValueHeads,
        head_dim: model.headSize,
      }),
  );
  // `step` tokens are cached, and the new one is looked at too.
  if (decode.length > 0) {
    tables.decodeAttention = gridOf(
      numbers(decode, ['batch_size', 'step', 'latency']).map(([batch, step, ms]) => [
        batch!,
        step! + 1,
        ms! * MICROS_PER_MILLI,
      ]),
    );
  }
  const moe = rows.filter(
    (row) =>
      row.op_name === 'moe' &&
      DTYPES[model.precision]!.includes(row.moe_dtype!) &&
      row.distribution!.startsWith('power_law') &&
      isOf(row, {
        hidden_size: model.hiddenSize,
        inter_size: model.expertIntermediateSize,
        topk: model.topK,
        num_experts: model.experts,
        moe_tp_size: 1,
        moe_ep_size: 1,
      }),
  );
  if (moe.length > 0) {
    tables.moeByTokens = gridOf(
      numbers(moe, ['num_tokens', 'latency']).map(([tokens, ms]) => [tokens!, ms! * MICROS_PER_MILLI]),
    );
  }
}

function isOf(row: Row, wanted: Record<string, number>): boolean {
  return Object.entries(wanted).every(([column, value]) => Number(row[column]) === value);
}

type Row = Record<string, string>;

/**
 * The tables among the CSV files of a folder, known by their columns.
 *
 * @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (no table among the files, or a cell that is no number)
 */
export async function readProfileTables(
  folder: string,
  { prefix = '', model }: ReadTablesOptions = {},
): Promise<ProfileTables> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw ioError(folder, error);
  });
  const tables: ProfileTables = {};
  for (const name of names.filter((one) => one.startsWith(prefix) && one.endsWith('.csv')).sort()) {
    const file = path.join(folder, name);
    const text = Buffer.from(await readFileBounded(file, { maxBytes: MOST_BYTES })).toString('utf8');
    const head = text.slice(0, Math.max(0, text.indexOf('\n'))).trim();
    if (head.startsWith(MANY_MODELS) && model !== undefined) readMany(rowsOf(file, text), tables, model);
    KINDS.find(({ columns }) => columns.join() === head)?.read(rowsOf(file, text), tables);
  }
  if (Object.keys(tables).length === 0) {
    const expected = `CSV files with the columns ${KINDS.map(({ columns }) => columns.join(',')).join(' or ')}`;
    throw mismatch('GIMBAL_FORMAT', folder, expected, `${names.length} files without`);
  }
  return tables;
}

function rowsOf(file: string, text: string): Row[] {
  try {
    return parse(text, { columns: true });
  } catch (cause) {
    throw mismatch('GIMBAL_FORMAT', file, 'CSV', 'something else', cause);
  }
}

function numbers(rows: Row[], columns: string[]): number[][] {
  return rows.map((row) =>
    columns.map((column) => {
      const value = Number(row[column]);
      if (row[column] === '' || !Number.isFinite(value) || value < 0) {
        throw mismatch('GIMBAL_FORMAT', `profile: ${column}`, 'a number of at least 0', String(row[column]));
      }
      return value;
    }),
  );
}

function byName(rows: Row[], column: string): Map<string, Grid> {
  const grouped = new Map<string, Row[]>();
  for (const row of rows) grouped.set(row.layer!, [...(grouped.get(row.layer!) ?? []), row]);
  return new Map([...grouped].map(([name, own]) => [name, gridOf(numbers(own, [column, 'time_us']))]));
}
