/** What the gateway itself answers, in the words of OpenAI's API: `{ "error": { message, type, code } }`. */
import type { IncomingMessage, ServerResponse } from 'node:http';

export interface ApiError {
  status: number;
  message: string;
  /** OpenAI's kinds: clients raise errors by status, and show these. */
  type:
    | 'invalid_request_error'
    | 'authentication_error'
    | 'rate_limit_error'
    | 'server_error'
    | 'not_found_error';
  code: string;
  headers?: Record<string, string>;
}

/** Of pages that are read. */
export const READING: readonly string[] = ['GET', 'HEAD'];

/** Ends an answer whose last bytes the client must take in time; else the connection is broken off. */
export function endWithin(response: ServerResponse, timeoutMs: number, body?: Buffer): void {
  response.end(body);
  // The system has all of it, as nearly always.
  if (response.socket?.writableLength === 0) return;
  const timer = setInterval(() => {
    // Behind another answer of its connection it is not its turn yet.
    if (response.socket !== null) response.destroy();
  }, timeoutMs);
  response.once('close', () => clearInterval(timer));
}

export function sendError(response: ServerResponse, error: ApiError): void {
  const { status, message, type, code, headers } = error;
  sendJson(response, status, { error: { message, type, code, param: null } }, headers);
}

/** Whether the request comes by one of the methods; one that does not is answered. */
export function comesBy(
  methods: readonly string[],
  request: IncomingMessage,
  response: ServerResponse,
  path: string,
): boolean {
  if (methods.includes(request.method!)) return true;
  const allow = methods.join(', ');
  sendError(response, {
    status: 405,
    message: `${path} takes ${allow}`,
    type: 'invalid_request_error',
    code: 'method_not_allowed',
    headers: { allow },
  });
  return false;
}

export function sendJson(
  response: ServerResponse,
  status: number,
  value: unknown,
  headers: Record<string, string> = {},
): void {
  if (response.headersSent || response.destroyed) return;
  const body = JSON.stringify(value);
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
    ...headers,
  });
  response.end(body);
}
