// Idempotency keys, and answers that do not come: what the client's own retries, and ours, must live with.
import assert from 'node:assert/strict';
import { test, beforeEach } from 'node:test';
import { client, control, raw, refuses, requests } from './sandbox.js';

const stripe = client({ maxNetworkRetries: 0 });
const patient = client({ maxNetworkRetries: 3 });
const hasty = client({ maxNetworkRetries: 0, timeout: 300 });
const fault = (kind, more = {}) => control('POST', 'faults', { fault: kind, ...more });
const products = async () => (await control('GET', 'state')).counts.product ?? 0;

beforeEach(() => control('DELETE', 'faults'));

test('a key replays the first result, whatever it was', async () => {
    const options = { idempotencyKey: 'replay' };
    const first = await stripe.products.create({ name: 'Once' }, options);
    const before = await products();
    const second = await stripe.products.create({ name: 'Once' }, options);
    assert.equal(second.id, first.id);
    assert.equal(await products(), before);
    const answer = await raw('POST', '/v1/products', 'name=Once', { 'idempotency-key': 'replay' });
    assert.equal(answer.headers.get('idempotent-replayed'), 'true');
    assert.equal(answer.headers.get('original-request'), first.lastResponse.requestId);
    assert.notEqual(answer.headers.get('request-id'), first.lastResponse.requestId);

    // A refusal by the endpoint itself is a result too: it stands even once its cause is gone.
    await stripe.products.create({ id: 'taken', name: 'a' });
    await refuses(stripe.products.create({ id: 'taken', name: 'b' }, { idempotencyKey: 'late' }), { code: 'resource_already_exists' });
    await stripe.products.del('taken');
    await refuses(stripe.products.create({ id: 'taken', name: 'b' }, { idempotencyKey: 'late' }), { code: 'resource_already_exists' });
});

test('a key with other parameters is an error, and changes nothing', async () => {
    await stripe.products.create({ name: 'A' }, { idempotencyKey: 'mismatch' });
    const before = await products();
    await refuses(stripe.products.create({ name: 'B' }, { idempotencyKey: 'mismatch' }), {
        type: 'StripeIdempotencyError',
        statusCode: 400,
    });
    await refuses(stripe.customers.create({ name: 'A' }, { idempotencyKey: 'mismatch' }), { type: 'StripeIdempotencyError' });
    assert.equal(await products(), before);
});

test('what was refused before it began is not remembered', async () => {
    const key = { idempotencyKey: 'not-begun' };
    const bad = await raw('POST', '/v1/products', 'colour=red', { 'idempotency-key': key.idempotencyKey });
    assert.equal(bad.status, 400);
    await refuses(client({}, 'sk_test_invalid').products.create({ name: 'C' }, key), { statusCode: 401 });
    await fault('429');
    await refuses(stripe.products.create({ name: 'C' }, key), { statusCode: 429 });
    assert.equal((await stripe.products.create({ name: 'C' }, key)).name, 'C');
});

test('a key in use is a conflict', async () => {
    await fault('slow', { delay_ms: 300 });
    const both = await Promise.allSettled([
        stripe.products.create({ name: 'D' }, { idempotencyKey: 'in-use' }),
        stripe.products.create({ name: 'D' }, { idempotencyKey: 'in-use' }),
    ]);
    const failed = both.filter((r) => r.status === 'rejected').map((r) => r.reason);
    assert.deepEqual(failed.map((e) => [e.statusCode, e.code]), [[409, 'idempotency_key_in_use']]);
});

test('the client retries a 500 that had no effect', async () => {
    const before = await products();
    await fault('500', { times: 2, method: 'POST' });
    await patient.products.create({ name: 'E' });
    assert.equal(await products(), before + 1);
    const three = (await requests('/v1/products')).slice(-3);
    assert.deepEqual(three.map((r) => r.status), [500, 500, 200]);
    assert.equal(new Set(three.map((r) => r.idempotency_key)).size, 1, 'always with the same key');
});

test('a stored 500 replays for its key', async () => {
    await fault('500', { stored: true });
    const key = { idempotencyKey: 'stored' };
    await refuses(stripe.products.create({ name: 'F' }, key), { statusCode: 500 });
    await refuses(stripe.products.create({ name: 'F' }, key), { statusCode: 500 });
    await stripe.products.create({ name: 'F' }, { idempotencyKey: 'another' });
});

test('429: the client gives up unless told to retry', async () => {
    await fault('429', { retry_after: 7 });
    await assert.rejects(patient.products.create({ name: 'G' }), (error) => {
        assert.equal(error.type, 'StripeRateLimitError');
        assert.equal(error.headers['retry-after'], '7');
        return true;
    });
    await fault('429', { should_retry: true, times: 2 });
    await patient.products.create({ name: 'G' });
});

test('an answer dropped after the effect: the retry finds it done', async () => {
    const before = await products();
    await fault('drop_after');
    const product = await patient.products.create({ name: 'H' });
    assert.equal(await products(), before + 1);
    assert.equal((await stripe.products.retrieve(product.id)).name, 'H');
    // Twice, because the client repeats a reset connection once even without retries.
    await fault('drop_after', { times: 2 });
    const key = { idempotencyKey: 'dropped' };
    await refuses(stripe.products.create({ name: 'I' }, key), { type: 'StripeConnectionError' });
    assert.equal(await products(), before + 2);
});

test('an answer dropped before the effect: the retry does it', async () => {
    const before = await products();
    await fault('drop_before', { times: 2 });
    await refuses(stripe.products.create({ name: 'J' }), { type: 'StripeConnectionError' });
    assert.equal(await products(), before);
    await fault('drop_before', { times: 2 });
    await patient.products.create({ name: 'J' });
    assert.equal(await products(), before + 1);
});

test('never answered: the client times out, with or without the effect', async () => {
    const before = await products();
    await fault('timeout');
    await refuses(hasty.products.create({ name: 'K' }), { type: 'StripeConnectionError', message: /timeout|aborted|retries/i });
    assert.equal(await products(), before);
    await fault('timeout', { effect: true });
    await refuses(hasty.products.create({ name: 'L' }, { idempotencyKey: 'lost' }), { type: 'StripeConnectionError' });
    assert.equal(await products(), before + 1);
    await stripe.products.create({ name: 'L' }, { idempotencyKey: 'lost' });
    assert.equal(await products(), before + 1, 'the key still stands for the first effect');
});

test('faults strike only what they name, and as often as they should', async () => {
    await fault('500', { method: 'GET', path_prefix: '/v1/prices', times: 1 });
    await stripe.products.list();
    await refuses(stripe.prices.list(), { statusCode: 500 });
    await stripe.prices.list();
    await fault('500', { path_prefix: '/v1/prices', probability: 0.5 });
    let failures = 0;
    for (let i = 0; i < 100; i++) await stripe.prices.list().catch(() => failures++);
    assert.ok(failures > 20 && failures < 80, `${failures} of 100 failed`);
    await control('DELETE', 'faults');
    await stripe.prices.list();
    for (const wrong of [{}, { fault: 'fire' }, { fault: '500', colour: 'red' }, { fault: '500', times: 'often' }, { fault: '500', probability: 2 }])
        await assert.rejects(control('POST', 'faults', wrong), /400/, JSON.stringify(wrong));
});
