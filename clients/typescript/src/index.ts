export { BillingError, createClient, unwrap } from './client.js';
export type { BillingClient, ClientOptions, Decision, Problem, Schemas } from './client.js';
export { UsageTracker } from './tracker.js';
export type { TrackerOptions, UsageEvent } from './tracker.js';
export type { components, paths } from './schema.js';
