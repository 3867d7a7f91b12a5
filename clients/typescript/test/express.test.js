// The middleware in a real Express application, in front of a real server.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import express from 'express';
import { UsageTracker } from '../dist/index.js';
import { enforceQuota, trackUsage } from '../dist/express.js';
import { listen, proxy, service, until, used } from './support.js';

const tenant = (req) => req.get('X-Customer');
const ask = (url, headers = {}, init = {}) => fetch(url, { ...init, headers: { 'X-Customer': 'enforced', ...headers } });

// An application with that middleware; its handler says what it found.
function serve(t, ...middleware) {
  const app = express();
  app.get('/', ...middleware, (req, res) => res.json({ reason: res.locals.billing?.decision?.reason ?? null }));
  return listen(t, app);
}

test('requests are let through until the quota is used up', async (t) => {
  const url = await serve(t, enforceQuota(service, { metric: 'user_seats', tenant }));
  for (let left = 2; left >= 0; left--) {
    const answer = await ask(url);
    assert.equal(answer.status, 200);
    assert.equal(answer.headers.get('ratelimit'), `"user_seats";r=${left}`);
    assert.deepEqual(await answer.json(), { reason: 'within_quota' });
  }
  const denied = await ask(url);
  assert.equal(denied.status, 429);
  assert.match(denied.headers.get('content-type'), /^application\/problem\+json/);
  assert.equal(denied.headers.get('ratelimit-policy'), '"user_seats";q=3');
  const problem = await denied.json();
  assert.deepEqual([problem.code, problem.decision.used, problem['violated-policies']], ['hard_cap', 3, ['user_seats']]);
  assert.equal(await used('enforced', 'user_seats'), 3);
});

test('a larger plan is asked for by 402, with a time to come back', async (t) => {
  const url = await serve(t, enforceQuota(service, { metric: 'api_calls', quantity: () => 1201, tenant }));
  const denied = await ask(url);
  assert.equal(denied.status, 402);
  assert.match(denied.headers.get('retry-after'), /^\d+$/);
  assert.equal((await denied.json()).code, 'upgrade_required');
});

test('a check records nothing, a repeated key counts once, many at once are counted each', async (t) => {
  const checked = await serve(t, enforceQuota(service, { metric: () => 'llm_tokens', quantity: 5, tenant, mode: 'check' }));
  assert.equal((await ask(checked)).status, 200);
  assert.equal(await used('enforced', 'llm_tokens'), 0);
  const url = await serve(t, enforceQuota(service, { metric: 'llm_tokens', quantity: 5, tenant, idempotencyKey: (req) => req.get('Idempotency-Key') }));
  for (let i = 0; i < 2; i++) assert.equal((await ask(url, { 'Idempotency-Key': 'k1' })).status, 200);
  assert.equal(await used('enforced', 'llm_tokens'), 5);
  await Promise.all(Array.from({ length: 20 }, () => ask(url)));
  assert.equal(await used('enforced', 'llm_tokens'), 105);
});

test('an answer that was lost is asked for again, and counts once', async (t) => {
  const { client, seen } = await proxy(t, ['lost']);
  const before = await used('enforced', 'agent_executions');
  const url = await serve(t, enforceQuota(client, { metric: 'agent_executions', tenant }));
  assert.equal((await ask(url)).status, 200);
  assert.equal(seen.length, 2);
  assert.equal(await used('enforced', 'agent_executions'), before + 1);
});

test('without an answer requests are refused, or let through if told so', async (t) => {
  const told = [];
  const options = { metric: 'api_calls', tenant, onError: (error) => told.push(error.status ?? error.name) };
  const closed = await serve(t, enforceQuota((await proxy(t, [503, 503, 'hang', 'hang'])).client, options));
  for (let i = 0; i < 2; i++) {
    const answer = await ask(closed);
    assert.deepEqual([answer.status, answer.headers.get('retry-after'), (await answer.json()).code], [503, '1', 'billing_unavailable']);
  }
  const open = await serve(t, enforceQuota((await proxy(t, [503, 503])).client, { ...options, onFailure: 'open' }));
  const answer = await ask(open);
  assert.deepEqual([answer.status, await answer.json()], [200, { reason: null }]);
  assert.deepEqual(told, [503, 'TimeoutError', 503]);
});

test('a denial is no failure: open does not let it through', async (t) => {
  const url = await serve(t, enforceQuota(service, { metric: 'storage_gb', quantity: 2, tenant, onFailure: 'open' }));
  assert.equal((await ask(url)).status, 429);
});

test('a request without a tenant is not let through', async (t) => {
  const url = await serve(t, enforceQuota(service, { metric: 'api_calls', tenant: (req) => req.get('X-Nobody') }));
  assert.equal((await ask(url)).status, 503);
});

test('usage is recorded after the response, and only that of a good one', async (t) => {
  const { client, seen } = await proxy(t);
  const tracker = new UsageTracker(client, { flushIntervalMs: 1 });
  const before = await used('tracked', 'llm_tokens');
  let asked = 0;
  const app = express();
  app.use(trackUsage(tracker, {
    metric: 'llm_tokens',
    tenant: () => 'tracked',
    quantity: (_req, res) => res.locals.tokens,
    properties: (req) => ({ path: req.path }),
    idempotencyKey: (req) => req.get('Idempotency-Key'),
  }));
  app.get('/good', (_req, res) => {
    res.locals.tokens = 12;
    assert.equal(seen.length, asked++, 'nothing is sent before the response');
    res.send('done');
  });
  app.get('/bad', (_req, res) => res.status(422).send('no'));
  const url = await listen(t, app);
  assert.equal((await fetch(`${url}/bad`)).status, 422);
  for (let i = 0; i < 2; i++) {
    assert.equal(await (await fetch(`${url}/good`, { headers: { 'Idempotency-Key': 'good' } })).text(), 'done');
    await until(() => seen.length === i + 1 && tracker.waiting === 0, 'it is sent');
  }
  await tracker.close();
  assert.equal(await used('tracked', 'llm_tokens'), before + 12, 'the same key counts once');
  assert.deepEqual(seen[0].body.map(({ properties }) => properties), [{ path: '/good' }]);
});

test('a billing server that hangs delays no response', async (t) => {
  const { client } = await proxy(t, Array(10).fill('hang'));
  const dropped = [];
  const tracker = new UsageTracker(client, { flushIntervalMs: 1, onDrop: (event) => dropped.push(event) });
  const url = await serve(t, trackUsage(tracker, { metric: 'api_calls', tenant: () => 'tracked' }));
  for (let i = 0; i < 3; i++) assert.equal((await ask(url)).status, 200);
  await until(() => tracker.waiting === 3, 'all wait');
  await tracker.close(1);
  assert.equal(dropped.length, 3);
});

test('what throws while usage is worked out is told, the response is out', async (t) => {
  const told = [];
  const tracker = new UsageTracker(service);
  const url = await serve(t, trackUsage(tracker, { metric: 'api_calls', quantity: () => { throw new Error('no figure'); }, onError: (error) => told.push(error.message) }));
  assert.equal((await ask(url)).status, 200);
  await until(() => told.length === 1, 'it is told');
  assert.equal(told[0], 'no figure');
});
