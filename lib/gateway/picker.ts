/** The gateway as an endpoint picker: the ext-proc server over the same fleet, estimate and metrics as the proxy's. */
import type { AffinityKey } from './affinity.js';
import type { GatewayConfig } from './config.js';
import type { ExtProcServer } from './ext-proc/server.js';
import type { Fleet } from './fleet.js';
import { INFERENCE_PATHS, inspect } from './inspect.js';
import type { Logger } from './log.js';
import type { GatewayMetrics } from './metrics.js';
import { readTls } from './tls.js';
import type { TokenEstimator } from './tokens.js';

export interface PickerParts {
  fleet: Fleet;
  tokens: TokenEstimator;
  /** Missing where nobody learns experts. */
  affinityKey: AffinityKey | undefined;
  metrics: GatewayMetrics;
  log: Logger;
  /** As of now, since a reload may change it. */
  config(): GatewayConfig;
  isReady(): boolean;
}

/**
 * Listens where `extProc` says.
 *
 * @throws GimbalError GIMBAL_IO (an address that is in use, a certificate that cannot be read)
 */
export async function serveExtProc(
  parts: PickerParts,
  { host, port, tls }: NonNullable<GatewayConfig['extProc']>,
): Promise<{ server: ExtProcServer; url: string }> {
  // Who has no data plane of that kind shall not wait for gRPC to load.
  const { ExtProcServer } = await import('./ext-proc/server.js');
  const { fleet, tokens, affinityKey: keyOf, metrics, log, config, isReady } = parts;
  const server = new ExtProcServer({
    picker: fleet,
    inspect: (path, body, headers) => {
      const inspected = inspect(path, body, headers, config().sessionHeader);
      const promptTokens = tokens.estimate(inspected.model, inspected.size);
      const affinityKey = keyOf?.(headers, inspected.sessionKey);
      return { ...inspected, promptTokens, ...(affinityKey === undefined ? {} : { affinityKey }) };
    },
    log: log.child({ extProc: true }),
    get limits() {
      return config().limits;
    },
    events: {
      ended: ({ path, facts, usage, events, status = 0, firstTokenMs, totalMs }) => {
        if (firstTokenMs !== undefined) metrics.firstToken(firstTokenMs);
        metrics.answered(labelOf(path), status, totalMs, usage?.completionTokens ?? events, firstTokenMs);
        metrics.computed(facts.promptTokens, usage);
        if (usage === undefined || facts.size === undefined) return;
        tokens.learn(facts.model ?? '', facts.size, usage.promptTokens);
        metrics.counted(facts.promptTokens, usage);
      },
      refused: (path, status, totalMs) => {
        metrics.ended(labelOf(path), status, totalMs);
        if (status === 429 || status === 503) metrics.refused(status);
      },
    },
    isReady,
    ...(tls === undefined ? {} : { credentials: readTls(tls) }),
  });
  const bound = await server.listen(host, port);
  return {
    server,
    url: `grpc${tls === undefined ? '' : 's'}://${host.includes(':') ? `[${host}]` : host}:${bound}`,
  };
}

/** Clients choose paths; series must not be theirs to make. */
function labelOf(path: string): string {
  return (INFERENCE_PATHS as readonly string[]).includes(path) ? path : 'other';
}
