/** `gimbal run`: gateway, statistics and controller as one process. */
import { type RunConfig, readRunConfig } from '../controller/run-config.js';
import { System } from '../controller/system.js';
import type { Context } from './context.js';
import { write } from './output.js';
import { serve, withoutPassword, withoutSecrets } from './serving.js';

export interface RunOptions {
  config: string;
  shadow?: boolean;
  check?: boolean;
}

export async function runCommand(options: RunOptions, context: Context): Promise<void> {
  const { output, version } = context;
  const config = await readConfig(options);
  if (options.check) {
    await write(output.stdout, `${JSON.stringify(printable(config), null, 2)}\n`);
    return;
  }
  const served = await System.create(config, { version });
  await serve({ served, read: () => readConfig(options), file: options.config }, context);
}

function readConfig({ config: file, shadow }: RunOptions): Promise<RunConfig> {
  return readRunConfig(file, shadow);
}

/** A hook's headers may hold a key, and the lease's Redis a password. */
function printable(config: RunConfig): RunConfig {
  const { hook, lease, ...rest } = config.controller;
  const controller = {
    ...rest,
    ...(hook === undefined ? {} : { hook }),
    ...(lease === undefined ? {} : { lease }),
  };
  if (hook !== undefined && 'headers' in hook) {
    const headers = Object.fromEntries(Object.keys(hook.headers).map((name) => [name, '…']));
    controller.hook = { ...hook, headers };
  }
  if (lease !== undefined && 'redis' in lease)
    controller.lease = { ...lease, redis: withoutPassword(lease.redis) };
  return withoutSecrets({ ...config, controller });
}
