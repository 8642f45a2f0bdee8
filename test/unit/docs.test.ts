/**
 * The pages are part of the program: links resolve, snippets run or type-check, commands and options exist, and the tables that
 * repeat the code agree with it. What a snippet is held to stands after its language:
 *
 *   js run      node runs it in a folder where the package is installed; `text output` after it is what it prints
 *   ts check    the compiler accepts it beside the package's declarations
 *   sh run      sh runs it, with `gimbal` on PATH and a counts.npy of DeepSeek-V3's shape in the folder
 */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Writable } from 'node:stream';
import { promisify } from 'node:util';
import nodeGypBuild from 'node-gyp-build';
import { pino } from 'pino';
import { Registry } from 'prom-client';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { z } from 'zod';
import { BENCHES } from '../../bench/benches.js';
import { SHAPES, SKEWED_TOPICS, workload } from '../../bench/workloads.js';
import { buildProgram } from '../../lib/cli/program.js';
import { DECISION_DEFAULTS } from '../../lib/controller/decide.js';
import { ControllerMetrics } from '../../lib/controller/metrics.js';
import { PLACEMENT_PATHS, PlacementService } from '../../lib/controller/placement-service.js';
import { checkRunOptions, controllerSchema, modelOf } from '../../lib/controller/run-config.js';
import { checkGatewayOptions, gatewaySchema } from '../../lib/gateway/config.js';
import { Fleet } from '../../lib/gateway/fleet.js';
import { GatewayMetrics } from '../../lib/gateway/metrics.js';
import type { RoutingSampler } from '../../lib/gateway/routing/sampler.js';
import type { SharedLedger } from '../../lib/gateway/shared-ledger.js';
import { type Effort, evaluatePlacements, planPlacement, type RoutingStatistics } from '../../lib/index.js';
import { makeProblem, SMALL } from '../support/problems.js';
import { npy } from './cli-fixture.js';

const ROOT = path.join(__dirname, '..', '..');
const PAGES = [
  'README.md',
  'CHANGELOG.md',
  ...fs.readdirSync(path.join(ROOT, 'docs')).map((name) => `docs/${name}`),
].filter((name) => name.endsWith('.md'));

interface Fence {
  page: string;
  line: number;
  /** The words after the backticks: language, then how it is held. */
  info: string[];
  code: string;
}

function read(page: string): string {
  return fs.readFileSync(path.join(ROOT, page), 'utf8');
}

/** The fenced blocks of a page, and its text without them. */
function split(page: string): { fences: Fence[]; prose: string } {
  const fences: Fence[] = [];
  const prose: string[] = [];
  let open: { line: number; info: string[]; code: string[] } | undefined;
  read(page)
    .split('\n')
    .forEach((text, index) => {
      const mark = /^```(.*)$/.exec(text);
      if (mark === null) {
        (open?.code ?? prose).push(text);
      } else if (open === undefined) {
        open = { line: index + 1, info: mark[1]!.split(/\s+/), code: [] };
      } else {
        fences.push({ page, line: open.line, info: open.info, code: `${open.code.join('\n')}\n` });
        open = undefined;
      }
    });
  expect(open, `${page}: a fence that is not closed`).toBeUndefined();
  return { fences, prose: prose.join('\n') };
}

const FENCES = PAGES.flatMap((page) => split(page).fences);
const where = ({ page, line }: Fence): string => `${page}:${line}`;
const held = (language: string, how: string) =>
  FENCES.filter(({ info }) => info[0] === language && info[1] === how).map(
    (fence) => [where(fence), fence] as const,
  );

/** Rows of the first table under a heading of a page; cells without their backticks. */
function tableUnder(page: string, heading: RegExp): string[][] {
  const lines = read(page).split('\n');
  const from = lines.findIndex((line) => heading.test(line));
  expect(from, `${page}: ${heading}`).toBeGreaterThanOrEqual(0);
  const first = lines.findIndex((line, at) => at > from && line.startsWith('|'));
  const rows: string[][] = [];
  for (let at = first + 2; lines[at]?.startsWith('|'); at++) {
    rows.push(
      lines[at]!.split('|')
        .slice(1, -1)
        .map((cell) => cell.trim().replaceAll('`', '')),
    );
  }
  expect(rows.length, `${page}: a table under ${heading}`).toBeGreaterThan(0);
  return rows;
}

describe('links', () => {
  /** As GitHub makes anchors of headings. */
  const anchorsOf = (page: string): string[] =>
    [...split(page).prose.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
      heading!
        .toLowerCase()
        .replace(/[^\p{L}\p{N}_\- ]/gu, '')
        .replaceAll(' ', '-'),
    );

  it.each(PAGES)('of %s resolve', (page) => {
    for (const [, target] of split(page).prose.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target!)) continue;
      const [file = '', anchor] = target!.split('#');
      const resolved = file === '' ? page : path.posix.join(path.posix.dirname(page), file);
      expect(fs.existsSync(path.join(ROOT, resolved)), `${page}: ${target}`).toBe(true);
      if (anchor !== undefined) expect(anchorsOf(resolved), `${page}: ${target}`).toContain(anchor);
    }
  });

  it('lead from the README to every page', () => {
    const linked = [...split('README.md').prose.matchAll(/\]\(([^)#\s]+)/g)].map(([, target]) => target);
    expect(linked).toEqual(expect.arrayContaining(PAGES.filter((page) => page !== 'README.md')));
  });
});

describe('snippets', () => {
  const home = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-docs-'));
  const installed = path.join(home, 'node_modules', 'gimbal-moe');

  beforeAll(async () => {
    await copyBuild();
    for (const name of Object.keys(manifest().dependencies)) link(name);
    fs.copyFileSync(path.join(ROOT, 'package.json'), path.join(installed, 'package.json'));
    const prebuilds = path.join(installed, 'prebuilds', `${process.platform}-${process.arch}`);
    fs.mkdirSync(prebuilds, { recursive: true });
    fs.copyFileSync(nodeGypBuild.path(ROOT), path.join(prebuilds, 'gimbal-moe.node'));
    const bin = path.join(home, 'bin');
    fs.mkdirSync(bin);
    const main = path.join(installed, 'dist', 'cli', 'main.js');
    fs.writeFileSync(path.join(bin, 'gimbal'), `#!/bin/sh\nexec "${process.execPath}" "${main}" "$@"\n`, {
      mode: 0o755,
    });
    fs.writeFileSync(path.join(home, 'counts.npy'), counts());
  });
  afterAll(() => fs.rmSync(home, { recursive: true, force: true }));

  /** A copy, since another test may build `dist` anew meanwhile; taken again where it caught a file half-written. */
  async function copyBuild(): Promise<void> {
    const dist = path.join(installed, 'dist');
    for (let attempt = 0; attempt < 20; attempt++) {
      fs.rmSync(dist, { recursive: true, force: true });
      fs.cpSync(path.join(ROOT, 'dist'), dist, { recursive: true });
      const modules = fs.readdirSync(dist, { recursive: true, encoding: 'utf8' });
      const compiled = modules.filter((name) => name.endsWith('.js') && !name.endsWith('.bundle.js'));
      const whole = compiled.every((name) =>
        fs.readFileSync(path.join(dist, name), 'utf8').includes('//# sourceMappingURL='),
      );
      if (whole && compiled.includes('index.js')) return;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
    throw new Error('dist is not whole: run `npm run build:ts` first');
  }

  function link(name: string): void {
    const target = path.join(home, 'node_modules', name);
    fs.mkdirSync(path.dirname(target), { recursive: true });
    fs.symlinkSync(path.join(ROOT, 'node_modules', name), target, 'junction');
  }

  function counts(): Buffer {
    const shape = SHAPES['deepseek-v3-288'];
    const popularity = { kind: 'lognormal', sigma: 1 } as const;
    const made = workload({ shape, popularity, nodes: 4, seed: 1, topics: SKEWED_TOPICS });
    return npy([made.layers, made.sources, made.experts], made.tokens);
  }

  async function run(file: string, args: readonly string[]): Promise<string> {
    const { GIMBAL_MOE_PREBUILD, ...env } = process.env;
    env.PATH = `${path.join(home, 'bin')}${path.delimiter}${env.PATH}`;
    const { stdout } = await promisify(execFile)(file, args, { cwd: home, env });
    return stdout;
  }

  it('are held to something, all of JavaScript and TypeScript', () => {
    const loose = FENCES.filter(
      ({ info: [language, how] }) =>
        (['js', 'javascript'].includes(language!) && how !== 'run') ||
        (['ts', 'typescript'].includes(language!) && how !== 'check'),
    );
    expect(loose.map(where)).toEqual([]);
    expect(held('js', 'run').length).toBeGreaterThan(2);
    expect(held('ts', 'check').length).toBeGreaterThan(1);
    expect(held('sh', 'run').length).toBeGreaterThan(0);
  });

  it.each(held('js', 'run'))('%s runs', { timeout: 120_000 }, async (_, fence) => {
    const isModule = /^import /m.test(fence.code);
    const file = path.join(home, `snippet-${fence.line}.${isModule ? 'mjs' : 'cjs'}`);
    fs.writeFileSync(file, fence.code);
    const printed = await run(process.execPath, [file]);
    expect(printed).not.toBe('');
    const next = FENCES[FENCES.indexOf(fence) + 1];
    if (next?.page === fence.page && next.info.join(' ') === 'text output') expect(printed).toBe(next.code);
  });

  it('with an output print something that is checked', () => {
    const outputs = FENCES.filter(({ info }) => info.join(' ') === 'text output');
    for (const output of outputs) {
      const before = FENCES[FENCES.indexOf(output) - 1];
      expect([before?.page, before?.info], where(output)).toEqual([output.page, ['js', 'run']]);
    }
  });

  it('type-check', { timeout: 120_000 }, () => {
    const snippets = held('ts', 'check').map(([at, fence], index) => {
      const file = path.join(home, `snippet-${index}.mts`);
      fs.writeFileSync(file, fence.code);
      return { at, file };
    });
    const program = ts.createProgram(
      snippets.map(({ file }) => file),
      {
        strict: true,
        noEmit: true,
        skipLibCheck: true,
        target: ts.ScriptTarget.ES2022,
        module: ts.ModuleKind.NodeNext,
        moduleResolution: ts.ModuleResolutionKind.NodeNext,
        types: ['node'],
        typeRoots: [path.join(ROOT, 'node_modules', '@types')],
      },
    );
    const complaints = ts.getPreEmitDiagnostics(program).map(({ file, messageText }) => {
      const at = snippets.find((snippet) => snippet.file === file?.fileName)?.at ?? file?.fileName;
      return `${at}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
    });
    expect(complaints).toEqual([]);
  });

  it.skipIf(process.platform === 'win32').each(held('sh', 'run'))(
    '%s runs',
    { timeout: 180_000 },
    async (_, { code }) => {
      expect(await run('/bin/sh', ['-euc', code])).not.toBe('');
    },
  );
});

describe('commands', () => {
  const OWN_SCRIPTS = ['--force', '--prebuilt', '--whole', '--write'];
  const BENCH_OPTIONS = ['--json', '--small', '--seed'];
  /** Options of others that the pages speak of; a name that is in no list is a mistake. */
  const FOREIGN: Record<string, string[]> = {
    npm: ['--ignore-scripts'],
    Node: ['--max-semi-space-size'],
    vLLM: [
      '--data-parallel-size',
      '--enable-return-routed-experts',
      '--scheduling-policy',
      '--kv-events-config',
      '--enable-expert-parallel',
      '--enable-eplb',
      '--eplb-config',
    ],
    SGLang: [
      '--init-expert-location',
      '--ep-num-redundant-experts',
      '--ep-dispatch-algorithm',
      '--moe-a2a-backend',
      '--nnodes',
      '--model-path',
      '--expert-distribution-recorder-mode',
      '--enable-priority-scheduling',
    ],
    'vLLM-Ascend': ['--additional-config'],
  };

  const program = () => {
    const sink = new Writable({ write: (_chunk, _encoding, done) => done() }) as NodeJS.WriteStream;
    const output = { stdout: sink, stderr: sink };
    const { signal } = new AbortController();
    return buildProgram({ output, signal, onHangUp: () => undefined, version: '0', command: [] });
  };

  function gimbalOptions(): string[] {
    const commands = [program(), ...program().commands];
    const own = commands.flatMap((command) => command.options.map(({ long }) => long!));
    return [...new Set([...own, '--help'])];
  }

  /** Simple commands of shell text, as words: enough of a shell for what the pages hold. */
  function commandsOf(code: string): string[][] {
    const commands: string[][] = [];
    for (const line of code.replaceAll('\\\n', ' ').split('\n')) {
      for (const part of line.replace(/(^|\s)#.*$/, '').split(/&&|\|\||[;|]/)) {
        const words = [...part.matchAll(/'([^']*)'|"([^"]*)"|(\S+)/g)].map(
          ([, single, double, bare]) => single ?? double ?? bare!,
        );
        const redirected = words.findIndex((word) => /^\d?>/.test(word));
        const kept = redirected < 0 ? words : words.slice(0, redirected);
        if (kept.length > 0) commands.push(kept);
      }
    }
    return commands;
  }

  const shell = FENCES.filter(({ info }) => ['sh', 'bash', 'shell'].includes(info[0]!));

  it('of npm exist', () => {
    const names = BENCHES.map(({ name }) => name);
    let seen = 0;
    for (const fence of shell) {
      for (const [command, verb, name, ...rest] of commandsOf(fence.code)) {
        if (command !== 'npm') continue;
        seen++;
        if (verb === 'ci' || verb === 'pack') continue;
        expect(Object.keys(manifest().scripts), where(fence)).toContain(verb === 'run' ? name : verb);
        if (name !== 'bench') continue;
        const args = rest.slice(rest[0] === '--' ? 1 : 0);
        args.forEach((word, index) => {
          if (word.startsWith('--')) expect(BENCH_OPTIONS, where(fence)).toContain(word);
          else if (!['--json', '--seed'].includes(args[index - 1] ?? ''))
            expect(names, where(fence)).toContain(word);
        });
      }
    }
    expect(seen).toBeGreaterThan(3);
  });

  it('of gimbal parse', async () => {
    let seen = 0;
    for (const fence of shell) {
      for (const [command, ...words] of commandsOf(fence.code)) {
        if (command !== 'gimbal') continue;
        seen++;
        const parser = program();
        for (const sub of parser.commands) sub.action(() => undefined);
        await expect(
          parser.parseAsync(words, { from: 'user' }),
          `${where(fence)}: ${words.join(' ')}`,
        ).resolves.toBeDefined();
      }
    }
    expect(seen).toBeGreaterThan(2);
  });

  it('have no option that the pages make up', () => {
    const bench = read('bench/run.ts');
    for (const option of BENCH_OPTIONS) expect(bench).toContain(`${option.slice(2)}: { type:`);
    const known = [...gimbalOptions(), ...OWN_SCRIPTS, ...BENCH_OPTIONS, ...Object.values(FOREIGN).flat()];
    for (const page of PAGES) {
      const told = [...read(page).matchAll(/(?<![\w-])--[a-z][\w-]*/g)].map(([option]) => option);
      expect(
        told.filter((option) => !known.includes(option)),
        page,
      ).toEqual([]);
    }
  });

  it('have no key of `gimbal run` that docs/CLI.md leaves out', () => {
    const { properties = {} } = z.toJSONSchema(controllerSchema, { io: 'input', unrepresentable: 'any' });
    const section = read('docs/CLI.md').split('## `gimbal run`')[1]!.split('\n## ')[0]!;
    expect(Object.keys(properties).length).toBeGreaterThan(15);
    for (const [key, value] of Object.entries(properties)) {
      expect(section, key).toContain(`\`${key}\``);
      for (const inner of Object.keys((value as { properties?: object }).properties ?? {})) {
        // Those of planPlacement are told there.
        if (key !== 'weights') expect(section, `${key}.${inner}`).toContain(inner);
      }
    }
  });

  it('have an example of `gimbal run` that can be taken', () => {
    const [, example] = /```yaml\n(servers:[^`]*controller:[^`]*)```/.exec(read('docs/CLI.md'))!;
    expect(modelOf(checkRunOptions(parse(example!)))).toMatchObject({ layers: 58, sources: 16, gpus: 16 });
  });

  it('have no option that docs/CLI.md leaves out', () => {
    const page = read('docs/CLI.md');
    const told = ['--help', '--version', ...page.match(/--[a-z][a-z-]*/g)!];
    expect(gimbalOptions().filter((option) => !told.includes(option))).toEqual([]);
  });
});

describe('docs/API.md', () => {
  const page = read('docs/API.md');
  const unnamed = (names: readonly string[]) =>
    names.filter((name) => !new RegExp(`\\b${name}\\b`).test(page));

  const source = (file: string) =>
    ts.createSourceFile(file, read(file), ts.ScriptTarget.ES2022, /* setParentNodes */ true);

  function fieldsOf(file: string, name: string): string[] {
    const fields: string[] = [];
    source(file).forEachChild((node) => {
      if (!ts.isInterfaceDeclaration(node) || node.name.text !== name) return;
      for (const member of node.members) fields.push(member.name!.getText());
    });
    expect(fields.length, `${file}: interface ${name}`).toBeGreaterThan(0);
    return fields;
  }

  it('names everything that the package exports', () => {
    const exported: string[] = [];
    source('lib/index.ts').forEachChild((node) => {
      if (!ts.isExportDeclaration(node) || node.exportClause === undefined) return;
      if (!ts.isNamedExports(node.exportClause)) return;
      exported.push(...node.exportClause.elements.map(({ name }) => name.text));
    });
    expect(exported.length).toBeGreaterThan(20);
    expect(unnamed(exported)).toEqual([]);
  });

  it.each([
    ['lib/types.ts', 'PlacementProblem'],
    ['lib/types.ts', 'PlanOptions'],
    ['lib/types.ts', 'Plan'],
    ['lib/types.ts', 'LayerPlan'],
    ['lib/types.ts', 'Evaluation'],
    ['lib/topology.ts', 'TopologyOptions'],
    ['lib/advice/types.ts', 'RedundancyOptions'],
    ['lib/advice/types.ts', 'ServedTraffic'],
    ['lib/advice/types.ts', 'RedundancyCandidate'],
    ['lib/advice/types.ts', 'DemandRange'],
    ['lib/advice/types.ts', 'RedundancyAdvice'],
    ['lib/dispatch/types.ts', 'ScoreOptions'],
    ['lib/dispatch/types.ts', 'Scores'],
    ['lib/controller/types.ts', 'ControllerOptions'],
    ['lib/controller/types.ts', 'MigrationCosts'],
    ['lib/statistics/types.ts', 'RoutingObservation'],
    ['lib/statistics/types.ts', 'SummedCounts'],
    ['lib/statistics/types.ts', 'RoutingConfidence'],
    ['lib/statistics/types.ts', 'DriftOptions'],
    ['lib/statistics/types.ts', 'Drift'],
    ['lib/statistics/types.ts', 'LayerDrift'],
    ['lib/controller/placement-service.ts', 'PlacementServiceOptions'],
  ])('names the fields of %s, %s', (file, name) => {
    expect(unnamed(fieldsOf(file, name))).toEqual([]);
  });

  it('names every error code', () => {
    const codes = read('lib/errors.ts').match(/'GIMBAL_[A-Z_]+'/g)!;
    expect(codes.length).toBeGreaterThan(5);
    expect(unnamed(codes.map((code) => code.slice(1, -1)))).toEqual([]);
  });

  it('gives the walkers and rounds of each effort', async () => {
    const problem = makeProblem({ layers: 1, experts: 256, gpus: 64, slotsPerGpu: 6 });
    for (const [effort, walkers, rounds] of tableUnder('docs/API.md', /^\| effort /)) {
      const plan = await planPlacement(problem, { effort: effort as Effort });
      expect([plan.walkers, plan.rounds], effort).toEqual([Number(walkers), Number(rounds)]);
    }
  });

  it('gives the default weights', async () => {
    const [, list] = /`weights` \| `\{ (.*) \}`/.exec(page)!;
    const weights = Object.fromEntries(
      list!
        .split(', ')
        .map((pair) => pair.split(' = '))
        .map(([name, value]) => [name!, Number(value)]),
    );
    expect(Object.keys(weights)).toEqual(['load', 'commMax', 'commTotal', 'migration']);
    const incumbent = Int32Array.from({ length: 24 }, (_, slot) => (slot * 5) % SMALL.experts);
    const problem = { ...makeProblem(SMALL), incumbent, migrationCost: 1000 };
    const placement = Int32Array.from({ length: 24 }, (_, slot) => slot % SMALL.experts);
    const costed = async (given: Record<string, number> | undefined) =>
      (await evaluatePlacements({ ...problem, ...(given && { weights: given }) }, placement)).objective;
    const usual = await costed(undefined);
    expect(await costed(weights)).toEqual(usual);
    for (const name of Object.keys(weights)) {
      expect(await costed({ ...weights, [name]: 0.3 }), name).not.toEqual(usual);
    }
  });
});

describe('docs/ARCHITECTURE.md', () => {
  it('maps every folder, and none that is not there', () => {
    const [map] = FENCES.filter(({ page, info }) => page.endsWith('ARCHITECTURE.md') && info[1] === 'tree');
    const mapped = [...map!.code.matchAll(/^(\S+)\/ +\S/gm)].map(([, folder]) => folder!);
    const listed = map!.code.trimEnd().split('\n');
    expect(mapped.length, 'every line is a folder and what it holds').toBe(listed.length);
    expect(mapped.filter((folder) => !fs.existsSync(path.join(ROOT, folder)))).toEqual([]);
    const there = [...new Set(mapped.map((folder) => folder.split('/')[0]!))].flatMap(foldersIn);
    expect(there.filter((folder) => !mapped.includes(folder))).toEqual([]);
  });

  /** A folder and those below it that hold files. */
  function foldersIn(folder: string): string[] {
    const entries = fs.readdirSync(path.join(ROOT, folder), { withFileTypes: true });
    const below = entries
      .filter((entry) => entry.isDirectory())
      .flatMap(({ name }) => foldersIn(`${folder}/${name}`));
    return entries.some((entry) => entry.isFile()) || below.length > 0 ? [folder, ...below] : [];
  }
});

describe('docs/DEPENDENCIES.md', () => {
  it('weighs every dependency, and none that is gone', () => {
    const { dependencies, devDependencies } = manifest();
    const told = [
      ...tableUnder('docs/DEPENDENCIES.md', /^## At run time/),
      ...tableUnder('docs/DEPENDENCIES.md', /^## For development/),
    ].map(([name]) => name!);
    const all = [...Object.keys(dependencies), ...Object.keys(devDependencies)];
    expect(told.filter((name) => !all.includes(name))).toEqual([]);
    const page = read('docs/DEPENDENCIES.md');
    expect(all.filter((name) => !page.includes(`\`${name}\``))).toEqual([]);
  });
});

describe('docs/BENCHMARKS.md', () => {
  it('has every bench, each with a place for its figures', () => {
    const page = read('docs/BENCHMARKS.md');
    const described = [...page.matchAll(/^### `([\w-]+)`/gm)].map(([, name]) => name);
    expect(described.sort()).toEqual(BENCHES.map(({ name }) => name).sort());
    expect(described.filter((name) => !page.includes(`<!-- figures:${name} -->`))).toEqual([]);
  });

  it.each(PAGES)('and %s close the places for figures', (page) => {
    // In backticks the marks are only spoken of.
    const text = split(page).prose.replace(/`[^`]*`/g, '');
    const marks = [...text.matchAll(/<!-- (\/?)figures:(\S+) -->/g)].map(
      ([, slash, name]) => `${slash}${name}`,
    );
    const opened = marks.filter((_, index) => index % 2 === 0);
    expect(new Set(opened).size).toBe(opened.length);
    expect(marks).toEqual(opened.flatMap((name) => [name, `/${name}`]));
  });
});

function manifest(): Record<'scripts' | 'dependencies' | 'devDependencies', Record<string, string>> {
  return JSON.parse(read('package.json'));
}

describe('docs/GATEWAY.md', () => {
  const page = () => read('docs/GATEWAY.md');

  /** `servers[].url` and its like, of all that a configuration may say. */
  function keysOf(schema: z.core.JSONSchema.BaseSchema, at: string): string[] {
    const { properties = {}, items } = schema;
    if (items !== undefined) return keysOf(items as z.core.JSONSchema.BaseSchema, `${at}[]`);
    const names = Object.keys(properties);
    if (names.length === 0) return [at];
    return names.flatMap((name) => keysOf(properties[name] as never, at === '' ? name : `${at}.${name}`));
  }

  it('names every key of the configuration', () => {
    const keys = keysOf(z.toJSONSchema(gatewaySchema, { io: 'input', unrepresentable: 'any' }), '');
    expect(keys.length).toBeGreaterThan(40);
    // Groups that are told as one, and lists of plain values.
    const told = (key: string) =>
      key.replace(/^weights\..*|^(apiKeys)\[\]$|(\.tls)\..*$/, '$1$2') || 'weights';
    for (const key of keys) expect(page(), key).toContain(`\`${told(key)}\``);
  });

  it('names every series of the gateway', () => {
    const metrics = new GatewayMetrics();
    const fleet = new Fleet(checkGatewayOptions({ servers: [{ url: 'http://127.0.0.1:1' }] }), {
      log: pino({ level: 'silent' }),
      events: { dispatched: () => undefined, gone: () => undefined },
    });
    metrics.watch(fleet);
    metrics.watchLedger({ status: {} } as SharedLedger);
    metrics.watchAffinity({ keys: 0 });
    metrics.watchRouting({} as RoutingStatistics, {} as RoutingSampler);
    const names = metrics.registry.getMetricsAsArray().map(({ name }) => name);
    const own = names.filter((name) => name.startsWith('gimbal_'));
    expect(own.length).toBeGreaterThan(15);
    for (const name of own) expect(page(), name).toContain(`\`${name}\``);
  });

  it('shows configurations that can be taken', () => {
    const shown = FENCES.filter(({ page, info, code }) => {
      return page === 'docs/GATEWAY.md' && info[0] === 'yaml' && code.startsWith('servers:');
    });
    expect(shown.length).toBeGreaterThan(2);
    for (const { code } of shown) checkGatewayOptions(parse(code));
  });
});

describe('docs/ENGINES.md', () => {
  const page = () => read('docs/ENGINES.md');

  it('names every series of the placement service', () => {
    const names = new PlacementService().registry.getMetricsAsArray().map(({ name }) => name);
    expect(names.length).toBeGreaterThan(4);
    for (const name of names) expect(page(), name).toContain(`\`${name}\``);
  });

  it('names every variable that the policy reads, and every path of the service', () => {
    const variables = read('integrations/vllm/gimbal_vllm/plugin.py').match(/GIMBAL_[A-Z_]+/g)!;
    expect(new Set(variables).size).toBeGreaterThan(3);
    for (const name of [...variables, ...PLACEMENT_PATHS]) expect(page(), name).toContain(name);
  });
});

describe('docs/CONTROLLER.md', () => {
  const page = () => read('docs/CONTROLLER.md');

  it('names every series of the controller, and none besides', () => {
    const registry = new Registry();
    new ControllerMetrics(registry, {
      status: () => undefined as never,
      statistics: () => undefined as never,
    });
    const names = registry.getMetricsAsArray().map(({ name }) => name);
    expect(names.length).toBeGreaterThan(12);
    const told = [...page().matchAll(/`(gimbal_controller_[a-z_]+)`/g)].map(([, name]) => name!);
    expect([...new Set(told)].sort()).toEqual([...names].sort());
  });

  it('names every reason and every rule', () => {
    const reasons = /type DecisionReason =([^;]*);/.exec(read('lib/controller/decide.ts'))![1]!;
    const names = [...reasons.matchAll(/'([a-z-]+)'/g)].map(([, name]) => name!);
    expect(names.length).toBeGreaterThan(10);
    for (const name of [...names, ...Object.keys(DECISION_DEFAULTS)]) expect(page(), name).toContain(name);
  });
});
