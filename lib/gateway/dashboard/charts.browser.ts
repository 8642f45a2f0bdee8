/** The dashboard's two kinds of charts: stacked bars with a row for each engine, and lines over the last minutes. */
import { BarChart, LineChart } from 'echarts/charts';
import { GridComponent, MarkLineComponent, TooltipComponent } from 'echarts/components';
import * as echarts from 'echarts/core';
import { base, type Colour, type Colours, draw, valueAxis } from '../../report/charts.browser.js';
import type { EngineSnapshot } from '../types.js';
import { element } from './elements.browser.js';
import { type Figure, HISTORY_MS, type History, type Point } from './history.js';
import { formatDuration, label } from './words.js';

echarts.use([BarChart, GridComponent, LineChart, MarkLineComponent, TooltipComponent]);

const ROW_PX = 22;
const AXIS_PX = 32;
/** Of a chart's width at most, for the names at its left. */
const LABEL_SHARE = 0.4;
const CHARACTER_PX = 7;
const MS_PER_MIN = 60_000;

export interface Series<Of> {
  name: string;
  colour: Colour;
  figure: Of;
}

/** What the chart library tells of a point under the pointer. */
interface Hovered<Value> {
  dataIndex: number;
  seriesIndex: number;
  value: Value;
}

/** `format` writes a value, `tick` one on the axis; no value is above `limit`; `mark` is a dashed line. */
export interface BarsOptions {
  series: readonly Series<(engine: EngineSnapshot) => number>[];
  format(value: number): string;
  tick(value: number): string;
  limit?: number;
  mark?(engines: readonly EngineSnapshot[]): number | undefined;
}

/** A row for each engine, as high for one as for a hundred: what holds the chart scrolls. */
export function engineBars(
  target: HTMLElement,
  options: BarsOptions,
): (engines: readonly EngineSnapshot[]) => void {
  let engines: readonly EngineSnapshot[] = [];
  const drawing = draw(target, (colours) => {
    const labelCharacters = Math.floor((target.clientWidth * LABEL_SHARE) / CHARACTER_PX);
    return barsOption(options, engines, labelCharacters, colours);
  });
  return (next) => {
    engines = next;
    target.style.height = `${AXIS_PX + Math.max(1, engines.length) * ROW_PX}px`;
    drawing.refresh();
  };
}

function barsOption(
  options: BarsOptions,
  engines: readonly EngineSnapshot[],
  labelCharacters: number,
  colours: Colours,
) {
  const { series, format, tick, limit, mark } = options;
  const longest = Math.max(
    0,
    ...engines.map((engine) => series.reduce((sum, { figure }) => sum + figure(engine), 0)),
  );
  const toLimit = limit !== undefined && longest > limit / 2;
  return {
    ...base(colours),
    grid: { left: 16, right: 24, top: 4, bottom: 8, containLabel: true },
    xAxis: valueAxis(colours, tick, {
      position: 'top',
      min: 0,
      splitNumber: 4,
      // Round numbers may lie beyond the limit; where the bars leave them no other choice, the limit is the end.
      max: toLimit ? limit : null,
      interval: toLimit ? limit / 4 : null,
    }),
    yAxis: {
      type: 'category',
      inverse: true,
      // Names are not unique by themselves; numbers are.
      data: engines.map(({ engine }) => String(engine)),
      axisLabel: {
        color: colours.ink,
        interval: 0,
        formatter: (_: string, row: number) => label(engines[row]?.name ?? '', labelCharacters),
      },
      axisLine: { lineStyle: { color: colours.grid } },
      axisTick: { show: false },
    },
    tooltip: {
      ...base(colours).tooltip,
      trigger: 'axis',
      axisPointer: { type: 'shadow' },
      formatter: (points: Hovered<number>[]) => {
        const engine = engines[points[0]!.dataIndex];
        if (engine === undefined) return '';
        const lines = series.map(
          ({ name, colour, figure }) => [name, colour, format(figure(engine))] as const,
        );
        return tooltip(engine.name, lines);
      },
    },
    series: series.map(({ name, colour, figure }, index) => ({
      name,
      type: 'bar',
      stack: 'all',
      barWidth: ROW_PX - 8,
      data: engines.map(figure),
      itemStyle: { color: colours[colour] },
      ...(index === 0 ? { markLine: markLine(mark?.(engines), colours) } : {}),
    })),
  };
}

/** Without a value an empty one, since what a chart had and is not told of stays. */
function markLine(value: number | undefined, colours: Colours) {
  return {
    silent: true,
    symbol: 'none',
    label: { show: false },
    lineStyle: { color: colours.ink, type: 'dashed', width: 1 },
    data: value === undefined ? [] : [{ xAxis: value }],
  };
}

export interface LinesOptions {
  series: readonly Series<Figure>[];
  format(value: number): string;
  /** Integers only on the axis. */
  counts?: boolean;
}

export function timeLines(target: HTMLElement, options: LinesOptions): (history: History) => void {
  let history: History | undefined;
  const drawing = draw(target, (colours) => linesOption(options, history, colours));
  return (next) => {
    history = next;
    drawing.refresh();
  };
}

function linesOption(
  { series, format, counts }: LinesOptions,
  history: History | undefined,
  colours: Colours,
) {
  return {
    ...base(colours),
    grid: { left: 8, right: 20, top: 14, bottom: 8, containLabel: true },
    xAxis: valueAxis(colours, agoLabel, {
      min: 0,
      max: HISTORY_MS,
      interval: MS_PER_MIN,
      inverse: true,
      splitLine: { show: false },
      axisLine: { show: true, onZero: false, lineStyle: { color: colours.grid } },
    }),
    // At zero, that is now, the axis of values would stand at the right.
    yAxis: valueAxis(colours, format, {
      min: 0,
      position: 'left',
      axisLine: { show: false, onZero: false },
      splitNumber: 4,
      ...(counts === true ? { minInterval: 1 } : {}),
    }),
    tooltip: {
      ...base(colours).tooltip,
      trigger: 'axis',
      formatter: (points: Hovered<Point>[]) => {
        const lines = points.flatMap(({ seriesIndex, value: [, value] }) => {
          const { name, colour } = series[seriesIndex]!;
          return value === null ? [] : [[name, colour, format(value)] as const];
        });
        return tooltip(agoWords(points[0]!.value[0]), lines);
      },
    },
    series: series.map(({ name, colour, figure }) => ({
      name,
      type: 'line',
      data: marked(history?.points(figure) ?? []),
      symbolSize: 4,
      lineStyle: { color: colours[colour], width: 2 },
      itemStyle: { color: colours[colour] },
    })),
  };
}

/** A point without a neighbour has no line; it must be seen. */
function marked(points: readonly Point[]) {
  const isKnown = (index: number) => (points[index]?.[1] ?? null) !== null;
  return points.map((value, index) => ({
    value,
    symbol: isKnown(index - 1) || isKnown(index + 1) ? 'none' : 'circle',
  }));
}

function agoLabel(ms: number): string {
  return ms === 0 ? 'now' : `−${ms / MS_PER_MIN} min`;
}

function agoWords(ms: number): string {
  return ms === 0 ? 'now' : `${formatDuration(ms)} ago`;
}

/** As an element, since names in it are anybody's and markup would need style attributes, which the policy forbids. */
function tooltip(
  title: string,
  lines: readonly (readonly [name: string, colour: Colour, value: string])[],
): HTMLElement {
  const rows = lines.map(([name, colour, value]) => {
    const mark = element('span', {}, '● ');
    mark.style.color = `var(--${colour})`;
    return element('div', {}, mark, `${name}: ${value}`);
  });
  return element('div', {}, element('div', {}, element('bdi', {}, title)), ...rows);
}
