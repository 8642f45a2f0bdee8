/** Small seeded problems for tests that are about something other than the placement itself. */
import type { PlacementProblem } from '../../lib/index.js';

export interface Shape {
  layers: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
}

export const SMALL: Shape = { layers: 2, experts: 8, gpus: 4, slotsPerGpu: 3 };
/** The largest shape for which the event loop is promised to stay free: Kimi-K2 on 64 GPUs. */
export const KIMI_64: Shape = { layers: 60, experts: 384, gpus: 64, slotsPerGpu: 7 };

/** One source per GPU, two nodes; token counts from a fixed linear congruential stream. */
export function makeProblem(shape: Shape = SMALL, seed = 1): PlacementProblem {
  const { layers, experts, gpus, slotsPerGpu } = shape;
  let state = seed;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 22;
  };
  const half = Math.ceil(gpus / 2);
  const link = (from: number, to: number) => {
    if (from === to) return 0;
    return Math.floor(from / half) === Math.floor(to / half) ? 80 : 430;
  };
  return {
    layers,
    sources: gpus,
    experts,
    gpus,
    slotsPerGpu,
    tokens: Uint32Array.from({ length: layers * gpus * experts }, next),
    computeCost: 200,
    commCost: Float64Array.from({ length: gpus * gpus }, (_, i) => link(Math.floor(i / gpus), i % gpus)),
  };
}

/** `[layers][gpus * slotsPerGpu]`: experts dealt out in order, the first ones twice where slots are left. */
export function contiguous({ layers, experts, gpus, slotsPerGpu }: Shape): Int32Array {
  const slots = gpus * slotsPerGpu;
  return Int32Array.from({ length: layers * slots }, (_, i) => (i % slots) % experts);
}

/** Replaces a plain array by the same numbers in shared memory. */
export function shared<T extends Uint32Array | Int32Array | Float64Array>(array: T): T {
  const type = array.constructor as new (buffer: ArrayBufferLike) => T;
  const copy = new type(new SharedArrayBuffer(array.byteLength));
  copy.set(array);
  return copy;
}
