/** Requests for the dispatch benches: a seeded trace of our own, and recorded ones where they are at hand. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'csv-parse/sync';
import { Random } from '../random.js';

export interface TraceRequest {
  arrivalMs: number;
  promptTokens: number;
  outputTokens: number;
  /** Of the prompt's blocks, each with all before it. */
  prefixHashes?: number[];
}

export interface Trace {
  name: string;
  requests: TraceRequest[];
}

const RECORDED = join(__dirname, '..', '..', '..', 'shared', 'data', 'requests');
const AZURE = join(RECORDED, 'azure_llm_2023_conv.csv');
const MOONCAKE = join(RECORDED, 'mooncake_conversation.jsonl');

/**
 * Poisson arrivals; prompts and outputs lognormal, with many short and few long ones, as chat traffic has them. Labelled
 * synthetic wherever it is shown.
 */
export function syntheticTrace(count: number, seed: number): Trace {
  const random = new Random(seed);
  let arrivalMs = 0;
  const requests = Array.from({ length: count }, () => {
    arrivalMs -= Math.log(1 - random.uniform()) * 100;
    const promptTokens = Math.min(32_768, Math.max(1, Math.round(Math.exp(6.2 + 1.3 * random.normal()))));
    const outputTokens = Math.min(4096, Math.max(1, Math.round(Math.exp(4.8 + 0.9 * random.normal()))));
    return { arrivalMs, promptTokens, outputTokens };
  });
  return { name: 'synthetic', requests };
}

/** So many parts of a trace, one after the other and of as many requests each: no two share one. */
export function partsOf({ name, requests }: Trace, parts: number): Trace[] {
  const count = Math.floor(requests.length / parts);
  return Array.from({ length: parts }, (_, n) => {
    const part = requests.slice(n * count, (n + 1) * count);
    const startMs = part[0]!.arrivalMs;
    return {
      name,
      requests: part.map((request) => ({ ...request, arrivalMs: request.arrivalMs - startMs })),
    };
  });
}

/** Azure's conversations of 2023, or undefined where the file is not at hand. */
export function azureTrace(): Trace | undefined {
  if (!existsSync(AZURE)) return undefined;
  const rows: Record<string, string>[] = parse(readFileSync(AZURE), { columns: true });
  const start = Date.parse(`${rows[0]!.TIMESTAMP}Z`);
  const requests = rows.map((row) => ({
    arrivalMs: Date.parse(`${row.TIMESTAMP}Z`) - start,
    promptTokens: Math.max(1, Number(row.ContextTokens)),
    outputTokens: Math.max(1, Number(row.GeneratedTokens)),
  }));
  return { name: 'Azure conversation', requests };
}

interface MooncakeRow {
  timestamp: number;
  input_length: number;
  output_length: number;
  hash_ids: number[];
}

/** Mooncake's conversations, with the hashes of their prefix blocks, or undefined where the file is not at hand. */
export function mooncakeTrace(): Trace | undefined {
  if (!existsSync(MOONCAKE)) return undefined;
  const lines = readFileSync(MOONCAKE, 'utf8').trim().split('\n');
  const requests = lines.map((line) => {
    const row: MooncakeRow = JSON.parse(line);
    return {
      arrivalMs: row.timestamp,
      promptTokens: Math.max(1, row.input_length),
      outputTokens: Math.max(1, row.output_length),
      prefixHashes: row.hash_ids,
    };
  });
  return { name: 'Mooncake conversation', requests };
}
