"""What people are told about the input form of a checkpoint folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vsr1_core.input_form import AUTHORS, InputForm
from vsr1_core.models.published import RECORD
from vsr1_core.models.soft_query import checkpoint_kind, own_soft_query
from vsr1_core.rows.files import read_json


def form_text(folder: Path) -> str:
    """How the model in `folder` is asked, in a sentence and one line per option of its input form."""
    kind = checkpoint_kind(folder)
    record = folder / RECORD
    if kind == "plain" and record.is_file():
        form = read_json(record).get("input_form", "template")
        return f"This project made it, and it is asked in this form: {form}"
    if kind == "plain":
        return "It records no input form: published models are asked in the published form (video_wrapper=published)."
    if kind == "released":
        return (
            "It is in the authors' form, which records no options. When a dataset takes it over, this is recorded with "
            f"it:\n{_lines(AUTHORS)}"
        )
    soft_query = own_soft_query(folder)
    assert soft_query is not None, "its kind says that there is one"
    return f"It is asked in this form:\n{_lines(soft_query.form)}\n  system_prompt: {soft_query.system_prompt}"


def _lines(form: InputForm) -> str:
    return "\n".join(f"  {name}: {value}" for name, value in asdict(form).items() if value != "")
