/**
 * Bundles the browser half of each page, the HTML report and the dashboard, with the few echarts modules it draws with into
 * one script that the page inlines. It runs at build time, so that who installs the package installs no chart library; the
 * licences of what is bundled travel in each script and in a file of dist/report.
 */
const fs = require('node:fs');
const path = require('node:path');
const esbuild = require('esbuild');

const root = path.join(__dirname, '..');
/** Each script by its source and by its place in dist, which lib/report/bundle.ts finds it by. */
const SCRIPTS = [
  ['lib/report/browser.mjs', 'report/echarts.bundle.js'],
  ['lib/gateway/dashboard/main.browser.ts', 'gateway/dashboard/dashboard.bundle.js'],
];

const notice = `/*!
Bundled: Apache ECharts ${version('echarts')}, zrender ${version('zrender')}, tslib ${version('tslib')} (0BSD).

${readModule('echarts', 'NOTICE').trim()}
Licensed under the Apache License, Version 2.0; you may obtain a copy of the License at
http://www.apache.org/licenses/LICENSE-2.0

zrender:
${readModule('zrender', 'LICENSE').trim()}
*/`;

for (const [source, target] of SCRIPTS) bundle(path.join(root, source), path.join(root, 'dist', target));
const licences = ['LICENSE', 'NOTICE'].map((name) => readModule('echarts', name));
licences.push(readModule('zrender', 'LICENSE'));
fs.writeFileSync(path.join(root, 'dist', 'report', 'echarts.LICENSES.txt'), licences.join('\n\n----\n\n'));

function bundle(source, target) {
  // Folders are made on the way.
  esbuild.buildSync({
    entryPoints: [source],
    outfile: target,
    bundle: true,
    minify: true,
    // ASCII only, so that the page reads the same whatever charset a server claims for it.
    charset: 'ascii',
    format: 'iife',
    platform: 'browser',
    target: ['es2020'],
    banner: { js: notice },
    legalComments: 'eof',
    logLevel: 'warning',
  });
  console.log(`${path.relative(root, target)}: ${Math.round(fs.statSync(target).size / 1024)} KB`);
}

function readModule(name, file) {
  return fs.readFileSync(path.join(root, 'node_modules', name, file), 'utf8');
}

function version(name) {
  return JSON.parse(readModule(name, 'package.json')).version;
}
