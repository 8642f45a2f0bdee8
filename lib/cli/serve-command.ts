/** `gimbal serve`: the gateway as a process, from its options and its file to the last request. */
import { checkGatewayOptions, type GatewayConfig, readGatewayConfig } from '../gateway/config.js';
import { Gateway } from '../gateway/gateway.js';
import { present } from '../present.js';
import type { Context } from './context.js';
import { UsageError } from './exit.js';
import { write } from './output.js';
import { serve, withoutSecrets } from './serving.js';

export interface ServeOptions {
  config?: string;
  engines?: string[];
  host?: string;
  port?: number;
  adminPort?: number;
  policy?: string;
  maxInFlight?: number;
  queueCapacity?: number;
  gateways?: number;
  apiKeysFile?: string;
  tlsCert?: string;
  tlsKey?: string;
  redis?: string;
  extProcPort?: number;
  logLevel?: string;
  check?: boolean;
}

export async function serveCommand(options: ServeOptions, context: Context): Promise<void> {
  const { output, version } = context;
  if (options.config === undefined && options.engines === undefined) {
    throw new UsageError('there is nothing to serve', 'name the servers by --engines, or a file by --config');
  }
  const config = await readConfig(options);
  if (options.check) {
    await write(output.stdout, `${JSON.stringify(withoutSecrets(config), null, 2)}\n`);
    return;
  }
  const served = await Gateway.create(config, { version });
  await serve({ served, read: () => readConfig(options), file: options.config }, context);
}

function readConfig(options: ServeOptions): Promise<GatewayConfig> {
  const given = optionsGiven(options);
  if (options.config === undefined) return Promise.resolve(checkGatewayOptions(given, 'options'));
  return readGatewayConfig(options.config, given);
}

/** What the command line says, in the words of the file. */
function optionsGiven(options: ServeOptions): Record<string, unknown> {
  const { host, port, adminPort, tlsCert, tlsKey, redis, extProcPort } = options;
  if ((tlsCert === undefined) !== (tlsKey === undefined)) {
    throw new UsageError('TLS takes a certificate and its key', 'give both --tls-cert and --tls-key');
  }
  return present({
    servers: options.engines?.map(parseServer),
    policy: options.policy,
    gateways: options.gateways,
    apiKeysFile: options.apiKeysFile,
    listen: group({ host, port, tls: tlsCert === undefined ? undefined : { cert: tlsCert, key: tlsKey } }),
    admin: adminPort === undefined ? undefined : group({ host, port: adminPort }),
    admission: group({ maxInFlight: options.maxInFlight }),
    queue: group({ capacity: options.queueCapacity }),
    redis: group({ url: redis }),
    extProc: extProcPort === undefined ? undefined : group({ host, port: extProcPort }),
    log: group({ level: options.logLevel }),
  });
}

const SERVER_KEYS = ['ranks', 'kind', 'group'];

/** `http://10.0.0.1:8000,ranks=4,kind=vllm` */
function parseServer(text: string): Record<string, unknown> {
  const [url = '', ...rest] = text.split(',');
  const server: Record<string, unknown> = { url };
  for (const part of rest) {
    const [key = '', value = ''] = part.split('=');
    if (!SERVER_KEYS.includes(key) || value === '') {
      throw new UsageError(
        `--engines: ${JSON.stringify(part)} is not one of ${SERVER_KEYS.join('=…, ')}=…`,
        'e.g. --engines http://10.0.0.1:8000,ranks=4,kind=vllm',
      );
    }
    server[key] = key === 'ranks' ? Number(value) : value;
  }
  return server;
}

function group(fields: Record<string, unknown>): Record<string, unknown> | undefined {
  const given = present(fields);
  return Object.keys(given).length === 0 ? undefined : given;
}
