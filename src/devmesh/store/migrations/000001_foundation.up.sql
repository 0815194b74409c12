-- The foundation: tenants and their keys, agents, tasks, the event log, the audit log, idempotency.
-- Every table of a tenant has tenant_id first in its primary key, so that storage can be spread by tenant.

create table mcp.tenants (
    tenant_id    uuid primary key,
    name         text not null unique check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    status       text not null default 'active' check (status in ('active', 'suspended')),
    -- The epoch changes when history is lost (a restore): older cursors are then answered with recovered: false.
    stream_epoch integer not null default 1,
    -- The highest sequence whose event retention may have removed: numbering never starts again below it.
    stream_floor bigint not null default 0,
    created_at   timestamptz not null default now()
);

create table mcp.api_keys (
    tenant_id       uuid not null references mcp.tenants,
    key_id          uuid not null,
    owner_id        uuid not null,  -- the first key of a chain of rotations: what it registered stays its successors'
    name            text not null default '',
    prefix          text not null,
    key_hash        bytea not null,
    kind            text not null check (kind in ('user', 'agent', 'worker', 'admin')),
    scopes          text[] not null,
    agent_id        uuid,
    expires_at      timestamptz,
    created_at      timestamptz not null default now(),
    last_used_at    timestamptz,
    revoked_at      timestamptz,
    replaces_key_id uuid,
    primary key (tenant_id, key_id)
);
create index api_keys_by_prefix on mcp.api_keys (prefix);

create table mcp.auth_failures (
    address   text not null,
    failed_at timestamptz not null default now()
);
create index auth_failures_by_address on mcp.auth_failures (address, failed_at);

create table mcp.auth_lockouts (
    address      text primary key,
    locked_until timestamptz not null
);

create table mcp.agents (
    tenant_id        uuid not null references mcp.tenants,
    agent_id         uuid not null,
    owner_id         uuid not null,
    name             text not null,
    kind             text not null check (kind in ('llm', 'tool', 'human', 'worker', 'custom')),
    description      text not null default '',
    capabilities     text[] not null,
    concurrency      integer not null check (concurrency between 1 and 10000),
    metadata         jsonb not null default '{}',
    card             jsonb,
    draining         boolean not null default false,
    suspended        boolean not null default false,
    load             double precision,
    metrics          jsonb,
    heartbeat_at     timestamptz,
    last_assigned_at timestamptz,
    silent_since     timestamptz,  -- it let a lease end without a word, and has not been heard of since
    -- The status that was last told as an event. The true one is derived: see mcp.agents_now.
    announced_status text not null default 'offline',
    version          integer not null default 1,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    deregistered_at  timestamptz,
    primary key (tenant_id, agent_id)
) with (fillfactor = 80);
-- Its condition is spelt so that only a look-up by name fits it: a look-up by id would take it for its own while it is small.
create unique index agents_by_name on mcp.agents (tenant_id, name) where coalesce(deregistered_at, 'infinity') = 'infinity';
create index agents_by_capability on mcp.agents using gin (capabilities);

create table mcp.agent_sessions (
    tenant_id  uuid not null,
    session_id uuid not null,
    agent_id   uuid not null,
    node_id    uuid not null,
    opened_at  timestamptz not null default now(),
    seen_at    timestamptz not null default now(),
    primary key (tenant_id, session_id),
    foreign key (tenant_id, agent_id) references mcp.agents
) with (fillfactor = 80);
create index agent_sessions_by_agent on mcp.agent_sessions (tenant_id, agent_id);

-- The lane a pending task waits in: all tasks of one lane can be done by the same agents, so a claim probes the heads of
-- a few lanes instead of scanning past tasks that it may not take. array_to_string is immutable for text elements.
create function mcp.task_lane(blocked boolean, target_agent_id uuid, assign text, required_capabilities text[])
returns text language sql immutable parallel safe as $$
    select case when blocked then 'blocked'
                when target_agent_id is not null then 'agent:' || target_agent_id
                else assign || ':' || array_to_string(required_capabilities, ',') end
$$;

create table mcp.tasks (
    tenant_id             uuid not null references mcp.tenants,
    task_id               uuid not null,
    title                 text not null,
    description           text not null default '',
    type                  text not null default 'task',
    priority              smallint not null default 3 check (priority between 1 and 5),
    parameters            json not null default '{}',
    required_capabilities text[] not null default '{}',
    tags                  text[] not null default '{}',
    metadata              json not null default '{}',
    created_by_agent_id   uuid,
    created_by_key_id     uuid not null,
    assign                text not null default 'auto' check (assign in ('auto', 'pull')),
    strategy              text not null default 'least_loaded'
                          check (strategy in ('least_loaded', 'round_robin', 'best_match', 'performance')),
    target_agent_id       uuid,
    excluded_agent_ids    uuid[] not null default '{}',
    parent_id             uuid,
    position              integer not null default 0,  -- among its siblings
    distribution          json,                        -- of a distributed parent: its strategy and completion rule
    blocked               boolean not null default false,
    delegated_from        uuid,
    delegation_depth      smallint not null default 0,
    status                text not null check (status in ('pending', 'assigned', 'accepted', 'running', 'completed',
                                                          'failed', 'cancelled', 'timed_out')),
    attempt               integer not null default 1,
    version               integer not null default 1,
    assigned_to           uuid,
    result                json,
    error                 json,
    progress              double precision not null default 0,
    progress_message      text,
    retry_count           integer not null default 0,
    max_retries           integer not null default 3,
    timeout_s             double precision,
    lease_s               double precision not null,
    deadline              timestamptz,
    ready_at              timestamptz not null default now(),
    lease_until           timestamptz,
    timeout_at            timestamptz,
    created_at            timestamptz not null default now(),
    updated_at            timestamptz not null default now(),
    assigned_at           timestamptz,
    accepted_at           timestamptz,
    started_at            timestamptz,
    finished_at           timestamptz,
    lane                  text collate "C" not null generated always as
                          (mcp.task_lane(blocked, target_agent_id, assign, required_capabilities)) stored,
    primary key (tenant_id, task_id)
) with (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- Heads of lanes, highest priority first, then first come first served.
create index tasks_waiting on mcp.tasks (tenant_id, lane, priority, ready_at, task_id) where status = 'pending';
-- What agents hold now. lease_until is not in it, so that a heartbeat stays a heap-only update.
create index tasks_held on mcp.tasks (tenant_id, assigned_to, task_id) where status in ('assigned', 'accepted', 'running');
create index tasks_pending_deadline on mcp.tasks (deadline, tenant_id, task_id) where status = 'pending' and deadline is not null;
create index tasks_by_parent on mcp.tasks (tenant_id, parent_id, position) where parent_id is not null;

-- One row for each attempt that has ended, append-only: who tried, how it ended, how long it took.
create table mcp.task_attempts (
    tenant_id   uuid not null,
    task_id     uuid not null,
    attempt     integer not null,
    agent_id    uuid not null,
    outcome     text not null check (outcome in ('completed', 'failed', 'rejected', 'lease_expired', 'timed_out',
                                                 'cancelled', 'delegated', 'reassigned')),
    error       json,
    assigned_at timestamptz not null,
    ended_at    timestamptz not null,
    primary key (tenant_id, task_id, attempt)
);
create index task_attempts_by_agent on mcp.task_attempts (tenant_id, agent_id, ended_at desc);

create table mcp.task_delegations (
    tenant_id     uuid not null,
    task_id       uuid not null,
    depth         smallint not null,
    attempt       integer not null,
    from_agent_id uuid,
    to_agent_id   uuid,  -- null when delegated to whoever has the capabilities
    capabilities  text[] not null default '{}',
    kind          text not null check (kind in ('manual', 'automatic', 'failover', 'load_balance')),
    reason        text not null default '',
    delegated_at  timestamptz not null,
    primary key (tenant_id, task_id, depth)
);

create table mcp.idempotency_keys (
    tenant_id       uuid not null,
    idempotency_key text not null,
    operation       text not null,
    params_hash     bytea not null,
    answer          json,  -- null only inside the transaction that claims the key
    created_at      timestamptz not null default now(),
    primary key (tenant_id, idempotency_key)
);
create index idempotency_keys_by_age on mcp.idempotency_keys (created_at);

create table mcp.events (
    tenant_id uuid not null,
    sequence  bigint not null,
    at        timestamptz not null,
    type      text not null,
    topics    text[] not null,  -- the first is the thing that changed, the others are who it concerns
    data      json not null,
    primary key (tenant_id, sequence, at)
) partition by range (at);
create index events_by_topic on mcp.events (tenant_id, (topics[1]), sequence);

create table mcp.audit_log (
    tenant_id uuid not null,
    audit_id  uuid not null,
    at        timestamptz not null default now(),
    key_id    uuid,
    agent_id  uuid,
    address   text,
    operation text not null,
    outcome   text not null check (outcome in ('done', 'denied')),
    detail    json not null default '{}',
    primary key (tenant_id, audit_id, at)
) partition by range (at);

-- Makes the monthly partitions of a table from this month to `months_ahead` later, and the default one.
create function mcp.ensure_partitions(parent text, months_ahead integer) returns integer language plpgsql as $$
declare
    month date := date_trunc('month', now() at time zone 'UTC');
    made integer := 0;
    partition_name text;
begin
    for i in 0 .. months_ahead loop
        partition_name := parent || to_char(month + make_interval(months => i), '_YYYY_MM');
        if to_regclass('mcp.' || partition_name) is null then
            execute format('create table mcp.%I partition of mcp.%I for values from (%L) to (%L)', partition_name, parent,
                           (month + make_interval(months => i)) at time zone 'UTC',
                           (month + make_interval(months => i + 1)) at time zone 'UTC');
            made := made + 1;
        end if;
    end loop;
    if to_regclass('mcp.' || parent || '_default') is null then
        execute format('create table mcp.%I partition of mcp.%I default', parent || '_default', parent);
        made := made + 1;
    end if;
    return made;
end $$;
select mcp.ensure_partitions('events', 12), mcp.ensure_partitions('audit_log', 12);

-- Appends events to a tenant's stream at the next sequences and returns the last one. The lock is held until the commit:
-- that makes sequences contiguous in commit order. It must be the last lock that a transaction takes. It is a function
-- because the head has to be read by a statement that begins after the lock is granted.
create function mcp.append_events(p_tenant_id uuid, p_types text[], p_topics text[], p_data text[])
returns bigint language plpgsql as $$
declare
    head bigint;
begin
    perform pg_advisory_xact_lock(hashtextextended(p_tenant_id::text, 7));
    select sequence into head from mcp.events where tenant_id = p_tenant_id order by sequence desc limit 1;
    if head is null then
        select stream_floor into head from mcp.tenants where tenant_id = p_tenant_id;
    end if;
    insert into mcp.events (tenant_id, sequence, at, type, topics, data)
    select p_tenant_id, head + e.ordinal, clock_timestamp(), e.type, string_to_array(e.topics, ','), e.data::json
    from unnest(p_types, p_topics, p_data) with ordinality as e (type, topics, data, ordinal);
    return head + cardinality(p_types);
end $$;

-- Agents as they are now. The status is derived here and nowhere else.
create view mcp.agents_now as
select a.*, held.count as active_tasks, present.sessions, present.seen_at,
       case when a.deregistered_at is not null then 'offline'
            when a.suspended then 'suspended'
            when present.sessions = 0 and coalesce(a.heartbeat_at, '-infinity') < now() - interval '60 s' then 'offline'
            when a.draining then 'draining'
            when a.load >= 0.95 or a.silent_since is not null then 'degraded'
            when held.count >= a.concurrency then 'busy'
            else 'available' end as status
from mcp.agents a
cross join lateral (select count(*)::integer as count from mcp.tasks t
                    where t.tenant_id = a.tenant_id and t.assigned_to = a.agent_id
                      and t.status in ('assigned', 'accepted', 'running')) held
cross join lateral (select count(*)::integer as sessions, max(s.seen_at) as seen_at from mcp.agent_sessions s
                    where s.tenant_id = a.tenant_id and s.agent_id = a.agent_id
                      and s.seen_at > now() - interval '30 s') present;

-- Tasks in the order of the fields of core.tasks.Task, so that a row becomes a task without naming its columns again.
create view mcp.task_rows as
select task_id as id, title, description, type, priority, parameters, required_capabilities, tags, metadata,
       created_by_agent_id as created_by, created_by_key_id, assign, strategy, target_agent_id, excluded_agent_ids, parent_id,
       position, distribution, blocked, delegated_from, delegation_depth, status, attempt, version, assigned_to, result, error,
       progress, progress_message, retry_count, max_retries, timeout_s, lease_s, deadline, ready_at, lease_until, timeout_at,
       created_at, updated_at, assigned_at, accepted_at, started_at, finished_at, tenant_id
from mcp.tasks;
