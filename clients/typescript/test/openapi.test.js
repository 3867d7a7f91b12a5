// The server answers as its description says: every operation is called, and what comes back is held against its schemas.
import assert from 'node:assert/strict';
import { createHmac, randomUUID } from 'node:crypto';
import { test } from 'node:test';
import Ajv from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import { SHIM_URL, SERVICE_KEY } from './support.js';

const document = await (await fetch(`${SHIM_URL}/openapi.json`)).json();
const resolve = (node) => (node.$ref ? node.$ref.slice(2).split('/').reduce((at, key) => at[key], document) : node);

// An object has the members it is described to have and no other: then a new one cannot be forgotten.
const closed = structuredClone(document);
(function close(node) {
  if (node?.type === 'object' && node.properties) node.additionalProperties ??= false;
  if (node && typeof node === 'object') Object.values(node).forEach(close);
})(closed);
const ajv = new Ajv({ strict: false, allErrors: true });
addFormats(ajv);
ajv.addSchema(closed, 'api');
const pointer = (...keys) => 'api#/' + keys.map((key) => String(key).replaceAll('~', '~0').replaceAll('/', '~1')).map(encodeURIComponent).join('/');
function conforms(value, ...keys) {
  const validate = ajv.getSchema(pointer(...keys)) ?? ajv.compile({ $ref: pointer(...keys) });
  assert.ok(validate(value), `${keys.join(' ')}: ${ajv.errorsText(validate.errors)} in ${JSON.stringify(value)}`);
}

const called = new Set();

// Calls an operation by its path in the description and checks the answer; returns it.
async function call(method, path, { status, params = {}, query = '', body, headers = {}, tenant = 'described' }) {
  const lower = method.toLowerCase();
  const operation = document.paths[path]?.[lower];
  assert.ok(operation, `${method} ${path} is described`);
  const address = path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(params[name])) + query;
  const answer = await fetch(SHIM_URL + address, {
    method,
    headers: { Authorization: `Bearer ${SERVICE_KEY}`, 'X-Tenant-Id': tenant, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
  const text = await answer.text();
  assert.equal(answer.status, status, `${method} ${address}: ${text}`);
  assert.ok(operation.responses[status], `${method} ${path} describes ${status}`);
  const described = resolve(operation.responses[status]);
  const type = answer.headers.get('content-type');
  assert.ok(described.content[type], `${method} ${path} ${status} describes ${type}`);
  const json = type.startsWith('text/') ? text : JSON.parse(text);
  const at = operation.responses[status].$ref ? operation.responses[status].$ref.slice(2).split('/') : ['paths', path, lower, 'responses', status];
  conforms(json, ...at, 'content', type, 'schema');
  for (const name of ['ratelimit', 'ratelimit-policy', 'retry-after', 'location', 'www-authenticate', 'x-request-id'])
    if (answer.headers.has(name)) assert.ok(Object.keys(described.headers).some((known) => known.toLowerCase() === name), `${method} ${path} ${status} describes ${name}`);
  if (status < 400) called.add(`${lower} ${path}`);
  return json;
}
// The first example of a request's schema: what the description shows has to work.
const example = (name) => document.components.schemas[name].examples[0];
const API = '/api/billing';

test('its examples fit its schemas', () => {
  for (const [name, schema] of Object.entries(document.components.schemas))
    for (const one of schema.examples ?? []) conforms(one, 'components', 'schemas', name);
});

test('its defaults for errors hold', async () => {
  await call('GET', `${API}/usage`, { status: 401, headers: { Authorization: 'Bearer pgb_0' } });
  await call('GET', `${API}/usage`, { status: 404, tenant: 'nobody' });
  await call('GET', `${API}/usage`, { status: 400, query: '?x=1' });
  await call('POST', `${API}/events`, { status: 415, body: '{}', headers: { 'Content-Type': 'text/plain' } });
  await call('POST', `${API}/events`, { status: 413, body: ' '.repeat(2 << 20) });
  await call('POST', `${API}/events`, { status: 422, body: { metric: 'nope' } });
  await call('GET', `${API}/check`, { status: 402, query: '?metric=api_calls', tenant: 'idle' });
  await call('GET', `${API}/subscription`, { status: 404, tenant: 'idle' });
});

test('subscription', async () => {
  await call('POST', `${API}/subscription`, { status: 201, body: { planTier: 'free' } });
  await call('POST', `${API}/subscription`, { status: 409, body: example('NewSubscription') });
  await call('GET', `${API}/subscription`, { status: 200 });
  await call('POST', `${API}/subscription/preview`, { status: 200, body: example('PlanChange') });
  await call('GET', `${API}/invoices/upcoming`, { status: 200 });
  await call('DELETE', `${API}/subscription`, { status: 200 });
  await call('DELETE', `${API}/subscription`, { status: 200, body: example('Cancellation') });
  await call('POST', `${API}/subscription`, { status: 201, body: { planTier: 'free' } });
});

test('usage', async () => {
  await call('POST', `${API}/events`, { status: 201, body: example('Event') });
  await call('POST', `${API}/events`, { status: 200, body: example('Event') });
  await call('POST', `${API}/events`, { status: 200, body: [example('Event'), { metric: 'nope' }, { metric: 'api_calls', oops: 1 }] });
  const cloud = { 'Content-Type': 'application/cloudevents+json' };
  await call('POST', `${API}/events`, { status: 201, body: example('CloudEvent'), headers: cloud });
  await call('POST', `${API}/events`, { status: 400, body: { ...example('CloudEvent'), specversion: '0.3' }, headers: cloud });
  await call('POST', `${API}/events`, { status: 200, body: [example('CloudEvent'), {}], headers: { 'Content-Type': 'application/cloudevents-batch+json' } });
  const { specversion, id, source, type, data } = example('CloudEvent');
  const attributes = Object.fromEntries(Object.entries({ specversion, id, source, type }).map(([name, value]) => [`ce-${name}`, value]));
  await call('POST', `${API}/events`, { status: 200, body: data, headers: attributes });
  await call('POST', `${API}/consume`, { status: 200, body: example('Consumption') });
  await call('POST', `${API}/consume`, { status: 429, body: { metric: 'user_seats', quantity: '4' } });
  await call('POST', `${API}/consume`, { status: 402, body: { metric: 'api_calls', quantity: 1200.0 } });
  await call('GET', `${API}/check`, { status: 200, query: '?metric=storage_gb&quantity=0.5' });
  await call('GET', `${API}/check`, { status: 429, query: '?metric=user_seats&quantity=4' });
  await call('GET', `${API}/gateway/{metric}`, { status: 200, params: { metric: 'storage_gb' }, query: '?quantity=0.5' });
  await call('GET', `${API}/gateway/{metric}`, { status: 429, params: { metric: 'user_seats' }, query: '?quantity=4' });
  const session = await call('POST', `${API}/sessions`, { status: 201, body: example('SessionRequest') });
  await call('GET', `${API}/usage`, { status: 200, headers: { Authorization: `Bearer ${session.token}` } });
  await call('POST', `${API}/sessions`, { status: 422, body: { expiresInSeconds: 0 } });
  const held = await call('POST', `${API}/reservations`, { status: 201, body: example('ReservationRequest') });
  await call('POST', `${API}/reservations/{id}/settle`, { status: 200, params: { id: held.reservationId }, body: example('Settlement') });
  await call('POST', `${API}/reservations/{id}/release`, { status: 409, params: { id: held.reservationId } });
  await call('POST', `${API}/reservations/{id}/release`, { status: 404, params: { id: randomUUID() } });
  const other = await call('POST', `${API}/reservations`, { status: 201, body: { metric: 'llm_tokens' } });
  await call('POST', `${API}/reservations/{id}/release`, { status: 200, params: { id: other.reservationId }, body: {} });
  await call('POST', `${API}/reservations`, { status: 429, body: { metric: 'user_seats', quantity: 9 } });
  await call('GET', `${API}/usage`, { status: 200 });
  await call('GET', `${API}/usage/{metric}`, { status: 200, params: { metric: 'user_seats' } });
  await call('GET', `${API}/quotas`, { status: 200 });
  await call('PUT', `${API}/subscription`, { status: 200, body: example('PlanChange') });
});

test('invoices', async () => {
  const page = await call('GET', `${API}/invoices`, { status: 200, query: '?limit=1' });
  assert.equal(page.hasMore, true);
  const id = page.data[0].id;
  await call('GET', `${API}/invoices`, { status: 200, query: `?startingAfter=${id}` });
  await call('GET', `${API}/invoices`, { status: 400, query: '?limit=0' });
  await call('GET', `${API}/invoices/{id}`, { status: 200, params: { id } });
  await call('GET', `${API}/invoices/{id}`, { status: 404, params: { id: 'in_0' } });
  await call('GET', `${API}/invoices/{id}/pdf`, { status: 200, params: { id } });
});

test('webhooks and operation', async () => {
  const event = JSON.stringify({ id: 'evt_described', object: 'event', type: 'invoice.paid', data: { object: { id: 'in_1', object: 'invoice' } } });
  const now = Math.floor(Date.now() / 1000);
  const signature = `t=${now},v1=${createHmac('sha256', 'whsec_none').update(`${now}.${event}`).digest('hex')}`;
  await call('POST', `${API}/webhooks/stripe`, { status: 200, body: event, headers: { 'Stripe-Signature': signature } });
  await call('POST', `${API}/webhooks/stripe`, { status: 400, body: event, headers: { 'Stripe-Signature': 't=1,v1=0' } });
  await call('GET', '/healthz', { status: 200 });
  await call('GET', '/readyz', { status: 200 });
  await call('GET', '/metrics', { status: 200 });
  await call('GET', '/metrics', { status: 401, headers: { Authorization: 'Bearer pgb_0' } });
  await call('GET', '/openapi.json', { status: 200 });
});

test('every operation was called', () => {
  const all = Object.entries(document.paths).flatMap(([path, operations]) => Object.keys(operations).map((method) => `${method} ${path}`));
  assert.deepEqual(all.filter((operation) => !called.has(operation)), []);
});
