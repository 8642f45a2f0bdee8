/** The last minutes of the figures that are drawn over time. The page keeps them; the gateway does not. */
import type { GatewaySnapshot } from '../types.js';

export const HISTORY_MS = 5 * 60_000;
/** A longer pause, of a hidden tab or an outage, is no line: nobody knows what was in between. */
export const GAP_MS = 5000;

/** A figure at a time before the last snapshot; null where it is not known, which breaks the line. */
export type Point = [agoMs: number, value: number | null];

/** What is kept of a snapshot: three hundred of them with all engines and experts would be many. */
export type Moment = Omit<GatewaySnapshot, 'engines' | 'servers' | 'controller'>;
export type Figure = (moment: Moment) => number | undefined;

export class History {
  /** In the order of their times, none older than `HISTORY_MS` before the last. */
  #moments: Moment[] = [];

  add({ engines: _, servers: __, controller: ___, ...moment }: GatewaySnapshot): void {
    const last = this.#moments.at(-1);
    // A clock that was set back, or another gateway behind the same name: what was before has no place on this axis.
    if (last !== undefined && moment.timeMs < last.timeMs) this.#moments = [];
    if (moment.timeMs === this.#moments.at(-1)?.timeMs) this.#moments.pop();
    this.#moments.push(moment);
    const first = this.#moments.findIndex(({ timeMs }) => timeMs >= moment.timeMs - HISTORY_MS);
    this.#moments.splice(0, first);
  }

  points(figure: Figure): Point[] {
    const nowMs = this.#moments.at(-1)?.timeMs ?? 0;
    const points: Point[] = [];
    let lastMs: number | undefined;
    for (const moment of this.#moments) {
      const agoMs = nowMs - moment.timeMs;
      if (lastMs !== undefined && moment.timeMs - lastMs > GAP_MS) points.push([agoMs, null]);
      points.push([agoMs, figure(moment) ?? null]);
      lastMs = moment.timeMs;
    }
    return points;
  }
}
