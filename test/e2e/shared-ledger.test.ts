/** Gateways that share their ledger through a real Redis: what they tell each other, and what becomes of it when Redis goes. */
import type { ChildProcess } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from 'redis';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { RedisChannel } from '../../lib/gateway/ledger/redis-channel.js';
import type { SharedLedger } from '../../lib/gateway/shared-ledger.js';
import { createGateway, type TestGateway } from '../support/ledgers.js';
import { NO_REDIS as missing, startRedis, stopRedis } from '../support/redis.js';

/** Far longer than anything here takes; what is waited for is an event. */
const until = <T>(check: () => T) => vi.waitFor(check, { timeout: 30_000, interval: 10 });

describe.skipIf(missing)(
  `a ledger shared through Redis${missing ? ' (skipped: no redis-server)' : ''}`,
  () => {
    let folder: string;
    let server: ChildProcess;
    const gateways: TestGateway[] = [];

    beforeEach(async () => {
      folder = await mkdtemp(join(tmpdir(), 'gimbal-redis-'));
      server = await startRedis(folder);
    });

    afterEach(async () => {
      server.kill('SIGCONT');
      await Promise.all(gateways.splice(0).map(({ ledger }) => ledger.stop()));
      await stopRedis(server);
      await rm(folder, { recursive: true });
    });

    const url = (user = '') => `unix://${user}${join(folder, 'redis.sock')}`;

    async function joining(user?: string): Promise<TestGateway> {
      const channel = new RedisChannel({ url: url(user), prefix: 'test', answerMs: 500 });
      const gateway = createGateway({ channel, engines: ['a', 'b'], stateEveryMs: 500 });
      gateways.push(gateway);
      gateway.ledger.start();
      await until(() => expect(gateway.ledger.status.state).toBe('ok'));
      return gateway;
    }

    it('shows each gateway what the others have outstanding, also one that comes later', async () => {
      const [one, other] = [await joining(), await joining()];
      one.send('r1', 'a', { promptTokens: 700 });
      one.send('r2', 'b', { promptTokens: 20, streams: false });
      await until(() => expect(other.seen()).toEqual(['a 700', 'b 20 silent']));
      one.ledger.firstToken('r1');
      other.send('r1', 'b', { promptTokens: 5 });
      await until(() => expect(other.seen()).toEqual(['b 20 silent']));
      const late = await joining();
      await until(() => expect(late.seen()).toEqual(['b 20 silent', 'b 5']));
      await until(() => expect(one.seen()).toEqual(['b 5']));
      one.ledger.ended('r2', 'finished');
      await until(() => expect(late.seen()).toEqual(['b 5']));
      expect(late.ended).toEqual(['b 20 silent finished']);
      expect(late.ledger.status).toMatchObject({
        state: 'ok',
        gateways: 2,
        mirrored: 1,
        counts: { ignored: 0 },
      });
      await until(() => expect(late.ledger.status.echoMs).toBeGreaterThanOrEqual(0));
    });

    it('forgets at once a gateway that says goodbye, and removes its key', async () => {
      const [one, other] = [await joining(), await joining()];
      one.send('r', 'a');
      await until(() => expect(other.seen()).toHaveLength(1));
      await gateways.shift()!.ledger.stop();
      await until(() => expect(other.ledger.status.gateways).toBe(0));
      expect(other.ended).toEqual(['a 100 failed']);
      expect(other.ledger.status.counts.lost).toBe(0);
      expect(await keys(url())).toHaveLength(1);
    });

    it('goes on without Redis, and makes up for it when Redis is there again', async () => {
      const [one, other] = [await joining(), await joining()];
      one.send('before', 'a', { promptTokens: 1 });
      await until(() => expect(other.seen()).toEqual(['a 1']));
      await stopRedis(server);
      await until(() => expect([stateOf(one.ledger), stateOf(other.ledger)]).toEqual(['failing', 'failing']));
      expect(one.ledger.status.reason).not.toBe('');
      one.ledger.ended('before', 'finished');
      one.send('meanwhile', 'b', { promptTokens: 2 });
      await until(() => expect(other.seen(), 'gone after the TTL').toEqual([]));
      server = await startRedis(folder);
      await until(() => expect(other.seen()).toEqual(['b 2']));
      expect([stateOf(one.ledger), stateOf(other.ledger)]).toEqual(['ok', 'ok']);
      one.send('after', 'a', { promptTokens: 3 });
      await until(() => expect(other.seen()).toEqual(['a 3', 'b 2']));
    });

    it('says that Redis is failing where it does not answer, and dispatch does not wait', async () => {
      const one = await joining();
      server.kill('SIGSTOP');
      for (let n = 0; n < 20_000; n += 1) one.send(`r${n}`, 'a');
      await until(() =>
        expect(one.ledger.status).toMatchObject({
          state: 'failing',
          reason: expect.stringContaining('within 500 ms'),
        }),
      );
      server.kill('SIGCONT');
      await until(() => expect(stateOf(one.ledger)).toBe('ok'));
      const late = await joining();
      await until(() => expect(late.seen()).toHaveLength(20_000));
    });

    it('says why where Redis refuses a command', async () => {
      const one = await joining();
      const admin = await connected(url());
      await admin.sendCommand(['ACL', 'SETUSER', 'default', '-set']);
      await until(() =>
        expect(one.ledger.status).toMatchObject({
          state: 'failing',
          reason: expect.stringContaining('NOPERM'),
        }),
      );
      await admin.sendCommand(['ACL', 'SETUSER', 'default', '+set']);
      admin.destroy();
      await until(() => expect(stateOf(one.ledger)).toBe('ok'));
    });

    it('needs no more of Redis than a user may do who is to have little', async () => {
      const admin = await connected(url());
      const keys = ['resetchannels', '&test:ledger', '~test:ledger:*'];
      const commands = ['-@all', '+publish', '+subscribe', '+get', '+set', '+del', '+select'];
      await admin.sendCommand(['ACL', 'SETUSER', 'gateway', 'on', '>secret', ...keys, ...commands]);
      admin.destroy();
      const [one, other] = [await joining('gateway:secret@'), await joining('gateway:secret@')];
      one.send('r', 'a');
      await until(() => expect(other.seen()).toEqual(['a 100']));
      await until(() => expect(other.ledger.status.counts.reads).toBeGreaterThan(0));
      expect(other.states).toEqual(['ok connected']);
    });

    it('is given no more than a URL of Redis, whose password no message repeats', () => {
      for (const wrong of [
        'http://:secret@localhost',
        'localhost',
        'redis://:secret@host:port',
        'unix:///',
      ]) {
        let thrown: unknown;
        try {
          new RedisChannel({ url: wrong, prefix: 'test' });
        } catch (error) {
          thrown = error;
        }
        expect(thrown).toMatchObject({ code: 'GIMBAL_INVALID_INPUT', field: 'redis.url' });
        expect(String(thrown)).not.toContain('secret');
      }
    });
  },
);

function stateOf({ status }: SharedLedger): string {
  return status.state;
}

async function connected(url: string) {
  return await createClient({ url })
    .on('error', () => {})
    .connect();
}

async function keys(url: string): Promise<string[]> {
  const client = await connected(url);
  const found = await client.keys('*');
  client.destroy();
  return found;
}
