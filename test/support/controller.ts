/** A controller over a small skewed problem, with a hook that plays the engines, and a clock that the test moves. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  type ApplyHook,
  Controller,
  type ControllerOptions,
  type PlacementChange,
  RoutingStatistics,
} from '../../lib/index.js';
import { contiguous, makeProblem, type Shape, SMALL } from './problems.js';

export { SMALL } from './problems.js';

/** What engines do with a change. */
export class FakeEngines implements ApplyHook {
  readonly changes: PlacementChange[] = [];
  /** Undefined until a plan is put in force. */
  planId: string | undefined;
  placement: Int32Array | undefined;
  /** In turn for the next calls of `apply`, after which all go well. `half`: takes it and fails; `late`: takes it and never answers. */
  faults: ('refuse' | 'half' | 'late' | 'hang' | (() => void))[] = [];
  answers = true;

  async apply(change: PlacementChange): Promise<void> {
    this.changes.push(change);
    const fault = this.faults.shift();
    if (fault === 'refuse') throw new Error('refused');
    if (fault === 'hang') return await new Promise(() => {});
    if (fault === 'half') {
      this.planId = undefined;
      this.placement = undefined;
      throw new Error('half of the engines failed');
    }
    if (typeof fault === 'function') fault();
    this.planId = change.planId;
    this.placement = change.placement;
    if (fault === 'late') await new Promise(() => {});
  }

  async verify(): Promise<string | undefined> {
    if (!this.answers) throw new Error('no answer');
    return this.planId;
  }
}

export class FakeClock {
  wall = 1_700_000_000_000;
  monotonic = 5_000;
  wallMs = () => this.wall;
  monotonicMs = () => this.monotonic;

  advance(ms: number): void {
    this.wall += ms;
    this.monotonic += ms;
  }
}

/** Observes tokens of which most choose expert `hot`, and its neighbours: `[tokens][layers][2]`. */
export function observeSkewed(statistics: RoutingStatistics, shape: Shape, hot = 0, tokens = 2000): void {
  const { layers, experts, gpus } = shape;
  const topk = new Uint8Array(tokens * layers * 2);
  for (let at = 0; at < tokens * layers; at++) {
    const spread = (at * 7 + Math.floor(at / 5)) % experts;
    topk[2 * at] = at % 3 === 0 ? spread : hot;
    topk[2 * at + 1] = (hot + 1 + (at % (experts - 1))) % experts;
    if (topk[2 * at] === topk[2 * at + 1]) topk[2 * at] = (topk[2 * at]! + 1) % experts;
  }
  for (let source = 0; source < gpus; source++) statistics.observe({ source, topk, tokens, k: 2 });
}

/** Later, when a plan may come again, other experts are hot. */
export function changeTraffic({ clock, statistics }: Pick<Rig, 'clock' | 'statistics'>): void {
  clock.advance(RULES.minIntervalMs);
  statistics.reset();
  observeSkewed(statistics, SMALL, 5);
}

const started: Controller[] = [];

/** Starts it; `stopAll` stops it after the test. */
export async function begin(controller: Controller): Promise<Controller> {
  started.push(controller);
  await controller.start();
  return controller;
}

export async function stopAll(): Promise<void> {
  for (const controller of started.splice(0)) await controller.stop();
}

export interface Rig {
  controller: Controller;
  engines: FakeEngines;
  clock: FakeClock;
  statistics: RoutingStatistics;
  options: ControllerOptions;
  folder: string;
  /** Another controller over the same files, statistics and engines: as after a restart. */
  again(over?: Partial<ControllerOptions>): Controller;
}

export const RULES = { horizonMs: 600_000, minIntervalMs: 60_000, backoffMs: 30_000, leastTokens: 64 };

export function modelOf(shape: Shape = SMALL) {
  const { tokens: _, ...problem } = makeProblem(shape);
  return problem;
}

export function rig(over: Partial<ControllerOptions> = {}, shape: Shape = SMALL): Rig {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-controller-'));
  const { layers, experts, gpus } = shape;
  const engines = new FakeEngines();
  const clock = new FakeClock();
  const statistics = new RoutingStatistics({ layers, sources: gpus, experts, windowTokens: 2 ** 16 });
  observeSkewed(statistics, shape);
  const options: ControllerOptions = {
    problem: modelOf(shape),
    statistics,
    initial: contiguous(shape),
    apply: engines,
    stateFile: path.join(folder, 'state'),
    migration: { expertBytes: 1_000_000 },
    rules: RULES,
    plan: { effort: 'fast', seed: 1, threads: 1 },
    // Looks come when the test asks for them.
    intervalMs: 2 ** 30,
    applyTimeoutMs: 100,
    verifyTimeoutMs: 100,
    tokensPerSecond: 10_000_000,
    clock,
    ...over,
  };
  return {
    engines,
    clock,
    statistics,
    options,
    folder,
    controller: new Controller(options),
    again: (more = {}) => new Controller({ ...options, ...more }),
  };
}
