-- Jobs that are unique, that share a limit with others, that are counted by the second, and where they lie in their queue.
--
--   jobs_limited --a place is free--> jobs_ready --claim--> jobs_leased   (the place is held until the job ends or waits again)
--
-- works with: 000001

alter table mcp.jobs
    add column unique_key        text,
    add column concurrency_key   text,
    add column concurrency_limit integer;

-- Jobs with a concurrency key that have no place yet: as many of a queue and key as the limit says are in `jobs_ready` and
-- `jobs_leased` together. So a claim needs to know nothing of limits.
create table mcp.jobs_limited (
    tenant_id       uuid not null,
    job_id          uuid not null,
    created_at      timestamptz not null,
    run_at          timestamptz not null,
    attempt         integer not null,
    retries         smallint not null,
    priority        smallint not null,
    is_parent       boolean not null,
    is_delayed      boolean not null,  -- its time has not come; a loop looks for those whose has
    queue           text not null,
    concurrency_key text not null,
    primary key (tenant_id, job_id)
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index jobs_limited_by_key
    on mcp.jobs_limited (concurrency_key, queue, tenant_id, is_delayed, priority desc, run_at, job_id);
create index jobs_limited_by_time on mcp.jobs_limited (run_at) where is_delayed;

-- Who has a place, and since when it lies in its queue.
create table mcp.job_slots (
    tenant_id       uuid not null,
    job_id          uuid not null,
    ready_at        timestamptz not null,
    queue           text not null,
    concurrency_key text not null,
    primary key (tenant_id, job_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index job_slots_by_key on mcp.job_slots (concurrency_key, queue, tenant_id);

-- How many places a key has, as the latest job has asked. Who gives places locks this row first: that keeps them exact.
create table mcp.job_limits (
    tenant_id         uuid not null,
    queue             text not null,
    concurrency_key   text not null,
    concurrency_limit integer not null,
    primary key (tenant_id, queue, concurrency_key)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- The latest job of each unique key.
create table mcp.job_unique_keys (
    tenant_id  uuid not null,
    unique_key text not null,
    job_id     uuid not null,
    taken_at   timestamptz not null default now(),
    primary key (tenant_id, unique_key)
) with (fillfactor = 80);
create index job_unique_keys_by_age on mcp.job_unique_keys (taken_at);

alter table mcp.queues
    add column rate_per_s double precision,
    add column burst      integer;

-- What a queue with a rate may still give out, and when that was so.
create table mcp.queue_tokens (
    tenant_id uuid not null,
    queue     text not null,
    tokens    double precision not null,
    filled_at timestamptz not null,
    primary key (tenant_id, queue)
) with (fillfactor = 50);

-- Where a waiting job lies in `jobs_ready`, but for its priority, which may have been raised.
create view mcp.job_places as
select j.tenant_id, j.job_id, j.created_at, j.queue, j.concurrency_key, j.concurrency_limit,
       coalesce(slot.ready_at, latest.next_run_at, j.run_at) as run_at
from mcp.jobs j
left join lateral (select s.ready_at from mcp.job_slots s where s.tenant_id = j.tenant_id and s.job_id = j.job_id limit 1) slot on true
left join lateral (select x.next_run_at from mcp.job_executions x where x.tenant_id = j.tenant_id and x.job_id = j.job_id
                   order by x.attempt desc, x.finished_at desc limit 1) latest on true;
