/** Snapshots of a gateway for the dashboard's tests. */
import type { ControllerStatus } from '../../lib/controller/types.js';
import type { EngineSnapshot, GatewaySnapshot } from '../../lib/gateway/types.js';

/** Figures that differ from engine to engine and from term to term, so that one shown for another is seen. */
export function engineSnapshot(engine: number, changed: Partial<EngineSnapshot> = {}): EngineSnapshot {
  const server = `http://10.0.0.${1 + Math.floor(engine / 8)}:8000`;
  const rank = engine % 8;
  const terms = {
    backlogMs: 40 + engine * 3,
    kvMs: 25 + engine,
    queueMs: 6 + (engine % 5),
    moeMs: 2 + (engine % 3),
  };
  return {
    engine,
    name: `${server}#${rank}`,
    server,
    rank,
    state: 'active',
    ...terms,
    totalMs: terms.backlogMs + terms.kvMs + terms.queueMs + terms.moeMs,
    inFlight: 3 + (engine % 4),
    inFlightPrefillMs: 12,
    kvUsage: 0.31 + (engine % 50) / 100,
    running: 11 + engine,
    waiting: engine % 3,
    sampleAgeMs: 40 + engine,
    stale: false,
    dispatchShare: 0.1,
    dispatched: 1000 + engine,
    ...changed,
  };
}

/** A gateway of some engines, eight to a server, `seconds` after another. */
export function gatewaySnapshot(
  engines: number,
  seconds = 0,
  changed: Partial<GatewaySnapshot> = {},
): GatewaySnapshot {
  const list = Array.from({ length: engines }, (_, engine) =>
    engineSnapshot(engine, { dispatchShare: 1 / engines }),
  );
  const urls = [...new Set(list.map(({ server }) => server))];
  return {
    version: '0.0.0-test',
    timeMs: 1_700_000_000_000 + seconds * 1000,
    upMs: 11_520_000 + seconds * 1000,
    policy: 'gimbal',
    draining: false,
    engines: list,
    servers: urls.map((url) => ({ url, kind: 'vllm', state: 'ok', reason: 'reads /metrics' })),
    queue: { size: 7, capacity: 1024, oldestMs: 350 },
    ttftMs: { p50: 120, p90: 340, p99: 910 },
    tpotMs: { p50: 21, p90: 28, p99: 44 },
    queueMs: { p50: 3, p90: 15, p99: 80 },
    requestsPerSecond: 12.5,
    outputTokensPerSecond: 4321,
    totals: { requests: 54_321, finished: 54_300, failed: 2, refused: 5, retried: 9 },
    config: { loadedMs: 1_700_000_000_000 - 600_000 },
    ...changed,
  };
}

/** A controller whose worst cell is layer 1, GPU 2. */
export function controllerStatus(changed: Partial<ControllerStatus> = {}): ControllerStatus {
  const atMs = 1_700_000_000_000 - 90_000;
  return {
    state: 'watching',
    shadow: false,
    planId: '17',
    planAgeMs: 3_700_000,
    deadGpus: [],
    layers: 2,
    gpus: 4,
    slotsPerGpu: 3,
    failures: 0,
    imbalance: [1.1, 1.75],
    load: [
      [0.9, 1, 1, 1.1],
      [0.5, 1, 1.75, 0.75],
    ],
    preview: { gainMs: 250, gainShare: 0.032, costMs: 900, migrations: 5, reason: 'cost-above-gain' },
    decisions: [
      {
        atMs,
        decision: 'kept',
        reason: 'cost-above-gain',
        gainMs: 250,
        costMs: 900,
        gainShare: 0.032,
        migrations: 5,
      },
      {
        atMs: atMs - 60_000,
        decision: 'failed',
        reason: 'error',
        detail: 'the hook timed out',
        planId: '17',
      },
    ],
    history: [
      { planId: '17', atMs: atMs - 3_610_000, migrations: 40, gainShare: 0.21 },
      { planId: '16', atMs: atMs - 7_200_000, migrations: 64, gainShare: 0.18 },
    ],
    ...changed,
  };
}
