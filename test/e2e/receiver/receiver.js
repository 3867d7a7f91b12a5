// Receives what pg_billing sends, by HTTP(S) and SMTP, on ports of its own choice; appends what it got to the file LOG, one
// JSON object a line; and fails as it is told:
//
//   POST /_fault {"path": "/hook", "fault": "500", "times": 2}     times -1: from now on; 0: no more
//
// Faults: a status; "hang" (no answer ever), "reset" (before anything is read), "lost" (received, but the answer is not
// sent); of the mail server (path "smtp") also the status that RCPT is answered
// with, and "plain" (it offers no STARTTLS).
// Secrets: POST /_secret {"path": "/hook", "secret": "whsec_…"}: deliveries there are verified with it.
import { appendFileSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { createServer as createTcpServer } from 'node:net';
import { TLSSocket, createSecureContext } from 'node:tls';
import { Webhook } from 'standardwebhooks';

const [log, certificate, key] = process.argv.slice(2);
const tls = { cert: readFileSync(certificate), key: readFileSync(key) };
const faults = new Map();
const secrets = new Map();
const note = (entry) => appendFileSync(log, `${JSON.stringify(entry)}\n`);

function fault(path) {
    const planned = faults.get(path);
    if (!planned || planned.times === 0) return undefined;
    if (planned.times > 0) planned.times--;
    return planned.fault;
}

function verified(path, body, headers) {
    if (!secrets.has(path)) return undefined;
    try {
        new Webhook(secrets.get(path)).verify(body, headers);
        return true;
    } catch (error) {
        return error.message;
    }
}

async function answer(request, response) {
    const path = request.url.split('?')[0];
    const wrong = path.startsWith('/_') ? undefined : fault(path);
    if (wrong === 'reset') return request.socket.resetAndDestroy();
    let body = '';
    for await (const chunk of request.setEncoding('utf8')) body += chunk;
    if (path === '/_fault') {
        const told = JSON.parse(body);
        faults.set(told.path, told);
    } else if (path === '/_secret') {
        const told = JSON.parse(body);
        secrets.set(told.path, told.secret);
    } else {
        note({
            path, url: request.url, method: request.method, id: request.headers['webhook-id'] ?? request.headers['idempotency-key'],
            verified: verified(path, body, request.headers), fault: wrong, type: request.headers['content-type'],
            authorization: request.headers.authorization, body,
        });
        if (wrong === 'hang') return;
        if (wrong === 'lost') return request.socket.resetAndDestroy();
        if (/^[0-9]+$/.test(wrong ?? '')) response.statusCode = Number(wrong);
        if (wrong === '302') response.setHeader('location', '/redirected');
        if (wrong === '429') response.setHeader('retry-after', '3600');
    }
    response.end('{}');
}

// As much of SMTP as it takes: STARTTLS is required before AUTH, and AUTH PLAIN before mail.
function mail(socket) {
    let input = '', data = null, secure = false, user = null, rcpt = [];
    const say = (line) => (socket.writable ? socket.write(`${line}\r\n`) : undefined);
    const wrong = fault('smtp');
    if (wrong === 'reset') return socket.resetAndDestroy();
    if (wrong === 'hang') return undefined;
    const command = (line) => {
        const verb = line.toUpperCase();
        if (data !== null) {
            if (line !== '.') return data.push(line.startsWith('.') ? line.slice(1) : line);
            const whole = data.join('\r\n');
            const [head, ...rest] = whole.split('\r\n\r\n');
            const id = /^Message-ID: <([^@]+)@/m.exec(head)?.[1];
            note({ path: 'smtp', id, secure, user, rcpt, fault: wrong, head, body: Buffer.from(rest.join(''), 'base64').toString() });
            data = null;
            return wrong === 'lost' ? socket.destroy() : say('250 taken');
        }
        if (verb.startsWith('EHLO')) {
            say('250-receiver');
            return say(secure || wrong === 'plain' ? '250 AUTH PLAIN' : '250 STARTTLS');
        }
        if (verb === 'STARTTLS') {
            say('220 go on');
            socket.removeAllListeners('data');
            socket = new TLSSocket(socket, { isServer: true, secureContext: createSecureContext(tls) });
            secure = true;
            input = '';
            return listen();
        }
        if (verb.startsWith('AUTH PLAIN')) {
            const given = line.slice(11);
            if (!secure && wrong !== 'plain') return say('530 STARTTLS first');
            if (!given) return say('334 ');
            user = Buffer.from(given, 'base64').toString().split('\0').slice(1).join(':');
            note({ path: 'auth', secure, user });
            return say(user === 'mailer:sesame' ? '235 welcome' : '535 wrong password');
        }
        if (/^[A-Za-z0-9+/=]+$/.test(line) && user === null && !/^(MAIL|RCPT|DATA|QUIT|RSET|NOOP)/.test(verb))
            return command(`AUTH PLAIN ${line}`);
        if (verb.startsWith('MAIL')) return say(user === 'mailer:sesame' ? '250 fine' : '530 who are you');
        if (verb.startsWith('RCPT')) {
            if (/^[0-9]+$/.test(wrong ?? '')) return say(`${wrong} no`);
            rcpt.push(/<(.*)>/.exec(line)?.[1]);
            return say('250 fine');
        }
        if (verb === 'DATA') {
            data = [];
            return say('354 go on');
        }
        if (verb === 'QUIT') {
            say('221 bye');
            return socket.end();
        }
        rcpt = [];
        return say('250 fine');
    };
    function listen() {
        socket.on('error', () => {});
        socket.on('data', (chunk) => {
            input += chunk.toString('latin1');
            for (let end; (end = input.indexOf('\r\n')) >= 0;) {
                const line = input.slice(0, end);
                input = input.slice(end + 2);
                command(line);
            }
        });
    }
    listen();
    return say('220 receiver');
}

const ports = await Promise.all(
    [createServer(answer), createTlsServer(tls, answer), createTcpServer(mail)].map(
        (server) => new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)))));
console.log(`listening on ${ports.join(' ')}`);
