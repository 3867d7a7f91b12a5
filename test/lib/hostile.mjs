// Asks every operation of openapi.json with hostile text in each field, one at a time: node hostile.mjs URL KEY TENANT. Every parameter
// and every member of a body is tried, the others are good. Prints how often which status came, and on stderr what should not have come:
// a status of 500 or more, or an answer that tells of SQL.
import { Agent, request } from 'node:http';

const [url, key, tenant] = process.argv.slice(2);
const agent = new Agent({ keepAlive: true, maxSockets: 1 });
const HOSTILE = [
  "'; DROP TABLE billing.usage_events; --",
  "' OR '1'='1",
  `${tenant}'); SELECT billing.create_api_key(); --`,
  "\\'; COMMIT; --",
  '$1',
  '$$; ROLLBACK; $$',
  "E'\\x27'",
  '{globex,"api_calls"}',
  '%27%20OR%201%3D1',
  "1; SET ROLE postgres",
  'NaN',
  '"',
  '<script>alert(1)</script>',
];
const TELLS = /syntax error|SQLSTATE|pg_catalog|PL\/pgSQL|CONTEXT:|billing\._|operator does not exist/;

const api = JSON.parse((await ask('GET', '/openapi.json')).text);
const resolve = (node) => (node?.$ref ? resolve(node.$ref.slice(2).split('/').reduce((at, name) => at[name], api)) : node);

function ask(method, path, headers = {}, body) {
  return new Promise((done, fail) => {
    const sent = request(url + path, { method, agent, headers: body === undefined ? headers : { ...headers, 'Content-Length': Buffer.byteLength(body) } }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (part) => (text += part));
      answer.on('end', () => done({ status: answer.statusCode, text }));
    });
    sent.on('error', fail).end(body);
  });
}

// A good value.
function sample(given, name = '') {
  const schema = resolve(given) ?? {};
  if (name === 'metric' || name === 'type') return 'api_calls';
  if (name === 'planTier') return 'standard';
  if (schema.const !== undefined) return schema.const;
  if (schema.example !== undefined) return schema.example;
  if (schema.examples?.length) return schema.examples[0];
  if (schema.enum) return schema.enum[0];
  if (schema.oneOf ?? schema.anyOf) return sample((schema.oneOf ?? schema.anyOf)[0]);
  const type = [schema.type].flat()[0];
  if (type === 'object') return Object.fromEntries((schema.required ?? []).map((member) => [member, sample(schema.properties[member], member)]));
  if (type === 'array') return [sample(schema.items)];
  if (type === 'boolean') return true;
  if (type === 'number' || type === 'integer') return 1;
  if (schema.format === 'date-time') return new Date().toISOString();
  return schema.format === 'uuid' ? '00000000-0000-0000-0000-000000000000' : 'x';
}

// Each way to put something else into one member of a body: [where, function of it].
function* members(given, path = '') {
  const schema = resolve(given) ?? {};
  for (const one of schema.oneOf ?? []) yield* members(one, path);
  if (schema.items) for (const [where, put] of members(schema.items, `${path}[0]`)) yield [where, (value) => [put(value)]];
  for (const name of Object.keys(schema.properties ?? {})) {
    const good = sample(given);
    yield [`${path}.${name}`, (value) => ({ ...good, [name]: value })];
    yield [`${path}.${name}{}`, (value) => ({ ...good, [name]: { [value]: value } })];
  }
}

const statuses = {};
const wrong = [];
async function attempt(what, method, path, headers, body) {
  const { status, text } = await ask(method, path, headers, body);
  statuses[status] = (statuses[status] ?? 0) + 1;
  if (status >= 500 || TELLS.test(text)) wrong.push(`${what}: ${status} ${text}`);
}

for (const [template, operations] of Object.entries(api.paths))
  for (const [method, operation] of Object.entries(operations)) {
    if (!operation.responses) continue;
    const verb = method.toUpperCase();
    const parameters = [...(operation.parameters ?? []), ...(operations.parameters ?? [])].map(resolve);
    const contents = Object.entries(operation.requestBody?.content ?? { '': {} });
    // One request, with `hostile` in the place `at`.
    const build = (at, hostile, type, body) => {
      let path = template;
      const query = [];
      const headers = { Authorization: `Bearer ${key}`, 'X-Tenant-Id': tenant };
      if (type) headers['Content-Type'] = type;
      for (const parameter of parameters) {
        const value = at === parameter ? hostile : (parameter.example ?? sample(parameter.schema, parameter.name));
        if (parameter.in === 'path') path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
        else if (at !== parameter && !parameter.required) continue;
        else if (parameter.in === 'query') query.push(`${parameter.name}=${encodeURIComponent(value)}`);
        else headers[parameter.name] = value;
      }
      return [verb, path + (query.length ? `?${query.join('&')}` : ''), headers, body === undefined ? undefined : JSON.stringify(body)];
    };
    for (const [type, content] of contents) {
      const good = content.schema ? sample(content.schema) : undefined;
      for (const hostile of HOSTILE) {
        for (const parameter of parameters)
          await attempt(`${verb} ${template} ${parameter.in} ${parameter.name} ${hostile}`, ...build(parameter, hostile, type, good));
        for (const [where, put] of members(content.schema))
          await attempt(`${verb} ${template} body ${where} ${hostile}`, ...build(null, hostile, type, put(hostile)));
      }
    }
    for (const hostile of HOSTILE) {
      await attempt(`${verb} ${template} key`, verb, template, { Authorization: `Bearer pgb_${hostile}`, 'X-Tenant-Id': tenant });
      await attempt(`${verb} ${template} an unknown parameter`, verb, `${template}?${encodeURIComponent(hostile)}=1`, { Authorization: `Bearer ${key}` });
    }
  }
agent.destroy();
console.log(JSON.stringify(statuses));
for (const line of wrong) console.error(line);
process.exit(wrong.length ? 1 : 0);
