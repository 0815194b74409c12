-- Jobs that wait for a place of their concurrency key are promoted as well: which have waited for long, by priority.
--
-- works with: 000001

create index jobs_limited_unpromoted on mcp.jobs_limited (tenant_id, priority, run_at, job_id) where priority <= 3 and not is_delayed;
