"""Finds environment variables that look like settings of rlvo and are none, such as a misspelt one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from app.core.config import Settings

_PREFIX = str(Settings.model_config["env_prefix"])
_OF_CLIENTS = {"RLVO_URL", "RLVO_API_KEY"}
_OF_KUBERNETES = re.compile(
    r"RLVO(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP).*)?)"
)
"""What Kubernetes sets in each pod for a Service whose name begins with ``rlvo``."""


def remarks(names: Iterable[str]) -> list[str]:
    """A remark for each name of a variable that begins as a setting does, but sets nothing.

    Args:
        names: names of environment variables.

    Returns:
        The remarks, in the order of the names. They hold no value.
    """
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    found = []
    for name in sorted(names):
        upper = name.upper()  # settings are read in any case
        if not upper.startswith(_PREFIX) or upper in known | _OF_CLIENTS or _OF_KUBERNETES.fullmatch(upper):
            continue
        near = get_close_matches(upper, known, n=1, cutoff=0.8)
        hint = f" Is {near[0]} meant?" if near else " `rlvo settings` lists the settings."
        found.append(f"{name} is no setting of rlvo and is not used.{hint}")
    return found
