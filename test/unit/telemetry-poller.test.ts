/** Polling, against real servers on this machine: what is told, when it is asked, and that nothing a server does is fatal. */
import { spawn } from 'node:child_process';
import http from 'node:http';
import path from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { Scheduler } from '../../lib/dispatch/scheduler.js';
import type { EngineSample } from '../../lib/dispatch/types.js';
import { backoff, draws, firstWait, interval } from '../../lib/telemetry/pace.js';
import { EnginePoller } from '../../lib/telemetry/poller.js';
import type { EnginePollerOptions, TelemetryServer } from '../../lib/telemetry/types.js';
import { PROPERTY_SEED } from '../property/arbitraries.js';
import { type Rank, sglangLoads, sglangText, vllmText } from './telemetry-fixtures.js';

/** For what must come, on a machine that is busy with other things. */
const PATIENCE_MS = 20_000;
/** Timers may fire a little early by a finer clock. */
const EARLY_MS = 2;
const ROOT = path.join(__dirname, '..', '..');

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

interface Asked {
  path: string;
  headers: http.IncomingHttpHeaders;
  atMs: number;
}

type Handler = (request: http.IncomingMessage, response: http.ServerResponse, nth: number) => void;

interface Fake {
  url: string;
  asked: Asked[];
  answer: Handler;
  /** Requests that are being answered, now and at most. */
  open: number;
  mostOpen: number;
  close(): Promise<void>;
}

/** A server whose `answer` may be changed while it runs. */
async function fake(answer: Handler): Promise<Fake> {
  const server = http.createServer((request, response) => {
    const atMs = performance.now();
    self.open += 1;
    self.mostOpen = Math.max(self.mostOpen, self.open);
    response.on('close', () => {
      self.open -= 1;
    });
    self.asked.push({ path: request.url!, headers: request.headers, atMs });
    self.answer(request, response, self.asked.length);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const self: Fake = {
    url: `http://127.0.0.1:${address.port}`,
    asked: [],
    answer,
    open: 0,
    mostOpen: 0,
    close: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  closers.push(self.close);
  return self;
}

const says =
  (text: string | Buffer, status = 200): Handler =>
  (_, response) => {
    response.writeHead(status).end(text);
  };

const RANK: Rank = { dpRank: 0, kvUsage: 0.5, running: 4, waiting: 2 };
const RANKS: Rank[] = [0, 1].map((dpRank) => ({ ...RANK, dpRank, running: 10 + dpRank }));
const VLLM = vllmText([RANK]);

/** A poller that notes what it tells; in a hurry, and without jitter. */
function poller(servers: TelemetryServer[], options: Partial<EnginePollerOptions> = {}) {
  const told = {
    batches: [] as EngineSample[][],
    states: [] as string[],
    reasons: [] as string[],
    sleeps: [] as [number, boolean][],
  };
  const made = new EnginePoller({
    servers,
    intervalMs: 5,
    maxBackoffMs: 20,
    timeoutMs: PATIENCE_MS,
    jitter: 0,
    onSamples: (samples) => told.batches.push(samples),
    onState: ({ url }, state, reason) => {
      told.states.push(`${servers.findIndex((server) => server.url === url)} ${state}`);
      told.reasons.push(reason);
    },
    onSleep: (engine, asleep) => told.sleeps.push([engine, asleep]),
    ...options,
  });
  closers.push(() => made.stop());
  made.start();
  return { made, told };
}

async function until(what: () => boolean): Promise<void> {
  const limitMs = performance.now() + PATIENCE_MS;
  while (!what()) {
    if (performance.now() > limitMs) throw new Error(`not within ${PATIENCE_MS} ms: ${what}`);
    await pause(2);
  }
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
const gapsOf = ({ asked }: Fake) => asked.slice(1).map(({ atMs }, n) => atMs - asked[n]!.atMs);
const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;

describe('EnginePoller', () => {
  it('tells samples of every rank under the numbers of the engines', async () => {
    const ranks = RANKS.map((rank) => ({ ...rank, preemptions: 7 }));
    const first = await fake(says(vllmText(ranks)));
    const loads = RANKS.map((rank) => ({ ...rank, waitingPrefillTokens: 100 * rank.running }));
    const second = await fake(says(sglangLoads(loads)));
    const { told } = poller([
      { url: first.url, kind: 'vllm', engines: [3, 1] },
      { url: second.url, kind: 'sglang', engines: [0, 2] },
    ]);
    await until(() => [3, 0].every((engine) => told.batches.some(([sample]) => sample!.engine === engine)));
    const batch = (engine: number) => told.batches.find(([sample]) => sample!.engine === engine);
    const timeMs = expect.any(Number);
    const both = { timeMs, kvUsage: 0.5, waiting: 2 };
    expect(batch(3)).toEqual([
      { ...both, engine: 3, running: 10, preemptions: 7 },
      { ...both, engine: 1, running: 11, preemptions: 7 },
    ]);
    expect(batch(0)).toEqual([
      { ...both, engine: 0, running: 10, waitingPrefillTokens: 1000 },
      { ...both, engine: 2, running: 11, waitingPrefillTokens: 1100 },
    ]);
    expect(told.states.toSorted()).toEqual(['0 ok', '1 ok']);
  });

  it('feeds a scheduler on the default clock', async () => {
    const server = await fake(says(vllmText(RANKS)));
    const scheduler = new Scheduler({ engines: 2 });
    expect(scheduler.pressure().map(({ stale }) => stale)).toEqual([true, true]);
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0, 1] }], {
      onSamples: (samples) => {
        scheduler.observe(samples);
        told.batches.push(samples);
      },
    });
    await until(() => told.batches.length > 0);
    expect(scheduler.pressure().map(({ stale }) => stale)).toEqual([false, false]);
  });

  it('takes ranks in their order where a server counts from its first global rank', async () => {
    const server = await fake(says(vllmText(RANKS.map((rank) => ({ ...rank, dpRank: rank.dpRank + 8 })))));
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [8, 9] }]);
    await until(() => told.batches.length > 0);
    expect(told.batches[0]!.map(({ engine, running }) => [engine, running])).toEqual([
      [8, 10],
      [9, 11],
    ]);
  });

  it('dates samples by when they were asked for, on the given clock', async () => {
    const server = await fake((_, response) => {
      setTimeout(() => response.end(VLLM), 40);
    });
    const receivedMs: number[] = [];
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }], {
      clock: () => performance.now() - 1e6,
      onSamples: (samples) => {
        told.batches.push(samples);
        receivedMs.push(performance.now());
      },
    });
    await until(() => told.batches.length >= 3);
    for (let n = 0; n < 3; n++) {
      const askedMs = told.batches[n]![0]!.timeMs + 1e6;
      expect(askedMs).toBeLessThanOrEqual(server.asked[n]!.atMs);
      expect(receivedMs[n]! - askedMs).toBeGreaterThan(40 - EARLY_MS);
      if (n > 0) expect(askedMs).toBeGreaterThanOrEqual(receivedMs[n - 1]!);
    }
  });

  it('asks a server for one thing at a time, however slow it is', async () => {
    const server = await fake((_, response) => {
      setTimeout(() => response.end(VLLM), 30);
    });
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }], { intervalMs: 1 });
    await until(() => told.batches.length >= 5);
    expect(server.mostOpen).toBe(1);
    expect(Math.min(...gapsOf(server))).toBeGreaterThan(30 - EARLY_MS);
  });

  it('keeps the interval from one request to the next, not from the answer', async () => {
    const server = await fake((_, response) => {
      setTimeout(() => response.end(VLLM), 60);
    });
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }], {
      intervalMs: 100,
      maxBackoffMs: 100,
    });
    await until(() => told.batches.length >= 6);
    // 160 ms were it from the answer. The least, for some may be late.
    expect(Math.min(...gapsOf(server))).toBeLessThan(150);
    expect(Math.min(...gapsOf(server))).toBeGreaterThan(100 - 3 * EARLY_MS);
  });

  it('asks for what it can read, below the path of the URL', async () => {
    const first = await fake(says(VLLM));
    const second = await fake(says(sglangLoads([RANK])));
    const headers = { authorization: 'Bearer k', Accept: 'image/png' };
    const { told } = poller([
      { url: `${first.url}/proxied/7`, kind: 'vllm', engines: [0] },
      { url: `${second.url}/`, kind: 'sglang', engines: [1], headers },
    ]);
    await until(() => told.states.length === 2);
    expect(first.asked[0]).toMatchObject({
      path: '/proxied/7/metrics',
      headers: { accept: 'text/plain;version=0.0.4', 'accept-encoding': 'identity' },
    });
    expect(first.asked[0]!.headers.authorization).toBeUndefined();
    expect(second.asked[0]).toMatchObject({
      path: '/v1/loads?include=core',
      headers: { accept: 'application/json', authorization: 'Bearer k' },
    });
  });

  describe('marks a server that', () => {
    const gzipless = Buffer.concat([Buffer.from(VLLM), Buffer.from([0xff, 0xfe, 0x0a])]);
    const cases: [string, Handler, RegExp][] = [
      ['answers with an error', says('busy', 503), /expected HTTP 200 but received HTTP 503$/],
      ['has no such page', says('', 404), /expected \/metrics but received HTTP 404 for \/metrics$/],
      ['answers with a page', says('<html>502</html>\n'), /line 1: expected the name of a series/],
      ['answers with nothing', says(''), /num_requests_running: expected a series/],
      ['answers with half a text', says(VLLM.slice(0, -20)), /expected a line feed at its end/],
      ['answers with numbers that are none', says(VLLM.replace('} 4.0', '} NaN')), /received NaN$/],
      ['answers with a negative number', says(VLLM.replace('} 4.0', '} -4.0')), /received -4$/],
      ['says a series twice', says(VLLM + VLLM), /expected each series once/],
      ['answers with other bytes', says(gzipless), /expected UTF-8 text but received other bytes$/],
      [
        'has another number of ranks',
        says(vllmText(RANKS)),
        /expected 1 for the engines 0 but received 2: 0, 1/,
      ],
      [
        'says more than the scheduler takes',
        says(vllmText([{ ...RANK, waiting: 1e9 }])),
        /rank 0\.waiting: expected a number of 0 to 16777216/,
      ],
      [
        'breaks off',
        (_, response) => {
          response.writeHead(200, { 'content-length': '10000' });
          response.write(VLLM);
          setTimeout(() => response.destroy(), 5);
        },
        /expected an answer but received terminated/,
      ],
      [
        'never ends',
        (_, response) => {
          const chunk = Buffer.alloc(1024 * 1024, '#');
          const more = () => {
            while (!response.destroyed && response.write(chunk));
          };
          response.on('drain', more);
          more();
        },
        /^http:\S+: expected at most 8388608 bytes but received \d+ bytes or more$/,
      ],
    ];
    it.each(cases)('%s, goes on with others, and takes it back', async (_, answer, reason) => {
      const bad = await fake(answer);
      const good = await fake(says(VLLM));
      const { told, made } = poller([
        { url: bad.url, kind: 'vllm', engines: [0] },
        { url: good.url, kind: 'vllm', engines: [1] },
      ]);
      await until(() => bad.asked.length >= 3 && told.batches.length >= 3);
      expect(told.states.toSorted()).toEqual(['0 failing', '1 ok']);
      expect(told.batches.flat().every(({ engine }) => engine === 1)).toBe(true);
      const [status, other] = made.status();
      expect(status).toMatchObject({ state: 'failing', server: { url: bad.url } });
      expect(status!.failures).toBeGreaterThanOrEqual(2);
      expect(status!.reason).toMatch(reason);
      expect(status!.sampleTimeMs).toBeUndefined();
      expect(other).toMatchObject({
        state: 'ok',
        failures: 0,
        endpoint: '/metrics',
        reason: 'reads /metrics',
      });
      expect(told.reasons[told.states.indexOf('0 failing')]).toMatch(reason);

      bad.answer = says(VLLM);
      await until(() => told.states.length === 3);
      expect(told.states[2]).toBe('0 ok');
      await until(() => told.batches.flat().some(({ engine }) => engine === 0));
      expect(made.status()[0]).toMatchObject({ state: 'ok', failures: 0 });
    });
  });

  it('marks a server that is not there, and says why', async () => {
    const server = await fake(says(VLLM));
    await server.close();
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }]);
    await until(() => told.states.length > 0);
    expect(told.reasons[0]).toMatch(/expected an answer but received fetch failed: connect ECONNREFUSED/);
  });

  it('gives up a request after the timeout, and asks again', async () => {
    let broken = 0;
    const server = await fake((_, response, nth) => {
      if (nth > 2) return void response.end(VLLM);
      response.on('close', () => {
        broken += 1;
      });
      // Once silent from the start, once after half of the answer.
      if (nth === 2) response.write(VLLM.slice(0, 100));
    });
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }], { timeoutMs: 60 });
    await until(() => told.batches.length > 0);
    expect(told.states).toEqual(['0 failing', '0 ok']);
    expect(told.reasons[0]).toBe(`${server.url}: expected an answer within 60 ms but received none`);
    expect(server.asked.length).toBeGreaterThanOrEqual(3);
    expect(Math.min(...gapsOf(server).slice(0, 2))).toBeGreaterThan(60 - EARLY_MS);
    await until(() => broken === 2);
  });

  it('drops an answer that comes after a later one', async () => {
    const late: (() => void)[] = [];
    let asked = 0;
    // A fetch that does not heed its signal: the first answer is 1 running request, the second 2, and so on.
    const heedless = (() => {
      asked += 1;
      const response = new Response(vllmText([{ ...RANK, running: asked }]));
      if (asked > 1) return Promise.resolve(response);
      return new Promise<Response>((resolve) => late.push(() => resolve(response)));
    }) as typeof fetch;
    const { told } = poller([{ url: 'http://engine', kind: 'vllm', engines: [0] }], {
      fetch: heedless,
      timeoutMs: 20,
    });
    await until(() => told.batches.length >= 1);
    late[0]!();
    await until(() => told.batches.length >= 4);
    const running = told.batches.map(([sample]) => sample!.running);
    expect(running).not.toContain(1);
    expect(running).toEqual(running.toSorted((a, b) => a - b));
    const timesMs = told.batches.map(([sample]) => sample!.timeMs);
    expect(timesMs).toEqual(timesMs.toSorted((a, b) => a - b));
    expect(told.states).toEqual(['0 failing', '0 ok']);
  });

  it('marks a server where fetch or the clock is what fails', async () => {
    const server: TelemetryServer = { url: 'http://engine', kind: 'vllm', engines: [0] };
    const broken = poller([server], {
      fetch: (() => {
        throw 'no network';
      }) as typeof fetch,
    });
    const timeless = poller([server], {
      clock: () => Number.NaN,
      fetch: async () => new Response(VLLM),
    });
    await until(() => broken.told.states.length > 0 && timeless.told.states.length > 0);
    expect(broken.told.reasons[0]).toMatch(/expected an answer but received no network$/);
    expect(timeless.told.reasons[0]).toMatch(/timeMs: expected a number of .* but received NaN$/);
    expect(timeless.told.batches).toEqual([]);
  });

  it('asks a failing server ever more seldom, and at the old pace once it is well', async () => {
    const server = await fake(says('', 500));
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }], {
      intervalMs: 10,
      maxBackoffMs: 150,
    });
    await until(() => server.asked.length >= 6);
    server.answer = says(VLLM);
    const gaps = gapsOf(server).slice(0, 5);
    [20, 40, 80, 150, 150].forEach((ms, n) => {
      expect(gaps[n]).toBeGreaterThan(ms - EARLY_MS);
    });
    await until(() => told.batches.length >= 20);
    // The least of many: a busy machine is late, but not always.
    expect(Math.min(...gapsOf(server).slice(6))).toBeLessThan(80);

    server.answer = says('', 500);
    const before = server.asked.length;
    await until(() => server.asked.length >= before + 3);
    // From the first failure on: 20 ms again, not 150.
    expect(told.states).toEqual(['0 failing', '0 ok', '0 failing']);
    expect(gapsOf(server)[before]).toBeGreaterThan(20 - EARLY_MS);
  });

  it('does not wait for the body of an error, nor keep its connection', async () => {
    const server = await fake((_, response) => {
      response.writeHead(500);
      response.write('This takes a while.');
    });
    poller([{ url: server.url, kind: 'vllm', engines: [0] }]);
    await until(() => server.asked.length >= 8);
    expect(server.mostOpen).toBeLessThanOrEqual(3);
  });

  it('tells once that a server fails', async () => {
    const server = await fake(says('', 500));
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }]);
    await until(() => server.asked.length >= 5);
    expect(told.states).toEqual(['0 failing']);
  });

  it('tells when engines fall asleep and wake, and goes on to sample them', async () => {
    const text = (...states: (Rank['sleepState'] & string)[]) =>
      vllmText(states.map((sleepState, dpRank) => ({ ...RANK, dpRank, sleepState })));
    const server = await fake(says(text('awake', 'weights_offloaded')));
    const { told } = poller([{ url: server.url, kind: 'vllm', engines: [5, 6] }]);
    const more = async () => {
      const seen = told.batches.length;
      await until(() => told.batches.length >= seen + 3);
    };
    await more();
    expect(told.sleeps).toEqual([[6, true]]);
    server.answer = says(text('discard_all', 'discard_all'));
    await more();
    expect(told.sleeps.slice(1)).toEqual([[5, true]]);
    server.answer = says(text('awake', 'awake'));
    await more();
    expect(told.sleeps.slice(2)).toEqual([
      [5, false],
      [6, false],
    ]);
    expect(told.batches[0]).toHaveLength(2);
  });

  describe('of SGLang', () => {
    const serving =
      (pages: Record<string, string>): Handler =>
      (request, response) => {
        const text = pages[request.url!.split('?')[0]!];
        response.writeHead(text === undefined ? 404 : 200).end(text);
      };
    const older = '[{"dp_rank": 0, "num_reqs": 6, "num_waiting_reqs": 2, "num_tokens": 50}]';
    const metrics = sglangText([RANK], 2);

    it('reads /metrics where there is no /v1/loads, says so, and stays with it', async () => {
      const server = await fake(serving({ '/metrics': metrics, '/get_load': older }));
      const { told, made } = poller([{ url: server.url, kind: 'sglang', engines: [0], kvTokens: 100 }]);
      await until(() => told.batches.length >= 3);
      expect(server.asked.map(({ path: asked }) => asked).slice(0, 4)).toEqual([
        '/v1/loads?include=core',
        '/metrics',
        '/metrics',
        '/metrics',
      ]);
      expect(told.reasons).toEqual(['reads /metrics']);
      expect(made.status()[0]!.endpoint).toBe('/metrics');
      expect(told.batches[0]![0]).toMatchObject({ running: 4, waiting: 2, kvUsage: 0.5 });
      // Dated by the request that was answered.
      expect(told.batches[0]![0]!.timeMs - performance.timeOrigin).toBeGreaterThanOrEqual(
        server.asked[0]!.atMs,
      );

      // Another version comes up after a failure.
      server.answer = says('', 500);
      await until(() => told.states.length === 2);
      server.answer = serving({ '/v1/loads': sglangLoads([RANK]), '/metrics': metrics });
      await until(() => told.states.length === 3);
      expect(told.reasons[2]).toBe('reads /v1/loads');
    });

    it('reads /get_load where there is nothing else, given the size of the cache', async () => {
      const server = await fake(serving({ '/get_load': older }));
      const { told } = poller([
        { url: server.url, kind: 'sglang', engines: [0], kvTokens: 100 },
        { url: `${server.url}/`, kind: 'sglang', engines: [1] },
      ]);
      await until(() => told.batches.length > 0 && told.states.includes('1 failing'));
      expect(told.batches[0]![0]).toMatchObject({ engine: 0, running: 4, waiting: 2, kvUsage: 0.5 });
      expect(told.reasons[told.states.indexOf('1 failing')]).toMatch(
        /expected \/v1\/loads or \/metrics but received HTTP 404 for \/v1\/loads, HTTP 404 for \/metrics$/,
      );
    });

    it('reads what it is told to read, and nothing else', async () => {
      const server = await fake(serving({ '/metrics': metrics }));
      const { told } = poller([
        { url: server.url, kind: 'sglang', engines: [0], endpoint: '/metrics' },
        { url: `${server.url}/`, kind: 'sglang', engines: [1], endpoint: '/v1/loads' },
      ]);
      await until(() => told.states.length === 2);
      expect(told.states.toSorted()).toEqual(['0 ok', '1 failing']);
      expect(told.batches.flat().every(({ engine }) => engine === 0)).toBe(true);
    });

    it('waits for a server that has no loads to tell yet', async () => {
      const server = await fake(says('{"timestamp": "t", "version": "0.5.4", "loads": []}'));
      const { told } = poller([{ url: server.url, kind: 'sglang', engines: [0] }]);
      await until(() => told.states.length > 0);
      expect(told.reasons[0]).toMatch(/expected a row for each DP rank but received none$/);
    });
  });

  it('stops at once: what is in flight is broken off, nothing is told, no timer is left', async () => {
    const before = timers();
    let closed = 0;
    const hanging = await fake((_, response) => {
      response.on('close', () => {
        closed += 1;
      });
    });
    const failing = await fake(says('', 500));
    const well = await fake(says(VLLM));
    const { made, told } = poller(
      [
        { url: hanging.url, kind: 'vllm', engines: [0] },
        { url: failing.url, kind: 'vllm', engines: [1] },
        { url: well.url, kind: 'vllm', engines: [2] },
      ],
      { maxBackoffMs: PATIENCE_MS },
    );
    await until(() => hanging.open === 1 && failing.asked.length >= 2 && told.batches.length >= 2);
    const startedMs = performance.now();
    const stopped = made.stop();
    const seen = JSON.stringify(told);
    await stopped;
    expect(performance.now() - startedMs).toBeLessThan(PATIENCE_MS / 4);
    await until(() => closed === 1);
    await pause(50);
    expect(JSON.stringify(told)).toBe(seen);
    const asked = well.asked.length;
    await pause(50);
    expect(well.asked.length).toBe(asked);
    expect(timers()).toBeLessThanOrEqual(before);
    await made.stop();
  });

  it('stops in the midst of a long wait', async () => {
    const server = await fake(says(VLLM));
    const { made, told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }], {
      intervalMs: PATIENCE_MS,
      maxBackoffMs: PATIENCE_MS,
    });
    await until(() => told.batches.length === 1);
    const startedMs = performance.now();
    await made.stop();
    expect(performance.now() - startedMs).toBeLessThan(PATIENCE_MS / 4);
  });

  it('starts again after a stop, and only once at a time', async () => {
    const server = await fake((_, response) => {
      setTimeout(() => response.end(VLLM), 10);
    });
    const { made, told } = poller([{ url: server.url, kind: 'vllm', engines: [0] }]);
    made.start();
    await until(() => told.batches.length >= 4);
    expect(server.mostOpen).toBe(1);
    // Not waited for: the old round must not go on beside the new one.
    void made.stop();
    made.start();
    const seen = told.batches.length;
    const asked = server.asked.length;
    await until(() => told.batches.length >= seen + 3);
    // One request may have been broken off.
    expect(server.asked.length - asked).toBeLessThanOrEqual(5);
    await made.stop();
    expect(made.status()[0]).toMatchObject({ state: 'ok' });
  });

  it('can be stopped from within a listener', async () => {
    const server = await fake(says(vllmText([{ ...RANK, sleepState: 'discard_all' }])));
    const told: string[] = [];
    const made: EnginePoller = new EnginePoller({
      servers: [{ url: server.url, kind: 'vllm', engines: [0] }],
      onSamples: () => told.push('samples'),
      onSleep: () => told.push('sleep'),
      onState: () => {
        told.push('state');
        void made.stop();
      },
    });
    closers.push(() => made.stop());
    made.start();
    await until(() => told.length > 0);
    await pause(50);
    expect(told).toEqual(['state']);
  });

  it('leaves a process that may end, and lets the error of a listener be seen', {
    timeout: 60_000,
  }, async () => {
    const program = `
      const http = require('node:http');
      const { EnginePoller } = require('./lib/telemetry/poller.ts');
      const server = http.createServer((_, response) => response.end(${JSON.stringify(VLLM)}));
      server.listen(0, '127.0.0.1', () => {
        let told = 0;
        const caught = [];
        process.on('uncaughtException', (error) => caught.push(error.message));
        const poller = new EnginePoller({
          servers: [{ url: 'http://127.0.0.1:' + server.address().port, kind: 'vllm', engines: [0] }],
          intervalMs: 5,
          onSamples: () => {
            told += 1;
            if (told === 1) throw new Error('mine');
            if (told < 4) return;
            console.log(JSON.stringify({ caught, state: poller.status()[0].state }));
            poller.stop();
            server.close();
          },
        });
        poller.start();
      });`;
    const child = spawn(process.execPath, ['--import', 'tsx', '-e', program], {
      cwd: ROOT,
    });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk) => {
      out += chunk;
    });
    child.stderr.on('data', (chunk) => {
      err += chunk;
    });
    closers.push(() => child.kill('SIGKILL'));
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect(err).toBe('');
    expect(JSON.parse(out)).toEqual({ caught: ['mine'], state: 'ok' });
    expect(code).toBe(0);
  });

  describe('refuses', () => {
    const server: TelemetryServer = { url: 'http://engine:8000', kind: 'vllm', engines: [0] };
    const make = (options: object) =>
      new EnginePoller({ servers: [server], onSamples: () => {}, ...options } as EnginePollerOptions);
    const servers = (change: object) => ({ servers: [{ ...server, ...change }] });
    const cases: [string, object, string][] = [
      ['an unknown option', { interval: 5 }, 'options.interval'],
      ['no servers', { servers: [] }, 'options.servers'],
      ['servers that are no list', { servers: server }, 'options.servers'],
      ['an unknown key', servers({ engine: 0 }), 'options.servers[0].engine'],
      ['no URL', servers({ url: 'engine:8000/x y' }), 'options.servers[0].url'],
      ['a file', servers({ url: 'file:///etc/passwd' }), 'options.servers[0].url'],
      ['a query', servers({ url: 'http://engine/?x=1' }), 'options.servers[0].url'],
      ['another kind', servers({ kind: 'tgi' }), 'options.servers[0].kind'],
      ['no engines', servers({ engines: [] }), 'options.servers[0].engines'],
      ['half an engine', servers({ engines: [0.5] }), 'options.servers[0].engines[0]'],
      [
        'an engine twice',
        { servers: [server, { ...server, engines: [1, 0] }] },
        'options.servers[1].engines[1]',
      ],
      ['an endpoint of another kind', servers({ endpoint: '/v1/loads' }), 'options.servers[0].endpoint'],
      [
        '/get_load without the size of the cache',
        servers({ kind: 'sglang', endpoint: '/get_load' }),
        'options.servers[0].kvTokens',
      ],
      ['a cache of nothing', servers({ kvTokens: 0 }), 'options.servers[0].kvTokens'],
      ['headers that are none', servers({ headers: ['x'] }), 'options.servers[0].headers'],
      ['a header that is a number', servers({ headers: { x: 1 } }), 'options.servers[0].headers.x'],
      ['a header of two lines', servers({ headers: { x: 'a\nb' } }), 'options.servers[0].headers.x'],
      ['no interval', { intervalMs: 0 }, 'options.intervalMs'],
      ['an endless timeout', { timeoutMs: Number.POSITIVE_INFINITY }, 'options.timeoutMs'],
      ['a timeout beyond the timers', { timeoutMs: 1e7 }, 'options.timeoutMs'],
      ['a back-off below the interval', { intervalMs: 100, maxBackoffMs: 50 }, 'options.maxBackoffMs'],
      ['jitter of a whole wait', { jitter: 1 }, 'options.jitter'],
      ['negative jitter', { jitter: -0.1 }, 'options.jitter'],
      ['a negative seed', { seed: -1 }, 'options.seed'],
      ['a clock that stands', { clock: 5 }, 'options.clock'],
      ['a fetch that is none', { fetch: 'x' }, 'options.fetch'],
      ['no listener', { onSamples: undefined }, 'options.onSamples'],
      ['a state that nobody hears', { onState: 1 }, 'options.onState'],
      ['a sleep that nobody hears', { onSleep: 1 }, 'options.onSleep'],
    ];
    it.each(cases)('%s', (_, options, field) => {
      expect(() => make(options)).toThrow(expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field }));
    });

    it('credentials, without repeating them', () => {
      for (const change of [{ url: 'http://user:secret@engine' }, { headers: { x: 'secret\nline' } }]) {
        expect(() => make(servers(change))).toThrow(
          expect.objectContaining({ message: expect.not.stringContaining('secret') }),
        );
      }
    });

    it('and changes nothing where the caller changes its own afterwards', () => {
      const engines = [0];
      const made = make({ servers: [{ ...server, engines }] });
      engines[0] = 7;
      expect(made.status()).toEqual([
        { server: { ...server, engines: [0] }, state: 'unknown', reason: 'not asked yet', failures: 0 },
      ]);
    });
  });
});

describe('the pace', () => {
  const paces = fc.record({
    intervalMs: fc.double({ min: 1, max: 1000, noNaN: true }),
    maxBackoffMs: fc.double({ min: 1000, max: 60_000, noNaN: true }),
    jitter: fc.double({ min: 0, max: 0.99, noNaN: true }),
    seed: fc.nat(),
  });
  const check = (property: (pace: typeof paces extends fc.Arbitrary<infer T> ? T : never) => void) =>
    fc.assert(fc.property(paces, property), { seed: PROPERTY_SEED, numRuns: 200 });

  it('blurs every wait by up to the jitter, both ways', () => {
    check((pace) => {
      const draw = draws(pace.seed);
      const { intervalMs, jitter } = pace;
      const waits = Array.from({ length: 200 }, () => interval(pace, draw));
      const [least, most] = [Math.min(...waits), Math.max(...waits)];
      expect(least).toBeGreaterThanOrEqual(intervalMs * (1 - jitter));
      expect(most).toBeLessThanOrEqual(intervalMs * (1 + jitter));
      // 200 draws leave an eighth at either end empty once in 10¹¹.
      expect(least).toBeLessThanOrEqual(intervalMs * (1 - 0.75 * jitter));
      expect(most).toBeGreaterThanOrEqual(intervalMs * (1 + 0.75 * jitter));
      expect(firstWait(pace, draw)).toBeLessThanOrEqual(intervalMs * jitter);
    });
  });

  it('doubles from failure to failure up to the longest back-off, jitter included', () => {
    check((pace) => {
      const { intervalMs, maxBackoffMs, jitter } = pace;
      for (const failures of [1, 2, 3, 10, 100, 1e9]) {
        const wait = backoff(pace, failures, draws(pace.seed + failures));
        expect(wait).toBeLessThanOrEqual(maxBackoffMs * (1 + 1e-12));
        const doubled = Math.min(intervalMs * 2 ** failures, maxBackoffMs / (1 + jitter));
        expect(wait).toBeGreaterThanOrEqual(doubled * (1 - jitter) * (1 - 1e-12));
        expect(wait).toBeLessThanOrEqual(doubled * (1 + jitter) * (1 + 1e-12));
      }
    });
    const still = { intervalMs: 100, maxBackoffMs: 5000, jitter: 0 };
    expect([1, 2, 3, 4, 5, 6, 7].map((failures) => backoff(still, failures, draws(1)))).toEqual([
      200, 400, 800, 1600, 3200, 5000, 5000,
    ]);
  });

  it('is the same for the same seed, and another for another', () => {
    const stream = (seed: number) => Array.from({ length: 8 }, draws(seed));
    expect(stream(7)).toEqual(stream(7));
    const streams = [0, 1, 2, 2 ** 31].map((seed) => stream(seed).join());
    expect(new Set(streams).size).toBe(4);
    expect(stream(7).every((drawn) => drawn >= 0 && drawn < 1)).toBe(true);
  });

  it('goes by the seed of the options, and sets servers apart', async () => {
    /** When each server was first asked for, in intervals: only the first wait and the jitter are in it. */
    const waits = async (seed: number | bigint) => {
      const askedMs = new Map<string, number>();
      const startedMs = performance.now();
      const servers = [0, 1].map((n) => ({ url: `http://engine${n}`, kind: 'vllm' as const, engines: [n] }));
      const { made } = poller(servers, {
        seed,
        intervalMs: 400,
        maxBackoffMs: 400,
        jitter: 0.9,
        fetch: async (input) => {
          const { host } = new URL(String(input));
          if (!askedMs.has(host)) askedMs.set(host, performance.now() - startedMs);
          return new Response(VLLM);
        },
      });
      await until(() => askedMs.size === 2);
      await made.stop();
      return servers.map(({ url }) => askedMs.get(new URL(url).host)!);
    };
    const [first, second] = [await waits(5n), await waits(2n ** 40n)];
    const expected = (seed: number, n: number) => 360 * draws(seed + n * 0x9e3779b9)();
    for (const n of [0, 1]) {
      expect(first[n]).toBeGreaterThan(expected(5, n) - EARLY_MS);
      expect(second[n]).toBeGreaterThan(expected(2 ** 8, n) - EARLY_MS);
    }
    expect(expected(5, 0)).not.toBeCloseTo(expected(5, 1), 0);
  });
});
