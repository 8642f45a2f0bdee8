/**
 * What goes wrong between clients, gateway and engines: whatever can be answered is answered, once; what cannot is told; and nothing
 * stays behind, on either side.
 */
import net from 'node:net';
import OpenAI from 'openai';
import { afterEach, describe, expect, it } from 'vitest';
import { draws } from '../../lib/telemetry/pace.js';
import type { Fault } from '../stand-in/faults.js';
import type { StandIn } from '../stand-in/server.js';
import {
  type Answered,
  ask,
  chat,
  clientOf,
  configOf,
  contentOf,
  deadUrl,
  errorIn,
  eventsIn,
  inFlight,
  MODEL,
  metric,
  raw,
  Stage,
  saying,
  scripted,
  streamedText,
  until,
} from '../support/gateway.js';

const stage = new Stage();
afterEach(() => stage.end());

const SEED = Number(process.env.GIMBAL_TEST_SEED ?? 20_260_101);
/** How often a fault befalls that is there to stay. */
const ALWAYS = { times: Number.POSITIVE_INFINITY };
/** Tokens of an answer that is far from its end when the test acts. */
const LONG = 4000;

const outcomes = ({ requests }: StandIn) => requests.map(({ outcome }) => outcome);
const serversOf = (engines: readonly { url: string }[]) => engines.map(({ url }) => ({ url }));

/** Waits until a number is above zero and grows no more. */
async function atRest(number: () => number): Promise<void> {
  let before = 0;
  do {
    before = number();
    await new Promise((resolve) => setTimeout(resolve, 500));
  } while (before === 0 || before !== number());
}

/** Asks for a chat in one piece or streamed, and gives its text. */
async function told(url: string, content: string, streams: boolean, tokens = 8): Promise<boolean> {
  const { body, answer } = chat(content, tokens, streams ? { stream: true } : {});
  const answered = await ask(url, body);
  return (streams ? streamedText(answered) : contentOf(answered)) === answer;
}

describe('an engine that fails before it has said anything', () => {
  const faults: [string, Fault | undefined][] = [
    ['is not there', undefined],
    ['answers 500', { kind: 'status', status: 500 }],
    ['answers 502', { kind: 'status', status: 502 }],
    ['answers 503', { kind: 'status', status: 503 }],
    ['answers 429', { kind: 'status', status: 429, retryAfter: '1' }],
    ['speaks no HTTP', { kind: 'garbage', what: 'not-http' }],
    ['answers with a page', { kind: 'garbage', what: 'html' }],
    ['answers with half of a document', { kind: 'garbage', what: 'truncated-json' }],
    ['says more than it sends', { kind: 'garbage', what: 'too-long' }],
    ['says less than it sends', { kind: 'garbage', what: 'too-short' }],
    ['dies as it is asked', { kind: 'die', after: 'request' }],
    ['dies after its headers', { kind: 'die', after: 'headers' }],
    ['hangs as it is asked', { kind: 'hang', after: 'request' }],
    ['hangs after its headers', { kind: 'hang', after: 'headers' }],
  ];

  it.each(faults)('%s: others answer in its stead, once', async (_, fault) => {
    const [bad, good] = [await stage.standIn(), await stage.standIn()];
    if (fault === undefined) await bad.kill();
    else bad.fault(fault, ALWAYS);
    const hangs = fault?.kind === 'hang';
    const { url, gateway } = await stage.gateway({
      servers: serversOf([bad, good]),
      policy: 'round-robin',
      limits: { firstByteMs: hangs ? 1000 : 20_000 },
    });
    const asked = Array.from({ length: 6 }, (_, n) => told(url, `${n}`, n % 2 === 0));
    expect(await Promise.all(asked)).toEqual(Array(6).fill(true));
    expect(good.requests).toHaveLength(6);
    expect(outcomes(bad)).not.toContain('finished');
    if (fault !== undefined) expect(bad.requests.length).toBeGreaterThan(0);
    const { totals } = await gateway.snapshot();
    expect(totals).toMatchObject({ requests: 6, finished: 6, failed: 0 });
    expect(totals.retried).toBeGreaterThan(0);
  });

  it('is a half-made answer in one piece as well, whatever it dies of', async () => {
    const [bad, good] = [await stage.standIn(), await stage.standIn()];
    bad.fault({ kind: 'die', after: 3 }, ALWAYS);
    const { url } = await stage.gateway({ servers: serversOf([bad, good]), policy: 'round-robin' });
    for (let n = 0; n < 3; n++) expect(await told(url, `${n}`, false)).toBe(true);
    expect(good.requests).toHaveLength(3);
  });

  it('and was not even reached, costs no attempt', async () => {
    const good = await stage.standIn();
    const { url, gateway } = await stage.gateway({
      servers: [{ url: await deadUrl() }, { url: good.url }],
      policy: 'round-robin',
      retries: 0,
    });
    const asked = Array.from({ length: 4 }, (_, n) => told(url, `${n}`, n % 2 === 0));
    expect(await Promise.all(asked)).toEqual(Array(4).fill(true));
    expect((await gateway.snapshot()).totals.retried).toBeGreaterThan(0);
  });

  it('stands aside, and gets requests again when its telemetry does', async () => {
    const [bad, good] = [await stage.standIn(), await stage.standIn()];
    const { url, gateway, log } = await stage.gateway({ servers: serversOf([bad, good]) });
    const stateOfBad = async () => (await gateway.snapshot()).engines[0]!.state;
    await bad.kill();
    await until(async () => {
      await told(url, 'x', false);
      expect(await stateOfBad()).toBe('asleep');
    });
    await until(() => expect(log.some(({ body }) => body === 'telemetry fails')).toBe(true));
    await bad.restart();
    await until(async () => expect(await stateOfBad()).toBe('active'));
    const before = bad.requests.length;
    await until(async () => {
      await told(url, 'x', false);
      expect(bad.requests.length).toBeGreaterThan(before);
    });
  });
});

describe('a stream that has begun', () => {
  const begun: [string, Fault, string][] = [
    ['whose engine dies', { kind: 'die', after: 4 }, 'error'],
    ['whose engine hangs', { kind: 'hang', after: 4 }, 'aborted'],
  ];

  it.each(begun)('%s: is broken off, never begun again', async (_, fault, outcome) => {
    const engines = [await stage.standIn(), await stage.standIn()];
    for (const engine of engines) engine.fault(fault, ALWAYS);
    const { url, adminUrl, log } = await stage.gateway({
      servers: serversOf(engines),
      limits: { idleMs: 500 },
    });
    const { body, answer } = chat('x', 40, { stream: true });
    const answered = await ask(url, body);
    expect(answered.complete).toBe(false);
    const text = eventsIn(answered.body).map(({ choices }) => choices[0]?.delta.content ?? '');
    expect(text).toHaveLength(4);
    expect(answer.startsWith(text.join(''))).toBe(true);
    const asked = engines.flatMap(({ requests }) => requests);
    expect(asked).toHaveLength(1);
    await until(() => expect(asked[0]!.outcome).toBe(outcome));
    expect(await metric(adminUrl, 'gimbal_broken_streams_total')).toBe(1);
    const line = { body: 'request', status: 0, attempts: 1 };
    await until(() => expect(log).toContainEqual(expect.objectContaining(line)));
    const streamed = clientOf(url).chat.completions.create({
      model: MODEL,
      messages: saying('y'),
      stream: true,
    });
    const drained = (async () => {
      for await (const _ of await streamed);
    })();
    await expect(drained).rejects.toThrow();
  });

  it('passes what the engine says of its own death', async () => {
    const engine = await stage.standIn();
    engine.fault({ kind: 'error-event', after: 3 });
    const { url } = await stage.gateway({ servers: serversOf([engine]) });
    const { body, complete } = await ask(url, chat('x', 40, { stream: true }).body);
    expect(complete).toBe(true);
    expect(body.toString()).toContain('"EngineCore encountered an issue.');
    expect(engine.requests).toHaveLength(1);
  });
});

describe('where every engine fails', () => {
  it('the client is told so, after as many attempts as it was said', async () => {
    for (const retries of [0, 2]) {
      const engines = [await stage.standIn(), await stage.standIn(), await stage.standIn()];
      for (const engine of engines) engine.fault({ kind: 'die', after: 'request' }, ALWAYS);
      const { url } = await stage.gateway({ servers: serversOf(engines), retries });
      const answered = await ask(url, chat('x').body);
      expect(errorIn(answered)).toEqual({ status: 502, type: 'server_error', code: 'engine_failed' });
      expect(engines.map(({ requests }) => requests.length).sort()).toEqual(
        retries === 0 ? [0, 0, 1] : [1, 1, 1],
      );
      const client = clientOf(url).chat.completions.create({ model: MODEL, messages: saying('y') });
      await expect(client).rejects.toBeInstanceOf(OpenAI.InternalServerError);
    }
  });

  it.each([500, 503, 429])(
    'with %d, it gets what the last one said, each being asked once',
    async (status) => {
      const engines = [await stage.standIn(), await stage.standIn()];
      const fault: Fault = { kind: 'status', status, retryAfter: '7', message: 'As told.' };
      for (const engine of engines) engine.fault(fault, ALWAYS);
      const { url } = await stage.gateway({ servers: serversOf(engines), retries: 9 });
      const { status: got, body, headers } = await ask(url, chat('x').body);
      expect(got).toBe(status);
      expect(JSON.parse(body.toString()).error.message).toBe('As told.');
      expect(headers['retry-after']).toBe('7');
      expect(engines.map(({ requests }) => requests.length)).toEqual([1, 1]);
    },
  );

  it('JSON with space around it is none of the garbage', async () => {
    const text = '\n \r\n{"choices": []}\n';
    const engine = await scripted(stage, (response) =>
      response.writeHead(200, { 'content-type': 'application/json' }).end(text),
    );
    const { url } = await stage.gateway({ servers: serversOf([engine]) });
    expect((await ask(url, chat('x').body)).body.toString()).toBe(text);
  });

  it('garbage is never passed on', async () => {
    const engine = await stage.standIn();
    engine.fault({ kind: 'garbage', what: 'html' }, ALWAYS);
    const { url } = await stage.gateway({ servers: serversOf([engine]), retries: 0 });
    expect(errorIn(await ask(url, chat('x').body))).toMatchObject({ status: 502, code: 'engine_failed' });
    const models = await ask(await deadEnd(), '', { method: 'GET', path: '/v1/models' });
    expect(errorIn(models)).toMatchObject({ status: 502, code: 'engine_failed' });
  });

  async function deadEnd(): Promise<string> {
    return (await stage.gateway({ servers: [{ url: await deadUrl() }] })).url;
  }
});

describe('a client that goes away', () => {
  const gone = (answer: Promise<unknown>) => expect(answer).rejects.toMatchObject({ code: 'ABORT_ERR' });

  it('while it waits, leaves the queue, and no engine hears of it', async () => {
    const engine = await stage.standIn();
    const { url, gateway } = await stage.gateway({
      servers: serversOf([engine]),
      admission: { maxInFlight: 1 },
    });
    engine.pause();
    const first = ask(url, chat('first').body);
    await until(async () => expect(inFlight(await gateway.snapshot())).toBe(1));
    const leaving = new AbortController();
    const second = ask(url, chat('second').body, { signal: leaving.signal });
    await until(async () => expect((await gateway.snapshot()).queue.size).toBe(1));
    leaving.abort();
    await gone(second);
    await until(async () => expect((await gateway.snapshot()).queue.size).toBe(0));
    engine.resume();
    expect(contentOf(await first)).toBe(chat('first').answer);
    expect(engine.requests).toHaveLength(1);
  });

  it.each([false, true])('before it has an answer, takes its request back (streamed: %s)', async (stream) => {
    const engine = await stage.standIn();
    const { url, gateway } = await stage.gateway({ servers: serversOf([engine]) });
    engine.pause();
    const leaving = new AbortController();
    const asked = ask(url, chat('x', 8, { stream }).body, { signal: leaving.signal });
    await until(() => expect(outcomes(engine)).toEqual(['open']));
    leaving.abort();
    await gone(asked);
    await until(() => expect(outcomes(engine)).toEqual(['aborted']));
    await until(async () => expect(inFlight(await gateway.snapshot())).toBe(0));
    expect(engine.ranks[0]!.waiting).toHaveLength(0);
  });

  it('in the midst of a stream, ends it at the engine', async () => {
    const engine = await stage.standIn({ timing: { timeScale: 1 } });
    const { url, log } = await stage.gateway({ servers: serversOf([engine]) });
    const { body } = chat('x', LONG, { stream: true });
    const answered = await ask(url, body, { onData: (_, response) => response.destroy() });
    expect(answered.complete).toBe(false);
    await until(() => expect(outcomes(engine)).toEqual(['aborted']));
    expect(engine.requests[0]!.outputTokens).toBeLessThan(LONG);
    const gone = { status: 0, reason: 'the client has gone' };
    await until(() => expect(log).toContainEqual(expect.objectContaining(gone)));
  });

  it('before it has said all, is forgotten', async () => {
    const engine = await stage.standIn();
    const { url, log } = await stage.gateway({ servers: serversOf([engine]) });
    const socket = net.connect(Number(new URL(url).port), '127.0.0.1');
    socket.write('POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"model"');
    socket.end();
    socket.resume();
    await until(() => expect(log.map(({ reason }) => reason)).toContain('the client has gone'));
    expect(engine.requests).toEqual([]);
  });
});

describe('a connection with several requests', () => {
  it('that ends takes all of them with it, also those whose turn it is not yet', async () => {
    const engine = await stage.standIn();
    const { url, gateway } = await stage.gateway({ servers: serversOf([engine]) });
    engine.pause();
    const body = JSON.stringify(chat('x').body);
    const head = `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n`;
    const socket = net.connect(Number(new URL(url).port), '127.0.0.1');
    for (let n = 0; n < 20; n++) socket.write(head + body);
    await until(() => expect(outcomes(engine)).toEqual(Array(20).fill('open')));
    socket.destroy();
    await until(() => expect(outcomes(engine)).toEqual(Array(20).fill('aborted')));
    await until(async () => expect(inFlight(await gateway.snapshot())).toBe(0));
  });
});

describe('a client that reads slowly', () => {
  const PIECE = Buffer.from(`data: "${'x'.repeat(64 * 1024 - 9)}"\n\n`);
  const PIECES = 2048;
  /** What sockets may hold between an engine and a client that does not read. */
  const MOST_HELD_BYTES = 48 * 1024 * 1024;

  /** An engine that streams 128 MiB as fast as it is let. */
  async function torrent(options: object = {}) {
    const seen = { written: 0, closed: false };
    const engine = await scripted(stage, (response) => {
      response.once('close', () => {
        seen.closed = true;
      });
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      const pour = () => {
        while (seen.written < PIECES * PIECE.length) {
          seen.written += PIECE.length;
          if (!response.write(PIECE)) {
            response.once('drain', pour);
            return;
          }
        }
        response.end();
      };
      pour();
    });
    return { seen, ...(await stage.gateway({ servers: [{ url: engine.url }], ...options })) };
  }

  it('holds back the engine, and gets all of it in the end', async () => {
    const { seen, url } = await torrent();
    const { body } = chat('x', 8, { stream: true });
    let reading: () => void = () => undefined;
    let got = 0;
    const answered = ask(url, body, {
      onData: (piece, response) => {
        got += piece.length;
        if (got > piece.length) return;
        response.pause();
        reading = () => response.resume();
      },
    });
    // Where nothing is held back, all of it is written at once.
    await atRest(() => (got === 0 ? 0 : seen.written));
    expect(seen.written).toBeLessThan(MOST_HELD_BYTES);
    reading();
    const { complete, body: stream } = await answered;
    expect({ complete, bytes: stream.length }).toEqual({ complete: true, bytes: PIECES * PIECE.length });
  });

  it('so slowly that it reads nothing, is dropped, and its request ended', async () => {
    const { seen, url, gateway, log } = await torrent({ limits: { stalledClientMs: 300 } });
    const answered = ask(url, chat('x', 8, { stream: true }).body, {
      onData: (_, response) => response.pause(),
    });
    await until(() => expect(seen.closed).toBe(true));
    expect(seen.written).toBeLessThan(MOST_HELD_BYTES);
    await until(async () => expect(inFlight(await gateway.snapshot())).toBe(0));
    expect(log.map(({ reason }) => reason)).toContain('the client has read nothing for 300 ms');
    void answered;
  });

  /** A client that asks for 36 MB in 40 answers on one connection, and does not read. */
  async function asksForMuch(limits: object) {
    const answer = JSON.stringify({ choices: [], padding: 'x'.repeat(900 * 1024) });
    const engine = await scripted(stage, (response) => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(answer);
    });
    const running = await stage.gateway({ servers: [{ url: engine.url }], limits });
    const body = JSON.stringify(chat('x').body);
    const head = `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n`;
    const socket = net.connect(Number(new URL(running.url).port), '127.0.0.1');
    socket.once('error', () => undefined);
    stage.onEnd(async () => socket.destroy());
    for (let n = 0; n < 40; n++) socket.write(head + body);
    // All are answered, with more than sockets hold.
    await atRest(() => engine.asked.length);
    return { socket, answer, ...running };
  }

  it('where the whole answers wait for it, is dropped as well', async () => {
    const { gateway, log } = await asksForMuch({ stalledClientMs: 300 });
    await gateway.close();
    expect(log.map(({ body }) => body)).not.toContain('requests are broken off');
  });

  it('gets what is written already, also from a gateway that goes down', async () => {
    const { socket, answer, gateway } = await asksForMuch({});
    const closed = gateway.close();
    let bytes = 0;
    socket.on('data', (piece: Buffer) => {
      bytes += piece.length;
    });
    await closed;
    await until(() => expect(socket.closed).toBe(true));
    expect(bytes).toBeGreaterThan(answer.length);
    const [whole, rest] = [Math.floor(bytes / answer.length), bytes % answer.length];
    expect(rest, 'heads of whole answers').toBeLessThan(whole * 1024);
  });
});

describe('a client that is slow to speak', () => {
  const slow: [string, string][] = [
    ['first word', ''],
    ['headers', 'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-more: '],
    ['body', 'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{'],
    ['body that is refused already', `POST /v1/images HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{`],
  ];

  it.each(slow)('its %s: is sent away', async (_, start) => {
    const engine = await stage.standIn();
    const { url } = await stage.gateway({
      servers: serversOf([engine]),
      limits: { headersMs: 200, requestMs: 300 },
    });
    expect(await raw(url, start)).toMatch(/^HTTP\/1\.1 40[48] /);
    expect(engine.requests).toEqual([]);
  });
});

describe('the queue', () => {
  /** One engine that stands still with one request on it. */
  async function occupied(options: { queue?: object; admission?: object } = {}) {
    const engine = await stage.standIn();
    const running = await stage.gateway({
      servers: serversOf([engine]),
      ...options,
      admission: { maxInFlight: 1, ...options.admission },
    });
    engine.pause();
    const answers = [ask(running.url, chat('first').body)];
    await until(async () => expect(inFlight(await running.gateway.snapshot())).toBe(1));
    const wait = async (content: string) => {
      answers.push(ask(running.url, chat(content).body));
      const waiting = answers.length - 1;
      await until(async () => expect((await running.gateway.snapshot()).queue.size).toBe(waiting));
    };
    return { engine, answers, wait, ...running };
  }

  it('lets short prompts overtake long ones, and loses none', async () => {
    const { engine, answers, wait } = await occupied();
    const prompts = ['long '.repeat(40_000), 'middling '.repeat(4000), 'short', 'short too'];
    for (const prompt of prompts) await wait(prompt);
    engine.resume();
    const texts = (await Promise.all(answers)).map(contentOf);
    expect(texts).toEqual(['first', ...prompts].map((prompt) => chat(prompt).answer));
    const order = engine.requests.map(({ body }) => (body as typeof chatBody).messages[0]!.content);
    const [long, middling, short, shortToo] = prompts;
    expect(order).toEqual(['first', short, shortToo, middling, long]);
  });
  const chatBody = chat('').body;

  it('refuses what is beyond its bound, and says when to come back', async () => {
    const { engine, answers, wait, url, gateway } = await occupied({ queue: { capacity: 2 } });
    await wait('a');
    await wait('b');
    const refused = await ask(url, chat('c').body);
    expect(errorIn(refused)).toEqual({ status: 429, type: 'rate_limit_error', code: 'queue_full' });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    const client = clientOf(url).chat.completions.create({ model: MODEL, messages: saying('d') });
    await expect(client).rejects.toBeInstanceOf(OpenAI.RateLimitError);
    engine.resume();
    for (const { status } of await Promise.all(answers)) expect(status).toBe(200);
    expect((await gateway.snapshot()).totals).toMatchObject({ finished: 3, refused: 2 });
  });

  it('keeps nobody for longer than it is told', async () => {
    const { engine, answers, url } = await occupied({ queue: { maxWaitMs: 200 } });
    const refused = await ask(url, chat('late').body);
    expect(errorIn(refused)).toEqual({ status: 503, type: 'server_error', code: 'no_engine' });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    engine.resume();
    expect(contentOf((await answers[0])!)).toBe(chat('first').answer);
    expect(engine.requests).toHaveLength(1);
  });

  it('takes back a request whose engine failed, however full it is', async () => {
    const [one, other] = [await stage.standIn(), await stage.standIn()];
    const { url, gateway } = await stage.gateway({
      servers: serversOf([one, other]),
      admission: { maxInFlight: 1 },
      queue: { capacity: 1 },
    });
    for (const engine of [one, other]) engine.pause();
    const prompts = ['a', 'b', 'c'];
    const answers = prompts.map((prompt) => ask(url, chat(prompt).body));
    await until(async () => expect((await gateway.snapshot()).queue.size).toBe(1));
    await one.kill();
    await until(async () => expect((await gateway.snapshot()).queue.size).toBe(2));
    other.resume();
    expect((await Promise.all(answers)).map(contentOf)).toEqual(prompts.map((prompt) => chat(prompt).answer));
  });

  it('has a request wait for another engine rather than ask the one again that failed it', async () => {
    const [bad, good] = [await stage.standIn(), await stage.standIn()];
    bad.fault({ kind: 'status', status: 500 }, ALWAYS);
    good.pause();
    const { url, gateway } = await stage.gateway({
      servers: serversOf([bad, good]),
      admission: { maxInFlight: 1 },
    });
    const first = told(url, 'first', false);
    await until(() => expect(good.requests).toHaveLength(1));
    const before = bad.requests.length;
    const second = told(url, 'second', false);
    await until(async () => expect((await gateway.snapshot()).queue.size).toBe(1));
    expect(bad.requests.length - before).toBe(1);
    good.resume();
    expect(await Promise.all([first, second])).toEqual([true, true]);
    expect(bad.requests.length - before).toBe(1);
  });

  it('gives a request that waits for a better answer in vain the one that it has', async () => {
    const [bad, good] = [await stage.standIn(), await stage.standIn()];
    bad.fault({ kind: 'status', status: 500, message: 'As told.' }, ALWAYS);
    const { url } = await stage.gateway({
      servers: serversOf([bad, good]),
      policy: 'round-robin',
      admission: { maxInFlight: 1 },
      queue: { maxWaitMs: 100 },
    });
    good.pause();
    const first = ask(url, chat('first').body);
    await until(() => expect(good.requests).toHaveLength(1));
    const { status, body } = await ask(url, chat('second').body);
    expect([status, JSON.parse(body.toString()).error.message]).toEqual([500, 'As told.']);
    good.resume();
    await first;
  });

  it.each(['gimbal', 'round-robin'] as const)(
    'sends nothing to an engine whose backlog is too long (%s)',
    async (policy) => {
      const [one, other] = [await stage.standIn(), await stage.standIn()];
      for (const engine of [one, other]) engine.pause();
      const { url, gateway } = await stage.gateway({
        servers: serversOf([one, other]),
        policy,
        admission: { maxBacklogMs: 1000 },
      });
      const long = ask(url, chat('long '.repeat(80_000)).body);
      await until(() => expect(one.requests.length + other.requests.length).toBe(1));
      const [free, busy] = one.requests.length === 0 ? [one, other] : [other, one];
      free!.resume();
      for (let n = 0; n < 4; n++) expect(await told(url, `${n}`, false)).toBe(true);
      expect(busy!.requests).toHaveLength(1);
      busy!.resume();
      expect((await long).status).toBe(200);
      expect((await gateway.snapshot()).totals.finished).toBe(5);
    },
  );
});

describe('a server', () => {
  it('that is down as the gateway starts gets its requests when it comes', async () => {
    const engine = await stage.standIn();
    await engine.kill();
    const { url, log } = await stage.gateway({ servers: serversOf([engine]) });
    const asked = Promise.all([told(url, 'a', false), told(url, 'b', true)]);
    await until(() => expect(log.some(({ body }) => body === 'server stands aside')).toBe(true));
    await engine.restart();
    expect(await asked).toEqual([true, true]);
    expect(outcomes(engine)).toEqual(['finished', 'finished']);
  });

  it('that starts anew with all its counts at zero is one like others', async () => {
    const engines = [await stage.standIn(), await stage.standIn()];
    const { url, gateway } = await stage.gateway({ servers: serversOf(engines) });
    for (let n = 0; n < 20; n++) await told(url, 'long '.repeat(2000), false);
    const [anew] = engines as [StandIn, StandIn];
    await anew.restart();
    await until(async () => {
      const [engine] = (await gateway.snapshot()).engines;
      expect(engine).toMatchObject({ state: 'active', stale: false, running: 0, waiting: 0, backlogMs: 0 });
    });
    const before = anew.requests.length;
    const asked = Array.from({ length: 20 }, (_, n) => told(url, `${n}`, n % 2 === 0));
    expect(await Promise.all(asked)).toEqual(Array(20).fill(true));
    expect(anew.requests.length - before).toBeGreaterThanOrEqual(5);
  });

  it('that is killed and comes back under load loses nothing that could be asked again', async () => {
    const engines = [await stage.standIn(), await stage.standIn(), await stage.standIn()];
    const { url, gateway } = await stage.gateway({
      servers: serversOf(engines),
      admission: { maxInFlight: 8 },
    });
    const draw = draws(SEED);
    const broken: Answered[] = [];
    let asked = 0;
    const total = 400;
    const client = async () => {
      while (asked < total) {
        const n = asked++;
        const stream = draw() < 0.5;
        const { body, answer } = chat(`request ${n}`, 20, { stream });
        const answered = await ask(url, body);
        if (stream && !answered.complete) {
          const text = eventsIn(whole(answered.body)).map(({ choices }) => choices[0]?.delta.content ?? '');
          expect(answer.startsWith(text.join(''))).toBe(true);
          broken.push(answered);
        } else expect(stream ? streamedText(answered) : contentOf(answered), `seed ${SEED}`).toBe(answer);
      }
    };
    const clients = Promise.all(Array.from({ length: 40 }, client));
    for (const [n, engine] of engines.entries()) {
      await until(() => expect(asked).toBeGreaterThanOrEqual((n + 1) * 80));
      await engine.kill();
      await until(() => expect(asked).toBeGreaterThanOrEqual((n + 1) * 80 + 40));
      await engine.restart();
    }
    await clients;
    const { totals } = await gateway.snapshot();
    expect(totals).toMatchObject({ requests: total, finished: total - broken.length, refused: 0 });
    expect(totals.retried).toBeGreaterThan(0);
    const finished = engines.flatMap(({ requests }) =>
      requests.filter(({ outcome }) => outcome === 'finished'),
    );
    const prompts = finished.map(({ body }) => JSON.stringify((body as { messages: unknown }).messages));
    expect(new Set(prompts).size, 'none twice').toBe(prompts.length);
  });

  /** Of a stream that broke off, what is whole. */
  function whole(stream: Buffer): Buffer {
    return stream.subarray(0, stream.lastIndexOf('\n\n') + 2);
  }
});

describe('a new configuration', () => {
  it('lets a server leave when its last request has ended, and another come, under load', async () => {
    const [leaving, staying, coming] = [
      await stage.standIn({ timing: { timeScale: 1 } }),
      await stage.standIn(),
      await stage.standIn(),
    ];
    const { url, gateway, log } = await stage.gateway({
      servers: serversOf([leaving, staying]),
      policy: 'round-robin',
    });
    const streams = ['a', 'b'].map((content) => chat(content, 60, { stream: true }));
    const answers = streams.map(({ body }) => ask(url, body));
    await until(() => expect(outcomes(leaving)).toEqual(['open']));
    expect(await gateway.reload(configOf({ servers: serversOf([staying, coming]) }))).toEqual(['policy']);
    for (let n = 0; n < 8; n++) expect(await told(url, `${n}`, n % 2 === 0)).toBe(true);
    expect(leaving.requests).toHaveLength(1);
    expect(coming.requests).toHaveLength(4);
    expect(log.some(({ body }) => body === 'server is gone')).toBe(false);
    expect((await Promise.all(answers)).map(streamedText)).toEqual(streams.map(({ answer }) => answer));
    await until(() => expect(log.some(({ body }) => body === 'server is gone')).toBe(true));
    const urls = (await gateway.snapshot()).servers.map((server) => server.url);
    expect(urls).toEqual([staying.url, coming.url]);
  });

  it('that cannot be taken leaves all as it was, keys included', async () => {
    const engine = await stage.standIn();
    const { url, gateway } = await stage.gateway({ servers: serversOf([engine]), apiKeys: ['old'] });
    const servers = [{ url: await deadUrl(), kvEvents: [{ endpoint: 'no endpoint' }] }];
    await expect(gateway.reload(configOf({ servers, apiKeys: ['new'] }))).rejects.toThrow('endpoint');
    const headers = { authorization: 'Bearer old' };
    expect((await ask(url, chat('x').body, { headers })).status).toBe(200);
  });

  it('widens the limits that requests wait for', async () => {
    const engine = await stage.standIn();
    const { url, gateway } = await stage.gateway({
      servers: serversOf([engine]),
      admission: { maxInFlight: 1 },
    });
    engine.pause();
    const answers = ['a', 'b', 'c'].map((content) => told(url, content, false));
    await until(async () => expect((await gateway.snapshot()).queue.size).toBe(2));
    await gateway.reload(configOf({ servers: serversOf([engine]), admission: { maxInFlight: 3 } }));
    await until(async () => expect(inFlight(await gateway.snapshot())).toBe(3));
    engine.resume();
    expect(await Promise.all(answers)).toEqual([true, true, true]);
  });
});

describe('two gateways', () => {
  it('do not send their requests to the same engines: none gets twice its share', async () => {
    const engine = await stage.standIn({ ranks: 8 });
    const gateways = [];
    for (const seed of [SEED, SEED + 1]) {
      const servers = [{ url: engine.url, ranks: 8 }];
      gateways.push(await stage.gateway({ servers, gateways: 2, seed }));
    }
    engine.pause();
    const draw = draws(SEED);
    const answers: Promise<Answered>[] = [];
    for (let n = 0; n < 128; n++) {
      const words = 20 + Math.floor(draw() * 400);
      const { url } = gateways[n % 2]!;
      answers.push(ask(url, chat('word '.repeat(words)).body));
    }
    await until(() => expect(engine.requests).toHaveLength(128));
    const counts = Array<number>(8).fill(0);
    for (const { rank } of engine.requests) counts[rank!]! += 1;
    expect(Math.max(...counts), `seed ${SEED}: ${counts}`).toBeLessThan(32);
    expect(Math.min(...counts), `seed ${SEED}: ${counts}`).toBeGreaterThan(8);
    engine.resume();
    for (const { status } of await Promise.all(answers)) expect(status).toBe(200);
  });
});
