"""Comprehensive 3D SR of one prediction: TID 1500 (PS3.16), as the IHE profile AI Results uses it.

Groups of measurements (TID 1501): the answer, perfusion volumes, one group for each contribution, and the remarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.uid import ParametricMapStorage

from app.core.display_names import channel_label, flag_text, label, region_label, rule_text
from app.core.explanation_text import value_text, variable_label
from app.dicom.objects.codes import UNITY, own, standard, unit
from app.dicom.objects.identity import MANUFACTURER, ObjectContext, finish
from app.sdk.flag_names import name_of
from app.sdk.types import NOTICE, Attribution, Channel, ClinicalContribution, Prediction, RegionContribution

__all__ = ["structured_report"]

_TITLE = standard("DCM", "126000", "Imaging Measurement Report")
_PROCEDURE = standard("SCT", "303653007", "CT of head")
_DEVICE = standard("DCM", "121007", "Device")
_COMMENT = standard("DCM", "121106", "Comment")
_FINDING = own("refractory-occlusion", "Refractory large-vessel occlusion")
_SHARE = own("log-odds-share", "Contribution to the log-odds")
_SIDES = {
    "left": standard("SCT", "7771000", "Left"),
    "right": standard("SCT", "24028007", "Right"),
    "affected": own("affected-side", "Side of the occlusion"),
    "contralateral": own("contralateral-side", "Side opposite to the occlusion"),
}

Group = MeasurementsAndQualitativeEvaluations


def structured_report(context: ObjectContext, maps: Sequence[tuple[Channel, int]]) -> Dataset:
    """Make the report.

    Args:
        context: the prediction.
        maps: modalities that have a Parametric Map, each with the number of that instance.

    Returns:
        The object.
    """
    prediction, model = context.prediction, context.prediction.model
    images = {channel: _map(context, number) for channel, number in maps}
    algorithm = AlgorithmIdentification(
        name=model.name, version=model.version, parameters=[f"manifest {model.digest}"], manufacturer=MANUFACTURER
    )
    groups = [_answer(context, algorithm), *_perfusion(context, algorithm)]
    if prediction.attribution is not None:
        groups += _contributions(context, prediction.attribution, images)
    groups += _remarks(context)
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(context)),
        procedure_reported=_PROCEDURE,
        imaging_measurements=groups,
        title=_TITLE,
    )
    equipment = context.equipment("report")
    keep = ("series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer")
    made = Comprehensive3DSR(
        evidence=[context.source(), *images.values()],
        content=report[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        record_evidence=True,
        **{name: equipment[name] for name in keep},
    )
    made.ManufacturerModelName, made.SoftwareVersions = equipment["manufacturer_model_name"], context.software()
    made.DeviceSerialNumber = equipment["device_serial_number"]
    made.CurrentRequestedProcedureEvidenceSequence = context.evidence(images.values())
    if "PertinentOtherEvidenceSequence" in made:
        del made.PertinentOtherEvidenceSequence
    return finish(made, context, "report", "rlvo report")


def _observer(context: ObjectContext) -> ObserverContext:
    model = context.prediction.model
    return ObserverContext(
        observer_type=_DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=context.device_uid,
            name="rlvo",
            manufacturer_name=MANUFACTURER,
            model_name=model.name[:64],
            serial_number=model.digest.removeprefix("sha256:")[:64],
        ),
    )


def _group(
    context: ObjectContext,
    name: str,
    finding: CodedConcept,
    measurements: Sequence[Measurement],
    evaluations: Sequence[QualitativeEvaluation] = (),
    *,
    algorithm: AlgorithmIdentification | None = None,
    sites: Sequence[FindingSite] | None = None,
    image: Dataset | None = None,
    texts: Iterable[str] = (),
) -> Group:
    """One group of TID 1501, with comments at its end."""
    source = image and [SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)]
    group = Group(
        tracking_identifier=TrackingIdentifier(uid=context.uid("group", name), identifier=name[:64]),
        finding_type=finding,
        algorithm_id=algorithm,
        finding_sites=sites,
        measurements=measurements or None,
        qualitative_evaluations=evaluations or None,
        source_images=source or None,
    )
    for text in texts:
        comment = TextContentItem(_COMMENT, text[:1024], relationship_type=RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(comment)
    return group


def _number(name: CodedConcept, value: float, of: CodedConcept = UNITY) -> Measurement:
    return Measurement(name=name, value=_decimal(value), unit=of)


def _decimal(value: float) -> float:
    """The number with the digits that a decimal string (16 characters) holds."""
    return float(f"{value:.9g}") + 0.0


def _answer(context: ObjectContext, algorithm: AlgorithmIdentification) -> Group:
    prediction = context.prediction
    assert prediction.probability is not None
    numbers = [_number(own("probability", "Probability of a refractory occlusion"), prediction.probability)]
    numbers += _uncertainty(prediction)
    if prediction.attribution is not None:
        numbers += [
            _number(
                own("log-odds-base", "Log-odds of background patients without images"), prediction.attribution.base
            ),
            _number(own("log-odds", "Log-odds of the probability"), prediction.attribution.total),
        ]
    texts = [NOTICE, prediction.summary]
    if prediction.decision is not None:
        numbers.append(_number(own("threshold", "Threshold of the decision"), prediction.decision.threshold))
        texts.append(f"Rule of the threshold: {rule_text(prediction.decision.rule)}")
    evaluations = [QualitativeEvaluation(own("intended-use", "Intended use"), own("research-use-only", NOTICE))]
    if prediction.headline is not None:
        value = own(prediction.headline.value, prediction.headline.text)
        evaluations.append(QualitativeEvaluation(own("decision", "Decision"), value))
    withheld = own("withheld-by", "Decision withheld because of")
    evaluations += [QualitativeEvaluation(withheld, own(code, name_of(code))) for code in prediction.withheld]
    return _group(context, "answer", _FINDING, numbers, evaluations, algorithm=algorithm, texts=texts)


def _uncertainty(prediction: Prediction) -> list[Measurement]:
    """The interval under the name of what it is (docs/decisions/0083)."""
    interval = prediction.interval
    if interval is None:
        return []
    if interval.kind == "calibrated":
        return [
            _number(own("interval-low", "Lower end of the calibrated interval"), interval.low),
            _number(own("interval-high", "Upper end of the calibrated interval"), interval.high),
            _number(own("interval-level", "Level of the calibrated interval"), interval.level),
            _number(own("interval-coverage", "Measured coverage of the calibrated interval"), interval.coverage),
        ]
    return [
        _number(own("folds-low", "Lowest probability of the folds (no level)"), interval.low),
        _number(own("folds-high", "Highest probability of the folds (no level)"), interval.high),
    ]


def _perfusion(context: ObjectContext, algorithm: AlgorithmIdentification) -> Iterator[Group]:
    if context.prediction.perfusion is None:
        return
    known = context.prediction.perfusion.model_dump(exclude_none=True)
    numbers = [
        _number(own(name.replace("_", "-"), label(name)), value, unit("mL") if name.endswith("_ml") else UNITY)
        for name, value in known.items()
    ]
    if numbers:
        yield _group(context, "perfusion", own("perfusion", "CT perfusion"), numbers, algorithm=algorithm)


def _contributions(context: ObjectContext, attribution: Attribution, images: dict[Channel, Dataset]) -> Iterator[Group]:
    for each in attribution.clinical:
        yield _clinical(context, each)
    kind = own("image-contribution", "Contribution of an image")
    for part in attribution.imaging:
        evaluation = QualitativeEvaluation(own("modality", "Modality"), _channel(part.modality))
        yield _group(
            context,
            f"image {part.modality}",
            kind,
            [_number(_SHARE, part.contribution)],
            [evaluation],
            image=images.get(part.modality),
        )
    for number, region in enumerate(attribution.regions):
        yield _region(context, number, region)


def _clinical(context: ObjectContext, each: ClinicalContribution) -> Group:
    name = variable_label(each)
    evaluations = [QualitativeEvaluation(own("variable", "Variable"), own(each.variable, name))]
    if each.imputed:
        evaluations.append(QualitativeEvaluation(own("value-state", "Value"), own("not-given", "not given, imputed")))
    shown = "not given" if each.imputed else value_text(each)
    return _group(
        context,
        f"clinical {each.variable}",
        own("clinical-contribution", "Contribution of a clinical variable"),
        [_number(_SHARE, each.contribution)],
        evaluations,
        texts=[f"{name}: {shown}"],
    )


def _region(context: ObjectContext, number: int, part: RegionContribution) -> Group:
    name = region_label(part.region)
    code = own(f"region-{part.region.replace(' ', '-').lower()}", name)
    evaluations = [
        QualitativeEvaluation(own("modality", "Modality"), _channel(part.modality)),
        QualitativeEvaluation(own("region", "Region"), code),
    ]
    if part.side is not None:
        evaluations.append(QualitativeEvaluation(own("side", "Side"), _SIDES[part.side]))
    return _group(
        context,
        f"region {number + 1} {part.modality} {name}",
        own("region-contribution", "Contribution of a brain region"),
        [_number(_SHARE, part.contribution)],
        evaluations,
        sites=[FindingSite(anatomic_location=code)],
    )


def _remarks(context: ObjectContext) -> Iterator[Group]:
    """One group for each flag: its code, severity and text."""
    for number, flag in enumerate(context.prediction.flags):
        evaluations = [
            QualitativeEvaluation(own("remark", "Remark"), own(flag.code, flag.name)),
            QualitativeEvaluation(own("severity", "Severity"), own(flag.severity.value, flag.severity.capitalize())),
        ]
        kind = own("input-remark", "Remark on the input or the answer")
        yield _group(context, f"remark {number + 1} {flag.code}", kind, [], evaluations, texts=[flag_text(flag)])


def _channel(channel: Channel) -> CodedConcept:
    return own(channel.value, channel_label(channel))


def _map(context: ObjectContext, number: int) -> Dataset:
    """A stand-in of the Parametric Map of a modality, for references."""
    image = context.source()
    image.SOPClassUID, image.SOPInstanceUID = ParametricMapStorage, context.uid("attribution", number)
    image.SeriesInstanceUID = context.uid("attribution")
    return image
