drop table mcp.snapshot_policies, mcp.state_snapshot_rows, mcp.state_snapshots;
