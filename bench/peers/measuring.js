// What every adapter written in JavaScript does alike; measuring.py says what that is.
const environment = process.env;
export const ADDRESS = environment.PEER_ADDRESS;
export const SECONDS = Number(environment.PEER_SECONDS ?? 5);
export const BACKLOG = Number(environment.PEER_BACKLOG ?? 20000);
export const AT_ONCE = 1000, CALLERS = 50, MANY_CALLERS = 4, CONCURRENCY = 1000, HANDLER_MS = 10, LATENCY_PER_S = 100;
const now = () => performance.now() / 1000;
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const tell = (measure, value) => console.log(JSON.stringify({ measure, value }));

export async function rate(work, callers = 1) {
  const began = now();
  const again = async () => {
    let done = 0;
    while (now() - began < SECONDS) {
      const count = await work();
      done += count;
    }
    return done;
  };
  const counts = await Promise.all(Array.from({ length: callers }, again));
  return counts.reduce((sum, count) => sum + count, 0) / (now() - began);
}

export class Counter {
  done = 0;
  delays = [];
  async measured(measure, limit) {
    while (!this.done) await pause(1);
    const began = now(), before = this.done;
    while (now() - began < SECONDS && this.done < limit) await pause(5);
    tell(measure, (this.done - before) / (now() - began));
  }
  beganAfter(at) { this.delays.push(Date.now() - at); }
  tellDelays() {
    const ordered = this.delays.toSorted((a, b) => a - b);
    tell("latency p50", ordered[ordered.length >> 1]);
    tell("latency p99", ordered[Math.floor(ordered.length * 0.99)]);
  }
}

export async function steadily(enqueue) {
  const began = now();
  let count = 0;
  while (now() - began < SECONDS) {
    const wait = count / LATENCY_PER_S - (now() - began);
    if (wait > 0) await pause(wait * 1000);
    await enqueue(Date.now());
    count += 1;
  }
  return count;
}
