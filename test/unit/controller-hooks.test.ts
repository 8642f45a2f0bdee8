/** Hooks: a program, a server, and a folder that an operator watches. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { commandHook, fileHook, httpHook, type PlacementChange } from '../../lib/index.js';

const folder = () => fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-hook-'));
const never = () => new AbortController().signal;
const CHANGE: PlacementChange = {
  planId: '0a0b0c0d-7',
  previousPlanId: '0a0b0c0d-6',
  placement: Int32Array.from([0, 1, 1, 0]),
  previous: Int32Array.from([1, 0, 0, 1]),
  previousGpus: 2,
  previousSlotsPerGpu: 1,
  layers: 2,
  gpus: 2,
  slotsPerGpu: 1,
  file: '/somewhere/placement.json',
  isRollback: false,
  fencingToken: 9,
};
const WIRE = {
  version: 1,
  planId: '0a0b0c0d-7',
  previousPlanId: '0a0b0c0d-6',
  fencingToken: 9,
  isRollback: false,
  layers: 2,
  gpus: 2,
  slotsPerGpu: 1,
  previousGpus: 2,
  previousSlotsPerGpu: 1,
  file: '/somewhere/placement.json',
  physicalToLogical: [
    [0, 1],
    [1, 0],
  ],
  previousPhysicalToLogical: [
    [1, 0],
    [0, 1],
  ],
};

describe('a command', () => {
  const node = (script: string) => [process.execPath, '-e', script];

  it('gets the change on its input and its names in the environment', async () => {
    const out = path.join(folder(), 'out');
    const script = `
      const text = require('fs').readFileSync(0, 'utf8');
      const { GIMBAL_PLAN_ID, GIMBAL_FENCING_TOKEN, GIMBAL_IS_ROLLBACK, GIMBAL_PLACEMENT_FILE, OWN } = process.env;
      require('fs').writeFileSync(process.argv[1], JSON.stringify({ change: JSON.parse(text),
        env: [GIMBAL_PLAN_ID, GIMBAL_FENCING_TOKEN, GIMBAL_IS_ROLLBACK, GIMBAL_PLACEMENT_FILE, OWN] }));`;
    const hook = commandHook({ command: [...node(script), out], env: { OWN: '$HOME;' } });
    await hook.apply(CHANGE, never());
    expect(JSON.parse(fs.readFileSync(out, 'utf8'))).toEqual({
      change: WIRE,
      env: ['0a0b0c0d-7', '9', '0', '/somewhere/placement.json', '$HOME;'],
    });
    expect(hook.verify).toBeUndefined();
  });

  it('that ends otherwise than with 0 has failed, and says why', async () => {
    const hook = commandHook({ command: node(`console.error('no quorum'); process.exit(3)`) });
    await expect(hook.apply(CHANGE, never())).rejects.toThrow(/exit code 0 but received 3: no quorum/);
  });

  it('that is not there has failed', async () => {
    const hook = commandHook({ command: ['/nowhere/at-all'] });
    await expect(hook.apply(CHANGE, never())).rejects.toMatchObject({ code: 'GIMBAL_IO' });
  });

  it('is killed with all that it started once its time is up', async () => {
    const alive = path.join(folder(), 'alive');
    const grandchild = `setInterval(() => require('fs').writeFileSync(${JSON.stringify(alive)}, String(Date.now())), 20)`;
    const script = `require('child_process').spawn(process.execPath, ['-e', ${JSON.stringify(grandchild)}]); setInterval(() => {}, 1000)`;
    const abort = new AbortController();
    const applied = commandHook({ command: node(script) }).apply(CHANGE, abort.signal);
    while (!fs.existsSync(alive)) await sleep(10);
    abort.abort(new Error('time is up'));
    await expect(applied).rejects.toThrow('time is up');
    await sleep(100);
    const last = fs.readFileSync(alive, 'utf8');
    await sleep(200);
    expect(fs.readFileSync(alive, 'utf8')).toBe(last);
  });

  it('says which plan is in force, or that it cannot tell', async () => {
    const saying = (script: string) =>
      commandHook({ command: ['true'], verify: node(script) }).verify!(never());
    expect(await saying(`console.log('0a0b0c0d-7')`)).toBe('0a0b0c0d-7');
    expect(await saying(``)).toBeUndefined();
    expect(await saying(`console.log('0a0b0c0d-7'); process.exit(1)`)).toBeUndefined();
  });

  it.each([[[]], ['true'], [['']]])('must be a program and its arguments, not %j', (command) => {
    expect(() => commandHook({ command: command as string[] })).toThrow(/options.command/);
  });
});

describe('a server', () => {
  let server: http.Server | undefined;
  afterEach(() => server?.close());

  async function serve(
    answer: (request: http.IncomingMessage, body: string, response: http.ServerResponse) => void,
  ) {
    server = http.createServer((request, response) => {
      let body = '';
      request.on('data', (chunk) => {
        body += chunk;
      });
      request.on('end', () => answer(request, body, response));
    });
    await new Promise<void>((resolve) => server!.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}/plan`;
  }

  it('gets the change by POST, with the headers that were asked for', async () => {
    let got: unknown;
    const url = await serve((request, body, response) => {
      const { authorization, 'x-gimbal-plan-id': id, 'x-gimbal-fencing-token': token } = request.headers;
      got = [request.method, authorization, id, token, JSON.parse(body)];
      response.writeHead(204).end();
    });
    await httpHook({ url, headers: { authorization: 'Bearer x' } }).apply(CHANGE, never());
    expect(got).toEqual(['POST', 'Bearer x', '0a0b0c0d-7', '9', WIRE]);
  });

  it.each([409, 500, 302])('that answers %i has not taken it', async (status) => {
    const url = await serve((_, __, response) =>
      response.writeHead(status, { location: '/' }).end('stale token'),
    );
    await expect(httpHook({ url }).apply(CHANGE, never())).rejects.toThrow(`${status} stale token`);
  });

  it('that does not answer is left', async () => {
    const url = await serve(() => {});
    const abort = new AbortController();
    setTimeout(() => abort.abort(new Error('time is up')), 50);
    await expect(httpHook({ url }).apply(CHANGE, abort.signal)).rejects.toThrow('time is up');
    server!.closeAllConnections();
  });

  it('says which plan is in force', async () => {
    let said = '{"planId": "0a0b0c0d-7"}';
    const url = await serve((_, __, response) => response.end(said));
    const hook = httpHook({ url, verifyUrl: url });
    expect(await hook.verify!(never())).toBe('0a0b0c0d-7');
    said = '{"planId": null}';
    expect(await hook.verify!(never())).toBeUndefined();
    said = 'what?';
    await expect(hook.verify!(never())).rejects.toThrow();
  });

  it('must have an HTTP URL, which is not repeated', () => {
    expect(() => httpHook({ url: 'ftp://user:secret@host/' })).toThrow(/^(?!.*secret).*options.url/);
  });
});

describe('a folder', () => {
  it('gets the change, then the manifest, and is waited on until it is acknowledged', async () => {
    const where = path.join(folder(), 'made');
    const hook = fileHook({ folder: where, pollMs: 5 });
    expect(await hook.verify!(never())).toBeUndefined();
    let isDone = false;
    const applied = hook.apply(CHANGE, never()).then(() => {
      isDone = true;
    });
    while (!fs.existsSync(path.join(where, 'manifest.json'))) await sleep(5);
    const text = fs.readFileSync(path.join(where, 'change.json'));
    expect(JSON.parse(text.toString())).toEqual(WIRE);
    expect(JSON.parse(fs.readFileSync(path.join(where, 'manifest.json'), 'utf8'))).toEqual({
      version: 1,
      planId: CHANGE.planId,
      previousPlanId: CHANGE.previousPlanId,
      fencingToken: 9,
      isRollback: false,
      file: CHANGE.file,
      sha256: createHash('sha256').update(text).digest('hex'),
    });
    for (const other of ['', '{', '{"planId": 7}', '{"planId": "0a0b0c0d-6"}']) {
      fs.writeFileSync(path.join(where, 'acknowledged.json'), other);
      await sleep(20);
      expect(isDone, other).toBe(false);
    }
    fs.writeFileSync(path.join(where, 'acknowledged.json'), '{"planId": "0a0b0c0d-7"}');
    await applied;
    expect(await hook.verify!(never())).toBe(CHANGE.planId);
  });

  it('that nobody watches is left once time is up', async () => {
    const abort = new AbortController();
    setTimeout(() => abort.abort(new Error('time is up')), 30);
    await expect(fileHook({ folder: folder(), pollMs: 5 }).apply(CHANGE, abort.signal)).rejects.toThrow();
  });
});
