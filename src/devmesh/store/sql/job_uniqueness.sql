-- name: claim
-- Takes unique keys in hand, in one order for everybody. Gives who has each: the job that asks, where nobody had it. $1 tenant, $2 keys,
-- $3 the jobs that ask.
insert into mcp.job_unique_keys as u (tenant_id, unique_key, job_id)
select $1, a.unique_key, a.job_id from unnest($2::text[], $3::uuid[]) as a (unique_key, job_id) order by a.unique_key
on conflict (tenant_id, unique_key) do update set job_id = u.job_id
returning unique_key, job_id;

-- name: holders
-- Who has unique keys. $1 tenant, $2 keys.
select u.unique_key, u.job_id from mcp.job_unique_keys u where u.tenant_id = $1 and u.unique_key = any($2::text[]);

-- name: hand_over
-- Keys that this transaction has in hand are others' from now on. $1 tenant, $2 keys, $3 their jobs.
update mcp.job_unique_keys u set job_id = ($3::uuid[])[array_position($2::text[], u.unique_key)], taken_at = now()
where u.tenant_id = $1 and u.unique_key = any($2::text[]);

-- name: give_back
-- Keys that this transaction has made are nobody's. $1 tenant, $2 keys.
delete from mcp.job_unique_keys u where u.tenant_id = $1 and u.unique_key = any($2::text[]);

-- name: forget
-- Removes keys that were taken longer ago than jobs are kept, but for those whose jobs are not over: they may be to run in a year.
-- $1 in days, $2 how many at most.
delete from mcp.job_unique_keys u where u.ctid = any(array(
    select k.ctid from mcp.job_unique_keys k
    where k.taken_at < now() - make_interval(days => $1)
      and not exists (select from mcp.jobs_leased l where l.tenant_id = k.tenant_id and l.job_id = k.job_id)
      and not exists (select from mcp.jobs_blocked b where b.tenant_id = k.tenant_id and b.job_id = k.job_id)
      and not exists (select from mcp.jobs_limited w where w.tenant_id = k.tenant_id and w.job_id = k.job_id)
      and not exists (select from mcp.job_places p cross join generate_series(1, 5) as level (priority)
                      join mcp.jobs_ready r on r.tenant_id = p.tenant_id and r.queue = p.queue and r.priority = level.priority
                                           and r.run_at = p.run_at and r.job_id = p.job_id
                      where p.tenant_id = k.tenant_id and p.job_id = k.job_id)
    order by k.taken_at limit $2 for update of k skip locked));
