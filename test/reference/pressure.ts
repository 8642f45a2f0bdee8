/**
 * Expert pressure straight from its definition: pair by pair, nothing shared with lib/controller. Tests compare against it.
 */
import type { PlacedTraffic } from '../../lib/index.js';

/** The live GPUs that serve source s's tokens of an expert in a layer; one that holds two slots stands there twice. */
export function servingGpus(traffic: PlacedTraffic, layer: number, s: number, expert: number): number[] {
  const { gpus, slotsPerGpu, placement, deadGpus = [], commCost, replicaChoice } = traffic;
  const width = gpus * slotsPerGpu;
  const hosts = [...placement.slice(layer * width, (layer + 1) * width).entries()]
    .filter(([, e]) => e === expert)
    .map(([slot]) => Math.floor(slot / slotsPerGpu))
    .filter((gpu) => !deadGpus.includes(gpu));
  if (replicaChoice !== 'nearest') return hosts;
  const least = Math.min(...hosts.map((gpu) => commCost[s * gpus + gpu]!));
  return hosts.filter((gpu) => commCost[s * gpus + gpu] === least);
}

const costOf = ({ computeCost }: PlacedTraffic, gpu: number) =>
  typeof computeCost === 'number' ? computeCost : computeCost[gpu]!;
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
const range = (count: number) => Array.from({ length: count }, (_, n) => n);

/** `[gpus]`: pairs of the source that arrive, where it sends `pairs[e]` to expert e. */
function arrivals(traffic: PlacedTraffic, layer: number, s: number, pairs: readonly number[]): number[] {
  const arriving = range(traffic.gpus).map(() => 0);
  for (const [expert, own] of pairs.entries()) {
    const serving = servingGpus(traffic, layer, s, expert);
    for (const gpu of serving) arriving[gpu]! += own / serving.length;
  }
  return arriving;
}

const rowOf = ({ tokens, sources, experts }: PlacedTraffic, layer: number, s: number) =>
  Array.from(tokens.slice((layer * sources + s) * experts, (layer * sources + s + 1) * experts));

/** `[gpus]`: load over the mean of the live ones; 1 in a layer without traffic. */
function loadRatios(traffic: PlacedTraffic, layer: number): number[] {
  const { sources, gpus, deadGpus = [] } = traffic;
  const all = range(sources).map((s) => arrivals(traffic, layer, s, rowOf(traffic, layer, s)));
  const load = range(gpus).map((gpu) => costOf(traffic, gpu) * sum(all.map((own) => own[gpu]!)));
  const mean = sum(load) / (gpus - deadGpus.length);
  return load.map((one) => (mean > 0 ? one / mean : 1));
}

export function pressureNaive(traffic: PlacedTraffic): { moePressure: number[]; commExcess: number[] } {
  const { layers, sources, gpus, commCost } = traffic;
  const moePressure: number[] = [];
  const commNs: number[] = [];
  const pairs: number[] = [];
  for (const s of range(sources)) {
    const own = range(layers).map((layer) => arrivals(traffic, layer, s, rowOf(traffic, layer, s)));
    const active = range(layers).filter((layer) => sum(own[layer]!) > 0);
    const met = active.map((layer) => {
      const ratios = loadRatios(traffic, layer);
      const all = sum(own[layer]!);
      return sum(own[layer]!.map((here, gpu) => (here / all) * ratios[gpu]!)) - 1;
    });
    moePressure.push(active.length === 0 ? 0 : sum(met) / active.length);
    commNs.push(sum(own.flatMap((row) => row.map((here, gpu) => here * commCost[s * gpus + gpu]!))));
    pairs.push(sum(own.flat()));
  }
  const mean = sum(commNs) / sum(pairs);
  const commExcess = commNs.map((ns, s) => (pairs[s]! > 0 && mean > 0 ? ns / pairs[s]! / mean - 1 : 0));
  return { moePressure, commExcess };
}

/** What tokens that make `pairs` `[layers][experts]` would meet from each source, as `ExpertPressure.of`. */
export function fingerprintNaive(traffic: PlacedTraffic, pairs: readonly number[], tokens: number) {
  const { layers, sources, experts, gpus, commCost } = traffic;
  return range(sources).map((s) => {
    let moeNs = 0;
    let commNs = 0;
    const met: number[] = [];
    for (const layer of range(layers)) {
      const own = arrivals(traffic, layer, s, pairs.slice(layer * experts, (layer + 1) * experts));
      const ratios = loadRatios(traffic, layer);
      moeNs += sum(own.map((here, gpu) => here * ratios[gpu]! * costOf(traffic, gpu))) / tokens;
      commNs += sum(own.map((here, gpu) => here * commCost[s * gpus + gpu]!)) / tokens;
      if (sum(own) > 0) met.push(sum(own.map((here, gpu) => (here / sum(own)) * ratios[gpu]!)) - 1);
    }
    return { moePressure: met.length === 0 ? 0 : sum(met) / met.length, moeNs, commNs };
  });
}
