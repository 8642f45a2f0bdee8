/**
 * Reads what `dashboard/state` answers. A proxy's error page or another version's answer must not reach the panels, so every
 * field is checked, by tables that the compiler holds against the types.
 */
import type { ControllerStatus, DecisionRecord } from '../../controller/types.js';
import { mismatch } from '../../errors.js';
import type { EngineSnapshot, GatewaySnapshot, Quantiles, ServerSnapshot } from '../types.js';

/** Relative to the page. */
export const STATE_URL = 'dashboard/state';

type Kind<T> = T extends number
  ? 'number'
  : T extends string
    ? 'string'
    : T extends boolean
      ? 'boolean'
      : T extends readonly (infer Item)[]
        ? [Kind<Item>]
        : Fields<T>;
type Mark<T, Key extends keyof T> = Partial<Pick<T, Key>> extends Pick<T, Key> ? '?' : '';
/** Of every field its kind; with a question mark where it may be missing, which only plain values may. */
type Fields<T> = {
  [Key in keyof T]-?: Kind<NonNullable<T[Key]>> extends infer Plain extends string
    ? `${Plain}${Mark<T, Key>}`
    : Kind<NonNullable<T[Key]>>;
};
type AnyKind = string | AnyFields | [AnyKind];
type AnyFields = { [key: string]: AnyKind };

const QUANTILES: Fields<Quantiles> = { p50: 'number?', p90: 'number?', p99: 'number?' };

const ENGINE: Fields<EngineSnapshot> = {
  engine: 'number',
  name: 'string',
  server: 'string',
  rank: 'number',
  state: 'string',
  backlogMs: 'number',
  kvMs: 'number',
  queueMs: 'number',
  moeMs: 'number',
  totalMs: 'number',
  inFlight: 'number',
  inFlightPrefillMs: 'number',
  kvUsage: 'number?',
  running: 'number?',
  waiting: 'number?',
  sampleAgeMs: 'number?',
  stale: 'boolean',
  dispatchShare: 'number',
  dispatched: 'number',
};

const SERVER: Fields<ServerSnapshot> = {
  url: 'string',
  kind: 'string',
  state: 'string',
  reason: 'string',
  ejectedForMs: 'number?',
};

const DECISION: Fields<DecisionRecord> = {
  atMs: 'number',
  decision: 'string',
  reason: 'string',
  detail: 'string?',
  planId: 'string?',
  gainMs: 'number?',
  spreadMs: 'number?',
  optimismMs: 'number?',
  costMs: 'number?',
  gainShare: 'number?',
  migrations: 'number?',
  rounds: 'number?',
  transferBytes: 'number?',
  stagingBytes: 'number?',
};

const PREVIEW: Fields<NonNullable<ControllerStatus['preview']>> = {
  gainMs: 'number',
  gainShare: 'number',
  costMs: 'number',
  migrations: 'number',
  reason: 'string',
};

const CONTROLLER: Fields<Omit<ControllerStatus, 'preview'>> = {
  state: 'string',
  shadow: 'boolean',
  planId: 'string',
  planAgeMs: 'number',
  deadGpus: ['number'],
  layers: 'number',
  gpus: 'number',
  slotsPerGpu: 'number',
  failures: 'number',
  fencingToken: 'number?',
  imbalance: ['number'],
  load: [['number']],
  decisions: [DECISION],
  history: [{ planId: 'string', atMs: 'number', migrations: 'number', gainShare: 'number' }],
};

const GATEWAY: Fields<Omit<GatewaySnapshot, 'controller'>> = {
  version: 'string',
  timeMs: 'number',
  upMs: 'number',
  policy: 'string',
  draining: 'boolean',
  engines: [ENGINE],
  servers: [SERVER],
  queue: { size: 'number', capacity: 'number', oldestMs: 'number' },
  ttftMs: QUANTILES,
  tpotMs: QUANTILES,
  queueMs: QUANTILES,
  requestsPerSecond: 'number',
  outputTokensPerSecond: 'number',
  totals: { requests: 'number', finished: 'number', failed: 'number', refused: 'number', retried: 'number' },
  config: { loadedMs: 'number', error: 'string?' },
};

/**
 * The answer as it came, once all that the page shows is there. What it does not know is let through.
 *
 * @throws GimbalError GIMBAL_FORMAT (names the field)
 */
export function readSnapshot(answer: unknown): GatewaySnapshot {
  checkFields('state', answer, GATEWAY);
  const { controller } = answer as { controller?: { preview?: unknown } };
  if (controller !== undefined) {
    checkFields('state.controller', controller, CONTROLLER);
    const { preview } = controller;
    if (preview !== undefined) checkFields('state.controller.preview', preview, PREVIEW);
  }
  return answer as GatewaySnapshot;
}

function checkFields(path: string, value: unknown, fields: AnyFields): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw mismatch('GIMBAL_FORMAT', path, 'an object', nameOf(value));
  }
  const found = value as Record<string, unknown>;
  for (const [name, kind] of Object.entries(fields)) checkField(`${path}.${name}`, found[name], kind);
}

function checkField(path: string, value: unknown, kind: AnyKind): void {
  if (Array.isArray(kind)) {
    if (!Array.isArray(value)) throw mismatch('GIMBAL_FORMAT', path, 'an array', nameOf(value));
    for (const [n, item] of value.entries()) checkField(`${path}[${n}]`, item, kind[0]);
  } else if (typeof kind === 'object') {
    checkFields(path, value, kind);
  } else {
    const optional = kind.endsWith('?');
    const plain = optional ? kind.slice(0, -1) : kind;
    if (optional && value === undefined) return;
    if (typeof value !== plain) throw mismatch('GIMBAL_FORMAT', path, `a ${plain}`, nameOf(value));
  }
}

function nameOf(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  return Array.isArray(value) ? 'an array' : typeof value === 'object' ? 'an object' : `a ${typeof value}`;
}
