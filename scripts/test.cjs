/**
 * `npm test`: builds what is missing or out of date, runs the TypeScript tests (vitest) and the native ones (doctest, where
 * CMake and doctest are installed), and ends with one line that sums both. Arguments go to vitest.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { runSuite } = require('./cuda-suite.cjs');

const ROOT = path.join(__dirname, '..');
const ADDON = path.join(ROOT, 'build', 'Release', 'gimbal.node');
const NATIVE_BUILD = path.join(ROOT, 'build-tests');
/** The CUDA plug-in's sources on the host execution layer; the second one with every access checked. */
const HOSTLAYER_PLUGINS = ['gimbal_cuda_hostlayer', 'gimbal_cuda_hostlayer_checked'];
const HOSTLAYER_TESTS = path.join('native', 'test', 'hostlayer', 'gimbal_hostlayer_tests');

function main() {
  buildAddonIfNeeded();
  mustRun('npm', ['run', '--silent', 'build:ts']);
  // The native ones first: they build the plug-in that lets the others try the CUDA backend without a GPU.
  const totals = [runNativeTests(), runVitest(process.argv.slice(2))];
  const sum = (key) => totals.reduce((total, result) => total + result[key], 0);
  console.log(`${sum('passed')} passed, ${sum('failed')} failed, ${sum('skipped')} skipped`);
  process.exitCode = sum('failed') === 0 && sum('passed') > 0 ? 0 : 1;
}

function buildAddonIfNeeded() {
  const built = fs.existsSync(ADDON) ? fs.statSync(ADDON).mtimeMs : 0;
  if (built >= newestSource()) return;
  mustRun(process.execPath, [path.join(__dirname, 'install.cjs'), '--force']);
}

/** The modification time of the youngest file the addon is made of. */
function newestSource() {
  const files = fs
    .readdirSync(path.join(ROOT, 'native'), { recursive: true })
    .map((file) => path.join('native', file))
    .filter((file) => !file.startsWith(path.join('native', 'test')));
  const times = [...files, 'binding.gyp', 'CMakeLists.txt'].map((file) => fs.statSync(path.join(ROOT, file)));
  return Math.max(...times.filter((stat) => stat.isFile()).map((stat) => stat.mtimeMs));
}

function runVitest(args) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-test-'));
  const report = path.join(folder, 'vitest.json');
  const vitest = path.join(ROOT, 'node_modules', 'vitest', 'vitest.mjs');
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const status = run(process.execPath, [vitest, 'run', ...reporters, ...args]).status;
  try {
    const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(
      fs.readFileSync(report, 'utf8'),
    );
    // A file that cannot be loaded fails the run without failing a test.
    const failed = status === 0 ? numFailedTests : Math.max(1, numFailedTests);
    return { passed: numPassedTests, failed, skipped: numPendingTests + numTodoTests };
  } catch (error) {
    console.error(`vitest left no report: ${error.message}`);
    return { passed: 0, failed: 1, skipped: 0 };
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function runNativeTests() {
  if (run('cmake', ['--version'], { stdio: 'ignore' }).status !== 0)
    return skipNative('cmake is not installed');
  const configure = ['-S', ROOT, '-B', NATIVE_BUILD, '-DGIMBAL_TESTS=ON'];
  const configured = run('cmake', configure, { stdio: 'pipe', encoding: 'utf8' });
  if (configured.status !== 0) {
    if (/DOCTEST_INCLUDE_DIR/.test(configured.stderr)) return skipNative('doctest is not installed');
    console.error(configured.stdout + configured.stderr);
    return { passed: 0, failed: 1, skipped: 0 };
  }
  const jobs = String(os.cpus().length);
  const targets = ['gimbal_native_tests', 'gimbal_hostlayer_tests', ...HOSTLAYER_PLUGINS];
  const build = ['--build', NATIVE_BUILD, '--parallel', jobs, '--target', ...targets];
  if (run('cmake', build).status !== 0) return { passed: 0, failed: 1, skipped: 0 };
  const results = [runDoctest('gimbal_native_tests'), runDoctest(HOSTLAYER_TESTS)];
  results.push(runSuite(false));
  return results.reduce((a, b) => ({
    passed: a.passed + b.passed,
    failed: a.failed + b.failed,
    skipped: a.skipped + b.skipped,
  }));
}

function runDoctest(program) {
  const tests = run(path.join(NATIVE_BUILD, program), [], { stdio: 'pipe', encoding: 'utf8' });
  process.stdout.write(tests.stdout + tests.stderr);
  const counts = /test cases:\s+\d+\s+\|\s+(\d+) passed\s+\|\s+(\d+) failed\s+\|\s+(\d+) skipped/.exec(
    tests.stdout,
  );
  const [passed, failed, skipped] = (counts ?? []).slice(1).map(Number);
  if (counts === null || passed + failed === 0) return { passed: 0, failed: 1, skipped: 0 };
  return {
    passed,
    failed: tests.status === 0 ? failed : Math.max(1, failed),
    skipped,
  };
}

function skipNative(why) {
  console.log(`skipped: the native tests, since ${why}`);
  return { passed: 0, failed: 0, skipped: 1 };
}

function mustRun(command, args) {
  if (run(command, args).status !== 0) process.exit(1);
}

function run(command, args, options = {}) {
  const shell = process.platform === 'win32' && command === 'npm';
  return spawnSync(command, args, { cwd: ROOT, shell, stdio: ['ignore', 'inherit', 'inherit'], ...options });
}

main();
