-- name: pause
-- Nothing is given out of a queue any more. No row when that was so already, for the same reason. $1 tenant, $2 queue, $3 why.
insert into mcp.queues as q (tenant_id, queue, paused_at, reason) values ($1, $2, now(), $3)
on conflict (tenant_id, queue) do update
set paused_at = coalesce(q.paused_at, now()), reason = excluded.reason, updated_at = now()
where q.paused_at is null or q.reason <> excluded.reason;

-- name: resume
-- Jobs are given out again. No row when they were. $1 tenant, $2 queue.
update mcp.queues q set paused_at = null, reason = '', updated_at = now()
where q.tenant_id = $1 and q.queue = $2 and q.paused_at is not null;

-- name: limit
-- Gives a queue a rate. No row when it has that one. $1 tenant, $2 queue, $3 jobs a second, $4 how many at once after a pause.
insert into mcp.queues as q (tenant_id, queue, rate_per_s, burst) values ($1, $2, $3, $4)
on conflict (tenant_id, queue) do update set rate_per_s = excluded.rate_per_s, burst = excluded.burst, updated_at = now()
where q.rate_per_s is distinct from excluded.rate_per_s or q.burst is distinct from excluded.burst;

-- name: unlimit
-- Takes the rate of a queue. No row when it has none. $1 tenant, $2 queue.
update mcp.queues q set rate_per_s = null, burst = null, updated_at = now()
where q.tenant_id = $1 and q.queue = $2 and q.rate_per_s is not null;

-- name: tokens
-- What a queue with a rate may give out now; nothing of one without. $1 tenant, $2 queue.
select q.rate_per_s, least(q.burst, coalesce(t.tokens + q.rate_per_s * greatest(extract(epoch from clock_timestamp() - t.filled_at), 0),
                                             q.burst)) as tokens
from mcp.queues q
left join lateral (select k.tokens, k.filled_at from mcp.queue_tokens k where k.tenant_id = $1 and k.queue = $2 limit 1) t on true
where q.tenant_id = $1 and q.queue = $2 and q.rate_per_s is not null;

-- name: stats
-- What is in queues and what was said about them: of all that have jobs or a row, or of one. One statement, since a job that is claimed
-- between two would be in neither or in both. What waits is counted up to a limit, and so are what waits for a place and what waits for
-- other jobs, each of all queues together. $1 tenant, $2 queue or null for all, $3 the limit.
with recursive waiting (queue) as (
    (select r.queue from mcp.jobs_ready r where $2::text is null and r.tenant_id = $1 and r.queue > '' order by r.queue limit 1)
    union all
    select (select r.queue from mcp.jobs_ready r where r.tenant_id = $1 and r.queue > w.queue order by r.queue limit 1)
    from waiting w where w.queue is not null
), held as materialized (
    select l.queue, count(*) as count from mcp.jobs_leased l where l.tenant_id = $1 group by l.queue
), limited as materialized (
    select c.queue, count(*) as count
    from (select w.queue from mcp.jobs_limited w where w.tenant_id = $1 limit $3) c group by c.queue
), blocked as materialized (
    select c.queue, count(*) as count
    from (select b.queue from mcp.jobs_blocked b where b.tenant_id = $1 limit $3) c group by c.queue
), said as materialized (
    select q.queue, q.paused_at, q.reason, q.rate_per_s, q.burst from mcp.queues q where q.tenant_id = $1
), named as (
    select $2::text as queue where $2::text is not null
    union select a.queue from (select w.queue from waiting w union all select h.queue from held h union all select l.queue from limited l
                               union all select b.queue from blocked b union all select s.queue from said s) a where $2::text is null and a.queue is not null
)
select n.queue, coalesce(h.count, 0) as held, coalesce(l.count, 0) as limited, coalesce(b.count, 0) as blocked,
       s.paused_at, coalesce(s.reason, '') as reason, s.rate_per_s, s.burst,
       (select count(*) from (select from mcp.jobs_ready r where r.tenant_id = $1 and r.queue = n.queue limit $3) c) as waiting,
       (select count(*) from generate_series(1, 5) as level (priority)
        cross join lateral (select from mcp.jobs_ready r where r.tenant_id = $1 and r.queue = n.queue
                            and r.priority = level.priority and r.run_at <= now() limit $3) c) as ready,
       (select min(c.run_at) from generate_series(1, 5) as level (priority)
        cross join lateral (select r.run_at from mcp.jobs_ready r where r.tenant_id = $1 and r.queue = n.queue
                            and r.priority = level.priority and r.run_at <= now() order by r.run_at limit 1) c) as oldest_ready_at
from named n left join held h using (queue) left join limited l using (queue) left join blocked b using (queue)
left join said s using (queue)
order by n.queue collate "C";

-- name: parents
-- Those for which others wait of the first jobs in a queue, and of those that wait for a place in it. $1 tenant, $2 queue, $3 how many of
-- each are looked at.
select r.job_id from (select q.job_id, q.is_parent from mcp.jobs_ready q where q.tenant_id = $1 and q.queue = $2
                      order by q.priority, q.run_at, q.job_id limit $3) r where r.is_parent
union all
select w.job_id from (select l.job_id, l.is_parent from mcp.jobs_limited l where l.tenant_id = $1 and l.queue = $2
                      order by l.job_id limit $3) w where w.is_parent;

-- name: take_all
-- Takes the first jobs out of a queue, whether or not they may run yet. $1 tenant, $2 queue, $3 how many, $4 why, as JSON.
with head as materialized (
    select r.ctid as place from mcp.jobs_ready r where r.tenant_id = $1 and r.queue = $2
    order by r.priority, r.run_at, r.job_id limit $3 for update skip locked
), gone as (
    delete from mcp.jobs_ready r where r.ctid = any(array(select head.place from head)) returning r.job_id, r.attempt, r.retries, r.is_parent
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, attempt, retries, outcome, error)
    select $1, g.job_id, clock_timestamp(), g.attempt + 1, g.retries, 'CANCELLED', $4::json from gone g
)
select g.job_id, g.attempt + 1 as attempt, g.is_parent from gone g;
