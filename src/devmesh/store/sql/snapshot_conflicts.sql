-- name: decide_jobs
-- Says of each job of a snapshot what is to be done. `insert` where nothing is known of it, nor of an attempt after. The same where it lies
-- nowhere, though its history does not say that it is over: what was asked for is `placeless` then if it is there, and a lease that it had
-- is `given back` if an attempt followed. Where it lies as it was nothing, but for what is lost of the rest: what was asked for, its last
-- attempt, for whom it waits; rows of the noun `kept jobs` say where these lie. Else `conflict`, and rows of the noun `changed jobs` say how
-- they were and are. Where a job lies in its queue is said by the rest of it: if that is lost, all of its tenant's are looked through.
-- $1 tenant, $2 the rows. Rows are found one by one before they are updated: each would be compared with each.
with place as materialized (
    select r.id, r.id::uuid as job_id, r.noun, (r."row" ->> 'attempt')::integer as attempt from mcp.state_snapshot_rows r
    where r.tenant_id = $1 and r.snapshot_id = $2
      and r.noun = any(array['jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased', 'dead_letter_queue'])
), seen as materialized (
    select p.*, j.job_id is null as is_unknown, now.noun as now_noun, now.attempt as now_attempt, now.is_unbound, x.outcome,
           x.attempt as last_attempt, x.attempt is null or x.next_run_at is not null as may_go_on,
           x.attempt is null or x.attempt < p.attempt or x.attempt = p.attempt and p.noun <> 'jobs_leased' as is_of_then
    from place p
    left join lateral (select k.job_id from mcp.jobs k where k.tenant_id = $1 and k.job_id = p.job_id limit 1) j on true
    left join lateral (select e.attempt, e.outcome, e.next_run_at from mcp.job_executions e
                       where e.tenant_id = $1 and e.job_id = p.job_id order by e.attempt desc, e.finished_at desc limit 1) x on true
    left join lateral (select * from (
        (select 'jobs_leased' as noun, l.attempt, false as is_unbound from mcp.jobs_leased l
         where l.tenant_id = $1 and l.job_id = p.job_id limit 1)
        union all
        (select 'jobs_blocked', b.attempt, not exists (select from mcp.job_dependencies d where d.child_id = b.job_id and d.tenant_id = $1)
         from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = p.job_id limit 1)
        union all
        (select 'jobs_limited', w.attempt, false from mcp.jobs_limited w where w.tenant_id = $1 and w.job_id = p.job_id limit 1)
        union all
        (select 'dead_letter_queue', d.attempt, false from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = p.job_id limit 1)
        union all
        (select 'jobs_ready', q.attempt, false
         from (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = p.job_id limit 1) at
         cross join generate_series(1, 5) as level (priority)
         cross join lateral (select r.attempt from mcp.jobs_ready r
                             where r.tenant_id = $1 and r.queue = at.queue and r.priority = level.priority and r.run_at = at.run_at
                               and r.job_id = p.job_id limit 1) q limit 1)) there limit 1) now on true
), queued as materialized (
    select r.job_id, max(r.attempt) as attempt from mcp.jobs_ready r
    where r.tenant_id = $1 and exists (select from seen s where s.now_noun is null and (s.is_unknown or s.may_go_on)) group by r.job_id
), joined as materialized (
    select s.*, s.now_noun is null and q.job_id is not null as is_astray, q.attempt as queued_attempt,
           s.may_go_on and not s.is_of_then and s.noun <> 'dead_letter_queue' as went_on
    from seen s full join queued q on q.job_id = s.job_id
), decided as materialized (
    select s.*, case
               when s.now_noun is null and not s.is_astray then
                   case when s.is_unknown and (s.is_of_then or s.went_on) then 'insert'
                        when not s.is_unknown and (s.is_of_then and s.may_go_on and (s.noun <> 'dead_letter_queue' or s.last_attempt is null)
                                                   or s.went_on) then 'placeless'
                        else 'conflict' end
               when s.is_unknown or s.is_astray then 'kept'
               when s.now_attempt = s.attempt
                    and (s.now_noun = s.noun or (s.now_noun || s.noun) in ('jobs_readyjobs_limited', 'jobs_limitedjobs_ready'))
                    then case when s.is_unbound or s.last_attempt is null and s.attempt > (s.noun = 'jobs_leased')::integer then 'kept' end
               else 'conflict' end as decision
    from joined s where s.id is not null
), noted as (
    insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id, "row")
    select $1, $2, 'changed jobs', d.id, json_build_object(
        'was', json_build_object('place', d.noun, 'attempt', d.attempt),
        'is_now', json_build_object('place', d.now_noun, 'attempt', coalesce(d.now_attempt, d.last_attempt), 'outcome', d.outcome))
    from decided d where d.decision = 'conflict'
    union all
    select $1, $2, 'kept jobs', d.id, json_build_object(
        'place', coalesce(d.now_noun, 'jobs_ready'), 'attempt', coalesce(d.now_attempt, d.queued_attempt))
    from decided d where d.decision = 'kept'
), hit as materialized (
    select h.place, case
               when h.noun = 'jobs_leased' and d.went_on and d.decision in ('insert', 'placeless') then 'given back'
               when d.decision = 'placeless' and h.noun <> 'jobs' then 'insert'
               when d.decision <> 'kept' then d.decision
               when h.noun = 'jobs' and d.is_unknown or h.noun = 'latest' and d.last_attempt is null
                    or h.noun = 'jobs_blocked' and d.is_unbound then 'insert' end as decision
    from decided d
    cross join lateral (select k.ctid as place, k.noun from mcp.state_snapshot_rows k
                        where k.tenant_id = $1 and k.snapshot_id = $2 and k.id = d.id
                          and k.noun = any(array['jobs', 'latest', 'jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased',
                                                 'dead_letter_queue'])
                        limit 10) h
    where d.decision is not null
), missing as (
    update mcp.state_snapshot_rows r set decision = 'insert'
    where r.ctid = any(array(select hit.place from hit where hit.decision = 'insert'))
), placeless as (
    update mcp.state_snapshot_rows r set decision = 'placeless'
    where r.ctid = any(array(select hit.place from hit where hit.decision = 'placeless'))
), given_back as (
    update mcp.state_snapshot_rows r set decision = 'given back'
    where r.ctid = any(array(select hit.place from hit where hit.decision = 'given back'))
)
update mcp.state_snapshot_rows r set decision = 'conflict'
where r.ctid = any(array(select hit.place from hit where hit.decision = 'conflict'));

-- name: keyed
-- The jobs that were under way with a unique key, and what was decided of them. $1 tenant, $2 the rows.
select r.id::uuid as job_id, r."row" ->> 'unique_key' as unique_key,
       case when r.decision = 'placeless' then 'insert' else r.decision end as decision from mcp.state_snapshot_rows r
left join lateral (select k.id from mcp.state_snapshot_rows k
                   where k.tenant_id = $1 and k.snapshot_id = $2 and k.noun = 'dead_letter_queue' and k.id = r.id limit 1) dead on true
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'jobs' and r."row" ->> 'unique_key' is not null and dead.id is null;

-- name: decide_taken
-- Decides `taken` of jobs whose unique keys are others' by now. $1 tenant, $2 the rows, $3 the jobs, $4 those others.
with place as materialized (
    select p.id, p.noun, (p."row" ->> 'attempt')::integer as attempt, t.other_id, changed."row" -> 'is_now' as is_now
    from unnest($3::text[], $4::uuid[]) as t (id, other_id)
    cross join lateral (select k.* from mcp.state_snapshot_rows k
                        where k.tenant_id = $1 and k.snapshot_id = $2 and k.id = t.id
                          and k.noun = any(array['jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased']) limit 1) p
    left join lateral (select c."row" from mcp.state_snapshot_rows c
                       where c.tenant_id = $1 and c.snapshot_id = $2 and c.noun = 'changed jobs' and c.id = t.id limit 1) changed on true
), noted as (
    insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id, "row")
    select $1, $2, 'changed jobs', p.id, json_build_object(
        'was', json_build_object('place', p.noun, 'attempt', p.attempt),
        'is_now', coalesce(p.is_now::jsonb, '{}') || jsonb_build_object('key_is_of', p.other_id)) from place p
    on conflict (tenant_id, snapshot_id, noun, id) do update set "row" = excluded."row"
)
update mcp.state_snapshot_rows r set decision = 'taken'
where r.tenant_id = $1 and r.snapshot_id = $2 and r.id = any($3::text[])
  and r.noun = any(array['jobs', 'latest', 'jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased']);

-- name: decide_others
-- The same of queues, workers and schedules; `taken` where another has the name by now. What is compared is what is put back.
-- $1 tenant, $2 the rows.
with compared as materialized (
    select r.noun, r.id, q.queue is not null as is_there, null::uuid as name_is_of,
           jsonb_build_object('is_paused', r."row" ->> 'paused_at' is not null, 'reason', r."row" ->> 'reason',
                              'rate_per_s', (r."row" ->> 'rate_per_s')::double precision, 'burst', (r."row" ->> 'burst')::integer) as was,
           jsonb_build_object('is_paused', q.paused_at is not null, 'reason', q.reason, 'rate_per_s', q.rate_per_s, 'burst', q.burst)
           as is_now
    from mcp.state_snapshot_rows r
    left join lateral (select * from mcp.queues k where k.tenant_id = $1 and k.queue = r.id limit 1) q on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'queues'
    union all
    select r.noun, r.id, w.worker_id is not null, other.worker_id,
           jsonb_build_object('status', r."row" ->> 'status', 'reason', r."row" ->> 'reason'),
           jsonb_build_object('status', w.status, 'reason', w.reason)
    from mcp.state_snapshot_rows r
    left join lateral (select * from mcp.workers k where k.tenant_id = $1 and k.worker_id = r.id::uuid limit 1) w on true
    left join lateral (select k.worker_id from mcp.workers k where k.tenant_id = $1 and k.name = r."row" ->> 'name'
                         and coalesce(k.status, '') <> 'TERMINATED' and k.worker_id <> r.id::uuid limit 1) other on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'workers'
    union all
    select r.noun, r.id, s.schedule_id is not null, other.schedule_id,
           jsonb_build_object('name', r."row" ->> 'name', 'cron', r."row" ->> 'cron',
                              'interval_s', (r."row" ->> 'interval_s')::double precision, 'time_zone', r."row" ->> 'time_zone',
                              'missed', r."row" ->> 'missed', 'ends_at', (r."row" ->> 'ends_at')::timestamptz,
                              'is_paused', r."row" ->> 'paused_at' is not null, 'job', was.job),
           jsonb_build_object('name', s.name, 'cron', s.cron, 'interval_s', s.interval_s, 'time_zone', s.time_zone, 'missed', s.missed,
                              'ends_at', s.ends_at, 'is_paused', s.paused_at is not null, 'job', s.job::text)
    from mcp.state_snapshot_rows r
    cross join lateral (select coalesce(replace(replace(r."row" ->> 'job', '\u' || to_hex(ascii(r."row" ->> 'nul')), '\u0000'),
                                                r."row" ->> 'nul', '\u0000'), r."row" ->> 'job') as job) was
    left join lateral (select * from mcp.schedules k where k.tenant_id = $1 and k.schedule_id = r.id::uuid limit 1) s on true
    left join lateral (select k.schedule_id from mcp.schedules k where k.name = r."row" ->> 'name' and k.tenant_id is not distinct from $1
                         and k.schedule_id <> r.id::uuid limit 1) other on true
    where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = 'schedules'
), decided as materialized (
    select c.*, case when c.is_there and c.was = c.is_now then null when c.name_is_of is not null then 'taken'
                     when c.is_there then 'conflict' else 'insert' end as decision
    from compared c
), noted as (
    insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id, "row")
    select $1, $2, 'changed ' || d.noun, d.id, json_build_object('was', d.was, 'is_now', d.is_now || case
        when d.name_is_of is not null then jsonb_build_object('name_is_of', d.name_is_of) else '{}' end)
    from decided d where d.decision = any(array['conflict', 'taken'])
), hit as materialized (
    select h.place, d.decision from decided d
    cross join lateral (select k.ctid as place from mcp.state_snapshot_rows k
                        where k.tenant_id = $1 and k.snapshot_id = $2 and k.noun = d.noun and k.id = d.id limit 1) h
), missing as (
    update mcp.state_snapshot_rows r set decision = 'insert'
    where r.ctid = any(array(select hit.place from hit where hit.decision = 'insert'))
), taken as (
    update mcp.state_snapshot_rows r set decision = 'taken'
    where r.ctid = any(array(select hit.place from hit where hit.decision = 'taken'))
)
update mcp.state_snapshot_rows r set decision = 'conflict'
where r.ctid = any(array(select hit.place from hit where hit.decision = 'conflict'));

-- name: conflicts
-- A page of what is otherwise now, with how it was and is. $1 tenant, $2 the rows, after this $3 noun and $4 id, $5 how many.
select r.noun, r.id, r.decision, changed."row" from mcp.state_snapshot_rows r
cross join lateral (select c."row" from mcp.state_snapshot_rows c
                    where c.tenant_id = $1 and c.snapshot_id = $2 and c.noun = 'changed ' || r.noun and c.id = r.id limit 1) changed
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = any(array['jobs', 'queues', 'workers', 'schedules'])
  and r.decision = any(array['conflict', 'taken']) and (r.noun, r.id) > ($3, $4)
order by r.noun, r.id limit $5;

-- name: conflict_count
-- How much is otherwise now. $1 tenant, $2 the rows.
select count(*) from mcp.state_snapshot_rows r
where r.tenant_id = $1 and r.snapshot_id = $2 and r.noun = any(array['jobs', 'queues', 'workers', 'schedules'])
  and r.decision = any(array['conflict', 'taken']);
