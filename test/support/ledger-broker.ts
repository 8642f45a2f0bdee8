/** In place of Redis: a broker in one process, whose messages take time, get lost and overtake each other as a test wants it. */
import type { ChannelListener, LedgerChannel } from '../../lib/gateway/ledger/types.js';

export class FakeBroker {
  /** Of whatever goes to the broker, and of whatever comes from there, ms. Runs on the timers of the test. */
  lateMs = 1;
  /** Of messages to others: how late one is, `undefined` where it is lost. */
  fate: (text: string) => number | undefined = () => 0;
  /** Whether it answers. */
  answers = true;
  readonly published: string[] = [];
  readonly #states = new Map<string, { text: string; timer: NodeJS.Timeout }>();
  readonly #channels = new Set<FakeChannel>();

  channel(): FakeChannel {
    return new FakeChannel(this);
  }

  join(channel: FakeChannel): void {
    this.#channels.add(channel);
  }

  leave(channel: FakeChannel): void {
    this.#channels.delete(channel);
  }

  /** Keys that have not expired. */
  get states(): string[] {
    return [...this.#states.keys()];
  }

  /** As if somebody had published it who is no gateway. */
  deliver(text: string, from?: FakeChannel): void {
    this.published.push(text);
    for (const channel of this.#channels) {
      const lateMs = channel === from ? 0 : this.fate(text);
      if (lateMs !== undefined) setTimeout(() => channel.listener?.onMessage(text), this.lateMs + lateMs);
    }
  }

  read(gateway: string): string | undefined {
    return this.#states.get(gateway)?.text;
  }

  write(gateway: string, text: string, ttlMs: number): void {
    this.remove(gateway);
    const timer = setTimeout(() => this.#states.delete(gateway), ttlMs);
    this.#states.set(gateway, { text, timer });
  }

  remove(gateway: string): void {
    clearTimeout(this.#states.get(gateway)?.timer);
    this.#states.delete(gateway);
  }
}

export class FakeChannel implements LedgerChannel {
  listener: ChannelListener | undefined;
  readonly resets: string[] = [];
  readonly #broker: FakeBroker;
  #isOpen = false;
  #unanswered: { go: () => void; give: () => void }[] = [];

  constructor(broker: FakeBroker) {
    this.#broker = broker;
  }

  open(listener: ChannelListener): void {
    this.listener = listener;
    this.connect();
  }

  connect(): void {
    this.#broker.join(this);
    this.#isOpen = true;
    this.listener?.onOpen();
  }

  lose(reason: string): void {
    this.#broker.leave(this);
    this.#isOpen = false;
    for (const { give } of this.#unanswered.splice(0)) give();
    this.listener?.onLost(reason);
  }

  publish(text: string): Promise<void> {
    return this.#ask(() => this.#broker.deliver(text, this));
  }

  write(gateway: string, state: string, ttlMs: number): Promise<void> {
    return this.#ask(() => this.#broker.write(gateway, state, ttlMs));
  }

  read(gateway: string): Promise<string | undefined> {
    return this.#ask(() => this.#broker.read(gateway));
  }

  remove(gateway: string): Promise<void> {
    return this.#ask(() => this.#broker.remove(gateway));
  }

  reset(reason: string): void {
    this.resets.push(reason);
    this.lose(reason);
  }

  async close(): Promise<void> {
    this.#broker.leave(this);
    this.listener = undefined;
  }

  /** What was asked while it did not answer. */
  catchUp(): void {
    for (const { go } of this.#unanswered.splice(0)) go();
  }

  #ask<T>(work: () => T): Promise<T> {
    if (!this.#isOpen) return Promise.reject(new Error('not open'));
    return new Promise((resolve, reject) => {
      const go = () => {
        setTimeout(() => {
          const answer = work();
          setTimeout(() => resolve(answer), this.#broker.lateMs);
        }, this.#broker.lateMs);
      };
      if (this.#broker.answers) go();
      else this.#unanswered.push({ go, give: () => reject(new Error('lost')) });
    });
  }
}
