/**
 * Bundles the browser half of the HTML report with the few echarts modules it draws with into one script that the report
 * inlines. It runs at build time, so that who installs the package installs no chart library; the licences of what is
 * bundled travel in the script's last lines and beside it.
 */
const fs = require('node:fs');
const path = require('node:path');
const esbuild = require('esbuild');

const root = path.join(__dirname, '..');
const outputFolder = path.join(root, 'dist', 'report');
const outputFile = path.join(outputFolder, 'echarts.bundle.js');

const notice = `/*!
Bundled: Apache ECharts ${version('echarts')}, zrender ${version('zrender')}, tslib ${version('tslib')} (0BSD).

${readModule('echarts', 'NOTICE').trim()}
Licensed under the Apache License, Version 2.0; you may obtain a copy of the License at
http://www.apache.org/licenses/LICENSE-2.0

zrender:
${readModule('zrender', 'LICENSE').trim()}
*/`;

fs.mkdirSync(outputFolder, { recursive: true });
esbuild.buildSync({
  entryPoints: [path.join(root, 'lib', 'report', 'browser.mjs')],
  outfile: outputFile,
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
const licences = ['LICENSE', 'NOTICE'].map((name) => readModule('echarts', name));
licences.push(readModule('zrender', 'LICENSE'));
fs.writeFileSync(path.join(outputFolder, 'echarts.LICENSES.txt'), licences.join('\n\n----\n\n'));
console.log(`dist/report/echarts.bundle.js: ${Math.round(fs.statSync(outputFile).size / 1024)} KB`);

function readModule(name, file) {
  return fs.readFileSync(path.join(root, 'node_modules', name, file), 'utf8');
}

function version(name) {
  return JSON.parse(readModule(name, 'package.json')).version;
}
