/** A Redis of the test's own, on a Unix socket in a folder of the test's. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';

/** Tests that need it are skipped by name. */
export const NO_REDIS = spawnSync('redis-server', ['--version']).error !== undefined;

export async function startRedis(folder: string): Promise<ChildProcess> {
  const nothingOnDisk = ['--save', '', '--appendonly', 'no'];
  const where = ['--port', '0', '--unixsocket', join(folder, 'redis.sock'), '--dir', folder];
  const server = spawn('redis-server', [...where, ...nothingOnDisk], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  for await (const chunk of server.stdout!.iterator({ destroyOnReturn: false })) {
    said += chunk;
    if (said.includes('ready to accept connections')) break;
  }
  server.stdout!.resume();
  return server;
}

export async function stopRedis(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  server.kill('SIGKILL');
  await once(server, 'exit');
}
