/**
 * From a cluster and a model to the costs of a placement problem, in ns per (token, expert) pair, and how they came about.
 *
 * computeCost: an expert is three matrices of H x I, two operations an element: 6·H·I FLOP for one token. Large batches of
 * grouped MoE kernels approach a rate F that is well below the nominal one; F is fitted to measured kernels. Where the
 * kernels also pay for moving activations, (4·H + 6·I) bytes a pair are added. The time to read an expert's weights is left
 * out: it does not depend on the tokens, and J is linear in them.
 *
 * commCost: dispatch and combine bytes of one token over the rate of the slowest link on the way, per GPU: nothing on the
 * GPU itself, the all-to-all rate within a node, the network's between nodes. Latency is left out for the same reason.
 */

import { aboveZero, checkKeys, count, describe, invalid, oneOf } from './checks.js';
import { type GimbalError, mismatch } from './errors.js';
import {
  findHardware,
  findModel,
  type Hardware,
  type HardwareName,
  type ModelName,
  type ModelShape,
} from './presets.js';

export type AllToAll = 'all-to-all' | 'allgather-reducescatter';

export interface TopologyOptions {
  nodes: number;
  gpusPerNode: number;
  /** A preset's name or figures of your own. Default H100. */
  hardware?: HardwareName | (string & {}) | Hardware;
  /** A preset's name or a shape of your own. Default DeepSeek-V3. */
  model?: ModelName | (string & {}) | ModelShape;
  /** Source DP ranks. Default: one per GPU, or what `tensorParallel` leaves. `dpSize` is the engines' word for it. */
  sources?: number;
  dpSize?: number;
  /** GPUs of one DP rank. Default: GPUs / sources. */
  tensorParallel?: number;
  /**
   * How tokens reach their experts. With 'allgather-reducescatter' (vLLM's default) every GPU gets every token, so the bytes
   * do not depend on the placement and commCost is 0. Default 'all-to-all' (DeepEP and its like).
   */
  allToAll?: AllToAll;
  /** ns per pair in place of the derived figure: one number, or one for each GPU. */
  computeCost?: number | ArrayLike<number>;
  /** Rates per GPU in GB/s in place of the hardware's. */
  links?: { intraNodeGBps?: number; interNodeGBps?: number };
  /** Default 1 for fp8 models, otherwise 2. */
  dispatchBytesPerElement?: number;
  /** Default 2. */
  combineBytesPerElement?: number;
}

/** What `parseTopology` takes besides the cluster itself. */
export interface ParseTopologyOptions extends Omit<TopologyOptions, 'nodes' | 'gpusPerNode'> {
  /** ns of one unit of a `rank_cost_matrix`. Default: its largest entry costs what the slowest link does. */
  nsPerCostUnit?: number;
}

/** Spreads into a PlacementProblem: `{ ...topology(…), layers, experts, slotsPerGpu, tokens }`. */
export interface Topology {
  gpus: number;
  sources: number;
  /** `[gpus]`, ns per (token, expert) pair. */
  computeCost: Float64Array;
  /** `[sources][gpus]`, ns per (token, expert) pair, there and back. */
  commCost: Float64Array;
  nodes: number;
  gpusPerNode: number;
  /** In words and numbers, how each figure came about. */
  explanation: string[];
}

const SHAPE_KEYS = ['nodes', 'gpusPerNode'] as const;
const COST_KEYS = [
  'hardware',
  'model',
  'sources',
  'dpSize',
  'tensorParallel',
  'allToAll',
  'computeCost',
  'links',
  'dispatchBytesPerElement',
  'combineBytesPerElement',
] as const;

/** @throws GimbalError GIMBAL_INVALID_INPUT, naming the option */
export function topology(options: TopologyOptions): Topology {
  checkKeys('topology', options, [...SHAPE_KEYS, ...COST_KEYS]);
  const nodes = count('topology.nodes', options.nodes);
  const gpusPerNode = count('topology.gpusPerNode', options.gpusPerNode);
  const gpus = count('topology.nodes * topology.gpusPerNode', nodes * gpusPerNode);
  const figures = new Figures(options, gpusPerNode);
  const nodeOf = (gpu: number) => Math.floor(gpu / gpusPerNode);
  const linkNs = (from: number, to: number) => {
    if (from === to) return 0;
    return nodeOf(from) === nodeOf(to) ? figures.intraNodeNs : figures.interNodeNs;
  };
  const ranks = sourceRanks(options, gpus);
  return {
    gpus,
    sources: ranks.sources,
    nodes,
    gpusPerNode,
    computeCost: figures.computeCost(gpus),
    commCost: costsFromNearest(ranks, gpus, linkNs),
    explanation: [
      clusterInWords(nodes, gpusPerNode, ranks),
      figures.computeInWords,
      ...figures.linksInWords(nodes),
    ],
  };
}

/**
 * A topology from what a user writes: `4x8` (nodes x GPUs per node), an object or JSON text of TopologyOptions, or SGLang's
 * `{ "rank_cost_matrix": [[…]] }` (square, relative costs between EP ranks, 0 on the diagonal). `options` fill in what the
 * input leaves open.
 *
 * @throws GimbalError GIMBAL_FORMAT where the text is none of these; GIMBAL_INVALID_INPUT, naming the option
 */
export function parseTopology(input: string | object, options: ParseTopologyOptions = {}): Topology {
  checkKeys('options', options, [...COST_KEYS, 'nsPerCostUnit']);
  const { nsPerCostUnit, ...defaults } = options;
  const parsed = typeof input === 'string' ? parseText(input) : input;
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw unreadable(describe(parsed));
  if (!('rank_cost_matrix' in parsed)) return topology({ ...defaults, ...(parsed as TopologyOptions) });
  checkKeys('topology', parsed, ['rank_cost_matrix']);
  return topologyFromMatrix(checkMatrix(parsed.rank_cost_matrix), defaults, nsPerCostUnit);
}

/** The derived figures of one model on one kind of hardware, each beside the words that explain it. */
class Figures {
  readonly intraNodeNs: number;
  readonly interNodeNs: number;
  readonly computeInWords: string;
  readonly #computeNs: number | ArrayLike<number>;
  readonly #linkWords: { bytes: string; intra: string; inter: string } | undefined;

  constructor(options: ParseTopologyOptions, gpusPerNode: number) {
    const { hardware: machine = 'H100', model: shape = 'DeepSeek-V3' } = options;
    const hardware = typeof machine === 'string' ? findHardware(machine) : machine;
    const model = typeof shape === 'string' ? findModel(shape) : shape;
    const assumed = [
      ...(options.model === undefined ? [`no model was named, ${model.name} is assumed`] : []),
      ...(options.hardware === undefined ? [`no hardware was named, ${hardware.name} is assumed`] : []),
    ];
    const note = assumed.length === 0 ? '' : ` (${assumed.join('; ')})`;
    if (options.computeCost === undefined) {
      const derived = computeCostOf(model, hardware);
      this.#computeNs = derived.ns;
      this.computeInWords = derived.words + note;
    } else {
      this.#computeNs = options.computeCost;
      this.computeInWords = `computeCost: as given${note}`;
    }
    const kind = oneOf('topology.allToAll', options.allToAll ?? 'all-to-all', [
      'all-to-all',
      'allgather-reducescatter',
    ]);
    if (kind === 'allgather-reducescatter') {
      this.intraNodeNs = 0;
      this.interNodeNs = 0;
      return;
    }
    const bytes = bytesPerPair(options, model);
    const links = linkRates(options, hardware, gpusPerNode);
    this.intraNodeNs = bytes.total / links.intraNodeGBps;
    this.interNodeNs = bytes.total / links.interNodeGBps;
    this.#linkWords = {
      bytes: bytes.words,
      intra: `${ns(this.intraNodeNs)} within a node (${links.intraNodeGBps} GB/s per GPU, ${links.intraNodeSource})`,
      inter: `${ns(this.interNodeNs)} between nodes (${links.interNodeGBps} GB/s per GPU, ${links.interNodeSource})`,
    };
  }

  /** `[gpus]` */
  computeCost(gpus: number): Float64Array {
    const cost = this.#computeNs;
    if (typeof cost === 'number') return new Float64Array(gpus).fill(aboveZero('topology.computeCost', cost));
    if (cost?.length !== gpus) {
      throw invalid('topology.computeCost', `a number or ${gpus} numbers, one for each GPU`, describe(cost));
    }
    return Float64Array.from(cost, (value, gpu) => aboveZero(`topology.computeCost[${gpu}]`, value));
  }

  linksInWords(nodes: number, title = 'commCost'): string[] {
    if (this.#linkWords === undefined) {
      return [
        'commCost: 0 everywhere: with all-gather and reduce-scatter the bytes do not depend on the placement',
      ];
    }
    const { bytes, intra, inter } = this.#linkWords;
    const links = ['0 ns on the GPU itself', intra, ...(nodes > 1 ? [inter] : [])];
    return [bytes, `${title}: ${links.join(', ')}`];
  }
}

function computeCostOf(model: ModelShape, hardware: Hardware): { ns: number; words: string } {
  const { hiddenSize: h, expertIntermediateSize: i, precision } = model;
  const tflops = aboveZero('topology.hardware.expertTflops', hardware.expertTflops[precision]);
  const kernelNs = (6 * h * i) / (tflops * 1e3);
  const activationBytes = 4 * h + 6 * i;
  const activationNs = hardware.activationTBps > 0 ? activationBytes / (hardware.activationTBps * 1e3) : 0;
  const rate = `${tflops} TFLOP/s (${precision} experts on ${hardware.name}, fitted to large batches of MoE kernels)`;
  const activation =
    activationNs === 0
      ? ''
      : `, plus (4·H + 6·I) B = ${activationBytes} B at ${hardware.activationTBps} TB/s`;
  return {
    ns: kernelNs + activationNs,
    words:
      `computeCost: ${ns(kernelNs + activationNs)} per (token, expert) pair = 6·H·I / F = ` +
      `6·${h}·${i} FLOP (${model.name}) / ${rate}${activation}`,
  };
}

function bytesPerPair(options: ParseTopologyOptions, model: ModelShape): { total: number; words: string } {
  const usual = model.precision === 'fp8' ? 1 : 2;
  const dispatch = aboveZero('topology.dispatchBytesPerElement', options.dispatchBytesPerElement ?? usual);
  const combine = aboveZero('topology.combineBytesPerElement', options.combineBytesPerElement ?? 2);
  const total = model.hiddenSize * (dispatch + combine);
  return {
    total,
    words:
      `bytes of a pair: ${total} = ${model.hiddenSize} elements (${model.name}) x ` +
      `(${dispatch} B dispatch + ${combine} B combine)`,
  };
}

function linkRates(options: ParseTopologyOptions, hardware: Hardware, gpusPerNode: number) {
  const given = options.links ?? {};
  checkKeys('topology.links', given, ['intraNodeGBps', 'interNodeGBps']);
  const measured =
    hardware.intraNodeGBps.find(({ gpus }) => gpus >= gpusPerNode) ?? hardware.intraNodeGBps.at(-1);
  return {
    intraNodeGBps: aboveZero('topology.links.intraNodeGBps', given.intraNodeGBps ?? measured?.GBps),
    intraNodeSource:
      given.intraNodeGBps === undefined
        ? `${hardware.name} all-to-all measured on ${measured?.gpus} GPUs`
        : 'as given',
    interNodeGBps: aboveZero('topology.links.interNodeGBps', given.interNodeGBps ?? hardware.interNodeGBps),
    interNodeSource: given.interNodeGBps === undefined ? `${hardware.name} nodes, nominal` : 'as given',
  };
}

/** Source s is the DP rank of GPUs s·width … (s+1)·width − 1. */
interface SourceRanks {
  sources: number;
  width: number;
}

function sourceRanks(options: ParseTopologyOptions, gpus: number): SourceRanks {
  const { sources, dpSize, tensorParallel } = options;
  if (sources !== undefined && dpSize !== undefined && sources !== dpSize) {
    throw invalid('topology.dpSize', `the same as sources, ${describe(sources)}`, describe(dpSize));
  }
  const given = sources ?? dpSize;
  const name = sources === undefined && dpSize !== undefined ? 'dpSize' : 'sources';
  const width =
    tensorParallel === undefined
      ? gpus / count(`topology.${name}`, given ?? gpus)
      : count('topology.tensorParallel', tensorParallel);
  const ranks = given === undefined ? gpus / width : count(`topology.${name}`, given);
  if (!Number.isInteger(width) || !Number.isInteger(ranks) || ranks * width !== gpus) {
    if (given === undefined)
      throw invalid('topology.tensorParallel', `a divisor of ${gpus} GPUs`, `${width}`);
    if (tensorParallel === undefined)
      throw invalid(`topology.${name}`, `a divisor of ${gpus} GPUs`, `${given}`);
    throw invalid(`topology.${name}`, `${name} * tensorParallel to make ${gpus} GPUs`, `${given} * ${width}`);
  }
  return { sources: ranks, width };
}

/** `[sources][gpus]`: a source that spans several GPUs costs what its nearest GPU costs. */
function costsFromNearest(
  { sources, width }: SourceRanks,
  gpus: number,
  cost: (from: number, to: number) => number,
): Float64Array {
  count('topology.sources * topology.gpus', sources * gpus);
  const costs = new Float64Array(sources * gpus);
  for (let source = 0; source < sources; source++) {
    for (let gpu = 0; gpu < gpus; gpu++) {
      let least = Number.POSITIVE_INFINITY;
      for (let k = 0; k < width; k++) least = Math.min(least, cost(source * width + k, gpu));
      costs[source * gpus + gpu] = least;
    }
  }
  return costs;
}

function clusterInWords(nodes: number, gpusPerNode: number, { sources, width }: SourceRanks): string {
  const gpus = nodes * gpusPerNode;
  const nearest = width > 1 ? '; to send costs a rank what it costs its nearest GPU' : '';
  return `${gpus} GPUs: ${nodes} x ${gpusPerNode}; ${sources} DP ranks of ${width} GPU${width > 1 ? 's' : ''} each${nearest}`;
}

function topologyFromMatrix(
  matrix: number[][],
  options: ParseTopologyOptions,
  nsPerCostUnit: number | undefined,
): Topology {
  const gpus = matrix.length;
  const { nodes, gpusPerNode } = nodesOfMatrix(matrix);
  const figures = new Figures(options, gpusPerNode);
  const largest = Math.max(...matrix.map((row) => Math.max(...row)));
  const slowestNs = nodes > 1 ? figures.interNodeNs : figures.intraNodeNs;
  const unitNs =
    nsPerCostUnit === undefined
      ? slowestNs / (largest || 1)
      : aboveZero('options.nsPerCostUnit', nsPerCostUnit);
  const ranks = sourceRanks(options, gpus);
  const scale =
    nsPerCostUnit === undefined
      ? `its largest entry, ${largest}, stands for ${ns(slowestNs)}, the slowest link below`
      : `a unit is ${ns(unitNs)}, as given`;
  return {
    gpus,
    sources: ranks.sources,
    nodes,
    gpusPerNode,
    computeCost: figures.computeCost(gpus),
    commCost: costsFromNearest(ranks, gpus, (from, to) => matrix[from]![to]! * unitNs),
    explanation: [
      clusterInWords(nodes, gpusPerNode, ranks),
      figures.computeInWords,
      `commCost: the rank cost matrix; ${scale}`,
      ...figures.linksInWords(nodes, 'links'),
    ],
  };
}

/** A node is taken to be a block of ranks that reach each other at the smallest cost there is; else all are one node. */
function nodesOfMatrix(matrix: number[][]): { nodes: number; gpusPerNode: number } {
  const gpus = matrix.length;
  const least = Math.min(...matrix.map((row, from) => Math.min(...row.filter((_, to) => to !== from))));
  const isNear = (from: number, to: number) => from === to || matrix[from]![to]! <= least;
  let gpusPerNode = 1;
  while (gpusPerNode < gpus && isNear(0, gpusPerNode)) gpusPerNode++;
  const sameNode = (a: number, b: number) => Math.floor(a / gpusPerNode) === Math.floor(b / gpusPerNode);
  const fits =
    gpusPerNode > 1 &&
    gpus % gpusPerNode === 0 &&
    matrix.every((row, from) => row.every((_, to) => isNear(from, to) === sameNode(from, to)));
  return fits ? { nodes: gpus / gpusPerNode, gpusPerNode } : { nodes: 1, gpusPerNode: gpus };
}

function checkMatrix(value: unknown): number[][] {
  const field = 'topology.rank_cost_matrix';
  if (!Array.isArray(value) || value.length === 0) throw invalid(field, 'a square matrix', describe(value));
  value.forEach((row: unknown, from) => {
    if (!Array.isArray(row) || row.length !== value.length) {
      throw invalid(`${field}[${from}]`, `an array of ${value.length}, as many as rows`, describe(row));
    }
    row.forEach((cost: unknown, to) => {
      if (typeof cost !== 'number' || !Number.isFinite(cost) || cost < 0 || (from === to && cost !== 0)) {
        const expected = from === to ? '0 on the diagonal' : 'a finite number of at least 0';
        throw invalid(`${field}[${from}][${to}]`, expected, describe(cost));
      }
    });
  });
  return value;
}

function parseText(text: string): unknown {
  const shape = /^\s*(\d+)\s*[x×*]\s*(\d+)\s*$/i.exec(text);
  if (shape) return { nodes: Number(shape[1]), gpusPerNode: Number(shape[2]) };
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw unreadable(describe(text.trim()), cause);
  }
}

function unreadable(received: string, cause?: unknown): GimbalError {
  const expected =
    'nodes x GPUs per node such as 4x8, or JSON with nodes and gpusPerNode or a rank_cost_matrix';
  return mismatch('GIMBAL_FORMAT', 'topology', expected, received, cause);
}

function ns(value: number): string {
  return `${Number(value.toPrecision(4))} ns`;
}
