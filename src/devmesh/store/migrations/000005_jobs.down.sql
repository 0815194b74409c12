drop table mcp.workers, mcp.queues, mcp.dead_letter_queue, mcp.job_executions, mcp.job_dependencies, mcp.jobs_blocked,
    mcp.jobs_leased, mcp.jobs_ready, mcp.jobs;
