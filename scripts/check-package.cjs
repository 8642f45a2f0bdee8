/**
 * Checks the package as users get it: packs it, looks at what is in the tarball, has publint and attw judge it, and installs
 * it in an empty folder, where it must load by require and by import. Needs dist; run `npm run build:ts` before.
 *
 *   node scripts/check-package.cjs            install as a user would (GIMBAL_BUILD works here too)
 *   node scripts/check-package.cjs --prebuilt install without install scripts: the prebuild must do
 *   node scripts/check-package.cjs --prebuilt --cuda   the prebuild must bring a CUDA plug-in that can be opened
 */
'use strict';

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const ROOT = path.join(__dirname, '..');
const MAX_PACKED_BYTES = 8 * 2 ** 20;

const SMOKE = `
const problem = { layers: 1, sources: 2, experts: 4, gpus: 2, slotsPerGpu: 2, tokens: Uint32Array.of(9, 1, 1, 1, 1, 1, 1, 9),
  computeCost: 100, commCost: Float64Array.of(0, 50, 50, 0) };
const show = (name) => (plan) => console.log(name + ': ' + plan.physicalToLogical.length + ' slots by ' + plan.backend);
const fail = (error) => { console.error(error); process.exit(1); };
`;
const CONSUMERS = {
  'by-require.cjs': `const { planPlacement } = require('gimbal-moe'); ${SMOKE}
    planPlacement(problem).then(show('require')).catch(fail);`,
  'by-import.mjs': `import gimbal, { planPlacement } from 'gimbal-moe'; ${SMOKE}
    if (gimbal.planPlacement !== planPlacement) fail('the default export is another');
    planPlacement(problem).then(show('import')).catch(fail);`,
};
const TYPED = `import { planPlacement, type Plan, type PlacementProblem } from 'gimbal-moe';
  export const plan = (problem: PlacementProblem): Promise<Plan> => planPlacement(problem, { seed: 1n });`;

async function main() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-package-'));
  try {
    const { tarball, files, size } = pack(folder);
    checkFiles(files, size);
    await checkWithPublint(tarball);
    execFileSync(
      process.execPath,
      [program('@arethetypeswrong/cli', 'attw'), tarball, '--no-definitely-typed'],
      {
        stdio: 'inherit',
      },
    );
    checkInstalled(folder, tarball, process.argv.includes('--prebuilt'));
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function pack(folder) {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', folder];
  const [packed] = JSON.parse(execFileSync('npm', args, { cwd: ROOT, encoding: 'utf8' }));
  const files = packed.files.map((file) => file.path.split(path.sep).join('/'));
  return { tarball: path.join(folder, packed.filename), files, size: packed.size };
}

function checkFiles(files, size) {
  const sources = Object.values(
    JSON.parse(fs.readFileSync(path.join(ROOT, 'native', 'sources.json'), 'utf8')),
  ).flat();
  const needed = [
    'dist/index.js',
    'dist/index.d.ts',
    'dist/cli/main.js',
    'dist/report/echarts.bundle.js',
    'dist/report/echarts.LICENSES.txt',
    'dist/gateway/dashboard/dashboard.bundle.js',
    'integrations/vllm/pyproject.toml',
    'integrations/vllm/gimbal_vllm/policy.py',
    'binding.gyp',
    'CMakeLists.txt',
    'package.json',
  ];
  needed.push(
    'scripts/install.cjs',
    'native/sources.json',
    'native/nodedir/include/node/common.gypi',
    ...sources,
  );
  const missing = needed.filter((file) => !files.includes(file));
  const unwanted = files.filter((file) =>
    /^(test|bench|build|node_modules|lib)\/|^native\/test\/|\.test\.|__pycache__/.test(file),
  );
  if (missing.length > 0) throw new Error(`the tarball lacks ${missing.join(', ')}`);
  if (unwanted.length > 0) throw new Error(`the tarball should not have ${unwanted.join(', ')}`);
  if (size > MAX_PACKED_BYTES)
    throw new Error(`the tarball has ${size} bytes, more than ${MAX_PACKED_BYTES}`);
  console.log(`tarball: ${files.length} files, ${Math.round(size / 1024)} KiB`);
}

async function checkWithPublint(tarball) {
  const { publint } = await import('publint');
  const { formatMessage } = await import('publint/utils');
  const content = fs.readFileSync(tarball);
  const data = content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength);
  const { messages, pkg } = await publint({ pack: { tarball: data }, level: 'warning' });
  for (const message of messages) console.error(`publint: ${formatMessage(message, pkg)}`);
  if (messages.length > 0) throw new Error('publint is not content');
  console.log('publint: nothing to complain about');
}

function checkInstalled(folder, tarball, prebuilt) {
  const home = path.join(folder, 'consumer');
  fs.mkdirSync(home);
  fs.writeFileSync(path.join(home, 'package.json'), '{"private": true}');
  const flags = prebuilt ? ['--ignore-scripts'] : ['--foreground-scripts'];
  execFileSync('npm', ['install', '--no-audit', '--no-fund', ...flags, tarball], {
    cwd: home,
    stdio: 'inherit',
  });
  for (const [name, code] of Object.entries(CONSUMERS)) {
    fs.writeFileSync(path.join(home, name), code);
    execFileSync(process.execPath, [name], { cwd: home, stdio: 'inherit' });
  }
  const gimbal = path.join(home, 'node_modules', '.bin', 'gimbal');
  execFileSync(gimbal, ['backends'], { cwd: home, stdio: 'inherit' });
  if (process.argv.includes('--cuda')) {
    checkPlugin(
      JSON.parse(execFileSync(gimbal, ['backends', '--json'], { cwd: home, encoding: 'utf8' })).backends,
    );
  }
  checkTypes(home);
}

/** With a driver and a GPU it is there; without, it is the CUDA runtime in the plug-in that says what is missing. */
function checkPlugin(backends) {
  const cuda = backends.find(({ name }) => name === 'cuda');
  if (!cuda.available && !/^cuda\w+ failed: cudaError|^no CUDA device/.test(cuda.reason)) {
    throw new Error(`the prebuild's CUDA plug-in cannot be opened: ${cuda.reason}`);
  }
  console.log(`CUDA plug-in: ${cuda.available ? cuda.description : cuda.reason}`);
}

/** The declarations stand on their own: no skipLibCheck, and only the types of Node beside them. */
function checkTypes(home) {
  fs.writeFileSync(path.join(home, 'typed.cts'), TYPED);
  fs.writeFileSync(path.join(home, 'typed.mts'), TYPED);
  const types = path.join(ROOT, 'node_modules', '@types');
  const flags = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--types', 'node'];
  const args = [program('typescript', 'tsc'), ...flags, '--typeRoots', types, 'typed.cts', 'typed.mts'];
  execFileSync(process.execPath, args, { cwd: home, stdio: 'inherit' });
  console.log('types: both module kinds compile');
}

/** The file behind a package's command, without a shell or a PATH. */
function program(packageName, command) {
  const folder = path.join(ROOT, 'node_modules', packageName);
  const { bin } = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8'));
  return path.join(folder, typeof bin === 'string' ? bin : bin[command]);
}

main().catch((error) => {
  console.error(`check-package: ${error.message}`);
  process.exit(1);
});
