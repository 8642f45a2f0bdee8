/** What tests of the placement service share: questions as an engine asks them, a running service, and the ranks of an engine. */
import { spawn, spawnSync } from 'node:child_process';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import type { PlacementAnswer } from '../../lib/controller/placement-protocol.js';

export const EXPERTS = 16;
export const RANKS = 4;
export const SLOTS = 20;
export const LAYERS = 3;

/** Skewed, in every layer another way: `[LAYERS][EXPERTS]`. */
export const WEIGHT = Array.from({ length: LAYERS }, (_, layer) =>
  Array.from({ length: EXPERTS }, (_, expert) =>
    Math.round(100_000 / (1 + ((expert * 7 + layer * 3) % EXPERTS))),
  ),
);
/** As vLLM starts: the experts in order, then as many again from the first as there are slots: `[LAYERS][SLOTS]`. */
export const OLD = Array.from({ length: LAYERS }, () =>
  Array.from({ length: SLOTS }, (_, slot) => slot % EXPERTS),
);

export function toBase64(values: ArrayLike<number>): string {
  return Buffer.from(Int32Array.from(values).buffer).toString('base64');
}

export function fromBase64(text: string): number[] {
  const bytes = Buffer.from(text, 'base64');
  return Array.from({ length: bytes.length / 4 }, (_, at) => bytes.readInt32LE(at * 4));
}

export function question(changes: object = {}): Record<string, unknown> {
  return {
    version: 1,
    model: 'model',
    key: 'first',
    layers: LAYERS,
    experts: EXPERTS,
    slots: SLOTS,
    groups: 1,
    nodes: 1,
    ranks: RANKS,
    weight: WEIGHT,
    old: toBase64(OLD.flat()),
    ...changes,
  };
}

/** Servers that live as long as a test. */
export class Servers {
  readonly #open: Server[] = [];

  /** Its address. */
  async start(listener: RequestListener): Promise<string> {
    const server = createServer(listener);
    this.#open.push(server);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  async end(): Promise<void> {
    for (const server of this.#open.splice(0)) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }
}

export interface Posted {
  status: number;
  text: string;
  /** Of errors alone. */
  code?: string;
}

export async function post(
  url: string,
  path: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Posted> {
  const sent = typeof body === 'string' ? body : JSON.stringify(body);
  const response = await fetch(url + path, { method: 'POST', body: sent, headers });
  const { status } = response;
  const text = await response.text();
  return status < 400 ? { status, text } : { status, text, code: JSON.parse(text).error.code };
}

export async function ask(url: string, changes: object = {}): Promise<PlacementAnswer> {
  const { status, text } = await post(url, '/v1/placement', question(changes));
  if (status !== 200) throw new Error(`${status}: ${text}`);
  return JSON.parse(text);
}

/** Which Python the policy is tried with. */
export const PYTHON = process.env.GIMBAL_TEST_PYTHON ?? 'python3';

export function pythonHas(module: string): boolean {
  return spawnSync(PYTHON, ['-c', `import ${module}`], { stdio: 'ignore' }).status === 0;
}

export interface RankCall {
  kind: string;
  dtype: string;
  shape: number[];
  map: string;
  writeable: boolean;
}

export interface RankResult {
  rank: number;
  /** By call, the arrays that came back. */
  calls?: RankCall[][];
  error?: string;
  died?: number;
  log?: string[];
}

/** Plays an engine's ranks, each a process (test/contract/ranks.py). */
export async function playRanks(config: object): Promise<RankResult[]> {
  const script = path.join(__dirname, '..', 'contract', 'ranks.py');
  const child = spawn(PYTHON, [script], { stdio: ['pipe', 'pipe', 'inherit'] });
  let printed = '';
  child.stdout.on('data', (text) => {
    printed += text;
  });
  child.stdin.end(JSON.stringify({ ranks: RANKS, weight: WEIGHT, old: OLD, ...config }));
  const code = await new Promise((resolve) => child.on('close', resolve));
  if (code !== 0) throw new Error(`ranks.py ended with ${code}`);
  return JSON.parse(printed);
}
