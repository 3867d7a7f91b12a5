// Delivers Stripe's events, or some of them several times, in an order of chance: signed, sixteen at a time.
//
//   node deliver.mjs URL SECRET EVENTS.json SEED DELIVERIES    (DELIVERIES 0: each once, in their order)
//
// EVENTS.json is an array of events. Of every tenth one its thin notification is delivered as well. Prints how many
// deliveries there were; fails if one is not answered 200.
import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:http';

const [url, secret, file, seed, wanted] = process.argv.slice(2);
const events = JSON.parse(readFileSync(file, 'utf8'));

// xorshift32: the same order for the same seed
let state = Number(seed) || 1;
function random(n) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
}

function thin({ id, type, created, livemode, data }) {
    const { object } = data;
    return {
        id: `${id}_thin`,
        object: 'v2.core.event',
        type: `v1.${type}`,
        created: new Date(created * 1000).toISOString(),
        livemode,
        context: null,
        related_object: object.id ? { id: object.id, type: object.object, url: null } : null,
    };
}

const queue = [];
if (Number(wanted) === 0) {
    queue.push(...events);
} else {
    // one to three times each, until there are enough
    for (let i = 0; queue.length < Number(wanted); i++) {
        const event = events[i % events.length];
        const body = i % 10 === 9 ? thin(event) : event;
        for (let n = random(3); n >= 0; n--) queue.push(body);
    }
    for (let i = queue.length - 1; i > 0; i--) {
        const j = random(i + 1);
        [queue[i], queue[j]] = [queue[j], queue[i]];
    }
}
const total = queue.length;
const agent = new Agent({ keepAlive: true, maxSockets: 16 });

function deliver(event) {
    const body = JSON.stringify(event, null, 2);
    const t = Math.floor(Date.now() / 1000);
    const v1 = createHmac('sha256', secret).update(`${t}.${body}`).digest('hex');
    return new Promise((resolve, reject) => {
        const headers = { 'stripe-signature': `t=${t},v1=${v1}`, 'content-length': Buffer.byteLength(body) };
        request(url, { method: 'POST', agent, headers }, (answer) => {
            answer.resume().on('end', () => (answer.statusCode === 200 ? resolve() : reject(new Error(`status ${answer.statusCode}`))));
        })
            .on('error', reject)
            .end(body);
    });
}

async function lane() {
    while (queue.length > 0) await deliver(queue.shift());
}
await Promise.all(Array.from({ length: Number(wanted) === 0 ? 1 : 16 }, lane));
agent.destroy();
console.log(total);
