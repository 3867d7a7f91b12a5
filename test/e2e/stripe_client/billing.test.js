// Subscriptions and invoices on a test clock, every total worked by hand.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, control, refuses } from './sandbox.js';

const stripe = client({ maxNetworkRetries: 0 });
const HOUR = 3600;
const at = (...date) => Date.UTC(...date) / 1000;
const created = at(2026, 0, 10, 9, 17, 33); // 10 January 2026, 09:17:33: nobody subscribes on the hour
const start = at(2026, 0, 10, 9);
const end = at(2026, 1, 10, 9);

const meter = await stripe.billing.meters.create({
    display_name: 'Tokens',
    event_name: 'tokens',
    default_aggregation: { formula: 'sum' },
    event_time_window: 'hour',
});
const { id: product } = await stripe.products.create({ name: 'Tokens' });
const month = { interval: 'month' };
const metered = { ...month, usage_type: 'metered', meter: meter.id };
const flat = await stripe.prices.create({ product, currency: 'usd', unit_amount: 9900, recurring: month });
const free = await stripe.prices.create({ product, currency: 'usd', unit_amount: 0, recurring: month });
const tiered = await stripe.prices.create({
    product,
    currency: 'usd',
    billing_scheme: 'tiered',
    tiers_mode: 'graduated',
    tiers: [
        { up_to: 1000000, unit_amount: 0 },
        { up_to: 'inf', unit_amount_decimal: '0.001' }, // $0.01 per 1,000
    ],
    recurring: metered,
});

async function customerOnClock(frozen_time = created, more = {}) {
    const clock = await stripe.testHelpers.testClocks.create({ frozen_time });
    const customer = await stripe.customers.create({ test_clock: clock.id, email: 'a@example.com', name: 'A', ...more });
    return { clock, customer };
}

// What pg_billing asks for: the period starts with the hour and lasts a whole month.
function subscribe(customer, prices, more = {}) {
    return stripe.subscriptions.create({
        customer: customer.id,
        items: prices.map((price) => ({ price: price.id })),
        billing_mode: { type: 'flexible' },
        backdate_start_date: start,
        billing_cycle_anchor: end,
        collection_method: 'send_invoice',
        days_until_due: 14,
        expand: ['latest_invoice'],
        ...more,
    });
}

const use = (customer, value, timestamp) =>
    stripe.billing.meterEvents.create({
        event_name: 'tokens',
        timestamp,
        payload: { stripe_customer_id: customer.id, value: String(value) },
    });
const advance = async (clock, frozen_time) => {
    const answer = await stripe.testHelpers.testClocks.advance(clock.id, { frozen_time });
    assert.equal(answer.status, 'advancing');
    assert.equal((await stripe.testHelpers.testClocks.retrieve(clock.id)).status, 'ready');
};
const invoicesOf = async (subscription) => (await stripe.invoices.list({ subscription: subscription.id, limit: 100 })).data;
const figures = (invoice) => invoice.lines.data.map((line) => [line.amount, String(line.quantity_decimal), line.pricing.price_details.price]);

test('a month: flat fee in advance, graduated usage in arrears, draft for an hour', async () => {
    const { clock, customer } = await customerOnClock();
    const subscription = await subscribe(customer, [flat, tiered]);
    assert.equal(subscription.status, 'active', 'send_invoice is active at once');
    assert.equal(subscription.billing_mode.type, 'flexible');
    assert.equal(subscription.start_date, start);
    const [flatItem, usageItem] = subscription.items.data;
    for (const item of [flatItem, usageItem])
        assert.deepEqual([item.current_period_start, item.current_period_end], [start, end]);
    assert.equal(flatItem.price.unit_amount, 9900, 'an item shows its price whole');
    assert.equal(usageItem.quantity, undefined);

    // The first invoice bills the whole first month of the flat fee, no usage.
    const first = subscription.latest_invoice;
    assert.equal(first.billing_reason, 'subscription_create');
    assert.deepEqual(figures(first), [[9900, '1', flat.id]]);
    assert.deepEqual(first.lines.data[0].period, { start, end });
    assert.equal(first.status, 'draft');
    assert.equal(first.hosted_invoice_url, null);
    assert.equal(first.automatically_finalizes_at, created + HOUR);
    await advance(clock, created + HOUR);
    const opened = await stripe.invoices.retrieve(first.id);
    assert.equal(opened.status, 'open');
    assert.match(opened.number, /-0001$/);
    assert.equal(opened.due_date, created + HOUR + 14 * 24 * HOUR);
    assert.ok(opened.hosted_invoice_url && opened.invoice_pdf);

    await use(customer, 900000, start + 1); // the backdated hour counts
    await use(customer, 600000, created + HOUR);
    await use(customer, 634567, created + HOUR + 60); // the same hour: overwrites
    // 900,000 + 634,567 = 1,534,567 so far; the preview bills them and the next month's fee:
    // 1,000,000 free; 534,567 x 0.001 = 534.567 cents, rounded to 535; 9900 + 535 = 10435.
    const preview = await stripe.invoices.createPreview({ subscription: subscription.id });
    assert.equal(preview.total, 10435);
    assert.match(preview.id, /^upcoming_in_/);
    assert.equal((await stripe.invoices.createPreview({ customer: customer.id })).total, 10435);
    assert.equal((await invoicesOf(subscription)).length, 1, 'a preview leaves nothing behind');

    await advance(clock, end + 60);
    const renewed = await stripe.subscriptions.retrieve(subscription.id, { expand: ['latest_invoice'] });
    assert.deepEqual(renewed.items.data.map((i) => i.current_period_start), [end, end]);
    assert.deepEqual(renewed.items.data.map((i) => i.current_period_end), Array(2).fill(at(2026, 2, 10, 9)));
    const cycle = renewed.latest_invoice;
    assert.equal(cycle.billing_reason, 'subscription_cycle');
    assert.equal(cycle.status, 'draft');
    assert.deepEqual([cycle.period_start, cycle.period_end, cycle.created], [start, end, end]);

    // Usage of the ended period counts until the invoice is final; usage of the new one does not.
    await use(customer, 1433, end - 1);
    await use(customer, 5000, end);
    await advance(clock, end + HOUR);
    // 900,000 + 634,567 + 1,433 = 1,536,000: 1,000,000 free, 536,000 x 0.001 = 536.
    const final = await stripe.invoices.retrieve(cycle.id);
    assert.equal(final.status, 'open');
    assert.deepEqual(figures(final), [
        [0, '1000000', tiered.id],
        [536, '536000', tiered.id],
        [9900, '1', flat.id],
    ]);
    assert.equal(final.total, 10436);
    assert.equal(final.amount_due, 10436);
    const [, overage, fee] = final.lines.data;
    assert.deepEqual(overage.period, { start, end });
    assert.deepEqual(fee.period, { start: end, end: at(2026, 2, 10, 9) });
    assert.equal(overage.parent.type, 'subscription_item_details');
    assert.equal(overage.parent.subscription_item_details.subscription_item, usageItem.id);
    assert.equal(final.parent.subscription_details.subscription, subscription.id);

    await advance(clock, end + 2 * HOUR);
    await use(customer, 999999999, end - 1);
    assert.equal((await stripe.invoices.retrieve(cycle.id)).total, 10436, 'a final invoice stands');

    const paid = await stripe.invoices.pay(cycle.id, { paid_out_of_band: true });
    assert.deepEqual([paid.status, paid.amount_paid, paid.amount_remaining], ['paid', 10436, 0]);
    await refuses(stripe.invoices.pay(cycle.id), { code: 'invoice_already_paid' });
    const open = await stripe.invoices.list({ subscription: subscription.id, status: 'open' });
    assert.deepEqual(open.data.map((i) => i.id), [first.id]);
    assert.equal((await stripe.invoices.voidInvoice(first.id)).status, 'void');
});

test('fractions are exact and each line is rounded half up', async () => {
    const raw = await stripe.billing.meters.create({
        display_name: 'Raw',
        event_name: 'raw',
        default_aggregation: { formula: 'sum' },
    });
    const half = await stripe.prices.create({
        product,
        currency: 'usd',
        unit_amount_decimal: '0.5',
        recurring: { ...month, usage_type: 'metered', meter: raw.id },
    });
    const { clock, customer } = await customerOnClock();
    const subscription = await subscribe(customer, [free, half]);
    assert.equal(subscription.latest_invoice.total, 0);
    const add = (value) =>
        stripe.billing.meterEvents.create({ event_name: 'raw', payload: { stripe_customer_id: customer.id, value } });
    for (const value of ['0.1', '0.2', '0.6']) await add(value);
    // 0.9 x 0.5 cents = 0.45, rounded to 0; the integer quantity is cut off.
    const preview = await stripe.invoices.createPreview({ subscription: subscription.id });
    assert.deepEqual(figures(preview), [[0, '0.9', half.id], [0, '1', free.id]]);
    assert.equal(preview.lines.data[0].quantity, 0);
    await add('0.1');
    await advance(clock, end + HOUR);
    const [cycle, first] = await invoicesOf(subscription);
    // In binary 0.1 + 0.2 + 0.6 + 0.1 falls short of 1; here it is 1, and 1 x 0.5 = 0.5 is rounded to 1.
    assert.deepEqual(figures(cycle), [[1, '1', half.id], [0, '1', free.id]]);
    assert.equal(first.status, 'paid', 'an invoice over nothing is paid when it is final');
});

test('more than ten lines are paged', async () => {
    const { clock, customer } = await customerOnClock();
    const tiers = Array.from({ length: 14 }, (_, i) => ({ up_to: i < 13 ? (i + 1) * 10 : 'inf', unit_amount: i + 1 }));
    const stairs = await stripe.prices.create({
        product,
        currency: 'usd',
        billing_scheme: 'tiered',
        tiers_mode: 'graduated',
        tiers,
        recurring: metered,
    });
    const subscription = await subscribe(customer, [stairs]);
    assert.equal(subscription.latest_invoice, null, 'nothing is billed in advance');
    await use(customer, 135, created);
    await advance(clock, end + HOUR);
    const [invoice] = await invoicesOf(subscription);
    assert.equal(invoice.lines.data.length, 10);
    assert.equal(invoice.lines.has_more, true);
    const lines = await stripe.invoices.listLineItems(invoice.id, { limit: 5 }).autoPagingToArray({ limit: 100 });
    assert.equal(lines.length, 14);
    assert.equal(lines.reduce((sum, line) => sum + line.quantity, 0), 135);
    // 10 x (1 + 2 + … + 13) + 5 x 14 = 910 + 70
    assert.equal(invoice.total, 980);
    assert.equal(lines.reduce((sum, line) => sum + line.amount, 0), 980);
});

test('the anchor’s day of the month comes back after a short month', async () => {
    const { clock, customer } = await customerOnClock(at(2026, 0, 31, 8, 30));
    const subscription = await subscribe(customer, [flat], {
        backdate_start_date: at(2026, 0, 31, 8),
        billing_cycle_anchor: undefined,
        billing_cycle_anchor_config: { day_of_month: 31, hour: 8, minute: 0, second: 0 },
    });
    // The first period is whole (the backdated start is a boundary itself), so the fee is billed in full.
    assert.deepEqual(figures(subscription.latest_invoice), [[9900, '1', flat.id]]);
    const ends = [subscription.items.data[0].current_period_end];
    for (let i = 0; i < 3; i++) {
        await advance(clock, ends.at(-1) + 1);
        ends.push((await stripe.subscriptions.retrieve(subscription.id)).items.data[0].current_period_end);
    }
    assert.deepEqual(ends, [at(2026, 1, 28, 8), at(2026, 2, 31, 8), at(2026, 3, 30, 8), at(2026, 4, 31, 8)]);
});

test('a first period cut short is prorated, several that passed are billed one by one', async () => {
    // 10 January 09:17:33 to 20 January 09:17:33 is 10 of the 31 days to 10 February: 9900 x 10 / 31 = 3193.5…
    const short = await customerOnClock();
    const cut = await subscribe(short.customer, [flat], {
        backdate_start_date: undefined,
        billing_cycle_anchor: created + 10 * 24 * HOUR,
    });
    assert.deepEqual(figures(cut.latest_invoice).map(([amount]) => amount), [3194]);
    assert.equal(cut.latest_invoice.lines.data[0].parent.subscription_item_details.proration, true);

    const late = await customerOnClock(at(2026, 2, 20, 9));
    await use(late.customer, 1000300, at(2026, 2, 1));
    const passed = await subscribe(late.customer, [flat, tiered], { billing_cycle_anchor: at(2026, 3, 10, 9) });
    // January-February, February-March (with its usage: 300 x 0.001 = 0.3, rounded to 0), March-April.
    assert.deepEqual(figures(passed.latest_invoice), [
        [9900, '1', flat.id],
        [0, '0', tiered.id],
        [9900, '1', flat.id],
        [0, '1000000', tiered.id],
        [0, '300', tiered.id],
        [9900, '1', flat.id],
    ]);
    assert.deepEqual(passed.items.data.map((i) => i.current_period_start), [at(2026, 2, 10, 9), at(2026, 2, 10, 9)]);
});

test('charging automatically: incomplete until paid, expired after 23 hours', async () => {
    const automatic = { collection_method: 'charge_automatically', days_until_due: undefined };
    const { clock, customer } = await customerOnClock();
    const waiting = await subscribe(customer, [flat], {
        ...automatic,
        payment_behavior: 'default_incomplete',
        payment_settings: { save_default_payment_method: 'on_subscription' },
        expand: ['latest_invoice.confirmation_secret'],
    });
    assert.equal(waiting.status, 'incomplete');
    assert.equal(waiting.latest_invoice.status, 'open');
    assert.match(waiting.latest_invoice.confirmation_secret.client_secret, /^pi_.*_secret_/);
    await refuses(stripe.invoices.pay(waiting.latest_invoice.id), { statusCode: 402, type: 'StripeCardError' });
    await stripe.invoices.pay(waiting.latest_invoice.id, { payment_method: 'pm_card_visa' });
    assert.equal((await stripe.subscriptions.retrieve(waiting.id)).status, 'active');

    const lost = await subscribe(customer, [flat], { ...automatic, payment_behavior: 'default_incomplete' });
    await advance(clock, created + 24 * HOUR);
    assert.equal((await stripe.subscriptions.retrieve(lost.id)).status, 'incomplete_expired');
    assert.equal((await stripe.invoices.retrieve(lost.latest_invoice.id)).status, 'void');

    await refuses(subscribe(customer, [flat], { ...automatic, payment_behavior: 'error_if_incomplete' }), { statusCode: 402 });
    const gratis = await subscribe(customer, [free], automatic);
    assert.deepEqual([gratis.status, gratis.latest_invoice.status], ['active', 'paid']);

    const card = await customerOnClock(created, { invoice_settings: { default_payment_method: 'pm_card_visa' } });
    const charged = await subscribe(card.customer, [flat], automatic);
    assert.deepEqual([charged.status, charged.latest_invoice.status], ['active', 'paid']);
    // The card fails at renewal: past due until it is paid.
    await stripe.customers.update(card.customer.id, { invoice_settings: { default_payment_method: 'pm_card_chargeCustomerFail' } });
    await advance(card.clock, end + HOUR);
    assert.equal((await stripe.subscriptions.retrieve(charged.id)).status, 'past_due');
    const [unpaid] = await invoicesOf(charged);
    assert.deepEqual([unpaid.status, unpaid.attempt_count], ['open', 1]);
    await stripe.invoices.pay(unpaid.id, { paid_out_of_band: true });
    assert.equal((await stripe.subscriptions.retrieve(charged.id)).status, 'active');
});

test('a trial bills nothing, then a whole period', async () => {
    const { clock, customer } = await customerOnClock();
    const trial = await subscribe(customer, [flat, tiered], {
        backdate_start_date: undefined,
        billing_cycle_anchor: undefined,
        trial_period_days: 7,
    });
    assert.equal(trial.status, 'trialing');
    assert.equal(trial.latest_invoice.total, 0);
    const over = created + 7 * 24 * HOUR;
    assert.equal(trial.trial_end, over);
    await use(customer, 5000000, created);
    await advance(clock, over + HOUR);
    const after = await stripe.subscriptions.retrieve(trial.id, { expand: ['latest_invoice'] });
    assert.equal(after.status, 'active');
    assert.deepEqual(figures(after.latest_invoice), [[9900, '1', flat.id]]);
    assert.equal(after.items.data[0].current_period_start, over);
});

test('cancelling: at once, with the usage so far, or at the period’s end', async () => {
    const { clock, customer } = await customerOnClock();
    const now = await subscribe(customer, [flat, tiered]);
    await use(customer, 1002000, start + 1);
    const gone = await stripe.subscriptions.cancel(now.id, { invoice_now: true });
    assert.deepEqual([gone.status, gone.ended_at], ['canceled', created]);
    const [last] = await invoicesOf(now);
    assert.deepEqual(figures(last).map(([amount, quantity]) => [amount, quantity]), [[0, '1000000'], [2, '2000']]);
    await refuses(stripe.subscriptions.cancel(now.id), { statusCode: 404 });
    await refuses(stripe.invoices.createPreview({ subscription: now.id }), { code: 'invoice_upcoming_none' });

    const later = await subscribe(customer, [flat, tiered]);
    const ending = await stripe.subscriptions.update(later.id, { cancel_at_period_end: true, metadata: { why: 'x' } });
    assert.deepEqual([ending.status, ending.cancel_at, ending.metadata.why], ['active', end, 'x']);
    await advance(clock, end + HOUR);
    assert.equal((await stripe.subscriptions.retrieve(later.id)).status, 'canceled');
    assert.deepEqual(figures((await invoicesOf(later))[0]).map(([amount]) => amount), [0, 2]);
    const items = await stripe.subscriptionItems.list({ subscription: later.id });
    assert.deepEqual(items.data.map((i) => i.price.id), [flat.id, tiered.id]);
    assert.deepEqual((await stripe.subscriptions.list({ customer: customer.id })).data, []);
    assert.equal((await stripe.subscriptions.list({ customer: customer.id, status: 'all' })).data.length, 2);
    assert.equal((await stripe.subscriptions.list({ test_clock: clock.id, status: 'ended' })).data.length, 2);
    assert.equal((await stripe.subscriptions.list({ status: 'all' })).data.length, 0, 'a clock’s own are not listed');
});

test('a year passes in one step, in order', async () => {
    const { clock, customer } = await customerOnClock();
    const subscription = await subscribe(customer, [flat]);
    await advance(clock, at(2027, 0, 10, 9) + HOUR);
    const invoices = await stripe.invoices.list({ subscription: subscription.id, limit: 100 });
    assert.equal(invoices.data.length, 13);
    assert.deepEqual(invoices.data.map((i) => Number(i.number.slice(-4))), [13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
    for (const invoice of invoices.data.slice(0, -1))
        assert.equal(invoice.status_transitions.finalized_at, invoice.created + HOUR);
    await refuses(stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: created }), { param: 'frozen_time' });
});

test('another price: the rest of the period prorated, what was counted billed at the old price', async () => {
    const half = at(2026, 0, 25, 21); // 15.5 of the period's 31 days are left
    const steep = await stripe.prices.create({ product, currency: 'usd', unit_amount: 1, recurring: metered });
    const dear = await stripe.prices.create({ product, currency: 'usd', unit_amount: 49900, recurring: month });
    const { clock, customer } = await customerOnClock();
    const subscription = await subscribe(customer, [flat, tiered]);
    await use(customer, 1002000, start + 1);
    await advance(clock, half);
    const turn = ([one, other], more = {}) => ({
        items: subscription.items.data.map((item, n) => ({ id: item.id, price: [one, other][n].id })),
        ...more,
    });
    await refuses(stripe.subscriptions.update(subscription.id, { items: [{ id: 'si_none', price: dear.id }] }), { code: 'resource_missing' });
    await refuses(stripe.subscriptions.update(subscription.id, turn([dear, dear])), { statusCode: 400 });
    const changed = await stripe.subscriptions.update(subscription.id, turn([dear, steep]));
    assert.deepEqual(changed.items.data.map((i) => i.id), subscription.items.data.map((i) => i.id));
    assert.deepEqual(changed.items.data.map((i) => [i.price.id, i.current_period_end]), [[dear.id, end], [steep.id, end]]);
    await stripe.subscriptions.update(subscription.id, turn([dear, steep])); // no change, no proration
    await use(customer, 2000000, start + 3600); // too late for the old price
    await use(customer, 300, half + 60);
    await advance(clock, end + HOUR);
    const [cycle] = await invoicesOf(subscription);
    // 9900 / 2 back, 2,000 tokens over, 49900 / 2, 300 at 1 cent, and the next month.
    assert.deepEqual(figures(cycle), [
        [-4950, '1', flat.id],
        [0, '1000000', tiered.id],
        [2, '2000', tiered.id],
        [24950, '1', dear.id],
        [300, '300', steep.id],
        [49900, '1', dear.id],
    ]);
    assert.deepEqual(cycle.lines.data.map((line) => line.parent.subscription_item_details.proration), [true, false, false, true, false, false]);
    assert.equal(cycle.total, 70202);

    const other = await customerOnClock();
    const cheaper = await subscribe(other.customer, [flat, tiered]);
    await advance(other.clock, half);
    const [fee, usage] = cheaper.items.data;
    const left = await stripe.subscriptions.update(cheaper.id, {
        items: [{ id: fee.id, price: free.id }, { id: usage.id, deleted: true }],
        proration_behavior: 'always_invoice',
    });
    assert.deepEqual(left.items.data.map((i) => i.price.id), [free.id]);
    await advance(other.clock, half + HOUR);
    const [credit] = await invoicesOf(cheaper);
    assert.deepEqual([credit.billing_reason, credit.total, credit.amount_due, credit.status], ['subscription_update', -4950, 0, 'paid']);
    assert.equal((await stripe.customers.retrieve(other.customer.id)).balance, -4950);
    // The next fee uses the credit up.
    await stripe.subscriptions.update(cheaper.id, { items: [{ id: fee.id, price: flat.id }], proration_behavior: 'none' });
    await advance(other.clock, end + HOUR);
    const [next] = await invoicesOf(cheaper);
    assert.deepEqual([next.total, next.starting_balance, next.ending_balance, next.amount_due], [9900, -4950, 0, 4950]);
});

test('subscriptions that Stripe refuses are refused', async () => {
    const { customer } = await customerOnClock();
    const once = await stripe.prices.create({ product, currency: 'usd', unit_amount: 1 });
    const [weekly, two, three] = await Promise.all(
        [{ interval: 'week' }, { interval: 'month', interval_count: 2 }, { interval: 'month', interval_count: 3 }].map((recurring) =>
            stripe.prices.create({ product, currency: 'usd', unit_amount: 1, recurring })));
    const retired = await stripe.prices.create({ product, currency: 'usd', unit_amount: 1, recurring: month, active: false });
    const silent = await stripe.customers.create({});
    const before = await control('GET', 'state');
    for (const [prices, more, who = customer] of [
        [[once], {}],
        [[retired], {}],
        [[flat, flat], {}],
        [[two, three], {}],
        [[], {}],
        [[flat], { days_until_due: undefined }],
        [[flat], { backdate_start_date: created + HOUR }],
        [[flat], { billing_cycle_anchor: created }],
        [[flat], { billing_cycle_anchor: at(2026, 2, 1) }],
        [[flat], { items: [{ price: tiered.id, quantity: 2 }] }],
        [[flat], { backdate_start_date: at(1990, 0, 1) }],
        [[flat], {}, silent],
        [[flat], {}, { id: 'cus_none' }],
    ])
        await refuses(subscribe(who, prices, more), { statusCode: 400 }, JSON.stringify([prices.length, more]));
    await refuses(subscribe(customer, [flat, weekly]), { statusCode: 501 });
    assert.deepEqual((await control('GET', 'state')).counts, before.counts, 'a refusal leaves nothing behind');
});
