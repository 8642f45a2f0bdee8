/**
 * What the feed needs of ZeroMQ. The package is an optional peer: a binding to a library in C++, which only those install who
 * follow KV events. So nothing of it is loaded before a feed starts.
 */
import { setImmediate } from 'node:timers/promises';
import { GimbalError, mismatch } from '../errors.js';
import { MAX_PAYLOAD_BYTES } from './msgpack.js';

type Zmq = typeof import('zeromq');
export type Subscriber = import('zeromq').Subscriber;

const SEQUENCE_BYTES = 8;
/** What a publisher ends its answer with: -1, and no payload. */
const END = 2n ** 64n - 1n;
/** Batches of one answer. Publishers keep 10,000, unless they are told otherwise. */
const MOST_BATCHES = 1 << 20;
/** Batches that may be taken before others have their turn. */
const TURN = 64;
/** ms; from the first on doubled up to the second. */
const RECONNECT_MS = [50, 2000] as const;
/** Messages that may wait while others are sent again. What is beyond is dropped, and noticed as a gap. */
const MOST_WAITING = 100_000;

/** @throws GimbalError GIMBAL_BINDING */
export function loadZeromq(load: () => unknown = () => require('zeromq')): Zmq {
  try {
    return load() as Zmq;
  } catch (error) {
    const [reason = ''] = String(error instanceof Error ? error.message : error).split('\n');
    throw new GimbalError(
      'GIMBAL_BINDING',
      `zeromq: following KV events takes the package zeromq, which cannot be loaded (${reason}); run \`npm install zeromq@6\``,
      { field: 'zeromq', expected: 'the package zeromq, version 6', received: reason, cause: error },
    );
  }
}

export interface ConnectionListeners {
  onConnect(): void;
  onDisconnect(): void;
}

/** Connects again by itself, for as long as it is open. @throws GimbalError GIMBAL_IO (what ZeroMQ cannot connect to) */
export function subscribe(
  zmq: Zmq,
  endpoint: string,
  topic: string,
  listeners: ConnectionListeners,
): Subscriber {
  const socket = new zmq.Subscriber({
    linger: 0,
    reconnectInterval: RECONNECT_MS[0],
    reconnectMaxInterval: RECONNECT_MS[1],
    maxMessageSize: MAX_PAYLOAD_BYTES,
    receiveHighWaterMark: MOST_WAITING,
  });
  try {
    // Before it connects, or the first connection might go unnoticed.
    socket.events.on('handshake', listeners.onConnect);
    socket.events.on('disconnect', listeners.onDisconnect);
    socket.connect(endpoint);
    socket.subscribe(topic);
  } catch (error) {
    socket.close();
    const reason = error instanceof Error ? error.message : String(error);
    throw mismatch('GIMBAL_IO', endpoint, 'an endpoint to connect to', reason, error);
  }
  return socket;
}

export interface SequencedPayload {
  sequence: number;
  payload: Uint8Array;
}

/** Topic, sequence number, payload. @throws GimbalError GIMBAL_FORMAT */
export function parseMessage(frames: readonly Uint8Array[], source: string): SequencedPayload {
  const [, sequence, payload] = frames;
  if (frames.length !== 3) throw mismatch('GIMBAL_FORMAT', source, '3 frames', `${frames.length}`);
  return { sequence: toSequence(readSequence(sequence!, source), source), payload: payload! };
}

function readSequence(frame: Uint8Array, source: string): bigint {
  if (frame.length !== SEQUENCE_BYTES) {
    throw mismatch(
      'GIMBAL_FORMAT',
      source,
      `a sequence number of ${SEQUENCE_BYTES} bytes`,
      `${frame.length} bytes`,
    );
  }
  return new DataView(frame.buffer, frame.byteOffset, frame.byteLength).getBigUint64(0);
}

function toSequence(sequence: bigint, source: string): number {
  if (sequence > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw mismatch('GIMBAL_FORMAT', source, 'a sequence number below 2^53', String(sequence));
  }
  return Number(sequence);
}

export interface ReplayOptions {
  zmq: Zmq;
  endpoint: string;
  timeoutMs: number;
  signal: AbortSignal;
}

/**
 * Has a publisher send its batches from the sequence number `first` on again, for as long as `take` returns true.
 *
 * @throws GimbalError GIMBAL_IO (no answer, or none for too long), GIMBAL_FORMAT; what ZeroMQ and `take` throw
 */
export async function replay(
  { zmq, endpoint, timeoutMs, signal }: ReplayOptions,
  first: number,
  take: (batch: SequencedPayload) => boolean,
): Promise<void> {
  const socket = new zmq.Dealer({
    linger: 0,
    sendTimeout: timeoutMs,
    receiveTimeout: timeoutMs,
    maxMessageSize: MAX_PAYLOAD_BYTES,
  });
  const close = () => socket.close();
  signal.addEventListener('abort', close, { once: true });
  try {
    signal.throwIfAborted();
    socket.connect(endpoint);
    const request = Buffer.alloc(SEQUENCE_BYTES);
    request.writeBigUInt64BE(BigInt(first));
    await socket.send(['', request]);
    for (let n = 0; n < MOST_BATCHES; n++) {
      // An empty frame first; newer publishers may put the topic before the sequence number.
      const frames = await socket.receive();
      signal.throwIfAborted();
      if (frames.length < 3)
        throw mismatch('GIMBAL_FORMAT', endpoint, '3 frames or more', `${frames.length}`);
      const sequence = readSequence(frames.at(-2)!, endpoint);
      if (sequence === END) return;
      if (!take({ sequence: toSequence(sequence, endpoint), payload: frames.at(-1)! })) return;
      // What has come already is received without a turn of the event loop.
      if (n % TURN === TURN - 1) await setImmediate();
    }
    throw mismatch('GIMBAL_FORMAT', endpoint, `at most ${MOST_BATCHES} batches`, 'more');
  } catch (error) {
    signal.throwIfAborted();
    if ((error as { code?: string }).code !== 'EAGAIN') throw error;
    throw mismatch('GIMBAL_IO', endpoint, `a message of the replay within ${timeoutMs} ms`, 'none', error);
  } finally {
    signal.removeEventListener('abort', close);
    socket.close();
  }
}
