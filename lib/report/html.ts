/**
 * The HTML report: one self-contained page that opens offline. Its words and tables are plain HTML, readable without a
 * script; the charts are drawn by the bundled script from JSON in the page. A content policy forbids the page every request
 * and every script but that one, and all text from outside passes through `escapeHtml` or `escapeJson`.
 */
import { bundledScript } from './bundle.js';
import { liveSlots, objectiveOf, type ReportInput } from './data.js';
import { escapeHtml } from './escape.js';
import type { PlacementFigures } from './figures.js';
import {
  formatChange,
  formatCount,
  formatNumber,
  formatPoints,
  formatRatio,
  formatShare,
  formatTime,
  plural,
} from './format.js';
import { htmlPage } from './page.js';
import { STYLE } from './style.js';
import { shapeSentence, summarySentences } from './summary.js';

export function renderReport(input: ReportInput): string {
  const parts = [headerHtml, tilesHtml, chartsHtml, heatHtml, tableHtml, detailsHtml];
  return htmlPage({
    title: `Expert placement: ${input.subject}`,
    version: input.version,
    style: STYLE,
    script: bundledScript('report/echarts.bundle.js'),
    data: chartData(input),
    main: parts.map((part) => part(input)).join('\n'),
  });
}

function headerHtml(input: ReportInput): string {
  return `<header>
<div>
<h1>${escapeHtml(`Expert placement: ${input.subject}`)}</h1>
<p class="muted">${escapeHtml(shapeSentence(input))}</p>
</div>
<button id="theme" type="button">Light / dark</button>
</header>
${summarySentences(input)
  .map((sentence) => `<p>${escapeHtml(sentence)}</p>`)
  .join('\n')}`;
}

interface Tile {
  label: string;
  value: string;
  was: string;
  /** Less is better in every tile; undefined where nothing is compared. */
  change?: [from: number, to: number];
  inPoints?: boolean;
}

function tilesHtml(input: ReportInput): string {
  return `<section class="tiles" aria-label="Summary">\n${tiles(input).map(tileHtml).join('\n')}\n</section>`;
}

function tiles(input: ReportInput): Tile[] {
  const before = input.before.totals;
  const after = input.after.totals;
  const { plan } = input;
  const compared = (label: string, from: number, to: number, format: (value: number) => string): Tile => ({
    label,
    value: format(to),
    was: `was ${format(from)}`,
    change: [from, to],
    inPoints: format === formatShare,
  });
  const slots = liveSlots(input.problem);
  return [
    compared('Imbalance, max/mean load', before.imbalanceMean, after.imbalanceMean, formatRatio),
    ...(before.crossNodeShare === null || after.crossNodeShare === null
      ? [compared('Tokens that leave their GPU', before.remoteShare, after.remoteShare, formatShare)]
      : [compared('Tokens that cross nodes', before.crossNodeShare, after.crossNodeShare, formatShare)]),
    compared('Communication, busiest GPU', before.commMax, after.commMax, formatTime),
    compared('Predicted time J', before.objective, after.objective, formatTime),
    {
      label: input.problem.incumbent === undefined ? 'Slots moved' : 'Slots moved from the incumbent',
      value: input.problem.incumbent === undefined ? '–' : formatCount(plan.migrations),
      was:
        input.problem.incumbent === undefined
          ? 'no incumbent given'
          : `${formatShare(plan.migrations / slots)} of ${formatCount(slots)}; ${formatCount(plan.forcedMigrations)} forced`,
    },
    {
      label: 'Gap to the proved bound',
      value: formatShare(plan.gap),
      was: `bound ${formatTime(plan.lowerBound)}`,
    },
    {
      label: 'Planning time',
      value: formatTime(plan.elapsedMs * 1e6),
      was: `${plan.backend} (${plan.backendDetail})`,
    },
  ];
}

function tileHtml(tile: Tile): string {
  let change = '';
  if (tile.change !== undefined && tile.change[0] !== tile.change[1]) {
    const [from, to] = tile.change;
    const text = tile.inPoints ? formatPoints(from, to) : formatChange(from, to);
    change = text.startsWith('±')
      ? ` ${text}`
      : ` <span class="${to < from ? 'better' : 'worse'}">${text}</span>`;
  }
  return `<div class="tile"><div class="label">${escapeHtml(tile.label)}</div><div class="value">${escapeHtml(tile.value)}</div><div class="was">${escapeHtml(tile.was)}${change}</div></div>`;
}

function chartsHtml(input: ReportInput): string {
  const figures: [name: string, title: string, caption: string][] = [
    ['imbalance', 'Imbalance', 'Largest over mean load of the GPUs; 1 is perfect.'],
    ...(input.gpusPerNode === undefined || input.nodes === 1
      ? []
      : ([
          [
            'cross-node',
            'Cross-node share',
            'Share of tokens whose expert lies on another node than their source.',
          ],
        ] as [string, string, string][])),
    ['communication', 'Communication', 'Receiving time of the busiest GPU, over the statistics window.'],
    [
      'objective',
      'Predicted time J and its lower bound',
      'The weighted sum that the plan minimises; no placement is below the bound.',
    ],
    ['gap', 'Gap to the bound', 'How far the plan can be from the optimum at most.'],
    ...(input.problem.incumbent === undefined
      ? []
      : ([['moves', 'Moves', movesCaption(input)]] as [string, string, string][])),
  ];
  return `<section aria-label="Figures of each layer">
<h2>Layer by layer</h2>
<ul class="legend"><li><i style="background:var(--before)"></i>before: ${escapeHtml(input.before.name)}</li><li><i style="background:var(--after)"></i>after: the plan</li><li><i style="background:var(--bound)"></i>proved lower bound</li><li>Select a layer in a chart to see it in the heat map.</li></ul>
<noscript><p>The charts need JavaScript; the table below has the same figures.</p></noscript>
<div class="charts">
${figures
  .map(
    ([name, title, caption]) =>
      `<figure><h3>${title}</h3><figcaption>${escapeHtml(caption)}</figcaption><div class="chart" data-chart="${name}" role="img" aria-label="${title} of each layer; the table below has the figures"></div></figure>`,
  )
  .join('\n')}
</div>
</section>`;
}

function movesCaption(input: ReportInput): string {
  const moves = 'New (expert, GPU) pairs against the incumbent';
  return input.plan.forcedMigrations === 0 ? `${moves}.` : `${moves}; grey ones are forced by lost GPUs.`;
}

function heatHtml(input: ReportInput): string {
  const options = input.after.layers.map(
    (figures, index) =>
      `<option value="${index}"${figures.layer === input.before.totals.worstLayer ? ' selected' : ''}>${figures.layer}</option>`,
  );
  return `<section aria-label="Heat map">
<h2>Tokens by GPU and expert</h2>
<figure>
<figcaption>Each cell is a replica; its shade shows the tokens it receives (by their square root). Bars are each GPU's sum, the dashed line their mean; bands tell nodes apart.</figcaption>
<div class="controls">
<label>Layer <select id="heat-layer">${options.join('')}</select></label>
<span><button id="heat-previous" type="button" aria-label="Previous layer">‹</button> <button id="heat-next" type="button" aria-label="Next layer">›</button></span>
<fieldset><legend>Placement</legend><label><input type="radio" name="heat-which" value="before"> before</label><label><input type="radio" name="heat-which" value="after" checked> after</label></fieldset>
<label>Experts <select id="heat-order"><option value="hot">hottest first</option><option value="id">by number</option></select></label>
</div>
<div class="heat-scroll"><div id="heat" role="img" aria-label="Heat map of tokens by GPU and expert"></div></div>
</figure>
</section>`;
}

function tableHtml(input: ReportInput): string {
  const crossNode = input.after.totals.crossNodeShare !== null && input.before.totals.crossNodeShare !== null;
  const shareOf = (figures: PlacementFigures, index: number) => {
    const layer = figures.layers[index]!;
    return crossNode ? layer.crossNodeShare! : layer.remoteShare;
  };
  const rows = input.plan.layers.map((planned, index) => {
    const before = input.before.layers[index]!;
    const after = input.after.layers[index]!;
    return [
      String(after.layer),
      formatRatio(before.imbalance),
      formatRatio(after.imbalance),
      formatShare(shareOf(input.before, index)),
      formatShare(shareOf(input.after, index)),
      formatTime(before.commMax),
      formatTime(after.commMax),
      formatTime(before.objective),
      formatTime(planned.objective),
      formatTime(planned.lowerBound),
      formatShare(planned.gap),
      formatCount(planned.migrations),
    ];
  });
  const share = crossNode ? 'Cross-node' : 'Off-GPU';
  const heads = ['Layer', 'Imbalance', '→', share, '→', 'Comm. max', '→', 'J', '→', 'Bound', 'Gap', 'Moves'];
  return `<section aria-label="Table">
<h2>Figures</h2>
<details class="panel"><summary>The table of all layers</summary>
<div class="table-scroll"><table>
<thead><tr>${heads.map((head) => `<th scope="col">${head}</th>`).join('')}</tr></thead>
<tbody>
${rows.map((row) => `<tr>${row.map((cell) => `<td>${escapeHtml(cell)}</td>`).join('')}</tr>`).join('\n')}
</tbody>
</table></div>
</details>
</section>`;
}

function detailsHtml(input: ReportInput): string {
  const { plan, problem } = input;
  const { weights, replicaChoice } = objectiveOf(problem);
  const entries: [string, string][] = [
    [
      'Search',
      `${input.effort}: ${plural(plan.walkers, 'walker')}, ${plural(plan.rounds, 'round')}, seed ${plan.seed}`,
    ],
    ['Backend', `${plan.backend} (${plan.backendDetail})`],
    ['Time', formatTime(plan.elapsedMs * 1e6)],
    [
      'Objective',
      `${formatNumber(weights.load)} × busiest GPU's compute + ${formatNumber(weights.commMax)} × busiest GPU's communication + ${formatNumber(weights.commTotal)} × mean communication + ${formatNumber(weights.migration)} × migrations × ${formatTime(problem.migrationCost ?? 0)}`,
    ],
    ['Replica choice', replicaChoice],
    ...(input.hardware === undefined ? [] : ([['Hardware', input.hardware]] as [string, string][])),
    ...(problem.migrationBudget === undefined
      ? []
      : ([['Migration budget', formatCount(problem.migrationBudget)]] as [string, string][])),
    ...(problem.deadGpus === undefined || problem.deadGpus.length === 0
      ? []
      : ([['Dead GPUs', problem.deadGpus.join(', ')]] as [string, string][])),
    ['Before', input.beforeKind],
    ['Versions', `gimbal-moe ${input.version}, Node ${process.versions.node}`],
    ['Made', input.createdAt.toISOString()],
  ];
  return `<section aria-label="Details">
<h2>How it was made</h2>
<div class="panel">
<dl>
${entries.map(([term, text]) => `<dt>${escapeHtml(term)}</dt><dd>${escapeHtml(text)}</dd>`).join('\n')}
<dt>Command</dt><dd><pre>${escapeHtml(shellLine(input.command))}</pre></dd>
</dl>
</div>
<h2>Notes</h2>
<div class="panel"><ul class="notes">
${input.notes.map((note) => `<li>${escapeHtml(note)}</li>`).join('\n')}
<li>J counts (token, expert) pairs and is linear in tokens: it is a model of a layer's time over the statistics window, made to compare placements, not to forecast latency.</li>
</ul></div>
</section>`;
}

/** The command as one would type it again. */
export function shellLine(words: readonly string[]): string {
  return words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`))
    .join(' ');
}

/** What the page's script reads. Infinity (a gap over a bound of 0) becomes null on the way, as JSON has it. */
function chartData(input: ReportInput): unknown {
  const forced = input.plan.layers.map((layer) => layer.forcedMigrations);
  return {
    layers: input.after.layers.map((figures) => figures.layer),
    experts: input.problem.experts,
    ...(input.gpusPerNode === undefined ? {} : { gpusPerNode: input.gpusPerNode }),
    deadGpus: input.problem.deadGpus ?? [],
    before: placementData(input.before),
    after: placementData(input.after),
    chosenMoves: input.plan.layers.map((layer, index) => layer.migrations - forced[index]!),
    forcedMoves: forced,
    lowerBound: input.plan.layers.map((layer) => layer.lowerBound),
    gap: input.plan.layers.map((layer) => layer.gap),
  };
}

function placementData(figures: PlacementFigures): unknown {
  const slots = figures.gpus * figures.slotsPerGpu;
  return {
    imbalance: figures.layers.map((layer) => layer.imbalance),
    crossNode: figures.layers.map((layer) => layer.crossNodeShare),
    commMax: figures.layers.map((layer) => layer.commMax),
    objective: figures.layers.map((layer) => layer.objective),
    placement: {
      gpus: figures.gpus,
      slotsPerGpu: figures.slotsPerGpu,
      experts: figures.layers.map((_, layer) =>
        Array.from(figures.physicalToLogical.subarray(layer * slots, (layer + 1) * slots)),
      ),
      tokens: figures.flows.map((flow) => Array.from(flow.slotTokens, Math.round)),
    },
  };
}
