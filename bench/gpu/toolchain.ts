/**
 * What the CUDA compiler says of the kernels, without a GPU: registers, spilled bytes and the size of the code for each
 * architecture, blocks per multiprocessor by the toolkit's own calculator, and the PTX that the host execution layer runs.
 * Results are kept under build-tests, by a hash of all that they depend on.
 */
import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import { writeJson } from '../harness.js';
import { ARCHITECTURES, type Architecture } from './machines.js';

const run = promisify(execFile);
const ROOT = join(__dirname, '..', '..');
const SOURCE = join(ROOT, 'native', 'solver', 'cuda', 'engine.cu');
const KEPT = join(ROOT, 'build-tests', 'kernels');
const NVCC_FLAGS = ['-O3', '-Werror=all-warnings'];
/** Since Volta, every instruction of the machine takes so many bytes. */
const INSTRUCTION_BYTES = 16;

export interface KernelResources {
  /** As `kernelName` writes it. */
  kernel: string;
  registers: number;
  /** Stored to or loaded from local memory for want of registers. */
  spilledBytes: number;
  stackBytes: number;
  /** Instructions of the machine, the padding at the end included. */
  instructions: number;
}

/** The nvcc on PATH or named by CUDACXX, or why there is none. */
export function findNvcc(): { version: string } | { reason: string } {
  try {
    const text = execFileSync(nvcc(), ['--version'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return { version: /release ([\d.]+)/.exec(text)?.[1] ?? 'unknown' };
  } catch {
    return { reason: 'nvcc was not found (put it on PATH or name it in CUDACXX)' };
  }
}

/** Of ours, the architectures that this nvcc compiles for. */
export function knownArchitectures(): Architecture[] {
  const known = execFileSync(nvcc(), ['--list-gpu-arch'], { encoding: 'utf8' }).split(/\s+/);
  return ARCHITECTURES.filter(({ name }) => known.includes(name.replace('sm', 'compute')));
}

function nvcc(): string {
  return process.env.CUDACXX || 'nvcc';
}

/**
 * One name for a kernel, from its mangled or its demangled form: `walk<0,1>` for
 * `_ZN6gimbal4cuda11walk_kernelILNS0_8WalkKindE0ELb1EEEv…` and `void gimbal::cuda::walk_kernel<(gimbal::cuda::WalkKind)0, true>`.
 */
export function kernelName(name: string): string {
  const mangled = /cuda\d+([a-z_]+)_kernel(?:I(L.*?E)Ev)?/.exec(name);
  if (mangled !== null) {
    const values = [...(mangled[2] ?? '').matchAll(/L(?:b|i|N.*?E)(\d+)E/g)].map((match) => match[1]);
    return values.length > 0 ? `${mangled[1]}<${values.join(',')}>` : mangled[1]!;
  }
  const plain = /cuda::([a-z_]+)_kernel(?:<(.*)>)?/.exec(name);
  if (plain === null) throw new Error(`expected the name of a kernel but received ${name}`);
  if (plain[2] === undefined) return plain[1]!;
  const values = plain[2]
    .split(', ')
    .map((value) => ({ true: '1', false: '0' })[value] ?? value.replace(/\(.*\)/, ''));
  return `${plain[1]}<${values.join(',')}>`;
}

/** Compiles for one architecture; takes about 10 s, or nothing where nothing has changed. */
export async function resources(architecture: Architecture): Promise<KernelResources[]> {
  return keep(`resources-${architecture.name}`, async (folder) => {
    const cubin = join(folder, 'engine.cubin');
    const flags = ['-std=c++17', ...NVCC_FLAGS, `-arch=${architecture.name}`, '-cubin', '-Xptxas', '-v'];
    const { stderr } = await run(nvcc(), [...flags, '-o', cubin, SOURCE], { maxBuffer: 2 ** 26 });
    const sizes = codeBytes(readFileSync(cubin));
    return parsePtxas(stderr).map((kernel) => {
      const bytes = sizes.get(kernel.kernel);
      if (bytes === undefined)
        throw new Error(`no code of ${kernel.kernel} in the cubin for ${architecture.name}`);
      return { ...kernel, instructions: bytes / INSTRUCTION_BYTES };
    });
  });
}

/** What `ptxas -v` prints, one entry for each kernel. */
export function parsePtxas(text: string): Omit<KernelResources, 'instructions'>[] {
  const entry =
    /Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers/g;
  const kernels = [...text.matchAll(entry)].map((match) => ({
    kernel: kernelName(match[1]!),
    registers: Number(match[5]),
    spilledBytes: Number(match[3]) + Number(match[4]),
    stackBytes: Number(match[2]),
  }));
  if (kernels.length === 0) throw new Error(`ptxas said nothing of any kernel:\n${text.slice(0, 2000)}`);
  return kernels.sort((a, b) => (a.kernel < b.kernel ? -1 : 1));
}

/** Bytes of code by kernel: the sections `.text.<kernel>` of a cubin, which is a 64-bit little-endian ELF file. */
export function codeBytes(elf: Buffer): Map<string, number> {
  if (elf.toString('latin1', 0, 4) !== '\x7fELF' || elf[4] !== 2 || elf[5] !== 1)
    throw new Error('not a cubin');
  const headersAt = Number(elf.readBigUInt64LE(0x28));
  const headerBytes = elf.readUInt16LE(0x3a);
  const count = elf.readUInt16LE(0x3c);
  const header = (n: number) => headersAt + n * headerBytes;
  const names = Number(elf.readBigUInt64LE(header(elf.readUInt16LE(0x3e)) + 0x18));
  const sizes = new Map<string, number>();
  for (let n = 0; n < count; ++n) {
    const nameAt = names + elf.readUInt32LE(header(n));
    const name = elf.toString('latin1', nameAt, elf.indexOf(0, nameAt));
    if (name.startsWith('.text.')) sizes.set(kernelName(name), Number(elf.readBigUInt64LE(header(n) + 0x20)));
  }
  return sizes;
}

/** The path of the kernels' PTX for one architecture. */
export async function ptxFile(architecture: Architecture, standard: 17 | 20 = 17): Promise<string> {
  const file = join(KEPT, `${hash()}-${architecture.name}-cpp${standard}.ptx`);
  if (existsSync(file)) return file;
  mkdirSync(KEPT, { recursive: true });
  const temporary = `${file}.${process.pid}`;
  const flags = [`-std=c++${standard}`, ...NVCC_FLAGS, `-arch=${architecture.name}`, '-ptx', '-lineinfo'];
  await run(nvcc(), [...flags, '-o', temporary, SOURCE]);
  renameSync(temporary, file);
  return file;
}

export interface Occupancy {
  architecture: Architecture;
  registers: number;
  threads: number;
  sharedBytes: number;
}

/** Blocks that a multiprocessor holds, by the calculator that comes with the toolkit. */
export async function blocksPerMultiprocessor(questions: Occupancy[]): Promise<number[]> {
  const program = await keep('occupancy', async () => {
    mkdirSync(KEPT, { recursive: true });
    const name = `occupancy-${hash()}`;
    await run(nvcc(), ['-x', 'c++', join(__dirname, 'occupancy.cc'), '-o', join(KEPT, name)]);
    return { name };
  });
  const lines = questions.map(({ architecture: a, registers, threads, sharedBytes }) =>
    [
      a.major,
      a.minor,
      a.maxWarps * 32,
      a.sharedBytesPerMultiprocessor,
      a.sharedBytesPerBlock,
      a.reservedSharedBytes,
    ]
      .concat(registers, threads, sharedBytes)
      .join(' '),
  );
  const output = execFileSync(join(KEPT, program.name), { input: `${lines.join('\n')}\n`, encoding: 'utf8' });
  return output.trim().split('\n').map(Number);
}

/** Runs `make` unless its result is kept already. */
async function keep<T>(what: string, make: (folder: string) => Promise<T>): Promise<T> {
  const file = join(KEPT, `${hash()}-${what}.json`);
  if (existsSync(file)) return JSON.parse(readFileSync(file, 'utf8'));
  mkdirSync(KEPT, { recursive: true });
  const folder = mkdtempSync(join(KEPT, 'work-'));
  try {
    const made = await make(folder);
    writeJson(file, made);
    return made;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

let hashed: string | undefined;

/** Of the compiler, the device code, and what asks about it. */
function hash(): string {
  if (hashed !== undefined) return hashed;
  const folders = ['native/spec', 'native/solver/cuda'].map((folder) => join(ROOT, folder));
  const sources = folders.flatMap((folder) =>
    readdirSync(folder)
      .sort()
      .map((name) => join(folder, name)),
  );
  const sum = createHash('sha256').update(JSON.stringify([findNvcc(), NVCC_FLAGS, ARCHITECTURES]));
  for (const file of [...sources, __filename, join(__dirname, 'occupancy.cc')]) {
    sum.update(relative(ROOT, file)).update(readFileSync(file));
  }
  hashed = sum.digest('hex').slice(0, 16);
  return hashed;
}
