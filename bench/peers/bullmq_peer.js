// BullMQ, on Redis without persistence: a hundred at once.
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { ADDRESS, AT_ONCE, BACKLOG, CALLERS, CONCURRENCY, Counter, HANDLER_MS, MANY_CALLERS, pause, rate, steadily, tell } from "./measuring.js";

const connection = new Redis(ADDRESS, { maxRetriesPerRequest: null });
const queues = Object.fromEntries(["noop", "sleep", "timed"].map((name) => [name, new Queue(name, { connection })]));
const jobs = (name, count) => Array.from({ length: count }, () => ({ name, data: {} }));
tell("enqueue in thousands", await rate(async () => { await queues.noop.addBulk(jobs("noop", AT_ONCE)); return AT_ONCE; }, MANY_CALLERS));
tell("enqueue one at a time", await rate(async () => { await queues.noop.add("noop", {}); return 1; }, CALLERS));
for (let i = 0; i < BACKLOG; i += AT_ONCE) await queues.sleep.addBulk(jobs("sleep", AT_ONCE));
const counters = { noop: new Counter(), sleep: new Counter(), timed: new Counter() };
const handlers = {
  noop: async () => { counters.noop.done += 1; },
  sleep: async () => { await pause(HANDLER_MS); counters.sleep.done += 1; },
  timed: async (job) => { counters.timed.beganAfter(job.data.at); },
};
const start = (name) => new Worker(name, handlers[name], { connection, concurrency: CONCURRENCY });
for (const [name, measure] of [["noop", "no-op"], ["sleep", "10 ms handlers"]]) {
  const worker = start(name);
  await counters[name].measured(measure, BACKLOG * 100);
  await worker.close(true);
}
start("timed");
await pause(1000);
const count = await steadily((at) => queues.timed.add("timed", { at }));
while (counters.timed.delays.length < count) await pause(10);
counters.timed.tellDelays();
process.exit(0);
