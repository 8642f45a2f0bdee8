/**
 * The install step: makes sure that build/Release or prebuilds holds an addon that loads, and says which and why.
 *
 *   a build that is there and loads -> a prebuild that loads -> cmake-js, where nvcc and cmake are -> node-gyp
 *
 * GIMBAL_BUILD=auto|prebuild|cmake|gyp forces one; GIMBAL_CUDA=AUTO|ON|OFF goes to CMake; --force builds from source even
 * where there is an addon already. Loading is tried in a child process, since a wrong binary may crash. Nothing is
 * downloaded: the headers come from the node-api-headers package.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const nodeGypBuild = require('node-gyp-build');

const ROOT = path.join(__dirname, '..');
const RELEASE = path.join(ROOT, 'build', 'Release');
const MODES = ['auto', 'prebuild', 'cmake', 'gyp'];

/** What failed, for the last word where nothing works. */
const failures = [];

function main() {
  const mode = process.env.GIMBAL_BUILD || 'auto';
  if (!MODES.includes(mode)) {
    fail(`GIMBAL_BUILD: expected one of ${MODES.join(', ')} but received ${JSON.stringify(mode)}`);
  }
  const force = process.argv.includes('--force');
  if (mode === 'prebuild') {
    if (!tryPrebuild()) giveUp(mode);
    return;
  }
  if (!force && keepBuild()) return;
  if (mode === 'auto' && !force && tryPrebuild()) return;
  const built = mode === 'cmake' ? buildWithCMake() : mode === 'gyp' ? buildWithGyp() : buildWithEither();
  if (!built) giveUp(mode);
}

function keepBuild() {
  const file = addonIn(RELEASE);
  if (file === undefined || !loads(file)) return false;
  say(`keeping ${relative(file)}: it is there and it loads`);
  return true;
}

/** @returns true where there is a prebuild for this platform that loads */
function tryPrebuild() {
  const file = prebuildPath();
  if (file === undefined) {
    failures.push(`prebuild: there is none for ${process.platform}-${process.arch}`);
    return false;
  }
  if (!loads(file)) return false;
  say(`using the prebuild ${relative(file)}: it loads`);
  removeBuild();
  return true;
}

function buildWithEither() {
  const nvcc = findProgram('nvcc', [process.env.CUDACXX, inCudaPath('nvcc')]);
  const cmake = findProgram('cmake');
  if (nvcc === undefined || cmake === undefined) {
    const missing = [nvcc === undefined && 'nvcc', cmake === undefined && 'cmake']
      .filter(Boolean)
      .join(' and ');
    say(`building with node-gyp: no ${missing} was found, so CMake could add nothing`);
    return buildWithGyp();
  }
  say(`building with cmake-js: ${nvcc} and ${cmake} are there`);
  if (buildWithCMake()) return true;
  say('cmake-js failed (see above); going on to node-gyp, which builds for the CPU only');
  return buildWithGyp();
}

function buildWithCMake() {
  const cmakeJs = resolve('cmake-js/bin/cmake-js');
  if (cmakeJs === undefined) return failed('cmake-js', 'the package is not installed');
  const out = path.join(ROOT, 'build', 'cmake');
  const cuda = process.env.GIMBAL_CUDA || 'AUTO';
  const args = ['--out', out, '--log-level', 'warn', `--CDGIMBAL_CUDA=${cuda}`];
  const env = { CMAKE_BUILD_PARALLEL_LEVEL: String(os.cpus().length), ...process.env };
  // A plug-in of an earlier build must not pass for one of this build, which may make none.
  for (const folder of [path.join(out, 'Release'), RELEASE]) removePlugin(folder);
  // Configured by itself: where there is a build already, `compile` would keep its options.
  for (const command of ['configure', 'compile']) {
    if (!run(process.execPath, [cmakeJs, command, ...args], env))
      return failed('cmake-js', 'it reported an error');
  }
  publish(path.join(out, 'Release'));
  return isBuilt('cmake-js');
}

function buildWithGyp() {
  const nodeGyp = resolve('node-gyp/bin/node-gyp.js') ?? process.env.npm_config_node_gyp;
  const args = ['rebuild', '--loglevel=warn', '--jobs=max'];
  // Windows links against the node.lib that node-gyp gets with Node's own headers.
  if (!process.env.npm_config_nodedir && process.platform !== 'win32') {
    args.push(`--nodedir=${path.join(ROOT, 'native', 'nodedir')}`);
  }
  const done = nodeGyp === undefined ? run('node-gyp', args) : run(process.execPath, [nodeGyp, ...args]);
  if (!done) return failed('node-gyp', 'it reported an error, or is not there');
  return isBuilt('node-gyp');
}

function isBuilt(tool) {
  const file = addonIn(RELEASE);
  if (file === undefined) return failed(tool, `it left no addon in ${relative(RELEASE)}`);
  if (!loads(file)) return false;
  say(`built ${relative(file)} with ${tool}`);
  return true;
}

function removePlugin(folder) {
  const names = fs.existsSync(folder) ? fs.readdirSync(folder) : [];
  for (const name of names.filter((file) => file.startsWith('gimbal_cuda.')))
    fs.rmSync(path.join(folder, name));
}

/** Copies what CMake built to where the loader looks. Renaming is atomic, so no process ever loads half a file. */
function publish(from) {
  fs.mkdirSync(RELEASE, { recursive: true });
  for (const name of fs.readdirSync(from).filter((file) => /\.(node|so|dylib|dll)$/.test(file))) {
    const temporary = path.join(RELEASE, `.${name}.${process.pid}`);
    fs.copyFileSync(path.join(from, name), temporary);
    fs.renameSync(temporary, path.join(RELEASE, name));
  }
}

/** The loader prefers a build to a prebuild, so the prebuild needs the build out of the way. */
function removeBuild() {
  const file = addonIn(RELEASE);
  if (file === undefined) return;
  fs.rmSync(file);
  say(`removed ${relative(file)}, which would be loaded before the prebuild`);
}

function prebuildPath() {
  // node-gyp-build prefers build/Release to prebuilds: ask it about a place that has none.
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-prebuilds-'));
  try {
    fs.symlinkSync(path.join(ROOT, 'prebuilds'), path.join(folder, 'prebuilds'), 'junction');
    return fs.realpathSync(nodeGypBuild.path(folder));
  } catch {
    return undefined;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function addonIn(folder) {
  const name = fs.existsSync(folder) && fs.readdirSync(folder).find((file) => file.endsWith('.node'));
  return name ? path.join(folder, name) : undefined;
}

function loads(file) {
  const code = 'require(process.argv[1]).backends()';
  const child = spawnSync(process.execPath, ['-e', code, file], { encoding: 'utf8', timeout: 60_000 });
  if (child.status === 0) return true;
  const lines = (child.stderr ?? '').split('\n');
  const reason =
    lines.find((line) => /error/i.test(line)) ?? `${child.error ?? child.signal ?? child.status}`;
  return failed(relative(file), `it does not load: ${reason.trim()}`);
}

function findProgram(name, others = []) {
  const suffixes = process.platform === 'win32' ? ['.exe', '.cmd', '.bat'] : [''];
  const folders = (process.env.PATH ?? '').split(path.delimiter).filter(Boolean);
  const onPath = folders.flatMap((folder) => suffixes.map((suffix) => path.join(folder, name + suffix)));
  return [...others, ...onPath].find((file) => file && fs.existsSync(file));
}

function inCudaPath(name) {
  return process.env.CUDA_PATH && path.join(process.env.CUDA_PATH, 'bin', name);
}

function resolve(request) {
  try {
    return require.resolve(request);
  } catch {
    return undefined;
  }
}

function run(command, args, env = process.env) {
  const shell = command === 'node-gyp' && process.platform === 'win32';
  const child = spawnSync(command, args, { cwd: ROOT, env, shell, stdio: ['ignore', 'inherit', 'inherit'] });
  return child.status === 0;
}

function failed(what, why) {
  failures.push(`${what}: ${why}`);
  say(`${what}: ${why}`);
  return false;
}

function giveUp(mode) {
  const remedies = [
    'install a C++20 compiler (g++ 11, clang 14, Visual Studio 2022 or later), and Python 3 with make, or CMake 3.19 or later',
    'for the CUDA backend: put nvcc and cmake on PATH',
    ...(mode === 'auto' ? [] : [`or let the step choose: unset GIMBAL_BUILD (it is ${mode})`]),
    'then run: npm rebuild gimbal-moe (in a checkout: npm run build:native)',
  ];
  fail(`no addon that loads could be had.\nTried:\n${list(failures)}\nWhat helps:\n${list(remedies)}`);
}

function list(lines) {
  return lines.map((line) => `- ${line}`).join('\n');
}

function relative(file) {
  return path.relative(ROOT, file);
}

function say(message) {
  console.log(`gimbal-moe: ${message}`);
}

function fail(message) {
  console.error(`gimbal-moe: ${message}`);
  process.exit(1);
}

main();
