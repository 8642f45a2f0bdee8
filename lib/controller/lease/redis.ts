/**
 * A lease in Redis: a key that expires, with its owner, and a counter beside it that gives tokens. Who renews or gives back is checked by
 * Redis itself, in one step. Redis can forget: with replicas that lag it may have two holders for a moment, against which the tokens
 * stand.
 */
import { randomBytes } from 'node:crypto';
import { aboveZero, checkKeys, invalid, nonEmpty } from '../../checks.js';
import type { RedisClient } from '../../redis.js';
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
  nonEmpty('options.key', key, 'a name');
  aboveZero('options.answerMs', answerMs);
  if (typeof url !== 'string' || !/^(rediss?|unix):\/\//.test(url)) {
    throw invalid('options.url', 'a redis:, rediss: or unix: URL', 'what is none');
  }
  return new KeptLease(new RedisStore(url, key, answerMs), options);
}

class RedisStore implements LeaseStore {
  readonly #url: string;
  readonly #keys: [string, string];
  readonly #answerMs: number;
  readonly #owner = randomBytes(16).toString('hex');
  #client: RedisClient | undefined;

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
    // Who has no such lease shall not need the package.
    const { inTime, redisClient } = await import('../../redis.js');
    this.#client ??= quiet(redisClient(this.#url, this.#answerMs));
    const client = this.#client;
    const ask = async () => {
      if (!client.isOpen) await client.connect();
      return Number(await client.eval(script, { keys: this.#keys, arguments: [this.#owner, ...more] }));
    };
    try {
      return await inTime(ask(), this.#answerMs);
    } catch (error) {
      this.#client = undefined;
      client.destroy();
      throw error;
    }
  }
}

/** What fails is said by the calls. */
function quiet(client: RedisClient): RedisClient {
  return client.on('error', () => {});
}
