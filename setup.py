"""Where a wheel puts the three packages of this repository. All else is in pyproject.toml.

`assets` and `pipelines` are names that other projects use as well, so a wheel puts them into `vsr1_core/_app/`, which
is no place that `import assets` looks at. `vsr1_core.__main__` puts it on the path of its own process.
"""

from setuptools import find_packages, setup

APP = "vsr1_core._app"

core = find_packages(include=["vsr1_core", "vsr1_core.*"])
parts = find_packages(include=["assets", "assets.*", "pipelines", "pipelines.*"])
setup(
    packages=[*core, *(f"{APP}.{name}" for name in parts)],
    package_dir={f"{APP}.{name}": name.replace(".", "/") for name in parts},
    package_data={
        "vsr1_core": ["py.typed", "evaluation/expected_ranges.json"],
        "vsr1_core.serve": ["page/*"],
        f"{APP}.pipelines": ["dagster.yaml"],
    },
)
