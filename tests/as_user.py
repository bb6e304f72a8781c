"""This machine as a normal user sees it, for schedulers that take no jobs of root."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cjdask import scheduler
from cjdask.backends import get_backend
from cjdask.command import Command, Output
from cjdask.protocols.base import as_command
from cjdask.protocols.local import LocalProtocol
from cjdask.scheduler import Scheduler

__all__ = ["USER", "AsUser", "as_user"]

USER = "hpc"


class AsUser(LocalProtocol):
    """Runs commands, and makes files and their folders, as the user."""

    def run(self, command: Command | Sequence[str], timeout: float | None = None) -> Output:
        command = as_command(command)
        setpriv = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--")
        home = {"HOME": pwd.getpwnam(USER).pw_dir, "USER": USER, "LOGNAME": USER}
        argv = (*setpriv, *command.argv)
        return super().run(replace(command, argv=argv, env={**command.env, **home}), timeout)

    def create(self, path: str, content: str | bytes, executable: bool = False) -> None:
        super().create(path, content, executable)
        for made in (path, Path(path).parent):
            shutil.chown(made, USER, USER)


@contextmanager
def as_user(name: str) -> Iterator[None]:
    """Speak to a scheduler as the user, where the tests run as root."""
    with pytest.MonkeyPatch.context() as patch:
        if os.getuid() == 0:
            backend = get_backend(name)
            key = (backend, scheduler._here)
            patch.setitem(scheduler._schedulers, key, Scheduler(backend, AsUser()))
        yield
