/** `gimbal simulate` in process: what it prints and writes, what it refuses, and its page in a browser. */
import { existsSync, readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';
import { afterAll, describe, expect, it } from 'vitest';
import { expectFailure, gimbal, npy, WorkFolder } from './cli-fixture.js';

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(
  existsSync,
);
const folder = new WorkFolder();
afterAll(() => folder.remove());

const CLUSTER = '--model qwen3-30b-a3b --hardware h100 --dp 2 --tp 2'.split(' ');
const SYNTHETIC = ['simulate', ...CLUSTER, ...'--synthetic random --requests 60 --rate 30'.split(' ')];

describe('gimbal simulate', () => {
  it('compares policies in a table, with intervals over seeds and what was assumed', async () => {
    const { code, stdout, stderr } = await gimbal([
      ...SYNTHETIC,
      '--policy',
      'vllm',
      'gimbal',
      '--seeds',
      '2',
    ]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/TTFT mean, ms +TTFT p99, ms +TPOT mean, ms/);
    expect(stdout).toMatch(/^vllm +[\d.]+/m);
    expect(stdout).toMatch(/^ {2}change +[−+][\d.]+ % ± [\d.]+ %/m);
    expect(stdout).toContain('note: traffic: synthetic, lengths of shape random');
    expect(stdout).toContain('routing: generative (synthetic)');
  });

  it('gives one JSON document, the same at each run, and a log of every request', async () => {
    const words = [
      ...SYNTHETIC,
      '--policy',
      'gimbal',
      '--json',
      '--log',
      folder.at('log.jsonl'),
      '--seed',
      '5',
    ];
    const [first, second] = [await gimbal(words), await gimbal(words)];
    expect(first.code, first.stderr).toBe(0);
    expect(first.stdout).toBe(second.stdout);
    const document = JSON.parse(first.stdout);
    expect(document.policies[0].policy).toBe('gimbal');
    expect(document.policies[0].values['TTFT mean'].mean).toBe(document.runs[0].summary.ttftMs.mean);
    expect(document.runs[0]).toMatchObject({ seed: 5, counters: { leakedBlocks: 0 } });
    const log = readFileSync(folder.at('log.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(log.length).toBe(60);
    expect(log[7]).toMatchObject({ policy: 'gimbal', seed: 5, request: 7 });
    const ttft = log.reduce((sum, one) => sum + one.firstTokenMs - one.arrivalMs, 0) / 60;
    expect(ttft).toBeCloseTo(document.runs[0].summary.ttftMs.mean, 6);
  });

  it('takes a trace, at another rate, and routing counts', async () => {
    const rows = Array.from({ length: 40 }, (_, n) => `${n * 1000},${100 + n},${5 + n}`).join('\n');
    folder.write('trace.csv', `arrivalMs,inputTokens,outputTokens\n${rows}\n`);
    // Two sources of two kinds, one layer for all.
    const counts = Uint32Array.from({ length: 2 * 128 }, (_, n) => (n < 128 ? 1 + (n % 7) : 1 + (n % 5)));
    folder.write('topics.npy', npy([1, 2, 128], counts));
    const words = ['simulate', ...CLUSTER, '--trace', folder.at('trace.csv'), '--policy', 'sglang', '--json'];
    const recorded = JSON.parse((await gimbal([...words, '--routing', folder.at('topics.npy')])).stdout);
    expect(recorded.notes.join()).toMatch(/trace\.csv \(csv\), 40 requests/);
    expect(recorded.notes.join()).toContain('routing: counts');
    const faster = JSON.parse((await gimbal([...words, '--rate', '100'])).stdout);
    expect(recorded.runs[0].requests[39].arrivalMs).toBe(39_000);
    expect(faster.runs[0].requests[39].arrivalMs).toBeCloseTo(390, 9);
    const scaled = JSON.parse(
      (await gimbal([...words, '--scale-arrivals', '0.5', '--requests', '10'])).stdout,
    );
    expect(scaled.runs[0].requests.length).toBe(10);
    expect(scaled.runs[0].requests[9].arrivalMs).toBe(4500);
  });

  it('takes recorded choices for routing, and a rule for replicas', async () => {
    // 64 tokens, one layer, eight of 128 experts each; a quarter of them everybody's.
    const ids = Uint32Array.from({ length: 64 * 8 }, (_, n) => (n % 8 < 4 ? n % 8 : 4 + ((n * 7) % 124)));
    folder.write('topk.npy', npy([64, 1, 8], ids));
    const words = [...SYNTHETIC, '--policy', 'vllm/fcfs/static', '--redundant-experts', '16', '--json'];
    const run = async (...more: string[]) => {
      const { stdout, stderr } = await gimbal([...words, '--routing', folder.at('topk.npy'), ...more]);
      expect(stderr).toBe('');
      return JSON.parse(stdout);
    };
    const [even, nearest] = [await run(), await run('--replica-choice', 'nearest')];
    expect(even.notes.join()).toContain('routing: recorded');
    expect(even.runs[0].expertLoad).not.toEqual(nearest.runs[0].expertLoad);
    // Experts 0 to 3 lie on GPU 0 and are half of all traffic.
    expect(even.runs[0].expertLoad[5][0]).toBeGreaterThan(1.2);
  });

  it('draws a page of answers that have one token each', async () => {
    folder.write('short.csv', 'arrivalMs,inputTokens,outputTokens\n0,100,1\n5,100,1\n');
    const words = [
      '--trace',
      folder.at('short.csv'),
      '--policy',
      'gimbal',
      '--report',
      folder.at('short.html'),
    ];
    expect((await gimbal(['simulate', ...CLUSTER, ...words])).code).toBe(0);
    const page = readFileSync(folder.at('short.html'), 'utf8');
    expect(page).toContain('Time per token after it');
    expect(page).not.toContain('points="NaN');
    expect(page).not.toContain('null');
  });

  it('tells progress where it is asked to', async () => {
    const { stderr } = await gimbal([...SYNTHETIC, '--policy', 'gimbal', '--progress']);
    expect(stderr).toMatch(/gimbal: simulating █+ 100 %/);
  });

  it.each<[string, string[], number, RegExp]>([
    ['no traffic', ['simulate', ...CLUSTER], 2, /--trace or --synthetic/],
    ['an unknown policy', [...SYNTHETIC, '--policy', 'vlm'], 2, /expected one of gimbal, vllm/],
    ['an unknown shape', ['simulate', ...CLUSTER, '--synthetic', 'odd'], 2, /--synthetic/],
    ['a rate of nothing', [...SYNTHETIC, '--rate', '0'], 2, /--rate/],
    ['an odd limit', [...SYNTHETIC, '--slo', 'e2e=5'], 2, /--slo/],
    ['two routings', [...SYNTHETIC, '--routing', folder.at('counts.npy'), '--sigma', '1'], 2, /--sigma/],
    ['an unknown rule for replicas', [...SYNTHETIC, '--replica-choice', 'far'], 2, /--replica-choice/],
    [
      'choices of another model',
      [...SYNTHETIC, '--routing', folder.at('counts.npy')],
      3,
      /counts\.npy: shape.*\[tokens, layers, 8\]/,
    ],
    ['a file that is not there', ['simulate', ...CLUSTER, '--trace', folder.at('none.csv')], 6, /none\.csv/],
    [
      'a file that is no trace',
      ['simulate', ...CLUSTER, '--trace', folder.at('counts.npy')],
      3,
      /counts\.npy/,
    ],
    ['a folder without tables', [...SYNTHETIC, '--profiles', folder.path], 3, /CSV files with the columns/],
  ])('refuses %s', async (_, words, code, message) => {
    expectFailure(await gimbal(words), code, message);
  });
});

describe.skipIf(CHROMIUM === undefined)('the page of a simulation in a browser (needs chromium)', () => {
  it('draws without a network and a complaint, and answers to the reader', { timeout: 60_000 }, async () => {
    const report = folder.at('simulation.html');
    const hostile = ['--trace-format', 'csv', '--trace', folder.at('<img src=x onerror=alert(1)>.csv')];
    folder.write(
      '<img src=x onerror=alert(1)>.csv',
      `arrivalMs,inputTokens,outputTokens\n${Array.from({ length: 50 }, (_, n) => `${n * 20},${200 + n},20`).join('\n')}\n`,
    );
    const { code, stderr } = await gimbal([
      'simulate',
      ...CLUSTER,
      ...hostile,
      '--policy',
      'vllm',
      'gimbal',
      '--rearrange-every',
      '60',
      '--report',
      report,
    ]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const browser = await chromium.launch({ executablePath: CHROMIUM!, args: ['--no-sandbox'] });
    try {
      const page = await browser.newPage();
      const complaints: string[] = [];
      const requests: string[] = [];
      page.on('console', (message) => complaints.push(message.text()));
      page.on('pageerror', (error) => complaints.push(String(error)));
      page.on('request', (request) => requests.push(request.url()));
      await page.goto(`file://${report}`);
      await page.waitForSelector('body[data-ready="true"]');
      expect(complaints).toEqual([]);
      expect(requests.filter((url) => !url.startsWith('data:'))).toEqual([`file://${report}`]);
      expect(await page.locator('img').count()).toBe(0);
      expect(await page.locator('figure[data-plot] polyline').count()).toBe(9 * 2);
      // 48 layers by 4 GPUs, for each policy.
      expect(await page.locator('svg rect').count()).toBe(2 * 48 * 4);
      const lines = page.locator('polyline[data-series="vllm"]');
      expect(await lines.first().isVisible()).toBe(true);
      await page.locator('input[data-policy="vllm"]').uncheck();
      expect(await lines.first().isVisible()).toBe(false);
      await page.locator('figure[data-plot="0"] svg').hover();
      expect(await page.locator('figure[data-plot="0"] .told').textContent()).toMatch(
        /gimbal: 0\.\d+ at \d+/,
      );
      // All tokens but the first of 20, over the time that they took; and placements that changed, in both colours.
      const plot = page.locator('figure[data-plot]', { hasText: 'Time per token' });
      await plot.locator('svg').hover();
      expect(await plot.locator('.told').textContent()).toMatch(/^vllm: 0\.\d+ at \d+\.\d+; gimbal: /);
      const moved: number[][] = await page.evaluate(
        `JSON.parse(document.getElementById('report-data').textContent).at(-1).lines.map(({ y }) => y)`,
      );
      // EPLB's rule moves at each plan.
      expect(moved.length).toBe(2);
      expect(Math.max(...moved[0]!)).toBeGreaterThan(0);
      const moves = page.locator('figure[data-plot]', { hasText: 'Migrations' }).locator('polyline');
      const colours = await moves.evaluateAll((all) => all.map((one) => one.getAttribute('stroke')));
      expect(colours).toEqual(
        await page
          .locator('label span')
          .evaluateAll((all) => all.map((one) => (one.getAttribute('style') ?? '').replace('color:', ''))),
      );
      const background = () => page.evaluate('getComputedStyle(document.body).backgroundColor');
      const before = await background();
      await page.locator('#theme').click();
      expect(await background()).not.toBe(before);
      // What the page says without a script.
      const plain = await browser.newPage({ javaScriptEnabled: false });
      await plain.goto(`file://${report}`);
      expect(await plain.locator('table').first().textContent()).toContain('TTFT mean');
      expect(await plain.locator('polyline').count()).toBe(18);
    } finally {
      await browser.close();
    }
  });
});
