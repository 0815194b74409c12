drop table mcp.schedules;
