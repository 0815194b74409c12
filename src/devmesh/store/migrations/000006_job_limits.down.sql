drop view mcp.job_places;
drop table mcp.queue_tokens, mcp.job_unique_keys, mcp.job_limits, mcp.job_slots, mcp.jobs_limited;
alter table mcp.queues drop column rate_per_s, drop column burst;
alter table mcp.jobs drop column unique_key, drop column concurrency_key, drop column concurrency_limit;
