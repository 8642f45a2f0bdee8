/**
 * A hook that tells a server: POST of the change as JSON, answered by any 2xx once the engines have it; GET of the plan in force, as JSON
 * `{"planId": "…"}`. Redirects are not followed: whom a change is for is said by the URL alone.
 */
import { checkKeys, describe, invalid } from '../../checks.js';
import { mismatch } from '../../errors.js';
import type { ApplyHook } from '../types.js';
import { toWire } from './wire.js';

const MOST_ANSWER = 64 * 1024;

export interface HttpHookOptions {
  url: string;
  /** Default: nobody is asked. */
  verifyUrl?: string;
  /** For example an Authorization. */
  headers?: Readonly<Record<string, string>>;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT */
export function httpHook(options: HttpHookOptions): ApplyHook {
  checkKeys('options', options, ['url', 'verifyUrl', 'headers']);
  const { headers = {}, verifyUrl } = options;
  const url = checkUrl('options.url', options.url);
  // The controller's limits hold; undici's own would end a long change.
  const limits = { headersTimeout: 0, bodyTimeout: 0 } as const;
  const apply: ApplyHook['apply'] = async (change, signal) => {
    const { request } = await import('undici');
    const { statusCode, body } = await request(url, {
      method: 'POST',
      headers: {
        ...headers,
        'content-type': 'application/json',
        'x-gimbal-plan-id': change.planId,
        'x-gimbal-fencing-token': String(change.fencingToken),
      },
      body: JSON.stringify(toWire(change)),
      signal,
      ...limits,
    });
    const text = await textOf(body);
    if (statusCode >= 200 && statusCode < 300) return;
    throw mismatch('GIMBAL_IO', url, 'an answer of 2xx', `${statusCode} ${text.slice(0, 200)}`.trim());
  };
  if (verifyUrl === undefined) return { apply };
  const asked = checkUrl('options.verifyUrl', verifyUrl);
  return {
    apply,
    verify: async (signal) => {
      const { request } = await import('undici');
      const { statusCode, body } = await request(asked, { headers, signal, ...limits });
      const text = await textOf(body);
      if (statusCode !== 200) return undefined;
      const { planId } = JSON.parse(text) as { planId?: unknown };
      return typeof planId === 'string' ? planId : undefined;
    },
  };
}

function checkUrl(field: string, url: string): string {
  if (URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)) return url;
  // It may hold a password.
  throw invalid(field, 'an http or https URL', typeof url === 'string' ? 'what is none' : describe(url));
}

async function textOf(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > MOST_ANSWER)
      throw mismatch('GIMBAL_IO', 'the answer', `at most ${MOST_ANSWER} bytes`, 'more');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
