-- name: register
-- Registers an agent, or updates the one of that name if the same owner registered it. No row: the name is another owner's.
-- $1 tenant, $2 agent, $3 owner, $4 name, $5 kind, $6 description, $7 capabilities, $8 concurrency, $9 metadata, $10 card,
-- $11 whether any owner may.
insert into mcp.agents as a (tenant_id, agent_id, owner_id, name, kind, description, capabilities, concurrency, metadata, card,
                             heartbeat_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now())
on conflict (tenant_id, name) where coalesce(deregistered_at, 'infinity') = 'infinity' do update set
    kind = excluded.kind, description = excluded.description, capabilities = excluded.capabilities,
    concurrency = excluded.concurrency, metadata = excluded.metadata, card = excluded.card, heartbeat_at = now(),
    silent_since = null, draining = false, updated_at = now(), version = a.version + 1
where a.owner_id = excluded.owner_id or $11
returning agent_id;

-- name: owners
-- Which keys registered agents. $1 tenant, $2 agents.
select a.agent_id, a.owner_id from mcp.agents a
where a.tenant_id = $1 and a.agent_id = any($2::uuid[]) and a.deregistered_at is null;

-- name: kept
-- Those of these agents that have not left, kept from leaving until the transaction ends, in agent order. $1 tenant, $2 agents.
select a.agent_id from mcp.agents a
where a.tenant_id = $1 and a.agent_id = any($2::uuid[]) and a.deregistered_at is null order by a.agent_id for share;

-- name: get_many
-- Agents as they are now, in the order of core.agents.Agent's fields. $1 tenant, $2 agents.
select n.agent_id as id, n.name, n.kind, n.description, n.capabilities, n.concurrency, n.metadata, n.card, n.status,
       n.active_tasks, n.sessions, n.load, n.metrics, n.version, n.created_at, n.updated_at,
       greatest(n.heartbeat_at, n.seen_at) as last_seen_at
from mcp.agents_now n where n.tenant_id = $1 and n.agent_id = any($2::uuid[]) and n.deregistered_at is null;

-- name: page
-- A page of agents, newest first. $1 tenant, $2 ids below this one, $3 how many, $4 kind or null, $5 statuses or null,
-- $6 capabilities that they must have, or null.
select n.agent_id as id, n.name, n.kind, n.description, n.capabilities, n.concurrency, n.metadata, n.card, n.status,
       n.active_tasks, n.sessions, n.load, n.metrics, n.version, n.created_at, n.updated_at,
       greatest(n.heartbeat_at, n.seen_at) as last_seen_at
from mcp.agents_now n
where n.tenant_id = $1 and n.deregistered_at is null and ($2::uuid is null or n.agent_id < $2)
  and ($4::text is null or n.kind = $4) and ($5::text[] is null or n.status = any($5))
  and ($6::text[] is null or n.capabilities @> $6)
order by n.agent_id desc limit $3;

-- name: lock
-- Locks an agent that has not left, and says in which version it is. $1 tenant, $2 agent.
select a.version from mcp.agents a where a.tenant_id = $1 and a.agent_id = $2 and a.deregistered_at is null for no key update;

-- name: update
-- Changes what an agent says of itself that this transaction has locked; null keeps. No row when it says so already. $1 tenant,
-- $2 agent, $3 description, $4 capabilities, $5 concurrency, $6 metadata, $7 card, $8 draining, $9 suspended.
update mcp.agents a set
    description = coalesce($3, a.description), capabilities = coalesce($4, a.capabilities),
    concurrency = coalesce($5, a.concurrency), metadata = coalesce($6, a.metadata), card = coalesce($7, a.card),
    draining = coalesce($8, a.draining), suspended = coalesce($9, a.suspended), updated_at = now(), version = a.version + 1
where a.tenant_id = $1 and a.agent_id = $2
  and (coalesce($3, a.description), coalesce($4, a.capabilities), coalesce($5, a.concurrency), coalesce($6, a.metadata),
       coalesce($7, a.card), coalesce($8, a.draining), coalesce($9, a.suspended))
      is distinct from (a.description, a.capabilities, a.concurrency, a.metadata, a.card, a.draining, a.suspended);

-- name: heartbeat_many
-- Notes that agents live, in agent order. $1 tenant, $2 agents, $3 loads, $4 metrics; null keeps what was said before.
with locked as materialized (
    select l.agent_id from mcp.agents l where l.tenant_id = $1 and l.agent_id = any($2::uuid[]) and l.deregistered_at is null
    order by l.agent_id for no key update
)
update mcp.agents a set heartbeat_at = now(), silent_since = null,
    load = coalesce(($3::double precision[])[array_position($2::uuid[], a.agent_id)], a.load),
    metrics = coalesce((($4::text[])[array_position($2::uuid[], a.agent_id)])::jsonb, a.metrics)
where a.tenant_id = $1 and a.agent_id = any(array(select locked.agent_id from locked));

-- name: deregister
-- An agent leaves for good; its name is free again. $1 tenant, $2 agent, $3 the version that it must have, or null.
update mcp.agents a set deregistered_at = now(), updated_at = now(), version = a.version + 1
where a.tenant_id = $1 and a.agent_id = $2 and a.deregistered_at is null and ($3::integer is null or a.version = $3)
returning a.agent_id;

-- name: tasks_of
-- The tasks that an agent holds, and those that wait for it alone. $1 tenant, $2 agent, $3 how many of the latter.
select t.task_id from mcp.tasks t where t.tenant_id = $1 and t.assigned_to = $2
  and t.status in ('assigned', 'accepted', 'running')
union all
(select t.task_id from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.target_agent_id = $2 limit $3);

-- name: tasks_left_behind
-- Tasks that wait for agents which have left for good, found by their lanes, with these agents. $1 tenant, $2 how many.
with recursive lanes as (
    (select t.lane from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.lane > 'agent:' collate "C"
     order by t.lane limit 1)
    union all
    select (select t.lane from mcp.tasks t where t.tenant_id = $1 and t.status = 'pending' and t.lane > l.lane
            order by t.lane limit 1)
    from lanes l where l.lane < 'agent;' collate "C"
)
select h.task_id, gone.agent_id from lanes l
cross join lateral (select a.agent_id from mcp.agents a
                    where a.tenant_id = $1 and a.agent_id = substring(l.lane from '^agent:(.*)$')::uuid
                      and a.deregistered_at is not null limit 1) gone
cross join lateral (select t.task_id from mcp.tasks t
                    where t.tenant_id = $1 and t.status = 'pending' and t.lane = l.lane limit $2) h
where l.lane < 'agent;' collate "C"
limit $2;

-- name: candidates
-- Agents with room for work, as the assigner sees them. $1 tenant.
select n.agent_id, n.capabilities, n.concurrency, n.active_tasks, n.last_assigned_at, n.status = 'degraded' as is_degraded
from mcp.agents_now n
where n.tenant_id = $1 and n.deregistered_at is null and n.status in ('available', 'degraded')
  and n.active_tasks < n.concurrency;

-- name: candidates_of
-- Those of these agents that have room for work and are there. $1 tenant, $2 agents, $3 whether asking proves that they are.
select n.agent_id, n.capabilities, n.concurrency, n.active_tasks, n.last_assigned_at, n.status = 'degraded' as is_degraded
from mcp.agents_now n
where n.tenant_id = $1 and n.agent_id = any($2::uuid[]) and n.deregistered_at is null and not n.draining and not n.suspended
  and ($3 or n.status <> 'offline') and n.active_tasks < n.concurrency;

-- name: waiting_for
-- The agents that could do a task, counted by what keeps each from it: its status, full where it has no room, or excluded.
-- $1 tenant, $2 the capabilities, $3 the only agent that may, or null, $4 the agents that may not.
select case when n.agent_id = any($4::uuid[]) then 'excluded'
            when n.status in ('available', 'degraded') and n.active_tasks >= n.concurrency then 'busy'
            else n.status end as state, count(*)::integer as count
from mcp.agents_now n
where n.tenant_id = $1 and n.deregistered_at is null
  and case when $3::uuid is null then n.capabilities @> $2::text[] else n.agent_id = $3 end
group by 1;

-- name: performance
-- The last attempts of agents: how many, how many ended well, how long they took. $1 tenant, $2 agents, $3 how many of each.
select agent.id as agent_id, count(p.outcome)::integer as attempts,
       (count(*) filter (where p.outcome = 'completed'))::double precision / nullif(count(p.outcome), 0) as success_rate,
       (avg(extract(epoch from p.ended_at - p.assigned_at)) filter (where p.outcome = 'completed'))::double precision
           as mean_duration_s
from unnest($2::uuid[]) as agent (id)
left join lateral (
    select a.outcome, a.assigned_at, a.ended_at from mcp.task_attempts a
    where a.tenant_id = $1 and a.agent_id = agent.id and a.outcome in ('completed', 'failed', 'lease_expired', 'timed_out')
    order by a.ended_at desc limit $3) p on true
group by agent.id;

-- name: note_assigned
-- Remembers when agents were last given work, in agent order. $1 tenant, $2 agents.
update mcp.agents a set last_assigned_at = now()
where a.tenant_id = $1 and a.agent_id = any(array(
    select l.agent_id from mcp.agents l where l.tenant_id = $1 and l.agent_id = any($2::uuid[])
    order by l.agent_id for no key update));

-- name: note_alive
-- Agents that ask for work live: the same as a heartbeat, but at most every 10 s and never waited for. $1 tenant, $2 agents.
update mcp.agents a set heartbeat_at = now(), silent_since = null
where a.tenant_id = $1 and a.agent_id = any(array(
    select l.agent_id from mcp.agents l where l.tenant_id = $1 and l.agent_id = any($2::uuid[])
      and (coalesce(l.heartbeat_at, '-infinity') < now() - interval '10 s' or l.silent_since is not null) for no key update skip locked));

-- name: announce
-- Finds those of these agents whose derived status differs from the one last told, and notes the new one. $1 tenant, $2 agents.
with changed as materialized (
    select n.agent_id, n.status from mcp.agents_now n
    where n.tenant_id = $1 and n.agent_id = any($2::uuid[]) and n.status <> n.announced_status and n.deregistered_at is null
), locked as materialized (
    select l.agent_id, l.announced_status as before,
           (select c.status from changed c where c.agent_id = l.agent_id) as status
    from mcp.agents l
    where l.tenant_id = $1 and l.agent_id = any(array(select c.agent_id from changed c)) order by l.agent_id for no key update
)
update mcp.agents a set announced_status = l.status from locked l
where a.tenant_id = $1 and a.agent_id = l.agent_id and l.before <> l.status
  and a.agent_id = any(array(select c.agent_id from changed c))
returning a.agent_id, l.status, l.before;

-- name: unannounced
-- The agents whose derived status differs from the one last told. $1 tenant.
select n.agent_id from mcp.agents_now n
where n.tenant_id = $1 and n.deregistered_at is null and n.status <> n.announced_status;

-- name: resolve
-- Agents by id or by name. $1 tenant, $2 ids, $3 names.
select a.agent_id, a.owner_id, a.name from mcp.agents a
where a.tenant_id = $1 and a.agent_id = any($2::uuid[]) and a.deregistered_at is null
union
select a.agent_id, a.owner_id, a.name from mcp.agents a
where a.tenant_id = $1 and a.name = any($3::text[]) and coalesce(a.deregistered_at, 'infinity') = 'infinity';

-- name: open_sessions
-- Connections stand for agents, each for one: the next takes the place of one that has left. $1 tenant, $2 node, $3 sessions,
-- $4 their agents.
insert into mcp.agent_sessions (tenant_id, session_id, agent_id, node_id)
select $1, s.session_id, s.agent_id, $2 from unnest($3::uuid[], $4::uuid[]) as s (session_id, agent_id)
on conflict (tenant_id, session_id) do update set agent_id = excluded.agent_id;

-- name: close_sessions
-- Connections are gone. An agent that is left without any is not there any more, whenever it was last heard of.
-- $1 tenant, $2 sessions.
with closed as (
    delete from mcp.agent_sessions s where s.tenant_id = $1 and s.session_id = any($2::uuid[]) returning s.session_id, s.agent_id
), alone as materialized (
    select distinct c.agent_id from closed c
    left join lateral (select true as is_there from mcp.agent_sessions o where o.tenant_id = $1 and o.agent_id = c.agent_id
                       and o.session_id <> all($2::uuid[]) limit 1) others on true
    where others.is_there is null
)
update mcp.agents a set heartbeat_at = null
where a.tenant_id = $1 and a.agent_id = any(array(
    select l.agent_id from mcp.agents l where l.tenant_id = $1 and l.agent_id = any(array(select o.agent_id from alone o))
    order by l.agent_id for no key update))
returning a.agent_id;

-- name: renew_sessions
-- One node renews the presence of all its connected agents. $1 tenant, $2 node.
update mcp.agent_sessions s set seen_at = now() where s.tenant_id = $1 and s.node_id = $2;

-- name: forget_sessions
-- Removes sessions, of any tenant, whose node has not renewed them for long: it died.
delete from mcp.agent_sessions s where s.seen_at < now() - interval '10 minutes';
