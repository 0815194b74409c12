// pg-boss: batches of a thousand, several pollers.
import PgBoss from "pg-boss";
import { ADDRESS, AT_ONCE, BACKLOG, CALLERS, Counter, HANDLER_MS, MANY_CALLERS, pause, rate, steadily, tell } from "./measuring.js";

const boss = new PgBoss({ connectionString: ADDRESS, max: 20, schedule: false });
boss.on("error", () => {});
await boss.start();
for (const name of ["noop", "sleep", "timed"]) await boss.createQueue(name);
const jobs = (name, count) => Array.from({ length: count }, () => ({ name, data: {} }));
tell("enqueue in thousands", await rate(async () => { await boss.insert(jobs("noop", AT_ONCE)); return AT_ONCE; }, MANY_CALLERS));
tell("enqueue one at a time", await rate(async () => { await boss.send("noop", {}); return 1; }, CALLERS));
for (let i = 0; i < BACKLOG; i += AT_ONCE) await boss.insert(jobs("sleep", AT_ONCE));
const counters = { noop: new Counter(), sleep: new Counter(), timed: new Counter() };
const handlers = {
  noop: async (batch) => { counters.noop.done += batch.length; },
  sleep: async (batch) => { await Promise.all(batch.map(() => pause(HANDLER_MS))); counters.sleep.done += batch.length; },
  timed: async (batch) => { for (const job of batch) counters.timed.beganAfter(job.data.at); },
};
// It polls once in half a second at the most often; batches are taken without a pause where it is asked to fetch by hand.
const fetching = async (name, batchSize, counter) => {
  let isStopped = false;
  const loop = async () => {
    while (!isStopped) {
      const batch = (await boss.fetch(name, { batchSize })) ?? [];
      if (!batch.length) { await pause(5); continue; }
      await handlers[name](batch);
      await boss.complete(name, batch.map((job) => job.id));
    }
  };
  const loops = [loop(), loop()];
  return async () => { isStopped = true; await Promise.all(loops); };
};
for (const [name, measure, size] of [["noop", "no-op", 1000], ["sleep", "10 ms handlers", 100]]) {
  const stop = await fetching(name, size);
  await counters[name].measured(measure, BACKLOG * 100);
  await stop();
}
await boss.work("timed", { batchSize: 100, pollingIntervalSeconds: 0.5 }, handlers.timed);
await pause(1000);
const count = await steadily((at) => boss.send("timed", { at }));
while (counters.timed.delays.length < count) await pause(10);
counters.timed.tellDelays();
process.exit(0);
