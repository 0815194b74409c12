-- Removes everything that the foundation made. Destroys all data.
drop view mcp.task_rows, mcp.agents_now;
drop function mcp.append_events(uuid, text[], text[], text[]);
drop table mcp.audit_log, mcp.events, mcp.idempotency_keys, mcp.task_delegations, mcp.task_attempts, mcp.tasks,
           mcp.agent_sessions, mcp.agents, mcp.auth_lockouts, mcp.auth_failures, mcp.api_keys, mcp.tenants;
drop function mcp.ensure_partitions(text, integer);
drop function mcp.task_lane(boolean, uuid, text, text[]);
