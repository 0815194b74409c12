-- name: lock
-- One at a time puts snapshots back in a tenant: two would both find the same jobs missing. $1 tenant.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text, 14));

-- name: lock_claims
-- Has claims wait for this transaction of workers that are to be given back what they held, in one order (`lock_claims` of workers): they
-- would not see these leases yet, and afterwards count a worker's leases from its oldest one on. $1 tenant, $2 the rows, $3 how many workers.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text || w.worker_id, 12)) from (
    select distinct r."row" ->> 'worker_id' as worker_id from mcp.state_snapshot_rows r
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs_leased' and r.decision = 'insert'
    order by 1 limit $3) w;

-- name: meant
-- The jobs of which a restore may write something or which they wait for, in order, and the keys that they had. $1 tenant, $2 the rows.
with meant as materialized (
    select r.id::uuid as job_id, r.noun, r."row" from mcp.state_snapshot_rows r
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.decision is not null
      and r.noun = any(array['jobs', 'latest', 'jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased', 'dead_letter_queue'])
)
select f.job_id, max(f.queue) as queue, max(f.concurrency_key) as concurrency_key from (
    select m.job_id, m."row" ->> 'queue' as queue, m."row" ->> 'concurrency_key' as concurrency_key from meant m where m.noun = 'jobs'
    union all select m.job_id, null, null from meant m
    union all select p.job_id::uuid, null, null from meant m
              cross join lateral json_array_elements_text(m."row" -> 'parent_ids') as p (job_id) where m.noun = 'jobs_blocked') f
group by f.job_id order by f.job_id;

-- name: take_away
-- Takes jobs that are otherwise now from where they are, and notes in their history that they go on. Gives the attempts that are ended by
-- that. One that somebody is moving meanwhile is waited for, and may then be elsewhere than where this statement sees it: see `left`.
-- $1 tenant, $2 the rows.
with wanted as materialized (
    select r.id::uuid as job_id from mcp.state_snapshot_rows r
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs' and r.decision = 'conflict'
), place as materialized (
    select h.place from wanted w
    cross join lateral (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = w.job_id limit 1) p
    cross join generate_series(1, 5) as level (priority)
    cross join lateral (select q.ctid as place from mcp.jobs_ready q
                        where q.tenant_id = $1 and q.queue = p.queue and q.priority = level.priority and q.run_at = p.run_at
                          and q.job_id = w.job_id limit 1 for update) h
), ready as (
    delete from mcp.jobs_ready q where q.ctid = any(array(select place.place from place))
), limited as (
    delete from mcp.jobs_limited l where l.tenant_id = $1 and l.job_id = any(array(select wanted.job_id from wanted))
), blocked as (
    delete from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = any(array(select wanted.job_id from wanted))
), edges as (
    delete from mcp.job_dependencies d where d.child_id = any(array(select wanted.job_id from wanted)) and d.tenant_id = $1
), dead as (
    delete from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = any(array(select wanted.job_id from wanted))
), held as (
    delete from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = any(array(select wanted.job_id from wanted))
    returning l.job_id, l.worker_id, l.attempt, l.retries, l.started_at, l.queue
), over as (
    update mcp.job_executions x set next_run_at = clock_timestamp()
    where x.tenant_id = $1 and x.job_id = any(array(select wanted.job_id from wanted)) and x.next_run_at is null
), ended as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, started_at, worker_id, next_run_at, attempt, retries, outcome, error)
    select $1, h.job_id, clock_timestamp(), h.started_at, h.worker_id, clock_timestamp(), h.attempt, h.retries, 'CANCELLED',
           '{"message": "a snapshot was put back over it"}'
    from held h
)
select w.job_id, h.queue, h.attempt from wanted w full join held h on h.job_id = w.job_id;

-- name: left
-- Whether jobs that are otherwise now are somewhere still, or might be put somewhere because their history says that they are over.
-- $1 tenant, $2 the rows.
select exists (
    select from mcp.state_snapshot_rows r
    cross join lateral (
        (select 1 from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = r.id::uuid limit 1)
        union all
        (select 1 from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = r.id::uuid limit 1)
        union all
        (select 1 from mcp.jobs_limited w where w.tenant_id = $1 and w.job_id = r.id::uuid limit 1)
        union all
        (select 1 from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = r.id::uuid limit 1)
        union all
        (select 1 from mcp.job_executions x where x.tenant_id = $1 and x.job_id = r.id::uuid and x.next_run_at is null limit 1)
        union all
        (select 1 from (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = r.id::uuid limit 1) p
         cross join generate_series(1, 5) as level (priority)
         cross join lateral (select q.job_id from mcp.jobs_ready q
                             where q.tenant_id = $1 and q.queue = p.queue and q.priority = level.priority and q.run_at = p.run_at
                               and q.job_id = r.id::uuid limit 1) q limit 1)
        limit 1) there
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs' and r.decision = 'conflict');

-- name: put_back_jobs
-- Writes what was asked for of jobs that are to be put back, and what was last known of their attempts; and of jobs that have ended since
-- and stay so, of which it was lost. `nul` is what stands in a row for
-- what JSON may say and a text may not hold: see snapshots.sql. Nothing more is done to a job that somebody
-- else has written since it was found missing: it lies where it was put with that. $1 tenant, $2 the rows, $3 the decisions by which they are.
with latest as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, started_at, worker_id, next_run_at, attempt, retries, outcome,
                                    result, error)
    select x.tenant_id, x.job_id, x.finished_at, x.started_at, x.worker_id, x.next_run_at, x.attempt, x.retries, x.outcome,
           coalesce(replace(replace(x.result::text, n.escape, '\u0000'), n.nul, '\u0000')::json, x.result),
           coalesce(replace(replace(x.error::text, n.escape, '\u0000'), n.nul, '\u0000')::json, x.error)
    from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.job_executions, r."row") x
    cross join lateral (select r."row" ->> 'nul' as nul, '\u' || to_hex(ascii(r."row" ->> 'nul')) as escape) n
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'latest' and r.decision = any($3::text[])
    on conflict do nothing
), written as (
    insert into mcp.jobs (tenant_id, job_id, created_at, run_at, created_by_key_id, timeout_ms, backoff_ms, max_retries, priority,
                          queue, type, payload, tags, unique_key, concurrency_key, concurrency_limit)
    select j.tenant_id, j.job_id, j.created_at, j.run_at, j.created_by_key_id, j.timeout_ms, j.backoff_ms, j.max_retries, j.priority,
           j.queue, j.type, coalesce(replace(replace(j.payload::text, n.escape, '\u0000'), n.nul, '\u0000')::json, j.payload), j.tags,
           j.unique_key, j.concurrency_key, j.concurrency_limit
    from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.jobs, r."row") j
    cross join lateral (select r."row" ->> 'nul' as nul, '\u' || to_hex(ascii(r."row" ->> 'nul')) as escape) n
    left join lateral (select e.job_id from mcp.job_executions e
                       where e.tenant_id = $1 and e.job_id = r.id::uuid and e.next_run_at is null limit 1) over on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs'
      and (r.decision = any($3::text[]) or r.decision = 'conflict' and over.job_id is not null)
    on conflict do nothing
    returning job_id
), told as materialized (
    select r.id, w.job_id from (select r.id, r.id::uuid as job_id from mcp.state_snapshot_rows r
                                where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs' and r.decision = 'insert') r
    full join written w on w.job_id = r.job_id
)
update mcp.state_snapshot_rows r set decision = null
where r.ctid = any(array(
    select h.place from told t
    cross join lateral (select k.ctid as place from mcp.state_snapshot_rows k
                        where k.tenant_id = $1 and k.snapshot_id = $2 and k.id = t.id
                          and k.noun = any(array['jobs', 'latest', 'jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased',
                                                 'dead_letter_queue'])
                        limit 10) h
    where t.job_id is null));

-- name: put_back_places
-- Jobs of a concurrency key that lie where they were, in their queue or under a lease, and have lost their places, have them again: who waits
-- for one of that key is told when one is left. $1 tenant, $2 the rows.
insert into mcp.job_slots (tenant_id, job_id, ready_at, queue, concurrency_key)
select $1, p.job_id, p.ready_at, r."row" ->> 'queue', r."row" ->> 'concurrency_key' from mcp.state_snapshot_rows r
left join lateral (select s.job_id from mcp.job_slots s where s.tenant_id = $1 and s.job_id = r.id::uuid limit 1) slot on true
cross join lateral (
    (select l.job_id, l.started_at as ready_at from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = r.id::uuid limit 1)
    union all
    (select q.job_id, q.run_at
     from (select k."row" ->> 'queue' as queue, (k."row" ->> 'run_at')::timestamptz as run_at from mcp.state_snapshot_rows k
           where k.tenant_id = $1 and k.snapshot_id = $2 and k.noun = 'jobs_ready' and k.id = r.id limit 1) at
     cross join generate_series(1, 5) as level (priority)
     cross join lateral (select w.job_id, w.run_at from mcp.jobs_ready w
                         where w.tenant_id = $1 and w.queue = at.queue and w.priority = level.priority and w.run_at = at.run_at
                           and w.job_id = r.id::uuid limit 1) q limit 1)
    limit 1) p
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs' and r."row" ->> 'concurrency_key' is not null and slot.job_id is null
on conflict do nothing;

-- name: places_left
-- Jobs that lay nowhere, are put back, and have a place of their concurrency key left: it says that they came into their queue at another
-- time. Who held one keeps it. $1 tenant, $2 the rows.
select r.id::uuid as job_id from mcp.state_snapshot_rows r
cross join lateral (select from mcp.job_slots s where s.tenant_id = $1 and s.job_id = r.id::uuid limit 1) slot
where r.tenant_id = $1 and r.snapshot_id = $2
  and (r.decision = 'insert' and r.noun = any(array['jobs_ready', 'jobs_limited', 'jobs_blocked', 'dead_letter_queue'])
       or r.decision = 'given back');

-- name: kept
-- Jobs that stay where they lie, and of which something else was lost and is written: where that is, and in which attempt. $1 tenant, $2
-- the rows.
select r.id::uuid as job_id, q."row" ->> 'queue' as queue, r."row" ->> 'place' as place, (r."row" ->> 'attempt')::integer as attempt
from mcp.state_snapshot_rows r
cross join lateral (select k."row" from mcp.state_snapshot_rows k
                    where k.tenant_id = $1 and k.snapshot_id = $2 and k.noun = 'jobs' and k.id = r.id limit 1) q
cross join lateral (select from mcp.state_snapshot_rows k
                    where k.tenant_id = $1 and k.snapshot_id = $2 and k.noun = any(array['jobs', 'latest']) and k.id = r.id
                      and k.decision = 'insert' limit 1) written
left join lateral (select k.id from mcp.state_snapshot_rows k
                   where k.tenant_id = $1 and k.snapshot_id = $2 and k.noun = 'jobs_blocked' and k.id = r.id
                     and k.decision = 'insert' limit 1) waiting on true
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'kept jobs' and waiting.id is null order by r.id;

-- name: keys_of_held
-- The concurrency keys of jobs that are to be held again, with their limits as the latest of those jobs have asked. $1 tenant, $2 the rows.
select j.queue, j.concurrency_key, (array_agg(j.concurrency_limit order by j.created_at desc, j.job_id desc))[1] as concurrency_limit
from mcp.state_snapshot_rows r
cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = r.id::uuid limit 1) j
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs_leased' and r.decision = 'insert' and j.concurrency_key is not null
group by j.queue, j.concurrency_key;

-- name: crowd
-- Decides `crowded` of jobs that were held and for which there is no place any more, others having theirs by now. One whose own is left
-- keeps it, however low the limit is by now. Their limits are locked. $1 tenant, $2 the rows.
with counted as materialized (
    select r.ctid as place, m.concurrency_limit - taken.count as free,
           row_number() over (partition by j.queue, j.concurrency_key order by (r."row" ->> 'started_at')::timestamptz, r.id) as ordinal
    from mcp.state_snapshot_rows r
    cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = r.id::uuid limit 1) j
    cross join lateral (select * from mcp.job_limits l
                        where l.tenant_id = $1 and l.queue = j.queue and l.concurrency_key = j.concurrency_key limit 1) m
    cross join lateral (select count(*) from mcp.job_slots s
                        where s.concurrency_key = m.concurrency_key and s.queue = m.queue and s.tenant_id = $1) taken
    left join lateral (select s.job_id from mcp.job_slots s where s.tenant_id = $1 and s.job_id = r.id::uuid limit 1) own on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs_leased' and r.decision = 'insert' and own.job_id is null
)
update mcp.state_snapshot_rows r set decision = 'crowded'
where r.ctid = any(array(select c.place from counted c where c.ordinal > c.free))
returning r.id::uuid as job_id;

-- name: put_back_waiting
-- Puts jobs into their queues that waited there, or for a place; and those that were held, unless nothing has become of them since and
-- there is a place for them: for want of one a worker gives its job back. Their attempts go on from the latest that there was, and a row of
-- the history says when they go on. Others may have come to wait for them since: that is noted at them, here and below. $1 tenant, $2 the
-- rows, $3 the decisions.
with waiting as materialized (
    select p.*, p.is_parent or child.child_id is not null as is_waited_for, greatest(p.attempt, x.attempt) as from_attempt,
           greatest(p.run_at, (select clock_timestamp())) as due_at, r.decision = 'crowded' as is_crowded,
           (r."row" ->> 'started_at')::timestamptz as started_at, (r."row" ->> 'worker_id')::uuid as worker_id
    from mcp.state_snapshot_rows r
    cross join lateral json_populate_record(null::mcp.jobs_ready, r."row") p
    left join lateral (select e.attempt from mcp.job_executions e where e.tenant_id = $1 and e.job_id = r.id::uuid
                       order by e.attempt desc, e.finished_at desc limit 1) x on true
    left join lateral (select d.child_id from mcp.job_dependencies d
                       where d.tenant_id = $1 and d.parent_id = r.id::uuid limit 1) child on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.decision = any($3::text[])
      and (r.noun = any(array['jobs_ready', 'jobs_limited']) or r.noun = 'jobs_leased' and r.decision <> 'insert')
), given_back as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, started_at, worker_id, next_run_at, attempt, retries, outcome)
    select $1, w.job_id, clock_timestamp(), w.started_at, w.worker_id, w.due_at, w.attempt, w.retries, 'RELEASED'
    from waiting w where w.is_crowded
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, next_run_at, attempt, retries, outcome)
    select $1, w.job_id, clock_timestamp(), w.due_at, w.from_attempt, w.retries, 'UNBLOCKED' from waiting w
    returning job_id, next_run_at
), dated as materialized (
    select w.*, k.next_run_at from waiting w full join kept k on k.job_id = w.job_id
)
insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
select $1, d.next_run_at, d.job_id, d.created_at, d.from_attempt, d.retries, d.priority, d.is_waited_for, d.queue from dated d
where d.job_id is not null
returning job_id, queue, attempt, retries, priority;

-- name: put_back_held
-- Gives jobs back to the workers that held them, under fresh leases that begin now: claims count a worker's leases from its oldest one on.
-- $1 tenant, $2 the rows.
with held as materialized (
    select l.* from mcp.state_snapshot_rows r
    cross join lateral (select clock_timestamp() as moment limit 1) now
    left join lateral (select d.child_id from mcp.job_dependencies d
                       where d.tenant_id = $1 and d.parent_id = r.id::uuid limit 1) child on true
    cross join lateral json_populate_record(null::mcp.jobs_leased, (r."row"::jsonb || jsonb_build_object(
        'is_parent', (r."row" ->> 'is_parent')::boolean or child.child_id is not null, 'started_at', now.moment,
        'lease_until', now.moment + make_interval(secs => (r."row" ->> 'lease_s')::double precision),
        'timeout_at', now.moment + ((r."row" ->> 'timeout_at')::timestamptz - (r."row" ->> 'started_at')::timestamptz)))::json) l
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs_leased' and r.decision = 'insert'
), placed as (
    insert into mcp.job_slots (tenant_id, job_id, ready_at, queue, concurrency_key)
    select $1, h.job_id, h.started_at, h.queue, j.concurrency_key from held h
    cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = h.job_id limit 1) j
    where j.concurrency_key is not null
    on conflict do nothing
)
insert into mcp.jobs_leased select h.* from held h
returning job_id, queue, attempt, retries, priority;

-- name: put_back_blocked
-- Has jobs wait for others again, and notes for which: also those that do, though it is lost for which. Their attempts go on from the
-- latest that there was, or who had that might still end the next one. $1 tenant, $2 the rows, $3 the decisions.
with blocked as (
    insert into mcp.jobs_blocked (tenant_id, job_id, created_at, run_at, attempt, retries, priority, is_parent, queue, policy)
    select b.tenant_id, b.job_id, b.created_at, b.run_at, greatest(b.attempt, x.attempt), b.retries, b.priority,
           b.is_parent or child.child_id is not null, b.queue, b.policy
    from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.jobs_blocked, r."row") b
    left join lateral (select e.attempt from mcp.job_executions e where e.tenant_id = $1 and e.job_id = r.id::uuid
                       order by e.attempt desc, e.finished_at desc limit 1) x on true
    left join lateral (select d.child_id from mcp.job_dependencies d
                       where d.tenant_id = $1 and d.parent_id = r.id::uuid limit 1) child on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs_blocked' and r.decision = any($3::text[])
    on conflict (tenant_id, job_id) do update set is_parent = excluded.is_parent
    returning job_id, queue, attempt, retries, priority
), edges as materialized (
    select (e."row" ->> 'child_id')::uuid as child_id, array_agg((e."row" ->> 'parent_id')::uuid) as parent_ids
    from mcp.state_snapshot_rows e where e.tenant_id = $1 and e.snapshot_id = $2 and e.noun = 'job_dependencies' group by 1
), told as materialized (
    select b.*, coalesce(e.parent_ids, '{}') as parent_ids from blocked b full join edges e on e.child_id = b.job_id
)
select t.job_id, t.queue, t.attempt, t.retries, t.priority, t.parent_ids from told t where t.job_id is not null;

-- name: put_back_dead
-- Puts dead letters back. One that has gone on since ends once more: that is told as its end. $1 tenant, $2 the rows, $3 the decisions.
with dead as materialized (
    select d.*, coalesce(replace(replace(d.error::text, n.escape, '\u0000'), n.nul, '\u0000')::json, d.error) as told_error,
           d.is_parent or child.child_id is not null as is_waited_for, r.decision = 'conflict' as ends_again,
           case when r.decision = 'conflict' then x.attempt + 1 else d.attempt end as ends_as
    from mcp.state_snapshot_rows r
    cross join lateral json_populate_record(null::mcp.dead_letter_queue, r."row") d
    cross join lateral (select r."row" ->> 'nul' as nul, '\u' || to_hex(ascii(r."row" ->> 'nul')) as escape) n
    left join lateral (select e.attempt from mcp.job_executions e where e.tenant_id = $1 and e.job_id = r.id::uuid
                       order by e.attempt desc, e.finished_at desc limit 1) x on true
    left join lateral (select d.child_id from mcp.job_dependencies d
                       where d.tenant_id = $1 and d.parent_id = r.id::uuid limit 1) child on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'dead_letter_queue' and r.decision = any($3::text[])
), ended as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, attempt, retries, outcome, error)
    select $1, d.job_id, clock_timestamp(), d.ends_as, d.retries, 'FAILED',
           d.told_error
    from dead d where d.ends_again
), written as (
    insert into mcp.dead_letter_queue (tenant_id, job_id, dead_letter_id, created_at, failed_at, is_parent, attempt, retries, priority,
                                       queue, type, error)
    select $1, d.job_id, d.dead_letter_id, d.created_at, d.failed_at, d.is_waited_for, d.ends_as, d.retries, d.priority, d.queue, d.type,
           d.told_error
    from dead d
    on conflict (tenant_id, job_id) do update set is_parent = excluded.is_parent
    returning job_id
), told as materialized (
    select d.*, w.job_id as written_id from dead d full join written w on w.job_id = d.job_id
)
select t.job_id, t.queue, t.ends_as as attempt, t.retries, t.priority, t.ends_again, t.is_waited_for from told t where t.written_id is not null;

-- name: put_back_keys
-- Puts unique keys back that nobody has, in the order in which everybody takes them in hand. $1 tenant, $2 the rows.
insert into mcp.job_unique_keys
select u.* from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.job_unique_keys, r."row") u
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'job_unique_keys' order by u.unique_key
on conflict do nothing;

-- name: put_back_queues
-- One that was paused is so from now on, unless it is already: what was begun since then was begun rightly. $1 tenant, $2 the rows,
-- $3 the decisions.
insert into mcp.queues as n
select q.* from mcp.state_snapshot_rows r
cross join lateral json_populate_record(null::mcp.queues, (r."row"::jsonb || jsonb_build_object(
    'paused_at', case when r."row" ->> 'paused_at' is not null then now() end))::json) q
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'queues' and r.decision = any($3::text[])
on conflict (tenant_id, queue) do update
set paused_at = case when excluded.paused_at is not null then coalesce(n.paused_at, excluded.paused_at) end, reason = excluded.reason,
    rate_per_s = excluded.rate_per_s, burst = excluded.burst, updated_at = now()
returning queue, paused_at, reason, rate_per_s, burst;

-- name: put_back_workers
-- Workers as they were, as if they had just been heard of. A name that another has by now stays that one's. $1 tenant, $2 the rows,
-- $3 the decisions.
with missing as (
    insert into mcp.workers
    select w.* from mcp.state_snapshot_rows r
    cross join lateral json_populate_record(null::mcp.workers, (r."row"::jsonb || jsonb_build_object(
        'heartbeat_at', now(), 'missed_beats', 0))::json) w
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'workers' and r.decision = 'insert'
    on conflict do nothing
    returning worker_id, status, reason
), changed as (
    update mcp.workers w set status = r."row" ->> 'status', reason = r."row" ->> 'reason'
    from mcp.state_snapshot_rows r
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'workers' and r.decision = 'conflict' and 'conflict' = any($3::text[])
      and w.tenant_id = $1 and w.worker_id = r.id::uuid
      and not (w.status = 'TERMINATED' and exists (select from mcp.workers v where v.tenant_id = $1 and v.name = w.name
                                                   and coalesce(v.status, '') <> 'TERMINATED'))
    returning w.worker_id, w.status, w.reason
)
select m.* from missing m union all select c.* from changed c;

-- name: lock_schedules
-- Locks schedules that are to become as they were, and gives those that are to fire then, with the times that they are to have, and whether
-- the next one stays as it is: they have these already, or one is due that was not seen yet. $1 tenant, $2 the rows.
select now.schedule_id, now.last_fired_at, now.starts_at, now.next_fire_at, p.cron, p.interval_s, p.time_zone, p.ends_at,
       now.paused_at is null
       and ((now.cron, now.interval_s, now.time_zone, now.ends_at) is not distinct from (p.cron, p.interval_s, p.time_zone, p.ends_at)
            or coalesce(now.next_fire_at <= now(), false)) as goes_on
from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.schedules, r."row") p
cross join lateral (select * from mcp.schedules k where k.tenant_id = $1 and k.schedule_id = r.id::uuid limit 1 for update) now
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'schedules' and r.decision = 'conflict'
  and p.next_fire_at is not null;

-- name: put_back_schedules
-- $1 tenant, $2 the rows, $3 the decisions; of those that are to fire $4 their ids, $5 when they do so next; $6 those of which nobody here
-- can say that: they are paused.
with missing as (
    insert into mcp.schedules (tenant_id, schedule_id, created_by_key_id, created_at, updated_at, starts_at, ends_at, next_fire_at,
                               last_fired_at, paused_at, interval_s, fired_count, missed_count, last_job_id, cron, time_zone, missed, name,
                               job)
    select s.tenant_id, s.schedule_id, s.created_by_key_id, s.created_at, s.updated_at, s.starts_at, s.ends_at, s.next_fire_at,
           s.last_fired_at, s.paused_at, s.interval_s, s.fired_count, s.missed_count, s.last_job_id, s.cron, s.time_zone, s.missed, s.name,
           coalesce(replace(replace(s.job::text, n.escape, '\u0000'), n.nul, '\u0000')::json, s.job)
    from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.schedules, r."row") s
    cross join lateral (select r."row" ->> 'nul' as nul, '\u' || to_hex(ascii(r."row" ->> 'nul')) as escape) n
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'schedules' and r.decision = 'insert'
    on conflict do nothing
    returning schedule_id
), changed as (
    update mcp.schedules s
    set name = p.name, cron = p.cron, interval_s = p.interval_s, time_zone = p.time_zone,
        job = coalesce(replace(replace(p.job::text, n.escape, '\u0000'), n.nul, '\u0000')::json, p.job),
        missed = p.missed, ends_at = p.ends_at, updated_at = now(),
        paused_at = case when s.schedule_id = any($6::uuid[]) then coalesce(s.paused_at, now()) else p.paused_at end,
        next_fire_at = case when s.schedule_id = any($4::uuid[]) then ($5::timestamptz[])[array_position($4::uuid[], s.schedule_id)]
                            else p.next_fire_at end
    from mcp.state_snapshot_rows r cross join lateral json_populate_record(null::mcp.schedules, r."row") p
    cross join lateral (select r."row" ->> 'nul' as nul, '\u' || to_hex(ascii(r."row" ->> 'nul')) as escape) n
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'schedules' and r.decision = 'conflict' and 'conflict' = any($3::text[])
      and s.tenant_id = $1 and s.schedule_id = r.id::uuid
    returning s.schedule_id
)
select m.* from missing m union all select c.* from changed c;
