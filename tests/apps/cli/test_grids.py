"""Axes of grids and their labels."""

from __future__ import annotations


def test_labels_of_files_are_their_names() -> None:
    from gradina.apps.cli.grids import axis, cell_label

    name, values = axis("loras=some/where/bear.safetensors:0.5|bear.safetensors:1")
    assert [cell_label(name, value) for value in values] == ["bear 0.5", "bear 1"]
    name, values = axis("concepts=some/where/bear.safetensors|my-bear=a.safetensors+b.safetensors")
    assert [cell_label(name, value) for value in values] == ["bear", "my-bear\nb"]
    assert cell_label("guidance_scale", 7.5) == "guidance_scale 7.5"
    assert cell_label("sampler", "ddim") == "sampler ddim"
