"""Settings of job scripts in INI files."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cjdask.errors import ResourcesNotSupportedError, SettingsError
from cjdask.resources import Resources

__all__ = [
    "Settings",
    "attribute_value",
    "read_settings_file",
    "resource_value",
    "user_settings_path",
]

ATTRIBUTES, RESOURCES = "Attributes", "Resources"
_COUNTED = ("array", "exclusive", "gpus", "mem", "nodes", "ppn", "threads")
_TEXTS = ("account", "depends", "jobname", "queue", "stderr", "stdout", "time")
"""Common resources whose values stay text: ``time = 30`` is ``"30"``, which is 30 minutes."""


def user_settings_path() -> str:
    """Return the path of the user's own file of settings, which need not be there."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.join("~", ".config")
    path = os.environ.get("CJDASK_SETTINGS") or os.path.join(folder, "cjdask", "settings.ini")
    return os.path.abspath(os.path.expanduser(path))


@dataclass
class Settings:
    """What a file sets, with the line of each key."""

    path: str
    attributes: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str, str], int] = field(default_factory=dict)

    def refuse(self, key: str, why: str) -> SettingsError:
        """Return the error for an attribute that cannot be set."""
        return _error(self.path, self.lines[ATTRIBUTES, key], why)


def read_settings_file(
    filename: str | os.PathLike[str], known: dict[str, Any], fixed: Collection[str]
) -> Settings:
    """Read a file and check all that it says.

    ``known`` are the attributes that there are, with values of their types; ``fixed`` are names
    that cannot be set.

    Raises:
        FileNotFoundError: there is no such file.
        SettingsError: something in it is wrong; the message has file, line and remedy.
    """
    path = os.path.abspath(os.path.expanduser(os.fspath(filename)))
    settings = Settings(path)
    for section, key, text, line in _Parser(path).items():
        settings.lines[section, key] = line
        if section == ATTRIBUTES:
            settings.attributes[key] = attribute_value(
                f"{path}, line {line}", key, text, known, fixed
            )
        else:
            settings.resources[key] = resource_value(f"{path}, line {line}", key, text)
    return settings


def _error(path: str, line: int, why: str) -> SettingsError:
    return SettingsError(f"{path}, line {line}: {why}")


def _value(text: str) -> str | int | bool:
    """Turn whole numbers, ``True`` and ``False`` into such."""
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", text):
        return int(text)
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def attribute_value(
    where: str, key: str, text: str, known: dict[str, Any], fixed: Collection[str]
) -> Any:
    """Turn the text of an attribute into a value; ``where`` is its place, for messages.

    ``known`` and ``fixed`` are as in `read_settings_file`.

    Raises:
        SettingsError: it cannot be set, or not to that.
    """

    def refuse(why: str) -> SettingsError:
        return SettingsError(f"{where}: {why}")

    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", key):
        hint = f"; a resource belongs into [{RESOURCES}]" if key.startswith("-") else ""
        raise refuse(f"{key!r} is no name of an attribute: give letters, digits and _{hint}")
    if key == "resources":
        raise refuse(f"'resources' is no attribute to set: write [{RESOURCES}] for it")
    if key in fixed:
        raise refuse(f"{key!r} cannot be set; choose another name for a variable")
    value = _value(text)
    if isinstance(known.get(key), tuple):
        return tuple(name.strip() for name in text.splitlines() if name.strip())
    if isinstance(known.get(key), str):
        return text
    if isinstance(known.get(key), bool) and not isinstance(value, bool):
        raise refuse(f"{key} = {text}: write True or False")
    if isinstance(known.get(key), float):
        try:
            return float(text)
        except ValueError:
            raise refuse(f"{key} = {text}: write a number") from None
    return value


def resource_value(where: str, key: str, text: str) -> Any:
    """Turn the text of a resource into a value; ``where`` is its place, for messages.

    Raises:
        SettingsError: no resource can have this value.
    """
    value: Any = text if key in _TEXTS else _value(text)
    try:
        Resources.of({key: value})
    except ResourcesNotSupportedError as error:
        raise SettingsError(f"{where}: {error}") from None
    return value


class _Parser:
    """Reads the lines: sections, ``key = value``, indented lines that go on with a value."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            raw = file.read()
        try:
            self.lines = raw.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            number = raw[: error.start].count(b"\n") + 1
            raise _error(path, number, "it is not UTF-8; save the file as UTF-8") from None

    def items(self) -> list[tuple[str, str, str, int]]:
        """Return section, key, value and line of each setting."""
        section = ""
        sections: dict[str, int] = {}
        keys: dict[tuple[str, str], int] = {}
        values: list[list[str]] = []
        for number, line in enumerate(self.lines, 1):
            text = line.strip()
            if text.startswith("#") and not text.startswith("#!"):
                continue
            if line[:1].isspace() or not text:
                if text and not values:
                    why = "an indented line goes on with a value, and there is none before it"
                    raise _error(self.path, number, f"{why}; remove the blanks before {text!r}")
                if values:
                    values[-1].append(line)
            elif text.startswith("["):
                section = self._section(number, text, sections)
            else:
                key, value = self._key(number, text, section)
                if (section, key) in keys:
                    why = f"{key!r} was set in line {keys[section, key]} already; remove one"
                    raise _error(self.path, number, why)
                keys[section, key] = number
                values.append([value])
        if not sections:
            why = f"there is no section; begin with [{ATTRIBUTES}] or [{RESOURCES}]"
            raise _error(self.path, 1, why)
        return [(*name, _join(v), keys[name]) for name, v in zip(keys, values, strict=True)]

    def _section(self, number: int, text: str, sections: dict[str, int]) -> str:
        name = text[1:-1]
        if not text.endswith("]") or name not in (ATTRIBUTES, RESOURCES):
            why = f"{text} is no section; there are [{ATTRIBUTES}] and [{RESOURCES}]"
            raise _error(self.path, number, why)
        if name in sections:
            why = f"{text} is there from line {sections[name]} on; put all of it there"
            raise _error(self.path, number, why)
        sections[name] = number
        return name

    def _key(self, number: int, text: str, section: str) -> tuple[str, str]:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals:
            why = f"{text!r} is not 'key = value'; indent it if it goes on with the value above"
            raise _error(self.path, number, why)
        if not section:
            why = f"{key!r} is in no section; write [{ATTRIBUTES}] or [{RESOURCES}] above it"
            raise _error(self.path, number, why)
        return key, value


def _join(lines: list[str]) -> str:
    first, *rest = lines
    more = textwrap.dedent("\n".join(rest)).rstrip()
    if not more.strip():
        return first
    return f"{first}\n{more}" if first else more.lstrip("\n")
