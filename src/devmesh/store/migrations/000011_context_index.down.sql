drop table mcp.context_points_gone;
drop index mcp.execution_contexts_unindexed;
alter table mcp.execution_contexts drop column sent_at, drop column indexed_at;
