/** Following publishers of KV events over real sockets: nothing is lost where it can be had again, and nothing stale is kept. */
import { once } from 'node:events';
import net from 'node:net';
import { encode } from '@msgpack/msgpack';
import { afterEach, describe, expect, it } from 'vitest';
import { KvEventFeed, type KvEventFeedOptions, type KvEventSource, Scheduler } from '../../lib/index.js';
import { loadZeromq } from '../../lib/telemetry/zeromq.js';

/** For what must come, on a machine that is busy with other things. */
const PATIENCE_MS = 20_000;
const END = Buffer.alloc(8, 0xff);

const zmq = (() => {
  try {
    return loadZeromq();
  } catch {
    return undefined;
  }
})();

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

async function until(what: () => boolean): Promise<void> {
  const limitMs = performance.now() + PATIENCE_MS;
  while (!what()) {
    if (performance.now() > limitMs) throw new Error(`not within ${PATIENCE_MS} ms: ${what}`);
    await pause(2);
  }
}

/** [hash, token] of blocks of one token, each after the one before it; the first after `parent`. */
const stored = (hashes: number[], parent: number | null = null) => ({
  type: 'BlockStored',
  block_hashes: hashes,
  parent_block_hash: parent,
  token_ids: hashes,
  block_size: 1,
  medium: 'GPU',
});
const removed = (hashes: number[]) => ({ type: 'BlockRemoved', block_hashes: hashes, medium: 'GPU' });
const sequenceOf = (sequence: number) => {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(BigInt(sequence));
  return frame;
};

interface PublisherOptions {
  endpoint?: string;
  replayEndpoint?: string;
  /** Batches that it keeps. */
  keeps?: number;
  /** Before the sequence number in a replay, as newer versions have it. */
  topicInReplay?: boolean;
}

/** As an engine publishes: numbered batches, the last of which it sends again to those who ask. */
class FakeEngine {
  endpoint = '';
  replayEndpoint = '';
  asked: number[] = [];
  replays = true;
  readonly #pub = new zmq!.Publisher({ linger: 0 });
  readonly #router = new zmq!.Router({ linger: 0 });
  readonly #kept: [number, Uint8Array][] = [];
  #sequence = 0;

  static async begin(options: PublisherOptions = {}): Promise<FakeEngine> {
    const engine = new FakeEngine();
    await engine.#pub.bind(options.endpoint ?? 'tcp://127.0.0.1:*');
    await engine.#router.bind(options.replayEndpoint ?? 'tcp://127.0.0.1:*');
    engine.endpoint = engine.#pub.lastEndpoint!;
    engine.replayEndpoint = engine.#router.lastEndpoint!;
    void engine.#serve(options);
    closers.push(() => engine.end());
    return engine;
  }

  async publish(...events: object[]): Promise<void> {
    const payload = encode({ ts: performance.now(), events });
    this.#kept.push([this.#sequence, payload]);
    await this.send('kv', sequenceOf(this.#sequence++), payload);
  }

  /** Kept, but lost on the way. */
  async lose(...events: object[]): Promise<void> {
    this.#kept.push([this.#sequence++, encode({ ts: performance.now(), events })]);
  }

  send(...frames: (string | Uint8Array)[]): Promise<void> {
    return this.#pub.send(frames);
  }

  /** The next batch has this number. */
  skipTo(sequence: number): void {
    this.#sequence = sequence;
  }

  end(): void {
    this.#pub.close();
    this.#router.close();
  }

  async #serve({ keeps = Number.POSITIVE_INFINITY, topicInReplay = false }: PublisherOptions): Promise<void> {
    const topic = topicInReplay ? ['kv'] : [];
    for await (const [id, , from] of this.#router) {
      const first = Number(from!.readBigUInt64BE());
      this.asked.push(first);
      if (!this.replays) continue;
      for (const [sequence, payload] of this.#kept.slice(Math.max(0, this.#kept.length - keeps))) {
        if (sequence >= first) await this.#router.send([id!, '', ...topic, sequenceOf(sequence), payload]);
      }
      await this.#router.send([id!, '', END, '']);
    }
  }
}

function follow(sources: KvEventSource[], options: Partial<KvEventFeedOptions> = {}) {
  const states: string[] = [];
  const feed = new KvEventFeed({
    sources,
    onState: ({ engine }, state, reason) => states.push(`${engine} ${state}: ${reason}`),
    ...options,
  });
  closers.push(() => feed.stop());
  feed.start();
  const status = (n = 0) => feed.status()[n]!;
  const connected = () => until(() => feed.status().every(({ state }) => state === 'ok'));
  return { feed, states, status, connected };
}

/** Publishes nothing until the subscriber is heard: a subscription takes a moment to arrive. */
async function heard(engine: FakeEngine, batches: () => number): Promise<void> {
  const before = batches();
  const limitMs = performance.now() + PATIENCE_MS;
  while (batches() === before) {
    if (performance.now() > limitMs) throw new Error('the subscriber is not heard');
    await engine.publish();
    await pause(5);
  }
  await pause(20);
}

const PROMPT = [1, 2, 3, 4, 5, 6];
const told = (feed: KvEventFeed, prompt = PROMPT) => [...feed.cachedTokens(prompt)];

describe.skipIf(zmq === undefined)('KvEventFeed (skipped where zeromq cannot be loaded)', () => {
  const both = ({ endpoint, replayEndpoint }: FakeEngine, engine = 0): KvEventSource => ({
    endpoint,
    replayEndpoint,
    engine,
  });
  const live = ({ endpoint }: FakeEngine, engine = 0): KvEventSource => ({ endpoint, engine });

  it('tells a scheduler what each engine has cached', async () => {
    const engines = [await FakeEngine.begin(), await FakeEngine.begin()];
    const { feed, connected, status } = follow(engines.map(both));
    await connected();
    for (const [n, engine] of engines.entries()) await heard(engine, () => status(n).batches);
    await engines[0]!.publish(stored([1, 2]));
    await engines[1]!.publish(stored([1, 2, 3]), stored([4], 3), removed([4]));
    await until(() => told(feed).join() === '2,3');
    const scheduler = new Scheduler({ engines: 2, prefillTokensPerSecond: 1000 });
    const timeMs = performance.timeOrigin + performance.now();
    scheduler.observe([0, 1].map((engine) => ({ engine, timeMs, kvUsage: 0, running: 0, waiting: 0 })));
    const cachedTokens = feed.cachedTokens(PROMPT);
    expect(scheduler.dispatch({ id: 1, promptTokens: PROMPT.length, cachedTokens })).toMatchObject({
      engine: 1,
      pressure: 3,
    });
  });

  it('knows what was published before, where it can be sent again', async () => {
    for (const topicInReplay of [false, true]) {
      const engine = await FakeEngine.begin({ topicInReplay });
      await engine.lose(stored([1, 2, 3]));
      await engine.lose(removed([3]));
      const { feed, states, connected, status } = follow([both(engine)]);
      await connected();
      expect(told(feed)).toEqual([2]);
      expect(engine.asked).toEqual([0]);
      expect(states).toEqual([`0 ok: follows ${engine.endpoint}`]);
      expect(status()).toMatchObject({ batches: 2, gaps: 0, restarts: 0, resets: 0, blocks: 2 });
    }
  });

  it('has what was lost sent again, and nothing else', async () => {
    const engine = await FakeEngine.begin();
    const { feed, connected, status } = follow([both(engine)]);
    await connected();
    await heard(engine, () => status().batches);
    const seen = status().batches;
    engine.asked = [];
    await engine.publish(stored([1, 2]));
    await engine.lose(stored([3], 2));
    await engine.lose(removed([1]), stored([1]));
    await engine.publish(stored([4], 3));
    await until(() => status().batches === seen + 4);
    expect(told(feed)).toEqual([4]);
    // From the last one that was taken, to see that it is the same.
    expect(engine.asked).toEqual([seen]);
    expect(status()).toMatchObject({ gaps: 1, restarts: 0, resets: 0 });
  });

  it('takes what is live and sent again once', async () => {
    const engine = await FakeEngine.begin();
    const { feed, connected, status } = follow([both(engine)]);
    await connected();
    await heard(engine, () => status().batches);
    const seen = status().batches;
    await engine.publish(stored([1]));
    await engine.lose(stored([2], 1));
    // All in one go: the last ones are in the replay that the first of them causes.
    await Promise.all([
      engine.publish(stored([3], 2)),
      engine.publish(removed([3])),
      engine.publish(stored([3], 2)),
    ]);
    await until(() => status().batches >= seen + 5);
    await engine.publish();
    await until(() => status().batches >= seen + 6);
    expect(status()).toMatchObject({ batches: seen + 6, gaps: 1, restarts: 0, resets: 0 });
    expect(told(feed)).toEqual([3]);
  });

  it('drops what it knows after a gap that nothing fills', async () => {
    const engine = await FakeEngine.begin();
    const { feed, connected, status } = follow([live(engine)]);
    await connected();
    await heard(engine, () => status().batches);
    await engine.publish(stored([1, 2]));
    await until(() => told(feed)[0] === 2);
    await engine.lose(removed([1]));
    await engine.publish(stored([3], 2), stored([5]));
    await until(() => status().gaps === 1);
    await until(() => told(feed, [5, 6])[0] === 1);
    expect(told(feed)).toEqual([0]);
    expect(status()).toMatchObject({ state: 'ok', resets: 1, restarts: 0, blocks: 1, unplacedBlocks: 1 });
  });

  it('drops what it knows where the batches that are kept begin too late', async () => {
    const engine = await FakeEngine.begin({ keeps: 2 });
    const { feed, connected, status } = follow([both(engine)]);
    await connected();
    await heard(engine, () => status().batches);
    await engine.publish(stored([1, 2]));
    await until(() => told(feed)[0] === 2);
    for (let n = 0; n < 4; n++) await engine.lose(removed([1]));
    await engine.lose(stored([5]));
    await engine.publish(stored([6], 5));
    await until(() => told(feed, [5, 6, 7])[0] === 2);
    expect(told(feed)).toEqual([0]);
    expect(status()).toMatchObject({ gaps: 1, resets: 1, blocks: 2 });
  });

  it.each([
    ['and is past where it was, with a replay', true, 0],
    ['and is not where it was yet, with a replay', true, 1000],
    ['and is past where it was, without a replay', false, 0],
  ])('notices an engine that begins anew on its address, %s', async (_, replays, begins) => {
    const first = await FakeEngine.begin();
    first.skipTo(begins);
    const { feed, connected, status } = follow([(replays ? both : live)(first)]);
    await connected();
    await heard(first, () => status().batches);
    await first.publish(stored([1, 2]));
    await until(() => told(feed)[0] === 2);
    first.end();
    await until(() => status().state === 'failing');
    expect(status().reason).toMatch(/expected a connection but received none$/);
    const second = await FakeEngine.begin(first);
    // Before anybody listens: by the numbers alone this may be a gap, or nothing at all.
    if (replays) {
      for (let n = 0; n < 200; n++) await second.lose();
      await second.lose(stored([5]));
    } else {
      second.skipTo(10_000);
    }
    await until(() => status().state === 'ok');
    expect(told(feed)).toEqual([0]);
    expect(told(feed, [5, 6])).toEqual([replays ? 1 : 0]);
    await heard(second, () => status().batches);
    await second.publish(stored([1, 2, 3]));
    await until(() => told(feed)[0] === 3);
    expect(status()).toMatchObject({ resets: 1, restarts: replays ? 1 : 0 });
  });

  it('notices an engine that begins anew behind a proxy, by its numbers', async () => {
    const engine = await FakeEngine.begin();
    const { feed, connected, status } = follow([live(engine)]);
    await connected();
    await heard(engine, () => status().batches);
    await engine.publish(stored([1, 2]));
    await until(() => told(feed)[0] === 2);
    engine.skipTo(0);
    await engine.publish(stored([5]));
    await until(() => status().restarts === 1);
    expect(told(feed)).toEqual([0]);
    await until(() => told(feed, [5, 6])[0] === 1);
    await engine.publish(stored([6], 5));
    await until(() => told(feed, [5, 6, 7])[0] === 2);
    expect(status()).toMatchObject({ restarts: 1, resets: 1, gaps: 0 });
  });

  it.each([
    ['keeps what it knows of an engine that is still the same after a broken connection', true],
    ['drops what it knows after a broken connection without a replay', false],
  ])('%s', async (_, replays) => {
    const engine = await FakeEngine.begin();
    const wire = await proxyTo(engine.endpoint);
    const source = { ...(replays ? both(engine) : live(engine)), endpoint: wire.endpoint };
    const { feed, connected, status, states } = follow([source]);
    await connected();
    await heard(engine, () => status().batches);
    await engine.publish(stored([1, 2]));
    await until(() => told(feed)[0] === 2);
    wire.breakOff();
    await engine.publish(stored([3], 2));
    await until(() => states.length >= 3 && status().state === 'ok');
    expect(told(feed)).toEqual([replays ? 3 : 0]);
    expect(status()).toMatchObject({ restarts: 0, resets: replays ? 0 : 1 });
    expect(states[1]).toMatch(/^0 failing: /);
  });

  const garbage: [string, (Uint8Array | string)[], RegExp][] = [
    ['that is no MessagePack', ['kv', sequenceOf(1_000_000), Buffer.from('c1', 'hex')], /does not use$/],
    [
      'without events',
      ['kv', sequenceOf(1_000_000), encode(5)],
      /batch 1000000: batch: expected a list or a map/,
    ],
    ['of two frames', ['kv', sequenceOf(1_000_000)], /expected 3 frames but received 2$/],
    [
      'with a number of four bytes',
      ['kv', Buffer.alloc(4), encode([1, []])],
      /8 bytes but received 4 bytes$/,
    ],
    [
      'with a number beyond all',
      ['kv', END, encode([1, []])],
      /below 2\^53 but received 18446744073709551615$/,
    ],
  ];
  it.each(garbage)(
    'marks a publisher of a batch %s, and no other, and takes it back',
    async (_, frames, reason) => {
      const [bad, good] = [await FakeEngine.begin(), await FakeEngine.begin()];
      const { feed, connected, status, states } = follow([live(bad, 0), live(good, 1)]);
      await connected();
      await heard(bad, () => status(0).batches);
      await heard(good, () => status(1).batches);
      await bad.publish(stored([1, 2]));
      await good.publish(stored([1, 2]));
      await until(() => told(feed).join() === '2,2');
      await bad.send(...frames);
      await until(() => status(0).state === 'failing');
      expect(status(0).reason).toMatch(reason);
      expect(told(feed)).toEqual([0, 2]);
      await bad.publish(stored([1, 2, 3]));
      await until(() => status(0).state === 'ok');
      await until(() => told(feed).join() === '3,2');
      expect(states.filter((state) => state.startsWith('1 '))).toHaveLength(1);
    },
  );

  it('starts all or none', async () => {
    const engine = await FakeEngine.begin();
    await engine.lose(stored([1]));
    // Longer than a socket's name may be.
    const endpoint = `ipc:///tmp/${'x'.repeat(200)}`;
    const feed = new KvEventFeed({ sources: [both(engine), { endpoint, engine: 1 }] });
    closers.push(() => feed.stop());
    expect(() => feed.start()).toThrow(expect.objectContaining({ code: 'GIMBAL_IO', field: endpoint }));
    await pause(50);
    expect([engine.asked, feed.status()[0]!.state]).toEqual([[], 'unknown']);
  });

  it('counts events that it does not know', async () => {
    const engine = await FakeEngine.begin();
    await engine.lose(stored([1]), { type: 'BlockMoved' });
    const { connected, status } = follow([both(engine)]);
    await connected();
    expect(status()).toMatchObject({ unknownEvents: 1, blocks: 1 });
  });

  it('says so where nothing is sent again, and follows what is live', async () => {
    const engine = await FakeEngine.begin();
    engine.replays = false;
    const { feed, status } = follow([both(engine)], { replayTimeoutMs: 50 });
    await until(() => status().state === 'failing');
    expect(status().reason).toBe(
      `${engine.replayEndpoint}: expected a message of the replay within 50 ms but received none`,
    );
    await heard(engine, () => status().batches);
    await engine.publish(stored([1]));
    await until(() => told(feed)[0] === 1);
    expect(status().state).toBe('ok');
  });

  it('takes batches of its topic alone', async () => {
    const engine = await FakeEngine.begin();
    const { feed, connected, status } = follow([{ ...live(engine), topic: 'kv' }]);
    await connected();
    await heard(engine, () => status().batches);
    const seen = status().batches;
    await engine.send('load', sequenceOf(500), encode([1, []]));
    await engine.publish(stored([1]));
    await until(() => told(feed)[0] === 1);
    expect(status()).toMatchObject({ batches: seen + 1, gaps: 0 });
  });

  it('stops at once, drops what it knows, tells nothing more, and starts again', async () => {
    const engine = await FakeEngine.begin();
    await engine.lose(stored([1]));
    const { feed, states, connected, status } = follow([both(engine)], { replayTimeoutMs: PATIENCE_MS });
    feed.start();
    await connected();
    expect(told(feed)).toEqual([1]);
    const stopped = feed.stop();
    expect(told(feed)).toEqual([0]);
    await stopped;
    engine.asked = [];
    await engine.publish(stored([2], 1));
    await pause(30);
    expect([told(feed), engine.asked, states.length]).toEqual([[0], [], 1]);
    // In the midst of a replay that does not come.
    engine.replays = false;
    feed.start();
    await until(() => engine.asked.length === 1);
    const startedMs = performance.now();
    await feed.stop();
    expect(performance.now() - startedMs).toBeLessThan(PATIENCE_MS / 4);
    engine.replays = true;
    feed.start();
    await until(() => told(feed)[0] === 2);
    expect(status().state).toBe('ok');
    await feed.stop();
  });
});

/** A wire between a publisher and its subscriber that can be cut. */
async function proxyTo(endpoint: string) {
  const { hostname, port } = new URL(endpoint.replace('tcp:', 'http:'));
  const open = new Set<net.Socket>();
  const server = net.createServer((near) => {
    const far = net.connect(Number(port), hostname);
    for (const socket of [near, far]) {
      open.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        near.destroy();
        far.destroy();
        open.delete(socket);
      });
    }
    near.pipe(far);
    far.pipe(near);
  });
  const breakOff = () => {
    for (const socket of open) socket.destroy();
  };
  closers.push(() => {
    breakOff();
    server.close();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address() as net.AddressInfo;
  return { endpoint: `tcp://127.0.0.1:${address.port}`, breakOff };
}

describe('KvEventFeed', () => {
  it('says what to do where zeromq is missing', () => {
    const missing = () =>
      loadZeromq(() => {
        throw new Error("Cannot find module 'zeromq'\nRequire stack: …");
      });
    expect(missing).toThrow(
      expect.objectContaining({
        code: 'GIMBAL_BINDING',
        message:
          "zeromq: following KV events takes the package zeromq, which cannot be loaded (Cannot find module 'zeromq'); run `npm install zeromq@6`",
      }),
    );
  });

  const source: KvEventSource = { endpoint: 'tcp://engine:5557', engine: 0 };
  const make = (options: object) => new KvEventFeed({ sources: [source], ...options });
  it.each<[string, object, string]>([
    ['an unknown option', { source }, 'options.source'],
    ['no sources', { sources: [] }, 'options.sources'],
    ['an unknown key', { sources: [{ ...source, port: 1 }] }, 'options.sources[0].port'],
    ['no endpoint', { sources: [{ engine: 0 }] }, 'options.sources[0].endpoint'],
    ['a URL of the web', { sources: [{ ...source, endpoint: 'http://a:1' }] }, 'options.sources[0].endpoint'],
    ['port 0', { sources: [{ ...source, endpoint: 'tcp://engine:0' }] }, 'options.sources[0].endpoint'],
    [
      'a port beyond all',
      { sources: [{ ...source, endpoint: 'tcp://a:65536' }] },
      'options.sources[0].endpoint',
    ],
    ['no port', { sources: [{ ...source, endpoint: 'tcp://engine' }] }, 'options.sources[0].endpoint'],
    [
      'an address to bind',
      { sources: [{ ...source, endpoint: 'tcp://*:5557' }] },
      'options.sources[0].endpoint',
    ],
    [
      'a replay without a port',
      { sources: [{ ...source, replayEndpoint: 'engine' }] },
      'options.sources[0].replayEndpoint',
    ],
    ['half an engine', { sources: [{ ...source, engine: 0.5 }] }, 'options.sources[0].engine'],
    ['an engine twice', { sources: [source, source] }, 'options.sources[1].engine'],
    ['a topic that is a number', { sources: [{ ...source, topic: 1 }] }, 'options.sources[0].topic'],
    ['too few engines', { sources: [{ ...source, engine: 2 }], engines: 2 }, 'options.engines'],
    ['no blocks', { maxBlocks: 0 }, 'options.maxBlocks'],
    ['no timeout', { replayTimeoutMs: 0 }, 'options.replayTimeoutMs'],
    ['a timeout beyond the timers', { replayTimeoutMs: 1e7 }, 'options.replayTimeoutMs'],
    ['a listener that is none', { onState: 1 }, 'options.onState'],
  ])('refuses %s', (_, options, field) => {
    expect(() => make(options)).toThrow(expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field }));
  });

  it('knows nothing before it starts, of as many engines as the scheduler has', () => {
    expect(make({ engines: 3 }).cachedTokens([1, 2])).toEqual(new Uint32Array(3));
    expect(make({}).status()).toEqual([
      {
        source,
        state: 'unknown',
        reason: 'not connected yet',
        batches: 0,
        gaps: 0,
        restarts: 0,
        resets: 0,
        unknownEvents: 0,
        blocks: 0,
        unplacedBlocks: 0,
        ignoredBlocks: 0,
        refusedBlocks: 0,
      },
    ]);
  });
});
