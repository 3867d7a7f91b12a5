// Express middleware: quotas enforced before the handler, usage recorded after the response.
import { randomUUID } from 'node:crypto';
import type { Request, RequestHandler, Response } from 'express';
import { BillingError, unwrap, type BillingClient, type Decision, type Problem } from './client.js';
import type { UsageEvent, UsageTracker } from './tracker.js';

type PerRequest<T> = T | ((req: Request) => T);

export interface EnforceQuotaOptions {
  metric: PerRequest<string>;
  /** 1 by default. */
  quantity?: PerRequest<number | string>;
  /** Who asks; a service's key needs it. A request without a tenant is not let through. */
  tenant?: (req: Request) => string | undefined;
  /** `consume` (the default) records in the same step, so that no two requests take the same rest; `check` only looks. */
  mode?: 'consume' | 'check';
  /** The key under which a consumption counts once; a random one by default. */
  idempotencyKey?: (req: Request) => string | undefined;
  /**
   * What becomes of a request while the billing server cannot say: `closed` (the default) answers it with 503, `open` lets it
   * through, uncounted.
   */
  onFailure?: 'closed' | 'open';
  /** Told of each such failure, a wrong key or metric included. */
  onError?: (error: unknown, req: Request) => void;
}

/** What a handler finds in `res.locals.billing`: the decision, or none if the request was let through unasked. */
export interface BillingLocals {
  decision?: Decision;
}

const PASSED_ON = ['RateLimit', 'RateLimit-Policy', 'Retry-After'];

function valueOf<T extends string | number>(value: PerRequest<T>, req: Request): T {
  return typeof value === 'function' ? value(req) : value;
}

function answer(res: Response, problem: Problem): void {
  res.status(problem.status).type('application/problem+json').send(JSON.stringify(problem));
}

export function enforceQuota(client: BillingClient, options: EnforceQuotaOptions): RequestHandler {
  const ask = async (req: Request): Promise<{ decision: Decision; headers: Headers }> => {
    const metric = valueOf(options.metric, req);
    const quantity = valueOf(options.quantity ?? 1, req);
    const header: { 'X-Tenant-Id'?: string } = {};
    if (options.tenant) {
      const tenant = options.tenant(req);
      if (!tenant) throw new Error('the request has no tenant');
      header['X-Tenant-Id'] = tenant;
    }
    let headers = new Headers();
    const noted = async <A extends { response: globalThis.Response }>(request: Promise<A>): Promise<A> => {
      const given = await request;
      headers = given.response.headers;
      return given;
    };
    if (options.mode === 'check') {
      const query = { metric, quantity: quantity as number };
      return { decision: await unwrap(noted(client.GET('/api/billing/check', { params: { header, query } }))), headers };
    }
    const body = { metric, quantity, idempotencyKey: options.idempotencyKey?.(req) ?? randomUUID() };
    const consume = () => unwrap(noted(client.POST('/api/billing/consume', { params: { header }, body })));
    try {
      return { decision: await consume(), headers };
    } catch (error) {
      // It may have counted: asked once more by the same key it does not count twice.
      if (error instanceof BillingError && !error.temporary) throw error;
      return { decision: await consume(), headers };
    }
  };

  return async (req, res, next) => {
    try {
      const { decision, headers } = await ask(req);
      copy(headers, res);
      res.locals['billing'] = { decision } satisfies BillingLocals;
    } catch (error) {
      if (error instanceof BillingError && error.denied && error.problem) {
        copy(error.headers, res);
        return answer(res, error.problem);
      }
      options.onError?.(error, req);
      if (options.onFailure !== 'open') {
        res.set('Retry-After', '1');
        return answer(res, {
          type: 'urn:problem-type:pg_billing:billing_unavailable',
          title: 'Billing unavailable',
          status: 503,
          detail: 'It cannot be told whether the quota allows this.',
          code: 'billing_unavailable',
        });
      }
      res.locals['billing'] = {} satisfies BillingLocals;
    }
    next();
  };
}

function copy(headers: Headers, res: Response): void {
  for (const name of PASSED_ON) {
    const value = headers.get(name);
    if (value !== null) res.set(name, value);
  }
}

export interface TrackUsageOptions {
  metric: PerRequest<string>;
  /** 1 by default; asked when the response is finished, so it may be what the handler has left in `res.locals`. */
  quantity?: number | string | ((req: Request, res: Response) => number | string);
  tenant?: (req: Request) => string | undefined;
  /** A random one by default. Give the client's own, so that its repeated request does not count twice. */
  idempotencyKey?: (req: Request) => string | undefined;
  properties?: (req: Request, res: Response) => Record<string, unknown>;
  /** Which responses count; by default those below 400. */
  when?: (req: Request, res: Response) => boolean;
  /** Told if one of these functions throws; the response is out already. */
  onError?: (error: unknown, req: Request) => void;
}

/** Records usage when the response is finished. It neither delays the response nor can it fail it. */
export function trackUsage(tracker: UsageTracker, options: TrackUsageOptions): RequestHandler {
  const counts = options.when ?? ((_req: Request, res: Response) => res.statusCode < 400);
  return (req, res, next) => {
    res.once('finish', () => {
      try {
        if (!counts(req, res)) return;
        const { quantity } = options;
        const event: UsageEvent = {
          metric: valueOf(options.metric, req),
          quantity: typeof quantity === 'function' ? quantity(req, res) : (quantity ?? 1),
          tenantId: options.tenant?.(req),
          idempotencyKey: options.idempotencyKey?.(req),
          ...(options.properties ? { properties: options.properties(req, res) } : {}),
        };
        tracker.record(event);
      } catch (error) {
        options.onError?.(error, req);
      }
    });
    next();
  };
}
