/** Which headers pass, in both directions: not those that belong to one connection, and none that the gateway sets itself. */
import type { IncomingHttpHeaders } from 'node:http';

/** RFC 9110, 7.6.1. */
const OF_A_CONNECTION = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
];
const NOT_FORWARDED = new Set([
  ...OF_A_CONNECTION,
  'host',
  'content-length',
  'expect',
  // Answers are read as they pass, so they shall not be compressed.
  'accept-encoding',
  'x-data-parallel-rank',
]);
const NOT_ANSWERED = new Set(OF_A_CONNECTION);

export const PIN_HEADER = 'x-data-parallel-rank';

export type HeaderBag = Record<string, string | string[]>;

export interface ForwardOptions {
  requestId: string;
  clientAddress: string | undefined;
  secure: boolean;
  /** The client's authorization was for the gateway. */
  dropsAuthorization: boolean;
  /** The server's own. */
  extra: Readonly<Record<string, string>>;
}

export function forwardedHeaders(headers: IncomingHttpHeaders, options: ForwardOptions): HeaderBag {
  const kept = without(headers, NOT_FORWARDED);
  if (options.dropsAuthorization) delete kept.authorization;
  kept['x-request-id'] = options.requestId;
  const { clientAddress } = options;
  if (clientAddress !== undefined) {
    const before = kept['x-forwarded-for'];
    kept['x-forwarded-for'] = before === undefined ? clientAddress : `${String(before)}, ${clientAddress}`;
  }
  kept['x-forwarded-proto'] ??= options.secure ? 'https' : 'http';
  return { ...kept, ...options.extra };
}

export function answeredHeaders(headers: IncomingHttpHeaders, requestId: string): HeaderBag {
  const kept = without(headers, NOT_ANSWERED);
  kept['x-request-id'] = requestId;
  return kept;
}

function without(headers: IncomingHttpHeaders, dropped: ReadonlySet<string>): HeaderBag {
  // `Connection` names further headers of its connection; an answer's may be an array, whatever its type says.
  const named = String(headers.connection ?? '')
    .toLowerCase()
    .split(',')
    .map((name) => name.trim());
  const kept: HeaderBag = {};
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined && !dropped.has(name) && !named.includes(name)) kept[name] = value;
  }
  return kept;
}

const REQUEST_ID = /^[\x21-\x7e]{1,128}$/;

/** The client's, where it is one that can be logged as it is. */
export function requestIdOf(headers: IncomingHttpHeaders, next: () => string): string {
  const given = headers['x-request-id'];
  return typeof given === 'string' && REQUEST_ID.test(given) ? given : next();
}
