/**
 * A plain simulated annealer on the exact objective, one layer at a time: random exchanges of two slots and random
 * changes of which expert a redundant slot repeats, accepted by Metropolis' rule under geometric cooling. It is the
 * yardstick for the planner's search, so it is as fast as this language allows and its cooling was tuned, but it has
 * no idea beyond that: no construction, no restarts, no bounds.
 *
 * Under `even` an exchange is judged in O(1): it changes two GPUs, and the maximum over the rest is the highest of
 * the three busiest that is not one of them. All other changes take the slow way, which redoes the experts they touch.
 */
import type { PlacementProblem } from '../../lib/types.js';
import { DEFAULT_WEIGHTS } from '../../test/reference/naive.js';
import { mix32 } from '../random.js';
import { computeCosts, expertCommTimes, expertLoads, liveGpusOf } from './common.js';
import { eplbGlobal } from './eplb.js';
import { maxWith, topThree, topTouched } from './top-three.js';

export interface AnnealOptions {
  /** Exactly one of the two budgets. Steps make the result reproducible. */
  steps?: number;
  timeMs?: number;
  seed?: number;
  /** `[gpus * slotsPerGpu]`; default: the better of the incumbent (where it fits) and global EPLB without duplicates. */
  start?: Int32Array;
  /** First temperature over J of the start. */
  hot?: number;
  /** Last temperature over J of the start. */
  cold?: number;
  /** Share of proposals that start from a slot of the GPU with the highest load or communication. */
  criticalShare?: number;
  /** Share of proposals that change which expert a slot repeats, where there are redundant slots. */
  replicateShare?: number;
}

export interface AnnealTracePoint {
  elapsedMs: number;
  steps: number;
  /** Best J so far, ns. */
  objective: number;
}

export interface AnnealResult {
  /** The best placement seen, `[gpus * slotsPerGpu]`. */
  placement: Int32Array;
  /** Its J, recomputed from scratch, ns. */
  objective: number;
  steps: number;
  elapsedMs: number;
  trace: AnnealTracePoint[];
}

/** Steps between looks at the clock and changes of temperature. */
const BLOCK_STEPS = 512;
/** Blocks between recomputations of the running sums, against rounding that adds up. */
const REFRESH_BLOCKS = 256;

export function annealLayer(problem: PlacementProblem, layer: number, options: AnnealOptions): AnnealResult {
  const { hot = 0.003, cold = 0.00002, seed = 1 } = options;
  if ((options.steps === undefined) === (options.timeMs === undefined)) {
    throw new RangeError('steps, timeMs: expected exactly one of them');
  }
  const state = new AnnealState(problem, layer, mix32(seed ^ mix32(layer)));
  state.restart(options.start ?? defaultStart(problem, layer, state));
  const startObjective = state.objective;
  const began = performance.now();
  const trace: AnnealTracePoint[] = [
    { elapsedMs: performance.now() - began, steps: 0, objective: startObjective },
  ];
  let steps = 0;
  for (let block = 0; ; block += 1) {
    const elapsedMs = performance.now() - began;
    if (state.bestObjective < trace.at(-1)!.objective)
      trace.push({ elapsedMs, steps, objective: state.bestObjective });
    const fraction = options.steps === undefined ? elapsedMs / options.timeMs! : steps / options.steps;
    if (fraction >= 1) break;
    const temperature = startObjective * hot * (cold / hot) ** fraction;
    const size = options.steps === undefined ? BLOCK_STEPS : Math.min(BLOCK_STEPS, options.steps - steps);
    state.run(size, temperature, options.criticalShare ?? 0.4, options.replicateShare ?? 0.3);
    steps += size;
    if (block % REFRESH_BLOCKS === REFRESH_BLOCKS - 1) state.refresh();
  }
  state.restart(state.bestPlacement());
  return {
    placement: state.bestPlacement(),
    objective: state.objective,
    steps,
    elapsedMs: performance.now() - began,
    trace,
  };
}

/** Every layer with the same budget each. `[layers][gpus * slotsPerGpu]` */
export function annealer(problem: PlacementProblem, options: AnnealOptions): Int32Array {
  const width = problem.gpus * problem.slotsPerGpu;
  const placement = new Int32Array(problem.layers * width);
  for (let layer = 0; layer < problem.layers; layer += 1) {
    placement.set(annealLayer(problem, layer, options).placement, layer * width);
  }
  return placement;
}

function defaultStart(problem: PlacementProblem, layer: number, state: AnnealState): Int32Array {
  const { sources, experts, gpus, slotsPerGpu } = problem;
  const tokens = problem.tokens.subarray(layer * sources * experts, (layer + 1) * sources * experts);
  const single = { ...problem, layers: 1, tokens };
  const packed = withoutDuplicates(single, eplbGlobal(single));
  const sameShape =
    (problem.incumbentGpus ?? gpus) === gpus && (problem.incumbentSlotsPerGpu ?? slotsPerGpu) === slotsPerGpu;
  if (problem.incumbent === undefined || !sameShape) return packed;
  const width = gpus * slotsPerGpu;
  const incumbent = problem.incumbent.slice(layer * width, (layer + 1) * width);
  const complete =
    liveGpusOf(problem).length === gpus && new Set(incumbent).size === experts && !incumbent.includes(-1);
  if (!complete) return packed;
  state.restart(packed);
  const packedObjective = state.objective;
  state.restart(incumbent);
  return state.objective < packedObjective ? incumbent : packed;
}

/** One layer: gives each second replica on a GPU to the expert with the heaviest replicas that the GPU lacks. */
export function withoutDuplicates(problem: PlacementProblem, slots: Int32Array): Int32Array {
  const { experts, slotsPerGpu } = problem;
  const loads = expertLoads(problem, 0);
  const repaired = slots.slice();
  const replicas = new Int32Array(experts);
  for (const e of slots) if (e >= 0) replicas[e] = replicas[e]! + 1;
  for (let slot = 0; slot < repaired.length; slot += 1) {
    const first = slot - (slot % slotsPerGpu);
    const e = repaired[slot]!;
    if (e < 0 || !repaired.subarray(first, slot).includes(e)) continue;
    const onGpu = repaired.subarray(first, first + slotsPerGpu);
    let heaviest = -1;
    for (let other = 0; other < experts; other += 1) {
      if (onGpu.includes(other)) continue;
      if (heaviest < 0 || loads[other]! / replicas[other]! > loads[heaviest]! / replicas[heaviest]!)
        heaviest = other;
    }
    replicas[e] = replicas[e]! - 1;
    replicas[heaviest] = replicas[heaviest]! + 1;
    repaired[slot] = heaviest;
  }
  return repaired;
}

/** Standard exponential draws by index, shared: a uniform table is enough for Metropolis' rule. */
const EXPONENTIALS = Float64Array.from({ length: 4096 }, (_, i) => -Math.log((i + 0.5) / 4096));

class AnnealState {
  objective = 0;
  bestObjective = 0;
  private readonly even: boolean;
  private readonly gpus: number;
  private readonly experts: number;
  private readonly sources: number;
  private readonly slotsPerGpu: number;
  /** Live slots, in order of their GPUs; `slotIds` gives their place in the problem's layout. */
  private readonly slotIds: Int32Array;
  private readonly slotGpu: Int32Array;
  private readonly slots: Int32Array;
  private readonly best: Int32Array;
  /** First live slot of each GPU, −1 where dead. */
  private readonly firstSlot: Int32Array;
  /** `[experts]`, tokens */
  private readonly tokens: Float64Array;
  /** `[sources][experts]` of this layer, for `nearest` */
  private readonly tokensBySource: Uint32Array;
  /** `[experts][gpus]`, communication time of all of e's tokens on g */
  private readonly commTime: Float64Array;
  /** `[experts][gpus]`, what holding e on g costs as a migration */
  private readonly moveCost: Float64Array;
  private readonly commCost: Float64Array;
  private readonly cost: Float64Array;
  /** `[experts][gpus]`, slots of g that hold e */
  private readonly held: Uint8Array;
  private readonly replicas: Int32Array;
  /** `[experts]`, 1 / replicas */
  private readonly inverse: Float64Array;
  private readonly load: Float64Array;
  private readonly comm: Float64Array;
  private readonly savedLoad: Float64Array;
  private readonly savedComm: Float64Array;
  private moves = 0;
  private commTotal = 0;
  private readonly hosts: Int32Array;
  private readonly loadTop = Int32Array.of(-1, -1, -1);
  private readonly commTop = Int32Array.of(-1, -1, -1);
  private readonly weightLoad: number;
  private readonly weightComm: number;
  private readonly weightTotal: number;
  private randomState: number;

  constructor(problem: PlacementProblem, layer: number, seed: number) {
    const { sources, experts, gpus, slotsPerGpu } = problem;
    const weights = { ...DEFAULT_WEIGHTS, ...problem.weights };
    const live = liveGpusOf(problem);
    this.even = problem.replicaChoice !== 'nearest';
    this.gpus = gpus;
    this.experts = experts;
    this.sources = sources;
    this.slotsPerGpu = slotsPerGpu;
    this.slotIds = Int32Array.from(
      live.flatMap((g) => Array.from({ length: slotsPerGpu }, (_, k) => g * slotsPerGpu + k)),
    );
    this.slotGpu = this.slotIds.map((id) => Math.floor(id / slotsPerGpu));
    this.slots = new Int32Array(this.slotIds.length);
    this.best = new Int32Array(gpus * slotsPerGpu).fill(-1);
    this.firstSlot = new Int32Array(gpus).fill(-1);
    for (const [i, g] of live.entries()) this.firstSlot[g] = i * slotsPerGpu;
    this.tokens = expertLoads(problem, layer);
    this.tokensBySource = problem.tokens.subarray(layer * sources * experts, (layer + 1) * sources * experts);
    this.commTime = expertCommTimes(problem, layer);
    this.commCost = problem.commCost;
    this.cost = computeCosts(problem);
    this.moveCost = moveCosts(problem, layer, weights.migration * (problem.migrationCost ?? 0));
    this.held = new Uint8Array(experts * gpus);
    this.replicas = new Int32Array(experts);
    this.inverse = new Float64Array(experts);
    this.load = new Float64Array(gpus);
    this.comm = new Float64Array(gpus);
    this.savedLoad = new Float64Array(gpus);
    this.savedComm = new Float64Array(gpus);
    this.hosts = new Int32Array(this.slotIds.length);
    this.weightLoad = weights.load;
    this.weightComm = weights.commMax;
    this.weightTotal = weights.commTotal / gpus;
    this.randomState = seed | 1;
  }

  /** Takes `placement` `[gpus * slotsPerGpu]` as the current one and as the best so far. */
  restart(placement: Int32Array): void {
    for (let i = 0; i < this.slots.length; i += 1) this.slots[i] = placement[this.slotIds[i]!]!;
    this.held.fill(0);
    this.replicas.fill(0);
    for (let i = 0; i < this.slots.length; i += 1) this.count(this.slots[i]!, this.slotGpu[i]!, 1);
    this.refresh();
    this.keepBest();
  }

  bestPlacement(): Int32Array {
    return this.best.slice();
  }

  /** Recomputes all sums from the slots. */
  refresh(): void {
    this.load.fill(0);
    this.comm.fill(0);
    this.moves = 0;
    for (let e = 0; e < this.experts; e += 1) this.spread(e, 1);
    this.objective = this.sumUp();
    this.rank();
  }

  private keepBest(): void {
    this.bestObjective = this.objective;
    for (let i = 0; i < this.slots.length; i += 1) this.best[this.slotIds[i]!] = this.slots[i]!;
  }

  private count(e: number, g: number, by: number): void {
    this.held[e * this.gpus + g] = this.held[e * this.gpus + g]! + by;
    const replicas = this.replicas[e]! + by;
    this.replicas[e] = replicas;
    this.inverse[e] = 1 / replicas;
  }

  /** Adds (or with sign −1 takes away) everything expert e puts on its GPUs. */
  private spread(e: number, sign: number): void {
    const row = e * this.gpus;
    for (let g = 0; g < this.gpus; g += 1) {
      const copies = this.held[row + g]!;
      if (copies === 0) continue;
      this.moves += sign * this.moveCost[row + g]!;
      if (!this.even) continue;
      const share = sign * copies * this.inverse[e]!;
      this.load[g] = this.load[g]! + share * this.tokens[e]! * this.cost[g]!;
      this.comm[g] = this.comm[g]! + share * this.commTime[row + g]!;
    }
    if (!this.even) this.spreadNearest(e, sign);
  }

  /** Each source of e splits its tokens over the replicas that are nearest to it. */
  private spreadNearest(e: number, sign: number): void {
    const { hosts, commCost, gpus } = this;
    let count = 0;
    for (let g = 0; g < gpus; g += 1) {
      for (let copies = this.held[e * gpus + g]!; copies > 0; copies -= 1) hosts[count++] = g;
    }
    for (let s = 0; s < this.sources; s += 1) {
      let least = Number.POSITIVE_INFINITY;
      let ties = 0;
      for (let i = 0; i < count; i += 1) {
        const cost = commCost[s * gpus + hosts[i]!]!;
        ties = cost < least ? 1 : cost === least ? ties + 1 : ties;
        least = Math.min(least, cost);
      }
      const share = (sign * this.tokensBySource[s * this.experts + e]!) / ties;
      for (let i = 0; i < count; i += 1) {
        const g = hosts[i]!;
        if (commCost[s * gpus + g] !== least) continue;
        this.load[g] = this.load[g]! + share * this.cost[g]!;
        this.comm[g] = this.comm[g]! + share * least;
      }
    }
  }

  /** J of the current sums. */
  private sumUp(): number {
    let loadMax = 0;
    let commMax = 0;
    let total = 0;
    for (let g = 0; g < this.gpus; g += 1) {
      const load = this.load[g]!;
      const comm = this.comm[g]!;
      if (load > loadMax) loadMax = load;
      if (comm > commMax) commMax = comm;
      total += comm;
    }
    this.commTotal = total;
    return this.weightLoad * loadMax + this.weightComm * commMax + this.weightTotal * total + this.moves;
  }

  private rank(): void {
    topThree(this.load, this.loadTop);
    topThree(this.comm, this.commTop);
  }

  /**
   * `steps` proposals at one temperature. The exchange under `even` is written out here over local variables, since
   * nearly all the time goes there.
   */
  run(steps: number, temperature: number, criticalShare: number, replicateShare: number): void {
    const { slots, slotGpu, held, tokens, inverse, commTime, moveCost, cost, load, comm, loadTop, commTop } =
      this;
    const { gpus, slotsPerGpu, weightLoad, weightComm, weightTotal } = this;
    const slotCount = slots.length;
    const criticalBelow = criticalShare * 2 ** 32;
    const replicateBelow = (slotCount > this.experts ? replicateShare : 0) * 2 ** 32;
    let random = this.randomState;
    for (let step = 0; step < steps; step += 1) {
      random = xorshift(random);
      const kind = random >>> 0;
      random = xorshift(random);
      let a = ((random >>> 0) * (slotCount / 2 ** 32)) | 0;
      if (kind < criticalBelow) {
        const busiest = weightComm > 0 && (kind & 1) === 1 ? commTop[0]! : loadTop[0]!;
        a = this.firstSlot[busiest]! + (((random >>> 0) * (slotsPerGpu / 2 ** 32)) | 0);
      }
      random = xorshift(random);
      const pick = random >>> 0;
      random = xorshift(random);
      const slack = temperature * EXPONENTIALS[(random >>> 8) & 4095]!;
      random = xorshift(random);
      if (random >>> 0 < replicateBelow) {
        this.proposeRepeat(a, (pick * (this.experts / 2 ** 32)) | 0, slack);
        continue;
      }
      const b = (pick * (slotCount / 2 ** 32)) | 0;
      const ga = slotGpu[a]!;
      const gb = slotGpu[b]!;
      const ea = slots[a]!;
      const eb = slots[b]!;
      if (ga === gb || ea === eb) continue;
      const aa = ea * gpus + ga;
      const ab = ea * gpus + gb;
      const ba = eb * gpus + ga;
      const bb = eb * gpus + gb;
      if (held[ab] !== 0 || held[ba] !== 0) continue;
      if (!this.even || held[aa] !== 1 || held[bb] !== 1) {
        this.proposeChange(a, eb, b, ea, slack);
        continue;
      }
      const shareA = inverse[ea]!;
      const shareB = inverse[eb]!;
      const gain = tokens[eb]! * shareB - tokens[ea]! * shareA;
      const loadA = load[ga]! + cost[ga]! * gain;
      const loadB = load[gb]! - cost[gb]! * gain;
      const commA = comm[ga]! + commTime[ba]! * shareB - commTime[aa]! * shareA;
      const commB = comm[gb]! + commTime[ab]! * shareA - commTime[bb]! * shareB;
      const commTotal = this.commTotal + (commA - comm[ga]!) + (commB - comm[gb]!);
      const moves = this.moves + (moveCost[ba]! + moveCost[ab]! - moveCost[aa]! - moveCost[bb]!);
      const objective =
        weightLoad * maxWith(load, loadTop, ga, gb, loadA, loadB) +
        weightComm * maxWith(comm, commTop, ga, gb, commA, commB) +
        weightTotal * commTotal +
        moves;
      if (objective - this.objective > slack) continue;
      slots[a] = eb;
      slots[b] = ea;
      held[aa] = 0;
      held[bb] = 0;
      held[ab] = 1;
      held[ba] = 1;
      load[ga] = loadA;
      load[gb] = loadB;
      comm[ga] = commA;
      comm[gb] = commB;
      this.commTotal = commTotal;
      this.moves = moves;
      this.objective = objective;
      if (topTouched(load, loadTop, ga, gb, loadA, loadB)) topThree(load, loadTop);
      if (topTouched(comm, commTop, ga, gb, commA, commB)) topThree(comm, commTop);
      if (objective < this.bestObjective) this.keepBest();
    }
    this.randomState = random;
  }

  /** Slot `a`, which must repeat an expert that has other replicas, repeats `e` instead. */
  private proposeRepeat(a: number, e: number, slack: number): void {
    const old = this.slots[a]!;
    if (e === old || this.replicas[old]! < 2 || this.held[e * this.gpus + this.slotGpu[a]!] !== 0) return;
    this.proposeChange(a, e, -1, -1, slack);
  }

  /** Puts `ea` into slot a and, where b ≥ 0, `eb` into slot b; takes it back where J rises by more than `slack`. */
  private proposeChange(a: number, ea: number, b: number, eb: number, slack: number): void {
    const oldA = this.slots[a]!;
    const oldMoves = this.moves;
    const oldTotal = this.commTotal;
    this.savedLoad.set(this.load);
    this.savedComm.set(this.comm);
    // An exchange touches the same two experts from both slots, so these two are all.
    this.spread(oldA, -1);
    this.spread(ea, -1);
    this.change(a, ea);
    if (b >= 0) this.change(b, eb);
    this.spread(oldA, 1);
    this.spread(ea, 1);
    const objective = this.sumUp();
    if (objective - this.objective <= slack) {
      this.objective = objective;
      this.rank();
      if (objective < this.bestObjective) this.keepBest();
      return;
    }
    this.change(a, oldA);
    if (b >= 0) this.change(b, ea);
    this.load.set(this.savedLoad);
    this.comm.set(this.savedComm);
    this.moves = oldMoves;
    this.commTotal = oldTotal;
  }

  private change(slot: number, e: number): void {
    this.count(this.slots[slot]!, this.slotGpu[slot]!, -1);
    this.slots[slot] = e;
    this.count(e, this.slotGpu[slot]!, 1);
  }
}

function xorshift(value: number): number {
  let x = value;
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return x;
}

/** `[experts][gpus]`: `cost` where the incumbent lacks the pair, 0 elsewhere. */
function moveCosts(problem: PlacementProblem, layer: number, cost: number): Float64Array {
  const { experts, gpus } = problem;
  if (problem.incumbent === undefined) return new Float64Array(experts * gpus);
  const costs = new Float64Array(experts * gpus).fill(cost);
  const hadGpus = problem.incumbentGpus ?? gpus;
  const hadSlots = problem.incumbentSlotsPerGpu ?? problem.slotsPerGpu;
  for (let g = 0; g < Math.min(gpus, hadGpus); g += 1) {
    for (let k = 0; k < hadSlots; k += 1) {
      const e = problem.incumbent[(layer * hadGpus + g) * hadSlots + k]!;
      if (e >= 0) costs[e * gpus + g] = 0;
    }
  }
  return costs;
}
