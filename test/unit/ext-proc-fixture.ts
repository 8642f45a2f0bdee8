/**
 * A data plane for tests of the endpoint picker: a gRPC client by Envoy's public protos, and a fleet that is a real scheduler and
 * no servers.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import {
  type ClientDuplexStream,
  credentials,
  type GrpcObject,
  loadPackageDefinition,
  type ServiceClientConstructor,
  type StatusObject,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { pino } from 'pino';
import { vi } from 'vitest';
import { Scheduler } from '../../lib/dispatch/scheduler.js';
import { mismatch } from '../../lib/errors.js';
import { type ExtProcOptions, ExtProcServer } from '../../lib/gateway/ext-proc/server.js';
import type { ExtProcLimits, Outcome, Picker, RequestFacts } from '../../lib/gateway/ext-proc/types.js';
import type { AcquireOptions } from '../../lib/gateway/fleet.js';
import type { Assignment, FleetEngine, FleetRequest } from '../../lib/gateway/types.js';

const PROTOS = join(dirname(createRequire(__filename).resolve('@grpc/grpc-js-xds/package.json')), 'deps');
const EXT_PROC = 'envoy/service/ext_proc/v3/external_processor.proto';
const MODES = 'envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto';

/** What Envoy's protos have got since those that the package ships; the wire's bytes of these are worked by hand in a test. */
const LATER: Record<string, [before: string, after: string][]> = {
  [EXT_PROC]: [
    ['bool observability_mode = 10;', '$& ProtocolConfiguration protocol_config = 11;'],
    ['bool clear_body = 2;', '$& StreamedBodyResponse streamed_response = 3;'],
    [
      'message BodyMutation {',
      `message StreamedBodyResponse { bytes body = 1; bool end_of_stream = 2; }
       message ProtocolConfiguration {
         envoy.extensions.filters.http.ext_proc.v3.ProcessingMode.BodySendMode request_body_mode = 1;
         envoy.extensions.filters.http.ext_proc.v3.ProcessingMode.BodySendMode response_body_mode = 2;
       }
       $&`,
    ],
  ],
  [MODES]: [['BUFFERED_PARTIAL = 3;', '$& FULL_DUPLEX_STREAMED = 4; GRPC = 5;']],
};

function loadPublicProtos(): GrpcObject {
  const patched = mkdtempSync(join(tmpdir(), 'gimbal-protos-'));
  try {
    for (const [file, edits] of Object.entries(LATER)) {
      let text = readFileSync(join(PROTOS, 'envoy-api', file), 'utf8');
      for (const [before, after] of edits) {
        if (!text.includes(before)) throw new Error(`${file} has no ${before}`);
        text = text.replace(before, after);
      }
      mkdirSync(join(patched, dirname(file)), { recursive: true });
      writeFileSync(join(patched, file), text);
    }
    const others = ['envoy-api', 'googleapis', 'protoc-gen-validate', 'xds'].map((at) => join(PROTOS, at));
    const options = { keepCase: true, oneofs: true, enums: String, includeDirs: [patched, ...others] };
    return loadPackageDefinition(loadSync(EXT_PROC, options));
  } finally {
    rmSync(patched, { recursive: true });
  }
}

interface ClientsOfEnvoy {
  envoy: { service: { ext_proc: { v3: { ExternalProcessor: ServiceClientConstructor } } } };
}
export const { ExternalProcessor } = (loadPublicProtos() as unknown as ClientsOfEnvoy).envoy.service.ext_proc
  .v3;

/** A message as the public proto names its fields. */
// biome-ignore lint/suspicious/noExplicitAny: tests reach deep into messages of every kind
export type Message = Record<string, any>;

export interface Stream {
  send(message: Message): void;
  /** Fails where the stream ends first. */
  next(): Promise<Message>;
  /** Whether a message has come that `next` has not given. */
  readonly hasMore: boolean;
  end(): void;
  cancel(): void;
  /** How the stream has ended. */
  readonly status: Promise<StatusObject>;
}

export function toStream(call: ClientDuplexStream<Message, Message>): Stream {
  const come: Message[] = [];
  const waiting: { resolve(message: Message): void; reject(error: Error): void }[] = [];
  call.on('data', (message: Message) => {
    const first = waiting.shift();
    if (first === undefined) come.push(message);
    else first.resolve(message);
  });
  call.on('error', () => {});
  const status = new Promise<StatusObject>((resolve) => call.on('status', resolve));
  let ended: StatusObject | undefined;
  const overMessage = () => new Error(`the stream ended: ${ended?.code} ${ended?.details}`);
  void status.then((how) => {
    ended = how;
    for (const { reject } of waiting.splice(0)) reject(overMessage());
  });
  return {
    status,
    send: (message) => void call.write(message),
    next: () =>
      new Promise((resolve, reject) => {
        const first = come.shift();
        if (first !== undefined) resolve(first);
        else if (ended !== undefined) reject(overMessage());
        else waiting.push({ resolve, reject });
      }),
    get hasMore() {
      return come.length > 0;
    },
    end: () => call.end(),
    cancel: () => call.cancel(),
  };
}

/** A fleet of servers that nobody asks anything. */
export class FakeFleet implements Picker {
  readonly targets: FleetEngine[];
  readonly scheduler: Scheduler;
  /** Instead of picking: requests wait until they are let go, or acquire throws. */
  hold = false;
  refusal: Error | undefined;
  readonly waiting = new Set<() => void>();
  readonly requests: FleetRequest[] = [];
  readonly failures: string[] = [];
  readonly successes: string[] = [];
  readonly aborted: string[] = [];

  constructor(urls: readonly string[], ranks = 1, headers: Record<string, string> = {}) {
    this.targets = urls.flatMap((url, at) => {
      const server = { url, kind: 'vllm' as const, pins: ranks > 1, headers };
      return Array.from({ length: ranks }, (_, rank) => {
        return { engine: at * ranks + rank, name: `${url}#${rank}`, server, rank };
      });
    });
    this.scheduler = new Scheduler({ engines: this.targets.length });
  }

  get inFlight(): number {
    return this.scheduler.inFlight;
  }

  get prefillInFlightMs(): number {
    return this.scheduler.pressure().reduce((sum, { inFlightPrefillMs }) => sum + inFlightPrefillMs, 0);
  }

  async acquire(request: FleetRequest, { signal, only }: AcquireOptions): Promise<Assignment> {
    signal?.throwIfAborted();
    this.requests.push(request);
    if (this.refusal !== undefined) throw this.refusal;
    if (this.hold) await this.#wait(request.id, signal!);
    const { id, promptTokens, streams } = request;
    const excluding = this.targets.filter((target) => only?.(target) === false).map(({ engine }) => engine);
    const { engine, pressure, reason } = this.scheduler.dispatch({ id, promptTokens, streams, excluding });
    return {
      target: this.targets[engine]!,
      pressureMs: pressure,
      reason,
      waitedMs: 0,
      firstToken: () => void this.scheduler.firstToken(id),
      finished: () => void this.scheduler.finished(id),
      failed: () => void this.scheduler.failed(id),
    };
  }

  letGo(): void {
    for (const go of this.waiting) go();
  }

  reportFailure(target: FleetEngine, reason: string): void {
    this.failures.push(`${target.name} ${reason}`);
  }

  reportSuccess(target: FleetEngine): void {
    this.successes.push(target.name);
  }

  #wait(id: string, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const go = () => {
        this.waiting.delete(go);
        resolve();
      };
      this.waiting.add(go);
      signal.addEventListener('abort', () => {
        this.waiting.delete(go);
        this.aborted.push(id);
        reject(signal.reason);
      });
    });
  }
}

const LIMITS: ExtProcLimits = { bodyBytes: 100_000, requestMs: 30_000, firstByteMs: 30_000, idleMs: 30_000 };

export interface SetUp extends Partial<Pick<ExtProcOptions, 'credentials' | 'inspect' | 'isReady' | 'log'>> {
  fleet?: FakeFleet;
  limits?: Partial<ExtProcLimits>;
}

/** A server, a fleet behind it and a client in front. */
export async function setUp(options: SetUp = {}) {
  const {
    fleet = new FakeFleet(['http://10.0.0.1:8000', 'http://10.0.0.2:8000']),
    limits,
    ...more
  } = options;
  const outcomes: Outcome[] = [];
  const refused: string[] = [];
  const inspected: { path: string; body: string; headers: Record<string, string | undefined> }[] = [];
  const server = new ExtProcServer({
    picker: fleet,
    inspect: (path, body, headers) => {
      inspected.push({ path, body: body.toString(), headers });
      return factsOf(body);
    },
    log: pino({ level: 'silent' }),
    limits: { ...LIMITS, ...limits },
    events: {
      ended: (outcome) => outcomes.push(outcome),
      refused: (path, status) => refused.push(`${status} ${path}`),
    },
    ...more,
  });
  const port = await server.listen('127.0.0.1', 0);
  const client = new ExternalProcessor(`127.0.0.1:${port}`, credentials.createInsecure());
  return {
    fleet,
    server,
    port,
    client,
    outcomes,
    refused,
    inspected,
    open: () => toStream(client.Process!()),
    close: async () => {
      client.close();
      await server.drain(0);
    },
  };
}

/** The body's own say, `{"prompt": tokens, "stream": …}`. */
function factsOf(body: Buffer): RequestFacts {
  let fields: { prompt: number; stream?: boolean };
  try {
    fields = JSON.parse(body.toString());
  } catch {
    throw mismatch('GIMBAL_FORMAT', 'body', 'JSON', 'something else');
  }
  return { model: 'm', promptTokens: fields.prompt, streams: fields.stream === true };
}

export type Mode = 'NONE' | 'STREAMED' | 'BUFFERED' | 'BUFFERED_PARTIAL' | 'FULL_DUPLEX_STREAMED';

export const toHeaderMap = (headers: Record<string, string>) => ({
  headers: Object.entries(headers).map(([key, value]) => ({ key, raw_value: Buffer.from(value) })),
});

export interface RequestOptions {
  modes?: [request: Mode, response: Mode];
  headers?: Record<string, string>;
  endOfStream?: boolean;
  subset?: Message;
}

/** The first message of a stream. */
export function requestHeaders(options: RequestOptions = {}): Message {
  const { modes, headers = {}, endOfStream = false, subset } = options;
  const all = {
    ':method': 'POST',
    ':path': '/v1/completions?a=b',
    ':authority': 'models.example',
    ...headers,
  };
  return {
    request_headers: { headers: toHeaderMap(all), end_of_stream: endOfStream },
    ...(modes === undefined
      ? {}
      : { protocol_config: { request_body_mode: modes[0], response_body_mode: modes[1] } }),
    ...(subset === undefined
      ? {}
      : {
          metadata_context: {
            filter_metadata: {
              'envoy.lb.subset_hint': { fields: { 'x-gateway-destination-endpoint-subset': subset } },
            },
          },
        }),
  };
}

export const requestBody = (body: string, endOfStream: boolean): Message => ({
  request_body: { body: Buffer.from(body), end_of_stream: endOfStream },
});

export const responseHeaders = (
  status = 200,
  { endOfStream = false, type = 'application/json', served = '' } = {},
): Message => ({
  response_headers: {
    headers: toHeaderMap({ ':status': String(status), 'content-type': type }),
    end_of_stream: endOfStream,
  },
  ...(served === ''
    ? {}
    : {
        metadata_context: {
          filter_metadata: {
            'envoy.lb': { fields: { 'x-gateway-destination-endpoint-served': { stringValue: served } } },
          },
        },
      }),
});

export const responseBody = (body: string, endOfStream: boolean): Message => ({
  response_body: { body: Buffer.from(body), end_of_stream: endOfStream },
});

/** Where a message of the picker's sends the request: by headers and by metadata, and what else it sets. */
export function pickOf(message: Message) {
  const common = (message.request_headers ?? message.request_body).response;
  const set: [string, string][] = common.header_mutation.set_headers.map((option: Message) => {
    if (option.append_action !== 'OVERWRITE_IF_EXISTS_OR_ADD') throw new Error(option.append_action);
    return [option.header.key, option.header.raw_value.toString()];
  });
  const headers: Record<string, string> = Object.fromEntries(set);
  const metadata = message.dynamic_metadata.fields['envoy.lb'].structValue.fields;
  return {
    endpoint: headers['x-gateway-destination-endpoint']!,
    byMetadata: metadata['x-gateway-destination-endpoint'].stringValue,
    clearsRouteCache: common.clear_route_cache,
    headers,
  };
}

/** The client's answer in place of an engine's. */
export function refusalOf(message: Message) {
  const { status, headers, body, details } = message.immediate_response;
  const set = headers.set_headers.map(({ header }: Message) => [header.key, header.raw_value.toString()]);
  return {
    status: status.code,
    headers: Object.fromEntries(set),
    error: JSON.parse(body.toString()).error,
    details,
  };
}

export const until = (holds: () => void) => vi.waitFor(holds, { timeout: 20_000, interval: 5 });
