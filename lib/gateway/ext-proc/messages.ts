/**
 * Messages of the endpoint picker protocol of the Gateway API Inference Extension: what the data plane says in headers and
 * metadata, and what it is told. Names of headers and of metadata are the protocol's.
 */
import type { ApiError } from '../answers.js';
import { PIN_HEADER } from '../headers.js';
import type { FleetEngine } from '../types.js';
import {
  type CommonAnswer,
  type HeaderMutation,
  type HttpBody,
  type HttpHeaders,
  OVERWRITE_IF_EXISTS_OR_ADD,
  type ProcessingRequest,
  type ProcessingResponse,
  type Value,
} from './protocol.js';

const ENDPOINT = 'x-gateway-destination-endpoint';
const ENDPOINT_NAMESPACE = 'envoy.lb';
const SERVED = 'x-gateway-destination-endpoint-served';
const SUBSET = 'x-gateway-destination-endpoint-subset';
const SUBSET_NAMESPACE = 'envoy.lb.subset_hint';

/** Some data planes take no piece of a body above 64 KiB; what is left is for what surrounds it. */
const MOST_PIECE_BYTES = 63 * 1024;

export type HeaderRecord = Record<string, string | undefined>;

/** By lower-case name. A header that comes more than once is a list. */
export function readHeaders({ headers }: HttpHeaders): HeaderRecord {
  const read: HeaderRecord = Object.create(null);
  for (const { key = '', value = '', rawValue } of headers?.headers ?? []) {
    const name = key.toLowerCase();
    const text = rawValue === undefined || rawValue.length === 0 ? value : rawValue.toString('latin1');
    const before = read[name];
    read[name] = before === undefined ? text : `${before}, ${text}`;
  }
  return read;
}

function metadataOf(message: ProcessingRequest, namespace: string, key: string): Value | undefined {
  return message.metadataContext?.filterMetadata?.[namespace]?.fields?.[key];
}

/**
 * The endpoints that the data plane allows, each `ip:port` or an `ip` for all its ports; undefined where it allows all. A list, or
 * a text with commas: filters that copy a header into metadata write the latter.
 */
export function readSubset(message: ProcessingRequest): ReadonlySet<string> | undefined {
  const hint = metadataOf(message, SUBSET_NAMESPACE, SUBSET);
  if (hint === undefined) return undefined;
  const texts = hint.listValue?.values?.map(({ stringValue = '' }) => stringValue) ?? [
    hint.stringValue ?? '',
  ];
  const endpoints = texts.flatMap((text) => text.split(',')).map((endpoint) => endpoint.trim());
  return new Set(endpoints.filter((endpoint) => endpoint !== ''));
}

/** The endpoint that has answered; undefined where the data plane does not say. */
export function readServed(message: ProcessingRequest): string | undefined {
  return metadataOf(message, ENDPOINT_NAMESPACE, SERVED)?.stringValue;
}

/** `ip:port` of a server, as the data plane writes it; its port is there also where it is the scheme's own. */
export function endpointOf({ server }: FleetEngine): string {
  const { hostname, port, protocol } = new URL(server.url);
  return `${hostname}:${port === '' ? (protocol === 'https:' ? 443 : 80) : port}`;
}

export function isInSubset(target: FleetEngine, subset: ReadonlySet<string>): boolean {
  const endpoint = endpointOf(target);
  if (subset.has(endpoint)) return true;
  const host = endpoint.slice(0, endpoint.lastIndexOf(':'));
  return subset.has(host) || subset.has(host.replace(/^\[|\]$/g, ''));
}

function mutation(headers: Readonly<Record<string, string>>): HeaderMutation {
  return {
    setHeaders: Object.entries(headers).map(([key, value]) => ({
      header: { key, rawValue: Buffer.from(value, 'latin1') },
      // A client cannot choose its engine by sending these itself.
      appendAction: OVERWRITE_IF_EXISTS_OR_ADD,
    })),
  };
}

const CONTINUE: CommonAnswer = { response: {} };

/** The data plane goes on with what it has. */
export const carryOn = {
  requestHeaders: { requestHeaders: CONTINUE },
  requestBody: { requestBody: CONTINUE },
  requestTrailers: { requestTrailers: {} },
  responseHeaders: { responseHeaders: CONTINUE },
  responseBody: { responseBody: CONTINUE },
  responseTrailers: { responseTrailers: {} },
} as const satisfies Record<string, ProcessingResponse>;

/** Says where the request goes, in headers and in metadata: data planes heed one of the two. */
export function sendTo(target: FleetEngine, phase: 'requestHeaders' | 'requestBody'): ProcessingResponse {
  const endpoint = endpointOf(target);
  const headerMutation = mutation({
    ...target.server.headers,
    ...(target.server.pins ? { [PIN_HEADER]: String(target.rank) } : {}),
    [ENDPOINT]: endpoint,
  });
  return {
    [phase]: { response: { headerMutation, clearRouteCache: true } },
    dynamicMetadata: {
      fields: {
        [ENDPOINT_NAMESPACE]: { structValue: { fields: { [ENDPOINT]: { stringValue: endpoint } } } },
      },
    },
  };
}

/** A body on its way, unchanged: under full duplex the data plane sends on what it is sent back. */
export function echo(
  phase: 'requestBody' | 'responseBody',
  { body = Buffer.alloc(0), endOfStream = false }: HttpBody,
): ProcessingResponse[] {
  const pieces: ProcessingResponse[] = [];
  let from = 0;
  do {
    const piece = body.subarray(from, from + MOST_PIECE_BYTES);
    from += piece.length;
    const streamedResponse = { body: piece, endOfStream: endOfStream && from >= body.length };
    pieces.push({ [phase]: { response: { bodyMutation: { streamedResponse } } } });
  } while (from < body.length);
  return pieces;
}

/** The client gets this answer, and no engine gets the request. */
export function refuse({ status, message, type, code, headers }: ApiError): ProcessingResponse {
  return {
    immediateResponse: {
      status: { code: status },
      headers: mutation({ 'content-type': 'application/json', ...headers }),
      body: Buffer.from(JSON.stringify({ error: { message, type, code, param: null } })),
      // For the data plane's access log, where it must be one word.
      details: `gimbal_${code}`,
    },
  };
}
