"""The statements inside of the schema's own functions, so that their plans can be read as those of the named blocks are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tests.conftest import run_sql

from devmesh.store.statements import Statement

SOURCES = """
select json_agg(json_build_object('name', p.proname, 'arguments', pg_get_function_arguments(p.oid), 'source', p.prosrc))
from pg_proc p join pg_language l on l.oid = p.prolang
where p.pronamespace = 'mcp'::regnamespace and l.lanname = 'plpgsql'
  and p.proname = any('{append_events,claim_jobs,complete_jobs,fitting_jobs}')
"""
# Where a statement of PL/pgSQL ends: not at the `then` or `else` of a CASE, which stand in a line with others.
PARTS = re.compile(r";|\b(?:loop|then|else|begin)\s*$", re.MULTILINE)
SQL = re.compile(r"(?:\bexists\s*\(\s*)?\b(?:with \w+ as|select|insert into|update|delete from)\b.*", re.DOTALL)
READS = re.compile(r"\b(?:from|into|update) mcp\.\w+ ")
INTO = re.compile(r"\binto (?!mcp\.)[\w, ]+?(?=\s+from\b|$)")
DECLARED = re.compile(r"^\s*(\w+) ((?!record\b)[a-z][\w ]*(?:\[\])?)(?: :=.*)?$")
FIELDS = {  # of records
    "queue_found.queue": "text", "queue_found.burst": "integer", "queue_found.rate_per_s": "float8",
    "queue_found.due": "timestamptz[]", "told.queue": "text", "told.count": "integer",
}  # fmt: skip


def statements_in_functions(dsn: str) -> Iterator[Statement]:
    """Each statement that reads or writes a table, with a parameter in the place of each variable."""
    for function in json.loads(run_sql(dsn, SOURCES)):
        source = re.sub(r"--.*", "", function["source"])
        declarations, _, body = source.partition("begin\n")
        declarations = declarations.partition("declare")[2]
        arguments = [argument for argument in function["arguments"].split(", ") if argument.startswith("p_")]
        variables = dict(argument.split(" ", 1) for argument in arguments) | FIELDS | {"step": "integer"}
        variables |= {found[1]: found[2] for line in declarations.split(";") if (found := DECLARED.match(line.strip()))}
        for number, part in enumerate(PARTS.split(body), 1):
            if READS.search(part) and (found := SQL.search(part)):
                text = found[0] if not found[0].startswith("exists") else f"select {found[0]}"
                unclosed = text.count("(") - text.count(")")
                yield _with_parameters(f"{function['name']} {number}", text + ")" * unclosed, variables)


def _with_parameters(name: str, text: str, variables: dict[str, str]) -> Statement:
    text = INTO.sub("", text.strip())
    for ordinal, (variable, type_) in enumerate(variables.items(), 1):
        text = re.sub(rf"(?<![\w.]){re.escape(variable)}\b(?!\s*\()", f"${ordinal}::{type_}", text)
    used = sorted({int(number) for number in re.findall(r"\$(\d+)", text)})
    for place, number in enumerate(used, 1):
        text = re.sub(rf"\${number}\b", f"${place}", text)
    return Statement(name, re.sub(r"\$(\d+)::([\w ]+\[\])\[", r"($\1::\2)[", text), "a statement of a function")
