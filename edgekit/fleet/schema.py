"""The tables, as SQLAlchemy Core describes them. No rule about boards or jobs lives here, and no connection.

What a board sends is keyed by (boot, seq), so a replayed or re-ordered batch changes nothing. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

metadata = MetaData()

facts = Table(
    "facts", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

counters = Table(
    "counters",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

names = Table(  # texts that recur, as numbers: of bundles, profiles, policies, exits, machines, reasons
    "names",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("device", Integer),  # the board that said it first: each may bring a bounded number of new ones
    sa.UniqueConstraint("kind", "text"),
    Index("names_by_device", "device", "kind"),
)

devices = Table(
    "devices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("profile", String(64)),  # as enrolled; what the agent says stands in info
    Column("tags", Text, nullable=False),  # JSON list
    Column("enrolled_at", Float, nullable=False),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("broker_hash", Text, nullable=False),  # the password as Mosquitto keeps it
    Column("info", Text),  # JSON, as last sent
    Column("reported", Text),  # JSON, as last sent
    Column("says_profile", String(64)),  # of info
    Column("runs", Text),  # name/version, of reported
    Column("why", Text),  # of reported: why what is in force differs
    Column("settings_refused", Integer),  # of reported: how many
    Column("malformed", BigInteger, nullable=False, default=0),  # messages that were dropped
    Column("malformed_why", Text),
    Column("rev", BigInteger, nullable=False, default=0),  # of the last desired
    Column("n", BigInteger, nullable=False, default=0),  # of the last command
    Column("certificate_serial", Text),  # of the one in force; None: it has none
    Column("certificate_expires", Float),
    Column("revoked_at", Float),  # its credentials count no more
)

presence = Table(  # what changes with every message of a board: narrow, so that writing it is cheap
    "presence",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("online", Boolean, nullable=False, default=False),
    Column("boot_id", String(64)),  # of the last birth
    Column("last_seen", Float),
    Column("interval_s", Float),  # how often it reports, as it last said
    Column("record_at", Float),  # of the newest record, as are those below
    Column("bundle", ForeignKey("names.id")),
    Column("policy", ForeignKey("names.id")),
    Column("temperature_c", Float),
    Column("throttled", Boolean),
    Column("under_voltage", Boolean),
    Column("memory_mb", Float),
    Column("idle_power_mw", Float),
    Column("records", BigInteger, nullable=False, default=0),  # that are in the roll-ups
)

certificates = Table(  # of boards; forgotten when they have ended
    "certificates",
    metadata,
    Column("serial", String(64), primary_key=True),  # hexadecimal
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked_at", Float),
    Index("certificates_by_device", "device"),
)

boots = Table(
    "boots",
    metadata,
    Column("id", Integer, primary_key=True),  # grows in the order in which boots were first heard of
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("floor", BigInteger, nullable=False, default=1),
    Column(
        "upto", BigInteger, nullable=False, default=0
    ),  # all from floor to here is in the store, or dropped above a limit
    Column("last", BigInteger, nullable=False, default=0),  # the highest number in the store
    Column(
        "forgotten", BigInteger, nullable=False, default=0
    ),  # up to here a number that comes again is a replay
    Column(
        "clock_offset", Float
    ),  # Unix seconds at uptime 0, once a record with a synchronised clock has come
    Column("started", Float),  # when it was first heard of
    sa.UniqueConstraint("device", "boot_id"),
)

BIG_KEY = BigInteger().with_variant(Integer, "sqlite")  # SQLite's row number is an INTEGER and nothing else

records = Table(  # raw: kept for a day or so, then only in the roll-ups
    "records",
    metadata,
    Column("id", BIG_KEY, primary_key=True),  # grows; what is above fact "rolled" is not in the roll-ups yet
    Column("boot", ForeignKey("boots.id"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("device", Integer, nullable=False),
    Column(
        "at", Float, nullable=False
    ),  # end of the interval: the board's time, else what is known of its clock
    Column("received", Float, nullable=False),
    Column("uptime_s", Float, nullable=False),
    Column("clock_synced", Boolean, nullable=False),
    Column("interval_s", Float, nullable=False),
    Column("bundle", Integer),  # names.id
    Column("policy", Integer),  # names.id
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("deadline_missed", BigInteger, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("correct", BigInteger, nullable=False),
    Column("inputs_dropped", BigInteger, nullable=False),
    Column("answers_lost", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("nan_confidences", BigInteger, nullable=False),
    Column("exits", LargeBinary, nullable=False),  # fleet.packing: names.id -> count
    Column("latency", LargeBinary, nullable=False),  # fleet.packing: bucket -> count
    Column("latency_sum_ms", Float, nullable=False),
    Column("energy_mj", Float),
    Column("energy_provenance", SmallInteger),  # place in core.figure.PROVENANCES
    Column("energy_on", Integer),  # names.id
    Column("energy_why", Integer),  # names.id
    Column("energy_updates", BigInteger),
    Column("idle_power_mw", Float),
    Column("busy_s", Float, nullable=False),
    Column("temperature_c", Float),
    Column("throttled", Boolean),
    Column("under_voltage", Boolean),
    Column("memory_mb", Float),
    sa.UniqueConstraint("boot", "seq"),
    sqlite_autoincrement=True,  # a number that was forgotten is never drawn again: it would be below the mark
)


def _figures() -> tuple[Column[Any], ...]:
    """What records add up to: every column is a sum, but those that say otherwise."""
    sums = ("records", "requests", "errors", "deadline_missed", "labelled", "correct")
    lost = ("inputs_dropped", "answers_lost", "cancelled", "nan_confidences")
    return (
        *(Column(name, BigInteger, nullable=False) for name in (*sums, *lost)),
        Column("exits", LargeBinary, nullable=False),  # fleet.packing: names.id -> count
        Column("latency", LargeBinary, nullable=False),  # fleet.packing: bucket -> count
        Column("latency_sum_ms", Float, nullable=False),
        Column("energy_mj", Float, nullable=False),  # of intervals with requests whose energy is known
        Column("energy_requests", BigInteger, nullable=False),  # of those intervals
        Column("energy_kinds", SmallInteger, nullable=False),  # bit n: PROVENANCES[n] is among them
        Column("energy_on", Integer),  # names.id: the machine, the last one named
        Column("energy_why", Integer),  # names.id: why it is unknown, the last reason given
        Column("busy_s", Float, nullable=False),
        Column("span_s", Float, nullable=False),  # of the intervals
        Column("throttled_s", Float, nullable=False),
        Column("under_voltage_s", Float, nullable=False),
        Column("temperature_c", Float),  # the highest
        Column("memory_mb", Float),  # the highest
    )


def _board_figures(name: str) -> Table:
    """A board's figures in spans of one length: `at` is the span's begin, a whole multiple of its length."""
    return Table(
        name,
        metadata,
        Column("device", Integer, primary_key=True, autoincrement=False),
        Column("at", BigInteger, primary_key=True, autoincrement=False),
        Column("bundle", Integer, primary_key=True, autoincrement=False),  # names.id; 0: none
        *_figures(),
        sqlite_with_rowid=False,
    )


def _fleet_figures(name: str) -> Table:
    """The same, of all boards with one profile and one bundle."""
    return Table(
        name,
        metadata,
        Column("at", BigInteger, primary_key=True, autoincrement=False),
        Column("profile", Integer, primary_key=True, autoincrement=False),  # names.id; 0: unknown
        Column("bundle", Integer, primary_key=True, autoincrement=False),  # names.id; 0: none
        *_figures(),
        sqlite_with_rowid=False,
    )


MINUTE_S, HOUR_S = 60, 3600
minutes = _board_figures("minutes")
hours = _board_figures("hours")
fleet_minutes = _fleet_figures("fleet_minutes")
fleet_hours = _fleet_figures("fleet_hours")
fleet_totals = _fleet_figures(
    "fleet_totals"
)  # since ever, `at` 0: what counters for Prometheus are read from

standings = Table(  # figures of a board's last 24 hours, so that 10,000 boards can be sorted by them
    "standings",
    metadata,
    Column("device", Integer, primary_key=True, autoincrement=False),
    Column("computed", Float, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("deadline_missed", BigInteger, nullable=False),
    Column("p50", Float),
    Column("p95", Float),
    Column("p99", Float),
    Column("accuracy", Float),
    Column("energy_mj", Float),  # per request
)

events = Table(
    "events",
    metadata,
    Column("boot", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("received", Float, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Index("events_by_time", "device", "at"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("boot", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("received", Float, nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("target", Text),
    Column("reason", Text),
    Column("detail", Text),
    Index("job_events_by_job", "job_id", "device"),
    Index("job_events_by_time", "device", "at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("target", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("policy", Text),  # JSON
    Column("interval_s", Float),
    Column("config", Text),  # JSON
)

job_devices = Table(
    "job_devices",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),  # core.jobs.STATES, or "pending": no word from the board yet
    Column("reason", Text),
    Column("detail", Text),
    Column("updated", Float, nullable=False),
    Index("job_devices_by_device", "device", "job"),
)

commands = Table(  # one-shots: a job's command to one board, published until the board has ended the job
    "commands",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("action", String(16), nullable=False),  # core.messages.ACTIONS
    Column("n", BigInteger, nullable=False),
    Column("pending", Boolean, nullable=False),  # the broker has not confirmed it
    Index("commands_pending", "pending"),
)

job_reports = Table(
    "job_reports",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("reports", Text, nullable=False),  # JSON: core.bench
)

desired = Table(
    "desired",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("rev", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("target", Text),
    Column("policy", Text),  # JSON
    Column("interval_s", Float),
    Column("config", Text),  # JSON
    Column("expires", Float, nullable=False),
    Column("pending", Boolean, nullable=False),  # the broker has not confirmed it
    Index("desired_pending", "pending"),
)

users = Table(  # who may log in to the page
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # fleet.accounts.ROLES
    Column("password", Text, nullable=False),  # scrypt, with its salt and costs
    Column("created", Float, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the cookie's value
    Column("user", ForeignKey("users.id", ondelete="CASCADE")),  # None: by the server's own token
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

tokens = Table(  # of programs, for the API
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float),
)

audit = Table(  # append-only: triggers refuse to change or delete a row
    "audit",
    metadata,
    Column("id", BIG_KEY, primary_key=True),
    Column("at", Float, nullable=False),
    Column("who", String(128), nullable=False),  # a user, a token's name, or "server"
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),  # what it was about: rollout:ID, board:NAME, user:NAME, ...
    Column("detail", Text, nullable=False),  # JSON
    Index("audit_by_subject", "subject", "id"),
)

AUDIT_APPEND_ONLY = {  # by dialect; whoever owns the database can take them away again, the server's code cannot
    "sqlite": (
        (
            "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit "
            "BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END"
        ),
        (
            "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
            "BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END"
        ),
    ),
    "postgresql": (
        (
            "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'audit is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()"
        ),
    ),
}


@sa.event.listens_for(audit, "after_create")
def _make_append_only(_table: Table, connection: sa.Connection, **_: object) -> None:
    for statement in AUDIT_APPEND_ONLY[connection.dialect.name]:
        connection.exec_driver_sql(statement)


rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("rollout_id", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("target", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("plan", Text, nullable=False),  # JSON: fleet.rollouts.plan
    Column("state", String(16), nullable=False),  # fleet.rollouts.states
    Column("why", Text),
    Column("wave", Integer, nullable=False),  # the current one; as many as there are waves: none is left
    Column(
        "turn", Integer, nullable=False
    ),  # grows with every change: who decided on an older one does nothing
    Column("since", Float, nullable=False),  # when the state began
    Column("updated", Float, nullable=False),
    Index("rollouts_by_state", "state"),
)

rollout_waves = Table(
    "rollout_waves",
    metadata,
    Column("rollout", ForeignKey("rollouts.id"), primary_key=True, autoincrement=False),
    Column("wave", Integer, primary_key=True, autoincrement=False),  # 0: the canary
    Column("state", String(16), nullable=False),  # waiting, begun, passed, accepted, failed
    Column("boards", Integer, nullable=False),
    Column("job_id", String(64)),  # of jobs
    Column("started", Float),
    Column("ended", Float),  # when its boards had ended; the soak begins
    Column("judged", Float),  # when its figures were last looked at
    Column("verdict", Text),  # JSON: what the gate saw and said; fleet.rollouts.gate
)

rollout_boards = Table(
    "rollout_boards",
    metadata,
    Column("rollout", ForeignKey("rollouts.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("wave", Integer, nullable=False),  # -1: left out
    Column("profile", String(64)),  # its stratum, as it was when the rollout was made
    Column("why", Text),  # it was left out
    Column("asked", Boolean, nullable=False, default=False),  # it is in the wave's job
    Column("before", Text),  # name/version that it ran or was to run, to go back to
    Column("before_policy", Text),  # JSON
    Column("before_interval_s", Float),
    Column("back_job", String(64)),  # of jobs: the one that takes it back
    Column("back_why", Text),  # it was not taken back
    Index("rollout_boards_by_wave", "rollout", "wave"),
    Index("rollout_boards_by_device", "device"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("rule", String(64), nullable=False),
    Column("subject", String(256), nullable=False),  # board:NAME, bundle:PROFILE NAME/VERSION, fleet, ...
    Column("state", String(16), nullable=False),  # fleet.alerts.states
    Column("kind", String(32), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("device", Integer),  # where the subject is a board
    Column("grouped", Text, nullable=False),  # alerts with one rule and one of these are told together
    Column("value", Float),
    Column("text", Text, nullable=False),
    Column("since", Float, nullable=False),  # when it was pending first
    Column("clear_since", Float),  # when it was clearing first
    Column("updated", Float, nullable=False),
    Column("told", String(16)),  # what somebody was told last: firing, resolved
    Column("sent", Float),  # and when
    Column("resolved", Float),
    Index("alerts_by_state", "state", "rule"),
    Index("alerts_by_end", "resolved"),
)

notifications = Table(  # messages until they are sent, and shortly after
    "notifications",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("batch", String(32), nullable=False),  # the same message to several receivers
    Column("receiver", String(64), nullable=False),  # fleet.alerts.receivers: which address, not the address
    Column("created", Float, nullable=False),
    Column("severity", String(16), nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_try", Float, nullable=False),
    Column("why", Text),  # the last attempt failed
    Column("sent", Float),
    Index("notifications_waiting", "receiver", "sent", "next_try"),
)

silences = Table(
    "silences",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("rule", String(64)),  # None: every one
    Column("selector", Text, nullable=False),  # which boards, as core.selector writes it
    Column("until", Float, nullable=False),
    Column("by", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("created", Float, nullable=False),
)
