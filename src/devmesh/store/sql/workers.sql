-- name: register
-- Registers a worker, or updates the one that this owner registered under the same name. Nothing when the name is another's.
-- $1 tenant, $2 id, $3 owner, $4 name, $5 queues, $6 capacity, $7 heartbeat interval in seconds, $8 whether the caller is an
-- administrator.
insert into mcp.workers as w (tenant_id, worker_id, owner_id, name, queues, capacity, heartbeat_interval_s)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (tenant_id, name) where coalesce(status, '') <> 'TERMINATED' do update
set queues = excluded.queues, capacity = excluded.capacity, heartbeat_interval_s = excluded.heartbeat_interval_s,
    status = 'ACTIVE', reason = '', heartbeat_at = now()
where w.owner_id = excluded.owner_id or $8
returning w.worker_id;

-- name: get_many
-- Workers with what they hold. $1 tenant, $2 ids.
select w.*, held.count as current_load from unnest($2::uuid[]) as a (worker_id)
cross join lateral (select * from mcp.workers v where v.tenant_id = $1 and v.worker_id = a.worker_id limit 1) w
cross join lateral (select count(*)::integer as count from mcp.jobs_leased l
                    where l.tenant_id = $1 and l.worker_id = a.worker_id) held;

-- name: page
-- A page of workers, newest first. $1 tenant, $2 ids below this one or null, $3 how many, $4 statuses or null.
select w.*, held.count as current_load from mcp.workers w
cross join lateral (select count(*)::integer as count from mcp.jobs_leased l
                    where l.tenant_id = $1 and l.worker_id = w.worker_id) held
where w.tenant_id = $1 and ($2::uuid is null or w.worker_id < $2) and ($4::text[] is null or w.status = any($4))
order by w.worker_id desc limit $3;

-- name: lock_claims
-- One at a time claims for a worker, whatever the number of nodes: that keeps its capacity exact. $1 tenant, $2 worker.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text || $2::uuid::text, 12));

-- name: for_claim
-- What a claim needs to know of its worker. $1 tenant, $2 worker, $3 no lease of it began before.
select w.status, w.capacity, w.owner_id, held.count as current_load, held.oldest from mcp.workers w
cross join lateral (select count(*)::integer as count, min(l.started_at) as oldest from mcp.jobs_leased l
                    where l.tenant_id = $1 and l.worker_id = $2 and l.started_at >= $3) held
where w.tenant_id = $1 and w.worker_id = $2;

-- name: owners
-- Who registered workers. $1 tenant, $2 ids.
select w.worker_id, w.owner_id, w.status from mcp.workers w where w.tenant_id = $1 and w.worker_id = any($2::uuid[]);

-- name: heartbeat
-- A worker is there. One that had been given up for dead is active again. $1 tenant, $2 ids.
update mcp.workers w set heartbeat_at = now(), status = case when w.status = 'FAILED' then 'ACTIVE' else w.status end,
                         reason = case when w.status = 'FAILED' then '' else w.reason end
where w.tenant_id = $1 and w.worker_id = any($2::uuid[]) and w.status <> 'TERMINATED'
returning w.worker_id;

-- name: set_status
-- $1 tenant, $2 worker, $3 status, $4 why.
update mcp.workers w set status = $3, reason = $4 where w.tenant_id = $1 and w.worker_id = $2 and w.status <> 'TERMINATED'
returning w.worker_id;

-- name: held_jobs
-- What a worker holds. $1 tenant, $2 worker.
select l.job_id from mcp.jobs_leased l where l.tenant_id = $1 and l.worker_id = $2;
