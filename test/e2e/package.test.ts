/**
 * The packed tarball, unpacked where no checkout is near and with this build as its prebuild: both module forms, the
 * command, and the examples. (scripts/check-package.cjs does the same with real installs.)
 */
import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import nodeGypBuild from 'node-gyp-build';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const ROOT = path.join(__dirname, '..', '..');
const home = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-consumer-'));
const modules = path.join(home, 'node_modules');
const installed = path.join(modules, 'gimbal-moe');

beforeAll(() => {
  execFileSync('npm', ['run', '--silent', 'build:ts'], { cwd: ROOT });
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', home];
  const [{ filename }] = JSON.parse(execFileSync('npm', args, { cwd: ROOT, encoding: 'utf8' }));
  fs.mkdirSync(modules);
  execFileSync('tar', ['-xzf', filename], { cwd: home });
  fs.renameSync(path.join(home, 'package'), installed);
  linkDependencies();
  const prebuilds = path.join(installed, 'prebuilds', `${process.platform}-${process.arch}`);
  fs.rmSync(path.dirname(prebuilds), { recursive: true, force: true });
  fs.mkdirSync(prebuilds, { recursive: true });
  fs.copyFileSync(nodeGypBuild.path(ROOT), path.join(prebuilds, 'gimbal-moe.node'));
});
afterAll(() => fs.rmSync(home, { recursive: true, force: true }));

/** What package.json declares, and nothing else: a dependency that is used but not declared must fail here. */
function linkDependencies(): void {
  const manifest = JSON.parse(fs.readFileSync(path.join(installed, 'package.json'), 'utf8'));
  for (const name of Object.keys(manifest.dependencies)) {
    const target = path.join(modules, name);
    fs.mkdirSync(path.dirname(target), { recursive: true });
    fs.symlinkSync(path.join(ROOT, 'node_modules', name), target, 'junction');
  }
}

/** Runs Node away from the checkout, without what our own environment says about the addon. */
async function node(...args: string[]): Promise<string> {
  const { GIMBAL_MOE_PREBUILD, ...env } = process.env;
  const { stdout } = await promisify(execFile)(process.execPath, args, { cwd: home, env });
  return stdout.trim();
}

describe('the packed package', () => {
  it('loads by require', async () => {
    const code = `const g = require('gimbal-moe'); console.log(typeof g.planPlacement, g.backends()[0].name)`;
    expect(await node('-e', code)).toBe('function cpu');
  });

  it('loads by import, with names and as a whole', async () => {
    const code = `import gimbal, { backends, Planner } from 'gimbal-moe';
      console.log(gimbal.Planner === Planner, backends()[0].name)`;
    expect(await node('--input-type=module', '-e', code)).toBe('true cpu');
  });

  it('shows its version, and hides what is not public', async () => {
    const { version } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'));
    expect(await node('-p', `require('gimbal-moe/package.json').version`)).toBe(version);
    await expect(node('-e', `require('gimbal-moe/dist/binding.js')`)).rejects.toThrow(
      /ERR_PACKAGE_PATH_NOT_EXPORTED/,
    );
  });

  it('has a command', async () => {
    const command = path.join(installed, 'dist', 'cli', 'main.js');
    expect(await node(command, 'backends')).toMatch(/cpu .*available/);
  });

  it.each(['plan.cjs', 'plan.mjs'])('runs examples/%s', async (name) => {
    fs.copyFileSync(path.join(ROOT, 'examples', name), path.join(home, name));
    expect(await node(name)).toMatch(/layer 0: busiest GPU .* ms, at most .* % above the best possible/);
  });
});
