-- name: insert_many
-- Appends to the audit log. $1 tenant, $2 a JSON array of entries.
insert into mcp.audit_log (tenant_id, audit_id, key_id, agent_id, address, operation, outcome, detail)
select $1, a.* from json_to_recordset($2) as a (audit_id uuid, key_id uuid, agent_id uuid, address text, operation text,
    outcome text, detail json);

-- name: page
-- A page of the audit log, newest first. $1 tenant, $2 ids below this one, $3 how many.
select a.audit_id as id, a.at, a.key_id, a.agent_id, a.address, a.operation, a.outcome, a.detail from mcp.audit_log a
where a.tenant_id = $1 and ($2::uuid is null or a.audit_id < $2) order by a.audit_id desc limit $3;
