// Webhooks: what the sandbox signs with our code, Stripe's client accepts, and the other way round.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, control, receiver, refuses, until } from './sandbox.js';

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

test('what the official client signs, our verifier accepts, and nothing else', async () => {
    const verify = (header, body, secrets, now) => control('POST', 'verify', { header, body, secrets, now }).then((answer) => answer.result);
    const now = 1800000000;
    for (const payload of ['{"id":"evt_1","object":"event"}', '{"note":"é€ “客”\\u0000"}', '', '\n', 'x'.repeat(100000)])
        for (const secret of ['whsec_a', 'whsec_' + 'b'.repeat(100), 'a secret with blanks, and ü']) {
            const header = stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp: now });
            assert.equal(await verify(header, payload, [secret], now), 'valid');
            assert.equal(await verify(header, payload, ['whsec_other', secret], now + 300), 'valid');
            assert.equal(await verify(header, payload, [secret], now + 301), 'timestamp too old');
            assert.equal(await verify(header, payload + ' ', [secret], now), 'no signature matches');
            assert.equal(await verify(header, payload, ['whsec_other'], now), 'no signature matches');
        }
    const payload = '{}';
    const signed = (secret) => stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp: now });
    const rolled = `${signed('whsec_new')},${signed('whsec_old').split(',')[1]}`;
    for (const secret of ['whsec_new', 'whsec_old']) assert.equal(await verify(rolled, payload, [secret], now), 'valid');
    assert.equal(await verify(signed('whsec_a').replace('v1=', 'v0='), payload, ['whsec_a'], now), 'malformed Stripe-Signature header');
});

test('a delivery while a secret is rolled is accepted by the official client with either', async () => {
    const { received, url } = await receiver();
    const endpoint = await register(url, ['product.created']);
    const { secret } = await control('POST', 'roll_secret', { endpoint: endpoint.id });
    assert.notEqual(secret, endpoint.secret);
    await stripe.products.create({ name: 'Rolled' });
    await until(() => received.length === 1, 'the delivery');
    for (const one of [secret, endpoint.secret])
        assert.equal(stripe.webhooks.constructEvent(received[0].body, received[0].signature, one).type, 'product.created');
    await stripe.webhookEndpoints.del(endpoint.id);
});

test('thin events: the official client makes a destination, reads the notification and fetches the event', async () => {
    const { received, url } = await receiver();
    const destination = await stripe.v2.core.eventDestinations.create({
        name: 'thin',
        type: 'webhook_endpoint',
        event_payload: 'thin',
        enabled_events: ['v1.billing.meter.error_report_triggered', 'v1.customer.created'],
        webhook_endpoint: { url },
        include: ['webhook_endpoint.signing_secret'],
    });
    const { signing_secret } = destination.webhook_endpoint;
    const customer = await stripe.customers.create({ name: 'Thin' });
    await until(() => received.length === 1, 'the notification');
    const told = stripe.parseEventNotification(received[0].body, received[0].signature, signing_secret);
    assert.equal(told.type, 'v1.customer.created');
    assert.equal(told.related_object.id, customer.id);
    assert.equal(JSON.parse(received[0].body).data, undefined, 'it holds no data');

    const meter = await stripe.billing.meters.create({ display_name: 'M', event_name: 'm', default_aggregation: { formula: 'sum' } });
    await control('POST', 'uncounted', { code: 'meter_event_customer_not_found', times: 3, samples: 2 });
    for (let i = 0; i < 4; i++)
        await stripe.billing.meterEvents.create({ event_name: 'm', identifier: `m${i}`, payload: { stripe_customer_id: customer.id, value: '1' } });
    await until(() => received.length === 2, 'the report');
    const report = stripe.parseEventNotification(received[1].body, received[1].signature, signing_secret);
    assert.equal(report.related_object.id, meter.id);
    const { data } = await stripe.v2.core.events.retrieve(report.id);
    assert.equal(Number(data.reason.error_count), 3);
    assert.deepEqual(
        data.reason.error_types[0].sample_errors.map((sample) => sample.request.identifier),
        ['m0', 'm1'],
    );
    assert.equal((await control('GET', 'state')).meters.m.total, '1', 'only the fourth is counted');
});

test('a customer that is deleted is gone, and its subscriptions are canceled', async () => {
    const customer = await stripe.customers.create({ name: 'Gone' });
    const { id: product } = await stripe.products.create({ name: 'Gone' });
    const price = await stripe.prices.create({ product, currency: 'usd', unit_amount: 0, recurring: { interval: 'month' } });
    const subscription = await stripe.subscriptions.create({ customer: customer.id, items: [{ price: price.id }] });
    assert.deepEqual(JSON.parse(JSON.stringify(await stripe.customers.del(customer.id))), { id: customer.id, object: 'customer', deleted: true });
    assert.equal((await stripe.customers.retrieve(customer.id)).deleted, true);
    assert.equal((await stripe.subscriptions.retrieve(subscription.id)).status, 'canceled');
    await refuses(stripe.customers.update(customer.id, { name: 'Back' }), { statusCode: 404 });
    await refuses(stripe.subscriptions.create({ customer: customer.id, items: [{ price: price.id }] }), { code: 'resource_missing' });
    assert.deepEqual((await stripe.events.list({ type: 'customer.deleted' })).data.map((event) => event.data.object.id), [customer.id]);
});
