/** What all that ask Redis share: a client that tries once, and a limit for its answers. Imported where there is a Redis alone. */
import { createClient } from 'redis';
import { mismatch } from './errors.js';

export type RedisClient = ReturnType<typeof redisClient>;

/** Connects once: to try again is the caller's. */
export function redisClient(url: string, connectTimeout: number) {
  const socket = { connectTimeout, reconnectStrategy: false } as const;
  return createClient({ url, socket, RESP: 2, disableOfflineQueue: true });
}

/** @throws GimbalError GIMBAL_IO where the answer does not come in time */
export async function inTime<T>(answer: Promise<T>, answerMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const expected = `an answer within ${answerMs} ms`;
    timer = setTimeout(() => reject(mismatch('GIMBAL_IO', 'redis', expected, 'none')), answerMs);
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
  }
}
