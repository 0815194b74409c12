alter table mcp.workers drop column instance_id;
