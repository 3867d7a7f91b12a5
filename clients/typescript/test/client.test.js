// The client and the tracker: what an answer becomes, and that tracked usage counts once whatever happens on the way.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BillingError, createClient, UsageTracker, unwrap } from '../dist/index.js';
import { proxy, service, SHIM_URL, until, used } from './support.js';

test('data, or an error that tells what it was', async () => {
  const client = service.forTenant('other');
  const usage = await unwrap(client.GET('/api/billing/usage'));
  assert.equal(usage.tenantId, 'other');
  const denied = await unwrap(client.POST('/api/billing/consume', { body: { metric: 'user_seats', quantity: 4 } })).catch((error) => error);
  assert.ok(denied instanceof BillingError);
  assert.deepEqual([denied.status, denied.code, denied.denied, denied.temporary, denied.problem.decision.quota], [429, 'hard_cap', true, false, 3]);
  const wrong = await unwrap(createClient({ baseUrl: `${SHIM_URL}/`, apiKey: 'pgb_0' }).GET('/api/billing/usage')).catch((error) => error);
  assert.deepEqual([wrong.status, wrong.code, wrong.denied, wrong.temporary], [401, 'invalid_api_key', false, false]);
});

test('a CloudEvent is for the tenant that is its subject', async () => {
  const before = await used('other', 'llm_tokens');
  const event = { specversion: '1.0', id: '1', source: '/client', type: 'llm_tokens', subject: 'other', data: { quantity: '3' } };
  const headers = { 'Content-Type': 'application/cloudevents+json' };
  const decision = await unwrap(service.POST('/api/billing/events', { body: event, headers }));
  assert.equal(decision.status, 'recorded');
  assert.equal(await used('other', 'llm_tokens'), before + 3);
});

test('a server that hangs or talks otherwise is an error, too', async (t) => {
  const { client } = await proxy(t, ['hang', 502]);
  await assert.rejects(unwrap(client.GET('/healthz')), { name: 'TimeoutError' });
  const odd = await unwrap(client.GET('/healthz')).catch((error) => error);
  assert.deepEqual([odd.status, odd.code, odd.temporary], [502, 'unknown', true]);
});

test('tracked usage is sent in batches, one tenant at a time', async (t) => {
  const { client, seen } = await proxy(t);
  const tracker = new UsageTracker(client, { batchSize: 3, flushIntervalMs: 10 });
  const before = await used('tracked', 'api_calls');
  for (let i = 0; i < 7; i++) tracker.record({ metric: 'api_calls', tenantId: i === 1 ? 'other' : 'tracked', properties: { i } });
  await until(() => tracker.waiting === 0, 'all is sent');
  assert.equal(await used('tracked', 'api_calls'), before + 6);
  assert.ok(seen.every(({ body }) => body.length <= 3));
  assert.deepEqual([...new Set(seen.map(({ tenant }) => tenant))].sort(), ['other', 'tracked']);
  await tracker.close();
});

test('it counts once though answers are lost', async (t) => {
  const { client, seen } = await proxy(t, ['lost', 503, 'lost']);
  const tracker = new UsageTracker(client, { retryDelayMs: 5, flushIntervalMs: 5 });
  const before = await used('tracked', 'llm_tokens');
  tracker.record({ metric: 'llm_tokens', quantity: '7', tenantId: 'tracked' });
  await until(() => tracker.waiting === 0, 'it is sent');
  assert.equal(seen.length, 4);
  assert.equal(await used('tracked', 'llm_tokens'), before + 7);
  await tracker.close();
});

test('what is refused is told, and stops nothing', async () => {
  const dropped = [];
  const tracker = new UsageTracker(service, { onDrop: (event, reason) => dropped.push([event.metric, event.tenantId, reason.message]) });
  const before = await used('tracked', 'api_calls');
  tracker.record({ metric: 'nope', tenantId: 'tracked' });
  tracker.record({ metric: 'api_calls', tenantId: 'nobody' });
  tracker.record({ metric: 'api_calls', tenantId: 'tracked' });
  await tracker.close();
  assert.equal(await used('tracked', 'api_calls'), before + 1);
  assert.deepEqual(dropped.map(([metric, tenant]) => [metric, tenant]), [['nope', 'tracked'], ['api_calls', 'nobody']]);
  assert.match(dropped[0][2], /unknown_metric/);
  tracker.record({ metric: 'api_calls', tenantId: 'tracked' });
  assert.equal(dropped.length, 3, 'it is closed');
});

test('the queue is bounded, and closing waits for so long', async (t) => {
  const { client } = await proxy(t, Array(1000).fill('hang'));
  const dropped = [];
  const tracker = new UsageTracker(client, { maxQueue: 2, flushIntervalMs: 1, onDrop: (event, reason) => dropped.push([event.properties.n, reason.message]) });
  for (const n of [1, 2, 3]) tracker.record({ metric: 'api_calls', tenantId: 'tracked', properties: { n } });
  assert.deepEqual(dropped, [[3, 'too many events are waiting']]);
  await tracker.close(20);
  assert.deepEqual(dropped.slice(1).map(([n]) => n), [1, 2]);
  assert.equal(tracker.waiting, 0);
});

test('closing does not sit out a long pause', async (t) => {
  const { client, seen } = await proxy(t, [503]);
  const tracker = new UsageTracker(client, { retryDelayMs: 3_600_000, flushIntervalMs: 1, onDrop: assert.fail });
  const before = await used('other', 'agent_executions');
  tracker.record({ metric: 'agent_executions', tenantId: 'other' });
  await until(() => seen.length === 1, 'it has failed once');
  await tracker.close();
  assert.equal(await used('other', 'agent_executions'), before + 1);
});
