"""Settings of every process, read once from the environment (prefix ``RLVO_``) and passed on as arguments."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.ae_title import AE_TITLE
from app.core.key_text import decode

MIB = 1024 * 1024
RETURN_KEY_BYTES = 32
CENTURY_DAYS = 36_500  # the longest time in days; a date that lies further back or ahead cannot be computed

# Next to the code in an installed package; at the root of a checkout.
_APP = Path(__file__).parents[1]
SHIPPED_VERSIONS = next(
    (folder for folder in (_APP / "registry" / "shipped", _APP.parent / "model_store") if folder.is_dir()), None
)
"""Folder of the model versions that come with the software; None if they were left out."""


class Settings(BaseSettings):
    """All settings with defaults; `rlvo settings --markdown` makes the table of the README from the descriptions."""

    model_config = SettingsConfigDict(
        env_prefix="RLVO_", extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    data_dir: Path = Field(default=Path("data"), description="Folder of all stored data, unless set otherwise below")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data folder")
    storage_url: str = Field(default="", description="Folder or s3:// URL of the blobs; empty: data folder/blobs")
    erasure_ledger: str = Field(
        default="",
        description="Folder or s3:// URL of the ledger of erasures; empty: `.erasures` with the blobs of "
        "RLVO_STORAGE_URL, else data folder/erasures",
    )
    reserve_bytes: int = Field(default=8 * MIB, ge=0, description="Disk space that only erasures may use, in bytes")
    s3_endpoint: str = Field(
        default="",
        pattern="^(https?://[!-~]+)?$",
        description="URL of an S3 service other than Amazon's; keys: AWS_ variables",
    )
    cache_bytes: int = Field(default=20 * 1024 * MIB, ge=0, description="Size of the local cache of S3 blobs, in bytes")
    model_store: Path = Field(
        default=Path("model_store"),
        description="Folder of the model versions; not set, and no such folder: the versions that come with rlvo",
    )
    trusted_keys: str = Field(
        default="",
        description="Ed25519 public keys (base64, comma-separated) that must sign model versions; empty: no signature",
    )
    default_model: str = Field(default="rlvo-synthetic", description="Model of a request that names no model")

    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on")
    public_url: str = Field(
        default="",
        pattern="^(https?://[!-~]+)?$",
        description="External URL of this service: for links in CDS cards, and the origin of its pages behind a proxy",
    )
    auth: Literal["auto", "keys", "off"] = Field(
        default="auto",
        description="API keys: `keys` required; `auto` and `off`: neither required nor checked from this machine on "
        "loopback",
    )
    insecure: bool = Field(
        default=False, description="With `auth=off`: require no keys from other machines and through a proxy either"
    )

    subject_system: str = Field(
        default="urn:rlvo:subject",
        pattern="^[!-~]+$",
        description="FHIR identifier system of the pseudonyms (`subject`)",
    )
    cds_clients: str = Field(
        default="",
        description="JSON file of the CDS clients that sign tokens: issuer, tenant, public keys; empty: API keys only",
    )
    cds_origins: str = Field(
        default="",
        description="Origins whose pages may call `/cds-services`, comma-separated: `https://records.clinic.example`",
    )

    oidc_issuer: str = Field(default="", description="Identity provider of tokens; empty: API keys only")
    oidc_audience: str = Field(default="rlvo", description="Audience that a token must contain")
    oidc_algorithm: Literal["RS256", "PS256", "ES256", "EdDSA"] = Field(
        default="RS256", description="The only accepted signature algorithm"
    )
    oidc_keys_url: str = Field(default="", description="URL of the provider's keys; empty: discovery")
    oidc_tenant_claim: str = Field(default="tenant", description="Claim with the tenant; if absent, the subject")
    oidc_name_claim: str = Field(
        default="sub", description="Claim with the name of the person, for reviews and the audit log; if absent, `sub`"
    )
    oidc_client_id: str = Field(
        default="", description="Public client of the page at the provider: people log in there; empty: no login"
    )
    oidc_scope: str = Field(
        default="openid predict read", description="Scopes that the page requests from the provider"
    )
    rate_per_minute: int = Field(
        default=12_000,
        ge=0,
        description="Requests per minute of a token or key, unless the key sets a limit; 0: no limit",
    )

    max_body_bytes: int = Field(default=2048 * MIB, ge=1, description="Largest request body, in bytes")
    max_volume_bytes: int = Field(default=4096 * MIB, ge=1, description="Largest decompressed volume, in bytes")
    max_voxels: int = Field(default=512_000_000, ge=1, description="Largest number of voxels of one volume")
    max_json_bytes: int = Field(default=64 * 1024, ge=1, description="Largest JSON document, in bytes")
    receive_timeout: float = Field(default=300.0, gt=0, description="Seconds within which a request body must arrive")
    dicom_timeout: float = Field(
        default=120.0, gt=0, description="Seconds within which a DICOM study must be converted"
    )
    dicom_return_key: str = Field(
        default="",
        repr=False,
        description="Key that encrypts what is needed to send results back into a DICOM study: 32 bytes in base64 "
        "(`openssl rand -base64 32`); empty: it is not stored, and no results are sent back",
    )
    dicom_hosts: str = Field(
        default="",
        description="Hosts of DICOM archives that results may be sent to and studies fetched from, comma-separated: "
        "`pacs.clinic.example`, "
        "`10.0.0.7:4242`, `http://10.0.0.7:8042`",
    )
    dicom_backoff: float = Field(
        default=10.0,
        gt=0,
        description="Seconds before a second attempt to send a result; each further pause is twice as long, up to ten "
        "minutes",
    )
    dicom_delivery_days: float = Field(
        default=3.0,
        gt=0,
        le=CENTURY_DAYS,
        description="Days after which the delivery of a result to a DICOM destination is given up",
    )
    dicom_port: int = Field(
        default=0, ge=0, le=65535, description="Port of the DICOM listener that `rlvo serve` starts; 0: none"
    )
    dicom_host: str = Field(default="127.0.0.1", description="Address that the DICOM listener listens on")
    dicom_ae_title: str = Field(default="RLVO", pattern=f"^{AE_TITLE}$", description="AE title of the DICOM listener")
    dicom_callers: str = Field(
        default="",
        description="AE titles that may send, each with an optional address and tenant, comma-separated: "
        "`CT1@10.0.0.5=stroke, PACS@10.0.1.0/24`; empty: only this machine",
    )
    dicom_tls_certificate: str = Field(
        default="", description="Certificate chain (PEM) of the DICOM listener; empty: no TLS"
    )
    dicom_tls_key: str = Field(default="", description="Private key (PEM) of this certificate")
    dicom_tls_callers: str = Field(
        default="", description="Certificates (PEM) that must sign those of senders; empty: senders need none"
    )
    dicom_max_instance_bytes: int = Field(
        default=1024 * MIB, ge=1, description="Largest received DICOM instance, in bytes"
    )
    dicom_quiet: float = Field(
        default=30.0, gt=0, description="Seconds without a new instance after which a received study is complete"
    )
    dicom_clinical_wait: float = Field(
        default=60.0,
        ge=0,
        description="Seconds after the last instance until a study without a clinical record is complete, if longer",
    )
    dicom_keep_hours: float = Field(
        default=72.0,
        gt=0,
        le=24 * CENTURY_DAYS,
        description="Hours from its last instance after which the files of a received study are deleted",
    )
    dicom_storage_commitment: Literal["refuse", "answer"] = Field(
        default="refuse",
        description="Requests for storage commitment: `refuse`: not accepted, because received files are deleted; "
        "`answer`: what is stored at this time is committed",
    )
    stall_timeout: float = Field(default=30.0, gt=0, description="Seconds without progress until a transfer is aborted")
    header_timeout: float = Field(default=10.0, gt=0, description="Seconds within which a request head must arrive")
    keep_alive_timeout: int = Field(
        default=130,
        ge=1,
        description="Seconds until an idle connection is closed; longer than proxies and clients keep one, because a "
        "request that meets the closing fails",
    )
    max_connections: int = Field(default=1000, ge=1, description="Maximum number of connections")
    max_requests_per_caller: int = Field(
        default=0,
        ge=0,
        description="Requests that one key (without a key: one address) may have in progress; 0: a quarter of the "
        "connections",
    )
    wait_default: float = Field(default=30.0, ge=0, description="Default seconds that a POST waits for its answer")
    wait_max: float = Field(default=120.0, ge=0, description="Longest wait that a request may set, in seconds")
    queue_limit: int = Field(default=1000, ge=1, description="Maximum of waiting predictions; then POST answers 429")
    queue_acute_share: float = Field(
        default=0.2, ge=0, lt=1, description="Share of these places that only acute studies may take"
    )
    queue_tenant_share: float = Field(
        default=0.4, gt=0, le=1, description="Share of the places of each priority that one tenant may take"
    )
    idempotency_hours: float = Field(
        default=24.0, gt=0, le=24 * CENTURY_DAYS, description="Hours for which an Idempotency-Key is stored"
    )
    require_idempotency_key: bool = Field(default=False, description="Refuse a POST without an Idempotency-Key")

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Device of the networks")
    threads: int = Field(default=0, ge=0, description="CPU threads of one worker; 0: one per core")
    backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto", description="Library that computes the networks on a CPU; `auto`: OpenVINO if it is installed"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision of the networks on a GPU or with OpenVINO; `auto`: bfloat16 on a GPU, else float32",
    )
    load_timeout: float = Field(
        default=120.0, gt=0, description="Seconds within which every worker must load a version that is promoted"
    )
    memory_budget: int = Field(
        default=0, ge=0, description="Bytes of loaded weights; the least recently used go first; 0: no limit"
    )
    heartbeat: float = Field(default=2.0, gt=0, description="Seconds between the heartbeats of a worker")
    lease: float = Field(
        default=15.0,
        gt=0,
        description="Seconds without heartbeat until a worker counts as lost, or an API process that receives or "
        "assembles a study",
    )
    worker_start_minutes: float = Field(
        default=10.0,
        ge=0,
        description="Minutes without a running worker after which `rlvo serve` ends with an error; 0: never",
    )
    memory_limit_mb: int = Field(
        default=0, ge=0, description="Memory limit of a worker, MB; 0: 90 % of machine or container"
    )
    cpu_limit: float = Field(default=3600.0, gt=0, description="CPU seconds of one attempt at a prediction")
    retention_days: float = Field(
        default=0,
        ge=0,
        le=CENTURY_DAYS,
        description="Days from its answer after which a prediction is erased; 0: never",
    )
    webhook_hosts: str = Field(
        default="", description="Hosts that webhooks may call, comma-separated: `pacs.clinic.example`, `10.0.0.7:8443`"
    )
    webhook_backoff: float = Field(
        default=5.0,
        gt=0,
        description="Seconds before a webhook's second attempt; each further pause is five times longer",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest logged level")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Form of the log: text lines or JSON objects"
    )
    otlp_endpoint: str = Field(
        default="",
        description="OpenTelemetry collector, `http://host:4318`; needs `rlvo-service[otel]`; empty: no traces",
    )

    @model_validator(mode="before")
    @classmethod
    def _use_shipped_versions(cls, values: dict[str, Any]) -> dict[str, Any]:
        default = cls.model_fields["model_store"].default
        if "model_store" in values or default.is_dir() or SHIPPED_VERSIONS is None:
            return values
        return {**values, "model_store": SHIPPED_VERSIONS}

    @field_validator("storage_url", "erasure_ledger")
    @classmethod
    def _refuse_other_urls(cls, value: str) -> str:
        """Refuses a URL that would be taken for the name of a folder, such as ``s3:/bucket`` or ``https://host``."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value) and not value.startswith(("s3://", "file://")):
            raise ValueError("expected a folder, file:///folder or s3://bucket/prefix")
        return value

    @field_validator("webhook_hosts", "dicom_hosts")
    @classmethod
    def _check_hosts(cls, value: str, info: ValidationInfo) -> str:
        if value:
            from app.core.egress import EgressClient  # here: without hosts no HTTP library is needed

            EgressClient(value, setting=f"RLVO_{str(info.field_name).upper()}")
        return value

    @field_validator("dicom_return_key")
    @classmethod
    def _check_return_key(cls, value: str) -> str:
        try:
            usable = not value or len(decode(value)) == RETURN_KEY_BYTES
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("RLVO_DICOM_RETURN_KEY must be 32 bytes in base64: openssl rand -base64 32")
        return value

    @field_validator("s3_endpoint", "public_url", "oidc_issuer", "oidc_keys_url", "otlp_endpoint")
    @classmethod
    def _check_url(cls, value: str) -> str:
        """Refuse what a library would accept and never reach, such as an address without a scheme."""
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is no number, or an IPv6 address has one bracket
            usable = False
        if value and not (usable and re.fullmatch("[!-~]+", value)):
            raise ValueError("expected a URL with its scheme and host, such as http://host:4318 or https://host/path")
        return value

    @field_validator("cds_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in filter(None, (each.strip() for each in value.split(","))):
            if not re.fullmatch(r"https?://[^/?#@\s]+/?", origin, re.IGNORECASE):
                raise ValueError("expected origins such as https://records.clinic.example, comma-separated")
        return value

    @cached_property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'rlvo.sqlite').resolve()}"

    @cached_property
    def blobs(self) -> Path:
        """Folder of the blobs, or of their local cache if they are in S3."""
        if not self.storage_url or self.storage_url.startswith("s3://"):
            return self.data_dir / "blobs"
        return Path(self.storage_url.removeprefix("file://"))

    @property
    def longest_intake(self) -> float:
        """Seconds after which the reception of a study hangs: the limits of body and conversion, and a minute."""
        return self.receive_timeout + self.dicom_timeout + 60.0

    @property
    def ledger(self) -> str:
        """Folder or s3:// URL of the ledger of erasures; never in the database, whose backups must not replace it."""
        if self.erasure_ledger or not self.storage_url:
            return self.erasure_ledger or str(self.data_dir / "erasures")
        return f"{self.storage_url.rstrip('/')}/.erasures"

    @property
    def ledger_folder(self) -> Path | None:
        """Folder of the ledger of erasures; None if it is in S3."""
        return None if self.ledger.startswith("s3://") else Path(self.ledger.removeprefix("file://"))

    @property
    def sqlite_file(self) -> Path | None:
        """File of the SQLite database; None for another database."""
        scheme, _, path = self.database.partition("://")
        return Path(path.removeprefix("/")) if scheme.startswith("sqlite") and len(path) > 1 else None

    @property
    def private_paths(self) -> dict[str, Path]:
        """Folders and files with records on this machine, each by the setting that names it."""
        paths = {"RLVO_DATA_DIR": self.data_dir, "RLVO_STORAGE_URL": self.blobs}
        if self.sqlite_file is not None:
            paths["RLVO_DATABASE_URL"] = self.sqlite_file
        if self.ledger_folder is not None:
            paths["RLVO_ERASURE_LEDGER"] = self.ledger_folder
        return paths

    @property
    def incoming(self) -> Path:
        """Folder of DICOM files while they are converted or made; its files hold the identity of patients."""
        return self.data_dir / "incoming"

    @property
    def received(self) -> Path:
        """Folder of the DICOM instances that are received and not yet among the blobs."""
        return self.data_dir / "received"

    @property
    def workers(self) -> Path:
        """Folder of the locks and sockets of the workers on this machine."""
        return self.data_dir / "workers"

    @property
    def trusted(self) -> list[str]:
        """Public keys that may sign model versions; empty: versions need no signature."""
        return [key for each in self.trusted_keys.split(",") if (key := each.strip())]

    @cached_property
    def cds_allowed_origins(self) -> frozenset[str]:
        """Origins whose pages may call the CDS service."""
        return frozenset(origin for each in self.cds_origins.split(",") if (origin := each.strip().rstrip("/").lower()))

    @property
    def on_loopback(self) -> bool:
        """Whether the service listens on this machine only."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def open_to_all(self) -> bool:
        """Whether no request needs a key, wherever it comes from."""
        return self.auth == "off" and self.insecure

    @property
    def keys_required(self) -> bool:
        """Whether every request needs an API key or a token."""
        return self.auth == "keys" or (self.auth == "auto" and not (self.on_loopback and not self.oidc_issuer))
