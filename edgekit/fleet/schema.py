"""The tables, as SQLAlchemy Core describes them. No rule about boards or jobs lives here, and no connection.

What a board sends is keyed by (boot, seq), so a replayed or re-ordered batch changes nothing. Times are Unix seconds.
"""

from __future__ import annotations

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
    Column("online", Boolean, nullable=False, default=False),
    Column("boot_id", String(64)),  # of the last birth
    Column("last_seen", Float),
    Column("info", Text),  # JSON, as last sent
    Column("reported", Text),  # JSON, as last sent
    Column("malformed", BigInteger, nullable=False, default=0),  # messages that were dropped
    Column("malformed_why", Text),
    Column("rev", BigInteger, nullable=False, default=0),  # of the last desired
    Column("n", BigInteger, nullable=False, default=0),  # of the last command
    Column("certificate_serial", Text),  # of the one in force; None: it has none
    Column("certificate_expires", Float),
    Column("revoked_at", Float),  # its credentials count no more
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
    Column("upto", BigInteger, nullable=False, default=0),  # all from floor to here is in the store
    Column("last", BigInteger, nullable=False, default=0),  # the highest number in the store
    sa.UniqueConstraint("device", "boot_id"),
)

records = Table(
    "records",
    metadata,
    Column("boot", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("at", Float, nullable=False),  # the board's time; where its clock is not trusted, when it came
    Column("received", Float, nullable=False),
    Column("uptime_s", Float, nullable=False),
    Column("clock_synced", Boolean, nullable=False),
    Column("interval_s", Float, nullable=False),
    Column("bundle", Text),
    Column("policy", Text),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("deadline_missed", BigInteger, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("correct", BigInteger, nullable=False),
    Column("exits", Text, nullable=False),  # JSON: name -> count
    Column("latency", LargeBinary, nullable=False),  # fleet.packing
    Column("latency_sum_ms", Float, nullable=False),
    Column("energy_mj", Float),
    Column("energy_provenance", String(16)),
    Column("energy_on", Text),
    Column("energy_why", Text),
    Column("busy_s", Float, nullable=False),
    Column("temperature_c", Float),
    Column("throttled", Boolean),
    Column("under_voltage", Boolean),
    Column("memory_mb", Float),
    Index("records_by_time", "device", "at"),
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
