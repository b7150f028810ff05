// Sends one row to a server and gives its answer, in Node and in browsers, which must have their page from the same
// address as the server; asks again when it is told to.
//   node predict.mjs models/digits/sample.json [http://127.0.0.1:8080]

const TRIES = 5;

export async function predict(row, url = "") {
  for (let left = TRIES - 1; ; left--) {
    const answer = await fetch(`${url}/predict`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(row),
      signal: AbortSignal.timeout(30_000),
    });
    const told = await answer.json();
    if (answer.ok) {
      return told;
    }
    if (answer.status !== 503 || left === 0) {
      throw new Error(`${answer.status} ${told.code}: ${told.detail} (request ${told.request_id})`);
    }
    const seconds = Number(answer.headers.get("Retry-After") ?? 1);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

if (globalThis.process?.argv[1]?.endsWith("predict.mjs")) {
  const { readFile } = await import("node:fs/promises");
  const [sample, url = "http://127.0.0.1:8080"] = process.argv.slice(2);
  const row = JSON.parse(await readFile(sample, "utf8"));
  console.log((await predict(row, url)).digit);
}
