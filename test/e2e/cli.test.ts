/**
 * The command `gimbal` as its users meet it: the built program in a process of its own, its streams and signals; its HTML
 * report in a browser, where chromium is installed; and the demo. Needs `npm run build`.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  type Ended,
  EXPERTS,
  expectFailure,
  LAYERS,
  npy,
  SOURCES,
  smallTokens,
  WorkFolder,
} from '../unit/cli-fixture.js';

const ROOT = path.join(__dirname, '..', '..');
const MAIN = path.join(ROOT, 'dist', 'cli', 'main.js');
const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(
  existsSync,
);
const PLAN = 'plan --counts counts.npy --topology 2x4 --model mixtral-8x7b --hardware h100';

let folder: WorkFolder;

beforeAll(() => {
  if (!existsSync(MAIN)) throw new Error(`${MAIN} is missing: run \`npm run build:ts\` first`);
  folder = new WorkFolder();
});

afterAll(() => folder.remove());

function start(words: readonly string[]): ChildProcess {
  return spawn(process.execPath, [MAIN, ...words], { cwd: folder.path, stdio: ['ignore', 'pipe', 'pipe'] });
}

function ended(child: ChildProcess): Promise<Ended> {
  const chunks = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  child.stdout!.on('data', (chunk: Buffer) => chunks.stdout.push(chunk));
  child.stderr!.on('data', (chunk: Buffer) => chunks.stderr.push(chunk));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => {
      const text = (of: Buffer[]) => Buffer.concat(of).toString('utf8');
      resolve({ code, stdout: text(chunks.stdout), stderr: text(chunks.stderr) });
    });
  });
}

/** Runs to the end; words are split at spaces. */
function gimbal(line: string): Promise<Ended> {
  return ended(start(line.split(' ').filter((word) => word !== '')));
}

describe('help', () => {
  it('teaches by examples and lists exit codes', async () => {
    const { code, stdout, stderr } = await gimbal('--help');
    expect(code).toBe(0);
    expect(stderr).toBe('');
    for (const word of [
      'plan',
      'evaluate',
      'diff',
      'backends',
      'Examples:',
      'Exit codes:',
      '130 interrupted',
    ]) {
      expect(stdout).toContain(word);
    }
  });

  it('prints the version of the package', async () => {
    const { version } = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
      version: string;
    };
    expect(await gimbal('--version')).toEqual({ code: 0, stdout: `gimbal-moe ${version}\n`, stderr: '' });
  });

  it('without a command prints the help on stderr and exits with 2', async () => {
    const { code, stdout, stderr } = await gimbal('');
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain('Usage: gimbal');
  });
});

describe('a process of its own', () => {
  it('exits with the code of the failure, its words on stderr alone', async () => {
    for (const [line, code] of [
      ['plan --counts counts.npy', 2],
      ['plan --counts counts.npy --topology matrix.json', 6],
      [`${PLAN} --slots 8`, 4],
    ] as const) {
      const result = await gimbal(line);
      expectFailure(result, code, /./);
      expect(result.stdout).toBe('');
    }
  });

  it('Ctrl-C ends a long plan soon with 130, and leaves no file', async () => {
    const before = readdirSync(folder.path).sort();
    const words = `${PLAN} --slots 24 --walkers 500 --rounds 5000 --progress --out stopped.json --report stopped.html`;
    const child = start(words.split(' '));
    const result = ended(child);
    // The first word of progress shows that the search runs.
    await new Promise((resolve) => child.stderr!.once('data', resolve));
    const interruptedAt = performance.now();
    child.kill('SIGINT');
    const { code, stderr, stdout } = await result;
    expect(stderr).toContain('gimbal: interrupted; nothing was written');
    expect({ code, stdout }).toEqual({ code: 130, stdout: '' });
    expect(performance.now() - interruptedAt).toBeLessThan(2000);
    expect(readdirSync(folder.path).sort()).toEqual(before);
  });

  it('plans, writes what it says, and reads it again', async () => {
    const first = await gimbal(`${PLAN} --slots 24 --out p.json`);
    expect({ code: first.code, stderr: first.stderr }).toEqual({ code: 0, stderr: '' });
    expect(first.stdout).toContain('Wrote the placement to p.json.');
    expect(await gimbal('diff p.json p.json')).toEqual({
      code: 0,
      stdout: 'p.json → p.json: 0 moves for 72 slots; 0 copies dropped.\n',
      stderr: '',
    });
  });

  it('does not complain when its reader has seen enough', async () => {
    const child = start(`${PLAN} --slots 24 --json`.split(' '));
    const result = ended(child);
    child.stdout!.destroy();
    expect(await result).toMatchObject({ code: 0, stderr: '' });
  });

  it('can be run as a program', () => {
    expect(readFileSync(MAIN, 'utf8').startsWith('#!/usr/bin/env node\n')).toBe(true);
  });
});

/** What chromium prints of a page: its DOM after the scripts, and what it said on the console. */
async function browse(file: string, extra: string[] = []): Promise<{ dom: string; console: string[] }> {
  const profile = mkdtempSync(folder.at('profile-'));
  const flags = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--enable-logging=stderr',
    '--window-size=1280,2600',
    `--user-data-dir=${profile}`,
  ];
  const child = spawn(CHROMIUM!, [...flags, ...extra, `file://${file}`], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const { stdout, stderr } = await ended(child);
  return { dom: stdout, console: stderr.split('\n').filter((line) => line.includes('CONSOLE')) };
}

describe.skipIf(CHROMIUM === undefined)('the HTML report in a browser (needs chromium)', () => {
  it('draws every chart without an error, with hostile names about', { timeout: 60_000 }, async () => {
    const hostile = '<img src=x onerror=alert(1)>.npy';
    folder.write(hostile, npy([LAYERS, SOURCES, EXPERTS], smallTokens()));
    expect((await gimbal(`${PLAN} --slots 24 --out in-force.json`)).code).toBe(0);
    const words = [
      'plan',
      '--counts',
      hostile,
      ...'--topology 2x4 --slots 24 --incumbent in-force.json --budget 9 --report r.html'.split(' '),
    ];
    const { code, stderr } = await ended(start(words));
    expect(code, stderr).toBe(0);
    const { dom, console } = await browse(folder.at('r.html'), ['--dump-dom']);
    expect(console).toEqual([]);
    expect(dom).not.toContain('<img');
    const charts = dom.match(/data-chart="[a-z-]+"/g);
    expect(charts).toHaveLength(6);
    expect(dom.match(/data-drawn="true"/g)).toHaveLength(7);
    expect(dom.match(/<svg/g)).toHaveLength(7);
    const drawing = (from: string) => dom.slice(dom.indexOf(from), dom.indexOf('</svg>', dom.indexOf(from)));
    // Lines in both colours, and a cell for each of the 24 slots: not only empty frames.
    for (const colour of ['#8b929b', '#2563c9']) {
      expect(drawing('data-chart="imbalance"')).toContain(`stroke="${colour}"`);
    }
    expect((drawing('id="heat"').match(/fill="rgb\(/g) ?? []).length).toBeGreaterThanOrEqual(24);
  });

  it('paints something, in the light and in the dark', { timeout: 60_000 }, async () => {
    const shot = async (name: string, extra: string[]) => {
      await browse(folder.at('r.html'), [`--screenshot=${folder.at(name)}`, ...extra]);
      return readFileSync(folder.at(name));
    };
    const light = await shot('light.png', []);
    const dark = await shot('dark.png', ['--blink-settings=preferredColorScheme=0']);
    // An empty page of this size is some 10 KB.
    expect(light.length).toBeGreaterThan(60_000);
    expect(dark.length).toBeGreaterThan(60_000);
    expect(dark.equals(light)).toBe(false);
  });
});

describe('the demo of the gateway', () => {
  it('sends the same traffic under two policies, and loses none of it', { timeout: 60_000 }, async () => {
    const tsx = path.join(ROOT, 'node_modules', 'tsx', 'dist', 'cli.mjs');
    const demo = path.join(ROOT, 'examples', 'gateway.ts');
    const { code, stdout, stderr } = await ended(
      spawn(process.execPath, [tsx, demo, '--requests', '24'], { stdio: ['ignore', 'pipe', 'pipe'] }),
    );
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/round-robin: 24 answers.*gimbal: 24 answers.*time to first token: p50 \d+ ms/s);
  });
});

describe('the demo of the closed loop', () => {
  it('finds a better placement by what engines say, and has it put in force', {
    timeout: 120_000,
  }, async () => {
    const tsx = path.join(ROOT, 'node_modules', 'tsx', 'dist', 'cli.mjs');
    const demo = path.join(ROOT, 'examples', 'closed-loop.ts');
    const child = spawn(process.execPath, [tsx, demo], { stdio: ['ignore', 'pipe', 'pipe'] });
    const { code, stdout, stderr } = await ended(child);
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/committed \S+: \d+ moves, .* gained/);
    const [before, after] = [...stdout.matchAll(/worst layer: ([\d.]+)/g)].map(([, figure]) =>
      Number(figure),
    );
    expect(after).toBeLessThan(before!);
  });
});

describe('the demo', () => {
  it('plans, compares with EPLB, plans again on a budget and writes files', {
    timeout: 120_000,
  }, async () => {
    const tsx = path.join(ROOT, 'node_modules', 'tsx', 'dist', 'cli.mjs');
    const demo = path.join(ROOT, 'examples', 'demo.ts');
    const child = spawn(process.execPath, [tsx, demo, folder.at('out')], {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const { code, stdout, stderr } = await ended(child);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain('58 MoE layers × 256 experts');
    expect(stdout).toMatch(/contiguous +EPLB global +EPLB hierarchical +gimbal/);
    const change = /against EPLB: −([\d.]+) %/.exec(stdout);
    expect(Number(change?.[1])).toBeGreaterThan(5);
    const { physical_to_logical_map: map } = JSON.parse(
      readFileSync(folder.at('out/deepseek-v3-sglang.json'), 'utf8'),
    ) as { physical_to_logical_map: number[][] };
    // All 61 layers of the model, the three dense ones included.
    expect(map).toHaveLength(61);
    for (const experts of map) expect(new Set(experts).size).toBe(256);
    expect(existsSync(folder.at('out/report.html'))).toBe(true);
  });
});
