/**
 * A lease in Redis: a key that expires, with its owner, and a counter beside it that gives tokens. Who renews or gives back is checked by
 * Redis itself, in one step. Redis can forget: with replicas that lag it may have two holders for a moment, against which the tokens
 * stand.
 */
import { randomBytes } from 'node:crypto';
import { aboveZero, checkKeys, describe, invalid } from '../../checks.js';
import { mismatch } from '../../errors.js';
import type { Lease } from '../types.js';
import { KeptLease, type LeaseStore, type LeaseTimes } from './keeper.js';

const ACQUIRE = `if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('incr', KEYS[2]) end return 0`;
const RENEW = `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0`;
const RELEASE = `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0`;

export interface RedisLeaseOptions extends LeaseTimes {
  /** `redis://`, `rediss://` (TLS) or `unix://`, with credentials and number of the database where needed. */
  url: string;
  /** Tokens are counted in `<key>:token`. Default `gimbal:controller`. */
  key?: string;
  /** For Redis to answer in. Default 1,000. */
  answerMs?: number;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT (never repeats the URL, which may hold a password) */
export function redisLease(options: RedisLeaseOptions): Lease {
  checkKeys('options', options, ['url', 'key', 'answerMs', 'ttlMs', 'renewMs']);
  const { url, key = 'gimbal:controller', answerMs = 1000 } = options;
  if (typeof key !== 'string' || key === '') throw invalid('options.key', 'a name', describe(key));
  aboveZero('options.answerMs', answerMs);
  if (typeof url !== 'string' || !/^(rediss?|unix):\/\//.test(url)) {
    throw invalid('options.url', 'a redis:, rediss: or unix: URL', 'what is none');
  }
  return new KeptLease(new RedisStore(url, key, answerMs), options);
}

type Client = Awaited<ReturnType<typeof clientOf>>;

class RedisStore implements LeaseStore {
  readonly #url: string;
  readonly #keys: [string, string];
  readonly #answerMs: number;
  readonly #owner = randomBytes(16).toString('hex');
  #client: Client | undefined;

  constructor(url: string, key: string, answerMs: number) {
    this.#url = url;
    // In one slot of a Redis cluster.
    this.#keys = [`{${key}}`, `{${key}}:token`];
    this.#answerMs = answerMs;
  }

  async acquire(ttlMs: number): Promise<number | undefined> {
    const token = await this.#eval(ACQUIRE, String(Math.ceil(ttlMs)));
    return token === 0 ? undefined : token;
  }

  async renew(_token: number, ttlMs: number): Promise<boolean> {
    return (await this.#eval(RENEW, String(Math.ceil(ttlMs)))) === 1;
  }

  async release(): Promise<void> {
    await this.#eval(RELEASE);
  }

  async close(): Promise<void> {
    this.#client?.destroy();
    this.#client = undefined;
  }

  /** A connection that fails, or does not answer in time, is given up; the next call makes another. */
  async #eval(script: string, ...more: string[]): Promise<number> {
    this.#client ??= await clientOf(this.#url, this.#answerMs);
    const client = this.#client;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const expected = `an answer within ${this.#answerMs} ms`;
      timer = setTimeout(() => reject(mismatch('GIMBAL_IO', 'redis', expected, 'none')), this.#answerMs);
    });
    const ask = async () => {
      if (!client.isOpen) await client.connect();
      return Number(await client.eval(script, { keys: this.#keys, arguments: [this.#owner, ...more] }));
    };
    try {
      return await Promise.race([ask(), late]);
    } catch (error) {
      this.#client = undefined;
      client.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Connects once: the next attempt is the lease's. The package is loaded where there is such a lease alone. */
async function clientOf(url: string, connectTimeout: number) {
  const { createClient } = await import('redis');
  const socket = { connectTimeout, reconnectStrategy: false } as const;
  const client = createClient({ url, socket, RESP: 2, disableOfflineQueue: true });
  // What fails is said by the calls.
  client.on('error', () => {});
  return client;
}
