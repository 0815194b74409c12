-- The health of workers: a score from their heartbeats, failures and latencies, a log of it, and alerts.
--
-- works with: 000001

alter table mcp.workers
    add column stale_after_s   double precision not null default 60,
    add column health_score    real not null default 1,
    add column missed_beats    integer not null default 0,
    add column failure_count   integer not null default 0,  -- how often it was given up for dead
    add column last_failure_at timestamptz,
    add column failure_level   real not null default 0,     -- attempts that failed lately: halved each minute
    add column failure_level_at timestamptz not null default now();

-- A row for each heartbeat, and for each that was missed. Old rows are removed.
create table mcp.worker_health_logs (
    tenant_id    uuid not null,
    worker_id    uuid not null,
    at           timestamptz not null default clock_timestamp(),
    health_score real not null,
    kind         text not null check (kind in ('heartbeat', 'missed', 'failed', 'recovered')),
    metrics      json,
    primary key (tenant_id, worker_id, at)
);
create index worker_health_logs_by_age on mcp.worker_health_logs (at);

create table mcp.worker_alerts (
    tenant_id  uuid not null,
    alert_id   uuid not null,
    worker_id  uuid not null,
    raised_at  timestamptz not null default now(),
    cleared_at timestamptz,
    severity   smallint not null check (severity between 1 and 5),
    kind       text not null,
    message    text not null,
    primary key (tenant_id, alert_id)
);
create index worker_alerts_by_age on mcp.worker_alerts (cleared_at);
create unique index worker_alerts_open on mcp.worker_alerts (worker_id, kind) where cleared_at is null;
