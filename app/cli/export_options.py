"""Options of `rlvo validate` that write what a site shares with other sites, or keeps for a federated fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.evaluation.validation import PredictionTable
    from app.training.score import ScoredCohort
    from app.training.site_data import SiteData


@dataclass(frozen=True)
class ExportOptions:
    """What leaves the site, and under which name."""

    export_aggregate: Annotated[
        Path | None, typer.Option(help="New file of counts and sums for `rlvo pool`; small cells are merged")
    ] = None
    preview: Annotated[bool, typer.Option("--preview", help="Print the aggregate as text, and do not write it")] = False
    share_subgroups: Annotated[
        bool, typer.Option("--share-subgroups", help="Add the cells of the subgroups to the aggregate")
    ] = False
    site_file: Annotated[
        Path | None, typer.Option(help="New file for `rlvo federate`; it holds patients and stays in the hospital")
    ] = None
    as_site: Annotated[str, typer.Option(help="Name of your site in the aggregate")] = ""
    predictor: Annotated[
        str, typer.Option(help="Name of the predictor of a table of predictions, the same at all sites")
    ] = ""
    key: Annotated[Path | None, typer.Option(help="Private key that signs the aggregate")] = None


EXPORT = ExportOptions()


def check(options: ExportOptions, *, is_table: bool) -> None:
    """Check that the options fit each other before anything is computed."""
    import re

    from app.evaluation.aggregate import SITE_PATTERN

    wanted = options.export_aggregate is not None or options.preview
    if wanted and not re.fullmatch(SITE_PATTERN, options.as_site):
        raise typer.BadParameter("give letters, digits, points, hyphens or underscores", param_hint="--as-site")
    if options == EXPORT:
        return
    if not wanted and options.site_file is None:
        raise typer.BadParameter(
            "--as-site, --predictor, --share-subgroups and --key need --export-aggregate, --preview or --site-file"
        )
    if is_table and not options.predictor:
        raise typer.BadParameter("give the name of the predictor, the same at all sites", param_hint="--predictor")
    if not is_table and options.predictor:
        raise typer.BadParameter("the version has its name", param_hint="--predictor")
    for path in (options.export_aggregate, options.site_file):
        if path is not None and path.exists():
            raise typer.BadParameter(f"{path.name} exists; give a new file")


def export_cohort(options: ExportOptions, table: PredictionTable, folder: Path, scored: ScoredCohort) -> str:
    """Write the files of a version's cohort as ``export`` does; the site file has the inputs of the heads.

    Args:
        options: What is written.
        table: Predictions and outcomes.
        folder: Folder of the version.
        scored: The cohort.

    Raises:
        CohortFault: As for ``export``.
    """
    import hashlib

    from app.training import head_features

    (manifest,) = scored.manifests
    digest = f"sha256:{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}"

    def with_features(data: SiteData) -> SiteData:
        return head_features.add(data, folder, manifest, scored.data)

    return export(options, table, f"{manifest.name}@{manifest.version}", digest, with_features)


def export(
    options: ExportOptions,
    table: PredictionTable,
    predictor: str,
    digest: str = "",
    with_features: Callable[[SiteData], SiteData] | None = None,
) -> str:
    """Write the files that are asked for; return a text for the user, or "".

    Args:
        options: What is written.
        table: Predictions and outcomes.
        predictor: Version as NAME@VERSION, or another name.
        digest: Digest of the version.
        with_features: Adds the inputs of the heads to the site file; None: it has none.

    Raises:
        CohortFault: The site has too few patients to share sums of them.
    """
    from app.training.errors import CohortFault

    parts = []
    if options.site_file is not None:
        from app.training.site_data import SiteData

        data = SiteData.of_table(table, predictor, digest)
        if with_features is not None:
            data = with_features(data)
        data.save(options.site_file)
        parts.append(f"{options.site_file}: {len(data.labels)} patients. It stays in the hospital.")
    if options.export_aggregate is not None or options.preview:
        from app.evaluation import aggregate
        from app.registry import signed_json

        try:
            found = aggregate.of(table, options.as_site, predictor, digest, with_subgroups=options.share_subgroups)
        except ValueError as error:
            raise CohortFault([f"no aggregate: {error}"]) from None
        document = found.model_dump(mode="json")
        parts.append("This is all that the aggregate contains:\n\n" + aggregate.preview(document))
        if options.export_aggregate is not None and not options.preview:
            public = signed_json.write(options.export_aggregate, document, options.key)
            signed = f"signed, public key {public}" if public else "not signed"
            parts.append(f"Wrote {options.export_aggregate} ({signed}).")
    return "\n\n".join(parts)
