/** Gateways that have nothing but a shared ledger: what they send is told, what others send is kept in a list. */
import { type LedgerChannel, SharedLedger } from '../../lib/gateway/shared-ledger.js';
import type { FleetRequest } from '../../lib/gateway/types.js';

export interface TestGatewayOptions {
  channel: LedgerChannel;
  /** Those that it knows. */
  engines: readonly string[];
  stateEveryMs?: number;
  clock?: () => number;
}

export type TestGateway = ReturnType<typeof createGateway>;

export function createGateway({ channel, engines, ...options }: TestGatewayOptions) {
  const mirrored = new Map<string, string>();
  /** ms, by what was told. */
  const ages: number[] = [];
  const ended: string[] = [];
  const firstTokens: string[] = [];
  const states: string[] = [];
  const known = (key: string) => {
    const found = mirrored.get(key);
    if (found === undefined) throw new Error(`expected a key that is mirrored, not ${key}`);
    return found;
  };
  const ledger = new SharedLedger({
    channel,
    ...options,
    onState: (state, reason) => states.push(`${state} ${reason}`),
    mirror: {
      dispatched(key, engine, { promptTokens, streams, ageMs }) {
        if (mirrored.has(key)) throw new Error(`expected a new key, not ${key}`);
        if (!engines.includes(engine)) return false;
        ages.push(ageMs);
        mirrored.set(key, `${engine} ${promptTokens}${streams ? '' : ' silent'}`);
        return true;
      },
      firstToken(key) {
        firstTokens.push(known(key));
      },
      ended(key, how) {
        ended.push(`${known(key)} ${how}`);
        mirrored.delete(key);
      },
    },
  });
  return {
    ledger,
    ages,
    ended,
    firstTokens,
    states,
    /** Of other gateways: engine, prompt, and whether nobody will tell the first token. */
    seen: () => [...mirrored.values()].sort(),
    send(id: string, engine: string, more: Partial<FleetRequest> = {}) {
      const server = { url: 'http://x', kind: 'vllm', pins: false, headers: {} } as const;
      const target = { engine: 0, name: engine, rank: 0, server };
      ledger.dispatched(id, target, { id, promptTokens: 100, streams: true, arrivalMs: 0, ...more });
    },
  };
}
