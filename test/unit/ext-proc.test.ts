/** The endpoint picker, by a gRPC client that speaks Envoy's public protos: every order of phases that Envoy has, and none. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client, credentials, status as GrpcStatus, loadPackageDefinition } from '@grpc/grpc-js';
import { fromJSON } from '@grpc/proto-loader';
import { pino } from 'pino';
import { afterEach, describe, expect, it } from 'vitest';
import { extProcService } from '../../lib/gateway/ext-proc/protocol.js';
import { RefusedError } from '../../lib/gateway/fleet.js';
import {
  ExternalProcessor,
  FakeFleet,
  type Message,
  type Mode,
  pickOf,
  refusalOf,
  requestBody,
  requestHeaders,
  responseBody,
  responseHeaders,
  type SetUp,
  type Stream,
  setUp,
  toStream,
  until,
} from './ext-proc-fixture.js';

type Running = Awaited<ReturnType<typeof setUp>>;
let running: Running | undefined;

async function start(options: SetUp = {}): Promise<Running> {
  running = await setUp(options);
  return running;
}

afterEach(async () => {
  await running?.close();
  running = undefined;
});

const FULL: [Mode, Mode] = ['FULL_DUPLEX_STREAMED', 'FULL_DUPLEX_STREAMED'];
const ENDPOINTS = ['10.0.0.1:8000', '10.0.0.2:8000'];
/** A body in three pieces. */
const PIECES = ['{"prompt": 1000', ', "stream"', ': true}'];

/** A request as it goes under full duplex, up to the pick; returns all that was told. */
async function place(stream: Stream, body = '{"prompt": 1000}', modes = FULL): Promise<Message[]> {
  stream.send(requestHeaders({ modes }));
  stream.send(requestBody(body, true));
  return [await stream.next(), await stream.next()];
}

describe('the wire', () => {
  const { Process } = extProcService();

  it('has the numbers of the fields that public protos of the tests lack, by bytes worked by hand', () => {
    // protocol_config = 11 { request_body_mode = 1: 4, response_body_mode = 2: 1 }
    const request = Process.requestDeserialize(Buffer.from('5a0408041001', 'hex'));
    expect(request.protocolConfig).toEqual({ requestBodyMode: 4, responseBodyMode: 1 });
    // request_body = 3 { response = 1 { body_mutation = 3 { streamed_response = 3 { body = 1: "hi", end_of_stream = 2: true } } } }
    const streamedResponse = { body: Buffer.from('hi'), endOfStream: true };
    const response = Process.responseSerialize({
      requestBody: { response: { bodyMutation: { streamedResponse } } },
    });
    expect(response.toString('hex')).toBe('1a0c0a0a1a081a060a0268691001');
  });

  it('is at the path that data planes call', () => {
    expect(Process.path).toBe('/envoy.service.ext_proc.v3.ExternalProcessor/Process');
  });
});

describe('a request under full duplex', () => {
  it('is picked for when its body is whole, and gets its body back piece by piece', async () => {
    const { open, fleet, inspected } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes: FULL, headers: { 'x-session-id': 's', authorization: 'Bearer k' } }));
    for (const [n, piece] of PIECES.entries()) {
      expect(fleet.inFlight).toBe(0);
      stream.send(requestBody(piece, n === PIECES.length - 1));
    }
    const pick = pickOf(await stream.next());
    expect(ENDPOINTS).toContain(pick.endpoint);
    expect(pick).toMatchObject({ byMetadata: pick.endpoint, clearsRouteCache: true });
    expect(Object.keys(pick.headers)).toEqual(['x-gateway-destination-endpoint']);
    for (const [n, piece] of PIECES.entries()) {
      const { streamed_response: sent } = (await stream.next()).request_body.response.body_mutation;
      expect([sent.body.toString(), sent.end_of_stream ?? false]).toEqual([piece, n === PIECES.length - 1]);
    }
    expect(fleet.inFlight).toBe(1);
    expect(fleet.requests).toMatchObject([{ promptTokens: 1000, streams: true }]);
    expect(inspected).toMatchObject([{ path: '/v1/completions', body: PIECES.join('') }]);
    expect(inspected[0]!.headers).toMatchObject({ 'x-session-id': 's', authorization: 'Bearer k' });
  });

  it('has its headers in either of two fields, and a header that comes twice as a list', async () => {
    const { open, inspected } = await start();
    const stream = open();
    const values = { ':path': '/v1/completions', 'x-session-id': 'sitzung', 'X-Twice': 'a' };
    const headers = Object.entries(values).map(([key, value]) => ({ key, value }));
    const twice = { key: 'x-twice', raw_value: Buffer.from('b') };
    stream.send({ request_headers: { headers: { headers: [...headers, twice] } } });
    stream.send(requestBody('{"prompt": 1}', true));
    await stream.next();
    expect(inspected[0]).toMatchObject({ path: '/v1/completions' });
    expect(inspected[0]!.headers).toMatchObject({ 'x-session-id': 'sitzung', 'x-twice': 'a, b' });
  });

  it('is held to be under full duplex where the data plane does not say', async () => {
    const { open } = await start();
    const stream = open();
    stream.send(requestHeaders());
    stream.send(requestBody('{"prompt": 1}', true));
    expect(ENDPOINTS).toContain(pickOf(await stream.next()).endpoint);
    expect((await stream.next()).request_body.response.body_mutation.streamed_response.end_of_stream).toBe(
      true,
    );
    stream.send(responseHeaders());
    expect((await stream.next()).response).toBe('response_headers');
    stream.send(responseBody('{}', true));
    const { streamed_response: sent } = (await stream.next()).response_body.response.body_mutation;
    expect(sent).toMatchObject({ end_of_stream: true });
  });

  it('may end with trailers, which come back behind the body', async () => {
    const { open, fleet } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody('{"prompt": 5}', false));
    stream.send({ request_trailers: {} });
    expect(ENDPOINTS).toContain(pickOf(await stream.next()).endpoint);
    const { streamed_response: sent } = (await stream.next()).request_body.response.body_mutation;
    expect([sent.body.toString(), sent.end_of_stream ?? false]).toEqual(['{"prompt": 5}', false]);
    expect((await stream.next()).response).toBe('request_trailers');
    stream.send(responseHeaders());
    stream.send(responseBody('{}', false));
    expect((await stream.next()).response).toBe('response_headers');
    const back = (await stream.next()).response_body.response.body_mutation.streamed_response;
    expect([back.body.toString(), back.end_of_stream ?? false]).toEqual(['{}', false]);
    expect(fleet.inFlight).toBe(1);
    stream.send({ response_trailers: {} });
    expect((await stream.next()).response).toBe('response_trailers');
    expect(fleet.inFlight).toBe(0);
  });

  it('gets a long piece back in pieces below 64 KiB', async () => {
    const { open } = await start({ limits: { bodyBytes: 1_000_000 } });
    const stream = open();
    const body = `{"prompt": 5, "text": "${'x'.repeat(200_000)}"}`;
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody(body, true));
    await stream.next();
    let back = '';
    for (let isEnd = false; !isEnd; ) {
      const { streamed_response: sent } = (await stream.next()).request_body.response.body_mutation;
      expect(sent.body.length).toBeLessThanOrEqual(64 * 1024 - 512);
      back += sent.body.toString();
      isEnd = sent.end_of_stream ?? false;
    }
    expect(back).toBe(body);
    expect(stream.hasMore).toBe(false);
  });

  it('leaves prefill at the first byte of its answer and the ledger at the last', async () => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    await place(stream, '{"prompt": 20000, "stream": true}');
    expect(fleet.prefillInFlightMs).toBeGreaterThan(100);
    stream.send(responseHeaders(200, { type: 'text/event-stream; charset=utf-8' }));
    expect((await stream.next()).response).toBe('response_headers');
    expect(fleet.prefillInFlightMs).toBeGreaterThan(100);
    stream.send(responseBody('data: {"choices":[{"text":"a"}]}\n\n', false));
    const { streamed_response: first } = (await stream.next()).response_body.response.body_mutation;
    expect(first.body.toString()).toBe('data: {"choices":[{"text":"a"}]}\n\n');
    expect(fleet).toMatchObject({ prefillInFlightMs: 0, inFlight: 1 });
    const usage = '{"prompt_tokens":19000,"completion_tokens":7}';
    stream.send(responseBody(`data: {"choices":[],"usage":${usage}}\n\n`, false));
    stream.send(responseBody('data: [DONE]\n\n', true));
    await stream.next();
    expect((await stream.next()).response_body.response.body_mutation.streamed_response.end_of_stream).toBe(
      true,
    );
    expect(fleet.inFlight).toBe(0);
    expect(outcomes).toMatchObject([
      { how: 'finished', status: 200, events: 3, usage: { promptTokens: 19_000, completionTokens: 7 } },
    ]);
    expect(outcomes[0]!.facts).toMatchObject({ model: 'm', promptTokens: 20_000 });
    expect(outcomes[0]!.totalMs).toBeGreaterThanOrEqual(outcomes[0]!.firstTokenMs!);
    expect(outcomes[0]).toMatchObject({ path: '/v1/completions', waitedMs: 0 });
    stream.end();
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect(outcomes).toHaveLength(1);
  });
});

describe('a request whose body is shown otherwise', () => {
  it('has none: it is picked for by its headers', async () => {
    const { open, fleet, inspected } = await start();
    const stream = open();
    const headers = { ':method': 'GET', ':path': '/v1/models' };
    stream.send(requestHeaders({ modes: FULL, headers, endOfStream: true }));
    const told = await stream.next();
    expect(told.response).toBe('request_headers');
    expect(ENDPOINTS).toContain(pickOf(told).endpoint);
    expect(fleet.requests).toMatchObject([{ promptTokens: 0, streams: false }]);
    expect(inspected).toEqual([]);
    stream.send(responseHeaders(200, { endOfStream: true }));
    await stream.next();
    expect(fleet.inFlight).toBe(0);
  });

  it('BUFFERED: headers go on, and the pick comes with the body', async () => {
    const { open, fleet } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes: ['BUFFERED', 'STREAMED'] }));
    const first = await stream.next();
    expect(first.response).toBe('request_headers');
    expect(first.request_headers.response).toEqual({});
    stream.send(requestBody('{"prompt": 77}', true));
    const told = await stream.next();
    expect(told.response).toBe('request_body');
    expect(pickOf(told)).toMatchObject({ byMetadata: pickOf(told).endpoint, clearsRouteCache: true });
    expect(told.request_body.response).not.toHaveProperty('body_mutation');
    expect(fleet.requests).toMatchObject([{ promptTokens: 77 }]);
  });

  it('BUFFERED before trailers: the body is whole without being the end', async () => {
    const { open } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes: ['BUFFERED', 'NONE'] }));
    await stream.next();
    stream.send(requestBody('{"prompt": 77}', false));
    expect(ENDPOINTS).toContain(pickOf(await stream.next()).endpoint);
    stream.send({ request_trailers: {} });
    expect((await stream.next()).response).toBe('request_trailers');
  });

  it.each<Mode>(['STREAMED', 'BUFFERED_PARTIAL', 'NONE'])(
    '%s: headers decide, by the length they name',
    async (mode) => {
      const { open, fleet, inspected } = await start();
      const stream = open();
      stream.send(requestHeaders({ modes: [mode, 'STREAMED'], headers: { 'content-length': '4000' } }));
      expect(ENDPOINTS).toContain(pickOf(await stream.next()).endpoint);
      expect(fleet.requests).toMatchObject([{ promptTokens: 1000, streams: false }]);
      for (const isEnd of mode === 'NONE' ? [] : [false, true]) {
        stream.send(requestBody('x', isEnd));
        expect((await stream.next()).request_body.response).toEqual({});
      }
      expect(inspected).toEqual([]);
    },
  );

  it('streams up while the answer comes down', async () => {
    const { open, fleet } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes: ['STREAMED', 'STREAMED'] }));
    await stream.next();
    const kinds: string[] = [];
    for (const message of [
      requestBody('x', false),
      responseHeaders(),
      requestBody('y', false),
      responseBody('z', false),
      requestBody('', true),
      responseBody('', true),
    ]) {
      stream.send(message);
      kinds.push((await stream.next()).response);
    }
    expect(kinds.join()).toBe(
      'request_body,response_headers,request_body,response_body,request_body,response_body',
    );
    expect(fleet.inFlight).toBe(0);
  });
});

describe('an answer', () => {
  it.each<Mode>(['STREAMED', 'BUFFERED', 'BUFFERED_PARTIAL'])('%s passes as it is', async (mode) => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    await place(stream, '{"prompt": 10}', ['FULL_DUPLEX_STREAMED', mode]);
    stream.send(responseHeaders());
    await stream.next();
    stream.send(responseBody('{"usage":{"prompt_tokens":9}}', true));
    expect((await stream.next()).response_body.response).toEqual({});
    expect(fleet.inFlight).toBe(0);
    expect(outcomes).toMatchObject([{ how: 'finished', usage: { promptTokens: 9 } }]);
  });

  it.each(['end', 'cancel'] as const)(
    'NONE ends with the stream (%s), its first token untold',
    async (how) => {
      const { open, fleet, outcomes } = await start();
      const stream = open();
      await place(stream, '{"prompt": 10, "stream": true}', ['FULL_DUPLEX_STREAMED', 'NONE']);
      expect(fleet.requests).toMatchObject([{ streams: false }]);
      stream.send(responseHeaders());
      await stream.next();
      expect(fleet.inFlight).toBe(1);
      stream[how]();
      expect((await stream.status).code).toBe(how === 'end' ? GrpcStatus.OK : GrpcStatus.CANCELLED);
      await until(() => expect(fleet.inFlight).toBe(0));
      expect(outcomes).toMatchObject([{ how: 'finished', status: 200 }]);
    },
  );

  it('NONE that never began is no finished one', async () => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    await place(stream, '{"prompt": 10}', ['FULL_DUPLEX_STREAMED', 'NONE']);
    stream.end();
    await until(() => expect(fleet.inFlight).toBe(0));
    expect(outcomes).toMatchObject([{ how: 'failed' }]);
  });

  it.each([
    [200, 'finished', 'success'],
    [400, 'finished', 'success'],
    [500, 'failed', 'success'],
    [503, 'failed', 'failure'],
    [504, 'failed', 'success'],
  ])('of status %i has %s, a %s of its server', async (status, how, health) => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    await place(stream);
    stream.send(responseHeaders(status));
    stream.send(responseBody('{"usage":{"prompt_tokens":9}}', true));
    await stream.next();
    await stream.next();
    expect(fleet.inFlight).toBe(0);
    const { target } = outcomes[0]!;
    expect(outcomes).toMatchObject([{ how, status }]);
    expect(fleet.successes).toEqual(health === 'success' ? [target.name] : []);
    expect(fleet.failures).toEqual(health === 'failure' ? [`${target.name} status ${status}`] : []);
  });

  it('that breaks off is no finished one', async () => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    await place(stream);
    stream.send(responseHeaders());
    stream.send(responseBody('{', false));
    await stream.next();
    await stream.next();
    stream.end();
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect(fleet.inFlight).toBe(0);
    expect(outcomes).toMatchObject([{ how: 'failed', status: 200 }]);
  });

  it('of another server than the one picked frees the one picked', async () => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    const { endpoint } = pickOf((await place(stream))[0]!);
    const [other] = ENDPOINTS.filter((one) => one !== endpoint);
    stream.send(responseHeaders(200, { served: other! }));
    await stream.next();
    expect(fleet).toMatchObject({ inFlight: 0, successes: [] });
    expect(outcomes).toMatchObject([{ how: 'failed' }]);
  });

  it('of the server picked keeps it', async () => {
    const { open, fleet } = await start();
    const stream = open();
    const { endpoint } = pickOf((await place(stream))[0]!);
    stream.send(responseHeaders(200, { served: endpoint }));
    await stream.next();
    expect(fleet.inFlight).toBe(1);
  });
});

describe('what a request is sent with', () => {
  it('names the rank where the server has several, and what the server wants', async () => {
    const fleet = new FakeFleet(['http://10.0.0.1:8000'], 4, { authorization: 'Bearer secret' });
    const { open } = await start({ fleet });
    const ranks = new Set<string>();
    for (let n = 0; n < 4; n++) {
      const stream = open();
      const { headers, endpoint } = pickOf((await place(stream, '{"prompt": 100000}'))[0]!);
      expect(endpoint).toBe('10.0.0.1:8000');
      expect(headers.authorization).toBe('Bearer secret');
      ranks.add(headers['x-data-parallel-rank']!);
    }
    expect([...ranks].sort()).toEqual(['0', '1', '2', '3']);
  });

  it.each([
    ['http://10.1.2.3', '10.1.2.3:80'],
    ['https://10.1.2.3', '10.1.2.3:443'],
    ['http://[fd00::1]:8000', '[fd00::1]:8000'],
  ])('%s is the endpoint %s', async (url, endpoint) => {
    const { open } = await start({ fleet: new FakeFleet([url]) });
    expect(pickOf((await place(open()))[0]!).endpoint).toBe(endpoint);
  });
});

describe('a subset', () => {
  const list = (...endpoints: string[]) => ({
    listValue: { values: endpoints.map((stringValue) => ({ stringValue })) },
  });
  const headersOnly = (subset: Message) => requestHeaders({ modes: FULL, endOfStream: true, subset });

  it.each([
    ['a list', list('10.9.9.9:8000', '10.0.0.2:8000'), '10.0.0.2:8000'],
    ['a text', { stringValue: '10.9.9.9:8000, 10.0.0.1:8000' }, '10.0.0.1:8000'],
    ['a list of texts', list('10.9.9.9:1,10.0.0.2:8000'), '10.0.0.2:8000'],
    ['an address without port', list('10.0.0.1'), '10.0.0.1:8000'],
  ])('as %s is where the request goes', async (_, subset, endpoint) => {
    const { open } = await start();
    for (let n = 0; n < 6; n++) {
      const stream = open();
      stream.send(headersOnly(subset));
      expect(pickOf(await stream.next()).endpoint).toBe(endpoint);
    }
  });

  it.each([['fd00::1'], ['[fd00::1]:8000']])('knows %s', async (endpoint) => {
    const { open } = await start({
      fleet: new FakeFleet(['http://[fd00::1]:8000', 'http://[fd00::2]:8000']),
    });
    for (let n = 0; n < 4; n++) {
      const stream = open();
      stream.send(headersOnly(list(endpoint)));
      expect(pickOf(await stream.next()).endpoint).toBe('[fd00::1]:8000');
    }
  });

  it.each([
    ['is empty', list()],
    ['has none of ours', list('10.0.0.9:8000', '10.0.0.1:9000')],
  ])('that %s is 503, at once even where all wait', async (_, subset) => {
    const { open, fleet } = await start();
    fleet.hold = true;
    const stream = open();
    stream.send(headersOnly(subset));
    expect(refusalOf(await stream.next())).toMatchObject({ status: 'ServiceUnavailable' });
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect(fleet.requests).toEqual([]);
  });
});

describe('a request that gets no engine', () => {
  it.each([
    [new RefusedError(429, 'too many wait', 7), 'TooManyRequests', 'rate_limit_error', '7'],
    [new RefusedError(503, 'no engine had room', 3), 'ServiceUnavailable', 'server_error', '3'],
  ])('is told so: %s', async (refusal, status, type, retryAfter) => {
    const { open, fleet, outcomes, refused: told } = await start();
    fleet.refusal = refusal;
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody('{"prompt": 1}', true));
    const refused = refusalOf(await stream.next());
    expect(refused).toMatchObject({ status, error: { message: refusal.message, type } });
    expect(refused.headers).toMatchObject({ 'content-type': 'application/json' });
    expect(refused.headers['retry-after']).toBe(retryAfter);
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect(outcomes).toEqual([]);
    expect(told).toEqual([`${refusal.status} /v1/completions`]);
  });

  it.each<[string, [Mode, Mode], boolean]>([
    ['under full duplex', FULL, false],
    ['buffered', ['BUFFERED', 'NONE'], true],
  ])('%s for its body is told what is wrong with it', async (_, modes, isContinued) => {
    const { open, fleet } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes }));
    if (isContinued) await stream.next();
    stream.send(requestBody('{"prompt"', true));
    const refused = refusalOf(await stream.next());
    expect(refused).toMatchObject({ status: 'BadRequest', details: 'gimbal_invalid_body' });
    expect(refused.error).toMatchObject({ message: 'body: expected JSON but received something else' });
    expect(fleet.requests).toEqual([]);
  });

  it('learns nothing of our own mistakes', async () => {
    const { open, fleet } = await start();
    fleet.refusal = new TypeError('secret');
    const stream = open();
    stream.send(requestHeaders({ modes: FULL, endOfStream: true }));
    const refused = refusalOf(await stream.next());
    expect(refused).toMatchObject({
      status: 'InternalServerError',
      error: { message: 'internal error of the gateway' },
    });
  });

  it('is too long, by what its headers say', async () => {
    const { open } = await start({ limits: { bodyBytes: 100 } });
    const stream = open();
    stream.send(requestHeaders({ modes: FULL, headers: { 'content-length': '101' } }));
    expect(refusalOf(await stream.next()).status).toBe('PayloadTooLarge');
  });

  it('is too long, by what comes', async () => {
    const { open, fleet } = await start({ limits: { bodyBytes: 100 } });
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody(`{"prompt": 1,${' '.repeat(50)}`, false));
    stream.send(requestBody(`${' '.repeat(50)}}`, true));
    expect(refusalOf(await stream.next()).status).toBe('PayloadTooLarge');
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect(fleet.requests).toEqual([]);
  });

  it('does not come to its end in time', async () => {
    const { open, fleet } = await start({ limits: { requestMs: 50 } });
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody('{', false));
    expect(refusalOf(await stream.next()).status).toBe('RequestTimeout');
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect(fleet.requests).toEqual([]);
  });
});

describe('a client that goes', () => {
  it.each(['cancel', 'end'] as const)('while its request waits (%s) leaves the queue', async (how) => {
    const { open, fleet, outcomes } = await start();
    fleet.hold = true;
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody('{"prompt": 1}', true));
    await until(() => expect(fleet.waiting.size).toBe(1));
    stream[how]();
    await until(() => expect(fleet.aborted).toEqual([fleet.requests[0]!.id]));
    expect((await stream.status).code).toBe(how === 'end' ? GrpcStatus.OK : GrpcStatus.CANCELLED);
    expect(fleet.inFlight).toBe(0);
    expect(outcomes).toEqual([]);
  });

  it.each(['cancel', 'end'] as const)('after the pick (%s) frees the engine', async (how) => {
    const { open, fleet, outcomes } = await start();
    const stream = open();
    await place(stream);
    expect(fleet.inFlight).toBe(1);
    stream[how]();
    await until(() => expect(fleet.inFlight).toBe(0));
    expect(outcomes).toMatchObject([{ how: 'failed' }]);
    expect(outcomes[0]).not.toHaveProperty('status');
  });

  it('frees the engine when its deadline is over', async () => {
    const { fleet, client, outcomes } = await start();
    const stream = toStream(client.Process!({ deadline: Date.now() + 500 }));
    await place(stream);
    expect((await stream.status).code).toBe(GrpcStatus.DEADLINE_EXCEEDED);
    await until(() => expect(fleet.inFlight).toBe(0));
    expect(outcomes).toMatchObject([{ how: 'failed' }]);
  });

  it('frees the engines when its connection breaks', async () => {
    const { fleet, port, outcomes } = await start();
    const sockets: Socket[] = [];
    const wire = createServer((socket) => {
      const onward = connect(port, '127.0.0.1');
      sockets.push(socket, onward);
      for (const one of [socket, onward]) one.on('error', () => {});
      socket.pipe(onward).pipe(socket);
    }).listen(0, '127.0.0.1');
    await once(wire, 'listening');
    const address = `127.0.0.1:${(wire.address() as AddressInfo).port}`;
    const client = new ExternalProcessor(address, credentials.createInsecure());
    await Promise.all(Array.from({ length: 10 }, () => place(toStream(client.Process!()))));
    expect(fleet.inFlight).toBe(10);
    for (const socket of sockets) socket.destroy();
    await until(() => expect(fleet.inFlight).toBe(0));
    expect(outcomes.map(({ how }) => how)).toEqual(Array(10).fill('failed'));
    client.close();
    wire.close();
  });

  it('is answered by the data plane itself while the request waits', async () => {
    const { open, fleet, outcomes } = await start();
    fleet.hold = true;
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody('{"prompt": 1}', true));
    await until(() => expect(fleet.waiting.size).toBe(1));
    stream.send(responseHeaders(408));
    expect((await stream.next()).response).toBe('response_headers');
    stream.send(responseBody('late', true));
    expect((await stream.next()).response).toBe('response_body');
    expect(fleet).toMatchObject({ inFlight: 0, successes: [], failures: [] });
    expect(fleet.aborted).toHaveLength(1);
    expect(outcomes).toEqual([]);
  });

  it('is answered by the data plane itself while the request comes', async () => {
    const { open, fleet, inspected } = await start();
    const stream = open();
    stream.send(requestHeaders({ modes: FULL }));
    stream.send(requestBody('{', false));
    stream.send(responseHeaders(408, { endOfStream: true }));
    expect((await stream.next()).response).toBe('response_headers');
    stream.send(requestBody('"prompt": 1}', true));
    stream.end();
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    expect([fleet.requests, inspected]).toEqual([[], []]);
  });
});

describe('an engine that does not answer', () => {
  it.each([
    ['at all', { firstByteMs: 50 }, [] as Message[]],
    ['to the end', { idleMs: 50 }, [responseHeaders(), responseBody('{', false)]],
  ])(
    '%s is freed, and the stream ends so that the data plane goes on without us',
    async (_, limits, answer) => {
      const { open, fleet, outcomes } = await start({ limits });
      const stream = open();
      await place(stream);
      for (const message of answer) {
        stream.send(message);
        await stream.next();
      }
      expect((await stream.status).code).toBe(GrpcStatus.OK);
      expect(fleet.inFlight).toBe(0);
      expect(outcomes).toMatchObject([{ how: 'failed' }]);
    },
  );

  it('but for pauses is waited for, however long it takes in all', async () => {
    const { open, fleet, outcomes } = await start({ limits: { idleMs: 2000 } });
    const stream = open();
    await place(stream);
    stream.send(responseHeaders());
    await stream.next();
    for (let n = 0; n < 6; n++) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      stream.send(responseBody('x', n === 5));
      await stream.next();
    }
    expect(fleet.inFlight).toBe(0);
    expect(outcomes).toMatchObject([{ how: 'finished' }]);
  });

  it('in sight may take its time', async () => {
    const { open, fleet } = await start({ limits: { idleMs: 30 } });
    const stream = open();
    await place(stream, '{"prompt": 10}', ['FULL_DUPLEX_STREAMED', 'NONE']);
    stream.send(responseHeaders());
    await stream.next();
    await new Promise((resolve) => setTimeout(resolve, 150));
    expect(fleet.inFlight).toBe(1);
  });
});

describe('a data plane that does not keep to the protocol', () => {
  const picked = [requestHeaders({ modes: FULL }), requestBody('{"prompt": 1}', true)];
  it.each<[string, number, Message[]]>([
    ['a body first', GrpcStatus.INVALID_ARGUMENT, [requestBody('{}', true)]],
    ['trailers first', GrpcStatus.INVALID_ARGUMENT, [{ request_trailers: {} }]],
    ['an answer first', GrpcStatus.INVALID_ARGUMENT, [responseHeaders()]],
    ['an answer’s body first', GrpcStatus.INVALID_ARGUMENT, [responseBody('', true)]],
    ['headers twice', GrpcStatus.INVALID_ARGUMENT, [...picked, requestHeaders()]],
    ['a body after its end', GrpcStatus.INVALID_ARGUMENT, [...picked, requestBody('x', true)]],
    ['nothing', GrpcStatus.INVALID_ARGUMENT, [{}]],
    ['nothing later', GrpcStatus.INVALID_ARGUMENT, [...picked, {}]],
    [
      'trailers without the buffered body',
      GrpcStatus.INVALID_ARGUMENT,
      [requestHeaders({ modes: ['BUFFERED', 'NONE'] }), { request_trailers: {} }],
    ],
    [
      'that it only watches',
      GrpcStatus.UNIMPLEMENTED,
      [{ ...requestHeaders({ endOfStream: true }), observability_mode: true }],
    ],
    ['a mode of later', GrpcStatus.UNIMPLEMENTED, [requestHeaders({ modes: ['GRPC' as Mode, 'NONE'] })]],
  ])('sends %s and is told so', async (_, code, messages) => {
    const { open, fleet } = await start();
    const stream = open();
    for (const message of messages) stream.send(message);
    expect((await stream.status).code).toBe(code);
    expect(fleet.inFlight).toBe(0);
  });

  it('sends bytes that are no message, and others are served', async () => {
    const { open, fleet, port } = await start();
    const bystander = open();
    await place(bystander);
    const raw = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
    const asIs = (bytes: Buffer) => bytes;
    const call = raw.makeBidiStreamRequest(extProcService().Process.path, asIs, asIs);
    const stream = toStream(call as never);
    call.write(Buffer.from('ffffffffffffffffffff', 'hex'));
    expect((await stream.status).code).not.toBe(GrpcStatus.OK);
    raw.close();
    bystander.send(responseHeaders(200, { endOfStream: true }));
    expect((await bystander.next()).response).toBe('response_headers');
    expect(fleet.inFlight).toBe(0);
  });
});

describe('the server', () => {
  it('serves 500 streams at once', async () => {
    const { open, fleet, outcomes } = await start();
    const streams = Array.from({ length: 500 }, open);
    await Promise.all(
      streams.map(async (stream, n) => {
        const [, body] = await place(stream, `{"prompt": ${n + 1}}`);
        const { streamed_response: sent } = body!.request_body.response.body_mutation;
        expect(sent.body.toString()).toBe(`{"prompt": ${n + 1}}`);
      }),
    );
    expect(fleet.inFlight).toBe(500);
    const counts = fleet.scheduler.pressure().map(({ inFlight }) => inFlight);
    expect(Math.min(...counts)).toBeGreaterThan(150);
    await Promise.all(
      streams.map(async (stream, n) => {
        stream.send(responseHeaders());
        stream.send(responseBody(`answer ${n}`, true));
        await stream.next();
        const { streamed_response: sent } = (await stream.next()).response_body.response.body_mutation;
        expect(sent.body.toString()).toBe(`answer ${n}`);
        stream.end();
        expect((await stream.status).code).toBe(GrpcStatus.OK);
      }),
    );
    expect(fleet.inFlight).toBe(0);
    expect(outcomes.filter(({ how }) => how === 'finished')).toHaveLength(500);
  });

  it.each([
    ['and does not wait for ever', 1500],
    ['and waits no longer than it is there', 600_000],
  ])('reads no faster than it is read, %s', async (_, idleMs) => {
    const { fleet, port, outcomes } = await start({ limits: { idleMs } });
    const session = connectHttp2(`http://127.0.0.1:${port}`).on('error', () => {});
    const { path, requestSerialize } = ExternalProcessor.service.Process!;
    const call = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc' });
    call.on('error', () => {});
    const write = (message: Message) => {
      const bytes = requestSerialize(message);
      const head = Buffer.alloc(5);
      head.writeUInt32BE(bytes.length, 1);
      return new Promise<true>((resolve) => call.write(Buffer.concat([head, bytes]), () => resolve(true)));
    };
    await write(requestHeaders({ modes: FULL, endOfStream: true }));
    await until(() => expect(fleet.inFlight).toBe(1));
    await write(responseHeaders());
    const piece = responseBody('x'.repeat(65_536), false);
    let written = 0;
    for (; written < 1000; written++) {
      const isWritten = await Promise.race([
        write(piece),
        new Promise((resolve) => setTimeout(resolve, 500)),
      ]);
      if (isWritten !== true) break;
    }
    expect(written).toBeLessThan(300);
    if (idleMs > 1500) session.destroy();
    await until(() => expect(fleet.inFlight).toBe(0));
    expect(outcomes).toMatchObject([{ how: 'failed' }]);
    session.destroy();
  });

  it('says how it is by the standard health service', async () => {
    let isReady = true;
    const { port } = await start({ isReady: () => isReady });
    const health = healthClient(port);
    const ofPicker = ['', 'readiness', 'envoy.service.ext_proc.v3.ExternalProcessor'];
    for (const service of ['liveness', ...ofPicker]) expect(await health(service)).toBe('SERVING');
    isReady = false;
    for (const service of ofPicker) expect(await health(service)).toBe('NOT_SERVING');
    expect(await health('liveness')).toBe('SERVING');
    await expect(health('grpc.other')).rejects.toMatchObject({ code: GrpcStatus.NOT_FOUND });
  });

  it('drains: what is in flight ends, and nothing new comes', async () => {
    const { open, fleet, server, port } = await start();
    const stream = open();
    await place(stream);
    let isDrained = false;
    const drained = server.drain().then(() => {
      isDrained = true;
    });
    const late = new ExternalProcessor(`127.0.0.1:${port}`, credentials.createInsecure());
    const refused = toStream(late.Process!());
    refused.send(requestHeaders({ endOfStream: true }));
    expect((await refused.status).code).toBe(GrpcStatus.UNAVAILABLE);
    late.close();
    expect(isDrained).toBe(false);
    stream.send(responseHeaders(200, { endOfStream: true }));
    await stream.next();
    stream.end();
    expect((await stream.status).code).toBe(GrpcStatus.OK);
    await drained;
    expect(fleet.inFlight).toBe(0);
  });

  it('cuts off what is in flight when it has drained for long enough', async () => {
    const { open, fleet, server, outcomes } = await start();
    const stream = open();
    await place(stream);
    await server.drain(50);
    expect((await stream.status).code).not.toBe(GrpcStatus.OK);
    await until(() => expect(fleet.inFlight).toBe(0));
    expect(outcomes).toMatchObject([{ how: 'failed' }]);
  });

  it('logs a line for each request, with its id and its trace', async () => {
    const lines: string[] = [];
    const log = pino({ level: 'info', base: null }, { write: (line) => void lines.push(line) });
    const { open, fleet } = await start({ log });
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`;
    const headers = { traceparent, 'x-request-id': 'r1' };
    const stream = open();
    stream.send(requestHeaders({ modes: FULL, headers }));
    stream.send(requestBody('{"prompt": 1}', true));
    await stream.next();
    stream.send(responseHeaders(200, { endOfStream: true }));
    await stream.next();
    await stream.next();
    fleet.refusal = new RefusedError(429, 'full', 1);
    const other = open();
    other.send(requestHeaders({ modes: FULL, headers: { 'x-request-id': 'r2' }, endOfStream: true }));
    await other.status;
    const traced = { requestId: 'r1', traceId: 'a'.repeat(32), spanId: 'b'.repeat(16) };
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { ...traced, path: '/v1/completions', status: 200, how: 'finished', model: 'm' },
      { requestId: 'r2', path: '/v1/completions', status: 429, reason: 'full' },
    ]);
    expect(lines.join()).not.toContain('prompt');
  });

  it('warns of servers that data planes cannot be sent to', async () => {
    const lines: string[] = [];
    const log = pino({ level: 'warn' }, { write: (line) => void lines.push(line) });
    const fleet = new FakeFleet(['http://engine-1:8000', 'http://10.0.0.1:8000', 'http://[fd00::1]:8000'], 2);
    await start({ log, fleet });
    expect(lines.map((line) => JSON.parse(line).server)).toEqual(['http://engine-1:8000']);
  });

  it('takes buffered bodies as long as its limit, and listens on IPv6', async () => {
    const { server, fleet } = await start({ limits: { bodyBytes: 8_000_000 } });
    const port = await server.listen('::1', 0);
    const client = new ExternalProcessor(`[::1]:${port}`, credentials.createInsecure());
    const stream = toStream(client.Process!());
    stream.send(requestHeaders({ modes: ['BUFFERED', 'NONE'] }));
    await stream.next();
    stream.send(requestBody(`{"prompt": 5}${' '.repeat(7_500_000)}`, true));
    expect(ENDPOINTS).toContain(pickOf(await stream.next()).endpoint);
    expect(fleet.inFlight).toBe(1);
    client.close();
  });

  it('names the address that it cannot have', async () => {
    const { port } = await start();
    const other = await setUp();
    await expect(other.server.listen('127.0.0.1', port)).rejects.toMatchObject({
      code: 'GIMBAL_IO',
      field: `127.0.0.1:${port}`,
    });
    await other.close();
  });
});

describe('TLS', () => {
  const hasOpenssl = (() => {
    try {
      execFileSync('openssl', ['version']);
      return true;
    } catch {
      return false;
    }
  })();

  it.skipIf(!hasOpenssl)('serves with a certificate of its own making (needs openssl)', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gimbal-tls-'));
    const [keyFile, certFile] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
    const keyKind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    execFileSync(
      'openssl',
      ['req', '-x509', '-days', '2', ...keyKind, ...subject, '-keyout', keyFile, '-out', certFile],
      { stdio: 'ignore' },
    );
    const [key, cert] = [readFileSync(keyFile), readFileSync(certFile)];
    rmSync(folder, { recursive: true });
    const { port, fleet } = await start({ credentials: { cert, key } });
    const client = new ExternalProcessor(`localhost:${port}`, credentials.createSsl(cert));
    const stream = toStream(client.Process!());
    await place(stream);
    expect(fleet.inFlight).toBe(1);
    client.close();
    const plain = new ExternalProcessor(`127.0.0.1:${port}`, credentials.createInsecure());
    const refused = toStream(plain.Process!());
    expect((await refused.status).code).toBe(GrpcStatus.UNAVAILABLE);
    plain.close();
  });

  it('says what is wrong with a certificate', async () => {
    const bad = Buffer.from('nonsense');
    await expect(setUp({ credentials: { cert: bad, key: bad } })).rejects.toMatchObject({
      code: 'GIMBAL_INVALID_INPUT',
      field: 'credentials',
    });
  });
});

/** By a proto of its own: https://github.com/grpc/grpc/blob/master/src/proto/grpc/health/v1/health.proto. */
function healthClient(port: number): (service: string) => Promise<string> {
  const values = { UNKNOWN: 0, SERVING: 1, NOT_SERVING: 2, SERVICE_UNKNOWN: 3 };
  const v1 = {
    Health: { methods: { Check: { requestType: 'Asked', responseType: 'Told' } } },
    Asked: { fields: { service: { type: 'string', id: 1 } } },
    Told: { fields: { status: { type: 'Status', id: 1 } }, nested: { Status: { values } } },
  };
  // biome-ignore lint/suspicious/noExplicitAny: the loader's types know no enum beside messages
  const nested: any = { grpc: { nested: { health: { nested: { v1: { nested: v1 } } } } } };
  // biome-ignore lint/suspicious/noExplicitAny: a client made at run time
  const { Health } = (loadPackageDefinition(fromJSON({ nested }, { enums: String })) as any).grpc.health.v1;
  const client = new Health(`127.0.0.1:${port}`, credentials.createInsecure());
  return (service) =>
    new Promise((resolve, reject) => {
      client.Check({ service }, (error: Error | null, told: { status: string }) => {
        if (error === null) resolve(told.status);
        else reject(error);
      });
    });
}
