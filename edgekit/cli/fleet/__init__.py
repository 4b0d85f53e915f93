"""`edgekit fleet`: serve a fleet, enroll boards, and look at them."""

from __future__ import annotations

import click

from edgekit.cli.fleet.configure import configure
from edgekit.cli.fleet.enroll import enroll
from edgekit.cli.fleet.revoke import revoke
from edgekit.cli.fleet.serve import serve
from edgekit.cli.fleet.show import devices, jobs, status
from edgekit.cli.fleet.stick import stick


@click.group()
def command() -> None:
    """Serve and watch a fleet of boards."""


for verb in (serve, enroll, revoke, status, devices, jobs, configure, stick):
    command.add_command(verb)
