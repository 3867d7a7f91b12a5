// Webhooks: what the sandbox signs with our code, Stripe's client accepts, and the other way round.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, receiver, refuses, until } from './sandbox.js';

const stripe = client({ maxNetworkRetries: 0 });
const register = (url, enabled_events = ['*']) => stripe.webhookEndpoints.create({ url, enabled_events });
const typesOf = (received) => received.map(({ body }) => JSON.parse(body).type);

test('the vectors of test/unit/stripe_signature.cpp are Stripe’s own', () => {
    const payload = '{"id":"evt_1","object":"event","note":"é€"}';
    const secret = 'whsec_test_0123456789';
    const timestamp = 1700000000;
    const header = 't=1700000000,v1=2848f567d51fd8144a7c933948deb799e5dd3ed0eb7b7ba4d8d98c6d2bc8128b';
    assert.equal(stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp }), header);
    assert.equal(stripe.webhooks.constructEvent(payload, header, secret, 300, undefined, timestamp * 1000).id, 'evt_1');
});

test('a delivery is signed so that the official client accepts it', async () => {
    const { received, url } = await receiver();
    const endpoint = await register(url);
    assert.match(endpoint.secret, /^whsec_/);
    assert.equal((await stripe.webhookEndpoints.retrieve(endpoint.id)).secret, undefined, 'shown only at creation');
    const customer = await stripe.customers.create({ name: 'Zoë “Ø” 客' });
    await until(() => received.length >= 1, 'the delivery');
    const { body, signature } = received[0];
    const event = stripe.webhooks.constructEvent(body, signature, endpoint.secret);
    assert.equal(event.type, 'customer.created');
    assert.equal(event.livemode, false);
    assert.deepEqual(event.data.object, JSON.parse(JSON.stringify(await stripe.customers.retrieve(customer.id))));
    assert.throws(() => stripe.webhooks.constructEvent(body, signature, 'whsec_other'), /signature/);
    assert.throws(() => stripe.webhooks.constructEvent(body + ' ', signature, endpoint.secret), /signature/);
    const stored = await until(async () => {
        const found = await stripe.events.retrieve(event.id);
        return found.pending_webhooks === 0 && found;
    }, 'the event to be delivered');
    assert.match(stored.request.id, /^req_/);
    await stripe.webhookEndpoints.del(endpoint.id);
});

test('updates tell what changed, and only the types asked for are sent', async () => {
    const { received, url } = await receiver();
    const endpoint = await register(url, ['customer.updated', 'product.created']);
    const customer = await stripe.customers.create({ name: 'Before' });
    await stripe.customers.update(customer.id, { name: 'After' });
    await stripe.products.create({ name: 'P' });
    await until(() => received.length === 2, 'two deliveries');
    assert.deepEqual(typesOf(received).sort(), ['customer.updated', 'product.created']);
    const update = received.map(({ body }) => JSON.parse(body)).find((e) => e.type === 'customer.updated');
    assert.deepEqual(update.data.previous_attributes, { name: 'Before' });
    assert.equal(update.data.object.name, 'After');
    await stripe.webhookEndpoints.del(endpoint.id);
});

test('a failed delivery is repeated, and what never arrived can be listed', async () => {
    let failures = 2;
    const { received, url } = await receiver(() => (failures-- > 0 ? 500 : 204));
    const endpoint = await register(url, ['product.created']);
    await stripe.products.create({ name: 'Repeat' });
    await until(() => received.length === 3, 'the third attempt');
    const ids = received.map(({ body }) => JSON.parse(body).id);
    assert.equal(new Set(ids).size, 1);
    for (const { body, signature } of received) stripe.webhooks.constructEvent(body, signature, endpoint.secret);
    await until(async () => (await stripe.events.retrieve(ids[0])).pending_webhooks === 0, 'delivery');
    await stripe.webhookEndpoints.del(endpoint.id);

    const deaf = await receiver(() => 301);
    const unheard = await register(deaf.url, ['product.created']);
    const product = await stripe.products.create({ name: 'Unheard' });
    const missed = await stripe.events.list({ delivery_success: false, types: ['product.created', 'product.updated'] });
    assert.deepEqual(missed.data.map((e) => e.data.object.id), [product.id]);
    assert.equal(missed.data[0].pending_webhooks, 1);
    await stripe.webhookEndpoints.del(unheard.id);
});

test('a subscription’s life is told in events', async () => {
    const { received, url } = await receiver();
    const endpoint = await register(url);
    const clock = await stripe.testHelpers.testClocks.create({ frozen_time: 1767225600 });
    const customer = await stripe.customers.create({ test_clock: clock.id });
    const { id: product } = await stripe.products.create({ name: 'Life' });
    const price = await stripe.prices.create({ product, currency: 'usd', unit_amount: 0, recurring: { interval: 'month' } });
    const subscription = await stripe.subscriptions.create({ customer: customer.id, items: [{ price: price.id }] });
    await stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: 1767225600 + 32 * 86400 });
    await stripe.subscriptions.cancel(subscription.id);
    const expected = {
        'customer.created': 1,
        'product.created': 1,
        'price.created': 1,
        'customer.subscription.created': 1,
        'customer.subscription.updated': 1,
        'customer.subscription.deleted': 1,
        'invoice.created': 2,
        'invoice.finalized': 2,
        'invoice.paid': 2,
    };
    const counts = () => {
        const types = typesOf(received);
        return Object.fromEntries(Object.keys(expected).map((type) => [type, types.filter((t) => t === type).length]));
    };
    await until(() => JSON.stringify(counts()) === JSON.stringify(expected), 'every event');
    const renewal = received.map(({ body }) => JSON.parse(body)).find((e) => e.type === 'customer.subscription.updated');
    assert.ok(renewal.data.previous_attributes.latest_invoice);
    assert.equal(renewal.created, 1767225600 + 31 * 86400, 'the clock showed the moment of renewal');
    await stripe.webhookEndpoints.del(endpoint.id);
});

test('only this machine is delivered to', async () => {
    for (const url of ['https://127.0.0.1/x', 'http://example.com/x', 'http://127.0.0.1:99999/', 'nonsense'])
        await refuses(register(url), { statusCode: 400, param: 'url' }, url);
    await refuses(register('http://127.0.0.1/', ['customer.invented']), { statusCode: 400 });
});
