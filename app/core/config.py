"""Settings of every process, read once from the environment (prefix ``RLVO_``) and handed down from there.

Nothing else in the house reads the environment; every room gets what it needs as arguments.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Every setting with its default; the table in the README is made from these descriptions."""

    model_config = SettingsConfigDict(env_prefix="RLVO_", extra="ignore", frozen=True)

    data_dir: Path = Field(default=Path("data"), description="All that the service keeps, unless set otherwise below")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data folder")
    storage_url: str = Field(default="", description="Folder or s3:// URL of the blobs; empty: data folder/blobs")
    s3_endpoint: str = Field(default="", description="URL of an S3 that is not Amazon's; keys: AWS_ variables")
    cache_bytes: int = Field(default=20 * 1024 * MIB, ge=0, description="Bytes of blobs from S3 kept here")
    model_store: Path = Field(default=Path("model_store"), description="Folder of the model versions")
    trusted_keys: str = Field(
        default="",
        description="Ed25519 public keys (base64, by commas); if set, versions must be signed by one",
    )
    default_model: str = Field(default="rlvo-synthetic", description="Model of a request that names none")

    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on")
    public_url: str = Field(
        default="",
        pattern="^(https?://[!-~]+)?$",
        description="Where others reach this service; for links in CDS cards",
    )
    auth: Literal["auto", "keys", "off"] = Field(
        default="auto", description="API keys: `keys` always, `off` never, `auto` everywhere but on loopback"
    )
    insecure: bool = Field(default=False, description="Allow `auth=off` on an address that others can reach")

    oidc_issuer: str = Field(default="", description="Identity provider whose tokens are taken; empty: API keys only")
    oidc_audience: str = Field(default="rlvo", description="Audience that a token must name")
    oidc_algorithm: Literal["RS256", "PS256", "ES256", "EdDSA"] = Field(
        default="RS256", description="The one signature algorithm that is taken"
    )
    oidc_keys_url: str = Field(default="", description="Where the provider's keys are; empty: where it says itself")
    oidc_tenant_claim: str = Field(default="tenant", description="Claim that names the tenant; without it, the subject")
    rate_per_minute: int = Field(
        default=12_000, ge=0, description="Requests of one key or token a minute, unless the key says less; 0: no bound"
    )

    max_body_bytes: int = Field(default=2048 * MIB, ge=1, description="Largest request body")
    max_volume_bytes: int = Field(default=4096 * MIB, ge=1, description="Largest volume after inflation")
    max_voxels: int = Field(default=512_000_000, ge=1, description="Most voxels of one volume")
    max_json_bytes: int = Field(default=64 * 1024, ge=1, description="Largest JSON document")
    receive_timeout: float = Field(default=300.0, gt=0, description="Seconds in which a body must have arrived")
    stall_timeout: float = Field(default=30.0, gt=0, description="Seconds of silence within a body, or unread answer")
    header_timeout: float = Field(default=10.0, gt=0, description="Seconds in which a request's head must have arrived")
    max_connections: int = Field(default=1000, ge=1, description="Connections beyond which new ones are turned away")
    wait_default: float = Field(default=30.0, ge=0, description="Seconds a POST waits for its answer by default")
    wait_max: float = Field(default=120.0, ge=0, description="Longest wait that a caller may ask for, in seconds")
    queue_limit: int = Field(default=1000, ge=1, description="Waiting predictions beyond which a POST answers 429")
    idempotency_hours: float = Field(default=24.0, gt=0, description="How long an Idempotency-Key is remembered")
    require_idempotency_key: bool = Field(default=False, description="Refuse a POST without an Idempotency-Key")

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the networks run")
    threads: int = Field(default=0, ge=0, description="CPU threads of one worker; 0: all cores")
    backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto", description="What computes the networks on a CPU; `auto`: OpenVINO where it is installed"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the networks on a CPU under OpenVINO; a GPU always runs in bfloat16"
    )
    load_timeout: float = Field(
        default=120.0, gt=0, description="Seconds in which every worker must have loaded a version that is promoted"
    )
    memory_budget: int = Field(
        default=0, ge=0, description="Bytes of weights kept loaded at once, least recently used go first; 0: no bound"
    )
    heartbeat: float = Field(default=2.0, gt=0, description="Seconds between a worker's signs of life")
    lease: float = Field(default=15.0, gt=0, description="Seconds of silence after which a worker counts as dead")
    memory_limit_mb: int = Field(default=0, ge=0, description="Most memory of a worker, MB; 0: nine tenths of all")
    cpu_limit: float = Field(default=3600.0, gt=0, description="Most CPU seconds of one try at a prediction")
    retention_days: float = Field(default=0, ge=0, description="Days after which a prediction is erased; 0: never")
    webhook_hosts: str = Field(
        default="", description="Hosts that webhooks may call, by comma: `pacs.clinic.example`, `10.0.0.7:8443`"
    )
    webhook_backoff: float = Field(
        default=5.0, gt=0, description="Seconds before a webhook's second try; each later pause is five times longer"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged")
    log_format: Literal["text", "json"] = Field(default="text", description="Log lines to read, or JSON objects")
    otlp_endpoint: str = Field(
        default="",
        description="OpenTelemetry collector, `http://host:4318`; needs `rlvo-service[otel]`; empty: no traces",
    )

    @cached_property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'rlvo.sqlite').resolve()}"

    @cached_property
    def blobs(self) -> Path:
        """The folder of the blobs in force; of their local copies, where they are kept in S3."""
        if not self.storage_url or self.storage_url.startswith("s3://"):
            return self.data_dir / "blobs"
        return Path(self.storage_url.removeprefix("file://"))

    @property
    def workers(self) -> Path:
        """The folder of the locks and sockets of the workers on this machine."""
        return self.data_dir / "workers"

    @property
    def trusted(self) -> list[str]:
        """The public keys of those whose model versions are taken; none: anybody's are."""
        return [key for each in self.trusted_keys.split(",") if (key := each.strip())]

    @property
    def on_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def keys_required(self) -> bool:
        """Whether a caller must show an API key or a token."""
        return self.auth == "keys" or (self.auth == "auto" and not (self.on_loopback and not self.oidc_issuer))
