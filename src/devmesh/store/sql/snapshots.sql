-- name: capture
-- Writes down everything that is under way in a tenant, in one statement, and so of one moment. $1 tenant, $2 the snapshot.
with alive as materialized (
    select r.job_id, r.created_at from mcp.jobs_ready r where r.tenant_id = $1
    union select w.job_id, w.created_at from mcp.jobs_limited w where w.tenant_id = $1
    union select b.job_id, b.created_at from mcp.jobs_blocked b where b.tenant_id = $1
    union select l.job_id, l.created_at from mcp.jobs_leased l where l.tenant_id = $1
    union select d.job_id, d.created_at from mcp.dead_letter_queue d where d.tenant_id = $1
)
insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id, "row")
select $1::uuid, $2::uuid, 'jobs', j.job_id::text, row_to_json(j) from alive a
cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = a.job_id and k.created_at = a.created_at limit 1) j
union all
select $1, $2, 'latest', x.job_id::text, row_to_json(x) from alive a
cross join lateral (select * from mcp.job_executions e where e.tenant_id = $1 and e.job_id = a.job_id
                    order by e.attempt desc, e.finished_at desc limit 1) x
union all
select $1, $2, 'jobs_ready', r.job_id::text, row_to_json(r) from mcp.jobs_ready r where r.tenant_id = $1
union all
select $1, $2, 'jobs_limited', w.job_id::text, row_to_json(w) from mcp.jobs_limited w where w.tenant_id = $1
union all
select $1, $2, 'jobs_blocked', b.job_id::text, row_to_json(b) from mcp.jobs_blocked b where b.tenant_id = $1
union all
select $1, $2, 'jobs_leased', l.job_id::text, row_to_json(l) from mcp.jobs_leased l where l.tenant_id = $1
union all
select $1, $2, 'dead_letter_queue', d.job_id::text, row_to_json(d) from mcp.dead_letter_queue d where d.tenant_id = $1
union all
select $1, $2, 'job_dependencies', d.parent_id || ' ' || d.child_id, row_to_json(d) from mcp.job_dependencies d where d.tenant_id = $1
union all
select $1, $2, 'job_unique_keys', u.unique_key, row_to_json(u) from mcp.job_unique_keys u where u.tenant_id = $1
union all
select $1, $2, 'queues', q.queue, row_to_json(q) from mcp.queues q where q.tenant_id = $1
union all
select $1, $2, 'workers', w.worker_id::text, row_to_json(w) from mcp.workers w where w.tenant_id = $1 and w.status <> 'TERMINATED'
union all
select $1, $2, 'schedules', s.schedule_id::text, row_to_json(s) from mcp.schedules s where s.tenant_id = $1;

-- name: chain
-- A snapshot and what it stands on, itself first, each with what it stands on. $1 tenant, $2 the snapshot.
with recursive link (snapshot_id, base_id, place) as (
    select s.snapshot_id, s.base_id, 1 from mcp.state_snapshots s where s.tenant_id = $1 and s.snapshot_id = $2
    union all
    select s.snapshot_id, s.base_id, l.place + 1 from link l
    cross join lateral (select * from mcp.state_snapshots b where b.tenant_id = $1 and b.snapshot_id = l.base_id limit 1) s
)
select l.snapshot_id, l.base_id from link l order by l.place;

-- name: gather
-- Writes down, as those of one snapshot, the rows that a chain has together: of each the newest. $1 tenant, $2 the snapshot to write,
-- $3 the chain, the newest first. JSON may say \u0000, and a row with it cannot be taken apart: until it is put back, one of the characters
-- from U+FDD0 on, which are nobody's, says it instead; one that is not in the row, and its member `nul` says which.
insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id, "row")
select $1, $2, f.noun, f.id, case when nul.hex is null then f."row" else (
           '{"nul":"\u' || nul.hex || '",'
           || substr(regexp_replace(f."row"::text, '(?<!\\)((?:\\\\)*)\\u0000', '\1\\u' || nul.hex, 'g'), 2))::json end
from (
    select distinct on (r.noun, r.id) r.noun, r.id, r."row" from unnest($3::uuid[]) with ordinality as c (snapshot_id, place)
    cross join lateral (select * from mcp.state_snapshot_rows s where s.tenant_id = $1 and s.snapshot_id = c.snapshot_id limit 100000000) r
    order by r.noun, r.id, c.place) f
left join lateral (
    select to_hex(n) as hex from generate_series(64976, 65007) as n
    where position('\u0000' in f."row"::text) > 0 and f."row"::text ~ '(?<!\\)(?:\\\\)*\\u0000'
    order by position(chr(n) in f."row"::text) + position('\u' || to_hex(n) in lower(f."row"::text)) > 0, n limit 1) nul on true
where f."row" is not null and f.noun <> 'ended';

-- name: add_ended
-- Writes down how jobs have ended that were under way in what a snapshot stands on. $1 tenant, $2 the snapshot, $3 what it stands on.
insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id, "row")
select $1, $2, 'ended', b.id, row_to_json(x) from mcp.state_snapshot_rows b
left join lateral (select n.id from mcp.state_snapshot_rows n
                   where n.tenant_id = $1 and n.snapshot_id = $2 and n.noun = 'jobs' and n.id = b.id limit 1) still on true
cross join lateral (select * from mcp.job_executions e where e.tenant_id = $1 and e.job_id = b.id::uuid
                    order by e.attempt desc, e.finished_at desc limit 1) x
where b.tenant_id = $1 and b.snapshot_id = $3 and b.noun = 'jobs' and still.id is null;

-- name: add_gone
-- Notes what is not there any more of what a snapshot stands on. $1 tenant, $2 the snapshot, $3 what it stands on.
insert into mcp.state_snapshot_rows (tenant_id, snapshot_id, noun, id)
select $1, $2, b.noun, b.id from mcp.state_snapshot_rows b
left join lateral (select n.id from mcp.state_snapshot_rows n
                   where n.tenant_id = $1 and n.snapshot_id = $2 and n.noun = b.noun and n.id = b.id limit 1) still on true
where b.tenant_id = $1 and b.snapshot_id = $3 and still.id is null;

-- name: drop_same
-- Removes what is as it is in what a snapshot stands on. $1 tenant, $2 the snapshot, $3 what it stands on.
delete from mcp.state_snapshot_rows r where r.ctid = any(array(
    select n.ctid from mcp.state_snapshot_rows n
    cross join lateral (select b."row" from mcp.state_snapshot_rows b
                        where b.tenant_id = $1 and b.snapshot_id = $3 and b.noun = n.noun and b.id = n.id limit 1) base
    where n.tenant_id = $1 and n.snapshot_id = $2 and base."row"::text = n."row"::text));

-- name: counts
-- How much there is of each noun. $1 tenant, $2 the snapshot.
select r.noun, count(*) filter (where r."row" is not null) as count, count(*) filter (where r."row" is null) as gone
from mcp.state_snapshot_rows r where r.tenant_id = $1 and r.snapshot_id = $2 group by r.noun;

-- name: insert
-- $1 tenant, $2 id, $3 kind, $4 base or null, $5 why, $6 the caller's key or null.
insert into mcp.state_snapshots (tenant_id, snapshot_id, kind, base_id, reason, created_by_key_id) values ($1, $2, $3, $4, $5, $6);

-- name: set_counts
-- $1 tenant, $2 id, $3 counts as JSON.
update mcp.state_snapshots s set counts = $3::text::json where s.tenant_id = $1 and s.snapshot_id = $2 returning s.*;

-- name: get
-- $1 tenant, $2 id.
select s.* from mcp.state_snapshots s where s.tenant_id = $1 and s.snapshot_id = $2;

-- name: hold
-- The same, and nobody forgets it before this transaction is over. $1 tenant, $2 id.
select s.* from mcp.state_snapshots s where s.tenant_id = $1 and s.snapshot_id = $2 for key share;

-- name: lock
-- The same, to forget it: who stands on it from now on waits, and then finds it gone. $1 tenant, $2 id.
select s.* from mcp.state_snapshots s where s.tenant_id = $1 and s.snapshot_id = $2 for update;

-- name: latest_until
-- The latest that was taken at a time or before it, by the database's clock; ids are made by those of processes. $1 tenant, $2 the time.
select s.snapshot_id from mcp.state_snapshots s where s.tenant_id = $1 and s.taken_at <= $2
order by s.taken_at desc, s.snapshot_id desc limit 1;

-- name: page
-- A page of snapshots, the latest first. $1 tenant, $2 ids below this one, $3 a kind or null, $4 how many.
select s.* from mcp.state_snapshots s
where s.tenant_id = $1 and s.snapshot_id < $2 and ($3::text is null or s.kind = $3) order by s.snapshot_id desc limit $4;

-- name: jobs
-- Jobs of a snapshot and where they were. $1 tenant, $2 the snapshot, $3 ids after this one, $4 how many, $5 up to how many
-- bytes, as they are stored, and one more. `found` is how many there were of $4.
select p.* from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f."row")) over (order by f.id rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select r.id, r.noun, r."row" from mcp.state_snapshot_rows r
        where r.tenant_id = $1 and r.snapshot_id = $2 and r.id > $3 and r."row" is not null
          and r.noun in ('jobs_ready', 'jobs_limited', 'jobs_blocked', 'jobs_leased', 'dead_letter_queue', 'ended')
        order by r.id limit $4) f) p
where coalesce(p.bytes_before, 0) < $5 order by p.id;

-- name: dependents
-- What stands on a snapshot. $1 tenant, $2 the snapshot.
select s.snapshot_id from mcp.state_snapshots s where s.base_id = $2 and s.tenant_id = $1 order by s.snapshot_id limit 10;

-- name: delete_rows
-- $1 tenant, $2 the snapshot.
delete from mcp.state_snapshot_rows r where r.tenant_id = $1 and r.snapshot_id = $2;

-- name: delete
-- $1 tenant, $2 the snapshot.
delete from mcp.state_snapshots s where s.tenant_id = $1 and s.snapshot_id = $2 returning s.*;

-- name: count
-- How many a tenant has, up to a number. $1 tenant, $2 the number.
select count(*) from (select from mcp.state_snapshots s where s.tenant_id = $1 limit $2) found;

-- name: set_policy
-- $1 tenant, $2 the interval in seconds, $3 how many are kept.
insert into mcp.snapshot_policies as p (tenant_id, interval_s, keep, next_at)
values ($1, $2, $3, now() + make_interval(secs => $2))
on conflict (tenant_id) do update set interval_s = excluded.interval_s, keep = excluded.keep,
                                      next_at = least(p.next_at, excluded.next_at);

-- name: drop_policy
-- $1 tenant.
delete from mcp.snapshot_policies p where p.tenant_id = $1;

-- name: policy
-- $1 tenant.
select p.interval_s, p.keep, p.next_at from mcp.snapshot_policies p where p.tenant_id = $1;

-- name: take_due
-- A policy that is due, for whoever is the first to take it. It is due again after its interval, or sooner, unless a snapshot comes of it.
-- $1 tenant, $2 after how many seconds at the latest.
update mcp.snapshot_policies p set next_at = now() + make_interval(secs => least(p.interval_s, $2))
where p.tenant_id = any(array(select d.tenant_id from mcp.snapshot_policies d
                              where d.tenant_id = $1 and d.next_at <= now() limit 1 for update skip locked))
returning p.keep;

-- name: postpone
-- A snapshot comes of a policy: it is due again after its interval. $1 tenant.
update mcp.snapshot_policies p set next_at = now() + make_interval(secs => p.interval_s) where p.tenant_id = $1 returning p.keep;

-- name: surplus
-- Locks snapshots by a policy that are more than are kept, but for those that others stand on, or are about to. $1 tenant, $2 how many
-- are kept.
with found as materialized (
    select s.snapshot_id from mcp.state_snapshots s
    left join lateral (select d.snapshot_id from mcp.state_snapshots d where d.base_id = s.snapshot_id limit 1) dependent on true
    where s.tenant_id = $1 and s.kind = 'AUTO' and dependent.snapshot_id is null
    order by s.taken_at desc, s.snapshot_id desc offset $2 limit 100
)
select h.snapshot_id from found f
cross join lateral (select * from mcp.state_snapshots k where k.tenant_id = $1 and k.snapshot_id = f.snapshot_id limit 1
                    for update skip locked) h;

-- name: with_due_policies
-- Tenants of which a snapshot is due. No parameters.
select p.tenant_id from mcp.snapshot_policies p
join mcp.tenants t on t.tenant_id = p.tenant_id and t.status = 'active' where p.next_at <= now();
