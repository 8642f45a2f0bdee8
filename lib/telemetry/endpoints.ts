/** What can be asked of a server of each kind: where, as what, and how the answer is read. The best first. */
import { readSglangLoads, readSglangMetrics } from './sglang.js';
import type { EngineReading, ServerEndpoint, ServerKind, TelemetryServer } from './types.js';
import { readVllmMetrics } from './vllm.js';

export interface Endpoint {
  name: ServerEndpoint;
  /** Relative to the server's URL. */
  path: string;
  accept: string;
  read(text: string, source: string, server: TelemetryServer): (EngineReading & { asleep?: boolean })[];
}

/** Else client libraries may answer in OpenMetrics. */
const TEXT = 'text/plain;version=0.0.4';
const JSON_TYPE = 'application/json';

export const ENDPOINTS: Readonly<Record<ServerKind, readonly Endpoint[]>> = {
  vllm: [
    {
      name: '/metrics',
      path: 'metrics',
      accept: TEXT,
      read: (text, source) => readVllmMetrics(text, { source }),
    },
  ],
  sglang: [
    {
      name: '/v1/loads',
      // Without the sections that cost the server more and that nobody reads.
      path: 'v1/loads?include=core',
      accept: JSON_TYPE,
      read: (text, source) => readSglangLoads(text, { source }),
    },
    {
      name: '/metrics',
      path: 'metrics',
      accept: TEXT,
      read: (text, source) => readSglangMetrics(text, { source }),
    },
    {
      name: '/get_load',
      path: 'get_load',
      accept: JSON_TYPE,
      read: (text, source, { kvTokens }) =>
        readSglangLoads(text, kvTokens === undefined ? { source } : { source, kvTokens }),
    },
  ],
};

/** Those that a server may be asked, in turn. */
export function endpointsOf({ kind, endpoint, kvTokens }: TelemetryServer): readonly Endpoint[] {
  const all = ENDPOINTS[kind];
  if (endpoint !== undefined) return all.filter(({ name }) => name === endpoint);
  return all.filter(({ name }) => name !== '/get_load' || kvTokens !== undefined);
}
