/** When GPUs are lost and come back, in order, group by group. */
import type { GpuFailure } from './types.js';

export interface GpuChange {
  atMs: number;
  /** Of the group. */
  gpu: number;
  isLoss: boolean;
}

export class FailureSchedule {
  /** By group: what has not happened yet, in order. */
  readonly #changes: GpuChange[][];

  constructor(failures: readonly GpuFailure[], gpusPerGroup: number, groups: number) {
    this.#changes = Array.from({ length: groups }, (_, group) =>
      failures
        .filter(({ gpu }) => Math.floor(gpu / gpusPerGroup) === group)
        .flatMap(({ atMs, gpu, backMs }) => [
          { atMs, gpu: gpu % gpusPerGroup, isLoss: true },
          ...(backMs === undefined ? [] : [{ atMs: backMs, gpu: gpu % gpusPerGroup, isLoss: false }]),
        ])
        // One that comes back when another is lost is back before.
        .sort((a, b) => a.atMs - b.atMs || Number(a.isLoss) - Number(b.isLoss) || a.gpu - b.gpu),
    );
  }

  /** What has happened in the group by now, each told once. */
  due(group: number, nowMs: number): GpuChange[] {
    const changes = this.#changes[group]!;
    if (changes.length === 0 || changes[0]!.atMs > nowMs) return [];
    const after = changes.findIndex(({ atMs }) => atMs > nowMs);
    return changes.splice(0, after < 0 ? changes.length : after);
  }
}
