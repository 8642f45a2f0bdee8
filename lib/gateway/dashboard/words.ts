/** A snapshot in words: the head line, the tiles, the cells of the tables, and what has changed. Without a browser. */
import type { ControllerStatus, DecisionRecord } from '../../controller/types.js';
import {
  formatCount,
  formatNumber,
  formatRatio,
  formatShare,
  formatTime,
  plural,
  shortCount,
} from '../../report/format.js';
import type { EngineSnapshot, GatewaySnapshot, Quantiles, ServerSnapshot } from '../types.js';

/** What stands where a figure is not known yet. */
export const UNKNOWN = '–';
/** Longer lists of changes are summed up. */
const CHANGES_TOLD = 3;
/** Of the queue's places, from which on its tile warns. */
const QUEUE_NEARLY_FULL = 0.9;

/** Rates from here on are shown without a fraction. */
const WHOLE_FROM = 100;
const DURATIONS: readonly [string, number][] = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1000],
];

export interface Words {
  /** Missing: not known yet. */
  text?: string;
  /** Something is wrong, or soon will be. */
  alert?: boolean;
}

export interface Tile extends Words {
  label: string;
  detail: string;
}

export interface Column<Row> {
  head: string;
  /** Words, not figures. */
  isText?: boolean;
  cell(row: Row): Words;
}

/** The two largest units: "3 h 12 min". */
export function formatDuration(ms: number): string {
  const largest = DURATIONS.findIndex(([, unitMs]) => ms >= unitMs);
  if (largest < 0) return '0 s';
  let restMs = ms;
  const parts: string[] = [];
  for (const [unit, unitMs] of DURATIONS.slice(largest, largest + 2)) {
    const count = Math.floor(restMs / unitMs);
    restMs -= count * unitMs;
    if (count > 0) parts.push(`${count} ${unit}`);
  }
  return parts.join(' ');
}

export function formatMs(ms: number): string {
  return formatTime(ms * 1e6);
}

function known<Value>(value: Value | undefined, format: (value: Value) => string): Words {
  return value === undefined ? {} : { text: format(value) };
}

export function headLine(snapshot: GatewaySnapshot): string {
  const configAgeMs = snapshot.timeMs - snapshot.config.loadedMs;
  return [
    `gimbal-moe ${snapshot.version}`,
    `policy ${snapshot.policy}`,
    `up ${formatDuration(snapshot.upMs)}`,
    `configuration read ${formatDuration(configAgeMs)} ago`,
  ].join(' · ');
}

/** What whoever looks at the page should know before all figures. */
export function notices({ draining, config }: GatewaySnapshot): string[] {
  return [
    ...(draining ? ['The gateway is draining: it takes no new requests.'] : []),
    ...(config.error === undefined
      ? []
      : [`The configuration was changed and cannot be used; the one before is in force. ${config.error}`]),
  ];
}

export function tiles(snapshot: GatewaySnapshot): Tile[] {
  const { queue, totals, engines } = snapshot;
  const inFlight = engines.reduce((sum, engine) => sum + engine.inFlight, 0);
  const active = engines.filter((engine) => engine.state === 'active').length;
  return [
    {
      label: 'Requests/s',
      text: formatNumber(snapshot.requestsPerSecond),
      detail: `${shortCount(totals.requests)} since the start`,
    },
    {
      label: 'Output tokens/s',
      text: tokenRate(snapshot.outputTokensPerSecond),
      detail: 'over the last minute',
    },
    {
      label: 'In flight',
      text: formatCount(inFlight),
      detail: `${formatCount(active)} of ${plural(engines.length, 'engine')} active`,
      alert: active === 0,
    },
    {
      label: 'Queue',
      text: formatCount(queue.size),
      detail: `of ${shortCount(queue.capacity)}, ${queue.size === 0 ? 'nobody waits' : `the oldest for ${formatMs(queue.oldestMs)}`}`,
      alert: queue.size > 0 && queue.size >= queue.capacity * QUEUE_NEARLY_FULL,
    },
    quantileTile('TTFT, p50', snapshot.ttftMs),
    quantileTile('TPOT, p50', snapshot.tpotMs),
    quantileTile('Queue wait, p50', snapshot.queueMs),
    {
      label: 'Failed',
      text: shortCount(totals.failed),
      detail: `${shortCount(totals.refused)} refused, ${shortCount(totals.retried)} retried`,
    },
  ];
}

function tokenRate(perSecond: number): string {
  return perSecond >= WHOLE_FROM ? shortCount(perSecond) : formatNumber(perSecond);
}

function quantileTile(label: string, { p50, p90, p99 }: Quantiles): Tile {
  const parts: string[] = [];
  if (p90 !== undefined) parts.push(`p90 ${formatMs(p90)}`);
  if (p99 !== undefined) parts.push(`p99 ${formatMs(p99)}`);
  // Lines may break between the two and not within.
  const detail = parts.map((part) => part.replaceAll(' ', '\u00a0')).join(' · ');
  return { label, ...known(p50, formatMs), detail: detail === '' ? 'none in the last minute' : detail };
}

/**
 * A name for a chart, of at most `length` characters: without the scheme, then without the domain, then without its middle,
 * since names of a fleet differ in the host and at the end.
 */
export function label(name: string, length: number): string {
  const plain = name.replace(/^https?:\/\//, '');
  if (plain.length <= length) return plain;
  // Numbers and dots alone are an address, which has no domain.
  const characters = [...plain.replace(/^([^.:#]+)\.[^:#]*[a-z][^:#]*/i, '$1…')];
  if (characters.length <= length) return characters.join('');
  const tail = Math.ceil((length - 1) * 0.6);
  return `${characters.slice(0, length - 1 - tail).join('')}…${characters.slice(-tail).join('')}`;
}

export const ENGINE_NAME: Column<EngineSnapshot> = { head: 'Engine', cell: ({ name }) => ({ text: name }) };
export const ENGINE_COLUMNS: readonly Column<EngineSnapshot>[] = [
  { head: 'State', isText: true, cell: ({ state }) => ({ text: state, alert: state !== 'active' }) },
  { head: 'Pressure, ms', cell: ({ totalMs }) => known(totalMs, formatNumber) },
  { head: 'Backlog', cell: ({ backlogMs }) => known(backlogMs, formatNumber) },
  { head: 'KV', cell: ({ kvMs }) => known(kvMs, formatNumber) },
  { head: 'Queue', cell: ({ queueMs }) => known(queueMs, formatNumber) },
  { head: 'MoE', cell: ({ moeMs }) => known(moeMs, formatNumber) },
  { head: 'Share', cell: ({ dispatchShare }) => known(dispatchShare, formatShare) },
  { head: 'Dispatched', cell: ({ dispatched }) => known(dispatched, shortCount) },
  { head: 'In flight', cell: ({ inFlight }) => known(inFlight, formatCount) },
  { head: 'KV use', cell: ({ kvUsage }) => known(kvUsage, formatShare) },
  { head: 'Running', cell: ({ running }) => known(running, formatCount) },
  { head: 'Waiting', cell: ({ waiting }) => known(waiting, formatCount) },
  { head: 'Sample age', cell: sampleAge },
];

function sampleAge({ sampleAgeMs, stale }: EngineSnapshot): Words {
  if (sampleAgeMs === undefined) return { alert: stale };
  const age = formatMs(sampleAgeMs);
  return stale ? { text: `${age}, stale`, alert: true } : { text: age };
}

export const SERVER_NAME: Column<ServerSnapshot> = { head: 'Server', cell: ({ url }) => ({ text: url }) };
export const SERVER_COLUMNS: readonly Column<ServerSnapshot>[] = [
  { head: 'Kind', isText: true, cell: ({ kind }) => ({ text: kind }) },
  {
    head: 'Telemetry',
    isText: true,
    cell: ({ state }) => (state === 'unknown' ? {} : { text: state, alert: state === 'failing' }),
  },
  {
    head: 'Stands aside',
    cell: ({ ejectedForMs }) =>
      ejectedForMs === undefined
        ? { text: 'no' }
        : { text: `for ${formatDuration(ejectedForMs)}`, alert: true },
  },
  { head: 'Reason', isText: true, cell: ({ reason }) => ({ text: reason }) },
];

/** What of the engines somebody who cannot watch should hear of. */
export function changes(before: GatewaySnapshot, after: GatewaySnapshot): string[] {
  const old = new Map(before.engines.map((engine) => [engine.engine, engine]));
  const now = new Map(after.engines.map((engine) => [engine.engine, engine]));
  const came = after.engines.filter(({ engine }) => !old.has(engine));
  const went = before.engines.filter(({ engine }) => !now.has(engine));
  const turned = after.engines.filter(
    ({ engine, state }) => old.has(engine) && old.get(engine)?.state !== state,
  );
  return [
    ...told(came, 'new', ({ name }) => `${name} is new`),
    ...told(went, 'gone', ({ name }) => `${name} is gone`),
    ...told(turned, 'in another state', ({ name, state }) => `${name} is ${state}`),
  ];
}

function told(
  engines: readonly EngineSnapshot[],
  what: string,
  sentence: (engine: EngineSnapshot) => string,
): string[] {
  if (engines.length <= CHANGES_TOLD) return engines.map(sentence);
  return [`${formatCount(engines.length)} engines are ${what}`];
}

/** A row of a time, and how long ago that was. */
export type Dated<Row> = Row & { agoMs: number };

export function dated<Row extends { atMs: number }>(rows: readonly Row[], nowMs: number): Dated<Row>[] {
  return rows.map((row) => ({ ...row, agoMs: Math.max(0, nowMs - row.atMs) }));
}

const STATES: Readonly<Record<ControllerStatus['state'], string>> = {
  stopped: 'stopped',
  'waiting-for-lease': 'waits for the lease',
  watching: 'watches',
  planning: 'plans',
  applying: 'applies a plan',
  'rolling-back': 'rolls back',
};

/** From another version there may be others. */
function said(words: Readonly<Record<string, string>>, name: string): string {
  return Object.hasOwn(words, name) ? words[name]! : name;
}

export function controllerTiles(status: ControllerStatus): Tile[] {
  const { state, shadow, failures, planId, planAgeMs, deadGpus, imbalance, gpus, layers, slotsPerGpu } =
    status;
  const worst = imbalance.reduce((most, one) => Math.max(most, one), 0);
  const mean = imbalance.reduce((sum, one) => sum + one, 0) / Math.max(1, imbalance.length);
  return [
    {
      label: 'Controller',
      text: said(STATES, state),
      detail: shadow
        ? 'shadow: it only reports'
        : failures > 0
          ? `${plural(failures, 'failure')} in a row`
          : 'it may rearrange',
      alert: failures > 0 || state === 'stopped' || state === 'rolling-back',
    },
    { label: 'Plan in force', text: planId, detail: `for ${formatDuration(planAgeMs)}` },
    {
      label: 'Imbalance, worst layer',
      ...(imbalance.length === 0 ? {} : { text: formatRatio(worst) }),
      detail: imbalance.length === 0 ? 'nothing observed' : `${formatRatio(mean)} in the mean of the layers`,
    },
    {
      label: 'GPUs',
      text: formatCount(gpus),
      detail:
        deadGpus.length === 0
          ? `${plural(slotsPerGpu, 'slot')}, ${plural(layers, 'layer')}`
          : `dead: ${deadGpus.join(', ')}`,
      alert: deadGpus.length > 0,
    },
  ];
}

const REASONS: Readonly<Record<DecisionRecord['reason'], string>> = {
  'gpus-changed': 'GPUs have gone or come',
  gain: 'it gains more than it costs',
  'backing-off': 'waits after a failure',
  'too-soon': 'too soon after the last plan',
  'too-little-data': 'too little is known of the routing',
  'stale-statistics': 'nothing new is known of the routing',
  'worse-on-audit': 'worse by a second calculation',
  'not-in-force': 'engines do not have the plan that they should have',
  'same-placement': 'the best is in force',
  'within-hysteresis': 'no worse than when it was put in force',
  'gain-too-small': 'the gain is too small',
  'gain-uncertain': 'the gain may be chance',
  'cost-above-gain': 'moving costs more than it gains',
  error: 'an error',
};

const DECISIONS: Readonly<Record<DecisionRecord['decision'], string>> = {
  committed: 'put in force',
  kept: 'kept',
  'would-commit': 'would put in force',
  failed: 'failed',
  'rolled-back': 'rolled back',
};

export function previewWords({ preview, decisions }: ControllerStatus): string {
  if (preview === undefined) {
    const [last] = decisions;
    return last === undefined ? 'No look yet.' : `No further plan: ${said(REASONS, last.reason)}.`;
  }
  const { gainMs, gainShare, costMs, migrations, reason } = preview;
  const gain = `${formatMs(gainMs)} of MoE time (${formatShare(gainShare)})`;
  return `The next plan would gain ${gain} over the horizon for ${plural(migrations, 'move')} that cost ${formatMs(costMs)}. Not put in force: ${said(REASONS, reason)}.`;
}

function ago(agoMs: number): Words {
  return { text: `${formatDuration(agoMs)} ago` };
}

export const DECISION_TIME: Column<Dated<DecisionRecord>> = { head: 'When', cell: ({ agoMs }) => ago(agoMs) };
export const DECISION_COLUMNS: readonly Column<Dated<DecisionRecord>>[] = [
  {
    head: 'Decision',
    isText: true,
    cell: ({ decision }) => ({
      text: said(DECISIONS, decision),
      alert: decision === 'failed' || decision === 'rolled-back',
    }),
  },
  { head: 'Plan', isText: true, cell: ({ planId }) => known(planId, String) },
  { head: 'Gain', cell: ({ gainShare }) => known(gainShare, formatShare) },
  { head: 'Moves', cell: ({ migrations }) => known(migrations, formatCount) },
  {
    head: 'Reason',
    isText: true,
    cell: ({ reason, detail }) => ({
      text: detail === undefined ? said(REASONS, reason) : `${said(REASONS, reason)}: ${detail}`,
    }),
  },
];

type PutInForce = Dated<ControllerStatus['history'][number]>;
export const PLAN_NAME: Column<PutInForce> = { head: 'Plan', cell: ({ planId }) => ({ text: planId }) };
export const PLAN_COLUMNS: readonly Column<PutInForce>[] = [
  { head: 'When', cell: ({ agoMs }) => ago(agoMs) },
  { head: 'Moves', cell: ({ migrations }) => known(migrations, formatCount) },
  { head: 'Gain', cell: ({ gainShare }) => known(gainShare, formatShare) },
];

/** Of a cell of the heat map. */
export function loadWords(layer: number, gpu: number, over: number): string {
  return `layer ${layer}, GPU ${gpu}: ${formatRatio(over)} of the mean`;
}
