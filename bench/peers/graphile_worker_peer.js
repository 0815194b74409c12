// graphile-worker: its local queue and batched completion, which its documentation gives for the highest rates.
import { makeWorkerUtils, run } from "graphile-worker";
import { ADDRESS, AT_ONCE, BACKLOG, CALLERS, CONCURRENCY, Counter, HANDLER_MS, MANY_CALLERS, pause, rate, steadily, tell } from "./measuring.js";

const { Logger } = await import("graphile-worker");
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString: ADDRESS, logger });
await utils.migrate();
const jobs = (identifier, count) => Array.from({ length: count }, () => ({ identifier, payload: {} }));
tell("enqueue in thousands", await rate(async () => { await utils.addJobs(jobs("noop", AT_ONCE)); return AT_ONCE; }, MANY_CALLERS));
tell("enqueue one at a time", await rate(async () => { await utils.addJob("noop", {}); return 1; }, CALLERS));
for (let i = 0; i < BACKLOG; i += AT_ONCE) await utils.addJobs(jobs("sleep", AT_ONCE));
const counters = { noop: new Counter(), sleep: new Counter(), timed: new Counter() };
const tasks = {
  noop: async () => { counters.noop.done += 1; },
  sleep: async () => { await pause(HANDLER_MS); counters.sleep.done += 1; },
  timed: async (payload) => { counters.timed.beganAfter(payload.at); },
};
const start = (name) => run({
  logger, connectionString: ADDRESS, taskList: { [name]: tasks[name] }, noHandleSignals: true,
  preset: { worker: {
    connectionString: ADDRESS, concurrentJobs: CONCURRENCY, maxPoolSize: 20, pollInterval: 1000,
    localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0,
  } },
});
for (const [name, measure] of [["noop", "no-op"], ["sleep", "10 ms handlers"]]) {
  const runner = await start(name);
  await counters[name].measured(measure, BACKLOG * 100);
  await runner.stop();
}
const runner = await start("timed");
await pause(1000);
const count = await steadily((at) => utils.addJob("timed", { at }));
while (counters.timed.delays.length < count) await pause(10);
counters.timed.tellDelays();
await runner.stop();
process.exit(0);
