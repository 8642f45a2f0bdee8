/** A request's body, whole and bounded: it is looked at before it is sent, and may be sent more than once. */
import type { IncomingMessage } from 'node:http';
import { GimbalError } from '../errors.js';
import type { ApiError } from './answers.js';

export class BodyTooLongError extends Error {
  readonly limitBytes: number;

  constructor(limitBytes: number) {
    super(`the body is longer than ${limitBytes} bytes`);
    this.name = 'BodyTooLongError';
    this.limitBytes = limitBytes;
  }
}

/**
 * What is too long is read to its end all the same, and thrown away: a connection that is closed before takes the answer with it.
 * How long that may take, the server's time-out of requests says.
 *
 * @throws BodyTooLongError; what the request fails with where the client goes away
 */
export function readBody(request: IncomingMessage, limitBytes: number): Promise<Buffer> {
  const declared = Number(request.headers['content-length'] ?? 0);
  return new Promise((resolve, reject) => {
    if (declared > limitBytes) return reject(new BodyTooLongError(limitBytes));
    const chunks: Buffer[] = [];
    let bytes = 0;
    let isTooLong = false;
    request.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes <= limitBytes) chunks.push(chunk);
      else if (!isTooLong) {
        isTooLong = true;
        chunks.length = 0;
        reject(new BodyTooLongError(limitBytes));
      }
    });
    request.once('end', () => resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes)));
    request.once('error', reject);
    request.once('close', () => {
      // Every request closes; an error takes longer to make than its body took to read.
      if (!request.complete) reject(new Error('the client has gone'));
    });
  });
}

/** What to answer where a body could not be taken: it is too long, or a check has thrown. Undefined where it is no fault of the client. */
export function refusalOf(error: unknown, code: string): ApiError | undefined {
  const type = 'invalid_request_error';
  if (error instanceof BodyTooLongError) {
    return { status: 413, message: error.message, code: 'body_too_long', type };
  }
  return error instanceof GimbalError ? { status: 400, message: error.message, code, type } : undefined;
}
