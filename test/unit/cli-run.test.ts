/**
 * The command line from words to exit code, in this process: every class of error and its words, the JSON documents, and that
 * the options do what they say. test/e2e/cli.test.ts runs the built program for what only a process of its own has.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Writable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { commandNames } from '../../lib/cli/program.js';
import { run } from '../../lib/cli/run.js';
import {
  type Ended,
  EXPERTS,
  expectFailure,
  LAYERS,
  npy,
  row,
  SOURCES,
  smallTokens,
  WorkFolder,
} from './cli-fixture.js';

let folder: WorkFolder;

beforeAll(() => {
  folder = new WorkFolder();
});

afterAll(() => folder.remove());

function collector(): { stream: Writable; text: () => string } {
  const chunks: Buffer[] = [];
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(Buffer.from(chunk));
      done();
    },
  });
  return { stream, text: () => Buffer.concat(chunks).toString('utf8') };
}

/** Words are split at spaces; a word with an extension is a file of the folder. */
async function gimbal(line: string, signal = new AbortController().signal): Promise<Ended> {
  const words = line
    .split(' ')
    .filter((word) => word !== '')
    .map((word) => (/^[\w/-]+\.(json|npy|npz|pt|yaml|html)$/.test(word) ? folder.at(word) : word));
  const stdout = collector();
  const stderr = collector();
  const output = { stdout: stdout.stream, stderr: stderr.stream };
  const code = await run(words, { output, signal, onHangUp: () => undefined });
  return { code, stdout: stdout.text(), stderr: stderr.text() };
}

const PLAN = 'plan --counts counts.npy --topology 2x4 --model mixtral-8x7b --hardware h100';

describe('help', () => {
  it('shows every option of the task with each command', async () => {
    const { stdout } = await gimbal('plan --help');
    const options = [
      '--counts',
      '--topology',
      '--sources',
      '--model',
      '--hardware',
      '--slots',
      '--incumbent',
      '--replica-choice',
      '--budget',
      '--migration-cost',
      '--weights',
      '--dead-gpus',
      '--effort',
      '--walkers',
      '--rounds',
      '--seed',
      '--threads',
      '--time-limit',
      '--backend',
      '--format',
      '--out',
      '--json',
      '--report',
      '--progress',
    ];
    for (const option of options) expect(stdout).toContain(`  ${option} `);
    for (const format of ['sglang', 'vllm', 'tensorrt-llm', 'vllm-ascend', 'eplb', 'npy', 'json']) {
      expect(stdout).toContain(format);
    }
    for (const command of commandNames) {
      const help = await gimbal(`${command} --help`);
      expect(help.code).toBe(0);
      expect(help.stdout).toContain('Examples:');
      expect(help.stdout).toContain(`gimbal ${command}`);
    }
  });
});

describe('docs/CLI.md', () => {
  const page = readFileSync(path.join(__dirname, '..', '..', 'docs', 'CLI.md'), 'utf8');

  it('speaks of every option of every command', async () => {
    for (const command of commandNames) {
      const { stdout } = await gimbal(`${command} --help`);
      const options = [...stdout.matchAll(/^ {2}(?:-\w, )?(--[a-z-]+)/gm)].map((match) => match[1]!);
      expect(options.length).toBeGreaterThan(1);
      for (const option of options)
        if (option !== '--help') expect(page.includes(option), `${command} ${option}`).toBe(true);
    }
  });

  it('shows no option that there is not', async () => {
    let help = '';
    for (const command of commandNames) help += (await gimbal(`${command} --help`)).stdout;
    for (const [option] of page.matchAll(/(?<=[`\s])--[a-z][a-z-]+/g))
      expect(help.includes(option), option).toBe(true);
  });
});

describe('exit code 2: a wrong command line', () => {
  const cases: [line: string, message: RegExp, remedy?: RegExp][] = [
    ['plann', /unknown command 'plann'/, /Did you mean plan/],
    ['plan --counts counts.npy', /required option '--topology/, /gimbal plan --help/],
    [`${PLAN} --outt x.json`, /unknown option '--outt'/, /Did you mean --out/],
    [
      `${PLAN} --slots 23`,
      /--slots: expected .* divides evenly over 8 GPUs but received 23/,
      /16 \(2 a GPU\) or 24 \(3 a GPU\)/,
    ],
    [`${PLAN} --slots 3`, /received 3/, /3\/gpu if 3 are one GPU's/],
    [`${PLAN} --slots many`, /--slots takes/, /--slots 9\/gpu/],
    [`${PLAN} --model gpt-2`, /model: expected one of .*DeepSeek-V3.* but received "gpt-2"/],
    [`${PLAN} --hardware tpu`, /hardware: expected one of .*H100.* but received "tpu"/],
    [`${PLAN} --effort high`, /--effort takes one of fast, balanced, thorough but received "high"/],
    [`${PLAN} --weights speed=1`, /unknown weight "speed"/, /load=1,comm-max=1/],
    [`${PLAN} --budget 5%`, /--budget needs --incumbent/],
    [`${PLAN} --migration-cost 1ms`, /--migration-cost needs --incumbent/],
    [`${PLAN} --dead-gpus 8`, /GPUs from 0 to 7 but received 8/],
    [`${PLAN} --sources 3`, /sources: expected a divisor of 8 GPUs but received 3/],
    [`${PLAN} --format sglang`, /--format needs --out/],
    [`${PLAN} --json --out -`, /both write to stdout/],
    [`${PLAN} --report -`, /--report takes a file name/],
    [
      `${PLAN} --slots 24 --dead-gpus 1 --format sglang --out x.json`,
      /cannot express the empty slots/,
      /npy and json/,
    ],
    [`${PLAN} --format tensorrt-llm --out x.yaml`, /needs the model layer of each row/, /--model/],
    ['diff a.json', /missing required argument 'after'/],
  ];
  for (const [line, message, remedy] of cases) {
    it(line, async () => {
      expectFailure(await gimbal(line), 2, message, remedy);
    });
  }
});

describe('exit code 3: bad input', () => {
  it('files that are not what they should be', async () => {
    const whole = npy([LAYERS, SOURCES, EXPERTS], smallTokens());
    const files: [name: string, content: Buffer | string, message: RegExp][] = [
      ['short.npy', whole.subarray(0, whole.length - 4), /short\.npy/],
      ['text.npy', 'hello', /text\.npy/],
      ['broken.json', '{"tokens": [[1, 2', /broken\.json/],
      ['negative.json', '{"tokens": [[1, -2]]}', /negative\.json.*-2/],
    ];
    for (const [name, content, message] of files) {
      folder.write(name, content);
      expectFailure(await gimbal(`plan --counts ${name} --topology 2x4`), 3, message);
    }
  });

  it('a pickle that would run code is refused, not run', async () => {
    folder.write(
      'evil.pt',
      Buffer.from('\x80\x02cposix\nsystem\nX\x0f\x00\x00\x00touch ran-a-code\x85R.', 'latin1'),
    );
    expectFailure(await gimbal('plan --counts evil.pt --topology 2x4'), 3, /evil\.pt/);
    expect(existsSync(folder.at('ran-a-code'))).toBe(false);
  });

  it('topology files', async () => {
    folder.write('half.json', '{"nodes": 2}');
    expectFailure(
      await gimbal('plan --counts counts.npy --topology half.json'),
      3,
      /half\.json.*gpusPerNode/,
    );
    folder.write('list.json', '[1]');
    expectFailure(
      await gimbal('plan --counts counts.npy --topology list.json'),
      3,
      /JSON object but received an array/,
    );
    folder.write('no.json', 'nodes');
    expectFailure(await gimbal('plan --counts counts.npy --topology no.json'), 3, /expected JSON/, /4x8/);
  });

  it('files that do not fit each other', async () => {
    const sources = await gimbal('plan --counts counts.npy --topology 1x12');
    expectFailure(
      sources,
      3,
      /divides the topology's 12, or is a multiple of it, but received 8/,
      /--sources/,
    );
    folder.write('two-layers.json', { physical_to_logical_map: [row(24), row(24)] });
    expectFailure(await gimbal(`${PLAN} --incumbent two-layers.json`), 3, /3 layers.*2 layers/);
    const high = [row(24), row(24), row(24).map((expert) => (expert === 5 ? 16 : expert))];
    folder.write('high.json', JSON.stringify({ physical_to_logical_map: high }));
    expectFailure(await gimbal(`${PLAN} --incumbent high.json`), 3, /high\.json.*16/);
    folder.write('odd.json', { physical_to_logical_map: [row(23), row(23), row(23)] });
    expectFailure(await gimbal(`${PLAN} --incumbent odd.json`), 3, /divide evenly over 8 GPUs/);
  });
});

describe('the other exit codes', () => {
  it('4: no placement can exist, and how many slots would do', async () => {
    expectFailure(
      await gimbal(`${PLAN} --slots 8`),
      4,
      /at least 16 slots.* but received 8/,
      /--slots 16 or --slots 2\/gpu/,
    );
    const dead = await gimbal(`${PLAN} --slots 16 --dead-gpus 3`);
    expectFailure(dead, 4, /received 14 on the 7 live GPUs/, /--slots 24 or --slots 3\/gpu/);
    expectFailure(await gimbal(`${PLAN} --dead-gpus 0-7`), 4, /all 8 are dead/);
  });

  it('5: a backend that is not there', async (context) => {
    const { backends } = JSON.parse((await gimbal('backends --json')).stdout) as {
      backends: { name: string; available: boolean }[];
    };
    if (backends.some(({ name, available }) => name === 'cuda' && available))
      context.skip('this machine has CUDA');
    expectFailure(await gimbal(`${PLAN} --backend cuda`), 5, /cuda/, /gimbal backends/);
  });

  it('6: files that cannot be read or written; the latter is told before the search', async () => {
    expectFailure(await gimbal('plan --counts nope.npy --topology 2x4'), 6, /nope\.npy/);
    expectFailure(await gimbal('plan --counts counts.npy --topology 2y4'), 6, /2y4/, /NODESxGPUS/);
    expectFailure(
      await gimbal(`${PLAN} --out no/where/x.json`),
      6,
      /--out .*no folder .*no\/where/,
      /mkdir -p/,
    );
    expectFailure(await gimbal(`${PLAN} --report no/where/x.html`), 6, /--report .*no folder/);
    expectFailure(await gimbal('diff nope.json counts.npy --gpus 8'), 6, /nope\.json|counts\.npy/);
  });

  it('130: an interrupt ends a long plan and leaves no file', async () => {
    const before = readdirSync(folder.path).sort();
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 150);
    const line = `${PLAN} --slots 24 --walkers 500 --rounds 5000 --out stopped.json --report stopped.html`;
    expectFailure(await gimbal(line, abort.signal), 130, /interrupted; nothing was written/);
    expect(readdirSync(folder.path).sort()).toEqual(before);
  });

  it('with --json a failure is an object on stdout besides', async () => {
    const { code, stdout, stderr } = await gimbal(`${PLAN} --slots 8 --json`);
    const { error } = JSON.parse(stdout) as { error: Record<string, unknown> };
    expect(code).toBe(4);
    expect(error).toMatchObject({
      code: 'GIMBAL_INFEASIBLE',
      exitCode: 4,
      field: 'slots',
      expected: 'at least 16',
      received: '8',
    });
    expect(stderr).toContain(`gimbal: ${error.message}`);
    const usage = JSON.parse((await gimbal('plan --json --topology 2x4')).stdout) as typeof error;
    expect(usage).toMatchObject({ error: { code: 'GIMBAL_USAGE', exitCode: 2 } });
  });
});

interface PlanDocument {
  problem: {
    gpus: number;
    slotsPerGpu: number;
    layers: number;
    sources: number;
    migrationBudget: number | null;
  };
  notes: string[];
  before: { kind: string; totals: Record<string, number>; layers: Record<string, number>[] };
  after: { totals: Record<string, number>; layers: Record<string, number>[] };
  plan: Record<string, number | string> & { layers: Record<string, number>[] };
  physicalToLogical: number[][];
  written: Record<string, string>;
}

async function planDocument(line: string): Promise<PlanDocument> {
  const { code, stdout, stderr } = await gimbal(`${line} --json`);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as PlanDocument;
}

describe('gimbal plan', () => {
  it('tells the same in words and as JSON, and improves on the start', async () => {
    const document = await planDocument(`${PLAN} --slots 24`);
    const { before, after, plan, problem } = document;
    expect(problem).toMatchObject({ layers: LAYERS, sources: SOURCES, gpus: 8, slotsPerGpu: 3 });
    expect(before.kind).toContain('contiguous');
    expect(after.totals.objective!).toBeLessThan(before.totals.objective!);
    expect(after.totals.imbalanceMean!).toBeLessThan(before.totals.imbalanceMean!);
    expect(after.totals.crossNodeShare!).toBeLessThan(before.totals.crossNodeShare!);
    // The evaluation and the plan are two ways to the same figures.
    expect(after.totals.objective).toBeCloseTo(plan.objective as number, 3);
    expect(plan.layers).toHaveLength(LAYERS);
    expect(plan.lowerBound as number).toBeGreaterThan(0);
    expect(plan.lowerBound as number).toBeLessThanOrEqual(plan.objective as number);
    for (const experts of document.physicalToLogical) expect(new Set(experts).size).toBe(EXPERTS);

    const { code, stdout, stderr } = await gimbal(`${PLAN} --slots 24`);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain(
      '3 layers × 16 experts, 24 slots (3 a GPU), 8 GPUs on 2 nodes, 8 source DP ranks',
    );
    expect(stdout).toContain(`${before.totals.imbalanceMean!.toFixed(3)}`);
    expect(stdout).toContain(`${after.totals.imbalanceMean!.toFixed(3)}`);
    expect(stdout).toMatch(/imbalance +cross-node +comm\. max .* J .* bound .* gap +moves/);
    expect(stdout).toMatch(
      /Planned in .* on cpu \(.*\): effort balanced, \d+ walkers?, \d+ rounds?, seed 0\./,
    );
  });

  it('gives the same plan for the same seed, whatever the threads', async () => {
    const one = await planDocument(`${PLAN} --slots 24 --seed 9 --threads 1`);
    const two = await planDocument(`${PLAN} --slots 24 --seed 9 --threads 2`);
    expect(two.physicalToLogical).toEqual(one.physicalToLogical);
    expect((await planDocument(`${PLAN} --slots 24 --seed 18446744073709551615`)).plan.seed).toBe(
      '18446744073709551615',
    );
  });

  it('says what it made of counts without sources, of a missing --slots and of a missing model', async () => {
    const { notes, problem } = await planDocument('plan --counts sums.npy --topology 2x4');
    expect(problem.slotsPerGpu).toBe(2);
    expect(notes.join('\n')).toMatch(/do not say which source/);
    expect(notes.join('\n')).toMatch(/No --slots: 16 slots \(2 a GPU\)/);
    expect(notes.join('\n')).toMatch(/no model was named/);
    const merged = await planDocument('plan --counts counts.npy --topology 2x4 --sources 2 --slots 24');
    expect(merged.problem.sources).toBe(2);
    expect(merged.notes.join('\n')).toMatch(/each block of 4 consecutive sources is added up/);
  });

  it('reads several files as sources, and a rank cost matrix as the topology', async () => {
    const tokens = smallTokens();
    for (let source = 0; source < SOURCES; source++) {
      const own = new Uint32Array(LAYERS * EXPERTS);
      for (let index = 0; index < own.length; index++) {
        const layer = Math.floor(index / EXPERTS);
        own[index] = tokens[(layer * SOURCES + source) * EXPERTS + (index % EXPERTS)]!;
      }
      folder.write(`rank${source}.npy`, npy([LAYERS, EXPERTS], own));
    }
    const files = Array.from({ length: SOURCES }, (_, source) => `rank${source}.npy`).join(' ');
    const together = await planDocument(`${PLAN.replace('counts.npy', files)} --slots 24`);
    expect(together.physicalToLogical).toEqual((await planDocument(`${PLAN} --slots 24`)).physicalToLogical);

    const node = (gpu: number) => Math.floor(gpu / 4);
    const matrix = Array.from({ length: 8 }, (_, from) =>
      Array.from({ length: 8 }, (_unused, to) => (from === to ? 0 : node(from) === node(to) ? 1 : 4)),
    );
    folder.write('matrix.json', { rank_cost_matrix: matrix });
    const document = await planDocument('plan --counts counts.npy --topology matrix.json --slots 24');
    expect(document.problem).toMatchObject({ gpus: 8, nodes: 2, gpusPerNode: 4 });
  });

  it('guesses the model whose shape the counts have, and numbers the layers as the model does', async () => {
    const qwen = new Uint32Array(48 * 128).fill(100);
    folder.write('qwen.npy', npy([48, 128], qwen));
    const guessed = await planDocument('plan --counts qwen.npy --topology 1x8 --effort fast');
    expect(guessed.notes.join('\n')).toContain('No --model: Qwen3-30B-A3B is taken');
    expect(guessed.problem).toMatchObject({ subject: 'Qwen3-30B-A3B' });
    folder.write('deepseek.npy', npy([58, 256], new Uint32Array(58 * 256).fill(100)));
    const line =
      'plan --counts deepseek.npy --topology 1x8 --model deepseek-v3 --effort fast --out deepseek.yaml';
    expect((await gimbal(line)).stderr).toBe('');
    const text = readFileSync(folder.at('deepseek.yaml'), 'utf8');
    expect(text.match(/^ {2}\d+: \[/gm)).toHaveLength(58);
    expect(text).toMatch(/^ {2}3: \[/m);
    expect(text).toMatch(/^ {2}60: \[/m);
    expect(text).not.toMatch(/^ {2}[02]: \[/m);
  });

  it('lets the command line go before the topology file', async () => {
    folder.write('cluster.json', { nodes: 2, gpusPerNode: 4, model: 'Kimi-K2', sources: 4 });
    const line = 'plan --counts counts.npy --topology cluster.json';
    expect((await planDocument(line)).problem).toMatchObject({ subject: 'Kimi-K2', sources: 4 });
    const other = await planDocument(`${line} --model mixtral-8x7b --sources 2`);
    expect(other.problem).toMatchObject({ subject: 'Mixtral-8x7B', sources: 2 });
    expect(other.notes.join('\n')).toContain('14336 FLOP (Mixtral-8x7B)');
  });

  it('keeps to a budget from an incumbent of any format, and to zero moves', async () => {
    for (const name of ['p.json', 'p.npy', 'p.npz']) {
      const first = await gimbal(`${PLAN} --slots 24 --out ${name}`);
      expect(first.stdout).toContain(`Wrote the placement to ${folder.at(name)}.`);
      const kept = await planDocument(`${PLAN} --incumbent ${name} --budget 0 --weights comm-max=0`);
      expect(kept.plan.migrations).toBe(0);
      expect(kept.before.kind).toBe('the incumbent');
    }
    const moved = await planDocument(
      `${PLAN} --incumbent p.json --budget 10% --weights comm-max=0,comm-total=0`,
    );
    expect(moved.problem.migrationBudget).toBe(7);
    expect(moved.plan.migrations as number).toBeGreaterThan(0);
    expect(moved.plan.migrations as number).toBeLessThanOrEqual(7);
    expect(moved.after.totals.migrations).toBe(moved.plan.migrations);
  });

  it('plans around dead GPUs, and takes incumbents of fewer GPUs', async () => {
    const dead = await planDocument(
      `${PLAN} --slots 24 --incumbent p.json --dead-gpus 1,6 --budget 0 --out around.json`,
    );
    for (const experts of dead.physicalToLogical) {
      for (const gpu of [1, 6]) expect(experts.slice(gpu * 3, gpu * 3 + 3)).toEqual([-1, -1, -1]);
    }
    expect(dead.plan.migrations).toBe(dead.plan.forcedMigrations);
    const grown = await planDocument(`${PLAN} --slots 24 --incumbent around.json`);
    expect(grown.before.kind).toBe('the incumbent');
    folder.write('four.json', {
      format: 'gimbal-placement',
      version: 1,
      layers: 3,
      gpus: 4,
      slotsPerGpu: 4,
      experts: 16,
      physicalToLogical: [row(16), row(16), row(16)],
    });
    const elastic = await planDocument(`${PLAN} --incumbent four.json`);
    expect(elastic.problem.slotsPerGpu).toBe(4);
    expect(elastic.before.kind).toBe('the incumbent');
  });

  it('falls back with a note where the incumbent cannot be costed', async () => {
    folder.write('twelve.json', {
      format: 'gimbal-placement',
      version: 1,
      layers: 3,
      gpus: 12,
      slotsPerGpu: 2,
      experts: 16,
      physicalToLogical: [row(24), row(24), row(24)],
    });
    const document = await planDocument(`${PLAN} --incumbent twelve.json --slots 24`);
    expect(document.before.kind).toContain('contiguous');
    expect(document.notes.join('\n')).toMatch(/incumbent cannot be costed on this cluster.*12/);
  });

  it('writes the placement alone to stdout with --out -', async () => {
    const { code, stdout, stderr } = await gimbal(`${PLAN} --slots 24 --out - --format sglang`);
    expect(code).toBe(0);
    expect(Object.keys(JSON.parse(stdout) as object)).toEqual(['physical_to_logical_map']);
    expect(stderr).toContain('Planned in');
  });

  it('chooses the format by the extension', async () => {
    await gimbal(`${PLAN} --slots 24 --out by.npy`);
    expect(readFileSync(folder.at('by.npy')).subarray(1, 6).toString('latin1')).toBe('NUMPY');
    expect(readdirSync(folder.path).filter((name) => name.includes('.tmp'))).toEqual([]);
  });

  it('tells progress only where asked, on stderr', async () => {
    const quiet = await gimbal(`${PLAN} --slots 24`);
    expect(quiet.stderr).toBe('');
    const told = await gimbal(`${PLAN} --slots 24 --progress --json`);
    expect(told.stderr).toMatch(/gimbal: planning .* 100 %/);
    expect(JSON.parse(told.stdout)).toHaveProperty('plan');
  });
});

describe('gimbal evaluate', () => {
  it('costs placements side by side, as plan does', async () => {
    const planned = await planDocument(`${PLAN} --slots 24 --out planned.json`);
    folder.write('start.json', { physical_to_logical_map: [row(24), row(24), row(24)] });
    const line = PLAN.replace('plan', 'evaluate');
    const { code, stdout, stderr } = await gimbal(
      `${line} --incumbent start.json --placement start.json planned.json --json`,
    );
    expect(code, stderr).toBe(0);
    const { placements } = JSON.parse(stdout) as {
      placements: { name: string; totals: Record<string, number> }[];
    };
    expect(placements.map(({ name }) => name)).toEqual([folder.at('start.json'), folder.at('planned.json')]);
    expect(placements[0]!.totals.objective).toBeCloseTo(planned.before.totals.objective!, 3);
    expect(placements[1]!.totals.objective).toBeCloseTo(planned.after.totals.objective!, 3);
    expect(placements[0]!.totals.migrations).toBe(0);
    expect(placements[1]!.totals.migrations).toBeGreaterThan(0);
    const text = await gimbal(`${line} --placement start.json planned.json`);
    expect(text.stdout).toMatch(/placement +J +compute max/);
    expect(text.stdout).toMatch(/start\.json .*–\n/);
  });

  it('names the file and layer that miss an expert', async () => {
    const missing = row(24).map((expert) => (expert === 5 ? 4 : expert));
    folder.write('missing.json', { physical_to_logical_map: [row(24), missing, row(24)] });
    const result = await gimbal(`${PLAN.replace('plan', 'evaluate')} --placement missing.json`);
    expectFailure(
      result,
      3,
      /missing\.json: layer 1: expected a slot for each of 16 experts but expert 5 has none/,
    );
  });
});

describe('gimbal diff', () => {
  it('lists moves with their senders, the nearest first', async () => {
    const base = row(8);
    const before = [...base.slice(0, 7), 0];
    const after = [...base.slice(0, 6), 0, 0];
    folder.write('a.json', { physical_to_logical_map: [before] });
    folder.write('b.json', { physical_to_logical_map: [after] });
    const plain = await gimbal('diff a.json b.json --gpus 8 --json');
    expect(plain.code, plain.stderr).toBe(0);
    expect(JSON.parse(plain.stdout)).toMatchObject({
      totals: { moves: 1, dropped: 1, withoutSender: 0 },
      layers: [{ layer: 0, moves: [{ expert: 0, toGpu: 6, fromGpus: [0, 7] }], dropped: 1 }],
    });
    // GPU 7 is on the same node as GPU 6.
    const near = await gimbal('diff a.json b.json --topology 2x4 --json');
    expect(JSON.parse(near.stdout).layers[0].moves[0].fromGpus).toEqual([7, 0]);
    const text = await gimbal('diff a.json b.json --topology 2x4');
    expect(text.stdout).toContain('a.json → b.json: 1 move for 8 slots; 1 copy dropped.');
    expect(text.stdout).toMatch(/0 +0 +6 +7, 0/);
  });

  it('of equal placements is empty, and asks for GPUs where nobody tells', async () => {
    const same = await gimbal('diff a.json a.json --gpus 8');
    expect(same).toEqual({
      code: 0,
      stdout: 'a.json → a.json: 0 moves for 8 slots; 0 copies dropped.\n',
      stderr: '',
    });
    expectFailure(
      await gimbal('diff a.json b.json'),
      2,
      /does not say how many GPUs/,
      /--topology or --gpus/,
    );
  });
});

describe('gimbal diff --rounds', () => {
  /** Every GPU of eight passes its expert on to the next. */
  const ring = () => {
    const before = row(8);
    folder.write('ring-a.json', { physical_to_logical_map: [before] });
    folder.write('ring-b.json', { physical_to_logical_map: [[...before.slice(1), before[0]!]] });
  };

  it('orders the moves, and says what they take', async () => {
    ring();
    const text = await gimbal('diff ring-a.json ring-b.json --gpus 8 --rounds');
    expect(text.code, text.stderr).toBe(0);
    expect(text.stdout).toMatch(/round +layer +expert +from GPU +to GPU\n/);
    expect(text.stdout).toMatch(/1 +0 +1 +1 +0 \(staging\)\n/);
    expect(text.stdout).toContain(
      '8 moves for 8 slots; 8 copies dropped.\n1 round (at least 1), 1 staging slot on the fullest GPU, 8 local copies.\n',
    );
  });

  it('gives the schedule as JSON, with the layers of the model', async () => {
    ring();
    const { stdout } = await gimbal('diff ring-a.json ring-b.json --topology 2x4 --rounds --json');
    const { schedule, totals } = JSON.parse(stdout);
    expect(totals.moves).toBe(8);
    expect(schedule).toMatchObject({
      rounds: 1,
      lowerBound: 1,
      slotsPerGpu: 1,
      stagingPeak: [1, 1, 1, 1, 1, 1, 1, 1],
      storageLoads: [],
    });
    expect(schedule.transfers).toHaveLength(8);
    expect(schedule.transfers[0]).toEqual({
      round: 0,
      layer: 0,
      expert: 1,
      fromGpu: 1,
      fromSlot: 0,
      toGpu: 0,
      toSlot: 1,
    });
    expect(schedule.localCopies).toContainEqual({ round: 1, layer: 0, gpu: 0, fromSlot: 1, toSlot: 0 });
  });

  it('lists what has to come from storage, and refuses what the staging does not allow', async () => {
    ring();
    folder.write('ring-c.json', { physical_to_logical_map: [[8, ...row(8).slice(1)]] });
    expectFailure(
      await gimbal('diff ring-a.json ring-b.json --gpus 8 --rounds --staging 0'),
      4,
      /--staging: expected at least 1, since expert 0 of layer 0 .* but received 0/,
      /give --staging 1/,
    );
    expectFailure(
      await gimbal('diff ring-a.json ring-c.json --gpus 8 --rounds'),
      3,
      /ring-c\.json: expected a slot for each of 9 experts but received none for expert 0/,
    );
    expectFailure(
      await gimbal('diff ring-a.json ring-b.json --gpus 8 --staging 1'),
      2,
      /--staging: there is nothing to order without --rounds/,
    );
    folder.write('wide-a.json', { physical_to_logical_map: [[0, 1, 0, 1]] });
    folder.write('wide-b.json', { physical_to_logical_map: [[0, 2, 1, 0]] });
    const loaded = await gimbal('diff wide-a.json wide-b.json --gpus 2 --rounds');
    expect(loaded.stdout, loaded.stderr).toMatch(/1 +0 +2 +storage +0\n/);
  });
});

describe('gimbal backends', () => {
  it('lists both, with the reason of what is missing', async () => {
    const { backends } = JSON.parse((await gimbal('backends --json')).stdout) as {
      backends: { name: string; available: boolean; description: string; reason?: string }[];
    };
    expect(backends.map(({ name }) => name)).toEqual(['cpu', 'cuda']);
    expect(backends[0]!.available).toBe(true);
    for (const { available, reason } of backends) if (!available) expect(reason).toBeTruthy();
    const { stdout } = await gimbal('backends');
    expect(stdout).toMatch(/^cpu +available/);
  });
});
