drop function mcp.similarity(real[], real[]);
drop table mcp.execution_contexts;
