/** The host execution layer, which plays a GPU on the CPU where there is none: what is executed is real, no time of it is. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const ROOT = join(__dirname, '..', '..');
const PLUGIN = join(ROOT, 'build-tests', 'gimbal_cuda_hostlayer.so');

/** Why it cannot be used, or undefined where it can. */
export function hostlayerMissing(): string | undefined {
  return existsSync(PLUGIN) ? undefined : 'the host execution layer is not built (npm test builds it)';
}

/** Runs a TypeScript file with one argument, as JSON, in a process for which the host execution layer is the GPU. */
export async function runOnHostlayer(
  script: string,
  job: unknown,
  environment: Record<string, string> = {},
): Promise<string> {
  const argv = ['--import', 'tsx', script, JSON.stringify(job)];
  const env = { ...process.env, GIMBAL_CUDA_PLUGIN: PLUGIN, ...environment };
  const { stdout } = await promisify(execFile)(process.execPath, argv, {
    cwd: ROOT,
    env,
    maxBuffer: 2 ** 26,
  });
  return stdout;
}
