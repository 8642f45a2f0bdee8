/** Controllers and contenders for leases as processes of their own: killed at each step, stopped and let go on, many at once. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { type ApplyHook, fileLease, type Lease, redisLease } from '../../lib/index.js';
import { changeTraffic, observeSkewed, RULES, rig, SMALL } from '../support/controller.js';
import { NO_REDIS, startRedis, stopRedis } from '../support/redis.js';

const support = (name: string) => path.join(__dirname, '..', 'support', name);
const newFolder = () => fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-lease-'));
const children: ChildProcess[] = [];
const closers: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0)) await close();
  for (const child of children.splice(0)) child.kill('SIGKILL');
});

function start(name: string, ...words: string[]): ChildProcess {
  const child = spawn(process.execPath, ['--import', 'tsx', support(name), ...words], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  return child;
}

/** What it says until it ends. */
async function said(child: ChildProcess): Promise<string> {
  let text = '';
  child.stdout!.setEncoding('utf8').on('data', (chunk) => {
    text += chunk;
  });
  await once(child, 'close');
  return text;
}

async function until(what: () => boolean): Promise<void> {
  while (!what()) await sleep(20);
}

describe('a controller that is killed', () => {
  interface InForce {
    planId: string;
    placement: number[];
  }
  const inForceIn = (folder: string): InForce | undefined => {
    const file = path.join(folder, 'in-force.json');
    return fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : undefined;
  };

  /** The next controller over what the dead one left, in this process. */
  async function recover(folder: string) {
    const apply: ApplyHook = {
      apply: async ({ planId, placement }) => {
        fs.appendFileSync(path.join(folder, 'asked'), `${planId}\n`);
        const text = JSON.stringify({ planId, placement: Array.from(placement) });
        fs.writeFileSync(path.join(folder, 'in-force.json'), text);
      },
      verify: async () => inForceIn(folder)?.planId,
    };
    const { controller, statistics, clock } = rig({ apply, stateFile: path.join(folder, 'state') });
    closers.push(() => controller.stop());
    await controller.start();
    for (let looks = 0; looks < 3; looks++) {
      await controller.look();
      clock.advance(10 * RULES.minIntervalMs);
      observeSkewed(statistics, SMALL);
    }
    return controller;
  }

  const steps = [
    [1, 'before'], // nothing is written yet
    [2, 'before'], // intent
    [3, 'before'], // applying
    [4, 'before'], // the hook
    [4, 'after'],
    [5, 'before'], // committed
    [6, 'before'], // the record of it
    [6, 'after'],
  ] as const;

  it.each(steps)(
    'at step %i, %s it, is followed by one that knows what is in force',
    async (step, edge) => {
      const folder = newFolder();
      const child = start('controller-child.ts', folder, String(step), edge);
      await said(child);
      expect(child.signalCode, 'it died at the step').toBe('SIGKILL');
      const controller = await recover(folder);
      const inForce = inForceIn(folder)!;
      expect(controller.planId).toBe(inForce.planId);
      expect(Array.from(controller.placement)).toEqual(inForce.placement);
      expect(controller.status().state).toBe('watching');
      const asked = fs.readFileSync(path.join(folder, 'asked'), 'utf8').trim().split('\n');
      const numbers = asked.map((planId) => Number(planId.split('-')[1]));
      expect([...numbers].sort((a, b) => a - b)).toEqual(numbers);
      expect(fs.readdirSync(folder).filter((name) => name === 'state')).toHaveLength(1);
    },
    30_000,
  );

  it('has died at every step that there is', async () => {
    const count = Number(await said(start('controller-child.ts', newFolder(), '0', 'before')));
    expect(count).toBe(steps.at(-1)![0]);
  }, 30_000);
});

/** Who held it when, as the callbacks tell. */
function watch(lease: Lease) {
  const tokens: (number | undefined)[] = [];
  lease.open((token) => tokens.push(token));
  closers.push(() => lease.close());
  return tokens;
}

describe('a lease in a folder', () => {
  it('is held by one of two processes; of one that is stopped by the other, with a greater token', async () => {
    const folder = newFolder();
    const contenders = [start('lease-child.ts', folder, '1000'), start('lease-child.ts', folder, '1000')];
    const told = contenders.map(() => [] as string[]);
    contenders.forEach((child, at) => {
      child
        .stdout!.setEncoding('utf8')
        .on('data', (text: string) => told[at]!.push(...text.trim().split('\n')));
    });
    await until(() => told.some((lines) => lines.length > 0));
    await sleep(2500);
    expect(told.flat(), 'nobody else, however long it lasts').toEqual(['held 1']);
    const holder = told[0]!.length > 0 ? 0 : 1;
    const other = 1 - holder;
    contenders[holder]!.kill('SIGSTOP');
    await until(() => told[other]!.length > 0);
    expect(told[other]).toEqual(['held 2']);
    contenders[holder]!.kill('SIGCONT');
    await until(() => told[holder]!.length > 1);
    expect(told[holder]).toEqual(['held 1', 'lost']);
    await sleep(500);
    expect(told[other], 'who comes back takes nothing away').toEqual(['held 2']);
    // Given back in order: the next need not wait for the time to run out.
    contenders[other]!.kill('SIGTERM');
    await until(() => told[holder]!.length > 2);
    expect(told[holder]!.at(-1)).toBe('held 3');
  }, 30_000);

  it('is won by one of many who come at once', async () => {
    const folder = newFolder();
    const all = Array.from({ length: 12 }, () => watch(fileLease({ folder, ttlMs: 5000, renewMs: 10 })));
    await until(() => all.some((tokens) => tokens.length > 0));
    await sleep(200);
    expect(all.flat()).toEqual([1]);
  });

  it('keeps nothing that a clock of day could change', async () => {
    const folder = newFolder();
    watch(fileLease({ folder, ttlMs: 5000, renewMs: 10 }));
    await until(() => fs.existsSync(path.join(folder, 'lease.1')));
    const old = new Date(0);
    fs.utimesSync(path.join(folder, 'lease.1'), old, old);
    const other = watch(fileLease({ folder, ttlMs: 5000, renewMs: 10 }));
    await sleep(200);
    expect(other).toEqual([]);
    expect(fs.readFileSync(path.join(folder, 'lease.1'), 'utf8')).toMatch(/^[0-9a-f]{16} \d+$/);
  });

  it('is lost when its time is over without a renewal, even if the store hangs', async () => {
    const { KeptLease } = await import('../../lib/controller/lease/keeper.js');
    let renewals = 0;
    const store = {
      acquire: async () => 5,
      renew: () => {
        renewals += 1;
        return renewals < 3 ? Promise.resolve(true) : new Promise<boolean>(() => {});
      },
      release: async () => {},
    };
    const lease = new KeptLease(store, { ttlMs: 200, renewMs: 20 });
    const tokens: (number | undefined)[] = [];
    lease.open((token) => tokens.push(token));
    await until(() => tokens.length > 1);
    expect(tokens).toEqual([5, undefined]);
    expect(lease.token).toBeUndefined();
  });
});

describe.skipIf(NO_REDIS)('a lease in Redis', () => {
  it('is held by one at a time, with tokens that grow; given back, run out, or taken away', async () => {
    const folder = newFolder();
    const server = await startRedis(folder);
    closers.push(() => stopRedis(server));
    const url = `unix://${path.join(folder, 'redis.sock')}`;
    const make = () => redisLease({ url, key: 'k', ttlMs: 1000, renewMs: 50 });
    const [one, two] = [make(), make()];
    const first = watch(one);
    await until(() => first.length > 0);
    const second = watch(two);
    await sleep(1500);
    expect([first.length, second.length], 'longer than its time, since it is renewed').toEqual([1, 0]);
    const [token] = first as [number];
    await one.close();
    await until(() => second.length > 0);
    const [next] = second as [number];
    expect(next).toBeGreaterThan(token);
    expect(first).toEqual([token, undefined]);
    // Another's by the key: the holder finds out at its renewal.
    const { createClient } = await import('redis');
    const client = await createClient({ url }).connect();
    await client.set('{k}', 'another', { expiration: { type: 'PX', value: 300 } });
    await until(() => second.length > 1);
    expect(second).toEqual([next, undefined]);
    await until(() => second.length > 2);
    expect(second[2]).toBeGreaterThan(next);
    client.destroy();
    closers.reverse();
  }, 20_000);

  it('that does not answer is not held', async () => {
    const lease = redisLease({
      url: `unix://${newFolder()}/none.sock`,
      ttlMs: 200,
      renewMs: 20,
      answerMs: 50,
    });
    const tokens = watch(lease);
    await sleep(300);
    expect(tokens).toEqual([]);
    expect(() => redisLease({ url: 'http://user:secret@x' })).toThrow(/^(?!.*secret).*options.url/);
  });
});

describe('two controllers', () => {
  it('do not both act, and the next one takes over what the first was about', async () => {
    const of = rig();
    const leases = [new HandLease(), new HandLease()] as const;
    // The first one's hook cannot tell what is in force: nothing but the lease keeps it from the commit.
    const first = of.again({ lease: leases[0], apply: { apply: (change) => of.engines.apply(change) } });
    const second = of.again({ lease: leases[1] });
    closers.push(
      () => first.stop(),
      () => second.stop(),
    );
    await first.start();
    await second.start();
    expect(first.status().state).toBe('waiting-for-lease');
    expect(await first.look()).toBeUndefined();
    leases[0].give(1);
    // The lease goes while the engines are at it: the hook ends, but nothing is committed.
    of.engines.faults = [() => leases[0].take()];
    expect(await first.look()).toBeUndefined();
    expect(first.status().state).toBe('waiting-for-lease');
    expect(of.engines.changes).toHaveLength(1);
    expect(first.planId, 'nor said to be').not.toBe(of.engines.planId);
    leases[1].give(2);
    await second.look();
    expect(second.planId).toBe(of.engines.planId);
    expect(second.placement).toEqual(of.engines.placement);
    expect(second.status().fencingToken).toBe(2);
    expect(of.engines.changes[0]!.fencingToken).toBe(1);
  });

  it('of which one holds on to an old token cannot write over the other', async () => {
    const of = rig();
    const warnings: string[] = [];
    const logger = {
      info: () => {},
      warn: (fields: object, message: string) => warnings.push(`${message} ${JSON.stringify(fields)}`),
    };
    const leases = [0, 1].map(() => new HandLease());
    const [first, second] = leases.map((lease) => of.again({ lease, logger }));
    closers.push(
      () => first!.stop(),
      () => second!.stop(),
    );
    await first!.start();
    await second!.start();
    leases[0]!.give(1);
    expect(await first!.look()).toMatchObject({ decision: 'committed' });
    leases[1]!.give(2);
    await second!.look();
    const kept = fs.readFileSync(of.options.stateFile, 'utf8');
    // The first still believes that it holds it, as after a long pause, and has a reason to act.
    changeTraffic(of);
    expect(await first!.look()).toBeUndefined();
    expect(first!.status().state).toBe('waiting-for-lease');
    expect(of.engines.changes).toHaveLength(1);
    expect(fs.readFileSync(of.options.stateFile, 'utf8')).toBe(kept);
    // Nor can it take over again by that token, and it says why.
    expect(await first!.look()).toBeUndefined();
    expect(warnings.at(-1)).toMatch(
      /cannot take over .*a token of at least 2 but received 1 \(.*the lease was reset/,
    );
    expect(await second!.look()).toMatchObject({ decision: 'committed' });
    expect(of.engines.changes.map(({ fencingToken }) => fencingToken)).toEqual([1, 2]);
  });

  /** Held when the test says so. */
  class HandLease implements Lease {
    token: number | undefined;
    #onChange: (token: number | undefined) => void = () => {};

    open(onChange: (token: number | undefined) => void): void {
      this.#onChange = onChange;
    }

    give(token: number): void {
      this.token = token;
      this.#onChange(token);
    }

    take(): void {
      this.token = undefined;
      this.#onChange(undefined);
    }

    async close(): Promise<void> {}
  }
});
