-- name: with_pending
-- Tenants with a task that waits, found by one probe each, and an agent with room.
select t.tenant_id from mcp.tenants t
cross join lateral (select 1 from mcp.tasks k where k.tenant_id = t.tenant_id and k.status = 'pending' limit 1) waiting
cross join lateral (select 1 from mcp.agents_now n
                    where n.tenant_id = t.tenant_id and n.deregistered_at is null and n.status in ('available', 'degraded')
                      and n.active_tasks < n.concurrency limit 1) idle
where t.status = 'active';

-- name: with_overdue
-- Tenants with a task whose lease or time has run out. The order names the index: another one, of as little cost while the
-- table was small, would have it read all that waits.
select t.tenant_id from mcp.tenants t
where t.status = 'active' and (
    exists (select 1 from mcp.tasks k where k.tenant_id = t.tenant_id and k.status in ('assigned', 'accepted', 'running')
            and least(k.lease_until, k.timeout_at, k.deadline) < now())
    or t.tenant_id in (select k.tenant_id from mcp.tasks k where k.status = 'pending' and k.deadline < now()
                       order by k.deadline));

-- name: with_tasks_left_behind
-- Tenants with a task that waits for an agent which has left: of each agent's lane the first task is looked at. No parameters.
select t.tenant_id from mcp.tenants t
where t.status = 'active' and exists (
    with recursive lanes as (
        (select k.lane from mcp.tasks k where k.tenant_id = t.tenant_id and k.status = 'pending' and k.lane > 'agent:' collate "C"
         order by k.lane limit 1)
        union all
        select (select k.lane from mcp.tasks k where k.tenant_id = t.tenant_id and k.status = 'pending' and k.lane > l.lane
                order by k.lane limit 1)
        from lanes l where l.lane < 'agent;' collate "C"
    )
    select from lanes l
    cross join lateral (select from mcp.agents a
                        where a.tenant_id = t.tenant_id and a.agent_id = substring(l.lane from '^agent:(.*)$')::uuid
                          and a.deregistered_at is not null limit 1) gone
    where l.lane < 'agent;' collate "C");

-- name: with_unannounced
-- Tenants with an agent whose derived status differs from the one last told.
select t.tenant_id from mcp.tenants t
where t.status = 'active' and exists (select 1 from mcp.agents_now n where n.tenant_id = t.tenant_id
                                      and n.deregistered_at is null and n.status <> n.announced_status);

-- name: insert
-- Creates a tenant. No row: the name is taken. $1 tenant, $2 name, $3 rate.
insert into mcp.tenants (tenant_id, name, rate_per_s) values ($1, $2, $3) on conflict (name) do nothing
returning tenant_id as id, name, status, created_at, rate_per_s;

-- name: by_name
-- A tenant by its name. $1 name.
select t.tenant_id as id, t.name, t.status, t.created_at, t.rate_per_s from mcp.tenants t where t.name = $1;

-- name: page
-- All tenants, newest first. $1 ids below this one, $2 how many.
select t.tenant_id as id, t.name, t.status, t.created_at, t.rate_per_s from mcp.tenants t
where ($1::uuid is null or t.tenant_id < $1) order by t.tenant_id desc limit $2;

-- name: suspend
-- Suspends a tenant, or lifts the suspension. $1 tenant, $2 status.
update mcp.tenants t set status = $2 where t.tenant_id = $1
returning t.tenant_id as id, t.name, t.status, t.created_at, t.rate_per_s;

-- name: limit
-- Gives a tenant a rate of its own, or takes it. $1 tenant, $2 rate.
update mcp.tenants t set rate_per_s = $2 where t.tenant_id = $1
returning t.tenant_id as id, t.name, t.status, t.created_at, t.rate_per_s;

-- name: task_depths
-- How many tasks wait and how many are held in all tenants together. $1 up to how many of each are counted.
select (select count(*) from (select from mcp.tasks k where k.status = 'pending' limit $1) waiting) as pending,
       (select count(*) from (select from mcp.tasks k where k.status in ('assigned', 'accepted', 'running') limit $1) held)
       as held;

-- name: job_depths
-- How many jobs are in each state in all tenants together, but for those that are over. $1 up to how many of each are counted.
select (select count(*) from (select from mcp.jobs_ready limit $1) c) as waiting,
       (select count(*) from (select from mcp.jobs_blocked limit $1) c) as blocked,
       (select count(*) from (select from mcp.jobs_limited limit $1) c) as limited,
       (select count(*) from (select from mcp.jobs_leased limit $1) c) as processing,
       (select count(*) from (select from mcp.dead_letter_queue limit $1) c) as dead_letters;

-- name: with_overdue_jobs
-- Tenants that have jobs to take back. No parameters.
select distinct l.tenant_id from mcp.jobs_leased l where least(l.lease_until, l.timeout_at) < now();

-- name: with_due_limited_jobs
-- Tenants that have jobs which waited for their time and may have a place now. No parameters.
select distinct w.tenant_id from mcp.jobs_limited w where w.is_delayed and w.run_at <= now();

-- name: with_waiting_jobs
-- Tenants with a job in a queue, or with one that waits for a place, found by one probe each.
select t.tenant_id from mcp.tenants t
cross join lateral ((select 1 from mcp.jobs_ready r where r.tenant_id = t.tenant_id limit 1)
                    union all (select 1 from mcp.jobs_limited w where w.tenant_id = t.tenant_id limit 1) limit 1) waiting
where t.status = 'active';

-- name: with_due_schedules
-- Tenants that have schedules which are due. No parameters.
select distinct s.tenant_id from mcp.schedules s
join mcp.tenants t on t.tenant_id = s.tenant_id and t.status = 'active'
where s.paused_at is null and s.next_fire_at <= (select clock_timestamp());

-- name: with_late_workers
-- Tenants with workers that were not heard of for longer than their interval or than they may be silent, or were not until a moment
-- ago. No parameters.
select distinct w.tenant_id from mcp.workers w
where w.status in ('ACTIVE', 'DEGRADED')
  and (w.heartbeat_at < now() - make_interval(secs => least(w.heartbeat_interval_s, w.stale_after_s)) or w.missed_beats > 0);

-- name: with_old_workers
-- Tenants with workers that have gone long ago and hold nothing. $1 in days.
select distinct w.tenant_id from mcp.workers w
where w.status in ('TERMINATED', 'FAILED', 'DRAINING') and w.heartbeat_at < now() - make_interval(days => $1)
  and not exists (select from mcp.jobs_leased l where l.worker_id = w.worker_id);

-- name: workers_by_status
-- How many workers there are of each status, in all tenants together. No parameters.
select w.status, count(*) from mcp.workers w where w.status <> 'TERMINATED' group by w.status;

-- name: with_old_contexts
-- Tenants whose oldest context is older than $1 seconds.
select t.tenant_id from mcp.tenants t
cross join lateral (select c.created_at from mcp.execution_contexts c where c.tenant_id = t.tenant_id order by c.context_id limit 1) oldest
where oldest.created_at < now() - make_interval(secs => $1) order by t.tenant_id;
