/** The built command simulates the same on one thread and on several, with measured tables and errors across threads. Needs `npm run build`. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, expect, it } from 'vitest';

const MAIN = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');
const folder = mkdtempSync(path.join(tmpdir(), 'gimbal-simulate-'));
afterAll(() => rmSync(folder, { recursive: true }));

const run = promisify(execFile);
const WORDS =
  'simulate --synthetic random --requests 80 --rate 40 --model qwen3-30b-a3b --hardware h100 --dp 2 --policy vllm gimbal --seeds 2 --json';

it('gives the same document on one thread and on three', { timeout: 120_000 }, async () => {
  writeFileSync(
    path.join(folder, 'moe.csv'),
    'tokens,activated_experts,time_us\n1,8,50\n1,64,400\n100,8,60\n100,64,450\n',
  );
  const words = [...WORDS.split(' '), '--profiles', folder];
  const document = async (threads: number) => {
    const { stdout } = await run(process.execPath, [MAIN, ...words, '--threads', String(threads)], {
      maxBuffer: 2 ** 28,
    });
    const { command: _, ...rest } = JSON.parse(stdout);
    return rest;
  };
  const one = await document(1);
  expect(await document(3)).toEqual(one);
  expect(one.notes).toContain('step times from measured tables where given');
});

it('tells an error of a thread as its own', { timeout: 60_000 }, async () => {
  const words = [...WORDS.split(' '), '--threads', '2', '--kv-blocks', '3'];
  const failed = await run(process.execPath, [MAIN, ...words]).catch((error: unknown) => error);
  expect(failed).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/options\.trace\[\d+\]: expected input and output that fit/),
  });
});
