/**
 * The load of GPUs by layer, as a heat map: a picture of one pixel to a cell, which the browser stretches, since a large model on a large
 * cluster has tens of thousands of cells. What a cell is, is said in words below, for the pointer and the keyboard.
 */
import type { ControllerStatus } from '../../controller/types.js';
import { type Colours, drawByHand } from '../../report/charts.browser.js';
import { formatRatio } from '../../report/format.js';
import { element, scroller, setText } from './elements.browser.js';
import { loadWords } from './words.js';

/** Of a cell, at least. */
const CELL_PX = 6;
const MOST_HEIGHT_PX = 480;
const LEAST_HEIGHT_PX = 120;
/** Loads over the mean up to here have the whole scale, and no further one less than it. */
const LEAST_TOP = 2;

type Load = ControllerStatus['load'];

/** Of the worst cell; undefined where there is none. */
function worstOf(load: Load): { layer: number; gpu: number; over: number } | undefined {
  let worst: { layer: number; gpu: number; over: number } | undefined;
  load.forEach((row, layer) => {
    row.forEach((over, gpu) => {
      if (worst === undefined || over > worst.over) worst = { layer, gpu, over };
    });
  });
  return worst;
}

export function heatMap(parent: HTMLElement): (status: ControllerStatus) => void {
  const title = 'Load by layer and GPU';
  const canvas = element('canvas', { class: 'heat', 'data-heat': '', tabindex: '0', role: 'img' });
  const scale = element('span', { class: 'heat-scale', 'aria-hidden': 'true' });
  const top = element('span');
  const key = element('p', { class: 'small muted' }, '0 ', scale, ' ', top);
  const words = element('p', { class: 'small', role: 'status', id: 'heat-words' });
  const caption = 'Over the layer’s mean: a row for each layer, a column for each GPU. From the latest look.';
  parent.append(
    element(
      'figure',
      {},
      element('h3', {}, title),
      element('figcaption', {}, caption),
      key,
      scroller(title, canvas),
      words,
    ),
  );
  let load: Load = [];
  let shown = '';
  let at: { layer: number; gpu: number } | undefined;
  const tell = () => {
    const worst = worstOf(load);
    const over = at === undefined ? undefined : load[at.layer]?.[at.gpu];
    if (at !== undefined && over !== undefined) setText(words, `In ${loadWords(at.layer, at.gpu, over)}.`);
    else if (worst === undefined) setText(words, 'Nothing observed yet.');
    else setText(words, `The most is in ${loadWords(worst.layer, worst.gpu, worst.over)}.`);
  };
  const drawing = drawByHand((colours) => {
    const limit = Math.max(LEAST_TOP, worstOf(load)?.over ?? 0);
    scale.style.background = `linear-gradient(to right, ${colours['heat-low']}, ${colours['heat-high']})`;
    setText(top, formatRatio(limit));
    paint(canvas, load, limit, colours);
  });
  follow(
    canvas,
    () => load,
    (cell) => {
      at = cell;
      tell();
    },
  );
  return ({ load: next, layers, gpus }) => {
    load = next;
    // Looks are rarer than answers.
    const now = JSON.stringify(next);
    if (now === shown) return;
    shown = now;
    canvas.setAttribute('aria-label', `${title}, ${layers} layers and ${gpus} GPUs`);
    drawing.refresh();
    tell();
  };
}

function paint(canvas: HTMLCanvasElement, load: Load, limit: number, colours: Colours): void {
  const rows = load.length;
  const columns = Math.max(0, ...load.map((row) => row.length));
  canvas.hidden = rows * columns === 0;
  if (canvas.hidden) return;
  canvas.width = columns;
  canvas.height = rows;
  canvas.style.minWidth = `${columns * CELL_PX}px`;
  canvas.style.height = `${Math.min(MOST_HEIGHT_PX, Math.max(LEAST_HEIGHT_PX, rows * CELL_PX))}px`;
  const context = canvas.getContext('2d')!;
  const image = context.createImageData(columns, rows);
  const [low, high] = [rgb(colours['heat-low']), rgb(colours['heat-high'])];
  load.forEach((row, layer) => {
    row.forEach((over, gpu) => {
      const share = Math.min(1, Math.max(0, over / limit));
      const first = (layer * columns + gpu) * 4;
      for (let i = 0; i < 3; i++) image.data[first + i] = low[i]! + share * (high[i]! - low[i]!);
      image.data[first + 3] = 255;
    });
  });
  context.putImageData(image, 0, 0);
  canvas.dataset.drawn = 'true';
}

/** `#0d3478` as numbers. */
function rgb(colour: string): number[] {
  return [1, 3, 5].map((from) => Number.parseInt(colour.slice(from, from + 2), 16));
}

/** The cell under the pointer, or the one that arrow keys have gone to. */
function follow(
  canvas: HTMLCanvasElement,
  load: () => Load,
  tell: (cell: { layer: number; gpu: number } | undefined) => void,
): void {
  let cell = { layer: 0, gpu: 0 };
  const goTo = (layer: number, gpu: number) => {
    const columns = load()[0]?.length ?? 0;
    cell = {
      layer: Math.min(load().length - 1, Math.max(0, layer)),
      gpu: Math.min(columns - 1, Math.max(0, gpu)),
    };
    tell(cell);
  };
  canvas.addEventListener('pointermove', ({ offsetX, offsetY }) => {
    const { clientWidth, clientHeight, width, height } = canvas;
    goTo(Math.floor((offsetY / clientHeight) * height), Math.floor((offsetX / clientWidth) * width));
  });
  canvas.addEventListener('pointerleave', () => tell(undefined));
  canvas.addEventListener('blur', () => tell(undefined));
  canvas.addEventListener('keydown', (event) => {
    const { layer, gpu } = cell;
    const steps: Record<string, [number, number]> = {
      ArrowUp: [layer - 1, gpu],
      ArrowDown: [layer + 1, gpu],
      ArrowLeft: [layer, gpu - 1],
      ArrowRight: [layer, gpu + 1],
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    goTo(...step);
  });
}
