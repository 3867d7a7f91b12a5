// Starts a sandbox Stripe for one test file and hands out official clients of it. SANDBOX names the executable.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer } from 'node:http';
import { after } from 'node:test';
import Stripe from 'stripe';

const executable = process.env.SANDBOX ?? '../../../build/cmake/stripe_sandbox';
const child = spawn(executable, ['--listen', '127.0.0.1:0'], { stdio: ['ignore', 'pipe', 'inherit'] });
after(() => child.kill());
const port = await new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code) => reject(new Error(`the sandbox ended with ${code}`)));
    child.stdout.on('data', (text) => {
        const found = /listening on .*:(\d+)/.exec(text);
        if (found) resolve(Number(found[1]));
    });
});

// A client as anyone would make it, but for where it connects to.
export function client(options = {}, key = 'sk_test_client') {
    return new Stripe(key, { host: '127.0.0.1', port, protocol: 'http', telemetry: false, ...options });
}

// A client that sends to the sandbox whatever goes to a host of its own, too; `hosts` gets their names.
export function clientOfAllHosts(key, hosts) {
    const node = Stripe.createNodeHttpClient();
    const httpClient = Object.assign(Object.create(node), {
        makeRequest(host, _port, path, method, headers, data, _protocol, timeout) {
            hosts.push(host);
            return node.makeRequest('127.0.0.1', port, path, method, headers, data, 'http', timeout);
        },
    });
    return new Stripe(key, { httpClient, telemetry: false, maxNetworkRetries: 0 });
}

// Calls the sandbox's own control, e.g. control('POST', 'faults', {fault: '500'}).
export async function control(method, what, body) {
    const answer = await fetch(`http://127.0.0.1:${port}/_sandbox/${what}`, { method, body: body && JSON.stringify(body) });
    const json = await answer.json();
    assert.ok(answer.ok, `${answer.status} ${JSON.stringify(json)}`);
    return json;
}

// Calls the API without the client: raw form text, raw answer.
export function raw(method, path, body, headers = {}) {
    return fetch(`http://127.0.0.1:${port}${path}`, {
        method,
        body,
        headers: {
            authorization: 'Bearer sk_test_client',
            'content-type': 'application/x-www-form-urlencoded',
            ...headers,
        },
    });
}

// The requests the sandbox received since `before`, a number of requests.
export async function requests(pathPrefix = '/v1') {
    return control('GET', `requests?path_prefix=${encodeURIComponent(pathPrefix)}`);
}

// Waits until the condition holds; fails when it has not for 10 s.
export async function until(condition, what) {
    for (const end = Date.now() + 10_000; Date.now() < end; ) {
        const value = await condition();
        if (value) return value;
        await new Promise(setImmediate);
    }
    assert.fail(`waited in vain for ${what}`);
}

// A receiver of webhooks: collects {body, signature}, answering with what `answer` returns (200 by default).
export async function receiver(answer = () => 200) {
    const received = [];
    const server = createServer((request, response) => {
        const chunks = [];
        request.on('data', (chunk) => chunks.push(chunk));
        request.on('end', () => {
            const delivery = { body: Buffer.concat(chunks), signature: request.headers['stripe-signature'] };
            received.push(delivery);
            response.writeHead(answer(delivery)).end();
        });
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    after(() => server.close());
    return { received, url: `http://127.0.0.1:${server.address().port}/hook` };
}

// Asserts that the promise fails with these properties of Stripe's error.
export function refuses(promise, properties, message) {
    return assert.rejects(promise, (error) => {
        for (const [name, value] of Object.entries(properties))
            if (value instanceof RegExp) assert.match(String(error[name]), value, message);
            else assert.equal(error[name], value, `${message ?? ''} ${name} of: ${error.message}`);
        return true;
    });
}
