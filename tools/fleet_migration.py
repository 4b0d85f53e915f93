#!/usr/bin/env python3
"""Write the newest step of the fleet's migrations anew, from the difference between the step before and schema.py.

    python tools/fleet_migration.py

It rewrites what stands between that step's two marks; never do this to a step that was released.

Moving or changing what is stored (renames, data) is written by hand outside of the marks.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations, ops
from alembic.script import ScriptDirectory

from edgekit.fleet import migrations
from edgekit.fleet.schema import metadata

FOLDER = Path(migrations.__file__).parent
BEGIN, END = "    # what schema.py says: tools/fleet_migration.py\n", "    # end of what schema.py says\n"


def main() -> int:
    """Rewrite the file; says which."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    steps = list(ScriptDirectory.from_config(config).walk_revisions())
    newest = steps[0]
    with sa.create_engine("sqlite://").connect() as connection:
        context = MigrationContext.configure(connection)
        for step in reversed(steps[1:]):
            with Operations.context(context):
                step.module.upgrade()
        with Operations.context(context):
            newest.module.before()
        code = _difference(connection)
    path = Path(newest.path)
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    path.write_text(head + BEGIN + code + END + rest.split(END)[1], encoding="utf-8")
    for tidy in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *tidy, str(path)], check=True)
    print(path)
    return 0


def _difference(connection: sa.Connection) -> str:
    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
        return not (kind == "table" and (name or "").startswith("old_"))

    context = MigrationContext.configure(connection, opts={"include_object": ours})
    script = produce_migrations(context, metadata)
    if script.upgrade_ops is None:
        return "    pass\n"
    _fill(script.upgrade_ops)
    code = render_python_code(script.upgrade_ops)
    lines = [line for line in code.splitlines() if not line.strip().startswith("#")]
    return "\n".join(f"    {re.sub(r'^    ', '', line)}".rstrip() for line in lines) + "\n"


def _fill(container: Any) -> None:
    """A new column that may not be empty needs a value for the rows that are there."""
    for op in container.ops:
        if isinstance(op, ops.ModifyTableOps):
            _fill(op)
        elif isinstance(op, ops.AddColumnOp) and not op.column.nullable:
            default = op.column.default
            value = default.arg if isinstance(default, sa.ColumnDefault) else None
            if not isinstance(value, int):
                raise SystemExit(f"{op.table_name}.{op.column.name} needs a default that is a number")
            op.column.server_default = sa.DefaultClause(str(int(value)))


if __name__ == "__main__":
    sys.exit(main())
