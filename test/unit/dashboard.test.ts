/** The dashboard without a browser: what it takes for a state, what it keeps, when it asks, and how it puts things. */
import { createHash } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { GAP_MS, HISTORY_MS, History, type Moment } from '../../lib/gateway/dashboard/history.js';
import { dashboardHtml, dashboardPolicy } from '../../lib/gateway/dashboard/html.js';
import { PACE, Poller, TIMEOUT_MS } from '../../lib/gateway/dashboard/poller.js';
import { readSnapshot } from '../../lib/gateway/dashboard/snapshot.js';
import {
  changes,
  controllerTiles,
  DECISION_COLUMNS,
  DECISION_TIME,
  dated,
  ENGINE_COLUMNS,
  formatDuration,
  headLine,
  label,
  loadWords,
  notices,
  PLAN_COLUMNS,
  previewWords,
  SERVER_COLUMNS,
  tiles,
  type Words,
} from '../../lib/gateway/dashboard/words.js';
import type { EngineSnapshot, GatewaySnapshot, ServerSnapshot } from '../../lib/gateway/types.js';
import { shortCount } from '../../lib/report/format.js';
import { controllerStatus, engineSnapshot, gatewaySnapshot } from './dashboard-fixture.js';

type Json = { [key: string]: unknown };

describe('readSnapshot', () => {
  /** As it comes over the wire. */
  const wire = (changed: Partial<GatewaySnapshot> = {}) =>
    JSON.parse(JSON.stringify(gatewaySnapshot(2, 0, changed))) as Json;
  const at = (root: Json, path: readonly string[]) =>
    path.reduce((value, key) => value[key] as Json, root) as Json;

  it('takes what a gateway answers, and what it does not know too', () => {
    const answer = { ...wire(), later: { panels: [1] } };
    expect(readSnapshot(answer)).toEqual(answer);
    expect(readSnapshot(wire({ engines: [], servers: [] })).engines).toEqual([]);
  });

  const OPTIONAL: [string[], string[]][] = [
    [
      ['engines', '1'],
      ['kvUsage', 'running', 'waiting', 'sampleAgeMs'],
    ],
    [['servers', '0'], ['ejectedForMs']],
    [['ttftMs'], ['p50', 'p90', 'p99']],
    [['tpotMs'], ['p50', 'p90', 'p99']],
    [['queueMs'], ['p50', 'p90', 'p99']],
    [['config'], ['error']],
  ];
  const PLACES = [[], ['engines', '1'], ['servers', '0'], ['queue'], ['ttftMs'], ['totals'], ['config']];

  it('lets figures be missing that may not be known', () => {
    for (const [path, names] of OPTIONAL) {
      for (const name of names) {
        const answer = wire();
        delete at(answer, path)[name];
        expect(() => readSnapshot(answer), `${path}.${name}`).not.toThrow();
      }
    }
  });

  it('names any other field that is missing or of another kind', () => {
    let tried = 0;
    for (const path of PLACES) {
      const optional = OPTIONAL.find(([place]) => place.join() === path.join())?.[1] ?? [];
      for (const name of Object.keys(at(wire(), path))) {
        const place = `${['state', ...path].join('.').replace(/\.(\d)/, '[$1]')}.${name}`;
        for (const wrong of [null, [[]], undefined]) {
          if (wrong === undefined && optional.includes(name)) continue;
          const answer = wire();
          at(answer, path)[name] = wrong;
          expect(() => readSnapshot(answer), `${place} = ${JSON.stringify(wrong)}`).toThrow(place);
          tried++;
        }
      }
    }
    expect(tried).toBeGreaterThan(120);
  });

  it('takes a controller, or none, and names what is wrong with it', () => {
    const controller = controllerStatus();
    expect(readSnapshot(wire({ controller })).controller).toEqual(controller);
    const { preview: _, ...without } = controller;
    expect(readSnapshot(wire({ controller: without })).controller?.preview).toBeUndefined();
    const wrong: [string, object][] = [
      ['state', { state: 1 }],
      ['shadow', { shadow: 'no' }],
      ['deadGpus[0]', { deadGpus: [null] }],
      ['imbalance', { imbalance: {} }],
      ['load', { load: 1 }],
      ['load[1]', { load: [[1], 2] }],
      ['load[0][1]', { load: [[1, '<b>']] }],
      ['decisions[0].reason', { decisions: [{ atMs: 1, decision: 'kept' }] }],
      ['history[0].planId', { history: [{}] }],
      ['preview.gainMs', { preview: {} }],
    ];
    for (const [field, changed] of wrong) {
      const answer = { ...wire(), controller: { ...controller, ...changed } };
      expect(() => readSnapshot(answer), field).toThrow(`state.controller.${field}: `);
    }
  });

  it('refuses what is no state at all', () => {
    for (const answer of [null, [], 7, 'ok', undefined, {}]) {
      expect(() => readSnapshot(answer)).toThrow(/^state/);
    }
  });
});

describe('History', () => {
  const size = ({ queue }: Moment) => queue.size;
  const at = (seconds: number, waiting: number) =>
    gatewaySnapshot(1, seconds, { queue: { size: waiting, capacity: 9, oldestMs: 0 } });

  it('keeps five minutes, by their age', () => {
    const history = new History();
    for (let second = 0; second <= 400; second++) history.add(at(second, second));
    const points = history.points(size);
    expect(points).toHaveLength(HISTORY_MS / 1000 + 1);
    expect(points[0]).toEqual([HISTORY_MS, 100]);
    expect(points.at(-1)).toEqual([0, 400]);
  });

  it('breaks the line where nobody looked, and where nothing is known', () => {
    const history = new History();
    const pauseSeconds = GAP_MS / 1000;
    history.add(at(0, 1));
    history.add(at(pauseSeconds, 2));
    history.add(at(2 * pauseSeconds + 1, 3));
    expect(history.points(size)).toEqual([
      [11_000, 1],
      [6000, 2],
      [0, null],
      [0, 3],
    ]);
    expect(history.points(() => undefined).map(([, value]) => value)).toEqual([null, null, null, null]);
  });

  it('starts anew where the clock goes back, and takes one time once', () => {
    const history = new History();
    for (const [second, waiting] of [
      [50, 1],
      [51, 2],
      [51, 3],
    ] as const) {
      history.add(at(second, waiting));
    }
    expect(history.points(size)).toEqual([
      [1000, 1],
      [0, 3],
    ]);
    history.add(at(10, 4));
    expect(history.points(size)).toEqual([[0, 4]]);
    expect(new History().points(size)).toEqual([]);
  });
});

describe('Poller', () => {
  /** The middle of the jitter. */
  const draw = () => 0.5;
  let asked: AbortSignal[];
  let failures: [string, number][];

  beforeEach(() => {
    vi.useFakeTimers();
    asked = [];
    failures = [];
  });
  afterEach(() => vi.useRealTimers());

  function poller(answer: (signal: AbortSignal) => Promise<void>): Poller {
    return new Poller({
      draw,
      ask: (signal) => {
        asked.push(signal);
        return answer(signal);
      },
      onFailure: (reason, count) => failures.push([reason, count]),
    });
  }
  const never = (signal: AbortSignal) =>
    new Promise<void>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

  it('asks at once, then each second', async () => {
    poller(async () => {}).start();
    expect(asked).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(PACE.intervalMs - 1);
    expect(asked).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(asked).toHaveLength(2);
    await vi.advanceTimersByTimeAsync(3 * PACE.intervalMs);
    expect(asked).toHaveLength(5);
    expect(failures).toEqual([]);
  });

  it('asks ever later while it fails, within a bound, and at its pace again after an answer', async () => {
    let broken = true;
    poller(async () => {
      if (broken) throw new Error('down');
    }).start();
    const waitsMs: number[] = [];
    await vi.advanceTimersByTimeAsync(0);
    for (let n = 0; n < 6; n++) {
      const before = Date.now();
      const count = asked.length;
      while (asked.length === count) await vi.advanceTimersByTimeAsync(10);
      waitsMs.push(Date.now() - before);
    }
    const longestMs = PACE.maxBackoffMs / (1 + PACE.jitter);
    const expectedMs = [2000, 4000, 8000, longestMs, longestMs, longestMs];
    waitsMs.forEach((waitMs, n) => {
      expect(Math.abs(waitMs - expectedMs[n]!)).toBeLessThan(20);
    });
    expect(failures.map(([, count]) => count)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(failures[0]![0]).toBe('down');
    broken = false;
    await vi.advanceTimersByTimeAsync(PACE.maxBackoffMs);
    const count = asked.length;
    await vi.advanceTimersByTimeAsync(5 * PACE.intervalMs);
    expect(asked.length - count).toBe(5);
  });

  it('gives a question up after a time, and has one under way at most', async () => {
    poller(never).start();
    await vi.advanceTimersByTimeAsync(TIMEOUT_MS - 1);
    expect(asked).toHaveLength(1);
    expect(failures).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(failures).toEqual([['no answer within 5 s', 1]]);
    expect(asked[0]!.aborted).toBe(true);
  });

  it('asks nothing while stopped, tells nothing of what it dropped, and starts again at once', async () => {
    const one = poller(never);
    one.start();
    one.stop();
    expect(asked[0]!.aborted).toBe(true);
    one.hurry();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(asked).toHaveLength(1);
    expect(failures).toEqual([]);
    one.start();
    one.start();
    expect(asked).toHaveLength(2);
  });

  it('is not confused by a stop and a start within one question', async () => {
    const ends: (() => void)[] = [];
    const one = poller(() => new Promise((resolve) => ends.push(resolve)));
    one.start();
    one.stop();
    one.start();
    ends[0]!();
    await vi.advanceTimersByTimeAsync(2 * PACE.intervalMs);
    expect(asked).toHaveLength(2);
    ends[1]!();
    await vi.advanceTimersByTimeAsync(PACE.intervalMs);
    expect(asked).toHaveLength(3);
  });

  it('can be hurried out of a back-off', async () => {
    const one = poller(() => Promise.reject(new Error('down')));
    one.start();
    await vi.advanceTimersByTimeAsync(0);
    one.hurry();
    expect(asked).toHaveLength(2);
    // The wait that was cut short asks no third time.
    await vi.advanceTimersByTimeAsync(3999);
    expect(asked).toHaveLength(2);
  });
});

describe('words', () => {
  const tile = (label: string, snapshot: GatewaySnapshot) => {
    const found = tiles(snapshot).find((one) => one.label === label);
    expect(found, label).toBeDefined();
    return { ...found!, detail: found!.detail.replaceAll('\u00a0', ' ') };
  };

  it('writes durations in two units at most', () => {
    expect([0, 999, 1000, 61_000, 3_600_000, 11_520_000, 200_000_000].map(formatDuration)).toEqual([
      '0 s',
      '0 s',
      '1 s',
      '1 min 1 s',
      '1 h',
      '3 h 12 min',
      '2 d 7 h',
    ]);
    expect([999, 9999, 12_345, 1_234_567].map(shortCount)).toEqual(['999', '9,999', '12.3 k', '1.23 M']);
  });

  it('shortens names by their scheme, their domain and their middle, never at the end', () => {
    expect(label('https://a.example:8000#3', 16)).toBe('a.example:8000#3');
    expect(label('https://a.example:8000#3', 15)).toBe('a…:8000#3');
    expect(label('http://10.20.30.40:8000#13', 12)).toBe('10.2…8000#13');
    expect(label('http://engine-of-a-long-name.example:8000#3', 12)).toBe('engi…:8000#3');
    // Not within a character.
    expect(label('😀😀😀😀😀😀', 4)).toBe('😀…😀😀');
  });

  it('says in the head line who answers', () => {
    const line = 'gimbal-moe 0.0.0-test · policy gimbal · up 3 h 12 min · configuration read 10 min ago';
    expect(headLine(gatewaySnapshot(1))).toBe(line);
  });

  it('has notices of draining and of a broken configuration, and else none', () => {
    expect(notices(gatewaySnapshot(1))).toEqual([]);
    const config = { loadedMs: 0, error: 'line 3: no such policy' };
    const told = notices(gatewaySnapshot(1, 0, { draining: true, config }));
    expect(told).toHaveLength(2);
    expect(told[0]).toContain('draining');
    expect(told[1]).toContain('line 3: no such policy');
  });

  it('has a tile for each figure', () => {
    const snapshot = gatewaySnapshot(4);
    snapshot.engines[0]!.state = 'draining';
    expect(tile('Requests/s', snapshot)).toMatchObject({ text: '12.5', detail: '54.3 k since the start' });
    const tokens = (rate: number) =>
      tile('Output tokens/s', gatewaySnapshot(1, 0, { outputTokensPerSecond: rate })).text;
    expect([0, 1.25, 4321, 43_210].map(tokens)).toEqual(['0', '1.25', '4,321', '43.2 k']);
    expect(tile('In flight', snapshot)).toMatchObject({ text: '18', detail: '3 of 4 engines active' });
    expect(tile('Queue', snapshot)).toMatchObject({
      text: '7',
      detail: 'of 1,024, the oldest for 350 ms',
      alert: false,
    });
    expect(tile('TTFT, p50', snapshot)).toMatchObject({
      text: '120 ms',
      detail: 'p90 340 ms · p99 910 ms',
    });
    expect(tile('TPOT, p50', snapshot)).toMatchObject({ text: '21.0 ms' });
    expect(tile('Queue wait, p50', snapshot)).toMatchObject({ text: '3.00 ms' });
    expect(tile('Failed', snapshot)).toMatchObject({ text: '2', detail: '5 refused, 9 retried' });
  });

  it('does not make a 0 of what is not known', () => {
    const quiet = gatewaySnapshot(1, 0, { ttftMs: {}, queue: { size: 0, capacity: 8, oldestMs: 0 } });
    const ttft = tile('TTFT, p50', quiet);
    expect(ttft.text).toBeUndefined();
    expect(ttft.detail).toBe('none in the last minute');
    expect(tile('Queue', quiet)).toMatchObject({ text: '0', detail: 'of 8, nobody waits', alert: false });
    const { kvUsage: _, running: __, waiting: ___, sampleAgeMs: ____, ...unsampled } = engineSnapshot(0);
    const cells = cellsOf({ ...unsampled, stale: true });
    for (const head of ['KV use', 'Running', 'Waiting', 'Sample age']) {
      expect(cells[head]!.text, head).toBeUndefined();
    }
    expect(cells['Sample age']!.alert).toBe(true);
    expect(cells['In flight']!.text).toBe('3');
  });

  it('warns of a queue that is nearly full', () => {
    const full = (size: number) => gatewaySnapshot(1, 0, { queue: { size, capacity: 10, oldestMs: 1 } });
    expect(tile('Queue', full(8)).alert).toBe(false);
    expect(tile('Queue', full(9)).alert).toBe(true);
  });

  function cellsOf(engine: EngineSnapshot): Record<string, Words> {
    return Object.fromEntries(ENGINE_COLUMNS.map(({ head, cell }) => [head, cell(engine)]));
  }

  it('shows each figure of an engine under its own head', () => {
    const engine = engineSnapshot(3, {
      stale: true,
      sampleAgeMs: 4200,
      state: 'asleep',
      dispatchShare: 0.125,
    });
    const texts = Object.entries(cellsOf(engine)).map(([head, { text }]) => `${head}: ${text}`);
    expect(texts).toEqual([
      'State: asleep',
      'Pressure, ms: 88.0',
      'Backlog: 49.0',
      'KV: 28.0',
      'Queue: 9.00',
      'MoE: 2.00',
      'Share: 12.5 %',
      'Dispatched: 1,003',
      'In flight: 6',
      'KV use: 34.0 %',
      'Running: 14',
      'Waiting: 0',
      'Sample age: 4.20 s, stale',
    ]);
    expect(cellsOf(engine).State!.alert).toBe(true);
    expect(cellsOf(engineSnapshot(3)).State!.alert).toBe(false);
  });

  it('shows what ails a server', () => {
    const texts = (server: ServerSnapshot) => SERVER_COLUMNS.map(({ cell }) => cell(server).text);
    const server: ServerSnapshot = { url: 'http://a', kind: 'sglang', state: 'failing', reason: 'HTTP 500' };
    expect(texts(server)).toEqual(['sglang', 'failing', 'no', 'HTTP 500']);
    expect(texts({ ...server, state: 'unknown', ejectedForMs: 12_400 })).toEqual([
      'sglang',
      undefined,
      'for 12 s',
      'HTTP 500',
    ]);
  });

  it('says what a controller does, and why', () => {
    const status = controllerStatus();
    expect(
      controllerTiles(status).map(({ label, text, detail, alert }) => [label, text, detail, alert === true]),
    ).toEqual([
      ['Controller', 'watches', 'it may rearrange', false],
      ['Plan in force', '17', 'for 1 h 1 min', false],
      ['Imbalance, worst layer', '1.750', '1.425 in the mean of the layers', false],
      ['GPUs', '4', '3 slots, 2 layers', false],
    ]);
    const ill = controllerTiles(
      controllerStatus({ state: 'rolling-back', shadow: true, deadGpus: [1, 3], imbalance: [] }),
    );
    expect(ill.map(({ text, detail, alert }) => [text, detail, alert === true])).toEqual([
      ['rolls back', 'shadow: it only reports', true],
      ['17', 'for 1 h 1 min', false],
      [undefined, 'nothing observed', false],
      ['4', 'dead: 1, 3', true],
    ]);
    const [failing] = controllerTiles(controllerStatus({ failures: 2 }));
    expect(failing).toMatchObject({ detail: '2 failures in a row', alert: true });
    expect(previewWords(status)).toBe(
      'The next plan would gain 250 ms of MoE time (3.20 %) over the horizon for 5 moves that cost 900 ms. Not put in force: moving costs more than it gains.',
    );
    const { preview: _, ...without } = status;
    expect(previewWords({ ...without, decisions: [] })).toBe('No look yet.');
    expect(previewWords(without)).toBe('No further plan: moving costs more than it gains.');
    const [kept, failed] = dated(status.decisions, 1_700_000_000_000);
    const cells = (row: NonNullable<typeof kept>) => DECISION_COLUMNS.map(({ cell }) => cell(row).text);
    expect(cells(kept!)).toEqual(['kept', undefined, '3.20 %', '5', 'moving costs more than it gains']);
    expect(cells(failed!)).toEqual(['failed', '17', undefined, undefined, 'an error: the hook timed out']);
    expect(DECISION_TIME.cell(failed!).text).toBe('2 min 30 s ago');
    const [plan] = dated(status.history, 1_700_000_000_000);
    expect(PLAN_COLUMNS.map(({ cell }) => cell(plan!).text)).toEqual(['1 h 1 min ago', '40', '21.0 %']);
    expect(loadWords(1, 2, 1.75)).toBe('layer 1, GPU 2: 1.750 of the mean');
  });

  it('tells which engines came, went and turned', () => {
    const before = gatewaySnapshot(3);
    const after = gatewaySnapshot(4);
    after.engines.shift();
    after.engines[0]!.state = 'draining';
    expect(changes(before, after)).toEqual([
      'http://10.0.0.1:8000#3 is new',
      'http://10.0.0.1:8000#0 is gone',
      'http://10.0.0.1:8000#1 is draining',
    ]);
    expect(changes(before, before)).toEqual([]);
    expect(changes(gatewaySnapshot(0), gatewaySnapshot(64))).toEqual(['64 engines are new']);
  });
});

describe('the document', () => {
  const html = dashboardHtml();
  const policy = dashboardPolicy();
  const inline = (tag: string) => {
    const found = [...html.matchAll(new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`, 'g'))].map(
      ([, text]) => text!,
    );
    expect(found).toHaveLength(1);
    return found[0]!;
  };

  it('has one script and one style sheet, and a policy that lets through just these', () => {
    for (const tag of ['script', 'style']) {
      const hash = createHash('sha256').update(inline(tag), 'utf8').digest('base64');
      expect(policy).toContain(`${tag}-src 'sha256-${hash}';`);
      expect(html.match(new RegExp(`<${tag}`, 'gi'))).toHaveLength(1);
    }
    expect(policy).toMatch(/^default-src 'none'; /);
    expect(policy).toContain("connect-src 'self'");
    expect(policy).not.toContain('unsafe');
  });

  it('has no handlers, styles or addresses in its markup but those of its own state', () => {
    const markup = html.replace(inline('script'), '').replace(inline('style'), '');
    expect(markup).not.toMatch(/\s(on\w+|style)\s*=/i);
    const addresses = [...markup.matchAll(/\s(?:src|href|action)="([^"]*)"/g)].map(([, address]) => address);
    expect(addresses).toEqual(['data:,', 'dashboard/state']);
    expect(inline('style')).not.toMatch(/url\(|@import/i);
  });

  it('carries the licences of what it bundles', () => {
    expect(html).toContain('Apache License, Version 2.0');
    expect(html).toContain('BSD 3-Clause License');
  });
});
