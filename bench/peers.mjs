// BullMQ as a scheduler of sessions: fill, move and fire, as `bench.peers` asks. Prints one line of JSON.
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";

const [path, filled, due, leadMs, spreadMs, seconds] = process.argv.slice(2).map((word, index) => (index ? Number(word) : word));
const connection = new Redis({ path, maxRetriesPerRequest: null });
const AT_ONCE = 64;
const HOUR_MS = 3_600_000;
const queue = new Queue("sessions", { connection });
const kept = { removeOnComplete: true, removeOnFail: true };

const jobs = [];
for (let first = 0; first < filled; first += 1_000) {
  const count = Math.min(1_000, filled - first);
  const made = Array.from({ length: count }, () => ({ name: "close", data: {}, opts: { delay: HOUR_MS, ...kept } }));
  jobs.push(...(await queue.addBulk(made)));
}

let moved = 0;
const began = performance.now();
async function move() {
  while (performance.now() - began < seconds * 1_000) {
    await jobs[Math.floor(Math.random() * jobs.length)].changeDelay(HOUR_MS);
    moved += 1;
  }
}
await Promise.all(Array.from({ length: AT_ONCE }, move));
const movesPerSecond = moved / ((performance.now() - began) / 1_000);

const lags = [];
const worker = new Worker("sessions", async (job) => lags.push(Date.now() - job.data.deadline), { connection, concurrency: 50 });
await worker.waitUntilReady();
const firstMs = Date.now() + leadMs;
await queue.addBulk(
  Array.from({ length: due }, (_, index) => {
    const deadline = firstMs + Math.floor((index * spreadMs) / due);
    return { name: "close", data: { deadline }, opts: { delay: deadline - Date.now(), ...kept } };
  }),
);
while (lags.length < due && Date.now() < firstMs + spreadMs + 60_000) await new Promise((done) => setTimeout(done, 50));
console.log(JSON.stringify({ moves: movesPerSecond, lags }));
process.exit(0);
