"""Sends hostile requests to a real service and checks every response."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx

from tests.api.server import Server
from tests.hostile.http import Answer, Attack, form, part, send

_LEAKS = re.compile(
    rb"CANARY|DOE|JANE|19700101|Traceback|site-packages|\.py\b|/tmp/|/root|/home|/usr/|sqlalchemy|pydantic|sqlite|h11|etc/passwd"
)
_TIMEOUT = 4.0
_PATIENCE = 30.0  # with attacks that only a timeout of the service ends
_LATE = 2.0  # seconds; other tests share the processor, so an attack that is answered late is sent again


@dataclass
class AttackReport:
    """Faults found; ``healthy`` has the seconds of the requests of a normal client during the attacks.

    ``late`` has the attacks that were answered late once.
    """

    faults: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    sent: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    healthy: list[float] = field(default_factory=list)
    memory_growth: int = 0

    @property
    def p99(self) -> float:
        return sorted(self.healthy)[int(0.99 * (len(self.healthy) - 1))] if self.healthy else 0.0


def lateness(attack: Attack, answer: Answer) -> str:
    """Returns how an answer is late, or an empty text."""
    if attack.waits:
        return ""
    if not answer.statuses and not answer.closed:
        return "no answer, and the connection stayed open"
    return f"answered after {answer.seconds:.1f} s" if answer.statuses and answer.seconds > _LATE else ""


def find_faults(attack: Attack, answer: Answer) -> list[str]:
    """Returns the rules that an answer breaks, except for its time."""
    faults = []
    if any(status >= 500 for status in answer.statuses):
        faults.append(f"answered {answer.statuses}")
    first, _, rest = answer.raw.partition(b"\r\n\r\n")
    if answer.statuses and answer.statuses[0] >= 400 and len(answer.statuses) == 1:
        if len(rest) > 4096:
            faults.append(f"an error of {len(rest)} bytes")
        if b"application/problem+json" not in first:
            faults.append("an error that is not problem+json")
        if b"nosniff" not in first:
            faults.append("an error without its security headers")
    if any(status >= 400 for status in answer.statuses) and (leak := _LEAKS.search(answer.raw)):
        faults.append(f"contains {leak[0]!r}")
    return [f"{attack.name}: {fault}" for fault in faults]


def as_part(name: str, field_name: str, content: bytes) -> Attack:
    """A form with one file, sent as ``field_name``."""
    return Attack(
        name, (form(part(field_name.encode(), content, b"Content-Type: application/octet-stream") + b"--X--\r\n"),)
    )


def as_document(name: str, volume: bytes, document: bytes) -> Attack:
    """A form with a good volume and a clinical document."""
    file = part(b"cta", volume, b"Content-Type: application/octet-stream")
    return Attack(name, (form(file + part(b"clinical", document) + b"--X--\r\n"),))


AT_ONCE = 8


def run_attacks(server: Server, attacks: Iterable[Attack], *, at_once: int = AT_ONCE) -> AttackReport:
    """Sends all attacks, ``at_once`` at a time, while a normal client also sends requests."""
    report = AttackReport()
    before = server.memory()
    asyncio.run(_run(int(server.url.rpartition(":")[2]), server.url, attacks, report, at_once))
    report.memory_growth = server.memory() - before
    return report


async def _run(port: int, url: str, attacks: Iterable[Attack], report: AttackReport, at_once: int) -> None:
    waiting = iter(attacks)

    async def attacker() -> None:
        for attack in waiting:
            try:
                answer = await _attack(port, attack, report)
            except OSError as error:
                report.faults.append(f"{attack.name}: the service does not answer ({type(error).__name__})")
                return
            report.sent += 1
            for status in answer.statuses[:1]:
                report.statuses[status] = report.statuses.get(status, 0) + 1

    async def healthy(stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            while not stop.is_set():
                for path in ("/livez", "/v1/models", "/v1/predictions?limit=1"):
                    started = time.perf_counter()
                    answer = await client.get(path)
                    report.healthy.append(time.perf_counter() - started)
                    if answer.status_code != 200:
                        report.faults.append(f"a healthy GET {path} got {answer.status_code}")
                await asyncio.sleep(0.02)

    stop = asyncio.Event()
    caller = asyncio.create_task(healthy(stop))
    await asyncio.gather(*(attacker() for _ in range(at_once)))
    stop.set()
    await caller


async def _attack(port: int, attack: Attack, report: AttackReport) -> Answer:
    """Send an attack, and again if it is answered late; return the first answer."""
    answer = await send(port, attack, timeout=_PATIENCE if attack.waits else _TIMEOUT)
    report.faults += find_faults(attack, answer)
    if late := lateness(attack, answer):
        report.late.append(f"{attack.name}: {late}")
        again = await send(port, attack, timeout=_TIMEOUT)
        report.faults += find_faults(attack, again)
        if late := lateness(attack, again):
            report.faults.append(f"{attack.name}: {late}, twice")
    return answer


def codes(answer: Answer) -> str:
    """The problem code of an answer."""
    return str(json.loads(answer.raw.partition(b"\r\n\r\n")[2]).get("code", ""))
