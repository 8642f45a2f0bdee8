/**
 * The processes of the bench, started as `servers.ts MODE [UPSTREAM]`; each prints its URL as a line of JSON once it listens.
 *
 *   upstream  answers at once: a chat completion, or a stream of as many events as the body's `max_tokens`; and vLLM's metrics
 *   plain     the proxy to compare with: node:http in front, undici behind, bodies piped, nothing looked at
 */
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Pool } from 'undici';

const ANSWER = Buffer.from(
  JSON.stringify({
    id: 'chatcmpl-1',
    object: 'chat.completion',
    created: 1,
    model: 'm',
    choices: [
      { index: 0, message: { role: 'assistant', content: 'word '.repeat(64) }, finish_reason: 'stop' },
    ],
    usage: { prompt_tokens: 500, completion_tokens: 64, total_tokens: 564 },
  }),
);
const EVENT = `data: ${JSON.stringify({
  id: 'chatcmpl-1',
  object: 'chat.completion.chunk',
  created: 1,
  model: 'm',
  choices: [{ index: 0, delta: { content: 'word ' }, logprobs: null, finish_reason: null }],
})}\n\n`;
const METRICS = ['num_requests_running 1', 'num_requests_waiting 0', 'kv_cache_usage_perc 0.2']
  .map((line) => `vllm:${line.replace(' ', '{engine="0",model_name="m"} ')}\n`)
  .join('');

function upstream(request: IncomingMessage, response: ServerResponse): void {
  if (request.url === '/metrics') {
    response.end(METRICS);
    return;
  }
  const chunks: Buffer[] = [];
  request.on('data', (chunk: Buffer) => chunks.push(chunk));
  request.on('end', () => {
    const { stream, max_tokens: events } = JSON.parse(Buffer.concat(chunks).toString()) as {
      stream: boolean;
      max_tokens: number;
    };
    if (!stream) {
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': ANSWER.length });
      response.end(ANSWER);
      return;
    }
    response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' });
    let sent = 0;
    // An event of its own for each write, as engines do it.
    const next = () => {
      sent += 1;
      if (sent > events) response.end('data: [DONE]\n\n');
      else {
        response.write(EVENT);
        setImmediate(next);
      }
    };
    next();
  });
}

function plain(target: string): http.RequestListener {
  const pool = new Pool(target, { pipelining: 1 });
  return async (request, response) => {
    const { host: _, connection: __, ...headers } = request.headers;
    const answer = await pool.request({
      method: request.method as 'POST',
      path: request.url!,
      headers: headers as Record<string, string>,
      body: request,
    });
    const { connection: ___, 'transfer-encoding': ____, ...kept } = answer.headers;
    response.writeHead(answer.statusCode, kept as http.OutgoingHttpHeaders);
    answer.body.pipe(response);
  };
}

const [mode, target = ''] = process.argv.slice(2);
const server = http.createServer(mode === 'plain' ? plain(target) : upstream);
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  process.stdout.write(`${JSON.stringify({ url: `http://127.0.0.1:${port}` })}\n`);
});
