/**
 * Traces from files that users have, told apart by what is in them: Azure's and BurstGPT's CSV, Mooncake's JSONL, what vLLM's
 * serving benchmark saves, and CSV or JSONL with columns of our own names. Times become ms from the first request on.
 */
import { parse } from 'csv-parse/sync';
import { aboveZero, checkKeys, invalid } from '../checks.js';
import { GimbalError, mismatch } from '../errors.js';
import { readFileBounded } from '../files.js';
import type { SimulatedRequest } from './types.js';

const MOST_BYTES = 2 * 1024 * 1024 * 1024;

export const traceFormats = ['azure', 'burstgpt', 'mooncake', 'vllm-bench', 'csv', 'jsonl'] as const;
export type TraceFormat = (typeof traceFormats)[number];

export interface ReadTraceOptions {
  /** Default: told by the content. */
  format?: TraceFormat;
  /** Keep so many of the first requests. */
  limit?: number;
  signal?: AbortSignal;
}

export interface RecordedTrace {
  format: TraceFormat;
  requests: SimulatedRequest[];
  /** What was left out, and why. */
  notes: string[];
}

type Row = Record<string, unknown>;

/** @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (names file, request and field) */
export async function readTrace(path: string, options: ReadTraceOptions = {}): Promise<RecordedTrace> {
  checkKeys('options', options, ['format', 'limit', 'signal']);
  const bytes = await readFileBounded(path, { maxBytes: MOST_BYTES, signal: options.signal });
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
  const format = options.format ?? formatOf(path, text);
  const rows = rowsOf(path, text, format);
  const { requests, notes } = READERS[format](path, rows);
  if (requests.length === 0) throw mismatch('GIMBAL_FORMAT', path, 'at least one request', 'none');
  requests.sort((a, b) => a.arrivalMs - b.arrivalMs);
  const first = requests[0]!.arrivalMs;
  const kept = requests.slice(0, options.limit ?? requests.length);
  return { format, requests: kept.map((one) => ({ ...one, arrivalMs: one.arrivalMs - first })), notes };
}

function formatOf(path: string, text: string): TraceFormat {
  const line = text.slice(0, text.indexOf('\n') < 0 ? undefined : text.indexOf('\n')).trim();
  if (line.startsWith('{')) {
    if (/"input_lens"/.test(text.slice(0, 1 << 20)) || /"input_lens"/.test(text)) return 'vllm-bench';
    return /"input_length"/.test(line) ? 'mooncake' : 'jsonl';
  }
  if (/ContextTokens/.test(line) && /GeneratedTokens/.test(line)) return 'azure';
  if (/Request tokens/.test(line) && /Response tokens/.test(line)) return 'burstgpt';
  if (line.includes(',')) return 'csv';
  throw mismatch(
    'GIMBAL_FORMAT',
    path,
    `a trace: ${traceFormats.join(', ')}`,
    JSON.stringify(line.slice(0, 60)),
  );
}

function rowsOf(path: string, text: string, format: TraceFormat): Row[] {
  try {
    if (format === 'vllm-bench') return [JSON.parse(text) as Row];
    if (format === 'jsonl' || format === 'mooncake') {
      return text
        .split('\n')
        .filter((line) => line.trim() !== '')
        .map((line) => JSON.parse(line) as Row);
    }
    return parse(text, { columns: true, skip_empty_lines: true, trim: true, bom: true });
  } catch (cause) {
    throw new GimbalError('GIMBAL_FORMAT', `${path}: not ${format}: ${(cause as Error).message}`, {
      field: path,
      expected: format,
      cause,
    });
  }
}

interface Read {
  requests: SimulatedRequest[];
  notes: string[];
}

const READERS: Record<TraceFormat, (path: string, rows: Row[]) => Read> = {
  azure: (path, rows) =>
    each(path, rows, (row, at) => ({
      arrivalMs: dateMs(at, row.TIMESTAMP),
      inputTokens: tokens(at, 'ContextTokens', row.ContextTokens),
      outputTokens: tokens(at, 'GeneratedTokens', row.GeneratedTokens),
    })),
  burstgpt: (path, rows) =>
    each(path, rows, (row, at) => ({
      arrivalMs: 1000 * figure(at, 'Timestamp', row.Timestamp),
      inputTokens: tokens(at, 'Request tokens', row['Request tokens']),
      outputTokens: tokens(at, 'Response tokens', row['Response tokens']),
      ...(row['Session ID'] ? { session: String(row['Session ID']) } : {}),
    })),
  mooncake: (path, rows) =>
    each(path, rows, (row, at) => ({
      arrivalMs: figure(at, 'timestamp', row.timestamp),
      inputTokens: tokens(at, 'input_length', row.input_length),
      outputTokens: tokens(at, 'output_length', row.output_length),
      ...(Array.isArray(row.hash_ids)
        ? { prefixHashes: row.hash_ids.map((id) => figure(at, 'hash_ids', id)) }
        : {}),
    })),
  'vllm-bench': (path, [document]) => vllmBench(path, document!),
  csv: ownNames,
  jsonl: ownNames,
};

/** Requests without a prompt or an answer (failures, in BurstGPT) are left out, and counted. */
function each(path: string, rows: Row[], read: (row: Row, at: string) => SimulatedRequest): Read {
  const all = rows.map((row, n) => read(row, `${path}: request ${n + 1}`));
  const requests = all.filter(({ inputTokens, outputTokens }) => inputTokens > 0 && outputTokens > 0);
  const dropped = all.length - requests.length;
  return {
    requests,
    notes: dropped === 0 ? [] : [`${dropped} requests without input or output were left out`],
  };
}

/** `vllm bench serve --save-detailed`: lists by request, and when each was sent where it says so. */
function vllmBench(path: string, document: Row): Read {
  const inputs = list(path, document, 'input_lens');
  const outputs = list(path, document, 'output_lens');
  const starts = document.start_times === undefined ? undefined : list(path, document, 'start_times');
  const rate = Number(document.request_rate);
  if (starts === undefined && !(rate > 0)) {
    throw mismatch(
      'GIMBAL_FORMAT',
      path,
      'start_times or a finite request_rate',
      String(document.request_rate),
    );
  }
  const rows = inputs.map((inputTokens, n) => ({
    inputTokens,
    outputTokens: outputs[n],
    startS: starts?.[n] ?? n / rate,
  }));
  const { requests, notes } = each(path, rows, (row, at) => ({
    arrivalMs: 1000 * figure(at, 'start_times', row.startS),
    inputTokens: tokens(at, 'input_lens', row.inputTokens),
    outputTokens: tokens(at, 'output_lens', row.outputTokens),
  }));
  const note = 'the file has no start times: arrivals are evenly spaced at its request rate';
  return { requests, notes: starts === undefined ? [...notes, note] : notes };
}

function list(path: string, document: Row, name: string): unknown[] {
  const value = document[name];
  if (!Array.isArray(value)) throw mismatch('GIMBAL_FORMAT', `${path}: ${name}`, 'a list', typeof value);
  return value;
}

/** Names that columns of our own format may have. */
const NAMES = {
  arrivalMs: ['arrivalMs', 'arrival_ms', 'timestamp_ms'],
  arrivalS: ['arrivalS', 'arrival_s', 'arrival_time', 'timestamp'],
  inputTokens: ['inputTokens', 'input_tokens', 'prompt_tokens', 'input_toks'],
  outputTokens: ['outputTokens', 'output_tokens', 'completion_tokens', 'output_toks'],
  session: ['session', 'session_id'],
} as const;

function ownNames(path: string, rows: Row[]): Read {
  const column = (key: keyof typeof NAMES) =>
    NAMES[key].find((name) => rows[0] !== undefined && name in rows[0]);
  const ms = column('arrivalMs');
  const seconds = column('arrivalS');
  const input = column('inputTokens');
  const output = column('outputTokens');
  const session = column('session');
  if ((ms ?? seconds) === undefined || input === undefined || output === undefined) {
    const expected = 'columns arrivalMs (or arrival_time, in s), inputTokens and outputTokens';
    throw mismatch('GIMBAL_FORMAT', path, expected, Object.keys(rows[0] ?? {}).join(', ') || 'nothing');
  }
  return each(path, rows, (row, at) => ({
    arrivalMs: ms === undefined ? 1000 * figure(at, seconds!, row[seconds!]) : figure(at, ms, row[ms]),
    inputTokens: tokens(at, input, row[input]),
    outputTokens: tokens(at, output, row[output]),
    ...(session !== undefined && row[session] ? { session: String(row[session]) } : {}),
    ...(Array.isArray(row.prefixHashes)
      ? { prefixHashes: row.prefixHashes.map((hash) => figure(at, 'prefixHashes', hash)) }
      : {}),
  }));
}

function figure(at: string, field: string, value: unknown): number {
  const number = typeof value === 'string' && value.trim() === '' ? Number.NaN : Number(value);
  if (!Number.isFinite(number) || number < 0)
    throw mismatch('GIMBAL_FORMAT', `${at}: ${field}`, 'a number of at least 0', String(value));
  return number;
}

function tokens(at: string, field: string, value: unknown): number {
  return Math.round(figure(at, field, value));
}

/** `2023-11-16 18:15:46.6805900`, of no time zone. */
function dateMs(at: string, value: unknown): number {
  const [whole, fraction = ''] = String(value).trim().split('.');
  const seconds = Date.parse(`${whole!.replace(' ', 'T')}Z`);
  if (Number.isNaN(seconds))
    throw mismatch('GIMBAL_FORMAT', `${at}: TIMESTAMP`, 'a date and time', String(value));
  return seconds + Number(`0.${fraction || 0}`) * 1000;
}

/** The same requests, closer together or further apart, so that so many arrive a second in the mean. */
export function atRate(requests: readonly SimulatedRequest[], requestsPerSecond: number): SimulatedRequest[] {
  aboveZero('requestsPerSecond', requestsPerSecond);
  const spanMs = requests.at(-1)!.arrivalMs - requests[0]!.arrivalMs;
  if (!(spanMs > 0)) throw invalid('trace', 'requests that arrive at different times', 'all at once');
  return scaleArrivals(requests, ((requests.length - 1) * 1000) / (spanMs * requestsPerSecond));
}

/** Times of arrival multiplied: 0.5 doubles the load. */
export function scaleArrivals(requests: readonly SimulatedRequest[], factor: number): SimulatedRequest[] {
  aboveZero('factor', factor);
  return requests.map((request) => ({ ...request, arrivalMs: request.arrivalMs * factor }));
}
