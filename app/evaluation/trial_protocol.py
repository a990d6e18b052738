"""Protocol of a silent trial: a TOML file that is checked, frozen and hashed before the first patient.

The hash is the SHA-256 of the canonical JSON of the protocol, with the digest of the model version. It stands in the
audit log, in every sealed answer and on the report.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.core import two_key_sealing
from app.core.json_text import canonical_hash
from app.evaluation.sequential import LookPlan, TrialMeasure
from app.sdk.errors import FieldError, InvalidRequest

NAME = r"^[a-z][a-z0-9-]{0,62}$"
LEAST_STEP = 0.04  # of the planned patients between two looks; the bounds are computed on a grid
MOST_HOLDERS = 4


class OtherVersions(StrEnum):
    """What the trial's sites get of other versions, of any model, while the trial runs."""

    REFUSE = "refuse"
    OPEN = "open"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TrialModel(_Part):
    """The version of the trial; an empty digest is filled in when the trial is created."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    version: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    other_versions: OtherVersions = OtherVersions.REFUSE


class Population(_Part):
    """Tenants whose studies take part, and who these patients are."""

    tenants: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(min_length=1)
    description: str = Field(min_length=1, max_length=2000)


class OutcomePlan(_Part):
    """How the outcome is assessed; its definition is that of the service."""

    assessment: str = Field(min_length=1, max_length=2000)
    within_days: int = Field(default=30, ge=1, le=3650)


class Analysis(_Part):
    """Primary measure, the margin that it must exceed, and the looks."""

    measure: TrialMeasure
    margin: float = Field(ge=-1, le=1, allow_inf_nan=False)
    alpha: float = Field(default=0.025, ge=0.001, le=0.1, allow_inf_nan=False)
    looks: tuple[Annotated[int, Field(ge=20, le=100_000)], ...] = Field(min_length=1, max_length=10)
    reference: float = Field(default=0.5, gt=0, lt=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> Analysis:
        steps = [after - before for before, after in zip((0, *self.looks), self.looks, strict=False)]
        if min(steps) < max(1.0, LEAST_STEP * self.looks[-1]):
            share = f"{100 * LEAST_STEP:.0f} %"
            raise ValueError(f"looks must ascend by at least {share} of the last, which is the size of the trial")
        if self.measure is TrialMeasure.AUC and not 0 < self.margin < 1:
            raise ValueError("the margin of an AUC is between 0 and 1")
        return self

    @property
    def plan(self) -> LookPlan:
        """The looks, for `app.evaluation.sequential`."""
        return LookPlan(self.measure, self.margin, self.alpha, self.looks, self.reference)


class Holder(_Part):
    """A named person with a private key, whose public key this is."""

    name: str = Field(pattern=r"^[A-Za-z0-9._ -]{1,64}$")
    public_key: str

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        try:
            two_key_sealing.public_key(text)
        except ValueError:
            raise ValueError("must be 32 bytes in base64, as `rlvo trial key` prints them") from None
        return text.strip()


class TrialProtocol(_Part):
    """Protocol of a silent trial."""

    name: str = Field(pattern=NAME)
    title: str = Field(min_length=1, max_length=300)
    registration: str = Field(default="", max_length=200)
    ethics: str = Field(default="", max_length=500)
    model: TrialModel
    population: Population
    outcome: OutcomePlan
    analysis: Analysis
    holders: tuple[Holder, ...] = Field(min_length=2, max_length=MOST_HOLDERS)

    @model_validator(mode="after")
    def _distinct(self) -> TrialProtocol:
        for values in ([one.name for one in self.holders], [one.public_key for one in self.holders]):
            if len(set(values)) < len(values):
                raise ValueError("holders must have different names and different keys")
        return self

    @property
    def document(self) -> dict[str, Any]:
        """The protocol as JSON values."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return canonical_hash(self.document)

    def with_digest(self, digest: str) -> TrialProtocol:
        """The protocol with the digest of the version. Raises InvalidRequest if it names another one."""
        if self.model.digest not in ("", digest):
            raise InvalidRequest(
                "The files of the version differ from the digest in the protocol",
                errors=[FieldError("model.digest", "is not that of the version in the model store")],
            )
        return self.model_copy(update={"model": self.model.model_copy(update={"digest": digest})})


def parse(content: bytes) -> TrialProtocol:
    """Read a protocol (TOML). Raises InvalidRequest with every fault."""
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise InvalidRequest(f"The protocol cannot be read as TOML: {reason}") from None
    return read(document)


def read(document: Mapping[str, Any]) -> TrialProtocol:
    """Check a protocol. Raises InvalidRequest with every fault."""
    try:
        return TrialProtocol.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        faults = [
            FieldError(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))
            for one in found
            # A list whose items are wrong also counts as too short.
            if not any(other["loc"][: len(one["loc"])] == one["loc"] for other in found if other is not one)
        ]
        raise InvalidRequest("The protocol is not valid.", errors=faults) from None
