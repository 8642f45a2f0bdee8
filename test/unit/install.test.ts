/**
 * The install step's choices, in a copy of the package in which cmake-js and node-gyp are stand-ins: they note that they
 * were called and "build" the addon that this checkout has.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import nodeGypBuild from 'node-gyp-build';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const ROOT = path.join(__dirname, '..', '..');
const ADDON = nodeGypBuild.path(ROOT);
const PREBUILD = path.join('prebuilds', `${process.platform}-${process.arch}`, 'gimbal-moe.node');
const RELEASE = path.join('build', 'Release', 'gimbal.node');

let root: string;
let tools: string;

beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-install-'));
  tools = path.join(root, 'tools');
  write('package.json', '{"name": "gimbal-moe"}');
  write('scripts/install.cjs', fs.readFileSync(path.join(ROOT, 'scripts', 'install.cjs')));
  link('node_modules/node-gyp-build', path.join(ROOT, 'node_modules', 'node-gyp-build'));
  standIn('cmake-js', 'bin/cmake-js', 'build/cmake/Release/gimbal.node');
  standIn('node-gyp', 'bin/node-gyp.js', RELEASE);
});
afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

function write(name: string, content: string | Buffer, mode = 0o644): void {
  fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
  fs.writeFileSync(path.join(root, name), content, { mode });
}

function link(name: string, target: string): void {
  fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
  fs.symlinkSync(target, path.join(root, name), 'junction');
}

/** A package whose program copies the addon to `output`, or fails where the environment says so. */
function standIn(name: string, program: string, output: string): void {
  const code = `
    const fs = require('node:fs'), path = require('node:path');
    console.log('${name} called with', process.argv.slice(2).join(' '));
    if ((process.env.BROKEN ?? '').includes('${name}')) process.exit(1);
    fs.mkdirSync(path.dirname('${output}'), { recursive: true });
    fs.copyFileSync(${JSON.stringify(ADDON)}, '${output}');`;
  write(`node_modules/${name}/package.json`, JSON.stringify({ name }));
  write(`node_modules/${name}/${program}`, code);
}

/** `programs` are on PATH and nothing else is. */
function install(options: { programs?: string[]; args?: string[]; env?: Record<string, string> } = {}) {
  for (const program of options.programs ?? []) write(`tools/${program}`, '', 0o755);
  fs.mkdirSync(tools, { recursive: true });
  const env = { PATH: tools, ...options.env };
  const script = path.join(root, 'scripts', 'install.cjs');
  const child = spawnSync(process.execPath, [script, ...(options.args ?? [])], { env, encoding: 'utf8' });
  return { code: child.status, output: child.stdout + child.stderr };
}

const both = { programs: ['nvcc', 'cmake'] };
const exists = (name: string) => fs.existsSync(path.join(root, name));

describe('the install step', () => {
  it('keeps a build that loads', () => {
    write(RELEASE, fs.readFileSync(ADDON));
    expect(install(both)).toEqual({
      code: 0,
      output: `gimbal-moe: keeping ${RELEASE}: it is there and it loads\n`,
    });
  });

  it('builds from source where it is told to, whatever is there', () => {
    write(RELEASE, fs.readFileSync(ADDON));
    write(PREBUILD, fs.readFileSync(ADDON));
    expect(install({ args: ['--force'] }).output).toMatch(/built build.Release.gimbal.node with node-gyp/);
  });

  it('takes a prebuild that loads', () => {
    write(PREBUILD, fs.readFileSync(ADDON));
    expect(install(both)).toEqual({
      code: 0,
      output: `gimbal-moe: using the prebuild ${PREBUILD}: it loads\n`,
    });
  });

  it('does not take a prebuild that does not load', () => {
    write(PREBUILD, 'for some other machine');
    const { code, output } = install();
    expect(code).toBe(0);
    expect(output).toMatch(/prebuilds.*does not load: Error/);
    expect(output).toMatch(/with node-gyp/);
  });

  it('moves a broken build out of the way of a prebuild', () => {
    write(RELEASE, 'broken');
    write(PREBUILD, fs.readFileSync(ADDON));
    expect(install().code).toBe(0);
    expect(exists(RELEASE)).toBe(false);
  });

  it('takes cmake-js where nvcc and cmake are, and passes GIMBAL_CUDA on', () => {
    const { code, output } = install({ ...both, env: { GIMBAL_CUDA: 'OFF' } });
    expect(code).toBe(0);
    expect(output).toMatch(/building with cmake-js: .*nvcc and .*cmake are there/);
    expect(output).toMatch(/cmake-js called with compile .*--CDGIMBAL_CUDA=OFF/);
    expect(exists(RELEASE)).toBe(true);
    expect(fs.readdirSync(path.join(root, 'build', 'Release'))).toEqual(['gimbal.node']);
  });

  it.each([
    [['cmake'], 'nvcc'],
    [['nvcc'], 'cmake'],
    [[], 'nvcc and cmake'],
  ])('takes node-gyp where only %o is, with headers that are here', (programs, missing) => {
    const { code, output } = install({ programs });
    expect(code).toBe(0);
    expect(output).toContain(`building with node-gyp: no ${missing} was found`);
    expect(output).toContain(`--nodedir=${path.join(root, 'native', 'nodedir')}`);
    expect(output).not.toContain('cmake-js called');
  });

  it('says so and goes on to node-gyp where cmake-js fails', () => {
    const { code, output } = install({ ...both, env: { BROKEN: 'cmake-js' } });
    expect(code).toBe(0);
    expect(output).toMatch(/cmake-js failed.*going on to node-gyp/);
    expect(output).toMatch(/built .* with node-gyp/);
  });

  it('leaves the headers to the environment where that names some', () => {
    const { output } = install({ env: { npm_config_nodedir: '/opt/node' } });
    expect(output).not.toContain('--nodedir');
  });

  it('can be forced, and then does not fall back', () => {
    write(PREBUILD, fs.readFileSync(ADDON));
    expect(install({ env: { GIMBAL_BUILD: 'gyp' } }).output).toMatch(/node-gyp called/);
    fs.rmSync(path.join(root, 'build'), { recursive: true });
    const broken = install({ ...both, env: { GIMBAL_BUILD: 'cmake', BROKEN: 'cmake-js' } });
    expect(broken.code).toBe(1);
    expect(broken.output).not.toContain('node-gyp called');
    fs.rmSync(path.join(root, 'prebuilds'), { recursive: true });
    const missing = install({ ...both, env: { GIMBAL_BUILD: 'prebuild' } });
    expect(missing).toMatchObject({ code: 1, output: expect.stringMatching(/prebuild: there is none/) });
  });

  it('lists what it tried and what helps where nothing works', () => {
    const { code, output } = install({ ...both, env: { BROKEN: 'cmake-js node-gyp' } });
    expect(code).toBe(1);
    expect(output).toMatch(/Tried:\n- prebuild: .*\n- cmake-js: .*\n- node-gyp: /);
    expect(output).toMatch(/What helps:\n- install a C\+\+20 compiler/);
  });

  it('knows its modes', () => {
    const { code, output } = install({ env: { GIMBAL_BUILD: 'make' } });
    expect(code).toBe(1);
    expect(output).toContain('GIMBAL_BUILD: expected one of auto, prebuild, cmake, gyp but received "make"');
  });
});
