-- Jobs: what machines do. The table that a job is in is its state, so that no row is flipped from one state to the next and
-- what waits, what runs and what is over can each be small, narrow or dropped by the month (docs/decisions/0009).
--
--   jobs_ready --claim--> jobs_leased --complete, fail, …--> job_executions   (and back to jobs_ready when it goes on)
--
-- works with: 000001

-- What was asked for. Written once, never changed, and dropped by the month when no job of that month is alive.
create table mcp.jobs (
    tenant_id         uuid not null,
    job_id            uuid not null,
    created_at        timestamptz not null,
    run_at            timestamptz not null,  -- not before; also the place in the queue, until there was an attempt
    created_by_key_id uuid not null,
    timeout_ms        integer not null,
    backoff_ms        integer not null,      -- before the first retry; doubled with each
    max_retries       smallint not null,
    priority          smallint not null check (priority between 1 and 5),
    queue             text not null,
    type              text not null,
    payload           json not null,
    tags              text[],
    primary key (tenant_id, job_id, created_at)
) partition by range (created_at);

-- What waits, in the order in which it is claimed. A row is deleted by its claim. There is no index by job: the key is known
-- from `jobs`, or from the latest execution that has a `next_run_at`; only the priority may have been raised since.
create table mcp.jobs_ready (
    tenant_id  uuid not null,
    run_at     timestamptz not null,
    job_id     uuid not null,
    created_at timestamptz not null,
    attempt    integer not null default 0,   -- the latest there was
    retries    smallint not null default 0,  -- failures so far
    priority   smallint not null,
    is_parent  boolean not null default false,  -- others wait for it: whoever ends it has to look
    queue      text not null,
    primary key (tenant_id, queue, priority, run_at, job_id)
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- What workers hold. `lease_until` is in no index, so that a heartbeat stays a heap-only update.
create table mcp.jobs_leased (
    tenant_id           uuid not null,
    job_id              uuid not null,
    worker_id           uuid not null,
    created_at          timestamptz not null,
    started_at          timestamptz not null,
    lease_until         timestamptz not null,
    timeout_at          timestamptz not null,
    cancel_requested_at timestamptz,
    attempt             integer not null,
    lease_s             real not null,       -- what a heartbeat renews it by
    progress            real,
    retries             smallint not null,
    priority            smallint not null,
    is_parent           boolean not null,
    queue               text not null,
    progress_message    text,
    cancel_reason       text,
    primary key (tenant_id, job_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- Without the tenant in front, or a look-up by job would take it for its own while the table is small.
create index jobs_leased_by_worker on mcp.jobs_leased (worker_id, started_at);

-- What waits for others to end. Who ends the last of those puts it into its queue, or fails it by its policy.
create table mcp.jobs_blocked (
    tenant_id  uuid not null,
    job_id     uuid not null,
    created_at timestamptz not null,
    run_at     timestamptz not null,
    attempt    integer not null default 0,
    retries    smallint not null default 0,
    priority   smallint not null,
    is_parent  boolean not null default false,
    queue      text not null,
    policy     text not null check (policy in ('fail', 'wait', 'ignore')),  -- of what becomes of it when a parent fails
    primary key (tenant_id, job_id)
);

-- Which job waits for which. A row goes when its parent has ended.
create table mcp.job_dependencies (
    tenant_id uuid not null,
    parent_id uuid not null,
    child_id  uuid not null,
    primary key (tenant_id, parent_id, child_id)
);
create index job_dependencies_by_child on mcp.job_dependencies (child_id);

-- One row for each attempt that has ended, append-only. The latest of a job that neither waits nor runs says how it ended. One of
-- attempt 0 says when what it waited for had ended.
create table mcp.job_executions (
    tenant_id   uuid not null,
    job_id      uuid not null,
    finished_at timestamptz not null,
    started_at  timestamptz,  -- null: it was cancelled while it waited
    worker_id   uuid,
    next_run_at timestamptz,  -- when it goes on; null: it does not
    attempt     integer not null,
    retries     smallint not null,  -- failures so far
    outcome     text not null check (outcome in ('COMPLETED', 'FAILED', 'TIMED_OUT', 'LEASE_LOST', 'RELEASED', 'SNOOZED',
                                                 'CANCELLED', 'UNBLOCKED')),
    result      json,
    error       json,
    primary key (tenant_id, job_id, attempt, finished_at)
) partition by range (finished_at);

-- Jobs that have failed for good, until they are replayed or discarded.
create table mcp.dead_letter_queue (
    tenant_id      uuid not null,
    job_id         uuid not null,
    dead_letter_id uuid not null,  -- rises with the time of the failure
    created_at     timestamptz not null,
    failed_at      timestamptz not null,
    is_parent      boolean not null,
    attempt        integer not null,
    retries        smallint not null,
    priority       smallint not null,
    queue          text not null,
    type           text not null,
    error          json,
    primary key (tenant_id, job_id)
);
create unique index dead_letters_by_age on mcp.dead_letter_queue (tenant_id, dead_letter_id);

-- A queue has a row when something was said about it.
create table mcp.queues (
    tenant_id  uuid not null,
    queue      text not null,
    paused_at  timestamptz,
    reason     text not null default '',
    updated_at timestamptz not null default now(),
    primary key (tenant_id, queue)
);

create table mcp.workers (
    tenant_id            uuid not null references mcp.tenants,
    worker_id            uuid not null,
    owner_id             uuid not null,  -- as of agents: the first key of a chain of rotations
    name                 text not null,
    queues               text[] not null,
    capacity             integer not null check (capacity between 1 and 10000),
    heartbeat_interval_s double precision not null,
    status               text not null default 'ACTIVE'
                         check (status in ('ACTIVE', 'DEGRADED', 'DRAINING', 'FAILED', 'TERMINATED')),
    reason               text not null default '',
    heartbeat_at         timestamptz not null default now(),
    registered_at        timestamptz not null default now(),
    primary key (tenant_id, worker_id)
) with (fillfactor = 70);
-- Its condition is spelt so that only a look-up by name fits it.
create unique index workers_by_name on mcp.workers (tenant_id, name) where coalesce(status, '') <> 'TERMINATED';

select mcp.ensure_partitions('jobs', 12), mcp.ensure_partitions('job_executions', 12);
