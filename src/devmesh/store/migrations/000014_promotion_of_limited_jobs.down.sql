drop index mcp.jobs_limited_unpromoted;
