// What the tests share: the server under test, which test/e2e/typescript.sh starts, and a proxy in front of it that fails on demand.
import { createServer } from 'node:http';
import { once } from 'node:events';
import { createClient } from '../dist/index.js';

export const { SHIM_URL, SERVICE_KEY } = process.env;
if (!SHIM_URL || !SERVICE_KEY) throw new Error('run test/e2e/typescript.sh, which starts a server for these tests');

export const service = createClient({ baseUrl: SHIM_URL, apiKey: SERVICE_KEY });

/** What a tenant has used of a metric. */
export async function used(tenantId, metric) {
  const { data } = await service.forTenant(tenantId).GET('/api/billing/usage/{metric}', { params: { path: { metric } } });
  return data.used;
}

/** Waits for a condition. */
export async function until(condition, what) {
  for (let i = 0; i < 400; i++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`it never came to be: ${what}`);
}

/** Starts a server on a free port. */
export async function listen(t, handler) {
  const server = createServer(handler).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return `http://127.0.0.1:${server.address().port}`;
}

/**
 * Starts a proxy. `faults` says what becomes of the requests to come: 'lost' carries one out and drops the answer, 'hang'
 * never answers, a number answers with that status; then, or by default, they pass.
 */
export async function proxy(t, faults = []) {
  const seen = [];
  const url = await listen(t, async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    seen.push({ path: request.url, tenant: request.headers['x-tenant-id'], body: body.length ? JSON.parse(body) : undefined });
    const fault = faults.shift();
    if (fault === 'hang') return;
    if (typeof fault === 'number') return response.writeHead(fault, { 'Content-Type': 'text/plain' }).end('no');
    const { host, connection, 'content-length': _, ...headers } = request.headers;
    const answer = await fetch(SHIM_URL + request.url, { method: request.method, headers, ...(body.length ? { body } : {}) });
    if (fault === 'lost') return response.destroy();
    response.writeHead(answer.status, Object.fromEntries([...answer.headers].filter(([name]) => !/^(connection|content-length|transfer-encoding)$/.test(name))));
    response.end(Buffer.from(await answer.arrayBuffer()));
  });
  return { url, seen, client: createClient({ baseUrl: url, apiKey: SERVICE_KEY, timeoutMs: 1000 }) };
}
