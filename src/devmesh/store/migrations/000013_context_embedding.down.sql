drop index mcp.execution_contexts_unembedded;
