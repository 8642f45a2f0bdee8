/** What gateways tell each other of their ledgers, over a broker that is late, loses and reorders, in virtual time. */
import * as fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { SharedLedger } from '../../lib/gateway/shared-ledger.js';
import { herd } from '../support/herd.js';
import { FakeBroker, type FakeChannel } from '../support/ledger-broker.js';
import { createGateway, type TestGateway } from '../support/ledgers.js';

const STATE_EVERY_MS = 1000;
const TTL_MS = 3000;
/** Of a gateway that no test has. */
const STRANGER = '00000000000000ff';

let broker: FakeBroker;

beforeEach(() => {
  vi.useFakeTimers();
  broker = new FakeBroker();
});

afterEach(() => {
  vi.useRealTimers();
});

const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);
const message = (number: number, body: unknown, { from = STRANGER, version = 1 } = {}) =>
  JSON.stringify([version, from, number, body]);

type Gateway = TestGateway & { channel: FakeChannel };

/** Started, and as its peers know it. */
async function joining(engines: readonly string[] = ['a', 'b']): Promise<Gateway> {
  const channel = broker.channel();
  const gateway = createGateway({ channel, engines, stateEveryMs: STATE_EVERY_MS });
  gateway.ledger.start();
  await pass(150);
  return { ...gateway, channel };
}

/** Its process is killed: nothing is said. */
function kill({ channel }: Gateway): void {
  broker.leave(channel);
  channel.publish = channel.write = () => Promise.reject(new Error('dead'));
}

describe('SharedLedger', () => {
  it('tells dispatches, first tokens and ends, each once', async () => {
    const [one, other] = [await joining(), await joining()];
    one.send('r1', 'a', { promptTokens: 700 });
    one.send('r2', 'b', { promptTokens: 20, streams: false });
    one.send('r3', 'b', { promptTokens: 30 });
    await pass(5);
    expect(other.seen()).toEqual(['a 700', 'b 20 silent', 'b 30']);
    expect(one.seen(), 'its own are its own').toEqual([]);
    one.ledger.firstToken('r1');
    one.ledger.ended('r2', 'finished');
    one.ledger.ended('r3', 'failed');
    await pass(5);
    // The first token ends what is shared of a request.
    expect(other.firstTokens).toEqual(['a 700']);
    expect(other.ended).toEqual(['a 700 finished', 'b 20 silent finished', 'b 30 failed']);
    const before = broker.published.length;
    one.ledger.ended('r1', 'finished');
    one.ledger.firstToken('never sent');
    await pass(5);
    expect(broker.published.length).toBe(before);
    expect(other.ledger.status).toMatchObject({ state: 'ok', gateways: 1, mirrored: 0, echoMs: 2 });
  });

  it('gathers what happens at once into one message', async () => {
    const [one, other] = [await joining(), await joining()];
    const before = broker.published.length;
    for (let n = 0; n < 50; n += 1) one.send(`r${n}`, 'a');
    await pass(5);
    expect(broker.published.length).toBe(before + 1);
    expect(other.seen()).toHaveLength(50);
  });

  it('tells ages, since clocks differ between hosts', async () => {
    broker.lateMs = 1;
    const [one, other] = [await joining(), await joining()];
    one.send('r', 'a');
    await pass(400);
    expect(other.ages, 'gathered for 1 ms').toEqual([1]);
    const late = await joining();
    expect(late.seen()).toEqual(['a 100']);
    expect(late.ages[0], 'the age in the state, and some of the way').toBeGreaterThanOrEqual(400);
    expect(late.ages[0]).toBeLessThan(550);
  });

  it('mirrors the same id of two gateways, and of one that came back, as requests of their own', async () => {
    const [one, other, third] = [await joining(), await joining(), await joining()];
    one.send('r', 'a');
    other.send('r', 'b');
    await pass(5);
    expect(third.seen()).toEqual(['a 100', 'b 100']);
    kill(one);
    const again = await joining();
    again.send('r', 'a', { promptTokens: 5 });
    await pass(5);
    expect(third.seen()).toEqual(['a 100', 'a 5', 'b 100']);
    await pass(TTL_MS + STATE_EVERY_MS);
    expect(third.seen()).toEqual(['a 5', 'b 100']);
    expect(third.ended).toEqual(['a 100 failed']);
    expect(third.ledger.status).toMatchObject({ gateways: 2, counts: { lost: 1 } });
    expect(broker.states, 'its key too').toHaveLength(3);
  });

  it.each<[string, (one: Gateway) => void, string[]]>([
    ['a dispatch', (one) => one.send('r2', 'b'), ['a 100', 'b 100']],
    ['an end', (one) => one.ledger.ended('r1', 'finished'), []],
    ['a first token', (one) => one.ledger.firstToken('r1'), []],
  ])(
    'finds out by the next state that %s was lost, and by the next message that one was',
    async (_, lost, seen) => {
      for (const next of [undefined, 'r3']) {
        broker = new FakeBroker();
        const [one, other] = [await joining(), await joining()];
        one.send('r1', 'a');
        await pass(5);
        broker.fate = () => undefined;
        lost(one);
        await pass(5);
        broker.fate = () => 0;
        expect(other.seen()).toEqual(['a 100']);
        if (next !== undefined) one.send(next, 'b', { promptTokens: 3 });
        await pass(next === undefined ? STATE_EVERY_MS + 10 : 150);
        expect(other.seen()).toEqual([...seen, ...(next === undefined ? [] : ['b 3'])].sort());
        expect(other.ledger.status.counts).toMatchObject({ gaps: 1, reads: 2 });
      }
    },
  );

  it('leaves out what was overtaken, and reads the state', async () => {
    const [one, other] = [await joining(), await joining()];
    broker.fate = () => 20;
    one.send('r1', 'a');
    await pass(2);
    broker.fate = () => 0;
    one.ledger.ended('r1', 'finished');
    one.send('r2', 'b');
    await pass(200);
    expect(other.seen(), 'r1 has not come back').toEqual(['b 100']);
    expect(other.ledger.status.counts).toMatchObject({ gaps: 1, ignored: 1 });
  });

  it('ends with what is outstanding, whatever was lost, late, or cut off', async () => {
    const event = fc.record({
      gateway: fc.nat(2),
      what: fc.constantFrom('send', 'send', 'first', 'finished', 'failed', 'cut', 'mend'),
      nth: fc.nat(20),
      waitMs: fc.constantFrom(0, 0, 1, 3, 20, 700),
    });
    const fate = fc.constantFrom(0, 0, 0, 3, 40, undefined);
    await fc.assert(
      fc.asyncProperty(
        fc.array(event, { maxLength: 60 }),
        fc.array(fate, { minLength: 1 }),
        async (events, fates) => {
          broker = new FakeBroker();
          const gateways = [await joining(), await joining(), await joining()];
          let told = 0;
          broker.fate = () => fates[told++ % fates.length];
          const live = gateways.map(() => [] as string[]);
          const open = gateways.map(() => true);
          for (const [n, { gateway, what, nth, waitMs }] of events.entries()) {
            const [{ ledger, send, channel }, own] = [gateways[gateway]!, live[gateway]!];
            if (what === 'send') own.push(`r${n}`);
            if (what === 'send') send(`r${n}`, 'a', { promptTokens: n });
            else if (what === 'cut' && open[gateway]) channel.lose('cut');
            else if (what === 'mend' && !open[gateway]) channel.connect();
            else if (nth < own.length) {
              if (what === 'first') ledger.firstToken(own.splice(nth, 1)[0]!);
              else if (what === 'finished' || what === 'failed') ledger.ended(own.splice(nth, 1)[0]!, what);
            }
            if (what === 'cut' || what === 'mend') open[gateway] = what === 'mend';
            await pass(waitMs);
          }
          broker.fate = () => 0;
          for (const [n, { channel }] of gateways.entries()) if (!open[n]) channel.connect();
          await pass(2 * STATE_EVERY_MS);
          for (const [n, { seen, ledger }] of gateways.entries()) {
            const others = live.filter((_, other) => other !== n).flat();
            expect(seen()).toEqual(others.map((id) => `a ${id.slice(1)}`).sort());
            expect(ledger.status).toMatchObject({ gateways: 2, mirrored: others.length });
          }
          await Promise.all(
            gateways.map(async ({ ledger }) => {
              const stopped = ledger.stop();
              await pass(10);
              await stopped;
            }),
          );
          expect(gateways.flatMap(({ seen }) => seen())).toEqual([]);
          expect([vi.getTimerCount(), broker.states]).toEqual([0, []]);
        },
      ),
      { numRuns: 100 },
    );
  });

  it('forgets a gateway that says goodbye at once', async () => {
    const [one, other] = [await joining(), await joining()];
    one.send('r', 'a');
    await pass(5);
    await pass(200);
    // Nobody is answered any more who asks meanwhile.
    broker.lateMs = 5;
    broker.deliver(message(0, 'hello'), other.channel);
    const stopped = one.ledger.stop();
    await pass(20);
    await stopped;
    await pass(200);
    expect(other.ended).toEqual(['a 100 failed']);
    expect(other.ledger.status, 'the one who asked').toMatchObject({ gateways: 1, counts: { lost: 0 } });
    expect(broker.states).toHaveLength(1);
  });

  it('counts engines that it does not know, and hears no more of their requests', async () => {
    const [one, other] = [await joining(), await joining(['b'])];
    one.send('r1', 'a');
    one.send('r2', 'b');
    await pass(5);
    one.ledger.firstToken('r1');
    one.ledger.ended('r2', 'finished');
    await pass(5);
    expect(other.ended).toEqual(['b 100 finished']);
    expect(other.firstTokens).toEqual([]);
    expect(other.ledger.status.counts.unknownEngines).toBe(1);
  });

  it('leaves out what is no message of its version, and counts it', async () => {
    const one = await joining();
    const sent = ['dispatched', 1, 'a', 100, 1, 0];
    const odd = [
      '',
      '{',
      'null',
      '[]',
      '{"length":4}',
      'x'.repeat(2 ** 24 + 1),
      `${'['.repeat(100_000)}`,
      message(1, [sent], { version: 2 }),
      message(1, [sent], { from: '../../etc' }),
      message(-1, [sent]),
      message(1.5, [sent]),
      message(2 ** 60, [sent]),
      message(1, 'goodbye'),
      message(1, [['dispatched', 1, 'a', 100, 1]]),
      message(1, [['dispatched', 1, 'a', -1, 1, 0]]),
      message(1, [['dispatched', 1, 'a', 2 ** 29, 1, 0]]),
      message(1, [['dispatched', 1, 'a', 100, 2, 0]]),
      message(1, [['dispatched', 1, 'a', 100, 1, -5]]),
      message(1, [['dispatched', 1, 'a', 100, 1, 1e300]]),
      message(1, [['dispatched', '__proto__', 'a', 100, 1, 0]]),
      message(1, [['dispatched', 1, 'a'.repeat(2049), 100, 1, 0]]),
      message(1, [['first', 1, 1]]),
      // One that is wrong spoils its message: half of it would be a guess.
      message(1, [sent, ['last', 1]]),
      message(1, Array(10_001).fill(sent)),
    ];
    for (const text of odd) broker.deliver(text);
    await pass(10);
    expect(one.ledger.status).toMatchObject({ gateways: 0, mirrored: 0, state: 'ok' });
    expect(one.ledger.status.counts.ignored).toBe(odd.length);
    broker.deliver(message(1, [sent]));
    await pass(10);
    expect(one.seen(), 'the control').toEqual(['a 100']);
  });

  it.each([
    ['is missing', undefined],
    ['is none', 'x'],
    ["is another gateway's", message(1, [[1, 'a', 100, 1, 0]], { from: '00000000000000ee' })],
    ['of another version', message(1, [[1, 'a', 100, 1, 0]], { version: 2 })],
    ['is older than what it belongs to', message(1, [])],
  ])('keeps what it has where a state %s, and asks again', async (_, text) => {
    const one = await joining();
    broker.deliver(message(2, [['dispatched', 1, 'a', 100, 1, 0]]));
    if (text !== undefined) broker.write(STRANGER, text, 1e6);
    broker.deliver(message(2, 'state'));
    await pass(10);
    expect(one.seen()).toEqual(['a 100']);
    broker.write(STRANGER, message(2, [[2, 'b', 7, 0, 0]]), 1e6);
    broker.deliver(message(2, 'state'));
    await pass(10);
    expect(one.seen()).toEqual(['b 7 silent']);
    broker.deliver(message(2, 'state'));
    await pass(10);
    expect(one.ledger.status.counts.reads, 'not when nothing is missing').toBe(2);
  });

  it('takes in order what comes while it reads a state', async () => {
    const one = await joining();
    broker.lateMs = 10;
    broker.write(STRANGER, message(5, [[1, 'a', 100, 1, 0]]), 1e6);
    broker.deliver(message(5, 'state'));
    await pass(12);
    broker.deliver(message(6, [['finished', 1]]));
    broker.deliver(message(7, [['dispatched', 2, 'b', 9, 1, 0]]));
    await pass(12);
    expect(one.seen(), 'heard, and waiting for the state').toEqual([]);
    await pass(10);
    expect([one.seen(), one.ended]).toEqual([['b 9'], ['a 100 finished']]);
    expect(one.ages, 'reading took 20 ms, of which the second request waited 8').toEqual([20, 8]);
    expect(one.ledger.status.counts).toMatchObject({ reads: 1, gaps: 0 });
  });

  it('reads anew where what came meanwhile shows that something is missing', async () => {
    const one = await joining();
    broker.lateMs = 10;
    broker.write(STRANGER, message(1, []), 1e6);
    broker.deliver(message(1, 'state'));
    await pass(12);
    // The second message, with the first request, is lost.
    broker.deliver(message(3, [['dispatched', 2, 'a', 2, 1, 0]]));
    broker.deliver(message(3, 'state'));
    broker.deliver(message(4, [['dispatched', 3, 'a', 3, 1, 0]]));
    await pass(12);
    const sent = [1, 2].map((request) => [request, 'a', request, 1, 0]);
    broker.write(STRANGER, message(3, sent), 1e6);
    await pass(30);
    expect(one.seen()).toEqual(['a 1', 'a 2', 'a 3']);
    expect(one.ledger.status.counts).toMatchObject({ reads: 2, gaps: 1 });
  });

  it('takes no more gateways and requests than fit, and says how many it left out', async () => {
    const one = await joining();
    const stranger = (n: number) => n.toString(16).padStart(16, '0');
    for (let n = 0; n < 1100; n += 1) broker.deliver(message(0, 'hello', { from: stranger(n) }));
    await pass(10);
    expect(one.ledger.status).toMatchObject({ gateways: 1024, counts: { ignored: 1100 - 1024 } });
    for (let n = 0; n < 11; n += 1) {
      const sent = Array.from({ length: 10_000 }, (_, k) => ['dispatched', 1 + k, 'a', 1, 1, 0]);
      broker.deliver(message(1, sent, { from: stranger(n) }));
    }
    await pass(10);
    expect(one.ledger.status).toMatchObject({ mirrored: 100_000, counts: { dropped: 10_000 } });
    // And what waits for a state is bounded too, over all states; what waited waits no more.
    broker.lateMs = 10;
    for (const [number, messages, dropped] of [
      [1, 11, 2],
      [10, 3, 0],
    ] as const) {
      const before = one.ledger.status.counts.dropped;
      broker.deliver(message(number, 'state', { from: stranger(20) }));
      await pass(12);
      for (let n = 1; n <= messages; n += 1) {
        broker.deliver(message(number + n, Array(10_000).fill(['first', 1]), { from: stranger(20) }));
      }
      await pass(12);
      expect(one.ledger.status.counts.dropped - before).toBe(dropped * 10_001);
      await pass(12);
    }
    await pass(TTL_MS + STATE_EVERY_MS);
    expect(one.ledger.status).toMatchObject({ gateways: 0, mirrored: 0 });
  });

  it('keeps little for a Redis that is slow, and makes up for what it drops', async () => {
    const [one, other] = [await joining(), await joining()];
    broker.answers = false;
    for (let round = 0; round < 50; round += 1) {
      for (let n = 0; n < 500; n += 1) one.send(`r${round}-${n}`, 'a');
      await pass(2);
    }
    // 16 messages wait for an answer, with the first 8,000; then 10,000 are gathered, and begun anew.
    expect(one.ledger.status.counts.dropped).toBe(10_000);
    broker.answers = true;
    one.channel.catchUp();
    await pass(200);
    expect(other.seen()).toHaveLength(25_000);
    expect(other.ledger.status.counts.gaps).toBe(1);
  });

  it('forgets others where it is cut off for too long, and says so', async () => {
    const [one, other] = [await joining(), await joining()];
    const fresh = new SharedLedger({ channel: broker.channel(), mirror: silent });
    expect(fresh.status).toMatchObject({ state: 'unknown', reason: 'not connected yet' });
    one.send('r', 'a');
    await pass(5);
    other.channel.lose('connection refused');
    expect(other.ledger.status).toMatchObject({ state: 'failing', reason: 'connection refused' });
    await pass(TTL_MS - STATE_EVERY_MS);
    expect(other.seen(), 'a short while changes nothing').toEqual(['a 100']);
    await pass(2 * STATE_EVERY_MS);
    expect(other.seen()).toEqual([]);
    other.channel.connect();
    await pass(200);
    expect(other.ledger.status).toMatchObject({ state: 'ok', reason: 'connected' });
    expect(other.seen()).toEqual(['a 100']);
    expect(other.states).toEqual(['ok connected', 'failing connection refused', 'ok connected']);
  });

  it('does not take it for silence that its own process stood still', async () => {
    let stoodStillMs = 0;
    const channel = broker.channel();
    const clock = () => performance.now() + stoodStillMs;
    const one = createGateway({ channel, engines: ['a'], stateEveryMs: STATE_EVERY_MS, clock });
    one.ledger.start();
    (await joining()).send('r', 'a');
    await pass(5);
    stoodStillMs = 10 * TTL_MS;
    await pass(10 * STATE_EVERY_MS);
    expect([one.seen(), one.ended, channel.resets]).toEqual([['a 100'], [], []]);
  });

  it('connects anew where nothing of what it publishes comes back', async () => {
    const one = await joining();
    await pass(10 * STATE_EVERY_MS);
    expect(one.channel.resets).toEqual([]);
    broker.leave(one.channel);
    await pass(TTL_MS + 2 * STATE_EVERY_MS);
    expect(one.channel.resets).toEqual(['nothing of what was published has come back for 3000 ms']);
    expect(one.ledger.status.state).toBe('failing');
  });

  it('does not write its state more often than it should, however many ask', async () => {
    await joining();
    const states = () => broker.published.filter((text) => text.endsWith('"state"]')).length;
    const before = states();
    for (let n = 0; n < 500; n += 1) {
      broker.deliver(message(0, 'hello'));
      await pass(1);
    }
    expect(states() - before).toBeLessThanOrEqual(6);
    expect(states() - before).toBeGreaterThanOrEqual(4);
  });

  it('names an option that is wrong', () => {
    const given = { channel: broker.channel(), mirror: silent };
    expect(() => new SharedLedger({ ...given, stateEveryMs: 0 })).toThrow(
      expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field: 'options.stateEveryMs' }),
    );
    expect(() => new SharedLedger({ ...given, stateEveryMs: 100, ttlMs: 299 })).toThrow(
      expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field: 'options.ttlMs' }),
    );
  });
});

describe('two gateways with a shared ledger', () => {
  it.each([1, 2, 3])(
    'hardly send to the same engine at once, 2 ms late as they are (seed %i)',
    async (seed) => {
      // 1 ms to gather, 1 ms on the way.
      broker.lateMs = 0.5;
      const single = await herd({ seed, gateways: 1 });
      const apart = await herd({ seed, gateways: 2 });
      const shared = await herd({ seed, gateways: 2, broker });
      for (const measure of ['longestMs', 'imbalanceMs'] as const) {
        const [lost, least] = [apart[measure] - single[measure], single[measure]];
        expect(lost, 'two ledgers cost something').toBeGreaterThan(0.1 * least);
        expect(shared[measure] - least, 'of which a shared one gives back the most').toBeLessThan(0.2 * lost);
      }
    },
  );
});

const silent = { dispatched: () => true, firstToken: () => {}, ended: () => {} };
