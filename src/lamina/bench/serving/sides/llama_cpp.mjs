// Answers requests on stdin with node-llama-cpp, a line of JSON for each token on stdout; see llama_cpp.py.

import readline from "node:readline";

const settings = JSON.parse(process.argv[2]);
const { getLlama } = await import(settings.package);

const llama = await getLlama({ gpu: false, build: "never", maxThreads: settings.threads, logLevel: "error" });
const model = await llama.loadModel({ modelPath: settings.model });
const context = await model.createContext({
  sequences: settings.sequences,
  contextSize: settings.context,
  batchSize: Math.max(512, settings.sequences),
  threads: settings.threads,
});
const free = Array.from({ length: settings.sequences }, () => context.getSequence());
const waiting = [];

function say(value) {
  process.stdout.write(JSON.stringify(value) + "\n");
}

async function answer(sequence, { number, tokens }) {
  await sequence.clearHistory();
  let count = 0;
  // Past tokens that would end an answer, so that every side does the same work.
  for await (const token of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
    count += 1;
    say({ number, done: count === settings.tokens });
    if (count === settings.tokens) break;
  }
  free.push(sequence);
  next();
}

function next() {
  while (free.length && waiting.length) {
    answer(free.pop(), waiting.shift()).catch((error) => {
      console.error(error);
      process.exit(1);
    });
  }
}

say({ about: { threads: context.currentThreads, cpuMathCores: llama.cpuMathCores } });
for await (const line of readline.createInterface({ input: process.stdin })) {
  waiting.push(JSON.parse(line));
  next();
}
