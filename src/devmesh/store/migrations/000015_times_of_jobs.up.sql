-- New jobs are dated by the database where they are of now, as they mostly are: their writers need not send the time with each.
--
-- works with: 000001

alter table mcp.jobs alter column created_at set default now(), alter column run_at set default now();
alter table mcp.jobs_ready alter column created_at set default now(), alter column run_at set default now();
