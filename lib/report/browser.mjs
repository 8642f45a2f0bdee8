/**
 * The browser half of the HTML report: reads the figures that the page carries as JSON and draws the charts. It is bundled
 * with the echarts modules it needs and inlined, so it may import nothing that needs Node or the network. Only numbers reach
 * the charts; every text of the user's is in the page already, escaped.
 */
import { BarChart, HeatmapChart, LineChart } from 'echarts/charts';
import { GridComponent, MarkLineComponent, TooltipComponent, VisualMapComponent } from 'echarts/components';
import * as echarts from 'echarts/core';
import { base, draw, followTheme, valueAxis } from './charts.browser.ts';
import {
  formatCount,
  formatRatio,
  formatShare,
  formatTick,
  formatTime,
  shortCount,
  timeUnit,
} from './format.ts';

echarts.use([
  BarChart,
  GridComponent,
  HeatmapChart,
  LineChart,
  MarkLineComponent,
  TooltipComponent,
  VisualMapComponent,
]);

const data = JSON.parse(document.getElementById('report-data').textContent);
const layerNames = data.layers.map(String);

function layerAxis(colours) {
  return {
    type: 'category',
    data: layerNames,
    name: 'layer',
    nameLocation: 'middle',
    nameGap: 26,
    axisLabel: { color: colours.muted, hideOverlap: true },
    axisLine: { lineStyle: { color: colours.grid } },
    axisTick: { show: false },
  };
}

/** One chart over the layers: `series` are `{ name, values, kind, colour, dashed }`, `format` writes a value. */
function layerChart(series, format, axisFormat, axisOptions) {
  return (colours) => ({
    ...base(colours),
    grid: { left: 8, right: 16, top: 16, bottom: 28, containLabel: true },
    xAxis: layerAxis(colours),
    yAxis: valueAxis(colours, axisFormat, axisOptions),
    tooltip: {
      ...base(colours).tooltip,
      trigger: 'axis',
      formatter: (points) =>
        [
          `layer ${points[0].axisValue}`,
          ...points.map((point) => `${point.marker}${point.seriesName}: ${format(point.value)}`),
        ].join('<br>'),
    },
    series: series.map((one) => layerSeries(one, colours)),
  });
}

function layerSeries(one, colours) {
  const colour = colours[one.colour];
  const common = { name: one.name, data: one.values, itemStyle: { color: colour } };
  if (one.kind === 'bar') return { ...common, type: 'bar', stack: 'one', barMaxWidth: 18 };
  return {
    ...common,
    type: 'line',
    // A lone layer has no line; its point must be seen.
    showSymbol: one.values.length < 30,
    symbolSize: 5,
    lineStyle: { color: colour, width: 2, type: one.dashed ? 'dashed' : 'solid' },
    z: one.colour === 'before' ? 2 : 3,
  };
}

function beforeAndAfter(key) {
  return [
    { name: 'before', values: data.before[key], colour: 'before' },
    { name: 'after', values: data.after[key], colour: 'after' },
  ];
}

/** Axis labels in one unit, the one that suits the largest value. */
function timeAxisFormat(...columns) {
  const largest = Math.max(0, ...columns.flat().filter((value) => value !== null));
  const [scale, unit] = timeUnit(largest);
  return (value) => (value === 0 ? '0' : `${formatTick(value / scale)} ${unit}`);
}

const formatGap = (value) => (value === null ? 'no bound above 0' : formatShare(value));

const layerCharts = {
  imbalance: () => layerChart(beforeAndAfter('imbalance'), formatRatio, formatTick, { min: 1 }),
  'cross-node': () =>
    layerChart(beforeAndAfter('crossNode'), formatShare, (value) => `${formatTick(value * 100)} %`, {
      min: 0,
    }),
  communication: () =>
    layerChart(
      beforeAndAfter('commMax'),
      formatTime,
      timeAxisFormat(data.before.commMax, data.after.commMax),
    ),
  moves: () =>
    layerChart(
      [
        { name: 'chosen', values: data.chosenMoves, colour: 'moves', kind: 'bar' },
        { name: 'forced', values: data.forcedMoves, colour: 'before', kind: 'bar' },
      ],
      formatCount,
      formatCount,
      { minInterval: 1 },
    ),
  objective: () =>
    layerChart(
      [
        ...beforeAndAfter('objective'),
        { name: 'lower bound', values: data.lowerBound, colour: 'bound', dashed: true },
      ],
      formatTime,
      timeAxisFormat(data.before.objective, data.after.objective),
    ),
  gap: () =>
    layerChart(
      [{ name: 'gap', values: data.gap, colour: 'bound', kind: 'bar' }],
      formatGap,
      (value) => `${formatTick(value * 100)} %`,
    ),
};

// The heat map: one layer's tokens by GPU and expert, and each GPU's sum beside it.

const controls = {
  layer: document.getElementById('heat-layer'),
  order: document.getElementById('heat-order'),
  which: () => document.querySelector('input[name="heat-which"]:checked').value,
};

/** Cells of one layer, `[gpu, expert, tokens]`; two slots of an expert on one GPU are one cell. */
function cellsOf(placement, layer) {
  const experts = placement.experts[layer];
  const tokens = placement.tokens[layer];
  const cells = new Map();
  for (let slot = 0; slot < experts.length; slot++) {
    if (experts[slot] < 0) continue;
    const gpu = Math.floor(slot / placement.slotsPerGpu);
    const key = gpu * data.experts + experts[slot];
    const cell = cells.get(key) ?? [gpu, experts[slot], 0];
    cell[2] += tokens[slot];
    cells.set(key, cell);
  }
  return [...cells.values()];
}

/** The order of the columns; hottest first makes the replicas of hot experts stand together at the left. */
function expertOrder(cells, order) {
  const experts = Array.from({ length: data.experts }, (_, expert) => expert);
  if (order === 'id') return experts;
  const tokens = new Float64Array(data.experts);
  for (const [, expert, count] of cells) tokens[expert] += count;
  return experts.sort((a, b) => tokens[b] - tokens[a] || a - b);
}

function heatOption(colours) {
  const layer = Number(controls.layer.value);
  const placement = data[controls.which()].placement;
  const cells = cellsOf(placement, layer);
  const order = expertOrder(cells, controls.order.value);
  const column = new Map(order.map((expert, index) => [expert, index]));
  // GPU 0 stands at the top. An inverse axis would do, but its bands come out one row too low, so rows count upwards.
  const rowOf = (gpu) => placement.gpus - 1 - gpu;
  const gpuTokens = new Array(placement.gpus).fill(0);
  for (const [gpu, , tokens] of cells) gpuTokens[gpu] += tokens;
  // One scale for before and after, so that switching between them compares like with like.
  const peak = (pick) => Math.max(1, ...['before', 'after'].map((which) => pick(data[which].placement)));
  const hottestCell = peak((one) => cellsOf(one, layer).reduce((most, cell) => Math.max(most, cell[2]), 0));
  const busiestGpu = peak((one) => largestGpuTokens(one, layer));
  return {
    ...base(colours),
    grid: [
      { left: 64, right: '24%', top: 8, bottom: 84 },
      { left: '78%', right: 24, top: 8, bottom: 84 },
    ],
    xAxis: [
      { ...layerAxis(colours), gridIndex: 0, name: 'expert', data: order.map(String) },
      valueAxis(colours, shortCount, {
        gridIndex: 1,
        max: busiestGpu,
        name: 'tokens a GPU',
        nameLocation: 'middle',
        nameGap: 26,
        splitNumber: 2,
      }),
    ],
    yAxis: [gpuAxis(colours, placement, 0, true), gpuAxis(colours, placement, 1, false)],
    visualMap: {
      type: 'continuous',
      seriesIndex: 0,
      min: 0,
      max: Math.sqrt(hottestCell),
      dimension: 3,
      orient: 'horizontal',
      left: 'center',
      bottom: 4,
      itemHeight: 160,
      itemWidth: 12,
      text: [`${formatCount(hottestCell)} tokens`, '0'],
      textStyle: { color: colours.muted },
      inRange: { color: [colours['heat-low'], colours['heat-high']] },
    },
    series: [
      {
        type: 'heatmap',
        xAxisIndex: 0,
        yAxisIndex: 0,
        // The fourth value is what the shade shows: counts are so skewed that a linear scale would leave most cells pale.
        data: cells.map(([gpu, expert, tokens]) => [
          column.get(expert),
          rowOf(gpu),
          tokens,
          Math.sqrt(tokens),
        ]),
        tooltip: {
          formatter: ({ value }) =>
            `${gpuLabel(rowOf(value[1]))}, expert ${order[value[0]]}<br>${formatCount(value[2])} tokens`,
        },
      },
      {
        type: 'bar',
        xAxisIndex: 1,
        yAxisIndex: 1,
        data: gpuTokens.toReversed(),
        barCategoryGap: '20%',
        itemStyle: { color: colours[controls.which()] },
        tooltip: {
          formatter: ({ dataIndex, value }) =>
            `${gpuLabel(rowOf(dataIndex))}<br>${formatCount(value)} tokens`,
        },
        markLine: meanLine(gpuTokens, colours),
      },
    ],
  };
}

function largestGpuTokens(placement, layer) {
  const sums = new Float64Array(placement.gpus);
  for (const [gpu, , tokens] of cellsOf(placement, layer)) sums[gpu] += tokens;
  return sums.reduce((most, value) => Math.max(most, value), 0);
}

function meanLine(gpuTokens, colours) {
  const live = gpuTokens.filter((_, gpu) => !data.deadGpus.includes(gpu));
  const mean = live.reduce((sum, value) => sum + value, 0) / Math.max(1, live.length);
  return {
    silent: true,
    symbol: 'none',
    label: { show: false },
    lineStyle: { color: colours.ink, type: 'dashed', width: 1 },
    data: [{ xAxis: mean }],
  };
}

function gpuAxis(colours, placement, gridIndex, labels) {
  const perNode = data.gpusPerNode;
  return {
    type: 'category',
    gridIndex,
    data: Array.from({ length: placement.gpus }, (_, row) => String(placement.gpus - 1 - row)),
    axisLabel: {
      show: labels,
      color: colours.muted,
      formatter: (gpu) => (data.deadGpus.includes(Number(gpu)) ? `${gpu} dead` : `GPU ${gpu}`),
    },
    axisTick: { show: false },
    axisLine: { lineStyle: { color: colours.grid } },
    // Bands tell the nodes apart.
    splitArea: {
      show: perNode !== undefined && placement.gpus > perNode,
      interval: (row) => (placement.gpus - row) % perNode === 0,
      areaStyle: { color: ['transparent', colours.band] },
    },
  };
}

function gpuLabel(gpu) {
  return data.gpusPerNode === undefined
    ? `GPU ${gpu}`
    : `GPU ${gpu} (node ${Math.floor(gpu / data.gpusPerNode)})`;
}

function heatHeight() {
  const gpus = Math.max(data.before.placement.gpus, data.after.placement.gpus);
  return 92 + gpus * Math.min(24, Math.max(6, 640 / gpus));
}

function selectLayer(index) {
  controls.layer.value = String(Math.min(data.layers.length - 1, Math.max(0, index)));
  heat.refresh();
}

for (const element of document.querySelectorAll('[data-chart]')) {
  const make = layerCharts[element.dataset.chart];
  const { chart } = draw(element, make());
  chart.group = 'layers';
  chart.getZr().on('click', (event) => {
    const point = [event.offsetX, event.offsetY];
    if (chart.containPixel('grid', point)) selectLayer(chart.convertFromPixel({ gridIndex: 0 }, point)[0]);
  });
}
echarts.connect('layers');

const heatElement = document.getElementById('heat');
heatElement.style.height = `${heatHeight()}px`;
const heat = draw(heatElement, heatOption);

controls.layer.addEventListener('change', () => heat.refresh());
controls.order.addEventListener('change', () => heat.refresh());
for (const radio of document.querySelectorAll('input[name="heat-which"]')) {
  radio.addEventListener('change', () => heat.refresh());
}
document
  .getElementById('heat-previous')
  .addEventListener('click', () => selectLayer(Number(controls.layer.value) - 1));
document
  .getElementById('heat-next')
  .addEventListener('click', () => selectLayer(Number(controls.layer.value) + 1));

followTheme(document.getElementById('theme'));
