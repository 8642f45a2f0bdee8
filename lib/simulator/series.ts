/** Figures over time, in points of equal width; a figure of steps is weighted by their time. */
import type { Engine } from './engine.js';
import type { StepFigures } from './group.js';
import type { SimulationSeries } from './types.js';

interface Point {
  weightMs: number;
  engineImbalance: number;
  expertImbalance: number;
  stepMs: number;
  steps: number;
  running: number;
  waiting: number;
  kvUsage: number[];
}

export class Series {
  readonly #everyMs: number;
  readonly #engines: readonly Engine[];
  readonly #points = new Map<number, Point>();
  /** By the number of the point, which may have no step of its own. */
  readonly #migrations = new Map<number, number>();

  constructor(everyMs: number, engines: readonly Engine[]) {
    this.#everyMs = everyMs;
    this.#engines = engines;
  }

  /** A step began; `held` requests wait at the gateway. */
  add(nowMs: number, { ms, engineImbalance, expertImbalance }: StepFigures, held: number): void {
    const number = Math.floor(nowMs / this.#everyMs);
    let point = this.#points.get(number);
    if (point === undefined) {
      point = this.#newPoint(held);
      this.#points.set(number, point);
    }
    point.weightMs += ms;
    point.engineImbalance += ms * engineImbalance;
    point.expertImbalance += ms * expertImbalance;
    point.stepMs += ms;
    point.steps += 1;
  }

  /** Experts began to move to other GPUs. */
  moved(nowMs: number, migrations: number): void {
    const number = Math.floor(nowMs / this.#everyMs);
    this.#migrations.set(number, (this.#migrations.get(number) ?? 0) + migrations);
  }

  /** Levels are those at the point's first step. */
  #newPoint(held: number): Point {
    const sum = (of: (engine: Engine) => number) =>
      this.#engines.reduce((total, engine) => total + of(engine), 0);
    return {
      weightMs: 0,
      engineImbalance: 0,
      expertImbalance: 0,
      stepMs: 0,
      steps: 0,
      running: sum(({ running }) => running),
      waiting: held + sum(({ waiting }) => waiting),
      kvUsage: this.#engines.map(({ kv }) => kv.used / kv.blocks),
    };
  }

  finish(): SimulationSeries {
    const sorted = [...this.#points].sort(([a], [b]) => a - b);
    const column = (of: (point: Point) => number) => sorted.map(([, point]) => of(point));
    return {
      timeMs: sorted.map(([number]) => number * this.#everyMs),
      engineImbalance: column((point) => point.engineImbalance / point.weightMs),
      expertImbalance: column((point) => point.expertImbalance / point.weightMs),
      stepMs: column((point) => point.stepMs / point.steps),
      running: column(({ running }) => running),
      waiting: column(({ waiting }) => waiting),
      migrations: this.#migrationsAt(sorted.map(([number]) => number)),
      kvUsage: this.#engines.map((_, engine) => column(({ kvUsage }) => kvUsage[engine]!)),
    };
  }

  /** Moves of a time without a step count for the point that follows, or for the last one. */
  #migrationsAt(numbers: readonly number[]): number[] {
    const sums = numbers.map(() => 0);
    for (const [number, migrations] of this.#migrations) {
      const at = numbers.findIndex((point) => point >= number);
      sums[at < 0 ? sums.length - 1 : at]! += migrations;
    }
    return sums;
  }
}
