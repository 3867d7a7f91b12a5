// The typed client: openapi-fetch over the API's own description, with the credential, a time limit and a tenant in place.
import createFetchClient, { type Client } from 'openapi-fetch';
import type { components, paths } from './schema.js';

export type Schemas = components['schemas'];
export type Decision = Schemas['Decision'];
export type Problem = Schemas['Problem'];

export interface ClientOptions {
  baseUrl: string;
  /** `pgb_…`: a tenant's own key, or a service's, which needs a tenant. */
  apiKey: string;
  tenantId?: string;
  /** How long one request may take; 10 seconds by default. */
  timeoutMs?: number;
  fetch?: typeof fetch;
}

export type BillingClient = Client<paths> & {
  /** The same client, for another tenant. */
  forTenant(tenantId: string): BillingClient;
};

/** What a request came to that did not succeed; branch on `code`. */
export class BillingError extends Error {
  constructor(
    readonly status: number,
    readonly problem: Problem | undefined,
    readonly headers: Headers,
  ) {
    super(problem ? `${problem.code}: ${problem.detail}` : `the billing server answered ${status}`);
    this.name = 'BillingError';
  }

  get code(): string {
    return this.problem?.code ?? 'unknown';
  }

  /** A denial: the quota says no. Anything else that fails is a fault. */
  get denied(): boolean {
    return (this.status === 429 || this.status === 402) && this.problem?.decision !== undefined;
  }

  /** Whether the same request, with the same idempotency key, may succeed later. */
  get temporary(): boolean {
    return this.status >= 500 || this.status === 408 || (this.status === 429 && !this.denied);
  }
}

export function createClient(options: ClientOptions): BillingClient {
  const limit = options.timeoutMs ?? 10_000;
  const base = options.fetch ?? fetch;
  const client = createFetchClient<paths>({
    baseUrl: options.baseUrl.replace(/\/$/, ''),
    headers: {
      Authorization: `Bearer ${options.apiKey}`,
      ...(options.tenantId === undefined ? {} : { 'X-Tenant-Id': options.tenantId }),
    },
    fetch: (request) => base(request, { signal: AbortSignal.any([request.signal, AbortSignal.timeout(limit)]) }),
  });
  return Object.assign(client, { forTenant: (tenantId: string) => createClient({ ...options, tenantId }) });
}

/** The data of an answer; throws a BillingError if it is a problem. */
export async function unwrap<T>(answer: Promise<{ data?: T; error?: unknown; response: Response }>): Promise<T> {
  const { data, error, response } = await answer;
  if (!response.ok) throw new BillingError(response.status, isProblem(error) ? error : undefined, response.headers);
  return data as T;
}

function isProblem(body: unknown): body is Problem {
  return typeof body === 'object' && body !== null && 'code' in body && 'detail' in body;
}
