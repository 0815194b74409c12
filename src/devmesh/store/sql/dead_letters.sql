-- name: page
-- A page of dead letters, the latest first. $1 tenant, $2 ids below this one, $3 queue or null, $4 type or null, $5 how many,
-- $6 up to how many bytes, as they are stored, and one more. `found` is how many there were of $5.
select p.* from (
    select f.*, count(*) over () as found,
           sum(coalesce(pg_column_size(f.error), 0))
           over (order by f.dead_letter_id desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select d.job_id, d.dead_letter_id, d.queue, d.type, d.priority, d.attempt, d.retries, d.error, d.failed_at, d.created_at
        from mcp.dead_letter_queue d
        where d.tenant_id = $1 and d.dead_letter_id < $2 and ($3::text is null or d.queue = $3) and ($4::text is null or d.type = $4)
        order by d.dead_letter_id desc limit $5) f) p
where coalesce(p.bytes_before, 0) < $6 order by p.dead_letter_id desc;

-- name: get
-- One of them. $1 tenant, $2 job.
select d.job_id, d.queue, d.type, d.priority, d.attempt, d.retries, d.error, d.failed_at, d.created_at from mcp.dead_letter_queue d
where d.tenant_id = $1 and d.job_id = $2;

-- name: newest
-- The latest dead letter there is. $1 tenant.
select d.dead_letter_id from mcp.dead_letter_queue d where d.tenant_id = $1 order by d.dead_letter_id desc limit 1;

-- name: select_ids
-- The jobs of dead letters that a filter names, the oldest first. $1 tenant, $2 queue or null, $3 type or null, $4 how many, $5 ids
-- up to this one, and $6 above that one.
select d.job_id, d.dead_letter_id from mcp.dead_letter_queue d
where d.tenant_id = $1 and d.dead_letter_id <= $5 and d.dead_letter_id > $6
  and ($2::text is null or d.queue = $2) and ($3::text is null or d.type = $3)
order by d.dead_letter_id limit $4;

-- name: mark_due
-- Notes at those of these dead letters that others wait for them to which a replay comes as well, later. $1 tenant, $2 jobs, $3 queue or
-- null, $4 type or null, $5 ids up to this one, $6 and above that one.
update mcp.dead_letter_queue d set is_parent = true
where d.tenant_id = $1 and d.job_id = any($2::uuid[]) and d.dead_letter_id <= $5 and d.dead_letter_id > $6
  and ($3::text is null or d.queue = $3) and ($4::text is null or d.type = $4)
returning d.job_id;

-- name: replay
-- Puts dead letters back into their queues, to run at once with all their retries, and keeps in the history that this was done.
-- $1 tenant, $2 jobs.
with gone as (
    delete from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = any($2::uuid[])
    returning d.job_id, d.created_at, d.attempt, d.priority, d.is_parent, d.queue, d.error
), kept as (
    update mcp.job_executions x set next_run_at = now()
    where x.tenant_id = $1 and x.job_id = any($2::uuid[])
      and x.attempt = (array(select g.attempt from gone g order by g.job_id))
                      [array_position(array(select g.job_id from gone g order by g.job_id), x.job_id)]
), ready as (
    insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
    select $1, now(), g.job_id, g.created_at, g.attempt, 0, g.priority, g.is_parent, g.queue from gone g
)
select g.job_id, g.queue, g.attempt, g.priority, g.error, 'FAILED' as outcome from gone g order by g.job_id;

-- name: begun
-- Which of these attempts a worker had begun. $1 tenant, $2 jobs, $3 attempts.
select a.job_id from unnest($2::uuid[], $3::integer[]) as a (job_id, attempt)
cross join lateral (select from mcp.job_executions x
                    where x.tenant_id = $1 and x.job_id = a.job_id and x.attempt = a.attempt and x.started_at is not null limit 1) found;

-- name: unique_keys
-- The unique keys of those of these dead letters that have one. $1 tenant, $2 jobs.
select d.job_id, j.unique_key from unnest($2::uuid[]) as a (job_id)
cross join lateral (select e.job_id, e.created_at from mcp.dead_letter_queue e where e.tenant_id = $1 and e.job_id = a.job_id limit 1) d
cross join lateral (select k.unique_key from mcp.jobs k where k.tenant_id = $1 and k.job_id = d.job_id and k.created_at = d.created_at
                    limit 1) j
where j.unique_key is not null;

-- name: revive
-- Puts jobs that are over, but neither completed nor dead letters, back into their queues, to run at once with all their retries.
-- $1 tenant, $2 jobs.
with over as materialized (
    select latest.* from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_executions y where y.tenant_id = $1 and y.job_id = a.job_id
                        order by y.attempt desc, y.finished_at desc limit 1) latest
    left join lateral (select d.job_id from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = a.job_id limit 1) dead
         on true
    where dead.job_id is null
), again as (
    update mcp.job_executions x set next_run_at = now()
    where x.tenant_id = $1 and x.job_id = any(array(select over.job_id from over))
      and x.attempt = any(array(select over.attempt from over)) and x.next_run_at is null and x.outcome <> 'COMPLETED'
      and (x.job_id, x.finished_at) in (select over.job_id, over.finished_at from over)
    returning x.job_id, x.attempt, x.outcome, x.error
), back as materialized (
    select g.*, j.created_at, j.priority, j.queue from again g
    cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = g.job_id limit 1) j
), ready as (
    insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
    select $1, now(), b.job_id, b.created_at, b.attempt, 0, b.priority, false, b.queue from back b
)
select b.job_id, b.queue, b.attempt, b.priority, b.error, b.outcome from back b;

-- name: are_being_drained
-- Whether attempts of these jobs are in a default partition that is being drained: a change of them may come too late for the copy that
-- takes their place. A drain that begins after they were changed waits for this transaction. $1 tenant, $2 jobs.
select to_regclass('mcp.job_executions_drain') is not null
   and exists (select from mcp.job_executions x where x.tenant_id = $1 and x.job_id = any($2::uuid[])
               and x.tableoid = to_regclass('mcp.job_executions_default'));

-- name: discard
-- Forgets dead letters; the jobs stay failed. $1 tenant, $2 jobs.
delete from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = any($2::uuid[])
returning d.job_id, d.queue, d.is_parent;
