/**
 * Ten thousand streams at a time, through gateways that are processes of their own, from engines that are so too. A gateway needs
 * two open files for each stream; where the system allows too few, a second gateway over the same engines takes the rest.
 */
import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { EngineProcess } from '../support/engine-process.js';
import { ask, chat, inFlight, metric, Stage, streamedText, until } from '../support/gateway.js';
import { GatewayProcess } from '../support/gateway-process.js';

const STREAMS = 10_000;
const ENGINES = 2;
const RANKS = 4;
const TOKENS = 6;
/** At a time, so that no queue of connections overflows. */
const CONNECTING = 200;
/** Beside those of streams: libraries, telemetry, the log. */
const OTHER_FILES = 300;
/** Of a gateway's memory for each stream that is open, about twice what it takes; and without any. */
const MOST_BYTES_PER_STREAM = 64 * 1024;
const MOST_BYTES_BESIDE = 256 * 1024 * 1024;
/** Far longer than it takes where nothing else runs. */
const TIMEOUT_MS = 240_000;

/** What each process may open: Node takes the hard limit as it starts. */
function openFiles(): number {
  const limit = execFileSync('sh', ['-c', 'ulimit -Hn']).toString().trim();
  return limit === 'unlimited' ? Number.POSITIVE_INFINITY : Number(limit);
}

const limit = process.platform === 'win32' ? 0 : openFiles();
const skipped = limit < STREAMS + OTHER_FILES;
const perGateway = Math.min(STREAMS, Math.floor((limit - OTHER_FILES) / 2));

const stage = new Stage();
afterEach(() => stage.end());

async function startEngines(): Promise<EngineProcess[]> {
  const timing = { maxNumSeqs: STREAMS, stepTokens: 1e6, kvTokens: 1e8, decodeSequenceMs: 0 };
  const options = { kind: 'vllm', ranks: RANKS, timing: { ...timing, timeScale: 10 } } as const;
  const engines = await Promise.all(Array.from({ length: ENGINES }, () => EngineProcess.start(options)));
  for (const engine of engines) stage.onEnd(() => engine.stop());
  return engines;
}

async function startGateways(engines: readonly EngineProcess[]): Promise<GatewayProcess[]> {
  const folder = await mkdtemp(join(tmpdir(), 'gimbal-load-'));
  stage.onEnd(() => rm(folder, { recursive: true }));
  const file = join(folder, 'gateway.json');
  const count = Math.ceil(STREAMS / perGateway);
  const config = {
    listen: { port: 0 },
    servers: engines.map(({ url }) => ({ url, ranks: RANKS })),
    gateways: count,
    admission: { maxInFlight: STREAMS, maxBacklogMs: 3_600_000 },
    // About many streams, not about how fast this machine is.
    limits: { connectMs: 30_000 },
    telemetry: { intervalMs: 500, timeoutMs: 10_000 },
    log: { level: 'warn' },
  };
  await writeFile(file, JSON.stringify(config));
  const gateways = await Promise.all(Array.from({ length: count }, () => GatewayProcess.start(file)));
  for (const gateway of gateways) stage.onEnd(() => gateway.stop());
  return gateways;
}

const residentBytes = ({ url }: GatewayProcess) => metric(url, 'process_resident_memory_bytes');

describe.skipIf(skipped)(
  `${STREAMS} streams at a time${skipped ? ` (skipped: only ${limit} open files)` : ''}`,
  () => {
    it(
      'each get their own answer, whole and once, and leave nothing behind',
      async () => {
        const engines = await startEngines();
        const gateways = await startGateways(engines);
        await Promise.all(engines.map((engine) => engine.pause()));
        const tally = async () => {
          const all = await Promise.all(engines.map((engine) => engine.tally()));
          return all.reduce((sum, one) => ({
            open: sum.open + one.open,
            finished: sum.finished + one.finished,
            aborted: sum.aborted + one.aborted,
            error: sum.error + one.error,
          }));
        };
        const answers: Promise<boolean>[] = [];
        while (answers.length < STREAMS) {
          for (let n = 0; n < CONNECTING; n++) {
            const { body, answer } = chat(`stream ${answers.length}`, TOKENS, { stream: true });
            const gateway = gateways[Math.floor(answers.length / perGateway)]!;
            answers.push(ask(gateway.url, body).then((answered) => streamedText(answered) === answer));
          }
          await until(async () => expect((await tally()).open).toBe(answers.length));
        }
        const states = await Promise.all(gateways.map((gateway) => gateway.state()));
        expect(states.reduce((sum, state) => sum + inFlight(state), 0)).toBe(STREAMS);
        const bytes = await Promise.all(gateways.map(residentBytes));
        await Promise.all(engines.map((engine) => engine.resume()));
        expect((await Promise.all(answers)).filter((isRight) => !isRight)).toEqual([]);
        expect(await tally()).toEqual({ open: 0, finished: STREAMS, aborted: 0, error: 0 });
        for (const [n, gateway] of gateways.entries()) {
          const streams = Math.min(perGateway, STREAMS - n * perGateway);
          await until(async () => expect(inFlight(await gateway.state())).toBe(0));
          const { totals, queue } = await gateway.state();
          expect(totals).toMatchObject({ requests: streams, finished: streams, retried: 0, refused: 0 });
          expect(queue.size).toBe(0);
          const most = MOST_BYTES_BESIDE + streams * MOST_BYTES_PER_STREAM;
          expect(bytes[n]).toBeLessThan(most);
          expect(await residentBytes(gateway)).toBeLessThan(most);
          gateway.signal('SIGTERM');
          expect(await gateway.exited()).toBe(0);
        }
      },
      TIMEOUT_MS,
    );
  },
);
