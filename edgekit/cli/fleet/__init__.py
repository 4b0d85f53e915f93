"""`edgekit fleet`: serve a fleet, enroll boards, and look at them."""

from __future__ import annotations

import click

from edgekit.cli.fleet.alerts import alerts
from edgekit.cli.fleet.audit import audit
from edgekit.cli.fleet.configure import configure
from edgekit.cli.fleet.enroll import enroll
from edgekit.cli.fleet.export import export
from edgekit.cli.fleet.look import bundles, events
from edgekit.cli.fleet.revoke import revoke
from edgekit.cli.fleet.rollout import rollout
from edgekit.cli.fleet.serve import serve
from edgekit.cli.fleet.show import devices, jobs, status
from edgekit.cli.fleet.stick import stick
from edgekit.cli.fleet.token import token
from edgekit.cli.fleet.user import login_link, user


@click.group()
def command() -> None:
    """Serve and watch a fleet of boards."""


for verb in (
    serve,
    enroll,
    revoke,
    status,
    devices,
    jobs,
    events,
    bundles,
    export,
    rollout,
    configure,
    stick,
    user,
    token,
    login_link,
    audit,
    alerts,
):
    command.add_command(verb)
