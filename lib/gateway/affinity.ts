/**
 * Where a request had best go by the experts that those before it chose, of its tenant or of its session: what the gateway tells
 * whoever places experts, and asks of it.
 */
import type { Headers } from './inspect.js';
import type { ApiKeys } from './keys.js';
import type { FleetEngine, FleetRequest } from './types.js';

/** The experts that tokens of one key chose. */
export interface ChosenExperts {
  /** `[tokens][layers][k]`, logical experts. */
  topk: Uint8Array | Uint16Array;
  tokens: number;
  k: number;
}

export interface ExpertAffinity {
  /** The request's header, in lower case, that names its tenant. */
  readonly tenantHeader?: string;
  /** Keys that something is known of. */
  readonly keys: number;
  /** Of an answer that was sampled. */
  observe(key: string, chosen: ChosenExperts): void;
  /**
   * `[engineCount]`, ms, for `DispatchRequest.expertMs`; read before the next question. Undefined where too little is known.
   *
   * @param engineCount the fleet's numbers are below it; those of engines that have left are among them
   */
  expertMs(request: FleetRequest, engineCount: number): Float64Array | undefined;
}

/** `unknown`: too little is known of the key, or there is none. `nearest`: it went where its experts cost least; `elsewhere`: not. */
export type AffinityResult = 'unknown' | 'nearest' | 'elsewhere';

export function affinityResult(
  expertMs: Float64Array | undefined,
  sentTo: number,
  among: readonly { target: FleetEngine }[],
): AffinityResult {
  if (expertMs === undefined) return 'unknown';
  const least = among.reduce(
    (lowest, { target }) => Math.min(lowest, expertMs[target.engine]!),
    Number.POSITIVE_INFINITY,
  );
  return expertMs[sentTo]! <= least ? 'nearest' : 'elsewhere';
}

/** What a request's experts are learned by, from its headers and its session. */
export type AffinityKey = (headers: Headers, sessionKey: string | undefined) => string | undefined;

const MOST_TENANT_CHARACTERS = 512;

/**
 * The tenant that the header names, else that of the API key, else the session; behind a word that says which, so that no tenant is
 * another's session.
 */
export function affinityKeyOf(
  headers: Headers,
  sessionKey: string | undefined,
  keys: Pick<ApiKeys, 'tenantOf'>,
  tenantHeader: string | undefined,
): string | undefined {
  const named = tenantHeader === undefined ? undefined : headers[tenantHeader];
  if (typeof named === 'string' && named !== '') return `tenant ${named.slice(0, MOST_TENANT_CHARACTERS)}`;
  const owner = keys.tenantOf(headers.authorization);
  if (owner !== undefined) return `key ${owner}`;
  return sessionKey === undefined ? undefined : `session ${sessionKey}`;
}
