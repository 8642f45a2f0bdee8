/**
 * The CUDA backend against the CPU's where there is no GPU: by its sources and by what the compiler made of them, on the host
 * execution layer (native/test/hostlayer), for many sizes of blocks and orders of threads. Needs what `npm test` builds.
 *
 *   node scripts/cuda-suite.cjs          the reduced suite, which `npm test` runs
 *   node scripts/cuda-suite.cjs --whole  every size and order, and every instance of the benches' suite; takes long
 *
 * Ends with one line, "N passed, N failed, N skipped"; a run of the native tests counts as many as it has test cases.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const path = require('node:path');

const ROOT = path.join(__dirname, '..');
const NATIVE_BUILD = path.join(ROOT, 'build-tests');
const PLAIN = 'gimbal_cuda_hostlayer.so';
/** The same with every access checked: races, bounds, what nobody wrote. */
const CHECKED = 'gimbal_cuda_hostlayer_checked.so';
/** A block of 1024 threads is played by 1024 fibers, most of which wait. */
const LARGE_SHARE = '4';
/** Architectures whose PTX is run; before sm_80 a warp has no reductions of its own. */
const REDUCED_PTX = ['sm_90'];
const WHOLE_PTX = ['sm_75', 'sm_80', 'sm_90', 'sm_120'];

/** What is run: a name, the plug-in, and the environment. */
function runs(whole, ptx) {
  const small = [
    run('by its sources', PLAIN),
    run('every access checked', CHECKED, whole ? {} : { GIMBAL_TEST_SHARE: '60' }),
    run('a warp per block, forwards', PLAIN, { GIMBAL_CUDA_THREADS: '32', HOSTLAYER_ORDER: 'forward' }),
    run('32 warps per block, backwards', PLAIN, {
      GIMBAL_CUDA_THREADS: '1024',
      HOSTLAYER_ORDER: 'backward',
      GIMBAL_TEST_SHARE: LARGE_SHARE,
    }),
    run('work in global memory', PLAIN, {
      HOSTLAYER_SHARED_KB: '4',
      GIMBAL_TEST_SHARE: whole ? '100' : '40',
    }),
    ...ptx.flatMap(({ architecture, file }) => [
      run(`the compiler's PTX for ${architecture}`, PLAIN, {
        HOSTLAYER_PTX: file,
        GIMBAL_TEST_SHARE: whole ? '100' : '25',
      }),
      // More threads than some kernels were compiled for, which they may not be launched with.
      run(`the compiler's PTX for ${architecture}, blocks as large as they may be`, PLAIN, {
        HOSTLAYER_PTX: file,
        GIMBAL_CUDA_THREADS: '1024',
        GIMBAL_TEST_SHARE: LARGE_SHARE,
      }),
    ]),
  ];
  if (!whole) return small;
  const sizes = ['32', '64', '96', '128', '160', '256', '512', '1024'].flatMap((threads) =>
    [PLAIN, CHECKED].map((plugin) =>
      run(`blocks of ${threads}${plugin === CHECKED ? ', checked' : ''}`, plugin, {
        GIMBAL_CUDA_THREADS: threads,
        GIMBAL_TEST_SHARE: Number(threads) >= 512 ? '25' : '100',
      }),
    ),
  );
  const orders = Array.from({ length: 20 }, (_, n) =>
    run(`order ${n + 2}`, n % 4 === 0 ? CHECKED : PLAIN, {
      HOSTLAYER_SEED: String(n + 2),
      GIMBAL_TEST_SEED: String(n + 1),
    }),
  );
  const global = run('work in global memory, checked', CHECKED, { HOSTLAYER_SHARED_KB: '4' });
  const strict = run('only barriers order memory', CHECKED, { HOSTLAYER_SHUFFLES_ORDER: 'off' });
  return [...small, ...sizes, ...orders, global, strict];
}

function run(name, plugin, env = {}) {
  return { name, plugin, env };
}

/** @returns {{passed: number, failed: number, skipped: number}} */
function runSuite(whole) {
  const total = { passed: 0, failed: 0, skipped: 0 };
  const { ptx, skipped, failed: uncompiled } = compile(whole ? WHOLE_PTX : REDUCED_PTX);
  for (const why of [...skipped, ...uncompiled]) console.log(why);
  total.skipped += skipped.length;
  total.failed += uncompiled.length;
  for (const { name, plugin, env } of runs(whole, ptx)) {
    const began = Date.now();
    const { passed, failed, output } = runBatchTests(plugin, env);
    total.passed += passed;
    total.failed += failed;
    const seconds = ((Date.now() - began) / 1000).toFixed(1);
    console.log(`the CUDA backend on a CPU, ${name}: ${passed} passed, ${failed} failed (${seconds} s)`);
    if (failed > 0) console.log(output);
  }
  if (whole) add(total, runInstances());
  return total;
}

function runBatchTests(plugin, env) {
  const child = spawnSync(path.join(NATIVE_BUILD, 'gimbal_native_tests'), ['--test-case=batch*'], {
    cwd: ROOT,
    env: { ...process.env, GIMBAL_CUDA_PLUGIN: path.join(NATIVE_BUILD, plugin), ...env },
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  const output = `${child.error ?? ''}${child.stdout}${child.stderr}`;
  const counts = /test cases:\s+\d+\s+\|\s+(\d+) passed\s+\|\s+(\d+) failed/.exec(child.stdout ?? '');
  const [passed, failed] = (counts ?? []).slice(1).map(Number);
  if (counts === null || passed + failed === 0) return { passed: 0, failed: 1, output };
  return { passed, failed: child.status === 0 ? failed : Math.max(1, failed), output };
}

/** Every instance of the benches' suite, planned and evaluated by both backends. */
function runInstances() {
  const child = runTypeScript('test/parity/suite.ts', ['--whole'], {
    env: { ...process.env, GIMBAL_CUDA_PLUGIN: path.join(NATIVE_BUILD, PLAIN) },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  process.stdout.write(child.stdout);
  const counts = /^(\d+) passed, (\d+) failed$/m.exec(child.stdout);
  if (counts === null) return { passed: 0, failed: 1, skipped: 0 };
  return { passed: Number(counts[1]), failed: Number(counts[2]), skipped: 0 };
}

/** The kernels' PTX for these architectures, as far as there is a compiler that knows them; and what there is not, in words. */
function compile(architectures) {
  const child = runTypeScript('bench/gpu/ptx.ts', architectures);
  if (child.status !== 0) return { ptx: [], skipped: [], failed: [`nvcc failed:\n${child.stderr}`] };
  const { reason, files = [], unknown = [] } = JSON.parse(child.stdout);
  if (reason !== undefined)
    return { ptx: [], skipped: [`skipped: the compiler's PTX, since ${reason}`], failed: [] };
  const skipped = unknown.map(
    (name) => `skipped: the compiler's PTX for ${name}, which this nvcc does not know`,
  );
  return { ptx: files, skipped, failed: [] };
}

function runTypeScript(script, argv, options = {}) {
  return spawnSync(process.execPath, ['--import', 'tsx', path.join(ROOT, script), ...argv], {
    cwd: ROOT,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
    ...options,
  });
}

function add(total, more) {
  for (const key of Object.keys(total)) total[key] += more[key];
}

module.exports = { runSuite };

if (require.main === module) {
  const { passed, failed, skipped } = runSuite(process.argv.includes('--whole'));
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
  process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
}
