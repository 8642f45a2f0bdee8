/** The gateway with what it works beside: a data plane that asks it where to send, other gateways, engines that tell of their caches. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';
import { encode } from '@msgpack/msgpack';
import { afterEach, describe, expect, it } from 'vitest';
import type { Gateway } from '../../lib/gateway/gateway.js';
import { inFlight, MODEL, Stage, until } from '../support/gateway.js';
import { NO_REDIS, startRedis, stopRedis } from '../support/redis.js';
import {
  ExternalProcessor,
  pickOf,
  refusalOf,
  requestBody,
  requestHeaders,
  responseBody,
  responseHeaders,
  toStream,
} from '../unit/ext-proc-fixture.js';

const stage = new Stage();
afterEach(() => stage.end());

const MODES = ['FULL_DUPLEX_STREAMED', 'FULL_DUPLEX_STREAMED'] as const;
const hostOf = (url: string) => new URL(url).host;

function loadZeromq(): typeof import('zeromq') | undefined {
  try {
    return require('zeromq');
  } catch {
    return undefined;
  }
}

describe('as an endpoint picker', () => {
  it('sends a data plane where the proxy would send, and learns from what it shows of the answer', async () => {
    const [a, b] = [await stage.standIn({ ranks: 2 }), await stage.standIn({ ranks: 2 })];
    const servers = [a, b].map(({ url }) => ({ url, ranks: 2 }));
    const running = await stage.gateway({ servers, extProc: { port: 0 } });
    const address = running.extProcUrl!.replace('grpc://', '');
    const client = new ExternalProcessor(address, credentials.createInsecure());
    stage.onEnd(async () => client.close());
    const placed: string[] = [];
    for (let n = 0; n < 8; n += 1) {
      // None begins like another, or it would go where that one went.
      const prompt = `${n} tell me `.repeat(40);
      const body = JSON.stringify({ model: MODEL, prompt, max_tokens: 6, stream: true });
      const stream = toStream(client.Process!());
      stream.send(requestHeaders({ modes: [...MODES], headers: { 'content-type': 'application/json' } }));
      stream.send(requestBody(body, true));
      const { endpoint, headers } = pickOf(await stream.next());
      await stream.next();
      placed.push(`${endpoint} ${headers['x-data-parallel-rank']}`);
      expect(inFlight(await running.gateway.snapshot())).toBe(1);
      // The data plane carries the request to where it was told.
      const answer = await fetch(`http://${endpoint}/v1/completions`, { method: 'POST', body, headers });
      const text = await answer.text();
      stream.send(responseHeaders(200, { type: answer.headers.get('content-type')! }));
      await stream.next();
      stream.send(responseBody(text, true));
      await stream.next();
      stream.end();
      expect((await stream.status).code).toBe(0);
    }
    const places = new Set(placed);
    const ranks = [a, b].flatMap(({ url }) => [`${hostOf(url)} 0`, `${hostOf(url)} 1`]);
    expect(ranks).toEqual(expect.arrayContaining([...places]));
    expect(places.size).toBeGreaterThan(1);
    expect([...a.requests, ...b.requests].map(({ rank }) => rank).toSorted()).toEqual(
      placed.map((place) => Number(place.split(' ')[1])).toSorted(),
    );
    await until(async () => expect((await running.gateway.snapshot()).totals.finished).toBe(8));
    const { ttftMs, outputTokensPerSecond } = await running.gateway.snapshot();
    expect(ttftMs.p50).toBeGreaterThan(0);
    expect(outputTokensPerSecond).toBeGreaterThan(0);
  });

  it('refuses in the words of the proxy', async () => {
    const engine = await stage.standIn();
    const running = await stage.gateway({ servers: [{ url: engine.url }], extProc: { port: 0 } });
    const address = running.extProcUrl!.replace('grpc://', '');
    const client = new ExternalProcessor(address, credentials.createInsecure());
    stage.onEnd(async () => client.close());
    const stream = toStream(client.Process!());
    stream.send(requestHeaders({ modes: [...MODES] }));
    stream.send(requestBody('[1]', true));
    expect(refusalOf(await stream.next()).status).toBe('BadRequest');
    stream.end();
    await stream.status;
  });
});

describe.skipIf(NO_REDIS)(`several gateways${NO_REDIS ? ' (skipped: no redis-server)' : ''}`, () => {
  it('know what the others have sent, until it has its first token or its gateway has gone', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'gimbal-redis-'));
    const redis = await startRedis(folder);
    stage.onEnd(async () => {
      await stopRedis(redis);
      await rm(folder, { recursive: true });
    });
    const engine = await stage.standIn();
    const url = `unix://${join(folder, 'redis.sock')}`;
    const options = { servers: [{ url: engine.url }], redis: { url, prefix: 'test' } };
    const [one, other] = [await stage.gateway(options), await stage.gateway(options)];
    const outstanding = async (gateway: Gateway) => (await gateway.snapshot()).engines[0]!.inFlightPrefillMs;
    const metric = async (name: string) => {
      const text = await (await fetch(`${other.adminUrl}/metrics`)).text();
      return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1]);
    };
    await until(async () => expect(await metric('gimbal_ledger_gateways')).toBe(1));
    engine.pause();
    const body = JSON.stringify({ model: MODEL, prompt: 'x'.repeat(8000), max_tokens: 2, stream: true });
    const asked = fetch(`${one.url}/v1/completions`, { method: 'POST', body });
    await until(async () => expect(await outstanding(other.gateway)).toBeGreaterThan(50));
    expect(await metric('gimbal_ledger_mirrored')).toBe(1);
    expect(inFlight(await other.gateway.snapshot())).toBe(0);
    engine.resume();
    expect(await (await asked).text()).toContain('[DONE]');
    await until(async () => expect(await outstanding(other.gateway)).toBe(0));
    await one.gateway.close();
    await until(async () => expect(await metric('gimbal_ledger_gateways')).toBe(0));
  });
});

const zmq = loadZeromq();

describe.skipIf(zmq === undefined)(`KV events${zmq === undefined ? ' (skipped: no zeromq)' : ''}`, () => {
  it('bring a prompt of token ids to the rank that has it cached', async () => {
    const engine = await stage.standIn({ ranks: 2 });
    const publishers = [new zmq!.Publisher({ linger: 0 }), new zmq!.Publisher({ linger: 0 })];
    for (const publisher of publishers) await publisher.bind('tcp://127.0.0.1:*');
    stage.onEnd(async () => {
      for (const publisher of publishers) publisher.close();
    });
    const kvEvents = publishers.map(({ lastEndpoint }) => ({ endpoint: lastEndpoint! }));
    const running = await stage.gateway({ servers: [{ url: engine.url, ranks: 2, kvEvents }] });
    const heard = () =>
      running.log.filter(({ body, state }) => body === 'KV events' && state === 'ok').length;
    await until(() => expect(heard()).toBe(2));
    const prompt = Array.from({ length: 4096 }, (_, n) => 100 + n);
    let sequence = 0;
    const publish = async (rank: number) => {
      const frame = Buffer.alloc(8);
      frame.writeBigUInt64BE(BigInt(sequence));
      sequence += 1;
      const blocks = Array.from({ length: 255 }, (_, n) => n + 1);
      const event = ['BlockStored', blocks, null, prompt.slice(0, 255 * 16), 16, null, 'GPU'];
      await publishers[rank]!.send(['', frame, encode([performance.now(), [event]])]);
    };
    const ask = async () => {
      const body = JSON.stringify({ model: MODEL, prompt, max_tokens: 1 });
      await (await fetch(`${running.url}/v1/completions`, { method: 'POST', body })).text();
      return engine.requests.at(-1)!.rank;
    };
    // A subscription takes a moment to arrive; batches that nobody heard are told again.
    for (const rank of [1, 0]) {
      sequence = 0;
      await until(async () => {
        await publish(rank);
        expect(await ask()).toBe(rank);
        expect(await ask()).toBe(rank);
        expect(await ask()).toBe(rank);
      });
      // The other rank's turn: this one is told to have dropped everything.
      const frame = Buffer.alloc(8);
      frame.writeBigUInt64BE(BigInt(sequence));
      await publishers[rank]!.send(['', frame, encode([performance.now(), [['AllBlocksCleared']]])]);
    }
  });
});
