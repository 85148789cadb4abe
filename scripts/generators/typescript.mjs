// openapi.yaml on stdin, its TypeScript types on stdout: node typescript.mjs FOLDER_WITH_node_modules
//
// openapi-typescript's command line would do, but that it takes bytes (`format: binary`) for text.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { text } from "node:stream/consumers";

const require = createRequire(process.argv[2] + "/");
const load = (path) => import(pathToFileURL(require.resolve(path)));
const { default: openapiTS, astToString } = await load("openapi-typescript/dist/index.mjs");
const { default: ts } = await load("typescript");

const blob = ts.factory.createTypeReferenceNode("Blob");
const nodes = await openapiTS(await text(process.stdin), {
  defaultNonNullable: false, // a field with a default may be left out of a request
  transform: (schema) => (schema.format === "binary" ? blob : undefined),
});
process.stdout.write(astToString(nodes));
