"""The demo: grow and compose models on bundled text, within minutes on two CPU cores."""

from fastgrow.demo.run import DemoResult, run_demo
from fastgrow.demo.settings import DemoSettings

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
