drop table mcp.worker_alerts, mcp.worker_health_logs;
alter table mcp.workers
    drop column stale_after_s, drop column health_score, drop column missed_beats, drop column failure_count, drop column last_failure_at,
    drop column failure_level, drop column failure_level_at;
