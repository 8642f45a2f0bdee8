/** Sums over the last minute, a second at a time. */
const SECONDS = 60;

export class MinuteSum {
  /** [SECONDS] */
  readonly #sums = new Float64Array(SECONDS);
  #second: number;
  readonly #startSecond: number;
  readonly #nowMs: () => number;

  /** @param nowMs a clock that never goes back */
  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
    this.#second = Math.floor(nowMs() / 1000);
    this.#startSecond = this.#second;
  }

  add(amount: number): void {
    this.#turn();
    this.#sums[this.#second % SECONDS]! += amount;
  }

  get sum(): number {
    this.#turn();
    return this.#sums.reduce((all, one) => all + one, 0);
  }

  /** By the second, over the time since the start where that is less than a minute. */
  get perSecond(): number {
    const { sum } = this;
    return sum / Math.min(SECONDS, this.#second - this.#startSecond + 1);
  }

  #turn(): void {
    const second = Math.floor(this.#nowMs() / 1000);
    const passed = Math.min(SECONDS, second - this.#second);
    for (let n = 1; n <= passed; n++) this.#sums[(this.#second + n) % SECONDS] = 0;
    this.#second = second;
  }
}
