// Drives a service with the generated TypeScript types; prints what it saw as JSON. docs/clients.md quotes it.
import { createHash } from "node:crypto";
import createClient from "openapi-fetch";
import WebSocket from "ws";
import type { components, paths } from "./bulkhead.js";

type Schemas = components["schemas"];
const url = process.env.BULKHEAD_CLIENT_URL!;
const key = process.env.BULKHEAD_CLIENT_KEY!;

// [problem]
/** Every call resolves to `data`, or to `error`: a problem. */
function taken<T>(answer: { data?: T; error?: Schemas["Problem"] }): T {
  if (answer.error) throw new Error(`${answer.error.type}: ${answer.error.detail}`);
  return answer.data!;
}
// [end]

function refused(answer: { error?: Schemas["Problem"] }) {
  const problem = answer.error!;
  return {
    status: problem.status,
    type: problem.type,
    ...(problem.pointer && { pointer: problem.pointer, ceiling: problem.ceiling }),
    ...(problem.errors && { pointers: problem.errors.map((wrong) => wrong.pointer) }),
  };
}

// [stream]
type Frame = Schemas["StreamStart"] | Schemas["StreamGap"] | Schemas["StreamExit"] | Schemas["StreamProblem"];

/** Sends the text to the program's stdin; its stdout, checked, and its exit. */
function talk(sandbox: string, execution: string, text: string): Promise<[Buffer, Schemas["StreamExit"]]> {
  const path = `/sandboxes/${sandbox}/executions/${execution}/stream?stdin=true`;
  const socket = new WebSocket(url.replace("http", "ws") + path, { headers: { Authorization: `Bearer ${key}` } });
  const pieces: Buffer[] = [];
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("close", () => reject(new Error("the stream ended without an exit")));
    socket.on("message", (data: Buffer, isBinary) => {
      if (isBinary) {
        if (data[0] === 1) pieces.push(data.subarray(1)); // the first byte is the channel: 1 stdout, 2 stderr
        return;
      }
      const frame: Frame = JSON.parse(data.toString());
      if (frame.type === "start") {
        socket.send(Buffer.from(text));
        socket.send(JSON.stringify({ type: "stdin_eof" } satisfies Schemas["StreamStdinEof"]));
      } else if (frame.type === "exit") {
        const stdout = Buffer.concat(pieces);
        const digest = createHash("sha256").update(stdout).digest("hex");
        if (digest !== frame.stdout.sha256) reject(new Error("the output was damaged on its way"));
        resolve([stdout, frame]);
      }
    });
  });
}
// [end]

// [use]
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });
const request: Schemas["CreateSandbox"] = { id: "build-typescript", labels: { team: "ci" }, limits: { memory_mib: 64 } };
const sandbox = taken(await client.POST("/sandboxes", { body: request }));
const started = taken(
  await client.POST("/sandboxes/{sandbox_id}/executions", {
    params: { path: { sandbox_id: sandbox.id } },
    body: { command: ["echo", "hello"], timeout_seconds: 10 },
  }),
);
const path = { sandbox_id: sandbox.id, execution_id: started.id };
const execution = taken(
  await client.GET("/sandboxes/{sandbox_id}/executions/{execution_id}", {
    params: { path, query: { wait_seconds: 30 } },
  }),
);
const output = taken(
  await client.GET("/sandboxes/{sandbox_id}/executions/{execution_id}/output", { params: { path }, parseAs: "text" }),
);
console.log(execution.exit?.reason, execution.exit?.code, output);
// [end]

async function start(body: Schemas["CreateExecution"]): Promise<Schemas["Execution"]> {
  const params = { path: { sandbox_id: sandbox.id } };
  return taken(await client.POST("/sandboxes/{sandbox_id}/executions", { params, body }));
}

const missing = taken(
  await client.GET("/sandboxes/{sandbox_id}/executions/{execution_id}", {
    params: {
      path: { sandbox_id: sandbox.id, execution_id: (await start({ command: ["missing"] })).id },
      query: { wait_seconds: 30 },
    },
  }),
);
const params = { path: { sandbox_id: sandbox.id } };
const idle: (number | null)[] = [];
for (const idle_seconds of [60, null]) {
  idle.push(taken(await client.PATCH("/sandboxes/{sandbox_id}", { params, body: { idle_seconds } })).idle_seconds);
}
const cat = await start({ command: ["cat"], stdin: "open" });
const [stdout, ended] = await talk(sandbox.id, cat.id, "over the wire\n");
// [files]
const data = new Uint8Array(256 * 1024).map((_, n) => n);
const at = (path: string) => ({ path: { sandbox_id: sandbox.id }, query: { path } });
/** openapi-fetch makes JSON of a body unless it is told how to write it. */
const bytes = (type: string) => ({ bodySerializer: (body: Blob) => body, headers: { "Content-Type": type } });
await client.PUT("/sandboxes/{sandbox_id}/files", {
  params: at("notes/data"),
  body: new Blob([data]),
  ...bytes("application/octet-stream"),
});
const back = taken(
  await client.GET("/sandboxes/{sandbox_id}/files", { params: at("notes/data"), parseAs: "arrayBuffer" }),
);
const names = taken(await client.GET("/sandboxes/{sandbox_id}/directory", { params: at("notes") })).items;
const archive = taken(
  await client.GET("/sandboxes/{sandbox_id}/archive", { params: at("notes"), parseAs: "blob" }),
);
await client.PUT("/sandboxes/{sandbox_id}/archive", {
  params: at("copy"),
  body: archive,
  ...bytes("application/x-tar"),
});
// [end]
const copy = taken(
  await client.GET("/sandboxes/{sandbox_id}/files", { params: at("copy/data"), parseAs: "arrayBuffer" }),
);
const made = (await client.PUT("/sandboxes/{sandbox_id}/directory", { params: at("empty") })).response.status;
const directory = (await client.GET("/sandboxes/{sandbox_id}/files", { params: at("notes") })).error!;
const equal = (found: ArrayBuffer) => Buffer.from(found).equals(Buffer.from(data));

// [run]
const once: Schemas["Run"] = { command: ["cat"], stdin: "hello\n", files: [{ path: "data.txt", content: "beside it" }] };
const header = { "Idempotency-Key": "run-1-of-typescript" };
const result = taken(await client.POST("/run", { params: { header }, body: once }));
console.log(result.exit.reason, result.stdout);
// [end]
const repeated = taken(await client.POST("/run", { params: { header }, body: once }));
const other = await client.POST("/run", { params: { header }, body: { ...once, stdin: "something else" } });

const nobody = { path: { sandbox_id: "nobody" } };
const stranger = createClient<paths>({ baseUrl: url });
const report = {
  sandbox: [sandbox.id, sandbox.state, sandbox.labels, sandbox.limits.memory_mib],
  again: (await client.POST("/sandboxes", { body: request })).response.status,
  output: [execution.exit?.code, output],
  missing: missing.exit?.reason,
  idle,
  stream: [stdout.toString(), ended.exit_code, ended.exit.reason],
  files: [equal(back), names.map((entry) => entry.name), equal(copy), made, directory.type, directory.found],
  run: [result.stdout, repeated.sandbox_id === result.sandbox_id, refused(other)],
  problems: [
    refused(await client.POST("/sandboxes", { body: { limits: { memory_mib: 2 ** 40 } } })),
    refused(await client.POST("/sandboxes", { body: { ttl_seconds: -1 } })),
    refused(await client.GET("/sandboxes/{sandbox_id}", { params: nobody })),
    refused(await stranger.GET("/sandboxes/{sandbox_id}", { params })),
  ],
  deleted: (await client.DELETE("/sandboxes/{sandbox_id}", { params })).response.status,
  state: taken(await client.GET("/sandboxes/{sandbox_id}", { params })).state,
};
console.log(JSON.stringify(report));
