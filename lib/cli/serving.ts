/** What the commands that run until they are told to stop have in common: the file is read again while they run, and secrets are not printed. */
import { unwatchFile, watchFile } from 'node:fs';
import type { GatewayConfig } from '../gateway/config.js';
import type { Context } from './context.js';
import { write } from './output.js';

/** Mounted files change by a rename of a folder above them, which watchers of files do not see; so it is looked at. */
const WATCH_MS = 1000;

export interface Served<Config> {
  /** Where it can be reached, to be printed. */
  listen(): Promise<object>;
  reload(config: Config): Promise<unknown>;
  reloadFailed(error: Error): void;
  close(): Promise<void>;
}

export interface Serving<Config> {
  served: Served<Config>;
  /** Read again when told to, and when the file changes. */
  read(): Promise<Config>;
  file: string | undefined;
}

/** Until the context's signal, and then until all is over. */
export async function serve<Config>(serving: Serving<Config>, context: Context): Promise<void> {
  const { served } = serving;
  let stopWatching = () => {};
  try {
    const urls = await served.listen();
    stopWatching = watch(serving, context);
    await write(context.output.stdout, `${JSON.stringify(urls)}\n`);
    await aborted(context.signal);
  } finally {
    stopWatching();
    await served.close();
  }
}

/** Returns what ends the watch. */
function watch<Config>({ served, read, file }: Serving<Config>, { onHangUp }: Context): () => void {
  let running = Promise.resolve();
  const reload = () => {
    // One after the other, so that the last one stays.
    running = running.then(async () => {
      try {
        await served.reload(await read());
      } catch (error) {
        served.reloadFailed(error instanceof Error ? error : new Error(String(error)));
      }
    });
  };
  onHangUp(reload);
  if (file === undefined) return () => undefined;
  watchFile(file, { interval: WATCH_MS, persistent: false }, (now, before) => {
    if (now.mtimeMs !== before.mtimeMs || now.ino !== before.ino) reload();
  });
  return () => unwatchFile(file);
}

/** For printing. */
export function withoutSecrets<Config extends GatewayConfig>(config: Config): Config {
  return {
    ...config,
    apiKeys: config.apiKeys.map(() => '…'),
    servers: config.servers.map((server) =>
      server.apiKey === undefined ? server : { ...server, apiKey: '…' },
    ),
    ...(config.redis === undefined
      ? {}
      : { redis: { ...config.redis, url: withoutPassword(config.redis.url) } }),
  };
}

export function withoutPassword(url: string): string {
  return url.replace(/(\/\/[^/@:]*:).*@/, '$1…@');
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
