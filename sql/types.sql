-- A decision answers "may this tenant use that much?".
CREATE TYPE billing.decision AS (
    status    text,         -- recorded | duplicate | allowed | denied
    allowed   boolean,
    reason    text,         -- within_quota | unlimited | overage | soft_cap_exceeded | hard_cap | upgrade_required
                            -- | hour_limit | day_limit | no_subscription | subscription_inactive
    used      numeric,      -- usage of the period (of the hour or day if that denies), what is held and this call
                            -- included if it was recorded or is held; null while none is in force
    quota     numeric,      -- null: unlimited
    remaining numeric,      -- up to the quota, never below zero; null: unlimited
    cap       text,         -- hard | soft | none
    resets_at timestamptz,  -- end of the billing period; null for a gauge, which never resets
    warning   text          -- near_quota (from 80 %) | over_quota; null: none
);
COMMENT ON TYPE billing.decision IS 'the answer to "may it?": status, allowed, reason, used, quota, remaining, cap, resets_at, warning';

CREATE TYPE billing.reservation AS (
    reservation_id uuid,    -- null: denied
    status    text,         -- the rest is the decision
    allowed   boolean,
    reason    text,
    used      numeric,
    quota     numeric,
    remaining numeric,
    cap       text,
    resets_at timestamptz,
    warning   text
);
COMMENT ON TYPE billing.reservation IS 'the id of a reservation and the decision it was made by';
