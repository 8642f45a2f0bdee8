/** `gimbal serve` as a process: what it takes from its files while it runs, and how it goes down. */

import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ask, chat, contentOf, inFlight, Stage, streamedText, until } from '../support/gateway.js';
import { GatewayProcess } from '../support/gateway-process.js';

const stage = new Stage();
let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gimbal-serve-'));
  stage.onEnd(() => rm(folder, { recursive: true }));
});
afterEach(() => stage.end());

/** Tokens of streams that are far from their end when the test acts. */
const LONG = 400;

/** By a rename, as files change that are mounted or written with care. */
async function write(name: string, content: string): Promise<string> {
  const file = join(folder, name);
  await writeFile(`${file}.new`, content);
  await rename(`${file}.new`, file);
  return file;
}

async function serve(config: object): Promise<GatewayProcess> {
  const file = await write('gateway.yaml', JSON.stringify({ listen: { port: 0 }, ...config }));
  const gateway = await GatewayProcess.start(file);
  stage.onEnd(() => gateway.stop());
  return gateway;
}

describe('gimbal serve', () => {
  it('takes keys at a SIGHUP and servers as its file changes, and nothing from a file that is wrong', async () => {
    const [before, after] = [await stage.standIn(), await stage.standIn()];
    const keys = await write('keys', '# for the tests\nfirst\n');
    const configOf = (url: string) => ({ servers: [{ url }], apiKeysFile: keys });
    const gateway = await serve(configOf(before.url));
    const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
    const statusWith = async (key: string) =>
      (await ask(gateway.url, chat('x').body, { headers: bearer(key) })).status;
    expect([await statusWith('first'), await statusWith('second')]).toEqual([200, 401]);
    await write('keys', 'second\n');
    gateway.signal('SIGHUP');
    await until(async () => expect(await statusWith('second')).toBe(200));
    expect(await statusWith('first')).toBe(401);

    const state = () => gateway.state(bearer('second'));
    await write('gateway.yaml', JSON.stringify(configOf(after.url)));
    await until(async () => expect((await state()).servers.map(({ url }) => url)).toEqual([after.url]));
    const { config } = await state();
    await write('gateway.yaml', '{"servers": [], "polcy": "gimbal"}');
    await until(async () => expect((await state()).config.error).toMatch(/gateway\.yaml: polcy|servers/));
    expect((await state()).config.loadedMs).toBe(config.loadedMs);
    const asked = before.requests.length;
    expect(await statusWith('second')).toBe(200);
    expect(before.requests).toHaveLength(asked);
    expect(gateway.log).toContainEqual(expect.objectContaining({ severityText: 'ERROR' }));

    await write('gateway.yaml', JSON.stringify(configOf(before.url)));
    await until(async () => expect((await state()).config.error).toBeUndefined());
    expect((await state()).servers.map(({ url }) => url)).toEqual([before.url]);
    expect(JSON.stringify(gateway.log)).not.toMatch(/"(first|second)"/);
  });

  it('ends where it cannot listen at all of its places', async () => {
    const taken = http.createServer();
    await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve));
    stage.onEnd(async () => void taken.close());
    const { port } = taken.address() as AddressInfo;
    const servers = ['--engines', 'http://127.0.0.1:1'];
    const { code } = await GatewayProcess.ran('serve', ...servers, '--port', '0', '--admin-port', `${port}`);
    expect(code).toBe(6);
  });

  it('prints what its configuration comes to, without the secrets in it', async () => {
    const servers = [{ url: 'http://127.0.0.1:1', apiKey: 's3cret' }];
    const redis = { url: 'rediss://gateway:s3cret:@s3cret@redis.internal:6379/0' };
    const file = await write('gateway.yaml', JSON.stringify({ servers, redis, apiKeys: ['s3cret'] }));
    const { code, stdout } = await GatewayProcess.ran('serve', '--config', file, '--check');
    expect(code).toBe(0);
    expect(stdout).not.toContain('s3cret');
    expect(JSON.parse(stdout).redis.url).toBe('rediss://gateway:…@redis.internal:6379/0');
  });

  it('ends every request that it has taken, at a SIGTERM, and then itself', async () => {
    const engines = [
      await stage.standIn({ timing: { timeScale: 1 } }),
      await stage.standIn({ timing: { timeScale: 1 } }),
    ];
    const gateway = await serve({
      servers: engines.map(({ url }) => ({ url })),
      admission: { maxInFlight: 60 },
    });
    const agent = new http.Agent({ keepAlive: true });
    let begun = 0;
    // In every stage of their way: streams that have begun, requests without an answer yet, others in the queue.
    const ask30 = (prefix: string, stream: boolean, tokens = 30) =>
      Array.from({ length: 30 }, async (_, n) => {
        const { body, answer } = chat(`${prefix} ${n}`, tokens, { stream });
        let heard = false;
        const onData = () => {
          if (!heard) begun += 1;
          heard = true;
        };
        const answered = await ask(gateway.url, body, n % 2 === 0 ? { onData, agent } : { onData });
        expect(stream ? streamedText(answered) : contentOf(answered)).toBe(answer);
        return answered.headers.connection;
      });
    const streams = [...ask30('a', true, LONG), ...ask30('b', true, LONG)];
    await until(() => expect(begun).toBe(60));
    for (const engine of engines) engine.pause();
    const others = [...ask30('c', true), ...ask30('d', false), ...ask30('e', false), ...ask30('f', true)];
    await until(async () => {
      const { queue, ...state } = await gateway.state();
      expect([inFlight({ queue, ...state }), queue.size]).toEqual([120, 60]);
    });
    gateway.signal('SIGTERM');
    const late = () => ask(gateway.url, '', { method: 'GET', path: '/healthz' });
    await until(() => expect(late()).rejects.toMatchObject({ code: 'ECONNREFUSED' }));
    for (const engine of engines) engine.resume();
    await Promise.all(streams);
    expect(new Set(await Promise.all(others))).toEqual(new Set(['close']));
    expect(await gateway.exited()).toBe(0);
    agent.destroy();
    expect(gateway.log.at(-1)).toMatchObject({ body: 'gateway is down' });
    expect(gateway.log.map(({ body }) => body)).not.toContain('requests are broken off');
    const outcomes = engines.flatMap(({ requests }) => requests.map(({ outcome }) => outcome));
    expect(outcomes).toEqual(Array(180).fill('finished'));
  });
});
