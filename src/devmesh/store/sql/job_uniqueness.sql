-- name: claim
-- Takes unique keys in hand, in one order for everybody. Gives who has each: the job that asks, where nobody had it. $1 tenant, $2 keys,
-- $3 the jobs that ask.
insert into mcp.job_unique_keys as u (tenant_id, unique_key, job_id)
select $1, a.unique_key, a.job_id from unnest($2::text[], $3::uuid[]) as a (unique_key, job_id) order by a.unique_key
on conflict (tenant_id, unique_key) do update set job_id = u.job_id
returning unique_key, job_id;

-- name: hand_over
-- Keys that this transaction has in hand are others' from now on. $1 tenant, $2 keys, $3 their jobs.
update mcp.job_unique_keys u set job_id = ($3::uuid[])[array_position($2::text[], u.unique_key)], taken_at = now()
where u.tenant_id = $1 and u.unique_key = any($2::text[]);

-- name: forget
-- Removes keys that were taken longer ago than jobs are kept. $1 in days, $2 how many at most.
delete from mcp.job_unique_keys u where u.ctid = any(array(
    select k.ctid from mcp.job_unique_keys k where k.taken_at < now() - make_interval(days => $1) order by k.taken_at limit $2
    for update skip locked));
