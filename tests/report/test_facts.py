"""The page shows the recorded environment, settings and events, and what is not recorded."""

from __future__ import annotations

from fastgrow.report import Report
from fastgrow.report.inside.facts import add_facts


def test_environment_settings_and_events() -> None:
    report = Report("t")
    merged = {"event": "merged", "stage": "2/3", "global_step": 8, "depth": 2, "drift": 0.5}
    add_facts(report, {"environment": {"torch": "2.11"}, "seed": 3}, [{"step": 1}, merged])
    text = report.markdown()
    assert "recorded no environment" not in text
    environment, _, settings = text.partition("| setting | value |")
    assert "| environment.torch | 2.11 |" in environment
    assert "| seed | 3 |" in settings
    assert "environment.torch" not in settings
    assert "| merged | 2/3 | 8 | drift 0.5 |" in settings


def test_nothing_recorded() -> None:
    report = Report("t")
    add_facts(report, {}, [])
    assert "recorded no environment" in report.markdown()
    assert "settings are missing" in report.markdown()
    assert "Events" not in report.markdown()
