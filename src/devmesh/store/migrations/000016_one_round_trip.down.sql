drop function mcp.complete_jobs(uuid, uuid[], integer[], text[], boolean);
drop function mcp.claim_jobs(uuid, uuid, uuid, text[], integer, double precision, timestamptz[], timestamptz, boolean);
