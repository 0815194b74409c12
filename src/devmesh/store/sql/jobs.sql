-- name: enqueue
-- Writes new jobs that may run at once, in one round trip, for a few. Answers with when that was; null: an idempotency key was used before
-- (migration 000018 says more). $1 tenant, then of each job: $2 its id, $3 the key of who made it, $4 timeout_ms, $5 backoff_ms,
-- $6 max_retries, $7 priority, $8 queue, $9 type, $10 payload, $11 tags in one text, $12 unique key. $13 operation and of each
-- idempotency key in order: $14 itself, $15 the call's hash, $16 its answer. Of each event: $17 type, $18 topics, $19 data.
select mcp.enqueue_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) as moment;

-- name: pause_of
-- Since when a queue is paused, and why. $1 tenant, $2 the queue.
select q.paused_at, q.reason from mcp.queues q where q.tenant_id = $1 and q.queue = $2 and q.paused_at is not null;

-- name: claim
-- Gives a worker jobs of some queues under leases: first a row with what was found, then the jobs (migration 000017 says more).
-- $1 tenant, $2 worker, $3 who must have registered it, or null for anybody, $4 queues, $5 how many, $6 up to how many bytes of payloads,
-- and one more, $7 the lease in seconds, $8 for each queue five times, where the scan of each priority begins, $9 no lease of the worker
-- began before, $10 whether that is all there is to do, with what is told of it; otherwise the last row says that.
select * from mcp.claim_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: first_due
-- When the first job of each priority from 1 to 5 was to run that is due now; null: none is. `moment` is before it was looked. $1 tenant,
-- $2 the queue.
select now() as moment, array_agg(first.run_at order by level.priority) as due from generate_series(1, 5) as level (priority)
left join lateral (
    select r.run_at from mcp.jobs_ready r
    where r.tenant_id = $1 and r.queue = $2 and r.priority = level.priority and r.run_at <= now() order by r.run_at limit 1) first on true;

-- name: complete
-- Ends attempts well: those of these that are held in just this attempt (migration 000016 says more). $1 tenant, $2 jobs, $3 attempts,
-- $4 results as JSON, or null, $5 whether only if that is all there is to do, with what is told of it.
select * from mcp.complete_jobs($1, $2, $3, $4, $5);

-- name: leases
-- What is known of held jobs, and of those that are not held any more nothing. $1 tenant, $2 jobs.
select l.job_id, l.attempt, l.worker_id, l.queue, l.lease_until, l.cancel_requested_at from mcp.jobs_leased l
where l.tenant_id = $1 and l.job_id = any($2::uuid[]);

-- name: renew
-- Renews leases, each fenced by its attempt, and tells of cancellations. They are locked as by `lock_leases`. $1 tenant, $2 jobs,
-- $3 attempts.
update mcp.jobs_leased l set lease_until = now() + make_interval(secs => l.lease_s)
where l.tenant_id = $1 and l.job_id = any(array(
    select h.job_id from (select * from unnest($2::uuid[], $3::integer[]) as a (job_id, attempt) order by a.job_id) a
    cross join lateral (select k.job_id from mcp.jobs_leased k
                        where k.tenant_id = $1 and k.job_id = a.job_id and k.attempt = a.attempt limit 1 for update) h))
returning l.job_id, l.attempt, l.queue, l.lease_until, l.cancel_requested_at is not null as is_cancelled;

-- name: note_progress
-- Notes how far held jobs are. $1 tenant, $2 jobs, $3 progress, $4 messages, or null for what there is.
update mcp.jobs_leased l
set progress = coalesce(($3::real[])[array_position($2::uuid[], l.job_id)], l.progress),
    progress_message = coalesce(($4::text[])[array_position($2::uuid[], l.job_id)], l.progress_message)
where l.tenant_id = $1 and l.job_id = any($2::uuid[]);

-- name: lock_leases
-- Locks held jobs, in one order for everybody, with what decides how they go on. $1 tenant, $2 jobs, sorted.
select h.*, j.max_retries, j.backoff_ms, j.type, j.concurrency_key from unnest($2::uuid[]) as a (job_id)
cross join lateral (select l.* from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = a.job_id limit 1 for update) h
cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = h.job_id and k.created_at = h.created_at
                    limit 1) j;

-- name: end_attempts
-- Ends the attempts of jobs that this transaction has locked: keeps how they ended, puts back into their queues those that go on
-- and into the dead letters those that have failed for good. $1 tenant, $2 jobs, $3 outcomes, $4 errors as JSON, or null, $5 when
-- they go on, or null, $6 their failures so far, $7 which are dead; then as they were: $8 when they were made, $9 when they began,
-- $10 workers, $11 attempts, $12 priorities, $13 queues, $14 types, $15 whether others wait for them; and $16 ids for dead letters.
with ended as materialized (
    select * from unnest($2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::smallint[], $7::boolean[], $8::timestamptz[],
                         $9::timestamptz[], $10::uuid[], $11::integer[], $12::smallint[], $13::text[], $14::text[],
                         $15::boolean[], $16::uuid[])
         as e (job_id, outcome, error, next_run_at, retries, is_dead, created_at, started_at, worker_id, attempt, priority, queue, type,
               is_parent, dead_letter_id)
), gone as (
    delete from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = any($2::uuid[])
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, started_at, worker_id, next_run_at, attempt, retries, outcome,
                                    error)
    select $1, e.job_id, clock_timestamp(), e.started_at, e.worker_id, e.next_run_at, e.attempt, e.retries, e.outcome,
           e.error::json from ended e
), again as (
    insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
    select $1, e.next_run_at, e.job_id, e.created_at, e.attempt, e.retries, e.priority, e.is_parent, e.queue from ended e
    where e.next_run_at is not null
)
insert into mcp.dead_letter_queue (tenant_id, job_id, dead_letter_id, created_at, failed_at, is_parent, attempt, retries, priority, queue,
                                   type, error)
select $1, e.job_id, e.dead_letter_id, e.created_at, now(), e.is_parent, e.attempt, e.retries, e.priority, e.queue, e.type,
       e.error::json
from ended e
where e.is_dead
on conflict (tenant_id, job_id) do update
set dead_letter_id = excluded.dead_letter_id, is_parent = excluded.is_parent, failed_at = excluded.failed_at,
    attempt = excluded.attempt, retries = excluded.retries, error = excluded.error;

-- name: take_waiting
-- Takes jobs that wait out of their queues, in one order for everybody; those that are being claimed are waited for, and then not
-- found. Keeps that they were cancelled. $1 tenant, $2 jobs, sorted, $3 why, as JSON.
with wanted as materialized (
    select h.place from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) p
    cross join generate_series(1, 5) as level (priority)
    cross join lateral (select r.ctid as place from mcp.jobs_ready r
                        where r.tenant_id = $1 and r.queue = p.queue and r.priority = level.priority and r.run_at = p.run_at
                          and r.job_id = a.job_id limit 1 for update) h
), gone as (
    delete from mcp.jobs_ready r where r.ctid = any(array(select wanted.place from wanted))
    returning r.job_id, r.queue, r.attempt, r.retries, r.is_parent
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, attempt, retries, outcome, error)
    select $1, g.job_id, clock_timestamp(), g.attempt + 1, g.retries, 'CANCELLED', $3::json from gone g
)
select g.job_id, g.queue, g.attempt + 1 as attempt, g.is_parent from gone g;

-- name: request_cancel
-- Asks workers to stop held jobs: they are told with their next heartbeat. None that was asked so already. $1 tenant, $2 jobs, $3 why.
update mcp.jobs_leased l set cancel_requested_at = coalesce(l.cancel_requested_at, now()), cancel_reason = $3
where l.tenant_id = $1 and l.job_id = any($2::uuid[])
  and (l.cancel_requested_at is null or l.cancel_reason is distinct from $3)
returning l.job_id, l.queue, l.worker_id;

-- name: get_many
-- Jobs as they are now. $1 tenant, $2 ids.
select j.*, ready.run_at as ready_at, ready.priority as ready_priority, ready.attempt as ready_attempt, ready.retries as ready_retries,
       blocked.attempt as blocked_attempt, blocked.retries as blocked_retries, blocked.priority as blocked_priority,
       blocked.run_at as blocked_run_at,
       limited.attempt as limited_attempt, limited.retries as limited_retries, limited.priority as limited_priority,
       latest.next_run_at, dead.priority as dead_priority,
       held.worker_id as held_by, held.attempt as held_attempt, held.retries as held_retries, held.priority as held_priority,
       held.started_at as held_since, held.lease_until, held.progress, held.progress_message, held.cancel_requested_at,
       latest.attempt as latest_attempt, latest.retries as latest_retries, latest.outcome, latest.result, latest.error,
       latest.worker_id as latest_worker, latest.started_at as latest_started_at, latest.finished_at as latest_finished_at
from unnest($2::uuid[]) as a (job_id)
cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) j
left join lateral (select * from mcp.job_executions x where x.tenant_id = $1 and x.job_id = a.job_id
                   order by x.attempt desc, x.finished_at desc limit 1) latest on true
left join lateral (select * from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = a.job_id limit 1) held on true
left join lateral (select * from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = a.job_id limit 1) blocked on true
left join lateral (select * from mcp.jobs_limited w where w.tenant_id = $1 and w.job_id = a.job_id limit 1) limited on true
left join lateral (select * from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = a.job_id limit 1) dead on true
left join lateral (select s.ready_at from mcp.job_slots s where s.tenant_id = $1 and s.job_id = a.job_id limit 1) slot on true
left join lateral (select r.* from generate_series(1, 5) as level (priority)
                   cross join lateral (select * from mcp.jobs_ready w
                                       where w.tenant_id = $1 and w.queue = j.queue and w.priority = level.priority
                                         and w.run_at = coalesce(slot.ready_at, latest.next_run_at, j.run_at)
                                         and w.job_id = a.job_id limit 1) r
                   limit 1) ready on true;

-- name: page
-- Ids of jobs, newest first, and how many bytes those that are wanted have, as they are stored. $1 tenant, $2 ids below this one, $3 queue
-- or null, $4 type or null, $5 tag or null, $6 how many to look at, at the most.
select f.job_id, f.is_wanted, case when f.is_wanted then f.bytes + coalesce(latest.bytes, 0) else 0 end as bytes
from (select w.job_id, ($3::text is null or w.queue = $3) and ($4::text is null or w.type = $4)
             and ($5::text is null or $5 = any(w.tags)) as is_wanted, pg_column_size(w.payload) as bytes
      from mcp.jobs w where w.tenant_id = $1 and w.job_id < $2 order by w.job_id desc limit $6) f
left join lateral (select coalesce(pg_column_size(x.result), 0) + coalesce(pg_column_size(x.error), 0) as bytes
                   from mcp.job_executions x where f.is_wanted and x.tenant_id = $1 and x.job_id = f.job_id
                   order by x.attempt desc, x.finished_at desc limit 1) latest on true
order by f.job_id desc;

-- name: executions
-- The attempts of a job that have ended, in order; when what it waited for had ended is none. $1 tenant, $2 job, those after an attempt, $3,
-- that ended at a time, $4, $5 how many, $6 up to how many bytes, as they are stored, and one more. `found` is how many there were of $5.
select p.* from (
    select f.*, count(*) over () as found,
           sum(coalesce(pg_column_size(f.result), 0) + coalesce(pg_column_size(f.error), 0))
           over (order by f.attempt, f.finished_at rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select x.attempt, x.worker_id, x.outcome, x.result, x.error, x.started_at, x.finished_at, x.next_run_at
        from mcp.job_executions x
        where x.tenant_id = $1 and x.job_id = $2 and x.attempt > 0 and (x.attempt, x.finished_at) > ($3::integer, $4::timestamptz)
          and x.outcome <> 'UNBLOCKED'
        order by x.attempt, x.finished_at limit $5) f) p
where coalesce(p.bytes_before, 0) < $6 order by p.attempt, p.finished_at;

-- name: overdue_ids
-- Held jobs whose lease or time has run out. $1 tenant, $2 how many.
select l.job_id from mcp.jobs_leased l where l.tenant_id = $1 and least(l.lease_until, l.timeout_at) < now() limit $2;

-- name: queues_waiting
-- The queues in which jobs wait, found by a loose index scan. $1 tenant.
with recursive name as (
    (select r.queue from mcp.jobs_ready r where r.tenant_id = $1 and r.queue > '' order by r.queue limit 1)
    union all
    select (select r.queue from mcp.jobs_ready r where r.tenant_id = $1 and r.queue > n.queue order by r.queue limit 1)
    from name n where n.queue is not null
)
select n.queue from name n where n.queue is not null;

-- name: known
-- Which of these jobs there are, and the latest attempt of each that has ended; 0: none has. $1 tenant, $2 ids.
select a.job_id, coalesce(latest.attempt, 0) as attempt from unnest($2::uuid[]) as a (job_id)
cross join lateral (select from mcp.jobs j where j.tenant_id = $1 and j.job_id = a.job_id limit 1) found
left join lateral (select x.attempt from mcp.job_executions x where x.tenant_id = $1 and x.job_id = a.job_id
                   order by x.attempt desc, x.finished_at desc limit 1) latest on true;

-- name: takers
-- How many ACTIVE workers take jobs of a queue, and how much room they have; how others are that would, those heard of last, at
-- most three. $1 tenant, $2 queue.
select count(*) filter (where w.status = 'ACTIVE') as workers,
       coalesce(sum(greatest(w.capacity - held.count, 0)) filter (where w.status = 'ACTIVE'), 0) as free,
       (array_agg(w.name || ' is ' || w.status || coalesce(': ' || nullif(w.reason, ''), '') order by w.heartbeat_at desc)
        filter (where w.status <> 'ACTIVE'))[:3] as others
from mcp.workers w
cross join lateral (select count(*) from mcp.jobs_leased l
                    where l.worker_id = w.worker_id and l.tenant_id is not distinct from $1) held
where w.tenant_id = $1 and w.status <> 'TERMINATED' and $2 = any(w.queues);

-- name: count_before
-- How many jobs of a queue come before one. One that has waited for a place lies there since it got that. $1 tenant, $2 queue, $3 its
-- priority, $4 its time, $5 the job.
select (select count(*) from mcp.jobs_ready r
        where r.tenant_id = $1 and r.queue = $2 and r.priority > $3 and r.priority <= 5 and r.run_at <= now())
     + (select count(*) from mcp.jobs_ready r
        where r.tenant_id = $1 and r.queue = $2 and r.priority = $3
          and (r.run_at, r.job_id) < (coalesce((select s.ready_at from mcp.job_slots s where s.tenant_id = $1 and s.job_id = $5::uuid),
                                               $4::timestamptz), $5::uuid));

-- name: promote
-- Raises the priority of jobs that have waited for long: from 1 to 2, and from 2 and 3 to 4. None is raised while as many that are older
-- wait above, so that a queue that nobody claims from is not written again and again; younger ones hold nobody up. $1 tenant, $2 queues,
-- $3 after how many seconds from priority 1, $4 from 2 and 3, $5 how many of each queue and priority, $6 and of all together: those that
-- are being written are hidden from claims.
with old as materialized (
    select h.place from unnest($2::text[]) as q (queue)
    cross join (values (1, 2, $3::double precision), (2, 4, $4::double precision), (3, 4, $4::double precision))
         as level (priority, next, after_s)
    cross join lateral (select r.run_at from mcp.jobs_ready r where r.tenant_id = $1 and r.queue = q.queue
                        and r.priority = level.priority and r.run_at <= now() - make_interval(secs => level.after_s)
                        order by r.run_at limit 1) oldest
    cross join lateral (select count(*) from (select from mcp.jobs_ready r where r.tenant_id = $1 and r.queue = q.queue
                                              and r.priority = level.next and r.run_at <= oldest.run_at limit $5) c) above
    cross join lateral (select r.ctid as place from mcp.jobs_ready r
                        where r.tenant_id = $1 and r.queue = q.queue and r.priority = level.priority
                          and r.run_at <= now() - make_interval(secs => level.after_s)
                        order by r.run_at, r.job_id limit $5 - above.count for update skip locked) h
    where level.after_s > 0 limit $6
), gone as (
    delete from mcp.jobs_ready r where r.ctid = any(array(select old.place from old)) returning r.*
)
insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
select $1, g.run_at, g.job_id, g.created_at, g.attempt, g.retries, case g.priority when 1 then 2 else 4 end, g.is_parent, g.queue
from gone g
returning job_id, queue, attempt, priority;
