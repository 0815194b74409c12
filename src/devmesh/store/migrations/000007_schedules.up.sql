-- Schedules: jobs that are enqueued again and again, by a cron expression or at an interval.
--
-- works with: 000001

create table mcp.schedules (
    tenant_id         uuid not null references mcp.tenants,
    schedule_id       uuid not null,
    created_by_key_id uuid not null,
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now(),
    starts_at         timestamptz not null,  -- intervals are counted from here
    ends_at           timestamptz,
    next_fire_at      timestamptz,           -- null: never again
    last_fired_at     timestamptz,           -- the time that was due, not the one at which it was seen
    paused_at         timestamptz,
    interval_s        double precision,
    fired_count       bigint not null default 0,
    missed_count      bigint not null default 0,
    last_job_id       uuid,
    cron              text,
    time_zone         text not null,
    missed            text not null check (missed in ('skip', 'once', 'all')),
    name              text not null,
    job               json not null,
    primary key (tenant_id, schedule_id),
    check ((cron is null) <> (interval_s is null))
) with (fillfactor = 80);
create unique index schedules_by_name on mcp.schedules (name, tenant_id);
create index schedules_due on mcp.schedules (next_fire_at) where paused_at is null;
