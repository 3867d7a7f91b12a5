// Products, meters, prices and lists: what setting up a plan needs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, raw, refuses, requests } from './sandbox.js';

const stripe = client();

test('a product keeps the id it is given, once', async () => {
    const product = await stripe.products.create({ id: 'plan_pro', name: 'Pro', metadata: { a: '1', b: '2' } });
    assert.equal(product.id, 'plan_pro');
    assert.equal(product.livemode, false);
    await refuses(stripe.products.create({ id: 'plan_pro', name: 'Pro' }), {
        code: 'resource_already_exists',
        statusCode: 400,
        param: 'id',
    });
    const updated = await stripe.products.update('plan_pro', { name: 'Pro 2', metadata: { a: '', c: '3' } });
    assert.deepEqual(updated.metadata, { b: '2', c: '3' });
    assert.equal((await stripe.products.retrieve('plan_pro')).name, 'Pro 2');
    await refuses(stripe.products.retrieve('plan_none'), { code: 'resource_missing', statusCode: 404 });
    const lonely = await stripe.products.create({ name: 'Lonely' });
    assert.equal((await stripe.products.del(lonely.id)).deleted, true);
    await refuses(stripe.products.retrieve(lonely.id), { code: 'resource_missing' });
});

test('a meter is found by its event name, which only one active meter may have', async () => {
    const meter = await stripe.billing.meters.create({
        display_name: 'Calls',
        event_name: 'calls',
        default_aggregation: { formula: 'sum' },
        event_time_window: 'hour',
    });
    assert.equal(meter.status, 'active');
    assert.equal(meter.customer_mapping.event_payload_key, 'stripe_customer_id');
    const again = () =>
        stripe.billing.meters.create({
            display_name: 'Calls',
            event_name: 'calls',
            default_aggregation: { formula: 'sum' },
        });
    await refuses(again(), { statusCode: 400, param: 'event_name' });
    const active = await stripe.billing.meters.list({ status: 'active', limit: 100 });
    assert.deepEqual(active.data.map((m) => m.id), [meter.id]);
    await stripe.billing.meters.deactivate(meter.id);
    assert.equal((await stripe.billing.meters.list({ status: 'active' })).data.length, 0);
    const second = await again();
    await refuses(stripe.billing.meters.reactivate(meter.id), { statusCode: 400 });
    assert.equal((await stripe.billing.meters.update(second.id, { display_name: 'C' })).display_name, 'C');
});

test('a tiered price shows its tiers on request and is found by its lookup key', async () => {
    const product = await stripe.products.create({ name: 'API calls' });
    const meter = await stripe.billing.meters.create({
        display_name: 'Tiered',
        event_name: 'tiered',
        default_aggregation: { formula: 'sum' },
    });
    const params = {
        product: product.id,
        currency: 'usd',
        lookup_key: 'pro_calls',
        billing_scheme: 'tiered',
        tiers_mode: 'graduated',
        tiers: [
            { up_to: 100000, unit_amount: 0 },
            { up_to: 'inf', unit_amount_decimal: '0.0004' },
        ],
        recurring: { interval: 'month', usage_type: 'metered', meter: meter.id },
    };
    const price = await stripe.prices.create(params);
    assert.equal(price.tiers, undefined, 'tiers are shown only when expanded');
    assert.equal(price.unit_amount, null);
    const found = await stripe.prices.list({ lookup_keys: ['pro_calls'], active: true, expand: ['data.tiers'] });
    assert.deepEqual(found.data.map((p) => p.id), [price.id]);
    const [first, second] = found.data[0].tiers;
    assert.deepEqual([first.up_to, first.unit_amount, String(first.unit_amount_decimal)], [100000, 0, '0']);
    assert.deepEqual([second.up_to, second.unit_amount, String(second.unit_amount_decimal)], [null, null, '0.0004']);

    await refuses(stripe.prices.create(params), { param: 'lookup_key', statusCode: 400 });
    const successor = await stripe.prices.create({ ...params, transfer_lookup_key: true });
    assert.equal((await stripe.prices.retrieve(price.id)).lookup_key, null);
    assert.equal((await stripe.prices.retrieve(successor.id, { expand: ['tiers', 'product'] })).product.name, 'API calls');
    assert.equal((await stripe.prices.update(price.id, { active: false })).active, false);
    const active = await stripe.prices.list({ product: product.id, active: true });
    assert.deepEqual(active.data.map((p) => p.id), [successor.id]);
});

test('prices that Stripe refuses are refused', async () => {
    const product = (await stripe.products.create({ name: 'Refused' })).id;
    const month = { interval: 'month' };
    const tiered = { product, currency: 'usd', billing_scheme: 'tiered', tiers_mode: 'graduated', recurring: month };
    const cases = [
        [{ product, currency: 'usd', recurring: month }, 'parameter_missing'],
        [{ product, currency: 'usd', unit_amount: 1, unit_amount_decimal: '1', recurring: month }],
        [{ product, currency: 'usd', unit_amount: -1, recurring: month }],
        [{ product, currency: 'usd', unit_amount_decimal: '0.1234567890123', recurring: month }],
        [{ product, currency: 'usd', unit_amount_decimal: '1e-5', recurring: month }],
        [{ product, currency: 'usd', unit_amount: 1, recurring: { interval: 'fortnight' } }],
        [{ product, currency: 'usd', unit_amount: 1, recurring: { ...month, usage_type: 'metered' } }],
        [{ product: 'prod_none', currency: 'usd', unit_amount: 1, recurring: month }, 'resource_missing'],
        [{ ...tiered }],
        [{ ...tiered, tiers: [{ up_to: 10, unit_amount: 1 }] }],
        [{ ...tiered, tiers: [{ up_to: 'inf', unit_amount: 1 }, { up_to: 10, unit_amount: 1 }] }],
        [{ ...tiered, tiers: [{ up_to: 10, unit_amount: 1 }, { up_to: 10, unit_amount: 1 }, { up_to: 'inf', unit_amount: 1 }] }],
        [{ ...tiered, tiers: [{ up_to: 'inf' }] }],
    ];
    for (const [params, code] of cases) {
        const expected = { statusCode: 400, message: /^(?!Received unknown)/, ...(code && { code }) };
        await refuses(stripe.prices.create(params), expected, JSON.stringify(params));
    }
    assert.equal((await stripe.prices.list({ product })).data.length, 0);
});

test('every parameter is held to Stripe’s own table', async () => {
    const refused = async (method, path, body, status, code, param) => {
        const answer = await raw(method, path, body);
        const { error } = await answer.json();
        assert.equal(answer.status, status, `${path} ${body}: ${error?.message}`);
        assert.equal(error.code, code, `${path} ${body}`);
        if (param) assert.equal(error.param, param);
        assert.match(answer.headers.get('request-id'), /^req_/);
    };
    await refused('POST', '/v1/products', 'name=a&colour=red', 400, 'parameter_unknown', 'colour');
    await refused('POST', '/v1/products', 'description=a', 400, 'parameter_missing', 'name');
    await refused('POST', '/v1/products', 'name=', 400, 'parameter_invalid_empty', 'name');
    await refused('POST', '/v1/products', `name=${'x'.repeat(5001)}`, 400, 'parameter_invalid_string_max_length', 'name');
    await refused('POST', '/v1/products', 'name=a&active=yes', 400, 'parameter_invalid_boolean', 'active');
    await refused('POST', '/v1/products', 'name[a]=b', 400, undefined, 'name');
    await refused('POST', '/v1/products', 'name=%ff', 400);
    await refused('POST', '/v1/products', 'name=%', 400);
    await refused('POST', '/v1/products', 'name=a&metadata=b', 400, undefined, 'metadata');
    await refused('GET', '/v1/prices?limit=ten', undefined, 400, 'parameter_invalid_integer', 'limit');
    await refused('GET', '/v1/prices?limit=101', undefined, 400, 'parameter_invalid_integer', 'limit');
    await refused('POST', '/v1/prices', 'currency=usd&recurring[usage_type]=metered', 400, 'parameter_missing', 'recurring[interval]');
    await refused('POST', '/v1/subscriptions', 'customer=a&items[0][prise]=b', 400, 'parameter_unknown', 'items[0][prise]');
    await refused('POST', '/v1/billing/meters', 'display_name=a&event_name=b&default_aggregation[formula]=max', 400, undefined, 'default_aggregation[formula]');
    await refused('GET', '/v1/nothing', undefined, 404);
    await refused('PUT', '/v1/products', 'name=a', 404);
    await refused('GET', '/v1/invoices/upcoming', undefined, 404);
    await refused('POST', '/v1/subscription_items/si_1/usage_records', 'quantity=1', 404);
    await refused('POST', '/v1/checkout/sessions', 'mode=payment', 501, 'sandbox_unsupported');
    await refused('POST', '/v1/products', 'name=a&shippable=true', 501, 'sandbox_unsupported');
    await refused('GET', '/v1/products?expand[]=data.nothing', undefined, 400, undefined, 'expand');
});

test('keys are told apart as Stripe does', async () => {
    await refuses(client({}, 'sk_test_invalid').products.list(), { type: 'StripeAuthenticationError', statusCode: 401 });
    await refuses(client({}, 'sk_live_x').products.list(), { type: 'StripeAuthenticationError' });
    await refuses(client({}, 'rk_test_readonly').products.create({ name: 'a' }), { type: 'StripePermissionError' });
    await client({}, 'rk_test_readonly').products.list();
    assert.equal((await raw('GET', '/v1/products', undefined, { authorization: '' })).status, 401);
    const basic = `Basic ${Buffer.from('sk_test_client:').toString('base64')}`;
    assert.equal((await raw('GET', '/v1/products', undefined, { authorization: basic })).status, 200);
});

test('lists are newest first and paged by cursor', async () => {
    const ids = [];
    for (let i = 0; i < 25; i++) ids.unshift((await stripe.customers.create({ email: 'page@example.com' })).id);
    const first = await stripe.customers.list({ email: 'page@example.com' });
    assert.deepEqual(first.data.map((c) => c.id), ids.slice(0, 10));
    assert.equal(first.has_more, true);
    const second = await stripe.customers.list({ email: 'page@example.com', limit: 20, starting_after: ids[9] });
    assert.deepEqual(second.data.map((c) => c.id), ids.slice(10));
    assert.equal(second.has_more, false);
    const back = await stripe.customers.list({ email: 'page@example.com', limit: 3, ending_before: ids[5] });
    assert.deepEqual(back.data.map((c) => c.id), ids.slice(2, 5));
    assert.equal(back.has_more, true);
    const all = await stripe.customers.list({ email: 'page@example.com', limit: 7 }).autoPagingToArray({ limit: 100 });
    assert.deepEqual(all.map((c) => c.id), ids);
    await refuses(stripe.customers.list({ starting_after: 'cus_none' }), { statusCode: 400 });
});

test('the log shows what was asked for', async () => {
    await stripe.products.create({ name: 'Logged' }, { idempotencyKey: 'key-of-log' });
    const entry = (await requests('/v1/products')).at(-1);
    assert.equal(entry.method, 'POST');
    assert.deepEqual(entry.params, { name: 'Logged' });
    assert.equal(entry.idempotency_key, 'key-of-log');
    assert.equal(entry.version, '2026-10-28.endive');
    assert.equal(entry.status, 200);
});
