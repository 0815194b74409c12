-- name: register
-- Registers a worker, or updates the one that this owner registered under the same name. Nothing when the name is another's.
-- $1 tenant, $2 id, $3 owner, $4 name, $5 queues, $6 capacity, $7 heartbeat interval in seconds, $8 whether the caller is an
-- administrator, $9 after how many seconds without a heartbeat it is given up, $10 the process, or null.
insert into mcp.workers as w (tenant_id, worker_id, owner_id, name, queues, capacity, heartbeat_interval_s, stale_after_s, instance_id)
values ($1, $2, $3, $4, $5, $6, $7, $9, $10)
on conflict (tenant_id, name) where coalesce(status, '') <> 'TERMINATED' do update
set queues = excluded.queues, capacity = excluded.capacity, instance_id = excluded.instance_id, heartbeat_interval_s = excluded.heartbeat_interval_s,
    stale_after_s = excluded.stale_after_s, status = 'ACTIVE', reason = '', heartbeat_at = now(), health_score = 1, missed_beats = 0
where w.owner_id = excluded.owner_id or $8
returning w.worker_id;

-- name: note_registered
-- Notes in a worker's log that it is there again and well, as a heartbeat does. $1 tenant, $2 worker.
insert into mcp.worker_health_logs (tenant_id, worker_id, health_score, kind) values ($1, $2, 1, 'heartbeat') on conflict do nothing;

-- name: instance
-- The process that has registered a worker under a name, and the worker. $1 tenant, $2 name.
select w.worker_id, w.instance_id from mcp.workers w
where w.tenant_id = $1 and w.name = $2 and coalesce(w.status, '') <> 'TERMINATED' for update;

-- name: get_many
-- Workers with what they hold. $1 tenant, $2 ids.
select w.*, held.count as current_load from unnest($2::uuid[]) as a (worker_id)
cross join lateral (select * from mcp.workers v where v.tenant_id = $1 and v.worker_id = a.worker_id limit 1) w
cross join lateral (select count(*)::integer as count from mcp.jobs_leased l
                    where l.worker_id = a.worker_id and l.tenant_id is not distinct from $1) held;

-- name: page
-- A page of workers, newest first. $1 tenant, $2 ids below this one or null, $3 how many, $4 statuses or null.
select w.*, held.count as current_load from mcp.workers w
cross join lateral (select count(*)::integer as count from mcp.jobs_leased l
                    where l.worker_id = w.worker_id and l.tenant_id is not distinct from $1) held
where w.tenant_id = $1 and ($2::uuid is null or w.worker_id < $2) and ($4::text[] is null or w.status = any($4))
order by w.worker_id desc limit $3;

-- name: lock_claims
-- One at a time claims for a worker, whatever the number of nodes: that keeps its capacity exact (mcp.claim_jobs takes it, too).
-- Spelled out: $1 tenant, $2 worker.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text || $2::uuid::text, 12));

-- name: owners
-- Who registered workers, and which process last. $1 tenant, $2 ids.
select w.worker_id, w.owner_id, w.status, w.instance_id from mcp.workers w where w.tenant_id = $1 and w.worker_id = any($2::uuid[]);

-- name: heartbeat
-- Workers are there, each with what is known of its health. $1 tenant, then one entry a worker: $2 ids, $3 scores, $4 statuses,
-- $5 kinds of log rows, $6 metrics as JSON, or null, $7 why it has that status, or null for what was said before.
with beat as (
    update mcp.workers w
    set heartbeat_at = now(), missed_beats = 0, health_score = ($3::real[])[array_position($2::uuid[], w.worker_id)],
        status = ($4::text[])[array_position($2::uuid[], w.worker_id)],
        reason = coalesce(($7::text[])[array_position($2::uuid[], w.worker_id)], w.reason)
    where w.tenant_id = $1 and w.worker_id = any($2::uuid[]) and w.status <> 'TERMINATED'
    returning w.worker_id, w.health_score, array_position($2::uuid[], w.worker_id) as place
)
insert into mcp.worker_health_logs (tenant_id, worker_id, health_score, kind, metrics)
select $1, b.worker_id, b.health_score, ($5::text[])[b.place], ($6::text[])[b.place]::json from beat b
on conflict do nothing;

-- name: states
-- Locks workers, in one order for everybody, with what decides their health. Failures count for half as much each minute, and after an
-- hour for nothing: a number is halved no further than it can be. $1 tenant, $2 ids.
select w.worker_id, w.owner_id, w.status, w.reason, w.capacity, w.health_score, w.missed_beats,
       w.failure_level * power(0.5::float8, least(extract(epoch from now() - w.failure_level_at)::float8 / 60, 60)) as failure_level
from mcp.workers w where w.tenant_id = $1 and w.worker_id = any($2::uuid[]) order by w.worker_id for update;

-- name: late
-- Workers that were not heard of for longer than their interval, or than they may be silent, neither by a heartbeat nor by the renewal of
-- a lease, and those that have missed heartbeats and may have been heard of since. One that is emptied holds nothing, and stays so.
-- `is_heard_by_leases`: it was back from a silence and has sent no heartbeat since, as its log says, and a lease of it lasts. $1 tenant,
-- $2 how many, $3 ids above this one.
select w.worker_id, w.status, w.health_score, w.missed_beats, w.heartbeat_interval_s, w.stale_after_s,
       extract(epoch from now() - greatest(w.heartbeat_at, held.renewed_at))::double precision as silent_s,
       coalesce(held.lease_until > now() and latest.kind = 'recovered', false) as is_heard_by_leases
from mcp.workers w
cross join lateral (select max(l.lease_until - make_interval(secs => l.lease_s)) as renewed_at, max(l.lease_until) as lease_until
                    from mcp.jobs_leased l
                    where l.worker_id = w.worker_id and l.tenant_id is not distinct from $1) held
left join lateral (select h.kind from mcp.worker_health_logs h where h.tenant_id = $1 and h.worker_id = w.worker_id
                   order by h.at desc limit 1) latest on true
where w.tenant_id = $1 and w.worker_id > $3 and w.status in ('ACTIVE', 'DEGRADED')
  and (w.heartbeat_at < now() - make_interval(secs => least(w.heartbeat_interval_s, w.stale_after_s)) or w.missed_beats > 0)
order by w.worker_id limit $2 for update of w skip locked;

-- name: note_missed
-- Writes what became of workers that this transaction has locked: how many heartbeats were missed, the status and why; and the score,
-- into the log: what a worker's row says stays that of its last heartbeat. $1 tenant, then one entry a worker: $2 ids, $3 missed,
-- $4 scores, $5 statuses, $6 reasons, or null for the one that there is.
with missed as (
    update mcp.workers w
    set missed_beats = ($3::integer[])[array_position($2::uuid[], w.worker_id)],
        status = ($5::text[])[array_position($2::uuid[], w.worker_id)],
        reason = coalesce(($6::text[])[array_position($2::uuid[], w.worker_id)], w.reason),
        failure_count = w.failure_count + (($5::text[])[array_position($2::uuid[], w.worker_id)] = 'FAILED')::integer,
        last_failure_at = case when ($5::text[])[array_position($2::uuid[], w.worker_id)] = 'FAILED' then now()
                               else w.last_failure_at end
    where w.tenant_id = $1 and w.worker_id = any($2::uuid[])
    returning w.worker_id, w.status, w.failure_count, w.last_failure_at, w.reason
), logged as (
    insert into mcp.worker_health_logs (tenant_id, worker_id, health_score, kind)
    select $1, m.worker_id, ($4::real[])[array_position($2::uuid[], m.worker_id)],
           case when m.status = 'FAILED' then 'failed' else 'missed' end
    from missed m
    on conflict do nothing
)
select m.* from missed m;

-- name: note_failures
-- Attempts of these workers have failed. $1 tenant, $2 workers, $3 how many of each.
update mcp.workers w
set failure_level = w.failure_level * power(0.5::float8, least(extract(epoch from now() - w.failure_level_at)::float8 / 60, 60))
                    + ($3::integer[])[array_position($2::uuid[], w.worker_id)],
    failure_level_at = now()
where w.tenant_id = $1 and w.worker_id = any($2::uuid[]);

-- name: raise_alerts
-- Raises alerts, or raises those that are open already further. $1 tenant, then one entry an alert: $2 ids, $3 workers, $4 kinds, $5
-- severities, $6 messages.
insert into mcp.worker_alerts as a (tenant_id, alert_id, worker_id, kind, severity, message)
select $1, r.* from unnest($2::uuid[], $3::uuid[], $4::text[], $5::smallint[], $6::text[]) r
on conflict (worker_id, kind) where cleared_at is null do update
set severity = greatest(a.severity, excluded.severity), message = excluded.message
returning a.alert_id, a.worker_id, a.kind, a.severity, a.message;

-- name: clear_alerts
-- Alerts of workers are over: which these are. $1 tenant, $2 workers.
update mcp.worker_alerts a set cleared_at = now()
where a.cleared_at is null and a.worker_id = any($2::uuid[]) and a.tenant_id is not distinct from $1
returning a.alert_id, a.worker_id, a.kind, a.severity, a.message, a.raised_at, a.cleared_at;

-- name: alerts
-- A page of alerts, newest first. $1 tenant, $2 ids below this one, $3 a worker or null, $4 only open ones, $5 how many.
select a.alert_id, a.worker_id, a.kind, a.severity, a.message, a.raised_at, a.cleared_at from mcp.worker_alerts a
where a.tenant_id = $1 and a.alert_id < $2 and ($3::uuid is null or a.worker_id = $3) and (not $4 or a.cleared_at is null)
order by a.alert_id desc limit $5;

-- name: health_log
-- The latest rows of a worker's log, the newest first. $1 tenant, $2 worker, $3 before this time, $4 how many.
select h.at, h.health_score, h.kind, h.metrics from mcp.worker_health_logs h
where h.tenant_id = $1 and h.worker_id = $2 and h.at < $3 order by h.at desc limit $4;

-- name: latest_metrics
-- What a worker has said of itself, the newest first, as far as it is among the latest rows of its log. $1 tenant, $2 worker, $3 how many
-- rows are looked at, $4 how many that have metrics.
select l.metrics from (select h.at, h.metrics from mcp.worker_health_logs h where h.tenant_id = $1 and h.worker_id = $2
                       order by h.at desc limit $3) l
where l.metrics is not null order by l.at desc limit $4;

-- name: optimal
-- The healthiest ACTIVE workers with a score and a load within bounds, the least loaded first among equals. $1 tenant, $2 least score,
-- $3 greatest load, $4 a queue that they take, or null, $5 how many, $6 by what a score is multiplied for each missed heartbeat, $7 to how
-- many places a score is told: a worker is found at the bounds at which it is shown.
select w.*, held.count as current_load from mcp.workers w
cross join lateral (select count(*)::integer as count from mcp.jobs_leased l
                    where l.worker_id = w.worker_id and l.tenant_id is not distinct from $1) held
cross join lateral (select round((w.health_score * power($6::double precision, least(w.missed_beats, 100)))::numeric, $7) as score) h
where w.tenant_id = $1 and w.status = 'ACTIVE' and h.score::double precision >= $2 and held.count::double precision / w.capacity <= $3
  and held.count < w.capacity and ($4::text is null or $4 = any(w.queues))
order by h.score desc, held.count::real / w.capacity, w.worker_id limit $5;

-- name: forget_health
-- Removes old rows of the log, of any tenant. $1 in days, $2 how many at most.
delete from mcp.worker_health_logs h where h.ctid = any(array(
    select o.ctid from mcp.worker_health_logs o where o.at < now() - make_interval(days => $1) order by o.at limit $2
    for update skip locked));

-- name: forget_alerts
-- Removes alerts that were cleared long ago, of any tenant. $1 in days, $2 how many at most.
delete from mcp.worker_alerts a where a.ctid = any(array(
    select o.ctid from mcp.worker_alerts o where o.cleared_at < now() - make_interval(days => $1) limit $2 for update skip locked));

-- name: forget_workers
-- Removes workers that have gone long ago and hold nothing. $1 tenant, $2 in days, $3 how many at most.
delete from mcp.workers w where w.ctid = any(array(
    select o.ctid from mcp.workers o
    where o.tenant_id = $1 and o.status in ('TERMINATED', 'FAILED', 'DRAINING') and o.heartbeat_at < now() - make_interval(days => $2)
      and not exists (select from mcp.jobs_leased l where l.worker_id = o.worker_id)
    limit $3 for update of o skip locked))
returning w.worker_id;

-- name: set_status
-- No row when it has that status, for the same reason. $1 tenant, $2 worker, $3 status, $4 why.
update mcp.workers w set status = $3, reason = $4
where w.tenant_id = $1 and w.worker_id = $2 and w.status <> 'TERMINATED' and (w.status <> $3 or w.reason <> $4)
returning w.worker_id;

-- name: held_jobs
-- What a worker holds. $1 tenant, $2 worker.
select l.job_id from mcp.jobs_leased l where l.worker_id = $2 and l.tenant_id is not distinct from $1;

-- name: held_by_another
-- What a worker of a name holds that another process than this one has registered, in the order in which it is locked. $1 tenant, $2 name,
-- $3 the process.
select l.job_id from mcp.workers w
cross join lateral (select h.job_id from mcp.jobs_leased h where h.worker_id = w.worker_id and h.tenant_id is not distinct from $1) l
where w.tenant_id = $1 and w.name = $2 and coalesce(w.status, '') <> 'TERMINATED' and w.instance_id <> $3
order by l.job_id;

-- name: held_by_silent
-- What workers hold that have been silent for too long (`late`), in the order in which it is locked. $1 tenant, $2 how many of these, $3
-- ids above this one.
select l.job_id from (
    select w.worker_id from mcp.workers w
    cross join lateral (select max(h.lease_until - make_interval(secs => h.lease_s)) as renewed_at from mcp.jobs_leased h
                        where h.worker_id = w.worker_id and h.tenant_id is not distinct from $1) held
    where w.tenant_id = $1 and w.worker_id > $3 and w.status in ('ACTIVE', 'DEGRADED')
      and greatest(w.heartbeat_at, held.renewed_at) < now() - make_interval(secs => w.stale_after_s)
    order by w.worker_id limit $2) w
cross join lateral (select h.job_id from mcp.jobs_leased h where h.worker_id = w.worker_id and h.tenant_id is not distinct from $1) l
order by l.job_id;

-- name: is_being_renewed
-- Whether a worker has a lease that lasts and was renewed since its job was claimed. $1 tenant, $2 worker.
select exists (
    select from mcp.jobs_leased l where l.worker_id = $2 and l.tenant_id is not distinct from $1 and l.lease_until > now()
      and l.lease_until > l.started_at + make_interval(secs => l.lease_s) + interval '100 ms');

-- name: forget_instance
-- It is not known any more which process has registered a worker last, if that was this one. $1 tenant, $2 worker, $3 the process.
update mcp.workers w set instance_id = null where w.tenant_id = $1 and w.worker_id = $2 and w.instance_id = $3;
