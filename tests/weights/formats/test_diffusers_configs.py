"""Old configs are corrected as diffusers' pipelines correct them."""

import warnings

import diffusers
import pytest

from gradina.weights.formats.diffusers import read_folder


@pytest.mark.parametrize("version", [None, "0.6.0", "0.8.1", "0.9.0.dev0", "0.9.0", "0.10.2", "0.35.0"])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_old_sample_sizes_are_corrected_as_in_diffusers(version, size, folder, saved, edit_json):
    saved(folder)
    (folder / "gradina.json").unlink()
    edit_json(folder / "unet" / "config.json", sample_size=size, **({"_diffusers_version": version} if version else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    model = read_folder(folder)
    assert (model.defaults.width, model.defaults.height) == (side, side)
    assert model.unet.config.size == (64 if size == 32 and version in ("0.6.0", "0.8.1") else size)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"])
@pytest.mark.parametrize(
    "more", [{"steps_offset": ...}, {"steps_offset": 0}, {"steps_offset": 1}, {"steps_offset": None}]
)
def test_old_schedulers_are_corrected_as_in_diffusers(name, more, folder, saved, edit_json):
    saved(folder)
    old = {"clip_sample": ..., "prediction_type": ..., "set_alpha_to_one": ..., "timestep_spacing": ...}
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name=name, **old, **more)
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])
    model = read_folder(folder)
    assert model.prediction == "eps"
    if more["steps_offset"] is None or name == "LMSDiscreteScheduler":
        assert model.schedule.steps_offset == 1
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder).scheduler.config
    assert model.schedule.steps_offset == theirs.steps_offset == 1
    assert model.schedule.set_alpha_to_one == theirs.set_alpha_to_one


@pytest.mark.parametrize("heads", [8, [8, 8]])
def test_heads_as_number_or_list(heads, tiny, assert_same, folder, saved, edit_json):
    saved(folder)
    edit_json(folder / "unet" / "config.json", attention_head_dim=heads)
    assert_same(tiny(), read_folder(folder))
