/**
 * What does the gateway cost a request? Beside a plain proxy of node:http and undici that looks at nothing, in front of the same
 * upstream, which answers at once; each in a process of its own, by turns.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { Pool } from 'undici';
import type { Check, Findings, RunOptions, Table } from '../harness.js';

export const name = 'gateway-overhead';
export const question = 'what does the gateway add to a request, beside a plain proxy?';

const ROOT = path.join(__dirname, '..', '..');
const ADDED_LIMIT_MS = 0.3;
const THROUGHPUT_SHARE = 0.8;
const CONCURRENCY = 64;
const PROMPT = 'The quick brown fox jumps over the lazy dog. '.repeat(45);
const EVENTS = 64;

const WAYS = ['direct', 'plain', 'gimbal'] as const;
type Way = (typeof WAYS)[number];
const KINDS = ['answer', 'stream'] as const;
type Kind = (typeof KINDS)[number];

interface Server {
  url: string;
  pid: number;
}

interface Figures {
  p50Ms: number;
  p99Ms: number;
  perSecond: number;
  /** Of the process that clients talk to, µs for each request; NaN where the system does not say. */
  cpuUs: number;
}

export async function run({ small }: RunOptions): Promise<Findings> {
  const children: ChildProcess[] = [];
  const start = async (words: string[]) => {
    const child = spawn(process.execPath, ['--import', 'tsx', ...words], {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    children.push(child);
    const [line] = (await once(createInterface(child.stdout!), 'line')) as [string];
    return { url: (JSON.parse(line) as { url: string }).url, pid: child.pid! };
  };
  try {
    const direct = await start(['bench/gateway/servers.ts', 'upstream']);
    const plain = await start(['bench/gateway/servers.ts', 'plain', direct.url]);
    const serve = ['lib/cli/main.ts', 'serve', '--port', '0', '--log-level', 'warn', '--engines', direct.url];
    const gimbal = await start(serve);
    const figures = await measure({ direct, plain, gimbal }, small);
    return findingsOf(figures, small);
  } finally {
    for (const child of children) child.kill();
  }
}

async function measure(servers: Record<Way, Server>, small: boolean): Promise<Map<string, Figures>> {
  const [rounds, single, many] = small ? [1, 20, 100] : [7, 1500, 6000];
  const figures = new Map<string, Figures>();
  for (const kind of KINDS) {
    const all = new Map<Way, Figures[]>(WAYS.map((way) => [way, []]));
    // The first round warms up.
    for (let round = 0; round <= rounds; round++) {
      for (const way of WAYS) {
        const pool = new Pool(servers[way].url, { connections: CONCURRENCY, pipelining: 1 });
        const tookMs = await load(pool, kind, 1, single);
        const count = kind === 'stream' ? Math.ceil(many / 8) : many;
        const cpuBefore = cpuMs(servers[way].pid);
        const began = performance.now();
        await load(pool, kind, CONCURRENCY, count);
        const perSecond = (count * 1000) / (performance.now() - began);
        const cpuUs = ((cpuMs(servers[way].pid) - cpuBefore) * 1000) / count;
        await pool.close();
        if (round > 0 || small)
          all.get(way)!.push({ p50Ms: at(tookMs, 0.5), p99Ms: at(tookMs, 0.99), perSecond, cpuUs });
      }
    }
    for (const way of WAYS) figures.set(`${kind} ${way}`, medians(all.get(way)!));
  }
  return figures;
}

/** Clock ticks are 10 ms on Linux; elsewhere nobody says. */
function cpuMs(pid: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    return (Number(fields[11]) + Number(fields[12])) * 10;
  } catch {
    return Number.NaN;
  }
}

/** ms of each of `count` requests, `concurrency` at a time. */
async function load(pool: Pool, kind: Kind, concurrency: number, count: number): Promise<number[]> {
  const body = JSON.stringify({
    model: 'm',
    messages: [{ role: 'user', content: PROMPT }],
    max_tokens: EVENTS,
    stream: kind === 'stream',
  });
  const tookMs: number[] = [];
  let left = count;
  const worker = async () => {
    while (left > 0) {
      left -= 1;
      const began = performance.now();
      const { statusCode, body: answer } = await pool.request({
        path: '/v1/chat/completions',
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
      });
      const text = await answer.text();
      if (statusCode !== 200 || !text.includes('word'))
        throw new Error(`status ${statusCode}: ${text.slice(0, 200)}`);
      tookMs.push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  return tookMs;
}

function at(values: number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!;
}

function medians(rounds: Figures[]): Figures {
  const median = (key: keyof Figures) =>
    at(
      rounds.map((one) => one[key]),
      0.5,
    );
  return {
    p50Ms: median('p50Ms'),
    p99Ms: median('p99Ms'),
    perSecond: median('perSecond'),
    cpuUs: median('cpuUs'),
  };
}

function findingsOf(figures: Map<string, Figures>, small: boolean): Findings {
  return {
    tables: KINDS.map((kind) => tableOf(kind, figures)),
    checks: small ? [] : KINDS.flatMap((kind) => checksOf(kind, figures)),
    notes: [
      `Latency: one request at a time. Throughput: ${CONCURRENCY} at a time. A prompt of ${PROMPT.length} bytes; streams of ${EVENTS} events, each a write.`,
      'Upstream, proxy and load each in a process of its own; all share the machine, so throughput is bound by all three together.',
      'CPU is of the process that clients talk to, under the load of the throughput; it hangs less on what else the machine does.',
      'Nothing is drawn: the seed changes nothing.',
    ],
  };
}

function tableOf(kind: Kind, figures: Map<string, Figures>): Table {
  return {
    title: kind === 'answer' ? 'Answers in one piece' : 'Streams',
    columns: ['way', 'p50, ms', 'p99, ms', 'requests/s', 'CPU, µs/request'],
    rows: WAYS.map((way) => {
      const { p50Ms, p99Ms, perSecond, cpuUs } = figures.get(`${kind} ${way}`)!;
      return [way, p50Ms.toFixed(3), p99Ms.toFixed(3), Math.round(perSecond), Math.round(cpuUs)];
    }),
  };
}

function checksOf(kind: Kind, figures: Map<string, Figures>): Check[] {
  const plain = figures.get(`${kind} plain`)!;
  const gimbal = figures.get(`${kind} gimbal`)!;
  const addedMs = gimbal.p50Ms - plain.p50Ms;
  const share = gimbal.perSecond / plain.perSecond;
  return [
    {
      target: `${kind}: less than ${ADDED_LIMIT_MS} ms more than the plain proxy at the median`,
      measured: `${addedMs.toFixed(3)} ms`,
      pass: addedMs < ADDED_LIMIT_MS,
      kind: 'time',
    },
    {
      target: `${kind}: at least ${100 * THROUGHPUT_SHARE} % of the plain proxy's throughput`,
      measured: `${(100 * share).toFixed(0)} %`,
      pass: share >= THROUGHPUT_SHARE,
      kind: 'time',
    },
  ];
}
