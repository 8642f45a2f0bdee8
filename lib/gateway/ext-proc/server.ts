/**
 * The endpoint picker as a gRPC server: Envoy's external processor for requests, and the standard health service for probes. A
 * stream is one HTTP request; its messages are handled in turn, with the next one in sight.
 */
import { once } from 'node:events';
import { isIP } from 'node:net';
import { createSecureContext } from 'node:tls';
import {
  status as GrpcStatus,
  type handleBidiStreamingCall,
  type handleUnaryCall,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
} from '@grpc/grpc-js';
import { mismatch } from '../../errors.js';
import { ioError } from '../../files.js';
import { Exchange, ProtocolError } from './exchange.js';
import {
  EXT_PROC_SERVICE,
  extProcService,
  type HealthCheckRequest,
  type HealthCheckResponse,
  healthService,
  type ProcessingRequest,
  type ProcessingResponse,
  ServingStatus,
} from './protocol.js';
import type { ExtProcParts } from './types.js';

export interface ExtProcOptions extends ExtProcParts {
  /** PEM. Without it the server speaks plaintext. */
  credentials?: { cert: Buffer; key: Buffer };
  /** Whether requests should come here, for probes. Default: always. */
  isReady?(): boolean;
}

/** Around a body in a message: headers, metadata, attributes. */
const ENVELOPE_BYTES = 1024 * 1024;
/** A data plane that is gone without a word is found out so, and its requests leave the ledger. */
const KEEPALIVE_MS = 20_000;
const KEEPALIVE_TIMEOUT_MS = 10_000;

type Stream = ServerDuplexStream<ProcessingRequest, ProcessingResponse>;

export class ExtProcServer {
  readonly #options: ExtProcOptions;
  readonly #server: Server;

  constructor(options: ExtProcOptions) {
    this.#options = options;
    this.#server = new Server({
      'grpc.max_receive_message_length': options.limits.bodyBytes + ENVELOPE_BYTES,
      'grpc.keepalive_time_ms': KEEPALIVE_MS,
      'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
    });
    const process: handleBidiStreamingCall<ProcessingRequest, ProcessingResponse> = (call) =>
      void this.#process(call);
    const check: handleUnaryCall<HealthCheckRequest, HealthCheckResponse> = (call, callback) => {
      const status = this.#healthOf(call.request.service ?? '');
      if (status === undefined) callback({ code: GrpcStatus.NOT_FOUND, details: 'unknown service' });
      else callback(null, { status });
    };
    this.#server.addService({ ...extProcService() }, { Process: process });
    this.#server.addService({ ...healthService() }, { Check: check });
  }

  /** Returns the port, which the system chose where 0 was asked for. @throws GimbalError GIMBAL_IO, GIMBAL_INVALID_INPUT */
  async listen(host: string, port: number): Promise<number> {
    const address = `${host.includes(':') ? `[${host}]` : host}:${port}`;
    const credentials = toServerCredentials(this.#options.credentials);
    for (const { server, rank } of this.#options.picker.targets) {
      if (rank > 0 || isIP(new URL(server.url).hostname.replace(/^\[|\]$/g, '')) > 0) continue;
      this.#options.log.warn({ server: server.url }, 'data planes take an address here, not a name');
    }
    return new Promise((resolve, reject) => {
      this.#server.bindAsync(address, credentials, (error, bound) => {
        if (error === null) resolve(bound);
        else reject(ioError(address, error));
      });
    });
  }

  /** Takes no new connection and no new request; resolves when those in flight have ended, or were cut off after the timeout. */
  drain(timeoutMs = Number.POSITIVE_INFINITY): Promise<void> {
    return new Promise((resolve) => {
      const cut = Number.isFinite(timeoutMs)
        ? setTimeout(() => this.#server.forceShutdown(), timeoutMs)
        : undefined;
      this.#server.tryShutdown(() => {
        clearTimeout(cut);
        resolve();
      });
    });
  }

  /** Undefined for a service that is not here. */
  #healthOf(service: string): number | undefined {
    const { isReady = () => true } = this.#options;
    if (service === 'liveness') return ServingStatus.serving;
    if (!['', 'readiness', EXT_PROC_SERVICE].includes(service)) return undefined;
    return isReady() ? ServingStatus.serving : ServingStatus.notServing;
  }

  async #process(call: Stream): Promise<void> {
    const exchange = new Exchange(this.#options);
    const gone = new AbortController();
    call.once('cancelled', () => gone.abort());
    try {
      await this.#converse(call, exchange, gone.signal);
      call.end();
    } catch (error) {
      if (!gone.signal.aborted) this.#breakOff(call, error);
    } finally {
      exchange.close();
    }
  }

  async #converse(call: Stream, exchange: Exchange, signal: AbortSignal): Promise<void> {
    const inbox = new Inbox(call);
    let next = inbox.next();
    for (;;) {
      const received = await within(next, exchange.patienceMs);
      if (received === 'late') return this.#send(call, exchange.timedOut(), signal);
      if (received === undefined) return;
      next = inbox.next();
      void next.then((message) => exchange.foresee(message));
      await this.#send(call, await exchange.handle(received), signal);
      if (exchange.isOver) return;
    }
  }

  /** As fast as the data plane reads. */
  async #send(call: Stream, messages: readonly ProcessingResponse[], signal: AbortSignal): Promise<void> {
    const { idleMs } = this.#options.limits;
    for (const message of messages) {
      signal.throwIfAborted();
      if (call.write(message)) continue;
      if ((await within(once(call, 'drain', { signal }), idleMs)) !== 'late') continue;
      throw new ProtocolError('messages are not read', GrpcStatus.DEADLINE_EXCEEDED);
    }
  }

  #breakOff(call: Stream, error: unknown): void {
    const { log } = this.#options;
    if (error instanceof ProtocolError) {
      log.warn({ peer: call.getPeer(), why: error.message }, 'a data plane does not keep to the protocol');
      call.emit('error', { code: error.code, details: error.message });
    } else {
      log.error({ peer: call.getPeer(), err: error }, 'a stream of the data plane failed');
      call.emit('error', { code: GrpcStatus.INTERNAL, details: 'internal error' });
    }
  }
}

/** @throws GimbalError GIMBAL_INVALID_INPUT */
function toServerCredentials(credentials: ExtProcOptions['credentials']): ServerCredentials {
  if (credentials === undefined) return ServerCredentials.createInsecure();
  const { cert, key } = credentials;
  try {
    createSecureContext({ cert, key });
  } catch (error) {
    const received = error instanceof Error ? error.message : String(error);
    throw mismatch(
      'GIMBAL_INVALID_INPUT',
      'credentials',
      'a certificate and its key in PEM',
      received,
      error,
    );
  }
  return ServerCredentials.createSsl(null, [{ cert_chain: cert, private_key: key }]);
}

/** What comes, one message at a time: the data plane is read no faster than `next` is called. */
class Inbox {
  readonly #call: Stream;
  #deliver: ((message: ProcessingRequest | undefined) => void) | undefined;
  #ended = false;

  constructor(call: Stream) {
    this.#call = call;
    call.pause();
    call.on('data', (message: ProcessingRequest) => {
      call.pause();
      this.#give(message);
    });
    for (const end of ['end', 'cancelled']) call.once(end, () => this.#end());
  }

  /** Undefined where no more will come. Not to be called before the last promise is settled. */
  next(): Promise<ProcessingRequest | undefined> {
    if (this.#ended) return Promise.resolve(undefined);
    return new Promise((resolve) => {
      this.#deliver = resolve;
      this.#call.resume();
    });
  }

  #end(): void {
    this.#ended = true;
    this.#give(undefined);
  }

  #give(message: ProcessingRequest | undefined): void {
    const deliver = this.#deliver;
    this.#deliver = undefined;
    deliver?.(message);
  }
}

async function within<T>(promise: Promise<T>, limitMs: number): Promise<T | 'late'> {
  if (!Number.isFinite(limitMs)) return promise;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<'late'>((resolve) => {
    timer = setTimeout(resolve, limitMs, 'late');
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
