"""The demo: the main job end to end on bundled text, within minutes on two cores."""

from fastgrow.demo.run import DemoResult, run_demo
from fastgrow.demo.settings import DemoSettings

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
