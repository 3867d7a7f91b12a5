// Posts usage one event at a time: node post_usage.mjs URL KEY CLIENTS EVENTS PREFIX. Each client has a connection and posts the
// events PREFIX-client-n in turn, each with the same key until it is acknowledged. Prints what the answers were.
import { Agent, request } from 'node:http';

const [url, key, clients, events, prefix] = process.argv.slice(2);
const tally = { recorded: 0, duplicate: 0, failed: 0 };

function post(agent, event) {
  return new Promise((resolve, reject) => {
    const body = JSON.stringify(event);
    const headers = { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) };
    const sent = request(`${url}/api/billing/events`, { method: 'POST', agent, headers, timeout: 30_000 }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (part) => (text += part));
      answer.on('error', reject).on('end', () => resolve({ status: answer.statusCode, text }));
    });
    sent.on('error', reject).on('timeout', () => sent.destroy(new Error('no answer')));
    sent.end(body);
  });
}

async function client(id) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  for (let n = 0; n < Number(events); ) {
    const { status, text } = await post(agent, { metric: 'llm_tokens', idempotencyKey: `${prefix}-${id}-${n}` }).catch((error) => ({ status: 0, text: error.message }));
    if (status === 200 || status === 201) {
      tally[JSON.parse(text).status]++;
      n++;
    } else if (status === 0 || status === 503) tally.failed++;
    else throw new Error(`${status} ${text}`);
  }
  agent.destroy();
}

await Promise.all(Array.from({ length: Number(clients) }, (_, id) => client(id)));
console.log(JSON.stringify(tally));
