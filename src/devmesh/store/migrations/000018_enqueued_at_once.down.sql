drop function mcp.enqueue_jobs(uuid, uuid[], uuid[], integer[], integer[], smallint[], smallint[], text[], text[], text[], text[], text[],
                               text, text[], bytea[], text[], text[], text[], text[]);
