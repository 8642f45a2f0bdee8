/**
 * Runs in a process of its own: makes one plan and prints how far the resident set rose above what it was just before,
 * when the input already lay in memory.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { planPlacement } from '../../lib/index.js';
import type { Effort } from '../../lib/types.js';
import { firstLayers, SHAPES, type ShapeName, skewedWorkload, smallProblem } from '../workloads.js';
import type { MemoryReport } from './latency.js';

interface Parameters {
  shape: ShapeName;
  nodes: number;
  layers: number;
  effort: Effort;
  seed: number;
}

const MIB = 2 ** 20;

/** Sets the kernel's high-water mark of this process back to what it holds now; elsewhere than on Linux, nothing. */
function resetPeak(): void {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // The peak then includes the start of the process, which makes the figure too large, never too small.
  }
}

function peakBytes(): number {
  try {
    const kib = /VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'latin1'))?.[1];
    if (kib !== undefined) return Number(kib) * 1024;
  } catch {
    // No /proc: the portable figure below.
  }
  return process.resourceUsage().maxRSS * 1024;
}

async function main(): Promise<void> {
  const { shape, nodes, layers, effort, seed } = JSON.parse(process.argv[2]!) as Parameters;
  const whole = skewedWorkload(SHAPES[shape], nodes, seed);
  const problem = firstLayers(whole, layers);
  // The addon and its threads are there before the measurement, as in any process that plans more than once.
  await planPlacement(smallProblem(seed), { effort: 'fast' });
  globalThis.gc?.();
  resetPeak();
  const before = process.memoryUsage.rss();
  await planPlacement(problem, { effort, seed });
  const inputBytes = problem.tokens.byteLength + problem.commCost.byteLength;
  const report: MemoryReport = {
    shape,
    effort,
    inputMiB: inputBytes / MIB,
    peakMiB: (peakBytes() - before) / MIB,
  };
  process.stdout.write(JSON.stringify(report));
}

void main();
