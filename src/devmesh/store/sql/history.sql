-- The rules of `devmesh check history`: each is a block of the name that it has in store/history.py, and finds what breaks it.
-- All of them take $1 tenant, $2 since when jobs were made that are looked at, $3 how many examples, and give `thing`, `found`, and
-- in each row `total`, how many there are. Executions of such a job are looked for from a day before, the clock might have been set
-- back. These alone are meant for hash joins: see store/history.py.

-- name: tenants
-- Tenants, by name. $1 names, or null for all, $2 whether suspended ones are among all.
select t.tenant_id as id, t.name from mcp.tenants t
where case when $1::text[] is not null then t.name = any($1) else t.status = 'active' or $2 end order by t.name;

-- name: bounds
-- From when on a tenant's history is whole, older months having been dropped: that of jobs, that of events, and how many jobs there
-- are since. $1 tenant, $2 since when it is asked for.
select s.since, now() as at, greatest(s.since, case when t.stream_floor > 0 then coalesce(
           (select e.at from mcp.events e where e.tenant_id = $1 and e.sequence > t.stream_floor order by e.sequence limit 1), now())
       end) as events_since,
       (select count(*) from mcp.jobs k where k.tenant_id = $1 and k.created_at >= s.since) as jobs
from mcp.tenants t cross join (
    select greatest($2::timestamptz, max(parts.oldest)) as since
    from unnest(array['mcp.jobs', 'mcp.job_executions']) as parent (name)
    cross join lateral (
        select min(substring(pg_get_expr(c.relpartbound, c.oid) from $re$FROM \('([^']+)'\)$re$)::timestamptz) as oldest
        from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = parent.name::regclass) parts) s
where t.tenant_id = $1;

-- name: one_place
-- Jobs that are nowhere, or in two places; and what is in a place and is no job.
with places as (
    select k.job_id, null::text as place, 1 as jobs from mcp.jobs k where k.tenant_id = $1 and k.created_at >= $2
    union all select r.job_id, 'it waits', 0 from mcp.jobs_ready r where r.tenant_id = $1 and r.created_at >= $2
    union all select l.job_id, 'a worker holds it', 0 from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2
    union all select b.job_id, 'it waits for others', 0 from mcp.jobs_blocked b where b.tenant_id = $1 and b.created_at >= $2
    union all select w.job_id, 'it waits for a place', 0 from mcp.jobs_limited w where w.tenant_id = $1 and w.created_at >= $2
    union all select distinct x.job_id, 'it has ended', 0 from mcp.job_executions x
              where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' and x.next_run_at is null
), wrong as (
    select p.job_id, sum(p.jobs) as jobs, string_agg(p.place, ' and ') as places from places p group by p.job_id
    having (sum(p.jobs) > 0 and (count(p.place) <> 1 or sum(p.jobs) > 1))
        or (sum(p.jobs) = 0 and bool_or(p.place <> 'it has ended'))
)
select 'job ' || w.job_id as thing,
       case when w.jobs = 0 then w.places || ', and there is no such job' when w.jobs > 1 then 'it was written twice'
            else coalesce(w.places, 'it neither waits nor is held, and has not ended') end as found,
       count(*) over () as total
from wrong w order by w.job_id limit $3;

-- name: can_be_found
-- Jobs that wait elsewhere than where they are looked for: in another queue, at another time than the latest execution says, or as if
-- they had been made at another time.
select 'job ' || r.job_id as thing,
       'it waits in ' || r.queue || ' for ' || r.run_at || ', after attempt ' || r.attempt
       || case when k.created_at <> r.created_at then ', as one made at ' || r.created_at else '' end as found,
       count(*) over () as total
from mcp.jobs_ready r join mcp.jobs k on k.tenant_id = $1 and k.job_id = r.job_id
left join mcp.job_executions x on x.tenant_id = $1 and x.job_id = r.job_id and x.attempt = r.attempt and x.next_run_at = r.run_at
left join mcp.job_slots s on s.tenant_id = $1 and s.job_id = r.job_id
where r.tenant_id = $1 and r.created_at >= $2
  and (k.queue <> r.queue or k.created_at <> r.created_at or s.ready_at <> r.run_at
       or (s.job_id is null and x.job_id is null and (r.attempt > 0 or r.run_at <> k.run_at)))
order by r.job_id limit $3;

-- name: completed_once
-- Jobs that were completed more than once, but for those that were put back by a snapshot in between.
with wrong as (
    select x.job_id, count(*) as times from mcp.job_executions x
    where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' and x.outcome = 'COMPLETED' and x.next_run_at is null
    group by x.job_id having count(*) > 1
)
select 'job ' || w.job_id as thing, 'it was completed ' || w.times || ' times' as found, count(*) over () as total
from wrong w order by w.job_id limit $3;

-- name: ended_once
-- Attempts that ended more than once.
with wrong as (
    select x.job_id, x.attempt, string_agg(x.outcome, ', ') as outcomes from mcp.job_executions x
    where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' and x.outcome <> 'UNBLOCKED'
    group by x.job_id, x.attempt having count(*) > 1
)
select 'job ' || w.job_id as thing, 'attempt ' || w.attempt || ' ended as ' || w.outcomes as found, count(*) over () as total
from wrong w order by w.job_id, w.attempt limit $3;

-- name: attempts_follow
-- Jobs whose attempts are not numbered from one to the last, each with how it ended, but for the one that runs. Of a job that was lost a
-- snapshot puts no more back than the latest: its attempts are numbered from there on. Nobody knows that of one older than the events.
with ended as (
    select e.job_id, count(*) as count, min(e.attempt) as first, max(e.attempt) as last from (
        select distinct x.job_id, x.attempt from mcp.job_executions x
        where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' and x.outcome <> 'UNBLOCKED') e
    group by e.job_id
), now as (
    select r.job_id, r.attempt as over from mcp.jobs_ready r where r.tenant_id = $1 and r.created_at >= $2
    union all select l.job_id, l.attempt - 1 from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2
    union all select b.job_id, b.attempt from mcp.jobs_blocked b where b.tenant_id = $1 and b.created_at >= $2
    union all select w.job_id, w.attempt from mcp.jobs_limited w where w.tenant_id = $1 and w.created_at >= $2
), restored as (
    select j.id as job_id, max(j.attempt) as attempt from mcp.events e
    cross join lateral json_to_recordset(e.data -> 'jobs') as j (id uuid, attempt integer)
    where e.tenant_id = $1 and e.at >= $2::timestamptz - interval '1 day' and e.type = 'job.restored'
    group by j.id
), told as (
    select case when t.stream_floor = 0 then '-infinity' else coalesce(
               (select e.at from mcp.events e where e.tenant_id = $1 and e.sequence > t.stream_floor order by e.sequence limit 1), now())
           end as since
    from mcp.tenants t where t.tenant_id = $1
)
select 'job ' || k.job_id as thing,
       coalesce(e.count, 0) || ' attempts have ended, the last is ' || coalesce(e.last, 0)
       || coalesce(', and it is where ' || n.over || ' would be over', '') as found,
       count(*) over () as total
from mcp.jobs k left join ended e on e.job_id = k.job_id left join now n on n.job_id = k.job_id
left join restored g on g.job_id = k.job_id cross join told
where k.tenant_id = $1 and k.created_at >= $2
  and (e.count <> e.last - e.first + 1 or (e.first > greatest(g.attempt, 1) and k.created_at >= told.since)
       or (n.over is not null and n.over <> coalesce(e.last, 0)))
order by k.job_id limit $3;

-- name: nothing_after_the_end
-- Jobs that went on after an attempt that was to be the last, without having been replayed: a replay says there that it goes on.
with wrong as (
    select x.job_id, min(x.attempt) filter (where x.next_run_at is null) as final, max(x.attempt) as last from mcp.job_executions x
    where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' group by x.job_id
    having min(x.attempt) filter (where x.next_run_at is null) < max(x.attempt)
)
select 'job ' || w.job_id as thing, 'it ended with attempt ' || w.final || ', and attempt ' || w.last || ' followed' as found,
       count(*) over () as total
from wrong w order by w.job_id limit $3;

-- name: retries_limited
-- Jobs that failed, and were tried again, more often than they may.
with counted as (
    select x.job_id, max(x.retries) as retries from mcp.job_executions x
    where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' group by x.job_id
    union all select r.job_id, r.retries from mcp.jobs_ready r where r.tenant_id = $1 and r.created_at >= $2 and r.retries > 0
    union all select l.job_id, l.retries from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2 and l.retries > 0
    union all select w.job_id, w.retries from mcp.jobs_limited w where w.tenant_id = $1 and w.created_at >= $2 and w.retries > 0
)
select 'job ' || c.job_id as thing, 'it was tried again ' || max(c.retries) || ' times, and may be ' || k.max_retries as found,
       count(*) over () as total
from counted c join mcp.jobs k on k.tenant_id = $1 and k.job_id = c.job_id
where k.created_at >= $2 and c.retries > k.max_retries group by c.job_id, k.max_retries order by c.job_id limit $3;

-- name: never_early
-- Attempts that began before the time to which the one before had put the job off, or the end of what it waited for. The latest that was
-- written of an attempt holds: a snapshot that is put back over a job that is backing off has it wait as it did before.
with begun as (
    select x.job_id, x.attempt, x.started_at from mcp.job_executions x
    where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' and x.started_at is not null
    union all select l.job_id, l.attempt, l.started_at from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2
), due as (
    select k.job_id, 0 as attempt, k.run_at as due_at from mcp.jobs k where k.tenant_id = $1 and k.created_at >= $2
    union all select o.job_id, o.attempt, o.next_run_at from (
        select distinct on (x.job_id, x.attempt) x.job_id, x.attempt, x.next_run_at from mcp.job_executions x
        where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day'
        order by x.job_id, x.attempt, x.finished_at desc) o
)
select 'job ' || b.job_id as thing,
       'attempt ' || b.attempt || ' began at ' || b.started_at || ', before its time, ' || d.due_at as found, count(*) over () as total
from begun b join due d on d.job_id = b.job_id and d.attempt = b.attempt - 1
where d.due_at > b.started_at order by b.job_id, b.attempt limit $3;

-- name: dead_letters_failed
-- Dead letters of jobs that have not failed for good, or not in that attempt; and those without a job.
select 'job ' || d.job_id as thing,
       case when k.job_id is null then 'it is a dead letter, and there is no such job'
            else 'it is a dead letter of attempt ' || d.attempt || ', which did not fail for good' end as found,
       count(*) over () as total
from mcp.dead_letter_queue d
left join mcp.jobs k on k.tenant_id = $1 and k.job_id = d.job_id and k.created_at = d.created_at
left join mcp.job_executions x on x.tenant_id = $1 and x.job_id = d.job_id and x.attempt = d.attempt and x.next_run_at is null
                              and x.outcome in ('FAILED', 'TIMED_OUT', 'LEASE_LOST')
where d.tenant_id = $1 and d.created_at >= $2 and (k.job_id is null or x.job_id is null) order by d.job_id limit $3;

-- name: failures_kept
-- Jobs that failed for good and are no dead letters, although nobody discarded them.
with discarded as (
    select distinct j.id as job_id from mcp.events e cross join lateral json_to_recordset(e.data -> 'jobs') as j (id uuid)
    where e.tenant_id = $1 and e.at >= $2::timestamptz - interval '1 day' and e.type = 'job.discarded'
)
select 'job ' || x.job_id as thing, 'attempt ' || x.attempt || ' ended as ' || x.outcome || ' for good' as found,
       count(*) over () as total
from mcp.job_executions x join mcp.jobs k on k.tenant_id = $1 and k.job_id = x.job_id
left join mcp.dead_letter_queue d on d.tenant_id = $1 and d.job_id = x.job_id
left join discarded g on g.job_id = x.job_id
where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day' and k.created_at >= $2 and x.next_run_at is null
  and x.outcome in ('FAILED', 'TIMED_OUT', 'LEASE_LOST') and d.job_id is null and g.job_id is null
order by x.job_id limit $3;

-- name: parents_first
-- Jobs that were given out, or have ended, while they were to wait for others.
select 'job ' || e.child_id as thing, 'it is not held back, although it is to wait for job ' || e.parent_id as found,
       count(*) over () as total
from mcp.job_dependencies e left join mcp.jobs_blocked b on b.tenant_id = $1 and b.job_id = e.child_id
join mcp.jobs k on k.tenant_id = $1 and k.job_id = e.child_id
where e.tenant_id = $1 and k.created_at >= $2 and b.job_id is null order by e.child_id limit $3;

-- name: nobody_stranded
-- Jobs that wait for others, and for none that would let them go on, or end, when it ends: each has a note that it is waited for. A dead
-- letter is waited for by those alone that are to wait until it is replayed. And jobs that wait for a place, though one is free.
with alive as (
    select r.job_id, false as is_dead from mcp.jobs_ready r where r.tenant_id = $1 and r.is_parent
    union all select l.job_id, false from mcp.jobs_leased l where l.tenant_id = $1 and l.is_parent
    union all select b.job_id, false from mcp.jobs_blocked b where b.tenant_id = $1 and b.is_parent
    union all select w.job_id, false from mcp.jobs_limited w where w.tenant_id = $1 and w.is_parent
    union all select d.job_id, true from mcp.dead_letter_queue d where d.tenant_id = $1 and d.is_parent
), taken as (
    select s.queue, s.concurrency_key, count(*) as count from mcp.job_slots s where s.tenant_id = $1 group by s.queue, s.concurrency_key
), wrong as (
    select b.job_id,
           coalesce('it waits for job ' || e.parent_id || ', which will not let it go on', 'it waits for others, and for none') as found
    from mcp.jobs_blocked b left join mcp.job_dependencies e on e.tenant_id = $1 and e.child_id = b.job_id
    left join alive a on a.job_id = e.parent_id and (not a.is_dead or b.policy = 'wait')
    where b.tenant_id = $1 and b.created_at >= $2 and a.job_id is null
    union all
    select w.job_id, 'it waits for a place of key ' || w.concurrency_key || ', and there is one'
    from mcp.jobs_limited w
    left join mcp.job_limits m on m.tenant_id = $1 and m.queue = w.queue and m.concurrency_key = w.concurrency_key
    left join taken t on t.queue = w.queue and t.concurrency_key = w.concurrency_key
    where w.tenant_id = $1 and w.created_at >= $2 and not w.is_delayed and coalesce(t.count < m.concurrency_limit, true)
)
select 'job ' || w.job_id as thing, w.found, count(*) over () as total from wrong w order by w.job_id limit $3;

-- name: pauses_kept
-- Attempts that began in a queue that had been paused by then, and is. A claim that was under way when it was may still end, and a
-- snapshot gives jobs back to those who held them. Nobody knows that of what began before the events that are kept.
with begun as (
    select l.job_id, l.attempt, l.started_at, l.queue from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2
    union all
    select x.job_id, x.attempt, x.started_at, k.queue from mcp.job_executions x
    join mcp.jobs k on k.tenant_id = $1 and k.job_id = x.job_id
    where x.tenant_id = $1 and k.created_at >= $2
      and x.finished_at >= (select min(q.paused_at) from mcp.queues q where q.tenant_id = $1)
), restored as (
    select j.id as job_id, j.attempt from mcp.events e
    cross join lateral json_to_recordset(e.data -> 'jobs') as j (id uuid, attempt integer)
    where e.tenant_id = $1 and e.at >= $2::timestamptz - interval '1 day' and e.type = 'job.restored' and e.data ->> 'status' = 'PROCESSING'
), told as (
    select case when t.stream_floor = 0 then '-infinity' else coalesce(
               (select e.at from mcp.events e where e.tenant_id = $1 and e.sequence > t.stream_floor order by e.sequence limit 1), now())
           end as since
    from mcp.tenants t where t.tenant_id = $1
)
select 'job ' || b.job_id as thing,
       'attempt ' || b.attempt || ' began at ' || b.started_at || ', and ' || b.queue || ' is paused since ' || q.paused_at as found,
       count(*) over () as total
from mcp.queues q join begun b on b.queue = q.queue left join restored g on g.job_id = b.job_id and g.attempt = b.attempt
cross join told
where q.tenant_id = $1 and b.started_at > q.paused_at + interval '1 minute' and g.job_id is null and b.started_at >= told.since
order by b.job_id, b.attempt limit $3;

-- name: limits_kept
-- Keys of which more jobs are under way than they may, and jobs that are under way without a place, or have one and are not. Who has had a
-- place since before a later job asked for fewer keeps it: jobs of the key have asked for as many places, and for as few since, give or take
-- the minute that a transaction may take.
with under_way as (
    select r.job_id from mcp.jobs_ready r where r.tenant_id = $1 and r.created_at >= $2
    union all select l.job_id from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2
), keyed as (
    select k.job_id, k.queue, k.concurrency_key from under_way u join mcp.jobs k on k.tenant_id = $1 and k.job_id = u.job_id
    where k.concurrency_key is not null
), placed as (
    select s.*, coalesce(m.concurrency_limit, 0) as concurrency_limit, count(*) over (partition by s.queue, s.concurrency_key) as count,
           row_number() over (partition by s.queue, s.concurrency_key order by s.ready_at, s.job_id) as ordinal
    from mcp.job_slots s left join mcp.job_limits m on m.tenant_id = $1 and m.queue = s.queue and m.concurrency_key = s.concurrency_key
    where s.tenant_id = $1
), crowded as materialized (
    select p.* from placed p left join mcp.jobs k on k.tenant_id = $1 and k.job_id = p.job_id
    where p.ordinal > p.concurrency_limit and coalesce(k.created_at, 'infinity') >= $2
), asked as materialized (
    select c.queue, c.concurrency_key, max(k.concurrency_limit) as most,
           max(k.created_at) filter (where k.concurrency_limit = c.concurrency_limit) as lowered_at
    from (select distinct c.queue, c.concurrency_key, c.concurrency_limit from crowded c) c
    join mcp.jobs k on k.tenant_id = $1 and k.queue = c.queue and k.concurrency_key = c.concurrency_key
    group by c.queue, c.concurrency_key
), wrong as (
    select 'key ' || c.concurrency_key || ' of ' || c.queue as thing,
           max(c.count) || ' jobs are under way, and ' || max(c.concurrency_limit) || ' may be' as found
    from crowded c left join asked a on a.queue = c.queue and a.concurrency_key = c.concurrency_key
    where c.ordinal > coalesce(a.most, 0) or c.ready_at > coalesce(a.lowered_at, '-infinity') + interval '1 minute'
    group by c.queue, c.concurrency_key
    union all
    select 'job ' || coalesce(y.job_id, s.job_id),
           case when s.job_id is null then 'it is under way and has no place' else 'it has a place and is not under way' end
    from keyed y full join (select s.job_id from mcp.job_slots s
                            left join mcp.jobs k on k.tenant_id = $1 and k.job_id = s.job_id
                            where s.tenant_id = $1 and coalesce(k.created_at, 'infinity') >= $2) s on s.job_id = y.job_id
    where y.job_id is null or s.job_id is null
)
select w.thing, w.found, count(*) over () as total from wrong w order by w.thing limit $3;

-- name: stream_whole
-- Places of a tenant's stream of events where some are missing, or are there twice.
with numbered as (
    select e.sequence, e.at, coalesce(lag(e.sequence) over (order by e.sequence), t.stream_floor) as before
    from mcp.tenants t join mcp.events e on e.tenant_id = t.tenant_id and e.sequence > t.stream_floor where t.tenant_id = $1
)
select 'event ' || n.sequence as thing, 'the one before it is ' || n.before as found, count(*) over () as total
from numbered n where n.sequence <> n.before + 1 and n.at >= $2 order by n.sequence limit $3;

-- name: events_agree
-- What was told of jobs and is not in their history, or the other way round; of those that a snapshot has put back, since then: it may have
-- been because one of both was lost. And jobs of which it was told that they were enqueued, and that are not there, in a month that is.
with sides as (
    select j.id as job_id, coalesce(j.attempt, 0) as attempt, 1 as told,
           case e.type when 'job.retrying' then 'failed' else substr(e.type, 5) end as what
    from mcp.events e cross join lateral json_to_recordset(e.data -> 'jobs') as j (id uuid, attempt integer)
    where e.tenant_id = $1 and e.at >= $2::timestamptz - interval '1 day'
      and e.type in ('job.enqueued', 'job.claimed', 'job.completed', 'job.retrying', 'job.failed', 'job.released', 'job.cancelled',
                     'job.unblocked')
    union all
    select k.job_id, 0, -1, 'enqueued' from mcp.jobs k where k.tenant_id = $1 and k.created_at >= $2
    union all
    select l.job_id, l.attempt, -1, 'claimed' from mcp.jobs_leased l where l.tenant_id = $1 and l.created_at >= $2
    union all
    select x.job_id, x.attempt, -1, w.what from mcp.job_executions x
    cross join lateral (
        select case x.outcome when 'COMPLETED' then 'completed' when 'CANCELLED' then 'cancelled' when 'UNBLOCKED' then 'unblocked'
                              when 'RELEASED' then 'released' when 'SNOOZED' then 'released' else 'failed' end as what
        union all select 'claimed' where x.started_at is not null) w
    where x.tenant_id = $1 and x.finished_at >= $2::timestamptz - interval '1 day'
), wrong as (
    select b.job_id, b.attempt, b.what, sum(b.told) as more from sides b group by b.job_id, b.attempt, b.what having sum(b.told) <> 0
), restored as (
    select j.id as job_id, max(j.attempt) as attempt from mcp.events e
    cross join lateral json_to_recordset(e.data -> 'jobs') as j (id uuid, attempt integer)
    where e.tenant_id = $1 and e.at >= $2::timestamptz - interval '1 day' and e.type = 'job.restored'
    group by j.id
), kept as materialized (
    select range_agg(tstzrange(substring(b.bounds from $re$FROM \('([^']+)'\)$re$)::timestamptz + interval '1 minute',
                               substring(b.bounds from $re$TO \('([^']+)'\)$re$)::timestamptz)) as months
    from pg_inherits i join pg_class c on c.oid = i.inhrelid cross join lateral (select pg_get_expr(c.relpartbound, c.oid) as bounds) b
    where i.inhparent = 'mcp.jobs'::regclass and b.bounds <> 'DEFAULT'
), found as (
    select w.job_id, w.attempt, w.what || ': ' || case when w.more > 0 then 'told, and not done' else 'done, and not told' end as what
    from wrong w join mcp.jobs k on k.tenant_id = $1 and k.job_id = w.job_id left join restored g on g.job_id = w.job_id
    where k.created_at >= $2 and w.attempt > coalesce(g.attempt, -1)
    union all
    select j.id, 0, 'enqueued: told, and there is no such job'
    from mcp.events e cross join lateral json_to_recordset(e.data -> 'jobs') as j (id uuid) cross join kept
    left join mcp.jobs k on k.tenant_id = $1 and k.job_id = j.id
    where e.tenant_id = $1 and e.at >= $2 and e.type = 'job.enqueued' and k.job_id is null and e.at <@ kept.months
)
select 'job ' || f.job_id as thing, 'attempt ' || f.attempt || ', ' || f.what as found, count(*) over () as total
from found f order by f.job_id, f.attempt, f.what limit $3;
