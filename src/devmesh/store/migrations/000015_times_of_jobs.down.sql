alter table mcp.jobs_ready alter column created_at drop default, alter column run_at drop default;
alter table mcp.jobs alter column created_at drop default, alter column run_at drop default;
