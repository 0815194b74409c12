-- name: all_active
-- Every tenant that is not suspended.
select t.tenant_id from mcp.tenants t where t.status = 'active' order by t.tenant_id;

-- name: with_pending
-- Tenants with a task that waits, found by one probe each.
select t.tenant_id from mcp.tenants t
where t.status = 'active' and exists (select 1 from mcp.tasks k where k.tenant_id = t.tenant_id and k.status = 'pending');

-- name: insert
-- Creates a tenant. No row: the name is taken. $1 tenant, $2 name.
insert into mcp.tenants (tenant_id, name) values ($1, $2) on conflict (name) do nothing
returning tenant_id as id, name, status, created_at;

-- name: by_name
-- A tenant by its name. $1 name.
select t.tenant_id as id, t.name, t.status, t.created_at from mcp.tenants t where t.name = $1;

-- name: page
-- All tenants, newest first. $1 ids below this one, $2 how many.
select t.tenant_id as id, t.name, t.status, t.created_at from mcp.tenants t
where ($1::uuid is null or t.tenant_id < $1) order by t.tenant_id desc limit $2;

-- name: suspend
-- Suspends a tenant, or lifts the suspension. $1 tenant, $2 status.
update mcp.tenants t set status = $2 where t.tenant_id = $1
returning t.tenant_id as id, t.name, t.status, t.created_at;
