/**
 * The page of a simulation: figures of each policy beside each other, distributions, what happened over time, and how the
 * experts' load lay. It opens offline; a content policy forbids every request and every script but the page's own.
 */
import {
  type ComparedPolicy,
  compareRuns,
  type FinishedRun,
  type Measure,
  measures,
} from '../simulator/compare.js';
import type { SimulatedRequest } from '../simulator/types.js';
import { heatMapSvg, LINE_COLOURS, type LineChart, lineChartSvg, MARGIN, WIDTH } from './charts.js';
import { escapeHtml } from './escape.js';
import { formatNumber, formatShare } from './format.js';
import { shellLine } from './html.js';
import { htmlPage } from './page.js';
import { STYLE } from './style.js';

/** A run with what it was of: answers of one token have no time a token. */
export interface ReportedRun extends FinishedRun {
  trace: readonly Pick<SimulatedRequest, 'outputTokens'>[];
}

export interface SimulationReport {
  version: string;
  command: readonly string[];
  createdAt: Date;
  subject: string;
  /** In the order in which they are compared; all seeds. */
  runs: readonly ReportedRun[];
  notes: readonly string[];
}

const CDF_POINTS = 200;
const MS_PER_SECOND = 1000;

/** Hides a policy's lines, and tells the values under the pointer. */
const SCRIPT = `
const data = JSON.parse(document.getElementById('report-data').textContent);
for (const box of document.querySelectorAll('[data-policy]')) box.addEventListener('change', () => {
  for (const line of document.querySelectorAll('[data-series]'))
    if (line.dataset.series === box.dataset.policy) line.style.display = box.checked ? '' : 'none';
});
for (const figure of document.querySelectorAll('[data-plot]')) {
  const plot = data[Number(figure.dataset.plot)], svg = figure.querySelector('svg'), told = figure.querySelector('.told');
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * ${WIDTH} - ${MARGIN.left}) / ${WIDTH - MARGIN.left - MARGIN.right};
    told.textContent = plot.lines.filter((line) => line.y.length > 0).map((line) => {
      const at = Math.min(line.y.length - 1, Math.max(0, Math.round(share * (line.y.length - 1))));
      return line.name + ': ' + line.y[at].toPrecision(4) + ' at ' + line.x[at].toPrecision(4);
    }).join('; ');
  });
}
document.getElementById('theme').addEventListener('click', () => {
  const root = document.documentElement, dark = matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? 'dark' : 'light')) === 'dark' ? 'light' : 'dark';
});
document.body.dataset.ready = 'true';
`;

const EXTRA_STYLE = `
svg.plot { width: 100%; height: auto; font-size: 11px; fill: var(--muted); }
svg.plot polyline { fill: none; } .told { min-height: 1.5em; font-size: 12px; color: var(--muted); }`;

export function renderSimulationReport(report: SimulationReport): string {
  const compared = compareRuns(report.runs);
  const charts = chartsOf(report.runs);
  const title = `Serving simulation: ${report.subject}`;
  return htmlPage({
    title,
    version: report.version,
    style: STYLE + EXTRA_STYLE,
    script: SCRIPT,
    data: charts.map(({ lines }) => ({ lines })),
    main: `<header><div><h1>${escapeHtml(title)}</h1><p class="muted">Simulated, not measured: the notes say what the model holds.</p></div>
<button id="theme" type="button">Light / dark</button></header>
${tableHtml(compared)}
<h2>Distributions and what happened over time</h2>
<p class="small">Of the first seed. ${compared.map(({ policy: name }, n) => `<label><input type="checkbox" checked data-policy="${escapeHtml(name)}"> <span style="color:${LINE_COLOURS[n % LINE_COLOURS.length]}">■</span> ${escapeHtml(name)}</label>`).join(' ')}</p>
<div class="charts">
${charts.map(chartHtml).join('\n')}
</div>
${heatHtml(report.runs)}
<h2>How it was made</h2>
<div class="panel"><dl><dt>Command</dt><dd><pre>${escapeHtml(shellLine(report.command))}</pre></dd>
<dt>Versions</dt><dd>gimbal-moe ${escapeHtml(report.version)}, Node ${escapeHtml(process.versions.node)}</dd>
<dt>Made</dt><dd>${report.createdAt.toISOString()}</dd></dl></div>
<h2>Notes</h2>
<div class="panel"><ul class="notes">${report.notes.map((note) => `<li>${escapeHtml(note)}</li>`).join('\n')}</ul></div>`,
  });
}

function chartHtml(chart: LineChart, number: number): string {
  return `<figure data-plot="${number}"><h3>${escapeHtml(chart.title)}</h3><figcaption>${escapeHtml(chart.caption)}</figcaption>${lineChartSvg(chart)}<div class="told" aria-live="polite"></div></figure>`;
}

function tableHtml(compared: readonly ComparedPolicy[]): string {
  const names = Object.keys(measures) as Measure[];
  const rows = compared.map(({ policy, values, changes }, n) => {
    const cells = names.map((name) => {
      const { mean, half } = values[name];
      const spread = Number.isNaN(half) ? '' : ` ± ${formatNumber(half)}`;
      const change =
        n === 0 ? '' : ` (${changes[name].mean > 0 ? '+' : ''}${formatShare(changes[name].mean)})`;
      return `<td>${escapeHtml(`${formatNumber(mean)}${spread}${change}`)}</td>`;
    });
    return `<tr><th scope="row">${escapeHtml(policy)}</th>${cells.join('')}</tr>`;
  });
  return `<section aria-label="Table"><h2>Policies</h2><div class="panel table-scroll"><table>
<thead><tr><th scope="col">policy</th>${names.map((name) => `<th scope="col">${escapeHtml(name.endsWith('/s') ? name : `${name}, ms`)}</th>`).join('')}</tr></thead>
<tbody>${rows.join('\n')}</tbody></table></div>
<p class="small muted">Changes are against the first policy, seed by seed; ± is half a 95 % confidence interval over seeds.</p></section>`;
}

function chartsOf(runs: readonly ReportedRun[]): LineChart[] {
  const firsts = firstSeeds(runs);
  const cdf = (title: string, of: (run: ReportedRun) => number[]): LineChart => ({
    title,
    caption: 'Share of requests that took no longer; the axis is logarithmic.',
    xLabel: 'ms',
    logarithmic: true,
    yMin: 0,
    lines: firsts.map((run) => ({ name: run.policy, ...cumulative(of(run)) })),
  });
  const series = (
    title: string,
    caption: string,
    key: 'engineImbalance' | 'expertImbalance' | 'stepMs' | 'running' | 'waiting' | 'migrations',
  ): LineChart => ({
    title,
    caption,
    xLabel: 's',
    lines: firsts.map(({ policy, result }) => ({
      name: policy,
      x: result.series.timeMs.map((ms) => ms / MS_PER_SECOND),
      y: result.series[key],
    })),
  });
  return [
    cdf('Time to first token', ({ result }) =>
      result.requests.map((one) => one.firstTokenMs - one.arrivalMs),
    ),
    cdf('Time per token after it', ({ result, trace }) =>
      result.requests.flatMap(({ firstTokenMs, finishMs }, id) => {
        const more = trace[id]!.outputTokens - 1;
        return more > 0 ? [(finishMs - firstTokenMs) / more] : [];
      }),
    ),
    cdf('End to end', ({ result }) => result.requests.map((one) => one.finishMs - one.arrivalMs)),
    series('Step time', 'ms, mean of each interval.', 'stepMs'),
    series('Waiting requests', 'In queues of engines, and at the gateway.', 'waiting'),
    series('Running requests', 'On all engines.', 'running'),
    series(
      'Engine imbalance',
      'Largest over mean tokens of a step in a lockstep group; 1 is perfect.',
      'engineImbalance',
    ),
    series(
      'Expert imbalance',
      'Largest over mean pairs of a GPU, mean over layers; 1 is perfect.',
      'expertImbalance',
    ),
    series(
      'Migrations',
      'Experts that began to move to another GPU, in each interval: a change of the placement.',
      'migrations',
    ),
  ];
}

/** A run of each policy, in order. */
function firstSeeds<Run extends FinishedRun>(runs: readonly Run[]): Run[] {
  return [...new Map(runs.toReversed().map((run) => [run.policy, run])).values()].reverse();
}

function cumulative(values: number[]): { x: number[]; y: number[] } {
  const sorted = values.sort((a, b) => a - b);
  const x: number[] = [];
  const y: number[] = [];
  for (let n = 0; sorted.length > 0 && n <= CDF_POINTS; n++) {
    const share = n / CDF_POINTS;
    x.push(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!);
    y.push(share);
  }
  return { x, y };
}

function heatHtml(runs: readonly FinishedRun[]): string {
  const firsts = firstSeeds(runs);
  return `<h2>Load of the experts' GPUs</h2>
<p class="small">Pairs that each GPU got in each layer over the whole run, over their mean; darker is more. Rest the pointer on a cell.</p>
${firsts.map(({ policy, result }) => `<figure><h3>${escapeHtml(policy)}</h3>${heatMapSvg(`Load under ${policy}`, result.expertLoad, 'layer', 'GPU')}</figure>`).join('\n')}`;
}
