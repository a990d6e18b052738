"""Predict one study, print the reasons and save the report and the maps.

python examples/predict.py ncct.nii.gz cta.nii.gz clinical.json --out results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rlvo import Client, InvalidStudy


def main() -> None:
    """Send the study to the service and write what it returns to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ncct", type=Path)
    parser.add_argument("cta", type=Path)
    parser.add_argument("clinical", type=Path, help="JSON document, see /v1/schema/clinical")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()

    with Client(arguments.url, api_key=arguments.api_key) as client:
        try:
            prediction = client.predict(
                ncct=arguments.ncct, cta=arguments.cta, clinical=json.loads(arguments.clinical.read_text())
            )
        except InvalidStudy as error:
            record = f" Its record is prediction {error.prediction_id}." if error.prediction_id else ""
            faults = "".join(f"\n  {fault.field}: {fault.detail}" for fault in error.errors)
            sys.exit(f"The service refused the study: {error.detail}{record}{faults}")

        print(prediction.summary)
        print(f"Probability of refractory LVO: {prediction.probability:.1%} ({prediction.notice})")
        for flag in prediction.flags:
            print(f"{flag.severity.capitalize()}: {flag.detail}. What to do: {flag.action}")
        if prediction.attribution is not None:
            for reason in sorted(prediction.attribution.clinical, key=lambda reason: -abs(reason.contribution)):
                print(f"{reason.variable:45} {reason.contribution:+.2f}")
            for modality in prediction.attribution.imaging:
                print(f"{modality.modality:45} {modality.contribution:+.2f}")
            arguments.out.mkdir(parents=True, exist_ok=True)
            for name in prediction.attribution.maps:
                print(client.map(prediction.id, name, to=arguments.out))
            print(client.report(prediction.id, to=arguments.out))


if __name__ == "__main__":
    main()
