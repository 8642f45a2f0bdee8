/**
 * What the tests of the command line share: a small seeded workload as files in a folder of its own, and the rule that every
 * failure obeys.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Writable } from 'node:stream';
import { expect } from 'vitest';
import { SKEWED_TOPICS, workload } from '../../bench/workloads.js';
import { run } from '../../lib/cli/run.js';
import { npy as npyOf } from '../support/npy.js';

export const LAYERS = 3;
export const SOURCES = 8;
export const EXPERTS = 16;

export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** The command in process. */
export async function gimbal(words: string[]): Promise<Ended> {
  const text = { stdout: '', stderr: '' };
  const sink = (name: keyof typeof text) =>
    new Writable({
      write: (chunk: Buffer, _encoding, done) => {
        text[name] += chunk.toString();
        done();
      },
    });
  const output = { stdout: sink('stdout'), stderr: sink('stderr') };
  const { signal } = new AbortController();
  const code = await run(words, { output, signal, onHangUp: () => undefined });
  return { code, ...text };
}

/** A folder with `counts.npy` [layers, sources, experts] and `sums.npy` [layers, experts]. */
export class WorkFolder {
  readonly path = mkdtempSync(path.join(tmpdir(), 'gimbal-cli-'));

  constructor() {
    const tokens = smallTokens();
    this.write('counts.npy', npy([LAYERS, SOURCES, EXPERTS], tokens));
    this.write('sums.npy', npy([LAYERS, EXPERTS], sumSources(tokens)));
  }

  at(name: string): string {
    return path.join(this.path, name);
  }

  write(name: string, content: Buffer | string | object): void {
    const text = typeof content === 'string' || Buffer.isBuffer(content) ? content : JSON.stringify(content);
    writeFileSync(this.at(name), text);
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** `[LAYERS][SOURCES][EXPERTS]` */
export function smallTokens(): Uint32Array {
  const shape = {
    name: 'small',
    layers: LAYERS,
    experts: EXPERTS,
    gpus: SOURCES,
    slotsPerGpu: 3,
    topK: 2,
    hidden: 1024,
    intermediate: 512,
    flops: 4e14,
    groups: 4,
  };
  const popularity = { kind: 'lognormal', sigma: 1 } as const;
  return workload({ shape, popularity, nodes: 2, seed: 5, topics: SKEWED_TOPICS }).tokens;
}

function sumSources(tokens: Uint32Array): Uint32Array {
  const sums = new Uint32Array(LAYERS * EXPERTS);
  tokens.forEach((count, index) => {
    const layer = Math.floor(index / (SOURCES * EXPERTS));
    sums[layer * EXPERTS + (index % EXPERTS)]! += count;
  });
  return sums;
}

/** Counts as a .npy file. */
export function npy(shape: number[], data: Uint32Array): Buffer {
  return npyOf(Buffer.from(data.buffer, data.byteOffset, data.byteLength), shape);
}

/** Slot m holds expert m modulo the experts. */
export function row(slots: number): number[] {
  return Array.from({ length: slots }, (_, slot) => slot % EXPERTS);
}

/** One line that says what, at most one that says what to do, and no stack of calls. */
export function expectFailure(result: Ended, code: number, message: RegExp, remedy?: RegExp): void {
  const [first = '', second = '', ...rest] = result.stderr.trimEnd().split('\n');
  expect(result, result.stderr).toMatchObject({ code });
  expect(first).toMatch(/^gimbal: /);
  expect(first).toMatch(message);
  expect(rest).toEqual([]);
  if (remedy !== undefined) expect(second).toMatch(remedy);
}
