-- name: below
-- The jobs that wait for others and are among these, or may go on or end when these do: those that wait for them and, if these may end
-- badly, those that then fail as well, through whatever number of others. In the order in which they are locked. $1 tenant, $2 jobs,
-- $3 whether they may end badly, $4 up to how many.
with recursive below (job_id, policy) as (
    select w.job_id, w.policy from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_dependencies e where e.tenant_id = $1 and e.parent_id = a.job_id limit 100000) d
    cross join lateral (select k.job_id, k.policy from mcp.jobs_blocked k where k.tenant_id = $1 and k.job_id = d.child_id limit 1) w
    union
    select w.job_id, w.policy from below b
    cross join lateral (select * from mcp.job_dependencies e where e.tenant_id = $1 and e.parent_id = b.job_id limit 100000) d
    cross join lateral (select k.job_id, k.policy from mcp.jobs_blocked k where k.tenant_id = $1 and k.job_id = d.child_id limit 1) w
    where $3::boolean and b.policy <> 'ignore'
), themselves as (
    select k.job_id from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select b.job_id from mcp.jobs_blocked b where b.tenant_id = $1 and b.job_id = a.job_id limit 1) k
)
select f.job_id from (select b.job_id from (select * from below limit $4) b union select t.job_id from themselves t) f order by f.job_id;

-- name: lock_held
-- Locks those of these jobs that workers hold, in the order of `jobs.lock_leases`. $1 tenant, $2 jobs, sorted.
select h.job_id from unnest($2::uuid[]) as a (job_id)
cross join lateral (select l.job_id from mcp.jobs_leased l where l.tenant_id = $1 and l.job_id = a.job_id limit 1 for update) h;

-- name: lock_limits
-- Takes the limits of these jobs' keys in hand that there are, and those of others, in the order of `job_limits.lock`. $1 tenant, $2 jobs;
-- of other keys $3 queues and $4 keys; $5 a queue all of whose keys are meant, or null.
select from (
    select j.queue, j.concurrency_key from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.jobs k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) j
    where j.concurrency_key is not null
    union select o.queue, o.concurrency_key from unnest($3::text[], $4::text[]) as o (queue, concurrency_key)
    union select q.queue, q.concurrency_key from mcp.job_limits q where q.tenant_id = $1 and q.queue = $5::text
    order by queue, concurrency_key) w
cross join lateral (select from mcp.job_limits m
                    where m.tenant_id = $1 and m.queue = w.queue and m.concurrency_key = w.concurrency_key limit 1 for update) l;

-- name: lock_dead
-- Locks those of these jobs that are dead letters, in one order for everybody. $1 tenant, $2 jobs, sorted.
select h.job_id from unnest($2::uuid[]) as a (job_id)
cross join lateral (select d.job_id from mcp.dead_letter_queue d where d.tenant_id = $1 and d.job_id = a.job_id limit 1 for update) h;

-- name: begin_again_here
-- What is locked from here on can be let go again.
savepoint locking;

-- name: let_go
-- Lets go of all that was locked and written since `begin_again_here`.
rollback to savepoint locking;
