/**
 * The shared ledger's channel through Redis: publish/subscribe on `<prefix>:ledger`, and a key for each gateway,
 * `<prefix>:ledger:<gateway>`. Two connections, since in Redis's older protocol one that has subscribed takes no other command.
 *
 * Whatever fails, be it a connection, a command or an answer in time, ends both connections; new ones are made after a while that
 * grows with the failures.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { aboveZero, invalid } from '../../checks.js';
import { mismatch } from '../../errors.js';
import { inTime, type RedisClient, redisClient } from '../../redis.js';
import { backoff, draws, type Pace } from '../../telemetry/pace.js';
import type { ChannelListener, LedgerChannel } from './types.js';

/** Between attempts to connect: twice this after the first failure. */
const PACE: Pace = { intervalMs: 50, maxBackoffMs: 5000, jitter: 0.1 };
const DEFAULT_ANSWER_MS = 1000;
/** A connection that has held for so long was no failure to connect. */
const HELD_MS = 10_000;

export interface RedisChannelOptions {
  /** `redis://`, `rediss://` (TLS) or `unix://`, with credentials and number of the database where needed. */
  url: string;
  /** Of the channel and of the keys. */
  prefix: string;
  /** For Redis to answer in: to connect, and each command. Default 1,000. */
  answerMs?: number;
}

interface Connection {
  redis: RedisClient;
  fail: (error: Error) => void;
}

export class RedisChannel implements LedgerChannel {
  readonly #url: string;
  readonly #topic: string;
  readonly #answerMs: number;
  readonly #draw = draws(randomInt(2 ** 32));
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;
  #connection: Connection | undefined;
  #fail: (error: Error) => void = () => {};

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option; never its credentials) */
  constructor({ url, prefix, answerMs = DEFAULT_ANSWER_MS }: RedisChannelOptions) {
    this.#url = checkUrl(url);
    this.#topic = `${prefix}:ledger`;
    this.#answerMs = aboveZero('redis.answerMs', answerMs);
  }

  open(listener: ChannelListener): void {
    this.#running ??= this.#run(listener);
  }

  async publish(text: string): Promise<void> {
    await this.#ask((redis) => redis.publish(this.#topic, text));
  }

  async write(gateway: string, state: string, ttlMs: number): Promise<void> {
    const expiration = { type: 'PX', value: Math.ceil(ttlMs) } as const;
    await this.#ask((redis) => redis.set(this.#keyOf(gateway), state, { expiration }));
  }

  async read(gateway: string): Promise<string | undefined> {
    return (await this.#ask((redis) => redis.get(this.#keyOf(gateway)))) ?? undefined;
  }

  async remove(gateway: string): Promise<void> {
    await this.#ask((redis) => redis.del(this.#keyOf(gateway)));
  }

  reset(reason: string): void {
    this.#fail(new Error(reason));
  }

  async close(): Promise<void> {
    this.#stop.abort();
    this.reset('closed');
    await this.#running;
  }

  #keyOf(gateway: string): string {
    return `${this.#topic}:${gateway}`;
  }

  async #ask<T>(command: (redis: RedisClient) => Promise<T>): Promise<T> {
    const connection = this.#connection;
    if (connection === undefined) throw mismatch('GIMBAL_IO', 'redis', 'a connection', 'none');
    try {
      return await inTime(command(connection.redis), this.#answerMs);
    } catch (error) {
      connection.fail(asError(error));
      throw error;
    }
  }

  async #run(listener: ChannelListener): Promise<void> {
    const stop = this.#stop.signal;
    let failures = 0;
    while (!stop.aborted) {
      const beganMs = performance.now();
      const { message } = await this.#connect(listener);
      if (stop.aborted) return;
      failures = performance.now() - beganMs < HELD_MS ? failures + 1 : 1;
      listener.onLost(message);
      await sleep(backoff(PACE, failures, this.#draw), undefined, { signal: stop }).catch(() => {});
    }
  }

  /** One pair of connections; resolves with what ended it. */
  async #connect(listener: ChannelListener): Promise<Error> {
    const [redis, subscriber] = [
      redisClient(this.#url, this.#answerMs),
      redisClient(this.#url, this.#answerMs),
    ];
    const ended = new Promise<Error>((resolve) => {
      this.#fail = resolve;
      for (const client of [redis, subscriber]) client.on('error', resolve);
    });
    const begun = inTime(this.#begin(redis, subscriber, listener), this.#answerMs).then(
      () => undefined,
      asError,
    );
    const failed = await Promise.race([begun, ended]);
    if (failed === undefined) {
      this.#connection = { redis, fail: this.#fail };
      listener.onOpen();
    }
    const error = failed ?? (await ended);
    this.#connection = undefined;
    for (const client of [redis, subscriber]) client.destroy();
    return error;
  }

  async #begin(redis: RedisClient, subscriber: RedisClient, listener: ChannelListener): Promise<void> {
    await Promise.all([redis.connect(), subscriber.connect()]);
    await subscriber.subscribe(this.#topic, (text) => listener.onMessage(text));
  }
}

function checkUrl(url: string): string {
  try {
    // The client knows what it takes. Nothing of the URL is repeated, since it may hold a password.
    redisClient(url, DEFAULT_ANSWER_MS);
  } catch {
    throw invalid('redis.url', 'a redis:, rediss: or unix: URL', 'what is none');
  }
  return url;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
