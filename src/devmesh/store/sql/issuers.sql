-- name: by_issuer
-- Who signs tokens under these names, those first that act in the tenant named with them, and $3 of each at the most.
-- $1 names, $2 tenants by id or name, or null.
select q.ordinal, i.tenant_id, t.name as tenant_name, i.issuer_id, i.issuer, i.algorithm, i.secret, i.jwks_url, i.audience
from unnest($1::text[], $2::text[]) with ordinality as q (issuer, tenant, ordinal)
cross join lateral (select i.*, coalesce(q.tenant in (n.name, n.tenant_id::text), false) as is_named
                    from mcp.token_issuers i join mcp.tenants n on n.tenant_id = i.tenant_id
                    where i.issuer = q.issuer order by is_named desc, i.tenant_id, i.issuer_id limit $3) i
join mcp.tenants t on t.tenant_id = i.tenant_id;

-- name: bearers
-- The tenants that tokens act in, by id or name, and the agents that they are bound to, by id or name.
-- $1 tenant ids, $2 tenant names, $3 agent ids, $4 agent names.
select q.ordinal, t.tenant_id, t.status = 'suspended' as is_suspended, a.agent_id
from unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[])
     with ordinality as q (tenant_id, tenant_name, agent_id, agent_name, ordinal)
left join mcp.tenants t on t.tenant_id = coalesce(q.tenant_id, (select n.tenant_id from mcp.tenants n where n.name = q.tenant_name))
left join lateral (
    select i.agent_id from mcp.agents i
    where i.tenant_id = t.tenant_id and i.agent_id = q.agent_id and i.deregistered_at is null
    union all
    select n.agent_id from mcp.agents n
    where n.tenant_id = t.tenant_id and n.name = q.agent_name and coalesce(n.deregistered_at, 'infinity') = 'infinity'
) a on true;

-- name: invalid
-- Which of these tokens may no longer be used: their tenant is suspended, or their issuer is gone.
-- $1 tenants, $2 issuers; null: the operator's.
select q.ordinal from unnest($1::uuid[], $2::uuid[]) with ordinality as q (tenant_id, issuer_id, ordinal)
left join mcp.tenants t on t.tenant_id = q.tenant_id
left join mcp.token_issuers i on i.tenant_id = q.tenant_id and i.issuer_id = q.issuer_id
where t.status is distinct from 'active' or (q.issuer_id is not null and i.issuer_id is null);

-- name: insert
-- Creates an issuer. No row: the name is taken. $1 tenant, $2 issuer's id, $3 name, $4 the claim `iss`, $5 algorithm, $6 sealed
-- secret, $7 address of the keys, $8 audience.
insert into mcp.token_issuers (tenant_id, issuer_id, name, issuer, algorithm, secret, jwks_url, audience)
values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (tenant_id, name) do nothing
returning issuer_id as id, name, issuer, algorithm, jwks_url, audience, created_at;

-- name: count
-- How many issuers a tenant has, up to one more than it may. $1 tenant, $2 how many it may.
select count(*) from (select from mcp.token_issuers i where i.tenant_id = $1 limit $2 + 1) counted;

-- name: page
-- A page of issuers, newest first. $1 tenant, $2 ids below this one, $3 how many.
select i.issuer_id as id, i.name, i.issuer, i.algorithm, i.jwks_url, i.audience, i.created_at
from mcp.token_issuers i where i.tenant_id = $1 and ($2::uuid is null or i.issuer_id < $2) order by i.issuer_id desc limit $3;

-- name: delete
-- Deletes an issuer. $1 tenant, $2 issuer's id.
delete from mcp.token_issuers i where i.tenant_id = $1 and i.issuer_id = $2
returning i.issuer_id as id, i.name, i.issuer, i.algorithm, i.jwks_url, i.audience, i.created_at;
