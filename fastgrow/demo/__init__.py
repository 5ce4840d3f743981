"""The demo: the main job end to end on bundled text, within minutes on two cores."""

from fastgrow.demo.run import DemoResult, run_demo
from fastgrow.demo.settings import FULL, QUICK, DemoSettings

__all__ = ["FULL", "QUICK", "DemoResult", "DemoSettings", "run_demo"]
