drop table mcp.node_connections;
drop table mcp.rate_buckets;
alter table mcp.api_keys drop column rate_per_s;
alter table mcp.tenants drop column rate_per_s;
