/** One GET whose answer is bounded in size. Time is the caller's matter: the signal ends everything, the body included. */
import { GimbalError, mismatch } from '../errors.js';
import { decodeText } from '../import/text.js';

/** Bytes of one answer, after decompression. */
export const MAX_BODY_BYTES = 8 * 1024 * 1024;
const OK = 200;

export interface Answer {
  status: number;
  /** Empty unless the status is 200. */
  text: string;
}

export interface GetOptions {
  fetch: typeof globalThis.fetch;
  headers: Headers;
  signal: AbortSignal;
}

/** @throws GimbalError GIMBAL_IO (no answer, or half of one), GIMBAL_FORMAT (too long, not UTF-8); what `signal` is aborted with */
export async function get(url: string, options: GetOptions): Promise<Answer> {
  const { fetch, headers, signal } = options;
  let bytes: Uint8Array;
  try {
    const response = await fetch(url, { headers, signal });
    if (response.status !== OK) {
      // Else the connection is not used again.
      await response.body?.cancel();
      return { status: response.status, text: '' };
    }
    bytes = await readBody(response, url);
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof GimbalError) throw error;
    throw mismatch('GIMBAL_IO', url, 'an answer', reasonOf(error), error);
  }
  return { status: OK, text: decodeText(bytes, url) };
}

async function readBody({ body }: Response, url: string): Promise<Uint8Array> {
  if (body === null) return new Uint8Array(0);
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  // Leaving the loop cancels the rest.
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) {
      throw mismatch('GIMBAL_FORMAT', url, `at most ${MAX_BODY_BYTES} bytes`, `${bytes} bytes or more`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, bytes);
}

/** fetch says "fetch failed", and why in the cause, which for several addresses is a list. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  const inner = cause instanceof AggregateError ? cause.errors[0] : cause;
  return inner instanceof Error ? `${error.message}: ${inner.message}` : error.message;
}
