-- Statements are prepared once and their plans kept, perhaps from when the tables were empty. So each of these leaves the
-- planner no choice of what to join with what: another table is looked into by `lateral ... limit 1` or `= any(array(...))`.

-- name: insert_many
-- Inserts tasks. $1 tenant, $2 a JSON array of tasks in the wire's shape, complete.
insert into mcp.tasks (tenant_id, task_id, title, description, type, priority, parameters, required_capabilities, tags, metadata,
    created_by_agent_id, created_by_key_id, assign, strategy, target_agent_id, parent_id, position, distribution, blocked,
    status, max_retries, timeout_s, lease_s, deadline, ready_at, timeout_at, created_at, updated_at, started_at)
select $1, id, title, description, type, priority, parameters, required_capabilities, tags, metadata,
    created_by, created_by_key_id, assign, strategy, target_agent_id, parent_id, position, distribution, blocked,
    status, max_retries, timeout_s, lease_s, deadline, ready_at, timeout_at, created_at, updated_at, started_at
from json_to_recordset($2) as t (id uuid, title text, description text, type text, priority smallint, parameters json,
    required_capabilities text[], tags text[], metadata json, created_by uuid, created_by_key_id uuid, assign text, strategy text,
    target_agent_id uuid, parent_id uuid, position integer, distribution json, blocked boolean, status text, max_retries integer,
    timeout_s double precision, lease_s double precision, deadline timestamptz, ready_at timestamptz, timeout_at timestamptz,
    created_at timestamptz, updated_at timestamptz, started_at timestamptz);

-- name: lock
-- Locks tasks and the distributed parents above them, parents first (an id is greater than its parent's). $1 tenant, $2 ids,
-- $3 whether with their parameters and metadata, which may be large and which most moves do not touch; else these are null.
with recursive wanted as (
    select t.task_id, t.parent_id from mcp.tasks t where t.tenant_id = $1 and t.task_id = any($2::uuid[])
    union
    select p.task_id, p.parent_id from wanted w
    cross join lateral (select above.task_id, above.parent_id from mcp.tasks above
                        where above.tenant_id = $1 and above.task_id = w.parent_id and above.distribution is not null limit 1) p
)
select r.id, r.title, r.description, r.type, r.priority, case when $3::boolean then r.parameters end as parameters,
       r.required_capabilities, r.tags, case when $3 then r.metadata end as metadata, r.created_by, r.created_by_key_id,
       r.assign, r.strategy, r.target_agent_id, r.excluded_agent_ids, r.parent_id, r.position, r.distribution, r.blocked,
       r.delegated_from, r.delegation_depth, r.status, r.attempt, r.version, r.assigned_to, r.result, r.error, r.progress,
       r.progress_message, r.retry_count, r.max_retries, r.timeout_s, r.lease_s, r.deadline, r.ready_at, r.lease_until,
       r.timeout_at, r.created_at, r.updated_at, r.assigned_at, r.accepted_at, r.started_at, r.finished_at
from mcp.task_rows r
where r.tenant_id = $1 and r.id = any(array(select task_id from wanted))
order by r.id for update;

-- name: tree
-- The ids of a task's unfinished descendants, children before grandchildren. $1 tenant, $2 ids, $3 how many at most.
with recursive descendants as (
    select t.task_id, t.status from mcp.tasks t where t.tenant_id = $1 and t.parent_id = any($2::uuid[])
    union
    select t.task_id, t.status from descendants d
    cross join lateral (select below.task_id, below.status from mcp.tasks below
                        where below.tenant_id = $1 and below.parent_id = d.task_id offset 0) t
)
select d.task_id from descendants d where d.status in ('pending', 'assigned', 'accepted', 'running') order by d.task_id limit $3;

-- name: save
-- Writes what moves have changed. $1 tenant, $2 a JSON array of the changeable fields.
-- The rows are locked by an earlier statement of the transaction, so that the places found first are still theirs.
update mcp.tasks t set
    parameters = coalesce(c.parameters, t.parameters), required_capabilities = c.required_capabilities,
    target_agent_id = c.target_agent_id, excluded_agent_ids = c.excluded_agent_ids, blocked = c.blocked,
    delegated_from = c.delegated_from, delegation_depth = c.delegation_depth, status = c.status, attempt = c.attempt,
    version = c.version, assigned_to = c.assigned_to, result = c.result, error = c.error, progress = c.progress,
    progress_message = c.progress_message, retry_count = c.retry_count, ready_at = c.ready_at, lease_until = c.lease_until,
    timeout_at = c.timeout_at, updated_at = c.updated_at, assigned_at = c.assigned_at, accepted_at = c.accepted_at,
    started_at = c.started_at, finished_at = c.finished_at
from json_to_recordset($2) as c (id uuid, parameters json, required_capabilities text[], target_agent_id uuid,
    excluded_agent_ids uuid[], blocked boolean, delegated_from uuid, delegation_depth smallint, status text, attempt integer,
    version integer, assigned_to uuid, result json, error json, progress double precision, progress_message text,
    retry_count integer, ready_at timestamptz, lease_until timestamptz, timeout_at timestamptz, updated_at timestamptz,
    assigned_at timestamptz, accepted_at timestamptz, started_at timestamptz, finished_at timestamptz)
cross join lateral (select w.ctid as place from mcp.tasks w where w.tenant_id = $1 and w.task_id = c.id limit 1) found
where t.ctid = found.place;

-- name: insert_attempts
-- Keeps how attempts ended, and which agents let a lease end without a word: the assigner gives them work last until they are
-- heard of. $1 tenant, $2 a JSON array of attempts.
with ended as (
    insert into mcp.task_attempts (tenant_id, task_id, attempt, agent_id, outcome, error, assigned_at, ended_at)
    select $1, a.* from json_to_recordset($2) as a (task_id uuid, attempt integer, agent_id uuid, outcome text, error json,
        assigned_at timestamptz, ended_at timestamptz)
    returning agent_id, outcome
), heard as (
    select e.agent_id from ended e where e.outcome <> 'lease_expired'
)
update mcp.agents a set silent_since = case when a.agent_id <> all(array(select h.agent_id from heard h)) then now() end
where a.tenant_id = $1 and a.agent_id = any(array(select e.agent_id from ended e))
  and (a.silent_since is not null) = (a.agent_id = any(array(select h.agent_id from heard h)));

-- name: insert_delegation
-- Keeps who handed a task to whom. $1 tenant, then the columns in order.
insert into mcp.task_delegations (tenant_id, task_id, depth, attempt, from_agent_id, to_agent_id, capabilities, kind, reason,
                                  delegated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: leases
-- What a heartbeat needs to know of tasks and of who registered their agents. $1 tenant, $2 ids.
select t.task_id, t.status, t.attempt, t.assigned_to, t.lease_until, holder.owner_id from mcp.tasks t
left join lateral (select a.owner_id from mcp.agents a
                   where a.tenant_id = $1 and a.agent_id = t.assigned_to and a.deregistered_at is null limit 1) holder on true
where t.tenant_id = $1 and t.task_id = any($2::uuid[]);

-- name: renew
-- Renews the leases of held tasks, each fenced by its attempt. $1 tenant, $2 task ids, $3 attempts, $4 agents.
-- It never waits for a row that somebody is moving, so it cannot be part of a deadlock; such a lease stays as it is.
with free as materialized (
    select h.task_id from unnest($2::uuid[], $3::integer[], $4::uuid[]) as c (task_id, attempt, agent_id)
    cross join lateral (select t.task_id from mcp.tasks t
                        where t.tenant_id = $1 and t.task_id = c.task_id and t.attempt = c.attempt
                          and t.assigned_to = c.agent_id and t.status in ('assigned', 'accepted', 'running')
                        limit 1 for no key update skip locked) h
)
update mcp.tasks t set lease_until = now() + make_interval(secs => t.lease_s)
where t.tenant_id = $1 and t.task_id = any(array(select free.task_id from free))
returning t.task_id, t.lease_until;

-- name: get_many
-- Tasks by id. $1 tenant, $2 ids.
select r.* from mcp.task_rows r where r.tenant_id = $1 and r.id = any($2::uuid[]);

-- name: page
-- A page of tasks, newest first, found by walking down the ids over $4 tasks at most. $1 tenant, $2 ids below this one,
-- $3 how many at most, then filters, each null for any: $5 statuses, $6 assignee, $7 creator, $8 type, $9 tag; $10 up to how
-- many bytes, as they are stored, and one task more. `found` is how many there were of $3.
select p.* from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.parameters) + pg_column_size(f.metadata) + pg_column_size(f.description)
               + coalesce(pg_column_size(f.result), 0) + coalesce(pg_column_size(f.error), 0))
           over (order by f.id desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select r.* from (
            select * from mcp.task_rows w where w.tenant_id = $1 and w.id < $2 order by w.id desc limit $4) r
        where ($5::text[] is null or r.status = any($5)) and ($6::uuid is null or r.assigned_to = $6)
          and ($7::uuid is null or r.created_by = $7) and ($8::text is null or r.type = $8)
          and ($9::text is null or $9 = any(r.tags))
        order by r.id desc limit $3) f) p
where coalesce(p.bytes_before, 0) < $10 order by p.id desc;

-- name: page_reach
-- The last task that a page has walked to, when it could not walk to the end. $1 tenant, $2 ids below this one, $3 how far.
select w.task_id from mcp.tasks w where w.tenant_id = $1 and w.task_id < $2 order by w.task_id desc limit 1 offset $3 - 1;

-- name: page_unfinished
-- The same for tasks that have not ended: however many have, these are found by their own indexes, of which only those are looked
-- into that are asked for. $4 to $9 as $5 to $10 above.
select p.* from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.parameters) + pg_column_size(f.metadata) + pg_column_size(f.description)
               + coalesce(pg_column_size(f.result), 0) + coalesce(pg_column_size(f.error), 0))
           over (order by f.id desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select r.* from (
            (select * from mcp.task_rows w
             where w.tenant_id = $1 and w.status = 'pending' and 'pending' = any($4::text[]) offset 0)
            union all
            (select * from mcp.task_rows h
             where h.tenant_id = $1 and h.status in ('assigned', 'accepted', 'running') and h.status = any($4::text[])
               and $4 && array['assigned', 'accepted', 'running'] offset 0)) r
        where r.id < $2 and ($5::uuid is null or r.assigned_to = $5)
          and ($6::uuid is null or r.created_by = $6) and ($7::text is null or r.type = $7)
          and ($8::text is null or $8 = any(r.tags))
        order by r.id desc limit $3) f) p
where coalesce(p.bytes_before, 0) < $9 order by p.id desc;

-- name: page_of_parent
-- The same for the children of one task, found by their own index. $4 parent, $5 to $10 as above.
select p.* from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.parameters) + pg_column_size(f.metadata) + pg_column_size(f.description)
               + coalesce(pg_column_size(f.result), 0) + coalesce(pg_column_size(f.error), 0))
           over (order by f.id desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select r.* from (select * from mcp.task_rows c where c.tenant_id = $1 and c.parent_id = $4 offset 0) r
        where r.id < $2 and ($5::text[] is null or r.status = any($5)) and ($6::uuid is null or r.assigned_to = $6)
          and ($7::uuid is null or r.created_by = $7) and ($8::text is null or r.type = $8)
          and ($9::text is null or $9 = any(r.tags))
        order by r.id desc limit $3) f) p
where coalesce(p.bytes_before, 0) < $10 order by p.id desc;

-- name: children
-- What a distributed parent's rule needs to know of its children. $1 tenant, $2 parents.
select t.parent_id, t.task_id, t.position, t.status, t.blocked from mcp.tasks t
where t.tenant_id = $1 and t.parent_id = any($2::uuid[]) order by t.parent_id, t.position;

-- name: results
-- Results of finished tasks. $1 tenant, $2 ids.
select t.task_id, t.result from mcp.tasks t where t.tenant_id = $1 and t.task_id = any($2::uuid[]);

-- name: lock_assignment
-- One at a time decides who gets what in a tenant: that keeps agents' concurrency exact on any number of nodes. $1 tenant.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text, 11));

-- name: is_any_waiting
-- Whether any task of a tenant waits for an agent: two probes, so that looking in vain is cheap. $1 tenant.
select exists (select from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.lane < 'blocked')
    or exists (select from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.lane > 'blocked');

-- name: lanes
-- The lanes with pending tasks: those of capabilities by a loose index scan, as many probes as lanes, then those that are
-- meant for one of these agents, in the order of their index: another index has all tasks of the tenant. $1 tenant, $2 the lane after
-- which the first sort begins, $3 how many of it at most, $4 agents.
with recursive lanes as (
    (select t.lane from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.lane > $2 collate "C"
     order by t.lane limit 1)
    union all
    select (select t.lane from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.lane > l.lane
            order by t.lane limit 1)
    from lanes l where l.lane is not null
), own as (
    select t.lane from unnest($4::uuid[]) as agent (id)
    cross join lateral (select w.lane from mcp.tasks w where w.tenant_id = $1 and w.status = 'pending'
                        and w.lane = ('agent:' || agent.id) collate "C" order by w.priority, w.ready_at limit 1) t
)
(select lane from lanes where lane is not null and lane <> 'blocked' limit $3) union all select lane from own;

-- name: heads
-- What a plan needs to know of the first ready tasks of each lane, highest priority first, then oldest. $1 tenant, $2 lanes,
-- $3 how many of each, $4 for each the place of its agents in $5: those that could take its tasks, each set joined by commas,
-- $6 how many tasks in all. A task that has excluded all agents of its lane is passed over. Nothing is locked yet: only what is
-- given away will be.
select h.task_id, h.strategy, h.required_capabilities, h.target_agent_id, h.excluded_agent_ids
from unnest($2::text[], $3::integer[], $4::integer[]) as lane (name, room, able_place)
cross join lateral (select string_to_array(($5::text[])[lane.able_place], ',')::uuid[] as ids offset 0) able
cross join generate_series(5, 1, -1) as level (priority)
cross join lateral (
    select t.task_id, t.ready_at, t.strategy, t.required_capabilities, t.target_agent_id, t.excluded_agent_ids
    from mcp.tasks t
    where t.tenant_id = $1 and t.status = 'pending' and t.lane = lane.name collate "C" and t.priority = level.priority
      and t.ready_at <= now() and not t.excluded_agent_ids @> able.ids
    order by t.ready_at, t.task_id limit lane.room) h
order by level.priority desc, h.ready_at, h.task_id limit $6;

-- name: lock_waiting
-- Locks those of these tasks that still wait and that nobody else is moving: the first ones, up to the one by which they come
-- to so many bytes. $1 tenant, $2 ids, $3 bytes. `reached` tells how many that were, whether they could be locked or not.
with recursive counted as (
    select 0 as place, 0::bigint as bytes
    union all
    select c.place + 1, c.bytes + coalesce(next.bytes, 0) from counted c
    left join lateral (
        select octet_length(t.parameters::text) + octet_length(t.metadata::text) + octet_length(t.description)
               + coalesce(octet_length(t.error::text), 0) as bytes
        from mcp.tasks t where t.tenant_id = $1 and t.task_id = ($2::uuid[])[c.place + 1] limit 1) next on true
    where c.place < cardinality($2::uuid[]) and c.bytes < $3
)
select r.*, (select max(c.place) from counted c) as reached from mcp.task_rows r
where r.tenant_id = $1 and r.id = any(($2::uuid[])[1:(select max(c.place) from counted c)])
  and r.status = 'pending' and not r.blocked
order by r.id for update skip locked;

-- name: overdue_ids
-- Held tasks whose lease or time has run out, and pending ones past their deadline. $1 tenant, $2 how many.
(select t.task_id from mcp.tasks t
 where t.tenant_id = $1 and t.status in ('assigned', 'accepted', 'running')
   and least(t.lease_until, t.timeout_at, t.deadline) < now() limit $2)
union all
(select t.task_id from mcp.tasks t
 where t.tenant_id = $1 and t.status = 'pending' and t.deadline is not null and t.deadline < now()
 order by t.deadline limit $2);

-- name: attempts
-- The ended attempts of a task, in order. $1 tenant, $2 task, $3 how many at most.
select a.attempt, a.agent_id, who.name as agent_name, a.outcome, a.error, a.assigned_at, a.ended_at from mcp.task_attempts a
left join lateral (select g.name from mcp.agents g where g.tenant_id = $1 and g.agent_id = a.agent_id limit 1) who on true
where a.tenant_id = $1 and a.task_id = $2 order by a.attempt limit $3;

-- name: delegations
-- How a task was handed on, in order. $1 tenant, $2 task.
select d.depth, d.attempt, d.from_agent_id, d.to_agent_id, d.capabilities, d.kind, d.reason, d.delegated_at
from mcp.task_delegations d where d.tenant_id = $1 and d.task_id = $2 order by d.depth;

-- name: past_holders
-- The agents that a task was delegated by: giving it back to one of them would be a cycle. $1 tenant, $2 task.
select d.from_agent_id from mcp.task_delegations d
where d.tenant_id = $1 and d.task_id = $2 and d.from_agent_id is not null;

-- name: stats
-- Counts of tasks by status, and how long finished ones took, since a time. Ids hold the time of their making, so they are a
-- range of the primary key. $1 tenant, $2 since, $3 the lowest id of that time.
select t.status, count(*) as count, avg(extract(epoch from t.finished_at - t.created_at))::double precision as mean_s
from mcp.tasks t where t.tenant_id = $1 and t.task_id >= $3 and t.created_at >= $2 group by t.status;

-- name: open_parents
-- Which of these tasks may get children: they have not ended, and no rule counts their children. They are kept from being
-- cancelled until the children are committed, so that a cancellation finds them all. $1 tenant, $2 ids.
select t.task_id from mcp.tasks t where t.tenant_id = $1 and t.task_id = any($2::uuid[]) and t.distribution is null
  and t.status in ('pending', 'assigned', 'accepted', 'running')
order by t.task_id for key share;
