-- name: lock
-- One at a time says in a tenant which job waits for which, and puts back to work what is over: two could make a circle together. Nor
-- is a month of jobs dropped meanwhile (partitions.try_keep_over): who drops it would not see that one of them is to run again. $1 tenant.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text, 13)), pg_advisory_xact_lock_shared(hashtextextended('mcp.jobs', 15));

-- name: mark_held
-- Notes at held jobs that others wait for them: whoever ends one of these has to look. Locks them as `jobs.lock_leases` does. $1 tenant,
-- $2 jobs, sorted.
update mcp.jobs_leased l set is_parent = true
where l.tenant_id = $1 and l.job_id = any(array(
    select h.job_id from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select k.job_id from mcp.jobs_leased k where k.tenant_id = $1 and k.job_id = a.job_id limit 1 for update) h))
returning l.job_id;

-- name: mark_blocked
-- The same at jobs that wait for others themselves. $1 tenant, $2 jobs.
update mcp.jobs_blocked b set is_parent = true where b.tenant_id = $1 and b.job_id = any($2::uuid[]) returning b.job_id;

-- name: mark_dead
-- The same at dead letters, which may be replayed. $1 tenant, $2 jobs.
update mcp.dead_letter_queue d set is_parent = true where d.tenant_id = $1 and d.job_id = any($2::uuid[]) returning d.job_id;

-- name: mark_ready
-- The same at jobs in their queues. $1 tenant, $2 jobs.
update mcp.jobs_ready r set is_parent = true where r.ctid = any(array(
    select h.place from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) p
    cross join generate_series(1, 5) as level (priority)
    cross join lateral (select r.ctid as place from mcp.jobs_ready r
                        where r.tenant_id = $1 and r.queue = p.queue and r.priority = level.priority and r.run_at = p.run_at
                          and r.job_id = a.job_id limit 1 for update) h))
returning r.job_id;

-- name: mark_limited
-- The same at jobs that wait for a place. $1 tenant, $2 jobs.
update mcp.jobs_limited w set is_parent = true where w.tenant_id = $1 and w.job_id = any($2::uuid[]) returning w.job_id;

-- name: block
-- Writes that jobs wait for others. $1 tenant, then one entry a job: $2 jobs, $3 when they were made, $4 when they may run, $5
-- attempts, $6 failures, $7 priorities, $8 whether others wait for them, $9 queues, $10 policies.
insert into mcp.jobs_blocked (tenant_id, job_id, created_at, run_at, attempt, retries, priority, is_parent, queue, policy)
select $1, b.* from unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::integer[], $6::smallint[], $7::smallint[],
                           $8::boolean[], $9::text[], $10::text[]) b;

-- name: add
-- Which job waits for which. $1 tenant, $2 parents, $3 their children.
insert into mcp.job_dependencies (tenant_id, parent_id, child_id)
select $1, e.parent_id, e.child_id from unnest($2::uuid[], $3::uuid[]) as e (parent_id, child_id)
on conflict do nothing;

-- name: is_above
-- Whether one of these jobs waits, through whatever number of others, for a job. $1 tenant, $2 jobs, $3 the job.
with recursive above (job_id) as (
    select * from unnest($2::uuid[])
    union
    select d.parent_id from above a
    cross join lateral (select e.parent_id from mcp.job_dependencies e
                        where e.child_id = a.job_id and e.tenant_id is not distinct from $1 limit 10000) d
)
select exists (select from above where above.job_id = $3);

-- name: below
-- Who waits for whom of all that wait for these jobs, through whatever number of others. $1 tenant, $2 jobs.
with recursive below (parent_id, child_id) as (
    select d.parent_id, d.child_id from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_dependencies e where e.tenant_id = $1 and e.parent_id = a.job_id limit 100000) d
    union
    select d.parent_id, d.child_id from below b
    cross join lateral (select * from mcp.job_dependencies e where e.tenant_id = $1 and e.parent_id = b.child_id limit 100000) d
)
select b.parent_id, b.child_id from below b;

-- name: children
-- Who waits for these jobs, in the order of those that wait. $1 tenant, $2 parents, $3 from which child on, $4 how many.
select d.parent_id, d.child_id from unnest($2::uuid[]) as a (parent_id)
cross join lateral (select * from mcp.job_dependencies e where e.tenant_id = $1 and e.parent_id = a.parent_id and e.child_id >= $3
                    order by e.child_id limit $4) d
order by d.child_id, d.parent_id limit $4;

-- name: parents
-- For how many jobs one waits, the first hundred of these, and those of them that have failed: dead letters, which may be replayed.
-- $1 tenant, $2 the job.
select count(*) as count, (array_agg(d.parent_id order by d.parent_id))[:100] as waits_for,
       coalesce(array_agg(d.parent_id order by d.parent_id) filter (where l.job_id is not null), '{}') as failed
from mcp.job_dependencies d
left join lateral (select q.job_id from mcp.dead_letter_queue q where q.tenant_id = $1 and q.job_id = d.parent_id limit 1) l on true
where d.child_id = $2 and d.tenant_id is not distinct from $1;

-- name: lock_blocked
-- Locks jobs that wait for others, in one order for everybody. $1 tenant, $2 jobs, sorted.
select h.* from unnest($2::uuid[]) as a (job_id)
cross join lateral (select * from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = a.job_id limit 1 for update) h;

-- name: remove
-- These do not wait for those any more. $1 tenant, $2 parents, $3 their children.
delete from mcp.job_dependencies d where d.tenant_id = $1 and d.parent_id = any($2::uuid[]) and d.child_id = any($3::uuid[]);

-- name: forget_children
-- These wait for nobody any more. $1 tenant, $2 jobs.
delete from mcp.job_dependencies d where d.child_id = any($2::uuid[]) and d.tenant_id = $1;

-- name: still_waiting
-- Which of these jobs still wait for others. $1 tenant, $2 jobs.
select a.job_id from unnest($2::uuid[]) as a (job_id)
cross join lateral (select from mcp.job_dependencies d where d.child_id = a.job_id and d.tenant_id = $1 limit 1) found;

-- name: unblock
-- Puts jobs into their queues that this transaction has locked and that wait for nobody any more, and says which of them have a
-- concurrency key. $1 tenant, $2 jobs.
with gone as (
    delete from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = any($2::uuid[]) returning b.*
), timed as materialized (
    select g.*, greatest(g.run_at, (select clock_timestamp())) as due_at from gone g
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, next_run_at, attempt, retries, outcome)
    select $1, t.job_id, clock_timestamp(), t.due_at, t.attempt, t.retries, 'UNBLOCKED' from timed t
), ready as (
    insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
    select $1, t.due_at, t.job_id, t.created_at, t.attempt, t.retries, t.priority, t.is_parent, t.queue from timed t
)
select t.job_id, t.queue, t.due_at as run_at, t.attempt, j.concurrency_key is not null as is_limited
from timed t
left join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = t.job_id and k.created_at = t.created_at limit 1) j on true;

-- name: end_blocked
-- Ends jobs that wait for others, as failed or as cancelled. $1 tenant, $2 jobs, $3 the outcome, $4 why each does, as JSON; and for those
-- that are dead letters $5 ids, or null. Their errors say besides whom they were waiting for, for when they are put back.
with asked as materialized (
    select a.* from unnest($2::uuid[], $4::text[]) as a (job_id, why)
), gone as (
    delete from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = any($2::uuid[]) returning b.*
), found as materialized (
    select g.*, a.why from gone g full join asked a on a.job_id = g.job_id
), told as materialized (
    select g.*, ($5::uuid[])[row_number() over (order by g.job_id)] as letter_id,
           (g.why::jsonb || jsonb_build_object('waited_for', w.ids, 'on_parent_failure', g.policy))::json as error
    from (select f.* from found f where f.queue is not null) g
    cross join lateral (select coalesce(jsonb_agg(d.parent_id), '[]') as ids
                        from (select d.parent_id from mcp.job_dependencies d where d.child_id = g.job_id and d.tenant_id = $1
                              order by d.parent_id limit 10000) d) w
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, attempt, retries, outcome, error)
    select $1, t.job_id, clock_timestamp(), t.attempt + 1, t.retries, $3, t.error from told t
), dead as (
    insert into mcp.dead_letter_queue (tenant_id, job_id, dead_letter_id, created_at, failed_at, is_parent, attempt, retries, priority,
                                       queue, type, error)
    select $1, g.job_id, g.letter_id, g.created_at, now(), g.is_parent, g.attempt + 1, g.retries,
           g.priority, g.queue, j.type, g.error
    from told g cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = g.job_id
                                      and k.created_at = g.created_at limit 1) j
    where $5::uuid[] is not null
)
select g.job_id, g.queue, g.attempt + 1 as attempt, g.is_parent from told g;

-- name: doomed_below
-- Jobs that fail, which this transaction has locked, and all that fail with them, through whatever number of others, up to a number.
-- $1 tenant, $2 jobs, $3 the number.
with recursive below (job_id) as (
    select * from unnest($2::uuid[])
    union
    select w.job_id from below b
    cross join lateral (select e.child_id from mcp.job_dependencies e
                        where e.tenant_id = $1 and e.parent_id = b.job_id limit 100000) d
    cross join lateral (select k.job_id from mcp.jobs_blocked k
                        where k.tenant_id = $1 and k.job_id = d.child_id and k.policy = 'fail' limit 1) w
)
select b.job_id from below b limit $3;

-- name: set_policy
-- What becomes of a job that waits for others, and is locked, when one of them fails. $1 tenant, $2 the job, $3 the policy.
update mcp.jobs_blocked b set policy = $3 where b.tenant_id = $1 and b.job_id = $2 and b.policy <> $3;

-- name: raise_priority
-- Has a job that waits for others have a priority of at least as much. $1 tenant, $2 the job, $3 the priority.
update mcp.jobs_blocked b set priority = $3 where b.tenant_id = $1 and b.job_id = $2 and b.priority < $3;

-- name: ids_of_queue
-- Those of a queue that wait for others. $1 tenant, $2 queue, $3 how many.
select b.job_id from mcp.jobs_blocked b where b.tenant_id = $1 and b.queue = $2 order by b.job_id limit $3;

-- name: wishes
-- The priorities of jobs as they were asked for, or as those for which they wait have raised them, and how many wait for each already,
-- up to a number. $1 tenant, $2 jobs, $3 the number.
select j.job_id, greatest(j.priority, b.priority) as priority,
       (select count(*) from (select from mcp.job_dependencies d where d.tenant_id = $1 and d.parent_id = j.job_id limit $3) c) as children
from unnest($2::uuid[]) as a (job_id)
cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) j
left join lateral (select * from mcp.jobs_blocked w where w.tenant_id = $1 and w.job_id = a.job_id limit 1) b on true;

-- name: take_ready
-- Takes jobs out of their queues, so that they may wait for others. $1 tenant, $2 the jobs.
delete from mcp.jobs_ready r where r.ctid = any(array(
    select h.place from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) p
    cross join generate_series(1, 5) as level (priority)
    cross join lateral (select r.ctid as place from mcp.jobs_ready r
                        where r.tenant_id = $1 and r.queue = p.queue and r.priority = level.priority and r.run_at = p.run_at
                          and r.job_id = a.job_id limit 1 for update) h))
returning r.*;
