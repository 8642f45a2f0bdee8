/**
 * What the charts of all pages have in common: colours from the style sheet, frames and axes, and that they follow the theme
 * and their size. The renderer sets styles by script alone, which a content policy without inline styles lets through.
 */
import * as echarts from 'echarts/core';
import { SVGRenderer } from 'echarts/renderers';

echarts.use([SVGRenderer]);

const COLOURS = [
  'ink',
  'muted',
  'grid',
  'surface',
  'band',
  'before',
  'after',
  'bound',
  'moves',
  'fourth',
  'heat-low',
  'heat-high',
] as const;

export type Colour = (typeof COLOURS)[number];
export type Colours = Record<Colour, string>;

export interface Drawing {
  chart: echarts.ECharts;
  refresh(): void;
}

/** All of the page, to be done anew when the theme changes. */
const drawings: Pick<Drawing, 'refresh'>[] = [];

/** The colours are the style sheet's, so that charts follow the theme. */
function palette(): Colours {
  const style = getComputedStyle(document.documentElement);
  const entries = COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]);
  return Object.fromEntries(entries) as Colours;
}

export function base(colours: Colours) {
  return {
    animation: false,
    // A canvas measures labels, and it does not know 'inherit'.
    textStyle: { color: colours.muted, fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 12 },
    tooltip: {
      confine: true,
      backgroundColor: colours.surface,
      borderColor: colours.grid,
      textStyle: { color: colours.ink, fontSize: 12 },
    },
  };
}

export function valueAxis(colours: Colours, format: (value: number) => string, options: object = {}) {
  return {
    type: 'value',
    axisLabel: { color: colours.muted, formatter: format },
    splitLine: { lineStyle: { color: colours.grid } },
    ...options,
  };
}

/**
 * A chart on an element, redrawn on demand; the element says when it is drawn, for tests and for print. A new option is merged
 * into the last one, which keeps an open tooltip: it must have all parts that the last one had.
 */
export function draw(element: HTMLElement, option: (colours: Colours) => echarts.EChartsCoreOption): Drawing {
  const chart = echarts.init(element, null, { renderer: 'svg' });
  chart.on('finished', () => {
    element.dataset.drawn = 'true';
  });
  const drawing = { chart, refresh: () => chart.setOption(option(palette())) };
  drawing.refresh();
  drawings.push(drawing);
  // Not only the window's size counts: what is added beside or within makes room or takes it.
  new ResizeObserver(() => chart.resize()).observe(element);
  return drawing;
}

/** What is drawn by hand, now and again as `refresh` is called or the theme changes. */
export function drawByHand(paint: (colours: Colours) => void): Pick<Drawing, 'refresh'> {
  const drawing = { refresh: () => paint(palette()) };
  drawing.refresh();
  drawings.push(drawing);
  return drawing;
}

/** Charts follow the system's theme, and the button that turns it over. */
export function followTheme(button: HTMLElement): void {
  const refreshAll = () => {
    for (const drawing of drawings) drawing.refresh();
  };
  const dark = matchMedia('(prefers-color-scheme: dark)');
  dark.addEventListener('change', refreshAll);
  button.addEventListener('click', () => {
    const root = document.documentElement;
    const shown = root.dataset.theme ?? (dark.matches ? 'dark' : 'light');
    root.dataset.theme = shown === 'dark' ? 'light' : 'dark';
    refreshAll();
  });
}
