"""Names as numbers, roll-ups, presence; users, rollouts, alerts, the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edgekit.fleet.migrations.records_of_0001 import bring_over, set_aside
from edgekit.fleet.migrations.timescale import make_hypertables

revision, down_revision = "0002", "0001"

_REFUSE = "BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END"
_FUNCTION = (
    "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'audit is append-only'; END $$"
)
_TRIGGER = (
    "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()"
)
_APPEND_ONLY = {
    "sqlite": (
        f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {_REFUSE}",
        f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {_REFUSE}",
    ),
    "postgresql": (_FUNCTION, _TRIGGER),
}


def upgrade() -> None:
    """The tables, and what is stored brought over."""
    before()
    tables()
    connection = op.get_bind()
    bring_over(connection)
    for statement in _APPEND_ONLY[connection.dialect.name]:
        op.execute(sa.text(statement))
    op.execute(sa.text("DELETE FROM facts WHERE key = 'schema'"))
    make_hypertables(connection)


def before() -> None:
    """What must be out of the way."""
    set_aside(op.get_bind())


def tables() -> None:
    """Create, change and drop."""
    # what schema.py says: tools/fleet_migration.py
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("device", sa.Integer(), nullable=True),
        sa.Column("grouped", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("clear_since", sa.Float(), nullable=True),
        sa.Column("updated", sa.Float(), nullable=False),
        sa.Column("told", sa.String(length=16), nullable=True),
        sa.Column("sent", sa.Float(), nullable=True),
        sa.Column("resolved", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("alerts_by_end", "alerts", ["resolved"], unique=False)
    op.create_index("alerts_by_state", "alerts", ["state", "rule"], unique=False)
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_by_subject", "audit", ["subject", "id"], unique=False)
    op.create_table(
        "fleet_hours",
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("profile", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("inputs_dropped", sa.BigInteger(), nullable=False),
        sa.Column("answers_lost", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("nan_confidences", sa.BigInteger(), nullable=False),
        sa.Column("exits", sa.LargeBinary(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("latency_sum_ms", sa.Float(), nullable=False),
        sa.Column("energy_mj", sa.Float(), nullable=False),
        sa.Column("energy_requests", sa.BigInteger(), nullable=False),
        sa.Column("energy_kinds", sa.SmallInteger(), nullable=False),
        sa.Column("energy_on", sa.Integer(), nullable=True),
        sa.Column("energy_why", sa.Integer(), nullable=True),
        sa.Column("busy_s", sa.Float(), nullable=False),
        sa.Column("span_s", sa.Float(), nullable=False),
        sa.Column("throttled_s", sa.Float(), nullable=False),
        sa.Column("under_voltage_s", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("at", "profile", "bundle"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "fleet_minutes",
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("profile", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("inputs_dropped", sa.BigInteger(), nullable=False),
        sa.Column("answers_lost", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("nan_confidences", sa.BigInteger(), nullable=False),
        sa.Column("exits", sa.LargeBinary(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("latency_sum_ms", sa.Float(), nullable=False),
        sa.Column("energy_mj", sa.Float(), nullable=False),
        sa.Column("energy_requests", sa.BigInteger(), nullable=False),
        sa.Column("energy_kinds", sa.SmallInteger(), nullable=False),
        sa.Column("energy_on", sa.Integer(), nullable=True),
        sa.Column("energy_why", sa.Integer(), nullable=True),
        sa.Column("busy_s", sa.Float(), nullable=False),
        sa.Column("span_s", sa.Float(), nullable=False),
        sa.Column("throttled_s", sa.Float(), nullable=False),
        sa.Column("under_voltage_s", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("at", "profile", "bundle"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "fleet_totals",
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("profile", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("inputs_dropped", sa.BigInteger(), nullable=False),
        sa.Column("answers_lost", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("nan_confidences", sa.BigInteger(), nullable=False),
        sa.Column("exits", sa.LargeBinary(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("latency_sum_ms", sa.Float(), nullable=False),
        sa.Column("energy_mj", sa.Float(), nullable=False),
        sa.Column("energy_requests", sa.BigInteger(), nullable=False),
        sa.Column("energy_kinds", sa.SmallInteger(), nullable=False),
        sa.Column("energy_on", sa.Integer(), nullable=True),
        sa.Column("energy_why", sa.Integer(), nullable=True),
        sa.Column("busy_s", sa.Float(), nullable=False),
        sa.Column("span_s", sa.Float(), nullable=False),
        sa.Column("throttled_s", sa.Float(), nullable=False),
        sa.Column("under_voltage_s", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("at", "profile", "bundle"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "hours",
        sa.Column("device", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("inputs_dropped", sa.BigInteger(), nullable=False),
        sa.Column("answers_lost", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("nan_confidences", sa.BigInteger(), nullable=False),
        sa.Column("exits", sa.LargeBinary(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("latency_sum_ms", sa.Float(), nullable=False),
        sa.Column("energy_mj", sa.Float(), nullable=False),
        sa.Column("energy_requests", sa.BigInteger(), nullable=False),
        sa.Column("energy_kinds", sa.SmallInteger(), nullable=False),
        sa.Column("energy_on", sa.Integer(), nullable=True),
        sa.Column("energy_why", sa.Integer(), nullable=True),
        sa.Column("busy_s", sa.Float(), nullable=False),
        sa.Column("span_s", sa.Float(), nullable=False),
        sa.Column("throttled_s", sa.Float(), nullable=False),
        sa.Column("under_voltage_s", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("device", "at", "bundle"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "minutes",
        sa.Column("device", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("inputs_dropped", sa.BigInteger(), nullable=False),
        sa.Column("answers_lost", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("nan_confidences", sa.BigInteger(), nullable=False),
        sa.Column("exits", sa.LargeBinary(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("latency_sum_ms", sa.Float(), nullable=False),
        sa.Column("energy_mj", sa.Float(), nullable=False),
        sa.Column("energy_requests", sa.BigInteger(), nullable=False),
        sa.Column("energy_kinds", sa.SmallInteger(), nullable=False),
        sa.Column("energy_on", sa.Integer(), nullable=True),
        sa.Column("energy_why", sa.Integer(), nullable=True),
        sa.Column("busy_s", sa.Float(), nullable=False),
        sa.Column("span_s", sa.Float(), nullable=False),
        sa.Column("throttled_s", sa.Float(), nullable=False),
        sa.Column("under_voltage_s", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("device", "at", "bundle"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "names",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("device", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("kind", "text"),
    )
    op.create_index("names_by_device", "names", ["device", "kind"], unique=False)
    op.create_table(
        "notifications",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("receiver", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try", sa.Float(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("sent", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("notifications_waiting", "notifications", ["receiver", "sent", "next_try"], unique=False)
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("updated", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rollout_id"),
    )
    op.create_index("rollouts_by_state", "rollouts", ["state"], unique=False)
    op.create_table(
        "silences",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(length=64), nullable=True),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "standings",
        sa.Column("device", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("computed", sa.Float(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("p50", sa.Float(), nullable=True),
        sa.Column("p95", sa.Float(), nullable=True),
        sa.Column("p99", sa.Float(), nullable=True),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("energy_mj", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "presence",
        sa.Column("device", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=True),
        sa.Column("last_seen", sa.Float(), nullable=True),
        sa.Column("interval_s", sa.Float(), nullable=True),
        sa.Column("record_at", sa.Float(), nullable=True),
        sa.Column("bundle", sa.Integer(), nullable=True),
        sa.Column("policy", sa.Integer(), nullable=True),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("throttled", sa.Boolean(), nullable=True),
        sa.Column("under_voltage", sa.Boolean(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.Column("idle_power_mw", sa.Float(), nullable=True),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bundle"], ["names.id"]),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.ForeignKeyConstraint(["policy"], ["names.id"]),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_table(
        "rollout_boards",
        sa.Column("rollout", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("asked", sa.Boolean(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("before_policy", sa.Text(), nullable=True),
        sa.Column("before_interval_s", sa.Float(), nullable=True),
        sa.Column("back_job", sa.String(length=64), nullable=True),
        sa.Column("back_why", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"]),
        sa.PrimaryKeyConstraint("rollout", "device"),
    )
    op.create_index("rollout_boards_by_device", "rollout_boards", ["device"], unique=False)
    op.create_index("rollout_boards_by_wave", "rollout_boards", ["rollout", "wave"], unique=False)
    op.create_table(
        "rollout_waves",
        sa.Column("rollout", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("wave", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("boards", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("started", sa.Float(), nullable=True),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.Column("judged", sa.Float(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"]),
        sa.PrimaryKeyConstraint("rollout", "wave"),
    )
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("user", sa.Integer(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "records",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("boot", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("received", sa.Float(), nullable=False),
        sa.Column("uptime_s", sa.Float(), nullable=False),
        sa.Column("clock_synced", sa.Boolean(), nullable=False),
        sa.Column("interval_s", sa.Float(), nullable=False),
        sa.Column("bundle", sa.Integer(), nullable=True),
        sa.Column("policy", sa.Integer(), nullable=True),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("deadline_missed", sa.BigInteger(), nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("inputs_dropped", sa.BigInteger(), nullable=False),
        sa.Column("answers_lost", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("nan_confidences", sa.BigInteger(), nullable=False),
        sa.Column("exits", sa.LargeBinary(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("latency_sum_ms", sa.Float(), nullable=False),
        sa.Column("energy_mj", sa.Float(), nullable=True),
        sa.Column("energy_provenance", sa.SmallInteger(), nullable=True),
        sa.Column("energy_on", sa.Integer(), nullable=True),
        sa.Column("energy_why", sa.Integer(), nullable=True),
        sa.Column("energy_updates", sa.BigInteger(), nullable=True),
        sa.Column("idle_power_mw", sa.Float(), nullable=True),
        sa.Column("busy_s", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("throttled", sa.Boolean(), nullable=True),
        sa.Column("under_voltage", sa.Boolean(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["boot"], ["boots.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("boot", "seq"),
        sqlite_autoincrement=True,
    )
    op.add_column("boots", sa.Column("forgotten", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("boots", sa.Column("clock_offset", sa.Float(), nullable=True))
    op.add_column("boots", sa.Column("started", sa.Float(), nullable=True))
    op.add_column("devices", sa.Column("says_profile", sa.String(length=64), nullable=True))
    op.add_column("devices", sa.Column("runs", sa.Text(), nullable=True))
    op.add_column("devices", sa.Column("why", sa.Text(), nullable=True))
    op.add_column("devices", sa.Column("settings_refused", sa.Integer(), nullable=True))
    op.drop_column("devices", "last_seen")
    op.drop_column("devices", "boot_id")
    op.drop_column("devices", "online")
    # end of what schema.py says
