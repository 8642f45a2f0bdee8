/**
 * Charts as SVG in the page itself, which a reader sees without a script; the script beside them only adds what the pointer
 * shows. All values come as numbers, all names escaped.
 */
import { escapeHtml } from './escape.js';
import { formatTick } from './format.js';

export interface Line {
  name: string;
  x: readonly number[];
  y: readonly number[];
}

export interface LineChart {
  title: string;
  caption: string;
  xLabel: string;
  lines: readonly Line[];
  /** Of the x axis, for long tails. */
  logarithmic?: boolean;
  yMin?: number;
}

export const WIDTH = 560;
const HEIGHT = 240;
export const MARGIN = { left: 52, right: 12, top: 10, bottom: 34 };
const TICKS = 5;

/** As many colours as policies commonly are; more begin again. */
export const LINE_COLOURS = ['#2563c9', '#b8620b', '#0b7a53', '#8e44ad', '#b3261e', '#5d646d'];

export function lineChartSvg({ title, xLabel, lines, logarithmic = false, yMin }: LineChart): string {
  const xs = lines
    .flatMap(({ x }) => [x[0] ?? 0, x.at(-1) ?? 1])
    .map((x) => (logarithmic ? Math.max(1e-3, x) : x));
  const scaleX = logarithmic ? Math.log10 : (x: number) => x;
  const [low, high] = range(xs.map(scaleX));
  const [bottom, top] = range([
    ...lines.flatMap(({ y }) => extremes(y)),
    ...(yMin === undefined ? [] : [yMin]),
  ]);
  const px = (x: number) =>
    MARGIN.left +
    ((scaleX(logarithmic ? Math.max(1e-3, x) : x) - low) / (high - low)) *
      (WIDTH - MARGIN.left - MARGIN.right);
  const py = (y: number) =>
    HEIGHT - MARGIN.bottom - ((y - bottom) / (top - bottom)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const paths = lines.map(({ name, x, y }, n) => {
    const points = x.map((value, i) => `${px(value).toFixed(1)},${py(y[i]!).toFixed(1)}`).join(' ');
    const colour = LINE_COLOURS[n % LINE_COLOURS.length]!;
    return `<polyline class="line" data-series="${escapeHtml(name)}" fill="none" stroke="${colour}" stroke-width="2" points="${points}"/>`;
  });
  const ticks = Array.from({ length: TICKS + 1 }, (_, n) => n / TICKS);
  const grid = ticks.map((share) => {
    const y = bottom + share * (top - bottom);
    const x = low + share * (high - low);
    const at = MARGIN.left + share * (WIDTH - MARGIN.left - MARGIN.right);
    return `<line x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${py(y).toFixed(1)}" y2="${py(y).toFixed(1)}" stroke="var(--grid)"/>
<text x="${MARGIN.left - 6}" y="${(py(y) + 4).toFixed(1)}" text-anchor="end">${escapeHtml(formatTick(y))}</text>
<text x="${at.toFixed(1)}" y="${HEIGHT - 16}" text-anchor="middle">${escapeHtml(formatTick(logarithmic ? 10 ** x : x))}</text>`;
  });
  return `<svg class="plot" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)}">
${grid.join('\n')}
${paths.join('\n')}
<text x="${(WIDTH + MARGIN.left) / 2}" y="${HEIGHT - 2}" text-anchor="middle">${escapeHtml(xLabel)}</text>
</svg>`;
}

/** `[rows][columns]`; each cell tells its value when the pointer rests on it. */
export function heatMapSvg(
  title: string,
  values: readonly (readonly number[])[],
  rowName: string,
  columnName: string,
): string {
  const columns = values[0]?.length ?? 0;
  const cellWidth = Math.max(4, Math.min(60, 900 / Math.max(1, columns)));
  const cellHeight = 10;
  const [low, high] = range(values.flatMap(extremes));
  const cells = values.flatMap((row, r) =>
    row.map((value, c) => {
      const share = (value - low) / (high - low);
      return `<rect x="${(60 + c * cellWidth).toFixed(1)}" y="${r * cellHeight}" width="${cellWidth.toFixed(1)}" height="${cellHeight}" fill="var(--heat-high)" fill-opacity="${(0.05 + 0.95 * share).toFixed(3)}"><title>${escapeHtml(`${rowName} ${r}, ${columnName} ${c}: ${value.toFixed(3)}`)}</title></rect>`;
    }),
  );
  const labels = values.map((_, r) =>
    r % 8 === 0
      ? `<text x="54" y="${r * cellHeight + 9}" text-anchor="end">${escapeHtml(rowName)} ${r}</text>`
      : '',
  );
  return `<svg class="plot" viewBox="0 0 ${60 + columns * cellWidth} ${values.length * cellHeight}" style="max-width:${60 + columns * cellWidth}px" role="img" aria-label="${escapeHtml(title)}">
${cells.join('\n')}
${labels.join('')}
</svg>`;
}

function extremes(values: readonly number[]): [number, number] {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}

/** Never empty, so that a division by its width is safe. */
function range(values: readonly number[]): [number, number] {
  const [low, high] = extremes(values.filter(Number.isFinite));
  if (!(high >= low)) return [0, 1];
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}
