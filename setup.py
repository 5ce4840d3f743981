"""Where the packages live. Everything else about the project stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # `kernels/` is installed as `fastgrow.kernels` and has no __init__.py: at the repository root a
    # top-level package of that name would shadow Hugging Face's `kernels`.
    packages=[*find_packages(include=["fastgrow", "fastgrow.*"]), "fastgrow.kernels"],
    package_dir={"fastgrow": "fastgrow", "fastgrow.kernels": "kernels"},
)
