/** Requests between the gateway and its engines: admission, the queue, exclusion, health, reload. No server is asked: nothing polls. */
import fc from 'fast-check';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Scheduler } from '../../lib/dispatch/scheduler.js';
import { checkGatewayOptions, type GatewayOptions } from '../../lib/gateway/config.js';
import { type AcquireOptions, Fleet, RefusedError } from '../../lib/gateway/fleet.js';
import type { Assignment, FleetEngine, FleetRequest, LedgerListener } from '../../lib/gateway/types.js';

const log = pino({ level: 'silent' });
const A = 'http://127.0.0.1:1';
const B = 'http://127.0.0.1:2';

/** Names of engines that were told to be gone. */
const gone: string[] = [];

function fleetOf(options: Partial<GatewayOptions> = {}, ledger?: LedgerListener): Fleet {
  const config = checkGatewayOptions({ servers: [{ url: A }, { url: B }], seed: 1, ...options });
  const events = { dispatched: () => undefined, gone: ({ name }: FleetEngine) => gone.push(name) };
  const fleet = new Fleet(config, { log, events });
  fleet.ledger = ledger;
  return fleet;
}

let requests = 0;
function request(promptTokens = 100): FleetRequest {
  requests += 1;
  return {
    id: `r${requests}`,
    promptTokens,
    streams: true,
    arrivalMs: performance.timeOrigin + performance.now(),
  };
}

/** What a promise has come to by now. */
async function now<T>(promise: Promise<T>): Promise<T | 'waits'> {
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
  return Promise.race([promise, Promise.resolve<'waits'>('waits')]);
}

const nameOf = ({ target }: Assignment) => target.name;

describe('admission', () => {
  it('sends at once while there is room, then by remaining prefill as room comes', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 } });
    const [a, b] = [await fleet.acquire(request()), await fleet.acquire(request())];
    expect(new Set([nameOf(a), nameOf(b)])).toEqual(new Set([`${A}#0`, `${B}#0`]));
    const long = fleet.acquire(request(50_000));
    const short = fleet.acquire(request(10));
    expect([await now(long), await now(short)]).toEqual(['waits', 'waits']);
    expect(fleet.queueSnapshot()).toMatchObject({ size: 2, capacity: 1000 });
    a.finished();
    const sent = (await now(short)) as Assignment;
    expect(sent.target).toBe(a.target);
    expect(sent.waitedMs).toBeGreaterThan(0);
    expect(await now(long)).toBe('waits');
    b.failed();
    expect(nameOf((await now(long)) as Assignment)).toBe(nameOf(b));
  });

  it('goes by the prefill that waits, too', async () => {
    const fleet = fleetOf({ prefillTokensPerSecond: 1000, admission: { maxBacklogMs: 500 } });
    const [a, b] = [await fleet.acquire(request(1000)), await fleet.acquire(request(1000))];
    const third = fleet.acquire(request(10));
    expect(await now(third)).toBe('waits');
    b.firstToken();
    expect(nameOf((await now(third)) as Assignment)).toBe(nameOf(b));
    a.finished();
  });

  it('refuses with 429 what the queue has no place for', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 }, queue: { capacity: 1 } });
    for (let n = 0; n < 2; n++) await fleet.acquire(request());
    void fleet.acquire(request()).catch(() => undefined);
    const refused = await fleet.acquire(request()).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(RefusedError);
    expect(refused).toMatchObject({ status: 429, retryAfterSeconds: expect.any(Number) });
    await fleet.stop();
  });

  it('takes a request out of the queue when its client goes', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 } });
    const held = [await fleet.acquire(request()), await fleet.acquire(request())];
    const gone = new AbortController();
    const waiting = fleet.acquire(request(), { signal: gone.signal });
    gone.abort(new Error('gone'));
    await expect(waiting).rejects.toThrow('gone');
    await expect(fleet.acquire(request(), { signal: gone.signal })).rejects.toThrow('gone');
    expect(fleet.waiting).toBe(0);
    for (const one of held) one.finished();
    expect(fleet.inFlight).toBe(0);
  });

  it('keeps its limits and loses nothing, whatever comes in whatever order', async () => {
    const step = fc.oneof(
      {
        weight: 4,
        arbitrary: fc.record({ kind: fc.constant('acquire' as const), tokens: fc.nat({ max: 5000 }) }),
      },
      { weight: 3, arbitrary: fc.record({ kind: fc.constant('end' as const), which: fc.nat() }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant('token' as const), which: fc.nat() }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant('abort' as const), which: fc.nat() }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
        const told = new Map<string, string>();
        const fleet = fleetOf(
          { admission: { maxInFlight: 2 }, queue: { capacity: 5 } },
          {
            dispatched: (id) => told.set(id, 'dispatched'),
            firstToken: (id) => expect(told.get(id)).toBe('dispatched'),
            ended: (id) => expect(told.delete(id)).toBe(true),
          },
        );
        const open: { abort: AbortController; outcome: Promise<Assignment | 'refused'> }[] = [];
        const assigned: Assignment[] = [];
        for (const one of steps) {
          if (one.kind === 'acquire') {
            const abort = new AbortController();
            const outcome = fleet.acquire(request(one.tokens), { signal: abort.signal }).then(
              (assignment) => {
                assigned.push(assignment);
                return assignment;
              },
              () => 'refused' as const,
            );
            open.push({ abort, outcome });
          } else if (one.kind === 'abort' && open.length > 0) open[one.which % open.length]!.abort.abort();
          else if (one.kind === 'token' && assigned.length > 0)
            assigned[one.which % assigned.length]!.firstToken();
          else if (one.kind === 'end' && assigned.length > 0) {
            const [ended] = assigned.splice(one.which % assigned.length, 1);
            ended!.finished();
            // The second end is left out.
            ended!.failed();
          }
          await new Promise(setImmediate);
          for (const { inFlight } of fleet.engineSnapshots()) expect(inFlight).toBeLessThanOrEqual(2);
          expect(fleet.inFlight).toBe(assigned.length);
          expect(fleet.waiting).toBeLessThanOrEqual(5);
          // Nobody waits where there is room.
          if (fleet.waiting > 0) expect(assigned.length).toBe(4);
        }
        await fleet.stop();
        await Promise.all(open.map(({ outcome }) => outcome));
        for (const one of assigned) one.finished();
        expect([fleet.inFlight, fleet.waiting, told.size]).toEqual([0, 0, 0]);
      }),
      { numRuns: 60 },
    );
  });
});

describe('where a request may go', () => {
  it('is elsewhere than where it failed, unless there is no elsewhere', async () => {
    const fleet = fleetOf();
    const [a, b] = fleet.targets;
    for (let n = 0; n < 4; n++) {
      expect((await fleet.acquire(request(), { excluding: [a!] })).target).toBe(b);
      expect((await fleet.acquire(request(), { excluding: [b!] })).target).toBe(a);
    }
    expect([a, b]).toContain((await fleet.acquire(request(), { excluding: [a!, b!] })).target);
  });

  it('is among those that the caller allows, and nowhere where there are none', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 } });
    const [a, b] = fleet.targets;
    const only: AcquireOptions = { only: (target) => target === a };
    const first = await fleet.acquire(request(), only);
    expect(first.target).toBe(a);
    const second = fleet.acquire(request(), only);
    // The other engine has room, which is of no use to it.
    expect(await now(second)).toBe('waits');
    expect(await fleet.acquire(request(), { only: (target) => target === b }).then(nameOf)).toBe(`${B}#0`);
    first.finished();
    expect(((await now(second)) as Assignment).target).toBe(a);
    await expect(fleet.acquire(request(), { only: () => false })).rejects.toMatchObject({ status: 503 });
  });
});

describe('requests that may not go everywhere', () => {
  it('keep nobody from engines that they cannot use, not even where they fill the queue', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 2 }, queue: { capacity: 3 } });
    const [a, b] = fleet.targets;
    const only: AcquireOptions = { only: (target) => target === a };
    const held = [await fleet.acquire(request(), only), await fleet.acquire(request(), only)];
    const waiting = [1, 2, 3].map(() => fleet.acquire(request(), only));
    for (const one of waiting) expect(await now(one)).toBe('waits');
    const others = [await fleet.acquire(request()), await fleet.acquire(request())];
    expect(others.map(({ target }) => target)).toEqual([b, b]);
    await expect(fleet.acquire(request())).rejects.toMatchObject({ status: 429 });
    held[0]!.finished();
    expect(((await now(waiting[0]!)) as Assignment).target).toBe(a);
    expect(await now(waiting[1]!)).toBe('waits');
    // Now that somebody waits whom any engine would do, room goes to it in its turn.
    const last = fleet.acquire(request());
    others[0]!.finished();
    expect(((await now(last)) as Assignment).target).toBe(b);
    await fleet.stop();
    for (const one of waiting.slice(1)) await expect(one).rejects.toMatchObject({ status: 503 });
  });
});

it('room that comes free and that those who wait cannot use is there for who comes', async () => {
  const fleet = fleetOf({ admission: { maxInFlight: 1 } });
  const [a] = fleet.targets;
  const only: AcquireOptions = { only: (target) => target === a };
  await fleet.acquire(request(), only);
  const other = await fleet.acquire(request());
  const waiting = fleet.acquire(request(), only);
  expect(await now(waiting)).toBe('waits');
  other.finished();
  expect(await now(waiting)).toBe('waits');
  expect(fleet.acquireNow(request())?.target).toBe(other.target);
  await fleet.stop();
  await expect(waiting).rejects.toMatchObject({ status: 503 });
});

describe('with the clock in hand', () => {
  beforeEach(() => vi.useFakeTimers());
  afterEach(() => vi.useRealTimers());

  it('refuses with 503 what has waited too long', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 }, queue: { maxWaitMs: 5000 } });
    for (let n = 0; n < 2; n++) await fleet.acquire(request());
    const waiting = fleet.acquire(request());
    const outcome = waiting.catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(4999);
    expect(fleet.waiting).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(await outcome).toMatchObject({ status: 503 });
    expect(fleet.waiting).toBe(0);
    const gone = new AbortController();
    const leaving = fleet.acquire(request(), { signal: gone.signal }).catch(() => 'gone');
    expect(vi.getTimerCount()).toBe(1);
    gone.abort();
    expect(await leaving).toBe('gone');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('lets a server that fails stand aside, ever longer, and takes it back', async () => {
    const fleet = fleetOf();
    const [a, b] = fleet.targets;
    const isOut = () => fleet.engineSnapshots()[0]!.state === 'asleep';
    let expectedMs = 1000;
    for (let n = 0; n < 7; n++) {
      fleet.reportFailure(a!, 'refused');
      fleet.reportFailure(a!, 'refused');
      for (let k = 0; k < 3; k++) expect((await fleet.acquire(request())).target).toBe(b);
      expect(fleet.serverSnapshots()[0]!.ejectedForMs).toBeCloseTo(expectedMs, 0);
      await vi.advanceTimersByTimeAsync(expectedMs - 1);
      expect(isOut()).toBe(true);
      await vi.advanceTimersByTimeAsync(1);
      expect(isOut()).toBe(false);
      expectedMs = Math.min(30_000, expectedMs * 2);
    }
    fleet.reportSuccess(a!);
    fleet.reportFailure(a!, 'refused');
    expect(fleet.serverSnapshots()[0]!.ejectedForMs).toBeCloseTo(1000, 0);
  });

  it('holds requests while every server stands aside', async () => {
    const fleet = fleetOf();
    for (const target of fleet.targets) fleet.reportFailure(target, 'refused');
    expect(fleet.isServing).toBe(false);
    const waiting = fleet.acquire(request());
    await vi.advanceTimersByTimeAsync(999);
    expect(fleet.waiting).toBe(1);
    await vi.advanceTimersByTimeAsync(2);
    expect((await waiting).target).toBeDefined();
  });
});

describe('what other gateways send', () => {
  it('counts for dispatch and admission until it has ended, and never as ours', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 } });
    const sent = { promptTokens: 5000, streams: true, ageMs: 1 };
    expect(fleet.mirror.dispatched('x', `${A}#9`, sent)).toBe(false);
    expect(fleet.mirror.dispatched('x', `${A}#0`, sent)).toBe(true);
    expect((await fleet.acquire(request())).target.name).toBe(`${B}#0`);
    expect([fleet.inFlight, fleet.engineSnapshots()[0]!.inFlight]).toEqual([1, 0]);
    expect(fleet.engineSnapshots()[0]!.backlogMs).toBeGreaterThan(200);
    const waiting = fleet.acquire(request());
    expect(await now(waiting)).toBe('waits');
    fleet.mirror.firstToken('x');
    fleet.mirror.ended('x', 'finished');
    fleet.mirror.ended('x', 'finished');
    expect(nameOf((await now(waiting)) as Assignment)).toBe(`${A}#0`);
    expect(fleet.inFlight).toBe(2);
  });
});

describe('what the placement side tells', () => {
  it('reaches the engines by their names, and nobody where a name is not known', async () => {
    const fleet = fleetOf({ weights: { moe: 1 } });
    fleet.setExpertPressure(
      new Map([
        [`${B}#0`, { moePressure: 1 }],
        ['http://127.0.0.1:3#0', { moePressure: 2 }],
      ]),
    );
    const sent = await fleet.acquire(request());
    const [a, b] = fleet.engineSnapshots();
    expect([a!.name, a!.moeMs]).toEqual([`${A}#0`, 0]);
    expect(b!.moeMs).toBeGreaterThan(0);
    sent.finished();
  });
});

describe('a reload', () => {
  it('sends nothing to a server that has left, and forgets it with its last request', async () => {
    const fleet = fleetOf();
    const [a] = fleet.targets;
    const held = await fleet.acquire(request(), { only: (target) => target === a });
    const config = checkGatewayOptions({ servers: [{ url: B }, { url: 'http://127.0.0.1:3', ranks: 2 }] });
    fleet.reload(config);
    const names = fleet.targets.map(({ name }) => name);
    expect(names).toEqual([`${B}#0`, 'http://127.0.0.1:3#0', 'http://127.0.0.1:3#1']);
    const used = new Set<string>();
    for (let n = 0; n < 12; n++) used.add(nameOf(await fleet.acquire(request())));
    expect(used).toEqual(new Set(names));
    expect(fleet.inFlight).toBe(13);
    gone.length = 0;
    held.finished();
    expect(fleet.inFlight).toBe(12);
    expect(gone).toEqual([`${A}#0`]);
    fleet.reload(checkGatewayOptions({ servers: [{ url: B, ranks: 2 }] }));
    expect(gone).not.toContain(`${B}#0`);
  });

  it('that cannot be taken changes nothing', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 } });
    fleet.start();
    const before = fleet.targets;
    const kvEvents = [{ endpoint: 'tcp://;:1' }];
    const config = checkGatewayOptions({ servers: [{ url: 'http://127.0.0.1:3', kvEvents }] });
    expect(() => fleet.reload(config)).toThrow('endpoint');
    expect(fleet.targets).toEqual(before);
    for (let n = 0; n < 2; n++) expect(fleet.acquireNow(request())).toBeDefined();
    expect(fleet.acquireNow(request())).toBeUndefined();
    await fleet.stop();
  });

  it('leaves nothing behind of servers that are gone for requests to look at', () => {
    const fleet = fleetOf();
    const servers = [{ url: A }, { url: B }];
    for (const ranks of [2, 3, 1])
      fleet.reload(checkGatewayOptions({ servers: [{ url: A, ranks }, servers[1]!] }));
    const dispatch = vi.spyOn(Scheduler.prototype, 'dispatch');
    expect(fleet.acquireNow(request())).toBeDefined();
    expect(dispatch.mock.calls[0]![0].excluding).toBeUndefined();
    dispatch.mockRestore();
  });

  it('that changes a server makes it another one', async () => {
    const fleet = fleetOf();
    const before = fleet.targets;
    fleet.reload(checkGatewayOptions({ servers: [{ url: A, ranks: 2 }, { url: B }] }));
    expect(fleet.targets.map(({ engine }) => engine).toSorted()).toEqual([1, 2, 3]);
    expect(fleet.targets).toContain(before[1]);
  });

  it('keeps what waits, in the new order', async () => {
    const fleet = fleetOf({ admission: { maxInFlight: 1 }, queue: { policy: 'fcfs' } });
    const held = [await fleet.acquire(request()), await fleet.acquire(request())];
    const [long, short] = [fleet.acquire(request(40_000)), fleet.acquire(request(1))];
    fleet.reload(checkGatewayOptions({ servers: [{ url: A }, { url: B }], admission: { maxInFlight: 1 } }));
    held[0]!.finished();
    expect(await now(short)).not.toBe('waits');
    expect(await now(long)).toBe('waits');
    await fleet.stop();
    await expect(long).rejects.toMatchObject({ status: 503 });
  });
});
