// Usage that is recorded beside the work: record() only puts an event into a queue, which is sent in batches.
//
// Every event has an idempotency key, so a batch whose answer was lost is simply sent again and nothing counts twice. What is
// queued is in memory only: it is lost with the process unless close() was awaited. Nothing is lost in silence: what is
// given up goes to onDrop.
import { randomUUID } from 'node:crypto';
import { BillingError, unwrap, type BillingClient, type Schemas } from './client.js';

export interface UsageEvent {
  metric: string;
  quantity?: number | string;
  /** Who used it; needed with a service's key. */
  tenantId?: string | undefined;
  /** A random one by default. Give the request's own, if the same work may be reported twice. */
  idempotencyKey?: string | undefined;
  /** Now, by default. */
  occurredAt?: Date;
  properties?: Record<string, unknown>;
}

export interface TrackerOptions {
  /** Events of one request, 1000 at most. */
  batchSize?: number;
  /** How long an event waits for others. */
  flushIntervalMs?: number;
  /** Events that may wait at once; more are dropped, the latest first. */
  maxQueue?: number;
  /** The first pause after a failure; it doubles, up to a minute. */
  retryDelayMs?: number;
  /** Told of every event that is given up: refused, or too many, or not sent when the tracker was closed. */
  onDrop?: (event: UsageEvent, reason: Error) => void;
}

type Queued = UsageEvent & { idempotencyKey: string; occurredAt: Date };

const LONGEST_PAUSE_MS = 60_000;

export class UsageTracker {
  readonly #client: BillingClient;
  readonly #options: Required<TrackerOptions>;
  #queue: Queued[] = [];
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<void> | undefined;
  #wake: (() => void) | undefined; // ends a pause
  #closed = false;
  #givenUp = false;

  constructor(client: BillingClient, options: TrackerOptions = {}) {
    this.#client = client;
    this.#options = {
      batchSize: Math.min(options.batchSize ?? 100, 1000),
      flushIntervalMs: options.flushIntervalMs ?? 1000,
      maxQueue: options.maxQueue ?? 10_000,
      retryDelayMs: options.retryDelayMs ?? 500,
      onDrop: options.onDrop ?? ((event, reason) => console.error(`usage of ${event.metric} dropped: ${reason.message}`)),
    };
  }

  /** How many events wait. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** Queues an event; never throws, never waits. */
  record(event: UsageEvent): void {
    const queued = { ...event, idempotencyKey: event.idempotencyKey ?? randomUUID(), occurredAt: event.occurredAt ?? new Date() };
    if (this.#closed) return this.#drop(queued, new Error('the tracker is closed'));
    if (this.#queue.length >= this.#options.maxQueue) return this.#drop(queued, new Error('too many events are waiting'));
    this.#queue.push(queued);
    if (this.#queue.length >= this.#options.batchSize) void this.flush();
    else this.#timer ??= setTimeout(() => void this.flush(), this.#options.flushIntervalMs).unref();
  }

  /** Sends what is queued, trying again until it is sent or given up. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#queue.length > 0) this.#sending ??= this.#send();
    return this.#sending ?? Promise.resolve();
  }

  /** Sends what is queued, for so long at most; what is not sent then is dropped. Takes no more events. */
  async close(timeoutMs = 10_000): Promise<void> {
    this.#closed = true;
    const sent = this.flush();
    this.#wake?.(); // a pause may be a minute
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, timeoutMs)));
    await Promise.race([sent, late]);
    clearTimeout(timer);
    this.#givenUp = true;
    this.#wake?.();
    for (const event of this.#queue.splice(0)) this.#drop(event, new Error('not sent when the tracker was closed'));
  }

  async #send(): Promise<void> {
    let pause = this.#options.retryDelayMs;
    while (this.#queue.length > 0 && !this.#givenUp) {
      // A request is of one tenant. The batch stays in the queue until its fate is known.
      const tenant = this.#queue[0]?.tenantId;
      const batch = this.#queue.filter((event) => event.tenantId === tenant).slice(0, this.#options.batchSize);
      try {
        const rejected = await this.#post(tenant, batch);
        for (const [event, reason] of rejected) this.#drop(event, reason);
        pause = this.#options.retryDelayMs;
      } catch (error) {
        if (!(error instanceof BillingError) || error.temporary) {
          if (!this.#givenUp) await this.#rest(pause * (0.5 + Math.random() / 2));
          pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
          continue;
        }
        for (const event of batch) this.#drop(event, error);
      }
      const done = new Set(batch);
      this.#queue = this.#queue.filter((event) => !done.has(event));
    }
    this.#sending = undefined; // at once: what is recorded from here on takes another round
  }

  async #post(tenant: string | undefined, batch: Queued[]): Promise<[Queued, Error][]> {
    const body: Schemas['Event'][] = batch.map(({ tenantId: _, occurredAt, ...event }) => ({ ...event, occurredAt: occurredAt.toISOString() }));
    const header = tenant === undefined ? {} : { 'X-Tenant-Id': tenant };
    const answer = await unwrap(this.#client.POST('/api/billing/events', { params: { header }, body }));
    const rejected: [Queued, Error][] = [];
    for (const result of 'results' in answer ? answer.results : []) {
      const event = batch[result.ordinal - 1];
      if (event && result.status === 'rejected') rejected.push([event, new Error(`${result.code}: ${result.reason}`)]);
    }
    return rejected;
  }

  // Keeps the process alive no more than a waiting event does: close() is for that.
  #rest(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms).unref();
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #drop(event: UsageEvent, reason: Error): void {
    try {
      this.#options.onDrop(event, reason);
    } catch {
      // whoever is told must not stop the others from being sent
    }
  }
}
