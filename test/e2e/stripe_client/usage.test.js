// Meter events and their summaries.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, clientOfAllHosts, control, refuses, requests } from './sandbox.js';

const stripe = client({ maxNetworkRetries: 0 });
const HOUR = 3600;
const noon = Date.UTC(2026, 4, 10, 12) / 1000; // the test clock's time throughout

async function setUp(event_name, more = {}) {
    const meter = await stripe.billing.meters.create({
        display_name: event_name,
        event_name,
        default_aggregation: { formula: 'sum' },
        ...more,
    });
    const clock = await stripe.testHelpers.testClocks.create({ frozen_time: noon });
    const customer = await stripe.customers.create({ test_clock: clock.id });
    const send = (value, timestamp, identifier) =>
        stripe.billing.meterEvents.create({
            event_name,
            payload: { stripe_customer_id: customer.id, value: String(value) },
            ...(timestamp && { timestamp }),
            ...(identifier && { identifier }),
        });
    const sums = async (params = {}) => {
        const rows = await stripe.billing.meters.listEventSummaries(meter.id, {
            customer: customer.id,
            start_time: noon - 48 * HOUR,
            end_time: noon + 24 * HOUR,
            ...params,
        });
        return rows.data;
    };
    return { meter, customer, send, sums };
}

test('an identifier counts once: the repeat is the documented 400', async () => {
    const { send, sums } = await setUp('dedup');
    const event = await send(5, noon, 'once');
    assert.equal(event.object, 'billing.meter_event');
    assert.equal(event.identifier, 'once');
    await refuses(send(5, noon, 'once'), {
        type: 'StripeInvalidRequestError',
        statusCode: 400,
        code: undefined,
        message: /^An event already exists with identifier once/,
    });
    await send(5, noon, 'twice');
    assert.deepEqual((await sums()).map((s) => s.aggregated_value), [10]);
});

test('a raw meter adds exactly', async () => {
    const { send, sums } = await setUp('raw');
    await send('0.1');
    await send('0.2');
    await send('-0.05');
    assert.deepEqual((await sums()).map((s) => s.aggregated_value), [0.25]);
    assert.equal((await control('GET', 'state')).meters.raw.total, '0.25');
});

test('a windowed meter keeps what was received last in each hour', async () => {
    const { send, sums, customer } = await setUp('hourly', { event_time_window: 'hour' });
    await send(10, noon - HOUR);
    await send(30, noon - HOUR + 5);
    await send(20, noon - 1); // the same hour, received last
    await send(7, noon);
    const hours = await sums({ value_grouping_window: 'hour' });
    assert.deepEqual(
        hours.map((s) => [s.start_time, s.end_time, s.aggregated_value]),
        [[noon, noon + HOUR, 7], [noon - HOUR, noon, 20]],
    );
    assert.deepEqual((await sums()).map((s) => s.aggregated_value), [27]);
    const { total, customers } = (await control('GET', 'state')).meters.hourly;
    assert.equal(total, '27');
    assert.deepEqual(customers[customer.id], {
        total: '27',
        hours: { '2026-05-10T11:00:00Z': '20', '2026-05-10T12:00:00Z': '7' },
    });
});

test('last and count', async () => {
    const last = await setUp('level', { default_aggregation: { formula: 'last' } });
    await last.send(5, noon - 10);
    await last.send(9, noon - 20);
    assert.deepEqual((await last.sums()).map((s) => s.aggregated_value), [5]);
    const count = await setUp('counted', { default_aggregation: { formula: 'count' } });
    await count.send(100);
    await count.send(200);
    assert.deepEqual((await count.sums()).map((s) => s.aggregated_value), [2]);
});

test('a timestamp is held to 35 days back and 5 minutes ahead of the customer’s clock', async () => {
    const { send } = await setUp('window');
    await send(1, noon + 300);
    await refuses(send(1, noon + 301), { code: 'timestamp_in_future' });
    await send(1, noon - 35 * 24 * HOUR);
    await refuses(send(1, noon - 35 * 24 * HOUR - 1), { code: 'timestamp_too_far_in_past' });
});

test('payloads that would not count are refused', async () => {
    const { send, customer, meter } = await setUp('payload');
    for (const [value, code] of [
        ['', 'meter_event_no_value_defined'],
        ['1e3', 'meter_event_invalid_value'],
        ['NaN', 'meter_event_invalid_value'],
        ['1.', 'meter_event_invalid_value'],
        ['1234567890123456', 'meter_event_value_too_many_digits'],
        ['0.1234567890123', 'meter_event_value_too_many_digits'],
    ])
        await refuses(send(value), { statusCode: 400, code }, value);
    await send('123456789012345');
    const create = (payload, event_name = 'payload') => stripe.billing.meterEvents.create({ event_name, payload });
    await refuses(create({ value: '1' }), { code: 'meter_event_no_customer_defined' });
    await refuses(create({ stripe_customer_id: customer.id }), { code: 'meter_event_no_value_defined' });
    await refuses(create({ stripe_customer_id: 'cus_none', value: '1' }), { code: 'resource_missing' });
    await refuses(create({ stripe_customer_id: customer.id, value: '1' }, 'unknown'), { code: 'no_meter' });
    await stripe.billing.meters.deactivate(meter.id);
    await refuses(send('1'), { code: 'archived_meter' });
});

test('summaries are paged, and their bounds aligned', async () => {
    const { send, sums, meter, customer } = await setUp('pages', { event_time_window: 'hour' });
    for (let i = 0; i < 12; i++) await send(i + 1, noon - i * HOUR);
    const list = { customer: customer.id, start_time: noon - 24 * HOUR, end_time: noon + HOUR, value_grouping_window: 'hour' };
    const first = await stripe.billing.meters.listEventSummaries(meter.id, list);
    assert.equal(first.data.length, 10);
    assert.equal(first.has_more, true);
    const all = await stripe.billing.meters.listEventSummaries(meter.id, list).autoPagingToArray({ limit: 100 });
    assert.deepEqual(all.map((s) => s.aggregated_value), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    await refuses(sums({ start_time: noon - 1 }), { param: 'start_time', statusCode: 400 });
    await sums({ start_time: noon - 60 });
    await refuses(sums({ start_time: noon - 60, value_grouping_window: 'hour' }), { param: 'start_time' });
    await refuses(sums({ value_grouping_window: 'day' }), { param: 'start_time' });
    await refuses(sums({ start_time: noon, end_time: noon }), { statusCode: 400 });
    // 12 + 11 + … + 1 = 78, all on the 10th
    const midnight = noon - 12 * HOUR;
    const days = await sums({ start_time: midnight, end_time: midnight + 24 * HOUR, value_grouping_window: 'day' });
    assert.deepEqual(days.map((s) => [s.start_time, s.aggregated_value]), [[midnight, 78]]);
});

test('two calls at once for one customer and meter: the second gets 429 and is counted', async () => {
    const { send } = await setUp('parallel');
    const other = await setUp('parallel_other');
    await control('POST', 'faults', { path_prefix: '/v1/billing/meter_events', fault: 'slow', delay_ms: 200, times: 3 });
    const before = (await control('GET', 'state')).overlapping_meter_calls;
    const results = await Promise.allSettled([send(1), send(2), other.send(3)]);
    const [failed] = results.filter((r) => r.status === 'rejected');
    assert.equal(results.filter((r) => r.status === 'rejected').length, 1, 'other meters are not held up');
    assert.equal(failed.reason.statusCode, 429);
    assert.equal(failed.reason.headers['stripe-rate-limited-reason'], 'resource-specific');
    assert.equal((await control('GET', 'state')).overlapping_meter_calls, before + 1);
    await control('DELETE', 'faults');
    await send(2);
});

test('the event stream takes many events under a session, and counts an identifier once', async () => {
    const one = await setUp('stream_one');
    const hosts = [];
    const session = await clientOfAllHosts('sk_test_client', hosts).v2.billing.meterEventSession.create();
    assert.equal(new Date(session.expires_at) - new Date(session.created), 15 * 60_000);
    const stream = clientOfAllHosts(session.authentication_token, hosts).v2.billing.meterEventStream;
    const event = (identifier, value, timestamp = noon) => ({
        event_name: 'stream_one',
        identifier,
        timestamp: new Date(timestamp * 1000).toISOString(),
        payload: { stripe_customer_id: one.customer.id, value },
    });
    await stream.create({ events: [event('s1', '1.5'), event('s2', '2', noon - HOUR), event('s1', '1.5')] });
    await stream.create({ events: [event('s2', '2')] });
    assert.deepEqual(hosts, ['api.stripe.com', 'meter-events.stripe.com', 'meter-events.stripe.com']);
    assert.equal((await one.sums())[0].aggregated_value, 3.5);
    const hours = await one.sums({ value_grouping_window: 'hour' });
    assert.deepEqual(hours.map((h) => [h.start_time, h.aggregated_value]), [[noon, 1.5], [noon - HOUR, 2]]);
    await refuses(stream.create({ events: Array.from({ length: 101 }, (_, i) => event(`many${i}`, '1')) }), { statusCode: 400 });
    await refuses(stream.create({ events: [{ payload: {} }] }), { statusCode: 400 });
    await refuses(stream.create({ events: [{ ...event('s3', '1'), timestamp: 'noon' }] }), { statusCode: 400 });
    await refuses(clientOfAllHosts('sk_test_client', hosts).v2.billing.meterEventStream.create({ events: [event('s4', '1')] }), { statusCode: 401 });
    await control('POST', 'expire_sessions', {});
    await refuses(stream.create({ events: [event('s5', '1')] }), { statusCode: 401, code: 'billing_meter_event_session_expired' });
    assert.equal((await one.sums())[0].aggregated_value, 3.5);
    assert.ok((await requests('/v2')).every((r) => !JSON.stringify(r).includes(session.authentication_token)));
});

test('what is wrong with an event of the stream is reported, and spoils no other', async () => {
    const { customer, sums } = await setUp('stream_wrong');
    const hosts = [];
    await stripe.v2.core.eventDestinations.create({
        name: 'errors', type: 'webhook_endpoint', event_payload: 'thin', webhook_endpoint: { url: 'http://127.0.0.1:9/none' },
        enabled_events: ['v1.billing.meter.error_report_triggered', 'v1.billing.meter.no_meter_found'],
    });
    const session = await clientOfAllHosts('sk_test_client', hosts).v2.billing.meterEventSession.create();
    const wrong = { event_name: 'stream_wrong', identifier: 'w1', payload: { stripe_customer_id: 'cus_none', value: '1' } };
    const good = { event_name: 'stream_wrong', identifier: 'w2', payload: { stripe_customer_id: customer.id, value: '2' } };
    const nowhere = { event_name: 'stream_nowhere', identifier: 'w3', payload: { stripe_customer_id: customer.id, value: '3' } };
    const stream = clientOfAllHosts(session.authentication_token, hosts).v2.billing.meterEventStream;
    await stream.create({ events: [wrong, { ...good, timestamp: new Date(noon * 1000).toISOString() }, nowhere] });
    assert.equal((await sums())[0].aggregated_value, 2);
    const reports = (await control('GET', 'objects?kind=v2.core.event')).map((e) => [e.type, e.data?.reason.error_types[0].code,
        e.data?.reason.error_types[0].sample_errors[0].request.identifier]);
    assert.deepEqual(reports, [
        ['v1.billing.meter.error_report_triggered', 'meter_event_customer_not_found', 'w1'],
        ['v1.billing.meter.no_meter_found', 'no_meter', 'w3'],
    ]);
});
